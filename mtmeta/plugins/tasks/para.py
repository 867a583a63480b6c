"""Paraphrase detection (paper, section 4.1; Quora question pairs)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import mtmeta
from mtmeta import sample


@dataclass(frozen=True, kw_only=True)
class Para(mtmeta.PairTask):
    """Two sentences, paraphrases or not; columns `sentence1`, `sentence2`, `is_duplicate`."""

    name = "para"
    objective = mtmeta.Binary()
    metrics = ("accuracy", "macro_f1")

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows("sentence1", "sentence2", "is_duplicate"):
            one, two, label = row["sentence1"], row["sentence2"], row["is_duplicate"]
            yield mtmeta.Example(one, two, label=label, id=row.id, line=row.line)

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        for row in sample.examples("para", split):
            yield mtmeta.Example(row.text, row.pair, label=row.label, id=row.id)
