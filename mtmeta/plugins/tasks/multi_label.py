"""Texts with any number of labels each: a sigmoid for each label, and thresholds that are tuned on dev.

Shapes: `B` batch, `N` examples of a split, `L` labels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

import mtmeta
from mtmeta import sample
from mtmeta.plugins.tasks.generic import Classes, Names, check_classes

if TYPE_CHECKING:
    from torch import Tensor

POLARITIES = ("negative", "negative", "neutral", "positive", "positive")  # of the sample's reviews, by their grade
FLAGS = {"1": True, "1.0": True, "true": True, "yes": True} | {"0": False, "0.0": False, "false": False, "no": False}


@dataclass(frozen=True)
class MultiLabel(mtmeta.Objective):
    """A set of L labels: outputs [B, L], the mean over labels of binary cross entropy with logits.

    `labels` is a count (labels 0..L-1), their names, or the name of each label that data files have; `separator` stands
    between them where data files write sets.
    """

    labels: int | tuple[str, ...] | Mapping[str, str]
    separator: str = ","
    threshold: float | None = None
    """The probability above which a label is predicted; None: .5, and once tuned one for each label."""
    thresholds: tuple[float, ...] = ()
    """Tuned: the logits that those of the labels have to be above."""
    shared: bool = False
    """Whether one threshold is tuned for all labels."""

    labelled = "row"

    @cached_property
    def _one(self) -> mtmeta.Classification:
        """The labels one by one."""
        return mtmeta.Classification(self.labels)

    @property
    def width(self) -> int:
        return self._one.outputs

    @property
    def outputs(self) -> int:
        return self._one.outputs

    @property
    def classes(self) -> tuple[str, ...]:
        return self._one.classes

    def parse(self, label: object) -> tuple[int, ...]:
        """Return a 1 for each label in the set, else 0: of names with separators, of a list of them, of 0s and 1s."""
        if label is None:
            return self._one.parse("")  # type: ignore[return-value]  # it raises
        names = label.split(self.separator) if isinstance(label, str) else label
        if isinstance(label, str) and not label.strip():
            names = ()
        if not isinstance(names, list | tuple):
            names = (names,)
        members = {self._one.parse(str(name)) for name in names}
        return tuple(int(at in members) for at in range(self.width))

    def show(self, prediction: Any) -> str:
        return self.separator.join(name for name, has in zip(self.classes, prediction, strict=True) if has)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        from torch.nn import functional

        needed = [len(labels), self.width]
        if list(outputs.shape) != needed or list(labels.shape) != needed:
            shapes = f"outputs {list(outputs.shape)} and labels {list(labels.shape)}"
            raise ValueError(f"{shapes}, the loss needs {needed} of both")
        logits = outputs.float() if outputs.dtype.itemsize < 8 else outputs
        return functional.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))

    def decode(self, outputs: Tensor) -> Tensor:
        return (outputs > outputs.new_tensor(self.cuts)).long()

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.float().sigmoid()

    @property
    def cuts(self) -> tuple[float, ...]:
        """The logit of each label that its own has to be above."""
        at = 0.0 if self.threshold is None else math.log(self.threshold / (1 - self.threshold))
        return self.thresholds or (at,) * self.width

    @property
    def tunes(self) -> bool:
        return self.threshold is None

    def tune(self, outputs: Tensor, labels: Tensor) -> Mapping[str, Tensor]:
        """Return for each label the threshold with the best F1, or of all labels the one with the best micro F1.

        Of several that are as good it is the one next to p = .5.
        """
        import torch

        if self.shared:
            return {"thresholds": best_threshold(outputs.flatten(), labels.flatten()).expand(self.width).clone()}
        return {"thresholds": torch.stack([best_threshold(outputs[:, at], labels[:, at]) for at in range(self.width)])}

    def tuned(self, numbers: Mapping[str, Tensor]) -> MultiLabel:
        return replace(self, thresholds=tuple(numbers["thresholds"].tolist()))

    def confusion(self, labels: Any, predictions: Any) -> mtmeta.Confusion:
        """Return of each label, and of all, the counts, precision, recall and F1; and its threshold once it has one."""
        counts = zip(labels.sum(axis=0), predictions.sum(axis=0), (labels * predictions).sum(axis=0), strict=True)
        rows = [(name, _figures(*map(int, each))) for name, each in zip(self.classes, counts, strict=True)]
        columns = ["labelled", "predicted", "right", "precision", "recall", "F1"]
        if self.thresholds:
            columns.append("cut")
            chances = [1 / (1 + math.exp(-cut)) for cut in self.thresholds]
            rows = [(name, (*figures, chance)) for (name, figures), chance in zip(rows, chances, strict=True)]
        return mtmeta.Confusion("labels, by how often each was given and predicted", tuple(columns), tuple(rows))

    def export(self) -> Mapping[str, Any]:
        return {"objective": "multi_label", "labels": list(self.classes), "thresholds": list(self.cuts)}


def best_threshold(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the threshold for scores [N], labels [N] of 0 and 1, that gives the best F1: a float32 scalar.

    Scores above it are predicted. It stands half way between two scores, or at 0 where that gives the same predictions;
    of several that are as good the one next to 0 counts. Without an example that has the label it is 0.
    """
    import torch

    positives = int(labels.sum())
    if not positives:
        return torch.zeros(())
    ordered, order = scores.float().sort(descending=True, stable=True)
    above = torch.arange(1, len(scores) + 1, dtype=torch.float64)  # predicted where the threshold is below this score
    f1 = 2 * labels[order].double().cumsum(0) / (above + positives)
    below = torch.cat([ordered[1:], ordered.new_full((1,), -math.inf)])
    apart = ordered > below  # equal scores go together
    middle = ((ordered.double() + below.double()) / 2).float()
    middle[-1] = ordered[-1] - 1.0
    middle = torch.where(middle >= ordered, below, middle)  # of neighbours in fp32
    middle = torch.where((below <= 0) & (ordered > 0), torch.zeros_like(middle), middle)
    best = apart & (f1 == f1[apart].max())
    return middle[best][middle[best].abs().argmin()]


def _figures(labelled: int, predicted: int, right: int) -> tuple[float, ...]:
    """Return counts, precision, recall and F1; of nothing they are 0."""
    shares = [2.0 * right, float(right), float(right)]
    totals = [labelled + predicted, predicted, labelled]
    f1, precision, recall = (share / total if total else 0.0 for share, total in zip(shares, totals, strict=True))
    return labelled, predicted, right, precision, recall, f1


@dataclass(frozen=True, kw_only=True)
class MultiLabelTask(mtmeta.Task):
    """One text to any number of labels."""

    name = "multi_label"

    labels: Classes
    """Names of the labels; or their number for labels 0, 1, ...; or the names of labels, {0: sadness, 1: joy}, or a
    file of them, from data_root, as `classification` has it. Never learned from a file of examples."""
    text: str = "sentence"
    """Column of the text."""
    label: str | Names = "labels"
    """Column of the labels, with `separator` between them (in JSON a list, too); or a list of columns, one for each of
    `labels` in their order, that hold 0 or 1."""
    separator: Annotated[str, Field(min_length=1, max_length=8)] = ","
    """What stands between labels in one column."""
    empty: bool = False
    """Whether an empty cell means that the text has none of the labels; else it is a bad row."""
    threshold: Literal["tuned", "shared"] | Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = "tuned"
    """The probability above which a label is predicted. `tuned`: of each label its own, with the best F1 on the split
    that selects (`evaluation.select_on`), kept with the best weights, which is for macro F1. `shared`: one of all
    labels, with the best micro F1 there."""
    metrics: Names = ("micro_f1", "macro_f1", "label_ranking_ap")
    """Metrics; the first selects."""

    @property
    def objective(self) -> MultiLabel:
        if isinstance(self.labels, str):
            raise ValueError(f"labels in {mtmeta.quote(self.labels)} are read with the recipe")
        given = None if isinstance(self.threshold, str) else self.threshold
        return MultiLabel(self.labels, self.separator, given, shared=self.threshold == "shared")

    def check(self) -> Iterator[tuple[str, str]]:
        yield from check_classes(self.labels)
        names = self.objective.classes
        if isinstance(self.label, tuple) and len(self.label) != len(names):
            yield "label", f"names {len(self.label)} columns for {len(names)} labels; give one for each, in their order"
        given = [*self.labels, *names] if isinstance(self.labels, dict) else names
        if parted := [name for name in given if self.separator in name]:
            yield "separator", f"{self.separator!r} stands within label {mtmeta.quote(parted[0])}; choose another"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.records(self.text, *self.label_columns):
            yield mtmeta.Example(row[self.text], label=self.label_in(row), id=row.id, line=row.line)

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that hold the labels."""
        return (self.label,) if isinstance(self.label, str) else self.label

    def label_in(self, row: Mapping[str, Any]) -> Any:
        """Return the set of labels of a row, None where its cell is empty and that does not mean none of them."""
        if not isinstance(self.label, str):
            return self._flagged(row)
        label = row[self.label]
        if isinstance(label, list):
            label = tuple(label)
        return label if label or self.empty else None

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        """Yield two reviews in one text each, with the labels `negative`, `neutral` and `positive` of both."""
        known = tuple(dict.fromkeys(POLARITIES))
        if set(self.objective.classes) != set(known):
            raise mtmeta.DataError("sample", f"its labels are {', '.join(known)}; name these, or a file of your own")
        rows = sample.examples("sst", split)
        for one, other in zip(rows, [*rows[1:], *rows[:1]], strict=True):
            label = tuple(dict.fromkeys(POLARITIES[int(row.label)] for row in (one, other)))
            yield mtmeta.Example(f"{one.text} {other.text}", label=label, id=one.id)

    def _flagged(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the labels whose columns hold 1; one that holds neither 0 nor 1 is no label, as the message says."""
        found = []
        for name, column in zip(self.objective.classes, self.label, strict=True):
            value = str(row[column]).strip().lower()
            if value not in FLAGS:
                found.append(f"{column}={row[column]}")
            elif FLAGS[value]:
                found.append(name)
        return tuple(found)
