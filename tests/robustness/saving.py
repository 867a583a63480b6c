"""One save of a small checkpoint, to be killed or failed anywhere, and what must be there afterwards.

The sweeps run in a fork of `forks`, and fork again for every single death. A death leaves the newest checkpoint as it
was or as it was to become, never anything else, never a damaged one; going back to it restores its best weights; and
the save that was cut off then succeeds.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import resource
import shutil
import signal
import subprocess
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mtmeta.core.errors import MachineError
from mtmeta.core.training.checkpoint import Checkpoints
from tests.robustness.faults import Faults
from tests.robustness.forks import wait

__all__ = [
    "NEW",
    "OLD",
    "found",
    "prepare",
    "run_traced",
    "save",
    "sweep_calls",
    "sweep_errors",
    "sweep_file_sizes",
    "sweep_system_calls",
]

OLDEST, OLD, NEW = 1, 2, 3  # with two kept, saving NEW drops OLDEST
# as the kernel has them; what one system or library does not use is never met, and never fails
SYSTEM_CALLS = (
    *("write", "pwrite64", "writev", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat"),
    *("rmdir", "mkdir", "mkdirat", "symlink", "symlinkat", "openat", "ftruncate", "fallocate", "chmod", "fchmod"),
    *("fchmodat", "link", "linkat", "copy_file_range"),
)


def content(step: int) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Model, optimizer and state of a step."""
    model = {"encoder.weight": torch.arange(6.0) * step, "heads.sst.bias": torch.ones(1) / step}
    return model, {"outer|exp_avg|encoder.weight": torch.full((6,), float(step))}, {"step": step, "links": links(step)}


def links(step: int) -> dict[str, str]:
    """Where the best links point at a step."""
    return {"best": f"best-{step:08d}", "best-sst": f"best-{OLDEST:08d}"}


def checkpoints(folder: Path) -> Checkpoints:
    """The checkpoints in a folder, of which two are kept."""
    return Checkpoints(folder, keep=2)


def save(folder: Path, step: int) -> None:
    """What a run saves at a step: better weights, then the whole state."""
    model, optimizer, state = content(step)
    made = checkpoints(folder)
    made.save_best(step, model, ["best", "best-sst"] if step == OLDEST else ["best"])
    made.save(step, model, optimizer, state)


def prepare(folder: Path) -> Path:
    """A folder with checkpoints of steps OLDEST and OLD."""
    save(folder, OLDEST)
    save(folder, OLD)
    assert found(folder) == OLD
    return folder


def found(folder: Path) -> int:
    """The step of the newest checkpoint; AssertionError unless it and its best weights are exactly as saved."""
    made = checkpoints(folder)
    newest, damaged = made.newest()
    assert damaged == []
    assert newest is not None
    step = int(newest.name.removeprefix("step-"))
    model, optimizer, state = made.load(newest)
    wanted = content(step)
    assert state == wanted[2]
    for tensors, expected in ((model, wanted[0]), (optimizer, wanted[1])):
        assert list(tensors) == list(expected)
        assert all(tensors[name].equal(tensor) for name, tensor in expected.items())
    for link in ("best", "best-sst"):  # eval reads them while a run is stopped: they must hold, older or newer
        assert sorted(made.best(link)) == sorted(wanted[0])
    made.go_back(step, links(step))
    for link, target in links(step).items():
        best = made.best(link)
        expected = content(int(target.removeprefix("best-")))[0]
        assert all(best[name].equal(tensor) for name, tensor in expected.items())
    return step


def _attempt(prepared: Path, work: Path, cut_short: Callable[[], object]) -> tuple[int, int, str]:
    """Save in a copy of `prepared` in a fork that calls `cut_short` first: exit code, step found, what was raised."""
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(prepared, work, symlinks=True)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            cut_short()
            save(work, NEW)
            code = 0
        except MachineError as error:
            os.write(writing, str(error).encode())
            code = 6
        except BaseException:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    code = wait(child)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read().decode()
    step = found(work)
    save(work, NEW)  # the run goes on
    assert found(work) == NEW
    leftovers = [path.name for path in work.iterdir() if path.name.startswith(".")]
    assert leftovers == []
    return code, step, said


def _tell(what: str, counts: Counter[str]) -> None:
    print(json.dumps({"swept": what, **counts}))


def sweep_file_sizes(folder: str, dying: bool, stride: int = 1) -> None:
    """Let no file grow beyond 0, 1, 2, ... bytes: the process dies of SIGXFSZ in the write, or gets EFBIG."""
    prepared, work = prepare(Path(folder) / "prepared"), Path(folder) / "work"
    largest = max(path.stat().st_size for path in prepared.rglob("*") if path.is_file())
    counts: Counter[str] = Counter()
    for limit in range(0, largest + 1, stride):

        def cut_short(limit: int = limit) -> None:
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL if dying else signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

        code, step, said = _attempt(prepared, work, cut_short)
        if limit == largest:
            assert (code, step) == (0, NEW)
        else:
            assert code == (-signal.SIGXFSZ if dying else 6), (limit, code, said)
            assert step == OLD
        counts["saved" if code == 0 else "cut short"] += 1
    assert counts["saved"] == 1 or largest % stride
    _tell(f"file sizes from 0 to {largest} by {stride}, {'death' if dying else 'EFBIG'}", counts)


def sweep_calls(folder: str, how: str) -> None:
    """Die before, or after, each file operation of a save that goes through Python."""
    prepared, work = prepare(Path(folder) / "prepared"), Path(folder) / "work"
    counts: Counter[str] = Counter()
    at, code, steps = 0, -signal.SIGKILL, []
    while code:
        at += 1
        code, step, said = _attempt(prepared, work, Faults(at, how).install)
        assert code in (0, -signal.SIGKILL), (at, code, said)
        steps.append(step)
        counts["old" if step == OLD else "new"] += 1
    assert steps == sorted(steps), "once the new checkpoint is there it stays"
    assert set(steps) == {OLD, NEW}
    _tell(f"death {how} each of {at - 1} calls", counts)


def sweep_errors(folder: str, number: int) -> None:
    """Have each file operation of a save fail with an errno: one line, or none where nothing is lost."""
    prepared, work = prepare(Path(folder) / "prepared"), Path(folder) / "work"
    counts: Counter[str] = Counter()
    counted = shutil.copytree(prepared, Path(folder) / "counted", symlinks=True)
    faults = Faults().install()
    save(counted, NEW)
    faults.remove()
    for at in range(1, len(faults.names) + 1):
        code, step, said = _attempt(prepared, work, Faults(at, number).install)
        name = faults.names[at - 1]
        assert code in (0, 6), (at, name, code)
        assert step == NEW or code, "said to be saved, and is not"
        if code:
            assert os.strerror(number) in said, said
            assert "\n" not in said
        counts[f"{'refused' if code else 'saved'}, {'old' if step == OLD else 'new'}"] += 1
    _tell(f"{errno.errorcode[number]} at each of {len(faults.names)} calls", counts)


def sweep_system_calls(folder: str, fault: str) -> None:
    """The same by the kernel's own calls, library code included: strace injects `fault` at the n-th of each name."""
    prepared, work = prepare(Path(folder) / "prepared"), Path(folder) / "work"
    log = Path(folder) / "trace"
    dying = fault.startswith("signal=")
    counts: Counter[str] = Counter()
    points: Counter[str] = Counter()
    for name in SYSTEM_CALLS:
        if name == "openat" and not dying:
            continue  # it also opens what is imported late
        while True:
            at = points[name] + 1
            trace = functools.partial(_trace_me, name, f"{name}:{fault}:when={at}", log)
            code, step, said = _attempt(prepared, work, trace)
            if not (code == -signal.SIGKILL if dying else "(INJECTED)" in log.read_text()):
                assert (code, step) == (0, NEW), (name, at, code, said)
                break
            assert code == -signal.SIGKILL if dying else code in (0, 6), (name, at, code, said)
            assert step == NEW or code, "said to be saved, and is not"
            counts["old" if step == OLD else "new"] += 1
            points[name] += 1
    assert points["fsync"] >= 6
    assert points["write"] >= 4
    assert sum(points[name] for name in ("rename", "renameat", "renameat2")) >= 4
    _tell(f"{fault} at " + ", ".join(f"{count} {name}" for name, count in points.items() if count), counts)


def run_traced(arguments: list[str], name: str, injection: str, log: str) -> None:
    """`mtmeta ARGUMENTS` under strace's injection."""
    from mtmeta.cli import main

    _trace_me(name, injection, Path(log))
    main(arguments)


def _trace_me(name: str, injection: str, log: Path) -> None:
    """Start strace on this very process and wait until it has taken hold."""
    log.write_bytes(b"")
    command = [
        "strace",
        "-q",
        "-p",
        str(os.getpid()),
        "-o",
        str(log),
        "-e",
        f"trace={name}",
        "-e",
        f"inject={injection}",
    ]
    status = os.open("/proc/self/status", os.O_RDONLY)
    subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    while b"TracerPid:\t0\n" in os.pread(status, 4096, 0):
        os.sched_yield()
    os.close(status)
