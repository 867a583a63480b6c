"""`mtmeta validate --data`: facts on the data files of a recipe, and doubts about them.

Nothing here needs PyTorch: texts are counted in tokens by the backbone's tokenizer alone. The token cache keeps
them, so that the run that follows need not read them again.

Shapes: `N` examples, `V` sequences an example, `T` texts an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.backbone import LoadedBackbone, LoadedTokenizer
from mtmeta.core.api.multi_output import MultiOutput
from mtmeta.core.api.objectives import Objective
from mtmeta.core.api.option_types import Carve
from mtmeta.core.data.dataset import Dataset, label_views
from mtmeta.core.data.examples import NoGoodRows, bad_rows
from mtmeta.core.data.loading import load_split, split_file
from mtmeta.core.data.subsets import overlap, shared
from mtmeta.core.environment import cache_folder
from mtmeta.core.errors import DataError, MtmetaError
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.run.fetch import SPLITS, bring, local_backbone
from mtmeta.core.storage.cache import Cache
from mtmeta.core.storage.sources import Sources
from mtmeta.core.tables.readings import both_fit, readings

PERCENTILES = (50, 90, 95, 99)
Facts = dict[str, Any]


def inspect(
    recipe: Recipe, *, warn: Callable[[str], None] = lambda text: None, sources: Sources | None = None
) -> tuple[Facts, list[MtmetaError]]:
    """Return facts on every data file of a recipe, by task and split, and the problems that make files unusable.

    A file that cannot be read, or has bad rows that the recipe does not skip, is one of the problems; all others are
    read all the same. Remote files are fetched by `sources`.
    """
    sources = sources or Sources()
    bring(recipe, SPLITS, sources)
    backbone = local_backbone(recipe, sources)
    texts = backbone.load_tokenizer() or backbone.load(recipe.seed)  # the encoder only where a plugin needs it
    for note in texts.notes:
        warn(note)
    cache = Cache(cache_folder(), warn)
    facts: Facts = {"max_length": texts.max_length, "tasks": {}}
    problems: dict[str, MtmetaError] = {}  # by text: a missing data_root is the same for every file
    datasets: dict[tuple[str, str], Dataset] = {}
    for name, task in recipe.tasks.items():
        splits: Facts = {}
        for split in SPLITS:
            if getattr(task, split) is None:
                continue
            if split == "dev" and isinstance(task.dev, Carve) and (name, "train") not in datasets:
                continue  # it is part of a file that was refused
            try:
                data = _load(recipe, name, split, texts, cache, sources)
            except MtmetaError as error:
                problems.setdefault(str(error), error)
                continue
            if data.skipped and recipe.data.on_bad_rows == "error":
                refusal = bad_rows(data.file, data.bad, data.skipped)
                problems.setdefault(str(refusal), refusal)
            datasets[name, split] = data
            carved = split == "dev" and isinstance(task.dev, Carve)
            splits[split] = _facts(data, task.objective, datasets.get((name, "train")), carved=carved)
            splits[split]["readings"] = [] if carved else _other_readings(recipe, name, split, sources)
        long = None if task.long is None else asdict(task.long)
        facts["tasks"][name] = {"task": task.name, "inputs": task.inputs, "long": long, "splits": splits}
    facts["across"] = list(_across(datasets))
    return facts, list(problems.values())


def _load(
    recipe: Recipe, name: str, split: str, texts: LoadedBackbone | LoadedTokenizer, cache: Cache, sources: Sources
) -> Dataset:
    task, lenient = recipe.tasks[name], replace(recipe.data, on_bad_rows="skip")
    try:
        is_open = recipe.data.on_bad_rows == "error" and split != "train"
        options: Any = {"cache": cache, "sources": sources, "open_labels": is_open}
        return load_split(name, task, split, lenient, recipe.data_root, texts, **options)
    except DataError as error:
        if recipe.data.on_bad_rows == "skip":
            raise
        if isinstance(error, NoGoodRows):
            raise error.strict from None
        # one class is left: the strict reading names the first bad row
        return load_split(name, task, split, recipe.data, recipe.data_root, texts, cache=cache, sources=sources)


def _other_readings(recipe: Recipe, name: str, split: str, sources: Sources) -> list[str]:
    """Return how else the file may be read, with the rows of both readings."""
    file = split_file(recipe.tasks[name], split, recipe.data, recipe.data_root, sources)
    with suppress(DataError):  # of other dialects: with its own it was read
        return both_fit(readings(file, file.dialect), file.dialect) if file else []
    return []


def _facts(data: Dataset, objective: Objective, train: Dataset | None, *, carved: bool) -> Facts:
    facts: Facts = {
        "file": data.file,
        "carved": carved,
        "rows": len(data),
        "bad": {
            "rows": data.skipped,
            "kinds": dict(data.kinds),
            "first": [{"line": row.line, "reason": row.reason} for row in data.bad[:5]],
        },
        "notes": list(data.notes),
        "labels": _labels(data, objective),
        "tokens": _tokens(data),
        "duplicates": _duplicates(data),
    }
    if train is not None and data.split != "train":
        touching = np.any([shared(column, train.texts.reshape(-1)) for column in data.texts.T], axis=0)
        facts["in_train"] = {"examples": overlap(train, data), "sharing_a_sentence": int(touching.sum())}
    return facts


def _labels(data: Dataset, objective: Objective) -> Facts:
    if isinstance(objective, MultiOutput):
        views = label_views(data, objective)
        each = {name: _labels(own, objective.objectives[name]) for name, (own, _) in views.items()}
        return {"outputs": each, "rows": {name: len(own) for name, (own, _) in views.items()}}
    labels, classes = data.labels, objective.classes
    if data.by_text:
        return {"different": [len(np.unique(column)) for column in data.texts.T]}
    if not classes and labels.ndim > 1:
        columns = zip(objective.targets, labels.T, strict=True)
        return {"targets": {name: _numbers(column[~np.isnan(column)]) for name, column in columns}}
    if not classes:
        return _numbers(labels)
    if labels.ndim > 1:
        sizes = labels.sum(axis=1)
        sets = dict(zip(classes, labels.sum(axis=0).astype(np.int64).tolist(), strict=True))
        shares = {"largest_share": max(sets.values()) / len(data), "mean_size": float(sizes.mean())}
        return {"sets": sets, "rows": len(data), "empty": int((sizes == 0).sum()), **shares}
    counts = np.bincount(labels[labels >= 0].astype(np.int64), minlength=len(classes)).tolist()
    found: Facts = {"classes": dict(zip(classes, counts, strict=True)), "largest_share": max(counts) / len(labels)}
    return found | ({"unseen": dict(data.unseen)} if data.unseen else {})


def _numbers(labels: NDArray[np.float64]) -> Facts:
    """Return how many numbers there are, and where they lie; of none that there are none."""
    if not len(labels):
        return {"count": 0}
    return {
        "count": len(labels),
        "least": float(labels.min()),
        "greatest": float(labels.max()),
        "mean": float(labels.mean()),
        "deviation": float(labels.std()),
        "quartiles": np.percentile(labels, (25, 50, 75)).tolist(),
    }


def _tokens(data: Dataset) -> Facts:
    """Count the tokens of uncut sequences, special tokens included."""
    lengths = np.concatenate([store.lengths if store.full is None else store.full for store in data.stores])
    percentiles = np.percentile(lengths, PERCENTILES).tolist()
    return {
        "sequences": len(lengths),
        "mean": float(lengths.mean()),
        **{f"p{number}": value for number, value in zip(PERCENTILES, percentiles, strict=True)},
        "longest": int(lengths.max()),
        "cut": data.truncated,
        "cut_share": data.truncated / len(lengths),
        **({} if data.parts is None else {"several": int((np.diff(data.parts.offsets) > 1).sum())}),
    }


def _duplicates(data: Dataset) -> Facts:
    """Count rows that repeat an earlier one's text, and rows whose text also occurs under another label."""
    _, members, counts = np.unique(data.examples, return_inverse=True, return_counts=True)
    labels: Any = data.labels
    if data.parts is not None:
        labels = np.unique([hash(each) for each in data.by_example(labels)], return_inverse=True)[1]
    elif labels.ndim > 1:
        labels = np.unique(np.nan_to_num(labels, nan=np.inf), axis=0, return_inverse=True)[1].ravel()
    low, high = np.full(len(counts), np.inf), np.full(len(counts), -np.inf)
    np.minimum.at(low, members, labels)
    np.maximum.at(high, members, labels)
    return {"rows": len(data) - len(counts), "of_other_labels": int(counts[low < high].sum())}


def _across(datasets: dict[tuple[str, str], Dataset]) -> Iterator[Facts]:
    """Yield rows of a dev or test split with a sentence that another task trains on: the shared encoder has seen it."""
    for (name, split), data in datasets.items():
        for (other, of), train in datasets.items():
            if split == "train" or of != "train" or other == name:
                continue
            touching = np.any([shared(column, train.texts.reshape(-1)) for column in data.texts.T], axis=0)
            if count := int(touching.sum()):
                yield {"task": name, "split": split, "rows": count, "of": len(data), "train_of": other}


def doubts(facts: Facts) -> Iterator[tuple[str, str]]:
    """Yield (file, doubt) for all that `--strict` makes an error: duplicates and overlap, no common sentences."""
    for name, task in facts["tasks"].items():
        for split, of_split in task["splits"].items():
            of = f"of {of_split['rows']} {split} examples"
            for note in of_split["notes"]:
                yield of_split["file"], f"{name}: {note}"
            if repeated := of_split["duplicates"]["rows"]:
                yield of_split["file"], f"{name}: {repeated} {of} repeat another's text"
            if common := of_split.get("in_train", {}).get("examples"):
                yield of_split["file"], f"{name}: {common} {of} also in train"
