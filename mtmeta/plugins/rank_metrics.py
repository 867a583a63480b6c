"""Metrics of ranks: predictions are the rank of each example's own text among all of a split, 1 for the best, [N].

There is one text to be found, so all of them are means of a number of each example; labels, all 1, are not looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mtmeta

Values = Callable[[Any], Any]


def _found_by(depth: int) -> Values:
    """Return 1 for each rank up to `depth`, else 0."""
    return lambda ranks: (ranks <= depth).astype(float)


def _reciprocal(depth: int) -> Values:
    """Return 1 / r of each rank r up to `depth`, else 0."""
    return lambda ranks: (ranks <= depth) / ranks


def _gain(depth: int) -> Values:
    """Return 1 / log2(1 + r) of each rank r up to `depth`, else 0."""

    def gains(ranks: Any) -> Any:
        import numpy as np

        return (ranks <= depth) / np.log2(1 + ranks)

    return gains


def _mean(name: str, values: Values, about: str) -> mtmeta.Metric:
    """Make a metric of the values of ranks, with its twin for the bootstrap."""

    def metric(labels: Any, predictions: Any) -> float:
        return float(values(predictions).mean())

    def resampled(labels: Any, predictions: Any, counts: Any) -> Any:
        return counts @ values(predictions) / counts.sum(axis=1)

    metric.__doc__ = about
    return mtmeta.Metric(name, metric, needs="ranks", resampled=resampled)


def register() -> list[mtmeta.Metric]:
    """Return the metrics of ranks."""
    found = "Share of the examples whose own text is among the first {}."
    return [
        *(_mean(f"accuracy_at_{depth}", _found_by(depth), found.format(depth)) for depth in (1, 3, 5, 10)),
        _mean("mrr_at_10", _reciprocal(10), "Mean of 1 / r, r the rank of an example's own text; 0 beyond the tenth."),
        _mean("ndcg_at_10", _gain(10), "Mean of 1 / log2(1 + r), r the rank of the own text; 0 beyond the tenth."),
    ]
