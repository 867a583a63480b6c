"""The table of results, as rich draws it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Literal

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mtmeta.core.wording import safe

__all__ = ["Folding", "box_of", "console_for_tables", "show_table"]

WIDE = 250  # columns of a table that no terminal wraps


def show_table(summary: Mapping[str, Any]) -> None:
    """Print task, metric, value with 95% interval, examples, split and loss, and what the run cost."""
    console = _console()
    title = f"{summary['run']}: {summary['split']}, best of {summary['steps']} steps"
    if "selected_on" not in summary:
        title = f"{summary['run']}: {summary['split']}, weights of step {summary['steps']}"
    table = Folding(title=Text(safe(title, 200)), title_justify="left", box=box_of(console))
    for column in ("task", "metric", "value", "95% interval", "examples", "split", "loss"):
        table.add_column(column, justify="left" if column in ("task", "metric", "split") else "right", overflow="fold")
    skipped = False
    for name, made in summary["tasks"].items():
        low, high = made["low"], made["high"]
        examples = f"{made['examples']:,}" + (f" (+{made['skipped']} bad)" if made["skipped"] else "")
        skipped |= bool(made["skipped"])
        between = f"{low:.3f} to {high:.3f}" if low is not None else ""
        row = [safe(name), made["metric"], f"{made['value']:.4f}", between, examples, summary["split"]]
        table.add_row(*map(Text, row), f"{made['loss']:.4f}")
    if len(summary["tasks"]) > 1:
        table.add_section()
        table.add_row("mean", "", f"{summary['mean']:.4f}")
    console.print(table)
    if skipped:
        console.print("bad rows were skipped, see the warnings above")
    if "sampling" in summary:
        _show_cost(console, summary)
    for name, found in summary.get("details", {}).items():
        _show_detail(console, name, found)


class Folding(Table):
    """A table that breaks words where a terminal is narrow; rich would cut them, with a sign that is not ASCII."""

    def add_column(self, *header: Any, **options: Any) -> None:
        super().add_column(*header, **{"overflow": "fold", **options})


def console_for_tables() -> Console:
    """Standard output, with room for wide tables where it is no terminal."""
    console = _console()
    if not console.is_terminal:
        console.width = WIDE  # nobody to wrap lines for
    return console


def _console() -> Console:
    """Standard output; where NO_COLOR is set, without bold letters either."""
    colors: Literal["auto"] | None = None if os.environ.get("NO_COLOR") else "auto"
    return Console(highlight=False, markup=False, emoji=False, soft_wrap=True, color_system=colors)


def box_of(console: Console) -> box.Box:
    """Lines of plain ASCII wherever there is no terminal that surely draws others."""
    plain = not console.is_terminal or console.is_dumb_terminal or os.environ.get("LC_ALL") in ("C", "POSIX")
    return box.ASCII2 if plain else box.HEAVY_HEAD  # rich itself falls back where the encoding is not UTF-8


def _show_cost(console: Console, summary: Mapping[str, Any]) -> None:
    drawn = []
    for name, used in summary["sampling"].items():
        planned = f" of {used['planned_draws']:.1f} planned" if used["planned_draws"] else ""
        draws = f"{used['draws']} draws{planned}, " if used["draws"] else ""
        drawn.append(f"  {safe(name)}: {draws}{used['examples']:,} examples, {used['epochs']:.2f} epochs")
    console.print("\n".join(drawn))
    memory = summary["peak_memory_bytes"] / 2**30
    spent = f"{summary['examples']:,} example-forwards in training"
    console.print(f"{summary['total_seconds']:.0f} s in all, {spent}, peak memory {memory:.2f} GiB")


def _show_detail(console: Console, name: str, found: Mapping[str, Any]) -> None:
    if "confusion" in found:
        title = Text(f"{safe(name)}: rows are labels, columns predictions")
        table = Folding(title=title, title_justify="left", box=box_of(console))
        table.add_column("")
        for label in found["classes"]:
            table.add_column(Text(safe(label, 20)), justify="right")
        for label, row in zip(found["classes"], found["confusion"], strict=True):
            table.add_row(Text(safe(label, 20)), *map(str, row))
        console.print(table)
        return
    console.print(
        f"{safe(name)}: mean error {found['mean_error']:+.3f}, mean absolute error {found['mean_absolute_error']:.3f}, "
        f"root mean square {found['root_mean_square_error']:.3f}; farthest off:"
    )
    for row in found["worst"]:
        console.print(f"  {safe(row['id'])}: label {row['label']:.3g}, predicted {row['prediction']:.3g}")
