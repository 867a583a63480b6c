"""Semantic textual similarity (paper, section 4.1; Agirre et al. 2013)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import mtmeta
from mtmeta import sample

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True, kw_only=True)
class Sts(mtmeta.PairTask):
    """Two sentences to a similarity from 0 to 5; columns `sentence1`, `sentence2`, `similarity`."""

    name = "sts"
    objective = mtmeta.Regression(low=0.0, high=5.0)
    metrics = ("pearson", "spearman")

    activation: Literal["relu", "none"] = "relu"
    """`relu` (paper): no gradient where the cosine is negative; `none`: clamped at prediction only."""

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows("sentence1", "sentence2", "similarity"):
            yield mtmeta.Example(row["sentence1"], row["sentence2"], label=row["similarity"], id=row.id, line=row.line)

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        for row in sample.examples("sts", split):
            yield mtmeta.Example(row.text, row.pair, label=row.label, id=row.id)

    def build_head(self, hidden_size: int) -> nn.Module:
        if self.pair_mode == "cross":
            return mtmeta.LinearHead(hidden_size)
        return mtmeta.CosineHead(hidden_size, scale=self.objective.high, activation=self.activation)
