"""Summaries and predictions of runs -> means over the seeds, with intervals -> paired differences to a baseline."""

from __future__ import annotations

import csv
import io
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

from mtmeta.core.api.contracts import Metric, Task
from mtmeta.core.data.dataset import entries
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
    Seen,
    as_metrics_see,
    difference,
    difference_draws,
    effect_size,
    interval_at,
    on_resamples,
    over_seeds,
)
from mtmeta.core.wording import exception_line

MEAN = "mean"
TELLING = 3
"""Seeds from which on intervals are shown, and rows marked by them: that of two is ten times as wide as they differ."""


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
    metrics = _metrics(first, registry, protocol.tasks)
    summaries = {name: [_summary(run) for run in row] for name, row in plan.items()}
    several = sum(map(len, plan.values())) > 1  # a run alone is compared with nothing
    predictions = {task: _predictions(plan, task, metric) for task, metric in metrics.items() if several}
    for task, of in predictions.items():
        for runs, run_summaries, values, seen in zip(plan.values(), summaries.values(), of.rows, of.seen, strict=True):
            for run, summary, of_run, beside in zip(runs, run_summaries, values, seen, strict=True):
                _check_value(run, summary, task, metrics[task], of.labels, of_run, beside)
    signs = signs_of(first, registry, protocol.tasks)
    rows = [_row(runs, summaries[name], list(signs)) for name, runs in plan.items()]
    for row in rows:
        row["look"] = asdict(look) if looks and (look := looks.get(row["name"])) else None
    if len(rows) > 1:
        draws = _draws(predictions, metrics)
        _mark_best(rows, draws, signs)
        _add_differences(rows, draws, protocol, signs)
    return {
        "split": first.evaluation.report_on,
        "baseline": next(iter(protocol.baselines), None),
        "baselines": list(protocol.baselines),
        "margin": protocol.margin,
        "metrics": {task: metric.name for task, metric in metrics.items()},
        "signs": signs,
        "rows": rows,
        "notes": notes_on_recipes([row[0].recipe for row in plan.values()], protocol.tasks) + notes_on_runs(plan),
        "left_out": {},
    }


def signs_of(recipe: Recipe, registry: Registry, tasks: Sequence[str] = ()) -> dict[str, float]:
    """Return of each task, and of the mean, 1 where more is better, -1 where less is, and 0 where nothing is.

    `tasks` are those that count, by default all. Of metrics that point in different directions the mean says nothing of
    better or worse.
    """
    metrics = _metrics(recipe, registry, tasks)
    signs = {task: 1.0 if metric.greater_is_better else -1.0 for task, metric in metrics.items()}
    return signs | {MEAN: next(iter(signs.values())) if len(set(signs.values())) == 1 else 0.0}


def _metrics(recipe: Recipe, registry: Registry, tasks: Sequence[str]) -> dict[str, Metric]:
    return {name: registry.get("metric", recipe.scored[name].metrics[0], "tasks") for name in tasks or recipe.scored}


def _row(runs: Sequence[Planned], summaries: Sequence[RunSummary], columns: Sequence[str]) -> dict[str, Any]:
    """Build the row of one recipe, without differences; which column is best is settled among all rows."""
    cells = {}
    tasks = [column for column in columns if column != MEAN]
    for column in columns:
        of = tasks if column == MEAN else [column]
        values = [fmean([summary.tasks[task].value for task in of]) for summary in summaries]
        mean, low, high = over_seeds(values)
        if low is None and column != MEAN:  # of one run its own interval, over its examples
            low, high = summaries[0].tasks[column].low, summaries[0].tasks[column].high
        cells[column] = {"values": values, "mean": mean, "low": low, "high": high, "best": False, "surely_best": False}
        if column != MEAN:
            cells[column]["others"] = _others([summary.tasks[column].others for summary in summaries])
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


def _others(scores: Sequence[Mapping[str, float]]) -> dict[str, dict[str, Any]]:
    """Return a task's other metrics that all runs of a row have: values, mean, and its interval over the seeds."""
    found = {}
    for name in scores[0]:
        if all(name in of_run for of_run in scores):
            values = [of_run[name] for of_run in scores]
            mean, low, high = over_seeds(values)
            found[name] = {"values": values, "mean": mean, "low": low, "high": high}
    return found


def _draws(predictions: Mapping[str, _OfTask], metrics: Mapping[str, Metric]) -> dict[str, list[Array]]:
    """Return of each column, and in it of each row, the values of its seeds on resamples of the examples [K, D]."""
    draws = {  # the same resamples in every comparison of these predictions
        task: on_resamples(
            predictions[task].labels,
            predictions[task].rows,
            metric,
            derive(0, "paired", task),
            seen=predictions[task].seen,
        )
        for task, metric in metrics.items()
    }
    return draws | {MEAN: [np.mean(parts, axis=0) for parts in zip(*draws.values(), strict=True)]}


def _mark_best(
    rows: Sequence[dict[str, Any]], draws: Mapping[str, Sequence[Array]], signs: Mapping[str, float]
) -> None:
    """Mark the best mean of each column, and whether it surely is: its difference to every other row excludes 0.

    A row that is none of the best is called so only if all these intervals err at once, so the error stays at 5%
    however many rows there are (Berger 1982, "Multiparameter hypothesis testing and acceptance sampling").
    """
    for column, sign in signs.items():
        if not sign:
            continue
        top = max(sign * row["columns"][column]["mean"] for row in rows)
        for number, row in enumerate(rows):
            cell = row["columns"][column]
            cell["best"] = sign * cell["mean"] == top
            cell["surely_best"] = cell["best"] and all(
                _is_above(row, other, column, sign, draws[column][number], draws[column][at])
                for at, other in enumerate(rows)
                if at != number
            )


def _is_above(
    row: Mapping[str, Any], other: Mapping[str, Any], column: str, sign: float, draws: Array, other_draws: Array
) -> bool:
    """Return whether a row is surely better than another one, of enough seeds to tell."""
    pair = _pair(row, other, column, draws, other_draws)
    if min(len(pair.values), len(pair.base_values)) < TELLING:
        return False
    looks = [one["look"] for one in (row, other) if one["look"] is not None]
    look = max(looks, key=lambda look: look["level"]) if looks and column == MEAN and pair.paired else None
    delta = _delta(pair, look, sign, None)
    low, high = delta["low"], delta["high"]
    return low is not None and high is not None and (low if sign > 0 else -high) > 0


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
    paired: bool
    """Whether both are of the same seeds, in one order."""
    seeds: Sequence[int]
    """Those of the row that stand in the difference."""


def _pair(row: Mapping[str, Any], base: Mapping[str, Any], column: str, draws: Array, base_draws: Array) -> _Pair:
    """Return what a difference is made of: the seeds that both have, or all of both where less than two are common.

    The order of the runs has no say: seeds are paired by their numbers.
    """
    values, base_values = row["columns"][column]["values"], base["columns"][column]["values"]
    seeds, base_seeds = row["seeds"], base["seeds"]
    common = sorted({*seeds} & {*base_seeds})
    paired = len(common) > 1 or common == [*seeds] == [*base_seeds]
    own, its = (common, common) if paired else (sorted(seeds), sorted(base_seeds))
    mine, theirs = [seeds.index(seed) for seed in own], [base_seeds.index(seed) for seed in its]
    return _Pair(
        [values[at] for at in mine],
        [base_values[at] for at in theirs],
        draws[mine],
        base_draws[theirs],
        paired=paired,
        seeds=own,
    )


def _delta(pair: _Pair, look: Mapping[str, Any] | None, sign: float, margin: float | None) -> dict[str, Any]:
    """Return a difference as plain data; of a mean that was looked at on the way at the level of that look."""
    observed = fmean(pair.values) - fmean(pair.base_values)
    delta = difference(observed, difference_draws(pair.draws, pair.base_draws, same_seeds=pair.paired))
    effect = effect_size(pair.values, pair.base_values, same_seeds=pair.paired)
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
    sure = {"negative_transfer": worse, "non_inferior": not_inferior}
    counts = len(pair.values), len(pair.base_values)
    made_of = {"seeds": list(pair.seeds), "paired": pair.paired, "fewest": min(counts)}
    return asdict(changed) | sure | made_of | {"too_few": any(1 < count < TELLING for count in counts)}


def _summary(run: Planned) -> RunSummary:
    """Return the summary of a run. Raises CheckpointError if it has none, or one of another run."""
    summary = run.folder.finished()
    if summary is None:
        raise CheckpointError(str(run.folder.path), "is not finished; run the same command again")
    recipe, options, scores = run.recipe, run.recipe.evaluation, summary.tasks
    expected: dict[str, Any] = {"split": options.report_on, "seed": recipe.seed, "algorithm": recipe.algorithm.name}
    expected["selected_on"] = options.select_on
    wrong = [key for key, value in expected.items() if getattr(summary, key) != value]
    if {task: score.metric for task, score in scores.items()} != {n: t.metrics[0] for n, t in recipe.scored.items()}:
        wrong.append("tasks")
    elif not math.isclose(summary.mean, fmean([score.value for score in scores.values()]), abs_tol=1e-9):
        wrong.append(MEAN)
    if wrong:
        message = f"is not that of the run's recipe ({', '.join(wrong)})"
        raise CheckpointError(str(run.folder.summary), f"{message}; remove it and the same command writes it again")
    return summary


def _check_value(
    run: Planned, summary: RunSummary, task: str, metric: Metric, labels: Array, predictions: Array, seen: Seen
) -> None:
    """Raise CheckpointError if the metric of a summary is not that of the predictions beside it."""
    recorded = summary.tasks[task].value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of constant predictions
        value = metric(labels, predictions, **metric.seen(seen))
    # numbers are written with six digits, classes in full
    slack = 1e-9 if run.recipe.scored[task].objective.classes else 1e-3 * max(1.0, abs(recorded))
    if not abs(recorded - value) <= slack:
        message = f"says {recorded:.6g} for {task} {metric.name}, the predictions beside it come to {value:.6g}"
        raise CheckpointError(str(run.folder.summary), f"{message}; remove it and the same command writes both again")


@dataclass(frozen=True)
class _OfTask:
    """The labels [N] of a task, and of each row the predictions [K, N] of its seeds, and what else metrics may take."""

    labels: Array
    rows: list[Array]
    seen: list[list[Seen]]


def _predictions(plan: Mapping[str, Sequence[Planned]], task: str, metric: Metric) -> _OfTask:
    """Read what all runs predicted for a task. Raises CheckpointError."""
    labels: Array | None = None
    rows: list[list[Array]] = [[] for _ in plan]
    seen: list[list[Seen]] = [[] for _ in plan]
    for predictions_of_row, seen_of_row, row in zip(rows, seen, plan.values(), strict=True):
        for run in row:
            path = run.folder.path / "predictions" / f"{task}-{run.recipe.evaluation.report_on}.csv"
            part = run.recipe.scored[task]
            own_labels, predictions, beside = read_with_scores(path, part, "scores" in metric.takes)
            own_labels, predictions = (as_metrics_see(part.objective, each) for each in (own_labels, predictions))
            seen_of_row.append(beside)
            if labels is None:
                labels = own_labels
            elif not same_labels(own_labels, labels):
                message = f"holds other examples than the other runs; remove {run.folder.path} to train it again"
                raise CheckpointError(str(path), message)
            predictions_of_row.append(predictions)
    assert labels is not None
    return _OfTask(labels, [np.stack(row) for row in rows], seen)


def same_labels(one: Array, other: Array) -> bool:
    """Return whether two arrays of labels are equal, missing ones included."""
    return np.array_equal(one, other, equal_nan=one.dtype != object and other.dtype != object)


def read_predictions(path: Path, task: Task) -> tuple[Array, Array]:
    """Read labels and predictions [N] as numbers, classes by their index, and -1 for a label that is none; of label
    sets [N, L]."""
    labels, predictions, _ = read_with_scores(path, task, scores=False)
    return labels, predictions


def read_predicted_examples(path: Path, task: Task) -> tuple[list[str], Array, Array]:
    """Read the ids [N] of examples, and their labels and predictions as `read_predictions` does."""
    labels, predictions, seen = read_with_scores(path, task, scores=False)
    return seen["ids"].tolist(), labels, predictions


def read_with_scores(path: Path, task: Task, scores: bool) -> tuple[Array, Array, Seen]:
    """Read labels, predictions, and what metrics may take beside them: `scores` [N, C] where they are wanted."""
    index = {name: float(number) for number, name in enumerate(task.objective.classes)}
    number: Callable[[str], Any] = index.__getitem__ if index else float
    if task.objective.labelled != "one":
        number = lru_cache(maxsize=4096)(task.objective.parse)
    is_open = bool(index) and task.objective.labelled == "one"
    of_label: Callable[[str], Any] = (lambda label: index.get(label, -1.0)) if is_open else number
    seen: dict[str, Any] = {"classes": task.objective.classes}
    try:
        with open_regular(path, LIMITS["predictions"], within=path.parents[1]) as file:
            text = io.TextIOWrapper(file, encoding="utf-8", newline="")
            written = list(csv.DictReader(text))
        rows = [(of_label(row["label"]), number(row["prediction"])) for row in written]
        if task.objective.labelled == "words":
            labels, predictions = (entries(column) for column in zip(*rows, strict=True))
        else:
            labels, predictions = np.array(rows, dtype=np.float64).swapaxes(0, 1)
        seen["ids"] = np.array([row["id"] for row in written], dtype=object)
        if scores:
            seen["scores"] = np.array([str(row["scores"]).split() for row in written], dtype=np.float64)
        numbers = (labels, predictions) if labels.dtype != object else ()
        if task.objective.partial:  # a label may be missing
            numbers = (np.nan_to_num(labels), predictions)
        if not all((np.abs(each) <= LARGEST).all() for each in (*numbers, seen.get("scores", 0.0))):
            raise ValueError("a number that is not finite, or beyond every measure")
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        reason = str(error) if isinstance(error, UnfitFile) else f"cannot be read ({exception_line(error)})"
        raise CheckpointError(str(path), f"{reason}; mtmeta eval {path.parents[1]} writes it again") from error
    return labels, predictions, seen
