"""`mtmeta tune`: a search for the settings of a recipe."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import DataRoot, Device, Json, NoPlugin, On, Set, run_request, say


class Pruner(StrEnum):
    """What gives trials up before their end."""

    median = "median"
    hyperband = "hyperband"
    wilcoxon = "wilcoxon"
    none = "none"


def tune(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file, or a name of `mtmeta recipes`.", show_default=False)
    ],
    space: Annotated[
        Path,
        typer.Option(metavar="FILE", help="Ranges and choices of recipe options, as space.yaml.", show_default=False),
    ],
    trials: Annotated[int, typer.Option(min=1, max=10_000, metavar="N", help="Trials in all.")] = 60,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, metavar="N", help="Runs of a trial: the recipe's seed and those after it.")
    ] = 3,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, max=1000, metavar="N", help="Trials at a time by this process; default 1, with --on all in flight."
        ),
    ] = None,
    on: On = None,
    in_flight: Annotated[
        int,
        typer.Option(
            min=1, max=1000, metavar="N", help="Trials at a time in all: each knows the outcomes of those before these."
        ),
    ] = 2,
    pruner: Annotated[
        Pruner, typer.Option(help="What gives trials up: at evaluations, between seeds (wilcoxon), or nothing.")
    ] = Pruner.median,
    budget: Annotated[
        str | None, typer.Option(metavar="examples=N", help="Example-forwards of each run; --set budget.examples=N.")
    ] = None,
    keep_weights: Annotated[
        bool, typer.Option("--keep-weights", help="Keep the weights of all trials, not of the best alone.")
    ] = False,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of the study; default runs/NAME-tune.")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Search for the settings of a recipe that are best on dev.

    Each trial is trained with several seeds, and suggested by what came of those before. The same command again goes on
    where it was cut; several at once share the work. What the best came to is left as best.yaml.

    \b
    Examples:
      mtmeta tune reptile_three_task --space space.yaml --trials 60 --seeds 3
      mtmeta tune my.yaml --space space.yaml --budget examples=20000 --jobs 2 --pruner hyperband
      mtmeta tune my.yaml --space space.yaml --on slurm --set launcher.gpus=1 --in-flight 8
    """
    from mtmeta.core.signals import stop_on_signals

    with stop_on_signals() as stop:
        request = run_request(
            recipe, set_=set_, out=out, data_root=data_root, device=device, no_plugin=no_plugin, stop=stop
        )
        from mtmeta.core.reports.terminal.tuning import show_search
        from mtmeta.core.studies.tuning.tune import tune_recipe

        found = tune_recipe(
            request,
            space,
            trials=trials,
            seeds=seeds,
            jobs=jobs,
            on=on,
            in_flight=in_flight,
            pruner=pruner.value,
            budget=budget,
            keep_weights=keep_weights,
            say=say,
        )
    print(json.dumps(found, allow_nan=False)) if json_ else show_search(found)
