"""Errors raised inside a plugin's code, turned into one line that names the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtmeta.core.errors import MtmetaError, PluginError, out_of_memory, quote, safe

__all__ = ["accuse", "blame", "supplier"]


def supplier(part: Any, kind: str) -> str:
    """Who is to be named for a part's fault: its plugin, or the part itself where no plugin is known."""
    return str(getattr(part, "_supplier", None) or f"{kind} {quote(part.name)}")


@contextmanager
def blame(part: Any, kind: str) -> Iterator[None]:
    """Turn an exception of a third-party `part` into PluginError; a built-in's is a bug and passes through."""
    try:
        yield
    except MtmetaError:
        raise
    except (Exception, SystemExit) as error:  # a plugin's sys.exit() would end the run without a word
        plugin = getattr(part, "_supplier", None)
        if plugin is None or plugin.distribution == "mtmeta" or out_of_memory(error):
            raise  # too large a batch is no plugin's fault
        raise accuse(plugin, kind, part.name, error) from error


def accuse(plugin: object, kind: str, name: str, error: BaseException) -> PluginError:
    """What a part raised, as an error that names its plugin."""
    text = safe(f"{type(error).__name__}: {error}".removesuffix(": "), 300)
    return PluginError(str(plugin), f"{kind} {quote(name)} raised {text}")
