"""`mtmeta compare`: the same tasks under several regimes and seeds, in one table that can be trusted.

recipes x seeds -> runs, each trained, continued or reused -> the comparison of what they left.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.api.contracts import Task
from mtmeta.core.api.option_types import SAMPLE, Carve
from mtmeta.core.errors import (
    CheckpointError,
    DataError,
    Incomplete,
    MtmetaError,
    Problems,
    RecipeError,
    raise_all,
)
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.fetch import wanted
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.addresses import is_remote
from mtmeta.core.storage.artifacts import Want, by_name, remedy
from mtmeta.core.storage.download import Watcher
from mtmeta.core.storage.sources import Sources
from mtmeta.core.studies.comparable import Planned, check_alike, check_data
from mtmeta.core.studies.comparison import baseline_of, comparison
from mtmeta.core.studies.pool import Job, run_all, without_options
from mtmeta.core.tables.data_file import DataFile
from mtmeta.core.wording import quote

__all__ = ["compare"]

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
    registry = build_registry(block=block, warn=warn)
    plan = _plan(recipes, registry, seeds, overrides, Path(out), data_root)
    chosen = baseline_of(plan, baseline)
    _check_device(device)
    _check_files(plan)
    arguments = [f"--set={text}" for text in overrides] + [f"--no-plugin={name}" for name in block]
    arguments += [f"--device={device}"] + ([f"--data-root={data_root}"] if data_root else [])
    runs = [run for position in zip(*plan.values(), strict=True) for run in position]  # of the first seed first
    waiting = {run.folder.path: run for run in runs if not _is_finished(run)}
    todo = [
        Job(run.label, path, [_file(run.path), *arguments, *_settings(run.recipe)], _threads(run))
        for path, run in waiting.items()
    ]
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished already, in {out}")
    check_data(runs)
    _fetch(list(waiting.values()), Sources(watcher=watcher, remedy=remedy(*recipes)))
    failed: dict[Path, MtmetaError] = {}

    def ended(job: Job) -> None:
        _check_recipe(waiting[job.folder])
        check_data(runs)

    def note(job: Job, error: MtmetaError) -> None:
        failed[job.folder] = error

    run_all(todo, at_once=jobs, say=say, ended=ended, failed=note, stop=stop)
    if failed:
        _raise_incomplete(plan, chosen, registry, failed)
    return comparison(plan, chosen, registry)


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
    problems: dict[str, MtmetaError] = {}  # what is wrong with a `--set` is so for every recipe
    for path in paths:
        try:
            first = load_recipe(path, registry, overrides=overrides, data_root=data_root)
            made = [first]
            for seed in range(first.seed + 1, first.seed + seeds):
                these = [*overrides, f"seed={seed}", *_same_carving(first)]
                made.append(load_recipe(path, registry, overrides=these, data_root=data_root))
            if first.name in plan:
                message = f"has the name {quote(first.name)} of another recipe; give each a 'name:' of its own"
                raise RecipeError(str(path), message)
            plan[first.name] = [
                Planned(path, one, RunDir(out / f"{one.name}-{one.seed}-{digest(one)[:8]}")) for one in made
            ]
        except MtmetaError as error:
            for one in error.problems if isinstance(error, Problems) else [error]:
                problems.setdefault(str(one), one)
    raise_all(list(problems.values()))
    check_alike([row[0].recipe for row in plan.values()])
    return plan


def _same_carving(recipe: Recipe) -> list[str]:
    """Overrides that give a recipe with another seed the dev splits of this one: seeds are compared on one dev set."""
    carved = [(name, task.dev) for name, task in recipe.tasks.items() if isinstance(task.dev, Carve)]
    return [f"tasks.{name}.dev.seed={carve.seed}" for name, carve in carved]


def _settings(recipe: Recipe) -> list[str]:
    return [f"--set={text}" for text in (f"seed={recipe.seed}", *_same_carving(recipe))]


def _file(path: str | Path) -> str:
    """A recipe as an argument, which no option begins like."""
    return f"./{path}" if str(path).startswith("-") else str(path)


# ------------------------------------------------------------------------------------------ before the first run begins


def _check_device(device: str) -> None:
    if device not in ("auto", "cpu"):  # which are there always; to look for others takes PyTorch
        from mtmeta.core.machine import pick_device

        pick_device(device)


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
                found = SAMPLE if path is None else hashes[path]
                who, other = seen.setdefault(key, (name, found))
                if other != found:
                    message = f"{key} has sha256 {other[:6]}.. in {quote(who)}, {found[:6]}.. in {quote(name)}"
                    raise DataError(str(path or SAMPLE), f"{message}; compare recipes on the same data")
                for run in row:
                    if path is not None and run.has_begun and _lock(run)["data"].get(key) != found:
                        message = f"is not the file that {run.folder.path} was trained with; choose another --out"
                        raise DataError(str(path), message)
            except MtmetaError as error:
                problems.setdefault(error.place, error)
    raise_all(list(problems.values()))


def _files(recipe: Recipe) -> Iterator[tuple[str, Path | None, Task]]:
    """TASK-SPLIT, file (None for the sample) and task of everything that runs of a recipe read from a path.

    What is named elsewhere is the same for ever by its commit or hash; the locks of the runs tell which that is.
    """
    for name, task in recipe.tasks.items():
        for split in dict.fromkeys(("train", recipe.evaluation.select_on, recipe.evaluation.report_on)):
            given = getattr(task, split)
            if isinstance(given, Carve) or is_remote(given):
                continue  # what is taken out of the training file is as that is; what lies elsewhere has its own checks
            yield f"{name}-{split}", None if given == SAMPLE else Path(recipe.data_root) / given, task


def _look(path: Path, task: Task, recipe: Recipe) -> str:
    """SHA-256 of a file in which the task finds its columns."""
    file = DataFile(path, task.dialect or recipe.data)
    sha256 = file.sha256()
    next(iter(task.read(file)), None)
    return sha256


# ---------------------------------------------------------------------------------------------------------- the runs


@contextlib.contextmanager
def _in_our_words(run: Planned) -> Iterator[None]:
    """Errors about a run directory, without the options that `mtmeta run` has and we have not."""
    try:
        yield
    except CheckpointError as error:
        raise CheckpointError(error.place, without_options(error.message, run.folder.path)) from error


def _is_finished(run: Planned) -> bool:
    """Whether a run of this very recipe has ended in its directory."""
    with _in_our_words(run):
        return run.folder.check_usable(run.recipe, fresh=False) and run.folder.finished() is not None


def _lock(run: Planned) -> dict[str, Any]:
    with _in_our_words(run):
        return run.folder.lock()


def _threads(run: Planned) -> int | None:
    """The threads that a run began with: with others it is not allowed to go on."""
    threads = _lock(run).get("threads") if run.has_begun else None
    return threads if type(threads) is int and threads > 0 else None


def _check_recipe(run: Planned) -> None:
    """Raise RecipeError if a run was trained with another recipe than the one that was read in the beginning."""
    try:
        run.folder.check_usable(run.recipe, fresh=False)
    except CheckpointError as error:
        message = f"was edited while the comparison ran; remove {run.folder.path} and run the same command again"
        raise RecipeError(str(run.path), message) from error


def _raise_incomplete(
    plan: Mapping[str, Sequence[Planned]], baseline: str | None, registry: Registry, failed: Mapping[Path, MtmetaError]
) -> None:
    """Raise what went wrong, with the comparison of the recipes of which every run has ended well."""
    problems = list(failed.values())
    left: dict[str, str] = {}
    for name, row in plan.items():
        why = [str(failed[run.folder.path]) for run in row if run.folder.path in failed]
        if why:
            left[name] = why[0] + (f" (and {len(why) - 1} more of its runs)" if len(why) > 1 else "")
    complete = {name: row for name, row in plan.items() if name not in left}
    if not complete:
        raise_all(problems)
    try:
        made = comparison(complete, baseline if baseline in complete else None, registry)
    except MtmetaError as error:
        raise Problems([*problems, error]) from error
    raise Incomplete(problems, made | {"left_out": left})


def _fetch(runs: Sequence[Planned], sources: Sources) -> None:
    """Bring what the runs name elsewhere before the first of them begins, so that no two of them wait for it."""
    wants: list[Want] = []
    for run in runs:
        evaluated = run.recipe.evaluation
        splits = dict.fromkeys(("train", evaluated.select_on, evaluated.report_on))
        wants += [want for found in wanted(run.recipe, list(splits)).values() for want in found]
    sources.fetch(by_name(wants).values())
