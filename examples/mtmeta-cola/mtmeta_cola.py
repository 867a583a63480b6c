"""Linguistic acceptability (Warstadt et al. 2019): a task and its metric as an mtmeta plugin."""

from collections.abc import Iterable
from typing import Any

import mtmeta


class Cola(mtmeta.Task):
    """One sentence, acceptable or not; columns `sentence`, `label` (0 or 1)."""

    name = "cola"
    objective = mtmeta.Classification(labels=2)
    metrics = ("cola_matthews", "accuracy")

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows("sentence", "label"):
            yield mtmeta.Example(row["sentence"], label=row["label"], id=row.id, line=row.line)


def cola_matthews(labels: Any, predictions: Any) -> float:
    """Matthews correlation, which for two classes is Pearson's; 0 where either side is constant."""
    import numpy as np

    constant = np.ptp(labels) == 0 or np.ptp(predictions) == 0
    return 0.0 if constant else float(np.corrcoef(labels, predictions)[0, 1])


@mtmeta.hookimpl
def register_tasks() -> list[type[mtmeta.Task]]:
    return [Cola]


@mtmeta.hookimpl
def register_metrics() -> list[mtmeta.Metric]:
    return [mtmeta.Metric("cola_matthews", cola_matthews)]
