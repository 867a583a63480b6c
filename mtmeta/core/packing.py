"""Packed batches: the tokens of all sentences end to end, no padding anywhere.

Sequences are sorted by length, so those of equal length stand together and attention can take each such group as
one dense block: no mask, no wasted position, and a sentence never sees its batch mates.

Shapes: `S` tokens in all, `N` sequences, `B` examples, `V` = N / B sequences an example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtmeta.core.data import Dataset, TokenStore

__all__ = ["Batch", "Chunk", "Packed", "by_tokens", "pack", "pack_chunk", "pack_sequences"]


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
    lengths: Tensor
    """[N], int64."""
    groups: tuple[tuple[int, int], ...]
    order: Tensor
    """[N], int64."""

    def to(self, device: torch.device) -> Packed:
        """The same batch on `device`; from pinned memory the copy runs beside what the GPU has to do before it."""
        if self.ids.device == device:
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Packed:
        """The same batch in page-locked memory, from which a GPU can fetch it by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Packed:
        types = None if self.types is None else change(self.types)
        ids, positions, lengths, order = map(change, (self.ids, self.positions, self.lengths, self.order))
        return Packed(ids, positions, types, lengths, self.groups, order)


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
        lengths=torch.from_numpy(lengths),
        groups=tuple(zip(counts.tolist(), values.tolist(), strict=True)),
        order=torch.from_numpy(order),
    )


def pack(dataset: Dataset, indices: NDArray[np.int64], *, chunks: int = 1, pin: bool = False) -> Batch:
    """The examples `indices` of a dataset as a batch of at most `chunks` chunks, in page-locked memory if `pin`."""
    parts = [part for part in np.array_split(indices, chunks) if len(part)]
    return Batch(
        task=dataset.task,
        ids=tuple(dataset.ids[i] for i in indices),
        chunks=tuple(pack_chunk(dataset, part, pin=pin) for part in parts),
    )


def pack_chunk(dataset: Dataset, indices: NDArray[np.int64], *, pin: bool = False) -> Chunk:
    """The examples `indices` of a dataset, without their ids, in page-locked memory if `pin`."""
    labels = torch.from_numpy(dataset.labels[indices].astype(np.float32))
    packed = pack_sequences(dataset.stores, indices)
    return Chunk(packed.pinned(), labels.pin_memory()) if pin else Chunk(packed, labels)


def by_tokens(dataset: Dataset, budget: int) -> Iterator[NDArray[np.int64]]:
    """Index arrays that cover the dataset, sorted by length, each of at most `budget` tokens (at least one example)."""
    lengths = np.sum([store.lengths for store in dataset.stores], axis=0)
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        used = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, used + budget, side="right")))
        yield order[start:stop]
        start = stop
