"""`mtmeta teach`: labels of the training sets by other models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mtmeta.cli.options import DataRoot, Detach, Device, Jobs, Json, NoPlugin, On, Set, run_request, say, show_submitted


def teach(
    recipe: Annotated[
        Path, typer.Argument(metavar="RECIPE", help="A YAML file, or a name of `mtmeta recipes`.", show_default=False)
    ],
    folds: Annotated[
        int | None,
        typer.Option(min=2, max=100, metavar="K", help="Fold models; default: those under the recipe's `teachers`."),
    ] = None,
    jobs: Jobs = None,
    on: On = None,
    detach: Detach = False,
    set_: Set = None,
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder of fold models and labels; default runs/NAME-teachers.")
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Label training sets, for other models to learn from.

    With --folds the recipe is trained K times, each time without one part of the training data, which that model then
    labels. Without it, and without folds in the recipe, the finished runs under its `teachers` label its training
    sets. The same command again goes on where it was cut. A recipe learns from the labels by
    `teachers: {TASK: {runs: [DIR]}}`.

    \b
    Examples:
      mtmeta teach alone.yaml --folds 5 --out runs/teachers
      mtmeta run together.yaml --set 'teachers={sst: {runs: [runs/teachers]}}'
    """
    from mtmeta.core.signals import stop_on_signals

    with stop_on_signals() as stop:
        options: dict[str, Any] = {"set_": set_, "out": out, "data_root": data_root, "no_plugin": no_plugin}
        request = run_request(recipe, **options, device=device, stop=stop)
        from mtmeta.core.reports.terminal.teaching import show_teaching
        from mtmeta.core.studies.launching.placement import place
        from mtmeta.core.studies.teach import teach as write_labels

        placement, request = place(request, on, jobs=jobs, detach=detach)
        taught = write_labels(request, folds=folds, placement=placement, say=say)
    if detach:
        return show_submitted(taught, json_=json_)
    print(json.dumps(taught)) if json_ else show_teaching(taught)
