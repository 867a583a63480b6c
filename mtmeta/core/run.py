"""`mtmeta run`: recipe -> registry -> parts -> training, group by group -> best weights -> summary."""

from __future__ import annotations

import copy
import resource
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from mtmeta.core.blame import blame, supplier
from mtmeta.core.checkpoint import write_file
from mtmeta.core.contracts import LoadedBackbone
from mtmeta.core.data import Dataset, overlap, subset
from mtmeta.core.errors import PluginError
from mtmeta.core.events import Event, RunFinished, RunStarted, Warned
from mtmeta.core.feed import Feed, check_episode
from mtmeta.core.learner import Learner
from mtmeta.core.machine import fitting_threads
from mtmeta.core.model import MultiTaskModel
from mtmeta.core.recipe import load_recipe
from mtmeta.core.registry import build_registry
from mtmeta.core.rundir import RunDir, make_lock, rewind_events
from mtmeta.core.session import Session, dump_json, pick_device
from mtmeta.core.surroundings import check_launcher
from mtmeta.core.train import Trainer

__all__ = ["run"]


def run(
    recipe_path: str | Path,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    data_root: str | None = None,
    device: str = "auto",
    fresh: bool = False,
    allow_changed_data: bool = False,
    allow_inexact: bool = False,
    block: Sequence[str] = (),
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Train a recipe, evaluate its best weights and return the summary that summary.json holds.

    In a directory that holds an unfinished run of the same recipe, goes on from its newest checkpoint. Raises
    MtmetaError; nothing in the run directory changes unless recipe, data and weights are all in order.
    """
    check_launcher()
    registry = build_registry(block=block, warn=warn)
    recipe = load_recipe(recipe_path, registry, overrides=overrides, data_root=data_root)
    folder = RunDir(Path(out) if out is not None else Path("runs") / recipe.name)
    continued = folder.check_usable(recipe, fresh=fresh)
    if continued and (summary := folder.finished()):
        warn(f"{folder.path} is finished; --fresh trains it again")
        return {**summary, "run": str(folder.path)}  # it may have been moved since
    training = _Training(recipe, registry, folder, pick_device(device), warn)
    training.load()
    with fitting_threads(training.backbone.encoder):
        lock = training.lock()
        if continued:
            folder.check_same(lock, training.files, allow_changed_data=allow_changed_data, allow_inexact=allow_inexact)
        else:
            folder.begin(recipe, lock, training.backbone.files)
        return training.run(continued)


class _Training(Session):
    """A run from its data to its summary."""

    def load(self) -> None:
        """Load weights and data; nothing is written yet but the cache."""
        recipe, evaluated = self.recipe, self.recipe.evaluation
        with blame(recipe.backbone, "backbone"):
            backbone: object = recipe.backbone.load(recipe.seed)
        if not isinstance(backbone, LoadedBackbone):
            what = f"backbone '{recipe.backbone.name}' loaded {type(backbone).__name__}, expected a LoadedBackbone"
            raise PluginError(supplier(recipe.backbone, "backbone"), what)
        self.backbone = backbone
        reported = list(dict.fromkeys((evaluated.select_on, evaluated.report_on)))
        found: dict[tuple[str, str], Dataset] = {}
        for name in recipe.tasks:
            for split in ("train", *reported):
                found[name, split] = self.read_split(name, split)
            for split in reported:
                if common := overlap(found[name, "train"], found[name, split]):
                    total = len(found[name, split])
                    self.notes.append(Warned(f"{name}: {common} of {total} {split} examples also in train"))
        for (name, split), data in found.items():
            if split == "train":
                data = found[name, split] = subset(data, recipe.data.train_fraction, recipe.seed, name)
                needed = recipe.algorithm.episode_batches(recipe.tasks[name])
                check_episode(name, needed, recipe.tasks[name].batch_size, len(data))
            self.note(data)
        self.datasets = found
        self.files = {f"{name}-{split}": (data.file, data.sha256) for (name, split), data in found.items()}

    def lock(self) -> dict[str, Any]:
        """What pins this run down, to be written or compared."""
        hashes = {key: sha256 for key, (_, sha256) in self.files.items()}
        return make_lock(self.recipe, self.registry, hashes, self.backbone.identity, self.device.type)

    def run(self, continued: bool) -> dict[str, Any]:
        """Train every group, then score the best weights."""
        started = time.perf_counter()
        finished: list[dict[str, Any]] = []
        with ExitStack() as stack:
            step = self._rewind() if continued else 0
            handlers = []
            for reporter in self.recipe.reporters:
                with blame(reporter, "reporter"):
                    handlers.append((reporter, stack.enter_context(reporter.open(self.folder.path))))

            def emit(event: Event) -> None:
                for reporter, handle in handlers:
                    with blame(reporter, "reporter"):
                        handle(event)

            for group in self.groups:
                trainer = self._trainer(group, emit)
                if continued:
                    self._resume(trainer)
                if not finished:
                    self._announce(trainer, step, emit)
                trainer.run()
                finished.append(self._finish(trainer))
            summary = self._summarise(finished, time.perf_counter() - started)
            write_file(self.folder.summary, dump_json(summary))
            emit(RunFinished(summary))
        return summary

    def _announce(self, trainer: Trainer, resumed_at: int, emit: Callable[[Event], None]) -> None:
        recipe = self.recipe
        parameters = sum(p.numel() for p in trainer.learner.parameters.values())
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"
        names = list(recipe.tasks)
        what = (recipe.name, recipe.algorithm.name, names, self.groups, device, parameters, resumed_at, time.time())
        emit(RunStarted(*what))
        for note in self.notes:
            emit(note)

    def _trainer(self, group: list[str], emit: Callable[[Event], None]) -> Trainer:
        recipe = self.recipe
        name, last = "+".join(group), group == self.groups[-1]
        tasks = {task: recipe.tasks[task] for task in group}
        # every group starts from the same pretrained encoder; the last one may have the original
        encoder = self.backbone.encoder if last else copy.deepcopy(self.backbone.encoder)
        model = MultiTaskModel(encoder, tasks, recipe.seed).to(self.device)
        train = {task: self.datasets[task, "train"] for task in group}
        chunks = recipe.training.grad_accumulation
        pin = self.device.type == "cuda"
        feed = Feed(tasks, train, recipe.sampler, seed=recipe.seed, grad_accumulation=chunks, pin=pin)
        every, epochs = recipe.evaluation.every, recipe.training.epochs
        per_epoch = 0
        if epochs or every == "epoch":
            per_epoch = self._steps_per_epoch(feed)
        feed.steps = steps = recipe.training.steps or (epochs or 0) * per_epoch
        learner = Learner(
            model,
            seed=recipe.seed,
            steps=steps,
            group=name,
            precision=self.precision,
            # on a GPU each check is a synchronisation, so it waits for the end of the step unless a skip needs it
            check_each_loss=self.device.type == "cpu" or recipe.training.on_nonfinite == "skip",
        )
        return Trainer(
            recipe=recipe,
            group=name,
            learner=learner,
            feed=feed,
            steps=steps,
            evaluate_every=every if isinstance(every, int) else per_epoch if every == "epoch" else steps,
            selection={task: self.datasets[task, recipe.evaluation.select_on] for task in group},
            metrics=self.metrics,
            checkpoints=self.checkpoints(group),
            emit=emit,
            precision=self.precision,
        )

    def _steps_per_epoch(self, feed: Feed) -> int:
        algorithm = self.recipe.algorithm
        with blame(algorithm, "algorithm"):
            steps: object = algorithm.steps_per_epoch(feed.batches_per_epoch)
        if not isinstance(steps, int) or steps < 1:
            what = f"algorithm '{algorithm.name}' counts {steps} steps in an epoch, expected a whole number from 1"
            raise PluginError(supplier(algorithm, "algorithm"), what)
        return steps

    def _rewind(self) -> int:
        """Cut events.jsonl back to the newest checkpoint; returns that checkpoint's step."""
        group, step = "", 0
        for names in self.groups:
            path, _ = self.checkpoints(names).newest()
            if path is not None:
                group, step = "+".join(names), int(path.name.removeprefix("step-"))
        rewind_events(self.folder.path / "events.jsonl", group, step)
        return step

    def _resume(self, trainer: Trainer) -> None:
        path, damaged = trainer.checkpoints.newest()
        for line in damaged:
            self.warn(f"{line}; {'using ' + path.name if path else 'starting over'}")
        if path is not None:
            trainer.restore(*trainer.checkpoints.load(path))

    def _finish(self, trainer: Trainer) -> dict[str, Any]:
        """Score a group's best weights and keep what the summary needs, so that its model and optimizers can go."""
        model, split = trainer.learner.model, self.recipe.evaluation.report_on
        model.load_state_dict(trainer.checkpoints.best())
        return {
            "scores": {task: self.score(model, self.datasets[task, split])[0] for task in trainer.learner.tasks},
            "usage": trainer.feed.usage(),
            "steps": trainer.steps,
            "seconds": trainer.seconds,
            "examples": trainer.learner.examples,
            "skipped": trainer.skipped,
        }

    def _summarise(self, groups: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
        recipe = self.recipe
        scores = {task: made for group in groups for task, made in group["scores"].items()}
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return {
            **self.table(recipe.evaluation.report_on, {task: scores[task] for task in recipe.tasks}),
            "name": recipe.name,
            "algorithm": recipe.algorithm.name,
            "seed": recipe.seed,
            "selected_on": recipe.evaluation.select_on,
            "steps": sum(group["steps"] for group in groups),
            "seconds": round(sum(group["seconds"] for group in groups), 2),
            "total_seconds": round(seconds, 2),
            "examples": sum(group["examples"] for group in groups),
            "skipped_steps": sum(group["skipped"] for group in groups),
            "sampling": {task: used for group in groups for task, used in group["usage"].items()},
            "peak_memory_bytes": peak if sys.platform == "darwin" else peak * 1024,
        }
