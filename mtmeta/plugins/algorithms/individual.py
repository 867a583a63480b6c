"""Every task alone (paper, section 5.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mtmeta


@dataclass(frozen=True)
class Individual(mtmeta.Algorithm):
    """One learner, optimizer, schedule and best checkpoint per task; the baseline that multi-task regimes must beat."""

    name = "individual"

    def groups(self, tasks: Sequence[str]) -> list[list[str]]:
        return [[task] for task in tasks]

    def steps_per_epoch(self, batches: Mapping[str, int]) -> int:
        return sum(batches.values())

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            learner.gradient(feed.batch(task))
