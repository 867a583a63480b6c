"""`mtmeta adapt`: few-shot adaptation of a trained run to tasks it has not seen, beside the plain pretrained encoder.

For every task, number of shots k and draw: k examples of each class -> fine-tuning from each start, with the recipe's
optimizer, schedule and steps -> the dev metric. The gain of meta-learning is the difference between the starts, on the
same examples and with the same head.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from itertools import islice, product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch
from torch import Tensor

from mtmeta.core.api.option_types import Carve
from mtmeta.core.api.schedules import Plateau
from mtmeta.core.data.dataset import QUANTILES, Dataset
from mtmeta.core.data.loading import load_split
from mtmeta.core.data.subsets import SAMPLE_PLACES, FewShots, rows_by_class, sample_path
from mtmeta.core.errors import DataError, NoExamples, RecipeError, UsageError
from mtmeta.core.machine import fitting_threads, free_memory, one_thread, own_settings
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.evaluate import best_model, open_run, restore_backbone
from mtmeta.core.run.fetch import bring, local_backbone
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import Session
from mtmeta.core.storage.addresses import is_remote
from mtmeta.core.storage.sources import Sources
from mtmeta.core.studies.adaptations import PLAIN, Adaptations, Adapted, Channels, Outcome, Shots, Start
from mtmeta.core.studies.adapted_runs import Keeper
from mtmeta.core.studies.processes.forks import can_fork, in_order
from mtmeta.core.training.statistics import over_seeds
from mtmeta.core.wording import did_you_mean, plural, quote, span

Say = Callable[[str], None]
ROOM = 2**29  # bytes that an adaptation takes beside weights, gradient and moments


@own_settings()
def adapt(
    run_paths: Sequence[str | Path],
    request: RunRequest,
    plan: Shots | None = None,
    *,
    tasks: Sequence[str] = (),
    keep: str | Path | None = None,
    jobs: int | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Adapt each run, and the pretrained encoder it began from, to the tasks of a recipe; the figures of `--json`.

    The request's recipe gives the tasks with their files, optimizer, schedule, `training.steps`, clipping and seed; its
    backbone and algorithm have no say. The weights after the last step are scored on `evaluation.report_on`: few shots
    leave no examples to select with. `tasks` are those of the recipe to adapt to, all by default. In the folder `keep`,
    of every run and task, the model of the first draw of the largest number of shots becomes a run `RUN-TASK-K`: which
    one is kept does not depend on any score. On a CPU `jobs` adaptations are under way at a time, with one thread each,
    by default as many as there are cores. Raises MtmetaError.
    """
    plan = plan or Shots()
    for path in run_paths if keep is not None else ():
        RunDir(Path(path)).check_is_run()
        RunDir(Path(path)).check_own()  # its backbone is copied
    channels = Channels(request.warn, say)
    request = replace(request, warn=channels.warn)
    runs = _open_runs(run_paths, request)
    if plan.baseline is not None and plan.baseline not in runs:
        message = f"{quote(plan.baseline)} is none of the runs{did_you_mean(plan.baseline, runs)} ({', '.join(runs)})"
        raise UsageError("--baseline", message)
    first = next(iter(runs.values()))
    recipe = load_recipe(request.recipe, first.registry, overrides=request.overrides, data_root=request.data_root)
    _check(recipe, tasks, plan)
    names, split = list(tasks or recipe.tasks), recipe.evaluation.report_on
    sources = Sources(watcher=request.watcher, remedy=request.remedy)
    chosen_only = replace(recipe, tasks={name: recipe.tasks[name] for name in names})
    bring(chosen_only, ("train", split), sources, backbone=False)
    session = Session(recipe, first.registry, RunDir(first.folder.path), first.device, channels.warn, sources)
    starts = dict(_starts(runs, names, channels))
    session.backbone = restore_backbone(first)
    session.warn_of_slowness()
    count = len(names) * len(plan.sizes) * plan.draws * len(starts)  # at most
    with fitting_threads(session.backbone.encoder):
        copies = copies_for(session, count, jobs)
        with one_thread() if copies else nullcontext():
            data = {name: (few_shots(session, name, plan), session.read_split(name, split)) for name in names}
            parents = {name: (run, starts[name].step) for name, run in runs.items()}
            keeper = Keeper(keep, session, parents, plan.head, max(plan.sizes), channels.say)
            for shots, test in data.values():
                keeper.plan(shots, test)
            adaptations = Adaptations(session, starts, data, plan, keeper, channels)
            with closing(in_order(len(adaptations), adaptations, copies)) as outcomes:
                figures = _figures(outcomes, session, data, list(starts), plan, channels)
    session.show_warnings()
    return figures


def copies_for(session: Session, count: int, jobs: int | None) -> int:
    """Return how many copies of this process do the adaptations, each with one thread; 0: this one, with all it has.

    Raises UsageError for a number that cannot be had.
    """
    possible = can_fork(session.device)
    if jobs is not None:
        if jobs > 1 and not possible:
            raise UsageError("--jobs", "several adaptations at a time need Linux and no GPU; leave it out")
        return jobs if possible else 0
    cores, free = torch.get_num_threads(), free_memory()
    # weights, gradient, two moments; what they start from and the data are shared
    each = ROOM + sum(4 * p.numel() * p.element_size() for p in session.backbone.encoder.parameters())
    most = min(cores, count, cores if free is None else free // each)
    # a few on many cores are quicker one after another, each with all of them
    return most if possible and most > 1 and 4 * most >= cores else 0


def _figures(
    outcomes: Iterator[Outcome],
    session: Session,
    data: Mapping[str, tuple[FewShots, Dataset]],
    starts: Sequence[str],
    plan: Shots,
    channels: Channels,
) -> dict[str, Any]:
    """Return the figures of `--json` of outcomes as they come, cell by cell, and tell of them."""
    recipe = session.recipe
    adapted: list[Adapted] = []
    kept: list[str] = []
    fewer: dict[tuple[str, int], dict[str, int]] = {}
    for (name, (shots, _)), k in product(data.items(), plan.sizes):
        cell, draws = [], shots.draws(k, plan.draws)
        for outcome in islice(outcomes, len(draws) * len(starts)):
            channels.release(outcome.lines)
            cell.append(outcome.adapted)
            kept += outcome.kept
        adapted += cell
        classes = recipe.tasks[name].objective.classes
        # what is drawn of one training set has as many of each class every time; fixed samples hold what they hold
        few = [shots.draw(k, draw) for draw in (draws if shots.fixed else draws[:1])]
        fewer[name, k] = _fewest([fewer_rows(one, k, classes) for one in few])
        channels.say(_line(cell, fewer[name, k]))
    figures = {
        "recipe": recipe.name,
        "head": plan.head,
        "split": recipe.evaluation.report_on,
        "steps": recipe.training.steps,
        "starts": list(starts),
        "baseline": plan.baseline,
        "draws": plan.draws,
        "cells": _cells(adapted, starts, session, fewer, plan.baseline),
        "adapted": [asdict(one) for one in adapted],
        "kept": kept,
    }
    return figures | {"means": means_over_tasks(figures)}


def _open_runs(paths: Sequence[str | Path], request: RunRequest) -> dict[str, Session]:
    """Open runs by the names of their directories. Raises UsageError where two have the same."""
    own_data = replace(request, data_root=None)  # the one given is for the recipe of new tasks
    runs = {Path(os.path.abspath(path)).name: open_run(path, own_data) for path in paths}
    if len(runs) < len(paths) or PLAIN in runs:
        raise UsageError("RUN", f"run directories need names of their own, and none may be called {PLAIN}")
    return runs


def _check(recipe: Recipe, tasks: Sequence[str], plan: Shots) -> None:
    for name in tasks:
        if name not in recipe.tasks:
            raise UsageError("--task", f"the recipe has no task {quote(name)} (tasks: {', '.join(recipe.tasks)})")
    for name, task in recipe.tasks.items():
        if task.parts:
            message = "has several labels for each text, and few shots are drawn by one; write a task for each label"
            raise RecipeError(f"tasks.{name}", message)
        named = [place for place in SAMPLE_PLACES if place in task.train]
        if named and (len(named) < len(SAMPLE_PLACES) or isinstance(task.dev, Carve) or is_remote(task.train)):
            message = "names fixed samples of a few examples; it takes {shots} and {draw}, files here, and a dev file"
            raise RecipeError(f"tasks.{name}.train", message)
    if recipe.training.steps is None:
        message = f"recipe {quote(recipe.name)} gives none, and adapting takes a number of steps"
        raise RecipeError("training.steps", f"{message}; --set training.steps=50")
    for section, given in (("teachers", recipe.teachers), ("data.leave_out", recipe.data.leave_out)):
        if given is not None:
            raise RecipeError(section, "has no part in adapting, which goes by a few labels alone; leave it out")
    if recipe.adapters is not None:
        message = "have no part in adapting, which trains the whole encoder; leave them out, those of a run are used"
        raise RecipeError("adapters", message)
    if isinstance(recipe.schedule, Plateau):
        raise RecipeError("schedule", "plateau answers to a metric, and adapting has none on its way; use linear")
    if recipe.training.average is not None:
        raise RecipeError("training.average", "adapting takes a few steps and scores the last weights; leave it out")
    if recipe.training.stop is not None:
        raise RecipeError("training.stop", "adapting takes a few steps and evaluates after them; leave it out")
    if not plan.sizes or min(plan.sizes) < 1 or len(set(plan.sizes)) < len(plan.sizes):
        raise UsageError("--shots", "takes different whole numbers from 1, such as 4,16,64")
    if plan.draws < 1:
        raise UsageError("--seeds", "must be at least 1")


def _starts(runs: Mapping[str, Session], tasks: Sequence[str], channels: Channels) -> Iterator[tuple[str, Start]]:
    """Yield the encoder's weights that adaptation starts from, by name: the pretrained ones, then those of each run.

    A run's adapters are added to them: of a task that the run has, its own, and those that all tasks of it share.
    """
    shapes: dict[str, torch.Size] | None = None
    for name, run in runs.items():
        if len(run.groups) > 1:
            message = f"has a model of its own for each of {', '.join(run.recipe.tasks)}; adapt a run that shares one"
            raise UsageError(str(run.folder.path), message)
        if shapes is None:
            plain = local_backbone(run.recipe, run.sources).load(run.recipe.seed).encoder.state_dict()
            shapes = {key: value.shape for key, value in plain.items()}
            yield PLAIN, Start({key: value.clone() for key, value in plain.items()})
        weights, step = run.checkpoints(run.groups[0]).best_and_step()
        encoder = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
        if {key: value.shape for key, value in encoder.items()} != shapes:
            raise UsageError(str(run.folder.path), "has another encoder than the first run; adapt them one by one")
        yield name, Start(encoder, step, _adapted_starts(name, run, weights, tasks, channels))


def _adapted_starts(
    name: str, run: Session, weights: dict[str, Tensor], tasks: Sequence[str], channels: Channels
) -> dict[str, dict[str, Tensor]]:
    """Return, of each task that a run has adapters for, what these make of the encoder's weights."""
    options = run.recipe.adapters
    if options is None:
        return {}
    own = [task for task in tasks if options.per == "all" or task in run.recipe.tasks]
    if options.encoder == "frozen" and (new := [task for task in tasks if task not in own]):
        message = f"run {name} has no adapters for {', '.join(new)} and its encoder was frozen"
        channels.warn(f"{message}: it starts there as {PLAIN} does; adapters of `per: all` would be used")
    model = best_model(run, restore_backbone(run), run.groups[0], weights)
    assert model.adapters is not None
    with torch.no_grad():
        # of adapters that all tasks share, the name does not matter
        merged = {task: model.adapters.merged(task, model.encoder) for task in own}
        return {task: {key: value.detach().cpu().clone() for key, value in of.items()} for task, of in merged.items()}


def few_shots(session: Session, name: str, plan: Shots) -> FewShots:
    """Read what the few examples of a task are drawn of; of one with `{shots}` and `{draw}` in its path, all of them.

    Raises RecipeError, DataError.
    """
    recipe, task = session.recipe, session.recipe.tasks[name]
    if not any(place in task.train for place in SAMPLE_PLACES):
        return FewShots(session.read_split(name, "train"), recipe.seed)
    options: dict[str, Any] = {"cache": session.cache, "sources": session.sources}
    fixed = {}
    for k, draw in product(plan.sizes, range(plan.draws)):
        one = replace(task, train=sample_path(task.train, k, draw))
        try:
            fixed[k, draw] = load_split(name, one, "train", recipe.data, recipe.data_root, session.backbone, **options)
        except NoExamples as error:
            session.warn(f"{error}; left out of the {plural(plan.draws, 'draw')} of {plural(k, 'shot')}")
    for k in plan.sizes:
        if not any(size == k for size, _ in fixed):
            raise DataError(f"task {quote(name)}", f"has no sample with {plural(k, 'shot')} that holds an example")
    return FewShots(next(iter(fixed.values())), recipe.seed, fixed)


def fewer_rows(few: Dataset, k: int, classes: Sequence[str]) -> dict[str, int]:
    """Return the rows of each class that has fewer than `k` in a draw, or of each fifth of the ranking by a number.

    A row counts for each of the classes that it has, or that its words have.
    """
    rows = rows_by_class(few)
    names = classes if few.whole and classes else [f"fifth {number + 1} of the labels" for number in range(QUANTILES)]
    return {name: rows.get(label, 0) for label, name in enumerate(names) if rows.get(label, 0) < k}


def _fewest(counts: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """Return of each class the fewest rows in any draw, of those that have fewer than asked for in some."""
    return {name: min(one[name] for one in counts if name in one) for one in counts for name in one}


def _cells(
    adapted: Sequence[Adapted],
    starts: Sequence[str],
    session: Session,
    fewer: Mapping[tuple[str, int], Mapping[str, int]],
    baseline: str | None,
) -> list[dict[str, Any]]:
    """Return for each task and k: mean and interval of every start over the draws, and its gain on the pretrained one.

    Gains are paired: both starts saw the same examples; so are differences to another start, the `baseline`. `fewer`
    are the classes that have fewer rows than k.
    """
    cells = []
    for task, k in dict.fromkeys((one.task, one.shots) for one in adapted):
        here = [one for one in adapted if (one.task, one.shots) == (task, k)]
        values = {start: [one.value for one in here if one.start == start] for start in starts}
        sign = 1 if session.metrics[here[0].metric].greater_is_better else -1
        cell = {"task": task, "shots": k, "metric": here[0].metric, "sign": sign, **over_draws(values, sign, baseline)}
        cells.append({**cell, "examples": here[0].examples, "fewer": dict(fewer[task, k])})
    return cells


def means_over_tasks(figures: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return for each k the mean over all tasks, in the form of a cell of one task: gains are paired by draw.

    `figures` are those of `--json`. A draw that some task has no examples of is left out. Of a single task, and of
    tasks with different metrics, there is no mean.
    """
    tasks = dict.fromkeys(cell["task"] for cell in figures["cells"])
    metrics = {(cell["metric"], cell["sign"]) for cell in figures["cells"]}
    if len(tasks) < 2 or len(metrics) > 1:
        return []
    ((metric, sign),) = metrics
    value_of = {(one["task"], one["shots"], one["draw"], one["start"]): one["value"] for one in figures["adapted"]}
    means = []
    for k in dict.fromkeys(cell["shots"] for cell in figures["cells"]):
        drawn = [{draw for task, size, draw, _ in value_of if (task, size) == (name, k)} for name in tasks]
        draws = sorted(set.intersection(*drawn))
        values = {
            start: [fmean(value_of[task, k, draw, start] for task in tasks) for draw in draws]
            for start in figures["starts"]
        }
        if draws:  # at some k perhaps no draw is there of every task
            cell = {"task": f"mean of {len(tasks)} tasks", "shots": k, "metric": metric, "sign": sign}
            means.append(cell | over_draws(values, sign, figures["baseline"]))
    return means


def over_draws(values: Mapping[str, Sequence[float]], sign: int, baseline: str | None) -> dict[str, Any]:
    """Return each start's figures over the draws, how many these are, and which start is best."""
    columns: dict[str, Any] = {}
    for start, of_start in values.items():
        deviation = stdev(of_start) if len(of_start) > 1 else None
        columns[start] = {**_interval(of_start), "deviation": deviation, "values": list(of_start)}
        if start != PLAIN:
            columns[start]["gain"] = _interval(_paired(of_start, values[PLAIN]))
        if baseline is not None and start not in (PLAIN, baseline):
            columns[start]["beside"] = _interval(_paired(of_start, values[baseline]))
    best = max(values, key=lambda start: sign * columns[start]["mean"])
    return {"starts": columns, "best": best, "draws": len(values[best])}


def _paired(values: Sequence[float], others: Sequence[float]) -> list[float]:
    return [one - other for one, other in zip(values, others, strict=True)]


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    return dict(zip(("mean", "low", "high"), over_seeds(values), strict=True))


def _line(cell: Sequence[Adapted], fewer: Mapping[str, int]) -> str:
    """Return a line of progress for one task and number of shots."""
    starts = dict.fromkeys(one.start for one in cell)
    means = (f"{start} {fmean(one.value for one in cell if one.start == start):.3f}" for start in starts)
    examples = span(one.examples for one in cell)
    short = f" ({examples} examples: fewer rows than shots)" if fewer else ""
    return f"{cell[0].task}, {cell[0].shots} shots: {', '.join(means)}{short}"
