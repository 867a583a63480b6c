"""First-order MAML (Finn et al. 2017; paper, equation 2 without second derivatives)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

import mtmeta
from mtmeta.plugins.algorithms.inner_loop import InnerLoop


@dataclass(frozen=True)
class Fomaml(InnerLoop):
    """Adapts theta to theta' on support batches and applies the query loss's gradient AT theta' to theta.

    Support and query are disjoint by example id within an episode.
    """

    name = "fomaml"

    inner_steps: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Support steps of every task; default: each task's own `inner_steps`. 0 gives the plain query gradient."""
    support: Literal["own", "all"] = "own"
    """`own` (Finn et al.): the task's own support; `all` (equation 2): the weighted mean loss over all tasks."""
    head_policy: Literal["persistent", "reset"] = "persistent"
    """`reset` starts every episode from a fresh head, for few-shot work; evaluation then needs adaptation."""

    def episode_batches(self, task: mtmeta.Task) -> int:
        return (task.inner_steps if self.inner_steps is None else self.inner_steps) + 1  # support and query

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.draw(self.tasks_per_step, with_replacement=self.with_replacement):
            steps = feed.inner_steps(task) if self.inner_steps is None else self.inner_steps
            support, query = feed.episode(task, steps)
            with learner.excursion(
                task,
                self.inner_optimizer,
                self.inner_schedule,
                state=self.inner_state,
                fresh_head=self.head_policy == "reset",
            ) as inner:
                for batch in support:
                    if self.support == "all":
                        others = [feed.batch(other) for other in feed.tasks if other != task]
                        inner.step(batch, *others, scale=lambda name: feed.loss_weight(name) / len(feed.tasks))
                    else:
                        inner.step(batch)
                inner.keep_gradient(query, feed.loss_weight(task) / self.tasks_per_step)
