"""`mtmeta compare`: the same tasks under several regimes and seeds, in one table that can be trusted.

recipes x seeds -> runs, each trained, continued or reused -> the comparison of their summaries and predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.api.contracts import Task
from mtmeta.core.api.option_types import SAMPLE, Carve
from mtmeta.core.errors import DataError, MtmetaError, Problems, RecipeError, UsageError, raise_all
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.fetch import splits_read
from mtmeta.core.run.request import RunRequest
from mtmeta.core.storage.addresses import is_remote
from mtmeta.core.studies.comparable import Planned, check_alike
from mtmeta.core.studies.launching.placement import POOL, Placement
from mtmeta.core.studies.planned_run import is_finished, lock_of, same_carving
from mtmeta.core.studies.protocol import MOST, Protocol, Register, departures
from mtmeta.core.studies.study import Study, StudyWatcher
from mtmeta.core.tables.data_file import DataFile
from mtmeta.core.wording import quote

Say = Callable[[str], None]
SEEDS = 3
RECIPES = "recipes"
"""Folder, in that of a study, of recipes that were made for it, or were objects of Python."""


def compare_recipes(
    recipes: Sequence[str | Path],
    request: RunRequest,
    protocol: Protocol | None = None,
    placement: Placement = POOL,
    *,
    seeds: int | None = None,
    add_seeds: int | None = None,
    say: Say = lambda text: None,
    watcher: StudyWatcher | None = None,
) -> dict[str, Any]:
    """Carry out a comparison; see `mtmeta.compare`. The request holds all but the recipes.

    `watcher` is told of the runs of the pool as they go, and takes their lines in the place of `say`.
    One that is to be detached is not waited for: its jobs are submitted, and what they are is returned.
    """
    protocol = protocol or Protocol()
    if placement.detach and protocol.until_interval:
        raise UsageError("--detach", "cannot be with --until, for looks on the way decide which runs there are")
    registry = build_registry(block=request.block, warn=request.warn)
    plan = plan_runs(recipes, registry, 1, request, protocol.tasks)
    protocol = protocol.settled(plan)
    register = Register.of(Path(request.out or "."), plan)
    count = _seeds(
        register, seeds, add_seeds, lambda count: plan_runs(recipes, registry, count, request, protocol.tasks), say
    )
    plan = plan_runs(recipes, registry, count, request, protocol.tasks)
    looks = protocol.looks(len(next(iter(plan.values()))))
    if placement.launcher is None and request.device not in (
        "auto",
        "cpu",
    ):  # which are there always; to look for others takes PyTorch
        from mtmeta.core.machine import pick_device

        pick_device(request.device)
    check_files(plan)
    study = Study(plan, protocol, registry, request, placement, say, watcher)
    study.check(recipes)
    record = register.write(protocol, seeds=looks[-1].seeds, finished=study.finished, runs=len(study.runs))
    if placement.detach:
        return study.submit()
    table = study.run(looks, departures(record, protocol))
    register.note_end(protocol)
    return table


def _seeds(
    register: Register,
    seeds: int | None,
    add_seeds: int | None,
    plan: Callable[[int], Mapping[str, Sequence[Planned]]],
    say: Say,
) -> int:
    """Return how many seeds each recipe gets: those asked for, or those of the last start, or some more than these.

    A start that was cut is gone on with first: more are added to a comparison alone that came to its end. `plan` plans
    the runs of so many seeds.
    """
    if seeds is not None and add_seeds is not None:
        raise UsageError("--seeds, --add-seeds", "say two numbers of seeds; give one of them")
    if seeds is not None:
        if not 1 <= seeds <= MOST:
            raise UsageError("--seeds", f"must be a number from 1 to {MOST}, found {seeds}")
        return seeds
    record = register.read()
    if add_seeds is None:
        return record.seeds if record else SEEDS
    if record is None:
        folder = register.path.parent
        message = f"has nothing to add to: {folder} holds no comparison of these recipes; --seeds {add_seeds}"
        raise UsageError("--add-seeds", message)
    if record.ended or all(is_finished(run) for row in plan(record.seeds).values() for run in row):
        if record.seeds + add_seeds > MOST:
            raise UsageError("--add-seeds", f"comes to {record.seeds + add_seeds} seeds, at most {MOST} are allowed")
        return record.seeds + add_seeds
    say(f"not all runs of the {record.seeds} seeds before are finished: these come first, and none is added")
    return record.seeds


def plan_runs(
    paths: Sequence[str | Path], registry: Registry, seeds: int, request: RunRequest, tasks: Sequence[str] = ()
) -> dict[str, list[Planned]]:
    """Plan the runs of each recipe, by its name. All that is wrong with the recipes is raised together.

    `tasks` are those that count, by default all, which then must be the same in all recipes.
    """
    plan: dict[str, list[Planned]] = {}
    problems: dict[str, MtmetaError] = {}  # a wrong `--set` is wrong for every recipe
    for path in paths:
        try:
            row = _seeded(path, registry, seeds, request)
            if (name := row[0].recipe.name) in plan:
                message = f"has the name {quote(name)} of another recipe; give each a 'name:' of its own"
                raise RecipeError(str(path), message)
            plan[name] = row
        except MtmetaError as error:
            for one in error.problems if isinstance(error, Problems) else [error]:
                problems.setdefault(str(one), one)
    raise_all(list(problems.values()))
    check_alike([row[0].recipe for row in plan.values()], tasks)
    return plan


def _seeded(path: str | Path, registry: Registry, seeds: int, request: RunRequest) -> list[Planned]:
    """Plan the runs of a recipe with each of its seeds."""
    first = load_recipe(path, registry, overrides=request.overrides, data_root=request.data_root)
    recipes = [first]
    for seed in range(first.seed + 1, first.seed + seeds):
        overrides = [*request.overrides, f"seed={seed}", *same_carving(first)]
        recipes.append(load_recipe(path, registry, overrides=overrides, data_root=request.data_root))
    folder = Path(request.out or ".")
    return [Planned(path, one, RunDir(folder / f"{one.name}-{one.seed}-{digest(one)[:8]}")) for one in recipes]


def check_files(plan: Mapping[str, Sequence[Planned]]) -> None:
    """Raise DataError for files that are missing or no tables of their task, differ among recipes, or from what runs
    that have begun were trained with."""
    hashes: dict[Path, str] = {}
    seen: dict[str, tuple[str, str]] = {}
    problems: dict[str, MtmetaError] = {}  # one for each file, however many runs read it
    for name, row in plan.items():
        for key, path, task in _files(row[0].recipe):
            try:
                if path is not None and path not in hashes:
                    hashes[path] = _look(path, task, row[0].recipe)
                sha256 = SAMPLE if path is None else hashes[path]
                who, other = seen.setdefault(key, (name, sha256))
                if other != sha256:
                    message = f"{key} has sha256 {other[:6]}.. in {quote(who)}, {sha256[:6]}.. in {quote(name)}"
                    raise DataError(str(path or SAMPLE), f"{message}; compare recipes on the same data")
                for run in row:
                    if path is not None and run.has_begun and lock_of(run)["data"].get(key) != sha256:
                        message = f"is not the file that {run.folder.path} was trained with; choose another --out"
                        raise DataError(str(path), message)
            except MtmetaError as error:
                problems.setdefault(error.place, error)
    raise_all(list(problems.values()))


def _files(recipe: Recipe) -> Iterator[tuple[str, Path | None, Task]]:
    """Yield TASK-SPLIT, file (None for the sample) and task of everything that runs of a recipe read from a path.

    Files on a hub or at an address never change: their commits and hashes are in the locks of the runs.
    """
    for name, task in recipe.tasks.items():
        for split in splits_read(recipe):
            given = getattr(task, split)
            if isinstance(given, Carve) or is_remote(given):
                continue  # a carved split is as its training file is; remote files have checks of their own
            yield f"{name}-{split}", None if given == SAMPLE else Path(recipe.data_root) / given, task


def _look(path: Path, task: Task, recipe: Recipe) -> str:
    """Return the SHA-256 of a file in which the task finds its columns."""
    file = DataFile(path, task.dialect or recipe.data)
    sha256 = file.sha256()
    next(iter(task.read(file)), None)
    return sha256
