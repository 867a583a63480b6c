"""A few-shot adaptation as one HTML page: curves of the metric against shots, the gains, and the table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.errors import UsageError
from mtmeta.core.reports.adaptation import cells_of, notes_of, rows_of, title_of, tone, verdict_of
from mtmeta.core.reports.html import plots
from mtmeta.core.reports.html.page import Figure, render
from mtmeta.core.reports.html.study_plots import Dot, Group, differences
from mtmeta.core.reports.table import Cell, Table
from mtmeta.core.storage.outputs import write_output
from mtmeta.core.studies.comparison import TELLING
from mtmeta.core.wording import plural

PLAIN_SERIES = 7  # grey


def check_page(out: Path) -> None:
    """Raise what would keep the page from being written, before anything is computed for it."""
    plots.require("mtmeta adapt --out")
    nearest = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if out.is_dir():
        raise UsageError("--out", f"'{out}' is a directory; name a file, such as {out / 'adapt.html'}")
    if nearest != out and not nearest.is_dir():
        raise UsageError("--out", f"'{nearest}' is no directory; name another file")


def write_page(adaptation: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of a result of `adapt` to `out`; return its path. Raises MachineError without matplotlib."""
    plain, *runs = adaptation["starts"]
    cells = adaptation["cells"]
    curves = {}
    for task in dict.fromkeys(cell["task"] for cell in cells):
        of_task = sorted((cell for cell in cells if cell["task"] == task), key=lambda cell: cell["shots"])
        curves[task] = _curves(task, of_task, plain, runs)
    means = [
        [Cell(f"{cell['task']} {cell['metric']}"), Cell(f"{cell['shots']:,}"), *cells_of(cell)]
        for cell in rows_of(adaptation)
    ]
    page = render(
        "adaptation.html.j2",
        title=title_of(adaptation),
        adaptation=adaptation,
        runs=runs,
        draws=adaptation["draws"],
        curves=curves,
        means=Table(["task", "shots", *adaptation["starts"]], means),
        each_draw=_each_draw(adaptation),
        verdict=verdict_of(adaptation),
        gains=_gains(adaptation, narrow=False),
        narrow=_gains(adaptation, narrow=True),
        notes=notes_of(adaptation),
    )
    write_output(Path(out), page)
    return Path(out)


def _gains(adaptation: Mapping[str, Any], *, narrow: bool) -> list[Figure]:
    """Draw what every run gains over the pretrained encoder, with its interval over the draws."""
    plain, *runs = adaptation["starts"]
    groups = []
    for cell in rows_of(adaptation):
        dots = []
        for run in runs:
            gain, told = cell["starts"][run]["gain"], cell["draws"] >= TELLING
            low, high = (gain["low"], gain["high"]) if told else (None, None)
            interval = f" [{low:+.3f}, {high:+.3f}]" if low is not None else ""
            found = tone(gain, cell.get("sign", 1), cell["draws"])
            dots.append(Dot(run, gain["mean"], low, high, found, f"{gain['mean']:+.3f}{interval}"))
        groups.append(Group(f"{cell['task']} {cell['metric']}, {plural(cell['shots'], 'shot')}", dots))
    return differences(f"Gains over the {plain} encoder", groups, None, narrow=narrow) if runs else []


def _curves(task: str, cells: Sequence[Mapping[str, Any]], plain: str, runs: Sequence[str]) -> list[Figure]:
    """Draw the metric of every start, and the gain of every run."""
    metric, shots = cells[0]["metric"], [cell["shots"] for cell in cells]
    series = {plain: PLAIN_SERIES} | {name: number % PLAIN_SERIES for number, name in enumerate(runs)}

    def curve(name: str, scores: Sequence[Mapping[str, Any]], values: Sequence[Sequence[float]]) -> plots.Curve:
        mean, low, high = ([score[end] for score in scores] for end in ("mean", "low", "high"))
        return plots.Curve(name, shots, mean, low, high, values, series[name], dashed=name == plain)

    of = {name: [cell["starts"][name] for cell in cells] for name in (plain, *runs)}
    metrics = [curve(name, scores, [score["values"] for score in scores]) for name, scores in of.items()]
    gains = []
    for name in runs:
        pairs = [zip(one["values"], base["values"], strict=True) for one, base in zip(of[name], of[plain], strict=True)]
        gained = [[value - other for value, other in pair] for pair in pairs]
        gains.append(curve(name, [score["gain"] for score in of[name]], gained))
    x = "examples of each class"
    gain_title = f"{task}: gain over the {plain} encoder"
    return [
        plots.curves(f"{task}: {metric}", x, metric, metrics),
        plots.curves(gain_title, x, f"gain in {metric}", gains, zero=True),
    ]


def _each_draw(adaptation: Mapping[str, Any]) -> Table:
    header = ["task", "start", "shots", "draw", "examples", "metric", "value", "seconds"]
    rows = []
    for draw in adaptation["adapted"]:
        formatted = {"draw": draw["draw"] + 1, "value": f"{draw['value']:.4f}", "seconds": f"{draw['seconds']:.1f}"}
        rows.append([Cell(str((draw | formatted)[key])) for key in header])
    return Table(header, rows)
