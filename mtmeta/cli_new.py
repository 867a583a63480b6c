"""`mtmeta new`: files to begin with, each written by a command of its own in a module `cli_new_*.py`."""

from __future__ import annotations

import typer

from mtmeta.cli_new_recipe import recipe

__all__ = ["new"]

new = typer.Typer(no_args_is_help=False, rich_markup_mode=None, help="Write a recipe for data files of your own.")


@new.callback()
def begin() -> None:
    """Write files to begin with: a recipe for your own data."""


new.command()(recipe)
