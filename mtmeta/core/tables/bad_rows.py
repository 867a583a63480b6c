"""Rows of data files that cannot be used: why, of what kind, and how many there are of each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

MAX_KEPT = 100  # rows of a file
MISSING = frozenset(("", "nan", "na", "n/a", "#n/a", "<na>", "null", "none", "-", "--", "?"))
"""What is written where a value is not known, in lower case."""
BadRowKind = Literal[
    "wrong number of fields",
    "text is empty",
    "label is empty",
    "label is missing",
    "label is not a number",
    "label out of range",
    "unknown label",
    "wrong encoding",
    "NUL byte",
    "field too long",
    "lone surrogate",
    "nested value",
    "stray quote",
    "line too long",
    "column missing",
    "duplicate key",
    "not a JSON object",
    "other",
]
"""`label is missing` is a mark such as `-` that is no class; `other` is what a plugin's objective refuses."""


def is_missing(value: object) -> bool:
    """Return whether a value of a table stands for none: it is empty, or a mark such as `NA`, `null`, `-` or `?`."""
    return value is None or str(value).strip().lower() in MISSING


class BadRowError(ValueError):
    """A row, one of its fields or its label cannot be used; the text is the reason.

    `hint` adds what may have been meant. It may take long to find, and is called only for a row whose text is read.
    """

    def __init__(self, kind: BadRowKind, reason: str, hint: Callable[[], str] | None = None) -> None:
        self.kind: BadRowKind = kind
        self.reason = reason
        self.hint = hint
        super().__init__(reason)

    def __str__(self) -> str:
        return self.reason + (self.hint() if self.hint else "")


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot be used: its 1-based line in the file, why, and of what kind that is."""

    line: int
    reason: str
    kind: BadRowKind


class BadRows(list[BadRow]):
    """The first bad rows of a file; `total` counts all of them, `kinds` those of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.kinds: Counter[BadRowKind] = Counter()

    def add(self, line: int, reason: str, kind: BadRowKind) -> None:
        """Count a row, and keep it if it is one of the first."""
        self.total += 1
        self.kinds[kind] += 1
        if len(self) < MAX_KEPT:
            self.append(BadRow(line, reason, kind))

    def clear(self) -> None:
        """Forget all of them."""
        super().clear()
        self.kinds.clear()
        self.total = 0

    def merged(self, other: BadRows) -> BadRows:
        """Return the rows of both, by line, at one line those of `other` first."""
        both = BadRows()
        both.total, both.kinds = self.total + other.total, self.kinds + other.kinds
        both.extend(sorted([*other, *self], key=lambda row: row.line)[:MAX_KEPT])
        return both
