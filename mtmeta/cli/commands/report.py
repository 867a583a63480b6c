"""`mtmeta report`: a page about runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import NoPlugin, warn


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run directories, such as runs/NAME.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("report.html"),
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Recipe that differences are to; default: the individual one.")
    ] = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Write one self-contained HTML page about runs.

    It shows results, curves, losses, sampling, gradients and predictions, without a script or the network.

    \b
    Examples:
      mtmeta report runs/reptile_three_task
      mtmeta report runs/compare/* --out page.html
    """
    from mtmeta.core.reports.html.report import report as write_report

    print(write_report(runs, out=out, baseline=baseline, block=no_plugin or [], warn=warn))
