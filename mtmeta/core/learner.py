"""What algorithms are written in: gradients, and excursions from theta that come back to it.

Notation of the paper: theta are the parameters of encoder and heads, theta' those after an inner loop.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtmeta.core.blame import accused, blame, supplier
from mtmeta.core.contracts import InnerState, Task
from mtmeta.core.errors import DivergedError, PluginError
from mtmeta.core.excursion import Excursion, Grads
from mtmeta.core.machine import memory_errors, order_errors
from mtmeta.core.model import MultiTaskModel, build_head
from mtmeta.core.moments import optimizer_state, restore_optimizer, spare_slot
from mtmeta.core.optim import OptimizerOptions, set_lr
from mtmeta.core.packing import Batch
from mtmeta.core.rng import derive
from mtmeta.core.schedules import ScheduleOptions

__all__ = ["Learner"]


class Learner:
    """The model being trained, with the operations algorithms need.

    `parameters` are all trainable parameters by name, in a fixed order. After `Algorithm.backward` the loop takes the
    update direction from their `.grad`.
    """

    def __init__(
        self,
        model: MultiTaskModel,
        *,
        seed: int,
        steps: int,
        group: str = "",
        precision: Literal["fp32", "bf16"] = "fp32",
        check_each_loss: bool = True,
    ) -> None:
        self.model = model
        self.parameters = dict(model.named_parameters())
        self.tasks: Mapping[str, Task] = model.tasks
        self.device = next(iter(self.parameters.values())).device
        self.seed = seed
        self.steps = steps
        self.step = 0
        self.examples = 0
        """Encoder example-forwards spent in training so far."""
        self.read: Counter[str] = Counter()
        """Of these, in this process, those of each task."""
        self.episodes: Counter[str] = Counter()
        """Inner loops each task has finished; inner schedules count these."""
        self.losses: list[tuple[str, int, Tensor]] = []
        """(task, inner step, detached loss) of every gradient of this step."""
        self.drifts: list[tuple[str, Tensor]] = []
        """(task, |theta' - theta|) of every inner loop of this step."""
        self._group = group
        self._bf16 = precision == "bf16"
        self._check_each_loss = check_each_loss
        self._draws = 0
        self._inner_step = 0
        self._inner: dict[str, Optimizer] = {}
        self._last_gradients: dict[Tensor, Tensor] = {}
        self._pending: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._snapshot: list[Tensor] = []
        self._away = False

    def begin_step(self, step: int) -> None:
        """Called by the loop: forget the last step's gradients and losses."""
        self.step, self._draws, self._inner_step, self.losses, self.drifts = step, 0, 0, [], []
        self.clear_gradient()

    # -- gradients

    def gradient(self, batch: Batch, scale: float | Tensor = 1.0) -> Tensor:
        """Add `scale` times the gradient of the batch's mean loss to `.grad`; returns the mean loss, detached.

        Under gradient accumulation the batch comes in chunks, each weighted by its share of the examples, so the
        result is that of the whole batch. Raises DivergedError for a non-finite loss.
        """
        total = torch.zeros((), device=self.device)
        longest = max(chunk.packed.groups[-1][1] for chunk in batch.chunks)
        remedy = f"halve batch_size or set training.grad_accumulation: {2 * len(batch.chunks)}"
        where = f"task '{batch.task}'"
        who = supplier(self.tasks[batch.task], "task")
        with memory_errors(f"{where} (batch {len(batch)}, length {longest})", remedy), order_errors(who, where):
            for chunk in batch.chunks:
                share = len(chunk.labels) / len(batch)
                # dropout's randomness is a function of where in the run it happens, so there is no RNG state to save
                torch.manual_seed(derive(self.seed, "dropout", self._group, self.step, self._draws))
                self._draws += 1
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
                    outputs = self.model(batch.task, chunk.packed.to(self.device))
                loss = self._loss(batch.task, outputs, chunk.labels.to(self.device, non_blocking=True))
                (loss * (scale * share)).backward()  # type: ignore[no-untyped-call]
                total = total + loss.detach() * share
        self.examples += len(batch)
        self.read[batch.task] += len(batch)
        self.losses.append((batch.task, self._inner_step, total))
        if self._check_each_loss:
            self.check_losses(self.losses[-1:])
        return total

    def _loss(self, task: str, outputs: Tensor, labels: Tensor) -> Tensor:
        part = self.tasks[task]
        with blame(part, "task"):
            try:
                loss = part.objective.loss(outputs, labels)
            except ValueError as error:
                raise PluginError(supplier(part, "task"), f"loss for task '{task}': {error}") from error
            if not isinstance(loss, Tensor) or loss.ndim != 0:
                found = f"has shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
                raise PluginError(supplier(part, "task"), f"loss for task '{task}' {found}, expected a scalar tensor")
        if not loss.requires_grad:
            raise PluginError(supplier(part, "task"), f"loss for task '{task}' has no gradient; was it detached?")
        return loss

    def check_losses(self, losses: list[tuple[str, int, Tensor]] | None = None) -> None:
        """Raise DivergedError naming step, task and inner step of the first non-finite loss. One synchronisation."""
        losses = self.losses if losses is None else losses
        if not losses:
            return
        for (task, inner, _), value in zip(losses, torch.stack([loss for *_, loss in losses]).tolist(), strict=True):
            if not math.isfinite(value):
                where = f"meta-step {self.step + 1}, task '{task}', inner step {inner + 1}"
                who = accused(self.tasks[task])  # a plugin's loss may as well be the plugin's fault
                raise DivergedError(who, f"loss became {value} at {where}; lower the learning rate")

    def check_direction(self, norm: Tensor, kind: str, task: str) -> None:
        """Raise DivergedError if what an inner loop hands on is not finite. On a GPU the norm of the whole must do."""
        if self._check_each_loss and not math.isfinite(norm):
            where = f"meta-step {self.step + 1}, task '{task}', inner step {self._inner_step}"
            raise DivergedError("", f"{kind} became {float(norm)} at {where}; lower the inner learning rate")

    def clear_gradient(self) -> None:
        """Set every `.grad` to None: absent, not zero, so that no optimizer moves what nothing touched."""
        for parameter in self.parameters.values():
            parameter.grad = None

    def take_gradient(self) -> Grads:
        """Remove and return every `.grad`, in the order of `parameters`."""
        taken = [parameter.grad for parameter in self.parameters.values()]
        self.clear_gradient()
        return taken

    def put_gradient(self, gradient: Grads) -> None:
        """Set every `.grad`; None for what was not touched."""
        for parameter, grad in zip(self.parameters.values(), gradient, strict=True):
            parameter.grad = grad

    # -- inner loops

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
        self._inner_step, self._away = 0, True
        try:
            inner = self._inner_optimizer("shared" if state == "shared" else task, optimizer)
            if state == "reset":
                inner.state.clear()
            set_lr(inner, schedule.factor(self.episodes[task], self.steps))
            if fresh_head:
                self._reset_head(task)
            trip = Excursion(self, task, inner, self._snapshot, outer, f"heads.{task}." if fresh_head else None)
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

    # -- checkpoints

    def inner_states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """State of every inner optimizer: key -> parameter name -> slot -> tensor."""
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
