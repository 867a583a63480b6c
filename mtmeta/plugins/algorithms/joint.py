"""Joint multi-task learning (paper, equation 1)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import mtmeta


@dataclass(frozen=True)
class Joint(mtmeta.Algorithm):
    """Descends 1/N sum_t lambda_t l_t over the N tasks (equation 1).

    Each task's graph is freed before the next is built, so memory is that of one task.
    """

    name = "joint"

    step: Literal["sum", "alternate"] = "sum"
    """`sum` (paper): one batch of every task, one step; `alternate`: one sampled task a step."""
    epoch: Literal["mean", "min", "max"] = "mean"
    """Steps in an epoch: the mean, least or greatest number of batches among the tasks."""

    def steps_per_epoch(self, batches: Mapping[str, int]) -> int:
        counts = list(batches.values())
        return {"mean": round(sum(counts) / len(counts)), "min": min(counts), "max": max(counts)}[self.epoch]

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        if self.step == "alternate":
            for task in feed.draw():
                learner.gradient(feed.batch(task), feed.loss_weight(task))
            return
        for task in feed.tasks:
            learner.gradient(feed.batch(task), feed.loss_weight(task) / len(feed.tasks))
