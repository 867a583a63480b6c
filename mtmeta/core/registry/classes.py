"""Parts that stand in no package: classes and metrics that a program or a notebook hands over."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from mtmeta.core.api.contracts import Metric
from mtmeta.core.errors import MtmetaError, PluginError, Problems
from mtmeta.core.registry.discovery import Plugin, note_module
from mtmeta.core.registry.guard import KINDS
from mtmeta.core.registry.source import hash_of_code
from mtmeta.core.wording import quote, safe

KINDS_OF_NAMES = ("class ", "metric ")
"""What the distribution of such a part begins with, in messages and locks."""


def plugins_of(parts: Sequence[Any]) -> list[Plugin]:
    """Return a plugin for each class or metric, whose version is a hash of its source.

    So a run that goes on with an edited class is told of it. Raises PluginError for what is no part.
    """
    if isinstance(parts, type | Metric | str) or not isinstance(parts, Sequence):
        raise PluginError("plugins", f"is {_shown(parts)}; give a list of classes, plugins=[MyTask]")
    return [_plugin_of(part) for part in dict.fromkeys(parts)]


def _plugin_of(part: Any) -> Plugin:
    kind = next((kind for kind, base in KINDS.items() if _is_of(part, base)), None)
    if kind is None:
        bases = ", ".join(f"mtmeta.{base.__name__}" for base in KINDS.values() if base is not Metric)
        made = f"; give the class itself, {type(part).__name__}" if _is_of(type(part), tuple(KINDS.values())) else ""
        raise PluginError("plugins", f"{_shown(part)} is no subclass of {bases} and no mtmeta.Metric{made}")
    source = part.function if isinstance(part, Metric) else part
    module = str(getattr(source, "__module__", "") or "")
    name = f"{KINDS_OF_NAMES[isinstance(part, Metric)]}{module}.{getattr(source, '__qualname__', part.name)}"
    if module.partition(".")[0] == "mtmeta":
        raise PluginError("plugins", f"{_shown(part)} is one of mtmeta's own, which are there; leave it out")
    family = f"classes of {module.partition('.')[0]}"
    plugin = Plugin(name, hash_of_code([source]), name, parts={f"{kind}s": [part]}, family=family)
    note_module(module, plugin)
    return plugin


def _is_of(part: Any, base: Any) -> bool:
    return isinstance(part, Metric) if base is Metric else isinstance(part, type) and issubclass(part, base)


def _shown(value: Any) -> str:
    return safe(f"the class {value.__name__}" if isinstance(value, type) else repr(value), 100)


@contextmanager
def naming_classes(lock_of_run: Callable[[], Mapping[str, Any]]) -> Iterator[None]:
    """Add to what is raised the classes in no package that a run was trained with, by its lock."""
    try:
        yield
    except MtmetaError as error:
        first = error.problems[0] if isinstance(error, Problems) else error
        with suppress(MtmetaError):  # of a lock that is damaged
            plugins = lock_of_run().get("plugins")
            names = [str(name) for name in plugins if str(name).startswith(KINDS_OF_NAMES)] if plugins else []
            if names:
                used = ", ".join(map(quote, names))
                first.help += (f"the run was trained with {used}: open it in Python with plugins=[...], or package it",)
        raise
