# ruff: noqa: S301
"""The poison works: that no test trips over it says that nothing here unpickles. conftest.py lays it for all tests."""

from __future__ import annotations

import io
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import no_pickle

DATA = pickle.dumps({"a": 1})
WAYS: dict[str, Callable[[], Any]] = {
    "loads": lambda: pickle.loads(DATA),
    "load": lambda: pickle.load(io.BytesIO(DATA)),
    "Unpickler": lambda: pickle.Unpickler(io.BytesIO(DATA)).load(),
    "Python's Unpickler": lambda: pickle._Unpickler(io.BytesIO(DATA)).load(),
    "torch.load": lambda: torch.load(io.BytesIO(b"")),
}


@pytest.mark.parametrize("way", WAYS)
def test_unpickling_is_refused_and_remembered(way: str) -> None:
    before = list(no_pickle.touched)
    with pytest.raises(RuntimeError, match=rf"no pickle on any path: (pickle|torch)\.\w+ in {__name__}"):
        WAYS[way]()
    assert len(no_pickle.touched) == len(before) + 1
    no_pickle.touched[:] = before


def _answer(end: Any) -> None:
    end.send({"square": end.recv() ** 2})


def test_multiprocessing_goes_on_working() -> None:
    here, there = multiprocessing.Pipe()
    child = multiprocessing.get_context("spawn").Process(target=_answer, args=(there,))
    child.start()
    here.send(12)
    assert here.recv() == {"square": 144}
    child.join()


def test_the_poison_is_everywhere(tmp_path: Path) -> None:
    """Also in the forks that other tests run commands in, and where an error would be swallowed."""
    assert pickle.loads.__module__ == no_pickle.__name__
    assert pickle.Unpickler.__module__ == no_pickle.__name__
