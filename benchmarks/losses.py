"""The same losses, step by step: packed, padded, and transformers' BertModel learn the same thing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import contenders
from benchmarks.parts import SEED, load_parts
from mtmeta.core.rng import permutation

__all__ = ["compare_losses"]


def compare_losses(weights: str, data: str, tasks: Sequence[str], batch: int, steps: int) -> dict[str, Any]:
    """By task the loss sequences of `steps` optimizer steps from the same weights on the same batches, dropout off."""
    parts = load_parts(weights, data, tasks, dropout=0.0)
    results = {}
    for task in tasks:
        field: dict[str, contenders.Contender] = {
            "mtmeta": contenders.Mtmeta(parts, task),
            "mtmeta_padded": contenders.mtmeta_padded(parts, task),
            "transformers": contenders.transformers(parts, task),
        }
        order = permutation(len(parts.datasets[task, "train"]), SEED, "losses", task)
        chosen = [np.take(order, range(step * batch, (step + 1) * batch), mode="wrap") for step in range(steps)]
        losses = {name: [contender.step(indices) for indices in chosen] for name, contender in field.items()}
        values = np.array(list(losses.values()))
        results[task] = {"losses": losses, "largest_difference": float(np.ptp(values, axis=0).max())}
    return results
