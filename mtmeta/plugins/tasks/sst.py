"""Sentiment of one sentence (paper, section 4.1; Socher et al. 2013)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import mtmeta
from mtmeta import sample


@dataclass(frozen=True, kw_only=True)
class Sst(mtmeta.Task):
    """One sentence to five grades, very negative to very positive; columns `sentence`, `sentiment`."""

    name = "sst"
    objective = mtmeta.Classification(labels=5)
    metrics = ("accuracy", "macro_f1")

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows("sentence", "sentiment"):
            yield mtmeta.Example(row["sentence"], label=row["sentiment"], id=row.id, line=row.line)

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        for row in sample.examples("sst", split):
            yield mtmeta.Example(row.text, label=row.label, id=row.id)
