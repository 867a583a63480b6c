"""Sums in fixed point, which are the same bits in any order and over any number of ranks; those of floats are not.

Each tensor has a scale of its own, a power of two found from the largest magnitude among all contributions, so that
their sum just fits into 62 bits. A contribution is exact but for what lies below 2^-(61 - log2 count) of that largest
magnitude; a float32 has 24 bits, so numbers down to 2^-37 of it, over the count, lose nothing. The sum is rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from mtmeta.core.distributed.group import Group

BITS = 62
"""Of the sum, without its sign; one more is left free."""
UNTOUCHED = -1
NOT_FINITE = 0x7F800000
"""The bits of infinity as a float32; those of NaN are more."""
Grads = list[Tensor | None]


@torch.no_grad()
def fixed_sum(parts: Sequence[Grads], like: Sequence[Tensor], count: int, group: Group) -> Grads:
    """Return the sum of all parts of all ranks, tensor by tensor; None where no part of any rank has one.

    `parts` are this rank's, in the order of the tensors `like`, which say shape and device; `count` is how many there
    are at most on all ranks together. Where a number of a part is not finite, the whole tensor becomes NaN. Costs two
    reductions: of one number a tensor, and of eight bytes a parameter.
    """
    bits = _largest(parts, like)
    group.largest(bits)
    magnitudes = bits.tolist()
    scales = [_scale(magnitude, count) for magnitude in magnitudes]
    touched = [i for i, magnitude in enumerate(magnitudes) if UNTOUCHED < magnitude < NOT_FINITE]
    sizes = [like[i].numel() for i in touched]
    total = torch.zeros(sum(sizes), dtype=torch.int64, device=bits.device)
    for place, i in zip(torch.split(total, sizes), touched, strict=True):
        for part in parts:
            if (found := part[i]) is not None:
                place += found.double().mul_(2.0 ** scales[i]).round_().to(torch.int64).view(-1)
    group.sum(total)
    summed: Grads = [
        torch.full_like(t, math.nan) if m >= NOT_FINITE else None for t, m in zip(like, magnitudes, strict=True)
    ]
    for place, i in zip(torch.split(total, sizes), touched, strict=True):
        summed[i] = place.double().mul_(2.0 ** -scales[i]).view(like[i].shape).to(like[i].dtype)
    return summed


def _largest(parts: Sequence[Grads], like: Sequence[Tensor]) -> Tensor:
    """Return the largest magnitude of each tensor as the bits of a float32, int64 [T], which are in the same order.

    NaN is above infinity there, and is not lost; a tensor that no part has is below zero.
    """
    found = torch.full((len(like),), UNTOUCHED, dtype=torch.int64, device=like[0].device if like else "cpu")
    for part in parts:
        touched = [i for i, tensor in enumerate(part) if tensor is not None]
        if touched:
            tensors: list[Tensor] = [part[i] for i in touched]  # type: ignore[misc]
            largest = torch.stack(torch._foreach_norm(tensors, math.inf)).float()
            bits = (largest.view(torch.int32) & 0x7FFFFFFF).to(torch.int64)
            at = torch.tensor(touched, device=found.device)
            found[at] = torch.maximum(found[at], bits)
    return found


def _scale(bits: int, count: int) -> int:
    """Return the exponent of two that magnitudes up to these bits are multiplied by, for `count` of them to fit."""
    if not 0 < bits < NOT_FINITE:
        return 0
    magnitude = float(torch.tensor(bits, dtype=torch.int32).view(torch.float32))
    return BITS - math.frexp(magnitude)[1] - math.ceil(math.log2(max(count, 1)))
