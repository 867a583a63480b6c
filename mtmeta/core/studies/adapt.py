"""`mtmeta adapt`: few-shot adaptation of a trained run to tasks it has not seen, beside the plain pretrained encoder.

For every task, number of shots k and draw: k examples of each class -> fine-tuning from each start, with the recipe's
optimizer, schedule and steps -> the dev metric. What meta-learning bought is the difference between the starts, on the
same examples and with the same head.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mtmeta.core.api.events import Warned
from mtmeta.core.api.schedules import Plateau
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.subsets import draw_shots
from mtmeta.core.errors import RecipeError, UsageError
from mtmeta.core.machine import fitting_threads, memory_errors
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.rng import derive
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.evaluate import open_run, restore_backbone
from mtmeta.core.run.fetch import bring, local_backbone
from mtmeta.core.run.session import Session
from mtmeta.core.storage.artifacts import remedy
from mtmeta.core.storage.download import Watcher
from mtmeta.core.storage.sources import Sources
from mtmeta.core.studies.adapted_runs import Keeper
from mtmeta.core.studies.fine_tune import Tuned, fine_tune, prototypes
from mtmeta.core.training import evaluation
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.statistics import over_seeds
from mtmeta.core.wording import quote

__all__ = ["PLAIN", "HeadPolicy", "adapt"]

HeadPolicy = Literal["reset", "prototype"]
PLAIN = "pretrained"
Say = Callable[[str], None]


@dataclass(frozen=True)
class Adapted:
    """What one adaptation came to."""

    start: str
    task: str
    shots: int
    draw: int
    examples: int
    metric: str
    value: float
    seconds: float


def adapt(
    run_paths: Sequence[str | Path],
    recipe_path: str | Path,
    *,
    shots: Sequence[int] = (4, 16, 64),
    draws: int = 5,
    tasks: Sequence[str] = (),
    head: HeadPolicy = "reset",
    keep: str | Path | None = None,
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    device: str = "auto",
    block: Sequence[str] = (),
    warn: Say = lambda text: None,
    say: Say = lambda text: None,
    watcher: Watcher | None = None,
) -> dict[str, Any]:
    """Adapt each run, and the pretrained encoder it began from, to the tasks of a recipe; the figures of `--json`.

    The recipe gives the tasks with their files, optimizer, schedule, `training.steps`, clipping and seed; its backbone
    and algorithm have no say. The weights after the last step are scored on `evaluation.report_on`: few shots leave no
    examples to select with. `tasks` are those of the recipe to adapt to, all by default. In the folder `keep`, of every
    run and task, the model of the first draw of the largest number of shots becomes a run `RUN-TASK-K`: which one is
    kept does not depend on any score. Raises MtmetaError.
    """
    runs = {
        Path(os.path.abspath(path)).name: open_run(path, device=device, block=block, warn=warn, watcher=watcher)
        for path in run_paths
    }
    if len(runs) < len(run_paths) or PLAIN in runs:
        raise UsageError("RUN", f"run directories need names of their own, and none may be called {PLAIN}")
    first = next(iter(runs.values()))
    recipe = load_recipe(recipe_path, first.registry, overrides=overrides, data_root=data_root)
    _check(recipe, tasks, shots, draws)
    sources = Sources(watcher=watcher, remedy=remedy(recipe_path))
    named = replace(recipe, tasks={name: recipe.tasks[name] for name in tasks or recipe.tasks})
    split = recipe.evaluation.report_on
    bring(named, ("train", split), sources, backbone=False)
    session = Session(recipe, first.registry, RunDir(first.folder.path), first.device, warn, sources)
    steps: dict[str, int] = {}
    starts = dict(_starts(runs, steps))
    session.backbone = backbone = restore_backbone(first)
    found: list[Adapted] = []
    with fitting_threads(backbone.encoder):
        data = {name: (session.read_split(name, "train"), session.read_split(name, split)) for name in named.tasks}
        keeper = Keeper(keep, session, {name: (run, steps[name]) for name, run in runs.items()}, head, max(shots), say)
        for train, test in data.values():
            keeper.plan(train, test)
        for name, (train, test) in data.items():
            for k in shots:
                for draw in range(draws):
                    few = draw_shots(train, k, recipe.seed, name, draw)
                    for start, weights in starts.items():
                        backbone.encoder.load_state_dict(weights)
                        made, model, tuned = _adapt_once(session, backbone.encoder, few, test, head, k, draw)
                        found.append(replace(made, start=start))
                        if draw == 0 and k == max(shots) and start != PLAIN:
                            keeper.keep(start, model, few, test, tuned)
                say(_line(found, name, k))
    for note in session.notes:
        if isinstance(note, Warned):
            warn(note.text)
    return {
        "recipe": recipe.name,
        "head": head,
        "split": split,
        "steps": recipe.training.steps,
        "starts": list(starts),
        "cells": _cells(found, list(starts), session),
        "adapted": [asdict(made) for made in found],
        "kept": keeper.kept,
    }


def _check(recipe: Recipe, tasks: Sequence[str], shots: Sequence[int], draws: int) -> None:
    for name in tasks:
        if name not in recipe.tasks:
            raise UsageError("--task", f"the recipe has no task {quote(name)} (tasks: {', '.join(recipe.tasks)})")
    if recipe.training.steps is None:
        message = (
            f"recipe {quote(recipe.name)} gives none, and adapting takes a number of steps; --set training.steps=50"
        )
        raise RecipeError("training.steps", message)
    if isinstance(recipe.schedule, Plateau):
        raise RecipeError("schedule", "plateau answers to a metric, and adapting has none on its way; use linear")
    if not shots or min(shots) < 1 or len(set(shots)) < len(shots):
        raise UsageError("--shots", "takes different whole numbers from 1, such as 4,16,64")
    if draws < 1:
        raise UsageError("--seeds", "must be at least 1")


def _starts(runs: Mapping[str, Session], steps: dict[str, int]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The encoder's weights that adaptation starts from, by name: the pretrained ones, then those of each run.

    `steps` takes the step that a run's weights are of.
    """
    shapes: dict[str, torch.Size] | None = None
    for name, run in runs.items():
        if len(run.groups) > 1:
            message = f"has a model of its own for each of {', '.join(run.recipe.tasks)}; adapt a run that shares one"
            raise UsageError(str(run.folder.path), message)
        if shapes is None:
            local = local_backbone(run.recipe, run.sources)
            plain = local.load(run.recipe.seed).encoder.state_dict()
            shapes = {key: value.shape for key, value in plain.items()}
            yield PLAIN, {key: value.clone() for key, value in plain.items()}
        weights, steps[name] = run.checkpoints(run.groups[0]).best_and_step()
        found = {k.removeprefix("encoder."): v for k, v in weights.items() if k.startswith("encoder.")}
        if {key: value.shape for key, value in found.items()} != shapes:
            raise UsageError(str(run.folder.path), "has another encoder than the first run; adapt them one by one")
        yield name, found


def _adapt_once(
    session: Session, encoder: nn.Module, few: Dataset, test: Dataset, head: HeadPolicy, k: int, draw: int
) -> tuple[Adapted, MultiTaskModel, Tuned]:
    """Adapt the encoder as it stands to the few examples, with a head of its own, and score it."""
    started = time.perf_counter()
    recipe, name = session.recipe, few.task
    task = recipe.tasks[name]
    model = MultiTaskModel(encoder, {name: task}, derive(recipe.seed, "adapt", name, k, draw))
    model.to(session.device)
    options: Any = {"batch_tokens": recipe.evaluation.batch_tokens, "precision": session.precision}
    if head == "prototype":
        model.replace_head(name, prototypes(model, task, few, **options).to(session.device))
    with memory_errors(f"adapting to task '{name}'", "lower batch_size"):
        tuned = fine_tune(model, few, recipe, precision=session.precision, draw=draw)
    predictions = evaluation.predict(model, test, **options)
    metrics = [session.metrics[metric] for metric in task.metrics]
    scored, warnings = evaluation.score(predictions, metrics, seed=recipe.seed, intervals=False)
    for text in warnings:
        session.warn(text)
    seconds = round(time.perf_counter() - started, 3)
    return Adapted("", name, k, draw, len(few), scored.metric, scored.value, seconds), model, tuned


# ------------------------------------------------------------------------------------------------------------- figures


def _cells(found: Sequence[Adapted], starts: Sequence[str], session: Session) -> list[dict[str, Any]]:
    """For each task and k: mean and interval of every start over the draws, and the differences to the pretrained one.

    Differences are paired: both starts saw the same examples.
    """
    cells = []
    for task, k in dict.fromkeys((made.task, made.shots) for made in found):
        here = [made for made in found if (made.task, made.shots) == (task, k)]
        values = {start: [made.value for made in here if made.start == start] for start in starts}
        made_of: dict[str, Any] = {}
        for start in starts:
            mean, low, high = over_seeds(values[start])
            made_of[start] = {"mean": mean, "low": low, "high": high, "values": values[start]}
            if start != PLAIN:
                gained = [a - b for a, b in zip(values[start], values[PLAIN], strict=True)]
                mean, low, high = over_seeds(gained)
                made_of[start]["gain"] = {"mean": mean, "low": low, "high": high}
        sign = 1 if session.metrics[here[0].metric].greater_is_better else -1
        best = max(starts, key=lambda start: sign * made_of[start]["mean"])
        cells.append({"task": task, "shots": k, "metric": here[0].metric, "starts": made_of, "best": best})
    return cells


def _line(found: Sequence[Adapted], task: str, k: int) -> str:
    means: dict[str, list[float]] = {}
    for made in found:
        if (made.task, made.shots) == (task, k):
            means.setdefault(made.start, []).append(made.value)
    shown = ", ".join(f"{start} {math.fsum(values) / len(values):.3f}" for start, values in means.items())
    return f"{task}, {k} shots: {shown}"
