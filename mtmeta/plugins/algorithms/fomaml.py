"""First-order MAML (Finn et al. 2017; paper, equation 2 without second derivatives)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import mtmeta
from mtmeta.plugins.algorithms.inner_loop import Episodic


@dataclass(frozen=True)
class Fomaml(Episodic):
    """Adapts theta to theta' on support batches and applies the query loss's gradient AT theta' to theta.

    Support and query are disjoint by example id within an episode.
    """

    name = "fomaml"

    support: Literal["own", "all"] = "own"
    """`own` (Finn et al.): the task's own support; `all` (equation 2): the weighted mean loss over all tasks."""

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task, support, query, scale in self.episodes(learner, feed):
            with self.excursion(learner, task) as inner:
                for batch in support:
                    if self.support == "all":
                        others = [feed.batch(other) for other in feed.tasks if other != task]
                        inner.step(batch, *others, scale=lambda name: feed.loss_weight(name) / len(feed.tasks))
                    else:
                        inner.step(batch)
                inner.keep_gradient(query, scale)
