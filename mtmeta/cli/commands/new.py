"""`mtmeta new`: a recipe, a task or an algorithm to start from."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import DataRoot, Json, NoPlugin, say, warn

PackageName = Annotated[str, typer.Argument(metavar="NAME", help="What recipes will call it.", show_default=False)]
PackageOut = Annotated[Path | None, typer.Option(metavar="DIR", help="Its folder; default mtmeta-NAME here.")]
new = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@new.callback()
def begin() -> None:
    """Start something of your own: a recipe, a task, an algorithm.

    \b
    Examples:
      mtmeta new recipe my.yaml --task reviews=reviews.csv
      mtmeta new task stars
    """


@new.command()
def task(
    name: PackageName,
    kind: Annotated[str | None, typer.Option(help="classification, pair or regression; default the first.")] = None,
    out: PackageOut = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Write a package with a task of your own.

    Its tests pass at once.

    \b
    Examples:
      mtmeta new task stars
      mtmeta new task --kind pair sameness --out plugins/sameness
    """
    _package("task", name, kind, out, no_plugin)


@new.command()
def algorithm(
    name: PackageName,
    kind: Annotated[str | None, typer.Option(help="gradient, inner_loop or stateful; default the first.")] = None,
    out: PackageOut = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Write a package with an algorithm of your own.

    Its tests pass at once.

    \b
    Examples:
      mtmeta new algorithm sharpened
      mtmeta new algorithm --kind inner_loop wander
    """
    _package("algorithm", name, kind, out, no_plugin)


def _package(part_kind: str, name: str, kind: str | None, out: Path | None, no_plugin: list[str] | None) -> None:
    from mtmeta.core.authoring.scaffold import make_package
    from mtmeta.core.registry.registry import build_registry

    folder = make_package(part_kind, name, build_registry(block=no_plugin or [], warn=warn), kind=kind, out=out)
    print(folder)
    say(f"next: cd {shlex.quote(str(folder))} && pip install -e '.[dev]' && pytest && mtmeta run recipe.yaml")


@new.command()
def recipe(
    path: Annotated[Path, typer.Argument(metavar="RECIPE", help="The file to write.", show_default=False)],
    task: Annotated[
        list[str],
        typer.Option("--task", metavar="NAME=TRAIN[,DEV[,TEST]]", help="A task and its data files; repeatable."),
    ],
    columns: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TEXT[,PAIR],LABEL", help="Columns of a task, where the guess is wrong."),
    ] = None,
    id_: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="NAME=COLUMN", help="Column that names a task's examples in predictions."),
    ] = None,
    labels: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=0:A,1:B", help="Names of a task's labels, or a file of them: NAME=FILE."),
    ] = None,
    algorithm: Annotated[
        str | None, typer.Option(help="Default: joint, or individual for a single task.", show_default=False)
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(
            metavar="WEIGHTS",
            help="embedded, a folder, or a hub id, best pinned as id@revision; of backbone hf with hf: before it.",
        ),
    ] = "embedded",
    data_root: DataRoot = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there already.")] = False,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Write a commented recipe for data files.

    It looks at every row, and says what it guessed and why.

    \b
    Examples:
      mtmeta new recipe my.yaml --task reviews=reviews.csv
      mtmeta new recipe my.yaml --task p=train.tsv,dev.tsv,test.tsv --columns p=left,right,same
      mtmeta new recipe my.yaml --task mood=mood.csv --labels mood=0:sad,1:glad
      mtmeta new recipe my.yaml --task reviews=reviews.csv --backbone hf:models/modernbert
    """
    from mtmeta.core.authoring.draft import draft_recipe, parse_columns, parse_ids, parse_labels, parse_tasks
    from mtmeta.core.registry.registry import build_registry

    draft = draft_recipe(
        path,
        parse_tasks(task),
        build_registry(block=no_plugin or [], warn=warn),
        columns=parse_columns(columns or []),
        ids=parse_ids(id_ or []),
        labels=parse_labels(labels or []),
        algorithm=algorithm,
        weights=backbone,
        data_root=data_root or os.environ.get("MTMETA_DATA") or None,
        force=force,
        say=say,
    )
    print(json.dumps(draft.document(path)) if json_ else "\n".join(draft.lines(path)))
