"""Weighting by losses: scalarisers, by their derivatives."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

import mtmeta
from mtmeta.plugins.algorithms.joint import Epoch, steps_of_epoch
from mtmeta.plugins.algorithms.surgery.scalarisers import DWA, FAMO, GLS, IMTLL, STCH, UW, Ahead

if TYPE_CHECKING:
    from torch import Tensor

ScalariserOptions = Annotated[UW | DWA | FAMO | GLS | IMTLL | STCH, Field(discriminator="name")]


@dataclass(frozen=True)
class Weighting(mtmeta.Algorithm):
    """Descends a function of the tasks' losses, each gradient weighted by its derivative; encoder and heads alike.

    A batch of every task a step. uw, dwa and imtl_l know their weights before the losses and cost what `joint` costs;
    famo, gls and stch know them only after all losses, and hold one gradient more. famo sees each batch a second time,
    which counts as example-forwards.
    """

    name = "weighting"

    method: ScalariserOptions = field(default_factory=UW)
    """The function, by name (`method: uw`) or with options (`method: {name: stch, mu: 0.5}`): uw, dwa (temperature,
    every), famo (lr, decay), gls, imtl_l, stch (mu)."""
    epoch: Epoch = "mean"
    """Steps in an epoch: the mean, least or greatest number of batches among the tasks."""

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[tuple[str, str]]:
        if len(tasks) < 2:
            yield "method", f"{self.method.name} weighs tasks against each other, there is only one; use joint"
        yield from (("method", message) for message in self.method.check(tasks))

    def parameters(self, tasks: Sequence[str]) -> dict[str, float]:
        return self.method.parameters(tasks)

    def extra_bytes(self, shared: int, tasks: Sequence[str]) -> int:
        return 0 if isinstance(self.method, Ahead) else shared

    def steps_per_epoch(self, batches: Mapping[str, int]) -> int:
        return steps_of_epoch(self.epoch, batches)

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        learner.clear_gradient()
        if isinstance(self.method, Ahead):
            scales = {task: feed.loss_weight(task) / len(feed.tasks) for task in feed.tasks}
            weights = self.method.begin(learner, feed.tasks)
            losses = {task: learner.gradient(feed.batch(task), weights[task] * scales[task]) for task in feed.tasks}
            self.method.end(learner, losses, scales)
        else:
            self._weigh_afterwards(learner, feed)

    def _weigh_afterwards(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        """Add up exp(part_t - largest part so far) g_t, so that no factor overflows, and scale the sum at the end."""
        assert not isinstance(self.method, Ahead)
        total: list[Tensor | None] = [None] * len(learner.parameters)
        weights, losses, parts, top = [], [], [], -math.inf
        batches = []
        for position, task in enumerate(feed.tasks):
            batch = feed.batch(task)
            weights.append(feed.loss_weight(task))
            losses.append(self._positive(task, float(learner.gradient(batch))))
            batches.append(batch)
            parts.append(self.method.part(learner, position, weights[-1], losses[-1]))
            higher = max(top, parts[-1])
            _add(total, learner.take_gradient(), math.exp(top - higher), math.exp(parts[-1] - higher))
            top = higher
        scale = math.exp(self.method.whole(weights, losses, parts) + top)
        for grad in total:
            if grad is not None:
                grad.mul_(scale)
        learner.put_gradient(total)
        if isinstance(self.method, FAMO):
            learner.scratch.update(batches=batches, losses=losses)

    def _positive(self, task: str, loss: float) -> float:
        if loss < 0 and not isinstance(self.method, STCH):
            message = f"{self.method.name} takes logarithms of losses, that of task '{task}' became {loss:g}"
            raise mtmeta.RecipeError("algorithm.method", f"{message}; use stch")
        return loss

    def after_step(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        if isinstance(self.method, FAMO):
            batches, losses = learner.scratch["batches"], learner.scratch["losses"]
            after = [self._positive(batch.task, float(learner.measure(batch))) for batch in batches]
            self.method.update(learner, losses, after)


def _add(total: list[Tensor | None], taken: Sequence[Tensor | None], old: float, new: float) -> None:
    """Make `total` in place `old` times itself plus `new` times `taken`, whose memory it may keep."""
    for i, grad in enumerate(taken):
        kept = total[i]
        if kept is not None and old != 1.0:
            kept.mul_(old)
        if grad is not None:
            total[i] = grad.mul_(new) if kept is None else kept.add_(grad, alpha=new)
