"""Joint multi-task learning (paper, equation 1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import mtmeta

Epoch = Literal["mean", "min", "max"]


def steps_of_epoch(epoch: Epoch, batches: Mapping[str, int]) -> int:
    """Return the steps in an epoch in which every step takes a batch of each task, given each task's batches."""
    counts = list(batches.values())
    return {"mean": round(sum(counts) / len(counts)), "min": min(counts), "max": max(counts)}[epoch]


@dataclass(frozen=True)
class Joint(mtmeta.Algorithm):
    """Descends 1/N sum_t lambda_t l_t over the N tasks (equation 1).

    Each task's graph is freed before the next is built, so memory is that of one task.
    """

    name = "joint"

    step: Literal["sum", "alternate"] = "sum"
    """`sum` (paper): one batch of every task, one step; `alternate`: one sampled task a step."""
    epoch: Epoch = "mean"
    """Steps in an epoch: the mean, least or greatest number of batches among the tasks."""
    weighting: Literal["fixed", "uncertainty"] = "fixed"
    """`fixed`: lambda_t as the recipe gives it; `uncertainty` (Kendall et al. 2018): times exp(-s_t), where s_t, the
    log variance of the task, is trained along, and costs s_t / 2. It begins at 0 and takes `head_lr`."""

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[tuple[str, str]]:
        if self.weighting == "uncertainty" and len(tasks) < 2:
            yield "weighting", "uncertainty weighs tasks against each other, there is only one; use fixed"

    def parameters(self, tasks: Sequence[str]) -> dict[str, float]:
        return dict.fromkeys(tasks, 0.0) if self.weighting == "uncertainty" else {}

    def steps_per_epoch(self, batches: Mapping[str, int]) -> int:
        return steps_of_epoch(self.epoch, batches)

    def parts(self, tasks: Sequence[str]) -> int:
        return len(tasks) if self.step == "sum" else 1

    @property
    def slots_are_gradients(self) -> bool:
        return self.weighting == "fixed"

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        if self.step == "alternate":
            for task in feed.draw():
                self._descend(learner, feed, task, feed.loss_weight(task))
            return
        for task in learner.slots(feed.tasks, single=self.slots_are_gradients):
            self._descend(learner, feed, task, feed.loss_weight(task) / len(feed.tasks))

    def _descend(self, learner: mtmeta.Learner, feed: mtmeta.Feed, task: str, weight: float) -> None:
        if self.weighting == "fixed":
            learner.gradient(feed.batch(task), weight)
            return
        s = learner.parameters[f"algorithm.{task}"]
        scale = weight * (-s.detach()).exp()
        loss = learner.gradient(feed.batch(task), scale)
        s.grad = weight / 2 - scale * loss.to(s.dtype)  # of weight (exp(-s) loss + s / 2)
