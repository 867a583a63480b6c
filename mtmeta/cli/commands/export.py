"""`mtmeta export`: a run's model for other libraries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mtmeta.cli.options import Json, NoPlugin, say, warn


def export(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.", show_default=False)],
    form: Annotated[
        str,
        typer.Option(
            "--format",
            help="transformers, text-classification, token-classification, onnx, sentence-transformers or peft.",
        ),
    ],
    task: Annotated[list[str] | None, typer.Option(help="Only this task; repeatable.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; default RUN/export/FORMAT.")] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Replace an export of another run, or one that was changed since.")
    ] = False,
    int8: Annotated[
        str | None,
        typer.Option(help="text-classification: a graph in int8 too, its loss on dev measured; row or batch scales."),
    ] = None,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Write a run's best weights for other libraries.

    The folder is there only once its outputs were compared with those of `mtmeta predict`.

    \b
    Examples:
      mtmeta export runs/my --format transformers
      mtmeta export runs/my --format onnx --task reviews
      mtmeta export runs/my --format text-classification --int8 row
    """
    from mtmeta.core.environment import check_torch

    check_torch()
    from mtmeta.core.export.export import export as run_export
    from mtmeta.core.wording import visible

    options: Any = {"int8": int8, "block": no_plugin or [], "warn": warn, "say": say}
    exported = run_export(run, form, tasks=task or [], out=out, fresh=fresh, **options)
    print(json.dumps(exported) if json_ else visible(exported["folder"]))
