"""Packed batches: the tokens of all sentences end to end, no padding anywhere.

Sequences are sorted by length, so those of equal length stand together and attention can take each such group as
one dense block: no mask, no wasted position, and a sentence never sees its batch mates.

Shapes: `S` tokens in all, `N` sequences, `B` examples, `V` = N / B sequences an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtmeta.core.data import Dataset, TokenStore

__all__ = ["Batch", "Chunk", "Packed", "by_tokens", "pack", "pack_sequences"]


@dataclass(frozen=True)
class Packed:
    """N sequences of S tokens in all, sorted by length.

    `groups` are (count, length) of each run of equal length: sum(count) = N, sum(count * length) = S. `order` maps
    back: `pooled[order]` stands in the order the sequences were given.
    """

    ids: Tensor
    """Token ids [S], int64."""
    positions: Tensor
    """Position of each token in its own sequence [S], int64."""
    types: Tensor | None
    """Segment of each token [S], int64; None where all are 0."""
    groups: tuple[tuple[int, int], ...]
    order: Tensor
    """[N], int64."""

    def to(self, device: torch.device) -> Packed:
        """The same batch on `device`."""
        if self.ids.device == device:
            return self
        types = None if self.types is None else self.types.to(device, non_blocking=True)
        ids, positions, order = (t.to(device, non_blocking=True) for t in (self.ids, self.positions, self.order))
        return Packed(ids, positions, types, self.groups, order)


@dataclass(frozen=True)
class Chunk:
    """A part of a batch that goes through the encoder at once."""

    packed: Packed
    labels: Tensor
    """[B], float32."""


@dataclass(frozen=True)
class Batch:
    """A batch of one task. `chunks` is more than one under gradient accumulation."""

    task: str
    ids: tuple[str, ...]
    """Example ids [B]."""
    chunks: tuple[Chunk, ...]

    def __len__(self) -> int:
        return len(self.ids)


def pack_sequences(stores: Sequence[TokenStore], indices: NDArray[np.int64]) -> Packed:
    """Pack the sequences `indices` of each store; all of the first store come before those of the second."""
    lengths = np.concatenate([store.offsets[indices + 1] - store.offsets[indices] for store in stores])
    starts = np.concatenate([store.offsets[indices] for store in stores])
    source = np.repeat(np.arange(len(stores)), len(indices))
    by_length = np.argsort(lengths, kind="stable")
    lengths, starts, source = lengths[by_length], starts[by_length], source[by_length]

    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)  # [S]
    where = np.repeat(starts, lengths) + positions  # [S], index into the flat ids of the token's store
    if len(stores) == 1:
        ids = stores[0].ids[where]
    else:
        of = np.repeat(source, lengths)
        ids = np.empty(len(where), dtype=np.int32)
        for number, store in enumerate(stores):
            ids[of == number] = store.ids[where[of == number]]
    segments = stores[0].types
    types = None if segments is None else torch.from_numpy(segments[where].astype(np.int64))
    values, counts = np.unique(lengths, return_counts=True)
    order = np.empty(len(by_length), dtype=np.int64)
    order[by_length] = np.arange(len(by_length))
    return Packed(
        ids=torch.from_numpy(ids.astype(np.int64)),
        positions=torch.from_numpy(positions),
        types=types,
        groups=tuple(zip(counts.tolist(), values.tolist(), strict=True)),
        order=torch.from_numpy(order),
    )


def pack(dataset: Dataset, indices: NDArray[np.int64], *, chunks: int = 1) -> Batch:
    """The examples `indices` of a dataset as a batch of at most `chunks` chunks."""
    parts = [part for part in np.array_split(indices, chunks) if len(part)]
    return Batch(
        task=dataset.task,
        ids=tuple(dataset.ids[i] for i in indices),
        chunks=tuple(_chunk(dataset, part) for part in parts),
    )


def _chunk(dataset: Dataset, indices: NDArray[np.int64]) -> Chunk:
    labels = torch.from_numpy(dataset.labels[indices].astype(np.float32))
    return Chunk(pack_sequences(dataset.stores, indices), labels)


def by_tokens(dataset: Dataset, budget: int) -> Iterator[NDArray[np.int64]]:
    """Index arrays that cover the dataset, sorted by length, each of at most `budget` tokens (at least one example)."""
    lengths = np.sum([store.lengths for store in dataset.stores], axis=0)
    order = np.argsort(lengths, kind="stable")
    start, total = 0, 0
    for at, length in enumerate(lengths[order]):
        if total + length > budget and at > start:
            yield order[start:at]
            start, total = at, 0
        total += int(length)
    if start < len(order):
        yield order[start:]
