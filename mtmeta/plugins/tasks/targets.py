"""Several numbers for each text, some of which may be missing.

Shapes: `B` batch, `L` numbers of a text.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import mtmeta
from mtmeta.plugins.distance_metrics import mae, rmse
from mtmeta.plugins.metrics import pearson, spearman

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Targets(mtmeta.Objective):
    """L numbers, each within its bounds: outputs [B, L], squared error, the mean over those that a text has.

    Of a batch it is the mean over its texts, so that each counts alike, however many of its numbers are there.
    """

    names: tuple[str, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]

    labelled = "row"
    partial = True

    @property
    def targets(self) -> tuple[str, ...]:
        return self.names

    @property
    def width(self) -> int:
        return len(self.names)

    @property
    def outputs(self) -> int:
        return len(self.names)

    @cached_property
    def _each(self) -> tuple[mtmeta.Regression, ...]:
        """The numbers one by one."""
        return tuple(mtmeta.Regression(low, high) for low, high in zip(self.low, self.high, strict=True))

    def parse(self, label: object) -> tuple[float, ...]:
        """Return the numbers, nan where one is missing, of a list of them or of a text with spaces between them."""
        values = label.split() if isinstance(label, str) else label
        if not isinstance(values, list | tuple) or len(values) != self.width:
            found = len(values) if isinstance(values, list | tuple) else "no"
            raise ValueError(f"label has {found} numbers, expected {self.width}")
        row = tuple(self._one(at, value) for at, value in enumerate(values))
        if all(map(math.isnan, row)):
            self._each[0].parse("")  # it raises
        return row

    def _one(self, at: int, value: object) -> float:
        if mtmeta.is_missing(value):
            return math.nan
        try:
            return self._each[at].parse(value)
        except ValueError as error:
            raise ValueError(f"column {mtmeta.quote(self.names[at])}: {error}") from None

    def show(self, prediction: Any) -> str:
        return " ".join(f"{value:.6g}" for value in prediction)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        import torch

        needed = [len(labels), self.width]
        if list(outputs.shape) != needed or list(labels.shape) != needed:
            shapes = f"outputs {list(outputs.shape)} and labels {list(labels.shape)}"
            raise ValueError(f"{shapes}, the loss needs {needed} of both")
        values = outputs.float() if outputs.dtype.itemsize < 8 else outputs
        there = ~labels.isnan()
        wanted = torch.where(there, labels.to(values.dtype), values.detach())  # no error, and no gradient, of others
        errors = (values - wanted).square().sum(dim=1) / there.sum(dim=1)
        return errors.mean()

    def decode(self, outputs: Tensor) -> Tensor:
        values = outputs.float()
        return values.clamp(values.new_tensor(self.low), values.new_tensor(self.high))

    def confusion(self, labels: Any, predictions: Any) -> mtmeta.Confusion:
        """Return of each number how many texts have it, and how well it is predicted."""
        import numpy as np

        rows = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a constant
            for name, own, found in zip(self.names, labels.T, predictions.T, strict=True):
                there = ~np.isnan(own)
                pair, figures = (own[there], found[there]), [0.0] * 4
                if there.any():
                    figures = [pearson(*pair), spearman(*pair), rmse(*pair, classes=()), mae(*pair, classes=())]
                rows.append((name, (int(there.sum()), *figures)))
        columns = ("labelled", "pearson", "spearman", "rmse", "mae")
        return mtmeta.Confusion("how each number is predicted", columns, tuple(rows))

    def export(self) -> Mapping[str, Any]:
        return {"objective": "targets", "labels": list(self.names), "low": list(self.low), "high": list(self.high)}
