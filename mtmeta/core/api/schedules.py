"""Schedules of the paper's Table 1, for the outer step and for inner loops.

They are pure functions, `factor(step, steps)` of the steps done and the steps in all, multiplied onto the base learning
rate, so there is nothing to checkpoint; only `plateau` has state, because it answers to a metric. A test holds each
against its twin in torch.optim.lr_scheduler.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from mtmeta.core.api.option_types import Fraction, NonNegativeFloat, PositiveFloat, PositiveInt


@dataclass(frozen=True, kw_only=True)
class Constant:
    """The same learning rate throughout."""

    name: Literal["constant"] = "constant"

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate after `step` of `steps` steps."""
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
        """Return the factor on the learning rate after `step` of `steps` steps."""
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
        """Return the factor on the learning rate after `step` of `steps` steps."""
        return self.gamma ** (step // self.every)


@dataclass(frozen=True, kw_only=True)
class Cosine:
    """Half a cosine from 1 to `end`."""

    name: Literal["cosine"] = "cosine"
    end: NonNegativeFloat = 0.0
    """Factor after the last step."""

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate after `step` of `steps` steps."""
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
        """Return the factor on the learning rate after `step` of `steps` steps."""
        peak = self.rise * steps - 1.0
        low, last = 1.0 / self.div, 1.0 / (self.div * self.final_div)
        if step <= peak or peak >= steps - 1:
            return _cosine(low, 1.0, step / peak if peak > 0 else 1.0)
        return _cosine(1.0, last, (step - peak) / (steps - 1 - peak))


@dataclass(frozen=True, kw_only=True)
class Plateau:
    """Multiplied by `gamma` when the selected metric has not become better for more than `patience` evaluations."""

    name: Literal["plateau"] = "plateau"
    gamma: Fraction = 0.5
    """Factor of each reduction."""
    patience: Annotated[int, Field(ge=0)] = 2
    """Evaluations without a better value that are tolerated."""
    threshold: NonNegativeFloat = 1e-4
    """Smallest relative change for the better that counts."""

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the learning rate after `step` of `steps` steps."""
        return 1.0  # the reductions so far are in PlateauState


ScheduleOptions = Annotated[Constant | Linear | Step | Cosine | OneCycle | Plateau, Field(discriminator="name")]


@dataclass
class PlateauState:
    """State of `plateau` between evaluations; it is checkpointed."""

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
