"""Keys that `--set` may change, by the JSON Schema of recipes; without pydantic, which takes its time to load."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any


def load_schema() -> dict[str, Any]:
    """Read the schema that comes with the package, or make one where other plugins are installed."""
    if entry_points(group="mtmeta"):
        from mtmeta.core.recipe.schema import recipe_schema
        from mtmeta.core.registry.registry import build_registry

        return recipe_schema(build_registry())
    text = (Path(__file__).parents[2] / "recipe.schema.json").read_text(encoding="utf-8")
    return dict(json.loads(text))


def keys(schema: Mapping[str, Any], recipe: Mapping[str, Any], word: str) -> Iterator[tuple[str, str]]:
    """Yield `a.b=` for each option and `a.` for each section that `word` may become; after `a.b=` the option's values.

    `recipe` says which parts the names stand for, as far as there is one.
    """
    key, equals, _ = word.partition("=")
    *above, last = key.split(".")
    node: Mapping[str, Any] = schema
    value: Any = recipe
    for name in above:
        node, value = _below(schema, node, value, name)
    if equals:
        node, _ = _below(schema, node, value, last)
        yield from ((f"{key}={choice}", "") for choice in _choices(schema, node))
        return
    start = "".join(f"{name}." for name in above)
    for name, option in _options(schema, node, value).items():
        inner, inner_value = _below(schema, node, value, name)
        text = str(option.get("description", "")) or str(_target(schema, option).get("description", ""))
        if _options(schema, inner, inner_value):
            yield f"{start}{name}.", text.partition("\n")[0]
        if _is_scalar(schema, option):
            yield f"{start}{name}=", text.partition("\n")[0]


def _target(schema: Mapping[str, Any], node: Any) -> Mapping[str, Any]:
    """Return the node, or the definition that it refers to."""
    while isinstance(node, dict) and "$ref" in node:
        node = schema["$defs"][node["$ref"].removeprefix("#/$defs/")]
    return node if isinstance(node, dict) else {}


def _options(schema: Mapping[str, Any], node: Any, data: Any) -> dict[str, Any]:
    """Return the properties of a mapping; of a choice, those of the part that its data name."""
    node = _target(schema, node)
    if "then" in node and node is not schema:
        if node["if"].get("type") == "object":
            return _options(schema, node["then"], {"name": data} if isinstance(data, str) else data)
        named = isinstance(data, dict) and "task" in data
        return _options(schema, node["then" if named else "else"], data)
    for branch in node.get("allOf", ()):
        (tag, wanted), *_ = branch["if"]["properties"].items()
        if isinstance(data, dict) and data.get(tag) == wanted["const"]:
            of_part = _options(schema, branch["then"], data)
            return {name: option for name, option in of_part.items() if name != tag} | {tag: node["properties"][tag]}
    for member in node.get("anyOf", ()):
        if options := _options(schema, member, data):
            return options
    properties = dict(node.get("properties", {}))
    if "propertyNames" in node and isinstance(data, dict):  # names of the recipe's own, such as its tasks
        extra = node.get("additionalProperties")
        return {name: properties.get(name, extra) for name in data}
    if isinstance(node.get("additionalProperties"), dict) and isinstance(data, dict):  # such names beside options
        properties |= {name: node["additionalProperties"] for name in data if name not in properties}
    return properties


def _below(schema: Mapping[str, Any], node: Any, data: Any, name: str) -> tuple[Any, Any]:
    """Return the schema of an option, and its value in the data or else its default."""
    option = _options(schema, node, data).get(name, {})
    value = data.get(name) if isinstance(data, dict) else None
    return option, option.get("default") if value is None and isinstance(option, dict) else value


def _is_scalar(schema: Mapping[str, Any], node: Any) -> bool:
    node = _target(schema, node)
    if "then" in node:
        # a part: a value only where a name alone may stand
        return any(name is not None for member in node.get("anyOf", ()) for name in member.get("enum", ()))
    return not node.get("properties") and not any(_target(schema, m).get("properties") for m in node.get("anyOf", ()))


def _choices(schema: Mapping[str, Any], node: Any) -> Iterator[str]:
    node = _target(schema, node)
    for value in node.get("enum", ()):
        yield "null" if value is None else str(value)
    if node.get("type") == "boolean":
        yield from ("true", "false")
    for member in node.get("anyOf", ()):
        yield from _choices(schema, member)
