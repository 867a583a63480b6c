"""Runs in Weights & Biases: a reporter as an mtmeta plugin."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import mtmeta

if TYPE_CHECKING:
    from mtmeta import Event


@dataclass(frozen=True)
class WandB(mtmeta.Reporter):
    """Losses, learning rate, norms, drifts and metrics as a run in Weights & Biases, with the recipe as its config.

    Steps of several groups follow one another on the step axis. A run that was cut goes on under the same id; what of
    it had been logged already, the service leaves as it is.
    """

    name = "wandb"

    project: str = "mtmeta"
    """Project the run belongs to."""
    entity: str | None = None
    """User or team; default: that of the login."""
    mode: Literal["online", "offline"] | None = None
    """`offline` writes under wandb/ in the run directory, for `wandb sync`; default: WANDB_MODE, else online."""

    def require(self) -> None:
        wandb = library()
        mode = self.mode or os.environ.get("WANDB_MODE") or "online"
        if mode == "online" and not wandb.login(prompt=False):
            what = "has no login; run `wandb login`, or set mode: offline"
            raise mtmeta.MachineError("reporter 'wandb'", what)

    def open(self, folder: Path) -> AbstractContextManager[Callable[[Event], None]]:
        return self._open(folder)

    @contextmanager
    def _open(self, folder: Path) -> Iterator[Callable[[Event], None]]:
        sitting = Sitting(self, folder)
        try:
            yield sitting.handle
        finally:
            sitting.close()


class Sitting:
    """From the first event of a process to its last."""

    def __init__(self, options: WandB, folder: Path) -> None:
        self.options, self.folder = options, folder
        self.run: Any = None
        self.several = self.finished = False
        self.offset, self.group, self.length = 0, "", 0
        """Steps of the groups before, the group under way, and how many it has so far."""

    def handle(self, event: Any) -> None:
        if self.run is None:
            self.begin(event)
        found = mtmeta.scalars(event)
        if event.type == "run_finished":
            self.finished = True
            self.run.summary.update({scalar.tag(): scalar.value for scalar in found})
        elif found:
            if found[0].group != self.group:
                self.offset, self.group = self.offset + self.length, found[0].group
            self.length = found[0].step
            values = {scalar.tag(with_group=self.several): scalar.value for scalar in found}
            self.run.log(values, step=self.offset + self.length)

    def begin(self, event: Any) -> None:
        import yaml

        kept = self.folder / "wandb-id.txt"
        if event.type == "run_started":  # nothing of an earlier run in this directory counts
            kept.unlink(missing_ok=True)
        name = kept.read_text(encoding="utf-8").strip() if kept.exists() else secrets.token_hex(8)
        kept.write_text(name, encoding="utf-8")
        self.several = len(event.groups) > 1
        for group, step in getattr(event, "steps", {}).items():
            self.offset, self.group, self.length = self.offset + self.length, group, step
        wandb = library()
        self.run = wandb.init(
            project=self.options.project,
            entity=self.options.entity,
            mode=self.options.mode,
            id=name,
            name=event.name,
            resume="allow",
            dir=str(self.folder),
            config=yaml.safe_load((self.folder / "recipe.yaml").read_text(encoding="utf-8")),
            settings=wandb.Settings(console="off"),  # stdout and stderr are mtmeta's
        )

    def close(self) -> None:
        if self.run is not None:
            self.run.finish(exit_code=0 if self.finished else 1)


def library() -> Any:
    """The wandb package, which takes a second to load. Raises MachineError without it."""
    try:
        import wandb
    except ImportError as error:
        what = "needs wandb, which is not installed; pip install wandb"
        raise mtmeta.MachineError("reporter 'wandb'", what) from error
    return wandb


@mtmeta.hookimpl
def register_reporters() -> list[type[mtmeta.Reporter]]:
    return [WandB]
