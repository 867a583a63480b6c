"""What the ranks of a run must have in common before it begins: recipe, data, versions, and the run directory."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mtmeta.core.distributed.group import Group
from mtmeta.core.errors import MachineError, RecipeError
from mtmeta.core.recipe.resolved import decisive, describe, differences, digest
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.storage.atomic import remove_entry
from mtmeta.core.storage.disk import write_file
from mtmeta.core.wording import quote, safe

PROBE = ".mtmeta-ranks-"
"""What the name of a file begins with by which ranks find out whether they see the same folder."""
PATIENCE = 5.0
"""Seconds that a network drive may take to show it."""
SPREAD, APART, CUT = "slots", "groups", "shards"


def how_spread(recipe: Recipe, groups: int, ranks: Group) -> str:
    """Return what of a run the ranks share out: `slots`, `groups`, or `shards`; empty for a rank by itself.

    Raises RecipeError where there is nothing to share out, or it would not give the bits of one process.
    """
    if ranks.world == 1:
        return ""
    training, algorithm = recipe.training, recipe.algorithm
    parts = algorithm.parts(list(recipe.tasks))
    one_by_one = recipe.adapters is not None and recipe.adapters.trained_by is not None
    if training.shards is None and groups > 1 and not one_by_one:
        return APART
    if parts > 1 and training.on_nonfinite == "skip":
        message = "skip is for one process where a step has several parts: those after the bad one are under way"
        raise RecipeError("training.on_nonfinite", f"{message}; use stop")
    if training.shards is not None:
        return CUT
    if parts == 1:
        message = f"algorithm '{algorithm.name}' has one part a step here, nothing to share out to {ranks.world} ranks"
        raise RecipeError("training.shards", f"{message}; set training.shards, say to {ranks.world}")
    if training.grad_accumulation > 1:
        message = f"{training.grad_accumulation} is summed in another order on many ranks"
        raise RecipeError("training.grad_accumulation", f"{message}; set training.shards, say to 1")
    return SPREAD


def agree_on_recipe(recipe: Recipe, ranks: Group) -> None:
    """Raise RecipeError where a rank has another recipe than the first one."""
    if ranks.world == 1:
        return
    mine = {"digest": digest(recipe), "name": recipe.name}
    told = ranks.settle(mine)
    other = next((rank for rank, given in enumerate(told) if given["digest"] != told[0]["digest"]), None)
    if other is None:
        return
    recipes = ranks.settle(decisive(describe(recipe)))
    shown = ", ".join(list(differences(recipes[0], recipes[other]))[:6])
    raise _echoed(
        RecipeError("", f"ranks 0 and {other} have different recipes (differ in: {shown}); start all alike"), ranks
    )


def agree_on_versions(ranks: Group) -> None:
    """Raise MachineError where a rank has another mtmeta, PyTorch or Python than the first one."""
    if ranks.world > 1:
        import platform
        from importlib.metadata import version

        import torch

        facts = {"mtmeta": version("mtmeta"), "torch": torch.__version__, "python": platform.python_version()}
        _compare({**facts, "numpy": version("numpy")}, ranks)


def agree_on_lock(lock: Mapping[str, Any], ranks: Group) -> None:
    """Raise MachineError where a rank has other data, weights, versions, threads or instructions than the first one."""
    if ranks.world > 1:
        flat: dict[str, str] = {}
        for key, value in lock.items():
            parts = value.items() if isinstance(value, dict) else ()
            flat |= {f"{key} {name}": str(item) for name, item in parts} or {key: str(value)}
        _compare(flat, ranks)


def _compare(mine: Mapping[str, str], ranks: Group) -> None:
    told = ranks.settle({"host": ranks.host, "facts": dict(mine)})
    first = told[0]["facts"]
    for rank, given in enumerate(told):
        differing = [
            key for key in dict.fromkeys([*first, *given["facts"]]) if first.get(key) != given["facts"].get(key)
        ]
        if differing:
            key = differing[0]
            was, now = (safe(str(facts.get(key, "absent")), 80) for facts in (first, given["facts"]))
            more = f" (+{len(differing) - 1} more)" if len(differing) > 1 else ""
            message = f"{key} is {now}, on rank 0 it is {was}{more}; ranks must be alike to give the same result"
            raise _echoed(MachineError(f"rank {rank} on {safe(given['host'])}", message), ranks)


def check_shared(folder: Path, ranks: Group) -> None:
    """Raise MachineError unless all ranks see the same folder: the run directory, or what it is to be made in.

    The first rank puts a file there for a moment, by a name that it tells the others.
    """
    if ranks.world == 1:
        return
    place = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    probe = place.absolute() / str(ranks.settle(f"{PROBE}{secrets.token_hex(8)}.tmp")[0])
    try:
        if ranks.leads:
            write_file(probe, "")
        ranks.settle()
        seen = ranks.settle({"host": ranks.host, "place": str(probe.parent), "seen": _appears(probe)})
    finally:
        if ranks.leads:
            with suppress(OSError):
                remove_entry(probe)
    for rank, given in enumerate(seen):
        if not given["seen"]:
            message = f"does not see what rank 0 writes to {quote(given['place'])}"
            remedy = "put the run directory on a drive that all share"
            raise _echoed(MachineError(f"rank {rank} on {safe(given['host'])}", f"{message}; {remedy}"), ranks)


def _appears(path: Path) -> bool:
    """Return whether a file is there, or comes to be."""
    until = time.monotonic() + PATIENCE
    while True:
        with suppress(OSError):
            if path.name in os.listdir(path.parent):  # listing has a network drive look again
                return True
        if time.monotonic() > until:
            return False
        time.sleep(0.1)


def _echoed(error: Any, ranks: Group) -> Any:
    """Return an error that all ranks have found, for the first one to print."""
    error.echoed = not ranks.leads
    return error
