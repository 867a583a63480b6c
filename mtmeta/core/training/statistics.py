"""Statistics for comparing runs: intervals over seeds, and differences by the paired two-level bootstrap.

Shapes: `R` rows of a comparison (regimes), `K` seeds of each, `N` examples, `D` bootstrap draws.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.contracts import Metric
from mtmeta.core.api.objectives import Objective
from mtmeta.core.errors import PluginError
from mtmeta.core.registry.guard import accused
from mtmeta.core.rng import derive

Seen = Mapping[str, Any]
"""What a metric may take beside labels and predictions, by name, as `Metric.takes` has it."""
DRAWS = 1000
AT_ONCE = 2**21  # numbers in one block of resamples
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Difference:
    """How far one row is from another: the observed difference, its 95% interval, and a two-sided p-value.

    Interval and p-value are None where the metric is undefined on every resample. `effect` is the difference in
    standard deviations of the seeds, None where there is none; see `effect_size`.
    """

    value: float
    low: float | None
    high: float | None
    p: float | None
    effect: float | None = None


@dataclass(frozen=True)
class Look:
    """A look at a comparison that goes on seed by seed: after how many seeds, and the level of its intervals."""

    seeds: int
    level: float


def over_seeds(values: Sequence[float]) -> tuple[float, float | None, float | None]:
    """Return the mean over the K runs and its 95% interval by Student's t; no interval from a single run."""
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, None, None
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    half = _t_quantile(len(values)) * deviation / math.sqrt(len(values))
    return mean, mean - half, mean + half


def _t_quantile(runs: int, level: float = 0.95) -> float:
    """Return how many standard errors of the mean of so many runs Student's t gives an interval, to either side."""
    from scipy.stats import t  # slow to import

    return float(t.ppf((1 + level) / 2, runs - 1))


def as_metrics_see(objective: Objective, values: Array) -> Array:
    """Return labels or predictions [N] with what lies outside the classes as -1; label sets [N, L] as they are.

    That is a label that is no class, an abstention, and the class that means none of the others.
    """
    if not objective.classes or objective.labelled != "one":
        return values
    outside = values < 0
    if (index := objective.outside) is not None:
        outside = outside | (values == index)
    return np.where(outside, -1.0, values) if outside.any() else values


def on_resamples(
    labels: Array,
    predictions: Sequence[Array],
    metric: Metric,
    seed: int,
    draws: int = DRAWS,
    *,
    seen: Sequence[Sequence[Seen]] | None = None,
) -> list[Array]:
    """Compute the metric of every seed on `draws` resamples of the examples, of each row [K, D].

    `labels` [N], and of each row predictions [K, N], where K may differ; `seen` is what the metric may take beside
    them, of each row and seed. Every row and seed sees the same resamples, which is what makes the differences between
    rows paired (Efron and Tibshirani 1993). NaN where a metric is undefined on a resample. A metric with
    `Metric.resampled` takes some milliseconds, another one `draws` calls.
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
            for which, (row, values_of_row) in enumerate(zip(predictions, values, strict=True)):
                for number, of_seed in enumerate(row):
                    beside = seen[which][number] if seen is not None else {}
                    if metric.resampled is None:
                        values_of_row[number, here] = [
                            metric(labels[at], of_seed[at], **_taken(beside, at)) for at in drawn
                        ]
                    else:
                        values_of_row[number, here] = _at_once(metric, labels, of_seed, counts, beside)
    return values


def _taken(seen: Seen, at: NDArray[np.int64]) -> dict[str, Any]:
    """Return what is seen of a resample of the examples."""
    return {name: value if name == "classes" else value[at] for name, value in seen.items()}


def _at_once(metric: Metric, labels: Array, predictions: Array, counts: Array, seen: Seen) -> Array:
    """Call `Metric.resampled`, which may be a plugin's. Raises PluginError for values of another shape."""
    assert metric.resampled is not None
    found = metric.resampled(labels, predictions, counts, **metric.seen(seen))
    values = np.asarray(found, dtype=np.float64)
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


def effect_size(one: Sequence[float], other: Sequence[float], *, same_seeds: bool) -> float | None:
    """Return Hedges' g: the difference of two rows' means over the seeds, in standard deviations, less its bias.

    Of the `same_seeds` the deviation is that of the seeds' own differences, else the pooled one of both rows; the
    factor 1 - 3 / (4 f - 1) for f degrees of freedom takes out most of the bias of few runs (Hedges 1981, "Distribution
    theory for Glass's estimator of effect size"). None where a deviation cannot be had, or is 0, and of two seeds' own
    differences: with one degree of freedom the bias has no bound.
    """
    difference = np.mean(one) - np.mean(other)
    if same_seeds:
        freedom = len(one) - 1
        squares = float(np.sum((np.subtract(one, other) - difference) ** 2))
    else:
        freedom = len(one) + len(other) - 2
        squares = sum(float(np.sum((np.array(values) - np.mean(values)) ** 2)) for values in (one, other))
    if freedom < 2 or min(len(one), len(other)) < 2:
        return None
    # equal numbers are a few units in the last place apart, by how they were rounded
    if squares <= (1e-12 * max(map(abs, (*one, *other)))) ** 2:
        return None
    return float(difference / math.sqrt(squares / freedom) * (1 - 3 / (4 * freedom - 1)))


def looks(seeds: int, least: int = 3, alpha: float = 0.05) -> list[Look]:
    """Return when a comparison of at most `seeds` seeds is looked at, and the level of the intervals at each look.

    After 30, 50, 70 and 100% of the seeds, but not before `least`. With the share u of the seeds, alpha u^3 of the
    error may have been spent (Kim and DeMets 1987, "Design and analysis of group sequential tests based on the type I
    error spending rate function"): a look's own part is what was added since the one before, and its interval has
    level 1 - part. The parts add up to alpha, so whatever the looks have to do with each other, an interval that
    excludes 0 at any of them is wrong in at most alpha of the comparisons between equals (by the union bound, which
    makes them a little wider than need be).
    """
    at = sorted({max(least, math.ceil(seeds * share)) for share in (0.3, 0.5, 0.7, 1.0)})
    spent = [0.0, *(alpha * (count / at[-1]) ** 3 for count in at)]
    return [Look(count, 1 - (after - before)) for count, (before, after) in zip(at, pairwise(spent), strict=True)]


def interval_at(level: float, observed: Sequence[float], draws: Array) -> tuple[float, float] | None:
    """Return the interval of a mean difference at any level, however near to 1 it is.

    `observed` are the differences of the K seeds, K >= 2, `draws` [D] the mean difference on resamples of the examples.
    The seeds' standard error counts by Student's t, that of the examples by the normal distribution, and the squares of
    both add up: what `difference` has at 95%, without the need for draws in the far tails. None without finite draws.
    """
    from scipy.stats import norm

    finite = draws[np.isfinite(draws)]
    if len(finite) < 2:
        return None
    mean = float(np.mean(observed))
    of_seeds = float(np.std(observed, ddof=1)) / math.sqrt(len(observed)) * _t_quantile(len(observed), level)
    of_examples = float(np.std(finite, ddof=1)) * float(norm.ppf((1 + level) / 2))
    half = math.hypot(of_seeds, of_examples)
    return mean - half, mean + half
