"""Recipes as data again, every default written out: for the run directory, and to tell whether two are the same."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable
from typing import Any

import yaml

from mtmeta.core.api.contracts import Component
from mtmeta.core.recipe.parts import described_parts
from mtmeta.core.recipe.sections import RECIPE_FORMAT, Recipe
from mtmeta.core.registry.option_fields import option_name

# options that came later than the first runs, by the values that those runs had without saying so: those of a dialect,
# which has the key `quoting`, of `data`, which has `on_bad_rows`, of `training`, which has `grad_accumulation`, of
# optimizers, of adapters, which have `norms`, of tasks, which have `loss_weight`, of `evaluation`, which has
# `batch_tokens`, of `budget`, which has `examples`, and sections
ADDED: dict[str, dict[str, Any]] = {
    "quoting": {"delimiter": "auto", "id": None, "header": True},
    "on_bad_rows": {"leave_out": None},
    "grad_accumulation": {"average": None, "shards": None, "stop": None},
    "layer_decay": {"adapter_lr": None},
    "norms": {"trained_by": None},
    "loss_weight": {"head": None, "long": None, "loss": None, "out_of_scope": None},
    "batch_tokens": {"calibrate": False},
    "pair_mode": {"orders": "given"},
    "examples": {"shares": None},
}
ADDED_SECTIONS = ("adapters", "teachers")


def describe(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as plain data, every default written out; reading it back gives the same recipe."""
    data: dict[str, Any] = {"format": RECIPE_FORMAT}
    for field in dataclasses.fields(recipe):
        value = getattr(recipe, field.name)
        if field.name == "tasks":
            data["tasks"] = {name: {"task": task.name, **described_parts(task, plain)} for name, task in value.items()}
        elif field.name == "reporters":
            data["reporters"] = [plain(reporter) for reporter in value]
        elif field.name == "teachers" and value is not None:  # tasks stand beside what is common to them
            data["teachers"] = {**plain(value.of), "anneal": value.anneal}
        else:
            data[field.name] = plain(value)
    return data


def plain(value: Any, *, named: bool = True, tag: str = "name") -> Any:
    """Return a value of a recipe as plain data; a part that is `named` has its name under `tag`."""
    if dataclasses.is_dataclass(value):
        names = {option_name(type(value), field.name): field.name for field in dataclasses.fields(value)}
        own = {option: plain(getattr(value, name)) for option, name in names.items()}
        return {tag: value.name, **own} if named and isinstance(value, Component) else own
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def dump(data: dict[str, Any]) -> str:
    """Write plain data as YAML that strict_yaml reads back unchanged."""
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120)


def decisive(data: dict[str, Any]) -> dict[str, Any]:
    """Return what decides the weights of a described recipe: all but its name, data root and reporters.

    Options that came later are left out at the values that runs before had, so that those runs go on.
    """
    left_out = {"name", "data_root", "reporters", *(key for key in ADDED_SECTIONS if data.get(key) is None)}
    return {key: _without_added(value) for key, value in data.items() if key not in left_out}


def _without_added(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    added = {key: item for mark, options in ADDED.items() if mark in value for key, item in options.items()}
    return {key: _without_added(item) for key, item in value.items() if key not in added or item != added[key]}


def digest(recipe: Recipe) -> str:
    """Return the SHA-256 of all that decides the weights."""
    return hashlib.sha256(json.dumps(decisive(describe(recipe)), sort_keys=True).encode()).hexdigest()


def differences(one: Any, other: Any, path: str = "") -> Iterable[str]:
    """Yield the dotted keys at which two plain data differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            if key not in one or key not in other:
                yield f"{path}{key}"
            else:
                yield from differences(one[key], other[key], f"{path}{key}.")
    elif one != other:
        yield path.rstrip(".")
