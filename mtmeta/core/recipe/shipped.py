"""The recipes that come with the package: what they are called, and where they lie."""

from __future__ import annotations

import os
from pathlib import Path

from mtmeta.core.errors import MachineError, UsageError
from mtmeta.core.storage.disk import write_file
from mtmeta.core.wording import choose, quote

__all__ = ["SCHEMA_LINE", "copy", "find", "headline", "put_recipe", "put_schema", "shipped"]

PACKAGE = Path(__file__).parents[2]
SCHEMA_LINE = "# yaml-language-server: $schema="
"""How the first line of a recipe begins that tells editors where its schema lies, from the recipe's own folder."""
MADE_BY = "Made by `mtmeta schema`"
"""What every schema that mtmeta wrote says of itself."""
BESIDE = ".mtmeta/recipe.schema.json"
"""Where it lies for a copy: a path that holds wherever the folder goes."""


def shipped() -> dict[str, Path]:
    """Path of every recipe that comes with the package, by its name: `reptile_three_task`, `minilm/reptile`, ..."""
    # in a wheel they lie inside the package, in a clone beside it
    folder = next((path for path in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if path.is_dir()), None)
    if folder is None:
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find(path: str | os.PathLike[str]) -> Path:
    """A file of this path; where there is none, the shipped recipe of this name; else the path as it is."""
    given = Path(path)
    if os.path.lexists(given):
        return given
    return shipped().get(_name(given), given)


def headline(path: Path) -> str:
    """The first line of a recipe's header that is for people."""
    with open(path, encoding="utf-8") as file:
        first = file.readline()
        return (file.readline() if first.startswith(SCHEMA_LINE) else first).lstrip("#").strip()


def copy(name: str, to: Path | None = None, *, schema: str) -> Path:
    """Copy a shipped recipe to a file or into a folder, by default here; returns where it lies now.

    Beside it goes `schema`, the text of the JSON Schema that its first line then refers to.

    Raises UsageError if there is no such recipe, or a file of that name is there already.
    """
    known = shipped()
    key = _name(Path(name))
    if key not in known:
        raise UsageError("NAME", f"no recipe {quote(name)} comes with mtmeta{choose(name, known)}")
    target = to if to is not None else Path(known[key].name)
    if target.is_dir():
        target = target / known[key].name
    if os.path.lexists(target):
        raise UsageError(str(target), "is there already; name another file")
    lines = known[key].read_text(encoding="utf-8").splitlines(keepends=True)
    own = [line for line in lines if not line.startswith(SCHEMA_LINE)]
    first = put_schema(target.parent, schema)
    write_file(target, first + "".join(own))
    return target


def put_schema(folder: Path, schema: str) -> str:
    """Write the JSON Schema for recipes in a folder; returns the line that they begin with.

    One that is there already is renewed if mtmeta made it, and else left as it is.
    """
    there = folder / BESIDE
    if not there.is_file() or MADE_BY.encode() in there.read_bytes():
        write_file(there, schema)
    return f"{SCHEMA_LINE}{BESIDE}\n"


def put_recipe(path: Path, text: str, schema: str) -> str | None:
    """Write a recipe, and beside it the schema that its first line names; returns why there is no schema, if so.

    A recipe that is replaced keeps the schema that it named. Raises MachineError if the recipe cannot be written.
    """
    own = _schema_line(path)
    write_file(path, own + text)  # first of all, and without what may fail: it is what was asked for
    if own:
        return None
    try:
        write_file(path, put_schema(path.parent, schema) + text)
    except (MachineError, OSError) as error:
        return str(error)
    return None


def _schema_line(path: Path) -> str:
    """The first line of a file if it names a schema, else nothing."""
    try:
        with open(path, encoding="utf-8") as file:
            first = file.readline(1000)
    except (OSError, ValueError):
        return ""
    return first if first.startswith(SCHEMA_LINE) and first.endswith("\n") else ""


def _name(path: Path) -> str:
    """What a shipped recipe may be called by: its name, with or without `recipes/` and `.yaml`."""
    return path.as_posix().removeprefix("./").removeprefix("recipes/").removesuffix(".yaml")
