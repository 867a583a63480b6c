"""The request for a run: one object from the command line, or from `mtmeta.run`, to whatever acts on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mtmeta.core.distributed.ranks import Ranks
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.download import Watcher


@dataclass(frozen=True)
class RunRequest:
    """A recipe, the directory and device of its run, and the checks that the run may go without."""

    recipe: str | Path = ""
    """A path, or the name of a shipped recipe; empty where runs that are there are opened, each with its own."""
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
    warn: Callable[[str], None] = lambda text: None
    watcher: Watcher | None = None
    """Hears of downloads."""
    stop: StopRequest | None = None
    """Has signals end the run between two steps."""
    ranks: Ranks = field(default_factory=Ranks)
    """The processes that train together, of which this is one; only `mtmeta run` may be one of several."""
