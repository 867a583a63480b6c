"""Built-in metrics, most through scikit-learn and SciPy. Labels and predictions are float64 arrays [N]."""

from __future__ import annotations

import warnings
from typing import Any

import mtmeta

# imports stand inside the functions: scikit-learn takes a second to load, and `mtmeta --help` needs none of it


def accuracy(labels: Any, predictions: Any) -> float:
    """Share of predictions that equal their label."""
    import numpy as np

    # scikit-learn's accuracy_score takes 100 times as long, and the bootstrap asks 1,000 times
    return float(np.mean(np.equal(labels, predictions)))


def macro_f1(labels: Any, predictions: Any) -> float:
    """Unweighted mean of the classes' F1; a class neither present nor predicted does not count."""
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def matthews(labels: Any, predictions: Any) -> float:
    """Matthews correlation; 0 with a warning where either side is constant."""
    from sklearn.metrics import matthews_corrcoef

    return 0.0 if _constant("matthews", labels, predictions) else float(matthews_corrcoef(labels, predictions))


def pearson(labels: Any, predictions: Any) -> float:
    """Pearson correlation; 0 with a warning where either side is constant."""
    from scipy.stats import pearsonr

    return 0.0 if _constant("pearson", labels, predictions) else _correlation(pearsonr, labels, predictions)


def spearman(labels: Any, predictions: Any) -> float:
    """Spearman rank correlation; 0 with a warning where either side is constant."""
    from scipy.stats import spearmanr

    return 0.0 if _constant("spearman", labels, predictions) else _correlation(spearmanr, labels, predictions)


def _correlation(function: Any, labels: Any, predictions: Any) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy also warns of nearly constant input, where the value is still defined
        return float(function(labels, predictions).statistic)


def _constant(name: str, labels: Any, predictions: Any) -> bool:
    if len(labels) > 1 and labels.min() < labels.max() and predictions.min() < predictions.max():
        return False
    which = "labels" if len(labels) < 2 or labels.min() == labels.max() else "predictions"
    warnings.warn(f"{name} of constant {which} is undefined; reported as 0", UserWarning, stacklevel=3)
    return True


@mtmeta.hookimpl
def register_metrics() -> list[mtmeta.Metric]:
    return [
        mtmeta.Metric("accuracy", accuracy, needs="classes"),
        mtmeta.Metric("macro_f1", macro_f1, needs="classes"),
        mtmeta.Metric("matthews", matthews, needs="classes"),
        mtmeta.Metric("pearson", pearson),
        mtmeta.Metric("spearman", spearman),
    ]
