"""Gradient surgery (Yu et al. 2020, algorithm 1) as an mtmeta plugin."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mtmeta

if TYPE_CHECKING:
    from torch import Tensor

Gradient = list["Tensor | None"]


@dataclass(frozen=True)
class PCGrad(mtmeta.Algorithm):
    """Joint training in which each task's gradient gives up what opposes another's (Yu et al. 2020).

    From the gradient g_i of task i, its projection on the gradient g_j of every other task j with g_i . g_j < 0 is
    taken away, in a random order of j; the direction is the sum over i. Only the encoder is shared, so only there
    can gradients conflict; a head's gradient passes through. The g_i are those of `joint` (lambda_i l_i / N), so
    without conflict the direction is that of `joint`, bit for bit.
    """

    name = "pcgrad"

    def steps_per_epoch(self, batches: Mapping[str, int]) -> int:
        return round(sum(batches.values()) / len(batches))

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        learner.clear_gradient()
        shared: dict[str, Gradient] = {}
        total: Gradient = [None] * len(learner.parameters)
        for task in feed.tasks:
            learner.gradient(feed.batch(task), feed.loss_weight(task) / len(feed.tasks))
            taken = learner.take_gradient()
            heads = [name.startswith("heads.") for name in learner.parameters]
            shared[task] = [None if head else grad for head, grad in zip(heads, taken, strict=True)]
            total = add(total, [grad if head else None for head, grad in zip(heads, taken, strict=True)])
        for task in feed.tasks:
            others = [other for other in feed.tasks if other != task]
            # a function of seed, step and task alone: there is no generator state to lose when a run is continued
            random.Random(f"pcgrad {learner.seed} {learner.step} {task}").shuffle(others)
            total = add(total, surgery(shared[task], (shared[other] for other in others)))
        learner.put_gradient(total)


def surgery(own: Gradient, others: Iterable[Gradient]) -> Gradient:
    """`own` without its projection on each of `others` in turn that opposes what is left of it."""
    for other in others:
        along = dot(own, other)
        if along < 0:
            own = add(own, other, -along / dot(other, other))
    return own


def dot(a: Gradient, b: Gradient) -> float:
    """Inner product; what is None counts as zero."""
    parts = [x.flatten().dot(y.flatten()) for x, y in zip(a, b, strict=True) if x is not None and y is not None]
    return float(sum(parts))


def add(a: Gradient, b: Gradient, scale: float = 1.0) -> Gradient:
    """a + scale * b in new tensors; None where both are."""
    scaled = [y if y is None or scale == 1.0 else y * scale for y in b]
    return [y if x is None else x if y is None else x + y for x, y in zip(a, scaled, strict=True)]


@mtmeta.hookimpl
def register_algorithms() -> list[type[mtmeta.Algorithm]]:
    return [PCGrad]
