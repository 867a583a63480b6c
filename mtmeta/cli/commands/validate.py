"""`mtmeta validate`: recipes, their data and their weights, without training."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mtmeta.cli.options import DataRoot, Json, NoPlugin, Set, warn
from mtmeta.core.errors import UsageError, raise_all
from mtmeta.core.wording import safe

if TYPE_CHECKING:
    from mtmeta.core.authoring.check import RecipeCheck
    from mtmeta.core.storage.download import Watcher


def validate(
    recipes: Annotated[
        list[Path],
        typer.Argument(metavar="RECIPE", help="YAML files, or names of `mtmeta recipes`.", show_default=False),
    ],
    set_: Set = None,
    data_root: DataRoot = None,
    data: Annotated[
        bool, typer.Option("--data", help="Read the data files too: labels, lengths, bad rows, duplicates, overlap.")
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
    from mtmeta.core.authoring.check import check_recipe
    from mtmeta.core.registry.registry import build_registry

    if strict and not data:
        raise UsageError("--strict", "is for --data; give both")
    check = partial(
        check_recipe,
        registry=build_registry(block=no_plugin or [], warn=warn),
        overrides=set_ or [],
        data_root=data_root,
        data=data,
        strict=strict,
        weights=weights,
        warn=warn,
        watcher=_watcher() if data or weights else None,
    )
    checks = []
    for path in recipes:
        checks.append(check(path))
        if not json_:
            _show(checks[-1])
    if json_:
        print(json.dumps({"recipes": [outcome.document() for outcome in checks]}))
    raise_all([problem for outcome in checks for problem in outcome.problems])


def _watcher() -> Watcher:
    from mtmeta.core.reports.terminal.fetching import FetchView  # loads rich

    return FetchView()


def _show(check: RecipeCheck) -> None:
    from mtmeta.core.reports.terminal.inspection import lines

    if check.facts:
        print("\n".join(lines(check.facts)))
    if not check.problems:
        print(f"{safe(check.recipe)}: ok")
