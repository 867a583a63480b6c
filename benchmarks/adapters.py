"""Adapters beside the plain model: seconds a step, memory that a step moves, and bytes on disk.

    MTMETA_MINILM=FOLDER python -m benchmarks.adapters [--steps N] [--batch B] [--length T]

Steps of all contenders are interleaved in one process, so that a busy machine slows all of them; ratios are of medians.
A step is gradient and optimizer (AdamW) on one batch of one task. Without MTMETA_MINILM the shape is that of
all-MiniLM-L6-v2 with random weights, which takes as long.
"""

from __future__ import annotations

import argparse
import os
import time
from statistics import median
from typing import Any

import numpy as np
import torch

from mtmeta.core.api.batch import Batch
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.loading import load_split
from mtmeta.core.data.packing import pack
from mtmeta.core.machine import Heap, Precision, bf16_instructions
from mtmeta.core.recipe.sections import AdapterOptions, DataOptions
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.testing.tiny import builtins

CONTENDERS: dict[str, dict[str, Any] | None] = {
    "plain": None,
    "lora, trained": {},
    "lora, trained, no norms": {"norms": False},
    "lora, frozen": {"encoder": "frozen"},
    "lora, frozen, last 2": {"encoder": "frozen", "layers": "last 2"},
}
"""Options of `adapters` by name; None for the model without."""


class Contender:
    """A learner with its optimizer, on batches that all contenders share."""

    def __init__(self, options: dict[str, Any] | None, tasks: Any, folder: str, precision: Precision) -> None:
        bert = builtins().get("backbone", "bert", "backbone")
        loaded = bert(weights=folder, max_length=128).load(1)
        adapters = AdapterOptions(**options) if options is not None else None
        self.model = MultiTaskModel(loaded.encoder, tasks, 1, adapters=adapters)
        self.learner = Learner(self.model, seed=1, steps=1, precision=precision)
        adamw = builtins().get("algorithm", "reptile", "algorithm")().inner_optimizer
        self.optimizer = adamw.build(self.learner.parameters.items())
        self.model.train()

    def step(self, batch: Batch) -> tuple[float, float]:
        """Take a step; returns the seconds of its gradient, and of all."""
        began = time.perf_counter()
        self.learner.begin_step(0)
        self.learner.gradient(batch)
        gradient = time.perf_counter() - began
        self.optimizer.step()
        return gradient, time.perf_counter() - began

    @property
    def figures(self) -> tuple[int, int, int]:
        """Numbers that are trained, bytes of a snapshot of them, and bytes of the optimizer's state."""
        parameters = list(self.learner.parameters.values())
        state = sum(t.nbytes for slots in self.optimizer.state.values() for t in slots.values())
        return sum(p.numel() for p in parameters), sum(p.nbytes for p in parameters), state


def _batches(tasks: Any, folder: str, size: int) -> list[Batch]:
    bert = builtins().get("backbone", "bert", "backbone")
    loaded = bert(weights=folder, max_length=128).load(1)
    data: Dataset = load_split("sst", tasks["sst"], "train", DataOptions(), os.environ.get("MTMETA_DATA", "."), loaded)
    starts = range(0, len(data) - size, size)
    return [pack(data, np.arange(start, start + size)) for start in list(starts)[:20]]


def measure(precision: Precision, batch: int, steps: int) -> None:
    """Print a table for one precision and size of batch."""
    folder = os.environ["MTMETA_MINILM"]
    sst = builtins().get("task", "sst", "tasks")
    tasks = {"sst": sst(train="sst-train.csv" if "MTMETA_DATA" in os.environ else "sample", batch_size=batch)}
    batches = _batches(tasks, folder, batch)
    contenders = {name: Contender(options, tasks, folder, precision) for name, options in CONTENDERS.items()}
    heap = Heap()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(steps + 3):
        for name, contender in contenders.items():
            taken = contender.step(batches[number % len(batches)])
            heap.after_step()
            if number >= 3:
                seconds[name].append(taken)
    tokens = np.mean([len(one.chunks[0].packed.ids) for one in batches])
    how = bf16_instructions(torch.device("cpu"), precision)
    print(f"\n{precision} {how}, batches of {batch} examples, {tokens:.0f} tokens, {torch.get_num_threads()} threads")
    print(f"{'':26}{'gradient':>10}{'ratio':>8}{'step':>10}{'ratio':>8}{'trained':>12}{'snapshot':>10}{'moments':>10}")
    base: tuple[float, float] | None = None
    for name, contender in contenders.items():
        gradient, whole = (median(part) for part in zip(*seconds[name], strict=True))
        base = base or (gradient, whole)
        numbers, snapshot, state = contender.figures
        print(
            f"{name:26}{1000 * gradient:8.1f}ms{gradient / base[0]:8.3f}{1000 * whole:8.1f}ms{whole / base[1]:8.3f}"
            f"{numbers:12,}{snapshot / 1e6:8.1f}MB{state / 1e6:8.1f}MB"
        )


def main() -> None:
    """Measure in fp32, and in bf16."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"])
    options = parser.parse_args()
    for precision in options.precision:
        for batch in options.batch:
            measure(precision, batch, options.steps)


if __name__ == "__main__":
    main()
