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
from mtmeta.plugins.backbones.encoder.kernels_bf16 import Pairs

ROWS = 32
"""Divides the number of tokens and all widths."""


def layer(x: Tensor, weights: Sequence[Tensor], pairs: Sequence[Pairs], plan: Any, eps: Any, masks: Any) -> Tensor:
    """Compute a whole layer: [S, D] -> [S, D] in bf16. `weights` are weight and bias of each part, `pairs` of four."""
    if torch.is_grad_enabled():
        if pairs[0][1] is None:  # gradients were turned on between two layers
            pairs = [plan.kernels.pairs(weights[at], both=True) for at in (0, 2, 6, 8)]
        y: Tensor = _Layer.apply(x, *weights, pairs, plan, eps, masks)  # type: ignore[no-untyped-call]
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
        weights, (pairs, plan, eps, masks) = given[:12], given[12:]
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
        ctx.save_for_backward(*attended, inner, up_bias, second_gain, wider, second_unit, second_rstd, *back)
        ctx.rest = plan, masks
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, qkv_bias, gain, wide, mixed, lse, unit, rstd, *rest = ctx.saved_tensors
        inner, up_bias, second_gain, wider, second_unit, second_rstd, qkv, out, up, down = rest
        plan, masks = ctx.rest
        k, span = plan.kernels, plan.span
        _, wants_qkv, _, wants_out, _, _, _, wants_up, _, wants_down = ctx.needs_input_grad[:10]
        fed = second_unit, second_rstd, second_gain, masks[2], down, wider, up_bias, up, inner
        d_inner, d_down, d_up, second, d_up_bias = k.feed_backward(grad.contiguous(), *fed, (wants_down, wants_up))
        dx, d_mixed, d_out, first = k.out_backward(d_inner, unit, rstd, gain, masks[1], out, mixed, wants_out)
        attended = wide, qkv_bias, span.offsets, span.longest, masks[0], mixed, lse, d_mixed
        d_wide, d_qkv_bias = k.attention_backward(*attended)
        d_qkv = k.qkv_backward_(dx, d_wide, qkv, x, wants_qkv)  # frozen weights cost nothing
        of_first = d_qkv, d_qkv_bias, d_out, first[2], first[0], first[1]
        of_second = d_up, d_up_bias, d_down, second[2], second[0], second[1]
        return dx, *of_first, *of_second, None, None, None, None
