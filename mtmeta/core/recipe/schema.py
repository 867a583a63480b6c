"""The JSON Schema (draft 2020-12) of recipes, for editors: completion, help and checks while a recipe is written.

Built from the types that validation goes by: the options of every installed part, with the line of help under each,
defaults and ranges. Checks across two sections (an inner loop's schedule, a task's files and `evaluation`) are left to
`mtmeta validate`.
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from mtmeta.core.api.contracts import Metric, Task
from mtmeta.core.api.optimizers import OptimizerOptions
from mtmeta.core.api.schedules import ScheduleOptions
from mtmeta.core.recipe.reader import KEYS, NAME, REQUIRED, TASK_NAME
from mtmeta.core.recipe.sections import RECIPE_FORMAT, SECTIONS, TeacherOptions
from mtmeta.core.recipe.shipped import MADE_BY
from mtmeta.core.registry.option_fields import adapter, clean, field_docs, field_hints, option_name
from mtmeta.core.registry.registry import Registry

DRAFT = "https://json-schema.org/draft/2020-12/schema"
SHIPPED = Path(__file__).parents[2] / "recipe.schema.json"
"""The schema of mtmeta's own parts, which comes with the package."""
COMPONENTS = ("backbone", "sampler", "algorithm", "reporter")
HELP = {
    "backbone": "Where the encoder and its tokenizer come from.",
    "data": "How data files are read.",
    "sampler": "With which probability each task is drawn; default uniform.",
    "algorithm": "How the update direction of one step is found.",
    "adapters": "Low-rank weights of each task's own beside the encoder's; default none.",
    "teachers": "What other models say of the training examples, to be learned beside the labels; default none.",
    "training": "How long, and with which numerics.",
    "budget": "How much training may spend, so that regimes are compared at the same cost.",
    "evaluation": "When to evaluate, and what selects the best weights.",
    "checkpoint": "When to save the whole state.",
    "format": "Version of the recipe format.",
    "name": "Name of the run; runs/NAME is its directory. Default: the name of the file.",
    "seed": "Every draw of the run is a function of it.",
    "data_root": "Folder that data paths start from; --data-root and MTMETA_DATA override it.",
    "tasks": "The tasks, each under a name of its own; `task:` says which registered task it is, if the name does not.",
    "optimizer": "The optimizer of the outer step; for joint and individual simply the optimizer.",
    "schedule": "The schedule of its learning rate; default constant.",
    "reporters": "What becomes of the events of a run; default [console, jsonl].",
}
TEACHER = "section.teachers.TASK"
Schema = dict[str, Any]


def recipe_schema(registry: Registry) -> Schema:
    """Return the schema of recipes that may name any part in the registry, as plain data."""
    parts = {f"{kind}.{name}": part for kind, name, part in _unambiguous_parts(registry)}
    sections = {f"section.{name}": kind for name, kind in SECTIONS.items()} | {TEACHER: TeacherOptions}
    adapters = {key: adapter(kind) for key, kind in {**parts, **sections}.items()}
    adapters |= {"optimizer": TypeAdapter(OptimizerOptions), "schedule": TypeAdapter(ScheduleOptions)}
    inputs: list[Any] = [(key, "validation", validator) for key, validator in adapters.items()]
    schemas, shared = TypeAdapter.json_schemas(inputs, schema_generator=_Generator)
    definitions: dict[str, Schema] = dict(shared.get("$defs", {}))
    definitions |= {key: _dereferenced(schema, definitions) for (key, _), schema in schemas.items()}
    for key, part in parts.items():
        definitions[key] = _with_name(definitions[key], key, part, registry.names("metric"))
    steps, epochs = _integer_under("steps"), _integer_under("epochs")
    definitions["section.training"] = {
        **definitions["section.training"],
        "not": {"allOf": [steps, epochs]},
        "errorMessage": "give either steps or epochs",
    }
    definitions["section.teachers"] = {**definitions["section.teachers"], "additionalProperties": _ref(TEACHER)}
    definitions["schedule"] = {**definitions["schedule"], "nullable": True}
    for kind in (*COMPONENTS, "task"):
        names = {key.partition(".")[2]: key for key in parts if key.partition(".")[0] == kind}
        tag = "task" if kind == "task" else "name"
        definitions[kind] = _choice_of_part(tag, names, definitions, nullable=kind == "sampler")
    definitions = {name: _with_choices(schema, definitions) for name, schema in definitions.items()}
    top = _recipe_object([key.partition(".")[2] for key in parts if key.startswith("task.")])
    return {**top, "$defs": _reachable(top, definitions)}


def schema_text(registry: Registry) -> str:
    """Return the schema as the text of a file: the same bytes for the same parts."""
    return json.dumps(recipe_schema(registry), indent=1, allow_nan=False) + "\n"


def _unambiguous_parts(registry: Registry) -> Iterator[tuple[str, str, Any]]:
    """Yield (kind, name, part) of all that recipes can name; not of those with several suppliers: they are refused."""
    for kind in (*COMPONENTS, "task"):
        for name in registry.names(kind):
            supplied = registry.suppliers(kind, name)
            if len(supplied) == 1 and not isinstance(supplied[0].part, Metric):
                yield kind, name, supplied[0].part


# ------------------------------------------------------------------------------------------------ one dataclass


class _Generator(GenerateJsonSchema):
    """pydantic's schema of a dataclass, with the help of its options, and choices that editors can follow."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  # as pydantic declares it

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> Schema:
        return {}  # a plugin's own type, beyond JSON Schema; validation knows it

    def dataclass_schema(self, schema: Any) -> Schema:
        described = dict(super().dataclass_schema(schema))
        kind = schema["cls"]
        docs = field_docs(kind)
        described.pop("title", None)
        described["description"] = clean(inspect.getdoc(kind) or "")
        for field in dataclasses.fields(kind):
            name = option_name(kind, field.name)
            option = described.get("properties", {}).get(name)
            if option is None:
                continue
            if docs.get(name):
                option["description"] = docs[name].replace("\n", " ")
            if field.default_factory is not dataclasses.MISSING and "default" not in option:
                default: Any = field.default_factory()
                if dataclasses.is_dataclass(default) and not isinstance(default, type):
                    default = dataclasses.asdict(default)
                option["default"] = json.loads(json.dumps(default, default=str))
        return described

    def tagged_union_schema(self, schema: Any) -> Schema:
        members = {str(tag): self.generate_inner(inner) for tag, inner in schema["choices"].items()}
        return {CHOICE_MARK: schema["discriminator"], "members": members, "nullable": False}


CHOICE_MARK = "x-choice"  # stands in for a choice by name until all members are known


def _with_name(schema: Schema, key: str, part: Any, metrics: list[str]) -> Schema:
    """Return the schema of a part with the key that names it, which is no option."""
    kind, _, name = key.partition(".")
    tag = "task" if kind == "task" else "name"
    properties = {tag: {"const": name, "description": _headline(schema)}, **schema.get("properties", {})}
    if kind == "task" and issubclass(part, Task) and "metrics" in field_hints(part):
        properties["metrics"] = {**properties["metrics"], "items": {"enum": metrics}}
    return {**schema, "type": "object", "properties": properties, "additionalProperties": False}


def _choice_of_part(
    tag: str, names: Mapping[str, str], definitions: Mapping[str, Schema], *, nullable: bool = False
) -> Schema:
    """Return the schema of `{tag: NAME, options of NAME}`, or NAME alone where no option is required.

    `names` maps NAME to its definition. By if and then, not oneOf: so an editor, and whoever reads its errors, sees one
    part and not all of them.
    """
    parts = {name: definitions[key] for name, key in names.items()}
    about = "; ".join(f"{name}: {_headline(schema)}" for name, schema in parts.items())
    branches = [
        {"if": {"required": [tag], "properties": {tag: {"const": name}}}, "then": _ref(key)}
        for name, key in names.items()
    ]
    whole: Schema = {
        "type": "object",
        "required": [tag],
        "properties": {tag: {"enum": list(names), "description": about}},
        "allOf": branches,
    }
    short = [name for name, schema in parts.items() if set(schema.get("required", [])) <= {tag}]
    others: list[str | None] = [*short, None] if nullable else [*short]
    # a name alone is an enum of its own, not an `else`: editors take their proposals from there
    by_name = {"anyOf": [{"enum": others}, {"type": "object"}], "if": {"type": "object"}, "then": whole}
    return whole if tag == "task" else by_name


def _headline(schema: Mapping[str, Any]) -> str:
    return str(schema.get("description", "")).partition("\n")[0]


# --------------------------------------------------------------------------------------------- the whole recipe


def _recipe_object(tasks: Iterable[str]) -> Schema:
    """Return the schema of the recipe itself; parts and sections are references."""
    by_name = {
        name: {"if": {"required": ["task"]}, "then": _ref("task"), "else": _ref(f"task.{name}")}
        for name in tasks
        if TASK_NAME.fullmatch(name)
    }
    own: dict[str, Schema] = {name: _optional(f"section.{name}") for name in SECTIONS} | {
        "format": {"type": "integer", "minimum": 1, "maximum": RECIPE_FORMAT, "default": RECIPE_FORMAT},
        "name": {"type": "string", "pattern": f"^{NAME.pattern}$"},
        "seed": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1, "default": 0},
        "data_root": {"type": "string", "minLength": 1, "default": "."},
        "backbone": _ref("backbone"),
        "tasks": {
            "type": "object",
            "minProperties": 1,
            "propertyNames": {"pattern": f"^{TASK_NAME.pattern}$"},
            "properties": by_name,
            "additionalProperties": _ref("task"),
        },
        "sampler": {**_ref("sampler"), "default": "uniform"},
        "algorithm": _ref("algorithm"),
        "optimizer": _ref("optimizer"),
        "schedule": {**_ref("schedule"), "default": "constant"},
        "reporters": {"type": "array", "items": _ref("reporter"), "default": ["console", "jsonl"]},
    }
    return {
        "$schema": DRAFT,
        "description": f"{MADE_BY}, which writes it again with the plugins that are installed.",
        "type": "object",
        "required": [key for key in REQUIRED if key != "training"],
        "properties": {key: {**own[key], "description": HELP[key]} for key in KEYS},
        "additionalProperties": False,
        "if": {"required": ["budget"], "properties": {"budget": _integer_under("examples")}},
        "else": {
            "required": ["training"],
            "properties": {"training": {"anyOf": [_integer_under("steps"), _integer_under("epochs")]}},
        },
    }


def _integer_under(key: str) -> Schema:
    """Return the schema of a mapping with an integer under the key."""
    return {"type": "object", "required": [key], "properties": {key: {"type": "integer"}}}


def _ref(name: str) -> Schema:
    return {"$ref": f"#/$defs/{name}"}


def _optional(name: str) -> Schema:
    return {"anyOf": [_ref(name), {"type": "null"}]}


# ------------------------------------------------------------------------------------------------ putting together


def _dereferenced(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Return the definition that a schema is a bare reference to, else the schema."""
    target = str(schema.get("$ref", "")).removeprefix("#/$defs/")
    return definitions[target] if target in definitions else schema


def _with_choices(value: Any, definitions: Mapping[str, Schema]) -> Any:
    """Return the schema with every marked choice written out: that needs the definitions of all its members."""
    if isinstance(value, list):
        return [_with_choices(item, definitions) for item in value]
    if not isinstance(value, dict):
        return value
    if CHOICE_MARK in value:
        own = {key: value[key] for key in (CHOICE_MARK, "members", "nullable")}
        names = {name: member["$ref"].removeprefix("#/$defs/") for name, member in own["members"].items()}
        rest = {key: item for key, item in value.items() if key not in own}
        return {**_choice_of_part(own[CHOICE_MARK], names, definitions, nullable=own["nullable"]), **rest}
    return {key: _with_choices(item, definitions) for key, item in value.items()}


def _references(value: Any) -> Iterator[str]:
    """Yield the names of all definitions that a schema refers to."""
    if isinstance(value, dict) and "$ref" in value:
        yield value["$ref"].removeprefix("#/$defs/")
    items = value.values() if isinstance(value, dict) else value
    for item in items if isinstance(value, dict | list) else ():
        yield from _references(item)


def _reachable(top: Schema, definitions: Mapping[str, Schema]) -> dict[str, Schema]:
    """Return the definitions that can be reached from the top, sorted by name."""
    reached: set[str] = set()
    waiting = list(_references(top))
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            waiting += _references(definitions[name])
    return {name: definitions[name] for name in sorted(reached)}
