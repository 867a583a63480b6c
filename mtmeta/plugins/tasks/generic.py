"""Tasks that need no Python: columns, labels and metric come from the recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

import mtmeta

if TYPE_CHECKING:
    from torch import nn

Classes = Annotated[tuple[str, ...], Field(min_length=2)] | Annotated[int, Field(ge=2, le=100_000)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


def _check_classes(labels: tuple[str, ...] | int) -> Iterator[tuple[str, str]]:
    twice = [label for label, count in Counter(labels).items() if count > 1] if isinstance(labels, tuple) else []
    if twice:
        yield "labels", f"name {mtmeta.quote(twice[0])} twice; each class has one name"


def _check_range(low: float, high: float) -> Iterator[tuple[str, str]]:
    if low >= high:
        yield "low", f"must be below high, which is {high:g}, found {low:g}"


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(mtmeta.Task):
    """One text to one of several classes."""

    name = "classification"

    labels: Classes
    """Class names, or their number for labels 0, 1, ... ; never learned from a file."""
    text: str = "sentence"
    """Column of the text."""
    label: str = "label"
    """Column of the label."""
    metrics: Names = ("accuracy", "macro_f1")
    """Metrics; the first selects."""

    @property
    def objective(self) -> mtmeta.Classification:
        return mtmeta.Classification(self.labels)

    def check(self) -> Iterator[tuple[str, str]]:
        return _check_classes(self.labels)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows(self.text, self.label):
            yield mtmeta.Example(row[self.text], label=row[self.label], id=row.id, line=row.line)


@dataclass(frozen=True, kw_only=True)
class _PairColumns(mtmeta.PairTask):
    text: str = "sentence1"
    """Column of the first text."""
    pair: str = "sentence2"
    """Column of the second text."""
    label: str = "label"
    """Column of the label."""

    @property
    def columns(self) -> tuple[str, ...]:
        return self.text, self.pair

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows(self.text, self.pair, self.label):
            yield mtmeta.Example(row[self.text], row[self.pair], label=row[self.label], id=row.id, line=row.line)


@dataclass(frozen=True, kw_only=True)
class PairClassificationTask(_PairColumns):
    """Two texts to one of several classes."""

    name = "pair_classification"

    labels: Classes
    """Class names, or their number for labels 0, 1, ... ; never learned from a file."""
    metrics: Names = ("accuracy", "macro_f1")
    """Metrics; the first selects."""

    @property
    def objective(self) -> mtmeta.Classification:
        return mtmeta.Classification(self.labels)

    def check(self) -> Iterator[tuple[str, str]]:
        return _check_classes(self.labels)


@dataclass(frozen=True, kw_only=True)
class SimilarityTask(_PairColumns):
    """Two texts to a similarity, by scaled cosine (or, cross-encoded, by one Linear)."""

    name = "similarity"

    low: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Least label."""
    high: mtmeta.PositiveFloat = 5.0
    """Greatest label, the score of identical texts."""
    activation: Literal["relu", "none"] = "relu"
    """`relu`: no gradient where the cosine is negative; `none`: clamped at prediction only."""
    metrics: Names = ("pearson", "spearman")
    """Metrics; the first selects."""

    @property
    def objective(self) -> mtmeta.Regression:
        return mtmeta.Regression(self.low, self.high)

    def check(self) -> Iterator[tuple[str, str]]:
        return _check_range(self.low, self.high)

    def build_head(self, hidden_size: int) -> nn.Module:
        if self.pair_mode == "cross":
            return mtmeta.LinearHead(hidden_size)
        return mtmeta.CosineHead(hidden_size, scale=self.high, activation=self.activation)


@dataclass(frozen=True, kw_only=True)
class RegressionTask(mtmeta.Task):
    """One text to a number."""

    name = "regression"

    low: Annotated[float, Field(allow_inf_nan=False)]
    """Least label; predictions are clamped to it."""
    high: Annotated[float, Field(allow_inf_nan=False)]
    """Greatest label."""
    text: str = "sentence"
    """Column of the text."""
    label: str = "label"
    """Column of the label."""
    metrics: Names = ("pearson", "spearman")
    """Metrics; the first selects."""

    @property
    def objective(self) -> mtmeta.Regression:
        return mtmeta.Regression(self.low, self.high)

    def check(self) -> Iterator[tuple[str, str]]:
        return _check_range(self.low, self.high)

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows(self.text, self.label):
            yield mtmeta.Example(row[self.text], label=row[self.label], id=row.id, line=row.line)

    def build_head(self, hidden_size: int) -> nn.Module:
        return mtmeta.MLPHead(hidden_size, outputs=None)
