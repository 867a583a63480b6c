"""The recipes that come with the package, by name, and copies of them; the schema beside a recipe, for editors."""

from __future__ import annotations

import os
from pathlib import Path

from mtmeta.core.errors import MachineError, UsageError
from mtmeta.core.storage.disk import write_file
from mtmeta.core.storage.outputs import is_stream, write_output
from mtmeta.core.wording import choose, quote

PACKAGE = Path(__file__).parents[2]
SCHEMA_LINE = "# yaml-language-server: $schema="
"""Start of a recipe's first line where that tells editors the path of its schema, from the recipe's own folder."""
MADE_BY = "Made by `mtmeta schema`"
"""Words in the description of every schema that mtmeta wrote."""
SCHEMA_FILE = ".mtmeta/recipe.schema.json"
"""Path of the schema from the folder of a copied recipe; it holds wherever the folder goes."""


def shipped_recipes() -> dict[str, Path]:
    """Return the path of every recipe in the package by its name: `reptile_three_task`, `minilm/reptile`, ..."""
    # in a wheel they lie inside the package, in a clone beside it
    folder = next((path for path in (PACKAGE / "recipes", PACKAGE.parent / "recipes") if path.is_dir()), None)
    if folder is None:
        return {}
    return {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.yaml"))}


def find_recipe(path: str | os.PathLike[str]) -> Path:
    """Return the path where a file has it; else the path of the shipped recipe of this name; else the path as it is."""
    given = Path(path)
    if os.path.lexists(given):
        return given
    return shipped_recipes().get(_recipe_name(given), given)


def headline(path: Path) -> str:
    """Return the first line of a recipe's header that is for people."""
    with open(path, encoding="utf-8") as file:
        first = file.readline()
        return (file.readline() if first.startswith(SCHEMA_LINE) else first).lstrip("#").strip()


def copy_recipe(name: str, to: Path | None = None, *, schema: str) -> Path:
    """Copy a shipped recipe to a file or into a folder, by default here; return the path of the copy.

    Beside it goes `schema`, the text of the JSON Schema that its first line then refers to. Raises UsageError if there
    is no such recipe, or a file of that name is there already.
    """
    known = shipped_recipes()
    key = _recipe_name(Path(name))
    if key not in known:
        raise UsageError("NAME", f"no recipe {quote(name)} comes with mtmeta{choose(name, known)}")
    target = to if to is not None else Path(known[key].name)
    if target.is_dir():
        target = target / known[key].name
    if os.path.lexists(target):
        raise UsageError(str(target), "is there already; name another file")
    lines = known[key].read_text(encoding="utf-8").splitlines(keepends=True)
    first = _write_schema(target.parent, schema)
    write_output(target, first + "".join(line for line in lines if not line.startswith(SCHEMA_LINE)), named=False)
    return target


def _write_schema(folder: Path, schema: str) -> str:
    """Write the JSON Schema for recipes in a folder; returns the line that they begin with.

    An older one is replaced if mtmeta wrote it, and else left as it is.
    """
    file = folder / SCHEMA_FILE
    for place in (file.parent, file):
        if place.is_symlink():  # in a folder that somebody else made it may lead anywhere
            raise UsageError(str(place), "is a symbolic link; remove it")
    if not os.path.lexists(file) or (file.is_file() and MADE_BY.encode() in file.read_bytes()):
        write_file(file, schema, folder)
    return f"{SCHEMA_LINE}{SCHEMA_FILE}\n"


def write_recipe(path: Path, text: str, schema: str) -> str | None:
    """Write a recipe, and beside it the schema that its first line names; returns the reason where there is no schema.

    A recipe that is replaced keeps the schema that it named. Raises MachineError if the recipe cannot be written, and
    UsageError for a pipe or a device.
    """
    if is_stream(path):  # a file is made anew once its schema is there
        raise UsageError(str(path), "is no regular file; name another file")
    own = _schema_line(path)
    write_output(path, own + text)  # first, and by itself: a schema that cannot be written must not cost the recipe
    if own:
        return None
    try:
        write_output(path, _write_schema(path.parent, schema) + text)
    except (MachineError, UsageError, OSError) as error:
        return str(error)
    return None


def _schema_line(path: Path) -> str:
    """Return the first line of a file if it names a schema, else an empty string."""
    try:
        with open(path, encoding="utf-8") as file:
            first = file.readline(1000)
    except (OSError, ValueError):
        return ""
    return first if first.startswith(SCHEMA_LINE) and first.endswith("\n") else ""


def _recipe_name(path: Path) -> str:
    """Return the name of a shipped recipe, which may be given with `recipes/` and `.yaml`."""
    return path.as_posix().removeprefix("./").removeprefix("recipes/").removesuffix(".yaml")
