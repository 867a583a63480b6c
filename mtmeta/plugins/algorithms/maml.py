"""MAML (Finn et al. 2017), with and without second derivatives."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Literal

import mtmeta
from mtmeta.plugins.algorithms.inner_loop import Episodic


@dataclass(frozen=True)
class Maml(Episodic):
    """Descends the query loss at theta', where an inner loop on support batches leads from theta.

    Support and query are disjoint by example id within an episode. `order: 1` is `fomaml` with `support: own`, bit for
    bit. `order: 2` differentiates through the inner loop, by plain operators: some times the time, and the memory of
    all inner steps at once.
    """

    name = "maml"

    inner_optimizer: mtmeta.OptimizerOptions = field(default_factory=lambda: mtmeta.SGD(lr=1e-2))
    """Optimizer of the inner loop; with `order: 2` sgd without momentum."""
    order: Literal[1, 2] = 2
    """`2`: the gradient of the query loss with respect to theta; `1`: that at theta', taken for it."""

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[tuple[str, str]]:
        yield from super().check(tasks)
        optimizer = self.inner_optimizer
        if self.order == 2 and (not isinstance(optimizer, mtmeta.SGD) or optimizer.momentum):
            yield "inner_optimizer", "order: 2 differentiates through sgd without momentum alone; use it or order: 1"

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task, support, query, scale in self.episodes(learner, feed):
            with self._loop(learner, task) as inner:
                for batch in support:
                    inner.step(batch)
                inner.keep_gradient(query, scale)

    def _loop(
        self, learner: mtmeta.Learner, task: str
    ) -> AbstractContextManager[mtmeta.Excursion] | AbstractContextManager[mtmeta.Unrolled]:
        if self.order == 1:
            return self.excursion(learner, task)
        fresh_head = self.head_policy == "reset"
        return learner.unrolled(task, self.inner_optimizer, self.inner_schedule, fresh_head=fresh_head)
