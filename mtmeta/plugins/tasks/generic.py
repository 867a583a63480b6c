"""Tasks that need no Python: columns, labels and metric come from the recipe."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

import mtmeta
from mtmeta import sample
from mtmeta.plugins.tasks.targets import Targets

if TYPE_CHECKING:
    from torch import nn

Classes = (
    Annotated[tuple[str, ...], Field(min_length=2)]
    | Annotated[int, Field(ge=2, le=100_000)]
    | Annotated[dict[str, str], Field(min_length=2)]
    | Annotated[str, Field(min_length=1)]
)
Names = Annotated[tuple[str, ...], Field(min_length=1)]
Columns = Annotated[tuple[str, ...], Field(min_length=2)]
Number = Annotated[float, Field(allow_inf_nan=False)]
Bound = Number | Annotated[tuple[Number, ...], Field(min_length=2)]


def check_classes(labels: Classes) -> Iterator[tuple[str, str]]:
    """Yield (option, what is wrong) of class names that are not one for each class."""
    names = labels.values() if isinstance(labels, dict) else labels if isinstance(labels, tuple) else ()
    twice = [label for label, count in Counter(names).items() if count > 1]
    if twice:
        yield "labels", f"name {mtmeta.quote(twice[0])} twice; each class has one name"
    given = labels if isinstance(labels, dict) else {}
    for label, name in given.items():
        if not name.strip():
            yield "labels", f"give {mtmeta.quote(label)} an empty name"
        elif name in given and name != label:
            yield "labels", f"give {mtmeta.quote(label)} the name {mtmeta.quote(name)}, which is another label"


def _classification(labels: Classes, loss: mtmeta.ClassLoss | None, out_of_scope: str | None) -> mtmeta.Classification:
    if isinstance(labels, str):
        raise ValueError(f"labels in {mtmeta.quote(labels)} are read with the recipe")
    named = loss.named(labels) if loss and isinstance(labels, dict) else loss
    return mtmeta.Classification(labels, named, out_of_scope)


def _fitted(objective: mtmeta.Classification, counts: Sequence[int]) -> mtmeta.ClassLoss | None:
    return objective.trained_by.fitted(objective.classes, counts) if objective.trained_by else None


def _check_objective(objective: mtmeta.Classification) -> Iterator[tuple[str, str]]:
    if objective.trained_by:
        yield from objective.trained_by.faults(objective.classes)
    label, known = objective.out_of_scope, (*objective.classes, *objective.tokens)
    if label is not None and label not in known:
        yield "out_of_scope", f"is no label of the task: {mtmeta.quote(label)}{mtmeta.did_you_mean(label, known)}"


def _check_range(low: float, high: float) -> Iterator[tuple[str, str]]:
    if low >= high:
        yield "low", f"must be below high, which is {high:g}, found {low:g}"


def _for_each(bound: float | tuple[float, ...], count: int) -> tuple[float, ...]:
    """Return a bound of each number: one for all of them, or each its own."""
    return bound if isinstance(bound, tuple) else (bound,) * count


class LabelColumn:
    """A task whose label stands in one column: what it needs to be one of several labels of a text."""

    label: str

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that hold the label."""
        return (self.label,)

    def label_in(self, row: Mapping[str, Any]) -> Any:
        """Return the label of a row."""
        return row[self.label]


@dataclass(frozen=True, kw_only=True)
class ClassificationTask(LabelColumn, mtmeta.Task):
    """One text to one of several classes."""

    name = "classification"

    labels: Classes
    """Class names; or their number for labels 0, 1, ...; or the names of labels, {0: sadness, 1: joy}, or a file of
    them, from data_root: JSON, or LABEL, tab, NAME a line, or one name a line for 0, 1, ..."""
    text: str = "sentence"
    """Column of the text."""
    label: str = "label"
    """Column of the label."""
    metrics: Names = ("accuracy", "macro_f1")
    """Metrics; the first selects."""
    out_of_scope: str | None = None
    """The label, one of `labels`, that means none of the others, as `oos` of CLINC does; `oos_recall` is its recall."""
    loss: mtmeta.ClassLoss | None = None
    """What training descends, as {weights: balanced}; default: cross entropy, which tables show whatever it is. For its
    options see `mtmeta show section tasks.TASK.loss`."""

    @property
    def objective(self) -> mtmeta.Classification:
        return _classification(self.labels, self.loss, self.out_of_scope)

    def for_training(self, counts: Sequence[int]) -> mtmeta.Task:
        return replace(self, loss=_fitted(self.objective, counts))

    def check(self) -> Iterator[tuple[str, str]]:
        yield from check_classes(self.labels)
        yield from _check_objective(self.objective)

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
    """Class names; or their number for labels 0, 1, ...; or the names of labels, {0: sadness, 1: joy}, or a file of
    them, from data_root: JSON, or LABEL, tab, NAME a line, or one name a line for 0, 1, ..."""
    metrics: Names = ("accuracy", "macro_f1")
    """Metrics; the first selects."""
    out_of_scope: str | None = None
    """The label, one of `labels`, that means none of the others, as `oos` of CLINC does; `oos_recall` is its recall."""
    loss: mtmeta.ClassLoss | None = None
    """What training descends, as {weights: balanced}; default: cross entropy, which tables show whatever it is. For its
    options see `mtmeta show section tasks.TASK.loss`."""

    @property
    def objective(self) -> mtmeta.Classification:
        return _classification(self.labels, self.loss, self.out_of_scope)

    def for_training(self, counts: Sequence[int]) -> mtmeta.Task:
        return replace(self, loss=_fitted(self.objective, counts))

    def check(self) -> Iterator[tuple[str, str]]:
        yield from check_classes(self.labels)
        yield from _check_objective(self.objective)


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
    """One text to a number, or to several."""

    name = "regression"

    low: Bound
    """Least label; predictions are clamped to it. Of several columns one for all, or a list."""
    high: Bound
    """Greatest label, in the same way."""
    text: str = "sentence"
    """Column of the text."""
    label: str | Columns = "label"
    """Column of the label; or a list of columns, of several numbers for each text, of which some may be empty."""
    metrics: Names = ("pearson", "spearman")
    """Metrics; the first selects. Of several numbers each is the mean over these."""

    @property
    def objective(self) -> mtmeta.Objective:
        if isinstance(self.label, tuple):
            count = len(self.label)
            return Targets(self.label, _for_each(self.low, count), _for_each(self.high, count))
        ((low, *_), (high, *_)) = (_for_each(bound, 1) for bound in (self.low, self.high))  # `check` refuses lists
        return mtmeta.Regression(low, high)

    def check(self) -> Iterator[tuple[str, str]]:
        columns = self.label if isinstance(self.label, tuple) else (self.label,)
        if twice := [name for name, count in Counter(columns).items() if count > 1]:
            yield "label", f"names column {mtmeta.quote(twice[0])} twice"
        unfit = False
        for option, bound in (("low", self.low), ("high", self.high)):
            if isinstance(bound, tuple) and (len(bound) != len(columns) or isinstance(self.label, str)):
                unfit = True
                yield option, f"has {len(bound)} numbers for {len(columns)} columns; give one for each, or one for all"
        if not unfit:
            pairs = zip(_for_each(self.low, len(columns)), _for_each(self.high, len(columns)), strict=True)
            yield from dict.fromkeys(fault for pair in pairs for fault in _check_range(*pair))
        if self.head == "hf" and isinstance(self.label, tuple):
            yield "head", "cannot be hf, for label names several columns; leave it out"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        if isinstance(self.label, tuple):
            yield from self._rows(file, self.label)
            return
        for row in file.rows(self.text, self.label):
            yield mtmeta.Example(row[self.text], label=row[self.label], id=row.id, line=row.line)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that hold the label."""
        return self.label if isinstance(self.label, tuple) else (self.label,)

    def label_in(self, row: Mapping[str, Any]) -> Any:
        """Return the label of a row: a text, or of several columns as many."""
        return tuple(row[name] for name in self.label) if isinstance(self.label, tuple) else row[self.label]

    def _rows(self, file: mtmeta.DataFile, columns: tuple[str, ...]) -> Iterator[mtmeta.Example]:
        """Yield the examples of a file with several numbers in a row, and note how many are missing."""
        absent = Counter[str]()
        for row in file.records(self.text, *columns):
            label = self.label_in(row)
            absent.update(name for name, value in zip(columns, label, strict=True) if mtmeta.is_missing(value))
            yield mtmeta.Example(row[self.text], label=label, id=row.id, line=row.line)
        if absent:
            counts = ", ".join(f"{mtmeta.quote(name)} {absent[name]:,}" for name in columns if absent[name])
            file.notes.append(f"numbers are missing ({counts}); the loss and metrics go by those that are there")

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        """Yield reviews with their grade from 0 to 4; for two columns two reviews in a text, with the grade of each."""
        if isinstance(self.label, tuple) and len(self.label) != 2:
            raise mtmeta.DataError("sample", "its texts have two numbers; name two columns, or a file of your own")
        if max(_for_each(self.low, 1)) > 0 or min(_for_each(self.high, 1)) < 4:
            raise mtmeta.DataError(
                "sample", "its grades are from 0 to 4; give low: 0 and high: 4, or a file of your own"
            )
        rows = sample.examples("sst", split)
        for one, other in zip(rows, [*rows[1:], *rows[:1]], strict=True):
            if isinstance(self.label, str):
                yield mtmeta.Example(one.text, label=one.label, id=one.id)
            else:
                yield mtmeta.Example(f"{one.text} {other.text}", label=(one.label, other.label), id=one.id)
