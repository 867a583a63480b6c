"""Batches as encoders and algorithms get them.

Shapes: `S` tokens in all, `N` sequences, `B` examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Batch", "Chunk", "Packed"]


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
