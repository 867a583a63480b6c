"""Checkpoints on disk: what is written, in which order, what is kept, and what a failing disk leaves."""

from __future__ import annotations

import errno
import os
import re
import stat
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mtmeta
from mtmeta.core.errors import CheckpointError, MachineError
from mtmeta.core.storage import atomic, disk
from mtmeta.core.training.checkpoint import Checkpoints
from mtmeta.core.training.trainer import Trainer
from tests.support.commands import contents
from tests.support.quick import outcome, quick

TENSORS: dict[str, Tensor] = {
    "encoder.b": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "encoder.a": torch.tensor([1.5, float("-inf")], dtype=torch.float64),
    'heads.é"\\.x': torch.ones(3, dtype=torch.bfloat16),
    "half": torch.ones(1, dtype=torch.float16),
    "step": torch.tensor(7.0),
    "none": torch.empty(0, 4),
    "whole": torch.tensor([1, -2], dtype=torch.int64),
    "flags": torch.tensor([True, False, True]),
    "turned": torch.arange(6, dtype=torch.float32).reshape(2, 3).t(),
}
WEIGHTS = {"w": torch.ones(4)}


def save(made: Checkpoints, step: int, links: dict[str, str] | None = None) -> Path:
    state = {"step": step, "links": links or {}}
    return made.save(step, {"w": torch.full((4,), float(step))}, {"m": torch.zeros(2)}, state)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------------------------------------------------- writing


def test_tensor_files_are_the_library_s_byte_for_byte(tmp_path: Path) -> None:
    ours = {name: tensor for name, tensor in TENSORS.items() if tensor.dtype in (torch.float32, torch.bool)}
    written = disk.write_tensors(tmp_path / "ours", ours)
    save_file({name: tensor.contiguous() for name, tensor in ours.items()}, tmp_path / "theirs")
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()
    assert written == disk.fingerprint(tmp_path / "ours")


def test_tensors_of_every_kind_come_back(tmp_path: Path) -> None:
    disk.write_tensors(tmp_path / "f", TENSORS)
    back = load_file(tmp_path / "f")
    assert set(back) == set(TENSORS)
    for name, tensor in TENSORS.items():
        assert back[name].dtype == tensor.dtype and back[name].equal(tensor), name


def test_files_are_as_readable_as_the_user_s_others(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        path = save(Checkpoints(tmp_path / "c"), 1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(file.stat().st_mode) for file in path.iterdir()} == {0o640}
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_the_order_of_a_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files, manifest, directory, rename, parent, read back; and only then what is old."""
    made = Checkpoints(tmp_path / "c", keep=1)
    save(made, 1)
    done: list[str] = []
    fsync, rename, fingerprint = os.fsync, os.rename, disk.fingerprint

    def short(path: object) -> str:
        return re.sub("[0-9a-f]{16}", "RANDOM", str(path).removeprefix(f"{tmp_path}/"))

    def on_fsync(handle: int) -> None:
        done.append("fsync " + short(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def on_rename(a: Any, b: Any, **folders: Any) -> None:
        done.append(f"rename {short(a)} {short(b)}")
        rename(a, b, **folders)

    def on_read(path: Path) -> Any:
        done.append(f"read {short(path)}")
        return fingerprint(path)

    monkeypatch.setattr(os, "fsync", on_fsync)
    monkeypatch.setattr(os, "rename", on_rename)
    monkeypatch.setattr(disk, "fingerprint", on_read)
    save(made, 2)
    scratch, target = ".step-00000002.RANDOM.tmp", "step-00000002"
    files = ("state.json", "model.safetensors", "optimizer.safetensors")
    assert done == [
        *(f"fsync c/{scratch}/{file}" for file in (*files, "MANIFEST.json")),
        f"fsync c/{scratch}",
        f"rename {scratch} {target}",  # in the open folder
        "fsync c",
        *(f"read c/{target}/{file}" for file in files),
        "rename step-00000001 .step-00000001.RANDOM.trash",
    ]


def test_what_does_not_read_back_as_written_costs_no_older_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Checkpoints(tmp_path / "c", keep=1)
    save(made, 1)
    sync, before = atomic.sync, contents(tmp_path)

    def lying(path: Path) -> None:
        """A disk that flips a bit of the new checkpoint once it has been committed."""
        sync(path)
        file = path / "step-00000002" / "model.safetensors"
        if file.exists():
            file.write_bytes(file.read_bytes()[:-1] + b"\x01")

    monkeypatch.setattr(atomic, "sync", lying)
    with pytest.raises(
        MachineError, match=r"does not read back as it was written .*sha256 mismatch.*step-00000001 is in"
    ):
        save(made, 2)
    assert contents(tmp_path) == before
    assert made.newest() == (tmp_path / "c" / "step-00000001", [])


# --------------------------------------------------------------------------------------------------------- keeping


def test_best_weights_stay_while_a_checkpoint_or_a_link_names_them(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path / "c", keep=1)
    links: dict[str, str] = {}
    for step, better in ((1, ["best", "best-a"]), (2, ["best"]), (3, ["best"])):
        links |= dict.fromkeys(better, made.save_best(step, WEIGHTS, better))
        if step != 3:
            save(made, step, links)
    assert names(tmp_path / "c") == [
        *("best", "best-00000001", "best-00000002", "best-00000003", "best-a", "step-00000002")
    ]
    save(made, 3, links)
    assert names(tmp_path / "c") == ["best", "best-00000001", "best-00000003", "best-a", "step-00000003"]
    assert made.best_and_step("best-a")[1] == 1


def test_going_back_restores_links_and_drops_what_came_later(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path / "c")
    name = made.save_best(1, WEIGHTS, ["best"])
    save(made, 1, {"best": name})
    made.save_best(2, WEIGHTS, ["best", "best-a"])
    for leftover in (f".step-00000009.{'a1' * 8}.tmp", f".best-00000001.{'a1' * 8}.trash"):
        (tmp_path / "c" / leftover).mkdir()
    (tmp_path / "c" / f".best.{'a1' * 8}.tmp").symlink_to("nowhere")
    made.go_back(1, {"best": name})
    assert names(tmp_path / "c") == ["best", "best-00000001", "step-00000001"]
    assert made.best_and_step()[1] == 1
    Checkpoints(tmp_path / "none").go_back(0, {})
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_off_schedule_does_not_count_among_those_kept(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path / "c", keep=2)

    def even(step: int) -> bool:
        return step % 2 == 0

    kept = []
    for step in (2, 4, 5, 6, 7):
        made.save(step, WEIGHTS, {}, {"step": step}, even)
        kept.append([int(path.name[-1]) for path in made._steps()])
    assert kept == [[2], [2, 4], [2, 4, 5], [4, 6], [4, 6, 7]]


def test_a_later_damaged_checkpoint_goes_when_an_earlier_one_is_saved_again(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path / "c", keep=2)
    for step in (2, 4, 8):
        save(made, step)
    (tmp_path / "c" / "step-00000008" / "model.safetensors").write_bytes(b"")
    save(made, 6)
    assert names(tmp_path / "c") == ["step-00000004", "step-00000006"]


def test_best_is_read_again_when_it_is_replaced_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`mtmeta eval` of a run that is under way."""
    made = Checkpoints(tmp_path / "c")
    made.save_best(1, {"w": torch.zeros(1)}, ["best"])
    fingerprint, replaced = disk.fingerprint, False

    def replacing(path: Path) -> Any:
        nonlocal replaced
        if not replaced:
            replaced = True
            made.save_best(2, {"w": torch.ones(1)}, ["best"])
            assert not (tmp_path / "c" / "best-00000001").exists()
        return fingerprint(path)

    monkeypatch.setattr(disk, "fingerprint", replacing)
    weights, step = made.best_and_step()
    assert (weights["w"].item(), step) == (1.0, 2)


# ---------------------------------------------------------------------------------------------------------- damage


def test_every_changed_byte_of_a_manifest_is_noticed(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path / "c")
    manifest = save(made, 1) / "MANIFEST.json"
    good = manifest.read_bytes()
    for at in range(len(good)):
        for other in {good[at] ^ (1 << at % 8), 0x20, 0x0A} - {good[at]}:
            manifest.write_bytes(good[:at] + bytes([other]) + good[at + 1 :])
            newest, (line,) = made.newest()
            assert newest is None and line, (at, other)


@pytest.mark.parametrize("links", [{"best": "../../etc"}, {"best": 3}, ["best-00000001"], "x"])
def test_a_state_that_names_no_best_weights(links: Any, tmp_path: Path) -> None:
    made = Checkpoints(tmp_path / "c")
    made.save(1, WEIGHTS, {}, {"step": 1, "links": links})
    assert made.newest() == (None, [f"{tmp_path}/c/step-00000001/state.json: damaged (names no best weights)"])


def test_names_that_are_none_are_not_looked_at(tmp_path: Path) -> None:
    made = Checkpoints(tmp_path / "c")
    save(made, 3)
    for name in ("step-0000000x", "step-000000001", "step-", "best-x"):
        (tmp_path / "c" / name).mkdir()
    assert made.newest() == (tmp_path / "c" / "step-00000003", [])
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        made.best()


# ------------------------------------------------------------------------------------------------------------ disks


def fail(number: int, code: int, original: Callable[..., Any], when: Callable[..., bool]) -> Callable[..., Any]:
    """The function, whose `number`-th call with suitable arguments fails with errno `code`; and every later one."""
    calls = 0

    def failing(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        if when(*arguments):
            calls += 1
            if calls >= number:
                raise OSError(code, os.strerror(code))
        return original(*arguments, **named)

    return failing


FAILURES: list[tuple[str, int, str]] = [
    ("fsync", errno.EIO, "cannot write checkpoint: Input/output error"),
    ("fsync", errno.ENOSPC, "cannot write checkpoint: No space left on device"),
    ("fsync", errno.EDQUOT, "cannot write checkpoint: Disk quota exceeded"),
    ("mkdir", errno.EROFS, "cannot write checkpoint: Read-only file system"),
    ("rename", errno.EIO, "cannot write checkpoint: Input/output error"),
]


@pytest.mark.parametrize(("function", "code", "words"), FAILURES)
@pytest.mark.parametrize("number", [1, 2, 5, 6])
def test_a_failing_disk_leaves_the_newest_checkpoint(
    function: str, code: int, words: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 66: one line that names what is intact."""
    if function != "fsync" and number > 1:
        return
    made = Checkpoints(tmp_path / "c", keep=1)
    save(made, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, function, fail(number, code, getattr(os, function), lambda *_: True))
        with pytest.raises(MachineError) as failed:
            save(made, 2)
    # the sixth flush is that of the folder, after the rename: the new checkpoint stands, though perhaps not for long
    intact = f"step-0000000{2 if function == 'fsync' and number == 6 else 1}"
    assert str(failed.value) == f"{tmp_path}/c/step-00000002: {words}; {intact} is intact"
    newest, damaged = made.newest()
    assert newest and (newest.name, damaged) == (intact, [])
    assert made.load(newest)[0]["w"].tolist() == [float(intact[-1])] * 4


def test_a_failure_to_drop_the_old_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = Checkpoints(tmp_path / "c", keep=1)
    save(made, 1)
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", fail(2, errno.EIO, os.rename, lambda *_: True))
        with pytest.raises(
            MachineError, match=r"cannot remove an old checkpoint: Input/output error; step-00000002 is"
        ):
            save(made, 2)
    assert names(tmp_path / "c") == ["step-00000001", "step-00000002"]
    with monkeypatch.context() as patch:  # what is in the trash already may stay there
        patch.setattr(os, "rmdir", fail(1, errno.EIO, os.rmdir, lambda *_: True))
        patch.setattr(os, "unlink", fail(1, errno.EIO, os.unlink, lambda *_: True))
        made.go_back(2, {})
    trash, whole = names(tmp_path / "c")
    assert re.fullmatch(r"\.step-00000001\.[0-9a-f]{16}\.trash", trash) and whole == "step-00000002"
    made.go_back(2, {})
    assert names(tmp_path / "c") == ["step-00000002"]


Space = namedtuple("Space", "f_bavail f_frsize f_blocks")


def test_a_checkpoint_that_will_not_fit_is_not_begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 65."""
    made = Checkpoints(tmp_path / "c")
    made.check_space({"w": torch.zeros(1)})
    monkeypatch.setattr(os, "statvfs", lambda path: Space(400, 1_000_000, 500))
    large = {"w": torch.empty(320_000_000, device="meta")}
    with pytest.raises(MachineError) as refused:
        made.check_space(large, {"w": torch.zeros(5_000_000)})
    assert str(refused.value) == (
        f"{tmp_path}/c/: 1.3 GB needed for the next checkpoint, 400.0 MB free; newest good: none"
    )
    save(made, 700)
    before = contents(tmp_path)
    with pytest.raises(MachineError, match=r"400\.0 MB free; newest good: step-00000700"):
        made.save(701, large, {}, {"step": 701})
    assert contents(tmp_path) == before
    monkeypatch.setattr(os, "statvfs", lambda path: Space(0, 0, 0))  # a network drive that does not say
    made.check_space(large)


def test_space_is_looked_at_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "statvfs", lambda path: Space(100, 1000, 500))
    monkeypatch.setattr(Trainer, "_one_step", lambda self: pytest.fail("a step was made"))
    with pytest.raises(MachineError, match=r"checkpoints/: .* needed for the next checkpoint, 100\.0 kB free"):
        mtmeta.run(quick(tmp_path), out=tmp_path / "out")


def test_events_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line names the checkpoint that the same command will go on from."""
    recipe, opened, after = quick(tmp_path), mtmeta.RunFiles.append, 0  # lines since the first checkpoint's

    class Full:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Full:
            return self

        def __exit__(self, *error: object) -> None:
            self.file.close()

        def write(self, line: Any) -> int:
            nonlocal after
            if after or b'"type": "checkpoint"' in bytes(line):
                after += 1
            if after == 2:
                return int(self.file.write(line[:5]))  # what still fitted
            if after > 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(line))

    with monkeypatch.context() as patch:
        patch.setattr(mtmeta.RunFiles, "append", lambda *a: Full(opened(*a)))
        with pytest.raises(MachineError) as failed:
            mtmeta.run(recipe, out=tmp_path / "out")
    reason = "reporter 'jsonl' cannot write: No space left on device"
    assert str(failed.value) == f"{tmp_path}/out: {reason}; step-00000002 is intact"
    mtmeta.run(recipe, out=tmp_path / "out")
    mtmeta.run(recipe, out=tmp_path / "whole")
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")
