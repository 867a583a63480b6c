"""The table of a few-shot adaptation in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mtmeta.core.reports.adaptation import cells_of, notes_of, rows_of, title_of
from mtmeta.core.reports.terminal.console import Folding, console_for_tables, text_of
from mtmeta.core.wording import safe


def show_adaptation(adaptation: Mapping[str, Any]) -> None:
    """Print a row for each task and number of shots, and of means over tasks: what every start has and has gained."""
    console = console_for_tables()
    table = Folding(console, title_of(adaptation), show_lines=True)
    for heading in ("task", "shots", *map(safe, adaptation["starts"])):
        table.add_column(Text(heading))
    for adapted in rows_of(adaptation):
        name = Text(f"{safe(adapted['task'])} {safe(adapted['metric'])}")
        table.add_row(name, str(adapted["shots"]), *map(text_of, cells_of(adapted)))
    console.print(table)
    for line in notes_of(adaptation):
        console.print(line)
