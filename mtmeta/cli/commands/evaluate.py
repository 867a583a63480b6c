"""`mtmeta eval`: score a run on any split or file."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mtmeta.cli.options import ChangedData, DataRoot, Device, Json, NoPlugin, Run, run_request
from mtmeta.core.errors import UsageError
from mtmeta.core.wording import quote


def eval_(
    run: Run,
    split: Annotated[
        str | None, typer.Option(metavar="SPLIT", help="dev, test or train; default what the recipe reports on.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="NAME", help="Only this task.")] = None,
    file: Annotated[
        list[str] | None,
        typer.Option("--file", metavar="TASK=PATH", help="Score another file as this task; repeatable."),
    ] = None,
    data_root: DataRoot = None,
    device: Device = "auto",
    allow_changed_data: ChangedData = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Confusion or error detail under the table.")
    ] = False,
    abstain: Annotated[
        float | None, typer.Option(metavar="P", help="Take no answer where the highest probability is below this.")
    ] = None,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Score the best weights of a run on any split or file.

    \b
    Examples:
      mtmeta eval runs/reptile_three_task --split test
      mtmeta eval runs/reptile_three_task --file sst=more.csv --verbose
    """
    files = _files(file or [])
    if split not in (None, "dev", "test", "train"):
        raise UsageError("--split", f"must be dev, test or train, found {quote(split)}")
    request = run_request(
        data_root=data_root, device=device, allow_changed_data=allow_changed_data, no_plugin=no_plugin
    )
    from mtmeta.core.reports.terminal.results import show_results
    from mtmeta.core.run.evaluate import score_run

    table = score_run(run, request, split=split, task=task, files=files, verbose=verbose, abstain=abstain).plain()
    print(json.dumps(table)) if json_ else show_results(table)


def _files(given: list[str]) -> dict[str, str]:
    """Parse the values of --file to paths by task. Raises UsageError."""
    files = {}
    for text in given:
        name, _, path = text.partition("=")
        if not name or not path:
            raise UsageError(f"--file {quote(text)}", "expected TASK=PATH")
        files[name] = path
    return files
