"""How many gradients a rank holds at a time, before the parts of a step are added up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mtmeta.core.api.contracts import Algorithm

SUM = 2
"""The sum in fixed point has eight bytes a number, as two gradients."""


@dataclass(frozen=True)
class Holding:
    """What one rank has at its peak beside the gradient that every step has."""

    parts: int
    """Gradients of slots and shards."""
    sums: int
    """What they are added up in, in gradients."""

    def bytes(self, gradient: int) -> int:
        """Return the bytes, given those of one gradient."""
        return (self.parts + self.sums) * gradient


def held(algorithm: Algorithm, tasks: Sequence[str], shards: int | None, world: int) -> Holding:
    """Return what a rank of `world` holds in a step on these tasks.

    A process by itself, without shards, adds to one gradient. Slots of one gradient each are cut, all of them, into
    shards, which are dealt out; any other slot has its shards where it is computed, beside the slots before it.
    """
    slots = algorithm.parts(tasks)
    if shards is None:
        return Holding(0, 0) if world == 1 or slots == 1 else Holding(math.ceil(slots / world), 1)
    if slots == 1 or algorithm.slots_are_gradients:
        parts = slots * shards
        return Holding(0, 0) if parts == 1 else Holding(math.ceil(parts / world), SUM)
    within = 0 if shards == 1 else shards + SUM
    return Holding(math.ceil(slots / world) + within, SUM)
