"""Metrics of how far predictions are from their labels: of numbers, and of the ranks of classes that have an order.

Each has a twin for the bootstrap, as those in metrics.py have. Of classes, -1 is what lies outside them: a label that
training does not have, or an abstention. It has no rank, so such examples do not count, and are told.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import mtmeta


def mae(labels: Any, predictions: Any, *, classes: Sequence[str]) -> float:
    """Mean absolute error, of numbers, or of classes by their place in the order; less is better."""
    import numpy as np

    counted = _counted("mae", labels, predictions, classes)
    if not counted.any():
        return float(len(classes) - 1)
    return float(np.abs(labels - predictions)[counted].mean())


def maes(labels: Any, predictions: Any, counts: Any, *, classes: Sequence[str]) -> Any:
    """Compute the mean absolute error of each resample [D]."""
    import numpy as np

    counted = _ranked(labels, predictions, classes).astype(counts.dtype)
    total, error = counts @ counted, counts @ (counted * np.abs(labels - predictions))
    return np.divide(error, total, out=np.full_like(error, len(classes) - 1.0), where=total > 0)


def rmse(labels: Any, predictions: Any, *, classes: Sequence[str]) -> float:
    """Root of the mean squared error, of numbers, or of classes by their place in the order; less is better."""
    import numpy as np

    counted = _counted("rmse", labels, predictions, classes)
    if not counted.any():
        return float(len(classes) - 1)
    return float(np.sqrt(((labels - predictions)[counted] ** 2).mean()))


def rmses(labels: Any, predictions: Any, counts: Any, *, classes: Sequence[str]) -> Any:
    """Compute the root of the mean squared error of each resample [D]."""
    import numpy as np

    counted = _ranked(labels, predictions, classes).astype(counts.dtype)
    total, squares = counts @ counted, counts @ (counted * (labels - predictions) ** 2)
    worst = np.full_like(squares, (len(classes) - 1.0) ** 2)
    return np.sqrt(np.divide(squares, total, out=worst, where=total > 0))


def quadratic_kappa(labels: Any, predictions: Any, *, classes: Sequence[str]) -> float:
    """Cohen's kappa with weights (i - j)^2 between the i-th and the j-th class (Cohen 1968).

    It is 1 - E[(y - p)^2] / E[(y' - p)^2], where y' is the label of an example drawn without regard to p. 0 with a
    warning where both sides are one and the same class.
    """
    import numpy as np

    counted = _counted("quadratic_kappa", labels, predictions, classes)
    here, found = labels[counted], predictions[counted]
    if not len(here) or ((here == found[0]).all() and (found == found[0]).all()):
        warnings.warn("quadratic_kappa of a single class is undefined; reported as 0", UserWarning, stacklevel=2)
        return 0.0
    return float(quadratic_kappas(here, found, np.ones((1, len(here))), classes=classes)[0])


def quadratic_kappas(labels: Any, predictions: Any, counts: Any, *, classes: Sequence[str]) -> Any:
    """Compute the quadratic kappa of each resample [D]."""
    import numpy as np

    weights = counts * _ranked(labels, predictions, classes)
    total = np.maximum(weights.sum(axis=1), 1)
    y, p, yy, pp, apart = (
        weights @ values / total
        for values in (labels, predictions, labels**2, predictions**2, (labels - predictions) ** 2)
    )
    chance = yy + pp - 2 * y * p  # of labels and predictions drawn apart from each other
    known = chance > 1e-12 * np.maximum(yy + pp, 1)  # what is below is a rounding error
    return np.where(known, 1 - np.divide(apart, chance, out=np.zeros_like(apart), where=known), 0.0)


def over_targets(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a metric of numbers [N], or its twin for the bootstrap, that takes rows of them [N, L], too.

    Of rows it is the mean over the L numbers, each of the examples that have it; a number that none has is told, and
    does not count.
    """

    @functools.wraps(function)
    def mean(labels: Any, predictions: Any, *counts: Any, **seen: Any) -> Any:
        import numpy as np

        if labels.ndim == 1:
            return function(labels, predictions, *counts, **seen)
        values = []
        for own, found in zip(labels.T, predictions.T, strict=True):
            there = ~np.isnan(own)
            if there.any():
                drawn = [each[:, there] for each in counts]
                values.append(function(own[there], found[there], *drawn, **seen))
        if (absent := labels.shape[1] - len(values)) and not counts:
            message = f"{function.__name__}: {absent} of {labels.shape[1]} numbers have no example and do not count"
            warnings.warn(message, UserWarning, stacklevel=2)
        return np.mean(values, axis=0)

    return mean


def _ranked(labels: Any, predictions: Any, classes: Sequence[str]) -> Any:
    """Return which examples [N] have a rank, on both sides; numbers, which have no classes, all count."""
    return (labels >= 0) & (predictions >= 0) if classes else labels == labels


def _counted(name: str, labels: Any, predictions: Any, classes: Sequence[str]) -> Any:
    """Return which examples count, and warn of those that do not."""
    ranked = _ranked(labels, predictions, classes)
    if not ranked.all():
        outside, total = int((~ranked).sum()), len(ranked)
        message = f"{name}: {outside} of {total} examples are outside the classes, have no rank and do not count"
        warnings.warn(message, UserWarning, stacklevel=3)
    return ranked


def register() -> list[mtmeta.Metric]:
    """Return the metrics of distances."""
    return [
        *(
            mtmeta.Metric(
                name,
                over_targets(function),
                greater_is_better=False,
                needs=("any", "targets"),
                resampled=over_targets(resampled),
                takes=("classes",),
            )
            for name, function, resampled in (("mae", mae, maes), ("rmse", rmse, rmses))
        ),
        mtmeta.Metric(
            "quadratic_kappa", quadratic_kappa, needs="classes", resampled=quadratic_kappas, takes=("classes",)
        ),
    ]
