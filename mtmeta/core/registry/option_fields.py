"""Options of parts as types, help and words: what validation, schema and help all go by."""

from __future__ import annotations

import ast
import dataclasses
import functools
import inspect
import itertools
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter
from pydantic.fields import FieldInfo

from mtmeta.core.wording import safe


def field_docs(part: type[Any]) -> dict[str, str]:
    """Return the string under each field of a dataclass and its bases, by what recipes call it."""
    docs: dict[str, str] = {}
    for kind in filter(dataclasses.is_dataclass, reversed(part.__mro__)):
        try:
            lines, _ = inspect.findsource(sys.modules[kind.__module__])
            found = _docs_in("".join(lines)).get(kind.__qualname__, {})
        except (KeyError, OSError, TypeError, SyntaxError):
            continue  # a class made in an interactive session has no source
        line = vars(kind).get("__firstlineno__", 0)  # from Python 3.13 on; before, the first of one name counts
        own = found.get(line, next(iter(found.values()), {}))
        docs |= {option_name(kind, field): clean(text) for field, text in own.items()}
    return docs


@functools.lru_cache(maxsize=64)  # inspect.getsource of a class parses the whole file as well, for each class anew
def _docs_in(source: str) -> Mapping[str, Mapping[int, Mapping[str, str]]]:
    """Return the strings under the annotated names of each class, by its `__qualname__` and its first line."""
    docs: dict[str, dict[int, Mapping[str, str]]] = {}
    for name, kind in _classes(ast.parse(source), ""):
        line = min([kind.lineno, *(decorator.lineno for decorator in kind.decorator_list)])
        pairs = itertools.pairwise(kind.body)
        own = {field: text for first, after in pairs for field, text in _documented(first, after)}
        docs.setdefault(name, {})[line] = own
    return docs


def _classes(node: ast.AST, within: str) -> Iterator[tuple[str, ast.ClassDef]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.ClassDef):
            yield within + child.name, child
            yield from _classes(child, f"{within}{child.name}.")
        elif isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _classes(child, f"{within}{child.name}.<locals>.")
        elif isinstance(child, ast.stmt | ast.excepthandler | ast.match_case):  # if, try, with: they add no name
            yield from _classes(child, within)


def _documented(field: ast.stmt, after: ast.stmt) -> Iterator[tuple[str, str]]:
    if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
        return
    if isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant):
        yield field.target.id, str(after.value.value)


def clean(text: str) -> str:
    """Return a docstring fit for a terminal, line by line."""
    return "\n".join(safe(line, 500) for line in inspect.cleandoc(text).split("\n"))


@functools.lru_cache(maxsize=256)  # making one takes longer than reading a recipe
def adapter(kind: Any) -> TypeAdapter[Any]:
    """pydantic's validator of a dataclass, which refuses keys that it does not know."""
    kind.__pydantic_config__ = ConfigDict(
        extra="forbid", use_attribute_docstrings=False, alias_generator=functools.partial(option_name, kind)
    )
    for base in _nested(kind):
        base.__pydantic_config__ = ConfigDict(extra="forbid", alias_generator=functools.partial(option_name, base))
    return TypeAdapter(kind)


def option_name(kind: Any, field: str) -> str:
    """Return what recipes call a field of a dataclass: its name, unless the class attribute `written` has another."""
    written: Mapping[str, str] = getattr(kind, "written", {})
    return written.get(field, field) if isinstance(written, Mapping) else field


def field_hints(kind: Any) -> Mapping[str, Any]:
    """Return fields of a dataclass with their annotations, `Annotated` kept."""
    return _field_hints(kind)


@functools.lru_cache(maxsize=256)
def _field_hints(kind: Any) -> Mapping[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    fields = [field.name for field in dataclasses.fields(kind) if field.name in hints]
    return {option_name(kind, name): hints[name] for name in fields}


def union_members(hint: Any) -> Iterator[Any]:
    """Yield the types a hint admits, unions and Annotated taken apart; Annotated numbers stay whole."""
    if get_origin(hint) is Annotated and get_origin(get_args(hint)[0]) in (Union, types.UnionType):
        yield from union_members(get_args(hint)[0])
    elif get_origin(hint) in (Union, types.UnionType):
        for member in get_args(hint):
            yield from union_members(member)
    else:
        yield hint


def _nested(kind: type[Any]) -> Iterator[type[Any]]:
    for hint in field_hints(kind).values():
        for member in union_members(hint):
            if hasattr(member, "__dataclass_fields__"):
                yield member
                yield from _nested(member)


def is_choice(hint: Any) -> bool:
    """Return whether an option is a choice of dataclasses by `name`, such as an optimizer."""
    members = list(union_members(hint))
    return bool(members) and all(hasattr(member, "__dataclass_fields__") for member in members)


def literal_values(hint: Any) -> list[str]:
    """Return the values of the `Literal` members of a hint, as text."""
    return [str(o) for member in union_members(hint) if get_origin(member) is Literal for o in get_args(member)]


_PLAIN = {bool: "true or false", str: "text", int: "an integer", float: "a finite number", type(None): "null"}


def expectation(hint: Any) -> str:
    """Describe the values an option takes: `an integer from 1 to 10`, `a number > 0 and finite`, `one of a, b`."""
    literals = literal_values(hint)
    parts = [_expect_one(member) for member in union_members(hint) if get_origin(member) is not Literal]
    if literals:
        parts.append(("one of " if len(literals) > 1 else "") + ", ".join(literals))
    if "null" in parts:
        parts = [part for part in parts if part != "null"] + ["null"]
    return " or ".join(dict.fromkeys(parts))


def _expect_one(hint: Any) -> str:
    base = base_type(hint)
    metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
    limits = [m for item in metadata if isinstance(item, FieldInfo) for m in item.metadata]
    given = {key: getattr(m, key) for m in limits for key in ("ge", "gt", "le", "lt", "min_length") if hasattr(m, key)}
    if get_origin(base) in (list, tuple):
        fixed = None if Ellipsis in get_args(base) else len(get_args(base)) or None
        least = f" of at least {given['min_length']}" if "min_length" in given else ""
        return f"a list of {fixed}" if fixed else f"a list{least}"
    if get_origin(base) is dict or hasattr(base, "__dataclass_fields__"):
        return "a mapping"
    if base in (int, float) and given:
        return _bounded(base, given)
    return _PLAIN.get(base, getattr(base, "__name__", str(base)))


def base_type(hint: Any) -> Any:
    """Return the type without its `Annotated`."""
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _bounded(base: Any, limits: dict[str, Any]) -> str:
    noun = "an integer" if base is int else "a number"
    if "ge" in limits and "le" in limits:
        return f"{noun} from {limits['ge']} to {limits['le']}"
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<="}
    text = " and ".join(f"{signs[key]} {value:g}" for key, value in limits.items())
    return f"{noun} {text}" + (" and finite" if base is float and "le" not in limits and "lt" not in limits else "")
