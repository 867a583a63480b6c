"""`mtmeta run --dry-run`: what a run would do, and how long it would take by a short probe of the real thing.

Nothing is written but the caches: the probe trains in memory, on the recipe's own model and data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtmeta.core.api.events import Warned
from mtmeta.core.environment import check_launcher
from mtmeta.core.errors import DivergedError, PluginError
from mtmeta.core.machine import fitting_threads, peak_memory, pick_device
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.estimate import (
    Measured,
    Seconds,
    evaluation_seconds,
    interval_seconds,
    predicted,
    probe,
    together,
)
from mtmeta.core.run.run import _Training
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.artifacts import pins_of, remedy
from mtmeta.core.storage.download import Watcher
from mtmeta.core.storage.lock import lock_owner
from mtmeta.core.storage.sources import Sources
from mtmeta.core.training.budget import rehearse
from mtmeta.core.training.trainer import Trainer

__all__ = ["plan"]

MOST_REHEARSED = 50_000  # steps gone through one by one; of longer runs the rest is taken to be like them
SECONDS = 60.0  # of probing, for all groups together; slow steps are probed less often


def plan(
    recipe_path: str | Path,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    data_root: str | None = None,
    device: str = "auto",
    fresh: bool = False,
    allow_changed_data: bool = False,
    allow_inexact: bool = False,
    probe_steps: int = 20,
    block: Sequence[str] = (),
    warn: Callable[[str], None] = lambda text: None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """What `run` would do with the same arguments, as plain data; seconds only if `probe_steps` are more than 0.

    Raises what `run` would raise before its first step; leaves no trace but in the caches.
    """
    check_launcher()
    registry = build_registry(block=block, warn=warn)
    recipe = load_recipe(recipe_path, registry, overrides=overrides, data_root=data_root)
    folder = RunDir(Path(out) if out is not None else Path("runs") / recipe.name)
    continued = folder.check_usable(recipe, fresh=fresh)
    pins = pins_of(folder.lock()) if continued else {}
    sources = Sources(pins, watcher, remedy=remedy(recipe_path))
    planned = _Plan(recipe, registry, folder, pick_device(device), warn, sources)
    started = time.perf_counter()
    planned.load()
    for note in planned.notes:
        if isinstance(note, Warned):
            warn(note.text)
    with fitting_threads(planned.backbone.encoder):
        if continued and not folder.finished() and not allow_inexact:  # with it, the check would write to the lock
            lock = planned.lock()
            folder.check_same(lock, planned.files, allow_changed_data=allow_changed_data, allow_inexact=False)
        return planned.describe(continued, time.perf_counter() - started, probe_steps)


@dataclass(frozen=True)
class _Group:
    """One learner's share of the plan, without the learner: the next one needs its memory."""

    tasks: list[str]
    steps: int
    done: int
    """Steps that a checkpoint of an earlier start already holds."""
    reads: NDArray[np.int64] | None
    """Example-forwards [steps, tasks]; None where the algorithm cannot be gone through without a model."""
    measured: Measured
    evaluate_every: int
    evaluating: Seconds | None
    """One evaluation of all tasks on the split that selects."""
    scoring: Seconds | None
    """The final scores with their intervals."""
    weights: int
    """Bytes of the parameters."""
    optimizer: int | None
    """Bytes of the optimizers' state, if the probe had every task in it."""
    own_parameters: int
    """Parameters of heads and algorithm."""

    def examples(self, start: int = 0) -> dict[str, float] | None:
        """Example-forwards of each task in the steps from `start`; what was not gone through is like what was."""
        left = self.steps - start
        if self.reads is None:
            return self.measured.examples(self.tasks, left)
        seen = self.reads[min(start, len(self.reads) - 1) :] if left else self.reads[:0]
        scale = left / len(seen) if len(seen) else 0.0
        return {task: float(total * scale) for task, total in zip(self.tasks, seen.sum(axis=0), strict=True)}


class _Plan(_Training):
    """A run that is described in place of being trained."""

    def describe(self, continued: bool, load_seconds: float, probe_steps: int) -> dict[str, Any]:
        """The whole plan; see `plan`."""
        recipe, notes = self.recipe, list[str]()
        self.stop = StopRequest()
        state, done = self._state(continued)
        if state == "finished":
            probe_steps = 0
        encoder = sum(p.numel() for p in self.backbone.encoder.parameters())
        groups = [self._group(names, done.get("+".join(names), 0), probe_steps, notes) for names in self.groups]
        told = [self._describe_group(group) for group in groups]
        sizes = [group["disk_bytes"] for group in told]
        return {
            "recipe": recipe.name,
            "run": str(self.folder.path),
            "state": state,
            "algorithm": recipe.algorithm.name,
            "backbone": recipe.backbone.name,
            "weights": self.backbone.identity,
            "encoder_parameters": encoder,
            "own_parameters": sum(group.own_parameters for group in groups),
            "max_length": self.backbone.max_length,
            "device": torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu",
            "precision": self.precision,
            "threads": torch.get_num_threads(),
            "data_root": recipe.data_root,
            "train_fraction": recipe.data.train_fraction,
            "tasks": {name: self._task(name, groups) for name in recipe.tasks},
            "groups": told,
            "disk_bytes": None if None in sizes else sum(sizes),
            "peak_memory_bytes": peak_memory(),
            "seconds": self._seconds(groups, load_seconds),
            "notes": notes,
        }

    def _state(self, continued: bool) -> tuple[str, dict[str, int]]:
        """Whether the run directory is new, and what of the run is done."""
        if who := lock_owner(self.folder.path):
            return f"in use by {who}", {}
        if not continued:
            return "new", {}
        if self.folder.finished():
            return "finished", {}
        paths = {name: path for name, path in self._find().items() if path is not None}
        return "goes on", {name: int(path.name.removeprefix("step-")) for name, path in paths.items()}

    def _group(self, names: list[str], done: int, probe_steps: int, notes: list[str]) -> _Group:
        trainer = self._trainer(names, lambda event: None)
        done, reads = min(done, trainer.steps), self._reads(trainer)
        measured, optimizer = Measured(), None
        evaluating = scoring = None
        if probe_steps and done < trainer.steps:
            shape = reads if reads is not None else np.ones((trainer.steps, len(names)), dtype=np.int64)
            try:
                measured = probe(trainer, shape, done, probe_steps, SECONDS / len(self.groups))
            except DivergedError as error:
                notes.append(f"the probe diverged: {error.message}")
            else:
                evaluating, scoring = self._evaluating(trainer, names)
                if all(any(read.get(name) for read in measured.reads) for name in names):
                    optimizer = sum(tensor.nbytes for tensor in trainer.optimizer_tensors().values())
        own = (p for name, p in trainer.learner.parameters.items() if name.startswith(("heads.", "algorithm.")))
        return _Group(
            tasks=names,
            steps=trainer.steps,
            done=done,
            reads=reads,
            measured=measured,
            evaluate_every=trainer.evaluate_every,
            evaluating=evaluating,
            scoring=scoring,
            weights=sum(tensor.nbytes for tensor in trainer.weights().values()),
            optimizer=optimizer,
            own_parameters=sum(parameter.numel() for parameter in own),
        )

    def _reads(self, trainer: Trainer) -> NDArray[np.int64] | None:
        recipe, names = self.recipe, list(trainer.learner.tasks)
        datasets = {name: self.datasets[name, "train"] for name in names}
        parts = (recipe.algorithm, recipe.sampler, self.backbone.encoder, trainer.learner.tasks, datasets, recipe.seed)
        rows = []
        try:
            for read in islice(rehearse(trainer.steps, *parts, self.numbers(names)), MOST_REHEARSED):
                rows.append([read[name] for name in names])
        except PluginError:
            return None  # it goes by what a model says
        return np.array(rows, dtype=np.int64)

    def _evaluating(self, trainer: Trainer, names: Sequence[str]) -> tuple[Seconds, Seconds]:
        """Seconds of one evaluation, and of the final scores."""
        options, every, last = self.recipe.evaluation, [], []
        for name in names:
            found = {
                split: evaluation_seconds(
                    trainer.learner.model,
                    self.datasets[name, split],
                    batch_tokens=options.batch_tokens,
                    precision=self.precision,
                    seed=self.recipe.seed,
                )
                for split in dict.fromkeys((options.select_on, options.report_on))
            }
            metric = self.metrics[self.recipe.tasks[name].metrics[0]]
            interval = interval_seconds(metric, self.datasets[name, options.report_on])
            every.append(found[options.select_on])
            last += [found[options.report_on], Seconds(interval, 0.0)]
        return together(every), together(last)

    # -- what is told

    def _task(self, name: str, groups: Sequence[_Group]) -> dict[str, Any]:
        task, evaluated = self.recipe.tasks[name], self.recipe.evaluation
        train = self.datasets[name, "train"]
        group = next(group for group in groups if name in group.tasks)
        examples = (group.examples() or {}).get(name)
        splits = {split: self.datasets[name, split] for split in ("train", evaluated.select_on, evaluated.report_on)}
        return {
            "task": task.name,
            **{
                split: {
                    "name": getattr(task, split),
                    "file": data.file,
                    "rows": len(data),
                    "bad_rows": data.skipped,
                }
                for split, data in splits.items()
            },
            "tokens_per_example": round(train.tokens / len(train), 1),
            "batch_size": task.batch_size,
            "inner_steps": task.inner_steps,
            "metrics": list(task.metrics),
            "examples": None if examples is None else round(examples),
            "epochs": None if examples is None else round(examples / len(train), 3),
        }

    def _describe_group(self, group: _Group) -> dict[str, Any]:
        every, keep = self.recipe.checkpoint.every, self.recipe.checkpoint.keep
        saved = len({*range(every, group.steps + 1, every), group.steps}) if every else 1
        evaluations = math.ceil(group.steps / group.evaluate_every)
        # `best` of all, and of each task where there are several
        bests = min(evaluations, 1 + len(group.tasks) * (len(group.tasks) > 1))
        whole = None if group.optimizer is None else group.weights + group.optimizer
        examples = group.examples()
        return {
            "tasks": group.tasks,
            "steps": group.steps,
            "done": group.done,
            "examples": None if examples is None else round(sum(examples.values())),
            "counted": group.reads is not None and len(group.reads) == group.steps,
            "evaluations": evaluations,
            "evaluate_every": group.evaluate_every,
            "checkpoints": saved,
            "keep": keep,
            "checkpoint_bytes": whole,
            "best_bytes": group.weights,
            "disk_bytes": None if whole is None else min(keep, saved) * whole + bests * group.weights,
        }

    def _seconds(self, groups: Sequence[_Group], loading: float) -> dict[str, Any] | None:
        """Seconds of what is left to do, by part; None where nothing could be measured."""
        training, evaluating, scoring = [], [], []
        evaluations = 0
        for group in groups:
            left = group.examples(group.done)
            if group.scoring is None or group.evaluating is None or left is None:
                if group.done < group.steps:
                    return None
                continue
            training.append(predicted(group.measured, group.tasks, left, group.steps - group.done))
            count = math.ceil(group.steps / group.evaluate_every) - group.done // group.evaluate_every
            evaluating.append(group.evaluating.times(count))
            scoring.append(group.scoring)
            evaluations += count
        parts = {"training": together(training), "evaluating": together(evaluating), "scoring": together(scoring)}
        total = together(list(parts.values()))
        return {
            "loading": round(loading, 2),
            **{name: part.json() for name, part in parts.items()},
            "total": total.json(),
            "evaluations": evaluations,
            "probed_steps": sum(len(group.measured.seconds) for group in groups),
        }
