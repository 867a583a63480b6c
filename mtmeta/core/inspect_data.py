"""`mtmeta validate --data`: what is in the data files, and what is doubtful about them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from mtmeta.core.blame import blame
from mtmeta.core.cache import Cache
from mtmeta.core.data import Dataset, load_split, overlap, shared
from mtmeta.core.errors import DataError, MtmetaError, raise_all, safe
from mtmeta.core.fetch import SPLITS, bring, local_backbone
from mtmeta.core.options import Recipe
from mtmeta.core.sources import Sources

__all__ = ["report"]


def report(
    recipe: Recipe,
    *,
    strict: bool = False,
    warn: Callable[[str], None] = lambda text: None,
    sources: Sources | None = None,
) -> Iterator[str]:
    """Lines on every file of a recipe: examples, labels, duplicates, overlap with train, lengths, texts cut.

    Raises DataError, or Problems when there are several, for files that cannot be used and, with `strict`, for
    duplicates and overlap; not before every file has been looked at.
    """
    sources = sources or Sources()
    bring(recipe, SPLITS, sources)
    local = local_backbone(recipe, sources)
    with blame(recipe.backbone, "backbone"):
        backbone = local.load(recipe.seed)
    cache = Cache.find(warn)
    problems: dict[str, MtmetaError] = {}  # by text: a missing data_root is the same for every file
    for name, task in recipe.tasks.items():
        train: Dataset | None = None
        for split in SPLITS:
            if getattr(task, split) is None:
                continue
            try:
                place, options = recipe.data_root, recipe.data
                data = load_split(name, task, split, options, place, backbone, cache=cache, sources=sources)
            except MtmetaError as error:
                problems.setdefault(str(error), error)
                continue
            yield from _contents(data, task.objective.classes, backbone.max_length)
            for what in _doubts(data, train):
                yield f"    {what}"
                if strict:
                    problems[f"{data.file}: {what}"] = DataError(data.file, what)
            train = data if split == "train" else train
    raise_all(list(problems.values()))


def _contents(data: Dataset, classes: tuple[str, ...], max_length: int) -> Iterator[str]:
    yield f"{data.task} {data.split}: {len(data)} examples, {data.skipped} bad rows ({safe(data.file, 200)})"
    yield f"    labels: {_labels(classes, data.labels)}"
    lengths = np.concatenate([store.lengths for store in data.stores])
    spread = f"mean {lengths.mean():.1f}, median {np.median(lengths):.0f}, longest {lengths.max()}"
    yield f"    tokens a sequence: {spread}; {data.truncated} texts cut at {max_length}"


def _labels(classes: tuple[str, ...], labels: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    if not classes:
        return f"{labels.min():g} to {labels.max():g}, mean {labels.mean():.2f}"
    counts = np.bincount(labels.astype(np.int64), minlength=len(classes)).tolist()
    shown = [f"{safe(label, 20)} {counts[i] / len(labels):.1%}" for i, label in enumerate(classes[:12])]
    return ", ".join(shown) + (", ..." if len(classes) > 12 else "")


def _doubts(data: Dataset, train: Dataset | None) -> Iterator[str]:
    of = f"of {len(data)} {data.split} examples"
    repeated = len(data) - len(np.unique(data.examples))
    if repeated:
        yield f"{data.task}: {repeated} {of} repeat another's text"
    if train is None:
        return
    common = overlap(train, data)
    if common:
        yield f"{data.task}: {common} {of} also in train"
    sentences = train.texts.reshape(-1)
    touching = int(np.any([shared(column, sentences) for column in data.texts.T], axis=0).sum())
    if touching > common:
        yield f"{data.task}: {touching} {of} share a sentence with train"
