"""`mtmeta curve`: a recipe on several shares of its training data, by a comparison of as many recipes.

recipe x fractions -> recipes that differ in `data.train_fraction` alone -> the comparison of them over seeds.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtmeta.core.errors import UsageError
from mtmeta.core.recipe.from_python import RecipeSource
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import describe, dump
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run.event_stream import read_event
from mtmeta.core.run.request import RunRequest
from mtmeta.core.storage.disk import write_file
from mtmeta.core.storage.reading import LIMITS, open_regular, read_lines
from mtmeta.core.studies.compare import RECIPES, compare_recipes
from mtmeta.core.studies.launching.placement import POOL, Placement
from mtmeta.core.studies.protocol import Protocol

FRACTIONS = (0.1, 0.3, 1.0)
MOST = 20


def learning_curve(
    recipe: RecipeSource,
    request: RunRequest,
    fractions: Sequence[float] = FRACTIONS,
    placement: Placement = POOL,
    *,
    seeds: int | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Carry out a learning curve; see `mtmeta.curve`. Each row of its comparison is a share of the training data.

    Raises what `compare_recipes` does. The recipes lie in the study's folder, under `recipes`.
    """
    shares = checked(fractions)
    registry = build_registry(block=request.block, warn=request.warn)
    whole = load_recipe(recipe, registry, overrides=request.overrides, data_root=request.data_root)
    folder, data, paths = Path(request.out or "."), describe(whole), {}
    for share in shares:
        name = f"{whole.name}-{share:g}"
        own = {**data, "name": name, "data": {**data["data"], "train_fraction": share}}
        paths[name] = folder / RECIPES / f"{name}.yaml"
        write_file(paths[name], dump(own))
    plain = _without_overrides(request)
    protocol = Protocol((f"{whole.name}-{shares[-1]:g}",))
    comparison = compare_recipes(list(paths.values()), plain, protocol, placement, seeds=seeds, say=say)
    points = [
        {"fraction": share, "examples": _examples(row["runs"][0]), "columns": row["columns"]}
        for share, name in zip(shares, paths, strict=True)
        for row in comparison["rows"]
        if row["name"] == name
    ]
    about = {"recipe": whole.name, "split": comparison["split"], "metrics": comparison["metrics"]}
    return {**about, "points": points, "comparison": comparison}


def checked(fractions: Sequence[float]) -> list[float]:
    """Return the shares in order. Raises UsageError for what is none, the same twice, or fewer than two."""
    shares = sorted(set(fractions))
    wrong = [share for share in fractions if not (math.isfinite(share) and 0 < share <= 1)]
    if wrong:
        raise UsageError("--fractions", f"must be above 0 and at most 1, found {wrong[0]:g}")
    if len(shares) < len(fractions) or not 2 <= len(shares) <= MOST:
        raise UsageError("--fractions", f"takes from 2 to {MOST} different shares, such as 0.01,0.1,1")
    return shares


def _without_overrides(request: RunRequest) -> RunRequest:
    """Return the request for recipes that hold its overrides and data root already."""
    return replace(request, overrides=(), data_root=None)


def _examples(run: str) -> dict[str, int]:
    """Return the training examples of each task of a run, as its events tell; of a run without them nothing."""
    found: dict[str, int] = {}
    try:
        with open_regular(Path(run) / "events.jsonl", LIMITS["events"]) as file:
            for line in read_lines(file):
                event: Mapping[str, Any] = read_event(line)
                if event["type"] == "step":
                    break
                if event["type"] == "data_loaded" and event["split"] == "train":
                    found[event["task"]] = event["examples"]
    except (OSError, ValueError):
        return {}
    return found
