"""pydantic's errors in the words of the house: `file:line:col: what is wrong, quoting the token; one fix`."""

from __future__ import annotations

import json
import types
from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from mtmeta.core.errors import did_you_mean, quote

__all__ = ["Fault", "convert", "expectation", "field_hints"]

Fault = tuple[tuple[str | int, ...], str, bool]  # path below the section, message, "points at the key"


def _adapter(kind: Any) -> TypeAdapter[Any]:
    kind.__pydantic_config__ = ConfigDict(extra="forbid", use_attribute_docstrings=False)
    for base in _nested(kind):
        base.__pydantic_config__ = ConfigDict(extra="forbid")
    return TypeAdapter(kind)


def convert(kind: type[Any], data: dict[str, Any]) -> tuple[Any, list[Fault]]:
    """An object of dataclass `kind` from plain data, or None and every fault found.

    Validation is strict (a string is never a number, a number never a boolean) and runs in JSON mode, where a list
    may fill a tuple. `schedule: cosine` is short for `schedule: {name: cosine}`.
    """
    hints = field_hints(kind)
    data = {key: {"name": v} if isinstance(v, str) and _is_choice(hints.get(key)) else v for key, v in data.items()}
    try:
        return _adapter(kind).validate_json(json.dumps(data), strict=True), []
    except ValidationError as error:
        faults: dict[tuple[str | int, ...], Fault] = {}
        for item in error.errors(include_url=False):
            fault = _fault(kind, data, item)
            faults.setdefault(fault[0], fault)  # a union reports once for each member; the first will do
        return None, list(faults.values())


def _fault(kind: type[Any], data: Any, item: Any) -> Fault:
    path, value, owner = _walk(kind, data, item["loc"])
    what, dotted = item["type"], ".".join(map(str, path))
    if what in ("unexpected_keyword_argument", "extra_forbidden"):
        key = str(item["loc"][-1])
        return path, f"unknown key {quote(key)}{{section}}{did_you_mean(key, list(field_hints(owner)))}", True
    if what.startswith("missing"):
        key = str(item["loc"][-1])
        return (*path, key), f"{{section_name}} needs {quote(key)}{{under}}; add it", False
    if what == "union_tag_not_found":
        return path, f"{dotted} needs 'name'; one of {', '.join(_tags(kind, path))}", False
    if what == "union_tag_invalid":
        tag = value.get("name") if isinstance(value, dict) else value
        known = _tags(kind, path)
        text = f"unknown {dotted} {quote(tag)}{did_you_mean(str(tag), known)} (known: {', '.join(known)})"
        return (*path, "name"), text, False
    if what == "json_invalid":
        return (), "holds text that is not Unicode", False
    hint = _hint_at(kind, path)
    expected = expectation(hint)
    if expected == "true or false" and isinstance(value, str):
        return path, f"{quote(value)} is not a boolean here; write true or false", False
    options = _literals(hint)
    if isinstance(value, str) and options:
        return path, f"{dotted} must be {expected}, found {quote(value)}{did_you_mean(value, options)}", False
    if isinstance(value, str) and expected.startswith(("a number", "an integer")):
        plain = "a number" if expected.startswith("a number") else "an integer"
        return path, f"{dotted}: expected {plain}, found {quote(value)}", False
    if isinstance(value, dict | list):
        found = "a mapping" if isinstance(value, dict) else "a list"
        return path, f"{dotted} must be {expected}, found {found}", False
    return path, f"{dotted} must be {expected}, found {quote(value)}", False


def _walk(kind: type[Any], data: Any, loc: Sequence[str | int]) -> tuple[tuple[str | int, ...], Any, type[Any]]:
    """pydantic's loc without union tags: the path in the data, the value there, the dataclass that owns it."""
    path: list[str | int] = []
    value, owner = data, kind
    for part in loc:
        if isinstance(value, dict) and part in value:
            hint = field_hints(owner).get(str(part))
            path.append(part)
            value = value[part]
            owner = _member(hint, value) or owner
        elif isinstance(value, list) and isinstance(part, int) and part < len(value):
            path.append(part)
            value = value[part]
    return tuple(path), value, kind if not path[:-1] else _owner(kind, data, path[:-1])


def _owner(kind: type[Any], data: Any, path: Sequence[str | int]) -> type[Any]:
    for part in path:
        data = data[part]
        kind = _member(field_hints(kind).get(str(part)), data) or kind
    return kind


def field_hints(kind: Any) -> dict[str, Any]:
    """Fields of a dataclass with their annotations, `Annotated` kept."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hints[name] for name in kind.__dataclass_fields__ if name in hints and _is_option(kind, name)}


def _is_option(kind: type[Any], name: str) -> bool:
    return kind.__dataclass_fields__[name]._field_type.name == "_FIELD"  # type: ignore[no-any-return]


def _members(hint: Any) -> Iterator[Any]:
    """The types a hint admits, unions and Annotated taken apart; Annotated numbers stay whole."""
    if get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) in (Union, types.UnionType):
        yield from _members(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            yield from _members(member)
    else:
        yield hint


def _nested(kind: type[Any]) -> Iterator[type[Any]]:
    for hint in field_hints(kind).values():
        for member in _members(hint):
            if hasattr(member, "__dataclass_fields__"):
                yield member
                yield from _nested(member)


def _member(hint: Any, value: Any) -> type[Any] | None:
    """The dataclass that `value` fills: the one whose `name` tag it carries, or the only one."""
    kinds = [member for member in _members(hint) if hasattr(member, "__dataclass_fields__")]
    tag = value.get("name") if isinstance(value, dict) else None
    return next((k for k in kinds if getattr(k, "name", None) == tag), kinds[0] if len(kinds) == 1 else None)


def _is_choice(hint: Any) -> bool:
    """Whether an option is a choice of dataclasses by `name`, such as an optimizer."""
    members = list(_members(hint))
    return bool(members) and all(hasattr(member, "__dataclass_fields__") for member in members)


def _hint_at(kind: type[Any], path: Sequence[str | int]) -> Any:
    hint: Any = kind
    for part in path:
        owners = [member for member in _members(hint) if hasattr(member, "__dataclass_fields__")]
        found = next((field_hints(o)[str(part)] for o in owners if str(part) in field_hints(o)), None)
        if found is None:
            args = [a for member in _members(hint) for a in get_args(member) if a is not Ellipsis]
            found = args[min(part, len(args) - 1)] if isinstance(part, int) and args else (args[-1] if args else str)
        hint = found
    return hint


def _tags(kind: type[Any], path: Sequence[str | int]) -> list[str]:
    return [str(getattr(member, "name", "")) for member in _members(_hint_at(kind, path))]


def _literals(hint: Any) -> list[str]:
    return [str(o) for member in _members(hint) if get_origin(member) is Literal for o in get_args(member)]


_PLAIN = {bool: "true or false", str: "text", int: "an integer", float: "a finite number", type(None): "null"}


def expectation(hint: Any) -> str:
    """What an option takes, in words: `an integer from 1 to 10000000`, `a number > 0 and finite`, `one of a, b`."""
    literals = _literals(hint)
    parts = [_expect_one(member) for member in _members(hint) if get_origin(member) is not Literal]
    if literals:
        parts.append(("one of " if len(literals) > 1 else "") + ", ".join(literals))
    if "null" in parts:
        parts = [part for part in parts if part != "null"] + ["null"]
    return " or ".join(dict.fromkeys(parts))


def _expect_one(hint: Any) -> str:
    origin = get_origin(hint)
    if origin is Annotated:
        base, *metadata = get_args(hint)
        limits = [m for item in metadata if isinstance(item, FieldInfo) for m in item.metadata]
        return _bounded(
            base, {key: getattr(m, key) for m in limits for key in ("ge", "gt", "le", "lt") if hasattr(m, key)}
        )
    if origin in (list, tuple):
        return "a list"
    if origin is dict or hasattr(hint, "__dataclass_fields__"):
        return "a mapping"
    return _PLAIN.get(hint, getattr(hint, "__name__", str(hint)))


def _bounded(base: Any, limits: dict[str, Any]) -> str:
    noun = "an integer" if base is int else "a number"
    if "ge" in limits and "le" in limits:
        return f"{noun} from {limits['ge']} to {limits['le']}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    text = " and ".join(f"{signs[key]} {value:g}" for key, value in limits.items())
    return f"{noun} {text}" + (" and finite" if base is float and "le" not in limits and "lt" not in limits else "")
