"""A fresh plugin manager from a function, with broken plugins set apart instead of breaking everything.

Built-in plugins enter by the same door as third-party ones: a module with `@hookimpl` functions.
"""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import os
import re
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

import pluggy

from mtmeta.core.api import hookspecs
from mtmeta.core.errors import PluginError, out_of_memory, out_of_threads
from mtmeta.core.wording import did_you_mean, quote, safe

DEFAULT_PLUGINS = (
    "mtmeta.plugins.tasks",
    "mtmeta.plugins.algorithms",
    "mtmeta.plugins.backbones",
    "mtmeta.plugins.samplers",
    "mtmeta.plugins.metrics",
    "mtmeta.plugins.reporters",
    "mtmeta.plugins.launchers",
)
HOOKS = ("tasks", "algorithms", "backbones", "samplers", "metrics", "reporters", "launchers")
HOOK_NAMES = tuple(f"register_{hook}" for hook in HOOKS)
SLOW_IMPORT_SECONDS = 5.0


@dataclass
class Plugin:
    """One plugin: where it came from, what it registered, and why it is broken if it is."""

    name: str
    version: str
    distribution: str
    broken: str | None = None
    parts: dict[str, list[Any]] = field(default_factory=dict)
    family: str = ""
    """What the parts of one program that stand in no package are called together."""
    loads_torch: bool = False
    """Whether PyTorch was imported with it, which takes every command seconds that it may not need."""

    @property
    def owner(self) -> str:
        """Return whose code this is, as `culprit` names it."""
        return self.family or str(self)

    @property
    def foreign(self) -> bool:
        """Whether it is somebody else's."""
        return self.distribution != "mtmeta"

    def __str__(self) -> str:
        """`plugin 'mtmeta-foo' 0.3`, as messages name it."""
        return f"plugin {quote(self.distribution)} {self.version}"


@dataclass
class Plugins:
    """All plugins found, in a fixed order: the built-ins, then those of entry points by distribution and name."""

    all: list[Plugin]

    @property
    def broken(self) -> list[Plugin]:
        return [plugin for plugin in self.all if plugin.broken]


def load_plugins(
    *,
    block: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    warn: Callable[[str], None] = lambda text: None,
) -> Plugins:
    """Load the built-ins and every allowed entry point of the group `mtmeta`.

    `block` names plugins to leave out (`--no-plugin`). MTMETA_PLUGINS, where set, lists the only ones allowed
    (`none` for none). Raises PluginError for a name in either that no plugin has. A plugin that fails to import,
    calls sys.exit, implements a hook wrongly or returns something that is not a list comes back with `broken` set.
    Only a plugin that ends the process (os._exit, a crash in native code) cannot be survived; block that one.
    """
    manager = pluggy.PluginManager("mtmeta")
    manager.add_hookspecs(hookspecs)
    version = importlib.metadata.version("mtmeta")
    plugins = []
    for module in DEFAULT_PLUGINS:
        plugins.append(Plugin(module.rpartition(".")[2], version, "mtmeta"))
        _enter(manager, plugins[-1], functools.partial(importlib.import_module, module), warn)

    points = _entry_points(warn)
    known = sorted({name for point, distribution, _ in points for name in (point.name, distribution)})
    allowed = _allow_list(environ.get("MTMETA_PLUGINS"), known)
    for name in block:
        if name not in known:
            raise PluginError("--no-plugin", f"no plugin {quote(name)}{did_you_mean(name, known)}")
    for point, distribution, version in points:
        names = {point.name, distribution}
        if names & set(block) or (allowed is not None and not names & set(allowed)):
            continue
        plugins.append(Plugin(point.name, version, distribution))
        _enter(manager, plugins[-1], point.load, warn)
    return Plugins(plugins)


EntryPoint = tuple[importlib.metadata.EntryPoint, str, str]  # and its distribution's name and version


def _entry_points(warn: Callable[[str], None]) -> list[EntryPoint]:
    """Return entry points of the group with their distributions, sorted, each once however often it is on sys.path."""
    points: dict[tuple[str, str], EntryPoint] = {}
    for dist in importlib.metadata.distributions():
        try:
            for point in dist.entry_points:
                if point.group == hookspecs.ENTRY_POINT_GROUP:
                    points.setdefault((str(dist.name), point.name), (point, str(dist.name), str(dist.version)))
        except Exception as error:  # metadata of some package, damaged; it may not even be ours
            if f"[{hookspecs.ENTRY_POINT_GROUP}]" in (dist.read_text("entry_points.txt") or ""):
                warn(f"a plugin's entry_points.txt cannot be read: {_reason(error)}; reinstall that plugin")
    return [points[key] for key in sorted(points)]


def _allow_list(value: str | None, known: Sequence[str]) -> list[str] | None:
    if value is None or not value.strip():
        return None
    names = [name.strip() for name in value.split(",") if name.strip()]
    if names == ["none"]:
        return []
    for name in names:
        if name not in known:
            raise PluginError("MTMETA_PLUGINS", f"no plugin {quote(name)}{did_you_mean(name, known)}")
    return names


def _enter(manager: pluggy.PluginManager, plugin: Plugin, load: Callable[[], Any], warn: Callable[[str], None]) -> None:
    """Load, register and ask one plugin for its parts; any failure becomes `plugin.broken`."""
    name, light = f"{plugin.distribution}:{plugin.name}", "torch" not in sys.modules
    try:
        # what a plugin prints may not get into a command's output, which can be one JSON document
        with _slow_import_warning(plugin, warn), redirect_stdout(sys.stderr):
            loaded = load()
            if plugin.foreign:
                _MODULES[_module(loaded)] = plugin.owner
            wanted = getattr(loaded, "mtmeta_api", hookspecs.API_VERSION)
            if wanted not in hookspecs.API_VERSIONS:
                raise PluginError("", f"needs mtmeta API {quote(wanted)}, this is {hookspecs.API_VERSION}")
            if manager.is_registered(loaded):
                raise PluginError("", "the same object is registered by another plugin")
            manager.register(loaded, name=name)
            manager.check_pending()  # a misspelt hook is an error
            _check_marked(manager, loaded)
            plugin.parts = {hook: _call(manager, loaded, hook) for hook in HOOKS}
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if not plugin.foreign and (out_of_memory(error) or out_of_threads(error)):
            raise  # the built-ins are not broken by what the machine lacks
        # SystemExit, and panics of native code, are BaseExceptions; none of them may take the command line down
        plugin.broken = _reason(error)
        if manager.has_plugin(name):
            manager.unregister(name=name)
    plugin.loads_torch = light and "torch" in sys.modules


_MODULES: dict[str, str] = {}  # top-level module -> the plugin it belongs to, of all that were ever loaded


def _module(loaded: Any) -> str:
    name = getattr(loaded, "__name__", None) or type(loaded).__module__
    return str(name).partition(".")[0]


def called_by(plugin: Plugin) -> bool:
    """Return whether the function that asks was called by code of this plugin."""
    caller = sys._getframe(2).f_globals.get("__name__")
    return _MODULES.get(str(caller).partition(".")[0]) == plugin.owner


def note_module(name: str, plugin: Plugin) -> None:
    """Note whose code a module is, for a part that came by no entry point."""
    _MODULES.setdefault(name.partition(".")[0], plugin.owner)


def culprit(error: BaseException) -> str:
    """Return the plugin whose code raised `error`, or had called what raised it; else an empty string."""
    name = ""
    trace = error.__traceback__
    while trace is not None:  # outermost first: the last one found is the nearest to the fault
        name = _MODULES.get(str(trace.tb_frame.f_globals.get("__name__")).partition(".")[0], name)
        trace = trace.tb_next
    return name


def _check_marked(manager: pluggy.PluginManager, loaded: Any) -> None:
    """A hook without its marker would be passed over in silence."""
    marked = [caller.name for caller in manager.get_hookcallers(loaded) or ()]
    for name in HOOK_NAMES:
        if name not in marked and callable(getattr(loaded, name, None)):
            raise PluginError("", f"{name} lacks @mtmeta.hookimpl")
    if not marked:
        raise PluginError("", f"implements no hook; one of {', '.join(HOOK_NAMES)} is needed")


def _call(manager: pluggy.PluginManager, loaded: Any, hook: str) -> list[Any]:
    caller = getattr(manager.hook, f"register_{hook}")
    for implementation in caller.get_hookimpls():
        if implementation.plugin is loaded:
            parts = implementation.function()
            if not isinstance(parts, list | tuple):
                raise PluginError("", f"register_{hook} returned {type(parts).__name__}, expected a list")
            return list(parts)
    return []


def _reason(error: BaseException) -> str:
    try:
        text = str(error)
    except Exception:
        text = ""
    if isinstance(error, pluggy.PluginValidationError):
        return safe(_hook_error(text), 200)
    if isinstance(error, PluginError):
        return safe(text, 200)
    return safe(f"{type(error).__name__}: {text}" if text else type(error).__name__, 200)


def _hook_error(text: str) -> str:
    """pluggy's several lines as one."""
    if unknown := re.search(r"unknown hook '(\w+)'", text):
        return f"unknown hook {quote(unknown[1])}{did_you_mean(unknown[1], HOOK_NAMES)}"
    hook, arguments = re.search(r"for hook '(\w+)'", text), re.search(r"Argument\(s\) {(.*?)}", text)
    if hook and arguments:
        return f"hook {hook[1]} takes no argument {arguments[1]}"
    return "; ".join(line.strip() for line in text.splitlines() if line.strip())


@contextmanager
def _slow_import_warning(plugin: Plugin, warn: Callable[[str], None]) -> Iterator[None]:
    """Say who it is while an import hangs, not after."""

    def say() -> None:
        fix = f"--no-plugin {plugin.name} leaves it out"
        warn(f"{plugin} has been importing for {SLOW_IMPORT_SECONDS:g} seconds; {fix}")
        sys.stderr.flush()

    timer = threading.Timer(SLOW_IMPORT_SECONDS, say)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
