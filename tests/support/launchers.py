"""A launcher whose jobs go as a test has planned: they run, wait, vanish, or are killed on the way."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import pytest

import mtmeta
from mtmeta.core.errors import MachineError
from mtmeta.plugins import launchers

FOREVER = 120.0  # seconds after which a test gives up


@dataclass
class Desk:
    """What the launcher was asked for, and what is to become of it."""

    plan: list[str] = field(default_factory=list)
    """What becomes of each submission, in turn: run, hold, vanish, kill (after its first checkpoint); then run."""
    submitted: list[mtmeta.Job] = field(default_factory=list)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    held: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    silent: int = 0
    """Polls that are not answered yet."""


@dataclass(frozen=True, kw_only=True)
class Scripted(mtmeta.Launcher):
    """Jobs by a script."""

    name = "scripted"
    desk: ClassVar[Desk] = Desk()

    every: mtmeta.PositiveFloat = 0.05
    """Seconds between two looks."""
    color: str | None = None
    """Any word."""

    def submit(self, job: mtmeta.Job) -> str:
        desk, handle = self.desk, str(len(self.desk.submitted) + 1)
        desk.submitted.append(job)
        fate = desk.plan.pop(0) if desk.plan else "run"
        if fate == "hold":
            desk.held.append(handle)
        if fate in ("run", "kill"):
            environment = os.environ | dict(job.environment)
            with (job.logs / f"{handle}.txt").open("wb") as log:
                process = subprocess.Popen(job.command, env=environment, cwd=job.cwd, stdout=log, stderr=log)
            desk.processes[handle] = process
            if fate == "kill":
                wait_for(lambda: list(run_of(job).glob("checkpoints/step-*")) != [])
                process.kill()
        return handle

    def poll(self, handles: Sequence[str]) -> Mapping[str, mtmeta.JobState]:
        if self.desk.silent:
            self.desk.silent -= 1
            raise MachineError("launcher scripted", "gives no answer")
        run = {name: mtmeta.JobState(True, "n1") for name, one in self.desk.processes.items() if one.poll() is None}
        wait = {name: mtmeta.JobState(False, "", "Priority") for name in self.desk.held}
        return {handle: state for handle, state in {**run, **wait}.items() if handle in handles}

    def cancel(self, handle: str) -> None:
        self.desk.cancelled.append(handle)
        if handle in self.desk.held:
            self.desk.held.remove(handle)


def run_of(job: mtmeta.Job) -> Path:
    """The run directory of a job."""
    return Path(job.command[job.command.index("--out") + 1])


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + FOREVER
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def scripted(patch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """Within, there is the launcher `scripted`, with a desk of its own; no process of it is left behind."""
    desk = Desk()
    patch.setattr(Scripted, "desk", desk)
    real = launchers.register_launchers
    patch.setattr(launchers, "register_launchers", mtmeta.hookimpl(lambda: [*real(), Scripted]))
    try:
        yield desk
    finally:
        for process in desk.processes.values():
            process.kill()
            process.wait()


__all__ = ["Desk", "Scripted", "run_of", "scripted", "wait_for"]
