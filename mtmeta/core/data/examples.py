"""Examples to flat arrays: labels become numbers, bad examples are set apart, texts become token ids.

Everything goes block by block, so that a file of any length needs the memory of a block.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.contracts import Example, Task, count_texts
from mtmeta.core.data.tokens import BLOCK, WithTokenizer, append_names, append_texts, append_words, hashes
from mtmeta.core.errors import DataError, NoExamples, PluginError
from mtmeta.core.registry.guard import blame, fault
from mtmeta.core.storage.cache import Writer
from mtmeta.core.tables.bad_rows import MISSING, BadRow, BadRowError, BadRowKind, BadRows
from mtmeta.core.tables.data_file import DataFile
from mtmeta.core.wording import plural, quote, safe

BAD_ROWS_SHOWN = 5
MAX_PARSED = 10_000  # different labels remembered with what they mean
MAX_UNSEEN = 1000  # different labels that are no class and are told apart
MARKS = MISSING | {"-1", "-1.0", "-100"}  # that stand for no label where they are no class
Label = int | float | NDArray[np.float64]
_Refusal = tuple[str, BadRowKind]  # the reason, and its kind


class NoGoodRows(DataError):
    """All rows of a file that is read without its bad ones are bad; `strict` is what else is said of them."""

    def __init__(self, file: str, bad: Sequence[BadRow], count: int) -> None:
        super().__init__(file, f"no good rows, {count} bad ones")
        self.strict = bad_rows(file, bad, count)


def write_examples(
    writer: Writer,
    task: Task,
    shown: str,
    examples: Iterable[Example],
    backbone: WithTokenizer,
    file: DataFile | None = None,
    *,
    strict: bool,
    open_labels: bool = False,
) -> dict[str, Any]:
    """Write the arrays of all good examples, block by block; returns what is kept beside them.

    With `strict`, raises DataError for bad rows: those of `examples`, and those that `file` could not read; `shown` is
    the file's name in messages. With `open_labels` a label that is no class makes no bad row, unless all are such: they
    are -1, -2 and so on.
    """
    parser, inputs, remaining = _Parser(task, open_labels=open_labels), task.inputs, iter(examples)
    unreadable = 0
    while True:
        with blame(task, "task"):  # an example of a plugin's may hold anything
            block = list(islice(remaining, BLOCK))
            rows = parser.parse(block)
        skipped = parser.bad.total + (file.bad.total if file else 0)
        if not block:
            break
        if not rows.labels or (strict and skipped):  # it ends in an error: only the count of bad rows is still open
            continue
        append_names(writer, rows.ids)
        writer.append("texts", hashes(rows.texts, *rows.others))
        if parser.words:
            writer.append("labels", np.concatenate(rows.labels))
            unreadable += append_words(writer, backbone, rows.texts)
        else:
            writer.append("labels", np.array(rows.labels, dtype=np.float64))
            how: dict[str, Any] = {"long": task.long, "both_orders": task.both_orders}
            append_texts(writer, inputs, backbone, rows.texts, *rows.others, **how)
    bad = parser.bad.merged(file.bad) if file else parser.bad
    if skipped and strict:
        raise bad_rows(shown, bad, skipped)
    if parser.unknown and parser.unknown.total == parser.good:  # it is of other labels altogether
        raise bad_rows(shown, parser.unknown, parser.unknown.total)
    if not parser.good:
        raise NoGoodRows(shown, bad, skipped) if skipped else NoExamples(shown, "no examples")
    first_rows = [asdict(row) for row in bad]
    kinds, notes = dict(bad.kinds.most_common()), list(file.notes) if file else []
    if unreadable:
        notes.append(f"the tokenizer makes nothing of {unreadable} words; each is read as '?'")
    facts = {"skipped": skipped, "bad": first_rows, "whole": parser.whole, "kinds": kinds, "notes": notes}
    facts |= {"by_text": True} if task.objective.labelled == "texts" else {}
    return facts | ({"unseen": dict(parser.unseen)} if parser.unseen else {})


@dataclass(slots=True)
class _Rows:
    """The good examples of a block."""

    others: list[list[str]]
    """The second texts, of pairs, and those after them; of each choice those of all examples."""
    texts: list[str] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)


class _Parser:
    """Labels to numbers; examples that cannot be used are counted, and the first of them kept in `bad`."""

    def __init__(self, task: Task, *, open_labels: bool = False) -> None:
        self.others = count_texts(task) + task.extra_texts - 1
        self.choices = task.inputs == "choices"
        self.bad = BadRows()
        self.unseen: Counter[str] = Counter()
        """How often each label came that is no class, in their order: the first is -1, the second -2."""
        self.unknown = BadRows()
        """What these rows would be otherwise."""
        self.seen = self.good = 0
        self.whole = True
        self._task, self._objective = task, task.objective
        self._row = self._objective.labelled in ("row", "words")
        self.words = self._objective.labelled == "words"
        """Whether each word has a label."""
        self._open = open_labels and bool(self._objective.classes) and not self._row
        self._known: dict[str, Label | _Refusal] = {}

    def parse(self, block: Sequence[Example]) -> _Rows:
        rows, known = _Rows([[] for _ in range(self.others)]), self._known
        for index, example in enumerate(block, self.seen + 1):
            text, label = example.text, example.label
            others = example.choices
            if not self.choices:
                others = (example.pair or "", *others) if self.others else ()
            if not text.strip() or not all(other.strip() for other in others) or len(others) != self.others:
                self.bad.add(example.line or index, self._lacking(text, others), "text is empty")
                continue
            number = known.get(label) if isinstance(label, str) else None
            if number is None:
                number = self._parse(label)
            if isinstance(number, tuple) and self._open and number[1] == "unknown label":
                self.unknown.add(example.line or index, *number)
                number = self._take_unseen(str(label).strip())
            if isinstance(number, tuple):
                self.bad.add(example.line or index, *number)
                continue
            if self.words and len(number) != (count := len(text.split())):  # type: ignore[arg-type]
                reason = f"{plural(len(number), 'label')} for {plural(count, 'word')}"  # type: ignore[arg-type]
                self.bad.add(example.line or index, reason, "other")
                continue
            rows.texts.append(text)
            rows.labels.append(number)
            rows.ids.append(example.id or str(example.line or index))
            for column, other in zip(rows.others, others, strict=True):
                column.append(other)
        self.seen += len(block)
        self.good += len(rows.labels)
        return rows

    def _lacking(self, text: str, others: Sequence[str]) -> str:
        """Return what an example lacks whose texts are not all there."""
        if not text.strip() or not (self.choices or self.others > 1):
            return "text is empty"
        found = plural(sum(bool(other.strip()) for other in others), "choice" if self.choices else "other text")
        return f"{found}, the task takes {self.others} in every row"

    def _take_unseen(self, label: str) -> int:
        """Count a label that is no class, and return its number."""
        if label not in self.unseen and len(self.unseen) == MAX_UNSEEN - 1:
            label = "..."
        self.unseen[label] += 1
        return -1 - list(self.unseen).index(label)

    def _parse(self, label: Any) -> Label | _Refusal:
        """Return the label's number, or its row, or why it has none."""
        number: Label | _Refusal
        whole = True
        try:
            parsed: Any = self._objective.parse(label)
            if self._row and not isinstance(parsed, str):
                number = self._as_row(parsed, label)
                whole = self._check_row(number)
            else:
                # a text is a plugin's own way to say why not
                number = (str(parsed), "other") if isinstance(parsed, str | tuple) else self._as_number(parsed, label)
                whole = not isinstance(number, float)
        except BadRowError as error:
            # what may have been meant is searched for once a kind: of a million labels that would take an hour
            number = (error.reason if self.bad.kinds[error.kind] else str(error), error.kind)
            if error.kind == "unknown label" and str(label).strip().lower() in MARKS:
                number = (f"{error.reason}: it may mark a missing label", "label is missing")
        except ValueError as error:
            number = (str(error), "other")
        self.whole = self.whole and whole
        if isinstance(label, str) and len(self._known) < MAX_PARSED:
            self._known[label] = number
        return number

    def _as_number(self, parsed: Any, label: Any) -> int | float:
        """Return what the objective made of a label as a number. Raises PluginError for what is none, or no class."""
        classes = len(self._objective.classes)
        try:
            value = float("nan" if parsed is None or isinstance(parsed, bytes) else parsed)
        except Exception:  # whatever a plugin's object may raise
            value = math.nan
        if math.isfinite(value) and (not classes or (value.is_integer() and 0 <= value < classes)):
            return value if isinstance(parsed, float | np.floating) else int(value) if value.is_integer() else value
        expected = f"the index of one of its {classes} classes" if classes else "a finite number"
        raise self._wrong(parsed, label, expected)

    def _as_row(self, parsed: Any, label: Any) -> NDArray[np.float64]:
        """Return what the objective made of a label as a row of numbers. Raises PluginError for what is none."""
        try:
            row = np.asarray(parsed, dtype=np.float64)
        except Exception:  # whatever a plugin's object may raise
            row = np.array([math.nan])
        if not np.isfinite(row[~np.isnan(row)] if self._objective.partial else row).all():
            size = "" if self.words else f"{self._objective.width} "
            raise self._wrong(parsed, label, f"a row of {size}finite numbers")
        return row

    def _wrong(self, parsed: Any, label: Any, expected: str) -> PluginError:
        with blame(self._task, "task"):  # a repr may raise
            found = repr(parsed)
        return fault(self._task, f"parse gave {safe(found)} for the label {quote(str(label))}, expected {expected}")

    def _check_row(self, row: NDArray[np.float64]) -> bool:
        """Return whether a row holds whole numbers. Raises ValueError unless it is as wide as the objective says."""
        if self.words and row.ndim != 1:
            raise ValueError(f"its label has shape {list(row.shape)}, expected a number for each word")
        if not self.words and row.shape != (self._objective.width,):
            raise ValueError(f"its label has shape {list(row.shape)}, expected {self._objective.width} numbers")
        return bool((row == np.floor(row)).all())


def bad_rows(file: str, bad: Sequence[BadRow], count: int, remedy: str = "set data.on_bad_rows: skip") -> DataError:
    """Return the refusal of a file with `count` bad rows, the first of them `bad`; `remedy` leaves them out."""
    first = bad[0]
    lines = [str(row.line) for row in bad[:BAD_ROWS_SHOWN]] + ["..."] * (count > BAD_ROWS_SHOWN)
    rest = f" ({count} such lines: {', '.join(lines)})" if count > 1 else ""
    fix = "" if ";" in first.reason else f"; mend it or {remedy}"
    return DataError(f"{file}:{first.line}", f"{first.reason}{rest}{fix}")
