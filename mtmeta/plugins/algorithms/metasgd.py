"""Meta-SGD (Li et al. 2017): first-order MAML that trains the inner learning rate of each tensor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

from pydantic import Field

import mtmeta
from mtmeta.plugins.algorithms.inner_loop import Drawing


@dataclass(frozen=True)
class MetaSgd(Drawing):
    """Adapts theta to theta' by SGD on support batches with a learning rate a_l for each tensor l, and trains all a_l.

    To first order the gradient of the query loss by log a_l is the inner product of its gradient at theta' with the
    move theta'_l - theta_l, which is -a_l <g_q, g_s>_l after one step. The logarithms are what is trained, so rates
    stay positive and a step of the outer optimizer is relative; they take its `head_lr`.
    """

    name = "metasgd"

    inner_lr: mtmeta.PositiveFloat = 1e-2
    """What every rate begins as."""
    inner_steps: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Support steps of every task; default: each task's own `inner_steps`."""
    inner_schedule: mtmeta.ScheduleOptions = field(default_factory=mtmeta.Constant)
    """A factor of all rates; its step is the task's own count of episodes."""

    def parameters_of(self, tasks: Sequence[str], names: Sequence[str]) -> dict[str, float]:
        return {_rate_of(name): math.log(self.inner_lr) for name in names}

    def episode_batches(self, task: mtmeta.Task) -> int:
        return (self.inner_steps or task.inner_steps) + 1  # support and query

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        own = "algorithm."
        logs = {n: learner.parameters[own + _rate_of(n)] for n in learner.parameters if not n.startswith(own)}
        for task in learner.slots(self.drawn(feed)):
            support, query = feed.episode(task, self.inner_steps or feed.inner_steps(task))
            rates = {name: log.detach().exp() for name, log in logs.items()}
            with learner.excursion(task, mtmeta.SGD(lr=1.0), self.inner_schedule, state="reset") as inner:
                for batch in support:
                    inner.step(batch, rates=rates)
                moves = inner.moves()
                kept = inner.keep_gradient(query, feed.loss_weight(task) / self.tasks_per_step)
                products = {name: (kept[name] * move).sum() for name, move in moves.items() if name in kept}
            for name, product in products.items():
                grad = logs[name].grad
                logs[name].grad = product if grad is None else grad + product


def _rate_of(name: str) -> str:
    """Return the name of a tensor's rate; an algorithm's numbers have no dots in theirs."""
    return name.replace(".", "/")
