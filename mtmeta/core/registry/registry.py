"""Names to parts: who supplied each, duplicates, and the nearest name when one is unknown."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import ValidationError

from mtmeta.core.api.contracts import Metric, Task
from mtmeta.core.api.option_types import Inputs
from mtmeta.core.errors import MtmetaError, PluginError, RecipeError
from mtmeta.core.registry.classes import plugins_of
from mtmeta.core.registry.discovery import Plugin, Plugins, load_plugins
from mtmeta.core.registry.guard import KINDS, guard, guard_metric
from mtmeta.core.registry.option_fields import adapter, field_hints
from mtmeta.core.wording import exception_line, nearest, quote, safe

PART_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True)
class Supplied:
    """A part and the plugin it came from."""

    part: Any
    plugin: Plugin


class Registry:
    """All parts of all plugins that are not broken, by kind and name."""

    def __init__(self, plugins: Plugins) -> None:
        self.plugins = plugins
        self._parts: dict[str, dict[str, list[Supplied]]] = {kind: {} for kind in KINDS}
        for plugin in plugins.all:
            if not plugin.broken:
                self._add(plugin)

    def _add(self, plugin: Plugin) -> None:
        supplied = [(kind, part) for kind in KINDS for part in plugin.parts.get(f"{kind}s", [])]
        for kind, part in supplied:
            plugin.broken = plugin.broken or _fault(kind, part, plugin) or self._taken(kind, part, plugin)
        if plugin.broken:
            plugin.parts = {}
            return
        for kind, part in supplied:
            if plugin.foreign and isinstance(part, Metric):
                part = guard_metric(part, plugin)
            elif plugin.foreign:
                guard(part, kind, plugin)
            self._parts[kind].setdefault(part.name, []).append(Supplied(part, plugin))

    def _taken(self, kind: str, part: Any, plugin: Plugin) -> str | None:
        """Refuse a name of our own: as a conflict it would take with it every recipe that only wants ours."""
        if plugin.foreign and not all(other.plugin.foreign for other in self.suppliers(kind, part.name)):
            return f"{kind} {quote(part.name)} is one of mtmeta's own; it needs another name"
        return None

    def names(self, kind: str) -> list[str]:
        """Return sorted names of all parts of a kind."""
        return sorted(self._parts[kind])

    def suppliers(self, kind: str, name: str) -> list[Supplied]:
        """Return every supply of a name; more than one is a conflict."""
        return self._parts[kind].get(name, [])

    def conflicts(self) -> list[PluginError]:
        """Return an error for each name that several plugins supply."""
        parts = [(kind, name) for kind in self._parts for name in self.names(kind)]
        return [self._conflict(kind, name) for kind, name in parts if len(self.suppliers(kind, name)) > 1]

    def get(self, kind: str, name: str, place: str) -> Any:
        """Return the part called `name`. Raises RecipeError if unknown, PluginError if in conflict or maybe broken."""
        supplied = self.suppliers(kind, name)
        if len(supplied) == 1:
            return supplied[0].part
        if supplied:
            raise self._conflict(kind, name)
        raise self._unknown(kind, name, place)

    def _conflict(self, kind: str, name: str) -> PluginError:
        who = [quote(s.plugin.distribution) for s in self.suppliers(kind, name)]
        given = "provided by both " + " and ".join(who) if len(set(who)) > 1 else f"provided twice by {who[0]}"
        return PluginError("", f"{kind} {quote(name)} is {given}; block one with MTMETA_PLUGINS or --no-plugin")

    def _unknown(self, kind: str, name: str, place: str) -> MtmetaError:
        known = self.names(kind)
        match = nearest(name, known)
        hint = f"; did you mean {quote(match)}?" if match else ";"
        message = f"unknown {kind} {quote(name)}{hint} (installed: {', '.join(known)})"
        broken = [f"{plugin} is broken: {plugin.broken}" for plugin in self.plugins.broken]
        # with a near name it is a slip of the pen; without one a broken plugin may be the reason
        kind_of_error: Callable[..., MtmetaError] = PluginError if broken and not match else RecipeError
        return kind_of_error(place, message, help=broken)


def _fault(kind: str, part: Any, plugin: Plugin) -> str | None:
    """Return why `part` is no part of this kind, or None. Only foreign parts are tried out; a test tries ours."""
    hook, base = f"register_{kind}s", KINDS[kind]
    try:
        if base is Metric:
            if not isinstance(part, Metric):
                return safe(f"{hook} holds {part!r}, expected a mtmeta.Metric", 200)
            if not (isinstance(part.name, str) and part.name and callable(part.function)):
                return safe(f"{hook} holds {part!r}, expected a name and a function", 200)
            return _name_fault(kind, part.name)
        if not (isinstance(part, type) and issubclass(part, base)):
            return safe(f"{hook} holds {part!r}, expected a subclass of mtmeta.{base.__name__}", 200)
        name = getattr(part, "name", None)
        if not isinstance(name, str) or not name:
            return safe(f"{part.__name__} has no name", 200)
        if message := _name_fault(kind, name):
            return message
        if "__dataclass_fields__" not in part.__dict__:
            dataclass(frozen=True)(part)  # a subclass without options of its own need not say @dataclass
        if issubclass(part, Task) and (message := _task_fault(part)):
            return safe(f"task {quote(name)}: {message}", 200)
        if plugin.foreign:
            # options whose types cannot be resolved show here, not in the middle of a command
            field_hints(part)
            with suppress(ValidationError):  # of options that are required; whatever else it raises, it cannot be made
                adapter(part).validate_json("{}", strict=True)
        part.mtmeta_supplier = plugin  # type: ignore[attr-defined]  # whom messages name: see guard.py
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        return safe(f"{hook} holds a part that cannot be used: {exception_line(error)}", 200)
    return None


def _name_fault(kind: str, name: str) -> str | None:
    """Return why a name is refused, or None: it is written in recipes, used in file names and printed."""
    fit = PART_NAME.fullmatch(name)
    return None if fit else f"{kind} name {quote(name)} is not allowed; use at most 64 letters, digits, . _ -"


def _task_fault(task: type[Task]) -> str | None:
    """Return the fault of a task's constants, or None; properties can be asked of an instance only."""
    metrics, inputs = (inspect.getattr_static(task, key) for key in ("metrics", "inputs"))
    if not isinstance(metrics, property):
        named = isinstance(metrics, tuple | list) and metrics and all(isinstance(name, str) for name in metrics)
        if not named:
            return f"metrics is {metrics!r}, expected a tuple of at least one name"
    if not isinstance(inputs, property) and inputs not in get_args(Inputs):
        return f"inputs is {inputs!r}, expected one of {', '.join(get_args(Inputs))}"
    return None


def build_registry(
    *, block: Sequence[str] = (), warn: Callable[[str], None] = lambda text: None, plugins: Sequence[Any] = ()
) -> Registry:
    """Return a registry of everything installed, and of `plugins`: classes and metrics that stand in no package.

    Warns of each broken plugin through `warn`. Raises PluginError for one of `plugins` that is broken.
    """
    installed = load_plugins(block=block, warn=warn)
    given = plugins_of(plugins)
    registry = Registry(Plugins([*installed.all, *given]))
    for plugin in registry.plugins.broken:
        if plugin in given:
            raise PluginError("plugins", f"{plugin.distribution}: {plugin.broken}")
        warn(f"{plugin} is broken: {plugin.broken}")
    return registry
