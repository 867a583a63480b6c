"""A comparison in words: title, cells and notes; as Markdown, and flat as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mtmeta.core.reports.table import Cell, Table
from mtmeta.core.wording import safe

COSTS = ("examples", "time", "memory")


def as_markdown(comparison: Mapping[str, Any]) -> str:
    """Return the table in GitHub's Markdown, the best of each column bold."""
    table = table_of(comparison)
    lines = [[*table.header], ["---:" if heading in COSTS else "---" for heading in table.header]]
    for cells in table.rows:
        values = [f"**{cell.value}**" if cell.best else cell.value for cell in cells]
        below = [f"<br>{cell.below}" if cell.below else "" for cell in cells]
        lines.append(list(map("".join, zip(values, below, strict=True))))
    text = "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)
    notes = [re.sub(r"([\\`<>|])", r"\\\1", note) for note in notes_of(comparison)]  # values of locks are among them
    return "\n\n".join([title_of(comparison), text, *notes]) + "\n"


def table_of(comparison: Mapping[str, Any], between: str = " ") -> Table:
    """Return the table: mean and interval, below them the difference; `between` parts a number from its interval."""
    metrics = comparison["metrics"]
    columns = [f"{name} {metrics[name]}" if name in metrics else name for name in comparison["rows"][0]["columns"]]
    rows = []
    for row in comparison["rows"]:
        cells = [Cell(row["name"])]
        for cell in row["columns"].values():
            below = _delta(cell["delta"], between) if "delta" in cell else ""
            interval = "" if cell["low"] is None else f"{between}[{cell['low']:.3f}, {cell['high']:.3f}]"
            cells.append(Cell(f"{cell['mean']:.4f}{interval}", below, cell["best"]))
        memory = f"{row['peak_memory_bytes'] / 2**30:.2f} GiB"
        rows.append([*cells, *map(Cell, (f"{row['examples']:,.0f}", f"{row['seconds']:,.0f} s", memory))])
    return Table(["regime", *columns, *COSTS], rows)


def as_csv(comparison: Mapping[str, Any]) -> str:
    """Return a line for each regime and column, with every number of the table, unrounded."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    keys = ("value", "low", "high", "p", "negative_transfer")
    header = ["regime", "algorithm", "column", "metric", "split", "seeds", "mean", "low", "high", "best"]
    writer.writerow([*header, *(f"delta_{key}" for key in keys), "examples", "seconds", "peak_memory_bytes"])
    for row in comparison["rows"]:
        seeds = " ".join(map(str, row["seeds"]))
        for column, cell in row["columns"].items():
            delta = cell.get("delta", {})
            metric = comparison["metrics"].get(column, "")
            front = [row["name"], row["algorithm"], column, metric, comparison["split"], seeds]
            middle = [cell[key] for key in ("mean", "low", "high", "best")] + [delta.get(key) for key in keys]
            writer.writerow([*front, *middle, row["examples"], row["seconds"], row["peak_memory_bytes"]])
    return text.getvalue()


def title_of(comparison: Mapping[str, Any]) -> str:
    """Return split and seeds in a line; of rows with other seeds, those of each row."""
    seeds = {row["name"]: ", ".join(map(str, row["seeds"])) for row in comparison["rows"]}
    shown = {*seeds.values()} if len({*seeds.values()}) == 1 else [f"{name} {text}" for name, text in seeds.items()]
    return f"{comparison['split']}, best weights of each run, seeds: {'; '.join(shown)}"


def _delta(delta: Mapping[str, Any], between: str) -> str:
    worse = f"{between}worse" if delta["negative_transfer"] else ""
    interval = "" if delta["low"] is None else f"{between}[{delta['low']:+.3f}, {delta['high']:+.3f}]"
    return f"{delta['value']:+.4f}{interval}{worse}"


def notes_of(comparison: Mapping[str, Any]) -> list[str]:
    """Return the lines under the table: what its numbers are, what was left out, and why."""
    rows = comparison["rows"]
    single = [safe(row["name"]) for row in rows if len(row["seeds"]) == 1]
    over = "Student's t over the seeds" if len(single) < len(rows) else "bootstrap over the examples of the one run"
    if 0 < len(single) < len(rows):
        over += f" (of {', '.join(single)}, with one run, bootstrap over its examples)"
    examples = "Examples: example-forwards in training, mean of the seeds."
    taught = [row for row in rows if row.get("teacher_examples")]
    if taught:
        shares = ", ".join(f"{safe(row['name'])} {row['teacher_examples']:,.0f}" for row in taught)
        examples += f" Among them those of its teachers, whom one run would need as well: {shares}."
    notes = [f"Brackets behind a mean: 95% interval, {over}. {examples}"]
    compared = [row for row in rows if any("delta" in cell for cell in row["columns"].values())]
    if compared:
        below = f"Below: differences to {safe(comparison['baseline'])} with a 95% interval."
        notes.append(f"{below} {_covers(comparison, compared)}")
    if len(rows) > 1 and not any(row["columns"]["mean"]["best"] for row in rows):
        notes.append("The metrics point in different directions, so of the mean nothing is better or worse.")
    if comparison["baseline"] is None and len(rows) > 1 and not comparison["left_out"]:
        notes.append("No recipe here trains each task alone; --baseline NAME shows differences to another one.")
    notes += [f"Left out: {safe(name)}, because of {safe(why, 500)}." for name, why in comparison["left_out"].items()]
    return notes + [safe(note, 1000) for note in comparison["notes"]]


def _covers(comparison: Mapping[str, Any], compared: Sequence[Mapping[str, Any]]) -> str:
    """Return a sentence on what the intervals of the differences stand for."""
    alone = {row["name"]: len(row["seeds"]) == 1 for row in comparison["rows"]}
    examples = [safe(row["name"]) for row in compared if alone[row["name"]] or alone[comparison["baseline"]]]
    one_seed = "covers other examples, not other seeds: one seed cannot tell, so nothing is marked 'worse'"
    if len(examples) == len(compared):
        return f"It {one_seed}."
    text = (
        "It covers other seeds and other examples (paired two-level bootstrap, the seeds' part as wide as "
        "Student's t); 'worse' marks negative transfer: no part of it is better."
    )
    return text + (f" Of {', '.join(examples)} it {one_seed}." if examples else "")
