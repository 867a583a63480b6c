"""`mtmeta compare`: the same tasks under several regimes and seeds, in one table that can be trusted.

recipes x seeds -> runs, each trained, continued or reused -> the comparison of what they left.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.comparison import Planned, baseline_of, check_alike, check_data, comparison
from mtmeta.core.contracts import SAMPLE
from mtmeta.core.errors import (
    CheckpointError,
    DataError,
    MtmetaError,
    RecipeError,
    quote,
    raise_all,
)
from mtmeta.core.many import Job, run_all
from mtmeta.core.recipe import load_recipe
from mtmeta.core.registry import Registry, build_registry
from mtmeta.core.resolved import digest
from mtmeta.core.rundir import RunDir
from mtmeta.core.signals import StopRequest
from mtmeta.core.tables import DataFile, Dialect

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
    stop: StopRequest | None = None,
) -> dict[str, Any]:
    """Run every recipe with every seed, and return the comparison that `--json` shows.

    The seeds of a recipe are its own and the `seeds` - 1 numbers after it. Runs lie in `out`, named after recipe, seed
    and digest: those that are finished are used as they are, those that were cut go on. `baseline` names the recipe
    that differences are to; by default the one that trains each task alone. Raises MtmetaError, RecipeError where the
    recipes have not the same tasks, metrics and report split, DataError where they read other data.
    """
    registry = build_registry(block=block, warn=warn)
    plan = _plan(recipes, registry, seeds, overrides, Path(out), data_root)
    chosen = baseline_of(plan, baseline)
    arguments = [f"--set={text}" for text in overrides] + [f"--no-plugin={name}" for name in block]
    arguments += [f"--device={device}"] + ([f"--data-root={data_root}"] if data_root else [])
    runs = [run for position in zip(*plan.values(), strict=True) for run in position]  # of the first seed first
    waiting = {run.folder.path: run for run in runs if not _is_finished(run)}
    _check_files([run for run in runs if run.folder.path not in waiting])
    todo = [
        Job(run.label, path, [str(run.path), *arguments, f"--set=seed={run.recipe.seed}"])
        for path, run in waiting.items()
    ]
    say(f"{len(runs)} runs, {len(runs) - len(todo)} of them finished already, in {out}")
    check_data(runs)

    def ended(job: Job) -> None:
        _check_recipe(waiting[job.folder])
        check_data(runs)

    run_all(todo, at_once=jobs, say=say, ended=ended, stop=stop)
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
    problems: list[MtmetaError] = []
    for path in paths:
        try:
            first = load_recipe(path, registry, overrides=overrides, data_root=data_root)
            made = [first]
            for seed in range(first.seed + 1, first.seed + seeds):
                made.append(load_recipe(path, registry, overrides=[*overrides, f"seed={seed}"], data_root=data_root))
            if first.name in plan:
                what = f"has the name {quote(first.name)} of another recipe; give each a 'name:' of its own"
                raise RecipeError(str(path), what)
            plan[first.name] = [
                Planned(path, one, RunDir(out / f"{one.name}-{one.seed}-{digest(one)[:8]}")) for one in made
            ]
        except MtmetaError as error:
            problems.append(error)
    raise_all(problems)
    check_alike([row[0].recipe for row in plan.values()])
    return plan


def _is_finished(run: Planned) -> bool:
    """Whether a run of this very recipe has ended in its directory."""
    return run.folder.check_usable(run.recipe, fresh=False) and run.folder.finished() is not None


def _check_recipe(run: Planned) -> None:
    """Raise RecipeError if a run was trained with another recipe than the one that was read in the beginning."""
    try:
        run.folder.check_usable(run.recipe, fresh=False)
    except CheckpointError as error:
        what = f"was edited while the comparison ran; remove {run.folder.path} and run the same command again"
        raise RecipeError(str(run.path), what) from error


def _check_files(runs: Sequence[Planned]) -> None:
    """Raise DataError if a finished run was trained or scored on other files than its recipe names now."""
    hashes: dict[Path, str] = {}
    for run in runs:
        recipe, before = run.recipe, run.folder.lock()["data"]
        for name, task in recipe.tasks.items():
            for split in dict.fromkeys(("train", recipe.evaluation.select_on, recipe.evaluation.report_on)):
                given = getattr(task, split)
                if given == SAMPLE:
                    continue
                path = Path(recipe.data_root) / given
                if path not in hashes:
                    hashes[path] = DataFile(path, task.dialect or Dialect()).sha256()
                if before.get(f"{name}-{split}") != hashes[path]:
                    what = f"is not the file that {run.folder.path} was trained with; choose another --out"
                    raise DataError(str(path), what)
