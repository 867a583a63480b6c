"""BERT layers in bf16 by the processor's matrix unit (AMX): products and what lies between them by `csrc/layer_bf16.c`.

As in `bf16.py`, but rows stay in the cache from one product to the next, sums over tokens are fp32 to the end, and
nothing is compiled for the number of tokens, which must be a multiple of `ROWS`.

Shapes: `S` packed tokens, `D` hidden, `I` intermediate, `H` heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mtmeta.plugins.backbones.encoder.kernels import fp32
from mtmeta.plugins.backbones.encoder.kernels_bf16 import Bf16Kernels, Pairs, low_rank_sum

ROWS = 32
"""Divides the number of tokens and all widths."""
MATRICES = 0, 2, 6, 8
"""Where qkv, out, up and down stand among the weights and biases of a layer."""


def layer(x: Tensor, weights: Sequence[Tensor], pairs: Sequence[Pairs], plan: Any, eps: Any, masks: Any) -> Tensor:
    """Compute a whole layer: [S, D] -> [S, D] in bf16. `weights` are weight and bias of each part, `pairs` of four."""
    if torch.is_grad_enabled():
        if pairs[0][1] is None:  # gradients were turned on between two layers
            pairs = [plan.kernels.pairs(weights[at], both=True) for at in MATRICES]
        own = list(weights)
        low_rank: list[Tensor | None] = []
        scales = []
        for at in MATRICES:
            one = low_rank_sum(own[at])
            own[at] = one.weight if one else own[at]
            low_rank += [one.a, one.b] if one else [None, None]
            scales.append(one.scale if one else 0.0)
        y: Tensor = _Layer.apply(x, *own, *low_rank, scales, pairs, plan, eps, masks)  # type: ignore[no-untyped-call]
        return y
    _, qkv_bias, _, out_bias, gain, shift, _, up_bias, _, down_bias, second_gain, second_shift = weights
    (qkv, _), (out, _), (up, _), (down, _) = pairs
    k, span = plan.kernels, plan.span
    mixed, _ = k.attention(k.product(x, qkv), qkv_bias, span.offsets, span.longest, plan.heads, masks[0])
    inner = k.out(mixed, out, out_bias, x, gain, shift, eps[0], masks[1], (None, None))
    fed = up, up_bias, down, down_bias, second_gain, second_shift, eps[1], masks[2]
    y = k.feed(inner, *fed, (None, None, None))
    return y


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        weights, low_rank, (scales, pairs, plan, eps, masks) = given[:12], given[12:20], given[20:]
        _, qkv_bias, _, out_bias, gain, shift, _, up_bias, _, down_bias, second_gain, second_shift = weights
        (qkv, qkv_back), (out, out_back), (up, up_back), (down, down_back) = pairs
        k, span = plan.kernels, plan.span
        wide = k.product(x, qkv)  # [S, 3 D], without its bias
        mixed, lse = k.attention(wide, qkv_bias, span.offsets, span.longest, plan.heads, masks[0])
        unit, rstd = torch.empty_like(x), fp32(len(x))
        inner = k.out(mixed, out, out_bias, x, gain, shift, eps[0], masks[1], (unit, rstd))
        wider, second_unit, second_rstd = x.new_empty(len(x), len(up_bias)), torch.empty_like(x), fp32(len(x))
        fed = up, up_bias, down, down_bias, second_gain, second_shift, eps[1], masks[2]
        y: Tensor = k.feed(inner, *fed, (wider, second_unit, second_rstd))
        attended = x, qkv_bias, gain, wide, mixed, lse, unit, rstd
        back = qkv_back, out_back, up_back, down_back
        rest = inner, up_bias, second_gain, wider, second_unit, second_rstd, *back
        ctx.save_for_backward(*attended, *rest, *low_rank)
        ctx.rest = plan, masks, scales
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, qkv_bias, gain, wide, mixed, lse, unit, rstd, *rest = ctx.saved_tensors
        inner, up_bias, second_gain, wider, second_unit, second_rstd, qkv, out, up, down, *low_rank = rest
        plan, masks, scales = ctx.rest
        k, span, needed = plan.kernels, plan.span, ctx.needs_input_grad[1:]
        of_matrix = [(needed[at], *needed[12 + 2 * i : 14 + 2 * i]) for i, at in enumerate(MATRICES)]
        wants_qkv, wants_out, wants_up, wants_down = map(any, of_matrix)  # frozen weights cost nothing
        added = list(zip(low_rank[::2], low_rank[1::2], scales, strict=True))
        fed = second_unit, second_rstd, second_gain, masks[2], down, wider, up_bias, up, inner
        d_inner, d_down, d_up, second, d_up_bias = k.feed_backward(grad.contiguous(), *fed, (wants_down, wants_up))
        of_down, of_up = _low_rank(k, d_down, *added[3]), _low_rank(k, d_up, *added[2])  # these are in the cache
        dx, d_mixed, d_out, first = k.out_backward(d_inner, unit, rstd, gain, masks[1], out, mixed, wants_out)
        of_out = _low_rank(k, d_out, *added[1])
        attended = wide, qkv_bias, span.offsets, span.longest, masks[0], mixed, lse, d_mixed
        d_wide, d_qkv_bias = k.attention_backward(*attended)
        d_qkv = k.qkv_backward_(dx, d_wide, qkv, x, wants_qkv)
        of_qkv = _low_rank(k, d_qkv, *added[0])
        d_qkv, d_out, d_up, d_down = (
            grad if wants[0] else None for grad, wants in zip((d_qkv, d_out, d_up, d_down), of_matrix, strict=True)
        )
        of_first = d_qkv, d_qkv_bias, d_out, first[2], first[0], first[1]
        of_second = d_up, d_up_bias, d_down, second[2], second[0], second[1]
        return dx, *of_first, *of_second, *of_qkv, *of_out, *of_up, *of_down, None, None, None, None, None


def _low_rank(k: Bf16Kernels, grad: Tensor | None, a: Tensor | None, b: Tensor | None, scale: float) -> Any:
    """Return the gradients of A and B, where there are some, by that of W + scale B A."""
    return (None, None) if grad is None or a is None or b is None else k.low_rank_backward(grad, a, b, scale)
