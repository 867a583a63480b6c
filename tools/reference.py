"""Reference pages written from the code: every key of a recipe, every registered part, every command, the Python names.

A page says what the dataclasses, docstrings and commands of the installed mtmeta say, so it cannot go stale.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_origin

import typer

import mtmeta
from mtmeta.cli import app
from mtmeta.core.api import optimizers as optim
from mtmeta.core.api import schedules
from mtmeta.core.api.contracts import Component, Metric, Task
from mtmeta.core.errors import MtmetaError
from mtmeta.core.recipe.part_help import FIXED_PARTS, describe_part
from mtmeta.core.recipe.reader import KEYS, REQUIRED
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.discovery import load_plugins
from mtmeta.core.registry.guard import KINDS
from mtmeta.core.registry.option_fields import expectation, field_docs, field_hints, option_name
from mtmeta.core.registry.registry import Registry
from mtmeta.core.tables.data_file import Dialect

__all__ = ["pages"]

ROOT = Path(__file__).parent.parent
NOTE = "_This page is written from the code when the site is built._\n"
ENVIRONMENT = {
    "MTMETA_DATA": "Folder that data paths start from; wins over the recipe's `data_root`, and `--data-root` over it.",
    "MTMETA_CACHE": "Folder of the token cache in place of `~/.cache/mtmeta`; `off` for none.",
    "MTMETA_KERNELS": "`off`: no C kernels are compiled; the encoder runs on PyTorch's operators.",
    "MTMETA_PLUGINS": "Names of the plugins to allow, by comma; `none` for the built-in ones alone.",
    "MTMETA_DEBUG": "`1`: an error shows its traceback.",
}
# where the page of a kind is not named after it, or holds two
PLACES = {"metric": "metrics", "reporter": "metrics", "optimizer": "optimizers", "schedule": "optimizers"}
TITLES = {
    "tasks": "Tasks",
    "algorithms": "Algorithms",
    "backbones": "Backbones",
    "samplers": "Samplers",
    "optimizers": "Optimizers and schedules",
    "metrics": "Metrics and reporters",
    "launchers": "Launchers",
}


@functools.cache
def pages() -> dict[str, str]:
    """Return every generated page by its path below docs/, as Markdown; of the built-in plugins alone."""
    registry = Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"}))
    text_of = {"reference/recipe.md": _recipe(), "reference/commands.md": _commands(), "reference/python.md": _python()}
    for page, title in TITLES.items():
        kinds = [kind for kind in [*KINDS, "optimizer", "schedule"] if PLACES.get(kind, f"{kind}s") == page]
        text = "\n".join("\n".join(_kind(registry, kind, alone=len(kinds) == 1)) for kind in kinds)
        text_of[f"reference/{page}.md"] = f"# {title}\n\n{text}\n{NOTE}"
    return text_of


# ----------------------------------------------------------------------------------------------------- parts and keys


def _kind(registry: Registry, kind: str, *, alone: bool) -> Iterator[str]:
    """Every part of a kind, with its options; what all tasks share stands once, in front."""
    names = list(FIXED_PARTS[kind]) if kind in FIXED_PARTS else registry.names(kind)
    if not alone:
        yield f"## {kind.capitalize()}s {{#{kind}s}}\n"
    if kind == "task":
        yield "A task has a name of its own in `tasks`; `task:` says which of these it is, if the name does not."
        yield ""
        yield "## Options of every task {#common}\n"
        yield from _options(Task)
    for name in names:
        part = FIXED_PARTS[kind][name] if kind in FIXED_PARTS else registry.get(kind, name, "")
        described = describe_part(registry, kind, name)
        yield f"{'##' if alone else '###'} `{name}` {{#{name if alone else f'{kind}-{name}'}}}\n"
        yield _paragraphs(described["help"]) + "\n"
        if described["about"]:
            lines = [line for line in described["about"] if not re.search(r"(^|\s)/", line)]  # no path of this machine
            yield "".join(f"- {_text(line)}\n" for line in lines)
        if not isinstance(part, Metric):
            own = list(_options(part, than=Task if kind == "task" else None))
            yield from own or (["No options of its own.\n"] if kind == "task" else ["No options.\n"])


def _options(part: Any, *, than: Any = None) -> Iterator[str]:
    """Yield a definition for each option: values, default, meaning; of the options that `than` has, only changes."""
    hints, docs = field_hints(part), field_docs(part)
    known = {field.name: field.default for field in dataclasses.fields(than)} if than else {}
    for field in dataclasses.fields(part):
        if field.name == "name" or (field.name in known and known[field.name] == field.default):
            continue
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        shown = "required" if default is dataclasses.MISSING else f"default `{_value(default)}`"
        name = option_name(part, field.name)
        yield _definition(name, f"{_takes(hints[name])}; {shown}", docs.get(name, ""))


def _definition(name: str, takes: str, meaning: str) -> str:
    shown = f' <span class="takes">{takes}</span>' if takes else ""
    return f"`{name}`{shown}\n:   {_text(meaning) or 'No help given.'}\n"


def _takes(hint: Any) -> str:
    """Describe the values that an option takes, as `expectation` does, with links to the kinds of a mapping."""
    if hint == optim.OptimizerOptions:
        return "an [optimizer](optimizers.md#optimizers)"
    if hint == schedules.ScheduleOptions:
        return "a [schedule](optimizers.md#schedules)"
    words = _text(expectation(hint))
    return words.replace("a mapping", "[data options](recipe.md#data)") if hint == Dialect | None else words


def _value(default: Any) -> str:
    """Write a default as a recipe would; of an object, the fields that differ from their own defaults."""
    if dataclasses.is_dataclass(default) and not isinstance(default, type):
        fields = sorted(dataclasses.fields(default), key=lambda field: field.name != "name")
        given = [(field, getattr(default, field.name)) for field in fields]
        kept = [(f.name, value) for f, value in given if f.name == "name" or value != f.default]
        return "{" + ", ".join(f"{key}: {_value(value)}" for key, value in kept) + "}"
    return default if isinstance(default, str) else json.dumps(default)


def _recipe() -> str:
    """All keys of a recipe: the top level, then each section."""
    docs = field_docs(Recipe)
    example = (ROOT / "recipes" / "reptile_three_task.yaml").read_text(encoding="utf-8")
    lines = ["# Recipe\n", RECIPE, f"```yaml\n{example}```\n", "## Top level {#top}\n"]
    for key in KEYS:
        required = "required" if key in REQUIRED else "optional"
        if key == "training":
            required += ", unless there is a `budget`"
        where = {**{kind: f"{kind}s.md" for kind in ("backbone", "sampler", "algorithm")}, "tasks": "tasks.md"}
        where |= {"optimizer": "optimizers.md#optimizers", "schedule": "optimizers.md#schedules"}
        where |= {"reporters": "metrics.md#reporters"} | {section: f"#{section}" for section in FIXED_PARTS["section"]}
        takes = f"{required}; [its options]({where[key]})" if key in where else required
        lines.append(_definition(key, takes, docs.get(key, FORMAT if key == "format" else "")))
    for name, section in FIXED_PARTS["section"].items():
        lines += [f"## `{name}` {{#{name}}}\n", _paragraphs(inspect.getdoc(section) or "") + "\n", *_options(section)]
    return "\n".join(lines) + f"\n{NOTE}"


RECIPE = """\
A recipe is one YAML file. Unknown keys, keys given twice and values out of range are errors, all told at once, with
file, line and column. Numbers may be written as `2e-5`; `no`, `on` and the like are text; anchors and several
documents are refused. `--set a.b=c` overrides a key. This one comes with mtmeta, as `mtmeta run reptile_three_task`:
"""
FORMAT = "Version of the recipe format, 1 if it is not given; a newer one is refused."

# ------------------------------------------------------------------------------------------------------------ commands


def _commands() -> str:
    root: Any = typer.main.get_command(app)
    lines = ["# Commands\n", "`mtmeta COMMAND --help` says the same.\n"]
    for name, command in root.commands.items():
        lines += _command(f"mtmeta {name}", command, 2)
    lines += ["## Exit codes {#exit-codes}\n", "| code | what it means |", "|---|---|", "| 0 | all went well |"]
    lines += ["| 1 | a fault of mtmeta's own, please report it |"]
    by_code: dict[int, list[str]] = {}
    for kind in _below(MtmetaError):
        if kind.__doc__ and "exit_code" in vars(kind):
            by_code.setdefault(kind.exit_code, []).append(_text(kind.__doc__.split("\n")[0].rstrip(".")))
    lines += [f"| {code} | {'; '.join(words)} |" for code, words in sorted(by_code.items())]
    lines += ["| 75 | stopped by a signal, as SIGTERM; the same command goes on |", "| 130 | stopped by Ctrl-C |"]
    lines += ["\n## Environment {#environment}\n"]
    lines += [f"`{name}`\n:   {words}\n" for name, words in ENVIRONMENT.items()]
    return "\n".join(lines) + f"\n{NOTE}"


def _below(kind: type[MtmetaError]) -> Iterator[type[MtmetaError]]:
    for below in kind.__subclasses__():
        yield below
        yield from _below(below)


def _command(name: str, command: Any, level: int) -> Iterator[str]:
    """Yield a command and those below it, from the records its --help is made of."""
    context = command.make_context(name, [], resilient_parsing=True)
    usage = " ".join(command.get_usage(context).removeprefix("Usage:").split())
    yield f"{'#' * level} `{name}` {{#{name.removeprefix('mtmeta ').replace(' ', '-')}}}\n"
    yield f"```console\n{usage}\n```\n"
    yield _paragraphs(inspect.cleandoc(command.help or "")) + "\n"
    for parameter in command.params:
        record = parameter.get_help_record(context)
        if record is not None:
            meaning, _, extra = record[1].partition("  [")
            yield _definition(record[0], _text(extra.rstrip("]")), meaning)
    for below, inner in getattr(command, "commands", {}).items():
        yield from _command(f"{name} {below}", inner, level + 1)


# -------------------------------------------------------------------------------------------------------------- Python


def _python() -> str:
    """Write every public name of `mtmeta`, with its signature and docstring, by its use."""
    titles = ("Functions", "Parts of plugins", "Objects", "Errors", "Types")
    entries_of: dict[str, list[str]] = {title: [] for title in titles}
    for name in mtmeta.__all__:
        public = getattr(mtmeta, name)
        if isinstance(public, str):
            continue
        entries_of[_section(public)] += _entry(name, public)
    lines = ["# Python\n", "Everything a program or a plugin may import: `import mtmeta`. Nothing else is promised.\n"]
    for title, entries in entries_of.items():
        lines += [f"## {title}\n", *entries]
    return "\n".join(lines) + f"\n{NOTE}"


def _section(public: Any) -> str:
    if inspect.isfunction(public):
        return "Functions"
    if not isinstance(public, type):
        return "Types"
    if issubclass(public, MtmetaError):
        return "Errors"
    return "Parts of plugins" if issubclass(public, Component) or public is Metric else "Objects"


def _entry(name: str, public: Any) -> Iterator[str]:
    yield f"### `{name}` {{#{name}}}\n"
    if not (inspect.isfunction(public) or isinstance(public, type)):
        if get_origin(public) is not None:
            yield f"As the type of an option: {_takes(public)}.\n"
        else:
            yield f"{(inspect.getdoc(type(public)) or '').partition(chr(10))[0]}\n"
        return
    if inspect.isfunction(public):
        yield f"```python\n{_signature(name, public)}\n```\n"
    yield _paragraphs(inspect.getdoc(public) or "") + "\n"
    if not isinstance(public, type):
        return
    docs = field_docs(public) if dataclasses.is_dataclass(public) else {}
    for field, words in docs.items():
        yield _definition(field, "", words)
    for key, member in vars(public).items():
        function = _function(member)
        if key.startswith("_") or not inspect.isfunction(function):
            continue
        shown = key if isinstance(member, property) else _signature(key, function, short=True)
        yield _definition(shown, "", _words(public, key).replace("\n\n", " "))


def _function(member: Any) -> Any:
    return member.fget if isinstance(member, property) else getattr(member, "__func__", member)


def _words(public: type[Any], key: str) -> str:
    """Return the docstring of a method, or else that of the one it stands for in a base class."""
    members = (vars(kind)[key] for kind in public.__mro__ if key in vars(kind))
    return next((text for member in members if (text := inspect.getdoc(_function(member)))), "")


def _signature(name: str, function: Any, *, short: bool = False) -> str:
    """`name(...)`, one parameter a line; short without types and defaults, which stand in the source and in editors."""
    signature = inspect.signature(function)
    if short:
        stars: dict[object, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
        names = [stars.get(p.kind, "") + key for key, p in signature.parameters.items() if key not in ("self", "cls")]
        return f"{name}({', '.join(names)})"
    lines: list[str] = []
    starred = False
    for key, parameter in signature.parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            lines.append("    *,\n")
            starred = True
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        mark = {"VAR_POSITIONAL": "*", "VAR_KEYWORD": "**"}.get(parameter.kind.name, "")
        default = "..." if callable(parameter.default) else repr(parameter.default)
        given = "" if parameter.default is parameter.empty else f" = {default}"
        lines.append(f"    {mark}{key}: {parameter.annotation}{given},\n")
    return f"{name}(\n{''.join(lines)}) -> {signature.return_annotation}"


# ---------------------------------------------------------------------------------------------------------------- text


def _text(text: str) -> str:
    """Write a docstring's words as Markdown on one line: outside of code spans, characters are escaped."""
    parts = re.split(r"(`[^`]*`)", " ".join(text.split()))
    return "".join(part if part.startswith("`") else re.sub(r"([\\*_<>\[\]$|])", _escape, part) for part in parts)


def _escape(match: re.Match[str]) -> str:
    return {"<": "&lt;", ">": "&gt;", "|": "&#124;"}.get(match[0], f"\\{match[0]}")


def _paragraphs(text: str) -> str:
    """Do the same for several paragraphs; lists and indented lines stay as they are."""
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(block if re.match(r"[-*] |    ", block) else _text(block) for block in blocks)
