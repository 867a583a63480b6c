"""`mtmeta fetch`: the weights and data that recipes name elsewhere, into the caches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mtmeta.cli.options import DataRoot, Json, NoPlugin, Set, warn
from mtmeta.core.errors import raise_all


def fetch(
    recipes: Annotated[
        list[Path], typer.Argument(metavar="RECIPE", help="Recipes whose files to fetch.", show_default=False)
    ],
    set_: Set = None,
    data_root: DataRoot = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what is cached and what is missing.")] = False,
    no_plugin: NoPlugin = None,
    json_: Json = False,
) -> None:
    """Fetch what recipes name elsewhere, weights and data.

    What is cached is checked. Cut short, the same command goes on where it was. With HF_HUB_OFFLINE=1 it lists what is
    missing.

    \b
    Examples:
      mtmeta fetch my.yaml
      mtmeta fetch my.yaml --dry-run
    """
    from mtmeta.core.registry.registry import build_registry
    from mtmeta.core.reports.terminal.fetching import FetchView, show_fetched
    from mtmeta.core.run.fetch import fetch as fetch_recipes
    from mtmeta.core.storage.artifacts import remedy

    registry = build_registry(block=no_plugin or [], warn=warn)
    fetched, problems = fetch_recipes(
        recipes,
        registry,
        overrides=set_ or [],
        data_root=data_root,
        dry_run=dry_run,
        watcher=FetchView(),
        remedy=remedy(*recipes),
    )
    print(json.dumps(fetched)) if json_ else show_fetched(fetched)
    raise_all(problems)
