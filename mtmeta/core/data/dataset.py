"""A dataset: flat arrays of token ids, labels and names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.data.carving import example_hashes
from mtmeta.core.data.tokens import BLOCK, Ids, append_names, ramp
from mtmeta.core.storage.cache import Cache, Entry, Writer
from mtmeta.core.tables.bad_rows import BadRow

QUANTILES = 5  # strata of regression labels
UNCACHED = Cache(None)


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
    """Of each example [N], or [N, L] where labels are rows."""
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
    def of_label(self) -> NDArray[np.float64]:
        """A number [N] for each example, by which they are sorted into kinds: its label.

        Of label sets it is the rarest class of the set among all examples, L where a set is empty, so that what is cut
        by kinds has its share of rare classes too; of rows of numbers their mean.
        """
        if self.labels.ndim == 1:
            return self.labels
        if not self.whole:
            return np.asarray(self.labels.mean(axis=1))
        rarity = np.where(self.labels > 0, self.labels.sum(axis=0), np.inf)
        kinds = np.where(self.labels.any(axis=1), rarity.argmin(axis=1), self.labels.shape[1])
        return np.asarray(kinds, dtype=np.float64)

    @property
    def examples(self) -> NDArray[np.uint64]:
        """A hash of all texts of each example [N], in whatever order they stand."""
        return example_hashes(self.texts)


def dataset_of(name: str, split: str, file: str, entry: Entry, sha256: str) -> Dataset:
    """Make the dataset whose arrays are an entry of the cache."""
    arrays, meta = entry.arrays, entry.meta
    stores = tuple(
        TokenStore(arrays[f"ids-{i}"], arrays.get(f"types-{i}"), arrays[f"offsets-{i}"], arrays.get(f"full-{i}"))
        for i in range(2)
        if f"ids-{i}" in arrays
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
        sha256=sha256,
        whole=meta["whole"],
        texts=arrays["texts"],
        cut=arrays["cut"],
    )


def bad_rows_of(entry: Entry) -> tuple[BadRow, ...]:
    """Return the first of the rows that were left out, by line."""
    return tuple(BadRow(**row) for row in entry.meta["bad"])


def select(data: Dataset, indices: NDArray[np.int64]) -> Dataset:
    """Return the examples `indices` [N] of a loaded dataset, in that order."""

    def fill(writer: Writer) -> dict[str, Any]:
        for start in range(0, len(indices), BLOCK):
            at = indices[start : start + BLOCK]
            append_names(writer, [data.ids[i] for i in at.tolist()])
            for key, values in (("labels", data.labels), ("texts", data.texts), ("cut", data.cut)):
                writer.append(key, values[at])
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
        about = {"kinds": dict(data.kinds), "notes": list(data.notes)}
        return {"skipped": data.skipped, "bad": bad, "whole": data.whole, **about}

    return dataset_of(data.task, data.split, data.file, UNCACHED.put(None, fill), data.sha256)
