"""One trial: its runs, one for each seed and one after another, watched until they end or are given up."""

from __future__ import annotations

import math
import os
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Literal

from mtmeta.core.errors import MachineError, MtmetaError, OutOfMemory, RunKilled, Stopped
from mtmeta.core.signals import StopRequest
from mtmeta.core.studies.comparable import Planned, check_data
from mtmeta.core.studies.launching.placement import Placement
from mtmeta.core.studies.planned_run import is_finished
from mtmeta.core.studies.processes.pool import Job
from mtmeta.core.studies.tuning.progress import Progress
from mtmeta.core.studies.tuning.sampling import SHARES, Judge

Say = Callable[[str], None]
PRUNING, FAILURE = "pruning", "failure"
"""Why a trial's own runs are stopped; anything else is a signal to the search."""
KILLS = 3
"""Times in a row that the process of a run may be killed before its trial counts as failed."""


@dataclass(frozen=True)
class Outcome:
    """How a trial ended, and all that is noted of it."""

    state: Literal["complete", "pruned", "failed"]
    value: float | None
    course: Mapping[int, float]
    """What was reported on the way, by step."""
    marks: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def run_planned(
    jobs: Sequence[Job],
    *,
    placement: Placement,
    say: Say,
    failed: Callable[[Job, MtmetaError], None],
    stop: StopRequest,
) -> None:
    """Make the runs of one trial, in order and one at a time; the one place from which a trial's runs are started.

    Runs that are finished are left alone, others go on. Raises Stopped if `stop` asks, once nothing of the trial runs
    any more; but where a signal ended the search, jobs of a launcher go on, and the next search picks them up.
    """
    for job in jobs:
        study = job.folder.parent
        try:
            placement.run([job], study, say=say, failed=failed, stop=stop)
            stop.check()
        except Stopped:
            if stop.signal in (PRUNING, FAILURE):
                placement.cancel([job], study, say)
            raise


class Running:
    """A trial under way: a thread that sees to its runs, and what they have come to, looked at from outside.

    What is decided depends on the values alone, in the order of seeds and evaluations, whenever they are seen.
    """

    def __init__(
        self,
        number: int,
        runs: Sequence[Planned],
        judge: Judge,
        value_of: Callable[[Planned], float],
        jobs_of: Callable[[Sequence[Planned]], Sequence[Job]],
        placement: Placement,
        say: Say,
    ) -> None:
        self.number, self.runs, self.judge = number, runs, judge
        self._value_of, self._jobs_of, self._placement, self._say = value_of, jobs_of, placement, say
        self.values: list[float] = []
        """Values of the seeds that are finished."""
        self._progress = Progress(runs[0].folder.path)
        self._best = -math.inf
        self._errors: list[MtmetaError] = []
        self._crashes: list[BaseException] = []
        self._kills = 0
        self._given_up = self._asked = False
        self._start()

    def _start(self) -> None:
        self._stop = StopRequest()
        self._errors.clear()
        waiting: list[Planned] = []
        try:
            waiting += [run for run in self.runs if not is_finished(run)]
        except MtmetaError as error:  # what lies there is no run of this trial, or is damaged
            self._errors.append(error)
        jobs = self._jobs_of(waiting)
        self._thread = threading.Thread(target=self._work, args=(jobs, self._stop), daemon=True)
        self._thread.start()

    def _work(self, jobs: Sequence[Job], stop: StopRequest) -> None:
        def failed(job: Job, error: MtmetaError) -> None:
            self._errors.append(error)
            stop.signal = stop.signal or FAILURE  # the seeds after it say nothing any more

        try:
            run_planned(jobs, placement=self._placement, say=self._say, failed=failed, stop=stop)
        except Stopped:
            pass
        except BaseException as error:  # told by whoever looks at the trial
            self._crashes.append(error)

    def ask_to_stop(self, signal: str) -> None:
        """Have its runs stop between two steps; the trial goes on from there when it is taken up again."""
        self._asked = True
        self._stop.signal = self._stop.signal or signal

    def wait(self) -> None:
        """Wait until nothing of it runs any more."""
        self._thread.join()

    @property
    def was_stopped(self) -> bool:
        """Return whether nothing of it runs any more because it was asked to stop."""
        return self._asked and not self._thread.is_alive()

    def look(self) -> Outcome | None:
        """Return how it ended; None as long as it runs, and where it was asked to stop.

        Raises an error that is no fault of the trial's settings: the trial goes on once that is mended.
        """
        ended = not self._thread.is_alive()  # before the values are looked at: what comes later is seen next time
        try:
            self._advance()
        except MtmetaError as error:
            if isinstance(error, MachineError) and not isinstance(error, OutOfMemory):
                raise
            self._errors.append(error)
            self._stop.signal = self._stop.signal or FAILURE
        if not ended:
            return None
        for crash in self._crashes:
            raise crash
        if self._given_up:
            over_seeds = self.judge.kind == "wilcoxon"
            value = fmean(self.values) if over_seeds else list(self.judge.values.values())[-1]
            return self._outcome("pruned", value)
        if len(self.values) == len(self.runs):
            check_data(self.runs)
            return self._outcome("complete", fmean(self.values))
        if self._errors:
            return self._failure()
        if not self._asked:
            raise MachineError(f"trial {self.number}", "ended without a result; run the same command again")
        return None

    def _advance(self) -> None:
        """Take in what is new: evaluations of the seed at hand, then its value, then those of the next."""
        while not self._given_up and len(self.values) < len(self.runs):
            run, done = self.runs[len(self.values)], len(self.values)
            finished = os.path.lexists(run.folder.summary) and is_finished(run)  # before its last events are read
            if self.judge.kind != "wilcoxon":
                for share, value in self._progress.new():
                    self._best = max(self._best, value if value is not None else -math.inf)
                    if share == SHARES or not math.isfinite(self._best):
                        continue  # what the run came to is said by its summary
                    if self._report(done * SHARES + share, fmean([*self.values, self._best])):
                        return
            if not finished:
                return
            value = self._value_of(run)
            self.values.append(value)
            last = len(self.values) == len(self.runs)
            if self.judge.kind == "wilcoxon":
                self._report(done, value, last=last)
            else:
                self._report((done + 1) * SHARES, fmean(self.values), last=last)
            if not last:
                self._progress, self._best = Progress(self.runs[done + 1].folder.path), -math.inf

    def _report(self, step: int, value: float, *, last: bool = False) -> bool:
        """Report a value; return whether the trial is given up, for which the `last` one comes too late."""
        self._given_up = self.judge.gives_up(step, value) and not last
        if self._given_up:
            self._stop.signal = self._stop.signal or PRUNING
        return self._given_up

    def _failure(self) -> Outcome | None:
        """Return the outcome of a trial that cannot go on; None where it is tried again. Raises what is not its own."""
        error = self._errors[0]
        if isinstance(error, RunKilled):
            self._kills += 1
            if self._kills < KILLS and not self._asked:
                self._say(f"{error}; it goes on")
                self._start()
                return None
        elif isinstance(error, MachineError) and not isinstance(error, OutOfMemory):
            raise error
        return self._outcome("failed", None, reason=str(error))

    def _outcome(self, state: Literal["complete", "pruned", "failed"], value: float | None, **facts: Any) -> Outcome:
        return Outcome(state, value, self.judge.values, self.judge.marks, {"seeds": self.values, **facts})
