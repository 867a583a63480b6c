"""Packed batches: the tokens of all sentences end to end, no padding anywhere.

Sequences are sorted by length, so those of equal length stand together and attention can take each such group as
one dense block: no mask, no wasted position, and a sentence never sees its batch mates.

Shapes: `S` tokens in all, `N` sequences, `B` examples, `V` = N / B sequences an example.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtmeta.core.api.batch import Batch, Chunk, Packed
from mtmeta.core.data.dataset import Dataset, Parts, TokenStore, Words
from mtmeta.core.data.tokens import ramp


def pack_sequences(stores: Sequence[TokenStore], indices: NDArray[np.int64]) -> Packed:
    """Pack the sequences `indices` of each store; all of the first store come before those of the second."""
    parts, windows = stores[0].parts, None
    if parts is None:
        lengths = np.concatenate([store.offsets[indices + 1] - store.offsets[indices] for store in stores])
        starts = np.concatenate([store.offsets[indices] for store in stores])
        source = np.repeat(np.arange(len(stores)), len(indices))
    else:
        lengths, starts = _sequences_of(stores[0], parts, indices)
        if parts.words is None:
            windows = torch.from_numpy(parts.offsets[indices + 1] - parts.offsets[indices])
        source = np.zeros(len(lengths), dtype=np.int64)
    given = lengths
    by_length = np.argsort(lengths, kind="stable")
    lengths, starts, source = lengths[by_length], starts[by_length], source[by_length]

    ends = np.cumsum(lengths)
    positions = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)  # [S]
    where = np.repeat(starts, lengths) + positions  # [S], index into the flat ids of the token's store
    of = np.repeat(source, lengths) if len(stores) > 1 else source  # [S], the store of each token
    ids = _gathered([store.ids for store in stores], of, where)
    segments = [store.types for store in stores if store.types is not None]  # of every store, or of none
    words = None
    if parts is not None and parts.words is not None:
        words = torch.from_numpy(_words_of(stores[0], parts, parts.words, indices, given, by_length))
    values, counts = np.unique(lengths, return_counts=True)
    return Packed(
        ids=ids,
        positions=torch.from_numpy(positions),
        types=_gathered(segments, of, where) if segments else None,
        lengths=torch.from_numpy(lengths),
        groups=tuple(zip(counts.tolist(), values.tolist(), strict=True)),
        order=torch.from_numpy(np.argsort(by_length)),
        words=words,
        windows=windows,
        vectors=len(stores),
    )


def _gathered(
    arrays: Sequence[NDArray[np.integer[Any]]], of: NDArray[np.int64], where: NDArray[np.int64]
) -> torch.Tensor:
    """Return for each token the entry `where` [S] of the array that `of` [S] names, int64; of one array without it."""
    if len(arrays) == 1:
        return torch.from_numpy(arrays[0][where].astype(np.int64))
    values = np.empty(len(where), dtype=np.int64)
    for number, array in enumerate(arrays):
        values[of == number] = array[where[of == number]]
    return torch.from_numpy(values)


def _sequences_of(
    store: TokenStore, parts: Parts, indices: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return length and start of each sequence that the texts `indices` are cut into, text after text."""
    counts = parts.offsets[indices + 1] - parts.offsets[indices]
    lengths = parts.lengths[ramp(parts.offsets[indices], counts)].astype(np.int64)
    before = np.cumsum(lengths) - lengths
    of_text = np.cumsum(counts) - counts  # the first sequence of each text
    return lengths, np.repeat(store.offsets[indices] - before[of_text], counts) + before


def _words_of(
    store: TokenStore,
    parts: Parts,
    words: Words,
    indices: NDArray[np.int64],
    lengths: NDArray[np.int64],
    by_length: NDArray[np.int64],
) -> NDArray[np.int64]:
    """Return where the first piece of each word is in a batch whose sequences, of `lengths`, are sorted by length."""
    counts = words.offsets[indices + 1] - words.offsets[indices]
    sizes = store.offsets[indices + 1] - store.offsets[indices]
    firsts = words.firsts[ramp(words.offsets[indices], counts)].astype(np.int64)
    unsorted = np.repeat(np.cumsum(sizes) - sizes, counts) + firsts
    before = np.cumsum(lengths) - lengths
    sequence = np.searchsorted(before, unsorted, side="right") - 1
    packed = np.empty(len(lengths), dtype=np.int64)
    packed[by_length] = np.cumsum(lengths[by_length]) - lengths[by_length]
    return packed[sequence] + unsorted - before[sequence]


def pack(dataset: Dataset, indices: NDArray[np.int64], *, chunks: int = 1, pin: bool = False) -> Batch:
    """Return the examples `indices` of a dataset as a batch of up to `chunks` chunks; page-locked if `pin`."""
    parts = (part for part in np.array_split(indices, chunks) if len(part))
    packed = tuple(pack_chunk(dataset, part, pin=pin) for part in parts)
    return Batch(task=dataset.task, ids=tuple(dataset.ids[i] for i in indices), chunks=packed)


def pack_chunk(dataset: Dataset, indices: NDArray[np.int64], *, pin: bool = False) -> Chunk:
    """Return the examples `indices` of a dataset, without their ids, in page-locked memory if `pin`."""
    labels = torch.from_numpy(
        dataset.texts[indices].view(np.int64)
        if dataset.by_text
        else dataset.labels[dataset.places(indices)].astype(np.float32)
    )
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
