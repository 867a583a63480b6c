"""A pool of processes, one for each run: finished runs are kept, unfinished ones go on.

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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtmeta.core.errors import MachineError, MtmetaError, RunInUse, RunKilled, Stopped, raise_all
from mtmeta.core.signals import PARENT, StopRequest
from mtmeta.core.storage.lock import lock_owner
from mtmeta.core.studies.processes.error_pipe import PIPE, receive_errors
from mtmeta.core.wording import safe

OF_RUN = re.compile(r"--(fresh|allow-[a-z]+)\b")
STOPPED = (75, Stopped.interrupted)
LAST_ERRORS = 1.0  # seconds that the errors of a process that is over may take to come
POLL = 0.05  # seconds
PATIENCE = 60.0  # seconds that a run has to come to the end of its step
Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """One run: the label of its lines, its directory, and the arguments after `mtmeta run`.

    `threads` is how many it began with, for a run that goes on must have as many.
    """

    label: str
    folder: Path
    arguments: Sequence[str]
    threads: int | None = None


class RunWatcher:
    """Is told what becomes of runs in the pool; does nothing with it, unless a subclass does."""

    def started(self, job: Job) -> None:
        """Take that the process of a run was started."""

    def said(self, job: Job, line: str) -> None:
        """Take a line that a run printed on stderr; called from a thread."""

    def ended(self, job: Job, error: MtmetaError | None) -> None:
        """Take that a run is over, and the error it ended with, if it did."""

    def put_back(self, job: Job) -> None:
        """Take that a run ended without being done: it was asked to stop, or another process has it."""

    def look(self) -> None:
        """Take that time has passed; called many times a second."""


class _Lines(RunWatcher):
    """Passes every line on, after the label of its run."""

    def __init__(self, say: Say) -> None:
        self._say = say

    def said(self, job: Job, line: str) -> None:
        self._say(f"{job.label}: {line}")


def without_options(text: str, folder: Path) -> str:
    """Return a line of `mtmeta run` without advice that only that command can follow."""
    if (option := OF_RUN.search(text)) is None:
        return text
    head = text[: option.start()]
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
    watcher: RunWatcher | None = None,
) -> None:
    """Run every job, `at_once` at a time and in their order; `ended` is called after each that ended well.

    `watcher` is told of every run, and takes their lines in the place of `say`.

    A run that another process holds is waited for. One that fails does not keep the others from running: `failed` takes
    its error; without it the errors of all are raised together in the end. An error in `ended` ends everything. Raises
    Stopped once every process has ended, if a signal came.
    """
    stop = stop or StopRequest()
    watcher = watcher or _Lines(say)
    pool = _Pool(jobs, at_once, say, watcher)
    problems: list[MtmetaError] = []
    note = failed or (lambda job, error: problems.append(error))
    done = 0
    stop.where = f"with 0 of {len(jobs)} runs done"
    with stop.deferred(), _nothing_left(pool.running):
        while pool.running or (pool.waiting and not stop.signal):
            if stop.signal:
                for process in pool.running:
                    process.ask_to_stop()
            else:
                pool.start()
            for process in pool.ended():
                try:
                    process.check()
                except MtmetaError as error:
                    watcher.ended(process.job, error)
                    note(process.job, error)
                    continue
                done += 1
                stop.where = f"with {done} of {len(jobs)} runs done"
                watcher.ended(process.job, None)
                ended(process.job)
            watcher.look()
            time.sleep(POLL)
    stop.check()
    raise_all(problems)


class _Pool:
    """Jobs that wait, and the processes of those that run, at most `at_once` of them."""

    def __init__(self, jobs: Sequence[Job], at_once: int, say: Say, watcher: RunWatcher) -> None:
        self.waiting = list(jobs)
        self.running: list[_Running] = []
        self._at_once, self._say, self._watcher = at_once, say, watcher
        self._asked: dict[Path, float] = {}
        """When each run that another process holds was last looked at."""

    def start(self) -> None:
        """Start the jobs that may run now, in their order."""
        for job in list(self.waiting):
            if len(self.running) < self._at_once and self._is_free(job):
                self.waiting.remove(job)
                self.running.append(_Running(job, self._at_once, self._watcher))
                self._watcher.started(job)

    def ended(self) -> Iterator[_Running]:
        """Take out the processes that are over, less those that were asked to stop; one that was late waits again."""
        for process in [process for process in self.running if process.has_ended()]:
            self.running.remove(process)
            late = process.was_late()
            if late or process.was_stopped():
                self._watcher.put_back(process.job)
            if late:
                self.waiting.insert(0, process.job)
                self._asked[process.job.folder] = time.monotonic()
            elif not process.was_stopped():
                yield process

    def _is_free(self, job: Job) -> bool:
        """Return whether nobody holds a run; asked once a second, and said once."""
        now = time.monotonic()
        if now - self._asked.get(job.folder, -math.inf) < 1.0:
            return False
        process = lock_owner(job.folder)
        if process and job.folder not in self._asked:
            self._say(f"{job.label}: waits for {process}, which is at {job.folder}")
        if process:
            self._asked[job.folder] = now
        return not process


class _Running:
    """The process of one run, whose lines are passed on as they come."""

    def __init__(self, job: Job, at_once: int, watcher: RunWatcher) -> None:
        self.job = job
        self._asked = False
        self._errors: list[MtmetaError] = []
        self._over = 0.0
        """When it was seen to be over, by the clock."""
        errors, pipe = os.pipe()
        environ = os.environ | {PARENT: str(os.getpid()), PIPE: str(pipe)}
        if job.threads is not None:
            environ["OMP_NUM_THREADS"] = str(job.threads)
        elif at_once > 1:  # or every run would take every core
            environ.setdefault("OMP_NUM_THREADS", str(max(1, _cores() // at_once)))
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "mtmeta", "run", *job.arguments, "--out", str(job.folder), "--json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,  # the summary, which is in the run directory too
                stderr=subprocess.PIPE,
                text=True,
                errors="backslashreplace",
                env=environ,
                pass_fds=[pipe],
                start_new_session=True,  # a Ctrl-C comes to us alone, and we pass it on once
            )
        except BaseException:
            os.close(errors)
            raise
        finally:
            os.close(pipe)  # or the end of the errors would never come
        self._readers = [
            threading.Thread(target=self._pass_on, args=(watcher,), daemon=True),
            threading.Thread(target=self._receive, args=(errors,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def _pass_on(self, watcher: RunWatcher) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                line = without_options(line.strip(), self.job.folder)
                # the listener may be gone; the run is to go on, and would wait for a pipe that nobody reads
                with contextlib.suppress(OSError, ValueError):
                    watcher.said(self.job, safe(line, 1000))

    def _receive(self, errors: int) -> None:
        with open(errors, encoding="utf-8", errors="backslashreplace") as lines:
            for error in receive_errors(lines):
                self._errors.append(error)

    def has_ended(self) -> bool:
        """Return whether it is over, and all its lines were passed on."""
        if self._process.poll() is None:
            return False
        self._over = self._over or time.monotonic()
        lines, errors = self._readers
        # a process that it left behind may hold the pipe of errors open, on which nothing more comes
        return not lines.is_alive() and (not errors.is_alive() or time.monotonic() - self._over > LAST_ERRORS)

    def was_late(self) -> bool:
        """Return whether another process had taken the run between our look at it and its own."""
        return any(isinstance(error, RunInUse) for error in self._errors)

    def was_stopped(self) -> bool:
        """Return whether it ended because it was asked to."""
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
        for reader in self._readers:
            reader.join(LAST_ERRORS)

    def check(self) -> None:
        """Raise the errors it ended with, unless it ended well."""
        code = self._process.returncode
        if code == 0:
            return
        if code < 0:
            message = f"was killed by {signal.Signals(-code).name}; run the same command again to go on"
            memory = ", with fewer --jobs if memory ran out" if code == -9 else ""
            raise RunKilled(self.job.label, message + memory)
        texts = [without_options(str(error), self.job.folder) for error in self._errors]
        if code in STOPPED:
            raise MachineError(self.job.label, texts[0] if texts else "was stopped; run the same command again")
        if not texts:
            raise MtmetaError(self.job.label, f"ended with exit code {code}")
        pairs = zip(self._errors, texts, strict=True)
        raise_all([type(error)(self.job.label, text, help=error.help) for error, text in pairs])


@contextlib.contextmanager
def _nothing_left(running: Sequence[_Running]) -> Iterator[None]:
    """End every process that is left; after a second Ctrl-C none may take its time either."""
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
    """Return the number of processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
