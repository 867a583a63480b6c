"""Gradients of a model by task, and how long they are."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from mtmeta.core.api.batch import Batch
from mtmeta.core.api.contracts import Task
from mtmeta.core.errors import DivergedError
from mtmeta.core.machine import memory_errors, order_errors
from mtmeta.core.registry.guard import accused, fault, supplier
from mtmeta.core.rng import derive
from mtmeta.core.training.model import MultiTaskModel, task_loss

Grads = list[Tensor | None]


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all tensors as one vector, a scalar."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors)))) if tensors else torch.zeros(())


class Gradients:
    """A model, and the gradients of its tasks' losses."""

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
        self.inner_step = 0

    def begin_step(self, step: int) -> None:
        """Called by the loop: forget the last step's gradients and losses."""
        self.step, self._draws, self.inner_step, self.losses, self.drifts = step, 0, 0, [], []
        self.clear_gradient()

    def gradient(self, batch: Batch, scale: float | Tensor = 1.0) -> Tensor:
        """Add `scale` times the gradient of the batch's mean loss to `.grad`; returns the mean loss, detached.

        Under gradient accumulation the batch comes in chunks, each weighted by its share of the examples, so the
        result is that of the whole batch. Raises DivergedError for a non-finite loss.
        """
        total = torch.zeros((), device=self.device)
        longest = max(chunk.packed.groups[-1][1] for chunk in batch.chunks)
        remedy = f"halve batch_size or set training.grad_accumulation: {2 * len(batch.chunks)}"
        where = f"task '{batch.task}'"
        who = supplier(self.tasks[batch.task])
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
        self.losses.append((batch.task, self.inner_step, total))
        if self._check_each_loss:
            self.check_losses(self.losses[-1:])
        return total

    def _loss(self, name: str, outputs: Tensor, labels: Tensor) -> Tensor:
        task = self.tasks[name]
        loss: object = task_loss(task, name, outputs, labels)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            shape = f"has shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
            raise fault(task, f"loss for task '{name}' {shape}, expected a scalar tensor")
        if not loss.requires_grad:
            raise fault(task, f"loss for task '{name}' has no gradient; was it detached?")
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
            where = f"meta-step {self.step + 1}, task '{task}', inner step {self.inner_step}"
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
