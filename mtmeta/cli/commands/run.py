"""`mtmeta run`: train a recipe, or say what that would be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mtmeta.cli.options import ChangedData, DataRoot, Device, Json, NoPlugin, Set, run_request, say
from mtmeta.core.errors import UsageError


def run(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file, or a name of `mtmeta recipes`.", show_default=False)
    ],
    set_: Set = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Run directory; default runs/NAME.")] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    fresh: Annotated[bool, typer.Option("--fresh", help="Start over in a directory that holds a run.")] = False,
    allow_changed_data: ChangedData = False,
    allow_inexact: Annotated[
        bool,
        typer.Option(
            "--allow-inexact", help="Go on with another torch, thread count, device, ... than the run began with."
        ),
    ] = False,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait for another process that trains in the directory, and go on after it.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train nothing: print the plan, and the time it would take.")
    ] = False,
    probe: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=1000,
            metavar="N",
            help="With --dry-run: steps to time, in memory, for 15 s at most; default 20, 0 for none.",
        ),
    ] = None,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Train a recipe, evaluate it, leave a run directory.

    The same command again goes on where a run was cut; of a finished one it shows the table.

    \b
    Examples:
      mtmeta run reptile_three_task
      mtmeta run my.yaml --dry-run
      mtmeta run my.yaml --set training.steps=20 --set optimizer.lr=0.5 --out runs/short
    """
    options: dict[str, Any] = {"set_": set_, "out": out, "data_root": data_root, "device": device, "fresh": fresh}
    options |= {
        "wait": wait,
        "allow_changed_data": allow_changed_data,
        "allow_inexact": allow_inexact,
        "no_plugin": no_plugin,
    }
    if dry_run:
        _show_plan(recipe, options, 20 if probe is None else probe, json_=json_)
    elif probe is not None:
        raise UsageError("--probe", "is for --dry-run; give both")
    else:
        _train(recipe, options, json_=json_)


def _train(recipe: Path, options: dict[str, Any], *, json_: bool) -> None:
    from mtmeta.core.distributed.ranks import ranks_of
    from mtmeta.core.signals import stop_on_signals

    with stop_on_signals() as stop:
        ranks = ranks_of()
        request = run_request(recipe, stop=stop, ranks=ranks, **options)
        from mtmeta.core.reports.terminal.results import show_results
        from mtmeta.core.run.run import train

        summary = train(request).plain()
    if ranks.rank == 0:
        print(json.dumps(summary)) if json_ else show_results(summary)


def _show_plan(recipe: Path, options: dict[str, Any], probe_steps: int, *, json_: bool) -> None:
    request = run_request(recipe, **options)
    from mtmeta.core.export.obstacles import obstacles
    from mtmeta.core.reports.terminal.plan import show_plan
    from mtmeta.core.run.plan import plan

    facts = plan(request, probe_steps, obstacles, say)
    print(json.dumps(facts)) if json_ else show_plan(facts)
