"""How the tasks pull at the shared encoder: norms and pairwise cosines of their gradients.

Yu et al. 2020 (Gradient Surgery) call two tasks in conflict where the cosine of their gradients is negative.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.packing import pack
from mtmeta.core.machine import Precision, autocast, without_autocast
from mtmeta.core.rng import permutation
from mtmeta.core.training.model import MultiTaskModel, evaluation_mode, share_of, training_loss, within

Norms = dict[str, float]
Cosines = dict[str, dict[str, float | None]]


def norm_of(tensors: Sequence[Tensor]) -> Tensor:
    """Return the norm of all tensors as one vector, a scalar."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(list(tensors)))) if tensors else torch.zeros(())


@without_autocast()
def gradient_cosines(
    model: MultiTaskModel, datasets: Mapping[str, Dataset], *, seed: int, chunks: int = 1, precision: Precision = "fp32"
) -> tuple[Norms, Cosines]:
    """Return the norm of each task's gradient of the encoder, and the cosine between those of each two tasks.

    The gradient is that of the mean loss, without dropout, on one batch of the task's training data, of its
    `batch_size`, which is the same all through a run. A cosine is None where a gradient is zero. Holds one gradient
    of the encoder for each task at a time; leaves weights and modes as they were, and no `.grad`.
    """
    device = next(model.parameters()).device
    gradients: dict[str, list[Tensor | None]] = {}
    with evaluation_mode(model):
        try:
            for name, dataset in datasets.items():
                task = model.tasks[name]
                indices = permutation(len(dataset), seed, "probe", name)[: task.batch_size]
                # a batch whose examples are told from each other is of one part
                batch = pack(dataset, indices, chunks=1 if dataset.by_text else chunks)
                whole = within(task, batch)
                model.zero_grad(set_to_none=True)
                for chunk in batch.chunks:
                    with autocast(device, precision):
                        outputs = model(name, chunk.packed.to(device))
                    loss = training_loss(task, name, outputs, chunk.labels.to(device), objective=whole)
                    share = share_of(chunk, batch, whole)
                    (loss * share).backward()  # type: ignore[no-untyped-call]  # PyTorch's backward has no types
                gradients[name] = [parameter.grad for parameter in model.encoder.parameters()]
        finally:
            model.zero_grad(set_to_none=True)
    products = {(a, b): _product(gradients[a], gradients[b]) for a in gradients for b in gradients}
    norms = {name: products[name, name] ** 0.5 for name in gradients}
    cosines: Cosines = {
        a: {b: products[a, b] / (norms[a] * norms[b]) if norms[a] * norms[b] else None for b in gradients}
        for a in gradients
    }
    return norms, cosines


def _product(one: list[Tensor | None], other: list[Tensor | None]) -> float:
    """Return the inner product, in float64; what nothing touched counts as zero."""
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    if not pairs:
        return 0.0
    return float(torch.stack([torch.linalg.vecdot(a.double().flatten(), b.double().flatten()) for a, b in pairs]).sum())
