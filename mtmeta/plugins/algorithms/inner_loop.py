"""Options and checks that algorithms which draw tasks share, and those with an inner loop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class InnerLoop(Drawing):
    """Draws tasks and leaves theta for an inner loop on each."""

    inner_optimizer: mtmeta.OptimizerOptions = field(default_factory=lambda: mtmeta.AdamW(lr=1e-5))
    """Optimizer of the inner loop."""
    inner_schedule: mtmeta.ScheduleOptions = field(default_factory=lambda: mtmeta.Step(every=30, gamma=0.8))
    """Schedule of the inner learning rate; its step is the task's own count of episodes."""
    inner_state: mtmeta.InnerState = "per_task"
    """Whose inner optimizer state lives on: each task's own, one `shared`, or none (`reset`)."""
