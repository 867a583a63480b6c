"""Errors raised inside a plugin's code, turned into one line that names the plugin."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mtmeta.core.errors import MtmetaError, PluginError, quote, safe

__all__ = ["blame"]


@contextmanager
def blame(part: Any, kind: str) -> Iterator[None]:
    """Turn an exception of a third-party `part` into PluginError; a built-in's is a bug and passes through."""
    try:
        yield
    except MtmetaError:
        raise
    except Exception as error:
        supplier = getattr(part, "_supplier", None)
        if supplier is None or supplier.distribution == "mtmeta":
            raise
        text = safe(f"{type(error).__name__}: {error}", 300)
        raise PluginError(str(supplier), f"{kind} {quote(part.name)} raised {text}") from error
