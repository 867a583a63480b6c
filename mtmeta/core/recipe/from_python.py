"""Recipes that are Python objects: mappings with parts, options, paths and numbers of any library in them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

from mtmeta.core.errors import RecipeError
from mtmeta.core.recipe.resolved import describe, plain
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.recipe.strict_yaml import Document, KeyPath
from mtmeta.core.wording import quote, safe

RecipeSource = str | os.PathLike[str] | Mapping[str, Any] | Recipe
"""A recipe as Python may give it: a path or the name of a shipped one, a mapping, or one that was read."""
PLACE = "recipe"
"""What messages call a recipe that has no file."""
MAX_DEPTH = 32


def is_recipe_data(source: object) -> bool:
    """Return whether a recipe is given as an object, not by a path or name."""
    return isinstance(source, Mapping | Recipe)


def document_of(source: Mapping[str, Any] | Recipe) -> Document:
    """Return a recipe that is an object as a document without lines. Raises RecipeError for what no recipe can hold."""
    data = describe(source) if isinstance(source, Recipe) else _mapping(source, ())
    return Document(PLACE, data, {}, {})


def _mapping(value: Mapping[Any, Any], path: KeyPath) -> dict[str, Any]:
    if len(path) == MAX_DEPTH:
        raise RecipeError(PLACE, f"nested deeper than {MAX_DEPTH} levels")
    for key in value:
        if not isinstance(key, str):
            where = f" in {safe('.'.join(map(str, path)))}" if path else ""
            raise RecipeError(PLACE, f"key {quote(key)}{where} is no text; write it in quotes")
    return {key: as_plain(item, (*path, key)) for key, item in value.items()}


def as_plain(value: Any, path: KeyPath) -> Any:
    """Return a value as YAML would have it: parts as {name: ..., options}, numbers of numpy as numbers.

    Raises RecipeError, which names the `path` in the recipe, for anything else than data.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise RecipeError(PLACE, f"{_dotted(path)} is {value}; give a finite number")
        return float(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Mapping):
        return _mapping(value, path)
    if isinstance(value, list | tuple):
        return [as_plain(item, (*path, number)) for number, item in enumerate(value)]
    if is_dataclass(value) and not isinstance(value, type):
        return plain(value, tag="task" if path[:1] == ("tasks",) and len(path) == 2 else "name")
    if getattr(value, "shape", None) == () and hasattr(value, "item"):  # of numpy and the like
        return as_plain(value.item(), path)
    given = value.__name__ if isinstance(value, type) else type(value).__name__
    hint = f"; write {given}(...)" if isinstance(value, type) and is_dataclass(value) else "; give plain data"
    kind = "the class" if isinstance(value, type) else "of type"
    raise RecipeError(PLACE, f"{_dotted(path)} is {kind} {safe(given)}{hint}")


def _dotted(path: KeyPath) -> str:
    return safe(".".join(map(str, path)), 200)
