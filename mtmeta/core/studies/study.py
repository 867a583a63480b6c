"""The runs of a comparison, from the first to its table; with looks on the way, until each row is decided."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mtmeta.core.errors import Incomplete, MtmetaError, Problems, UsageError, raise_all
from mtmeta.core.registry.registry import Registry
from mtmeta.core.run.fetch import splits_read, wanted
from mtmeta.core.run.request import RunRequest
from mtmeta.core.storage.artifacts import by_name, remedy
from mtmeta.core.storage.sources import Sources
from mtmeta.core.studies.comparable import Planned, check_data
from mtmeta.core.studies.comparison import MEAN, comparison, signs_of
from mtmeta.core.studies.launching.placement import Placement
from mtmeta.core.studies.planned_run import check_unedited, is_finished, job_of
from mtmeta.core.studies.processes.pool import Job, RunWatcher
from mtmeta.core.studies.protocol import Protocol
from mtmeta.core.training.statistics import Look

Say = Callable[[str], None]


class StudyWatcher(RunWatcher):
    """Is told what becomes of a study and its runs."""

    def planned(self, total: int, finished: int, at_once: int) -> None:
        """Take how many runs there are at most, how many were finished before, and how many run at a time."""


class Study:
    """The runs of a comparison, from the first to its table."""

    def __init__(
        self,
        plan: Mapping[str, Sequence[Planned]],
        protocol: Protocol,
        registry: Registry,
        request: RunRequest,
        placement: Placement,
        say: Say,
        watcher: StudyWatcher | None = None,
    ) -> None:
        self.plan, self.protocol, self.registry, self.request = plan, protocol, registry, request
        self.placement, self.say, self.watcher = placement, say, watcher
        self.runs = [run for position in zip(*plan.values(), strict=True) for run in position]  # first seeds first
        self.waiting = {run.folder.path: run for run in self.runs if not is_finished(run)}
        self.errors: dict[Path, MtmetaError] = {}

    @property
    def finished(self) -> int:
        """Return how many of the runs were finished before."""
        return len(self.runs) - len(self.waiting)

    def check(self, recipes: Sequence[str | Path]) -> None:
        """Check and fetch what the runs need before the first of them begins, so that no two of them wait for it."""
        if self.protocol.until_interval and not signs_of(self.runs[0].recipe, self.registry, self.protocol.tasks)[MEAN]:
            message = "compares means, and these metrics point in different directions; leave it out"
            raise UsageError("--until", message)
        most = "at most " if self.protocol.until_interval else ""
        self.say(f"{most}{len(self.runs)} runs, {self.finished} of them finished already, in {self.request.out}")
        if self.watcher is not None:
            self.watcher.planned(len(self.runs), self.finished, self.placement.at_once)
        check_data(self.runs)
        needs = (wanted(run.recipe, splits_read(run.recipe)).values() for run in self.waiting.values())
        wants = by_name(chain(*chain(*needs)))
        Sources(watcher=self.request.watcher, remedy=remedy(*recipes)).fetch(wants.values())

    def run(self, looks: Sequence[Look], notes: Sequence[str] = ()) -> dict[str, Any]:
        """Run all seeds, those of a row until a look decides on it, and compare; `notes` come first under the table.

        A row of which a run failed gets no further ones, the others go on. Raises Incomplete in the end.
        """
        ended: dict[str, Look] = {}
        table: dict[str, Any] = {}
        for look in looks:
            rows = {name: row[: ended[name].seeds if name in ended else look.seeds] for name, row in self.plan.items()}
            failed = self._left_out()
            self._run([run for name, row in rows.items() if name not in failed for run in row])
            failed = self._left_out()
            complete = {name: row for name, row in rows.items() if name not in failed}
            others = {name: ended.get(name, look) for name in complete if name not in self.protocol.baselines}
            table = self._table(complete, others if self.protocol.until_interval else {}, notes)
            if not self.protocol.until_interval or self.protocol.baselines[0] in failed:
                break  # without the baseline nothing more can be decided
            for row in table["rows"]:
                if row["name"] in others and row["name"] not in ended and self._is_decided(row, look, looks[-1]):
                    ended[row["name"]] = look
            if ended.keys() >= others.keys():
                break
        if self.errors:
            raise Incomplete(list(self.errors.values()), table | {"left_out": self._left_out()})
        return table

    def submit(self) -> dict[str, Any]:
        """Submit the runs that are not finished as jobs, and wait for none; return what was submitted."""
        jobs = [job_of(run, self.request) for run in self.waiting.values()]
        submitted = self.placement.submit(jobs, Path(self.request.out or "."), self.say)
        return {
            "out": str(self.request.out or "."),
            "submitted": submitted,
            "finished": self.finished,
            "runs": len(self.runs),
        }

    def _is_decided(self, row: Mapping[str, Any], look: Look, last: Look) -> bool:
        """Return whether a row's interval of the mean excludes 0, and say so where it spares seeds."""
        delta = row["columns"][MEAN]["delta"]
        low, high = delta["low"], delta["high"]
        decided = low is not None and high is not None and (low > 0 or high < 0)
        if decided and look.seeds < last.seeds:
            interval = f"[{low:+.4f}, {high:+.4f}] at level {look.level:.4f}"
            text = f"{row['name']}: {delta['value']:+.4f} {interval} beside {self.protocol.baselines[0]}"
            self.say(f"{text}; no further seeds after {look.seeds}")
        return decided

    def _run(self, runs: Sequence[Planned]) -> None:
        """Run those that are not finished, the first seeds of all rows first."""
        wanted_here = {run.folder.path for run in runs}
        waiting = {path: run for path, run in self.waiting.items() if path in wanted_here}
        jobs = [job_of(run, self.request) for run in waiting.values()]

        def ended(job: Job) -> None:
            check_unedited(waiting[job.folder])
            check_data(self.runs)

        def failed(job: Job, error: MtmetaError) -> None:
            self.errors[job.folder] = error

        calls: dict[str, Any] = {"say": self.say, "ended": ended, "failed": failed, "stop": self.request.stop}
        if self.watcher is not None:
            calls["watcher"] = self.watcher
        self.placement.run(jobs, Path(self.request.out or "."), **calls)
        for path in waiting:
            del self.waiting[path]

    def _left_out(self) -> dict[str, str]:
        """Return of each row of which a run failed why it is left out."""
        left: dict[str, str] = {}
        for name, row in self.plan.items():
            reasons = [str(self.errors[run.folder.path]) for run in row if run.folder.path in self.errors]
            if reasons:
                left[name] = reasons[0] + (f" (and {len(reasons) - 1} more of its runs)" if len(reasons) > 1 else "")
        return left

    def _table(
        self, rows: Mapping[str, Sequence[Planned]], looks: Mapping[str, Look], notes: Sequence[str]
    ) -> dict[str, Any]:
        """Compare the rows of which no run failed. Raises the errors of the others where there is nothing to show."""
        problems = list(self.errors.values())
        if not rows:
            raise_all(problems)
        try:
            table = comparison(rows, self.protocol.within(list(rows)), self.registry, looks)
        except MtmetaError as error:
            if not problems:
                raise
            raise Problems([*problems, error]) from error
        return table | {"notes": [*notes, *table["notes"]]}
