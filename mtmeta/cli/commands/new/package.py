"""`mtmeta new task` and `mtmeta new algorithm`: a package to start from."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import NoPlugin, say, warn

PackageOut = Annotated[Path | None, typer.Option(metavar="DIR", help="Its folder; default mtmeta-NAME here.")]


def task(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What recipes will call it.", show_default=False)],
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


def algorithm(
    name: Annotated[str, typer.Argument(metavar="NAME", help="What recipes will call it.", show_default=False)],
    kind: Annotated[str | None, typer.Option(help="gradient or inner_loop; default the first.")] = None,
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
