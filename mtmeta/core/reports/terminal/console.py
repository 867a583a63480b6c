"""Standard output as a console, and tables that fit it."""

from __future__ import annotations

import os
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtmeta.core.reports.table import Cell, Tone
from mtmeta.core.wording import safe

COLOURS: dict[Tone, str] = {"better": "green", "worse": "red", "": ""}


class Folding(Table):
    """A table that breaks words where a terminal is narrow; rich would cut them, with a sign that is not ASCII.

    Its lines are of plain ASCII wherever there is no terminal that surely draws others.
    """

    def __init__(self, console: Console, title: str | None = None, *, show_lines: bool = False) -> None:
        plain = not console.is_terminal or console.is_dumb_terminal or os.environ.get("LC_ALL") in ("C", "POSIX")
        lines = box.ASCII2 if plain else box.HEAVY_HEAD  # rich itself falls back where the encoding is not UTF-8
        heading = Text(safe(title, 200)) if title is not None else None
        super().__init__(title=heading, title_justify="left", box=lines, show_lines=show_lines)

    def add_column(self, *header: Any, **options: Any) -> None:
        super().add_column(*header, **{"overflow": "fold", **options})


def text_of(cell: Cell) -> Text:
    """Return a cell: bold where it stands out, lines below it in green where they are better, in red where worse."""
    text = Text(cell.value, style="bold" if cell.best else "")
    for number, line in enumerate(cell.below.split("\n") if cell.below else ()):
        tone = cell.tones[number] if number < len(cell.tones) else ""
        text.append(f"\n{line}", style=f"not bold {COLOURS[tone]}".rstrip())
    return text


def standard_output() -> Console:
    """Return standard output as a console; where NO_COLOR is set, without bold letters either."""
    colors: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, color_system=colors)


def console_for_tables() -> Console:
    """Return standard output, with room for wide tables where it is no terminal."""
    console = standard_output()
    if not console.is_terminal:
        console.width = 250  # nobody to wrap lines for
    return console
