"""Questions with several choices of which one is right: each is read with the question, and has a score of its own.

Shapes: `B` batch, `N` choices of a question.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

import mtmeta
from mtmeta import sample

if TYPE_CHECKING:
    from torch import Tensor

Columns = Annotated[tuple[str, ...], Field(min_length=2)]
Names = Annotated[tuple[str, ...], Field(min_length=1)]


@dataclass(frozen=True)
class Choice(mtmeta.Objective):
    """One of N choices: outputs [B, N], cross entropy of the softmax over the choices of a question.

    `choices` are their names; a label may be the number of a choice, from 0, as well.
    """

    choices: tuple[str, ...]

    @cached_property
    def _one(self) -> mtmeta.Classification:
        """The places of the choices as classes."""
        return mtmeta.Classification(self.choices)

    @property
    def outputs(self) -> int:
        return len(self.choices)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.choices

    @property
    def takes_temperature(self) -> bool:
        return True

    def parse(self, label: object) -> int:
        """Return the place of the choice that a label names, or else numbers."""
        number = mtmeta.Classification(len(self.choices))
        if str(label).strip() not in self.choices:
            try:
                return number.parse(label)
            except ValueError:
                pass
        return self._one.parse(label)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self._one.loss(outputs, labels)

    def soft_loss(self, outputs: Tensor, labels: Tensor, teacher: Tensor, trust: float) -> Tensor:
        return self._one.soft_loss(outputs, labels, teacher, trust)

    def decode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(dim=-1)

    def export(self) -> dict[str, object]:
        return {"objective": "classification", "labels": list(self.choices)}


@dataclass(frozen=True, kw_only=True)
class MultipleChoiceTask(mtmeta.Task):
    """A question, or any other text, with several choices of which one is right.

    The encoder reads the question with each choice in a sequence of its own, so of N choices N sequences an example.
    Every row has the same number of choices.
    """

    name = "multiple_choice"
    inputs = "choices"

    question: str = "question"
    """Column of the text that all choices of a row have in common."""
    choices: str | Columns
    """Columns of the choices; or the one column of JSON or Parquet that holds a list of them."""
    label: str = "label"
    """Column that tells the right choice: by the name of its column, or by its number in `choices`, from 0."""
    labels: Columns | Annotated[int, Field(ge=2, le=1000)] | None = None
    """How data files name the choices, in their order, where it is neither, as ["1", "2"] or [A, B, C, D]. Needed for a
    list of choices, of which it may be the number."""
    metrics: Names = ("accuracy",)
    """Metrics; the first selects."""

    @property
    def objective(self) -> Choice:
        return Choice(self._names)

    @property
    def _names(self) -> tuple[str, ...]:
        """What the choices are called, as many as each row has."""
        if isinstance(self.labels, int):
            return tuple(map(str, range(self.labels)))
        return self.labels or (self.choices if isinstance(self.choices, tuple) else ("0", "1"))  # `check` asks for them

    def check(self) -> Iterator[tuple[str, str]]:
        given = [(key, names) for key in ("choices", "labels") if isinstance(names := getattr(self, key), tuple)]
        for option, names in given:
            if twice := [name for name, count in Counter(names).items() if count > 1]:
                yield option, f"name {mtmeta.quote(twice[0])} twice; each choice has one name"
        if isinstance(self.choices, str) and self.labels is None:
            yield "labels", "are needed for choices in one column: how many there are, or how data files name them"
        if isinstance(self.choices, tuple) and len(self._names) != len(self.choices):
            message = f"name {len(self._names)} of {len(self.choices)} choices; give one for each, in their order"
            yield "labels", message
        if self.head == "hf":
            yield "head", "cannot be hf, which answers for one sequence; leave it out"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.question, *((self.choices,) if isinstance(self.choices, str) else self.choices))

    @property
    def text_count(self) -> int:
        return 1 + len(self._names)

    def texts_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        if not isinstance(self.choices, str):
            return super().texts_of(row)
        choices = row[self.choices]
        if not isinstance(choices, list) or not all(isinstance(each, str) for each in choices):
            raise ValueError(f"field {mtmeta.quote(self.choices)} is no list of texts, as JSON and Parquet have them")
        return (row[self.question], *choices)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.records(*self.columns, self.label):
            try:
                question, *choices = self.texts_of(row)
            except ValueError as error:
                file.bad.add(row.line, str(error), "nested value")
                continue
            yield mtmeta.Example(question, label=row[self.label], id=row.id, line=row.line, choices=tuple(choices))

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        """Yield sentences with two others, of which one says nearly the same."""
        if len(self._names) != 2:
            raise mtmeta.DataError("sample", "its questions have two choices; name two, or a file of your own")
        rows = [row for row in sample.examples("sts", split) if row.pair is not None]
        close = [row for row in rows if row.label >= 4]
        for number, row in enumerate(close):
            other = close[(number + 1) % len(close)].pair
            right = number % 2
            choices = (row.pair, other) if right == 0 else (other, row.pair)
            yield mtmeta.Example(row.text, label=self.objective.choices[right], id=row.id, choices=choices)  # type: ignore[arg-type]
