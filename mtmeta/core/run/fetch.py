"""What a recipe needs from elsewhere, by the places that name it; `mtmeta fetch` brings it, as `mtmeta run` would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mtmeta.core.api.contracts import Backbone
from mtmeta.core.api.option_types import SAMPLE
from mtmeta.core.errors import MtmetaError, UsageError, raise_all
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.guard import fault
from mtmeta.core.registry.registry import Registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.storage.addresses import HubFile, is_remote
from mtmeta.core.storage.artifacts import Artifact, Want, by_name, pins_of, want_file
from mtmeta.core.storage.download import Watcher
from mtmeta.core.storage.hub import is_offline
from mtmeta.core.storage.sources import Sources
from mtmeta.core.wording import safe

__all__ = ["SPLITS", "bring", "fetch", "local_backbone", "wanted"]

SPLITS = ("train", "dev", "test")
BACKBONE = "backbone"


def local_backbone(recipe: Recipe, sources: Sources) -> Backbone:
    """The recipe's backbone with what it reads in local files. Raises MtmetaError."""
    backbone = recipe.backbone
    made: object = backbone.fetch(sources)
    if not isinstance(made, Backbone):
        message = f"backbone '{backbone.name}' fetched {type(made).__name__}, expected a Backbone"
        raise fault(backbone, message)
    return made


def wanted(recipe: Recipe, splits: Sequence[str] = SPLITS, *, backbone: bool = True) -> dict[str, list[Want]]:
    """What each place of a recipe names elsewhere: `backbone`, `tasks.sst.train` and so on."""
    found: dict[str, list[Want]] = {}
    if backbone:
        plan = Sources(planning=True)
        local_backbone(recipe, plan)
        if plan.wants:
            found[BACKBONE] = list(plan.wants.values())
    for name, task in recipe.tasks.items():
        for split in splits:
            given = getattr(task, split)
            if isinstance(given, str) and is_remote(given):
                found[f"tasks.{name}.{split}"] = [want_file(given)]
    return found


def bring(recipe: Recipe, splits: Sequence[str], sources: Sources, *, backbone: bool = True) -> None:
    """Bring what a recipe names elsewhere, so that every part finds it. Raises all that stands in the way."""
    found = wanted(recipe, splits, backbone=backbone)
    sources.fetch(by_name(want for wants in found.values() for want in wants).values())


def fetch(
    paths: Sequence[str | Path],
    registry: Registry,
    *,
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    dry_run: bool = False,
    watcher: Watcher | None = None,
    remedy: str = "",
) -> tuple[dict[str, Any], list[MtmetaError]]:
    """Bring what recipes name elsewhere, all splits of it; returns what `--json` shows, and what went wrong.

    With `dry_run`, or offline, nothing is fetched; what is missing is listed, with its size where the hub says it.
    Raises MtmetaError for recipes that are wrong.
    """
    asked: list[Want] = []
    used: dict[str, list[str]] = {}
    local: list[dict[str, Any]] = []
    pins: dict[str, str] = {}
    problems: list[MtmetaError] = []
    for path in paths:
        try:
            recipe = load_recipe(path, registry, overrides=overrides, data_root=data_root)
            for place, needed in wanted(recipe).items():
                for want in needed:
                    asked.append(want)
                    used.setdefault(want.name, []).append(f"{path}: {place}")
            for name, commit in _pins(Path(path)).items():
                if pins.setdefault(name, commit) != commit:
                    raise UsageError(
                        str(path), f"began with another commit of {safe(name)} than a run before it; fetch it alone"
                    )
            local += _local(recipe, str(path))
        except MtmetaError as error:
            problems.append(error)
    raise_all(problems)
    wants = by_name(asked)
    sources = Sources(pins, watcher, remedy=remedy)
    if not dry_run:
        try:
            sources.fetch(wants.values())
        except MtmetaError as error:
            problems.append(error)
    shown = []
    for name, want in wants.items():
        try:
            found = sources.artifacts.get(name) or sources.fetcher.cached(want)
            shown.append(_describe(found, used[name], sources, ask=dry_run))
        except MtmetaError as error:
            problems.append(error)
    files = [one for source in shown for one in source["files"]]
    problems = list({str(problem): problem for problem in problems}.values())
    return {
        "recipes": [str(path) for path in paths],
        "offline": is_offline(),
        "dry_run": dry_run,
        "fetched_bytes": sum(one["size"] or 0 for one in files if one["status"] == "fetched"),
        "missing": sum(one["status"] in ("missing", "damaged") for one in files),
        "sources": shown,
        "local": local,
    }, problems


def _pins(path: Path) -> dict[str, str]:
    """Of a run's own recipe.yaml, the commits that the run began with."""
    run = RunDir(path.parent)
    return pins_of(run.lock()) if path.name == run.recipe.name and run.lock_file.exists() else {}


def _local(recipe: Recipe, path: str) -> list[dict[str, Any]]:
    """The data files that a recipe names by path, which nobody can fetch."""
    found = []
    for name, task in recipe.tasks.items():
        for split in SPLITS:
            given = getattr(task, split)
            if isinstance(given, str) and given != SAMPLE and not is_remote(given):
                file = Path(recipe.data_root) / given
                place = f"{path}: tasks.{name}.{split}"
                found.append({"used_by": [place], "path": str(file), "exists": file.is_file()})
    return found


def _describe(found: Artifact, used: list[str], sources: Sources, *, ask: bool) -> dict[str, Any]:
    """A want and its files as plain data; where `ask`, with the size that the hub says of what is missing."""
    source, files, commit = found.want.source, list(found.files.values()), found.commit
    if ask and not is_offline() and any(one.path is None and one.status != "absent" for one in files):
        commit, files = sources.fetcher.sizes(found)
    pinned = source.at(commit) if isinstance(source, HubFile) and commit else str(source)
    return {
        "name": found.want.name,
        "pinned": pinned,
        "used_by": used,
        "commit": commit or None,
        "files": [
            {**asdict(one), "path": str(one.path) if one.path is not None else None}
            for one in files
            if one.status != "absent"
        ],
    }
