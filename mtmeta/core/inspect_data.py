"""`mtmeta validate --data`: what is in the data files, and what is doubtful about them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import numpy as np

from mtmeta.core.blame import blame
from mtmeta.core.contracts import LoadedBackbone, Task
from mtmeta.core.data import RawData, overlap, read_examples, tokenize
from mtmeta.core.errors import DataError, MtmetaError, raise_all, safe
from mtmeta.core.options import Recipe

__all__ = ["report"]


def report(recipe: Recipe, *, strict: bool = False) -> Iterator[str]:
    """Lines on every file of a recipe: examples, labels, duplicates, overlap with train, lengths, texts cut.

    Raises DataError, or Problems when there are several, for files that cannot be used and, with `strict`, for
    duplicates and overlap; not before every file has been looked at.
    """
    with blame(recipe.backbone, "backbone"):
        backbone = recipe.backbone.load(recipe.seed)
    problems: dict[str, MtmetaError] = {}  # by text: a missing data_root is the same for every file
    for name, task in recipe.tasks.items():
        train: RawData | None = None
        for split in ("train", "dev", "test"):
            if getattr(task, split) is None:
                continue
            try:
                with blame(task, "task"):
                    raw = read_examples(name, task, split, recipe.data, recipe.data_root)
            except MtmetaError as error:
                problems.setdefault(str(error), error)
                continue
            yield from _contents(name, task, split, raw, backbone)
            for what in _doubts(name, split, raw, train):
                yield f"    {what}"
                if strict:
                    problems[f"{raw.file}: {what}"] = DataError(raw.file, what)
            train = raw if split == "train" else train
    raise_all(list(problems.values()))


def _contents(name: str, task: Task, split: str, raw: RawData, backbone: LoadedBackbone) -> Iterator[str]:
    data = tokenize(name, split, raw, task.inputs, backbone.tokenizer, backbone.max_length)
    yield f"{name} {split}: {len(raw.examples)} examples, {len(raw.bad)} bad rows ({safe(raw.file, 200)})"
    yield f"    labels: {_labels(task.objective.classes, data.labels)}"
    lengths = np.concatenate([store.lengths for store in data.stores])
    spread = f"mean {lengths.mean():.1f}, median {np.median(lengths):.0f}, longest {lengths.max()}"
    yield f"    tokens a sequence: {spread}; {data.truncated} texts cut at {backbone.max_length}"


def _labels(classes: tuple[str, ...], labels: np.ndarray[tuple[int], np.dtype[np.float64]]) -> str:
    if not classes:
        return f"{labels.min():g} to {labels.max():g}, mean {labels.mean():.2f}"
    counts = Counter(labels.astype(int).tolist())
    shown = [f"{safe(label, 20)} {counts[i] / len(labels):.1%}" for i, label in enumerate(classes[:12])]
    return ", ".join(shown) + (", ..." if len(classes) > 12 else "")


def _doubts(name: str, split: str, raw: RawData, train: RawData | None) -> Iterator[str]:
    texts = Counter((example.text, example.pair) for example in raw.examples)
    repeated = sum(count - 1 for count in texts.values())
    if repeated:
        yield f"{name}: {repeated} of {len(raw.examples)} {split} examples repeat another's text"
    if train is None:
        return
    shared = overlap(train, raw)
    if shared:
        yield f"{name}: {shared} of {len(raw.examples)} {split} examples also in train"
    sentences = {text for example in train.examples for text in (example.text, example.pair) if text}
    touching = sum(example.text in sentences or example.pair in sentences for example in raw.examples)
    if touching > shared:
        yield f"{name}: {touching} of {len(raw.examples)} {split} examples share a sentence with train"
