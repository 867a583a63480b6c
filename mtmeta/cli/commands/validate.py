"""`mtmeta validate`: recipes, their data and their weights, without training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from mtmeta.cli.options import DataRoot, Json, NoPlugin, Set, warn
from mtmeta.core.errors import DataError, MtmetaError, Problems, UsageError, raise_all
from mtmeta.core.wording import safe

__all__ = ["validate"]


def validate(
    recipes: Annotated[
        list[Path],
        typer.Argument(metavar="RECIPE", help="YAML files, or names of `mtmeta recipes`.", show_default=False),
    ],
    set_: Set = None,
    data_root: DataRoot = None,
    data: Annotated[
        bool,
        typer.Option("--data", help="Read the data files too: labels, lengths, bad rows, duplicates, overlap."),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="With --data: duplicates and overlap with train are errors.")
    ] = False,
    weights: Annotated[bool, typer.Option("--weights", help="Load the backbone's weights too.")] = False,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Check recipes without training.

    All problems of a recipe come at once, with file, line and column. With --data its data files are read, too: rows,
    labels, lengths, bad rows, duplicates, overlap of train and dev; with --weights its backbone is loaded.

    \b
    Examples:
      mtmeta validate my.yaml
      mtmeta validate my.yaml --data --data-root DATA
    """
    from mtmeta.core.recipe.reader import load_recipe
    from mtmeta.core.registry.registry import build_registry

    if strict and not data:
        raise UsageError("--strict", "is for --data; give both")
    registry = build_registry(block=no_plugin or [], warn=warn)
    problems: list[MtmetaError] = []
    documents: list[dict[str, Any]] = []
    for path in recipes:
        facts: dict[str, Any] = {}
        found: list[MtmetaError] = []
        try:
            recipe = load_recipe(path, registry, overrides=set_ or [], data_root=data_root)
            if data or weights:
                from mtmeta.core.reports.terminal.fetching import FetchView
                from mtmeta.core.storage.artifacts import remedy
                from mtmeta.core.storage.sources import Sources

                sources = Sources(watcher=FetchView(), remedy=remedy(path))
            if weights:
                from mtmeta.core.run.fetch import bring, local_backbone

                bring(recipe, (), sources)
                backbone = local_backbone(recipe, sources)
                backbone.load(recipe.seed)
            if data:
                from mtmeta.core.authoring.inspection import doubts, inspect
                from mtmeta.core.reports.terminal.inspection import lines

                facts, found = inspect(recipe, warn=warn, sources=sources)
                if strict:
                    found += [DataError(file, message) for file, message in doubts(facts)]
                if not json_:
                    print("\n".join(lines(facts)))
        except MtmetaError as error:
            found.append(error)
        problems += found
        told = [str(one) for error in found for one in (error.problems if isinstance(error, Problems) else [error])]
        documents.append({"recipe": str(path), "ok": not found, "problems": told, **({"data": facts} if facts else {})})
        if not found and not json_:
            print(f"{safe(str(path))}: ok")
    if json_:
        print(json.dumps({"recipes": documents}))
    raise_all(problems)
