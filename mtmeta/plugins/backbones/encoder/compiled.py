"""The two halves of a BERT layer around the compiled kernels, forward and backward written out.

PyTorch multiplies by the weight matrices; all steps between two such products are one call of `csrc/`. There are no
second derivatives.

Shapes: `S` packed tokens, `D` hidden, `I` intermediate, `H` heads, `n` sequences.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mtmeta.plugins.backbones.encoder.fused import Noise
from mtmeta.plugins.backbones.encoder.kernels import Kernels, mask


@dataclass(frozen=True)
class Span:
    """Where the sequences of a packed batch begin, for attention."""

    offsets: Tensor
    """[n + 1] int64."""
    longest: int


def span_of(lengths: Tensor, tokens: int) -> Span:
    """Compute the span of sequences of these lengths. Raises ValueError unless they are `tokens` together."""
    offsets = functional.pad(lengths.long().cumsum(0), (1, 0))
    if int(offsets[-1]) != tokens or int(lengths.min()) < 1:  # the kernels would read beyond the arrays
        raise ValueError(f"sequences of {int(offsets[-1])} tokens in a batch of {tokens}")
    return Span(offsets, int(lengths.max()))


def attend(
    kernels: Kernels,
    x: Tensor,
    qkv: nn.Linear,
    out: nn.Linear,
    norm: nn.LayerNorm,
    heads: int,
    span: Span,
    weight_noise: Noise | None,
    noise: Noise | None,
) -> Tensor:
    """Compute norm(x + dropout(out(attention(qkv(x))))) with dropout of the attention weights by `weight_noise`."""
    weights = qkv.weight, qkv.bias, out.weight, out.bias, norm.weight, norm.bias
    drawn = mask(weight_noise), mask(noise)
    if torch.is_grad_enabled():
        y: Tensor = _Attend.apply(x, *weights, kernels, heads, span, norm.eps, *drawn)  # type: ignore[no-untyped-call]
        return y
    mixed, _ = kernels.attention(x @ qkv.weight.t(), qkv.bias, span.offsets, span.longest, heads, drawn[0])
    return kernels.norm_(mixed @ out.weight.t(), out.bias, x, norm.weight, norm.bias, norm.eps, drawn[1])


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        qkv: Tensor,
        qkv_bias: Tensor,
        out: Tensor,
        out_bias: Tensor,
        gain: Tensor,
        shift: Tensor,
        kernels: Kernels,
        heads: int,
        span: Span,
        eps: float,
        weight_noise: Any,
        noise: Any,
    ) -> Tensor:
        wide = x @ qkv.t()  # [S, 3 D], without its bias
        mixed, lse = kernels.attention(wide, qkv_bias, span.offsets, span.longest, heads, weight_noise)
        unit = mixed @ out.t()
        y, rstd = kernels.norm(unit, out_bias, x, gain, shift, eps, noise)
        ctx.save_for_backward(x, qkv, qkv_bias, out, gain, wide, mixed, lse, unit, rstd)
        ctx.rest = kernels, span, weight_noise, noise
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, qkv, qkv_bias, out, gain, wide, mixed, lse, unit, rstd = ctx.saved_tensors
        kernels, span, weight_noise, noise = ctx.rest
        dx, d_unit, (d_gain, d_shift, d_out_bias) = kernels.norm_backward(grad.contiguous(), unit, rstd, gain, noise)
        d_out = d_unit.t() @ mixed if ctx.needs_input_grad[3] else None  # frozen weights cost nothing
        d_mixed = d_unit @ out
        given = wide, qkv_bias, span.offsets, span.longest, weight_noise, mixed, lse, d_mixed
        d_wide, d_qkv_bias = kernels.attention_backward(*given)
        d_qkv = d_wide.t() @ x if ctx.needs_input_grad[1] else None
        if ctx.needs_input_grad[0]:  # not so of the lowest layer that is trained
            dx.addmm_(d_wide, qkv)
        return dx, d_qkv, d_qkv_bias, d_out, d_out_bias, d_gain, d_shift, *[None] * 6


def feed_forward(
    kernels: Kernels, x: Tensor, up: nn.Linear, down: nn.Linear, norm: nn.LayerNorm, noise: Noise | None
) -> Tensor:
    """Compute norm(x + dropout(down(gelu(up(x))))): [S, D] -> [S, I] -> [S, D]."""
    weights = up.weight, up.bias, down.weight, down.bias, norm.weight, norm.bias
    drawn = mask(noise)
    if torch.is_grad_enabled():
        y: Tensor = _FeedForward.apply(x, *weights, kernels, norm.eps, drawn)  # type: ignore[no-untyped-call]
        return y
    active = kernels.gelu(x @ up.weight.t(), up.bias, in_place=True)
    return kernels.norm_(active @ down.weight.t(), down.bias, x, norm.weight, norm.bias, norm.eps, drawn)


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        gain: Tensor,
        shift: Tensor,
        kernels: Kernels,
        eps: float,
        noise: Any,
    ) -> Tensor:
        wide = x @ up.t()  # [S, I], without its bias
        active = kernels.gelu(wide, up_bias, in_place=False)
        unit = active @ down.t()
        y, rstd = kernels.norm(unit, down_bias, x, gain, shift, eps, noise)
        ctx.save_for_backward(x, up, up_bias, down, gain, wide, active, unit, rstd)
        ctx.rest = kernels, noise
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, up, up_bias, down, gain, wide, active, unit, rstd = ctx.saved_tensors
        kernels, noise = ctx.rest
        dx, d_unit, (d_gain, d_shift, d_down_bias) = kernels.norm_backward(grad.contiguous(), unit, rstd, gain, noise)
        d_down = d_unit.t() @ active if ctx.needs_input_grad[3] else None  # frozen weights cost nothing
        d_wide = d_unit @ down
        d_up_bias = kernels.gelu_backward_(d_wide, wide, up_bias)
        d_up = d_wide.t() @ x if ctx.needs_input_grad[1] else None
        return dx.addmm_(d_wide, up), d_up, d_up_bias, d_down, d_down_bias, d_gain, d_shift, None, None, None
