"""One process at a time in a run directory; the system lets go of it when the process ends, however."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import mtmeta
from mtmeta.core.errors import CheckpointError, MachineError
from mtmeta.core.run import run as running
from mtmeta.core.storage import lock as holding
from mtmeta.core.storage.lock import LOCK_NAME, lock_folder
from mtmeta.core.training.trainer import Trainer
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, command, contents
from tests.support.quick import quick

HOLDER = """
import sys, time
from pathlib import Path
from mtmeta.core.storage.lock import lock_folder
with lock_folder(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(600)
"""


def silent(text: str) -> None:
    raise AssertionError(text)


def test_a_second_process_is_told_who_holds_the_directory(tmp_path: Path) -> None:
    """Row 51; and after SIGKILL the directory is free."""
    recipe = quick(tmp_path, "joint")
    mtmeta.run(recipe, out=tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    first = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path / "out"], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout and first.stdout.readline() == "held\n"
        before = contents(tmp_path / "out")
        host = socket.gethostname()
        outcome = command("run", "quick.yaml", "--out", "out", cwd=tmp_path)
        assert_refused(outcome, 4, f"error: out: is in use by pid {first.pid} on host {host}; ", "--out")
        with pytest.raises(CheckpointError, match=f"in use by pid {first.pid} on host"):
            mtmeta.run(recipe, out=tmp_path / "out", fresh=True)
        assert contents(tmp_path / "out") == before
        assert mtmeta.evaluate(tmp_path / "out")["steps"]  # to look on is allowed
    finally:
        first.send_signal(signal.SIGKILL)
        first.communicate()
    assert (tmp_path / "out" / LOCK_NAME).exists()
    mtmeta.run(recipe, out=tmp_path / "out", warn=silent)
    assert not (tmp_path / "out" / LOCK_NAME).exists()


def test_it_is_held_until_the_run_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even within one process: from the first step to the summary."""
    recipe = quick(tmp_path, "joint")
    seen: list[int] = []
    one_step = Trainer._one_step

    def looked_at(self: Trainer) -> None:
        found = json.loads((tmp_path / "out" / LOCK_NAME).read_text())
        assert found == {"pid": os.getpid(), "host": socket.gethostname()}
        if not seen:
            with pytest.raises(CheckpointError, match=f"is in use by pid {os.getpid()} on host"):
                mtmeta.run(recipe, out=tmp_path / "out")
        seen.append(self.step)
        one_step(self)

    monkeypatch.setattr(Trainer, "_one_step", looked_at)
    mtmeta.run(recipe, out=tmp_path / "out")
    assert seen == [0, 1, 2, 3]


def test_a_run_that_was_finished_meanwhile_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes begin at once; the slower one finds the work done when it comes to hold the directory."""
    recipe, load = quick(tmp_path, "joint"), running.Training.load
    inside = False

    def slow(self: running.Training) -> None:
        nonlocal inside
        load(self)
        if not inside:
            inside = True
            mtmeta.run(recipe, out=tmp_path / "out")

    monkeypatch.setattr(running.Training, "load", slow)
    said: list[str] = []
    summary = mtmeta.run(recipe, out=tmp_path / "out", warn=said.append)
    assert said == [f"{tmp_path / 'out'} is finished; --fresh trains it again"]
    assert summary == json.loads((tmp_path / "out" / "summary.json").read_text())


def test_a_lock_that_is_removed_while_it_is_awaited_is_taken_anew(tmp_path: Path) -> None:
    with lock_folder(tmp_path, silent):
        handle = os.open(tmp_path / LOCK_NAME, os.O_RDWR)  # what the next process would have opened
    assert not (tmp_path / LOCK_NAME).exists()
    with lock_folder(tmp_path, silent):
        assert not os.path.samestat(os.fstat(handle), os.stat(tmp_path / LOCK_NAME))
    os.close(handle)


@pytest.mark.parametrize("text", ["", "{", '{"pid": 1}', '{"pid": "x", "host": "h"}', "[" * 4000])
def test_a_holder_without_a_name(text: str, tmp_path: Path) -> None:
    with lock_folder(tmp_path, silent):
        (tmp_path / LOCK_NAME).write_text(text)
        with pytest.raises(CheckpointError, match="is in use by another process"), lock_folder(tmp_path, silent):
            pass


def test_a_host_name_reaches_the_terminal_escaped(tmp_path: Path) -> None:
    with lock_folder(tmp_path, silent):
        (tmp_path / LOCK_NAME).write_text(json.dumps({"pid": 7, "host": "\x1b[31mred"}))
        with pytest.raises(CheckpointError, match=r"pid 7 on host \\x1b\[31mred;"), lock_folder(tmp_path, silent):
            pass


@pytest.mark.parametrize("missing", [True, False])
def test_where_there_are_no_locks_it_says_so_once(
    missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(handle: int, how: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    if missing:
        monkeypatch.setattr(holding, "fcntl", None)
    else:
        monkeypatch.setattr("fcntl.flock", refuse)
    said: list[str] = []
    mtmeta.run(quick(tmp_path, "joint"), out=tmp_path / "out", warn=said.append)
    why = "this system has none" if missing else os.strerror(errno.ENOLCK)
    assert said == [f"{tmp_path / 'out'}: no file lock ({why}); its lease alone keeps other processes out"]


def test_a_directory_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 66; not by permissions, which do not hold for root."""
    real = os.open

    def refuse(path: object, flags: int, *more: object, **named: object) -> int:
        if str(path).endswith(LOCK_NAME):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return real(path, flags, *more, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(MachineError, match=r"out: cannot be written: Read-only file system"):
        mtmeta.run(quick(tmp_path, "joint"), out=tmp_path / "out")
