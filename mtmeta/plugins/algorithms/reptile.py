"""Reptile (Nichol et al. 2018; paper, equations 3 and 4)."""

from __future__ import annotations

from dataclasses import dataclass

import mtmeta
from mtmeta.plugins.algorithms.inner_loop import InnerLoop


@dataclass(frozen=True)
class Reptile(InnerLoop):
    """Draws tasks, fine-tunes theta on each for a few steps to theta', and hands mean(theta - theta') to the optimizer.

    With outer SGD of learning rate e this is theta + e (theta' - theta), the paper's equation 4.
    """

    name = "reptile"

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in learner.slots(self.drawn(feed), state=self.inner_state):
            with learner.excursion(task, self.inner_optimizer, self.inner_schedule, state=self.inner_state) as inner:
                for _ in range(feed.inner_steps(task)):
                    inner.step(feed.batch(task))
                inner.keep_delta(feed.loss_weight(task) / self.tasks_per_step)
