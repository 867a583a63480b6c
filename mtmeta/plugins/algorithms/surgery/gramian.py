"""The Gramian of the tasks' gradients, and their weighted sum.

Shapes: `T` tasks, `K` tensors of parameters, `C` numbers in a piece. A gradient is a list of K tensors, in which None
stands where the task did not touch the tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Gradient = Sequence[Tensor | None]
PIECE = 2**16  # T rows of float64 stay in the cache of a core
PIECE_ON_GPU = 2**22  # of which there are few, each of them started by the host


def gramian(gradients: Sequence[Gradient]) -> Tensor:
    """Return the inner products of T gradients [T, T], in float64 on the CPU; what is None counts for nothing.

    A gradient is read once, in pieces that are widened to float64 where they are multiplied.
    """
    count, device = len(gradients), _device(gradients)
    size = PIECE if device.type == "cpu" else PIECE_ON_GPU
    total = torch.zeros(count, count, dtype=torch.float64, device=device)
    wide = torch.empty(count, size, dtype=torch.float64, device=device)
    for tensors in zip(*gradients, strict=True):
        there = [(t, tensor.reshape(-1)) for t, tensor in enumerate(tensors) if tensor is not None]
        if not there:
            continue
        whole = len(there) == count
        rows = torch.tensor([t for t, _ in there], device=device)
        for start in range(0, there[0][1].numel(), size):
            pieces = [flat[start : start + size] for _, flat in there]
            piece = wide[: len(there), : pieces[0].numel()]  # [tasks that touched the tensor, C]
            for row, numbers in zip(piece, pieces, strict=True):
                row.copy_(numbers)
            products = piece @ piece.T
            if whole:
                total += products
            else:
                total[rows[:, None], rows] += products
    return total.cpu()


def combine(gradients: Sequence[Gradient], weights: Sequence[float]) -> list[Tensor | None]:
    """Return sum_t w_t g_t, tensor by tensor, in the memory of the gradients; None where no task touched a tensor."""
    total: list[Tensor | None] = []
    for tensors in zip(*gradients, strict=True):
        kept: Tensor | None = None
        for tensor, weight in zip(tensors, weights, strict=True):
            if tensor is None:
                continue
            kept = tensor.mul_(weight) if kept is None else kept.add_(tensor, alpha=weight)
        total.append(kept)
    return total


def _device(gradients: Sequence[Gradient]) -> torch.device:
    return next(
        (tensor.device for gradient in gradients for tensor in gradient if tensor is not None), torch.device("cpu")
    )
