"""A study under way on stderr: one live display of its runs in a terminal, else a line for each run that ends."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from mtmeta.core.errors import MtmetaError
from mtmeta.core.reports.terminal.plan import duration
from mtmeta.core.run.directory import RunDir
from mtmeta.core.studies.processes.pool import Job
from mtmeta.core.studies.processes.progress import RunProgress
from mtmeta.core.studies.study import StudyWatcher
from mtmeta.core.wording import plural, safe

if TYPE_CHECKING:
    from rich.live import Live

EVERY = 0.5  # seconds between two looks at how far runs are
LABEL, BAR = 32, 24  # columns
LEAST = 0.02
"""Share of a run from which on it says how long the whole will take."""


@dataclass
class _Run:
    """A run that is under way."""

    job: Job
    began: float
    progress: RunProgress
    first: float
    """How far it was when it was started: more than 0 where it goes on from a checkpoint."""

    def whole(self, now: float) -> float | None:
        """Return the seconds that all of the run takes, by what it did till now; None while too little is known."""
        done = self.progress.share - self.first
        return (now - self.began) / done if done >= LEAST else None


@dataclass
class StudyView(StudyWatcher):
    """What a study says while it runs, to be entered around it."""

    clock: Callable[[], float] = time.monotonic
    total: int = 0
    done: int = 0
    failed: int = 0
    at_once: int = 1
    _running: dict[str, _Run] = field(default_factory=dict)
    _took: dict[str, list[float]] = field(default_factory=dict)
    """Seconds that runs took that went from beginning to end here, by row."""
    _said: set[str] = field(default_factory=set)
    _live: Live | None = None
    _looked: float = 0.0

    @contextmanager
    def open(self) -> Iterator[StudyView]:
        """Show the display, if there is a terminal, until the study ends."""
        console = Console(stderr=True, highlight=False, markup=False, emoji=False)
        if not console.is_terminal or console.is_dumb_terminal:
            yield self
            return
        from rich.live import Live

        with Live(console=console, get_renderable=self.picture, refresh_per_second=4, transient=True) as live:
            self._live = live
            try:
                yield self
            finally:
                self._live = None

    # -- what the study tells

    def say(self, text: str) -> None:
        """Print a line, above the display if there is one."""
        self._line(Text(safe(text, 1000)))

    def planned(self, total: int, finished: int, at_once: int) -> None:
        """Take how many runs there are, and how many of them were finished before."""
        self.total, self.done, self.at_once = total, finished, at_once

    def started(self, job: Job) -> None:
        progress = RunProgress(job.folder)
        progress.look()
        self._running[job.label] = _Run(job, self.clock(), progress, progress.share)

    def said(self, job: Job, line: str) -> None:
        """Pass on what a run warns of, once for all runs; how far it is the display knows."""
        if line.startswith(("warning: ", "error: ")) and line not in self._said:
            self._said.add(line)
            self._line(Text(f"{job.label}: {safe(line, 1000)}", style="yellow"))

    def ended(self, job: Job, error: MtmetaError | None) -> None:
        run = self._running.pop(job.label, None)
        took = self.clock() - run.began if run is not None else 0.0
        if run is not None:
            run.progress.look()
        if error is not None:
            self.failed += 1
            self._line(
                Text(f"{job.label}: failed after {duration(took)}: {safe(error.message, 1000)}", style="bold red")
            )
            return
        self.done += 1
        if run is not None and not run.first:
            self._took.setdefault(_row(job), []).append(took)
        self._line(Text(f"{job.label}: done in {duration(took)}{_scored(job)} ({self._where()})"))

    def put_back(self, job: Job) -> None:
        self._running.pop(job.label, None)

    def look(self) -> None:
        now = self.clock()
        if now - self._looked >= EVERY:
            self._looked = now
            for run in self._running.values():
                run.progress.look()

    # -- what it looks like

    def left(self) -> float | None:
        """Return the seconds until all runs are done; None while nothing is known of any.

        A run takes as long as those of its recipe took, or as the one under way would, or as others do.
        """
        now = self.clock()
        wholes = {label: run.whole(now) for label, run in self._running.items()}
        known = [fmean(seconds) for seconds in self._took.values()]
        known += [whole for whole in wholes.values() if whole is not None]
        if not known:
            return None
        usual, seconds = fmean(known), 0.0
        longest = 0.0
        for label, run in self._running.items():
            whole = wholes[label] or self._usual(_row(run.job), usual)
            rest = whole * (1 - run.progress.share)
            seconds, longest = seconds + rest, max(longest, rest)
        waiting = max(0, self.total - self.done - self.failed - len(self._running))
        return max(longest, (seconds + waiting * usual) / max(1, self.at_once))

    def _usual(self, row: str, otherwise: float) -> float:
        return fmean(self._took[row]) if row in self._took else otherwise

    def picture(self) -> Any:
        """Return the display: a line on the whole, and a bar for each run that is under way."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        if self.done + self.failed >= self.total:
            return Text("")  # nothing is planned yet, or left
        now, bars = self.clock(), Table.grid(padding=(0, 1))
        for _ in range(4):
            bars.add_column(no_wrap=True, overflow="ellipsis")
        for label, run in list(self._running.items()):
            progress, whole = run.progress, run.whole(now)
            step = f"{progress.step}/{progress.steps}" if progress.steps else "begins"
            rest = f", {duration(whole * (1 - progress.share))} left" if whole else ""
            if progress.share >= 1:
                step, rest = "is scored", ""
            bar = ProgressBar(total=1.0, completed=progress.share, width=BAR)
            bars.add_row(Text(safe(label, LABEL)), bar, Text(f"{progress.share:4.0%}"), Text(f"{step}{rest}"))
        return Group(bars, Text(self._where(), style="bold"))

    def _where(self) -> str:
        left = self.left() if self.done + self.failed < self.total else None
        failed = f", {self.failed} failed" if self.failed else ""
        rest = f", {duration(left)} left" if left is not None else ""
        return f"{self.done} of {plural(self.total, 'run')} done{failed}{rest}"

    def _line(self, text: Text) -> None:
        if self._live is not None:
            self._live.console.print(text)
        elif sys.stderr is not None:
            print(text.plain, file=sys.stderr, flush=True)


def _row(job: Job) -> str:
    """Return the recipe of a run."""
    return job.label.rpartition(" seed ")[0]


def _scored(job: Job) -> str:
    """Return what a finished run came to, in words."""
    with contextlib.suppress(MtmetaError):  # of a damaged summary the comparison tells
        summary = RunDir(job.folder).finished()
        if summary is not None:
            what = "mean" if len(summary.tasks) > 1 else next(iter(summary.tasks.values())).metric
            return f", {safe(what)} {summary.mean:.4f}"
    return ""
