"""A few-shot adaptation as one HTML page: curves of the metric against shots, what was gained, and the table."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.errors import UsageError
from mtmeta.core.reports.html import plots
from mtmeta.core.reports.html.page import details, figures, heading, page, paragraph, table
from mtmeta.core.reports.terminal.adaptation import between, notes_of, title_of
from mtmeta.core.storage.disk import write_file

__all__ = ["check_page", "write_page"]

PLAIN_SERIES = 7  # grey


def check_page(out: Path) -> None:
    """Raise what would keep the page from being written, before anything is computed for it."""
    plots.require("mtmeta adapt --out")
    nearest = next(path for path in (out, *out.absolute().parents) if os.path.lexists(path))
    if out.is_dir():
        raise UsageError("--out", f"'{out}' is a directory; name a file, such as {out / 'adapt.html'}")
    if (nearest != out and not nearest.is_dir()) or (nearest == out and not out.is_file()):
        raise UsageError("--out", f"'{nearest}' is no {'file' if nearest == out else 'directory'}; name another file")


def write_page(found: Mapping[str, Any], out: str | Path) -> Path:
    """Write the page of what `adapt` found to `out`; returns its path. Raises MachineError without matplotlib."""
    plain, *runs = found["starts"]
    cells = found["cells"]
    draws = len(cells[0]["starts"][plain]["values"])
    several = "runs" if len(runs) > 1 else "run"
    parts = [
        heading(f"{found['recipe']}: few-shot adaptation", 1),
        paragraph(
            f"{several.capitalize()} {', '.join(runs)} and the pretrained encoder, each fine-tuned on the same few "
            f"examples of each class for {found['steps']} steps, head {found['head']}, and scored on {found['split']}."
        ),
        paragraph(
            "Lines are means over the draws, "
            + ("bars their 95% intervals by Student's t, dots single draws. " if draws > 1 else "of one draw each. ")
            + "The gain is over the pretrained encoder on the same examples: a bar clear of zero is more "
            "than the draws vary."
        ),
    ]
    for task in dict.fromkeys(cell["task"] for cell in cells):
        here = sorted((cell for cell in cells if cell["task"] == task), key=lambda cell: cell["shots"])
        parts += [heading(task), figures(_curves(task, here, plain, runs), wide=True)]
    parts += [heading("Table"), _table(found), *map(paragraph, notes_of(found))]
    parts.append(details("Every draw", [_draws(found)]))
    write_file(Path(out), page(title_of(found), parts))
    return Path(out)


def _curves(task: str, cells: Sequence[Mapping[str, Any]], plain: str, runs: Sequence[str]) -> list[tuple[str, str]]:
    """The metric of every start, and the gain of every run."""
    metric, shots = cells[0]["metric"], [cell["shots"] for cell in cells]
    series = {plain: PLAIN_SERIES} | {name: number % PLAIN_SERIES for number, name in enumerate(runs)}

    def curve(name: str, made: Sequence[Mapping[str, Any]], values: Sequence[Sequence[float]]) -> plots.Curve:
        mean, low, high = ([one[end] for one in made] for end in ("mean", "low", "high"))
        return plots.Curve(name, shots, mean, low, high, values, series[name], dashed=name == plain)

    of = {name: [cell["starts"][name] for cell in cells] for name in (plain, *runs)}
    drawn = [curve(name, made, [one["values"] for one in made]) for name, made in of.items()]
    gains = []
    for name in runs:
        pairs = [zip(one["values"], base["values"], strict=True) for one, base in zip(of[name], of[plain], strict=True)]
        gained = [[value - other for value, other in pair] for pair in pairs]
        gains.append(curve(name, [one["gain"] for one in of[name]], gained))
    x = "examples of each class"
    titles = f"{task}: {metric}", f"{task}: gain over the {plain} encoder"
    return [
        (titles[0], plots.curves(titles[0], x, metric, drawn)),
        (titles[1], plots.curves(titles[1], x, f"gain in {metric}", gains, zero=True)),
    ]


def _table(found: Mapping[str, Any]) -> str:
    rows = []
    for cell in found["cells"]:
        row = [(f"{cell['task']} {cell['metric']}", False), (f"{cell['shots']:,}", False)]
        for start, made in cell["starts"].items():
            gain = "\n" + between(made["gain"], "{:+.4f}", "{:+.3f}") if "gain" in made else ""
            row.append((between(made, "{:.4f}", "{:.3f}") + gain, start == cell["best"]))
        rows.append(row)
    return table(["task", "shots", *found["starts"]], rows, numbers=len(found["starts"]))


def _draws(found: Mapping[str, Any]) -> str:
    header = ["task", "start", "shots", "draw", "examples", "metric", "value", "seconds"]
    rows = [
        [
            *(str(made[key]) for key in ("task", "start", "shots")),
            str(made["draw"] + 1),
            *(str(made[key]) for key in ("examples", "metric")),
            f"{made['value']:.4f}",
            f"{made['seconds']:.1f}",
        ]
        for made in found["adapted"]
    ]
    return table(header, [[(text, False) for text in row] for row in rows], numbers=2)
