"""`mtmeta adapt`: few shots of new tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import DataRoot, Device, Json, NoPlugin, On, Set, run_request, say
from mtmeta.core.errors import UsageError
from mtmeta.core.wording import quote


def adapt(
    arguments: Annotated[
        list[Path], typer.Argument(metavar="RUN... RECIPE", help="Run directories, then a recipe of new tasks.")
    ],
    shots: Annotated[str, typer.Option(metavar="K,...", help="Examples of each class.")] = "4,16,64",
    draws: Annotated[
        int, typer.Option("--seeds", min=1, max=1000, metavar="N", help="Seeded draws of examples for each K.")
    ] = 5,
    task: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A task of the recipe; repeatable; default all.")
    ] = None,
    head: Annotated[
        str, typer.Option(metavar="HEAD", help="reset: a fresh head; prototype: one made of class means.")
    ] = "reset",
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="A run that the others are compared with too, by its directory.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A page with curves and table, such as adapt.html.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the model of each run and task, most shots, first draw, as a run."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, max=1000, metavar="N", help="Adaptations at a time, one thread each; default: all cores."),
    ] = None,
    on: On = None,
    set_: Set = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Adapt runs to new tasks with few examples of each class.

    Beside each run stands the pretrained encoder that it began from, on the same examples. What --keep leaves are
    run directories DIR/RUN-TASK-K for eval, predict, export and mtmeta.load.

    \b
    Examples:
      mtmeta adapt runs/reptile_three_task new.yaml --shots 4,16,64 --head prototype
      mtmeta adapt runs/joint runs/reptile new.yaml --seeds 10 --baseline joint --out adapt.html
      mtmeta adapt runs/reptile new.yaml --shots 64 --seeds 1 --keep runs/adapted
      mtmeta predict runs/adapted/reptile-trec-64 --task trec --input questions.txt
    """
    if len(arguments) < 2:
        raise UsageError("mtmeta adapt", "takes at least a RUN and a RECIPE")
    if on not in (None, "local"):
        message = "adapts for seconds at a time, and makes no runs, here alone; give sbatch the command itself"
        raise UsageError("--on", f"mtmeta adapt {message}")
    if head not in ("reset", "prototype"):
        raise UsageError("--head", f"must be reset or prototype, found {quote(head)}")
    try:
        counts = [int(part) for part in shots.split(",")]
    except ValueError:
        raise UsageError("--shots", f"takes whole numbers such as 4,16,64, found {quote(shots)}") from None
    request = run_request(arguments[-1], set_=set_, data_root=data_root, device=device, no_plugin=no_plugin)
    from mtmeta.core.reports.html.adaptation import check_page, write_page

    if out is not None:
        check_page(out)
    from mtmeta.core.reports.terminal.adaptation import show_adaptation
    from mtmeta.core.studies.adapt import adapt as run_adaptation
    from mtmeta.core.studies.adaptations import Shots

    plan = Shots(counts, draws, "prototype" if head == "prototype" else "reset", baseline)
    figures = run_adaptation(arguments[:-1], request, plan, tasks=task or [], keep=keep, jobs=jobs, say=say)
    print(json.dumps(figures)) if json_ else show_adaptation(figures)
    if out is not None:
        say(f"wrote {write_page(figures, out)}")
