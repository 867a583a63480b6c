"""The two halves of a BERT layer in fp32 on a CPU by PyTorch's operators, forward and backward written out.

They run where `compiled.py` cannot: without a C compiler, and for widths that are no multiples of 8.

Autograd's overhead is left out: copies of slices, passes for scales and sums, buffers for gradients that can be
written in place. Dropout's bits come from a faster generator. All but the products with weight matrices once took two
fifths of a training step, now it takes one fifth (`benchmarks/RESULTS.md`). There are no second derivatives.

Shapes: `S` packed tokens, `D` hidden, `I` intermediate, `H` heads, `d` = D / H; `n`, `T`, `R`, `M` as in `tiles`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from mtmeta.plugins.backbones.encoder.tiles import Tiles

LEVELS = 2**16


class Noise:
    """The random bits of one forward pass, seeded by PyTorch's own generator, for dropout with probability `p`.

    PyTorch draws 32 bits an element with a slow generator, which takes a tenth of a training step; 16 bits decide as
    well. `p` is rounded to a multiple of 2^-16, and the elements kept are scaled by the probability used, so
    expectations are exact.
    """

    def __init__(self, p: float) -> None:
        self.dropped = min(LEVELS - 1, round(p * LEVELS))
        self.scale = LEVELS / (LEVELS - self.dropped)
        """Factor of the elements that are kept."""
        self._generator = np.random.Generator(np.random.SFC64(int(torch.randint(2**63 - 1, ()))))

    def bits(self, *shape: int) -> Tensor:
        """Draw independent uniform values of int16."""
        count = math.prod(shape)
        words = self._generator.integers(0, 2**64 - 1, (count + 3) // 4, dtype=np.uint64, endpoint=True)
        return torch.from_numpy(words.view(np.int16))[:count].view(shape)

    def seed(self) -> int:
        """Draw a seed for bits that are drawn elsewhere."""
        return int(self._generator.integers(0, 2**64 - 1, dtype=np.uint64, endpoint=True))

    def kept(self, bits: Tensor) -> Tensor:
        """Return 1.0 where an element is kept, 0.0 where it is dropped; the shape of `bits`, float32."""
        return torch.ge(bits, self.dropped - LEVELS // 2, out=torch.empty(bits.shape))


def drop(x: Tensor, noise: Noise | None) -> Tensor:
    """Apply dropout to x."""
    dropped: Tensor = x if noise is None else _Drop.apply(x, noise)  # type: ignore[no-untyped-call]
    return dropped


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, noise: Noise) -> Tensor:
        bits = noise.bits(*x.shape)
        ctx.save_for_backward(bits)
        ctx.noise = noise
        return noise.kept(bits).mul_(x).mul_(noise.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        (bits,) = ctx.saved_tensors
        return ctx.noise.kept(bits).mul_(grad).mul_(ctx.noise.scale), None


def _add(residual: Tensor, x: Tensor, noise: Noise | None) -> tuple[Tensor, Tensor | None]:
    """Compute residual + dropout(x), and return dropout's bits with it; x may be overwritten."""
    if noise is None:
        return x.add_(residual), None
    bits = noise.bits(*x.shape)
    return torch.addcmul(residual, x, noise.kept(bits), value=noise.scale), bits


def _linear_backward(
    grad: Tensor, x: Tensor, weight: Tensor, scale: float, wanted: bool
) -> tuple[Tensor, Tensor | None, Tensor]:
    """Compute the gradients of x, weight and bias for the gradient `scale` * grad of x weight^T + bias.

    That of the weight only where it is `wanted`.
    """
    dw = torch.addmm(weight, grad.t(), x, beta=0, alpha=scale) if wanted else None
    d_bias = grad.sum(0).mul_(scale)
    return torch.addmm(x, grad, weight, beta=0, alpha=scale), dw, d_bias  # dx last: it is read next


def feed_forward(x: Tensor, up: torch.nn.Linear, down: torch.nn.Linear, noise: Noise | None) -> Tensor:
    """Compute x + dropout(down(gelu(up(x)))): [S, D] -> [S, I] -> [S, D]."""
    weights = up.weight, up.bias, down.weight, down.bias
    y: Tensor = _FeedForward.apply(x, *weights, noise, torch.is_grad_enabled())  # type: ignore[no-untyped-call]
    return y


class _FeedForward(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor, noise: Any, keep: bool
    ) -> Tensor:
        wide = torch.addmm(up_bias, x, up.t())  # [S, I]
        active = functional.gelu(wide) if keep else torch.ops.aten.gelu_(wide)  # in place where no backward follows
        y, bits = _add(x, torch.addmm(down_bias, active, down.t()), noise)
        ctx.save_for_backward(x, wide, active, up, down, bits)
        ctx.noise = noise
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, wide, active, up, down, bits = ctx.saved_tensors
        kept, scale = (grad, 1.0) if bits is None else (ctx.noise.kept(bits).mul_(grad), ctx.noise.scale)
        d_wide, d_down, d_down_bias = _linear_backward(kept, active, down, scale, ctx.needs_input_grad[3])
        torch.ops.aten.gelu_backward.grad_input(d_wide, wide, grad_input=d_wide)
        d_up = d_wide.t() @ x if ctx.needs_input_grad[1] else None  # frozen weights cost nothing
        d_up_bias = d_wide.sum(0)
        return torch.addmm(grad, d_wide, up), d_up, d_up_bias, d_down, d_down_bias, None, None


def attend(
    x: Tensor, qkv: torch.nn.Linear, out: torch.nn.Linear, tiles: Tiles, weight_noise: Noise | None, noise: Noise | None
) -> Tensor:
    """Compute x + dropout(out(attention(qkv(x)))), with dropout of the weights by `weight_noise`: [S, D] -> [S, D]."""
    weights = qkv.weight, qkv.bias, out.weight, out.bias
    y: Tensor = _Attend.apply(x, *weights, tiles, weight_noise, noise)  # type: ignore[no-untyped-call]
    return y


class _Attend(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        qkv: Tensor,
        qkv_bias: Tensor,
        out: Tensor,
        out_bias: Tensor,
        tiles: Tiles,
        weight_noise: Noise | None,
        noise: Noise | None,
    ) -> Tensor:
        d = x.shape[1] // tiles.heads
        by_token = torch.addmm(qkv_bias, x, qkv.t()).view(-1, d)  # [S, 3 D] as [S 3 H, d]
        by_head = torch.index_select(by_token, 0, tiles.qkv_by_head)  # [3 R, d]
        q, k, v = (tiles.split(part) for part in by_head.view(3, -1, d))
        weights = x.new_empty(sum(tiles.scores))  # [M]
        for w, q_, k_ in zip(tiles.split_scores(weights), q, k, strict=True):
            torch.baddbmm(w, q_, k_.transpose(1, 2), beta=0, alpha=1 / math.sqrt(d), out=w)
        if tiles.bias is not None:
            weights += tiles.bias
        for w in tiles.split_scores(weights):
            torch.softmax(w, dim=-1, out=w)
        bits, dropped, scale = None, weights, 1.0
        if weight_noise is not None:
            bits, scale = weight_noise.bits(len(weights)), weight_noise.scale
            dropped = weight_noise.kept(bits).mul_(weights)
        mixed = x.new_empty(len(by_head) // 3, d)
        for y, w, v_ in zip(tiles.split(mixed), tiles.split_scores(dropped), v, strict=True):
            torch.baddbmm(y, w, v_, beta=0, alpha=scale, out=y)
        mixed = torch.index_select(mixed, 0, tiles.by_token).view(len(x), -1)  # [S, D]
        y, out_bits = _add(x, torch.addmm(out_bias, mixed, out.t()), noise)
        ctx.save_for_backward(x, qkv, by_head, weights, bits, mixed, out, out_bits)
        ctx.tiles, ctx.weight_noise, ctx.noise = tiles, weight_noise, noise
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, qkv, by_head, weights, bits, mixed, out, out_bits = ctx.saved_tensors
        tiles: Tiles = ctx.tiles
        d = by_head.shape[1]
        kept, scale = (grad, 1.0) if out_bits is None else (ctx.noise.kept(out_bits).mul_(grad), ctx.noise.scale)
        d_mixed, d_out, d_out_bias = _linear_backward(kept, mixed, out, scale, ctx.needs_input_grad[3])
        dy_by_head = torch.index_select(d_mixed.view(-1, d), 0, tiles.by_head)
        dy = tiles.split(dy_by_head.index_fill_(0, tiles.padded, 0.0))
        q, k, v = (tiles.split(part) for part in by_head.view(3, -1, d))
        d_by_head = torch.empty_like(by_head)
        dq, dk, dv = (tiles.split(part) for part in d_by_head.view(3, -1, d))

        scale = 1.0 if bits is None else ctx.weight_noise.scale
        d_weights = torch.empty_like(weights)  # and in place the gradient of the scores
        for dw, dy_, v_ in zip(tiles.split_scores(d_weights), dy, v, strict=True):
            torch.baddbmm(dw, dy_, v_.transpose(1, 2), beta=0, alpha=scale, out=dw)
        dropped = weights
        if bits is not None:
            dropped = ctx.weight_noise.kept(bits)
            d_weights.mul_(dropped)
            dropped.mul_(weights)
        for dv_, w, dy_ in zip(dv, tiles.split_scores(dropped), dy, strict=True):
            torch.baddbmm(dv_, w.transpose(1, 2), dy_, beta=0, alpha=scale, out=dv_)
        scores = zip(tiles.split_scores(d_weights), tiles.split_scores(weights), strict=True)
        for (ds, w), q_, k_, dq_, dk_ in zip(scores, q, k, dq, dk, strict=True):
            torch.ops.aten._softmax_backward_data.out(ds, w, -1, w.dtype, grad_input=ds)
            torch.baddbmm(dq_, ds, k_, beta=0, alpha=1 / math.sqrt(d), out=dq_)
            torch.baddbmm(dk_, ds.transpose(1, 2), q_, beta=0, alpha=1 / math.sqrt(d), out=dk_)
        d_qkv = torch.index_select(d_by_head, 0, tiles.qkv_by_token).view(len(x), -1)  # [S, 3 D]
        d_weight = d_qkv.t() @ x if ctx.needs_input_grad[1] else None
        d_bias = d_qkv.sum(0)
        return torch.addmm(grad, d_qkv, qkv), d_weight, d_bias, d_out, d_out_bias, None, None, None
