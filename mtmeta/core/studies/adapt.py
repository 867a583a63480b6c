"""`mtmeta adapt`: few-shot adaptation of a trained run to tasks it has not seen, beside the plain pretrained encoder.

For every task, number of shots k and draw: k examples of each class -> fine-tuning from each start, with the recipe's
optimizer, schedule and steps -> the dev metric. The gain of meta-learning is the difference between the starts, on the
same examples and with the same head.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import torch
from torch import Tensor

from mtmeta.core.api.schedules import Plateau
from mtmeta.core.data.dataset import QUANTILES, Dataset
from mtmeta.core.data.subsets import draw_shots, strata
from mtmeta.core.errors import RecipeError, UsageError
from mtmeta.core.machine import fitting_threads, memory_errors, own_settings
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.rng import derive
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.evaluate import open_run, restore_backbone
from mtmeta.core.run.fetch import bring, local_backbone
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import Session
from mtmeta.core.storage.artifacts import remedy
from mtmeta.core.storage.sources import Sources
from mtmeta.core.studies.adapted_runs import Keeper
from mtmeta.core.studies.fine_tune import Tuned, fine_tune, prototypes
from mtmeta.core.training import evaluation
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.statistics import over_seeds
from mtmeta.core.wording import quote

HeadPolicy = Literal["reset", "prototype"]
PLAIN = "pretrained"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Shots:
    """The adaptations of one start to one task."""

    sizes: Sequence[int] = (4, 16, 64)
    """Numbers of examples of each class."""
    draws: int = 5
    """Seeded draws of examples for each size."""
    head: HeadPolicy = "reset"


@dataclass(frozen=True)
class Adapted:
    """The result of one adaptation."""

    start: str
    task: str
    shots: int
    draw: int
    examples: int
    metric: str
    value: float
    seconds: float


@dataclass(frozen=True)
class Start:
    """Weights of an encoder that adaptation starts from, and the step they are of."""

    weights: dict[str, Tensor]
    step: int = 0


@own_settings()
def adapt(
    run_paths: Sequence[str | Path],
    request: RunRequest,
    plan: Shots | None = None,
    *,
    tasks: Sequence[str] = (),
    keep: str | Path | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Adapt each run, and the pretrained encoder it began from, to the tasks of a recipe; the figures of `--json`.

    The request's recipe gives the tasks with their files, optimizer, schedule, `training.steps`, clipping and seed; its
    backbone and algorithm have no say. The weights after the last step are scored on `evaluation.report_on`: few shots
    leave no examples to select with. `tasks` are those of the recipe to adapt to, all by default. In the folder `keep`,
    of every run and task, the model of the first draw of the largest number of shots becomes a run `RUN-TASK-K`: which
    one is kept does not depend on any score. Raises MtmetaError.
    """
    plan = plan or Shots()
    for path in run_paths if keep is not None else ():
        RunDir(Path(path)).check_is_run()
        RunDir(Path(path)).check_own()  # its backbone is copied
    runs = _open_runs(run_paths, request)
    first = next(iter(runs.values()))
    recipe = load_recipe(request.recipe, first.registry, overrides=request.overrides, data_root=request.data_root)
    _check(recipe, tasks, plan)
    names, split = list(tasks or recipe.tasks), recipe.evaluation.report_on
    sources = Sources(watcher=request.watcher, remedy=remedy(request.recipe))
    chosen_only = replace(recipe, tasks={name: recipe.tasks[name] for name in names})
    bring(chosen_only, ("train", split), sources, backbone=False)
    session = Session(recipe, first.registry, RunDir(first.folder.path), first.device, request.warn, sources)
    starts = dict(_starts(runs))
    session.backbone = restore_backbone(first)
    session.warn_of_slowness()
    with fitting_threads(session.backbone.encoder):
        data = {name: (session.read_split(name, "train"), session.read_split(name, split)) for name in names}
        parents = {name: (run, starts[name].step) for name, run in runs.items()}
        keeper = Keeper(keep, session, parents, plan.head, max(plan.sizes), say)
        for train, test in data.values():
            keeper.plan(train, test)
        adapted: list[Adapted] = []
        fewer: dict[tuple[str, int], dict[str, int]] = {}
        for (train, test), k in product(data.values(), plan.sizes):
            cell = _adapt_cell(session, starts, train, test, k, plan, keeper)
            adapted += cell
            few = fewer_rows(train, k, recipe.tasks[train.task].objective.classes)
            fewer[train.task, k] = few
            say(_line(cell, few))
    session.show_warnings()
    return {
        "recipe": recipe.name,
        "head": plan.head,
        "split": split,
        "steps": recipe.training.steps,
        "starts": list(starts),
        "cells": _cells(adapted, list(starts), session, fewer),
        "adapted": [asdict(one) for one in adapted],
        "kept": keeper.kept,
    }


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
    if recipe.training.steps is None:
        message = f"recipe {quote(recipe.name)} gives none, and adapting takes a number of steps"
        raise RecipeError("training.steps", f"{message}; --set training.steps=50")
    if isinstance(recipe.schedule, Plateau):
        raise RecipeError("schedule", "plateau answers to a metric, and adapting has none on its way; use linear")
    if not plan.sizes or min(plan.sizes) < 1 or len(set(plan.sizes)) < len(plan.sizes):
        raise UsageError("--shots", "takes different whole numbers from 1, such as 4,16,64")
    if plan.draws < 1:
        raise UsageError("--seeds", "must be at least 1")


def _starts(runs: Mapping[str, Session]) -> Iterator[tuple[str, Start]]:
    """Yield the encoder's weights that adaptation starts from, by name: the pretrained ones, then those of each run."""
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
        yield name, Start(encoder, step)


def _adapt_cell(
    session: Session, starts: Mapping[str, Start], train: Dataset, test: Dataset, k: int, plan: Shots, keeper: Keeper
) -> list[Adapted]:
    """Adapt from every start to every draw of `k` shots of one task."""
    cell = []
    for draw in range(plan.draws):
        few = draw_shots(train, k, session.recipe.seed, train.task, draw)
        for start, origin in starts.items():
            session.backbone.encoder.load_state_dict(origin.weights)
            adapted, model, tuned = _adapt_once(session, start, few, test, plan.head, k, draw)
            cell.append(adapted)
            if draw == 0 and k == max(plan.sizes) and start != PLAIN:
                keeper.keep(start, model, few, test, tuned)
    return cell


def _adapt_once(
    session: Session, start: str, few: Dataset, test: Dataset, head: HeadPolicy, k: int, draw: int
) -> tuple[Adapted, MultiTaskModel, Tuned]:
    """Adapt the session's encoder as it stands to the few examples, with a head of its own, and score it."""
    started = time.perf_counter()
    recipe, name = session.recipe, few.task
    task, seed = recipe.tasks[name], derive(recipe.seed, "adapt", name, k, draw)
    model = MultiTaskModel(session.backbone.encoder, {name: task}, seed).to(session.device)
    options: Any = {"batch_tokens": recipe.evaluation.batch_tokens, "precision": session.precision}
    if head == "prototype":
        model.replace_head(name, prototypes(model, task, few, **options).to(session.device))
    with memory_errors(f"adapting to task '{name}'", "lower batch_size"):
        tuned = fine_tune(model, few, recipe, precision=session.precision, draw=draw)
    predictions = evaluation.predict(model, test, **options)
    scored = session.measure(predictions, intervals=False)
    adapted = Adapted(
        start=start,
        task=name,
        shots=k,
        draw=draw,
        examples=len(few),
        metric=scored.metric,
        value=scored.value,
        seconds=round(time.perf_counter() - started, 3),
    )
    return adapted, model, tuned


def fewer_rows(train: Dataset, k: int, classes: Sequence[str]) -> dict[str, int]:
    """Return the rows of each class that has fewer than `k`, or of each fifth of the ranking by a number."""
    rows = {label: len(members) for label, members in strata(train).items()}
    names = classes if train.whole and classes else [f"fifth {number + 1} of the labels" for number in range(QUANTILES)]
    return {name: rows.get(label, 0) for label, name in enumerate(names) if rows.get(label, 0) < k}


def _cells(
    adapted: Sequence[Adapted],
    starts: Sequence[str],
    session: Session,
    fewer: Mapping[tuple[str, int], Mapping[str, int]],
) -> list[dict[str, Any]]:
    """Return for each task and k: mean and interval of every start over the draws, and its gain on the pretrained one.

    Gains are paired: both starts saw the same examples. `fewer` are the classes that have fewer rows than k.
    """
    cells = []
    for task, k in dict.fromkeys((one.task, one.shots) for one in adapted):
        here = [one for one in adapted if (one.task, one.shots) == (task, k)]
        values = {start: [one.value for one in here if one.start == start] for start in starts}
        columns: dict[str, Any] = {}
        for start, of_start in values.items():
            columns[start] = {**_interval(of_start), "values": of_start}
            if start != PLAIN:
                columns[start]["gain"] = _interval([a - b for a, b in zip(of_start, values[PLAIN], strict=True)])
        sign = 1 if session.metrics[here[0].metric].greater_is_better else -1
        best = max(starts, key=lambda start: sign * columns[start]["mean"])
        cell = {"task": task, "shots": k, "metric": here[0].metric, "starts": columns, "best": best}
        cells.append({**cell, "examples": here[0].examples, "fewer": dict(fewer[task, k])})
    return cells


def _interval(values: Sequence[float]) -> dict[str, float | None]:
    return dict(zip(("mean", "low", "high"), over_seeds(values), strict=True))


def _line(cell: Sequence[Adapted], fewer: Mapping[str, int]) -> str:
    """Return a line of progress for one task and number of shots."""
    starts = dict.fromkeys(one.start for one in cell)
    means = (f"{start} {fmean(one.value for one in cell if one.start == start):.3f}" for start in starts)
    short = f" ({cell[0].examples} examples: fewer rows than shots)" if fewer else ""
    return f"{cell[0].task}, {cell[0].shots} shots: {', '.join(means)}{short}"
