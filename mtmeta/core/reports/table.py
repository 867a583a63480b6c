"""A table before it is drawn: in a terminal, in Markdown or on a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Tone = Literal["better", "worse", ""]


@dataclass(frozen=True)
class Cell:
    """The text of a cell, lines below it, and whether it stands out: surely the best of its column, say."""

    value: str
    below: str = ""
    best: bool = False
    tones: Sequence[Tone] = ()
    """What each line below surely is; without any none of them is."""

    @property
    def lines(self) -> list[str]:
        """Return the lines of its text, the first of them above the others."""
        return f"{self.value}\n{self.below}".split("\n") if self.below else self.value.split("\n")


@dataclass(frozen=True)
class Table:
    """The heading of each column, and the cells of each row."""

    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]


def shown_number(number: float) -> str:
    """Return a number of an objective's own table: a count in full, all else with three digits after the point."""
    return f"{number:,}" if isinstance(number, int) else f"{number:.3f}"


def turned(table: Table) -> Table:
    """Return the table with its columns as rows; the corner names what is in them."""
    names = [row[0].value for row in table.rows]
    rows = [[Cell(name), *cells] for name, *cells in zip(table.header, *table.rows, strict=True)]
    return Table(["task", *names], rows[1:])
