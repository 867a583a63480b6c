"""MAML (Finn et al. 2017), with and without second derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

import mtmeta
from mtmeta.plugins.algorithms.inner_loop import InnerLoop


@dataclass(frozen=True)
class Maml(InnerLoop):
    """Descends the query loss at theta', where an inner loop on support batches leads from theta.

    Support and query are disjoint by example id within an episode. `order: 1` is `fomaml` with `support: own`, bit for
    bit. `order: 2` differentiates through the inner loop, by plain operators: some times the time, and the memory of
    all inner steps at once.
    """

    name = "maml"

    inner_optimizer: mtmeta.OptimizerOptions = field(default_factory=lambda: mtmeta.SGD(lr=1e-2))
    """Optimizer of the inner loop; with `order: 2` sgd without momentum."""
    inner_steps: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Support steps of every task; default: each task's own `inner_steps`. 0 gives the plain query gradient."""
    order: Literal[1, 2] = 2
    """`2`: the gradient of the query loss with respect to theta; `1`: that at theta', taken for it."""
    head_policy: Literal["persistent", "reset"] = "persistent"
    """`reset` starts every episode from a fresh head, for few-shot work; evaluation then needs adaptation."""

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[tuple[str, str]]:
        yield from super().check(tasks)
        optimizer = self.inner_optimizer
        if self.order == 2 and (not isinstance(optimizer, mtmeta.SGD) or optimizer.momentum):
            yield "inner_optimizer", "order: 2 differentiates through sgd without momentum alone; use it or order: 1"

    def episode_batches(self, task: mtmeta.Task) -> int:
        return (task.inner_steps if self.inner_steps is None else self.inner_steps) + 1  # support and query

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        fresh_head = self.head_policy == "reset"
        for task in feed.draw(self.tasks_per_step, with_replacement=self.with_replacement):
            steps = feed.inner_steps(task) if self.inner_steps is None else self.inner_steps
            support, query = feed.episode(task, steps)
            scale = feed.loss_weight(task) / self.tasks_per_step
            loop = self.inner_optimizer, self.inner_schedule
            if self.order == 2:
                with learner.unrolled(task, *loop, fresh_head=fresh_head) as unrolled:
                    for batch in support:
                        unrolled.step(batch)
                    unrolled.keep_gradient(query, scale)
                continue
            with learner.excursion(task, *loop, state=self.inner_state, fresh_head=fresh_head) as inner:
                for batch in support:
                    inner.step(batch)
                inner.keep_gradient(query, scale)
