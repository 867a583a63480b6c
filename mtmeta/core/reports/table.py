"""A table before it is drawn: in a terminal, in Markdown or on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Cell:
    """The text of a cell, a line below it, and whether it is the best of its column."""

    value: str
    below: str = ""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """The heading of each column, and the cells of each row."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
