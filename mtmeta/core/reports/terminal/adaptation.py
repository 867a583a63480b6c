"""A few-shot adaptation as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mtmeta.core.reports.terminal.tables import Folding, box_of, console_for_tables
from mtmeta.core.wording import safe

__all__ = ["between", "notes_of", "show_adaptation", "title_of"]


def show_adaptation(found: Mapping[str, Any]) -> None:
    """Print a row for each task and number of shots: every start's mean, and what it gained over the pretrained one."""
    console = console_for_tables()
    table = Folding(title=Text(safe(title_of(found), 200)), title_justify="left", box=box_of(console), show_lines=True)
    for heading in ("task", "shots"):
        table.add_column(heading, overflow="fold")
    for start in found["starts"]:
        table.add_column(Text(safe(start)), overflow="fold")
    for cell in found["cells"]:
        texts = []
        for start, made in cell["starts"].items():
            text = Text(between(made, "{:.4f}", "{:.3f}"), style="bold" if start == cell["best"] else "")
            if "gain" in made:
                text.append("\n" + between(made["gain"], "{:+.4f}", "{:+.3f}"), style="not bold")
            texts.append(text)
        table.add_row(Text(f"{safe(cell['task'])} {cell['metric']}"), str(cell["shots"]), *texts)
    console.print(table)
    for line in notes_of(found):
        console.print(line)


def title_of(found: Mapping[str, Any]) -> str:
    """What was adapted, and how, in a line."""
    return f"{found['recipe']}: {found['split']}, {found['steps']} steps, head {found['head']}"


def notes_of(found: Mapping[str, Any]) -> list[str]:
    """What stands under the table."""
    draws = len(next(iter(found["cells"][0]["starts"].values()))["values"])
    over = f"95% interval by Student's t over the {draws} draws" if draws > 1 else "of one draw, so without interval"
    gained = "below, the gain over the pretrained encoder on the same examples"
    return [f"Shots: examples of each class. Brackets: {over}; {gained}."]


def between(made: Mapping[str, Any], value: str, end: str) -> str:
    """A mean with its interval, in these formats."""
    shown = value.format(_no_minus(made["mean"], 4))
    if made["low"] is None:
        return shown
    return f"{shown} [{end.format(_no_minus(made['low'], 3))}, {end.format(_no_minus(made['high'], 3))}]"


def _no_minus(value: float, digits: int) -> float:
    """The value rounded, a zero without a minus."""
    return round(value, digits) + 0.0
