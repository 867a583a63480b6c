"""Texts with several labels of different kinds: one pass of the encoder for each text, and a head for each label."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Protocol, cast

from pydantic import Field

import mtmeta
from mtmeta import sample
from mtmeta.plugins.tasks.multi_label import POLARITIES


class LabelColumns(Protocol):
    """What a task must have beside what every task has, to be one of several labels."""

    @property
    def label_columns(self) -> tuple[str, ...]:
        """The columns that hold the label."""

    def label_in(self, row: Mapping[str, Any]) -> Any:
        """Return the label of a row, as `mtmeta.Example` takes it; None where there is none."""


@dataclass(frozen=True, kw_only=True)
class MultiOutputTask(mtmeta.Task):
    """One text to several labels, each of its own kind and with its own head, in one pass of the encoder."""

    name = "multi_output"
    option_of_parts = "labels"

    labels: Annotated[dict[str, Any], Field(min_length=1)]
    """The labels by name, each with the options of a task, {stars: {task: ordinal, labels: 5}}, by default of a
    classification. `label` is its column, by default that of its name; an empty cell is a label that is missing."""
    text: str = "sentence"
    """Column of the text."""

    @property
    def parts(self) -> Mapping[str, mtmeta.Task]:
        return cast("Mapping[str, mtmeta.Task]", self.labels)

    @property
    def metrics(self) -> tuple[str, ...]:
        return ()  # each label has its own

    @property
    def objective(self) -> mtmeta.MultiOutput:
        weights = {name: part.loss_weight for name, part in self.parts.items()}
        return mtmeta.MultiOutput({name: part.objective for name, part in self.parts.items()}, weights)

    def for_training(self, counts: Sequence[int]) -> mtmeta.Task:
        fitted, start = {}, 0
        for name, part in self.parts.items():
            classes = len(part.objective.classes)
            fitted[name] = part.for_training(counts[start : start + classes])
            start += classes
        return replace(self, labels=fitted)

    def check(self) -> Iterator[tuple[str, str]]:
        for name, part in self.parts.items():
            unfit = part.parts or part.inputs != "single" or part.head_takes != "pooled"
            if unfit or not hasattr(part, "label_in"):
                kinds = "classification, regression, ordinal or multi_label"
                yield f"labels.{name}", f"is a {part.name}, which is no kind of label beside others; take {kinds}"
        columns = Counter(column for name, part in self.parts.items() for column in _answers(name, part))
        if twice := [column for column, count in columns.items() if count > 1]:
            yield "labels", f"give predictions two columns {mtmeta.quote(twice[0])}; call one of the labels otherwise"
        if self.head == "hf":
            yield "head", "cannot be hf, which is for one label; leave it out"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.text,)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        parts = {name: cast("LabelColumns", part) for name, part in self.parts.items()}
        columns = dict.fromkeys(column for part in parts.values() for column in part.label_columns)
        objective, absent = self.objective, Counter[str]()
        for row in file.records(self.text, *columns):
            label = tuple(part.label_in(row) for part in parts.values())
            absent.update(objective.absent(label))
            yield mtmeta.Example(row[self.text], label=label, id=row.id, line=row.line)
        if absent:
            counts = ", ".join(f"{mtmeta.quote(name)} {absent[name]:,}" for name in parts if absent[name])
            file.notes.append(f"labels are missing ({counts}); losses and metrics go by the texts that have them")

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        """Yield reviews with their `grade` from 0 to 4, `polarity`, and whether a `but` is in them (yes, no).

        Every fifth has no polarity, and every fourth no grade.
        """
        if unknown := [name for name in self.parts if name not in ("grade", "polarity", "but")]:
            known = f"its labels are grade, polarity and but, not {unknown[0]}"
            raise mtmeta.DataError("sample", f"{known}; name these, or a file of your own")
        for at, row in enumerate(sample.examples("sst", split)):
            grade = int(row.label)
            labels: dict[str, Any] = {"grade": None if at % 4 == 3 else str(grade)}
            labels["polarity"] = None if at % 5 == 4 else POLARITIES[grade]
            labels["but"] = "yes" if " but " in row.text else "no"
            yield mtmeta.Example(row.text, label=tuple(labels[name] for name in self.parts), id=row.id)


def _answers(name: str, part: mtmeta.Task) -> list[str]:
    """Return the columns that predictions of a label may have."""
    return [name, f"score_{name}", *(f"{name}_{target}" for target in part.objective.targets)]
