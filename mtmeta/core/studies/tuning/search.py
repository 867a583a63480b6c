"""The loop of a search: take a trial, watch it, note its outcome, until as many as are wanted have ended.

A trial belongs to the process that has locked its folder. One that is running in the journal and locked by nobody was
left by a kill: whoever comes first goes on with it. What is decided is decided under the study's lock.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtmeta.core.errors import DataError, MtmetaError, RecipeError, RunInUse, UsageError
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.request import RunRequest
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.atomic import remove_entry
from mtmeta.core.storage.disk import disk_errors, write_file
from mtmeta.core.storage.lock import lock_folder
from mtmeta.core.studies.comparable import Planned
from mtmeta.core.studies.launching.placement import Placement
from mtmeta.core.studies.planned_run import job_of, same_carving
from mtmeta.core.studies.processes.pool import Job
from mtmeta.core.studies.tuning.journal import Journal
from mtmeta.core.studies.tuning.sampling import Judge, as_seen, settings_of, suggest
from mtmeta.core.studies.tuning.settings import Recipes
from mtmeta.core.studies.tuning.space import text_of
from mtmeta.core.studies.tuning.trial import Outcome, Running
from mtmeta.core.wording import safe

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

Say = Callable[[str], None]
POLL = 0.1  # seconds between looks at the trials under way
CLAIM = 0.5  # seconds between looks at what else there is to do
HOPELESS = 5
"""Trials that all fail, at the beginning, after which a search ends."""
WEIGHTS = ("checkpoints", "encoder")


def folder_of(study: Path, number: int) -> Path:
    """Return the folder of a trial."""
    return study / f"trial-{number:04d}"


class Search:
    """This process's part in a study."""

    def __init__(
        self,
        recipes: Recipes,
        plan: Mapping[str, Any],
        journal: Journal,
        request: RunRequest,
        *,
        placement: Placement,
        trials: int,
        keep_weights: bool,
        say: Say,
    ) -> None:
        self.recipes, self.plan, self.journal, self.request = recipes, plan, journal, request
        self.placement, self.trials, self.keep_weights, self.say = placement, trials, keep_weights, say
        self.running: list[tuple[Running, ExitStack]] = []
        self._looked = -math.inf

    def run(self, jobs: int) -> None:
        """Make trials, `jobs` at a time, until all have ended, in this process or another.

        Raises Stopped, with every trial where it can go on from, if a signal came.
        """
        stop = self.request.stop or StopRequest()
        ended = sum(trial.state.is_finished() for trial in self.journal.trials())
        self.say(f"{self.trials} trials, {ended} of them ended already, in {self.journal.folder}")
        with stop.deferred():
            try:
                more = True
                while self.running or (more and not stop.signal):
                    self._look()
                    stop.where = f"with {self._ended()} of {self.trials} trials done"
                    if stop.signal:
                        self._ask_to_stop(stop.signal)
                    elif more and len(self.running) < jobs:
                        more = self._claim()
                    time.sleep(POLL)
            except KeyboardInterrupt:
                raise  # a second Ctrl-C: nobody waits, and the runs end with this process
            except BaseException:
                self._leave()
                raise
        stop.check()

    def _ended(self) -> int:
        return sum(trial.state.is_finished() for trial in self.journal.trials())

    def _ask_to_stop(self, signal: str) -> None:
        for trial, _ in self.running:
            trial.ask_to_stop(signal)

    def _leave(self) -> None:
        """Have all runs stop between two steps, and wait for them."""
        self._ask_to_stop("SIGTERM")
        for trial, stack in self.running:
            trial.wait()
            stack.close()
        self.running.clear()

    # -- what has ended

    def _look(self) -> None:
        """Look at each trial under way; note what has ended, and let go of what was asked to stop."""
        for pair in list(self.running):
            trial, stack = pair
            outcome = trial.look()
            if outcome is not None:
                self._check_data(trial.runs)
                self._note(trial.number, outcome)
            elif not trial.was_stopped:
                continue
            self.running.remove(pair)
            stack.close()

    def _check_data(self, runs: Sequence[Planned]) -> None:
        """Raise DataError if runs read files of other contents than the first run of the study did.

        Of a task for which the space chooses training files, these differ of themselves.
        """
        first = self.journal.folder.glob(f"trial-*/seed-{self.plan['seeds'][0]}")
        begun = next((folder for folder in map(RunDir, sorted(first)) if folder.recipe.exists()), None)
        if begun is None:
            return
        before, chosen = begun.lock()["data"], {one.key for one in self.recipes.space.dimensions}
        for run in (run for run in runs if run.has_begun):
            for name, sha256 in run.folder.lock()["data"].items():
                task = name.removesuffix("-train")
                if before.get(name, sha256) != sha256 and not {f"tasks.{task}.train", f"tasks.{task}"} & chosen:
                    message = f"read another {name} than {begun.path.parent.name} (sha256 {str(sha256)[:6]}..)"
                    raise DataError(str(run.folder.path), f"{message}; put the file back, and remove this run")

    def _note(self, number: int, outcome: Outcome) -> None:
        with self.journal.locked():
            self.journal.tell(
                number, outcome.state, outcome.value, course=outcome.course, marks=outcome.marks, facts=outcome.facts
            )
            trials = self.journal.trials()
            if not self.keep_weights:
                self._drop_weights(trials)
        self._tell_of(trials, number, outcome)
        self._check_hope(trials)

    def _check_hope(self, trials: Sequence[FrozenTrial]) -> None:
        """Raise RecipeError where the first trials all failed: the settings are not what is wrong."""
        first = trials[: min(HOPELESS, self.trials)]
        if len(first) == min(HOPELESS, self.trials) and all(one.state.name == "FAIL" for one in first):
            reason = safe(str(first[-1].user_attrs.get("reason", "")), 300)
            message = f"all of the first {len(first)} trials failed, the last one: {reason}"
            raise RecipeError(self.recipes.space.name, f"{message}; mend it and choose another --out")

    def _tell_of(self, trials: Sequence[FrozenTrial], number: int, outcome: Outcome) -> None:
        settings = ", ".join(f"{key}={shown(value)}" for key, value in trials[number].params.items())
        what = {
            "complete": f"{outcome.value:.4f}" if outcome.value is not None else "",
            "pruned": f"given up at {outcome.value:.4f}" if outcome.value is not None else "given up",
            "failed": f"failed: {outcome.facts.get('reason', '')}",
        }[outcome.state]
        leader = best_of(trials)
        beside = f"; best so far {leader.value:.4f}, trial {leader.number}" if leader is not None else ""
        self.say(f"trial {number}: {what} ({safe(settings, 300)}){beside}")

    def _drop_weights(self, trials: Sequence[FrozenTrial]) -> None:
        """Remove the weights of trials that have ended, but for those of the best."""
        leader = best_of(trials)
        for trial in trials:
            if not trial.state.is_finished() or (leader is not None and trial.number == leader.number):
                continue
            place = folder_of(self.journal.folder, trial.number)
            for seed in self.plan["seeds"]:
                for name in WEIGHTS:
                    if (weights := place / f"seed-{seed}" / name).is_dir():
                        with disk_errors(weights, "cannot be removed"):
                            remove_entry(weights, self.journal.folder)

    # -- what there is to do

    def _claim(self) -> bool:
        """Begin or take up a trial if there is one; return whether there may be more to do, now or later."""
        now = time.monotonic()
        if now - self._looked < CLAIM:
            return True
        self._looked = now
        with self.journal.locked():
            trials = self.journal.trials()
            mine = {trial.number for trial, _ in self.running}
            others = [trial for trial in trials if not trial.state.is_finished() and trial.number not in mine]
            for trial in others:
                if self._begin(trial.number, trials, trial.params):
                    return True
            number = len(trials)
            if number >= self.trials:
                return bool(others) or bool(mine)
            known = max(0, number - int(self.plan["in_flight"]) + 1)
            if all(trial.state.is_finished() for trial in trials[:known]):
                seen = as_seen(trials, number, int(self.plan["in_flight"]))
                values = suggest(self.recipes.space, self.recipes.base.seed, seen)
                self._looked = -math.inf  # the next may be begun at once
                self._add(number, trials, values)
        return True

    def _add(self, number: int, trials: Sequence[FrozenTrial], values: Mapping[str, Any]) -> None:
        """Add a trial to the journal and begin it; one whose settings give no recipe has failed."""
        space = self.recipes.space
        try:
            self.recipes.trial(settings_of(space, values), f"trial-{number:04d}")
        except MtmetaError as error:
            self.journal.add(space, values, str(error))
            trials = self.journal.trials()
            self._tell_of(trials, number, Outcome("failed", None, {}, facts={"reason": str(error)}))
            self._check_hope(trials)
            return
        self.journal.add(space, values)
        self._begin(number, trials, values)

    def _begin(self, number: int, trials: Sequence[FrozenTrial], values: Mapping[str, Any]) -> bool:
        """Begin a trial, or go on with it, unless another process has it; return whether this one has it now."""
        with ExitStack() as stack:
            try:
                stack.enter_context(lock_folder(folder_of(self.journal.folder, number), self.request.warn))
            except RunInUse:
                return False
            judge = Judge(
                self.plan["pruner"], as_seen(trials, number, int(self.plan["in_flight"])), len(self.plan["seeds"])
            )
            try:
                runs = self._runs(number, values)
            except UsageError as error:  # a trial that was left, and by now is no recipe: as a plugin has changed
                self.journal.tell(number, "failed", None, course={}, marks={}, facts={"reason": str(error)})
                self.say(f"trial {number}: failed: {error}")
                return True
            trial = Running(number, runs, judge, self._value, self._jobs, self.placement, self.say)
            self.running.append((trial, stack.pop_all()))
        return True

    def _runs(self, number: int, values: Mapping[str, Any]) -> list[Planned]:
        """Write the recipe of a trial, and plan its runs."""
        folder = folder_of(self.journal.folder, number)
        path = folder / "recipe.yaml"
        recipe = self.recipes.trial(settings_of(self.recipes.space, values), folder.name)
        write_file(path, self.recipes.text(recipe), folder)
        runs = []
        for seed in self.plan["seeds"]:
            overrides = [f"seed={seed}", *same_carving(recipe)]
            one = load_recipe(path, self.recipes.registry, overrides=overrides, data_root=recipe.data_root)
            runs.append(Planned(path, one, RunDir(folder / f"seed-{seed}")))
        return runs

    def _jobs(self, runs: Sequence[Planned]) -> list[Job]:
        """Return the commands of runs, each with as many threads as the study began with."""
        request = replace(self.request, overrides=(), data_root=self.recipes.base.data_root)
        jobs = [job_of(run, request) for run in runs]
        return [replace(job, threads=job.threads or self.plan["threads"]) for job in jobs]

    def _value(self, run: Planned) -> float:
        """Return the value of a finished run, higher is better: that which selects, of its best weights on dev."""
        summary = run.folder.finished()
        if summary is None or summary.split != "dev":
            raise RecipeError(str(run.folder.path), "is no finished run on dev; choose another --out")
        select = run.recipe.evaluation.select
        names = [select] if select in summary.tasks else list(summary.tasks)
        signed = []
        for name in names:
            score = summary.tasks[name]
            metric = self.recipes.registry.get("metric", score.metric, run.label)
            signed.append(score.value if metric.greater_is_better else -score.value)
        return math.fsum(signed) / len(signed)


def best_of(trials: Sequence[FrozenTrial]) -> FrozenTrial | None:
    """Return the complete trial with the highest value, of several the first; None before one is complete."""
    complete = [trial for trial in trials if trial.state.name == "COMPLETE"]
    return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)


def shown(value: Any) -> str:
    """Return a value for people: a number to four digits, a choice by its text."""
    return f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else text_of(value)
