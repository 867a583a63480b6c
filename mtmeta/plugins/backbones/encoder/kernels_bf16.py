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
    suffix: ClassVar = "_bf16"
    room: ClassVar = torch.uint8
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

    def norm_backward(
        self, grad: Tensor, unit: Tensor, rstd: Tensor, gain: Tensor, noise: Mask, more: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the same for the gradient `grad` + `more`."""
        d_residual = torch.empty_like(grad)
        dx = torch.empty_like(grad) if noise.dropped else d_residual
        sums = torch.empty(blocks(grad), 3, grad.shape[1], dtype=torch.float32)
        self.call("norm_backward_bf16", *grad.shape, grad, more, unit, rstd, gain, noise, d_residual, dx, sums)
        return d_residual, dx, sums.sum(0)

    def transposed(self, x: Tensor) -> Tensor:
        """Return a copy with rows and columns exchanged: [S, D] -> [D, S]."""
        y = x.new_empty(x.shape[1], x.shape[0])
        self.call("transpose_bf16", *x.shape, x, y)
        return y

    def transposed_fp32(self, x: Tensor) -> Tensor:
        """Return the same in fp32; both widths are multiples of 8."""
        y = torch.empty(x.shape[1], x.shape[0], dtype=torch.float32)
        self.call("transpose_to_fp32", *x.shape, x, y)
        return y
