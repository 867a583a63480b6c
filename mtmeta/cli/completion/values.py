"""Completion of values: recipes, runs, tasks, parts, keys and files, by the name of an option or argument."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

MAX_PROPOSALS = 2000  # entries of one folder, and folders searched for runs
Proposals = Iterable[tuple[str, str]]  # a word and its help


@dataclass
class Line:
    """A command line before the word that is being written."""

    command: Any
    """The command, or the group if none is named yet."""
    names: list[str] = field(default_factory=list)
    """Its names: `["recipes", "copy"]`."""
    arguments: list[str] = field(default_factory=list)
    options: dict[str, list[str]] = field(default_factory=dict)
    """Values of options by parameter name; flags have none."""
    waiting: Any = None
    """The option whose value comes next."""


def values_of(parameter: Any, line: Line, word: str) -> Proposals:
    """Return the values of an option or argument, by its name."""
    for name in (".".join([*line.names, parameter.name]), parameter.name):
        if name in CONSTANT_VALUES:
            return [(value, "") for value in CONSTANT_VALUES[name]]
        if name in VALUE_SOURCES:
            return VALUE_SOURCES[name](line, word)
    return ()


def _files(line: Line, word: str, fits: Callable[[Path], bool] = lambda path: True) -> Iterator[tuple[str, str]]:
    """Yield folders, and the files that fit, where `word` begins a path."""
    head, slash, tail = word.rpartition("/")
    folder = Path(os.path.expanduser(head + slash) or ".")
    try:
        with os.scandir(folder) as entries:
            children = sorted(islice(entries, MAX_PROPOSALS), key=lambda entry: entry.name)
    except (OSError, ValueError):
        return  # no such folder, or none that may be read
    for entry in children:
        if entry.name.startswith(".") and not tail.startswith("."):
            continue
        name = f"{head}{slash}{entry.name}"
        if name.startswith("-") or (name.startswith("~") and not slash):  # no option, and nobody's home
            name = f"./{name}"
        if entry.is_dir():
            run = fits is _is_run and _is_run(Path(entry.path))
            yield name + "/" * (not run), ""
        elif fits(Path(entry.path)):
            yield name, ""


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() and (path / "recipe.lock.yaml").is_file()


def _recipes(line: Line, word: str) -> Iterator[tuple[str, str]]:
    yield from _shipped(line, word)
    yield from _files(line, word, lambda path: path.suffix in (".yaml", ".yml"))


def _shipped(line: Line, word: str) -> Iterator[tuple[str, str]]:
    from mtmeta.core.recipe.shipped import headline, shipped_recipes

    for name, path in shipped_recipes().items():
        if name.startswith(word):
            yield name, headline(path)


def _runs(line: Line, word: str) -> Iterator[tuple[str, str]]:
    """Yield run directories under runs/; and where the user has begun a path, all folders that it may lead through."""
    any_run = False
    for place, folders, _ in islice(os.walk("runs"), MAX_PROPOSALS):
        if _is_run(Path(place)):
            folders.clear()
            any_run = True
            yield place, ""
        folders[:] = sorted(name for name in folders if not name.startswith("."))
    if word or not any_run:
        yield from _files(line, word, _is_run)


def _runs_and_recipes(line: Line, word: str) -> Iterator[tuple[str, str]]:
    yield from _runs(line, word)
    if line.arguments:
        yield from _recipes(line, word)


def _recipe_of(line: Line) -> dict[str, Any]:
    """Read the recipe on the line, or that of the run; return nothing if there is none that can be read."""
    from mtmeta.core.errors import MtmetaError
    from mtmeta.core.recipe import strict_yaml
    from mtmeta.core.recipe.shipped import find_recipe

    for given in reversed(line.arguments):
        path = Path(os.path.expanduser(given))
        try:
            return strict_yaml.read_file(path / "recipe.yaml" if path.is_dir() else find_recipe(path)).data
        except (MtmetaError, OSError):
            continue
    return {}


def _tasks(line: Line, word: str) -> Iterator[tuple[str, str]]:
    tasks = _recipe_of(line).get("tasks")
    for name in tasks if isinstance(tasks, dict) else ():
        yield str(name), ""


def _task_files(line: Line, word: str) -> Iterator[tuple[str, str]]:
    name, equals, path = word.partition("=")
    if equals:
        yield from ((f"{name}={file}", "") for file, _ in _files(line, path))
    else:
        yield from ((f"{task}=", text) for task, text in _tasks(line, word))


def _keys(line: Line, word: str) -> Proposals:
    from mtmeta.cli.completion.keys import keys, load_schema

    return keys(load_schema(), _recipe_of(line), word)


def _kinds(line: Line, word: str) -> Iterator[tuple[str, str]]:
    from mtmeta.core.recipe.part_help import FIXED_PARTS
    from mtmeta.core.registry.guard import KINDS

    yield from ((kind, "") for kind in (*KINDS, *FIXED_PARTS))


def _parts(line: Line, word: str) -> Iterator[tuple[str, str]]:
    from mtmeta.core.recipe.part_help import FIXED_PARTS
    from mtmeta.core.registry.guard import KINDS
    from mtmeta.core.registry.registry import build_registry

    kind = line.arguments[0]
    if kind in FIXED_PARTS:
        yield from ((name, "") for name in FIXED_PARTS[kind])
    elif kind in KINDS:
        yield from ((name, "") for name in build_registry(block=line.options.get("no_plugin", [])).names(kind))


def _plugins(line: Line, word: str) -> Iterator[tuple[str, str]]:
    from importlib.metadata import entry_points

    for point in entry_points(group="mtmeta"):
        yield (point.dist.name if point.dist is not None else point.name), ""


CONSTANT_VALUES: dict[str, tuple[str, ...]] = {
    "device": ("auto", "cpu", "cuda"),
    "split": ("dev", "test", "train"),
    "head": ("reset", "prototype"),
    "shell": ("bash", "zsh", "fish"),
    "export.form": ("transformers", "onnx", "sentence-transformers", "peft"),
    "new.algorithm.kind": ("gradient", "inner_loop", "stateful"),
    "new.task.kind": ("classification", "pair", "regression"),
    "predict.form": ("csv", "jsonl"),
}
VALUE_SOURCES: dict[str, Callable[[Line, str], Proposals]] = {
    "recipe": _recipes,
    "recipes": _recipes,
    "run": _runs,
    "runs": _runs,
    "adapt.arguments": _runs_and_recipes,
    "new.recipe.algorithm": lambda line, word: _parts(Line(None, arguments=["algorithm"]), word),
    "new.recipe.path": _files,
    "recipes.copy.name": _shipped,
    "recipes.copy.to": _files,
    "show.kind": _kinds,
    "show.name": _parts,
    "task": _tasks,
    "file": _task_files,
    "set_": _keys,
    "no_plugin": _plugins,
    **dict.fromkeys(("out", "output", "input_", "data_root", "folder", "keep"), _files),
}
