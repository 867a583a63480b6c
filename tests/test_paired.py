"""Statistics of comparisons, held against the formula, a computation by hand, and the theory of large samples."""

from __future__ import annotations

import math

import numpy as np
import pytest

import mtmeta
from mtmeta.core.paired import difference, over_seeds, resampled
from mtmeta.plugins.metrics import accuracy, pearson

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


def some(rows: int, seeds: int, examples: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 2, examples).astype(float)
    wrong = generator.random((rows, seeds, examples)) < 0.3
    return labels, np.where(wrong, 1 - labels, labels)


def test_resamples_are_the_same_for_every_row_and_seed() -> None:
    labels, predictions = some(3, 2, 40)
    made = resampled(labels, list(predictions), ACCURACY, seed=9, draws=5)
    generator = np.random.Generator(np.random.PCG64(9))
    for draw in range(5):
        at = generator.integers(0, 40, 40)
        by_hand = [(predictions[row][:, at] == labels[at]).mean() for row in range(3)]  # mean of seeds and examples
        assert made[:, draw] == pytest.approx(by_hand)
    assert (made == resampled(labels, list(predictions), ACCURACY, seed=9, draws=5)).all()
    assert (made != resampled(labels, list(predictions), ACCURACY, seed=8, draws=5)).any()


def test_a_row_against_itself_differs_by_nothing() -> None:
    labels, predictions = some(1, 3, 50)
    made = resampled(labels, [*predictions, *predictions], ACCURACY, seed=0)
    found = difference(0.0, made[1] - made[0])
    assert (found.value, found.low, found.high, found.p) == (0.0, 0.0, 0.0, 1.0)


def test_paired_interval_is_that_of_the_differences_of_each_example() -> None:
    """Of 4,000 examples the bootstrap is normal: 1.96 standard errors of the mean of the paired differences."""
    labels, predictions = some(2, 1, 4000)
    each = (predictions[1, 0] == labels).astype(float) - (predictions[0, 0] == labels)
    made = resampled(labels, list(predictions), ACCURACY, seed=0)
    found = difference(float(each.mean()), made[1] - made[0])
    half = 1.96 * each.std() / math.sqrt(4000)
    assert found.value - found.low == pytest.approx(half, rel=0.1)
    assert found.high - found.value == pytest.approx(half, rel=0.1)
    assert (made[1] - made[0]).std() == pytest.approx(each.std() / math.sqrt(4000), rel=0.1)


def test_pairing_makes_small_differences_visible() -> None:
    """Two rows that agree but for a few examples: their difference is sure although each row's interval is wide."""
    labels, predictions = some(1, 1, 500)
    better = predictions.copy()
    right = np.flatnonzero(predictions[0, 0] != labels)[:12]
    better[0, 0, right] = labels[right]
    made = resampled(labels, [*predictions, *better], ACCURACY, seed=0)
    found = difference(12 / 500, made[1] - made[0])
    assert 0 < found.low < 12 / 500 < found.high
    assert made[0].std() > 3 * (found.value - found.low) / 1.96 / 2


def test_p_is_twice_the_smaller_side_and_never_zero() -> None:
    assert difference(1.0, np.ones(999)).p == pytest.approx(2 / 1000)
    draws = np.concatenate([np.full(949, 0.1), np.full(50, -0.1)])
    assert difference(0.1, draws).p == pytest.approx(2 * 51 / 1000)
    assert difference(0.0, np.zeros(999)).p == 1.0


def test_resamples_on_which_a_metric_is_undefined_are_left_out() -> None:
    found = difference(0.5, np.array([math.nan, 0.4, 0.6, math.nan]))
    assert (found.low, found.high) == pytest.approx((0.405, 0.595))


def test_a_correlation_is_resampled_too() -> None:
    generator = np.random.default_rng(0)
    labels = generator.normal(size=300)
    predictions = np.stack([labels + generator.normal(size=300) * noise for noise in (0.1, 2.0)])[:, None]
    made = resampled(labels, list(predictions), PEARSON, seed=0, draws=200)
    observed = pearson(labels, predictions[1, 0]) - pearson(labels, predictions[0, 0])
    found = difference(observed, made[1] - made[0])
    assert found.low < observed < found.high < -0.3
