"""Plain data to dataclasses by pydantic, and its errors as `file:line:col: problem, quoting the token; one fix`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from mtmeta.core.recipe.strict_yaml import NUMBER, KeyPath
from mtmeta.core.registry.option_fields import (
    adapter,
    base_type,
    expectation,
    field_hints,
    is_choice,
    literal_values,
    union_members,
)
from mtmeta.core.wording import choose, did_you_mean, quote

Fault = tuple[KeyPath, str, bool]  # path in the recipe, message, "points at the key"


def convert(kind: Any, data: dict[str, Any], at: KeyPath = ()) -> tuple[Any, list[Fault]]:
    """Build a dataclass `kind` from plain data that stands at `at` in the recipe; else return None and every fault.

    Validation is strict (a string is never a number, a number never a boolean) and runs in JSON mode, where a list
    may fill a tuple. `schedule: cosine` is short for `schedule: {name: cosine}`.
    """
    hints = field_hints(kind)
    data = {key: {"name": v} if isinstance(v, str) and is_choice(hints.get(key)) else v for key, v in data.items()}
    try:
        return adapter(kind).validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        faults: dict[KeyPath, Fault] = {}
        for item in error.errors(include_url=False):
            fault = _fault(kind, data, item, at)
            faults.setdefault(fault[0], fault)  # a union reports once for each member; the first will do
    # where the list that a union may be has a bad item, that it is no number either is beside the point
    return None, [fault for path, fault in faults.items() if not _has_below(faults, path)]


def _has_below(faults: Iterable[KeyPath], path: KeyPath) -> bool:
    return any(len(other) > len(path) and other[: len(path)] == path for other in faults)


def _fault(kind: type[Any], data: Any, item: Any, at: KeyPath) -> Fault:
    path, value = _walk(data, item["loc"])
    error_type, last = item["type"], item["loc"][-1] if item["loc"] else ""
    full, dotted = (*at, *path), ".".join(map(str, (*at, *path)))
    if error_type in ("unexpected_keyword_argument", "extra_forbidden"):
        section = ".".join(map(str, full[:-1]))
        where = f" in {quote(section)}" if section else ""
        known = field_hints(_owner(kind, data, path[:-1]))
        return full, f"unknown key {quote(last)}{where}{choose(str(last), known)}", True
    if error_type.startswith("missing") and isinstance(last, str):
        return (*full, last), f"{dotted or 'the recipe'} needs {quote(last)}; add it", False
    if error_type == "union_tag_not_found":
        return full, f"{dotted} needs 'name'; one of {', '.join(_tags(kind, path))}", False
    if error_type == "union_tag_invalid":
        tag = value.get("name") if isinstance(value, dict) else value
        return (*full, "name"), f"unknown {dotted} {quote(tag)}{choose(str(tag), _tags(kind, path))}", False
    hint = _hint_at(kind, path)
    expected, options = expectation(hint), literal_values(hint)
    given = f"found {describe_value(value)}"
    if expected == "true or false" and isinstance(value, str):
        return full, f"{quote(value)} is not a boolean here; write true or false", False
    if isinstance(value, str) and options:
        given += did_you_mean(value, options)
    elif isinstance(value, str) and expected.startswith(("a number", "an integer")):
        plain = "a number" if expected.startswith("a number") else "an integer"
        quoted = "; remove the quotes" if NUMBER.fullmatch(value) else ""
        return full, f"{dotted}: expected {plain}, {given}{quoted}", False
    elif expected == "text" and isinstance(value, int | float):
        given += "; put it in quotes"
    return full, f"{dotted} must be {expected}, {given}", False


def describe_value(value: Any) -> str:
    """Return a value of a recipe as messages show it: the token itself, or the kind and size of a list or mapping."""
    if isinstance(value, dict | list):
        kind = "mapping" if isinstance(value, dict) else "list"
        return f"a {kind} of {len(value)}" if value else f"an empty {kind}"
    return quote(value)


def _walk(value: Any, loc: Sequence[str | int]) -> tuple[KeyPath, Any]:
    """Return pydantic's loc without union tags, which is the path in the data, and the value there."""
    path: list[str | int] = []
    for part in loc:
        in_list = isinstance(value, list) and isinstance(part, int) and part < len(value)
        if in_list or (isinstance(value, dict) and part in value):
            path.append(part)
            value = value[part]
    return tuple(path), value


def _owner(kind: type[Any], data: Any, path: Sequence[str | int]) -> type[Any]:
    """Return the dataclass that fills the mapping at `path`."""
    for part in path:
        data = data[part]
        kind = _member(field_hints(kind).get(str(part)), data) or kind
    return kind


def _member(hint: Any, value: Any) -> type[Any] | None:
    """Return the dataclass that `value` fills: the one whose `name` tag it carries, or the only one."""
    kinds = [member for member in union_members(hint) if hasattr(member, "__dataclass_fields__")]
    tag = value.get("name") if isinstance(value, dict) else None
    return next((k for k in kinds if getattr(k, "name", None) == tag), kinds[0] if len(kinds) == 1 else None)


def _hint_at(kind: type[Any], path: Sequence[str | int]) -> Any:
    hint: Any = kind
    for part in path:
        owners = [member for member in union_members(hint) if hasattr(member, "__dataclass_fields__")]
        inner = next((field_hints(o)[str(part)] for o in owners if str(part) in field_hints(o)), None)
        if inner is None:
            args = [a for member in union_members(hint) for a in get_args(base_type(member)) if a is not Ellipsis]
            inner = args[min(part, len(args) - 1)] if isinstance(part, int) and args else (args[-1] if args else str)
        hint = inner
    return hint


def _tags(kind: type[Any], path: Sequence[str | int]) -> list[str]:
    return [str(getattr(member, "name", "")) for member in union_members(_hint_at(kind, path))]
