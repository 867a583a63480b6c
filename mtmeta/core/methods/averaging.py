"""Averages of weights over the steps of a run, which are evaluated, selected and exported in their place.

theta_n are the weights after step n, bar_n their average, and the first step averaged is the one after `from`:

    ema   bar_n = decay bar_{n-1} + (1 - decay) theta_n     (Polyak and Juditsky 1992; Morales-Brotons et al. 2024)
    swa   bar_n = the mean of theta from the first step averaged to n     (Izmailov et al. 2018)

Either begins as theta itself. Models here have no buffers, so there is nothing else to average or to estimate anew.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from mtmeta.core.recipe.sections import AverageOptions

COUNT = "count"  # no parameter has a name without a dot


class Average:
    """The average of some parameters, by name, over the last of `steps` steps."""

    def __init__(self, options: AverageOptions, parameters: Mapping[str, Tensor], steps: int) -> None:
        self._options = options
        self._parameters = parameters
        self.first = math.floor(options.begin * steps) + 1
        """The first step averaged, counted from 1."""
        self._bars: dict[str, Tensor] = {}
        self._count = 0

    @property
    def to_come(self) -> Mapping[str, Tensor]:
        """What the average will take as much room as, in memory and in a checkpoint; empty once it has begun."""
        return {} if self._bars else self._parameters

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        """Take the weights after so many steps into the average, if it has begun by then."""
        if step < self.first:
            return
        self._count += 1
        parameters = [parameter.detach() for parameter in self._parameters.values()]
        if not self._bars:
            self._bars = {name: tensor.clone() for name, tensor in zip(self._parameters, parameters, strict=True)}
            return
        share = 1.0 / self._count if self._options.kind == "swa" else 1.0 - self._options.decay
        torch._foreach_lerp_(list(self._bars.values()), parameters, share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the parameters are the average, once it has begun; then they are what they were, bit for bit."""
        own = {name: self._parameters[name].data for name in self._bars}
        try:
            for name, bar in self._bars.items():
                self._parameters[name].data = bar
            yield
        finally:
            for name, data in own.items():
                self._parameters[name].data = data

    def state(self) -> dict[str, dict[str, Tensor]]:
        """Return what a checkpoint holds: name -> slot -> tensor; empty before the average has begun."""
        if not self._bars:
            return {}
        return {COUNT: {"steps": torch.tensor(self._count)}, **{name: {"bar": bar} for name, bar in self._bars.items()}}

    def restore(self, state: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Go on from a state. Raises KeyError for one of other parameters."""
        self._count = int(state[COUNT]["steps"]) if state else 0
        bars = {name: state[name]["bar"] for name in self._parameters} if state else {}
        self._bars = {name: bar.to(self._parameters[name].device) for name, bar in bars.items()}
