"""`mtmeta compare`: the same tasks under several regimes and seeds, in one table that can be trusted.

recipes x seeds -> runs, each trained, continued or reused -> the comparison of their summaries and predictions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from mtmeta.core.api.contracts import Task
from mtmeta.core.api.option_types import SAMPLE, Carve
from mtmeta.core.errors import CheckpointError, DataError, Incomplete, MtmetaError, Problems, RecipeError, raise_all
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.fetch import splits_read, wanted
from mtmeta.core.run.request import RunRequest
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.addresses import is_remote
from mtmeta.core.storage.artifacts import by_name, remedy
from mtmeta.core.storage.download import Watcher
from mtmeta.core.storage.sources import Sources
from mtmeta.core.studies.comparable import Planned, check_alike, check_data
from mtmeta.core.studies.comparison import baseline_of, comparison
from mtmeta.core.studies.pool import Job, run_all, without_options
from mtmeta.core.tables.data_file import DataFile
from mtmeta.core.wording import quote

Say = Callable[[str], None]


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
    watcher: Watcher | None = None,
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Run every recipe with every seed, and return the comparison that `--json` shows.

    The seeds of a recipe are its own and the `seeds` - 1 numbers after it. Runs lie in `out`, named after recipe, seed
    and digest: those that are finished are used as they are, those that were cut go on. `baseline` names the recipe
    that differences are to; by default the one that trains each task alone. Recipes, files and device are checked
    before the first run begins. Raises MtmetaError, RecipeError where the recipes do not measure the same, DataError
    where they read other data, Incomplete, with the comparison of the others, where runs of some recipes failed.
    """
    request = RunRequest(
        overrides=overrides,
        out=out,
        data_root=data_root,
        device=device,
        block=block,
        warn=warn,
        watcher=watcher,
        stop=stop,
    )
    return compare_recipes(recipes, request, seeds=seeds, baseline=baseline, at_once=jobs, say=say)


def compare_recipes(
    recipes: Sequence[str | Path],
    request: RunRequest,
    *,
    seeds: int = 3,
    baseline: str | None = None,
    at_once: int = 1,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Carry out a comparison; see `compare`. The request holds all but the recipes."""
    registry = build_registry(block=request.block, warn=request.warn)
    plan = plan_runs(recipes, registry, seeds, request)
    baseline = baseline_of(plan, baseline)
    if request.device not in ("auto", "cpu"):  # which are there always; to look for others takes PyTorch
        from mtmeta.core.machine import pick_device

        pick_device(request.device)
    _check_files(plan)
    runs = [run for position in zip(*plan.values(), strict=True) for run in position]  # of the first seed first
    waiting = {run.folder.path: run for run in runs if not is_finished(run)}
    jobs = [job_of(run, request) for run in waiting.values()]
    say(f"{len(runs)} runs, {len(runs) - len(jobs)} of them finished already, in {request.out}")
    check_data(runs)
    # before the first run begins, so that no two of them wait for it
    needs = (wanted(run.recipe, splits_read(run.recipe)).values() for run in waiting.values())
    Sources(watcher=request.watcher, remedy=remedy(*recipes)).fetch(by_name(chain(*chain(*needs))).values())
    errors: dict[Path, MtmetaError] = {}

    def ended(job: Job) -> None:
        _check_recipe(waiting[job.folder])
        check_data(runs)

    def failed(job: Job, error: MtmetaError) -> None:
        errors[job.folder] = error

    run_all(jobs, at_once=at_once, say=say, ended=ended, failed=failed, stop=request.stop)
    if errors:
        _raise_incomplete(plan, baseline, registry, errors)
    return comparison(plan, baseline, registry)


def plan_runs(
    paths: Sequence[str | Path], registry: Registry, seeds: int, request: RunRequest
) -> dict[str, list[Planned]]:
    """Plan the runs of each recipe, by its name. All that is wrong with the recipes is raised together."""
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
    check_alike([row[0].recipe for row in plan.values()])
    return plan


def _seeded(path: str | Path, registry: Registry, seeds: int, request: RunRequest) -> list[Planned]:
    """Plan the runs of a recipe with each of its seeds."""
    first = load_recipe(path, registry, overrides=request.overrides, data_root=request.data_root)
    recipes = [first]
    for seed in range(first.seed + 1, first.seed + seeds):
        overrides = [*request.overrides, f"seed={seed}", *_same_carving(first)]
        recipes.append(load_recipe(path, registry, overrides=overrides, data_root=request.data_root))
    folder = Path(request.out or ".")
    return [Planned(path, one, RunDir(folder / f"{one.name}-{one.seed}-{digest(one)[:8]}")) for one in recipes]


def _same_carving(recipe: Recipe) -> list[str]:
    """Return the overrides that carve the same dev splits with another seed: seeds are compared on one dev set."""
    carved = [(name, task.dev) for name, task in recipe.tasks.items() if isinstance(task.dev, Carve)]
    return [f"tasks.{name}.dev.seed={carve.seed}" for name, carve in carved]


def job_of(run: Planned, request: RunRequest, also: Sequence[str] = ()) -> Job:
    """Build the command that makes a run; `also` are overrides beside those of the request."""
    settings = [*request.overrides, *also, f"seed={run.recipe.seed}", *_same_carving(run.recipe)]
    recipe = f"./{run.path}" if str(run.path).startswith("-") else str(run.path)  # or it would be an option
    arguments = [recipe, *(f"--set={text}" for text in settings), *(f"--no-plugin={name}" for name in request.block)]
    arguments += [f"--device={request.device}"] + ([f"--data-root={request.data_root}"] if request.data_root else [])
    threads = _lock(run).get("threads") if run.has_begun else None  # with others it is not allowed to go on
    return Job(run.label, run.folder.path, arguments, threads if type(threads) is int and threads > 0 else None)


def _check_files(plan: Mapping[str, Sequence[Planned]]) -> None:
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
                    if path is not None and run.has_begun and _lock(run)["data"].get(key) != sha256:
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


@contextlib.contextmanager
def _in_our_words(run: Planned) -> Iterator[None]:
    """Raise errors about a run directory without the options that `mtmeta run` has and we have not."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(error.place, without_options(error.message, run.folder.path)) from error


def is_finished(run: Planned) -> bool:
    """Return whether a run of this very recipe has ended in its directory."""
    with _in_our_words(run):
        return run.folder.check_usable(run.recipe, fresh=False) and run.folder.finished() is not None


def _lock(run: Planned) -> dict[str, Any]:
    with _in_our_words(run):
        return run.folder.lock()


def _check_recipe(run: Planned) -> None:
    """Raise RecipeError if a run was trained with another recipe than the one that was read in the beginning."""
    try:
        run.folder.check_usable(run.recipe, fresh=False)
    except CheckpointError as error:
        message = f"was edited while the comparison ran; remove {run.folder.path} and run the same command again"
        raise RecipeError(str(run.path), message) from error


def _raise_incomplete(
    plan: Mapping[str, Sequence[Planned]], baseline: str | None, registry: Registry, errors: Mapping[Path, MtmetaError]
) -> None:
    """Raise the errors of the runs that failed, with the comparison of the recipes whose runs all ended well."""
    problems = list(errors.values())
    left: dict[str, str] = {}
    for name, row in plan.items():
        reasons = [str(errors[run.folder.path]) for run in row if run.folder.path in errors]
        if reasons:
            left[name] = reasons[0] + (f" (and {len(reasons) - 1} more of its runs)" if len(reasons) > 1 else "")
    complete = {name: row for name, row in plan.items() if name not in left}
    if not complete:
        raise_all(problems)
    try:
        table = comparison(complete, baseline if baseline in complete else None, registry)
    except MtmetaError as error:
        raise Problems([*problems, error]) from error
    raise Incomplete(problems, table | {"left_out": left})
