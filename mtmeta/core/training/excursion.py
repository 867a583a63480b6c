"""An inner loop under way: parameters that leave theta, and what of theta' is kept for the outer step.

Notation of the paper: theta are the parameters of encoder and heads, theta' those after an inner loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import Optimizer

from mtmeta.core.api.batch import Batch
from mtmeta.core.training.gradients import Grads, norm_of

if TYPE_CHECKING:
    from mtmeta.core.training.gradients import Gradients


class Excursion:
    """An inner loop under way: the model's parameters are theta', on their way from theta."""

    def __init__(
        self,
        learner: Gradients,
        task: str,
        optimizer: Optimizer,
        theta: list[Tensor],
        outer: Grads,
        dropped: str | None,
        after_step: Callable[[Optimizer], None],
    ) -> None:
        self._learner, self._optimizer, self._task, self._after_step = learner, optimizer, task, after_step
        self._theta, self._outer, self._dropped = theta, outer, dropped
        self._touched = [False] * len(theta)
        self._gone: Tensor | None = None

    def step(self, *batches: Batch, scale: Callable[[str], float] = lambda task: 1.0) -> None:
        """One inner step on the sum of the batches' mean losses, each times `scale(task)`."""
        self._learner.clear_gradient()
        for batch in batches:
            self._learner.gradient(batch, scale(batch.task))
        for i, parameter in enumerate(self._learner.parameters.values()):
            self._touched[i] |= parameter.grad is not None
        self._optimizer.step()
        self._gone = None
        self._after_step(self._optimizer)
        self._learner.inner_step += 1

    @torch.no_grad()
    def keep_delta(self, scale: float = 1.0) -> None:
        """Add `scale` (theta - theta') to the outer gradient, for every parameter the inner loop touched."""
        names = enumerate(self._learner.parameters.items())
        touched = [(i, p) for i, (name, p) in names if self._touched[i] and not self._is_dropped(name)]
        if not touched:
            return
        deltas = torch._foreach_sub([self._theta[i] for i, _ in touched], [p for _, p in touched])
        norm = norm_of(deltas)
        if self._dropped is None:
            self._gone = norm
        self._learner.check_direction(norm, "delta", self._task)
        if scale != 1.0:
            torch._foreach_mul_(deltas, scale)
        for (i, _), delta in zip(touched, deltas, strict=True):
            self._add(i, delta)

    def keep_gradient(self, batch: Batch, scale: float = 1.0) -> None:
        """Add `scale` times the gradient of the batch's loss AT theta' to the outer gradient (first-order MAML)."""
        self._learner.clear_gradient()
        self._learner.gradient(batch, scale)
        self._learner.inner_step += 1
        with torch.no_grad():
            named = enumerate(self._learner.parameters.items())
            grads = [(i, p.grad) for i, (name, p) in named if p.grad is not None and not self._is_dropped(name)]
            self._learner.check_direction(norm_of([grad for _, grad in grads]), "query gradient", self._task)
            for i, grad in grads:
                self._add(i, grad)
        self._learner.clear_gradient()

    @torch.no_grad()
    def drift(self) -> Tensor:
        """|theta' - theta|, how far the inner loop has gone, a scalar; over all parameters that it touched."""
        if self._gone is None:
            named = zip(self._learner.parameters.values(), self._theta, self._touched, strict=True)
            touched = [(there, home) for there, home, moved in named if moved]
            self._gone = norm_of(torch._foreach_sub(*map(list, zip(*touched, strict=True)))) if touched else norm_of([])
        return self._gone

    def _is_dropped(self, name: str) -> bool:
        return self._dropped is not None and name.startswith(self._dropped)

    def _add(self, i: int, direction: Tensor) -> None:
        kept = self._outer[i]
        self._outer[i] = direction if kept is None else kept.add_(direction)
