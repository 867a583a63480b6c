"""`mtmeta recipes`: what comes with the package, to run by name or to copy and edit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli_options import warn

__all__ = ["recipes"]

recipes = typer.Typer(invoke_without_command=True, no_args_is_help=False, rich_markup_mode=None)


@recipes.callback()
def list_(context: typer.Context) -> None:
    """List the recipes that come with mtmeta, or copy one.

    `mtmeta run NAME` runs one, and so do all commands that take a recipe.

    \b
    Examples:
      mtmeta recipes
      mtmeta recipes copy minilm/reptile my.yaml
    """
    if context.invoked_subcommand is not None:
        return
    from mtmeta.core.shipped import headline, shipped

    found = shipped()
    width = max(map(len, found), default=0)
    for name, path in found.items():
        print(f"{name:{width}}  {headline(path)}")


@recipes.command()
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `mtmeta recipes` lists it.", show_default=False)],
    to: Annotated[
        Path | None, typer.Argument(metavar="[TO]", help="A file or folder; default here.", show_default=False)
    ] = None,
) -> None:
    """Copy a recipe to edit it.

    Beside it goes .mtmeta/recipe.schema.json, by which editors complete and check its keys.

    \b
    Examples:
      mtmeta recipes copy minilm/reptile my.yaml
      mtmeta run my.yaml
    """
    from mtmeta.core.registry import build_registry
    from mtmeta.core.schema import schema_text
    from mtmeta.core.shipped import copy as copy_recipe

    print(copy_recipe(name, to, schema=schema_text(build_registry(warn=warn))))
