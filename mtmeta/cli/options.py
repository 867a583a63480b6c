"""Options that mean the same in every command, and the lines that commands print on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mtmeta.core.wording import plural, safe, visible

if TYPE_CHECKING:
    from mtmeta.core.run.request import RunRequest

Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Change a recipe option, as training.steps=20; repeatable."),
]
DataRoot = Annotated[
    str | None, typer.Option(metavar="DIR", help="Folder that data paths start from; wins over MTMETA_DATA.")
]
Device = Annotated[str, typer.Option(metavar="DEVICE", help="auto, cpu, cuda or cuda:N.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout, nothing else there.")]
Baseline = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME", help="Recipe that differences are to; repeatable; default: the individual one."),
]
Margin = Annotated[
    float | None,
    typer.Option(metavar="X", help="Say which rows are not inferior to a baseline: surely better than a loss of X."),
]
Tasks = Annotated[
    str | None,
    typer.Option(metavar="A,B", help="Tasks that count; others are helpers. Default: all, the same in each recipe."),
]
NoPlugin = Annotated[
    list[str] | None, typer.Option("--no-plugin", metavar="NAME", help="Leave a plugin out; repeatable.")
]
Jobs = Annotated[
    int | None, typer.Option(min=1, max=1000, metavar="N", help="Runs at a time, which share the cores; default 1.")
]
On = Annotated[
    str | None,
    typer.Option(
        metavar="NAME", help="Where runs run: local, slurm, ...; options by --set launcher.KEY=VALUE; default local."
    ),
]
Detach = Annotated[
    bool, typer.Option("--detach", help="With --on: submit the runs as jobs and end; without it again, wait for them.")
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory, such as runs/NAME.", show_default=False)]
ChangedData = Annotated[
    bool, typer.Option("--allow-changed-data", help="Go on although a data file changed since the run began.")
]


def say(text: str) -> None:
    """Print a line on stderr, if there is one: print() itself would take stdout instead."""
    if sys.stderr is not None:
        print(safe(text, 1000), file=sys.stderr, flush=True)


def show_submitted(submitted: dict[str, Any], *, json_: bool) -> None:
    """Print what became of a study that is not waited for."""
    jobs, finished, runs = len(submitted["submitted"]), submitted["finished"], submitted["runs"]
    if json_:
        print(json.dumps(submitted))
        return
    print(f"{plural(jobs, 'job')} for {plural(runs, 'run')}, {finished} of them finished already")
    print(f"mtmeta runs {visible(submitted['out'])} shows them; the same command without --detach waits for the result")


def warn(text: str) -> None:
    """Print a warning on stderr."""
    say(f"warning: {safe(text, 500)}")


def run_request(
    recipe: Path | str = "",
    *,
    set_: Sequence[str] | None = None,
    no_plugin: Sequence[str] | None = None,
    **options: Any,
) -> RunRequest:
    """Build the request of a command that needs PyTorch; warnings and downloads go to stderr.

    Raises MachineError if PyTorch is too old.
    """
    from mtmeta.core.environment import check_torch

    check_torch()
    from mtmeta.core.reports.terminal.fetching import FetchView
    from mtmeta.core.run.request import RunRequest

    return RunRequest(recipe, overrides=set_ or (), block=no_plugin or (), warn=warn, watcher=FetchView(), **options)
