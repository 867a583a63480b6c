"""Weights from losses: a scalariser S(l_1, ..., l_T) descends by sum_t (dS/dl_t) grad l_t.

Shapes: `T` tasks. All are scaled so that equal losses of 1 give each task the weight 1 / T, as in `joint`, where the
paper has another constant factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

import mtmeta

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST = 1e-8  # what a loss counts as, at least, where its logarithm is taken


@dataclass(frozen=True, kw_only=True)
class Scalariser:
    """What all have in common: nothing is trained, kept or refused."""

    name: str = ""

    def parameters(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return the numbers that are trained along."""
        return {}

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[str]:
        """Yield what is wrong with the method for these tasks."""
        yield from ()


@dataclass(frozen=True, kw_only=True)
class Ahead(Scalariser):
    """A scalariser whose weights are known before the losses of the step."""

    def begin(self, learner: mtmeta.Learner, tasks: Sequence[str]) -> dict[str, float | Tensor]:
        """Return each task's weight, without lambda_t / T."""
        raise NotImplementedError

    def end(self, learner: mtmeta.Learner, losses: Mapping[str, Tensor], scales: Mapping[str, float]) -> None:
        """Take the step's losses; `scales` are lambda_t / T."""


@dataclass(frozen=True, kw_only=True)
class UW(Ahead):
    """Uncertainty weighting (Kendall et al. 2018): exp(-s) l + s / 2, for a regression exp(-s) l / 2 + s / 2.

    s_t, the task's log variance, is trained along, from 0 and at `head_lr`.
    """

    name: Literal["uw"] = "uw"

    def parameters(self, tasks: Sequence[str]) -> dict[str, float]:
        return dict.fromkeys(tasks, 0.0)

    def begin(self, learner: mtmeta.Learner, tasks: Sequence[str]) -> dict[str, float | Tensor]:
        return {task: self._half(learner, task) * (-_number(learner, task)).exp() for task in tasks}

    def end(self, learner: mtmeta.Learner, losses: Mapping[str, Tensor], scales: Mapping[str, float]) -> None:
        for task, loss in losses.items():
            s = learner.parameters[f"algorithm.{task}"]
            weight = self._half(learner, task) * (-s.detach()).exp()
            s.grad = (0.5 - weight * loss.to(s.dtype)) * scales[task]

    def _half(self, learner: mtmeta.Learner, task: str) -> float:
        return 0.5 if isinstance(learner.tasks[task].objective, mtmeta.Regression) else 1.0


@dataclass(frozen=True, kw_only=True)
class IMTLL(Ahead):
    """Losses brought to one size (Liu et al. 2021): exp(s) l - s; s_t is trained along, from 0 and at `head_lr`."""

    name: Literal["imtl_l"] = "imtl_l"

    def parameters(self, tasks: Sequence[str]) -> dict[str, float]:
        return dict.fromkeys(tasks, 0.0)

    def begin(self, learner: mtmeta.Learner, tasks: Sequence[str]) -> dict[str, float | Tensor]:
        return {task: _number(learner, task).exp() for task in tasks}

    def end(self, learner: mtmeta.Learner, losses: Mapping[str, Tensor], scales: Mapping[str, float]) -> None:
        for task, loss in losses.items():
            s = learner.parameters[f"algorithm.{task}"]
            s.grad = (s.detach().exp() * loss.to(s.dtype) - 1.0) * scales[task]


def _number(learner: mtmeta.Learner, task: str) -> Tensor:
    return learner.parameters[f"algorithm.{task}"].detach()


@dataclass(frozen=True, kw_only=True)
class DWA(Ahead):
    """Dynamic weight average (Liu et al. 2019): T softmax of L' / (L'' temperature).

    L' and L'' are the mean losses of the last `every` steps and of those before; until they are there, all weights are
    1.
    """

    name: Literal["dwa"] = "dwa"
    temperature: mtmeta.PositiveFloat = 2.0
    """The larger, the more equal are the weights."""
    every: mtmeta.PositiveInt = 100
    """Steps whose mean losses are compared, in place of the paper's epochs, which differ from task to task."""

    def begin(self, learner: mtmeta.Learner, tasks: Sequence[str]) -> dict[str, float | Tensor]:
        memory = learner.memory
        if "count" in memory and int(memory["count"]) >= self.every:
            if "newer" in memory:
                memory["older"] = memory["newer"]
            memory["newer"] = memory.pop("sum") / int(memory.pop("count"))
        if "older" not in memory:
            return dict.fromkeys(tasks, 1.0)
        rates = memory["newer"] / memory["older"].clamp(min=SMALLEST)
        weights = (rates / self.temperature).softmax(0) * len(tasks)
        return dict(zip(tasks, weights.tolist(), strict=True))

    def end(self, learner: mtmeta.Learner, losses: Mapping[str, Tensor], scales: Mapping[str, float]) -> None:
        import torch

        memory, now = learner.memory, torch.stack(list(losses.values())).double()
        memory["sum"] = memory["sum"] + now if "sum" in memory else now
        memory["count"] = memory["count"] + 1 if "count" in memory else torch.tensor(1)


@dataclass(frozen=True, kw_only=True)
class Afterwards(Scalariser):
    """A scalariser whose weights are exp(`part` of the task's own loss), all times exp(`whole` of all of them)."""

    def part(self, learner: mtmeta.Learner, position: int, weight: float, loss: float) -> float:
        """Return the logarithm of a task's own factor; `weight` is lambda_t, `position` its place among the tasks."""
        raise NotImplementedError

    def whole(self, weights: Sequence[float], losses: Sequence[float], parts: Sequence[float]) -> float:
        """Return the logarithm of the factor that all have in common: by default the one that makes the sum 1."""
        return -log_sum_exp(parts)


@dataclass(frozen=True, kw_only=True)
class GLS(Afterwards):
    """The geometric mean of the losses (Chennupati et al. 2019)."""

    name: Literal["gls"] = "gls"

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[str]:
        yield from _without_weights(self.name, tasks)

    def part(self, learner: mtmeta.Learner, position: int, weight: float, loss: float) -> float:
        return -math.log(max(loss, SMALLEST))

    def whole(self, weights: Sequence[float], losses: Sequence[float], parts: Sequence[float]) -> float:
        return -math.fsum(parts) / len(parts) - math.log(len(parts))


@dataclass(frozen=True, kw_only=True)
class STCH(Afterwards):
    """A smooth maximum of the losses (Lin et al. 2024): mu log sum_t exp(lambda_t l_t / mu)."""

    name: Literal["stch"] = "stch"
    mu: mtmeta.PositiveFloat = 1.0
    """The smaller, the nearer to the maximum; of a paper whose preferences add up to 1 it is T times the mu."""

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[str]:
        if none := [name for name, task in tasks.items() if task.loss_weight == 0]:
            yield f"stch needs a loss_weight above 0 for {', '.join(none)}; leave the task out"

    def part(self, learner: mtmeta.Learner, position: int, weight: float, loss: float) -> float:
        return weight * loss / self.mu + math.log(weight)

    def whole(self, weights: Sequence[float], losses: Sequence[float], parts: Sequence[float]) -> float:
        return -log_sum_exp([part - math.log(weight) for part, weight in zip(parts, weights, strict=True)])


@dataclass(frozen=True, kw_only=True)
class FAMO(Afterwards):
    """Losses that fall at one rate (Liu et al. 2023): weights z_t / l_t, brought to sum 1, where z = softmax(xi).

    After the step each batch is seen once more, at the cost of a forward; xi then takes a step of Adam on the change of
    the logarithms of the losses.
    """

    name: Literal["famo"] = "famo"
    lr: mtmeta.PositiveFloat = 0.025
    """Learning rate of xi."""
    decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1e-3
    """Pull of xi towards 0, gamma of the paper."""

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[str]:
        yield from _without_weights(self.name, tasks)

    def part(self, learner: mtmeta.Learner, position: int, weight: float, loss: float) -> float:
        logits = learner.memory["logits"].tolist() if "logits" in learner.memory else None
        share = 0.0 if logits is None else logits[position] - log_sum_exp(logits)  # log z, but for a constant
        return share - math.log(max(loss, SMALLEST))

    def update(self, learner: mtmeta.Learner, before: Sequence[float], after: Sequence[float]) -> None:
        """Take the step of xi, given the losses before and after the outer step."""
        import torch

        fell = [math.log(max(a, SMALLEST)) - math.log(max(b, SMALLEST)) for a, b in zip(before, after, strict=True)]
        memory, delta = learner.memory, torch.tensor(fell, dtype=torch.float64)
        zero = torch.zeros_like(delta)
        logits, first, second = (memory.get(name, zero).to(zero.device) for name in ("logits", "first", "second"))
        count = int(memory["count"]) + 1 if "count" in memory else 1
        z = logits.softmax(0)
        slope = z * (delta - (z * delta).sum()) + self.decay * logits  # of sum_t z_t delta_t
        first, second = 0.9 * first + 0.1 * slope, 0.999 * second + 0.001 * slope**2
        step = first / (1 - 0.9**count) / ((second / (1 - 0.999**count)).sqrt() + 1e-8)
        memory |= {"logits": logits - self.lr * step, "first": first, "second": second, "count": torch.tensor(count)}


def _without_weights(method: str, tasks: Mapping[str, mtmeta.Task]) -> Iterator[str]:
    if given := [name for name, task in tasks.items() if task.loss_weight != 1.0]:
        yield f"{method} goes by logarithms, in which the loss_weight of {', '.join(given)} has no part; leave it out"


def log_sum_exp(values: Sequence[float]) -> float:
    """Return log sum exp of numbers, however large they are."""
    top = max(values)
    return top + math.log(math.fsum(math.exp(value - top) for value in values))
