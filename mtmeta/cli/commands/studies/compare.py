"""`mtmeta compare`: recipes against each other, over seeds."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from mtmeta.cli.options import (
    Baseline,
    DataRoot,
    Detach,
    Device,
    Jobs,
    Json,
    Margin,
    NoPlugin,
    On,
    Set,
    Tasks,
    run_request,
    show_submitted,
)
from mtmeta.core.errors import Incomplete, UsageError


class Until(StrEnum):
    """When a row of a comparison has run enough."""

    interval = "interval"


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
        int | None,
        typer.Option(min=1, max=1000, metavar="N", help="Runs of each recipe: its seed and those after it; default 3."),
    ] = None,
    add_seeds: Annotated[
        int | None, typer.Option(min=1, max=1000, metavar="N", help="So many seeds more than the comparison has.")
    ] = None,
    baseline: Baseline = None,
    margin: Margin = None,
    until: Annotated[
        Until | None,
        typer.Option(help="Give a row no further seeds once its interval excludes 0; --seeds is the most."),
    ] = None,
    tasks: Tasks = None,
    jobs: Jobs = None,
    on: On = None,
    detach: Detach = False,
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
      mtmeta compare alone.yaml together.yaml --seeds 10 --margin 0.005 --until interval
      mtmeta compare alone.yaml together.yaml --on slurm --set launcher.gpus=1 --detach
    """
    if json_ + markdown + csv > 1:
        raise UsageError("--json, --markdown, --csv", "say three ways of printing; give one of them")
    from mtmeta.core.signals import stop_on_signals

    with stop_on_signals() as stop:
        request = run_request(set_=set_, out=out, data_root=data_root, device=device, no_plugin=no_plugin, stop=stop)
        from mtmeta.core.reports.terminal.study_progress import StudyView
        from mtmeta.core.studies.compare import compare_recipes
        from mtmeta.core.studies.launching.placement import place
        from mtmeta.core.studies.protocol import Protocol, chosen_tasks

        counted = chosen_tasks(tasks.split(","), "--tasks") if tasks is not None else ()
        protocol = Protocol(tuple(baseline or ()), margin, until is not None, counted)
        numbers: dict[str, Any] = {"seeds": seeds, "add_seeds": add_seeds}
        placement, request = place(request, on, jobs=jobs, detach=detach)
        incomplete: Incomplete | None = None
        try:
            with StudyView().open() as view:
                table = compare_recipes(recipes, request, protocol, placement, **numbers, say=view.say, watcher=view)
        except Incomplete as error:
            table, incomplete = error.comparison, error
    if detach:
        return show_submitted(table, json_=json_)
    _show(table, json_=json_, markdown=markdown, csv=csv)
    if incomplete is not None:
        raise incomplete


def _show(table: dict[str, Any], *, json_: bool, markdown: bool, csv: bool) -> None:
    from mtmeta.core.reports.comparison import as_csv, as_markdown
    from mtmeta.core.reports.terminal.comparison import show_comparison

    if json_:
        print(json.dumps(table, allow_nan=False))
    elif markdown:
        print(as_markdown(table), end="")
    elif csv:
        print(as_csv(table), end="")
    else:
        show_comparison(table)
