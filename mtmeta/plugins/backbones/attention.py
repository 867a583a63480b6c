"""Attention within each sequence of a packed batch, by PyTorch's kernels.

Shapes: `S` packed tokens, `N` sequences, `n` sequences of `T` tokens in one group of equal length, `D` hidden, `H`
heads, `d` = D / H.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

import mtmeta

__all__ = ["Sequences"]


class Sequences:
    """Where the sequences of one packed batch begin and end, the same for all layers."""

    def __init__(self, packed: mtmeta.Packed) -> None:
        self.groups = packed.groups

    def attention(self, qkv: Tensor, heads: int, p: float) -> Tensor:
        """softmax(q k^T / sqrt(d)) v within each sequence, with dropout `p` of the weights: [S, 3 D] -> [S, D]."""
        return self._by_group(qkv, heads, p)

    def _by_group(self, qkv: Tensor, heads: int, p: float) -> Tensor:
        # split, not slices: the backward of a split is one concatenation, that of slices one full-size buffer each
        parts = torch.split(qkv, [n * t for n, t in self.groups])  # [n * T, 3 * D] each
        mixed = []
        for part, (n, t) in zip(parts, self.groups, strict=True):
            q, k, v = part.view(n, t, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()  # [n, H, T, d] each
            y = functional.scaled_dot_product_attention(q, k, v, dropout_p=p)
            mixed.append(y.transpose(1, 2).reshape(n * t, -1))  # [n, H, T, d] -> [n * T, D]
        return torch.cat(mixed)
