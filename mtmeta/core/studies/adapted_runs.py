"""`mtmeta adapt --keep`: adapted models as run directories, complete or not there, for every command that takes a run.

Of every run and task one: the first draw of the largest number of shots, whatever any draw scored.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtmeta.core.api.events import Evaluated, RunFinished, RunStarted
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.subsets import FewShots, sample_path
from mtmeta.core.errors import MtmetaError, UsageError
from mtmeta.core.recipe.reader import NAME
from mtmeta.core.recipe.sections import BudgetOptions, Recipe
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.session import Session, data_loaded
from mtmeta.core.storage.disk import fingerprint
from mtmeta.core.storage.staging import Destination, check_way, identity
from mtmeta.core.studies.fine_tune import Tuned
from mtmeta.core.training.model import MultiTaskModel

FIX = "choose another folder with --keep"


@dataclass(frozen=True)
class _Kept:
    """A run that is to be kept, and its place."""

    place: _RunDestination
    recipe: Recipe
    lock: dict[str, Any]
    train: Dataset


@dataclass(eq=False)
class Keeper:
    """Keeps adapted models in `folder`, or none where that is None."""

    folder: str | Path | None
    session: Session
    """Of the recipe of new tasks."""
    runs: Mapping[str, tuple[Session, int]]
    """The adapted ones, each with the step of its weights."""
    head: str
    shots: int
    say: Callable[[str], None]

    def __post_init__(self) -> None:
        self._plan: dict[tuple[str, str], _Kept] = {}
        self._parents = {name: _parent(name, *run) for name, run in self.runs.items() if self.folder is not None}

    def plan(self, shots: FewShots, test: Dataset) -> None:
        """Plan the runs to keep of a task. Raises UsageError if something else is in its place."""
        for start, parent in self._parents.items():
            assert self.folder is not None
            run, task = self.runs[start][0], test.task
            draw = shots.first(self.shots)
            few = shots.draw(self.shots, draw)
            train = few if shots.fixed else shots.train
            title = f"{start}-{task}-{self.shots}"
            recipe = _recipe(self.session, run.recipe, task, title)
            if shots.fixed:
                options = recipe.tasks[task]
                options = replace(options, train=sample_path(options.train, self.shots, draw))
                recipe = replace(recipe, tasks={task: options})
            files = {f"{task}-train": train.sha256, f"{task}-{test.split}": test.sha256}
            lock = self.session.lock(recipe, files, {task: len(test)} if test.split == "dev" else {})
            lock["backbone"] = run.folder.lock().get("backbone")
            lock["adapted"] = {
                **parent,
                "head": self.head,
                "shots": self.shots,
                "draw": draw + 1,
                "seed": recipe.seed,
                "examples": len(few),
                "ids": list(few.ids),
            }
            place = _RunDestination(Path(self.folder) / title, _identity(lock), "run", fresh=False)
            if any(place.path == kept.place.path for kept in self._plan.values()):
                raise UsageError("--keep", f"two runs and tasks would both be kept as {title}; adapt them one by one")
            place.check()
            self._plan[start, task] = _Kept(place, recipe, lock, train)

    def keep(self, start: str, model: MultiTaskModel, few: Dataset, test: Dataset, tuned: Tuned) -> list[str]:
        """Write the run of an adapted model; its path, if it is to be kept. One that is there is left as it is."""
        if (kept := self._plan.get((start, few.task))) is None:
            return []
        path = str(kept.place.path)
        if kept.place.is_there():
            self.say(f"{path} is kept already")
        else:
            with kept.place.staged() as draft:
                self._write(RunDir(draft.folder), kept, self.runs[start][0], model, test, tuned)
            self.say(f"kept {path}")
        return [path]

    def _write(
        self, folder: RunDir, kept: _Kept, run: Session, model: MultiTaskModel, test: Dataset, tuned: Tuned
    ) -> None:
        recipe, name, steps, seconds = kept.recipe, test.task, len(tuned.steps), round(tuned.seconds, 2)
        session = Session(recipe, run.registry, folder, run.device, run.warn, self.session.sources)
        session.backbone = self.session.backbone
        parent = run.folder.backbone
        files = {str(path.relative_to(parent)): path.read_bytes() for path in parent.rglob("*") if path.is_file()}
        folder.begin(recipe, kept.lock, files)
        session.checkpoints([name]).save_best(steps, model.state_dict(), ["best"])
        ((scored, _),) = session.score(model, test).values()
        summary = session.summary(
            {name: scored},
            steps=steps,
            seconds=seconds,
            total_seconds=seconds,
            examples=tuned.examples,
            skipped_steps=0,
            sampling=tuned.usage,
            adapted={key: value for key, value in kept.lock["adapted"].items() if key != "ids"},
        ).moved(kept.place.path)
        started = RunStarted(**session.start_facts(model.parameters()))
        evaluated = Evaluated(
            group=name,
            step=steps,
            split=test.split,
            tasks={name: scored.json()},
            selected=scored.value if session.metrics[scored.metric].greater_is_better else -scored.value,
            best=True,
            sampling=tuned.usage,
        )
        beginning = [started, data_loaded(kept.train), data_loaded(test)]
        events = [*beginning, *tuned.steps, evaluated, RunFinished(summary=summary.plain())]
        folder.write("events.jsonl", "".join(event.json() + "\n" for event in events))
        summary.write(folder.summary)


def origin(lock: Mapping[str, Any]) -> list[str]:
    """Return a line about the run that a kept one was adapted from, by its lock; nothing if it is no kept run."""
    adapted = lock.get("adapted")
    if not isinstance(adapted, dict):
        return []
    shots, examples = adapted.get("shots"), adapted.get("examples")
    few = f"at most {shots} examples of each class ({examples} in all, of the training file below)"
    return [f"adapted from the run {adapted.get('run')}, weights sha256 {adapted.get('weights')}, with {few}"]


def _parent(name: str, run: Session, step: int) -> dict[str, Any]:
    """Return the facts of a run that the lock of a kept run holds."""
    folder = run.checkpoints(run.groups[0]).folder
    best = folder / f"best-{step:08d}"  # not the link, which a run that is under way may move
    weights = (best if best.is_dir() else folder / "best") / "model.safetensors"
    recipe, sha256 = run.folder.lock()["recipe"], str(fingerprint(weights)["sha256"])
    return {"run": name, "recipe": recipe, "step": step, "weights": sha256}


def _recipe(session: Session, parent: Recipe, task: str, title: str) -> Recipe:
    """Return the recipe of a run of the one task, to be trained, loaded and scored as the adaptation was.

    Its encoder is that of the parent, it is evaluated once, at the end, and other options are left at their defaults.
    """
    recipe, get = session.recipe, session.registry.get
    rates = recipe.optimizer.head_lr
    if isinstance(rates, dict):
        rates = {name: rate for name, rate in rates.items() if name == task} or None
    name = re.sub(r"[^A-Za-z0-9._-]", "_", title)[-128:]
    return replace(
        recipe,
        name=name if NAME.fullmatch(name) else f"run{name}"[:128],
        backbone=parent.backbone,
        tasks={task: recipe.tasks[task]},
        data=replace(recipe.data, train_fraction=1.0),
        sampler=get("sampler", "uniform", "sampler")(),
        algorithm=get("algorithm", "individual", "algorithm")(),
        optimizer=replace(recipe.optimizer, head_lr=rates),
        budget=BudgetOptions(),
        evaluation=replace(recipe.evaluation, every=None, select_on=recipe.evaluation.report_on, select="mean"),
    )


def _identity(lock: Mapping[str, Any]) -> dict[str, Any]:
    """Return the part of a lock that makes two kept runs the same one."""
    return {**identity(lock), "adapted": lock.get("adapted")}


class _RunDestination(Destination):
    """Where a kept run goes: an empty place, or that of the very same run."""

    def check(self) -> None:
        """Raise UsageError if something else is there."""
        nearest = next(place for place in (self.path, *self.path.absolute().parents) if os.path.lexists(place))
        if not nearest.is_dir() or self.path.is_symlink():
            raise UsageError(str(nearest), f"is a {'link' if nearest.is_symlink() else 'file'}; {FIX}")
        check_way(self.path, FIX)
        if self.path.exists() and any(self.path.iterdir()) and not self.is_there():
            raise UsageError(f"{self.path}/", f"holds something else than this adaptation; {FIX}")

    def is_there(self) -> bool:
        """Return whether this very run was kept before."""
        folder = RunDir(self.path)
        try:
            return folder.finished() is not None and _identity(folder.lock()) == self.run
        except MtmetaError:
            return False
