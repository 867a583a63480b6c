"""Statistics for comparing runs: intervals over seeds, and differences by the paired bootstrap.

Shapes: `R` rows of a comparison (regimes), `K` seeds of each, `N` examples, `D` bootstrap draws.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.contracts import Metric

__all__ = ["Difference", "difference", "over_seeds", "resampled"]

DRAWS = 1000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How far one row is from another: the observed difference, its 95% interval, and a two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def over_seeds(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Mean and its 95% interval by Student's t over the K runs; no interval from a single one."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None, None
    from scipy.stats import t

    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = float(t.ppf(0.975, len(values) - 1)) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


def resampled(labels: Array, predictions: Sequence[Array], metric: Metric, seed: int, draws: int = DRAWS) -> Array:
    """The metric on `draws` resamples of the examples [R, D], each the mean over the K seeds of a row.

    `labels` [N], and of each row predictions [K, N], where K may differ. Every row and seed sees the same resamples,
    which is what makes the differences between rows paired (Efron and Tibshirani 1993). NaN where a metric is
    undefined on a resample.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    examples = len(labels)
    made = np.empty((len(predictions), draws))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may well be constant
        for draw in range(draws):
            at = generator.integers(0, examples, examples)
            drawn = labels[at]
            for row, seeds in enumerate(predictions):
                made[row, draw] = math.fsum(metric(drawn, one[at]) for one in seeds) / len(seeds)
    return made


def difference(observed: float, draws: Array) -> Difference:
    """An observed difference with the percentile interval of its resamples [D].

    p is twice the smaller share of resamples on one side of 0, counting one more than were seen, so never 0.
    """
    draws = draws[np.isfinite(draws)]
    low, high = np.percentile(draws, [2.5, 97.5])
    side = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return Difference(observed, float(low), float(high), min(1.0, 2 * (side + 1) / (len(draws) + 1)))
