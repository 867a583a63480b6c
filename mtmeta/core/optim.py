"""Optimizers and schedules of the paper's Table 1, for the outer step and for inner loops.

Optimizers are PyTorch's. Schedules are pure functions of the step, `factor(step, steps)`, multiplied onto the base
learning rate, so there is nothing to checkpoint; only `plateau` has state, because it answers to a metric. A test
holds each against its twin in torch.optim.lr_scheduler.
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mtmeta.core.contracts import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Constant",
    "Cosine",
    "Linear",
    "NAdam",
    "OneCycle",
    "OptimizerOptions",
    "Plateau",
    "PlateauState",
    "ScheduleOptions",
    "Step",
    "set_lr",
]

Beta = Annotated[float, Field(ge=0, lt=1)]
OUTER_BETAS = (0.9, 0.999)
INNER_BETAS = (0.0, 0.999)  # the first moment never crosses episodes


# ------------------------------------------------------------------------------------------------------- optimizers


def _leave_compiler_out() -> None:
    """Keep torch.optim from importing torch's compiler, two seconds, which is never used here.

    It does so at the first call of some methods, only to tell the compiler to leave them alone, unless they have been
    told already (torch/_compile.py). Where PyTorch does otherwise this changes nothing.
    """
    from torch.optim import Optimizer

    for method in (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict):
        function = getattr(method, "__wrapped__", None)
        if function is not None:
            vars(function).setdefault("__dynamo_disable", function)


@functools.cache
def _bare(kind: type[Optimizer]) -> type[Any]:
    """The same optimizer without the wrapper around `step` that imports the compiler, too."""
    import torch

    return type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))})


@dataclass(frozen=True, kw_only=True)
class _Options:
    lr: PositiveFloat
    """Learning rate."""
    head_lr: PositiveFloat | None = None
    """Learning rate of the task heads; default: `lr`."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of weights; biases and LayerNorm are never decayed."""

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]], *, inner: bool = False) -> Optimizer:
        """The optimizer over named parameters; `inner` picks the defaults of inner loops."""
        raise NotImplementedError

    def _made(self, kind: str, parameters: Iterable[tuple[str, nn.Parameter]], **options: Any) -> Optimizer:
        """torch.optim's optimizer of that name."""
        from torch import optim

        _leave_compiler_out()
        made: Optimizer = _bare(getattr(optim, kind))(self._groups(parameters), lr=self.lr, **options)
        return made

    def _groups(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Up to four groups: backbone and heads, with and without weight decay."""
        groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
        for name, parameter in parameters:
            key = name.startswith("heads."), parameter.ndim >= 2
            groups.setdefault(key, []).append(parameter)
        return [
            {
                "params": members,
                "lr": (self.head_lr or self.lr) if head else self.lr,
                "base_lr": (self.head_lr or self.lr) if head else self.lr,
                # biases and LayerNorm scales are the one-dimensional parameters of a BERT
                "weight_decay": self.weight_decay if decayed else 0.0,
            }
            for (head, decayed), members in groups.items()
        ]


@dataclass(frozen=True, kw_only=True)
class SGD(_Options):
    """Stochastic gradient descent. As the meta optimizer with lr e: theta + e (theta' - theta), equation 4."""

    name: Literal["sgd"] = "sgd"
    momentum: Beta = 0.0
    """Momentum; 0 keeps the plain step of equation 4."""

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]], *, inner: bool = False) -> Optimizer:
        return self._made("SGD", parameters, momentum=self.momentum, foreach=True)


@dataclass(frozen=True, kw_only=True)
class _AdamOptions(_Options):
    betas: tuple[Beta, Beta] | None = None
    """Decay of first and second moment; default (0.9, 0.999), in an inner loop (0, 0.999)."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""

    def _betas(self, inner: bool) -> tuple[float, float]:
        return self.betas or (INNER_BETAS if inner else OUTER_BETAS)


@dataclass(frozen=True, kw_only=True)
class Adam(_AdamOptions):
    """Adam (Kingma and Ba 2017)."""

    name: Literal["adam"] = "adam"

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]], *, inner: bool = False) -> Optimizer:
        return self._made("Adam", parameters, betas=self._betas(inner), eps=self.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class AdamW(_AdamOptions):
    """Adam with decoupled weight decay."""

    name: Literal["adamw"] = "adamw"
    weight_decay: NonNegativeFloat = 0.01
    """Decay of weights; biases and LayerNorm are never decayed."""

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]], *, inner: bool = False) -> Optimizer:
        return self._made("AdamW", parameters, betas=self._betas(inner), eps=self.eps, fused=True)


@dataclass(frozen=True, kw_only=True)
class NAdam(_AdamOptions):
    """Adam with Nesterov momentum."""

    name: Literal["nadam"] = "nadam"

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]], *, inner: bool = False) -> Optimizer:
        return self._made("NAdam", parameters, betas=self._betas(inner), eps=self.eps, foreach=True)


OptimizerOptions = Annotated[SGD | Adam | AdamW | NAdam, Field(discriminator="name")]


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


# -------------------------------------------------------------------------------------------------------- schedules


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, steps: int) -> float:
        return 1.0


@dataclass(frozen=True, kw_only=True)
class Linear:
    """From 1 to `end` in a straight line, after `warmup` steps from 0."""

    name: Literal["linear"] = "linear"
    warmup: Annotated[int, Field(ge=0)] = 0
    """Steps of linear rise from 0."""
    end: NonNegativeFloat = 0.0
    """Factor after the last step."""

    def factor(self, step: int, steps: int) -> float:
        if step < self.warmup:
            return step / self.warmup
        done = min(1.0, (step - self.warmup) / max(1, steps - self.warmup))
        return 1.0 + (self.end - 1.0) * done


@dataclass(frozen=True, kw_only=True)
class Step:
    """Multiplied by `gamma` every `every` steps."""

    name: Literal["step"] = "step"
    every: PositiveInt = 30
    """Steps between two reductions."""
    gamma: Fraction = 0.8
    """Factor of each reduction."""

    def factor(self, step: int, steps: int) -> float:
        return self.gamma ** (step // self.every)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from 1 to `end`."""

    name: Literal["cosine"] = "cosine"
    end: NonNegativeFloat = 0.0
    """Factor after the last step."""

    def factor(self, step: int, steps: int) -> float:
        return self.end + (1.0 - self.end) * (1.0 + math.cos(math.pi * min(1.0, step / steps))) / 2.0


@dataclass(frozen=True, kw_only=True)
class OneCycle:
    """Cosine rise from 1/`div` to 1 over `rise` of the run, then cosine fall to 1/(`div` `final_div`)."""

    name: Literal["one_cycle"] = "one_cycle"
    rise: Fraction = 0.3
    """Share of the run spent rising."""
    div: PositiveFloat = 25.0
    """The first factor is 1/div."""
    final_div: PositiveFloat = 1e4
    """The last factor is 1/(div final_div)."""

    def factor(self, step: int, steps: int) -> float:
        peak = self.rise * steps - 1.0
        low, last = 1.0 / self.div, 1.0 / (self.div * self.final_div)
        if step <= peak or peak >= steps - 1:
            return _cosine(low, 1.0, step / peak if peak > 0 else 1.0)
        return _cosine(1.0, last, (step - peak) / (steps - 1 - peak))


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Multiplied by `gamma` when the selected metric has not risen for more than `patience` evaluations."""

    name: Literal["plateau"] = "plateau"
    gamma: Fraction = 0.5
    """Factor of each reduction."""
    patience: Annotated[int, Field(ge=0)] = 2
    """Evaluations without a rise that are tolerated."""
    threshold: NonNegativeFloat = 1e-4
    """Smallest relative rise that counts."""

    def factor(self, step: int, steps: int) -> float:
        return 1.0  # the reductions so far are in PlateauState


ScheduleOptions = Annotated[Constant | Linear | Step | Cosine | OneCycle | Plateau, Field(discriminator="name")]


@dataclass
class PlateauState:
    """What `plateau` remembers between evaluations; checkpointed."""

    best: float = -math.inf
    waited: int = 0
    factor: float = 1.0

    def update(self, options: Plateau, value: float) -> None:
        """Take the metric of one evaluation; higher is better."""
        if self.best == -math.inf or value > self.best + options.threshold * abs(self.best):
            self.best, self.waited = value, 0
        else:
            self.waited += 1
        if self.waited > options.patience:
            self.factor *= options.gamma
            self.waited = 0


def _cosine(start: float, end: float, done: float) -> float:
    return end + (start - end) * (1.0 + math.cos(math.pi * min(1.0, max(0.0, done)))) / 2.0
