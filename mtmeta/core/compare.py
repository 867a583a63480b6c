"""`mtmeta compare`: the same tasks under several regimes and seeds, in one table that can be trusted.

recipes x seeds -> runs, each trained, continued or reused -> their summaries and predictions -> means over the seeds
with intervals -> differences to a baseline by the paired bootstrap.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtmeta.core.contracts import SAMPLE, Metric, Task
from mtmeta.core.errors import (
    CheckpointError,
    DataError,
    MtmetaError,
    RecipeError,
    UsageError,
    did_you_mean,
    quote,
    raise_all,
)
from mtmeta.core.many import Job, run_all
from mtmeta.core.options import Recipe
from mtmeta.core.paired import Array, difference, over_seeds, resampled
from mtmeta.core.recipe import load_recipe
from mtmeta.core.registry import Registry, build_registry
from mtmeta.core.resolved import digest
from mtmeta.core.rng import derive
from mtmeta.core.rundir import RunDir
from mtmeta.core.signals import StopRequest
from mtmeta.core.tables import DataFile, Dialect

__all__ = ["Planned", "baseline_of", "check_alike", "check_data", "compare", "comparison", "read_predictions"]

MEAN = "mean"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Planned:
    """One recipe with one seed, and where its run lies."""

    path: str | Path
    recipe: Recipe
    folder: RunDir

    @property
    def label(self) -> str:
        return f"{self.recipe.name} seed {self.recipe.seed}"


def compare(
    recipes: Sequence[str | Path],
    *,
    seeds: int = 3,
    overrides: Sequence[str] = (),
    out: str | Path = "runs/compare",
    data_root: str | None = None,
    device: str = "auto",
    baseline: str | None = None,
    jobs: int = 1,
    block: Sequence[str] = (),
    warn: Say = lambda text: None,
    say: Say = lambda text: None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Run every recipe with every seed, and return the comparison that `--json` shows.

    The seeds of a recipe are its own and the `seeds` - 1 numbers after it. Runs lie in `out`, named after recipe, seed
    and digest: those that are finished are used as they are, those that were cut go on. `baseline` names the recipe
    that differences are to; by default the one that trains each task alone. Raises MtmetaError, RecipeError where the
    recipes have not the same tasks, metrics and report split, DataError where they read other data.
    """
    registry = build_registry(block=block, warn=warn)
    plan = _plan(recipes, registry, seeds, overrides, Path(out), data_root)
    chosen = baseline_of(plan, baseline)
    arguments = [f"--set={text}" for text in overrides] + [f"--no-plugin={name}" for name in block]
    arguments += [f"--device={device}"] + ([f"--data-root={data_root}"] if data_root else [])
    runs = [run for position in zip(*plan.values(), strict=True) for run in position]  # of the first seed first
    waiting = {run.folder.path: run for run in runs if not _is_finished(run)}
    _check_files([run for run in runs if run.folder.path not in waiting])
    todo = [
        Job(run.label, path, [str(run.path), *arguments, f"--set=seed={run.recipe.seed}"])
        for path, run in waiting.items()
    ]
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished already, in {out}")
    check_data(runs)

    def ended(job: Job) -> None:
        _check_recipe(waiting[job.folder])
        check_data(runs)

    run_all(todo, at_once=jobs, say=say, ended=ended, stop=stop)
    return comparison(plan, chosen, registry)


# ------------------------------------------------------------------------------------------------------ before the runs


def _plan(
    paths: Sequence[str | Path],
    registry: Registry,
    seeds: int,
    overrides: Sequence[str],
    out: Path,
    data_root: str | None,
) -> dict[str, list[Planned]]:
    """The runs of each recipe, by its name. All that is wrong with the recipes is raised together."""
    plan: dict[str, list[Planned]] = {}
    problems: list[MtmetaError] = []
    for path in paths:
        try:
            first = load_recipe(path, registry, overrides=overrides, data_root=data_root)
            row = []
            for seed in range(first.seed, first.seed + seeds):
                recipe = load_recipe(path, registry, overrides=[*overrides, f"seed={seed}"], data_root=data_root)
                row.append(Planned(path, recipe, RunDir(out / f"{recipe.name}-{seed}-{digest(recipe)[:8]}")))
            if first.name in plan:
                what = f"has the name {quote(first.name)} of another recipe; give each a 'name:' of its own"
                raise RecipeError(str(path), what)
            plan[first.name] = row
        except MtmetaError as error:
            problems.append(error)
    raise_all(problems)
    check_alike([row[0].recipe for row in plan.values()])
    return plan


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


def _is_finished(run: Planned) -> bool:
    """Whether a run of this very recipe has ended in its directory."""
    return run.folder.check_usable(run.recipe, fresh=False) and run.folder.finished() is not None


def _check_recipe(run: Planned) -> None:
    """Raise RecipeError if a run was trained with another recipe than the one that was read in the beginning."""
    try:
        run.folder.check_usable(run.recipe, fresh=False)
    except CheckpointError as error:
        what = f"was edited while the comparison ran; remove {run.folder.path} and run the same command again"
        raise RecipeError(str(run.path), what) from error


def _check_files(runs: Sequence[Planned]) -> None:
    """Raise DataError if a finished run was trained or scored on other files than its recipe names now."""
    hashes: dict[Path, str] = {}
    for run in runs:
        recipe, before = run.recipe, run.folder.lock()["data"]
        for name, task in recipe.tasks.items():
            for split in dict.fromkeys(("train", recipe.evaluation.select_on, recipe.evaluation.report_on)):
                given = getattr(task, split)
                if given == SAMPLE:
                    continue
                path = Path(recipe.data_root) / given
                if path not in hashes:
                    hashes[path] = DataFile(path, task.dialect or Dialect()).sha256()
                if before.get(f"{name}-{split}") != hashes[path]:
                    what = f"is not the file that {run.folder.path} was trained with; choose another --out"
                    raise DataError(str(path), what)


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


# ------------------------------------------------------------------------------------------------------- after the runs


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
    names = [row["name"] for row in rows]
    base = names.index(baseline)
    draws: dict[str, Array] = {}
    for task, metric in metrics.items():
        labels, predictions = _predictions(plan, task)
        seed = derive(0, "paired", task)  # the same resamples in every comparison of these predictions
        draws[task] = resampled(labels, predictions, metric, seed)
    draws[MEAN] = np.mean([draws[task] for task in metrics], axis=0)
    for number, row in enumerate(rows):
        if number == base:
            continue
        for column, cell in row["columns"].items():
            if not signs[column]:
                continue
            observed = cell["mean"] - rows[base]["columns"][column]["mean"]
            found = difference(observed, draws[column][number] - draws[column][base])
            worst = found.high if signs[column] > 0 else -found.low
            cell["delta"] = asdict(found) | {"negative_transfer": worst < 0}


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
