"""`mtmeta cancel`: the jobs of a study are ended."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import Json, NoPlugin, warn
from mtmeta.core.wording import safe


def cancel(
    folders: Annotated[
        list[Path], typer.Argument(metavar="FOLDER", help="Folders of studies, or of runs in them.", show_default=False)
    ],
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Cancel jobs that a study started with --on.

    Runs save before they end. The command that started them goes on with them, if it is given again.

    \b
    Examples:
      mtmeta cancel runs/compare
      mtmeta cancel runs/compare/joint-1-0a1b2c3d
    """
    from mtmeta.core.registry.registry import build_registry
    from mtmeta.core.studies.launching.overview import cancel_jobs

    cancelled = cancel_jobs(folders, build_registry(block=no_plugin or [], warn=warn))
    if json_:
        print(json.dumps([{**asdict(job), "run": str(job.run)} for job in cancelled]))
        return
    for job in cancelled:
        print(safe(f"{job.label}: {job.launcher} job {job.handle} cancelled, which was {job.status}", 500))
    if not cancelled:
        print("no job to cancel")
