"""A comparison as people read it: a table in the terminal, in Markdown, or flat as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from mtmeta.core.errors import safe
from mtmeta.core.view import box_of, console_for_tables

__all__ = ["as_csv", "as_markdown", "cells_of", "notes_of", "show_comparison", "title_of"]

COSTS = ("examples", "time", "memory")


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print the table; in each cell mean and interval, below them the difference to the baseline."""
    console = console_for_tables()
    needed = 42 + max(len(row["name"]) for row in found["rows"]) + 28 * len(found["rows"][0]["columns"])
    wide = console.width >= needed
    header, rows = cells_of(found, " " if wide else "\n")
    shown = len(header) if wide else len(header) - len(COSTS)
    table = Table(title=Text(safe(title_of(found), 200)), title_justify="left", box=box_of(console), show_lines=True)
    for heading in header[:shown]:
        table.add_column(Text(safe(heading)), justify="right" if heading in COSTS else "left")
    for cells in rows:
        texts = [Text(safe(cells[0].value))]
        for cell in cells[1:shown]:
            text = Text(cell.value, style="bold" if cell.best else "")
            if cell.below:
                text.append(f"\n{cell.below}", style="not bold")
            texts.append(text)
        table.add_row(*texts)
    console.print(table)
    for name, *_, examples, seconds, memory in rows if not wide else ():
        console.print(f"  {safe(name.value)}: {examples.value} examples, {seconds.value}, {memory.value}")
    for line in notes_of(found):
        console.print(line)


def as_markdown(found: Mapping[str, Any]) -> str:
    """The table in GitHub's Markdown, the best of each column bold."""
    header, rows = cells_of(found)
    lines = [header, ["---:" if heading in COSTS else "---" for heading in header]]
    for cells in rows:
        values = [f"**{cell.value}**" if cell.best else cell.value for cell in cells]
        lines.append([v + (f"<br>{cell.below}" if cell.below else "") for v, cell in zip(values, cells, strict=True)])
    table = "\n".join(f"| {' | '.join(text.replace('|', chr(92) + '|') for text in line)} |" for line in lines)
    return "\n\n".join([title_of(found), table, *notes_of(found)]) + "\n"


@dataclass(frozen=True)
class Cell:
    """What stands in a cell, what stands below it, and whether it is the best of its column."""

    value: str
    below: str = ""
    best: bool = False


def cells_of(found: Mapping[str, Any], between: str = " ") -> tuple[list[str], list[list[Cell]]]:
    """The heading of each column and the cells of each row; `between` parts a number from its interval."""
    header = ["regime", *(_heading(found, name) for name in found["rows"][0]["columns"]), *COSTS]
    rows = []
    for row in found["rows"]:
        cells = [Cell(row["name"])]
        for cell in row["columns"].values():
            below = _delta(cell["delta"], between) if "delta" in cell else ""
            cells.append(Cell(_value(cell, between), below, cell["best"]))
        rows.append([*cells, *map(Cell, _cost(row))])
    return header, rows


def as_csv(found: Mapping[str, Any]) -> str:
    """One line for each regime and column: every number of the table, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = ("value", "low", "high", "p", "negative_transfer")
    writer.writerow(
        ["regime", "algorithm", "column", "metric", "split", "seeds", "mean", "low", "high", "best"]
        + [f"delta_{key}" for key in keys]
        + ["examples", "seconds", "peak_memory_bytes"]
    )
    for row in found["rows"]:
        for column, cell in row["columns"].items():
            delta = cell.get("delta", {})
            seeds = " ".join(map(str, row["seeds"]))
            metric = found["metrics"].get(column, "")
            front = [row["name"], row["algorithm"], column, metric, found["split"], seeds]
            middle = [cell[key] for key in ("mean", "low", "high", "best")] + [delta.get(key) for key in keys]
            writer.writerow([*front, *middle, row["examples"], row["seconds"], row["peak_memory_bytes"]])
    return text.getvalue()


def title_of(found: Mapping[str, Any]) -> str:
    seeds = [row["seeds"] for row in found["rows"]]
    same = all(row == seeds[0] for row in seeds)
    shown = ", ".join(map(str, seeds[0])) if same else f"{len(seeds[0])} of each"
    return f"{found['split']}, best weights of each run, seeds: {shown}"


def _heading(found: Mapping[str, Any], column: str) -> str:
    return f"{column} {found['metrics'][column]}" if column in found["metrics"] else column


def _value(cell: Mapping[str, Any], between: str) -> str:
    return f"{cell['mean']:.4f}" + ("" if cell["low"] is None else f"{between}[{cell['low']:.3f}, {cell['high']:.3f}]")


def _delta(delta: Mapping[str, Any], between: str) -> str:
    worse = f"{between}worse" if delta["negative_transfer"] else ""
    return f"{delta['value']:+.4f}{between}[{delta['low']:+.3f}, {delta['high']:+.3f}]{worse}"


def _cost(row: Mapping[str, Any]) -> list[str]:
    memory = f"{row['peak_memory_bytes'] / 2**30:.2f} GiB"
    return [f"{row['examples']:,.0f}", f"{row['seconds']:,.0f} s", memory]


def notes_of(found: Mapping[str, Any]) -> list[str]:
    """What the numbers are, under the table."""
    several = len(found["rows"][0]["seeds"]) > 1
    over = "Student's t over the seeds" if several else "bootstrap over the examples of the one run"
    notes = [
        f"Brackets behind a mean: 95% interval, {over}. Examples: example-forwards in training, mean of the seeds."
    ]
    if any("delta" in cell for row in found["rows"] for cell in row["columns"].values()):
        what = f"differences to {safe(found['baseline'])} with a 95% interval, paired bootstrap over the examples"
        notes.append(f"Below: {what} for these seeds; 'worse' marks negative transfer: no part of it is better.")
    if len(found["rows"]) > 1 and not any(row["columns"]["mean"]["best"] for row in found["rows"]):
        notes.append("The metrics point in different directions, so of the mean nothing is better or worse.")
    if found["baseline"] is None and len(found["rows"]) > 1:
        notes.append("No recipe here trains each task alone; --baseline NAME shows differences to another one.")
    return notes
