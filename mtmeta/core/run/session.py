"""A session: the parts that training and scoring share, from a request to datasets and scores."""

from __future__ import annotations

import csv
import functools
import io
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.api.contracts import Metric, Task
from mtmeta.core.api.events import DataLoaded, Event, Warned
from mtmeta.core.api.objectives import has_temperature
from mtmeta.core.data.carving import carvings
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.loading import load_split
from mtmeta.core.distributed.group import Group
from mtmeta.core.environment import cache_folder, check_launcher
from mtmeta.core.errors import MachineError
from mtmeta.core.machine import (
    PRECISIONS,
    Precision,
    bf16_notes,
    free_memory_of,
    make_deterministic,
    memory_errors,
    peak_memory,
    pick_device,
    pick_precision,
)
from mtmeta.core.recipe.from_python import RecipeSource
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.classes import naming_classes
from mtmeta.core.registry.guard import fault
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.run.directory import RunDir, make_lock
from mtmeta.core.run.ranks.following import FollowedDir
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.summary import RunSummary
from mtmeta.core.storage.artifacts import pins_of
from mtmeta.core.storage.cache import Cache
from mtmeta.core.storage.sources import Sources
from mtmeta.core.training import evaluation
from mtmeta.core.training.checkpoint import Checkpoints
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.spread.holding import held
from mtmeta.core.wording import byte_text, quote, safe

BAD_LINES_SHOWN = 5


@dataclass(eq=False)
class Session:
    """A recipe's parts on a device, in a run directory."""

    recipe: Recipe
    registry: Registry
    folder: RunDir
    device: torch.device
    warn: Callable[[str], None]
    sources: Sources = field(default_factory=Sources)
    ranks: Group = field(default_factory=Group)
    """Those that train and score together."""
    recorded_precision: str = "auto"
    """What `precision: auto` meant when the run began, if it goes on; it stays that."""
    tasks: dict[str, Task] = field(init=False)
    """The tasks as they are trained, by name; what training goes by is in them once the data is read."""
    backbone: LoadedBackbone = field(init=False, repr=False)
    notes: list[Event] = field(default_factory=list, init=False)
    """Events about the data, for the reporters or the terminal."""

    def __post_init__(self) -> None:
        make_deterministic(self.device)
        self.groups = self._groups()
        self.tasks = dict(self.recipe.tasks)
        names = dict.fromkeys(name for task in self.recipe.scored.values() for name in task.metrics)
        self.metrics: dict[str, Metric] = {name: self.registry.get("metric", name, "tasks") for name in names}
        self.cache = Cache(cache_folder(), self.warn)

    def _groups(self) -> list[list[str]]:
        algorithm, tasks = self.recipe.algorithm, list(self.recipe.tasks)
        groups = [list(group) for group in algorithm.groups(tasks)]
        if sorted(task for group in groups for task in group) != sorted(tasks):
            message = f"algorithm '{algorithm.name}' groups tasks as {safe(str(groups))}, expected each task once"
            raise fault(algorithm, message)
        adapters = self.recipe.adapters
        leading = set(adapters.trained_by or ()) if adapters is not None else set()
        return sorted(groups, key=lambda group: leading.isdisjoint(group)) if leading else groups

    @property
    def precision(self) -> Precision:
        """What the recipe's `training.precision` means here. It depends on the backbone, which must be loaded."""
        asked = self.recipe.training.precision
        wanted = self.recorded_precision if asked == "auto" else asked
        return pick_precision(wanted, self.device, bf16_on_cpu=self.backbone.bf16_on_cpu)

    def numbers(self, group: Sequence[str], names: Sequence[str]) -> dict[str, float]:
        """Return the numbers that the algorithm trains beside a group's model, whose parameters have these names.

        Raises PluginError for bad names.
        """
        algorithm = self.recipe.algorithm
        numbers = algorithm.parameters_of(list(group), list(names))
        for name, value in numbers.items():
            if not name or set(name) & {".", "|"} or not math.isfinite(value):
                message = f"trains {quote(name)} from {value}; names have no dots and numbers are finite"
                raise fault(algorithm, f"algorithm '{algorithm.name}' {message}")
        return numbers

    def model(self, encoder: nn.Module, group: Sequence[str]) -> MultiTaskModel:
        """Build the model of a group of tasks around an encoder, its heads as they are in the beginning."""
        recipe = self.recipe
        tasks, numbers = {task: self.tasks[task] for task in group}, functools.partial(self.numbers, group)
        return MultiTaskModel(encoder, tasks, recipe.seed, numbers, recipe.algorithm.build_head, recipe.adapters)

    @functools.cached_property
    def temperatures(self) -> dict[str, float]:
        """What the outputs of tasks are divided by for their probabilities, where a finished run was calibrated."""
        summary = self.folder.finished() if self.recipe.evaluation.calibrate else None
        return {task: of.temperature for task, of in summary.calibration.items()} if summary is not None else {}

    def extra_bytes(self) -> int:
        """Return the bytes that the algorithm holds beside what `joint` does, of the group for which they are most."""
        algorithm, shared = self.recipe.algorithm, self._shared_bytes()
        return max(algorithm.extra_bytes(shared, group) for group in self.groups)

    def _shared_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.backbone.encoder.parameters() if parameter.requires_grad)

    def part_bytes(self) -> tuple[int, int]:
        """Return how many gradients of slots and shards this rank holds until they are summed, and the bytes of all."""
        recipe = self.recipe
        spread = [held(recipe.algorithm, group, recipe.training.shards, self.ranks.world) for group in self.groups]
        most = max(spread, key=lambda holding: holding.parts)
        return most.parts, 0 if self.is_frozen else most.bytes(self._shared_bytes())

    def check_memory(self) -> None:
        """Raise MachineError where the algorithm, or parts of a step, take more than is free beside all training."""
        free = free_memory_of(self.device)
        if free is None:
            return
        left = f"and only {byte_text(max(0, free), 'kB')} are free"
        if (needed := self.extra_bytes()) > free:
            message = f"holds {byte_text(needed, 'kB')} beside the model, {left}; use joint, or a smaller encoder"
            raise MachineError(f"algorithm '{self.recipe.algorithm.name}'", message)
        parts, needed = self.part_bytes()
        if needed * (ranks := self.ranks.sharing(self.device)) > free:
            each = f" on each of {ranks} ranks here" if ranks > 1 else ""
            takes = f"a step holds {parts} gradients until they are summed, {byte_text(needed, 'kB')}{each}"
            raise MachineError(
                "training.shards", f"{takes}, {left}; use fewer shards, fewer tasks a step, or more hosts"
            )

    def lock(self, recipe: Recipe, files: Mapping[str, str], rows: Mapping[str, int]) -> dict[str, Any]:
        """Build the lock of a run: `files` are hashes by TASK-SPLIT, `rows` the dev examples of tasks."""
        lock = make_lock(recipe, self.registry, files, self.backbone, self.device, self.precision)
        lock |= carvings(recipe.tasks, rows)
        sources = self.sources.lock()
        return lock | {"sources": sources} if sources else lock

    def checkpoints(self, group: list[str]) -> Checkpoints:
        """Return the checkpoints of a group."""
        keep = self.recipe.checkpoint.keep
        return self.folder.checkpoints("+".join(group), len(self.groups), keep, frozen=self.leaves_encoder(group))

    def leaves_encoder(self, group: list[str]) -> bool:
        """Return whether a group leaves the encoder as it is, and has it from elsewhere."""
        return self.is_frozen or (self.follow_first and group != self.groups[0])

    @property
    def is_frozen(self) -> bool:
        """Whether the encoder stays as it is, and is kept once for all checkpoints of all groups."""
        adapters = self.recipe.adapters
        return adapters is not None and adapters.encoder == "frozen"

    @property
    def follow_first(self) -> bool:
        """Whether all other groups take the encoder that the first one has trained, and leave it as it is."""
        adapters = self.recipe.adapters
        return len(self.groups) > 1 and adapters is not None and adapters.trained_by is not None

    def newest(self) -> str:
        """Return the name of the newest checkpoint that verifies, of the last group that has one, or an empty text."""
        names = [path.name for group in self.groups if (path := self.checkpoints(group).newest()[0])]
        return names[-1] if names else ""

    def read_split(self, name: str, split: str, path: str | None = None) -> Dataset:
        """Read a task's split, or another file (`path`) in its place. Raises DataError."""
        recipe = self.recipe
        options: Any = {"path": path, "cache": self.cache, "sources": self.sources}
        return load_split(name, recipe.tasks[name], split, recipe.data, recipe.data_root, self.backbone, **options)

    def note_backbone(self) -> None:
        """Note what a user should know of the backbone, and of its speed on this device."""
        lines = [*self.backbone.notes, *bf16_notes(self.device, self.precision)]
        self.notes += [Warned(text=line) for line in lines]

    def note_calibration(self) -> None:
        """Note the tasks whose probabilities stay as they are, where the recipe has temperatures fitted."""
        for name, task in self.recipe.tasks.items() if self.recipe.evaluation.calibrate else ():
            if task.objective.classes and not has_temperature(task.objective):
                text = f"evaluation.calibrate: the probabilities of task '{name}' stay as they are"
                self.notes.append(Warned(text=f"{text}, for its objective takes no temperature"))

    def warn_of_slowness(self) -> None:
        """Warn where the recipe asks for a precision that this device is slow in."""
        for line in bf16_notes(self.device, self.precision):
            self.warn(line)

    def note(self, dataset: Dataset) -> None:
        """Note the rows that were read and skipped."""
        self.notes.append(data_loaded(dataset))
        if dataset.skipped:
            more = ", ..." if dataset.skipped > BAD_LINES_SHOWN else ""
            lines = ", ".join(str(row.line) for row in dataset.bad[:BAD_LINES_SHOWN]) + more
            text = f"skipped {dataset.skipped} bad rows (lines {lines}: {dataset.bad[0].reason})"
            self.notes.append(Warned(text=f"{dataset.file}: {text}"))
        self.notes += [Warned(text=f"{dataset.file}: {text}") for text in dataset.notes]
        if dataset.unseen:
            self.notes.append(Warned(text=f"{dataset.file}: {unseen_text(dataset.unseen)}"))

    def show_warnings(self) -> None:
        """Show the warnings about the data, where no reporter does."""
        for note in self.notes:
            if isinstance(note, Warned):
                self.warn(note.text)

    def score(
        self, model: MultiTaskModel, dataset: Dataset, answer: Callable[[Tensor], Tensor] | None = None
    ) -> dict[str, tuple[evaluation.Score, evaluation.Predictions]]:
        """Score a dataset with intervals, and write its predictions in file order; for `answer` see `predict`.

        Returns what was scored by its name: that of the task, or of each label of a task with several.
        """
        task = self.recipe.tasks[dataset.task]
        tokens = self.recipe.evaluation.batch_tokens
        named = {dataset.task: task, **task.parts}
        with memory_errors(f"scoring task '{dataset.task}' (batch_tokens {tokens})", "lower evaluation.batch_tokens"):
            scores = evaluation.wants_scores(self.metrics[name] for one in named.values() for name in one.metrics)
            options: Any = {"precision": self.precision, "ranks": self.ranks, "scores": scores, "answer": answer}
            predictions = evaluation.predict(model, dataset, batch_tokens=tokens, **options)
        parts = evaluation.of_parts(task, predictions)
        return {name: (self._write(of, own, scores=scores), own) for name, (of, own) in parts.items()}

    def _write(self, task: Task, predictions: evaluation.Predictions, *, scores: bool) -> evaluation.Score:
        """Score predictions, and write them to a file of their task; with the raw outputs where they are wanted."""
        dataset, scored = predictions.dataset, self.measure(predictions)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "label", "prediction", *(["scores"] if scores else [])])
        # outside the classes are labels that training does not have, each its own, and abstentions, without a label
        own = [_shown(task, predictions.labels, list(dataset.unseen)), _shown(task, predictions.values, [""])]
        columns: list[Iterable[str]] = [*own]
        if predictions.scores is not None:  # nine digits are those of fp32
            rows = predictions.scores.reshape(len(dataset), -1).tolist()
            columns.append(" ".join(f"{score:.9g}" for score in row) for row in rows)
        writer.writerows(zip(dataset.ids, *columns, strict=True))
        self.folder.write(f"predictions/{dataset.task}-{dataset.split}.csv", text.getvalue())
        return scored

    def measure(self, predictions: evaluation.Predictions, *, intervals: bool = True) -> evaluation.Score:
        """Compute a task's metrics of its predictions; what they warn of is shown."""
        metrics = [self.metrics[name] for name in self.recipe.scored[predictions.dataset.task].metrics]
        scored, warnings = evaluation.score(predictions, metrics, seed=self.recipe.seed, intervals=intervals)
        for line in warnings:
            self.warn(line)
        return scored

    def table(self, split: str, scores: Mapping[str, evaluation.Score]) -> dict[str, Any]:
        """Return the fields that the results of `run` and `eval` share."""
        return {
            "run": str(self.folder.path),
            "split": split,
            "tasks": {name: score.json() for name, score in scores.items()},
            "mean": fmean(score.value for score in scores.values()),
        }

    def summary(self, scores: Mapping[str, evaluation.Score], **measured: Any) -> RunSummary:
        """Sum up a finished run: scores of its best weights on the split it reports on, and what was measured."""
        recipe = self.recipe
        return RunSummary(
            **self.table(recipe.evaluation.report_on, scores),
            name=recipe.name,
            algorithm=recipe.algorithm.name,
            seed=recipe.seed,
            selected_on=recipe.evaluation.select_on,
            peak_memory_bytes=peak_memory(),
            **measured,
        )

    def start_facts(self, parameters: Iterable[Tensor]) -> dict[str, Any]:
        """Return the fields of the event that a run begins, or goes on, training these parameters."""
        return {
            "name": self.recipe.name,
            "algorithm": self.recipe.algorithm.name,
            "tasks": list(self.recipe.tasks),
            "groups": self.groups,
            "device": self.device_name(),
            "precision": self.precision,
            "parameters": sum(parameter.numel() for parameter in parameters),
            "time": time.time(),
        }

    def device_name(self) -> str:
        """Return the GPU's name, or `cpu`."""
        return torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "cpu"


def _shown(task: Task, values: NDArray[np.float64], outside: Sequence[str]) -> list[str]:
    """Return labels or predictions [N] as data files write them; -1, -2, ... are those `outside` the classes."""
    show, named = task.objective.show, bool(task.objective.classes) and task.objective.labelled == "one"
    return [outside[-1 - int(value)] if named and value < 0 else show(value) for value in values.tolist()]


def unseen_text(unseen: Mapping[str, int]) -> str:
    """Return a line about labels that are no class of their task."""
    shown = ", ".join(f"{quote(label)} {count:,}" for label, count in list(unseen.items())[:BAD_LINES_SHOWN])
    more = ", ..." * (len(unseen) > BAD_LINES_SHOWN)
    count = f"{sum(unseen.values()):,} examples have labels"
    return f"{count} that are no class of the recipe ({shown}{more}): all answers to them count as wrong"


def data_loaded(dataset: Dataset) -> DataLoaded:
    """Return the event that tells of a dataset."""
    return DataLoaded(
        task=dataset.task,
        split=dataset.split,
        file=dataset.file,
        examples=len(dataset),
        skipped=dataset.skipped,
        tokens=dataset.tokens,
        truncated=dataset.truncated,
    )


def run_of(source: RecipeSource) -> RunDir | None:
    """Return the run where a run directory is given in the place of a recipe, else None."""
    if isinstance(source, Mapping | Recipe) or not os.path.isdir(source):
        return None
    folder = RunDir(Path(source))
    folder.check_is_run()
    return folder


class OpenRecipe:
    """A recipe that was read for a request, and the run directory it goes to; nothing is loaded or written yet.

    Raises RecipeError, MachineError, and CheckpointError for its run directory.
    """

    def __init__(self, request: RunRequest) -> None:
        if request.ranks.world == 1:
            check_launcher()
        self.request = request
        self.registry = build_registry(block=request.block, warn=request.warn, plugins=request.plugins)
        options: Any = {"overrides": request.overrides, "data_root": request.data_root}
        source, out = request.recipe, request.out
        if (run := run_of(source)) is not None:  # the run itself, which goes on where it lies with its own data
            source, out, options["environ"] = run.recipe, request.out or run.path, {}
        with naming_classes(run.lock) if run is not None else nullcontext():
            self.recipe = load_recipe(source, self.registry, **options)
        directory = RunDir if request.ranks.rank == 0 else FollowedDir
        self.folder = directory(Path(out) if out is not None else Path("runs") / self.recipe.name)
        self.continued = self.folder.check_usable(self.recipe, fresh=request.fresh)
        """Whether a run of this very recipe is in the directory already."""

    def session(self, ranks: Group | None = None) -> Session:
        """Start a session on the device asked for. Raises MachineError if there is none."""
        # a run that goes on reads the commit it began with, wherever the branch is now
        lock = self.folder.lock() if self.continued else {}
        pins = pins_of(lock)
        sources = Sources(pins, self.request.watcher, remedy=self.request.remedy)
        device = pick_device(self.request.device)
        parts = (self.recipe, self.registry, self.folder, device, self.request.warn, sources)
        session = Session(*parts, ranks=ranks or Group())
        if lock.get("device") == device.type == "cpu" and lock.get("precision") in PRECISIONS:
            session.recorded_precision = lock["precision"]
        return session
