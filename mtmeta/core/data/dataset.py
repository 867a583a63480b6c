"""A dataset: flat arrays of token ids, labels and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.contracts import Task
from mtmeta.core.api.multi_output import MultiOutput
from mtmeta.core.data.carving import example_hashes
from mtmeta.core.data.tokens import BLOCK, Ids, append_names, ramp
from mtmeta.core.storage.cache import Cache, Entry, Writer
from mtmeta.core.tables.bad_rows import BadRow

QUANTILES = 5  # strata of regression labels
UNCACHED = Cache(None)


@dataclass(frozen=True)
class Words:
    """Where the words of N texts are."""

    firsts: NDArray[np.int32]
    """Of each word [W], text after text, how many tokens of its text stand before its first piece."""
    offsets: NDArray[np.int64]
    """The words of text i are those from offsets[i] to offsets[i + 1]."""


@dataclass(frozen=True)
class Parts:
    """The sequences that the tokens of N texts are cut into, and where their words are, if these have labels."""

    lengths: NDArray[np.int32]
    """Tokens of each sequence, text after text."""
    offsets: NDArray[np.int64]
    """The sequences of text i are those from offsets[i] to offsets[i + 1]."""
    words: Words | None = None
    """None where the sequences are windows of a long text."""


@dataclass(frozen=True)
class TokenStore:
    """Token ids of N sequences end to end; sequence i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[np.integer[Any]]
    """uint16 where the vocabulary fits, else int32."""
    types: NDArray[np.uint8] | None
    """The segment of each token; None where all are 0."""
    offsets: NDArray[np.int64]
    full: NDArray[np.int32] | None = None
    """How long each sequence [N] would be if nothing were cut."""
    parts: Parts | None = None
    """Where texts are cut into several sequences; None where each is one."""

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)


class Teacher(Protocol):
    """Soft labels of a dataset's examples."""

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return those of the examples `indices` [B]: class probabilities [B, C], or values [B]."""


@dataclass(frozen=True)
class Dataset:
    """One split of one task, ready to be packed into batches. The arrays are read-only."""

    task: str
    split: str
    file: str
    ids: Sequence[str]
    labels: NDArray[np.float64]
    """Of each example [N], or [N, L] where labels are rows; where words have labels, of each word [W]."""
    stores: tuple[TokenStore, ...]
    """V of them."""
    skipped: int = 0
    truncated: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    """How many rows were skipped of each kind of badness."""
    bad: tuple[BadRow, ...] = ()
    """The first of the rows that were skipped, by line."""
    notes: tuple[str, ...] = ()
    """What the reader joined or dropped without a bad row, in words."""
    sha256: str = ""
    """Of the file."""
    whole: bool = True
    """Whether labels are whole numbers, which classes are."""
    texts: NDArray[np.uint64] = field(default_factory=lambda: np.empty((0, 1), dtype=np.uint64))
    """A hash of each text [N, T]: equal where they are the same words, letter case and punctuation aside."""
    unseen: Mapping[str, int] = field(default_factory=dict)
    """How often each label comes that is no class, in the order of their numbers: -1 is the first, -2 the second."""
    by_text: bool = False
    """Whether a loss goes by which text each is, `texts`, in the place of `labels`."""
    cut: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, dtype=np.uint8))
    """How many texts of each example were cut [N]."""
    teacher: Teacher | None = None
    """What the task's teachers say of the examples; None where it has none."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return sum(len(store.ids) for store in self.stores)

    @property
    def parts(self) -> Parts | None:
        """Where examples are cut into several sequences, if they are."""
        return self.stores[0].parts if self.stores else None

    @property
    def words(self) -> NDArray[np.int64] | None:
        """Where the words of each example begin and end [N + 1], if words have labels."""
        return None if self.parts is None or self.parts.words is None else self.parts.words.offsets

    def places(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return where the labels of the examples `indices` stand in `labels`."""
        words = self.words
        if words is None:
            return indices
        return ramp(words[indices], words[indices + 1] - words[indices])

    def by_example(self, values: NDArray[np.float64]) -> NDArray[Any]:
        """Return labels or predictions, which stand as `labels` do, as metrics get them: an entry an example [N]."""
        if self.words is None:
            return values
        whole = values.astype(np.int64).tolist()
        return entries([tuple(whole[start:stop]) for start, stop in pairwise(self.words.tolist())])

    @property
    def of_label(self) -> NDArray[np.float64]:
        """A number [N] for each example, by which they are sorted into kinds: its label.

        Of label sets it is the rarest class of the set among all examples, L where a set is empty, so that what is cut
        by kinds has its share of rare classes too; so it is with the classes of its words. Of rows of numbers it is
        the mean of those that are there.
        """
        if self.words is not None:
            classes, at = np.unique(self.labels, return_inverse=True)
            by_rarity = np.argsort(np.bincount(at), kind="stable")
            rank = np.empty(len(classes), dtype=np.int64)
            rank[by_rarity] = np.arange(len(classes))
            rarest = np.minimum.reduceat(rank[at], self.words[:-1])
            return np.asarray(classes[by_rarity[rarest]], dtype=np.float64)
        if self.labels.ndim == 1:
            return self.labels
        if not self.whole or self.labels.min() < 0 or self.labels.max() > 1:  # numbers, and no sets
            return np.asarray(np.nanmean(self.labels, axis=1))
        rarity = np.where(self.labels > 0, self.labels.sum(axis=0), np.inf)
        kinds = np.where(self.labels.any(axis=1), rarity.argmin(axis=1), self.labels.shape[1])
        return np.asarray(kinds, dtype=np.float64)

    @property
    def examples(self) -> NDArray[np.uint64]:
        """A hash of all texts of each example [N], in whatever order they stand."""
        return example_hashes(self.texts)


def entries(tuples: Sequence[tuple[int, ...]]) -> NDArray[Any]:
    """Return an array [N] of tuples, whatever their lengths; of tuples of one length numpy would make a matrix."""
    array = np.empty(len(tuples), dtype=object)
    for at, each in enumerate(tuples):
        array[at] = each
    return array


def dataset_of(name: str, split: str, file: str, entry: Entry, sha256: str) -> Dataset:
    """Make the dataset whose arrays are an entry of the cache."""
    arrays, meta = entry.arrays, entry.meta
    parts = None
    if "part-lengths" in arrays:
        words = Words(arrays["firsts"], arrays["word-offsets"]) if "firsts" in arrays else None
        parts = Parts(arrays["part-lengths"], arrays["part-offsets"], words)
    stores = tuple(
        TokenStore(arrays[f"ids-{i}"], arrays.get(f"types-{i}"), arrays[f"offsets-{i}"], arrays.get(f"full-{i}"), parts)
        for i in range(sum(key.startswith("ids-") for key in arrays))
    )
    # training labels stay on disk; metrics, which plugins may bring, are used to arrays that can be written
    labels = arrays["labels"] if split == "train" else arrays["labels"].copy()
    return Dataset(
        task=name,
        split=split,
        file=file,
        ids=Ids(arrays["names"], arrays["name-offsets"]),
        labels=labels,
        stores=stores,
        skipped=meta["skipped"],
        truncated=int(arrays["cut"].sum(dtype=np.int64)),
        bad=bad_rows_of(entry),
        kinds=meta["kinds"],
        notes=tuple(meta.get("notes", ())),
        unseen=meta.get("unseen", {}),
        sha256=sha256,
        whole=meta["whole"],
        texts=arrays["texts"],
        by_text=meta.get("by_text", False),
        cut=arrays["cut"],
    )


def _append_parts(writer: Writer, parts: Parts, at: NDArray[np.int64]) -> None:
    columns = [("part-lengths", parts.lengths, "part-offsets", parts.offsets)]
    if parts.words is not None:
        columns.append(("firsts", parts.words.firsts, "word-offsets", parts.words.offsets))
    for name, values, key, bounds in columns:
        counts = bounds[at + 1] - bounds[at]
        writer.append(name, values[ramp(bounds[at], counts)])
        writer.append_lengths(key, counts)


def class_counts(data: Dataset, task: Task, part: str | None = None) -> list[int]:
    """Return how many examples there are of each class of the task; an empty list where it has no classes.

    Of a task with parts those of one, or of each of them one after another.
    """
    objective, at = task.objective, slice(None)
    if isinstance(whole := objective, MultiOutput):
        if part is None:
            return [count for each in task.parts for count in class_counts(data, task, each)]
        objective, at = whole.objectives[part], whole.columns[part]
    if not (classes := len(objective.classes)):
        return []
    counts = np.zeros(classes, dtype=np.int64)
    for start in range(0, len(data.labels), BLOCK):  # they lie on disk, and may be more than memory holds
        labels = data.labels[start : start + BLOCK]
        if part is not None:
            labels = labels[:, at][~np.isnan(labels[:, at]).all(axis=1)]
            labels = labels if objective.labelled == "row" else labels[:, 0]
        labels = labels.astype(np.int64)
        counts += labels.sum(axis=0) if labels.ndim > 1 else np.bincount(labels, minlength=classes)
    return counts.tolist()


def label_views(data: Dataset, objective: MultiOutput) -> dict[str, tuple[Dataset, NDArray[np.int64]]]:
    """Return for each label of a dataset the examples that have it, without their texts, and which of all they are."""
    found = {}
    for name, at in objective.columns.items():
        labels = data.labels[:, at]
        there = np.flatnonzero(~np.isnan(labels).all(axis=1))
        own = labels[there] if objective.objectives[name].labelled == "row" else labels[there, 0]
        ids = [data.ids[i] for i in there.tolist()]
        found[name] = replace(data, task=name, ids=ids, labels=own, stores=()), there
    return found


def bad_rows_of(entry: Entry) -> tuple[BadRow, ...]:
    """Return the first of the rows that were left out, by line."""
    return tuple(BadRow(**row) for row in entry.meta["bad"])


def select(data: Dataset, indices: NDArray[np.int64]) -> Dataset:
    """Return the examples `indices` [N] of a loaded dataset, in that order."""

    def fill(writer: Writer) -> dict[str, Any]:
        for start in range(0, len(indices), BLOCK):
            at = indices[start : start + BLOCK]
            append_names(writer, [data.ids[i] for i in at.tolist()])
            writer.append("labels", data.labels[data.places(at)])
            for key, values in (("texts", data.texts), ("cut", data.cut)):
                writer.append(key, values[at])
            if data.parts is not None:
                _append_parts(writer, data.parts, at)
            for number, store in enumerate(data.stores):
                lengths = store.offsets[at + 1] - store.offsets[at]
                where = ramp(store.offsets[at], lengths)
                writer.append(f"ids-{number}", store.ids[where])
                writer.append_lengths(f"offsets-{number}", lengths)
                if store.full is not None:
                    writer.append(f"full-{number}", store.full[at])
                if store.types is not None:
                    writer.append(f"types-{number}", store.types[where])
        bad = [asdict(row) for row in data.bad]
        about: dict[str, Any] = {"kinds": dict(data.kinds), "notes": list(data.notes), "unseen": dict(data.unseen)}
        about |= {"by_text": True} if data.by_text else {}
        return {"skipped": data.skipped, "bad": bad, "whole": data.whole, **about}

    return dataset_of(data.task, data.split, data.file, UNCACHED.put(None, fill), data.sha256)
