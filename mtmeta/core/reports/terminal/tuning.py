"""The best trials of a search, and what each key matters, in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from mtmeta.core.reports.table import Table
from mtmeta.core.reports.terminal.console import Folding, console_for_tables, text_of
from mtmeta.core.reports.tuning import best_table, importance_table, notes_of, title_of


def show_search(search: Mapping[str, Any]) -> None:
    """Print the best trials, the importance of the keys, and notes."""
    console = console_for_tables()
    best = best_table(search)
    if best.rows:
        _show(console, best, title_of(search), left=("seeds",))
    if (importance := importance_table(search)) is not None:
        _show(console, importance, None, left=("key",))
    for line in notes_of(search):
        console.print(line)


def _show(console: Console, contents: Table, title: str | None, left: tuple[str, ...]) -> None:
    table = Folding(console, title)
    for heading in contents.header:
        table.add_column(Text(heading), justify="left" if heading in left else "right")
    for cells in contents.rows:
        table.add_row(*map(text_of, cells))
    console.print(table)
