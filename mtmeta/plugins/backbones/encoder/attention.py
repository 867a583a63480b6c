"""Attention within each sequence of a packed batch, by PyTorch's kernels.

Shapes: `S` packed tokens, `N` sequences, `n` sequences of `T` tokens in one group of equal length, `D` hidden, `H`
heads, `d` = D / H.
"""

from __future__ import annotations

import functools
import math
from importlib.util import find_spec

import torch
from torch import Tensor
from torch.nn import functional

import mtmeta

MAX_HEAD_SIZE = 256  # of FlashAttention
OLDEST_GPU = (8, 0)  # compute capability FlashAttention 2 needs


class Sequences:
    """Where the sequences of one packed batch begin and end, the same for all layers."""

    def __init__(self, packed: mtmeta.Packed, *, twice_differentiable: bool = False) -> None:
        self._by_products = twice_differentiable  # of PyTorch's own kernels few have second derivatives
        self._groups = packed.groups
        self._lengths = packed.lengths
        self._longest = packed.groups[-1][1]

    @functools.cached_property
    def _starts(self) -> Tensor:
        """[N + 1], int32: where each sequence begins, and the end of the last."""
        return functional.pad(self._lengths.cumsum(0), (1, 0)).int()

    def attention(self, qkv: Tensor, heads: int, p: float) -> Tensor:
        """Compute softmax(q k^T / sqrt(d)) v within each sequence, dropout `p` of the weights: [S, 3 D] -> [S, D]."""
        if not self._by_products and _flash_can(qkv, heads):
            return self._flash(qkv, heads, p)
        return self._by_group(qkv, heads, p)

    def _flash(self, qkv: Tensor, heads: int, p: float) -> Tensor:
        """Run FlashAttention on the packed layout as it stands (Dao 2023), for 16-bit numbers on a GPU."""
        q, k, v = qkv.view(len(qkv), 3, heads, -1).unbind(1)  # [S, H, d] each
        starts, longest = self._starts, self._longest
        if p:  # torch.nn.attention.varlen has no dropout; the operator below it has
            operator = torch.ops.aten._flash_attention_forward
            mixed: Tensor = operator(q, k, v, starts, starts, longest, longest, p, False, False)[0]
        else:
            from torch.nn.attention.varlen import varlen_attn

            output = varlen_attn(q, k, v, starts, starts, longest, longest)
            mixed = output[0] if isinstance(output, tuple) else output
        return mixed.reshape(len(qkv), -1)

    def _by_group(self, qkv: Tensor, heads: int, p: float) -> Tensor:
        """Run one call a group of equal length, for everything else."""
        # split, not slices: the backward of a split is one concatenation, that of slices one full-size buffer each
        parts = torch.split(qkv, [n * t for n, t in self._groups])  # [n * T, 3 * D] each
        mixed = []
        for part, (n, t) in zip(parts, self._groups, strict=True):
            q, k, v = part.view(n, t, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind()  # [n, H, T, d] each
            plainly = self._by_products or _is_half(q)
            compute = _by_products if plainly else functional.scaled_dot_product_attention
            y = compute(q, k, v, dropout_p=p)
            mixed.append(y.transpose(1, 2).reshape(n * t, -1))  # [n, H, T, d] -> [n * T, D]
        return torch.cat(mixed)


def _is_half(q: Tensor) -> bool:
    """Return whether PyTorch's own attention takes many times as long backwards as in fp32: 16 bits on a CPU."""
    return q.device.type == "cpu" and q.dtype in (torch.bfloat16, torch.float16)


def _by_products(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    """Compute attention by two plain products, with a softmax in fp32 at least: [n, H, T, d] each."""
    scores = q @ k.transpose(2, 3)
    if scores.dtype != torch.float64:
        scores = scores.float()
    scores = scores / math.sqrt(q.shape[-1])
    return functional.dropout(scores.softmax(-1).to(v.dtype), dropout_p) @ v


def _flash_can(qkv: Tensor, heads: int) -> bool:
    """Return whether FlashAttention takes them: on a GPU, 16 bits, heads of a multiple of 8 and not too wide."""
    d = qkv.shape[1] // (3 * heads)
    fits = qkv.is_cuda and qkv.dtype in (torch.float16, torch.bfloat16) and d % 8 == 0 and d <= MAX_HEAD_SIZE
    return fits and _has_flash(qkv.device.index)


@functools.cache
def _has_flash(device: int) -> bool:
    if torch.version.hip or torch.cuda.get_device_capability(device) < OLDEST_GPU:
        return False
    return find_spec("torch.nn.attention.varlen") is not None  # from torch 2.10 on
