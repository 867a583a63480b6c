"""Summaries and predictions of runs -> means over the seeds, with intervals -> paired differences to a baseline."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mtmeta.core.api.contracts import Metric, Task
from mtmeta.core.errors import CheckpointError
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import Registry
from mtmeta.core.rng import derive
from mtmeta.core.run.summary import LARGEST, RunSummary
from mtmeta.core.storage.reading import LIMITS, UnfitFile, open_regular
from mtmeta.core.studies.comparable import Planned, notes_on_recipes, notes_on_runs
from mtmeta.core.studies.protocol import Protocol
from mtmeta.core.training.statistics import (
    Array,
    Look,
    difference,
    difference_draws,
    effect_size,
    interval_at,
    on_resamples,
    over_seeds,
)
from mtmeta.core.wording import exception_line

MEAN = "mean"


def comparison(
    plan: Mapping[str, Sequence[Planned]],
    protocol: Protocol,
    registry: Registry,
    looks: Mapping[str, Look] | None = None,
) -> dict[str, Any]:
    """Build rows of means, intervals and differences, from the summaries and predictions of finished runs.

    `protocol` must be settled for these rows. `looks` names the look at which each row got no further seeds, of those
    that were looked at on the way.
    """
    first = next(iter(plan.values()))[0].recipe
    metrics = _metrics(first, registry)
    summaries = {name: [_summary(run) for run in row] for name, row in plan.items()}
    several = sum(map(len, plan.values())) > 1  # a run alone is compared with nothing
    predictions = {task: _predictions(plan, task) for task in metrics if several}
    for task, (labels, by_row) in predictions.items():
        for runs, run_summaries, run_predictions in zip(plan.values(), summaries.values(), by_row, strict=True):
            for run, summary, values in zip(runs, run_summaries, run_predictions, strict=True):
                _check_value(run, summary, task, metrics[task], labels, values)
    signs = signs_of(first, registry)
    rows = [_row(runs, summaries[name], list(signs)) for name, runs in plan.items()]
    for column, sign in signs.items():
        cells = [row["columns"][column] for row in rows]
        top = max(sign * cell["mean"] for cell in cells)
        for cell in cells:
            cell["best"] = len(rows) > 1 and sign != 0 and sign * cell["mean"] == top
    for row in rows:
        row["look"] = asdict(look) if looks and (look := looks.get(row["name"])) else None
    if protocol.baselines and len(rows) > 1:
        _add_differences(rows, _draws(predictions, metrics), protocol, signs)
    return {
        "split": first.evaluation.report_on,
        "baseline": next(iter(protocol.baselines), None),
        "baselines": list(protocol.baselines),
        "margin": protocol.margin,
        "metrics": {task: metric.name for task, metric in metrics.items()},
        "rows": rows,
        "notes": notes_on_recipes([row[0].recipe for row in plan.values()]) + notes_on_runs(plan),
        "left_out": {},
    }


def signs_of(recipe: Recipe, registry: Registry) -> dict[str, float]:
    """Return of each task, and of the mean, 1 where more is better, -1 where less is, and 0 where nothing is.

    Of metrics that point in different directions the mean says nothing of better or worse.
    """
    signs = {task: 1.0 if metric.greater_is_better else -1.0 for task, metric in _metrics(recipe, registry).items()}
    return signs | {MEAN: next(iter(signs.values())) if len(set(signs.values())) == 1 else 0.0}


def _metrics(recipe: Recipe, registry: Registry) -> dict[str, Metric]:
    return {name: registry.get("metric", task.metrics[0], "tasks") for name, task in recipe.tasks.items()}


def _row(runs: Sequence[Planned], summaries: Sequence[RunSummary], columns: Sequence[str]) -> dict[str, Any]:
    """Build the row of one recipe, without differences; which column is best is settled among all rows."""
    cells = {}
    for column in columns:
        values = [summary.mean if column == MEAN else summary.tasks[column].value for summary in summaries]
        mean, low, high = over_seeds(values)
        if low is None and column != MEAN:  # of one run its own interval, over its examples
            low, high = summaries[0].tasks[column].low, summaries[0].tasks[column].high
        cells[column] = {"values": values, "mean": mean, "low": low, "high": high, "best": False}
    return {
        "name": runs[0].recipe.name,
        "algorithm": runs[0].recipe.algorithm.name,
        "seeds": [run.recipe.seed for run in runs],
        "runs": [str(run.folder.path) for run in runs],
        "columns": cells,
        "examples": fmean([summary.examples + summary.teacher_examples for summary in summaries]),
        "teacher_examples": fmean([summary.teacher_examples for summary in summaries]),
        "seconds": fmean([summary.seconds for summary in summaries]),
        "peak_memory_bytes": max(summary.peak_memory_bytes for summary in summaries),
        "parameters": next((size for summary in summaries if (size := summary.parameters) is not None), None),
        "encodings": next((count for summary in summaries if (count := summary.encodings) is not None), None),
    }


def _draws(
    predictions: Mapping[str, tuple[Array, list[Array]]], metrics: Mapping[str, Metric]
) -> dict[str, list[Array]]:
    """Return of each column, and in it of each row, the values of its seeds on resamples of the examples [K, D]."""
    draws = {  # the same resamples in every comparison of these predictions
        task: on_resamples(*predictions[task], metric, derive(0, "paired", task)) for task, metric in metrics.items()
    }
    return draws | {MEAN: [np.mean(parts, axis=0) for parts in zip(*draws.values(), strict=True)]}


def _add_differences(
    rows: Sequence[dict[str, Any]], draws: Mapping[str, Sequence[Array]], protocol: Protocol, signs: Mapping[str, float]
) -> None:
    """Add to every row its differences to each baseline but itself, and what these surely are."""
    names = [row["name"] for row in rows]
    for baseline in protocol.baselines:
        base = names.index(baseline)
        for number, row in enumerate(rows):
            if number == base:
                continue
            for column, sign in signs.items():
                if not sign:
                    continue
                pair = _pair(row, rows[base], column, draws[column][number], draws[column][base])
                cell = row["columns"][column]
                delta = _delta(pair, row["look"] if column == MEAN else None, sign, protocol.margin)
                cell.setdefault("deltas", {})[baseline] = delta
                if baseline == protocol.baselines[0]:
                    cell["delta"] = delta


@dataclass(frozen=True)
class _Pair:
    """The values of a column in a row and in a baseline: of their seeds [K], and on resamples [K, D]."""

    values: Sequence[float]
    base_values: Sequence[float]
    draws: Array
    base_draws: Array
    same_seeds: bool


def _pair(row: Mapping[str, Any], base: Mapping[str, Any], column: str, draws: Array, base_draws: Array) -> _Pair:
    """Return what a difference is made of: where a row got fewer seeds on purpose, of the baseline the same ones."""
    values, base_values = row["columns"][column]["values"], base["columns"][column]["values"]
    seeds, base_seeds = row["seeds"], base["seeds"]
    if row["look"] is not None and seeds != base_seeds:
        common = [seed for seed in seeds if seed in base_seeds]
        mine, its = [seeds.index(seed) for seed in common], [base_seeds.index(seed) for seed in common]
        values, base_values = [values[at] for at in mine], [base_values[at] for at in its]
        return _Pair(values, base_values, draws[mine], base_draws[its], same_seeds=True)
    return _Pair(values, base_values, draws, base_draws, same_seeds=seeds == base_seeds)


def _delta(pair: _Pair, look: Mapping[str, Any] | None, sign: float, margin: float | None) -> dict[str, Any]:
    """Return a difference as plain data; of a mean that was looked at on the way at the level of that look."""
    observed = fmean(pair.values) - fmean(pair.base_values)
    delta = difference(observed, difference_draws(pair.draws, pair.base_draws, same_seeds=pair.same_seeds))
    effect = effect_size(pair.values, pair.base_values, same_seeds=pair.same_seeds)
    low, high, p = delta.low, delta.high, delta.p
    if look is not None:
        found = interval_at(
            look["level"], np.subtract(pair.values, pair.base_values).tolist(), (pair.draws - pair.base_draws).mean(0)
        )
        low, high, p = (*found, None) if found else (None, None, None)
    worse = not_inferior = None  # one seed says nothing of how far another would be off
    if low is not None and high is not None and min(len(pair.values), len(pair.base_values)) > 1:
        worst, best = (low, high) if sign > 0 else (-high, -low)
        worse, not_inferior = best < 0, None if margin is None else worst > -margin
    changed = replace(delta, low=low, high=high, p=p, effect=effect)
    return asdict(changed) | {"negative_transfer": worse, "non_inferior": not_inferior}


def _summary(run: Planned) -> RunSummary:
    """Return the summary of a run. Raises CheckpointError if it has none, or one of another run."""
    summary = run.folder.finished()
    if summary is None:
        raise CheckpointError(str(run.folder.path), "is not finished; run the same command again")
    recipe, options, scores = run.recipe, run.recipe.evaluation, summary.tasks
    expected: dict[str, Any] = {"split": options.report_on, "seed": recipe.seed, "algorithm": recipe.algorithm.name}
    expected["selected_on"] = options.select_on
    wrong = [key for key, value in expected.items() if getattr(summary, key) != value]
    if {task: score.metric for task, score in scores.items()} != {n: t.metrics[0] for n, t in recipe.tasks.items()}:
        wrong.append("tasks")
    elif not math.isclose(summary.mean, fmean([score.value for score in scores.values()]), abs_tol=1e-9):
        wrong.append(MEAN)
    if wrong:
        message = f"is not that of the run's recipe ({', '.join(wrong)})"
        raise CheckpointError(str(run.folder.summary), f"{message}; remove it and the same command writes it again")
    return summary


def _check_value(
    run: Planned, summary: RunSummary, task: str, metric: Metric, labels: Array, predictions: Array
) -> None:
    """Raise CheckpointError if the metric of a summary is not that of the predictions beside it."""
    recorded = summary.tasks[task].value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant predictions
        value = metric(labels, predictions)
    # numbers are written with six digits, classes in full
    slack = 1e-9 if run.recipe.tasks[task].objective.classes else 1e-3 * max(1.0, abs(recorded))
    if not abs(recorded - value) <= slack:
        message = f"says {recorded:.6g} for {task} {metric.name}, the predictions beside it come to {value:.6g}"
        raise CheckpointError(str(run.folder.summary), f"{message}; remove it and the same command writes both again")


def _predictions(plan: Mapping[str, Sequence[Planned]], task: str) -> tuple[Array, list[Array]]:
    """Return the labels [N] of a task, and of each row the predictions [K, N] of its seeds."""
    labels: Array | None = None
    rows: list[list[Array]] = [[] for _ in plan]
    for predictions_of_row, row in zip(rows, plan.values(), strict=True):
        for run in row:
            path = run.folder.path / "predictions" / f"{task}-{run.recipe.evaluation.report_on}.csv"
            own_labels, predictions = read_predictions(path, run.recipe.tasks[task])
            if labels is None:
                labels = own_labels
            elif not np.array_equal(own_labels, labels):
                message = f"holds other examples than the other runs; remove {run.folder.path} to train it again"
                raise CheckpointError(str(path), message)
            predictions_of_row.append(predictions)
    assert labels is not None
    return labels, [np.array(row) for row in rows]


def read_predictions(path: Path, task: Task) -> tuple[Array, Array]:
    """Read labels and predictions [N] as numbers, classes by their index."""
    index = {name: float(number) for number, name in enumerate(task.objective.classes)}
    number: Callable[[str], float] = index.__getitem__ if index else float
    try:
        with open_regular(path, LIMITS["predictions"], within=path.parents[1]) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            rows = [(number(row["label"]), number(row["prediction"])) for row in csv.DictReader(text)]
        labels, predictions = np.array(rows, dtype=np.float64).T
        if not (np.abs([labels, predictions]) <= LARGEST).all():
            raise ValueError("a number that is not finite, or beyond every measure")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = str(error) if isinstance(error, UnfitFile) else f"cannot be read ({exception_line(error)})"
        raise CheckpointError(str(path), f"{reason}; mtmeta eval {path.parents[1]} writes it again") from error
    return labels, predictions
