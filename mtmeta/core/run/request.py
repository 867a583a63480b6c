"""The request for a run: one object from the command line, or from `mtmeta.run`, to whatever acts on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtmeta.core.api.events import Event
from mtmeta.core.distributed.ranks import Ranks
from mtmeta.core.errors import UsageError
from mtmeta.core.recipe.from_python import RecipeSource, is_recipe_data
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage import artifacts
from mtmeta.core.storage.download import Watcher


@dataclass(frozen=True)
class RunRequest:
    """A recipe, the directory and device of its run, and the checks that the run may go without."""

    recipe: RecipeSource = ""
    """A path, the name of a shipped recipe, a mapping, a Recipe, or a run directory for its own; empty where runs that
    are there are opened."""
    overrides: Sequence[str] = ()
    """Options of the recipe to change, as `training.steps=20`."""
    out: str | Path | None = None
    """The run directory, or the folder of all runs of a comparison; by default runs/NAME."""
    data_root: str | None = None
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    fresh: bool = False
    """Start over in a directory that holds a run."""
    allow_changed_data: bool = False
    allow_inexact: bool = False
    """Go on with another torch, thread count, device, ... than the run began with."""
    wait: bool = False
    """Wait for another process that uses the run directory, where else that is an error."""
    block: Sequence[str] = ()
    """Names of plugins to leave out."""
    plugins: Sequence[Any] = ()
    """Classes of parts, and metrics, that stand in no package."""
    on_event: Callable[[Event], None] | None = None
    """Hears of every event of a training, after the reporters; what it raises ends the run."""
    warn: Callable[[str], None] = lambda text: None
    watcher: Watcher | None = None
    """Hears of downloads."""
    stop: StopRequest | None = None
    """Has signals end the run between two steps."""
    ranks: Ranks = field(default_factory=Ranks)
    """The processes that train together, of which this is one; only `mtmeta run` may be one of several."""

    @property
    def remedy(self) -> str:
        """What brings the files that its recipe names elsewhere, for messages."""
        if is_recipe_data(self.recipe):
            return "run the same where there is a network"
        return artifacts.remedy(str(self.recipe))


def file_of(request: RunRequest) -> str | Path:
    """Return the path of a request's recipe, for studies, whose runs are commands. Raises UsageError for an object."""
    if isinstance(request.recipe, str | Path):
        return request.recipe
    raise UsageError("recipe", "is an object in memory; write it to a file, and give its path")
