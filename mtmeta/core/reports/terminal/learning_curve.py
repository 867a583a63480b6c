"""The table of a learning curve in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mtmeta.core.reports.learning_curve import table_of, title_of
from mtmeta.core.reports.terminal.console import Folding, console_for_tables
from mtmeta.core.wording import safe


def show_curve(curve: Mapping[str, Any]) -> None:
    """Print a row for each share of the training data."""
    console, contents = console_for_tables(), table_of(curve)
    table = Folding(console, title_of(curve))
    for heading in contents.header:
        table.add_column(Text(safe(heading)), justify="right" if heading in contents.header[:2] else "left")
    for cells in contents.rows:
        table.add_row(*(Text(safe(cell.value, 200)) for cell in cells))
    console.print(table)
