"""A poisoned pickle: unpickling raises and is recorded, unless it is the business of the standard library or of torch.

`multiprocessing` talks to its own children in pickles, and a library may unpickle its own tables while it is imported.
Everything else that touches `pickle.Unpickler`, `pickle.load`, `pickle.loads` or `torch.load` is an error, wherever it
is: in mtmeta, in a test, or in a library called by either.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any
from unittest import mock

__all__ = ["poisoned", "touched"]

ALLOWED = ("multiprocessing", "concurrent")  # top-level packages
touched: list[str] = []
"""Who unpickled what, in this process; raising may have been caught, this stays."""


def _refuse(what: str) -> None:
    """Raise unless the caller may unpickle."""
    frame = sys._getframe(2)
    caller = str(frame.f_globals.get("__name__"))
    package = caller.partition(".")[0]
    if package in ALLOWED:
        return
    where: FrameType | None = frame
    while where is not None and package != "mtmeta":  # torch, and what it brings, while it is imported
        if where.f_code.co_filename == "<frozen importlib._bootstrap>":
            return
        where = where.f_back
    touched.append(f"{what} in {caller}, line {frame.f_lineno}")
    raise RuntimeError(f"no pickle on any path: {touched[-1]}")


def _poison(what: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **options: Any) -> Any:
        _refuse(what)
        return original(*arguments, **options)

    return call


def _poisoned_class(original: type[Any]) -> type[Any]:
    class Unpickler(original):  # type: ignore[misc]
        """A class, for others derive theirs from it when they are imported."""

        def __init__(self, *arguments: Any, **options: Any) -> None:
            _refuse("pickle.Unpickler")
            super().__init__(*arguments, **options)

    return Unpickler


@contextmanager
def poisoned() -> Iterator[list[str]]:
    """Poison pickle while the context lasts; yields the list that is to stay empty."""
    import torch

    with (
        mock.patch.multiple(
            pickle,
            load=_poison("pickle.load", pickle.load),
            loads=_poison("pickle.loads", pickle.loads),
            Unpickler=_poisoned_class(pickle.Unpickler),
            _Unpickler=_poisoned_class(pickle._Unpickler),  # the one in Python
        ),
        mock.patch.object(torch, "load", _poison("torch.load", torch.load)),
    ):
        yield touched
