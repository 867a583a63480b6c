"""What finished runs say of their regimes: means over seeds with intervals, and differences by the paired bootstrap.

summaries and predictions of runs -> means over the seeds with intervals -> differences to a baseline.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtmeta.core.contracts import Metric, Task
from mtmeta.core.errors import CheckpointError, DataError, RecipeError, UsageError, did_you_mean, quote
from mtmeta.core.options import Recipe
from mtmeta.core.paired import Array, difference, difference_draws, on_resamples, over_seeds
from mtmeta.core.registry import Registry
from mtmeta.core.rng import derive
from mtmeta.core.rundir import RunDir

__all__ = ["Planned", "baseline_of", "check_alike", "check_data", "comparison", "read_predictions"]

MEAN = "mean"


@dataclass(frozen=True)
class Planned:
    """One recipe with one seed, and where its run lies."""

    path: str | Path
    recipe: Recipe
    folder: RunDir

    @property
    def label(self) -> str:
        return f"{self.recipe.name} seed {self.recipe.seed}"


def check_alike(recipes: Sequence[Recipe]) -> None:
    """Raise RecipeError unless all have the same tasks, metrics and report split."""
    one = recipes[0]
    for other in recipes[1:]:
        if sorted(one.tasks) != sorted(other.tasks):
            what = f"{', '.join(one.tasks)}, {quote(other.name)} has {', '.join(other.tasks)}"
            raise RecipeError(one.name, f"has the tasks {what}; compare recipes of the same tasks")
        splits = one.evaluation.report_on, other.evaluation.report_on
        if splits[0] != splits[1]:
            what = f"reports on {splits[0]}, {quote(other.name)} on {splits[1]}; --set evaluation.report_on={splits[0]}"
            raise RecipeError(one.name, what)
        for name, task in one.tasks.items():
            primary = task.metrics[0], other.tasks[name].metrics[0]
            if primary[0] != primary[1]:
                what = f"scores task {quote(name)} by {primary[0]}, {quote(other.name)} by {primary[1]}"
                raise RecipeError(one.name, f"{what}; compare by the same metric")


def baseline_of(plan: Mapping[str, Sequence[Planned]], given: str | None) -> str | None:
    """Name of the row that differences are to."""
    if given is not None:
        if given not in plan:
            what = f"{quote(given)} is none of these recipes{did_you_mean(given, plan)} ({', '.join(plan)})"
            raise UsageError("--baseline", what)
        return given
    alone = [name for name, row in plan.items() if row[0].recipe.algorithm.name == "individual"]
    return alone[0] if alone else None


def check_data(runs: Sequence[Planned]) -> None:
    """Raise DataError if two of the runs that have begun read files of other contents."""
    seen: dict[str, tuple[str, Any]] = {}
    for run in runs:
        if not run.folder.lock_file.exists():
            continue
        for key, sha256 in run.folder.lock()["data"].items():
            who, other = seen.setdefault(key, (run.label, sha256))
            if other != sha256:
                what = f"{key} has sha256 {str(other)[:4]}.. in {quote(who)}, {str(sha256)[:4]}.. in {quote(run.label)}"
                raise DataError(str(run.folder.path), f"{what}; compare runs on the same data")


def comparison(plan: Mapping[str, Sequence[Planned]], baseline: str | None, registry: Registry) -> dict[str, Any]:
    """Rows of means, intervals and differences, from the summaries and predictions of finished runs."""
    summaries = {name: [_summary(run) for run in row] for name, row in plan.items()}
    first = next(iter(plan.values()))[0].recipe
    metrics = {task: registry.get("metric", made.metrics[0], "tasks") for task, made in first.tasks.items()}
    signs = {task: 1.0 if metric.greater_is_better else -1.0 for task, metric in metrics.items()}
    # of metrics that point in different directions the mean says nothing of better or worse
    signs[MEAN] = next(iter(signs.values())) if len(set(signs.values())) == 1 else 0.0
    rows: list[dict[str, Any]] = []
    for name, made in summaries.items():
        cells = {}
        for column in signs:
            values = [_value(summary, column) for summary in made]
            mean, low, high = over_seeds(values)
            if low is None and column != MEAN:  # of one run its own interval, over its examples
                low, high = made[0]["tasks"][column]["low"], made[0]["tasks"][column]["high"]
            cells[column] = {"values": values, "mean": mean, "low": low, "high": high, "best": False}
        rows.append(
            {
                "name": name,
                "algorithm": made[0]["algorithm"],
                "seeds": [summary["seed"] for summary in made],
                "runs": [str(run.folder.path) for run in plan[name]],
                "columns": cells,
                "examples": _mean(made, "examples"),
                "seconds": _mean(made, "seconds"),
                "peak_memory_bytes": max(summary["peak_memory_bytes"] for summary in made),
            }
        )
    for column, sign in signs.items():
        top = max(sign * row["columns"][column]["mean"] for row in rows)
        for row in rows:
            row["columns"][column]["best"] = (
                len(rows) > 1 and sign != 0 and sign * row["columns"][column]["mean"] == top
            )
    if baseline is not None and len(rows) > 1:
        _add_differences(rows, plan, baseline, metrics, signs)
    return {
        "split": first.evaluation.report_on,
        "baseline": baseline,
        "metrics": {task: metric.name for task, metric in metrics.items()},
        "rows": rows,
    }


def _add_differences(
    rows: Sequence[dict[str, Any]],
    plan: Mapping[str, Sequence[Planned]],
    baseline: str,
    metrics: Mapping[str, Metric],
    signs: Mapping[str, float],
) -> None:
    """To every row but the baseline: its differences, and whether they are a transfer that is surely negative."""
    base = [row["name"] for row in rows].index(baseline)
    draws: dict[str, list[Array]] = {}  # column -> of each row the values of its seeds [K, D]
    for task, metric in metrics.items():
        labels, predictions = _predictions(plan, task)
        seed = derive(0, "paired", task)  # the same resamples in every comparison of these predictions
        draws[task] = on_resamples(labels, predictions, metric, seed)
    draws[MEAN] = [np.mean(parts, axis=0) for parts in zip(*(draws[task] for task in metrics), strict=True)]
    for number, row in enumerate(rows):
        if number == base:
            continue
        single = min(len(row["seeds"]), len(rows[base]["seeds"])) == 1
        for column, cell in row["columns"].items():
            if not signs[column]:
                continue
            observed = cell["mean"] - rows[base]["columns"][column]["mean"]
            pair = draws[column][number], draws[column][base]
            found = difference(observed, difference_draws(*pair, same_seeds=row["seeds"] == rows[base]["seeds"]))
            worst = found.high if signs[column] > 0 else found.low
            # one seed says nothing of how far another would be off
            worse = None if single or worst is None else signs[column] * worst < 0
            cell["delta"] = asdict(found) | {"negative_transfer": worse}


def _summary(run: Planned) -> dict[str, Any]:
    summary = run.folder.finished()
    if summary is None:
        raise CheckpointError(str(run.folder.path), "is not finished; run the same command again")
    return summary


def _value(summary: Mapping[str, Any], column: str) -> float:
    return float(summary[MEAN] if column == MEAN else summary["tasks"][column]["value"])


def _mean(summaries: Sequence[Mapping[str, Any]], key: str) -> float:
    return math.fsum(summary[key] for summary in summaries) / len(summaries)


def _predictions(plan: Mapping[str, Sequence[Planned]], task: str) -> tuple[Array, list[Array]]:
    """Labels [N] of a task, and of each row the predictions [K, N] of its seeds."""
    labels: Array | None = None
    rows: list[list[Array]] = []
    for row in plan.values():
        rows.append([])
        for run in row:
            path = run.folder.path / "predictions" / f"{task}-{run.recipe.evaluation.report_on}.csv"
            found, made = read_predictions(path, run.recipe.tasks[task])
            if labels is None:
                labels = found
            elif len(found) != len(labels) or not np.array_equal(found, labels):
                raise CheckpointError(
                    str(path), "holds other examples than the other runs; train it again with --fresh"
                )
            rows[-1].append(made)
    assert labels is not None
    return labels, [np.array(row) for row in rows]


def read_predictions(path: Path, task: Task) -> tuple[Array, Array]:
    """Labels and predictions [N] as numbers, classes by their index."""
    index = {name: float(number) for number, name in enumerate(task.objective.classes)}

    def number(text: str) -> float:
        return index[text] if index else float(text)

    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = [(number(row["label"]), number(row["prediction"])) for row in csv.DictReader(file)]
        labels, predictions = np.array(rows, dtype=np.float64).T
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        what = f"cannot be read ({type(error).__name__}: {error}); mtmeta eval {path.parents[1]} writes it again"
        raise CheckpointError(str(path), what) from error
    return labels, predictions
