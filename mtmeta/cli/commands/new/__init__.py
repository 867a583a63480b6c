"""`mtmeta new`: a recipe, a task or an algorithm to start from."""

from __future__ import annotations

import typer

from mtmeta.cli.commands.new.package import algorithm, task
from mtmeta.cli.commands.new.recipe import recipe

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


new.command()(task)
new.command()(algorithm)
new.command()(recipe)
