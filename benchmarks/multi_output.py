"""One pass of the encoder for several labels of a text, against a pass for each label: examples/s and their ratio.

    python -m benchmarks.multi_output [--weights FOLDER] [--data DATA] [--batch 128] [--precision fp32] [--rounds 12]

Three labels of the sentences of sst: their grade, its polarity, and whether they are long. In each round the same
sentences go through a step of `multi_output` and through a step of `joint` with a task for each label (packing, losses,
gradients, AdamW), and through the predictions of both; who is first changes. Each has an encoder of its own in one
process. A ratio is the median over rounds of three passes over one, with quartiles; examples/s are sentences with all
their labels.
"""

from __future__ import annotations

import copy
import json
import time
from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

import mtmeta
from benchmarks.parts import SEED, add_sources, load_backbone, load_dataset, make_task
from benchmarks.stats import load, machine, ratios, spread
from mtmeta.core.data.dataset import Dataset, label_views, select
from mtmeta.core.data.packing import pack
from mtmeta.core.machine import Heap, Precision
from mtmeta.core.training.evaluation import predict
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins.tasks.generic import ClassificationTask
from mtmeta.plugins.tasks.multi_output import MultiOutputTask
from mtmeta.plugins.tasks.ordinal import OrdinalTask

__all__ = ["Side", "main", "sides_of"]

WARM = 2  # rounds that count for nothing: buffers are not there yet
EVALUATED = 512
LONG = 24
"""Tokens above which a sentence is called long."""
PARTS: dict[str, mtmeta.Task] = {
    "grade": OrdinalTask(train="sst", labels=5, label="grade"),
    "polarity": ClassificationTask(train="sst", labels=("negative", "neutral", "positive"), label="polarity"),
    "long": ClassificationTask(train="sst", labels=("no", "yes"), label="long"),
}
WHOLE = MultiOutputTask(train="sst", labels=PARTS)


class Side:
    """A learner of tasks on a copy of an encoder, with the datasets of these tasks, all of the same rows."""

    def __init__(self, backbone: mtmeta.LoadedBackbone, datasets: Mapping[str, Dataset], precision: Precision) -> None:
        tasks = {name: WHOLE if name == "whole" else PARTS[name] for name in datasets}
        self.datasets, self.precision = datasets, precision
        model = MultiTaskModel(copy.deepcopy(backbone.encoder), tasks, SEED)
        model.train()
        self.learner = Learner(model, seed=SEED, steps=1000, precision=precision)
        self.optimizer = mtmeta.AdamW(lr=1e-5).build(self.learner.parameters.items())
        self.heap, self.turn = Heap(), 0

    def step(self, indices: NDArray[np.int64]) -> float:
        """Take one step on the rows `indices` of each dataset; return its seconds."""
        began = time.perf_counter()
        self.learner.begin_step(self.turn)
        for dataset in self.datasets.values():
            self.learner.gradient(pack(dataset, indices))
        self.optimizer.step()
        self.heap.after_step()
        self.turn += 1
        return time.perf_counter() - began

    def evaluate(self, indices: NDArray[np.int64]) -> float:
        """Predict the rows `indices` of each dataset; return the seconds."""
        parts = [select(dataset, indices) for dataset in self.datasets.values()]
        began = time.perf_counter()
        for part in parts:
            predict(self.learner.model, part, batch_tokens=8192, precision=self.precision)
        return time.perf_counter() - began


def sides_of(weights: str, data: str, precision: Precision, dropout: float | None = None) -> tuple[Side, Side]:
    """Return the side of one pass, and that of a pass for each label."""
    backbone = load_backbone(weights, dropout)
    source = load_dataset("sst", make_task("sst", data), "train", data, backbone)
    grade = source.labels
    polarity = np.array([0, 0, 1, 2, 2])[grade.astype(np.int64)]
    labels = np.stack([grade, polarity, source.stores[0].lengths > LONG], axis=1).astype(np.float64)
    whole = Dataset(**{**vars(source), "task": "whole", "labels": labels})
    views = label_views(whole, WHOLE.objective)
    apart = {name: Dataset(**{**vars(own), "stores": source.stores}) for name, (own, _) in views.items()}
    return Side(backbone, {"whole": whole}, precision), Side(backbone, apart, precision)


def measure(weights: str, data: str, *, batch: int, precision: Precision, rounds: int) -> dict[str, Any]:
    """All figures."""
    one, each = sides_of(weights, data, precision)
    generator, rows = np.random.default_rng(SEED), len(one.datasets["whole"])
    taken: dict[str, list[float]] = {
        f"{kind} {side}": [] for kind in ("training", "prediction") for side in ("one", "each")
    }
    for turn in range(WARM + rounds):
        chosen = generator.choice(rows, min(batch, rows), replace=False)
        scored = generator.choice(rows, min(EVALUATED, rows), replace=False)
        for name, side in (("one", one), ("each", each)) if turn % 2 else (("each", each), ("one", one)):
            seconds = {f"training {name}": side.step(chosen), f"prediction {name}": side.evaluate(scored)}
            for key, value in seconds.items():
                taken[key] += [value] * (turn >= WARM)
    found: dict[str, Any] = {"labels": list(PARTS), "batch": batch, "precision": precision, "rounds": rounds}
    for kind, count in (("training", min(batch, rows)), ("prediction", min(EVALUATED, rows))):
        for name in ("one", "each"):
            rates = [count / seconds for seconds in taken[f"{kind} {name}"]]
            found |= spread(rates).json(f"{kind}_{name}_examples_per_s", 1)
        found |= ratios(taken[f"{kind} each"], taken[f"{kind} one"]).json(f"{kind}_ratio", 2)
    return {**found, "machine": machine(), "load": load()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = ArgumentParser(prog="python -m benchmarks.multi_output", description=(__doc__ or "").partition("\n")[0])
    add_sources(parser)
    parser.add_argument("--batch", type=int, default=128, help="sentences in a batch (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=12, help="rounds that count (default: %(default)s)")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    given: Any = {"batch": options.batch, "precision": options.precision, "rounds": options.rounds}
    found = measure(options.weights, options.data, **given)
    if options.json:
        print(json.dumps(found, indent=1))
        return
    for key, value in found.items():
        if f"{key}_quartiles" in found:
            low, high = found[f"{key}_quartiles"]
            print(f"{key.replace('_', ' ')}: {value} [{low}, {high}]")
    print(f"{options.rounds} rounds, batches of {options.batch}, {options.precision}, load {found['load']}")


if __name__ == "__main__":
    main()
