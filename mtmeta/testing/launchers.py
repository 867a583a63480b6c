"""The contract of a launcher, checked with three small jobs."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path

from mtmeta.core.api.contracts import Job, JobState, Launcher
from mtmeta.testing.tiny import check, check_documented

# what a job does: it writes where it runs and what it was given, and then waits for a file or for SIGTERM
PROGRAM = """
import os, pathlib, signal, sys, time
mark = pathlib.Path(sys.argv[1])
signal.signal(signal.SIGTERM, lambda number, frame: (mark.with_suffix(".term").touch(), sys.exit(75)))
mark.with_suffix(".part").write_text(f"{os.getcwd()} {os.environ['MTMETA_CHECK']}")
mark.with_suffix(".part").rename(mark)
while not mark.with_suffix(".go").exists():
    time.sleep(0.05)
"""


def check_launcher(launcher: Launcher, folder: Path, *, patience: float = 60.0) -> None:
    """Check that a launcher keeps its contract, with jobs that leave files under `folder`; takes a few seconds.

    It has what it needs. A job is started in its directory with its variables, is among those that are not over until
    it is, and says that it runs while it does; it is known by its handle to another launcher of the same options. Of
    handles that are over, or were never given, nothing is said. A cancelled job gets a SIGTERM, and to cancel it once
    more does no harm. `patience` are the seconds that each of these may take.
    """
    launcher.require()
    job = _job(folder, "first")
    handle = launcher.submit(job)
    check(isinstance(handle, str) and handle != "", f"submit returned {handle!r}, expected a text")
    mark = folder / "first.mark"
    _until(lambda: mark.exists(), patience, "the job did not start")
    check(mark.read_text() == f"{job.cwd} first", f"the job had {mark.read_text()!r}, expected its cwd and variables")
    twin = dataclasses.replace(launcher)  # as another shell makes it of the same options
    states = twin.poll([handle])
    check(isinstance(states.get(handle), JobState), f"poll returned {states!r} while the job ran")
    _until(lambda: twin.poll([handle])[handle].running, patience, "poll says that the job waits, but it runs")
    mark.with_suffix(".go").touch()
    _until(lambda: handle not in twin.poll([handle]), patience, "poll still holds a job that is over")
    second = launcher.submit(_job(folder, "second"))
    check(second != handle, f"two jobs have the handle {second!r}")
    _until(lambda: (folder / "second.mark").exists(), patience, "the second job did not start")
    check(set(twin.poll([handle, second])) == {second}, "poll tells of a job that is over beside one that runs")
    twin.cancel(second)
    _until(lambda: (folder / "second.term").exists(), patience, "a cancelled job got no SIGTERM")
    _until(lambda: not twin.poll([second]), patience, "poll still holds a job that was cancelled")
    twin.cancel(second)
    check_documented(type(launcher), Launcher)


def _job(folder: Path, name: str) -> Job:
    cwd, logs = folder / f"{name} cwd", folder / f"{name}.logs"  # a path may hold a space
    cwd.mkdir(parents=True)
    logs.mkdir()
    command = (sys.executable, "-c", PROGRAM, str(folder / f"{name}.mark"))
    return Job(name, command, {"MTMETA_CHECK": name}, cwd, logs)


def _until(condition: Callable[[], bool], patience: float, message: str) -> None:
    end = time.monotonic() + patience
    while not condition():
        check(time.monotonic() < end, f"{message}, in {patience:g} s")
        time.sleep(0.1)
