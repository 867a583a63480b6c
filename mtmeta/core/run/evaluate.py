"""`mtmeta eval`: the best weights of a finished or running run, scored on any split or file."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.errors import CheckpointError, UsageError
from mtmeta.core.machine import Heap, fitting_threads, own_settings, pick_device
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.classes import naming_classes
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run.directory import RunDir, check_hashes
from mtmeta.core.run.fetch import bring
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import Session
from mtmeta.core.run.summary import Evaluation
from mtmeta.core.storage.artifacts import pins_of, remedy
from mtmeta.core.storage.atomic import clear_leftovers
from mtmeta.core.storage.sources import Sources
from mtmeta.core.training import evaluation
from mtmeta.core.training.model import MultiTaskModel, prototype_head
from mtmeta.core.wording import did_you_mean, quote


@own_settings()
def score_run(
    run_path: str | Path,
    request: RunRequest,
    *,
    split: str | None = None,
    task: str | None = None,
    files: Mapping[str, str] | None = None,
    verbose: bool = False,
    abstain: float | None = None,
) -> Evaluation:
    """Score a run on a split, or on other files by task; see `mtmeta.evaluate`."""
    if abstain is not None:
        check_threshold(abstain)
    folder = RunDir(Path(run_path))
    folder.check_is_run()
    folder.check_own()  # predictions are written into it
    clear_leftovers(folder.path / "predictions", folder.path)
    session = open_run(run_path, request)
    recipe, files = session.recipe, files or {}
    chosen = _choose(recipe, split, task, files)
    if abstain is not None and (several := [name for name in chosen if recipe.tasks[name].parts]):
        message = f"is for tasks of one label, task {quote(several[0])} has several; name another with --task"
        raise UsageError("--abstain", message)
    split = split or recipe.evaluation.report_on
    if not files:
        chosen_only = replace(recipe, tasks={name: recipe.tasks[name] for name in chosen})
        bring(chosen_only, [split], session.sources, backbone=False)
    session.backbone = restore_backbone(session)
    session.warn_of_slowness()
    Heap()  # what a batch frees is kept for the next one, as in training
    recorded = session.folder.lock()["data"]
    scores: dict[str, evaluation.Score] = {}
    details, steps, started = {}, 0, time.perf_counter()
    with fitting_threads(session.backbone.encoder):
        for group in session.groups:
            if not (names := [name for name in group if name in chosen]):
                continue
            weights, step = session.checkpoints(group).best_and_step()
            model = best_model(session, session.backbone, group, weights)
            steps += step
            for name in names:
                dataset = session.read_split(name, split, files.get(name))
                if name in files:
                    dataset = replace(dataset, split=f"file-{Path(files[name]).stem}")
                elif not request.allow_changed_data:
                    check_hashes(recorded, {f"{name}-{split}": (dataset.file, dataset.sha256)})
                session.note(dataset)
                answer = None
                objective = recipe.tasks[name].objective
                if abstain is not None and objective.classes and objective.labelled == "one":
                    answer = evaluation.abstaining(recipe.tasks[name], abstain, session.temperatures.get(name))
                    dataset = replace(dataset, split=f"{dataset.split}-abstain")  # the run's own predictions stay
                for of, (score, predictions) in session.score(model, dataset, answer).items():
                    if task in (None, name, of):  # of several labels perhaps the one that is asked for
                        scores[of] = score
                        details[of] = evaluation.detail(recipe.scored[of], predictions)
    session.show_warnings()
    scores = {name: scores[name] for name in recipe.scored if name in scores}  # groups may be in another order
    table = session.table("file" if files else split, scores)
    table |= {"steps": steps, "seconds": round(time.perf_counter() - started, 2)}
    return Evaluation(**(table | {"details": details} if verbose else table))


def check_threshold(abstain: object) -> None:
    """Raise UsageError for what is no probability, below which no answer is given."""
    if isinstance(abstain, bool) or not isinstance(abstain, int | float) or not 0 < abstain <= 1:
        message = f"must be a probability above 0 and at most 1, found {quote(repr(abstain))}"
        raise UsageError("abstain", message)


def _choose(recipe: Recipe, split: str | None, task: str | None, files: Mapping[str, str]) -> list[str]:
    """Return the names of the tasks to score. Raises UsageError if the run lacks one, or if the options contradict."""
    chosen = [recipe.owner(task)] if task else list(files or recipe.tasks)
    for name in dict.fromkeys([*chosen, *files]):
        if name not in recipe.tasks:
            message = f"this run has no task {quote(name)}{did_you_mean(name, recipe.tasks)}"
            raise UsageError("--task" if name == task else "--file", f"{message} (tasks: {', '.join(recipe.tasks)})")
    if files and split:
        raise UsageError("--split", "names a split of the recipe, --file another file; give one of them")
    for name in files:
        if name not in chosen:
            raise UsageError("--file", f"names task {quote(name)}, --task {quote(task)}; give the same task")
    return chosen


def open_run(run_path: str | Path, request: RunRequest | None = None) -> Session:
    """Open a run's parts as its own recipe names them, without data or weights. Raises UsageError if it is no run."""
    request = request or RunRequest()
    folder = RunDir(Path(run_path))
    folder.check_is_run()
    registry = build_registry(block=request.block, warn=request.warn, plugins=request.plugins)
    # the resolved recipe holds the data root of the run itself, so the environment has no say here
    with naming_classes(folder.lock):
        recipe = load_recipe(folder.recipe, registry, data_root=request.data_root, environ={})
    pins: dict[str, str] = {}  # of the commits that the run read, wherever a branch is now
    with contextlib.suppress(CheckpointError):  # it is raised where the lock itself is needed
        pins = pins_of(folder.lock())
    sources = Sources(pins, request.watcher, remedy=remedy(folder.recipe))
    return Session(recipe, registry, folder, pick_device(request.device), request.warn, sources)


def restore_backbone(session: Session) -> LoadedBackbone:
    """Restore the run's encoder, still without its weights, and its tokenizer."""
    session.folder.check_backbone()
    return session.recipe.backbone.restore(session.folder.backbone)


def best_model(
    session: Session, backbone: LoadedBackbone, group: Sequence[str], weights: dict[str, Tensor]
) -> MultiTaskModel:
    """Build encoder and heads of a group of tasks with the given weights. Raises CheckpointError if they do not fit."""
    model = session.model(backbone.encoder, group)
    with contextlib.suppress(CheckpointError):  # without a lock the weights say whether they fit
        adapted = session.folder.lock().get("adapted")
        if isinstance(adapted, dict) and adapted.get("head") == "prototype":
            for name in group:
                model.replace_head(name, prototype_head(model, name))
    try:
        model.load_weights(weights)
    except RuntimeError as error:
        message = "its best weights do not fit its recipe; was a file replaced?"
        raise CheckpointError(str(session.folder.path), message) from error
    return model.to(session.device)
