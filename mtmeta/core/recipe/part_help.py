"""The help of `mtmeta show` and `mtmeta plugins`: a part's docstring, its fields, and the line under each field."""

from __future__ import annotations

import dataclasses
import inspect
import json
import textwrap
from collections.abc import Mapping
from typing import Any, get_args

from mtmeta.core.api.contracts import Component, Metric
from mtmeta.core.api.losses import ClassLoss
from mtmeta.core.api.optimizers import OptimizerOptions
from mtmeta.core.api.option_types import LongText
from mtmeta.core.api.schedules import ScheduleOptions
from mtmeta.core.errors import UsageError
from mtmeta.core.recipe.sections import SECTIONS, AverageOptions, StopOptions, TeacherOptions
from mtmeta.core.registry.guard import KINDS
from mtmeta.core.registry.option_fields import clean, expectation, field_docs, field_hints, option_name
from mtmeta.core.registry.registry import Registry
from mtmeta.core.wording import did_you_mean, quote, safe

# parts of recipes that no plugin supplies
FIXED_PARTS: dict[str, dict[str, type[Any]]] = {
    "section": {
        **SECTIONS,
        "teachers.TASK": TeacherOptions,
        "training.average": AverageOptions,
        "training.stop": StopOptions,
        "tasks.TASK.loss": ClassLoss,
        "tasks.TASK.long": LongText,
    },
    "optimizer": {part.name: part for part in get_args(get_args(OptimizerOptions)[0])},
    "schedule": {part.name: part for part in get_args(get_args(ScheduleOptions)[0])},
}


def describe_part(registry: Registry, kind: str, name: str) -> dict[str, Any]:
    """Return name, supplier, help and options of a part. Raises UsageError or PluginError for unknown names."""
    kinds = [*KINDS, *FIXED_PARTS]
    if kind not in kinds:
        raise UsageError("KIND", f"no kind {quote(kind)}{did_you_mean(kind, kinds)} (known: {', '.join(kinds)})")
    if kind in FIXED_PARTS:
        known = FIXED_PARTS[kind]
        if name not in known:
            raise UsageError("NAME", f"no {kind} {quote(name)}{did_you_mean(name, known)} (known: {', '.join(known)})")
        part, supplier = known[name], "mtmeta"
    else:
        part = registry.get(kind, name, "NAME")
        plugin = registry.suppliers(kind, name)[0].plugin
        supplier = f"{plugin.distribution} {plugin.version}"
    documented = part.function if isinstance(part, Metric) else part
    about = part.about() if isinstance(part, type) and issubclass(part, Component) else ()
    return {
        "kind": kind,
        "name": name,
        "supplied_by": supplier,
        "help": clean(inspect.getdoc(documented) or "no help given"),
        "about": [safe(str(line), 500) for line in about],
        "options": [] if isinstance(part, Metric) else _options(part),
    }


def part_lines(described: Mapping[str, Any]) -> list[str]:
    """Return the lines that `mtmeta show` prints of `describe_part`."""
    lines = [safe(f"{described['kind']} {described['name']}  ({described['supplied_by']})", 300), ""]
    lines += [described["help"], *(["", *described["about"]] if described["about"] else [])]
    if described["options"]:
        lines += ["", "options:"]
    for option in described["options"]:
        default = "required" if option["required"] else f"default {json.dumps(option['default'])}"
        lines.append(f"    {option['name']}: {option['takes']}; {default}")
        if option["help"]:
            lines.append(textwrap.indent(option["help"], " " * 8))
    return lines


def describe_plugins(registry: Registry) -> dict[str, Any]:
    """Return each plugin with the parts it provides or why it is broken, and which are in conflict."""
    rows = []
    for plugin in registry.plugins.all:
        provides = {kind: [part.name for part in parts] for kind, parts in plugin.parts.items() if parts}
        row = {"plugin": plugin.name, "distribution": plugin.distribution, "version": plugin.version}
        rows.append({**row, "provides": {} if plugin.broken else provides, "broken": plugin.broken})
    return {"plugins": rows, "conflicts": [str(conflict) for conflict in registry.conflicts()]}


def plugin_lines(described: Mapping[str, Any]) -> list[str]:
    """Return the lines that `mtmeta plugins` prints of `describe_plugins`."""
    lines = []
    for row in described["plugins"]:
        state = f"BROKEN: {row['broken']}" if row["broken"] else ""
        lines.append(safe(f"{row['distribution']} {row['version']}  {row['plugin']}  {state}".rstrip(), 300))
        lines += [safe(f"    {kind}: {', '.join(names)}", 1000) for kind, names in row["provides"].items()]
    return lines + [safe(f"CONFLICT: {conflict}", 300) for conflict in described["conflicts"]]


def _options(part: type[Any]) -> list[dict[str, Any]]:
    hints, docs, options = field_hints(part), field_docs(part), []
    for field in dataclasses.fields(part):
        if field.name == "name":  # the key that names the part
            continue
        name = option_name(part, field.name)
        default: Any = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        required = default is dataclasses.MISSING
        shown = dataclasses.asdict(default) if dataclasses.is_dataclass(default) else default  # type: ignore[arg-type]
        options.append(
            {
                "name": name,
                "takes": safe(expectation(hints[name]), 300),  # may hold words of a plugin
                "required": required,
                "default": None if required else json.loads(json.dumps(shown, default=str)),
                "help": docs.get(name, ""),
            }
        )
    return options
