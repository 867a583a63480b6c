"""The objects that `Algorithm.backward` is handed: the model's gradients, inner loops that leave theta, and batches.

Notation of the paper: theta are the parameters of encoder and heads, theta' those after an inner loop, L_t the mean
loss of task t on a batch, lambda_t its loss weight. A gradient has the shape of its parameter; a loss is a scalar.

Joint learning is `learner.gradient(feed.batch(task), feed.loss_weight(task))` for each task. Reptile:

    for task in feed.draw(3):
        with learner.excursion(task, inner_optimizer, inner_schedule) as inner:
            for _ in range(feed.inner_steps(task)):
                inner.step(feed.batch(task))
            inner.keep_delta(feed.loss_weight(task) / 3)
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
        """Take one step of the inner optimizer on the sum of `scale(t)` L_t over the batches; `scale` is 1 by default.

        Raises DivergedError for a non-finite loss.
        """

    def keep_delta(self, scale: float = 1.0) -> None:
        """Add `scale` (theta - theta') to the outer gradient, for every parameter that the inner loop touched.

        Raises DivergedError if the difference is not finite.
        """

    def keep_gradient(self, batch: Batch, scale: float = 1.0) -> None:
        """Add `scale` times the gradient of L_t on the batch AT theta' to the outer gradient (first-order MAML).

        Raises DivergedError if the loss or the gradient is not finite.
        """

    def drift(self) -> Tensor:
        """Return |theta' - theta|, a scalar: the norm over all parameters that the inner loop touched."""


class Learner(Protocol):
    """The model being trained, with the operations that algorithms need.

    `backward` leaves its result in the parameters' `.grad`; the training loop clips it and takes the outer step.
    """

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """All trainable parameters by name, in a fixed order: encoder, heads, the algorithm's own numbers."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""

    @property
    def seed(self) -> int:
        """The recipe's seed; every draw of a plugin should be a function of it."""

    @property
    def step(self) -> int:
        """Outer steps finished before this one, from 0."""

    @property
    def steps(self) -> int:
        """Outer steps of the whole run."""

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks that it has heads for, by name."""

    @property
    def examples(self) -> int:
        """Encoder example-forwards spent in training so far."""

    @property
    def episodes(self) -> Mapping[str, int]:
        """Inner loops that each task has finished; an inner schedule takes this as its step."""

    @property
    def losses(self) -> Sequence[tuple[str, int, Tensor]]:
        """(task, inner step, detached loss) of every gradient of this outer step."""

    @property
    def drifts(self) -> Sequence[tuple[str, Tensor]]:
        """(task, |theta' - theta|) of every inner loop of this outer step."""

    def gradient(self, batch: Batch, scale: float | Tensor = 1.0) -> Tensor:
        """Add `scale` times the gradient of L_t on the batch to `.grad`; return L_t, detached.

        Raises DivergedError for a non-finite loss.
        """

    def clear_gradient(self) -> None:
        """Set every `.grad` to None."""

    def take_gradient(self) -> list[Tensor | None]:
        """Remove and return every `.grad`, in the order of `parameters`; None for a parameter that was not touched."""

    def put_gradient(self, gradient: list[Tensor | None]) -> None:
        """Set every `.grad`, in the order of `parameters`; None for a parameter that was not touched."""

    def excursion(
        self,
        task: str,
        optimizer: OptimizerOptions,
        schedule: ScheduleOptions,
        *,
        state: InnerState = "per_task",
        fresh_head: bool = False,
    ) -> AbstractContextManager[Excursion]:
        """Leave theta for an inner loop on `task`; on exit theta is back bit for bit, also if the loop raised.

        The directions that the excursion kept are added to the `.grad` of before. `state` says how long the inner
        optimizer's moments live: one set for each task, one shared by all, or none beyond this loop. `schedule` takes
        the task's episodes as its step and the run's outer steps as its length. `fresh_head` begins with a new head,
        whose outer gradient is None. Raises RuntimeError inside another excursion.
        """


class Feed(Protocol):
    """The source of tasks and batches in one outer step.

    Every draw is a function of the recipe's seed and of how far each task's stream has been read.
    """

    tasks: tuple[str, ...]
    """Names of all tasks, in the order of the recipe."""

    def draw(self, count: int = 1, *, with_replacement: bool = False) -> list[str]:
        """Draw `count` tasks with the sampler's probabilities; return them in the recipe's order.

        Without replacement a task comes at most once. Raises RecipeError if too few tasks have a weight above 0.
        """

    def batch(self, task: str) -> Batch:
        """Return the task's next training batch; after the last of an epoch a new epoch begins, shuffled anew."""

    def episode(self, task: str, support: int) -> tuple[list[Batch], Batch]:
        """Return `support` support batches and one query batch, disjoint by example id.

        Raises DataError if the task has too few examples.
        """

    def inner_steps(self, task: str) -> int:
        """Return the inner steps of one episode of the task."""

    def loss_weight(self, task: str) -> float:
        """Return lambda_t, the task's weight in the objective."""
