"""Sequences of nearly equal length as dense blocks, for attention on a CPU.

Shapes: `S` packed tokens, `n` sequences padded to `T` tokens in one tile, `D` hidden, `H` heads, `d` = D / H; `R` = sum
of n H T, the vectors of all tiles; `M` = sum of n H T^2, their scores.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor

Groups = tuple[tuple[int, int], ...]
MULTIPLE = 4  # lengths of tiles: matrix products of 24 or 28 rows are up to twice as fast as those of 25


class Tiles:
    """Where the vectors of every token and head stand: by token in the encoder, by tile and head in attention.

    A tile takes sequences of nearly equal length as one dense block [n, H, T, d]. Its positions beyond a sequence's
    end repeat the last token: as keys they get weight 0, as queries nobody reads them.
    """

    def __init__(self, groups: Groups, heads: int) -> None:
        self.heads = heads
        tiles: dict[int, list[tuple[int, int]]] = {}
        for n, length in groups:  # by rising length
            tiles.setdefault(math.ceil(length / MULTIPLE) * MULTIPLE, []).append((n, length))
        self.shapes = [(sum(n for n, _ in members), t) for t, members in tiles.items()]
        """(n, T) of each tile."""
        head = np.arange(heads, dtype=np.int32)[:, None]
        by_head, by_token, padded, start, row = [], [], [], 0, 0
        for t, members in tiles.items():
            lengths = np.repeat(*np.array(members, dtype=np.int32).T[::-1])[:, None]  # [n, 1]
            starts = start + np.cumsum(lengths, axis=0, dtype=np.int32) - lengths
            position = np.arange(t, dtype=np.int32)
            token = starts + np.minimum(position, lengths - 1)  # [n, T]
            by_head.append((token[:, None] * heads + head).ravel())  # [n, H, T]
            real = position < lengths
            rows = row + np.arange(len(by_head[-1]), dtype=np.int32).reshape(len(lengths), heads, t)
            by_token.append(rows.transpose(0, 2, 1)[real].ravel())
            padded.append(rows.transpose(0, 2, 1)[~real].ravel())
            start, row = start + int(lengths.sum()), row + rows.size
        self.by_head = torch.from_numpy(np.concatenate(by_head))
        """[R]: tile by tile as [n, H, T], the row that token and head have in [S, H]."""
        self.by_token = torch.from_numpy(np.concatenate(by_token))
        """[S H], the inverse: the row that token and head have in the tiles."""
        self.padded = torch.from_numpy(np.concatenate(padded)).long()
        """Rows of the tiles that stand for no token."""
        self.bias = self._bias(tiles) if len(self.padded) else None
        """[M]: 0 for real keys, -inf for others; None if there are no others."""

    def _bias(self, tiles: dict[int, list[tuple[int, int]]]) -> Tensor:
        bias = torch.zeros(sum(self.scores))
        for block, (t, members) in zip(self.split_scores(bias), tiles.items(), strict=True):
            first = 0
            for n, length in members:
                block[first : first + n * self.heads, :, length:t] = -math.inf
                first += n * self.heads
        return bias

    @functools.cached_property
    def qkv_by_head(self) -> Tensor:
        """[3 R]: `by_head` for queries, keys and values, as rows of [S, 3, H]."""
        first = self.by_head + 2 * self.heads * (self.by_head // self.heads)  # token * 3 H + head
        return torch.cat([first, first + self.heads, first + 2 * self.heads])

    @functools.cached_property
    def qkv_by_token(self) -> Tensor:
        """[3 S H]: for queries, keys and values of each token, their rows in the tiles."""
        rows = self.by_token.view(-1, 1, self.heads)
        return torch.cat([rows, rows + len(self.by_head), rows + 2 * len(self.by_head)], dim=1).view(-1)

    @functools.cached_property
    def rows(self) -> list[int]:
        """n H T of each tile; their sum is R."""
        return [n * self.heads * t for n, t in self.shapes]

    @functools.cached_property
    def scores(self) -> list[int]:
        """n H T^2 of each tile; their sum is M."""
        return [n * self.heads * t * t for n, t in self.shapes]

    def split(self, x: Tensor) -> list[Tensor]:
        """Split the vectors by tile: [R, d] -> [n H, T, d] each."""
        parts = torch.split(x, self.rows)
        return [part.view(-1, t, x.shape[1]) for part, (_, t) in zip(parts, self.shapes, strict=True)]

    def split_scores(self, x: Tensor) -> list[Tensor]:
        """Split the scores by tile: [M] -> [n H, T, T] each."""
        return [part.view(-1, t, t) for part, (_, t) in zip(torch.split(x, self.scores), self.shapes, strict=True)]
