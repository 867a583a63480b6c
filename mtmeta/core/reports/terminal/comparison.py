"""A comparison as people read it: a table in the terminal, in Markdown, or flat as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.text import Text

from mtmeta.core.reports.terminal.tables import Folding, box_of, console_for_tables
from mtmeta.core.wording import safe

__all__ = ["as_csv", "as_markdown", "cells_of", "notes_of", "show_comparison", "title_of"]

COSTS = ("examples", "time", "memory")


def show_comparison(found: Mapping[str, Any]) -> None:
    """Print the table; in each cell mean and interval, below them the difference to the baseline."""
    console = console_for_tables()
    needed = 42 + max(len(row["name"]) for row in found["rows"]) + 28 * len(found["rows"][0]["columns"])
    wide = console.width >= needed
    header, rows = cells_of(found, " " if wide else "\n")
    shown = len(header) if wide else len(header) - len(COSTS)
    table = Folding(title=Text(safe(title_of(found), 200)), title_justify="left", box=box_of(console), show_lines=True)
    for heading in header[:shown]:
        # fold: a number that is cut is a wrong number
        table.add_column(Text(safe(heading)), justify="right" if heading in COSTS else "left", overflow="fold")
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
    if all(row == seeds[0] for row in seeds):
        shown = ", ".join(map(str, seeds[0]))
    else:
        shown = "; ".join(f"{row['name']} {', '.join(map(str, row['seeds']))}" for row in found["rows"])
    return f"{found['split']}, best weights of each run, seeds: {shown}"


def _heading(found: Mapping[str, Any], column: str) -> str:
    return f"{column} {found['metrics'][column]}" if column in found["metrics"] else column


def _value(cell: Mapping[str, Any], between: str) -> str:
    return f"{cell['mean']:.4f}" + ("" if cell["low"] is None else f"{between}[{cell['low']:.3f}, {cell['high']:.3f}]")


def _delta(delta: Mapping[str, Any], between: str) -> str:
    worse = f"{between}worse" if delta["negative_transfer"] else ""
    interval = "" if delta["low"] is None else f"{between}[{delta['low']:+.3f}, {delta['high']:+.3f}]"
    return f"{delta['value']:+.4f}{interval}{worse}"


def _cost(row: Mapping[str, Any]) -> list[str]:
    memory = f"{row['peak_memory_bytes'] / 2**30:.2f} GiB"
    return [f"{row['examples']:,.0f}", f"{row['seconds']:,.0f} s", memory]


def notes_of(found: Mapping[str, Any]) -> list[str]:
    """What the numbers are, under the table."""
    rows = found["rows"]
    single = [safe(row["name"]) for row in rows if len(row["seeds"]) == 1]
    over = "Student's t over the seeds" if len(single) < len(rows) else "bootstrap over the examples of the one run"
    if 0 < len(single) < len(rows):
        over += f" (of {', '.join(single)}, with one run, bootstrap over its examples)"
    notes = [
        f"Brackets behind a mean: 95% interval, {over}. Examples: example-forwards in training, mean of the seeds."
    ]
    compared = [row for row in rows if any("delta" in cell for cell in row["columns"].values())]
    if compared:
        notes.append(f"Below: differences to {safe(found['baseline'])} with a 95% interval. {_covers(found, compared)}")
    if len(rows) > 1 and not any(row["columns"]["mean"]["best"] for row in rows):
        notes.append("The metrics point in different directions, so of the mean nothing is better or worse.")
    if found["baseline"] is None and len(rows) > 1 and not found["left_out"]:
        notes.append("No recipe here trains each task alone; --baseline NAME shows differences to another one.")
    notes += [f"Left out: {safe(name)}, because of {safe(why, 500)}." for name, why in found["left_out"].items()]
    return notes + [safe(note, 1000) for note in found["notes"]]


def _covers(found: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]) -> str:
    """What the intervals of the differences stand for."""
    alone = {row["name"]: len(row["seeds"]) == 1 for row in found["rows"]}
    examples = [safe(row["name"]) for row in compared if alone[row["name"]] or alone[found["baseline"]]]
    one = "covers other examples, not other seeds: one seed cannot tell, so nothing is marked 'worse'"
    if len(examples) == len(compared):
        return f"It {one}."
    text = (
        "It covers other seeds and other examples (paired two-level bootstrap, the seeds' part as wide as "
        "Student's t); 'worse' marks negative transfer: no part of it is better."
    )
    return text + (f" Of {', '.join(examples)} it {one}." if examples else "")
