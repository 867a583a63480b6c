"""What an algorithm is handed: the model's gradients, excursions from theta, and batches.

Notation of the paper: theta are the parameters of encoder and heads, theta' those after an inner loop.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from mtmeta.core.api.optimizers import OptimizerOptions
from mtmeta.core.api.option_types import InnerState
from mtmeta.core.api.schedules import ScheduleOptions

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mtmeta.core.api.batch import Batch
    from mtmeta.core.api.contracts import Task

__all__ = ["Excursion", "Feed", "Learner"]


class Excursion(Protocol):
    """An inner loop under way: the model's parameters are theta', on their way from theta."""

    def step(self, *batches: Batch, scale: Callable[[str], float] = ...) -> None:
        """One inner step on the sum of the batches' mean losses, each times `scale(task)`."""

    def keep_delta(self, scale: float = 1.0) -> None:
        """Add `scale` (theta - theta') to the outer gradient, for every parameter the inner loop touched."""

    def keep_gradient(self, batch: Batch, scale: float = 1.0) -> None:
        """Add `scale` times the gradient of the batch's loss AT theta' to the outer gradient (first-order MAML)."""

    def drift(self) -> Tensor:
        """|theta' - theta|, over all parameters that the inner loop touched."""


class Learner(Protocol):
    """The model being trained, with the operations algorithms need."""

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """All trainable parameters by name, in a fixed order: encoder, heads, the algorithm's own numbers."""

    @property
    def device(self) -> torch.device:
        """Where the parameters lie."""

    @property
    def seed(self) -> int:
        """The recipe's seed."""

    @property
    def step(self) -> int:
        """Outer steps done so far."""

    @property
    def steps(self) -> int:
        """Outer steps of the whole run."""

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks it has heads for, by name."""

    @property
    def examples(self) -> int:
        """Encoder example-forwards spent in training so far."""

    @property
    def episodes(self) -> Mapping[str, int]:
        """Inner loops each task has finished; inner schedules count these."""

    @property
    def losses(self) -> Sequence[tuple[str, int, Tensor]]:
        """(task, inner step, detached loss) of every gradient of this step."""

    @property
    def drifts(self) -> Sequence[tuple[str, Tensor]]:
        """(task, |theta' - theta|) of every inner loop of this step."""

    def gradient(self, batch: Batch, scale: float | Tensor = 1.0) -> Tensor:
        """Add `scale` times the gradient of the batch's mean loss to `.grad`; returns the mean loss, detached."""

    def clear_gradient(self) -> None:
        """Set every `.grad` to None."""

    def take_gradient(self) -> list[Tensor | None]:
        """Remove and return every `.grad`, in the order of `parameters`."""

    def put_gradient(self, gradient: list[Tensor | None]) -> None:
        """Set every `.grad`; None for what was not touched."""

    def excursion(
        self,
        task: str,
        optimizer: OptimizerOptions,
        schedule: ScheduleOptions,
        *,
        state: InnerState = "per_task",
        fresh_head: bool = False,
    ) -> AbstractContextManager[Excursion]:
        """Leave theta for an inner loop on `task`; on exit theta is back bit for bit, also if the loop raised."""


class Feed(Protocol):
    """Where an algorithm draws tasks and batches from in one step."""

    tasks: tuple[str, ...]

    def draw(self, count: int = 1, *, with_replacement: bool = False) -> list[str]:
        """`count` tasks drawn with the sampler's probabilities, in the recipe's order of tasks."""

    def batch(self, task: str) -> Batch:
        """The task's next training batch."""

    def episode(self, task: str, support: int) -> tuple[list[Batch], Batch]:
        """`support` support batches and one query batch, disjoint by example id."""

    def inner_steps(self, task: str) -> int:
        """Inner steps of one episode of the task."""

    def loss_weight(self, task: str) -> float:
        """Lambda of the task."""
