"""Options and checks that algorithms which draw tasks share, and those with an inner loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

import mtmeta


@dataclass(frozen=True)
class Drawing(mtmeta.Algorithm):
    """Draws tasks for each outer step."""

    tasks_per_step: mtmeta.PositiveInt = 1
    """Tasks drawn for one outer step."""
    with_replacement: bool = False
    """Whether one outer step may draw the same task twice."""

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[tuple[str, str]]:
        count = self.tasks_per_step
        if count > len(tasks) and not self.with_replacement:
            fix = "set with_replacement: true or lower it"
            yield "tasks_per_step", f"is {count} but only {len(tasks)} tasks exist; {fix}"

    def parts(self, tasks: Sequence[str]) -> int:
        return self.tasks_per_step

    def drawn(self, feed: mtmeta.Feed) -> list[str]:
        """Return the tasks of a step."""
        return feed.draw(self.tasks_per_step, with_replacement=self.with_replacement)


@dataclass(frozen=True)
class InnerLoop(Drawing):
    """Draws tasks and leaves theta for an inner loop on each."""

    inner_optimizer: mtmeta.OptimizerOptions = field(default_factory=lambda: mtmeta.AdamW(lr=1e-5))
    """Optimizer of the inner loop."""
    inner_schedule: mtmeta.ScheduleOptions = field(default_factory=lambda: mtmeta.Step(every=30, gamma=0.8))
    """Schedule of the inner learning rate; its step is the task's own count of episodes."""
    inner_state: mtmeta.InnerState = "per_task"
    """Whose inner optimizer state lives on: each task's own, one `shared`, or none (`reset`)."""

    def parts(self, tasks: Sequence[str]) -> int:
        return 1 if self.inner_state == "shared" else self.tasks_per_step  # one goes on from the other


@dataclass(frozen=True)
class Episodic(InnerLoop):
    """Draws episodes: an inner loop on support batches, and a query batch that tells where it led."""

    inner_steps: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Support steps of every task; default: each task's own `inner_steps`. 0 gives the plain query gradient."""
    head_policy: Literal["persistent", "reset"] = "persistent"
    """`reset` starts every episode from a fresh head, for few-shot work; evaluation then needs adaptation."""

    def episode_batches(self, task: mtmeta.Task) -> int:
        return (task.inner_steps if self.inner_steps is None else self.inner_steps) + 1  # support and query

    def episodes(
        self, learner: mtmeta.Learner, feed: mtmeta.Feed
    ) -> Iterator[tuple[str, list[mtmeta.Batch], mtmeta.Batch, float]]:
        """Yield task, support, query and the scale of its direction, of each task drawn for a step."""
        for task in learner.slots(self.drawn(feed), state=self.inner_state):
            steps = feed.inner_steps(task) if self.inner_steps is None else self.inner_steps
            support, query = feed.episode(task, steps)
            yield task, support, query, feed.loss_weight(task) / self.tasks_per_step

    def excursion(self, learner: mtmeta.Learner, task: str) -> AbstractContextManager[mtmeta.Excursion]:
        """Leave theta for the inner loop of an episode, to come back with a gradient of first order."""
        fresh_head = self.head_policy == "reset"
        options = self.inner_optimizer, self.inner_schedule
        return learner.excursion(task, *options, state=self.inner_state, fresh_head=fresh_head)
