"""A learning curve over the share of the training data: its table, and the page with its plots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.reports.comparison import notes_of
from mtmeta.core.reports.html import plots
from mtmeta.core.reports.html.page import Figure, render
from mtmeta.core.reports.table import Cell, Table
from mtmeta.core.storage.outputs import write_output
from mtmeta.core.wording import plural


def table_of(curve: Mapping[str, Any]) -> Table:
    """Return a row for each share: training examples, and mean with interval of every task and of all."""
    metrics, points = curve["metrics"], curve["points"]
    columns = list(points[0]["columns"])
    heads = [f"{name} {metrics[name]}" if name in metrics else name for name in columns]
    rows = []
    for point in points:
        examples = ", ".join(f"{count:,}" for count in point["examples"].values())
        cells = [Cell(f"{point['fraction']:g}"), Cell(examples)]
        for name in columns:
            cell = point["columns"][name]
            interval = f" [{cell['low']:.3f}, {cell['high']:.3f}]" if cell["low"] is not None else ""
            cells.append(Cell(f"{cell['mean']:.4f}{interval}"))
        rows.append(cells)
    return Table(["share", "examples", *heads], rows)


def title_of(curve: Mapping[str, Any]) -> str:
    """Return what the table shows, in a line."""
    seeds = len(curve["comparison"]["rows"][0]["seeds"])
    return f"{curve['recipe']} on shares of its training data: {curve['split']}, {plural(seeds, 'seed')}"


def figures_of(curve: Mapping[str, Any]) -> list[Figure]:
    """Draw the metric of each task, and the mean of all, against the training examples, on a log axis."""
    return [_figure(curve, column) for column in curve["points"][0]["columns"]]


def _figure(curve: Mapping[str, Any], column: str) -> Figure:
    points, metric = curve["points"], curve["metrics"].get(column, "mean of the tasks")
    counts = [_examples(point["examples"], column) for point in points]
    cells = [point["columns"][column] for point in points]
    # in thousandths of the whole where the runs told no examples: the axis takes whole numbers
    axis = "training examples" if all(counts) else "training data, thousandths"
    x: Sequence[int] = counts if all(counts) else [max(1, round(1000 * point["fraction"])) for point in points]
    mean, low, high, values = ([cell[key] for cell in cells] for key in ("mean", "low", "high", "values"))
    return plots.curves(f"{column}: {metric}", axis, metric, [plots.Curve("", x, mean, low, high, values)])


def _examples(examples: Mapping[str, int], column: str) -> int:
    return examples.get(column, 0) if column in examples else sum(examples.values())


def write_page(curve: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of a learning curve to `out`; return its path. Raises MachineError without matplotlib."""
    page = render(
        "curve.html.j2",
        title=title_of(curve),
        table=table_of(curve),
        figures=figures_of(curve),
        notes=notes_of(curve["comparison"]),
    )
    write_output(Path(out), page)
    return Path(out)
