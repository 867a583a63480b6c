"""A disk of 256 kB that fills up: in a mount namespace of its own.

    unshare -m python -m tests.robustness.full_disk FOLDER


Everything is checked here, for the disk is gone when this process ends. With `spaced`, mtmeta asks for the free space
before it writes; without, the kernel's ENOSPC comes in the middle.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from unittest import mock

from mtmeta.cli import main
from mtmeta.core.errors import MachineError
from mtmeta.core.storage import disk
from mtmeta.core.training.checkpoint import Checkpoints
from tests.robustness.saving import NEW, OLD, found, prepare, save
from tests.robustness.small import differences, make_backbone, make_data, outcome, write_recipe

PAGE = 4096


def mount(folder: Path, size: str, *, again: bool = False) -> None:
    """A tmpfs of a size at `folder`, or another size for the one there."""
    options = f"remount,size={size}" if again else f"size={size}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)


def fill(path: Path, leave: int) -> None:
    """Take all the space but `leave` bytes."""
    space = os.statvfs(path.parent)
    with open(path, "wb") as file:
        file.write(b"x" * (space.f_bavail * space.f_frsize - leave))


def no_check() -> contextlib.AbstractContextManager[object]:
    """Without asking for the free space first."""
    return mock.patch.object(disk, "check_space", lambda *arguments: None)


def saves(room: Path, spaced: bool) -> Counter[str]:
    """Save with every number of free pages until it fits."""
    counts: Counter[str] = Counter()
    leave = -PAGE
    while not counts["saved"]:
        leave += PAGE
        shutil.rmtree(room / "run", ignore_errors=True)
        (room / "ballast").unlink(missing_ok=True)
        prepare(room / "run")
        fill(room / "ballast", leave)
        try:
            with contextlib.nullcontext() if spaced else no_check():
                save(room / "run", NEW)
        except MachineError as error:
            said = str(error)
            assert "\n" not in said
            assert ("needed for the next checkpoint" if spaced else "No space left on device") in said, said
            assert f"step-{OLD:08d}" in said, said
            assert found(room / "run") == OLD
            counts["refused"] += 1
        else:
            assert found(room / "run") == NEW
            counts["saved"] += 1
        assert leave < 2**18, "it never fits"
    (room / "ballast").unlink()
    return counts


def command(*arguments: str) -> tuple[int, list[str]]:
    """`mtmeta ARGUMENTS`: exit code and the lines on stderr."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            main(list(arguments))
        except SystemExit as ended:
            return int(str(ended.code)), said.getvalue().splitlines()
    raise AssertionError("main always exits")


def run(folder: Path, room: Path, spaced: bool) -> str:
    """A run that keeps every checkpoint until the disk is full; then the disk is larger, and the run goes on."""
    data, weights = make_data(folder / "data"), make_backbone(folder / "weights")
    recipe = write_recipe(
        folder / "recipe.yaml",
        "joint",
        data=data,
        weights=str(weights),
        steps=30,
        evaluate_every=30,
        checkpoint={"every": 1, "keep": 100},
    )
    os.environ["MTMETA_CACHE"] = str(folder / "cache")
    wide = folder / f"wide-{spaced}"
    wide.mkdir()
    os.chdir(wide)
    assert command("run", str(recipe), "--out", "out")[0] == 0
    shutil.rmtree(room / "run", ignore_errors=True)
    (room / "run").mkdir()
    os.chdir(room / "run")
    with contextlib.nullcontext() if spaced else no_check():
        code, lines = command("run", str(recipe), "--out", "out")
    assert code == 6, lines
    (line,) = lines
    assert line.startswith("error: out")
    checkpoints = Checkpoints(room / "run" / "out" / "checkpoints")
    newest, damaged = checkpoints.newest()
    assert newest is not None
    assert damaged == []
    checkpoints.load(newest)
    assert newest.name in line, line
    mount(room, "16m", again=True)
    code, lines = command("run", str(recipe), "--out", "out")
    assert code == 0, lines
    assert differences(outcome(wide / "out"), outcome(room / "run" / "out")) == []
    os.chdir(folder)
    return line


def everything(folder: Path) -> None:
    """All of the above on one disk."""
    room = folder / "room"
    room.mkdir()
    mount(room, "256k")
    for spaced in (True, False):
        counts = saves(room, spaced)
        assert counts["refused"] >= 4, counts
        line = run(folder, room, spaced)
        shutil.rmtree(room / "run")
        mount(room, "256k", again=True)
        print(json.dumps({"swept": "free pages", "space asked for first": spaced, **counts, "line": line}))


if __name__ == "__main__":
    everything(Path(sys.argv[1]).absolute())
