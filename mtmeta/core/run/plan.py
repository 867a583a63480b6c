"""`mtmeta run --dry-run`: the plan of a run, and how long it would take by a short probe of the real thing.

Nothing is written but the caches: the probe trains in memory, on the recipe's own model and data.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtmeta.core.api.contracts import Task, scored_tasks
from mtmeta.core.api.multi_output import MultiOutput
from mtmeta.core.data.dataset import Dataset, label_views
from mtmeta.core.data.teachers import teaching_cost
from mtmeta.core.errors import DivergedError, PluginError
from mtmeta.core.machine import bf16_instructions, fitting_threads, peak_memory, waiting_seconds
from mtmeta.core.run.estimate import (
    Measured,
    Seconds,
    evaluation_seconds,
    foretold,
    interval_seconds,
    predicted,
    probe,
    together,
)
from mtmeta.core.run.fetch import splits_read
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.run import Training, steps_of
from mtmeta.core.run.session import OpenRecipe, Session
from mtmeta.core.storage.lock import lock_owner
from mtmeta.core.training.budget import rehearse
from mtmeta.core.training.trainer import Trainer
from mtmeta.core.wording import plural

MOST_REHEARSED = 50_000  # steps gone through one by one; of longer runs the rest is taken to be like them
SECONDS = 15.0
"""Of probing at most, for all groups together, unless a step and some examples of each file take longer."""
TRAINING = 0.55
"""Share of them for steps; the rest is for evaluations."""


def plan(
    request: RunRequest,
    probe_steps: int = 20,
    obstacles: Callable[[Session], Mapping[str, str]] = lambda session: {},
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return what `train` would do with the request, as plain data; seconds only if `probe_steps` are more than 0.

    `say` is told before anything is probed; `obstacles` says in which formats the run could not be exported, and why.
    Raises what `train` would raise before its first step; leaves no trace but in the caches.
    """
    opened = OpenRecipe(request)
    opened.recipe.algorithm.require()
    folder, training = opened.folder, Training(opened.session())
    started = time.perf_counter()
    training.load()
    training.session.show_warnings()
    with fitting_threads(training.session.backbone.encoder):
        # where the run may be inexact, the check would write to the lock
        if opened.continued and not folder.finished() and not request.allow_inexact:
            allowed = {"allow_changed_data": request.allow_changed_data, "allow_inexact": False}
            folder.check_same(training.lock(), training.files, **allowed)
        loading = time.perf_counter() - started
        whole = Plan(training, say).describe(continued=opened.continued, load_seconds=loading, probe_steps=probe_steps)
        # last: the probe's memory is what a run takes
        return {**whole, "not_exported": dict(obstacles(training.session))}


@dataclass(frozen=True)
class _Group:
    """The share of one learner in the plan, without the learner: the next one needs its memory."""

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
    """Bytes of the state of optimizers, algorithm and average, if the probe had every task in it."""
    own_parameters: int
    """Parameters of heads and algorithm."""

    def examples(self, start: int = 0) -> dict[str, float] | None:
        """Return the example-forwards by task in the steps from `start`; unrehearsed ones are like the rehearsed."""
        left = self.steps - start
        if self.reads is None:
            return self.measured.examples(self.tasks, left)
        seen = self.reads[min(start, len(self.reads) - 1) :] if left else self.reads[:0]
        scale = left / len(seen) if len(seen) else 0.0
        return {task: float(total * scale) for task, total in zip(self.tasks, seen.sum(axis=0), strict=True)}


class Plan:
    """A training that is described in place of being run."""

    def __init__(self, training: Training, say: Callable[[str], None] = lambda text: None) -> None:
        self.training, self.session, self.say = training, training.session, say
        self.notes: list[str] = []

    def describe(self, *, continued: bool, load_seconds: float, probe_steps: int) -> dict[str, Any]:
        """Return the whole plan; see `plan`."""
        session, recipe = self.session, self.session.recipe
        state, done = self._state(continued)
        if recipe.training.stop:
            self.notes.append("these steps are the most there can be: training.stop may end training before")
        steps = 0 if state == "finished" else probe_steps
        if steps:
            self.say(
                f"probing: {plural(steps, 'step')} at most, in memory, for {SECONDS:.0f} s or less; --probe 0 for none"
            )
        began, waited = time.perf_counter(), waiting_seconds()
        groups = [self._group(names, done.get("+".join(names), 0), steps) for names in session.groups]
        probing = time.perf_counter() - began
        waiting = min(1.0, (waiting_seconds() - waited) / max(probing, 1e-9))
        described = [self._describe_group(group) for group in groups]
        sizes = [group["disk_bytes"] for group in described]
        return {
            "recipe": recipe.name,
            "run": str(session.folder.path),
            "state": state,
            "algorithm": recipe.algorithm.name,
            "backbone": recipe.backbone.name,
            "weights": session.backbone.identity,
            "encoder_parameters": sum(p.numel() for p in session.backbone.encoder.parameters()),
            "own_parameters": sum(group.own_parameters for group in groups),
            "max_length": session.backbone.max_length,
            "device": session.device_name(),
            "precision": session.precision,
            "instructions": bf16_instructions(session.device, session.precision),
            "threads": torch.get_num_threads(),
            "data_root": recipe.data_root,
            "train_fraction": recipe.data.train_fraction,
            "tasks": {name: self._task(name, groups) for name in recipe.tasks},
            "groups": described,
            "disk_bytes": None if None in sizes else sum(sizes),
            "peak_memory_bytes": peak_memory(),
            "algorithm_bytes": session.extra_bytes(),
            "parts_bytes": session.part_bytes()[1],
            "teacher_examples": teaching_cost(self.training.teachers),
            "seconds": _seconds(groups, load_seconds, probing, waiting, sum(map(_written, described))),
            "notes": self.notes,
        }

    def _state(self, continued: bool) -> tuple[str, dict[str, int]]:
        """Return whether the run directory is new, and the steps done of each group."""
        if process := lock_owner(self.session.folder.path):
            return f"in use by {process}", {}
        if not continued:
            return "new", {}
        if self.session.folder.finished():
            return "finished", {}
        return "goes on", steps_of(self.training.newest())

    def _group(self, names: list[str], done: int, probe_steps: int) -> _Group:
        trainer = self.training.trainer(names, lambda event: None)
        done, reads = min(done, trainer.steps), self._reads(trainer)
        measured, optimizer = Measured(), None
        evaluating = scoring = None
        if probe_steps and done < trainer.steps:
            shape = reads if reads is not None else np.ones((trainer.steps, len(names)), dtype=np.int64)
            share = SECONDS / len(self.session.groups)
            until = time.perf_counter() + share
            try:
                measured = probe(trainer, shape, done, probe_steps, TRAINING * share)
            except DivergedError as error:
                self.notes.append(f"the probe diverged: {error.message}")
            else:
                evaluating, scoring = self._evaluating(trainer, names, until)
                if all(any(read.get(name) for read in measured.reads) for name in names):
                    optimizer = trainer.state_bytes()
        parameters = trainer.learner.parameters.items()
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
            own_parameters=sum(p.numel() for name, p in parameters if name.startswith(("heads.", "algorithm."))),
        )

    def _reads(self, trainer: Trainer) -> NDArray[np.int64] | None:
        recipe, names = self.session.recipe, list(trainer.learner.tasks)
        train = {name: self.training.datasets[name, "train"] for name in names}
        tasks, encoder = trainer.learner.tasks, self.session.backbone.encoder
        parts = (recipe.algorithm, recipe.sampler, encoder, tasks, train, recipe.seed)
        numbers = functools.partial(self.session.numbers, names)
        try:
            rehearsal = rehearse(trainer.steps, *parts, numbers, adapters=recipe.adapters)
            steps = islice(rehearsal, MOST_REHEARSED)
            return np.array([[read[name] for name in names] for read in steps], dtype=np.int64)
        except PluginError:
            return None  # it goes by what a model says

    def _evaluating(self, trainer: Trainer, names: Sequence[str], until: float) -> tuple[Seconds, Seconds]:
        """Return the seconds of one evaluation, and of the final scores."""
        recipe, datasets = self.session.recipe, self.training.datasets
        options, selecting, scoring = recipe.evaluation, [], []
        settings: Any = {"batch_tokens": options.batch_tokens, "precision": self.session.precision, "seed": recipe.seed}
        settings["until"] = until
        for name in names:
            seconds = {
                split: evaluation_seconds(trainer.learner.model, datasets[name, split], **settings)
                for split in splits_read(recipe)[1:]
            }
            selecting.append(seconds[options.select_on])
            scoring.append(seconds[options.report_on])
            for task, data in _labelled(recipe.tasks[name], datasets[name, options.report_on]):
                metric = self.session.metrics[task.metrics[0]]
                scoring.append(Seconds(interval_seconds(metric, data, task.objective), 0.0))
        return together(selecting), together(scoring)

    def _task(self, name: str, groups: Sequence[_Group]) -> dict[str, Any]:
        task = self.session.recipe.tasks[name]
        examples = next((group.examples() or {}).get(name) for group in groups if name in group.tasks)
        datasets = {split: self.training.datasets[name, split] for split in splits_read(self.session.recipe)}
        train = datasets["train"]
        splits = {
            split: {"name": getattr(task, split), "file": data.file, "rows": len(data), "bad_rows": data.skipped}
            for split, data in datasets.items()
        }
        return {
            "task": task.name,
            **splits,
            "tokens_per_example": round(train.tokens / len(train), 1),
            "batch_size": task.batch_size,
            "inner_steps": task.inner_steps,
            "metrics": list(dict.fromkeys(metric for one in (task, *task.parts.values()) for metric in one.metrics)),
            "examples": None if examples is None else round(examples),
            "epochs": None if examples is None else round(examples / len(train), 3),
        }

    def _describe_group(self, group: _Group) -> dict[str, Any]:
        every, keep = self.session.recipe.checkpoint.every, self.session.recipe.checkpoint.keep
        saved = len({*range(every, group.steps + 1, every), group.steps}) if every else 1
        evaluations = math.ceil(group.steps / group.evaluate_every)
        # `best` of all, and of each task where there are several
        scored = scored_tasks({name: self.session.recipe.tasks[name] for name in group.tasks})
        bests = min(evaluations, 1 + len(scored) * (len(scored) > 1))
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


def _labelled(task: Task, dataset: Dataset) -> list[tuple[Task, Dataset]]:
    """Return a task and its dataset, or those of each of its labels."""
    if not isinstance(objective := task.objective, MultiOutput):
        return [(task, dataset)]
    return [(task.parts[name], own) for name, (own, _) in label_views(dataset, objective).items()]


def _written(group: Mapping[str, Any]) -> int:
    """Return about how many bytes a group's learner writes: its checkpoints, and its best weights now and then."""
    best = int(group["best_bytes"])
    return int(group["checkpoints"] * (group["checkpoint_bytes"] or 3 * best) + group["evaluations"] * best)


def _seconds(
    groups: Sequence[_Group], loading: float, probing: float, waiting: float, written: int
) -> dict[str, Any] | None:
    """Return the seconds that are left, by part; None where nothing could be measured.

    The probe took `probing` seconds, and waited for a processor for the share `waiting` of them; the run writes so many
    bytes.
    """
    training, evaluating, scoring, evaluations = [], [], [], 0
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
        "total": foretold(total, waiting, written),
        "probing": round(probing, 2),
        "waiting": round(waiting, 3),
        "evaluations": evaluations,
        "probed_steps": sum(len(group.measured.seconds) for group in groups),
    }
