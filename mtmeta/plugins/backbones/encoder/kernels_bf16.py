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

from mtmeta.plugins.backbones.encoder.kernels import Kernels, Mask, blocks


class Bf16Kernels(Kernels):
    """The functions on contiguous bf16 tensors of the CPU; biases, gains, sums and logarithms are fp32."""

    name: ClassVar = "bf16"
    files: ClassVar = ("vector.h", "bf16.h", "gelu.h", "attention_bf16.c", "rows_bf16.c")
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
        return used

    def norm(
        self, x: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, shift: Tensor, eps: float, noise: Mask
    ) -> tuple[Tensor, Tensor]:
        y, rstd = torch.empty_like(x), torch.empty(len(x))
        given = x, bias, residual, gain, shift, ctypes.c_float(eps), noise
        self.call("norm_forward_bf16", *x.shape, *given, y, x, rstd)
        return y, rstd

    def norm_(
        self, x: Tensor, bias: Tensor, residual: Tensor, gain: Tensor, shift: Tensor, eps: float, noise: Mask
    ) -> Tensor:
        given = x, bias, residual, gain, shift, ctypes.c_float(eps), noise
        self.call("norm_forward_bf16", *x.shape, *given, x, None, None)
        return x

    def norm_backward(
        self, grad: Tensor, unit: Tensor, rstd: Tensor, gain: Tensor, noise: Mask, more: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the same for the gradient `grad` + `more`."""
        d_residual = torch.empty_like(grad)
        dx = torch.empty_like(grad) if noise.dropped else d_residual
        sums = torch.empty(blocks(grad), 3, grad.shape[1])
        self.call("norm_backward_bf16", *grad.shape, grad, more, unit, rstd, gain, noise, d_residual, dx, sums)
        return d_residual, dx, sums.sum(0)

    def gelu(self, x: Tensor, bias: Tensor, *, in_place: bool) -> Tensor:
        y = x if in_place else torch.empty_like(x)
        self.call("gelu_forward_bf16", *x.shape, x, bias, y)
        return y

    def gelu_backward_(self, grad: Tensor, x: Tensor, bias: Tensor) -> Tensor:
        sums = torch.empty(blocks(grad), grad.shape[1])
        self.call("gelu_backward_bf16", *grad.shape, grad, x, bias, sums)
        return sums.sum(0)

    def attention(
        self, qkv: Tensor, bias: Tensor, offsets: Tensor, longest: int, heads: int, noise: Mask
    ) -> tuple[Tensor, Tensor]:
        d = qkv.shape[1] // 3 // heads
        mixed, lse = qkv.new_empty(len(qkv), heads * d), torch.empty(len(qkv), heads)
        shape = len(offsets) - 1, offsets, heads, d
        self.call("attention_forward_bf16", *shape, qkv, bias, noise, mixed, lse, *self._rooms(longest, d))
        return mixed, lse

    def attention_backward(
        self,
        qkv: Tensor,
        bias: Tensor,
        offsets: Tensor,
        longest: int,
        noise: Mask,
        mixed: Tensor,
        lse: Tensor,
        d_mixed: Tensor,
    ) -> tuple[Tensor, Tensor]:
        n, heads = len(offsets) - 1, lse.shape[1]
        d = mixed.shape[1] // heads
        d_qkv, sums = torch.empty_like(qkv), torch.empty(n, qkv.shape[1])
        given = qkv, bias, noise, mixed, lse, d_mixed, d_qkv, sums
        self.call("attention_backward_bf16", n, offsets, heads, d, *given, *self._rooms(longest, d))
        return d_qkv, sums.sum(0)

    def transposed(self, x: Tensor) -> Tensor:
        """Return a copy with rows and columns exchanged: [S, D] -> [D, S]."""
        y = x.new_empty(x.shape[1], x.shape[0])
        self.call("transpose_bf16", *x.shape, x, y)
        return y

    def transposed_fp32(self, x: Tensor) -> Tensor:
        """Return the same in fp32; both widths are multiples of 8."""
        y = torch.empty(x.shape[1], x.shape[0])
        self.call("transpose_to_fp32", *x.shape, x, y)
        return y

    def _rooms(self, longest: int, d: int) -> tuple[Tensor, int]:
        each = int(self.library.attention_room_bf16(ctypes.c_long(longest), ctypes.c_long(d)))
        return torch.empty(each * torch.get_num_threads(), dtype=torch.uint8), each
