"""Many runs, several at once, each in a process of its own: what is done is kept, what is left goes on.

A run's process is `mtmeta run`, so whatever holds for that command holds here: the same directory continues, a finished
one is left alone, and a signal ends a run between two steps with everything saved.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtmeta.core.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    MachineError,
    MtmetaError,
    PluginError,
    RecipeError,
    Stopped,
    raise_all,
)
from mtmeta.core.signals import PARENT, StopRequest
from mtmeta.core.storage.lock import IN_USE, lock_owner
from mtmeta.core.wording import safe

__all__ = ["Job", "run_all", "without_options"]

KINDS = (RecipeError, DataError, CheckpointError, PluginError, MachineError, DivergedError)
CODES: dict[int, type[MtmetaError]] = {kind.exit_code: kind for kind in KINDS}
OF_RUN = re.compile(r"--(fresh|allow-[a-z]+)\b")
STOPPED = (75, Stopped.interrupted)
POLL = 0.05  # seconds
PATIENCE = 60.0  # seconds that a run has to come to the end of its step
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One run: what its lines are called, where it lies, and the arguments after `mtmeta run`.

    `threads` is how many it began with, for a run that goes on must have as many.
    """

    label: str
    folder: Path
    arguments: Sequence[str]
    threads: int | None = None


def without_options(text: str, folder: Path) -> str:
    """A line of `mtmeta run` without advice that only that command can follow."""
    found = OF_RUN.search(text)
    if found is None:
        return text
    head = text[: found.start()]
    cut = max(head.rfind("; "), head.rfind(": "))
    return f"{head[:cut]}; remove {folder} to train it again" if cut >= 0 else text


def run_all(
    jobs: Sequence[Job],
    *,
    at_once: int = 1,
    say: Say = lambda text: None,
    ended: Callable[[Job], None] = lambda job: None,
    failed: Callable[[Job, MtmetaError], None] | None = None,
    stop: StopRequest | None = None,
) -> None:
    """Run every job, `at_once` at a time and in their order; `ended` is called after each that ended well.

    A run that another process is at is waited for. One that fails does not keep the others from running: `failed` is
    told why; without it the errors of all are raised together in the end. What `ended` raises ends everything. Raises
    Stopped once every process has ended, if a signal came.
    """
    stop = stop or StopRequest()
    waiting = list(jobs)
    running: list[_Running] = []
    problems: list[MtmetaError] = []
    held = _Held(say)
    done = 0
    stop.where = f"with 0 of {len(jobs)} runs done"
    with stop.deferred(), _nothing_left(running):
        while running or (waiting and not stop.signal):
            for job in list(waiting) if not stop.signal else ():
                if len(running) < at_once and held.is_free(job):
                    waiting.remove(job)
                    running.append(_Running(job, at_once, say))
            if stop.signal:
                for one in running:
                    one.ask_to_stop()
            for one in [one for one in running if one.has_ended()]:
                running.remove(one)
                if one.stopped():
                    continue
                if one.was_too_late():
                    waiting.insert(0, one.job)
                    held.ask_later(one.job)
                    continue
                try:
                    one.check()
                except MtmetaError as error:
                    if failed is None:
                        problems.append(error)
                    else:
                        failed(one.job, error)
                    continue
                done += 1
                stop.where = f"with {done} of {len(jobs)} runs done"
                ended(one.job)
            time.sleep(POLL)
    stop.check()
    raise_all(problems)


class _Held:
    """Which runs other processes are at."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._asked: dict[Path, float] = {}

    def is_free(self, job: Job) -> bool:
        """Whether nobody is at a run; asked once a second, and told once."""
        now = time.monotonic()
        if now - self._asked.get(job.folder, -math.inf) < 1.0:
            return False
        who = lock_owner(job.folder)
        if who and job.folder not in self._asked:
            self._say(f"{job.label}: waits for {who}, which is at {job.folder}")
        if who:
            self._asked[job.folder] = now
        return not who

    def ask_later(self, job: Job) -> None:
        """Not before a second has passed."""
        self._asked[job.folder] = time.monotonic()


class _Running:
    """The process of one run, whose lines are passed on as they come."""

    def __init__(self, job: Job, at_once: int, say: Say) -> None:
        self.job = job
        self._last: deque[str] = deque(maxlen=20)  # the end of what it printed, for the error it may end with
        self._asked = False
        environ = dict(os.environ)
        environ[PARENT] = str(os.getpid())
        if job.threads is not None:
            environ["OMP_NUM_THREADS"] = str(job.threads)
        elif at_once > 1:  # or every run would take every core
            environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // at_once)))
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "mtmeta", "run", *job.arguments, "--out", str(job.folder), "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,  # the summary, which is in the run directory too
            stderr=subprocess.PIPE,
            text=True,
            errors="backslashreplace",
            env=environ,
            start_new_session=True,  # a Ctrl-C comes to us alone, and we pass it on once
        )
        self._reader = threading.Thread(target=self._read, args=(say,), daemon=True)
        self._reader.start()

    def _read(self, say: Say) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                self._last.append(line.rstrip("\n"))
                if not line.startswith("error: "):  # that is raised
                    line = without_options(line.strip(), self.job.folder)
                    # who listened may be gone; the run is to go on, and would wait for a pipe that nobody reads
                    with contextlib.suppress(OSError, ValueError):
                        say(f"{self.job.label}: {safe(line, 1000)}")

    def has_ended(self) -> bool:
        """Whether it is over, and all it had to say was passed on."""
        return self._process.poll() is not None and not self._reader.is_alive()

    def was_too_late(self) -> bool:
        """Whether another process had taken the run between our look at it and its own."""
        told = any(line.startswith("error: ") and IN_USE in line for line in self._last)
        return self._process.returncode == CheckpointError.exit_code and told

    def stopped(self) -> bool:
        """Whether it ended because it was asked to."""
        return self._asked and (self._process.returncode in STOPPED or self._process.returncode < 0)

    def ask_to_stop(self) -> None:
        """Pass a signal on, once; as SIGTERM, for Python answers a SIGINT during its start with a traceback."""
        if not self._asked:
            self._asked = True
            self._process.terminate()

    def end(self, seconds: float) -> None:
        """End it, at the latest in `seconds`; the same command goes on from its newest checkpoint."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def check(self) -> None:
        """Raise what it ended with, unless it ended well."""
        code = self._process.returncode
        if code == 0:
            return
        if code < 0:
            message = f"was killed by {signal.Signals(-code).name}; run the same command again to go on"
            raise MachineError(
                self.job.label, message + (", with fewer --jobs if memory ran out" if code == -9 else "")
            )
        told = [line.removeprefix("error: ") for line in self._last if line.startswith("error: ")]
        lines = [without_options(line, self.job.folder) for line in told]
        if code in STOPPED:
            raise MachineError(self.job.label, lines[0] if lines else "was stopped; run the same command again")
        kind = CODES.get(code, MtmetaError)
        raise_all([kind(self.job.label, line) for line in lines or [f"ended with exit code {code}"]])


@contextlib.contextmanager
def _nothing_left(running: Sequence[_Running]) -> Iterator[None]:
    """No process outlives us; after a second Ctrl-C none may take its time either."""
    patience = PATIENCE
    try:
        yield
    except KeyboardInterrupt:
        patience = 0.0
        raise
    finally:
        if patience:
            for one in running:  # all of them first, so that they end their steps side by side
                one.ask_to_stop()
        end = time.monotonic() + patience
        for one in running:
            one.end(max(0.0, end - time.monotonic()))


def _cores() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
