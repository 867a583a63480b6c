"""An inner loop of SGD that keeps its graph: theta' as a function of theta, for second-order MAML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from mtmeta.core.api.batch import Batch
from mtmeta.core.api.optimizers import SGD, OptimizerOptions, set_lr
from mtmeta.core.errors import RecipeError
from mtmeta.core.training.diagnostics import norm_of
from mtmeta.core.training.unrolling.memory import Estimates


@dataclass(frozen=True)
class Rate:
    """Of one parameter: the learning rate and the weight decay of a step of SGD."""

    lr: float
    weight_decay: float


def rates_of(options: OptimizerOptions, parameters: Mapping[str, Tensor], factor: float) -> dict[str, Rate]:
    """Return the rate of each parameter, by name, with the learning rate times `factor`.

    Raises RecipeError for an optimizer whose step is not linear in the gradient or depends on earlier ones.
    """
    if not isinstance(options, SGD) or options.momentum:
        message = "an inner loop that is differentiated through takes sgd without momentum"
        raise RecipeError("algorithm.inner_optimizer", message)
    optimizer = options.build(parameters.items(), inner=True)  # type: ignore[arg-type]  # these are nn.Parameters
    set_lr(optimizer, factor)
    rate_of = {p: Rate(group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: rate_of[parameter] for name, parameter in parameters.items()}


class Owner(Protocol):
    """What the loop needs of the learner it belongs to."""

    inner_step: int

    def loss_at(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor: ...

    def log(self, task: str, loss: Tensor) -> Tensor: ...

    def descend(self, task: str, loss: Tensor, scale: float | Tensor = 1.0) -> Tensor: ...


@dataclass(eq=False)
class Unrolled:
    """An inner loop under way. The model's own parameters stay theta; theta' are `parameters`, with their graph."""

    learner: Owner
    parameters: dict[str, Tensor]
    rates: Mapping[str, Rate]
    estimates: Estimates
    """What refuses a batch before it is encoded, if its graph would not fit in memory."""
    _touched: dict[str, Tensor] = field(default_factory=dict)
    """The values from which the loop set out, of the parameters that it has moved."""

    def step(self, *batches: Batch, scale: Callable[[str], float] = lambda task: 1.0) -> None:
        losses = []
        for batch in batches:
            self.estimates.add(batch, second=True)
            loss = self.learner.loss_at(batch, self.parameters)
            losses.append(loss if (weight := scale(batch.task)) == 1.0 else loss * weight)
            self.learner.log(batch.task, loss.detach())
        names = list(self.parameters)
        values = [self.parameters[name] for name in names]
        found: Sequence[Tensor | None] = torch.autograd.grad(losses, values, create_graph=True, allow_unused=True)
        for name, gradient in zip(names, found, strict=True):
            if gradient is None:
                continue
            home, rate = self.parameters[name], self.rates[name]
            self._touched.setdefault(name, home.detach())
            moved = home * (1 - rate.lr * rate.weight_decay) if rate.weight_decay else home
            self.parameters[name] = moved - rate.lr * gradient
        self.learner.inner_step += 1

    def keep_gradient(self, batch: Batch, scale: float = 1.0) -> None:
        self.estimates.add(batch, second=False)
        self.learner.descend(batch.task, self.learner.loss_at(batch, self.parameters), scale)
        self.learner.inner_step += 1

    @torch.no_grad()
    def drift(self) -> Tensor:
        moves = [self.parameters[name].detach() - home for name, home in self._touched.items()]
        return norm_of(moves)
