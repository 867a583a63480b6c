"""Completion of a command line: which words may stand where the cursor is.

The shell's function (cli_scripts.py) starts `mtmeta` with the words up to the cursor as arguments and the shell's name
in the environment; what may follow goes to stdout, one `value<TAB>help` a line. Nothing else is ever printed, whatever
fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from mtmeta.core.errors import safe

__all__ = ["VARIABLE", "answer", "propose"]

VARIABLE = "_MTMETA_COMPLETE"
MOST = 2000  # entries of one folder, and folders searched for runs
OPEN = ("/", "=", ".")  # after these a word goes on, so no space follows
WORD_BREAKS = "=:"  # bash takes what stands between these for words of their own
SPECIAL = set(" \t\\'\"`$&|;<>()[]{}*?!#~")
Proposals = Iterable[tuple[str, str]]  # a word and its help


@dataclass
class Line:
    """A command line before the word that is being written."""

    command: Any
    """The command, or the group if none is named yet."""
    names: list[str] = field(default_factory=list)
    """How it is called: `["recipes", "copy"]`."""
    arguments: list[str] = field(default_factory=list)
    options: dict[str, list[str]] = field(default_factory=dict)
    """Values of options by parameter name; flags have none."""
    waiting: Any = None
    """The option whose value comes next."""


def answer(command: Any, shell: str, words: Sequence[str]) -> None:
    """Print the proposals for the last of `words` as `shell` takes them."""
    out = os.dup(1)
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)  # a plugin may print what it likes
    os.dup2(silence, 2)
    try:
        if shell == "bash":
            words = _joined(words)
        *before, raw = words or [""]
        quoted = raw[:1] in ("'", '"')
        word = _unquoted(raw)
        found = [(value, text) for value, text in propose(command, list(map(_unquoted, before)), word)]
        lines = [_shown(shell, value, text, raw, quoted) for value, text in found if value.isprintable()]
        data = "".join(f"{line}\n" for line in lines).encode("utf-8", "surrogateescape")
        os.write(out, data)
    except BaseException:  # whatever it is, the user's prompt is no place to tell it
        pass
    finally:
        os._exit(0)  # nor may anything that a plugin left behind print at exit


def _shown(shell: str, value: str, text: str, raw: str, quoted: bool) -> str:
    if shell != "bash":
        return f"{value}\t{safe(text, 100)}" if text else value
    if not quoted:
        value = "".join(f"\\{c}" if c in SPECIAL and not (i == 0 and c == "~") else c for i, c in enumerate(value))
    # bash puts it in place of what stands after the last of its breaks
    at = max(raw.rfind(c) for c in WORD_BREAKS) + 1
    return value[at:] if not quoted and value.startswith(raw[:at]) else value


def _joined(words: Sequence[str]) -> list[str]:
    """Words as they stood before bash broke them at = and : signs."""
    made: list[str] = []
    goes_on = False
    for word in words:
        broken = bool(word) and set(word) <= set(WORD_BREAKS)
        if made and (broken or goes_on):
            made[-1] += word
        else:
            made.append(word)
        goes_on = broken
    return made


def _unquoted(word: str) -> str:
    """A shell's word without quotes and backslashes; the last quote may still be open."""
    made, quote, escaped = "", "", False
    for c in word:
        if escaped:
            made, escaped = made + c, False
        elif c == "\\" and quote != "'":
            escaped = True
        elif c == quote or (not quote and c in "'\""):
            quote = "" if quote else c
        else:
            made += c
    return made


# ------------------------------------------------------------------------------------------ where the cursor stands


def propose(command: Any, before: Sequence[str], word: str) -> list[tuple[str, str]]:
    """What may stand in place of `word` after the words `before`, with help where there is some."""
    line = _read(command, before)
    found: Proposals
    start = ""
    name, equals, value = word.partition("=")
    if line.waiting is None and name.startswith("--") and equals:
        option, start, word = _option(line.command, name), f"{name}=", value
        found = _values(option, line, word) if option is not None and not _is_flag(option) else ()
    elif line.waiting is not None:
        found = _values(line.waiting, line, word)
    elif word.startswith("-"):
        found = _options(line)
    elif commands := getattr(line.command, "commands", None):
        every = [(name, each.get_short_help_str(100)) for name, each in commands.items() if not each.hidden]
        found = [] if line.arguments else every  # after a command that is none there is nothing to propose
    else:
        arguments = [each for each in line.command.params if each.param_type_name == "argument"]
        at = len(line.arguments)
        if at >= len(arguments) and not (arguments and arguments[-1].nargs == -1):
            return []
        found = _values(arguments[min(at, len(arguments) - 1)], line, word)
    fitting = {start + value: text for value, text in islice(found, MOST) if value.startswith(word)}
    return list(fitting.items())


def _read(command: Any, words: Sequence[str]) -> Line:
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
    found = (each for each in command.params if each.param_type_name == "option" and name in each.opts)
    return next(found, None)


def _is_flag(option: Any) -> bool:
    return bool(getattr(option, "is_flag", False))


def _options(line: Line) -> Iterator[tuple[str, str]]:
    for each in line.command.params:
        again = getattr(each, "multiple", False) or each.name not in line.options
        if each.param_type_name == "option" and not each.hidden and again and each.name != "help":
            yield max(each.opts, key=len), each.help or ""
    yield "--help", "Show help and exit."


# ------------------------------------------------------------------------------------------------- what may stand there


def _values(parameter: Any, line: Line, word: str) -> Proposals:
    """Values of an option or argument, by what it is called."""
    own = FIXED.get(parameter.name)
    if own is not None:
        return [(value, "") for value in own]
    source = SOURCES.get(".".join([*line.names, parameter.name])) or SOURCES.get(parameter.name)
    return source(line, word) if source is not None else ()


def _files(line: Line, word: str, fits: Callable[[Path], bool] = lambda path: True) -> Iterator[tuple[str, str]]:
    """Folders, and the files that fit, where `word` begins a path."""
    head, slash, tail = word.rpartition("/")
    folder = Path(os.path.expanduser(head + slash) or ".")
    try:
        with os.scandir(folder) as entries:
            found = sorted(islice(entries, MOST), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return  # no such folder, or none that may be read
    for entry in found:
        if entry.name.startswith(".") and not tail.startswith("."):
            continue
        if entry.is_dir():
            run = fits is _is_run and _is_run(Path(entry.path))
            yield f"{head}{slash}{entry.name}" + "/" * (not run), ""
        elif fits(Path(entry.path)):
            yield f"{head}{slash}{entry.name}", ""


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() and (path / "recipe.lock.yaml").is_file()


def _recipes(line: Line, word: str) -> Iterator[tuple[str, str]]:
    yield from _shipped(line, word)
    yield from _files(line, word, lambda path: path.suffix in (".yaml", ".yml"))


def _shipped(line: Line, word: str) -> Iterator[tuple[str, str]]:
    from mtmeta.core.shipped import headline, shipped

    for name, path in shipped().items():
        if name.startswith(word):
            yield name, headline(path)


def _runs(line: Line, word: str) -> Iterator[tuple[str, str]]:
    """Run directories under runs/; and where the user has begun a path, whatever folders it may lead through."""
    found = False
    for place, folders, _ in islice(os.walk("runs"), MOST):
        if _is_run(Path(place)):
            folders.clear()
            found = True
            yield place, ""
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    if word or not found:
        yield from _files(line, word, _is_run)


def _runs_and_recipes(line: Line, word: str) -> Iterator[tuple[str, str]]:
    yield from _runs(line, word)
    if line.arguments:
        yield from _recipes(line, word)


def recipe_of(line: Line) -> dict[str, Any]:
    """What the recipe on the line says, or that of the run; nothing if there is none that can be read."""
    from mtmeta.core import strict_yaml
    from mtmeta.core.errors import MtmetaError
    from mtmeta.core.shipped import find

    for given in reversed(line.arguments):
        path = Path(os.path.expanduser(given))
        try:
            return strict_yaml.read_file(path / "recipe.yaml" if path.is_dir() else find(path)).data
        except (MtmetaError, OSError):
            continue
    return {}


def _tasks(line: Line, word: str) -> Iterator[tuple[str, str]]:
    tasks = recipe_of(line).get("tasks")
    for name in tasks if isinstance(tasks, dict) else ():
        yield str(name), ""


def _task_files(line: Line, word: str) -> Iterator[tuple[str, str]]:
    name, equals, path = word.partition("=")
    if equals:
        yield from ((f"{name}={found}", "") for found, _ in _files(line, path))
    else:
        yield from ((f"{task}=", text) for task, text in _tasks(line, word))


def _keys(line: Line, word: str) -> Proposals:
    from mtmeta.cli_keys import keys, load_schema

    return keys(load_schema(), recipe_of(line), word)


def _kinds(line: Line, word: str) -> Iterator[tuple[str, str]]:
    from mtmeta.core.describe import FIXED as OTHERS
    from mtmeta.core.registry import KINDS

    yield from ((kind, "") for kind in (*KINDS, *OTHERS))


def _parts(line: Line, word: str) -> Iterator[tuple[str, str]]:
    from mtmeta.core.describe import FIXED as OTHERS
    from mtmeta.core.registry import KINDS, build_registry

    kind = line.arguments[0]
    if kind in OTHERS:
        yield from ((name, "") for name in OTHERS[kind])
    elif kind in KINDS:
        yield from ((name, "") for name in build_registry(block=line.options.get("no_plugin", [])).names(kind))


def _plugins(line: Line, word: str) -> Iterator[tuple[str, str]]:
    from importlib.metadata import entry_points

    for point in entry_points(group="mtmeta"):
        yield (point.dist.name if point.dist is not None else point.name), ""


FIXED: dict[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "split": ("dev", "test", "train"),
    "head": ("reset", "prototype"),
    "shell": ("bash", "zsh", "fish"),
}
SOURCES: dict[str, Callable[[Line, str], Proposals]] = {
    "recipe": _recipes,
    "recipes": _recipes,
    "run": _runs,
    "runs": _runs,
    "adapt.arguments": _runs_and_recipes,
    "predict.form": lambda line, word: [("csv", ""), ("jsonl", "")],
    "recipes.copy.name": _shipped,
    "recipes.copy.to": _files,
    "show.kind": _kinds,
    "show.name": _parts,
    "task": _tasks,
    "file": _task_files,
    "set_": _keys,
    "no_plugin": _plugins,
    **dict.fromkeys(("out", "output", "input_", "data_root", "folder"), _files),
}
