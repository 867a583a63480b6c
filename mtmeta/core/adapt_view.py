"""A few-shot adaptation as people read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from mtmeta.core.errors import safe
from mtmeta.core.view import Folding, box_of, console_for_tables

__all__ = ["show_adaptation"]


def show_adaptation(found: Mapping[str, Any]) -> None:
    """Print a row for each task and number of shots: every start's mean, and what it gained over the pretrained one."""
    console = console_for_tables()
    title = f"{found['recipe']}: {found['split']}, {found['steps']} steps, head {found['head']}"
    table = Folding(title=Text(safe(title, 200)), title_justify="left", box=box_of(console), show_lines=True)
    for heading in ("task", "shots"):
        table.add_column(heading, overflow="fold")
    for start in found["starts"]:
        table.add_column(Text(safe(start)), overflow="fold")
    for cell in found["cells"]:
        texts = []
        for start, made in cell["starts"].items():
            text = Text(_between(made, "{:.4f}", "{:.3f}"), style="bold" if start == cell["best"] else "")
            if "gain" in made:
                text.append("\n" + _between(made["gain"], "{:+.4f}", "{:+.3f}"), style="not bold")
            texts.append(text)
        table.add_row(Text(f"{safe(cell['task'])} {cell['metric']}"), str(cell["shots"]), *texts)
    console.print(table)
    draws = len(next(iter(found["cells"][0]["starts"].values()))["values"])
    over = f"95% interval by Student's t over the {draws} draws" if draws > 1 else "of one draw, so without interval"
    gained = "below, the gain over the pretrained encoder on the same examples"
    console.print(f"Shots: examples of each class. Brackets: {over}; {gained}.")


def _between(made: Mapping[str, Any], value: str, end: str) -> str:
    shown = value.format(made["mean"])
    return shown if made["low"] is None else f"{shown} [{end.format(made['low'])}, {end.format(made['high'])}]"
