"""The functions of `csrc/*_bf16.c` on tensors: what lies between two products of bf16 matrices on a CPU.

They read and write bf16 and compute in fp32; products within attention go by the processor's matrix unit (AMX) where it
has one that the system lets us use, else by AVX512-BF16 or plain C.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

import mtmeta
from mtmeta.plugins.backbones.encoder.kernels import Kernels, Mask, blocks, fp32

Pairs = tuple[Tensor, Tensor | None]


def low_rank_sum(weight: Tensor) -> mtmeta.LowRankSum | None:
    """Return the sum that a tensor stands in for, or None for a weight."""
    found: mtmeta.LowRankSum | None = getattr(weight, "low_rank_sum", None)
    return found


class Bf16Kernels(Kernels):
    """The functions on contiguous bf16 tensors of the CPU; biases, gains, sums and logarithms are fp32."""

    name: ClassVar = "bf16"
    suffix: ClassVar = "_bf16"
    room: ClassVar = torch.uint8
    files: ClassVar = (
        *("vector.h", "bf16.h", "gelu.h", "amx.h", "rows_bf16.h"),
        *("attention_bf16.c", "layer_bf16.c", "rows_bf16.c"),
    )
    functions: ClassVar = (
        *("norm_forward_bf16", "norm_backward_bf16", "gelu_forward_bf16", "gelu_backward_bf16", "transpose_bf16"),
        "transpose_to_fp32",
        *("attention_forward_bf16", "attention_backward_bf16", "attention_room_bf16", "use_matrix_unit"),
    )
    multiple: ClassVar = 16
    types: ClassVar = (torch.bfloat16, torch.float32, torch.int64, torch.uint8)

    def __init__(self, path: Path, digest: str = "") -> None:
        super().__init__(path, digest)
        self.use_matrix_unit(True)

    def use_matrix_unit(self, wanted: bool) -> bool:
        """Use the processor's matrix unit from now on, or leave it; returns whether it is used."""
        used = bool(int(self.library.use_matrix_unit(ctypes.c_int(wanted))) & 1)
        self.identity = f"{self.digest[:16]} {'amx' if used else 'vectors'}"
        self.multiplies = used and hasattr(self.library, "product_bf16")
        """Whether `csrc/layer_bf16.c` does whole products: for multiples of 32."""
        return used

    def norm_backward(
        self, grad: Tensor, unit: Tensor, rstd: Tensor, gain: Tensor, noise: Mask, more: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the same for the gradient `grad` + `more`."""
        d_residual = torch.empty_like(grad)
        dx = torch.empty_like(grad) if noise.dropped else d_residual
        sums = fp32(blocks(grad), 3, grad.shape[1])
        self.call("norm_backward_bf16", *grad.shape, grad, more, unit, rstd, gain, noise, d_residual, dx, sums)
        return d_residual, dx, sums.sum(0)

    # ------------------------------------------------------------- products and what lies around them, for `multiplies`

    def pairs(self, weight: Tensor, *, both: bool) -> Pairs:
        """Return a weight [N, K] for products with its transpose and, if `both`, for those with itself.

        Of what stands in for a low-rank sum, the sum.
        """
        transposed = torch.empty(weight.numel(), dtype=torch.bfloat16)
        plain = torch.empty_like(transposed) if both else None
        low_rank: tuple[Tensor | None, Tensor | None, int, float] = None, None, 0, 0.0
        if one := low_rank_sum(weight):
            weight, low_rank = one.weight, (one.a.detach(), one.b.detach().t().contiguous(), len(one.a), one.scale)
        *matrices, scale = low_rank
        given = weight.detach(), *matrices, ctypes.c_float(scale)
        self.call("pair_weights", *weight.shape, *given, transposed, plain)
        return transposed, plain

    def low_rank_backward(self, grad: Tensor, a: Tensor, b: Tensor, scale: float) -> tuple[Tensor, Tensor]:
        """Compute the gradients of a [rank, K] and b [N, rank] by that of W + scale b a, [N, K]."""
        rank, rows = len(a), int(self.library.rank_blocks(ctypes.c_long(len(grad))))
        d_a, d_b = fp32(rows, *a.shape), fp32(*b.shape)
        self.call("rank_backward", *grad.shape, grad, a, b, rank, ctypes.c_float(scale), d_a, d_b)
        return d_a.sum(0).mul_(scale), d_b

    def product(self, x: Tensor, pairs: Tensor) -> Tensor:
        """Compute x W: [S, K] -> [S, N]."""
        y = x.new_empty(len(x), len(pairs) // x.shape[1])
        self.call("product_bf16", len(x), y.shape[1], x.shape[1], x, pairs, y, *self._rooms(x.shape[1], 0))
        return y

    def out(
        self,
        x: Tensor,
        pairs: Tensor,
        bias: Tensor,
        residual: Tensor,
        gain: Tensor,
        shift: Tensor,
        eps: float,
        noise: Mask,
        kept: tuple[Tensor, Tensor] | tuple[None, None],
    ) -> Tensor:
        """Compute LayerNorm(residual + dropout(x W + bias)); normalised rows and 1 / deviation go to `kept`."""
        y = torch.empty_like(x)
        given = x, pairs, bias, residual, gain, shift, ctypes.c_float(eps), noise, y, *kept
        self.call("out_forward_bf16", *x.shape, *given, *self._rooms(x.shape[1], 0))
        return y

    def feed(
        self,
        x: Tensor,
        up: Tensor,
        up_bias: Tensor,
        down: Tensor,
        down_bias: Tensor,
        gain: Tensor,
        shift: Tensor,
        eps: float,
        noise: Mask,
        kept: tuple[Tensor, Tensor, Tensor] | tuple[None, None, None],
    ) -> Tensor:
        """Compute LayerNorm(x + dropout(gelu(x U + bias) W + bias)).

        x U, [S, I] in the order that `feed_backward` reads it, normalised rows and 1 / deviation go to `kept`.
        """
        y, wide = torch.empty_like(x), len(up_bias)
        given = x, up, up_bias, down, down_bias, gain, shift, ctypes.c_float(eps), noise, kept[0], y, *kept[1:]
        self.call("feed_forward_bf16", *x.shape, wide, *given, *self._rooms(x.shape[1], wide))
        return y

    def feed_backward(
        self,
        grad: Tensor,
        unit: Tensor,
        rstd: Tensor,
        gain: Tensor,
        noise: Mask,
        down: Tensor,
        wider: Tensor,
        up_bias: Tensor,
        up: Tensor,
        x: Tensor,
        wanted: tuple[bool, bool],
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor, Tensor]:
        """Compute the gradients of x, `down` and `up` as wanted, gain, shift and bias [3, D], and `up_bias` [I]."""
        (_, width), wide = grad.shape, len(up_bias)
        d_x, sums, up_sums = torch.empty_like(grad), fp32(blocks(grad), 3, width), fp32(blocks(grad), wide)
        d_down, d_up = (
            fp32(*shape) if yes else None for yes, shape in zip(wanted, ((width, wide), (wide, width)), strict=True)
        )
        given = grad, unit, rstd, gain, noise, down, wider, up_bias, up, x, d_x, d_down, d_up, sums, up_sums
        shared = self._shared("feed_room_bf16", len(grad), width, wide)
        self.call("feed_backward_bf16", *grad.shape, wide, *given, shared, *self._rooms(width, wide))
        return d_x, d_down, d_up, sums.sum(0), up_sums.sum(0)

    def out_backward(
        self,
        grad: Tensor,
        unit: Tensor,
        rstd: Tensor,
        gain: Tensor,
        noise: Mask,
        pairs: Tensor,
        x: Tensor,
        wanted: bool,
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """Compute the gradients of residual, x and the weight as wanted, and [3, D] of gain, shift and bias."""
        width, d_residual, d_x = grad.shape[1], torch.empty_like(grad), torch.empty_like(grad)
        d_weight, sums = fp32(width, width) if wanted else None, fp32(blocks(grad), 3, width)
        given = grad, unit, rstd, gain, noise, pairs, x, d_residual, d_x, d_weight, sums
        shared = self._shared("out_room_bf16", len(grad), width)
        self.call("out_backward_bf16", *grad.shape, *given, shared, *self._rooms(width, 0))
        return d_residual, d_x, d_weight, sums.sum(0)

    def qkv_backward_(self, d_x: Tensor, grad: Tensor, pairs: Tensor, x: Tensor, wanted: bool) -> Tensor | None:
        """Add to `d_x` what comes from the gradient of x W; returns that of the weight as wanted."""
        width = x.shape[1]
        d_weight = fp32(3 * width, width) if wanted else None
        shared = self._shared("qkv_room_bf16", len(grad), width)
        self.call("qkv_backward_bf16", *x.shape, grad, pairs, x, d_x, d_weight, shared, *self._rooms(width, width))
        return d_weight

    def _rooms(self, width: int, wide: int) -> tuple[Tensor, int]:
        each = int(self.library.layer_room_bf16(ctypes.c_long(width), ctypes.c_long(wide)))
        return torch.empty(each * torch.get_num_threads(), dtype=torch.uint8), each

    def _shared(self, function: str, *sizes: int) -> Tensor:
        size = getattr(self.library, function)
        size.restype = ctypes.c_long
        return torch.empty(size(*map(ctypes.c_long, sizes), ctypes.c_int(torch.get_num_threads())), dtype=torch.uint8)

    # ------------------------------------------------------------------------------- for products by PyTorch

    def transposed(self, x: Tensor) -> Tensor:
        """Return a copy with rows and columns exchanged: [S, D] -> [D, S]."""
        y = x.new_empty(x.shape[1], x.shape[0])
        self.call("transpose_bf16", *x.shape, x, y)
        return y

    def transposed_fp32(self, x: Tensor) -> Tensor:
        """Return the same in fp32; both widths are multiples of 8."""
        y = fp32(x.shape[1], x.shape[0])
        self.call("transpose_to_fp32", *x.shape, x, y)
        return y
