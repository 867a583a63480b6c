"""Commands on several runs at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli_options import DataRoot, Device, Json, NoPlugin, Set, say, warn
from mtmeta.core.errors import Incomplete, UsageError, quote

__all__ = ["adapt", "compare", "report", "runs"]


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
        from mtmeta.core import compare_view
        from mtmeta.core.compare import compare as run_comparison
        from mtmeta.core.fetch_view import FetchView
        from mtmeta.core.surroundings import check_torch

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
        print(compare_view.as_markdown(found), end="")
    elif csv:
        print(compare_view.as_csv(found), end="")
    else:
        compare_view.show_comparison(found)
    if incomplete is not None:
        raise incomplete


def report(
    runs: Annotated[
        list[Path], typer.Argument(metavar="RUN", help="Run directories, such as runs/NAME.", show_default=False)
    ],
    out: Annotated[Path, typer.Option(metavar="FILE", help="The page.")] = Path("report.html"),
    baseline: Annotated[
        str | None, typer.Option(metavar="NAME", help="Recipe that differences are to; default: the individual one.")
    ] = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Write one self-contained HTML page about runs.

    It shows results, curves, losses, sampling, gradients and predictions, without a script or the network.

    \b
    Examples:
      mtmeta report runs/reptile_three_task
      mtmeta report runs/compare/* --out page.html
    """
    from mtmeta.core.report import report as write_report

    print(write_report(runs, out=out, baseline=baseline, block=no_plugin or [], warn=warn))


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
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A page with curves and table, such as adapt.html.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Keep the model of each run and task, most shots, first draw, as a run."),
    ] = None,
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
      mtmeta adapt runs/joint runs/reptile new.yaml --seeds 10 --out adapt.html
      mtmeta adapt runs/reptile new.yaml --shots 64 --seeds 1 --keep runs/adapted
      mtmeta predict runs/adapted/reptile-trec-64 --task trec --input questions.txt
    """
    if len(arguments) < 2:
        raise UsageError("mtmeta adapt", "takes at least a RUN and a RECIPE")
    if head not in ("reset", "prototype"):
        raise UsageError("--head", f"must be reset or prototype, found {quote(head)}")
    try:
        counts = [int(part) for part in shots.split(",")]
    except ValueError:
        raise UsageError("--shots", f"takes whole numbers such as 4,16,64, found {quote(shots)}") from None
    from mtmeta.core.surroundings import check_torch

    check_torch()
    from mtmeta.core.adapt_page import check_page, write_page

    if out is not None:
        check_page(out)
    from mtmeta.core.adapt import adapt as run_adaptation
    from mtmeta.core.adapt_view import show_adaptation
    from mtmeta.core.fetch_view import FetchView

    found = run_adaptation(
        arguments[:-1],
        arguments[-1],
        shots=counts,
        draws=draws,
        tasks=task or [],
        head="prototype" if head == "prototype" else "reset",
        keep=keep,
        overrides=set_ or [],
        data_root=data_root,
        device=device,
        block=no_plugin or [],
        warn=warn,
        say=say,
        watcher=FetchView(),
    )
    print(json.dumps(found)) if json_ else show_adaptation(found)
    if out is not None:
        say(f"wrote {write_page(found, out)}")


def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look.")] = Path("runs"),
    json_: Json = False,
) -> None:
    """List the runs under a folder: how far each is, metrics, age.

    The newest come first.

    \b
    Examples:
      mtmeta runs
      mtmeta runs runs/compare --json
    """
    from mtmeta.core.listing import list_runs, show_runs

    found = list_runs(folder)
    print(json.dumps(found)) if json_ else show_runs(found, folder)
