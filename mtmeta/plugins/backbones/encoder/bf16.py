"""BERT layers in bf16 on a CPU: products by PyTorch (oneDNN), what lies between them by `kernels_bf16`.

A layer reads and writes bf16 hidden states. Its weights are cast once a forward pass; biases and gains stay fp32, and
so do the gradients of all of them; sums are fp32 everywhere. Forward and backward are written out, as in `compiled.py`;
there are no second derivatives.

Products that sum over tokens, those of weight gradients, are given the transpose of their narrower side: oneDNN takes
several times as long for a transposed view.

Shapes: `S` packed tokens, `D` hidden, `I` intermediate, `H` heads.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mtmeta.plugins.backbones.encoder import matrix_unit
from mtmeta.plugins.backbones.encoder.compiled import Span
from mtmeta.plugins.backbones.encoder.fused import Noise
from mtmeta.plugins.backbones.encoder.kernels import mask
from mtmeta.plugins.backbones.encoder.kernels_bf16 import Bf16Kernels

Cast = tuple[Any, ...]
"""A layer's four weights: tensors for PyTorch, `Pairs` for the matrix unit."""


def missing(tokens: int, *, by_unit: bool) -> int:
    """Return how many tokens a batch should have more: to whole tiles where products are the matrix unit's.

    Else a sixteenth at most of many: oneDNN compiles a product for its sizes, which takes longer than to compute it. So
    batches have one of few sizes, which come again.
    """
    return -tokens % (matrix_unit.ROWS if by_unit else max(16, 1 << max(0, tokens.bit_length() - 5)))


class Casts:
    """The bf16 copies of the weights of some layers."""

    def __init__(self) -> None:
        self._kept: list[Cast] = []
        self._key: list[tuple[int, int]] = []
        self._weights: list[Tensor] = []

    def forget(self) -> None:
        """Drop them: the weights may have changed."""
        self._kept, self._key, self._weights = [], [], []

    def of(self, layers: Sequence[Sequence[nn.Linear]], unit: Bf16Kernels | None) -> list[Cast]:
        """Return the weights of each layer's parts in bf16, in the layout that products by `unit` or PyTorch take.

        With gradients they are cast anew: an optimizer that writes to `parameter.data` leaves no trace. Without, they
        are kept for the next batch until `forget`, a change that PyTorch counts, or a pass with gradients.
        """
        weights = [part.weight for parts in layers for part in parts]
        if torch.is_grad_enabled():
            self.forget()
            return _cast(layers, unit)
        key = [(id(unit), 0), *((weight.data_ptr(), _changes(weight)) for weight in weights)]
        same = len(weights) == len(self._weights) and all(map(operator.is_, weights, self._weights))
        if key != self._key or not same:
            # the tensors are kept too: while they live, no other one, such as another task's, can take their address
            self._kept, self._key, self._weights = _cast(layers, unit), key, weights
        return self._kept


def _changes(weight: Tensor) -> int:
    """Return how often PyTorch has seen a tensor change in place; it does not count in inference mode."""
    return -1 if weight.is_inference() else int(weight._version)


def _cast(layers: Sequence[Sequence[nn.Linear]], unit: Bf16Kernels | None) -> list[Cast]:
    if unit:
        return [tuple(unit.pairs(part.weight, both=torch.is_grad_enabled()) for part in parts) for parts in layers]
    return [tuple(part.weight.detach().to(torch.bfloat16) for part in parts) for parts in layers]


@dataclass(frozen=True)
class Plan:
    """What the layers of one pass share."""

    kernels: Bf16Kernels
    by_unit: bool
    """Whether products are the matrix unit's, not PyTorch's."""
    span: Span
    heads: int
    weight_noise: Noise | None
    attended_noise: Noise | None
    noise: Noise | None


def layer(x: Tensor, parts: Sequence[Any], cast: Cast, plan: Plan) -> Tensor:
    """Compute a whole layer: [S, D] -> [S, D] in bf16. `parts` are qkv, out, norm, up, down, norm; `cast` of four."""
    weights = [tensor for part in parts for tensor in (part.weight, part.bias)]
    eps = parts[2].eps, parts[5].eps
    masks = mask(plan.weight_noise), mask(plan.attended_noise), mask(plan.noise)
    if plan.by_unit:
        return matrix_unit.layer(x, weights, cast, plan, eps, masks)
    if torch.is_grad_enabled():
        y: Tensor = _Layer.apply(x, *weights, cast, plan, eps, masks)  # type: ignore[no-untyped-call]
        return y
    return _forward(x, weights, cast, plan, eps, masks)


def _forward(x: Tensor, weights: Sequence[Tensor], cast: Cast, plan: Plan, eps: Any, masks: Any) -> Tensor:
    """Compute the same in place where that can be, for no backward pass."""
    _, qkv_bias, _, out_bias, gain, shift, _, up_bias, _, down_bias, second_gain, second_shift = weights
    qkv, out, up, down = cast
    k, span = plan.kernels, plan.span
    mixed, _ = k.attention(x @ qkv.t(), qkv_bias, span.offsets, span.longest, plan.heads, masks[0])
    x = k.norm_(mixed @ out.t(), out_bias, x, gain, shift, eps[0], masks[1])
    active = k.gelu(x @ up.t(), up_bias, in_place=True)
    return k.norm_(active @ down.t(), down_bias, x, second_gain, second_shift, eps[1], masks[2])


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *given: Any) -> Tensor:
        weights, (cast, plan, eps, masks) = given[:12], given[12:]
        _, qkv_bias, _, out_bias, gain, shift, _, up_bias, _, down_bias, second_gain, second_shift = weights
        qkv, out, up, down = cast
        k, span = plan.kernels, plan.span
        wide = x @ qkv.t()  # [S, 3 D], without its bias
        mixed, lse = k.attention(wide, qkv_bias, span.offsets, span.longest, plan.heads, masks[0])
        unit = mixed @ out.t()
        inner, rstd = k.norm(unit, out_bias, x, gain, shift, eps[0], masks[1])
        wider = inner @ up.t()  # [S, I], without its bias
        active = k.gelu(wider, up_bias, in_place=False)
        second_unit = active @ down.t()
        y: Tensor
        y, second_rstd = k.norm(second_unit, down_bias, inner, second_gain, second_shift, eps[1], masks[2])
        attended = x, qkv_bias, gain, wide, mixed, lse, unit, rstd
        ctx.save_for_backward(*attended, inner, up_bias, second_gain, wider, active, second_unit, second_rstd, *cast)
        ctx.rest = plan, masks
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, qkv_bias, gain, wide, mixed, lse, unit, rstd, *rest = ctx.saved_tensors
        inner, up_bias, second_gain, wider, active, second_unit, second_rstd, qkv, out, up, down = rest
        plan, masks = ctx.rest
        k, span = plan.kernels, plan.span
        _, wants_qkv, _, wants_out, _, _, _, wants_up, _, wants_down = ctx.needs_input_grad[:10]
        d_inner, d_unit, second = k.norm_backward(grad.contiguous(), second_unit, second_rstd, second_gain, masks[2])
        d_down = _over_tokens(k, d_unit, active).float() if wants_down else None  # frozen weights cost nothing
        d_wider = d_unit @ down
        d_up_bias = k.gelu_backward_(d_wider, wider, up_bias)
        d_up = k.transposed_fp32(_over_tokens(k, inner, d_wider)) if wants_up else None
        more = d_wider @ up
        dx, d_unit, first = k.norm_backward(d_inner, unit, rstd, gain, masks[1], more)
        d_out = _over_tokens(k, d_unit, mixed).float() if wants_out else None
        attended = wide, qkv_bias, span.offsets, span.longest, masks[0], mixed, lse, d_unit @ out
        d_wide, d_qkv_bias = k.attention_backward(*attended)
        d_qkv = k.transposed_fp32(_over_tokens(k, x, d_wide)) if wants_qkv else None
        dx = dx.addmm_(d_wide, qkv)
        of_first = d_qkv, d_qkv_bias, d_out, first[2], first[0], first[1]
        of_second = d_up, d_up_bias, d_down, second[2], second[0], second[1]
        return dx, *of_first, *of_second, None, None, None, None


def _over_tokens(k: Bf16Kernels, narrow: Tensor, other: Tensor) -> Tensor:
    """Compute narrow^T other: [S, a], [S, b] -> [a, b]."""
    return k.transposed(narrow) @ other
