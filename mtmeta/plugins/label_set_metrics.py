"""Metrics of label sets: labels and predictions are zeros and ones, float64 [N, L], scores are logits [N, L].

Each has a twin for the bootstrap, as those in metrics.py have.
"""

from __future__ import annotations

import warnings
from typing import Any

import mtmeta


def micro_f1(labels: Any, predictions: Any) -> float:
    """F1 of all labels of all examples taken together; 0 where there is none on either side."""
    either = labels.sum() + predictions.sum()
    return float(2 * (labels * predictions).sum() / either) if either else 0.0


def micro_f1s(labels: Any, predictions: Any, counts: Any) -> Any:
    """Compute the micro F1 of each resample [D]."""
    import numpy as np

    right = counts @ (labels * predictions).sum(axis=1)
    either = counts @ (labels + predictions).sum(axis=1)
    return np.divide(2 * right, either, out=np.zeros_like(right), where=either > 0)


def macro_f1(labels: Any, predictions: Any) -> float:
    """Unweighted mean of the labels' F1, of those labels that some example has; warns of how many have none."""
    import numpy as np

    there = labels.any(axis=0)
    if not there.all():
        count, total = int((~there).sum()), labels.shape[1]
        warnings.warn(
            f"macro_f1: {count} of {total} labels have no example and do not count", UserWarning, stacklevel=2
        )
    return float(macro_f1s(labels, predictions, np.ones((1, len(labels))))[0])


def macro_f1s(labels: Any, predictions: Any, counts: Any) -> Any:
    """Compute the macro F1 of each resample [D], over the labels that occur in it."""
    import numpy as np

    right, labelled, predicted = (counts @ each for each in (labels * predictions, labels, predictions))  # [D, L]
    f1 = np.divide(2 * right, labelled + predicted, out=np.zeros_like(right), where=labelled > 0)
    there = (labelled > 0).sum(axis=1)
    return np.divide(f1.sum(axis=1), there, out=np.zeros(len(counts)), where=there > 0)


def label_ranking_ap(labels: Any, predictions: Any, *, scores: Any) -> float:
    """Label-ranking average precision: how far up an example's own labels stand among all, by the raw outputs.

    As scikit-learn defines it (Tsoumakas et al. 2010): of equal scores the lowest place counts, and an example with
    none or with all of the labels counts as 1.
    """
    return float(_ranking_precision(labels, scores).mean())


def label_ranking_aps(labels: Any, predictions: Any, counts: Any, *, scores: Any) -> Any:
    """Compute the label-ranking average precision of each resample [D]."""
    return counts @ _ranking_precision(labels, scores) / counts.sum(axis=1)


def _ranking_precision(labels: Any, scores: Any) -> Any:
    """Compute of each example [N] the mean over its labels of the share of its own among those ranked as high."""
    import numpy as np
    from scipy.stats import rankdata

    own = labels > 0
    ranks = rankdata(-scores, method="max", axis=1)  # [N, L]
    among_own = rankdata(np.where(own, -scores, np.inf), method="max", axis=1)
    sizes = own.sum(axis=1)
    sums = np.where(own, among_own / ranks, 0.0).sum(axis=1)
    trivial = (sizes == 0) | (sizes == labels.shape[1])
    return np.where(trivial, 1.0, sums / np.maximum(sizes, 1))


def register() -> list[mtmeta.Metric]:
    """Return the metrics that only label sets have."""
    return [
        mtmeta.Metric("micro_f1", micro_f1, needs="label_sets", resampled=micro_f1s),
        mtmeta.Metric(
            "label_ranking_ap", label_ranking_ap, needs="label_sets", resampled=label_ranking_aps, takes=("scores",)
        ),
    ]
