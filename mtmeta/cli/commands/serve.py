"""`mtmeta serve`: a run behind HTTP."""

from __future__ import annotations

from typing import Annotated

import typer

from mtmeta.cli.options import Device, NoPlugin, Run, run_request, say


def serve(
    run: Run,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 for all networks.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any that is free.")] = 8000,
    max_body: Annotated[int, typer.Option(min=100, metavar="BYTES", help="Longest body of a request.")] = 1_000_000,
    max_texts: Annotated[int, typer.Option(min=1, metavar="N", help="Most texts in one request.")] = 256,
    max_waiting: Annotated[
        int, typer.Option(min=1, metavar="N", help="Most texts that wait; a request beyond is told to try again.")
    ] = 4096,
    device: Device = "auto",
    no_plugin: NoPlugin = None,
) -> None:
    """Answer over HTTP for all tasks of a run, in one process.

    POST /predict/TASK takes {"texts": ["...", ...]}, pairs as lists of two; / is a page to try it. Whoever reaches the
    port may ask: put it behind what checks who that is.

    \b
    Examples:
      mtmeta serve runs/reptile_three_task
      curl localhost:8000/predict/sst -H 'content-type: application/json' -d '{"text": "A joy."}'
    """
    from mtmeta.core.serving.server import check_packages

    check_packages()
    request = run_request(device=device, no_plugin=no_plugin)
    from mtmeta.core.run.evaluate import open_run
    from mtmeta.core.run.predictor import Predictor
    from mtmeta.core.serving.questions import Limits
    from mtmeta.core.serving.server import serve as answer
    from mtmeta.core.serving.server import title_of

    limits = Limits(body=max_body, texts=max_texts, waiting=max_waiting)
    answer(Predictor(open_run(run, request)), title_of(run), host=host, port=port, limits=limits, say=say)
