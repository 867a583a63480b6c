"""`mtmeta runs`: the runs under a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import Json


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look.")] = Path("runs"), json_: Json = False
) -> None:
    """List the runs under a folder: how far each is, metrics, age.

    The newest come first.

    \b
    Examples:
      mtmeta runs
      mtmeta runs runs/compare --json
    """
    from mtmeta.core.reports.terminal.run_list import list_runs, show_runs

    rows = list_runs(folder)
    print(json.dumps(rows)) if json_ else show_runs(rows, folder)
