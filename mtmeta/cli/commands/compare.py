"""`mtmeta compare`: recipes against each other, over seeds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import DataRoot, Device, Json, NoPlugin, Set, say, warn
from mtmeta.core.errors import Incomplete, UsageError

__all__ = ["compare"]


def compare(
    recipes: Annotated[
        list[Path],
        typer.Argument(
            metavar="RECIPE",
            help="Recipes of the same tasks: YAML files, or names of `mtmeta recipes`.",
            show_default=False,
        ),
    ],
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Runs of each recipe: its seed and those after it.")
    ] = 3,
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Recipe that differences are to; default: the individual one.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, max=1000, metavar="N", help="Runs at a time; they share the cores.")] = 1,
    set_: Set = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of the runs.")] = Path("runs/compare"),
    data_root: DataRoot = None,
    device: Device = "auto",
    no_plugin: NoPlugin = None,
    json_: Json = False,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table in Markdown.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="Print one line for each regime and column.")] = False,
) -> None:
    """Run recipes with several seeds: one table, with intervals.

    It shows which regime serves the tasks, against a baseline. The same command again goes on where it was cut, and
    uses the runs that are finished.

    \b
    Examples:
      mtmeta compare minilm/joint minilm/reptile minilm/individual --data-root DATA --seeds 3
    """
    if json_ + markdown + csv > 1:
        raise UsageError("--json, --markdown, --csv", "say three ways of printing; give one of them")
    from mtmeta.core.signals import stop_on_signals

    with stop_on_signals() as stop:
        from mtmeta.core.environment import check_torch
        from mtmeta.core.reports.comparison import as_csv, as_markdown
        from mtmeta.core.reports.terminal.comparison import show_comparison
        from mtmeta.core.reports.terminal.fetching import FetchView
        from mtmeta.core.studies.compare import compare as run_comparison

        check_torch()
        incomplete: Incomplete | None = None
        try:
            found = run_comparison(
                recipes,
                seeds=seeds,
                overrides=set_ or [],
                out=out,
                data_root=data_root,
                device=device,
                baseline=baseline,
                jobs=jobs,
                block=no_plugin or [],
                warn=warn,
                say=say,
                watcher=FetchView(),
                stop=stop,
            )
        except Incomplete as error:
            found, incomplete = error.comparison, error
    if json_:
        print(json.dumps(found, allow_nan=False))
    elif markdown:
        print(as_markdown(found), end="")
    elif csv:
        print(as_csv(found), end="")
    else:
        show_comparison(found)
    if incomplete is not None:
        raise incomplete
