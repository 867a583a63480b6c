"""What `surgery` costs beside `joint`: seconds of a step, and the share of it that the Gramian takes.

    python -m benchmarks.surgery [--weights FOLDER] [--method pcgrad] [--rounds 12] [--batch 32]

Both take the same batches of the sample data set, a step of each in turn, so a busy machine slows both. `beside joint`
is a step of surgery without its Gramian and solver, over a step of joint. Medians over the rounds, quartiles in
brackets.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from mtmeta.core.data.feed import Feed
from mtmeta.core.data.loading import load_split
from mtmeta.core.machine import Heap
from mtmeta.core.recipe.sections import DataOptions
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.algorithms.surgery import gramian, method, surgery
from mtmeta.testing.tiny import builtins

WARM = 2  # rounds that count for nothing: buffers are not there yet


class Timed:
    """A function that adds up the seconds it takes."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.seconds = function, 0.0

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return self.function(*arguments, **options)
        finally:
            self.seconds += time.perf_counter() - began


def prepare(weights: str, batch: int) -> tuple[Learner, Feed]:
    """A learner of the three tasks on their sample data, and their feed."""
    registry = builtins()
    kinds = {name: registry.get("task", name, "tasks") for name in ("sst", "para", "sts")}
    tasks = {name: kind(train="sample", batch_size=batch) for name, kind in kinds.items()}
    backbone = registry.get("backbone", "bert", "backbone")(weights=weights, max_length=64).load(0)
    datasets = {name: load_split(name, task, "train", DataOptions(), ".", backbone) for name, task in tasks.items()}
    feed = Feed(tasks, datasets, registry.get("sampler", "uniform", "sampler")(), seed=0)
    learner = Learner(MultiTaskModel(backbone.encoder, tasks, 0), seed=0, steps=1000)
    learner.model.train()
    return learner, feed


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--weights", default="embedded")
    parser.add_argument("--method", default="pcgrad")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--batch", type=int, default=32)
    options = parser.parse_args()
    learner, feed = prepare(options.weights, options.batch)
    methods: dict[str, Any] = {kind.name: kind for kind in surgery.METHODS}
    regimes: dict[str, Any] = {"joint": Joint(), "surgery": surgery.Surgery(method=methods[options.method]())}
    products, solver = Timed(gramian.gramian), Timed(method.weigh)
    for module, name, timed in ((gramian, "gramian", products), (surgery, "weigh", solver)):
        setattr(module, name, timed)
    rows: list[tuple[float, float, float, float]] = []
    heap, state = Heap(), feed.state()
    for turn in range(options.rounds + WARM):
        taken = {}
        products.seconds = solver.seconds = 0.0
        for name in ("joint", "surgery") if turn % 2 else ("surgery", "joint"):
            feed.load_state(state)
            learner.begin_step(turn)
            began = time.perf_counter()
            regimes[name].backward(learner, feed)
            taken[name] = time.perf_counter() - began
            heap.after_step()
        state = feed.state()
        if turn >= WARM:
            rows.append((taken["joint"], taken["surgery"], products.seconds, solver.seconds))
    joint, whole, multiplied, solved = np.array(rows).T
    shared = sum(p.numel() for name, p in learner.parameters.items() if name.startswith(surgery.SHARED))
    print(f"{shared:,} shared parameters, 3 tasks, batches of {options.batch}, {torch.get_num_threads()} thread(s)")
    print(f"method {options.method}, {len(rows)} rounds, seconds of a step: joint {_spread(joint)}")
    print(f"surgery over joint  {_spread(whole / joint)}")
    print(f"beside joint        {_spread((whole - multiplied - solved) / joint)}  without Gramian and solver")
    print(f"Gramian             {_spread(multiplied)} s, {np.median(multiplied / whole):.1%} of the step")
    print(f"solver              {_spread(solved)} s, {np.median(solved / whole):.1%} of the step")


def _spread(values: Any) -> str:
    low, middle, high = np.percentile(values, [25, 50, 75])
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
