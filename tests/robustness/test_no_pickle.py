# ruff: noqa: S301
"""The poison works: that no test trips over it says that nothing here unpickles. conftest.py lays it for all tests."""

from __future__ import annotations

import importlib
import io
import multiprocessing
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import (
    no_pickle,
    tiny,  # noqa: F401  # one thread
)
from tests.support.commands import assert_refused, call
from tests.support.families import write_family
from tests.support.quick import quick
from tests.support.shards import INDEX, change_index, split

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


class Evil:
    """Leaves a file `run` in the folder where it is unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return eval, ("open('run', 'w').close()",)


EVIL = pickle.dumps(Evil())


def beside(folder: Path) -> None:
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "adapter_model.bin", "model.pt"):
        (folder / name).write_bytes(EVIL)
    (folder / "pytorch_model.bin.index.json").write_text('{"weight_map": {"x": "pytorch_model.bin"}}')


def only_pickles(folder: Path) -> None:
    beside(folder)
    (folder / "model.safetensors").unlink()


def disguised(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(EVIL)


def disguised_shard(folder: Path) -> None:
    (folder / split(folder)[1]).write_bytes(EVIL)


def as_shard(folder: Path) -> None:
    first = split(folder)[0]
    (folder / "pytorch_model.bin").write_bytes(EVIL)

    def rename(values: dict[str, Any]) -> None:
        names = values["weight_map"]
        values["weight_map"] = {t: "pytorch_model.bin" if name == first else name for t, name in names.items()}

    change_index(folder, rename)


FOLDERS: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "beside": (beside, ()),
    "only pickles": (only_pickles, ("w/adapter_model.bin: pickle files can run code and are not read",)),
    "disguised": (disguised, ("w/model.safetensors: is damaged (",)),
    "a disguised shard": (disguised_shard, ("w/model-00002-of-00003.safetensors: is damaged (",)),
    "as a shard": (as_shard, (f"w/{INDEX}: names 'pytorch_model.bin'", "pickle files can run code")),
}


@pytest.mark.parametrize("backbone", ["bert", "hf"])
@pytest.mark.parametrize("what", FOLDERS)
def test_folders_with_pickles(what: str, backbone: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """None is opened by torch.load or pickle, by us or by transformers, be it to the end or to a refusal."""
    pytest.importorskip("transformers")
    write_family(importlib.import_module("transformers"), "bert", tmp_path / "w")
    damage, words = FOLDERS[what]
    damage(tmp_path / "w")
    quick(tmp_path, backbone={"name": backbone, "weights": "./w", "max_length": 16}, training={"steps": 1})
    before = list(no_pickle.touched)
    outcome = call("run", "quick.yaml", "--out", "out", cwd=tmp_path, capsys=capfd)
    if words:
        assert_refused(outcome, 4, *words)
    else:
        assert outcome.code == 0, outcome.err
    assert no_pickle.touched == before
    assert not list(tmp_path.rglob("run"))
