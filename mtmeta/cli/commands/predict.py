"""`mtmeta predict`: labels for texts of a file or pipe."""

from __future__ import annotations

from typing import Annotated

import typer

from mtmeta.cli.options import Device, NoPlugin, Run, run_request, warn
from mtmeta.core.errors import UsageError


def predict(
    run: Run,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="The task; may be left out where the run has one.")
    ] = None,
    input_: Annotated[
        str, typer.Option("--input", metavar="FILE", help="Texts, one a line, pairs by tab; or a table; - is stdin.")
    ] = "-",
    output: Annotated[str, typer.Option(metavar="FILE", help="Where predictions go; - is stdout.")] = "-",
    column: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Read a table, the text in this column; twice for pairs.")
    ] = None,
    form: Annotated[
        str | None, typer.Option("--format", metavar="FORM", help="csv or jsonl; default by --output, else csv.")
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that cannot be used, and say so.")
    ] = False,
    abstain: Annotated[
        float | None, typer.Option(metavar="P", help="Give no label where the highest probability is below this.")
    ] = None,
    device: Device = "auto",
    no_plugin: NoPlugin = None,
) -> None:
    """Predict labels and probabilities for texts of a file or pipe.

    They come in the order of the texts, as the texts come; a table (.csv, .tsv, .jsonl) has the columns of the task.

    \b
    Examples:
      mtmeta predict runs/reptile_three_task --task sst --input reviews.txt
      cat reviews.txt | mtmeta predict runs/reptile_three_task --task sst
    """
    request = run_request(device=device, no_plugin=no_plugin)
    from mtmeta.core.run.evaluate import open_run
    from mtmeta.core.run.predict_file import predict_file
    from mtmeta.core.run.predictor import Predictor

    predictor = Predictor(open_run(run, request))
    if task is None and len(predictor.tasks) > 1:
        raise UsageError("--task", f"is needed, the run has several tasks: {', '.join(predictor.tasks)}")
    predict_file(
        predictor,
        task or predictor.tasks[0],
        source=input_,
        target=output,
        columns=column or [],
        form=form,
        skip_bad=skip_bad_rows,
        abstain=abstain,
        warn=warn,
    )
