"""A learner that goes through an algorithm without computing: what is read is counted, nothing is encoded.

For budgets, which are to know how far they reach before training, and for the parts of a step that other ranks compute.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mtmeta.core.api.batch import Batch, Features
from mtmeta.core.training.learner import Learner


class Rehearsal(Learner):
    """Counts what would go through the encoder. Gradients stay absent, as those of parameters that nothing touched."""

    chunks = 1
    """Most parts that a batch is encoded in, each of which draws dropout once."""

    def read_elsewhere(self, batch: Batch) -> None:
        """Count a batch as read, and the draws of dropout that it takes."""
        self.count(batch.task, len(batch))
        self.draws += min(self.chunks, len(batch))

    def gradient(self, batch: Batch, scale: float | Tensor = 1.0) -> Tensor:
        self.read_elsewhere(batch)
        return self.log(batch.task, torch.zeros(()))

    def measure(self, batch: Batch) -> Tensor:
        self.read_elsewhere(batch)
        return torch.zeros(())

    def features(self, batch: Batch) -> Features:
        self.check_pooled(batch.task)
        self.read_elsewhere(batch)
        shape, here = (len(batch), self.model.vectors(batch.task), self.model.hidden_size), self.device
        vectors = torch.zeros(shape, requires_grad=True, device=here)
        objective = self.tasks[batch.task].objective
        width = [objective.width] if objective.labelled == "row" else []
        return Features(batch.task, vectors, torch.zeros([len(batch), *width], device=here))

    def head(self, task: str) -> dict[str, Tensor]:
        return {name: torch.zeros_like(p, requires_grad=True) for name, p in self.model.heads[task].named_parameters()}

    def loss(self, features: Features, head: Mapping[str, Tensor] | None = None) -> Tensor:
        return super().loss(features, self.head(features.task) if head is None else head)

    def descend(self, task: str, loss: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return self.log(task, loss.detach())

    def loss_at(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        self.read_elsewhere(batch)
        zero: Tensor = _Zero.apply(*parameters.values())  # type: ignore[no-untyped-call]
        return zero

    @contextmanager
    def unrolled(self, task: str, *options: Any, **more: Any) -> Iterator[Any]:
        with self.excursion(task) as trip:
            yield trip

    @contextmanager
    def excursion(self, task: str, *options: Any, **more: Any) -> Iterator[Any]:
        if self._away:
            raise RuntimeError("an excursion is under way already; they cannot be nested")
        self.inner_step, self._away = 0, True
        try:
            trip = _Trip(self)
            yield trip
            self.drifts.append((task, trip.drift()))
            self.episodes[task] += 1
        finally:
            self._away = False


class _Zero(torch.autograd.Function):
    """0 as a function of parameters, which are on the meta device, to be differentiated as often as one likes."""

    @staticmethod
    def forward(ctx: Any, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return torch.zeros(())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return tuple(torch.zeros_like(parameter) for parameter in ctx.saved_tensors)


@dataclass
class _Trip:
    """An excursion that goes nowhere."""

    learner: Rehearsal

    def step(self, *batches: Batch, scale: Callable[[str], float] = lambda task: 1.0, rates: Any = None) -> None:
        for batch in batches:
            self.learner.gradient(batch, scale(batch.task))
        self.learner.inner_step += 1

    def keep_delta(self, scale: float = 1.0) -> None:
        pass

    def keep_gradient(self, batch: Batch, scale: float = 1.0) -> dict[str, Tensor]:
        self.step(batch, scale=lambda task: scale)
        return {}

    def moves(self) -> dict[str, Tensor]:
        return {}

    def drift(self) -> Tensor:
        return torch.zeros(())
