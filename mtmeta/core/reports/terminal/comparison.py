"""The table of a comparison in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mtmeta.core.reports.comparison import COSTS, notes_of, table_of, title_of
from mtmeta.core.reports.terminal.console import Folding, console_for_tables, text_of
from mtmeta.core.wording import safe

WORDS = ("examples", "", "", "parameters", "encodings")
"""What stands behind each of COSTS where they have no column."""


def show_comparison(comparison: Mapping[str, Any]) -> None:
    """Print the table; in each cell mean and interval, below them the difference to the baseline."""
    console = console_for_tables()
    needed = 66 + max(len(row["name"]) for row in comparison["rows"]) + 28 * len(comparison["rows"][0]["columns"])
    wide = console.width >= needed
    contents = table_of(comparison, " " if wide else "\n")
    shown = len(contents.header) - (0 if wide else len(COSTS))
    table = Folding(console, title_of(comparison), show_lines=True)
    for heading in contents.header[:shown]:
        table.add_column(Text(safe(heading)), justify="right" if heading in COSTS else "left")
    for cells in contents.rows:
        table.add_row(Text(safe(cells[0].value)), *map(text_of, cells[1:shown]))
    console.print(table)
    for cells in contents.rows if not wide else ():
        texts = [f"{cell.value} {word}".strip() for cell, word in zip(cells[shown:], WORDS, strict=True) if cell.value]
        console.print(f"  {safe(cells[0].value)}: {', '.join(texts)}")
    for line in notes_of(comparison):
        console.print(line)
