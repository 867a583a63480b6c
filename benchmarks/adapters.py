"""Adapters beside the plain model: seconds of a step, and what the inner loop moves, copies and saves.

    python -m benchmarks.adapters [--weights FOLDER] [--data DATA] [--precision fp32 bf16] [--batch 32 128] [--steps 20]

A step is gradient and optimizer (AdamW) on one batch of sst (the sample, or DATA/sst-train.csv), of a model of three
tasks. All contenders take two steps on the same batch in turn, so that a busy machine slows all of them, and the second
is measured, as in a run, where nobody else's weights are in the cache; `ratio` is the median over the rounds of a
contender's seconds over those of the plain model in the same round, quartiles in brackets.
`trained` are the numbers that training moves, `moved` those that had a gradient from this one task, `snapshot` what an
inner loop copies; best weights, and a checkpoint, which has the optimizer's state too, are as safetensors writes them.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtmeta.core.api.batch import Batch
from mtmeta.core.data.loading import load_split
from mtmeta.core.data.packing import pack
from mtmeta.core.machine import PRECISIONS, Heap, Precision, bf16_instructions
from mtmeta.core.recipe.sections import AdapterOptions, DataOptions
from mtmeta.core.storage.disk import write_tensors
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
WARM = 3  # rounds that count for nothing: buffers are not there yet
BATCHES = 20


class Contender:
    """A learner with its optimizer, on batches that all contenders share."""

    def __init__(self, options: dict[str, Any] | None, tasks: Any, weights: str, precision: Precision) -> None:
        loaded = builtins().get("backbone", "bert", "backbone")(weights=weights, max_length=128).load(1)
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

    def figures(self) -> list[str]:
        """Numbers trained and moved; megabytes of a snapshot, of the optimizer's state, of what is saved."""
        parameters = self.learner.parameters
        moved = sum(p.numel() for p in parameters.values() if p.grad is not None)
        state = {
            f"{number}.{key}": tensor
            for number, slots in enumerate(self.optimizer.state.values())
            for key, tensor in slots.items()
        }
        with tempfile.TemporaryDirectory() as folder:
            tensors = {name: parameter.detach() for name, parameter in parameters.items()}
            best, moments = (
                write_tensors(Path(folder) / f"{name}.safetensors", dict(part), {})["size"]
                for name, part in (("model", tensors), ("optimizer", state))
            )
        snapshot, held = (sum(t.nbytes for t in part) for part in (parameters.values(), state.values()))
        megabytes = (f"{size / 1e6:.1f}" for size in (snapshot, held, int(best), int(best) + int(moments)))
        return [f"{sum(p.numel() for p in parameters.values()):,}", f"{moved:,}", *megabytes]


def measure(
    weights: str, root: str | None, precision: Precision, batch: int, steps: int
) -> list[tuple[str, list[str]]]:
    """Print a table of seconds for one precision and size of batch; return the figures of each contender."""
    kinds = {name: builtins().get("task", name, "tasks") for name in ("sst", "para", "sts")}
    tasks = {
        name: kind(train="sample" if root is None else f"{name}-train.csv", batch_size=batch)
        for name, kind in kinds.items()
    }
    loaded = builtins().get("backbone", "bert", "backbone")(weights=weights, max_length=128).load(1)
    data = load_split("sst", tasks["sst"], "train", DataOptions(), root or ".", loaded)
    starts = list(range(0, len(data) - batch, batch))[:BATCHES]
    batches = [pack(data, np.arange(start, start + batch)) for start in starts]
    contenders = {name: Contender(options, tasks, weights, precision) for name, options in CONTENDERS.items()}
    heap, rounds = Heap(), []
    for number in range(steps + WARM):
        order = list(contenders) if number % 2 else list(contenders)[::-1]
        taken = {}
        for name in order:
            for _ in range(2):  # the first finds the weights of the others in the cache
                taken[name] = contenders[name].step(batches[number % len(batches)])
                heap.after_step()
        rounds.append([taken[name] for name in contenders])
    seconds = np.array(rounds[WARM:])  # [rounds, contenders, 2]
    tokens = np.mean([len(one.chunks[0].packed.ids) for one in batches])
    how = bf16_instructions(torch.device("cpu"), precision) if precision == "bf16" else ""
    threads = f"{torch.get_num_threads()} thread(s)"
    print(f"\n{precision} {how}; batches of {batch}, {tokens:.0f} tokens; {steps} rounds, {threads}")
    print(f"{'':26}{'gradient, ms':>14}{'ratio':>24}{'step, ms':>12}{'ratio':>24}")
    for at, name in enumerate(contenders):
        gradient, whole = 1000 * np.median(seconds[:, at], axis=0)
        ratios = [_spread(seconds[:, at, part] / seconds[:, 0, part]) for part in range(2)]
        print(f"{name:26}{gradient:14.1f}{ratios[0]:>24}{whole:12.1f}{ratios[1]:>24}")
    return [(name, contender.figures()) for name, contender in contenders.items()]


def _spread(values: Any) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--data", help="folder of sst-train.csv; default the sample")
    parser.add_argument("--precision", nargs="+", choices=PRECISIONS, default=list(PRECISIONS))
    parser.add_argument("--batch", type=int, nargs="+", default=[32, 128])
    parser.add_argument("--steps", type=int, default=20)
    options = parser.parse_args()
    figures = []
    for precision in options.precision:
        for batch in options.batch:
            figures = measure(options.weights, options.data, precision, batch, options.steps)
    columns = ("trained", "moved", "snapshot, MB", "moments, MB", "best, MB", "checkpoint, MB")
    print(f"\n{'':26}" + "".join(f"{column:>16}" for column in columns))
    for name, row in figures:
        print(f"{name:26}" + "".join(f"{value:>16}" for value in row))


if __name__ == "__main__":
    main()
