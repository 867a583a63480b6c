"""`mtmeta runs`, the runs under a folder; `mtmeta report`, a page about runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mtmeta.cli.options import Baseline, Json, Margin, NoPlugin, Tasks, warn


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look.")] = Path("runs"),
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """List the runs under a folder: how far each is, metrics, age.

    The newest come first. Jobs of a launcher (--on) are queued, running, preempted, cancelled, failed or lost.

    \b
    Examples:
      mtmeta runs
      mtmeta runs runs/compare --json
    """
    from mtmeta.core.reports.terminal.run_list import list_runs, show_runs

    rows = list_runs(folder, no_plugin or [])
    print(json.dumps(rows)) if json_ else show_runs(rows, folder)


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run directories, or one study.", show_default=False)
    ],
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The page; default report.html.")] = None,
    baseline: Baseline = None,
    margin: Margin = None,
    tasks: Tasks = None,
    no_texts: Annotated[
        bool, typer.Option("--no-texts", help="Name the worst errors by their ids; the page holds no text of the data.")
    ] = False,
    no_plugin: NoPlugin = None,
) -> None:
    """Write one self-contained HTML page about runs.

    It begins with what they come to, in a sentence and a plot of differences; then tables, curves by examples,
    classes, confusions, the worst errors with their texts, and each run; without a script or the network.

    \b
    Examples:
      mtmeta report runs/reptile_three_task
      mtmeta report runs/compare/* --out page.html
      mtmeta report runs/NAME-tune
    """
    from mtmeta.core.reports.html.report import report as write_report
    from mtmeta.core.storage.outputs import is_stream
    from mtmeta.core.wording import visible

    options: dict[str, Any] = {
        "baseline": baseline,
        "margin": margin,
        "tasks": () if tasks is None else tasks.split(","),
        "texts": not no_texts,
        "block": no_plugin or [],
        "warn": warn,
    }
    page = write_report(runs, out=out, **options)
    if not is_stream(page):
        print(visible(str(page)))
