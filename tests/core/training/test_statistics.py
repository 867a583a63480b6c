"""Statistics of comparisons, held against the formula, a computation by hand, and the theory of large samples."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import mtmeta
from mtmeta.core.errors import PluginError
from mtmeta.core.training.statistics import (
    Difference,
    difference,
    difference_draws,
    effect_size,
    interval_at,
    looks,
    on_resamples,
    over_seeds,
)
from mtmeta.plugins.metrics import accuracy, pearson, register_metrics

ACCURACY = mtmeta.Metric("accuracy", accuracy, needs="classes")
PEARSON = mtmeta.Metric("pearson", pearson)


def test_interval_over_seeds_is_students() -> None:
    mean, low, high = over_seeds([0.4, 0.5, 0.6])
    half = 4.302652729911275 * 0.1 / math.sqrt(3)  # the 97.5% point of t with 2 degrees of freedom, from a table
    assert (mean, low, high) == pytest.approx((0.5, 0.5 - half, 0.5 + half))


def test_equal_seeds_have_no_spread() -> None:
    assert over_seeds([0.25, 0.25]) == (0.25, 0.25, 0.25)


def test_one_seed_has_no_interval() -> None:
    assert over_seeds([0.3]) == (0.3, None, None)


def ends(gap: Difference) -> tuple[float, float]:
    """Return the interval of a difference that has one."""
    assert gap.low is not None
    assert gap.high is not None
    return gap.low, gap.high


def some(rows: int, seeds: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, examples).astype(float)
    wrong = generator.random((rows, seeds, examples)) < 0.3
    return labels, np.where(wrong, 1 - labels, labels)


def test_resamples_are_the_same_for_every_row_and_seed() -> None:
    labels, predictions = some(3, 2, 40)
    values = np.array(on_resamples(labels, list(predictions), ACCURACY, seed=9, draws=5))  # [R, K, D]
    generator = np.random.Generator(np.random.PCG64(9))
    for draw in range(5):
        at = generator.integers(0, 40, 40)
        by_hand = (predictions[:, :, at] == labels[at]).mean(axis=2)  # [R, K]
        assert values[:, :, draw] == pytest.approx(by_hand)
    assert (values == np.array(on_resamples(labels, list(predictions), ACCURACY, seed=9, draws=5))).all()
    assert (values != np.array(on_resamples(labels, list(predictions), ACCURACY, seed=8, draws=5))).any()


def test_a_row_against_itself_differs_by_nothing() -> None:
    labels, predictions = some(1, 3, 50)
    one, other = on_resamples(labels, [*predictions, *predictions], ACCURACY, seed=0)
    gap = difference(0.0, difference_draws(one, other, same_seeds=True))
    assert (gap.value, gap.low, gap.high, gap.p) == (0.0, 0.0, 0.0, 1.0)


def test_paired_interval_is_that_of_the_differences_of_each_example() -> None:
    """Of 4,000 examples the bootstrap is normal: 1.96 standard errors of the mean of the paired differences."""
    labels, predictions = some(2, 1, 4000)
    each = (predictions[1, 0] == labels).astype(float) - (predictions[0, 0] == labels)
    one, other = on_resamples(labels, list(predictions), ACCURACY, seed=0)
    draws = difference_draws(other, one, same_seeds=True)
    gap = difference(float(each.mean()), draws)
    half = 1.96 * each.std() / math.sqrt(4000)
    low, high = ends(gap)
    assert gap.value - low == pytest.approx(half, rel=0.1)
    assert high - gap.value == pytest.approx(half, rel=0.1)
    assert draws.std() == pytest.approx(each.std() / math.sqrt(4000), rel=0.1)


def test_pairing_makes_small_differences_visible() -> None:
    """Two rows that agree but for a few examples: their difference is sure although each row's interval is wide."""
    labels, predictions = some(1, 1, 500)
    better = predictions.copy()
    right = np.flatnonzero(predictions[0, 0] != labels)[:12]
    better[0, 0, right] = labels[right]
    one, other = on_resamples(labels, [*predictions, *better], ACCURACY, seed=0)
    gap = difference(12 / 500, difference_draws(other, one, same_seeds=True))
    low, high = ends(gap)
    assert 0 < low < 12 / 500 < high
    assert one.std() > 3 * (gap.value - low) / 1.96 / 2


def test_p_is_twice_the_smaller_side_and_never_zero() -> None:
    assert difference(1.0, np.ones(999)).p == pytest.approx(2 / 1000)
    draws = np.concatenate([np.full(949, 0.1), np.full(50, -0.1)])
    assert difference(0.1, draws).p == pytest.approx(2 * 51 / 1000)
    assert difference(0.0, np.zeros(999)).p == 1.0


def test_resamples_on_which_a_metric_is_undefined_are_left_out() -> None:
    gap = difference(0.5, np.array([math.nan, 0.4, 0.6, math.nan]))
    assert (gap.low, gap.high) == pytest.approx((0.405, 0.595))
    gap = difference(0.5, np.full(7, math.nan))
    assert (gap.value, gap.low, gap.high, gap.p) == (0.5, None, None, None)


def test_a_correlation_is_resampled_too() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=300)
    predictions = np.stack([labels + generator.normal(size=300) * noise for noise in (0.1, 2.0)])[:, None]
    one, other = on_resamples(labels, list(predictions), PEARSON, seed=0, draws=200)
    observed = pearson(labels, predictions[1, 0]) - pearson(labels, predictions[0, 0])
    gap = difference(observed, difference_draws(other, one, same_seeds=True))
    low, high = ends(gap)
    assert low < observed < high < -0.3


# --------------------------------------------------------------------------------------------------------------- seeds


def test_draws_of_seeds_by_hand() -> None:
    """Values that no resample changes: all that is left are means of two seeds, 0, 1/2 or 1, as wide as Student's t."""
    values = np.repeat([[0.0], [1.0]], 4000, axis=1)
    draws = difference_draws(values, np.zeros((2, 4000)), same_seeds=True)
    half = 0.5 * math.sqrt(2) * 12.706204736432095 / 1.959963984540054  # t of one degree of freedom, from a table
    means, counts = np.unique(draws, return_counts=True)
    assert means == pytest.approx([0.5 - half, 0.5, 0.5 + half])
    assert counts / 4000 == pytest.approx([0.25, 0.5, 0.25], abs=0.03)


def test_seeds_that_both_rows_have_are_drawn_together() -> None:
    generator = np.random.default_rng(3)
    seeds = generator.normal(size=(4, 1)) + np.zeros((4, 1000))
    together = difference_draws(seeds + 0.1, seeds, same_seeds=True)
    assert together == pytest.approx(np.full(1000, 0.1))
    apart = difference_draws(seeds + 0.1, seeds, same_seeds=False)
    assert apart.std() > 0.3
    assert abs(apart.mean() - 0.1) < 0.15


def test_a_single_seed_adds_nothing() -> None:
    generator = np.random.default_rng(3)
    one, other = generator.normal(size=(2, 1, 50))
    assert (difference_draws(one, other, same_seeds=False) == (one - other)[0]).all()


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_where_only_seeds_differ_it_is_rarely_sure(seeds: int) -> None:
    """Two regimes that are equally good: of 400 comparisons, at most a tenth has an interval without 0.

    With the examples alone resampled, or the seeds without the width of t, it is several times as many.
    """
    generator = np.random.default_rng(seeds)
    sure = naive = 0
    for _ in range(400):
        noise = generator.normal(size=(1, 1000)) * 0.2  # of the examples, which both rows share
        one, other = (generator.normal(size=(seeds, 1)) + noise for _ in range(2))
        low, high = ends(difference(0.0, difference_draws(one, other, same_seeds=True)))
        sure += low > 0 or high < 0
        examples = (one - other).mean(axis=0)
        naive += examples.min() > 0 or examples.max() < 0
    assert sure <= 40
    assert naive > 300


# ------------------------------------------------------------------------------------------- all resamples at once


def drawn_data(kind: str) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(4)
    if kind == "few":  # so few that resamples are constant, or lack classes
        return generator.integers(0, 2, 3).astype(float), generator.integers(0, 2, (4, 3)).astype(float)
    if kind == "far":  # far from 0, and hardly varying
        labels = 1e6 + np.array([0.0] * 38 + [1.0, 2.0])
        return labels, labels + generator.normal(size=(2, 40))
    labels = generator.integers(0, 7, 60).astype(float)
    return labels, np.where(generator.random((2, 60)) < 0.5, labels, generator.integers(0, 5, (2, 60)))


@pytest.mark.parametrize(
    ("metric", "kind"),
    [
        pytest.param(metric, kind, id=f"{metric.name}-{kind}")
        for metric in register_metrics()
        if metric.fits(mtmeta.Classification(5))
        for kind in ("many", "few", *(("far",) if "any" in metric.needs else ()))
    ],
)
def test_all_at_once_is_one_by_one(metric: mtmeta.Metric, kind: str) -> None:
    labels, predictions = drawn_data(kind)
    seen = [[{"classes": tuple("abcdefg")}] * len(predictions)]
    slow = dataclasses.replace(metric, resampled=None)
    at_once, one_by_one = (
        on_resamples(labels, [predictions], each, seed=2, draws=200, seen=seen) for each in (metric, slow)
    )
    assert at_once[0] == pytest.approx(one_by_one[0], abs=1e-9)


def test_blocks_of_resamples_are_those_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    labels, predictions = drawn_data("many")
    metric = register_metrics()[1]
    whole = on_resamples(labels, [predictions], metric, seed=2, draws=100)
    monkeypatch.setattr("mtmeta.core.training.statistics.AT_ONCE", 60 * 7)
    assert (on_resamples(labels, [predictions], metric, seed=2, draws=100)[0] == whole[0]).all()


def test_a_metric_that_gives_another_number_of_values() -> None:
    labels, predictions = drawn_data("many")
    metric = mtmeta.Metric("wrong", accuracy, resampled=lambda labels, predictions, counts: counts)
    with pytest.raises(PluginError, match=r"metric 'wrong' gives shape \[5, 60\] for 5 resamples, expected \[5\]"):
        on_resamples(labels, [predictions], metric, seed=0, draws=5)


# ---------------------------------------------------------------------------------------- looks on the way, and effects


def test_looks_spend_the_whole_error_and_no_more() -> None:
    for seeds in range(3, 41):
        planned = looks(seeds)
        assert planned[-1].seeds == seeds
        assert planned[0].seeds >= 3
        assert [look.seeds for look in planned] == sorted({look.seeds for look in planned})
        assert math.fsum(1 - look.level for look in planned) == pytest.approx(0.05, abs=1e-15)
    assert [(look.seeds, round(1 - look.level, 10)) for look in looks(10)] == [
        (3, 0.00135), (5, 0.0049), (7, 0.0109), (10, 0.03285),
    ]  # fmt: skip


@pytest.mark.parametrize("seeds", [4, 10])
def test_equals_are_told_apart_in_at_most_five_percent_of_comparisons(seeds: int) -> None:
    """4,000 comparisons between equals; looking at plain 95% intervals as often would err far more."""
    generator = np.random.default_rng(5)
    nothing = np.zeros(2)  # of the examples
    wrong = naive = 0
    for observed in generator.normal(0.0, 1.0, (4000, seeds)):
        at = [(look, observed[: look.seeds]) for look in looks(seeds)]
        ends = [interval_at(look.level, values.tolist(), nothing) for look, values in at]
        wrong += any(end is not None and (end[0] > 0 or end[1] < 0) for end in ends)
        plain = [over_seeds(values.tolist()) for _, values in at]
        naive += any(low > 0 or high < 0 for _, low, high in plain if low is not None and high is not None)
    assert 0.025 < wrong / 4000 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 4000)
    assert naive / 4000 > {4: 0.06, 10: 0.11}[seeds]


def test_an_interval_at_95_percent_is_students_and_the_normal_ones() -> None:
    observed = [0.02, 0.05, 0.11]
    mean, low, high = over_seeds(observed)
    assert interval_at(0.95, observed, np.full(9, 0.06)) == pytest.approx((low, high))  # the examples add nothing
    draws = np.array([-1.0, 0.0, 1.0, np.nan]) / 100
    found = interval_at(0.95, [0.06, 0.06], draws)  # the seeds add nothing
    assert found == pytest.approx((0.06 - 1.959963984540054 * 0.01, 0.06 + 1.959963984540054 * 0.01))
    both = interval_at(0.95, observed, draws)
    assert both is not None
    assert high is not None
    assert (both[1] - mean) ** 2 == pytest.approx((high - mean) ** 2 + (1.959963984540054 * 0.01) ** 2)
    assert interval_at(0.95, observed, np.array([np.nan, np.nan])) is None


def test_effects_by_hand() -> None:
    one, other = [0.7, 0.8, 0.9], [0.6, 0.6, 0.6]
    # differences .1, .2, .3: mean .2, deviation .1, two degrees of freedom: 1 - 3 / 7
    assert effect_size(one, other, same_seeds=True) == pytest.approx(2.0 * (1 - 3 / 7))
    # pooled: (.02 + 0) / 4 -> deviation sqrt(.005), four degrees of freedom: 1 - 3 / 15
    assert effect_size(one, other, same_seeds=False) == pytest.approx(0.2 / math.sqrt(0.005) * (1 - 3 / 15))
    assert effect_size([0.5], [0.4], same_seeds=True) is None
    assert effect_size([0.5, 0.5], [0.25, 0.25], same_seeds=True) is None
    assert effect_size([0.5, 0.6], [0.4], same_seeds=False) is None
    assert effect_size([0.5, 0.7], [0.4, 0.5], same_seeds=True) is None  # its bias has no bound
    # 0.9 - 0.7 and 0.8 - 0.6 are not the same number, but no spread of seeds either
    assert effect_size([0.9, 0.8, 0.7], [0.7, 0.6, 0.5], same_seeds=True) is None
    assert effect_size([0.1 + 0.2, 0.3], [0.2, 0.2], same_seeds=False) is None
