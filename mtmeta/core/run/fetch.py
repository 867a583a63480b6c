"""Remote files that recipes name, by the places that name them; `mtmeta fetch` fetches them as `mtmeta run` would."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
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
from mtmeta.core.storage.addresses import HubFile, is_remote, part_address
from mtmeta.core.storage.artifacts import Artifact, Want, by_name, pins_of, want_file
from mtmeta.core.storage.download import Watcher
from mtmeta.core.storage.hub import is_offline
from mtmeta.core.storage.sources import Sources
from mtmeta.core.tables.data_file import parted
from mtmeta.core.wording import safe

SPLITS = ("train", "dev", "test")


def local_backbone(recipe: Recipe, sources: Sources) -> Backbone:
    """Return the recipe's backbone with all its files local. Raises MtmetaError."""
    backbone = recipe.backbone
    local: object = backbone.fetch(sources)
    if not isinstance(local, Backbone):
        raise fault(backbone, f"backbone '{backbone.name}' fetched {type(local).__name__}, expected a Backbone")
    return local


def splits_read(recipe: Recipe) -> list[str]:
    """Return the splits that a run of a recipe reads: train first, then those it selects and reports on."""
    return list(dict.fromkeys(("train", recipe.evaluation.select_on, recipe.evaluation.report_on)))


def wanted(recipe: Recipe, splits: Sequence[str] = SPLITS, *, backbone: bool = True) -> dict[str, list[Want]]:
    """Return the wants of each place of a recipe: `backbone`, `tasks.sst.train` and so on."""
    wants: dict[str, list[Want]] = {}
    if backbone:
        local_backbone(recipe, plan := Sources(planning=True))
        if plan.wants:
            wants["backbone"] = list(plan.wants.values())
    for name, task in recipe.tasks.items():
        for split in splits:
            given = getattr(task, split)
            if isinstance(given, str) and is_remote(given):
                wants[f"tasks.{name}.{split}"] = [want_file(part_address(given)[0])]
    return wants


def bring(recipe: Recipe, splits: Sequence[str], sources: Sources, *, backbone: bool = True) -> None:
    """Fetch the remote files of a recipe, so that every part finds them. Raises all that stands in the way."""
    sources.fetch(by_name(chain(*wanted(recipe, splits, backbone=backbone).values())).values())


@dataclass
class _Needs:
    """The files that recipes name."""

    wants: list[Want] = field(default_factory=list)
    places: dict[str, list[str]] = field(default_factory=dict)
    """`RECIPE: PLACE` of each want, by its name."""
    local: list[dict[str, Any]] = field(default_factory=list)
    pins: dict[str, str] = field(default_factory=dict)
    """Commits that runs began with, by name."""

    def add(self, path: str | Path, recipe: Recipe) -> None:
        """Add the needs of a recipe. Raises MtmetaError."""
        for place, wants in wanted(recipe).items():
            for want in wants:
                self.wants.append(want)
                self.places.setdefault(want.name, []).append(f"{path}: {place}")
        run = RunDir(Path(path).parent)  # whose commits count where this is its own recipe
        pinned = Path(path).name == run.recipe.name and run.lock_file.exists()
        for name, commit in (pins_of(run.lock()) if pinned else {}).items():
            if self.pins.setdefault(name, commit) != commit:
                message = f"began with another commit of {safe(name)} than a run before it; fetch it alone"
                raise UsageError(str(path), message)
        self.local += _local(recipe, str(path))


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
    """Fetch the remote files of recipes, of all splits; returns the document of `--json`, and the errors.

    With `dry_run`, or offline, nothing is fetched; what is missing is listed, with its size where the hub says it.
    Raises MtmetaError for recipes that are wrong.
    """
    needs = _Needs()
    problems: list[MtmetaError] = []
    for path in paths:
        try:
            needs.add(path, load_recipe(path, registry, overrides=overrides, data_root=data_root))
        except MtmetaError as error:
            problems.append(error)
    raise_all(problems)
    wants = by_name(needs.wants)
    sources = Sources(needs.pins, watcher, remedy=remedy)
    if not dry_run:
        try:
            sources.fetch(wants.values())
        except MtmetaError as error:
            problems.append(error)
    described = []
    for name, want in wants.items():
        try:
            source = sources.artifacts.get(name) or sources.fetcher.cached(want)
            described.append(_describe(source, needs.places[name], sources, ask=dry_run))
        except MtmetaError as error:
            problems.append(error)
    files = [one for source in described for one in source["files"]]
    problems = list({str(problem): problem for problem in problems}.values())
    return {
        "recipes": [str(path) for path in paths],
        "offline": is_offline(),
        "dry_run": dry_run,
        "fetched_bytes": sum(one["size"] or 0 for one in files if one["status"] == "fetched"),
        "missing": sum(one["status"] in ("missing", "damaged") for one in files),
        "sources": described,
        "local": needs.local,
    }, problems


def _local(recipe: Recipe, path: str) -> list[dict[str, Any]]:
    """Describe the data files that a recipe names by path, which nobody can fetch."""
    files = []
    for name, task in recipe.tasks.items():
        for split in SPLITS:
            given = getattr(task, split)
            if isinstance(given, str) and given != SAMPLE and not is_remote(given):
                file, places = parted(Path(recipe.data_root) / given)[0], [f"{path}: tasks.{name}.{split}"]
                files.append({"used_by": places, "path": str(file), "exists": file.is_file()})
    return files


def _describe(source: Artifact, places: list[str], sources: Sources, *, ask: bool) -> dict[str, Any]:
    """Describe a want and its files as plain data; where `ask`, with the sizes that the hub gives of missing ones."""
    address, files, commit = source.want.source, list(source.files.values()), source.commit
    if ask and not is_offline() and any(one.path is None and one.status != "absent" for one in files):
        commit, files = sources.fetcher.sizes(source)
    return {
        "name": source.want.name,
        "pinned": address.at(commit) if isinstance(address, HubFile) and commit else str(address),
        "used_by": places,
        "commit": commit or None,
        "files": [{**asdict(one), "path": one.path and str(one.path)} for one in files if one.status != "absent"],
    }
