"""The table of a comparison in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text

from mtmeta.core.reports.comparison import COSTS, costs_of, notes_of, other_metrics, table_of, title_of
from mtmeta.core.reports.table import Table, turned
from mtmeta.core.reports.terminal.console import Folding, console_for_tables, text_of
from mtmeta.core.reports.verdict import verdict_of
from mtmeta.core.wording import safe

WORDS = ("examples", "", "", "parameters", "encodings")
"""What stands behind each of COSTS where they have no column."""


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the verdict and the table: in each cell mean and interval, below them the difference to the baseline."""
    console = console_for_tables()
    console.print(verdict_of(comparison), style="bold")
    whole = table_of(comparison)
    costs_apart = _width(whole) > console.width
    if costs_apart:
        whole = _fitting(console, [table_of(comparison, between, costs=False) for between in (" ", "\n")])
    _print(console, whole, title_of(comparison))
    for row in comparison["rows"] if costs_apart else ():
        texts = [f"{text} {word}".strip() for text, word in zip(costs_of(row), WORDS, strict=True) if text]
        console.print(f"  {safe(row['name'])}: {', '.join(texts)}")
    others = [table for between in (" ", "\n") if (table := other_metrics(comparison, between)) is not None]
    if others:
        _print(console, _fitting(console, others), "other metrics")
    for line in notes_of(comparison):
        console.print(line)


def _fitting(console: Console, tables: Sequence[Table]) -> Table:
    """Return the first of these tables that a terminal has room for, as it is or turned, else the last."""
    choices = [one for table in tables for one in (table, turned(table))]
    return next((table for table in choices if _width(table) <= console.width), tables[-1])


def _width(table: Table) -> int:
    """Return the columns that a table takes where no cell is broken."""
    columns = zip(table.header, *([cell.lines for cell in row] for row in table.rows), strict=True)
    longest = (max(len(heading), *(len(line) for cell in cells for line in cell)) for heading, *cells in columns)
    return sum(width + 3 for width in longest) + 1


def _print(console: Console, contents: Table, title: str) -> None:
    lines = any(len(cell.lines) > 1 for row in contents.rows for cell in row)
    table = Folding(console, title, show_lines=lines)
    for heading in contents.header:
        table.add_column(Text(safe(heading)), justify="right" if heading in COSTS else "left")
    for cells in contents.rows:
        table.add_row(Text(safe(cells[0].value)), *map(text_of, cells[1:]))
    console.print(table)
