"""`mtmeta new`: what one begins with."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli_new_recipe import recipe
from mtmeta.cli_options import NoPlugin, say, warn

__all__ = ["new"]

new = typer.Typer(no_args_is_help=True, rich_markup_mode=None)


@new.callback()
def begin() -> None:
    """Start something of your own: a recipe, a task, an algorithm.

    \b
    Examples:
      mtmeta new recipe my.yaml --task reviews=reviews.csv
      mtmeta new task stars
    """


PackageOut = Annotated[Path | None, typer.Option(metavar="DIR", help="Its folder; default mtmeta-NAME here.")]


@new.command()
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


@new.command()
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


new.command()(recipe)


def _package(what: str, name: str, kind: str | None, out: Path | None, no_plugin: list[str] | None) -> None:
    from mtmeta.core.registry import build_registry
    from mtmeta.core.scaffold import make_package

    made = make_package(what, name, build_registry(block=no_plugin or [], warn=warn), kind=kind, out=out)
    print(made)
    say(f"next: cd {shlex.quote(str(made))} && pip install -e '.[dev]' && pytest && mtmeta run recipe.yaml")
