"""Averages of weights against the same computed in float64, from the weights after each step."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.identities import Row
from mtmeta.core.methods.averaging import Average
from mtmeta.core.recipe.sections import AverageOptions

STEPS = 20


def rows() -> Iterator[Row]:
    """Yield the averages of a walk of random steps, and how they leave the weights themselves."""
    formulas = {
        "ema": "bar = 0.9 bar + 0.1 theta from the first step averaged, which is theta (Polyak and Juditsky 1992)",
        "swa": "the mean of theta from the first step averaged on (Izmailov et al. 2018)",
    }
    for kind, formula in formulas.items():
        options = AverageOptions(kind=kind, decay=0.9, begin=0.25)  # type: ignore[arg-type]
        thetas, average, parameter = _walk(options)
        expected = thetas[5].copy()
        for count, theta in enumerate(thetas[6:], start=2):
            share = 1 / count if kind == "swa" else 0.1
            expected += share * (theta - expected)
        with average.in_place():
            off = float(np.abs(parameter.detach().double().numpy() - expected).max())
        yield Row(f"average: {kind}", formula, off, 1e-6)
        back = float(np.abs(parameter.detach().double().numpy() - thetas[-1]).max())
        yield Row(f"average: {kind}", "after an evaluation theta is what it was, bit for bit", back, 0.0)


def _walk(options: AverageOptions) -> tuple[list[np.ndarray], Average, torch.nn.Parameter]:
    """Make random steps; returns theta after each, in float64."""
    generator = torch.Generator().manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(7, 5, generator=generator))
    average, thetas = Average(options, {"encoder.w": parameter}, STEPS), []
    for step in range(STEPS):
        with torch.no_grad():
            parameter.add_(torch.randn(7, 5, generator=generator))
        average.after_step(step + 1)
        thetas.append(parameter.detach().double().numpy().copy())
    return thetas, average, parameter
