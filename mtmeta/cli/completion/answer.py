"""Completion of a command line: which words may stand where the cursor is.

The shell's function (completion.SHELL) starts `mtmeta` with the words up to the cursor as arguments and the shell's
name in the environment; the proposals go to stdout, one `value<TAB>help` a line. Nothing else is ever printed, whatever
fails.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

from mtmeta.cli.completion.values import MAX_PROPOSALS, Line, Proposals, values_of
from mtmeta.core.wording import safe

VARIABLE = "_MTMETA_COMPLETE"
WORD_BREAKS = "=:"  # bash splits words at these
SPECIAL = set(" \t\\'\"`$&|;<>()[]{}*?!#~")


def answer(command: Any, shell: str, words: Sequence[str]) -> None:
    """Print the proposals for the last of `words` as `shell` takes them."""
    out = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # a plugin may print anything
    os.dup2(silence, 2)
    try:
        if shell == "bash":
            words = _joined(words)
        *before, raw = words or [""]
        proposals = propose(command, list(map(_unquoted, before)), _unquoted(raw))
        lines = [_shown(shell, value, text, raw) for value, text in proposals if _can_stand(shell, value, raw)]
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        os.write(out, data)
    except BaseException:  # whatever it is, the user's prompt is no place to tell it
        pass
    finally:
        os._exit(0)  # nor may anything that a plugin left behind print at exit


def _can_stand(shell: str, value: str, raw: str) -> bool:
    """Return whether a value can be put where `raw` stands: in double quotes nothing keeps bash from seeing a `!`."""
    return value.isprintable() and not (shell == "bash" and raw.startswith('"') and "!" in value)


def _shown(shell: str, value: str, text: str, raw: str) -> str:
    """Return a proposal as the shell takes it; bash puts it into the line as it is, within quotes that are open."""
    if shell != "bash":
        return f"{value}\t{safe(text, 100)}" if text else value
    if raw.startswith('"'):
        return "".join(f"\\{c}" if c in '"$`\\' else c for c in value)
    if raw.startswith("'"):
        return value.replace("'", r"'\''")
    home = raw.startswith("~")
    value = "".join(f"\\{c}" if c in SPECIAL and not (i == 0 and home) else c for i, c in enumerate(value))
    # bash replaces only the text after the last of its breaks
    at = max(raw.rfind(c) for c in WORD_BREAKS) + 1
    return value[at:] if value.startswith(raw[:at]) else value


def _joined(words: Sequence[str]) -> list[str]:
    """Return the words as they were before bash split them at = and : signs."""
    joined: list[str] = []
    goes_on = False
    for word in words:
        broken = bool(word) and set(word) <= set(WORD_BREAKS)
        if joined and (broken or goes_on):
            joined[-1] += word
        else:
            joined.append(word)
        goes_on = broken
    return joined


def _unquoted(word: str) -> str:
    """Return a shell's word without quotes and backslashes; the last quote may still be open."""
    plain, quote, escaped = "", "", False
    for c in word:
        if escaped:
            plain, escaped = plain + c, False
        elif c == "\\" and quote != "'":
            escaped = True
        elif c == quote or (not quote and c in "'\""):
            quote = "" if quote else c
        else:
            plain += c
    return plain


# ------------------------------------------------------------------------------------------ where the cursor stands


def propose(command: Any, before: Sequence[str], word: str) -> list[tuple[str, str]]:
    """Return the words that `word` may become after the words `before`, with help where there is some."""
    line = _read(command, before)
    proposals: Proposals
    start = ""
    name, equals, value = word.partition("=")
    if line.waiting is None and name.startswith("--") and equals:
        option, start, word = _option(line.command, name), f"{name}=", value
        proposals = values_of(option, line, word) if option is not None and not _is_flag(option) else ()
    elif line.waiting is not None:
        proposals = values_of(line.waiting, line, word)
    elif word.startswith("-"):
        proposals = _options(line)
    elif commands := getattr(line.command, "commands", None):
        every = [(name, each.get_short_help_str(100)) for name, each in commands.items() if not each.hidden]
        proposals = [] if line.arguments else every  # after a word that is no command there is nothing to propose
    else:
        arguments = [each for each in line.command.params if each.param_type_name == "argument"]
        at = len(line.arguments)
        if at >= len(arguments) and not (arguments and arguments[-1].nargs == -1):
            return []
        proposals = values_of(arguments[min(at, len(arguments) - 1)], line, word)
    fitting = {start + value: text for value, text in islice(proposals, MAX_PROPOSALS) if value.startswith(word)}
    return list(fitting.items())


def _read(command: Any, words: Sequence[str]) -> Line:
    """Return the command line that the words make, as far as it can be understood."""
    line = Line(command)
    for word in words:
        if line.waiting is not None:
            line.options.setdefault(line.waiting.name, []).append(word)
            line.waiting = None
        elif word.startswith("-") and len(word) > 1:
            name, equals, value = word.partition("=")
            option = _option(line.command, name)
            if option is None:
                continue
            given = line.options.setdefault(option.name, [])
            if equals:
                given.append(value)
            elif not _is_flag(option):
                line.waiting = option
        elif word in getattr(line.command, "commands", {}):
            line.command = line.command.commands[word]
            line.names.append(word)
        else:
            line.arguments.append(word)
    return line


def _option(command: Any, name: str) -> Any:
    options = (each for each in command.params if each.param_type_name == "option" and name in each.opts)
    return next(options, None)


def _is_flag(option: Any) -> bool:
    return bool(getattr(option, "is_flag", False))


def _options(line: Line) -> Iterator[tuple[str, str]]:
    for each in line.command.params:
        again = getattr(each, "multiple", False) or each.name not in line.options
        if each.param_type_name == "option" and not each.hidden and again and each.name != "help":
            yield max(each.opts, key=len), each.help or ""
    yield "--help", "Show help and exit."
