"""What training and scoring share: the parts of one run, its datasets, and how a split is scored and written."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.api.contracts import Metric
from mtmeta.core.api.events import DataLoaded, Event, Warned
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.loading import load_split
from mtmeta.core.environment import cache_folder
from mtmeta.core.machine import make_deterministic, memory_errors, pick_precision
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.guard import fault
from mtmeta.core.registry.registry import Registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.storage.cache import Cache
from mtmeta.core.storage.disk import write_file
from mtmeta.core.storage.sources import Sources
from mtmeta.core.training import evaluation
from mtmeta.core.training.checkpoint import Checkpoints
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.wording import quote, safe

__all__ = ["Session", "dump_json"]

BAD_LINES_SHOWN = 5


class Session:
    """A recipe's parts on a device, in a run directory."""

    backbone: LoadedBackbone

    def __init__(
        self,
        recipe: Recipe,
        registry: Registry,
        folder: RunDir,
        device: torch.device,
        warn: Callable[[str], None],
        sources: Sources | None = None,
    ) -> None:
        self.recipe = recipe
        self.sources = sources or Sources()
        self.registry = registry
        self.folder = folder
        self.device = device
        make_deterministic(device)
        self.warn = warn
        self.precision = pick_precision(recipe.training.precision, device)
        self.groups = self._groups()
        names = dict.fromkeys(name for task in recipe.tasks.values() for name in task.metrics)
        self.metrics: dict[str, Metric] = {name: registry.get("metric", name, "tasks") for name in names}
        self.cache = Cache(cache_folder(), warn)
        self.notes: list[Event] = []
        """Events about the data, for the reporters or the terminal."""

    def _groups(self) -> list[list[str]]:
        algorithm, tasks = self.recipe.algorithm, list(self.recipe.tasks)
        groups = [list(group) for group in algorithm.groups(tasks)]
        if sorted(task for group in groups for task in group) != sorted(tasks):
            message = f"algorithm '{algorithm.name}' groups tasks as {safe(str(groups))}, expected each task once"
            raise fault(algorithm, message)
        return groups

    def numbers(self, group: Sequence[str]) -> dict[str, float]:
        """What the algorithm trains beside a group's model. Raises PluginError if they are no numbers by name."""
        algorithm = self.recipe.algorithm
        numbers = algorithm.parameters(list(group))
        for name, value in numbers.items():
            if not name or set(name) & {".", "|"} or not math.isfinite(value):
                message = f"trains {quote(name)} from {value}; names have no dots and numbers are finite"
                raise fault(algorithm, f"algorithm '{algorithm.name}' {message}")
        return numbers

    def checkpoints(self, group: list[str]) -> Checkpoints:
        """Where a group's checkpoints are."""
        return self.folder.checkpoints("+".join(group), len(self.groups), self.recipe.checkpoint.keep)

    def newest(self) -> str:
        """Name of the newest checkpoint that verifies, of the last group that has one; empty if there is none."""
        found = [path.name for group in self.groups if (path := self.checkpoints(group).newest()[0])]
        return found[-1] if found else ""

    def read_split(self, name: str, split: str, path: str | None = None) -> Dataset:
        """A task's split, or another file (`path`) in its place. Raises DataError."""
        recipe = self.recipe
        task, root = recipe.tasks[name], recipe.data_root
        options: Any = {"path": path, "cache": self.cache, "sources": self.sources}
        return load_split(name, task, split, recipe.data, root, self.backbone, **options)

    def note(self, data: Dataset) -> None:
        """Note what was read and what was skipped."""
        done = (data.task, data.split, data.file, len(data), data.skipped, data.tokens, data.truncated)
        self.notes.append(DataLoaded(*done))
        if data.skipped:
            more = ", ..." if data.skipped > BAD_LINES_SHOWN else ""
            lines = ", ".join(str(row.line) for row in data.bad[:BAD_LINES_SHOWN]) + more
            text = f"{data.file}: skipped {data.skipped} bad rows (lines {lines}: {data.bad[0].reason})"
            self.notes.append(Warned(text))

    def score(self, model: MultiTaskModel, dataset: Dataset) -> tuple[evaluation.Score, evaluation.Predictions]:
        """Score a dataset with intervals, and write its predictions in file order."""
        task = self.recipe.tasks[dataset.task]
        tokens = self.recipe.evaluation.batch_tokens
        with memory_errors(f"scoring task '{dataset.task}' (batch_tokens {tokens})", "lower evaluation.batch_tokens"):
            predictions = evaluation.predict(model, dataset, batch_tokens=tokens, precision=self.precision)
        metrics = [self.metrics[name] for name in task.metrics]
        scored, warnings = evaluation.score(predictions, metrics, seed=self.recipe.seed)
        for line in warnings:
            self.warn(line)
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["id", "label", "prediction"])
        show = task.objective.show
        for row in zip(dataset.ids, dataset.labels.tolist(), predictions.values.tolist(), strict=True):
            writer.writerow([row[0], show(row[1]), show(row[2])])
        write_file(self.folder.path / "predictions" / f"{dataset.task}-{dataset.split}.csv", text.getvalue())
        return scored, predictions

    def table(self, split: str, scores: Mapping[str, evaluation.Score]) -> dict[str, Any]:
        """The part of a summary that `run` and `eval` share."""
        return {
            "run": str(self.folder.path),
            "split": split,
            "tasks": {name: made.json() for name, made in scores.items()},
            "mean": math.fsum(made.value for made in scores.values()) / len(scores),
        }


def dump_json(value: Any) -> str:
    """JSON with a line end, non-finite numbers refused."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"
