"""One run of a study: the command that makes it, and what lies in its directory."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

from mtmeta.core.api.option_types import Carve
from mtmeta.core.errors import CheckpointError, RecipeError
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies.comparable import Planned
from mtmeta.core.studies.processes.pool import Job, without_options


def same_carving(recipe: Recipe) -> list[str]:
    """Return the overrides that carve the same dev splits with another seed: seeds are compared on one dev set."""
    carved = [(name, task.dev) for name, task in recipe.tasks.items() if isinstance(task.dev, Carve)]
    return [f"tasks.{name}.dev.seed={carve.seed}" for name, carve in carved]


def job_of(run: Planned, request: RunRequest, also: Sequence[str] = ()) -> Job:
    """Build the command that makes a run; `also` are overrides beside those of the request."""
    settings = [*request.overrides, *also, f"seed={run.recipe.seed}", *same_carving(run.recipe)]
    recipe = f"./{run.path}" if str(run.path).startswith("-") else str(run.path)  # or it would be an option
    arguments = [recipe, *(f"--set={text}" for text in settings), *(f"--no-plugin={name}" for name in request.block)]
    arguments += [f"--device={request.device}"] + ([f"--data-root={request.data_root}"] if request.data_root else [])
    threads = lock_of(run).get("threads") if run.has_begun else None  # with others it is not allowed to go on
    return Job(run.label, run.folder.path, arguments, threads if type(threads) is int and threads > 0 else None)


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


def lock_of(run: Planned) -> dict[str, Any]:
    with _in_our_words(run):
        return run.folder.lock()


def check_unedited(run: Planned) -> None:
    """Raise RecipeError if a run was trained with another recipe than the one that was read in the beginning."""
    try:
        run.folder.check_usable(run.recipe, fresh=False)
    except CheckpointError as error:
        message = f"was edited while the comparison ran; remove {run.folder.path} and run the same command again"
        raise RecipeError(str(run.path), message) from error
