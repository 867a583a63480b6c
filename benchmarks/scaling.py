"""Step time and peak memory against batch size, sequence length and number of tasks, on MiniLM's shape.

    python -m benchmarks.scaling [--what batch,length,tasks] [--quick] [--json]

Random weights and synthetic tokens: 6 layers, D = 384, 30,522 words, dropout 0.1. Batch sizes 16 to 256 have sequences
of 4 to 46 tokens (25 on average, as in sst); lengths 16 to 512 have 16 sequences of just that length. Every point is a
process of its own, so its peak (ru_maxrss) is its own too: it includes Python, torch, weights and optimizer state.

Tasks: 3, 10 and 50 equal tasks in a Reptile loop (batches of 32, 2 inner steps, outer SGD, shared inner state), one
meta-iteration of each in turn in one process; `cost_per_example` is the median ratio of their time per example to that
with 3 tasks, and must stay at 1. Their peak memory comes from processes of their own; with `per_task` inner state
(the default of recipes, left out under --quick) every task keeps two moments of every weight, 174 MiB here.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import Mtmeta
from benchmarks.parts import SEED, Parts, make_learner
from benchmarks.stats import machine, ratios, spread
from mtmeta.core.api.contracts import Task
from mtmeta.core.api.optimizers import SGD, AdamW
from mtmeta.core.api.option_types import InnerState
from mtmeta.core.api.schedules import Constant
from mtmeta.core.data.dataset import Dataset, TokenStore
from mtmeta.core.data.feed import Feed
from mtmeta.plugins.algorithms.reptile import Reptile
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.samplers import Uniform
from mtmeta.plugins.tasks.sst import Sst

__all__ = ["MINILM", "TINY", "main", "measure", "point", "synthetic"]

MINILM = BertConfig(30522, 384, 6, 12, 1536)
TINY = BertConfig(100, 32, 2, 4, 64)  # for the tests
BATCHES, LENGTHS, TASKS = (16, 32, 64, 128, 256), (16, 32, 64, 128, 256, 512), (3, 10, 50)
LENGTH_BATCH = 16
TASK_BATCH, INNER_STEPS = 32, 2
ROWS = 2048
SHORTEST, LONGEST = 4, 46


def synthetic(config: BertConfig, tasks: int = 1, *, batch_size: int, length: int | None = None) -> Parts:
    """Random weights, and tasks of random tokens: sequences of `length`, or of 4 to 46 tokens."""
    encoder = Encoder(config)
    encoder.initialise(SEED)
    instances: dict[str, Task] = {}
    datasets = {}
    for number in range(tasks):
        name, random = f"task{number}", np.random.default_rng([SEED, number])
        rows = ROWS if length is None else 4 * LENGTH_BATCH
        lengths = random.integers(SHORTEST, LONGEST + 1, rows) if length is None else np.full(rows, length)
        offsets = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(lengths)])
        ids = random.integers(1, config.vocab_size, int(offsets[-1])).astype(np.int32)
        labels = random.integers(0, 5, rows).astype(np.float64)
        store = TokenStore(ids, None, offsets)
        instances[name] = Sst(train=name, batch_size=batch_size, inner_steps=INNER_STEPS)
        datasets[name, "train"] = Dataset(name, "train", name, [str(i) for i in range(rows)], labels, (store,))
    return Parts(encoder, config, {}, instances, datasets)


class Loop:
    """Reptile's meta-iterations over synthetic tasks, as the training loop takes them."""

    def __init__(self, config: BertConfig, tasks: int, state: InnerState) -> None:
        parts = synthetic(config, tasks, batch_size=TASK_BATCH)
        self.learner = make_learner(parts, *parts.tasks)
        self.feed = Feed(parts.tasks, {name: data for (name, _), data in parts.datasets.items()}, Uniform(), seed=SEED)
        self.algorithm = Reptile(inner_optimizer=AdamW(lr=1e-5), inner_schedule=Constant(), inner_state=state)
        self.outer = SGD(lr=1.0).build(self.learner.parameters.items())
        self.steps = 0

    def iterate(self) -> float:
        """Seconds per example of the next meta-iteration."""
        before, started = self.learner.examples, time.perf_counter()
        self.feed.step = self.steps
        self.learner.begin_step(self.steps)
        self.algorithm.backward(self.learner, self.feed)
        self.outer.step()
        self.steps += 1
        return (time.perf_counter() - started) / (self.learner.examples - before)


def point(
    kind: str, value: int, rounds: int, config: BertConfig = MINILM, state: InnerState = "shared"
) -> dict[str, Any]:
    """One measurement in this process."""
    results: dict[str, Any] = {kind: value}
    if kind == "tasks":
        loop = Loop(config, value, state)
        for _ in range(rounds):
            loop.iterate()
        results["inner_state"] = state
    else:
        batch, length = (value, None) if kind == "batch" else (LENGTH_BATCH, value)
        parts = synthetic(config, batch_size=batch, length=length)
        contender, random = Mtmeta(parts, "task0"), np.random.default_rng(SEED)
        store = parts.datasets["task0", "train"].stores[0]
        seconds, rates = [], []
        for step in range(rounds + 1):
            indices = random.choice(len(store.lengths), batch, replace=False)
            started = time.perf_counter()
            contender.step(indices)
            if step:  # the first one allocates
                seconds.append(time.perf_counter() - started)
                rates.append(float(store.lengths[indices].sum()) / seconds[-1])
        results |= spread(seconds).json("seconds_per_step", 4) | spread(rates).json("tokens_per_s", 0)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return results | {"peak_mib": round(peak / (2**20 if sys.platform == "darwin" else 1024), 1)}


def measure(kinds: Sequence[str], *, quick: bool, config: BertConfig = MINILM) -> dict[str, Any]:
    """All points, each in a process of its own, and the cost per example against the number of tasks in this one."""
    rounds = 2 if quick else 5
    results: dict[str, Any] = {"machine": machine()}
    for kind, values in (("batch", BATCHES), ("length", LENGTHS)):
        if kind in kinds:
            results[kind] = [_elsewhere(kind, value, rounds, config) for value in values]
    if "tasks" in kinds:
        states: tuple[InnerState, ...] = ("shared",) if quick else ("shared", "per_task")
        peaks = [_elsewhere("tasks", n, max(3, rounds), config, state) for state in states for n in TASKS]
        loops = {count: Loop(config, count, "shared") for count in TASKS}
        for loop in loops.values():
            loop.iterate()
        costs: dict[int, list[float]] = {count: [] for count in TASKS}
        for _ in range(4 if quick else 12):
            for count, loop in loops.items():
                costs[count].append(loop.iterate())
        few = costs[TASKS[0]]
        cost = [{"tasks": n, **ratios(costs[n], few).json("cost_per_example")} for n in TASKS]
        results["tasks"] = {"cost": cost, "memory": peaks}
    return results


def _elsewhere(kind: str, value: int, rounds: int, config: BertConfig, state: InnerState = "shared") -> dict[str, Any]:
    given = [kind, str(value), str(rounds), "tiny" if config == TINY else "minilm", state]
    command = [sys.executable, "-m", "benchmarks.scaling", "--point", *given]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    point: dict[str, Any] = json.loads(done.stdout)
    return point


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print tables or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.scaling", description=(__doc__ or "").partition("\n")[0])
    add = parser.add_argument
    add("--what", dest="kinds", metavar="WHAT", default="batch,length,tasks", help="(default: %(default)s)")
    add("--quick", action="store_true", help="fewer rounds, and inner state only shared")
    add("--tiny", action="store_true", help="a tiny encoder, to see that it works")
    add("--json", action="store_true", help="one JSON document on stdout")
    add("--point", nargs=5, help="one point in this process: kind value rounds shape inner_state")
    options = parser.parse_args(arguments)
    if options.point:
        kind, value, rounds, shape, state = options.point
        print(json.dumps(point(kind, int(value), int(rounds), TINY if shape == "tiny" else MINILM, state)))
        return
    results = measure(options.kinds.split(","), quick=options.quick, config=TINY if options.tiny else MINILM)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    console = Console(width=120)
    for kind in ("batch", "length"):
        if kind in results:
            console.print(_table(results[kind], f"one training step against {kind}"))
    if "tasks" in results:
        console.print(_table(results["tasks"]["cost"], "time per example, relative to 3 tasks"))
        console.print(_table(results["tasks"]["memory"], "peak memory against the number of tasks"))


def _table(rows: Sequence[dict[str, Any]], title: str) -> Table:
    table = Table(title=title)
    for key in rows[0]:
        table.add_column(key, justify="right")
    for row in rows:
        table.add_row(*(str(value) for value in row.values()))
    return table


if __name__ == "__main__":
    main()
