"""Statistics for comparing runs: intervals over seeds, and differences by the paired two-level bootstrap.

Shapes: `R` rows of a comparison (regimes), `K` seeds of each, `N` examples, `D` bootstrap draws.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.contracts import Metric
from mtmeta.core.errors import PluginError
from mtmeta.core.registry.guard import accused
from mtmeta.core.rng import derive

DRAWS = 1000
AT_ONCE = 2**21  # numbers in one block of resamples
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How far one row is from another: the observed difference, its 95% interval, and a two-sided p-value.

    Interval and p-value are None where the metric is undefined on every resample.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None


def over_seeds(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean over the K runs and its 95% interval by Student's t; no interval from a single run."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = _t_quantile(len(values)) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _t_quantile(runs: int) -> float:
    """Return the 97.5% point of Student's t for the mean of so many runs."""
    from scipy.stats import t  # slow to import

    return float(t.ppf(0.975, runs - 1))


def on_resamples(
    labels: Array, predictions: Sequence[Array], metric: Metric, seed: int, draws: int = DRAWS
) -> list[Array]:
    """Compute the metric of every seed on `draws` resamples of the examples, of each row [K, D].

    `labels` [N], and of each row predictions [K, N], where K may differ. Every row and seed sees the same resamples,
    which is what makes the differences between rows paired (Efron and Tibshirani 1993). NaN where a metric is
    undefined on a resample. A metric with `Metric.resampled` takes some milliseconds, another one `draws` calls.
    """
    generator = np.random.Generator(np.random.PCG64(seed))
    examples = len(labels)
    block = max(1, min(draws, AT_ONCE // examples))
    values = [np.empty((len(row), draws)) for row in predictions]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a resample may well be constant
        for start in range(0, draws, block):
            drawn = [generator.integers(0, examples, examples) for _ in range(min(block, draws - start))]
            here = slice(start, start + len(drawn))
            counts = np.zeros((0, examples))
            if metric.resampled is not None:
                counts = np.stack([np.bincount(at, minlength=examples) for at in drawn]).astype(np.float64)
            for row, values_of_row in zip(predictions, values, strict=True):
                for number, of_seed in enumerate(row):
                    if metric.resampled is None:
                        values_of_row[number, here] = [metric(labels[at], of_seed[at]) for at in drawn]
                    else:
                        values_of_row[number, here] = _at_once(metric, labels, of_seed, counts)
    return values


def _at_once(metric: Metric, labels: Array, predictions: Array, counts: Array) -> Array:
    """Call `Metric.resampled`, which may be a plugin's. Raises PluginError for values of another shape."""
    assert metric.resampled is not None
    values = np.asarray(metric.resampled(labels, predictions, counts), dtype=np.float64)
    if values.shape != (len(counts),):
        who = accused(metric.resampled) or accused(metric.function)
        message = f"metric '{metric.name}' gives shape {list(values.shape)} for {len(counts)} resamples"
        raise PluginError(who, f"{message}, expected [{len(counts)}]")
    return values


def difference_draws(one: Array, other: Array, *, same_seeds: bool) -> Array:
    """Return draws [D] of the difference between the means of two rows, given as `on_resamples` has them [K, D].

    A two-level bootstrap: each draw takes seeds with replacement, and a resample of the examples that both rows share.
    Rows of the `same_seeds` share their draws of seeds too, for a seed decides the order of the data and how heads
    begin in both. Drawing from K seeds understates how far their mean is off, badly so for the two or three that
    people train, so what the seeds add is expanded to the width of Student's t (Hesterberg 2014, "What Teachers Should
    Know about the Bootstrap"): of comparisons of three seeds between equals 5% then exclude 0, not a quarter.
    A row of a single seed adds nothing: its draws are of the examples alone.
    """
    if same_seeds:
        return _of_seeds(one - other, 0)
    return _of_seeds(one, 0) - _of_seeds(other, 1)


def _of_seeds(values: Array, side: int) -> Array:
    """Return the mean over seeds drawn with replacement, of each draw its own; `values` [K, D]."""
    seeds, draws = values.shape
    mean: Array = values.mean(axis=0)
    if seeds < 2:
        return mean
    from scipy.stats import norm  # slow to import, and not needed for a single seed

    generator = np.random.Generator(np.random.PCG64(derive(0, "seeds", side)))
    drawn = np.take_along_axis(values, generator.integers(0, seeds, (seeds, draws)), axis=0).mean(axis=0)
    wider = math.sqrt(seeds / (seeds - 1)) * _t_quantile(seeds) / norm.ppf(0.975)
    return np.asarray(mean + wider * (drawn - mean))


def difference(observed: float, draws: Array) -> Difference:
    """Return an observed difference with the percentile interval of its draws [D].

    p is twice the smaller share of draws on one side of 0, counting one more than were seen, so never 0.
    """
    draws = draws[np.isfinite(draws)]
    if not len(draws):
        return Difference(observed, None, None, None)
    low, high = np.percentile(draws, [2.5, 97.5])
    side = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return Difference(observed, float(low), float(high), min(1.0, 2 * (side + 1) / (len(draws) + 1)))
