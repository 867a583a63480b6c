"""`mtmeta teach`: models that label training sets, for other models to learn from.

With folds, K runs each train on K - 1 parts of the data and label the part that they did not see; together they are an
ensemble whose labels nobody learned by heart. Without, runs that are finished label what a recipe trains on.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtmeta.core.api.contracts import Task
from mtmeta.core.data.dataset import Dataset, select
from mtmeta.core.data.loading import load_split
from mtmeta.core.data.subsets import folds_of
from mtmeta.core.data.teachers import MOST, TableFacts, description, read_table, table_folder, write_table
from mtmeta.core.errors import CheckpointError, DataError, DivergedError, RecipeError, UsageError
from mtmeta.core.machine import Heap, fitting_threads, memory_errors, own_settings
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.guard import accused
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.evaluate import best_model, open_run, restore_backbone
from mtmeta.core.run.fetch import bring
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.session import Session
from mtmeta.core.run.summary import RunSummary
from mtmeta.core.storage.atomic import clear_leftovers
from mtmeta.core.storage.disk import fingerprint
from mtmeta.core.studies.comparable import Planned
from mtmeta.core.studies.launching.placement import POOL, Placement
from mtmeta.core.studies.launching.records import FOLDER as JOBS
from mtmeta.core.studies.planned_run import is_finished, job_of
from mtmeta.core.studies.processes.pool import Job
from mtmeta.core.training.evaluation import checked, forward
from mtmeta.core.wording import did_you_mean, quote

Say = Callable[[str], None]


def teach(
    request: RunRequest, *, folds: int | None = None, placement: Placement = POOL, say: Say = lambda text: None
) -> dict[str, Any]:
    """Write what teachers say of the training sets of a recipe; return the document of `--json`.

    With `folds`, or with those under the recipe's `teachers`, fold models of the recipe are trained in folders of the
    output directory, wherever `placement` has them run, and label what they did not see; runs that are finished are
    used as they are, those that were cut go on. Otherwise the finished runs that the recipe's `teachers` name label its
    training sets. Where the placement is to be detached, jobs of the fold models are submitted, and what they are is
    returned; the next call has them label. Raises MtmetaError.
    """
    registry = build_registry(block=request.block, warn=request.warn)
    recipe = load_recipe(request.recipe, registry, overrides=request.overrides, data_root=request.data_root)
    names = list(recipe.teachers.of) if recipe.teachers is not None else list(recipe.tasks)
    folds = folds or _folds_of_recipe(recipe)
    for name in names:
        _check_objective(name, recipe.tasks[name])
    if folds is None and placement.detach:
        raise UsageError("--detach", "is for fold models; the runs that the recipe's teachers name are finished")
    if folds is None:
        return {"recipe": recipe.name, "folds": 0, "tables": list(_by_runs(recipe, request, say))}
    if recipe.data.leave_out is not None:
        raise RecipeError("data.leave_out", "is what mtmeta teach sets for each of its folds; leave it out")
    folder = Path(request.out or Path("runs") / f"{recipe.name}-teachers")
    _check_place(folder)
    runs, jobs = _fold_models(folder, folds, registry, request, say)
    if placement.detach:
        submitted = placement.submit(jobs, folder, say)
        return {"out": str(folder), "submitted": submitted, "finished": len(runs) - len(jobs), "runs": len(runs)}
    placement.run(jobs, folder, say=say, stop=request.stop)
    for run in runs:
        if not is_finished(run):  # which also finds a recipe that was edited meanwhile
            raise DataError(str(run.folder.path), "is not finished; run the same command again")
    return {"recipe": recipe.name, "folds": folds, "tables": list(_by_folds(folder, runs, names, request, say))}


def _folds_of_recipe(recipe: Recipe) -> int | None:
    """Return the folds that the recipe's teachers are to be of; None where it says nothing of folds."""
    given = {options.folds for options in recipe.teachers.of.values()} if recipe.teachers is not None else set()
    if recipe.teachers is None:
        raise UsageError("--folds", "is needed, for the recipe has no section 'teachers'; give --folds 5")
    if len(given) > 1:
        numbers = ", ".join("none" if number is None else str(number) for number in given)
        raise UsageError("--folds", f"is needed, for the recipe's teachers differ in folds ({numbers})")
    return given.pop()


def _check_objective(name: str, task: Task) -> None:
    objective = task.objective
    if objective.labelled != "one":
        message = f"task '{name}' has labels that are no single class or number, so its models cannot teach"
        raise RecipeError(f"tasks.{name}", f"{message}; name other tasks under 'teachers'")
    if objective.classes and objective.probabilities(torch.zeros(1, objective.outputs)) is None:
        message = f"the objective of task '{name}' gives no probabilities, so its models cannot teach"
        raise RecipeError(f"tasks.{name}", f"{message}; name other tasks under 'teachers'")


def _check_place(folder: Path) -> None:
    """Raise UsageError for a folder that holds something else."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UsageError(str(folder), "is a file; choose another folder with --out")
    entries = sorted(folder.iterdir())
    for path in entries:  # what lies deeper is looked at by each run, and by who writes labels
        if path.is_symlink():
            raise UsageError(str(path), "is a symbolic link; remove it, or choose another folder with --out")
    ours = ("teachers", JOBS)
    others = [path.name for path in entries if path.name not in ours and not path.name.startswith("fold-")]
    if others:
        message = f"holds {quote(others[0])}, which is not of mtmeta teach"
        raise UsageError(str(folder), f"{message}; choose another folder with --out")


# -------------------------------------------------------------------------------------------------- fold models


def _fold_models(
    folder: Path, folds: int, registry: Registry, request: RunRequest, say: Say
) -> tuple[list[Planned], list[Job]]:
    """Return the runs of the fold models, in order, and the jobs of those that are not finished."""
    assert isinstance(request.recipe, str | Path)  # fold models are trained by a command
    runs, settings = [], {}
    for fold in range(1, folds + 1):
        place = RunDir(folder / f"fold-{fold}")
        settings[place.path] = ["teachers=null", f"data.leave_out={{folds: {folds}, fold: {fold}}}"]
        overrides = [*request.overrides, *settings[place.path]]
        recipe = load_recipe(request.recipe, registry, overrides=overrides, data_root=request.data_root)
        runs.append(Planned(request.recipe, recipe, place))
    waiting = [run for run in runs if not is_finished(run)]
    say(f"{folds} fold models, {folds - len(waiting)} of them trained already, in {folder}")
    jobs = [replace(job_of(run, request, settings[run.folder.path]), label=run.folder.path.name) for run in waiting]
    return runs, jobs


@own_settings()
def _by_folds(
    folder: Path, runs: Sequence[Planned], names: Sequence[str], request: RunRequest, say: Say
) -> Iterator[dict[str, Any]]:
    """Have each fold model label its fold; yield the description of each task's table."""
    clear_leftovers(folder / "teachers", folder)
    sessions = [_open(run.folder, request) for run in runs]
    spent = _spent(*sessions)
    for name in names:
        recipe = sessions[0].recipe
        task, weights = recipe.tasks[name], [_weights(session, name) for session in sessions]
        outputs: NDArray[np.float32] | None = None
        for fold, session in enumerate(sessions, 1):
            session.backbone = restore_backbone(session)
            data = session.read_split(name, "train")
            part = np.flatnonzero(folds_of(data, len(runs), recipe.seed, name) == fold)
            facts = _facts(name, task, data, weights, spent, folds=len(runs), seed=recipe.seed)
            if fold == 1 and _is_there(folder, facts, say):
                break
            labels = label(session, name, task, select(data, part))
            outputs = np.empty((len(data), *labels.shape[1:]), dtype=np.float32) if outputs is None else outputs
            outputs[part] = labels
        if outputs is not None:
            write_table(folder, facts, data, outputs)
        yield _described(folder, task, data)


# ------------------------------------------------------------------------------------------------ finished runs


@own_settings()
def _by_runs(recipe: Recipe, request: RunRequest, say: Say) -> Iterator[dict[str, Any]]:
    """Have the finished runs that the recipe names label its training sets; yield the description of each table."""
    assert recipe.teachers is not None
    for name, options in recipe.teachers.of.items():
        for folder in options.folders(recipe.seed):
            if not os.path.lexists(folder / "recipe.yaml"):
                if read_table(folder, name) is None:
                    message = f"is no run and has no labels of task '{name}'"
                    raise UsageError(str(folder), f"{message}; mtmeta teach RECIPE --folds 5 --out {folder} makes some")
                say(f"{folder} has labels of {name} already")
                continue
            session = _open(RunDir(folder), request)
            session.folder.check_own()
            clear_leftovers(folder / "teachers", folder)
            task = _same_task(recipe, session, name)
            bring(replace(recipe, tasks={name: task}), ["train"], session.sources, backbone=False)
            session.backbone = restore_backbone(session)
            where: Any = {"cache": session.cache, "sources": session.sources}
            data = load_split(name, task, "train", recipe.data, recipe.data_root, session.backbone, **where)
            facts = _facts(name, task, data, [_weights(session, name)], _spent(session), folds=0, seed=0)
            if not _is_there(folder, facts, say):
                write_table(folder, facts, data, label(session, name, task, data))
            yield _described(folder, task, data)


def _same_task(recipe: Recipe, session: Session, name: str) -> Task:
    """Return a run's task with the training file of the recipe. Raises UsageError if the run cannot label it."""
    place, tasks = str(session.folder.path), session.recipe.tasks
    if name not in tasks:
        raise UsageError(place, f"has no task {quote(name)}{did_you_mean(name, tasks)} (tasks: {', '.join(tasks)})")
    own, other = tasks[name].objective, recipe.tasks[name].objective
    if list(own.classes) != list(other.classes) or description(own) != description(other):
        raise UsageError(place, f"its task '{name}' has other labels than that of the recipe; name another run")
    given = recipe.tasks[name]
    return replace(tasks[name], train=given.train, dev=given.dev, dialect=given.dialect)


# ----------------------------------------------------------------------------------------------------- labelling


def label(session: Session, name: str, task: Task, data: Dataset) -> NDArray[np.float32]:
    """Return what a run's best weights say of a dataset: class probabilities [N, C], or values [N].

    Raises DivergedError if they are not finite, PluginError if an objective's answer has another shape.
    """
    group = next(group for group in session.groups if name in group)
    weights, _ = session.checkpoints(group).best_and_step()
    model = best_model(session, session.backbone, group, weights)
    tokens, classes = session.recipe.evaluation.batch_tokens, len(task.objective.classes)
    outputs = np.empty((len(data), classes) if classes else len(data), dtype=np.float32)
    Heap()  # what a batch frees is kept for the next one
    doing = f"labelling task '{name}' (batch_tokens {tokens})"
    with (
        torch.inference_mode(),
        fitting_threads(session.backbone.encoder),
        memory_errors(doing, "lower evaluation.batch_tokens"),
        closing(forward(model, data, batch_tokens=tokens, precision=session.precision)) as batches,
    ):
        for indices, _, raw in batches:
            said = task.objective.probabilities(raw) if classes else task.objective.decode(raw)
            noun = "probabilities" if classes else "predictions"
            shape = [len(indices), classes] if classes else [len(indices)]
            outputs[indices] = checked(task, name, noun, said, shape).float().cpu().numpy()
    if not np.isfinite(outputs).all():
        message = f"predictions for task '{name}' are not finite; train {session.folder.path} again"
        raise DivergedError(accused(task), message)
    return outputs


def _open(folder: RunDir, request: RunRequest) -> Session:
    """Open a finished run. Raises UsageError for one that is not."""
    session = open_run(folder.path, replace(request, data_root=None))
    if folder.finished() is None:
        raise UsageError(str(folder.path), "is not finished, so it cannot teach; mtmeta run goes on with it")
    return session


def _spent(*sessions: Session) -> int:
    """Return the example-forwards that finished runs took, with those of their own teachers.

    Raises CheckpointError for more than a table of labels may hold.
    """
    summaries = [RunSummary.read(session.folder.summary) for session in sessions]
    spent = [summary.examples + summary.teacher_examples for summary in summaries]
    if sum(spent) > MOST:
        place = sessions[spent.index(max(spent))].folder.summary
        raise CheckpointError(str(place), f"says that training took {max(spent):,} examples; train that run again")
    return sum(spent)


def _weights(session: Session, name: str) -> str:
    """Return the SHA-256 of a finished run's best weights of a task."""
    group = next(group for group in session.groups if name in group)
    return str(fingerprint(session.checkpoints(group).folder / "best" / "model.safetensors")["sha256"])


def _facts(
    name: str, task: Task, data: Dataset, weights: Sequence[str], spent: int, *, folds: int, seed: int
) -> TableFacts:
    return TableFacts(
        task=name,
        classes=list(task.objective.classes),
        objective=description(task.objective),
        folds=folds,
        seed=seed,
        weights=list(weights),
        train=data.sha256,
        training_examples=spent,
    )


def _is_there(folder: Path, facts: TableFacts, say: Say) -> bool:
    """Return whether the very table is there already; a damaged one is told of and made again."""
    try:
        table = read_table(folder, facts.task)
    except DataError as error:
        say(f"{error.place}: {error.message.partition(';')[0]}; it is made again")
        return False
    return table is not None and table.facts == facts


def _described(folder: Path, task: Task, data: Dataset) -> dict[str, Any]:
    """Describe a table as plain data, with how often, or how closely, it agrees with the labels."""
    table = read_table(folder, data.task)
    assert table is not None
    values: NDArray[np.float64] = np.asarray(table.outputs, dtype=np.float64)
    if task.objective.classes:
        agreement: Mapping[str, float] = {"accuracy": float((values.argmax(axis=1) == data.labels).mean())}
    else:
        agreement = {"mean_absolute_error": float(np.abs(values - data.labels).mean())}
    return {
        "task": data.task,
        "table": str(table_folder(folder, data.task)),
        "sha256": table.sha256,
        "rows": len(table),
        "agreement": dict(agreement),
        **table.facts.model_dump(exclude={"task", "format"}),
    }
