"""What the values of a label column mean: marks of missing labels, and several labels in one value or one row."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from mtmeta.core.tables.bad_rows import MISSING
from mtmeta.core.wording import quote, safe

BY_CODE = {"-1", "-100"}  # written for no label beside classes that are numbered from 0 or 1
SCALES = re.compile(r"sentiment|polarity|stance|valence|opinion|attitude|relation")  # where -1 and none are classes
WHOLE = re.compile(r"(?=.{1,15}$)[+-]?\d+(\.0*)?")  # as a float has it to the last digit
MANY_CODES = 5
LISTED = re.compile(r"(\[.*\]|\(.*\)|\{.*\})", re.DOTALL)
SEPARATORS = "|;,+&"


@dataclass(frozen=True)
class LabelValues:
    """The values of a label column, told apart."""

    counts: Counter[str]
    """Rows of each value that is a label."""
    missing: dict[str, int] = field(default_factory=dict)
    """Rows of each mark of a missing label."""
    doubtful: dict[str, int] = field(default_factory=dict)
    """Rows of each label that elsewhere is such a mark."""


def whole(value: str) -> str:
    """Return a whole number as int writes it; another value as it is."""
    return str(int(float(value))) if WHOLE.fullmatch(value) else value


def is_mark(value: str) -> bool:
    """Return whether a value may stand for a label that is missing."""
    return value.casefold() in MISSING or whole(value) in BY_CODE


def split_values(train: Counter[str], dev: Counter[str], column: str) -> LabelValues:
    """Tell labels from marks of missing ones, by what else stands in the column named `column`.

    A mark is a class where the others are its kind: `+` beside `-`, `-1` beside other negative numbers, the language
    code `nan` beside other codes. `none`, and `-1` beside two numbers, are so too unless they are rare, with fewer than
    half the rows of the rarest class; and where less than two classes would be left. What only the dev file marks,
    training cannot learn.
    """
    counts = train + dev
    marks = [value for value in counts if is_mark(value)]
    labels = Counter({value: count for value, count in counts.items() if value not in marks})
    of_train = Counter({value: count for value, count in labels.items() if value in train}) or labels
    kept: dict[str, int] = {}
    if len(labels) < 2:
        kept = {value: counts[value] for value in marks}
    else:
        for value in marks:
            rows = sum(train[other] for other in marks if whole(other).casefold() == whole(value).casefold())
            if rows and _is_class(whole(value), rows, of_train, column):
                kept[value] = counts[value]
    missing = {value: counts[value] for value in marks if value not in kept}
    return LabelValues(Counter({v: n for v, n in counts.items() if v not in missing}), missing, kept)


def _is_class(mark: str, rows: int, labels: Counter[str], column: str) -> bool:
    """Return whether a mark with so many rows of the training file is a class beside these labels."""
    word, rare = mark.casefold(), 2 * rows < min(labels.values())
    if mark in BY_CODE:
        try:
            numbers = {int(whole(value)) for value in labels}
        except ValueError:  # beside words
            return False
        if numbers not in (set(range(len(numbers))), set(range(1, len(numbers) + 1))):
            return True
        return len(numbers) == 2 and (not rare or bool(SCALES.search(column.lower())))
    if word == "none":
        return not rare or bool(SCALES.search(column.lower()))
    if not any(map(str.isalnum, word)):
        return any(not any(map(str.isalnum, value)) for value in labels)
    alike = [value for value in labels if len(value) == len(mark) and _case(value) == _case(mark)]
    return len(alike) >= max(MANY_CODES, 0.8 * len(labels)) and rows >= min(labels.values())


def _case(text: str) -> tuple[bool, bool]:
    return text.islower(), text.isupper()


def notes_on_marks(values: LabelValues, empty: int) -> list[str]:
    """Return what was made of labels that are missing, `empty` or marked as such, and how to have marks otherwise."""
    total = max(1, empty + sum(values.missing.values()) + sum(values.counts.values()))
    notes, marks = [], [("empty", empty)] if empty else []
    marks += [(quote(mark), rows) for mark, rows in values.missing.items()]
    if marks:
        shown = ", ".join(f"{mark} {rows:,} rows ({rows / total:.1%})" for mark, rows in marks)
        otherwise = "; if it is one, write it into labels, a list of all names" if values.missing else ""
        notes.append(f"missing labels: {safe(shown, 160)}; no class, these rows are skipped{otherwise}")
    for mark, rows in values.doubtful.items():
        notes.append(
            f"{quote(mark)}, {rows / total:.1%} of the rows, is taken for a class; if it marks missing labels, take it "
            "out of labels and set data: {on_bad_rows: skip}"
        )
    return notes


# --------------------------------------------------------------------------------------------------------- multi-label


def several_labels(values: Iterable[str]) -> str | None:
    """Return one of the values that is a list of labels if those of a column are lists; else None.

    A list stands in brackets, or its labels are joined by one character, several to a value and in many combinations.
    """
    different = list(dict.fromkeys(value for value in map(str.strip, values) if not is_mark(value)))
    lists = [value for value in different if LISTED.fullmatch(value)]
    if different and 2 * len(lists) > len(different):
        several = [value for value in lists if len(_items(value)) > 1]
        quoted = [value for value in lists if value[1:2] in "\"'" or not value[1:-1] or value[1:-1].isdecimal()]
        return next(iter([*several, *quoted]), None)
    if all(re.fullmatch(r"\d+( +\d+)*", value) for value in different):
        return next((value for value in different if " " in value), None)
    return next((value for mark in SEPARATORS if (value := _joined(different, mark))), None)


def separator_of(values: Iterable[str]) -> str | None:
    """Return the character that joins several labels in values, if one does."""
    different = list(dict.fromkeys(value for value in map(str.strip, values) if not is_mark(value)))
    if any(map(LISTED.fullmatch, different)):
        return None
    return next((mark for mark in SEPARATORS if _joined(different, mark)), None)


def parted(values: Mapping[str, int], separator: str) -> Counter[str]:
    """Count the labels that `separator` joins, by the counts of the values."""
    counts: Counter[str] = Counter()
    for value, count in values.items():
        for label in dict.fromkeys(map(str.strip, value.split(separator))):
            counts[label] += count
    return counts


def _items(listed: str) -> list[str]:
    inside = listed[1:-1].strip()
    numbers = re.fullmatch(r"[\d.\s]+", inside)
    return inside.split() if numbers else [item for item in inside.split(",") if item.strip()]


def _joined(values: Sequence[str], mark: str) -> str | None:
    """Return a value of several labels that `mark` joins, if the values combine fewer labels than there are values."""
    if mark == "," and all(re.fullmatch(r"-?\d+(,\d+)?", value) for value in values):
        return None  # decimals
    parts = {value: [part.strip() for part in value.split(mark)] for value in values}
    joined = {value: labels for value, labels in parts.items() if len(labels) > 1}
    uses = Counter(label for labels in parts.values() for label in set(labels))
    sizes = {len(labels) for labels in parts.values()}
    if len(joined) < 3 or len(sizes) < 2 or len(uses) >= len(values):
        return None
    within = {label for labels in joined.values() for label in labels}
    again = sum(uses[label] > 1 for label in within)
    return next(iter(joined)) if "" not in within and again >= 0.8 * len(within) else None
