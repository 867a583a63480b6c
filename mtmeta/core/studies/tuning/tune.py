"""`mtmeta tune`: a search for the settings of a recipe, in trials of several seeds, judged on dev alone.

space + recipe -> trials, each suggested by those before it -> runs, trained, continued or given up -> the best recipe.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

from mtmeta.core.errors import MtmetaError, UsageError
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.fetch import splits_read, wanted
from mtmeta.core.run.request import RunRequest, file_of
from mtmeta.core.storage.artifacts import by_name
from mtmeta.core.storage.disk import disk_errors
from mtmeta.core.storage.sources import Sources
from mtmeta.core.studies.comparable import Planned
from mtmeta.core.studies.compare import RECIPES, check_files
from mtmeta.core.studies.launching.placement import Placement, place
from mtmeta.core.studies.tuning.figures import figures, write_best
from mtmeta.core.studies.tuning.journal import JOURNAL, LOCK, PLAN, Journal, settled_plan
from mtmeta.core.studies.tuning.sampling import PRUNERS, optuna
from mtmeta.core.studies.tuning.search import Search
from mtmeta.core.studies.tuning.settings import Recipes
from mtmeta.core.studies.tuning.space import read_space
from mtmeta.core.wording import choose, quote

Say = Callable[[str], None]
SEEDS, IN_FLIGHT, TRIALS = 3, 2, 60
FEWEST = 5
"""Seeds with which the pruner over seeds can spare one: of four the smallest p is 1/16, just below its limit of 0.1."""
MOST = 10_000
BUDGETS = ("examples",)


def tune_recipe(
    request: RunRequest,
    space: str | Path,
    *,
    trials: int = TRIALS,
    seeds: int = SEEDS,
    jobs: int | None = None,
    on: str | None = None,
    in_flight: int = IN_FLIGHT,
    pruner: str = "median",
    budget: str | None = None,
    keep_weights: bool = False,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Search the settings in a space for those with the highest value on dev; return the document of `--json`.

    The request holds recipe, overrides, folder and device; see `mtmeta.tune` for the rest. Raises MtmetaError; nothing
    is trained unless recipe, space and files are in order.
    """
    placement, request = place(request, on)
    jobs = jobs if jobs is not None else 1 if placement.launcher is None else in_flight
    _check_numbers({"trials": trials, "seeds": seeds, "jobs": jobs, "in_flight": in_flight}, pruner)
    optuna()
    if budget is not None:
        request = replace(request, overrides=[*request.overrides, f"budget.{_budget(budget)}"])
    registry = build_registry(block=request.block, warn=request.warn)
    recipes = Recipes.of(request, read_space(space), registry)
    base = recipes.base
    folder = Path(request.out or study_folder(base))
    check_place(folder)
    recipes.check()
    _check_sources(recipes, folder)
    plan = {
        "format": 1,
        "name": base.name,
        "recipe": digest(base),
        "space": recipes.space.plain(),
        "seeds": list(range(base.seed, base.seed + seeds)),
        "in_flight": in_flight,
        "pruner": pruner,
        "select": base.evaluation.select,
        "threads": _threads(jobs, placement),
    }
    journal = Journal(folder)
    with journal.locked():
        plan = settled_plan(folder / PLAN, plan)
        journal.open()
    search = Search(
        recipes, plan, journal, request, placement=placement, trials=trials, keep_weights=keep_weights, say=say
    )
    try:
        search.run(jobs)
    except BaseException:
        with contextlib.suppress(MtmetaError):  # what ended the search comes first
            write_best(folder, recipes, journal, plan)
        raise
    write_best(folder, recipes, journal, plan)
    return figures(folder)


def study_folder(recipe: Recipe) -> Path:
    """Return the folder of a search where none is given."""
    return Path("runs") / f"{recipe.name}-tune"


def _check_numbers(numbers: Mapping[str, int], pruner: str) -> None:
    for key, value in numbers.items():
        if not 1 <= value <= MOST:
            raise UsageError(f"--{key.replace('_', '-')}", f"must be a number from 1 to {MOST}, found {value}")
    if numbers["jobs"] > numbers["in_flight"]:
        message = f"is {numbers['jobs']}, and at most {numbers['in_flight']} trials are under way at a time"
        raise UsageError("--jobs", f"{message}; --in-flight {numbers['jobs']}")
    if pruner not in PRUNERS:
        raise UsageError("--pruner", f"must be one of {', '.join(PRUNERS)}, found {quote(pruner)}")
    if pruner == "wilcoxon" and numbers["seeds"] < FEWEST:
        message = f"wilcoxon compares seeds, and of {numbers['seeds']} it could never spare one"
        raise UsageError("--pruner", f"{message}; --seeds {FEWEST} or more")


def _budget(text: str) -> str:
    key, equals, value = text.partition("=")
    if key not in BUDGETS or not equals or not value.isdecimal():
        hint = choose(key, BUDGETS) if equals and key not in BUDGETS else ""
        raise UsageError("--budget", f"takes examples=N, such as examples=20000, found {quote(text)}{hint}")
    return text


def _threads(jobs: int, placement: Placement) -> int | None:
    """Return how many threads a run has: they decide bits, so that those of the first start hold for the study.

    None leaves it to the machines of a launcher, which have cores of their own for each job.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdecimal() and int(given) > 0:
        return int(given)
    if placement.launcher is not None:
        return None
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // jobs)


def check_place(folder: Path) -> None:
    """Raise UsageError for a folder that holds something else than a study."""
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UsageError(str(folder), "is a file; choose another folder with --out")
    with disk_errors(folder, "cannot be read"):
        names = sorted(entry.name for entry in folder.iterdir())
    if PLAN not in names and (others := [name for name in names if name not in (LOCK, JOURNAL, RECIPES)]):
        message = f"holds {quote(others[0])}, and is no study of mtmeta tune"
        raise UsageError(str(folder), f"{message}; choose another folder with --out")


def _check_sources(recipes: Recipes, folder: Path) -> None:
    """Check files and device, and fetch what lies elsewhere, before the first trial."""
    request, recipe = recipes.request, recipes.read({})
    if request.device not in ("auto", "cpu"):  # which are there always; to look for others takes PyTorch
        from mtmeta.core.machine import pick_device

        pick_device(request.device)
    check_files({recipe.name: [Planned(file_of(request), recipe, RunDir(folder / "trial"))]})
    wants = by_name(chain(*wanted(recipe, splits_read(recipe)).values()))
    Sources(watcher=request.watcher, remedy=request.remedy).fetch(wants.values())
