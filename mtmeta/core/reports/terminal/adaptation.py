"""The table of a few-shot adaptation in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mtmeta.core.reports.adaptation import cells_of, notes_of, title_of
from mtmeta.core.reports.terminal.console import Folding, box_of, console_for_tables, text_of
from mtmeta.core.wording import safe


def show_adaptation(adaptation: Mapping[str, Any]) -> None:
    """Print a row for each task and number of shots: every start's mean, and what it gained over the pretrained one."""
    console = console_for_tables()
    title = Text(safe(title_of(adaptation), 200))
    table = Folding(title=title, title_justify="left", box=box_of(console), show_lines=True)
    for heading in ("task", "shots"):
        table.add_column(heading, overflow="fold")
    for start in adaptation["starts"]:
        table.add_column(Text(safe(start)), overflow="fold")
    for adapted in adaptation["cells"]:
        name = Text(f"{safe(adapted['task'])} {adapted['metric']}")
        table.add_row(name, str(adapted["shots"]), *map(text_of, cells_of(adapted)))
    console.print(table)
    for line in notes_of(adaptation):
        console.print(line)
