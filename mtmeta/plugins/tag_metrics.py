"""Metrics of tags: labels and predictions are arrays [N] of tuples, the index of each word's tag.

Each has a twin for the bootstrap, as those in metrics.py have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mtmeta

Span = tuple[str, int, int]
"""Type, first word, and the word after the last."""


def spans_of(tags: Sequence[str]) -> list[Span]:
    """Return the entities that BIO tags mark, as CoNLL's script and seqeval's default read them.

    A B- begins an entity, and so does an I- after an O or after another type; it ends before whatever begins another
    one, and before an O.
    """
    spans: list[Span] = []
    start, kind = 0, ""
    for at, tag in enumerate([*tags, "O"]):
        prefix, _, own = tag.partition("-")
        own = "" if prefix == "O" else own
        if kind and (not own or prefix == "B" or own != kind):
            spans.append((kind, start, at))
            kind = ""
        if own and not kind:
            start, kind = at, own
    return spans


def entity_counts(labels: Any, predictions: Any, classes: Sequence[str]) -> Any:
    """Count for each text the entities that are right, those labelled, and those predicted: float64 [N, 3]."""
    import numpy as np

    counts = np.empty((len(labels), 3))
    for at, (own, found) in enumerate(zip(labels, predictions, strict=True)):
        wanted, given = (set(spans_of([classes[tag] for tag in tags])) for tags in (own, found))
        counts[at] = len(wanted & given), len(wanted), len(given)
    return counts


def entity_f1(labels: Any, predictions: Any, *, classes: Sequence[str]) -> float:
    """F1 of entities of BIO tags: right are those with the same type and the same words; 0 where there is none.

    It is that of seqeval in its default mode (Nakayama 2018; Ramshaw and Marcus 1995), over all types together.
    """
    right, labelled, predicted = entity_counts(labels, predictions, classes).sum(axis=0)
    return float(2 * right / (labelled + predicted)) if labelled + predicted else 0.0


def entity_f1s(labels: Any, predictions: Any, counts: Any, *, classes: Sequence[str]) -> Any:
    """Compute the F1 of entities of each resample [D]."""
    import numpy as np

    right, labelled, predicted = (counts @ entity_counts(labels, predictions, classes)).T
    either = labelled + predicted
    return np.divide(2 * right, either, out=np.zeros_like(right), where=either > 0)


def _right_words(labels: Any, predictions: Any) -> Any:
    """Count for each text the words whose tag is right, and all: float64 [N, 2]."""
    import numpy as np

    pairs = list(zip(labels, predictions, strict=True))
    right = [(sum(map(int.__eq__, own, found)), len(own)) for own, found in pairs]
    return np.array(right, dtype=np.float64)


def word_accuracy(labels: Any, predictions: Any) -> float:
    """Share of words whose tag is right."""
    right, words = _right_words(labels, predictions).sum(axis=0)
    return float(right / words)


def word_accuracies(labels: Any, predictions: Any, counts: Any) -> Any:
    """Compute the share of right words of each resample [D]."""
    right, words = (counts @ _right_words(labels, predictions)).T
    return right / words


def register() -> list[mtmeta.Metric]:
    """Return the metrics of tags."""
    return [
        mtmeta.Metric("entity_f1", entity_f1, needs="words", resampled=entity_f1s, takes=("classes",)),
        mtmeta.Metric("word_accuracy", word_accuracy, needs="words", resampled=word_accuracies),
    ]
