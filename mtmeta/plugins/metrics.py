"""Built-in metrics, most through scikit-learn and SciPy. Labels and predictions are float64 arrays [N].

Each has a twin for the bootstrap that takes all D resamples at once, as `counts` [D, N] of the examples: calling the
metrics themselves a thousand times for every run would take scikit-learn and SciPy minutes.
"""

from __future__ import annotations

import warnings
from typing import Any

import mtmeta
from mtmeta.plugins import distance_metrics, label_set_metrics, rank_metrics, tag_metrics
from mtmeta.plugins.distance_metrics import over_targets

# imports stand inside the functions: scikit-learn takes a second to load, and `mtmeta --help` needs none of it


def accuracy(labels: Any, predictions: Any) -> float:
    """Share of predictions that equal their label."""
    import numpy as np

    # scikit-learn's accuracy_score takes 100 times as long, and the bootstrap asks 1,000 times
    return float(np.mean(np.equal(labels, predictions)))


def macro_f1(labels: Any, predictions: Any) -> float:
    """Unweighted mean of the classes' F1; a class neither present nor predicted does not count.

    Of label sets [N, L] the mean is over the labels that occur.
    """
    if labels.ndim == 2:
        return label_set_metrics.macro_f1(labels, predictions)
    from sklearn.metrics import f1_score

    return float(f1_score(labels, predictions, average="macro", zero_division=0.0))


def oos_recall(labels: Any, predictions: Any) -> float:
    """Share of the examples outside the classes that got none of them as an answer; 0 with a warning if there are none.

    Outside is a label that training does not have, and the task's `out_of_scope`; no class is an abstention (`mtmeta
    eval --abstain`), and that label.
    """
    outside = labels == -1
    if not outside.any():
        warnings.warn("oos_recall without examples outside the classes is undefined; reported as 0", stacklevel=2)
        return 0.0
    return float((predictions[outside] == -1).mean())


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


# ------------------------------------------------------------------------------------------------------- on resamples


def accuracies(labels: Any, predictions: Any, counts: Any) -> Any:
    """Compute the accuracy of each resample [D]."""
    return counts @ (labels == predictions).astype(counts.dtype) / counts.sum(axis=1)


def oos_recalls(labels: Any, predictions: Any, counts: Any) -> Any:
    """Compute the out-of-scope recall of each resample [D]."""
    import numpy as np

    outside = (labels == -1).astype(counts.dtype)
    total, right = counts @ outside, counts @ (outside * (predictions == -1))
    return np.divide(right, total, out=np.zeros_like(right), where=total > 0)


def macro_f1s(labels: Any, predictions: Any, counts: Any) -> Any:
    """Compute the macro F1 of each resample [D]."""
    import numpy as np

    if labels.ndim == 2:
        return label_set_metrics.macro_f1s(labels, predictions, counts)
    right, labelled, predicted = _totals(labels, predictions, counts)
    either = labelled + predicted
    scores = np.divide(2 * right, either, out=np.zeros_like(right), where=either > 0)
    return scores.sum(axis=0) / (either > 0).sum(axis=0)


def matthews_correlations(labels: Any, predictions: Any, counts: Any) -> Any:
    """Compute the Matthews correlation of each resample [D] (Gorodkin 2004)."""
    import numpy as np

    right, labelled, predicted = _totals(labels, predictions, counts)
    total = counts.sum(axis=1)
    covariance = right.sum(axis=0) * total - (labelled * predicted).sum(axis=0)
    variances = (total**2 - (labelled**2).sum(axis=0)) * (total**2 - (predicted**2).sum(axis=0))
    return np.divide(covariance, np.sqrt(variances), out=np.zeros_like(covariance), where=variances > 0)


def pearsons(labels: Any, predictions: Any, counts: Any) -> Any:
    """Compute the Pearson correlation of each resample [D]."""
    import numpy as np

    x, y = labels - labels.mean(), predictions - predictions.mean()
    total = counts.sum(axis=1)
    mx, my, xx, yy, xy = (counts @ values / total for values in (x, y, x * x, y * y, x * y))
    vx, vy = xx - mx * mx, yy - my * my
    correlations = np.divide(xy - mx * my, np.sqrt(np.abs(vx * vy)), out=np.zeros_like(vx), where=vx * vy > 0)
    # where next to nothing varies, the differences above are rounding errors
    for draw in np.flatnonzero((vx <= 1e-8 * (x * x).mean()) | (vy <= 1e-8 * (y * y).mean())):
        often = counts[draw].astype(np.int64)
        correlations[draw] = pearson(np.repeat(labels, often), np.repeat(predictions, often))
    return correlations.clip(-1.0, 1.0)


def spearmans(labels: Any, predictions: Any, counts: Any) -> Any:
    """Compute the Spearman rank correlation of each resample [D]."""
    import numpy as np

    total = counts.sum(axis=1, keepdims=True)
    x, y = (_ranks(values, counts) - (total + 1) / 2 for values in (labels, predictions))
    xx, yy, xy = (np.einsum("dn,dn,dn->d", counts, one, other) for one, other in ((x, x), (y, y), (x, y)))
    return np.divide(xy, np.sqrt(xx * yy), out=np.zeros_like(xy), where=xx * yy > 0)


def _ranks(values: Any, counts: Any) -> Any:
    """Compute the rank of every example in each resample [D, N], ties at the mean of their ranks."""
    import numpy as np

    unique, at = np.unique(values, return_inverse=True)  # [U], [N]
    often = (_membership(at, len(unique)) @ counts.T).T  # [D, U]
    return (often.cumsum(axis=1) - (often - 1) / 2)[:, at]


def _totals(labels: Any, predictions: Any, counts: Any) -> Any:
    """Count for each class and resample [C, D] the examples that are right, labelled so, and predicted so."""
    import numpy as np

    classes, at = np.unique(np.concatenate([labels, predictions]), return_inverse=True)
    labelled, predicted = (_membership(part, len(classes)) @ counts.T for part in np.split(at, 2))
    right = _membership(at[: len(labels)], len(classes)) @ (counts * (labels == predictions)).T
    return right, labelled, predicted


def _membership(at: Any, groups: int) -> Any:
    """Build a sparse matrix [groups, N] that sums the examples of each group."""
    import numpy as np
    from scipy.sparse import csr_array

    return csr_array((np.ones(len(at)), (at, np.arange(len(at)))), shape=(groups, len(at)))


@mtmeta.hookimpl
def register_metrics() -> list[mtmeta.Metric]:
    return [
        mtmeta.Metric("accuracy", accuracy, needs="classes", resampled=accuracies),
        mtmeta.Metric("macro_f1", macro_f1, needs=("classes", "label_sets"), resampled=macro_f1s),
        mtmeta.Metric("oos_recall", oos_recall, needs="classes", resampled=oos_recalls),
        mtmeta.Metric("matthews", matthews, needs="classes", resampled=matthews_correlations),
        *(
            mtmeta.Metric(
                function.__name__, over_targets(function), needs=("any", "targets"), resampled=over_targets(resampled)
            )
            for function, resampled in ((pearson, pearsons), (spearman, spearmans))
        ),
        *distance_metrics.register(),
        *label_set_metrics.register(),
        *tag_metrics.register(),
        *rank_metrics.register(),
    ]
