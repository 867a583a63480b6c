"""What a comparison says without the scored pairs that share a sentence with the training file.

    python -m benchmarks.sharing RUNS --data DATA [--task para] [--baseline NAME] [--json]

RUNS is the folder of a finished `mtmeta compare` of recipes of the same tasks. Prints, for all scored rows and for
those of `--task` that have no sentence (words alone, letter case and punctuation aside) in common with its whole
training file: the mean of each recipe over its seeds, of the task and of all tasks, and the difference to the baseline,
by the same paired two-level bootstrap as `compare`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.contracts import Task
from mtmeta.core.data.tokens import hashes
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.rng import derive
from mtmeta.core.studies.comparison import read_predicted_examples
from mtmeta.core.tables.data_file import DataFile
from mtmeta.core.training.statistics import difference, difference_draws, on_resamples, over_seeds

Array = NDArray[Any]
Rows = dict[str, dict[int, Path]]
"""The runs of each recipe, by seed."""


def main() -> None:
    """Read the runs, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--task", default="para")
    parser.add_argument("--baseline")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    registry = build_registry(block=(), warn=print)
    rows, recipe = find_runs(options.runs, registry)
    apart = without_sharing(recipe.tasks[options.task], recipe, options.data)
    baseline = options.baseline or next(iter(rows))
    if baseline not in rows:
        raise SystemExit(f"error: --baseline: no recipe {baseline} in {options.runs} ({', '.join(rows)})")
    for row in [row for row, runs in rows.items() if sorted(runs) != sorted(rows[baseline])]:
        print(f"left out: {row}, of other seeds than {baseline}")
        del rows[row]
    found = {
        "all rows": table(rows, recipe, registry, options.task, baseline, None),
        "no sentence in common": table(rows, recipe, registry, options.task, baseline, apart),
    }
    if options.json:
        print(json.dumps(found))
        return
    for title, lines in found.items():
        print(f"{title}: {lines['scored']:,} rows of {options.task}; differences to {baseline}")
        for name, cells in lines["recipes"].items():
            print(f"  {name}: " + "; ".join(shown(column, cell) for column, cell in cells.items()))


def shown(column: str, cell: Mapping[str, Any]) -> str:
    """Return a cell as text."""
    text = f"{column} {cell['mean']:.4f}"
    if "delta" in cell:
        text += f" {cell['delta']:+.4f} [{cell['low']:+.4f}, {cell['high']:+.4f}]"
    return text


def find_runs(folder: Path, registry: Registry) -> tuple[Rows, Recipe]:
    """Return the finished runs of a folder by recipe and seed, and a recipe of them."""
    rows: Rows = {}
    recipe: Recipe | None = None
    for path in sorted(folder.glob("*/summary.json")):
        recipe = load_recipe(path.parent / "recipe.yaml", registry)
        rows.setdefault(recipe.name, {})[recipe.seed] = path.parent
    if recipe is None:
        raise SystemExit(f"error: {folder}: holds no finished run")
    return rows, recipe


def without_sharing(task: Task, recipe: Recipe, data: str) -> set[str]:
    """Return the ids of scored examples of which no sentence stands in the training file of the task."""
    texts: dict[str, tuple[list[str], Array]] = {}
    for split in ("train", "dev"):
        examples = list(task.read(DataFile(Path(data) / str(getattr(task, split)), recipe.data)))
        pairs = [each.pair for each in examples if each.pair is not None]
        columns = [[each.text for each in examples], *([pairs] if pairs else [])]
        texts[split] = [each.id for each in examples], hashes(*columns)
    ids, scored = texts["dev"]
    shares = np.asarray(np.isin(scored, texts["train"][1]).any(axis=1))
    apart = {name for name, both in zip(ids, shares.tolist(), strict=True) if not both}
    if not apart:
        raise SystemExit("error: every scored row shares a sentence with the training file")
    return apart


def table(
    rows: Rows, recipe: Recipe, registry: Registry, filtered: str, baseline: str, kept: set[str] | None
) -> dict[str, Any]:
    """Return means over seeds of `filtered`, of which the ids `kept` count, and of all tasks, with differences."""
    values: dict[str, dict[str, list[float]]] = {name: {} for name in rows}
    draws: dict[str, dict[str, Array]] = {name: {} for name in rows}
    scored = 0
    for name, task in recipe.tasks.items():
        metric = registry.get("metric", task.metrics[0], "tasks")
        labels, predictions = read(rows, recipe, name, task, kept if name == filtered else None)
        scored = len(labels) if name == filtered else scored
        found = on_resamples(labels, list(predictions.values()), metric, derive(0, "paired", name))
        for row, of_row, drawn in zip(rows, predictions.values(), found, strict=True):
            values[row][name] = [metric(labels, each) for each in of_row]
            draws[row][name] = drawn
    recipes: dict[str, Any] = {}
    for row in rows:
        values[row]["mean"] = [fmean(each) for each in zip(*values[row].values(), strict=True)]
        draws[row]["mean"] = np.mean(list(draws[row].values()), axis=0)
    for row in rows:
        recipes[row] = {column: cell(values, draws, row, baseline, column) for column in (filtered, "mean")}
    return {"scored": scored, "recipes": recipes}


def cell(
    values: Mapping[str, Mapping[str, Sequence[float]]],
    draws: Mapping[str, Mapping[str, Array]],
    row: str,
    baseline: str,
    column: str,
) -> dict[str, Any]:
    """Return the mean of a column in a row, and its difference to the baseline."""
    mean = over_seeds(values[row][column])[0]
    if row == baseline:
        return {"mean": mean}
    drawn = difference_draws(draws[row][column], draws[baseline][column], same_seeds=True)
    delta = difference(mean - fmean(values[baseline][column]), drawn)
    return {"mean": mean, "delta": delta.value, "low": delta.low, "high": delta.high}


def read(rows: Rows, recipe: Recipe, name: str, task: Task, kept: set[str] | None) -> tuple[Array, dict[str, Array]]:
    """Return the labels [N] of a task, and of each row the predictions [K, N] of its seeds, in their order."""
    labels: Array | None = None
    found: dict[str, Array] = {}
    seeds = sorted(next(iter(rows.values())))
    for row, runs in rows.items():
        each = []
        for seed in seeds:
            path = runs[seed] / "predictions" / f"{name}-{recipe.evaluation.report_on}.csv"
            ids, own, predictions = read_predicted_examples(path, task)
            mask = np.array([kept is None or one in kept for one in ids])
            if labels is None:
                labels = own[mask]
            if not np.array_equal(labels, own[mask]):
                raise SystemExit(f"error: {path}: holds other examples than the other runs")
            each.append(predictions[mask])
        found[row] = np.stack(each)
    assert labels is not None
    return labels, found


if __name__ == "__main__":
    main()
