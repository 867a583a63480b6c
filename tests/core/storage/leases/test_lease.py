"""The lease beside a run's lock: what keeps processes of two machines out of one directory where flock does not."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.errors import CheckpointError, MachineError, RunInUse
from mtmeta.core.run import directory
from mtmeta.core.storage import lock as locking
from mtmeta.core.storage.leases import holder as holders
from mtmeta.core.storage.leases import lease as leases
from mtmeta.core.storage.leases.holder import Holder
from mtmeta.core.storage.leases.lease import LEASE_NAME, hold_lease, lease_owner
from mtmeta.core.storage.lock import lock_folder, lock_owner
from mtmeta.core.training.trainer import Trainer
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.quick import outcome, quick

ELSEWHERE = Holder("0123456789abcdef", 4711, "n1", "another-boot", "pid:[1]", "99")


def silent(text: str) -> None:
    raise AssertionError(text)


def leave(folder: Path, holder: Holder = ELSEWHERE, age: float = 0.0) -> None:
    """Put a lease there, as another process would have left it so many seconds ago."""
    folder.mkdir(exist_ok=True)
    (folder / LEASE_NAME).write_bytes(holder.line())
    os.utime(folder / LEASE_NAME, (time.time() - age,) * 2)


@pytest.fixture(autouse=True)
def quick_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "POLL", 0.02)
    monkeypatch.setattr(leases, "SETTLE", 0.05)


def test_a_directory_that_another_machine_uses_is_refused(tmp_path: Path) -> None:
    """Its lock says nothing of other machines, as on NFSv3 and Lustre: nobody has it here."""
    leave(tmp_path / "out", age=leases.LENGTH - 5)
    before = (tmp_path / "out" / LEASE_NAME).stat().st_mtime
    with pytest.raises(RunInUse, match="is in use by pid 4711 on host n1; "):
        mtmeta.run(quick(tmp_path), out=tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [LEASE_NAME]
    assert (tmp_path / "out" / LEASE_NAME).stat().st_mtime == before  # and not renewed on the way
    assert lock_owner(tmp_path / "out") == "pid 4711 on host n1"


def test_a_lease_that_nobody_renewed_is_free(tmp_path: Path) -> None:
    recipe = quick(tmp_path)
    mtmeta.run(recipe, out=tmp_path / "whole")
    leave(tmp_path / "out", age=leases.LENGTH + 5)
    assert lock_owner(tmp_path / "out") == ""
    mtmeta.run(recipe, out=tmp_path / "out", warn=silent)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
    assert not (tmp_path / "out" / LEASE_NAME).exists()


def test_the_age_of_a_lease_is_by_the_clock_of_its_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the disk's clock is a week ahead of ours, and a lease of its last second is still held."""
    week = 7 * 86400
    leave(tmp_path, age=-week)
    with pytest.raises(RunInUse):
        with hold_lease(tmp_path, lambda: time.time() + week, locked=True, busy=refuse):
            pass
    leave(tmp_path, age=-week + leases.LENGTH + 1)
    with hold_lease(tmp_path, lambda: time.time() + week, locked=True, busy=refuse):
        pass


def refuse(owner: str) -> None:
    raise RunInUse("", f"is in use by {owner}")


def in_thread(work: Callable[[], Any]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_with_wait_it_goes_on_once_the_other_one_gives_it_back(tmp_path: Path) -> None:
    leave(tmp_path)
    said: list[str] = []

    def give_back() -> None:
        time.sleep(0.3)
        (tmp_path / LEASE_NAME).unlink()

    thread = in_thread(give_back)
    started = time.monotonic()
    with lock_folder(tmp_path, said.append, wait=True):
        assert time.monotonic() - started > 0.25
        assert json.loads((tmp_path / LEASE_NAME).read_text())["pid"] == os.getpid()
    thread.join()
    assert said == [f"{tmp_path} is in use by pid 4711 on host n1; waiting"]
    assert not (tmp_path / LEASE_NAME).exists()


def test_with_wait_it_goes_on_once_the_lease_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a node died; and no sooner, as long as somebody renews it."""
    monkeypatch.setattr(leases, "LENGTH", 0.4)
    leave(tmp_path)
    renewals = 8
    held = threading.Event()

    def renew() -> None:
        for _ in range(renewals):
            assert not held.is_set()
            os.utime(tmp_path / LEASE_NAME)
            time.sleep(0.1)

    thread = in_thread(renew)
    with lock_folder(tmp_path, lambda text: None, wait=True):
        held.set()
        assert not thread.is_alive()
    thread.join()


def test_a_holder_renews_its_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "BEAT", 0.02)
    with lock_folder(tmp_path, silent):
        os.utime(tmp_path / LEASE_NAME, (0, 0))
        end = time.monotonic() + 10
        while os.stat(tmp_path / LEASE_NAME).st_mtime < 1e9:
            assert time.monotonic() < end, "it was not renewed"
            time.sleep(0.01)


def test_where_there_are_no_locks_one_of_many_takes_a_lease_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All find it free in the same moment, and each writes its name; the last name holds, the others wait."""
    leave(tmp_path, age=leases.LENGTH + 60)
    monkeypatch.setattr(Holder, "is_on_this_machine", lambda self: False)  # as if each were on a machine of its own
    inside: list[int] = []
    most, start = [0], threading.Barrier(6)

    def work() -> None:
        start.wait()
        with hold_lease(tmp_path, time.time, locked=False, busy=lambda owner: None):
            inside.append(1)
            most[0] = max(most[0], len(inside))
            time.sleep(0.05)
            inside.pop()

    threads = [in_thread(work) for _ in range(6)]
    for thread in threads:
        thread.join()
    assert most == [1]


def test_a_run_that_was_taken_over_writes_nothing_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when its machine was halted for longer than a lease: the other one goes on, and the result is the same."""
    monkeypatch.setattr(leases, "BEAT", 0.01)
    recipe = quick(tmp_path, training={"steps": 6})
    mtmeta.run(recipe, out=tmp_path / "whole")
    out, one_step = tmp_path / "out", Trainer._one_step

    def halted(self: Trainer) -> None:
        one_step(self)
        if self.step == 3:
            leave(out)
            time.sleep(0.5)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_one_step", halted)
        with pytest.raises(RunInUse, match=r"was taken over by pid 4711 on host n1, .*; that one goes on"):
            mtmeta.run(recipe, out=out)
    assert [json.loads(line)["step"] for line in steps_in(out)] == [1, 2, 3]
    assert not list((out / "checkpoints").glob("step-00000003*"))
    assert (out / LEASE_NAME).read_bytes() == ELSEWHERE.line()  # it is the other one's to give back
    (out / LEASE_NAME).unlink()
    mtmeta.run(recipe, out=out)
    assert outcome(out) == outcome(tmp_path / "whole")


def steps_in(run: Path) -> list[str]:
    return [line for line in (run / "events.jsonl").read_text().splitlines() if json.loads(line)["type"] == "step"]


def test_a_process_of_this_machine_that_is_over_leaves_a_free_lease(tmp_path: Path) -> None:
    """At once, not when it ends: by the lock where there is one, by the process's start where there is none."""
    here = Holder.new()
    leave(tmp_path, replace(here, id="f" * 16))
    for locked in (True, False):
        assert (lease_owner(tmp_path, locked=locked) == "") is locked  # we are alive, and hold it as far as is known
    ended = replace(here, id="f" * 16, started="1")  # another process had our number before
    leave(tmp_path, ended)
    assert ended.has_surely_ended() and not here.has_surely_ended()
    with hold_lease(tmp_path, time.time, locked=False, busy=silent):
        pass


@pytest.mark.parametrize("change", [{"boot": "before-a-restart"}, {"space": "pid:[7]"}, {"boot": "", "host": "n1"}])
def test_of_processes_elsewhere_nothing_is_sure(change: dict[str, str]) -> None:
    assert not replace(Holder.new(), **change, pid=2**22 + 1).has_surely_ended()


def test_a_system_that_tells_nothing_of_processes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holders, "_boot", lambda: "")
    monkeypatch.setattr(holders, "_start_of", lambda pid: "")
    here = Holder.new()
    assert (here.boot, here.started) == ("", "")
    assert here.is_on_this_machine() and not here.has_surely_ended()
    leave(tmp_path, here)
    with lock_folder(tmp_path, silent):  # whose lock is free, so that process is over
        pass


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"id": 1}', b"[" * 4000, json.dumps(asdict(ELSEWHERE) | {"pid": "x"}).encode()]
)
def test_a_lease_without_a_name_is_held_until_it_ends(data: bytes, tmp_path: Path) -> None:
    (tmp_path / LEASE_NAME).write_bytes(data)
    with pytest.raises(RunInUse, match="is in use by another process"), lock_folder(tmp_path, silent):
        pass
    os.utime(tmp_path / LEASE_NAME, (time.time() - leases.BEAT - 1,) * 2)
    with lock_folder(tmp_path, silent):
        pass


def test_a_lease_whose_name_cannot_be_written_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a full disk: the next one is not to wait for it."""

    def full(holder: Holder) -> bytes:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Holder, "line", full)
        with pytest.raises(MachineError, match="No space left on device"), lock_folder(tmp_path, silent):
            pass
    assert list(tmp_path.iterdir()) == []
    with lock_folder(tmp_path, silent):
        pass


def test_a_lease_that_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "victim").write_text("mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / LEASE_NAME).symlink_to(tmp_path / "victim")
    with pytest.raises(CheckpointError, match=r"\.lease: is a link, not a regular file; remove it"):
        with lock_folder(tmp_path / "out", silent):
            pass
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "out" / locking.LOCK_NAME).exists()


def test_a_left_lease_is_no_content(tmp_path: Path) -> None:
    (tmp_path / LEASE_NAME).write_bytes(ELSEWHERE.line())
    assert not any(map(directory._counts, tmp_path.iterdir()))
