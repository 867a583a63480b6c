"""`mtmeta recipes`, the recipes that come with the package; `mtmeta schema`, the schema of recipes for editors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import NoPlugin, warn

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
    from mtmeta.core.recipe.shipped import headline, shipped_recipes

    paths = shipped_recipes()
    width = max(map(len, paths), default=0)
    for name, path in paths.items():
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
    from mtmeta.core.recipe.schema import schema_text
    from mtmeta.core.recipe.shipped import copy_recipe
    from mtmeta.core.registry.registry import build_registry

    print(copy_recipe(name, to, schema=schema_text(build_registry(warn=warn))))


def schema(
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it here; default: print it.")] = None,
    no_plugin: NoPlugin = None,
) -> None:
    """Print the JSON Schema of recipes, for editors.

    By it an editor with a YAML server completes and checks keys, those of installed plugins too. With --out FILE it
    prints the line that belongs at the top of recipes beside FILE.

    \b
    Examples:
      mtmeta schema --out recipe.schema.json
    """
    from mtmeta.core.errors import UsageError
    from mtmeta.core.recipe.schema import schema_text
    from mtmeta.core.recipe.shipped import SCHEMA_LINE
    from mtmeta.core.registry.registry import build_registry
    from mtmeta.core.storage.outputs import is_stream, write_output

    if out is not None and out.is_dir():
        raise UsageError(str(out), "is a directory; name a file")
    text = schema_text(build_registry(block=no_plugin or [], warn=warn))
    if out is None:
        print(text, end="")
        return
    write_output(out, text)
    if not is_stream(out):
        print(f"{SCHEMA_LINE}{out.name}")
