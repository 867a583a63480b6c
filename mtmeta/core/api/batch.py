"""Batches as encoders and algorithms get them: sequences one after another, without padding.

Shapes: `S` tokens in all, `N` sequences, `B` examples. N is B times the sequences of an example: 2 for pairs that are
encoded apart or in both orders, else 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Packed:
    """N sequences of S tokens in all, sorted by length."""

    ids: Tensor
    """Token ids [S], int64."""
    positions: Tensor
    """Position of each token in its own sequence [S], int64."""
    types: Tensor | None
    """Segment of each token [S], int64; None where all are 0."""
    lengths: Tensor
    """Tokens of each sequence [N], int64."""
    groups: tuple[tuple[int, int], ...]
    """(count, length) of each run of sequences of equal length: sum(count) = N, sum(count * length) = S."""
    order: Tensor
    """The way back, [N], int64: `pooled[order]` is in the order in which the sequences were given."""
    words: Tensor | None = None
    """Of texts whose words have labels, where the first piece of each word stands in the batch [W], int64: text after
    text in the order given, whatever sequences they were cut into. None of all others."""

    windows: Tensor | None = None
    """Of texts that are read in windows, how many sequences each text is [B], int64. None of all others."""

    vectors: int | None = None
    """Sequences of an example, V; None for those of the task's predictions."""

    def to(self, device: torch.device) -> Packed:
        """Return the batch on `device`; from pinned memory the copy runs beside the work that the GPU has before it."""
        if self.ids.device == device:
            return self
        return self._each(lambda tensor: tensor.to(device, non_blocking=True))

    def pinned(self) -> Packed:
        """Return the batch in page-locked memory, from which a GPU can fetch it by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Packed:
        types = None if self.types is None else change(self.types)
        ids, positions, lengths, order = map(change, (self.ids, self.positions, self.lengths, self.order))
        words = None if self.words is None else change(self.words)
        windows = None if self.windows is None else change(self.windows)
        return Packed(ids, positions, types, lengths, self.groups, order, words, windows, self.vectors)


@dataclass(frozen=True)
class Chunk:
    """A part of a batch that passes the encoder at once; more than one only under gradient accumulation."""

    packed: Packed
    labels: Tensor
    """Label of each example of the part [B], float32; of a class its index. [B, L] where labels are rows, and [W], one
    example after another, where each word has one. Where data have none, which text each is, int64 [B, T]."""
    teacher: Tensor | None = None
    """What the task's teachers say of each example, float32: class probabilities [B, C], or values [B]; None where it
    has none."""


@dataclass(frozen=True)
class Batch:
    """A batch of B examples of one task; its length is B."""

    task: str
    ids: tuple[str, ...]
    """Example ids [B]."""
    chunks: tuple[Chunk, ...]
    """All examples in their order, in one part or in several."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def labels(self) -> int:
        """Labels in the batch, by which the parts of its mean loss count: one an example, or one a word."""
        return sum(len(chunk.labels) for chunk in self.chunks)


@dataclass(frozen=True)
class Features:
    """What the encoder made of a batch of B examples, with the graph that leads back into it; its length is B."""

    task: str
    vectors: Tensor
    """Pooled vectors [B, V, D], in fp32 on a CPU. What a head takes of them, `Task.views` returns."""
    labels: Tensor
    """Label of each example [B], float32; of a class its index. [B, L] where labels are rows, [B, T] where they are
    texts."""
    teacher: Tensor | None = None
    """What the task's teachers say of each example, as in `Chunk`."""

    def __len__(self) -> int:
        return len(self.labels)
