"""Errors raised inside a plugin's code, turned into one line that names the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtmeta.core.errors import MtmetaError, PluginError, out_of_memory
from mtmeta.core.wording import quote, told

__all__ = ["accuse", "accused", "blame", "supplier"]


def supplier(part: Any, kind: str) -> str:
    """Who is to be named for a part's fault: its plugin, or the part itself where no plugin is known."""
    return str(getattr(part, "_supplier", None) or f"{kind} {quote(part.name)}")


def accused(part: Any) -> str:
    """The plugin a part came from, as messages name it; empty for a part of our own."""
    plugin = getattr(part, "_supplier", None)
    return str(plugin) if plugin is not None and plugin.foreign else ""


@contextmanager
def blame(part: Any, kind: str) -> Iterator[None]:
    """Turn an exception of a third-party `part` into PluginError; a built-in's is a bug and passes through."""
    try:
        yield
    except (MtmetaError, KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a plugin's sys.exit() would end the run without a word; a panic is no Exception
        if not (who := accused(part)) or out_of_memory(error):
            raise  # too large a batch is no plugin's fault
        raise accuse(who, kind, part.name, error) from error


def accuse(plugin: object, kind: str, name: str, error: BaseException) -> PluginError:
    """What a part raised, as an error that names its plugin."""
    return PluginError(str(plugin), f"{kind} {quote(name)} raised {told(error)}")
