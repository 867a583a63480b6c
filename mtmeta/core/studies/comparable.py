"""Checks that recipes and runs can stand in one table, and notes on how they differ for its readers.

Differences in the measurement (labels, columns, metric, split, data) are refused, those in training are noted.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mtmeta.core.api.option_types import Carve
from mtmeta.core.errors import DataError, RecipeError, UsageError
from mtmeta.core.recipe.resolved import describe, plain
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.run.directory import CODE, PLUGINS, RunDir
from mtmeta.core.run.fetch import splits_read
from mtmeta.core.tables.data_file import Dialect
from mtmeta.core.wording import did_you_mean, quote, safe

# options of a task that say how it is trained; which files it has, their hashes say
TRAINING = ("batch_size", "inner_steps", "loss_weight", "loss", "train", "dev", "test")
MODEL = ("pair_mode", "orders", "activation", "long")  # options of a task that say how it is modelled
VERSIONS = ("mtmeta", "torch", "device", "precision")
Fact = tuple[str, str, str]
"""Row, run, and the value it has."""


@dataclass(frozen=True)
class Planned:
    """One recipe with one seed, and where its run lies."""

    path: str | Path
    recipe: Recipe
    folder: RunDir

    @property
    def label(self) -> str:
        return f"{self.recipe.name} seed {self.recipe.seed}"

    @property
    def has_begun(self) -> bool:
        """Return whether its directory holds a run, finished or not; a lock without a recipe is a cut beginning."""
        return self.folder.recipe.exists() and self.folder.lock_file.exists()


def check_alike(recipes: Sequence[Recipe], tasks: Sequence[str] = ()) -> None:
    """Raise RecipeError unless all measure the same: tasks, their inputs and labels, metrics, splits.

    `tasks` are those that count, by default all. Raises UsageError for one that a recipe lacks.
    """
    for name in tasks:
        for recipe in recipes:
            if name not in recipe.scored:
                message = f"{quote(name)} is no task of {quote(recipe.name)}{did_you_mean(name, recipe.scored)}"
                raise UsageError("--tasks", f"{message} (tasks: {', '.join(recipe.scored)})")
    one = recipes[0]
    for other in recipes[1:]:
        for message in _contradictions(one, other, quote(other.name), tasks):
            raise RecipeError(one.name, message)


def _contradictions(one: Recipe, other: Recipe, who: str, tasks: Sequence[str]) -> Iterator[str]:
    if not tasks and sorted(one.scored) != sorted(other.scored):
        names = f"{', '.join(one.scored)}, and {who} {', '.join(other.scored)}"
        common = [name for name in one.scored if name in other.scored]
        fix = f"or say which count: --tasks {','.join(common)}" if common else "these have none in common"
        yield f"trains {names}; compare recipes of the same tasks, {fix}"
    for key, verb in (("report_on", "reports on"), ("select_on", "selects on")):
        splits = getattr(one.evaluation, key), getattr(other.evaluation, key)
        if splits[0] != splits[1]:
            yield f"{verb} {splits[0]}, {who} on {splits[1]}; --set evaluation.{key}={splits[0]}"
    used = {*splits_read(one), *splits_read(other)}
    for name in tasks or one.scored:
        task = one.scored[name]
        taken = task.dev, other.scored[name].dev
        if taken[0] != taken[1] and "dev" in used and any(isinstance(dev, Carve) for dev in taken):
            message = f"takes another dev split out of task {quote(name)} than {who}; give both the same"
            yield f"{message} 'dev: {{fraction: ..., seed: ...}}'"
        primary = task.metrics[0], other.scored[name].metrics[0]
        if primary[0] != primary[1]:
            yield f"scores task {quote(name)} by {primary[0]}, {who} by {primary[1]}; compare by the same metric"
        here, there = _measured(one, name), _measured(other, name)
        for key in dict.fromkeys([*here, *there]):
            if here.get(key) != there.get(key):
                message = f"has {_shown(here.get(key))} for tasks.{name}.{key}, {who} has {_shown(there.get(key))}"
                yield f"{message}; compare recipes that measure the same"


def _measured(recipe: Recipe, name: str) -> dict[str, Any]:
    """Return those of a task's options that decide which examples and labels are scored."""
    task = recipe.scored[name]
    left_out = (*TRAINING, *MODEL, "metrics", "dialect")
    described = {"task": task.name, **plain(task, named=False)}
    measured = {key: value for key, value in described.items() if key not in left_out}
    if "labels" in measured:
        measured["labels"] = list(task.objective.classes)  # `2` and `[0, 1]` are the same
    # not on_bad_rows: of one file, `error` lets a run come to its end only where there is nothing to skip
    dialect = task.dialect or recipe.data
    named = [field.name for field in fields(Dialect) if field.name != "id"]  # what examples are called is no matter
    return measured | {f"dialect.{name}": getattr(dialect, name) for name in named}


def check_data(runs: Sequence[Planned]) -> None:
    """Raise DataError if two of the runs that have begun read files of other contents."""
    seen: dict[str, tuple[str, Any]] = {}
    for run in (run for run in runs if run.has_begun):
        for key, sha256 in run.folder.lock()["data"].items():
            who, other = seen.setdefault(key, (run.label, sha256))
            if other != sha256:
                hashes = f"{str(other)[:4]}.. in {quote(who)}, {str(sha256)[:4]}.. in {quote(run.label)}"
                message = f"{key} has sha256 {hashes}; compare runs on the same data"
                raise DataError(str(run.folder.path), message)


def notes_on_recipes(recipes: Sequence[Recipe], tasks: Sequence[str] = ()) -> list[str]:
    """Return a line for each differing option that is not the regime's own: backbone, share of the data, selection.

    `tasks` are those that count, by default all; what recipes train beside them is told too.
    """
    facts: dict[str, list[Fact]] = {}
    helpers = {recipe.name: ", ".join(n for n in recipe.scored if tasks and n not in tasks) for recipe in recipes}
    lines = [
        f"{safe(name)} also trains {safe(more)}, which do not count here." for name, more in helpers.items() if more
    ]
    for recipe in recipes:
        for key, value in _background(describe(recipe), tasks):
            facts.setdefault(key, []).append((recipe.name, recipe.name, _shown(value)))
    return lines + [line for key, listed in facts.items() for line in _differing(key, listed, len(recipes))]


def _background(data: Mapping[str, Any], tasks: Sequence[str]) -> Iterator[tuple[str, Any]]:
    yield from ((f"backbone.{key}", value) for key, value in data["backbone"].items())
    shares = data["budget"]["shares"]
    yield "budget.shares", shares and ", ".join(f"{task} {share:g}" for task, share in shares.items())
    yield "data.train_fraction", data["data"]["train_fraction"]
    for name, task in data["tasks"].items():
        if tasks and name not in tasks:
            continue
        yield from ((f"tasks.{name}.{key}", task[key]) for key in (*MODEL, "loss") if key in task)
    yield "training.precision", data["training"]["precision"]
    yield "training.stop", data["training"]["stop"]
    yield "evaluation.select", data["evaluation"]["select"]


def notes_on_runs(plan: Mapping[str, Sequence[Planned]]) -> list[str]:
    """Return a line for each version, device and set of weights that differs among runs, as their locks have it."""
    facts: dict[str, list[Fact]] = {}
    for name, run in ((name, run) for name, row in plan.items() for run in row):
        for key, value in _versions(run):
            facts.setdefault(key, []).append((name, run.label, value))
    lines = [line for key, listed in facts.items() for line in _differing(key.partition("|")[0], listed, len(listed))]
    return list(dict.fromkeys(lines))  # a line for the same weights, not for every seed


def _versions(run: Planned) -> Iterator[tuple[str, str]]:
    lock = run.folder.lock()
    for key in VERSIONS:
        yield key, safe(str(lock.get(key, "unknown")))
    for key, noun in ((PLUGINS, "plugin"), (CODE, "code of plugin")):
        plugins = lock.get(key)
        for plugin, version in plugins.items() if isinstance(plugins, dict) else ():
            yield f"{noun} {safe(str(plugin))}", safe(str(version))
    # weights that the recipes name alike; random ones are those of their seed
    options = json.dumps(describe(run.recipe)["backbone"], sort_keys=True)
    yield f"backbone weights|{run.recipe.seed}{options}", safe(str(lock.get("backbone", "unknown")), 16)


def _differing(key: str, facts: Sequence[Fact], whole: int) -> Iterable[str]:
    """Yield one line where they differ; a value that all runs of a row share stands under the row's name."""
    if len({value for *_, value in facts}) < 2 and len(facts) == whole:
        return
    by_value: dict[str, dict[str, None]] = {}  # the inner one as an ordered set
    for row, run, value in facts:
        alike = {other for name, _, other in facts if name == row} == {value}
        by_value.setdefault(value, {})[safe(row if alike else run)] = None
    yield f"Rows differ in {key}: " + "; ".join(f"{value} ({', '.join(who)})" for value, who in by_value.items()) + "."


def _shown(value: Any) -> str:
    return safe(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str))
