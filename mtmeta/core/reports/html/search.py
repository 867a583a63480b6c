"""A search as one HTML page: its history, the best trials, what each key matters, and the values over every key."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mtmeta.core.reports.html import search_plots
from mtmeta.core.reports.html.page import render
from mtmeta.core.reports.html.search_plots import Axis, Trial
from mtmeta.core.reports.table import Cell, Table
from mtmeta.core.reports.tuning import best_table, importance_table, notes_of, ranked, shown, title_of
from mtmeta.core.storage.outputs import write_output

TOP = 0.25
"""Share of the complete trials that stand out."""


def write_page(search: Mapping[str, Any], out: str | Path | None) -> Path:
    """Write the page of a search to `out`, by default report.html here; return its path.

    Raises MachineError without matplotlib.
    """
    trials = [
        Trial(trial["number"], trial["value"], trial["state"] != "complete", trial["settings"])
        for trial in search["trials"]
    ]
    keys = [Axis.of(key, given) for key, given in search["space"].items()]
    some = bool(ranked(search))
    page = render(
        "search.html.j2",
        title=title_of(search),
        search=search,
        top=f"{TOP:.0%}",
        history=[search_plots.history("Every trial", "trial", f"value on {search['split']}", trials)] if some else [],
        slices=[search_plots.slices(axis.key, axis.key, "value", axis, trials) for axis in keys] if some else [],
        parallel=[search_plots.parallel("Settings and value", "", "", keys, trials, TOP)] if some else [],
        best=best_table(search),
        importance=importance_table(search),
        every=_every(search),
        notes=notes_of(search),
    )
    path = Path(out if out is not None else "report.html")
    write_output(path, page, named=out is not None)
    return path


def _every(search: Mapping[str, Any]) -> Table:
    """Return a row for each trial, in their order, with what became of it."""
    keys = list(search["space"])
    rows = []
    for trial in search["trials"]:
        value = "" if trial["value"] is None else f"{trial['value']:.4f}"
        settings = [shown(trial["settings"].get(key)) for key in keys]
        cells = [str(trial["number"]), trial["state"], value, *settings, trial.get("reason", "")]
        rows.append([*map(Cell, cells)])
    return Table(["trial", "state", "value", *keys, "reason"], rows)
