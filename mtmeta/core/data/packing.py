"""Packed batches: the tokens of all sentences end to end, no padding anywhere.

Sequences are sorted by length, so those of equal length stand together and attention can take each such group as
one dense block: no mask, no wasted position, and a sentence never sees its batch mates.

Shapes: `S` tokens in all, `N` sequences, `B` examples, `V` = N / B sequences an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from mtmeta.core.api.batch import Batch, Chunk, Packed
from mtmeta.core.data.dataset import Dataset, TokenStore


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
    return Packed(
        ids=torch.from_numpy(ids.astype(np.int64)),
        positions=torch.from_numpy(positions),
        types=types,
        lengths=torch.from_numpy(lengths),
        groups=tuple(zip(counts.tolist(), values.tolist(), strict=True)),
        order=torch.from_numpy(np.argsort(by_length)),
    )


def pack(dataset: Dataset, indices: NDArray[np.int64], *, chunks: int = 1, pin: bool = False) -> Batch:
    """Return the examples `indices` of a dataset as a batch of up to `chunks` chunks; page-locked if `pin`."""
    parts = (part for part in np.array_split(indices, chunks) if len(part))
    packed = tuple(pack_chunk(dataset, part, pin=pin) for part in parts)
    return Batch(task=dataset.task, ids=tuple(dataset.ids[i] for i in indices), chunks=packed)


def pack_chunk(dataset: Dataset, indices: NDArray[np.int64], *, pin: bool = False) -> Chunk:
    """Return the examples `indices` of a dataset, without their ids, in page-locked memory if `pin`."""
    labels = torch.from_numpy(dataset.labels[indices].astype(np.float32))
    packed = pack_sequences(dataset.stores, indices)
    teacher = None if dataset.teacher is None else torch.from_numpy(dataset.teacher.rows(indices))
    if not pin:
        return Chunk(packed, labels, teacher)
    return Chunk(packed.pinned(), labels.pin_memory(), None if teacher is None else teacher.pin_memory())


def by_tokens(dataset: Dataset, budget: int) -> Iterator[NDArray[np.int64]]:
    """Yield index arrays that cover the dataset by length, each of at most `budget` tokens or one example."""
    lengths = np.sum([store.lengths for store in dataset.stores], axis=0)
    order = np.argsort(lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    start = 0
    while start < len(order):
        used = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, used + budget, side="right")))
        yield order[start:stop]
        start = stop
