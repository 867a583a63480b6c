"""Built-in samplers. Weights are over meta-iterations; `n` is the size of a task's training set."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import mtmeta

GOLDEN = 11400714819323198485  # 2^64 over the golden ratio


def check_weights(weights: Mapping[str, float], tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield the faults of weights by task, as `Sampler.check` does."""
    for name in weights:
        if name not in tasks:
            yield f"weights.{name}", f"names no task of this recipe{mtmeta.did_you_mean(name, tasks)}"
    for name in tasks:
        if name not in weights:
            yield "weights", f"gives no weight for task {mtmeta.quote(name)}; add it, 0 leaves it out"
    if all(weight == 0 for weight in weights.values()):
        yield "weights", "are all 0; give at least one task a positive weight"


@dataclass(frozen=True, kw_only=True)
class Fixed(mtmeta.Sampler):
    """Weights given in the recipe (paper: sst 0.4, para 0.3, sts 0.3)."""

    name = "fixed"

    weights: dict[str, mtmeta.NonNegativeFloat]
    """Weight of each task, by name; they need not sum to 1."""

    def check(self, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
        yield from check_weights(self.weights, tasks)

    def probabilities(self, sizes: Mapping[str, int], draw: mtmeta.Draw) -> dict[str, float]:
        return dict(self.weights)


@dataclass(frozen=True)
class Uniform(mtmeta.Sampler):
    """Every task alike."""

    name = "uniform"

    def probabilities(self, sizes: Mapping[str, int], draw: mtmeta.Draw) -> dict[str, float]:
        return dict.fromkeys(sizes, 1.0)


@dataclass(frozen=True)
class Proportional(mtmeta.Sampler):
    """p ~ n."""

    name = "proportional"

    def probabilities(self, sizes: Mapping[str, int], draw: mtmeta.Draw) -> dict[str, float]:
        return {name: float(n) for name, n in sizes.items()}


@dataclass(frozen=True)
class Temperature(mtmeta.Sampler):
    """p ~ n^(1/T)."""

    name = "temperature"

    temperature: mtmeta.PositiveFloat = 2.0
    """T: 1 is proportional, large values approach uniform."""

    def probabilities(self, sizes: Mapping[str, int], draw: mtmeta.Draw) -> dict[str, float]:
        largest = max(sizes.values())  # powers of ratios cannot overflow
        return {name: (n / largest) ** (1.0 / self.temperature) for name, n in sizes.items()}


@dataclass(frozen=True)
class Annealed(mtmeta.Sampler):
    """p ~ n^a with a = 1 - 0.8 (e - 1)/(E - 1) in epoch e of E (Stickland and Murray 2019)."""

    name = "annealed"

    epochs: mtmeta.PositiveInt = 25
    """E: the run is cut into this many equal parts; with 1 the exponent stays 1."""

    def probabilities(self, sizes: Mapping[str, int], draw: mtmeta.Draw) -> dict[str, float]:
        epoch = draw.index * self.epochs // draw.total  # e - 1
        exponent = 1.0 - 0.8 * epoch / (self.epochs - 1) if self.epochs > 1 else 1.0
        largest = max(sizes.values())
        return {name: (n / largest) ** exponent for name, n in sizes.items()}


@dataclass(frozen=True, kw_only=True)
class RoundRobin(mtmeta.Sampler):
    """The tasks in turn, in the recipe's order; with `weights` each as often as its weight says, evenly spread.

    Draws of `fixed` are independent: of 100, a task of weight 0.4 comes 40 times give or take 5, here give or take 2.
    """

    name = "round_robin"

    weights: dict[str, mtmeta.NonNegativeFloat] | None = None
    """Weight of each task, by name; they need not sum to 1. Default: all alike."""

    def check(self, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
        if self.weights is not None:
            yield from check_weights(self.weights, tasks)

    def probabilities(self, sizes: Mapping[str, int], draw: mtmeta.Draw) -> dict[str, float]:
        names = list(sizes)
        if self.weights is None:
            return {names[draw.index % len(names)]: 1.0}
        # the golden-ratio sequence fills [0, 1) as evenly as a sequence can, and any place of it is known at once
        at = ((draw.index * GOLDEN) % 2**64) / 2**64 * math.fsum(self.weights.values())
        names = [name for name in names if self.weights[name]]
        chosen = names[-1]  # also where rounding leaves the sum of all a little below `at`
        for name in names:
            at -= self.weights[name]
            if at < 0:
                chosen = name
                break
        # the others are left a chance, for a second draw in the same step that may not repeat the first
        return {name: weight * 2.0**-80 for name, weight in self.weights.items()} | {chosen: 1.0}


@mtmeta.hookimpl
def register_samplers() -> list[type[mtmeta.Sampler]]:
    return [Fixed, Uniform, Proportional, Temperature, Annealed, RoundRobin]
