"""A run on several ranks of this machine beside one process, what the ranks wait for each other, and the arithmetic.

    python -m benchmarks.ranks [--data DATA --weights FOLDER] [--worlds 1,2,4] [--steps 8] [--rounds 2] [--json]
    python -m benchmarks.ranks --model                  the arithmetic alone: bert-base on networks, nothing is run

Each contender trains the same recipe (joint, three tasks, `training.shards: 4`) for a few steps, in turn with the
others: one process with a thread a core, and 1, 2 and 4 ranks of one thread each under torchrun. Examples/s are of the
steps after the first; evaluation and saving are left out. `wait` is the share of those steps that a rank spends in
exchanges, the slower ones' time included; `sum` is that of the int64 sum alone. Without DATA the sample data and the
encoder inside the package.

The model: a step of one rank takes C (computing) on a core of its own, so R ranks on N cores take C / min(R, N) if the
shards can be dealt out evenly, and the sum takes what its bytes take at the rate seen with 2 ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

from rich.console import Console
from rich.table import Table

from benchmarks.stats import machine

__all__ = ["main", "network_table", "waiting"]

BERT_BASE = 109_482_240
"""Parameters of bert-base."""
MATRICES = 85_054_464
"""Of these, what each token is multiplied with: 6 operations a token and parameter, forward and backward."""
RATE = 100e12
"""Operations a second that a GPU is taken to reach in bf16."""
BATCH_TOKENS = 6_400
INNER_STEPS = 8
NETWORKS = {"100 GbE": (12.5e9, 10e-6), "400 G InfiniBand": (50e9, 3e-6)}
"""Bytes a second and seconds of latency."""


def waiting(parameters: int, ranks: int, rate: float, latency: float) -> float:
    """Return the seconds that a ring takes to add up int64 numbers: each rank sends 2 (R - 1) / R of them."""
    return 2 * (ranks - 1) / ranks * 8 * parameters / rate + 2 * (ranks - 1) * latency


def network_table() -> list[dict[str, Any]]:
    """Return computing over waiting for bert-base: a slot of 8 inner steps a rank, or one shard of a batch a rank."""
    shard = 6 * MATRICES * BATCH_TOKENS / RATE
    rows = []
    for ranks in (1, 8, 64, 1000):
        for network, (rate, latency) in NETWORKS.items():
            wait = waiting(BERT_BASE, ranks, rate, latency)
            row: dict[str, Any] = {
                "ranks": ranks,
                "network": network,
                "sent_gb": 2 * (ranks - 1) / ranks * 8 * BERT_BASE / 1e9,
            }
            row |= {"wait_s": wait, "slot": INNER_STEPS * shard / wait if wait else None}
            row |= {"shard": shard / wait if wait else None}
            in_order = (ranks - 1) * 4 * BERT_BASE / rate  # without shards every rank gets every slot
            rows.append({**row, "in_order_s": in_order})
    return rows


# ------------------------------------------------------------------------------------------------- measured here


def _recipe(data: str | None, weights: str | None, steps: int) -> dict[str, Any]:
    def task(name: str) -> dict[str, Any]:
        files = {split: f"{name}-{split}.csv" if data else "sample" for split in ("train", "dev")}
        return {**files, "batch_size": 64}

    return {
        "name": "ranks",
        **({"data_root": data} if data else {}),
        "backbone": {"name": "bert", "weights": weights or "embedded", "max_length": 128},
        "tasks": {name: task(name) for name in ("sst", "para", "sts")},
        "algorithm": "joint",
        "optimizer": {"name": "adamw", "lr": 1e-5},
        "training": {"steps": steps, "shards": 4, "precision": "fp32"},
        "data": {"on_bad_rows": "skip"},
        "evaluation": {"every": None},
        "reporters": [],
    }


def work(recipe: Path, out: Path, told: Path, steps: int) -> None:
    """Be one rank: train, and leave seconds a step and seconds of exchanges in `told`."""
    import mtmeta
    from mtmeta.core.distributed.group import Group
    from mtmeta.core.training.trainer import Trainer

    ends: list[tuple[float, float, float, int]] = []
    spent = {"sum": 0.0, "all": 0.0}

    def timed(method: Callable[..., Any], *keys: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            start = time.perf_counter()
            try:
                return method(*arguments)
            finally:
                for key in keys:
                    spent[key] += time.perf_counter() - start

        return call

    make = Trainer.make_step

    def step(trainer: Trainer) -> None:
        make(trainer)
        ends.append((time.perf_counter(), spent["all"], spent["sum"], trainer.learner.examples))

    with (
        mock.patch.object(Trainer, "make_step", step),
        mock.patch.object(Trainer, "_evaluate", lambda trainer: None),
        mock.patch.object(Trainer, "_save", lambda trainer: sys.exit(0) if trainer.step == steps else None),
        mock.patch.object(Group, "exchange", timed(Group.exchange, "all")),
        mock.patch.object(Group, "sum", timed(Group.sum, "all", "sum")),
        mock.patch.object(Group, "largest", timed(Group.largest, "all")),
    ):
        try:
            mtmeta.run(recipe, out=out)
        except SystemExit:
            pass
    told.mkdir(exist_ok=True)
    (told / os.environ.get("RANK", "0")).write_text(json.dumps(ends))


def measure(folder: Path, recipe: dict[str, Any], world: int, threads: int, steps: int) -> dict[str, float]:
    """Train once; returns seconds a step, examples/s, and the shares of waiting, of the rank that waits least."""
    folder.mkdir()
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    own = ["-m", "benchmarks.ranks", "--work", str(folder), "--steps", str(steps)]
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)]
    command = [sys.executable, *(torchrun if world > 1 else []), *own]
    environ = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr[-3000:])
    ranks = [json.loads(path.read_text()) for path in sorted((folder / "told").iterdir())]
    first, last = [ends[0] for ends in ranks], [ends[-1] for ends in ranks]
    taken = last[0][0] - first[0][0]
    pairs = list(zip(first, last, strict=True))
    shares = {key: min(b[at] - a[at] for a, b in pairs) / taken for key, at in (("wait", 1), ("sum", 2))}
    return {"step_s": taken / (steps - 1), "examples_s": (last[0][3] - first[0][3]) / taken, **shares}


def compare(data: str | None, weights: str | None, worlds: Sequence[int], steps: int, rounds: int) -> dict[str, Any]:
    """Measure every contender in turn; returns medians, and beside each what the model says."""
    cores = os.cpu_count() or 1
    shards, plain = _recipe(data, weights, steps), _recipe(data, weights, steps)
    del plain["training"]["shards"]
    contenders: dict[str, Any] = {f"1 process, {cores} threads, no shards": (plain, 1, cores)}
    contenders |= {f"1 process, {cores} threads": (shards, 1, cores)}
    contenders |= {f"{world} rank{'s' * (world > 1)} of 1 thread": (shards, world, 1) for world in worlds}
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            for name, (recipe, world, threads) in contenders.items():
                folder = Path(scratch) / f"{number}-{name}"
                seen[name].append(measure(folder, recipe, world, threads, steps))
    rows: list[dict[str, Any]] = []
    for name, found in seen.items():
        medians = {key: median(each[key] for each in found) for key in found[0]}
        rows.append({"contender": name, "ranks": contenders[name][1], **medians})
    by_world = {row["ranks"]: row for row in rows[2:]}
    if 1 in by_world and 2 in by_world:
        sent = by_world[2]["step_s"] * by_world[2]["sum"]
        for world, row in by_world.items():
            ring = sent * (2 * (world - 1) / world) * max(1.0, world / cores)
            row["model_step_s"] = by_world[1]["step_s"] / min(world, cores) + ring
    return {"machine": machine(), "rows": rows}


def _print(rows: Sequence[dict[str, Any]]) -> None:
    table = Table()
    keys = list(dict.fromkeys(key for row in rows for key in row))
    for key in keys:
        table.add_column(key, justify="left" if isinstance(rows[0].get(key), str) else "right")
    for row in rows:
        values = [row.get(key, "") for key in keys]
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in values))
    Console(width=140).print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run from the command line."""
    parser = ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data")
    parser.add_argument("--weights")
    parser.add_argument("--worlds", default="1,2,4")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--model", action="store_true")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--work", type=Path)
    options = parser.parse_args(arguments)
    if options.work:
        work(options.work / "recipe.yaml", options.work / "out", options.work / "told", options.steps)
        return
    if options.model:
        found: dict[str, Any] = {"rows": network_table()}
    else:
        worlds = [int(world) for world in options.worlds.split(",")]
        found = compare(options.data, options.weights, worlds, options.steps, options.rounds)
    print(json.dumps(found)) if options.json else _print(found["rows"])


if __name__ == "__main__":
    main()
