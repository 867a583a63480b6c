"""What algorithms are written in: gradients, and excursions from theta that come back to it.

Notation of the paper: theta are the parameters of encoder and heads, theta' those after an inner loop.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtmeta.core.api.optimizers import OptimizerOptions, set_lr
from mtmeta.core.api.option_types import InnerState
from mtmeta.core.api.schedules import ScheduleOptions
from mtmeta.core.training.excursion import Excursion
from mtmeta.core.training.gradients import Gradients
from mtmeta.core.training.model import MultiTaskModel, build_head
from mtmeta.core.training.state import optimizer_state, restore_optimizer, spare_slot


class Learner(Gradients):
    """The model being trained, with the operations algorithms need.

    `parameters` are all trainable parameters by name, in a fixed order. After `Algorithm.backward` the loop takes the
    update direction from their `.grad`.
    """

    def __init__(self, model: MultiTaskModel, **options: Any) -> None:
        super().__init__(model, **options)
        self._inner: dict[str, Optimizer] = {}
        self._last_gradients: dict[Tensor, Tensor] = {}
        self._pending: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._snapshot: list[Tensor] = []
        self._away = False

    @contextmanager
    def excursion(
        self,
        task: str,
        optimizer: OptimizerOptions,
        schedule: ScheduleOptions,
        *,
        state: InnerState = "per_task",
        fresh_head: bool = False,
    ) -> Iterator[Excursion]:
        """Leave theta for an inner loop on `task`; on exit theta is back bit for bit, also if the loop raised.

        What the excursion kept (`keep_delta`, `keep_gradient`) is added to the `.grad` found on entry. The inner
        optimizer's state lives on by task (`per_task`), across tasks (`shared`), or not at all (`reset`). The schedule
        takes the task's own count of episodes as its step, and the run's outer steps as its length.
        `fresh_head` starts from a newly initialised head, whose outer gradient is None.
        """
        if self._away:
            raise RuntimeError("an excursion is under way already; they cannot be nested")
        parameters: list[Tensor] = list(self.parameters.values())
        if not self._snapshot:
            self._snapshot = [torch.empty_like(parameter) for parameter in parameters]
        outer = self.take_gradient()
        with torch.no_grad():
            torch._foreach_copy_(self._snapshot, parameters)
        self.inner_step, self._away = 0, True
        try:
            inner = self._inner_optimizer("shared" if state == "shared" else task, optimizer)
            if state == "reset":
                inner.state.clear()
            set_lr(inner, schedule.factor(self.episodes[task], self.steps))
            if fresh_head:
                self._reset_head(task)
            dropped = f"heads.{task}." if fresh_head else None
            trip = Excursion(self, task, inner, self._snapshot, outer, dropped, self._share_last_gradients)
            yield trip
            self.drifts.append((task, trip.drift()))
            self.episodes[task] += 1
            if state == "reset":
                inner.state.clear()  # nothing of it is to be kept or checkpointed
        finally:
            self._away = False
            with torch.no_grad():
                torch._foreach_copy_(parameters, self._snapshot)
            self.put_gradient(outer)

    def _reset_head(self, task: str) -> None:
        purpose = ("episode", self.episodes[task])
        fresh = build_head(task, self.tasks[task], self.model.hidden_size, self.seed, *purpose)
        self.model.heads[task].load_state_dict(fresh.state_dict())

    def _inner_optimizer(self, key: str, options: OptimizerOptions) -> Optimizer:
        if key not in self._inner:
            self._inner[key] = options.build(self.parameters.items(), inner=True)
            if key in self._pending:
                restore_optimizer(self._inner[key], self.parameters, self._pending.pop(key))
        return self._inner[key]

    def _share_last_gradients(self, optimizer: Optimizer) -> None:
        """Have all inner optimizers keep their first moment in the same buffers, if its beta is 0.

        It is the last gradient then, written anew before it is read: half of what a task's own state would take.
        """
        if spare_slot(optimizer):
            for parameter, state in optimizer.state.items():
                state["exp_avg"] = self._last_gradients.setdefault(parameter, state["exp_avg"])

    def inner_states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return the state of every inner optimizer: key -> parameter name -> slot -> tensor."""
        current = {key: optimizer_state(inner, self.parameters) for key, inner in self._inner.items()}
        return {**self._pending, **current}

    def forget_inner_states(self) -> None:
        """Drop the inner optimizer states that this step used: a non-finite gradient may have entered them."""
        for key in ("shared", *(task for task, *_ in self.losses)):
            self._inner.pop(key, None)
            self._pending.pop(key, None)
        for gradient in self._last_gradients.values():
            gradient.zero_()  # 0 times NaN is not 0

    def load_inner_states(self, states: dict[str, dict[str, dict[str, Tensor]]]) -> None:
        """Take up saved states; each is applied when its optimizer is next needed."""
        self._inner.clear()
        self._pending = dict(states)
