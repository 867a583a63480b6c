"""`mtmeta curve`: what more training data is worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import DataRoot, Device, Jobs, Json, NoPlugin, On, Set, run_request, say, warn
from mtmeta.core.errors import MachineError, UsageError
from mtmeta.core.wording import quote


def curve(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file, or a name of `mtmeta recipes`.", show_default=False)
    ],
    fractions: Annotated[
        str, typer.Option(metavar="F,F,..", help="Shares of each training set, above 0 and at most 1.")
    ] = "0.1,0.3,1",
    seeds: Annotated[
        int | None,
        typer.Option(min=1, max=1000, metavar="N", help="Runs of each share: the recipe's seed and those after it."),
    ] = None,
    jobs: Jobs = None,
    on: On = None,
    set_: Set = None,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder of runs and page.")] = Path("runs/curve"),
    data_root: DataRoot = None,
    device: Device = "auto",
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Train a recipe on shares of its data: one table and a page.

    It shows what more data would be worth. Runs are those of `mtmeta compare`: the same command again goes on where it
    was cut, and uses the runs that are finished. The page is DIR/curve.html.

    \b
    Examples:
      mtmeta curve my.yaml --fractions .01,.1,1 --seeds 3
      mtmeta curve my.yaml --fractions .1,.3,1 --set training.epochs=5
    """
    shares = _shares(fractions)
    from mtmeta.core.signals import stop_on_signals

    with stop_on_signals() as stop:
        request = run_request(set_=set_, out=out, data_root=data_root, device=device, no_plugin=no_plugin, stop=stop)
        from mtmeta.core.studies.curve import learning_curve
        from mtmeta.core.studies.launching.placement import place

        placement, request = place(request, on, jobs=jobs)
        found = learning_curve(recipe, request, shares, placement, seeds=seeds, say=say)
    from mtmeta.core.reports.learning_curve import write_page
    from mtmeta.core.reports.terminal.learning_curve import show_curve

    print(json.dumps(found, allow_nan=False)) if json_ else show_curve(found)
    try:
        say(f"plots in {write_page(found, out / 'curve.html')}")
    except MachineError as error:  # the table is there all the same
        warn(f"{error}; there is no page of plots")


def _shares(text: str) -> list[float]:
    """Parse the value of --fractions. Raises UsageError."""
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise UsageError("--fractions", f"takes numbers with commas between, found {quote(text)}") from None
