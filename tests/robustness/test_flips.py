"""Every byte of a small checkpoint, changed: noticed, and the checkpoint before it is taken."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mtmeta.core.errors import CheckpointError
from mtmeta.core.training.checkpoint import Checkpoints
from tests.robustness.saving import NEW, OLD, OLDEST, checkpoints, links, save

STEP, BEST = f"step-{NEW:08d}", f"best-{NEW:08d}"
FILES = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints, small but whole."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (OLDEST, OLD, NEW):
        save(folder, step)
    return folder


@pytest.fixture
def spoiled(saved: Path, tmp_path: Path) -> Checkpoints:
    """A copy to spoil."""
    return checkpoints(shutil.copytree(saved, tmp_path / "copy", symlinks=True))


def overwrite(path: Path) -> Iterator[Callable[[int, int], None]]:
    """A function that writes one byte in place; the file is as before when the iterator ends."""
    before = path.read_bytes()
    handle = os.open(path, os.O_WRONLY)
    yield lambda at, value: _put(handle, at, value)
    os.close(handle)
    path.write_bytes(before)


def _put(handle: int, at: int, value: int) -> None:
    assert os.pwrite(handle, bytes([value]), at) == 1


def assert_noticed(made: Checkpoints, path: Path, story: str) -> None:
    """The newest is skipped with one line that names the file, and loading it is refused."""
    newest, damaged = made.newest()
    assert newest is not None, story
    assert newest.name == f"step-{OLD:08d}", story
    (line,) = damaged
    assert path.parent.name in line, story
    if path.parent.name == STEP:
        with pytest.raises(CheckpointError):
            made.load(made.folder / STEP)
    else:
        with pytest.raises(CheckpointError):
            made.best()


def test_an_unspoiled_one_is_taken(spoiled: Checkpoints) -> None:
    newest, damaged = spoiled.newest()
    assert newest == spoiled.folder / STEP
    assert damaged == []
    assert sorted(os.listdir(newest)) == sorted(FILES), "a file that these tests do not spoil"
    assert links(NEW)["best"] == BEST


@pytest.mark.parametrize(
    "name", [*(f"{STEP}/{file}" for file in FILES), f"{BEST}/model.safetensors", f"{BEST}/MANIFEST.json"]
)
def test_every_byte_flipped(name: str, spoiled: Checkpoints) -> None:
    """One bit of each byte, another one from byte to byte."""
    path = spoiled.folder / name
    before = path.read_bytes()
    for put in overwrite(path):
        for at, byte in enumerate(before):
            put(at, byte ^ (1 << at % 8))
            assert_noticed(spoiled, path, f"bit {at % 8} of byte {at} of {name}")
            put(at, byte)
    assert spoiled.newest() == (spoiled.folder / STEP, [])


@pytest.mark.slow
def test_every_byte_of_a_manifest_changed_to_every_other(spoiled: Checkpoints) -> None:
    """In text a changed byte may keep the meaning, as a tab for a space does; it is noticed all the same."""
    path = spoiled.folder / STEP / "MANIFEST.json"
    before = path.read_bytes()
    for put in overwrite(path):
        for at, byte in enumerate(before):
            for value in range(256):
                if value != byte:
                    put(at, value)
                    with pytest.raises(CheckpointError):
                        spoiled.load(path.parent)
            put(at, byte)
    assert spoiled.newest() == (path.parent, [])


@pytest.mark.parametrize("file", FILES)
def test_every_length(file: str, spoiled: Checkpoints) -> None:
    """Cut at each length, with zeros after it (as file systems leave a file whose data never came), and one more."""
    path = spoiled.folder / STEP / file
    before = path.read_bytes()
    for length in range(len(before)):
        path.write_bytes(before[:length])
        assert_noticed(spoiled, path, f"{file} cut at {length}")
        zeros = before[:length].ljust(len(before), b"\0")
        if zeros != before:
            path.write_bytes(zeros)
            assert_noticed(spoiled, path, f"{file} zeros from {length}")
    path.write_bytes(before + b" ")
    assert_noticed(spoiled, path, f"{file} with a byte more")
    path.unlink()
    assert_noticed(spoiled, path, f"no {file}")
