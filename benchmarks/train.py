"""Training and evaluation rate on real data against the libraries people would use instead.

    python -m benchmarks.train --data DATA --weights FOLDER [--tasks sst,para,sts] [--quick] [--seconds 900] [--json]
    python -m benchmarks.train --losses

A step is everything from row numbers to moved weights: collate, forward, loss, backward, optimizer. In each round every
contender takes one step, on the same examples (`transformers_grouped` draws its own), one after the other, each in a
process of its own; a ratio is the median over rounds of their time over ours, and above 1 we are faster. Contenders:

    mtmeta                 the product's own path: packing.pack, Learner.gradient, the recipe's AdamW
    mtmeta_padded          the same encoder modules on padded batches with a mask
    transformers_padded    BertModel, sdpa, padded random batches
    transformers_grouped   the same on batches of LengthGroupedSampler; compared by time per real token, as its batches
                           are of one length each (over an epoch tokens and examples are the same)
    sentence_transformers  its Transformer and Pooling modules (pair tasks)

`fraction_of_gemm_bound`: FLOPs no step can do without (6 x real tokens x weights of the layers' matrices; embeddings,
attention products, heads and all else not counted) at the rate of torch.mm [S, D] x [D, 3D], over the step's time. The
rate is the median of ten calls on the same threads, five right before the step and five right after it.

Evaluation is mtmeta.core.training.evaluation.predict on the dev set (its first rows under --quick) against transformers
in inference mode on padded batches of 128 in file order; `eval_over_train` compares with a training step taken beside
it.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks import contenders
from benchmarks.contenders import Indices
from benchmarks.losses import compare_losses
from benchmarks.parts import Parts, add_arguments, load_parts
from benchmarks.stats import Spread, gemm_rates, machine, ratios, spread, step_flops
from benchmarks.workers import MAKERS, Worker

__all__ = ["main", "measure_task"]

MIN_ROUNDS, QUICK_ROUNDS = 3, 1
QUICK_SECONDS, FULL_SECONDS = 265.0, 900.0
QUICK_DEV_ROWS = 256
EVALUATION_SHARE = 0.15  # of a task's time
RATIOS = ("transformers_padded", "transformers_grouped", "mtmeta_padded", "sentence_transformers")


def measure_task(
    parts: Parts, workers: dict[str, Worker], task: str, *, batch: int, seconds: float, quick: bool
) -> dict[str, Any]:
    """All figures of one task, within about `seconds`, but at least three rounds (one if quick) and an evaluation."""
    deadline = time.perf_counter() + seconds
    dataset = parts.datasets[task, "train"]
    ours, hf = workers["mtmeta"], workers["transformers"]
    # transformers twice: the same model, fed otherwise
    field = {"mtmeta_padded": workers["mtmeta_padded"], "transformers_padded": hf, "transformers_grouped": hf}
    if parts.tasks[task].inputs != "single":
        field["sentence_transformers"] = workers["sentence_transformers"]
    for worker in (ours, *dict.fromkeys(field.values())):
        worker.start(task)
        worker.step(np.arange(min(batch, len(dataset))))

    times: dict[str, list[float]] = {name: [] for name in ("mtmeta", *field)}
    rates: list[float] = []
    fractions: list[float] = []
    examples: list[float] = []
    batches = contenders.random_batches(dataset, batch)
    grouped = contenders.grouped_batches(dataset, batch)
    reserve = seconds * EVALUATION_SHARE
    longest = 0.0
    least = QUICK_ROUNDS if quick else MIN_ROUNDS
    while len(rates) < least or time.perf_counter() + longest < deadline - reserve:
        started = time.perf_counter()
        indices = next(batches)
        tokens = contenders.tokens_of(dataset, indices)
        before = gemm_rates(tokens, parts.config.hidden_size)
        times["mtmeta"].append(ours.step(indices))
        rates.append(float(np.median(before + gemm_rates(tokens, parts.config.hidden_size))))
        fractions.append(step_flops(parts.config, tokens) / rates[-1] / times["mtmeta"][-1])
        examples.append(len(indices) / times["mtmeta"][-1])
        names = list(field)
        turn = len(rates) % len(names)  # no contender always follows the same one
        for name in names[turn:] + names[:turn]:
            own = next(grouped) if name == "transformers_grouped" else indices
            times[name].append(field[name].step(own) * tokens / contenders.tokens_of(dataset, own))
        longest = max(longest, time.perf_counter() - started)
    results: dict[str, Any] = {
        "rounds": len(rates),
        **spread(examples).json("train_examples_per_s", 1),
        "tokens_per_example": round(dataset.tokens / len(dataset), 1),
    }
    for name in RATIOS:
        against = ratios(times[name], times["mtmeta"]).json(f"ratio_vs_{name}") if name in times else None
        results |= against or {f"ratio_vs_{name}": None, f"ratio_vs_{name}_quartiles": None}
    results |= spread(fractions).json("fraction_of_gemm_bound")
    results |= spread([r / 1e9 for r in rates]).json("gemm_gflops", 1)
    rows = len(parts.datasets[task, "dev"])
    rows = min(QUICK_DEV_ROWS, 2 * batch, rows) if quick else rows
    return results | _evaluation(ours, hf, rows, lambda: next(batches), deadline)


def _evaluation(ours: Worker, hf: Worker, rows: int, batch: Callable[[], Indices], deadline: float) -> dict[str, Any]:
    """Rounds of a training step, our evaluation and theirs."""
    rate: list[float] = []
    over_train: list[float] = []
    ratio: list[float] = []
    longest = 0.0
    while not rate or time.perf_counter() + longest < deadline:
        started = time.perf_counter()
        indices = batch()
        train = len(indices) / ours.step(indices)
        mine = ours.evaluate(rows)
        rate.append(rows / mine)
        over_train.append(rate[-1] / train)
        ratio.append(hf.evaluate(rows) / mine)
        longest = max(longest, time.perf_counter() - started)
    return {
        **spread(rate).json("eval_examples_per_s", 1),
        **spread(over_train).json("eval_over_train"),
        **spread(ratio).json("eval_ratio_vs_transformers"),
        "eval_rounds": len(rate),
        "eval_rows": rows,
    }


def _measure(options: Namespace) -> dict[str, Any]:
    """The whole document: this machine, and every task within its share of the time."""
    started = time.perf_counter()
    seconds = options.seconds or (QUICK_SECONDS if options.quick else FULL_SECONDS)
    names = options.tasks.split(",")
    parts = load_parts(options.weights, options.data, names, splits=("train", "dev"))
    kinds = [kind for kind in MAKERS if kind != "sentence_transformers" or set(names) != {"sst"}]
    workers = {kind: Worker(kind, options.weights, options.data, names) for kind in kinds}
    for worker in workers.values():
        worker.ready()
    tasks: dict[str, Any] = {}
    for done, name in enumerate(names):
        left = seconds - (time.perf_counter() - started)
        share = max(0.0, left / (len(names) - done))
        tasks[name] = measure_task(parts, workers, name, batch=options.batch, seconds=share, quick=options.quick)
    for worker in workers.values():
        worker.stop()
    return {
        "machine": machine(),
        "batch": options.batch,
        "bound": "6 x real tokens x weights of the layers' matrices at the measured rate of torch.mm [S, D] x [D, 3D]",
        "seconds": round(time.perf_counter() - started, 1),
        "tasks": tasks,
    }


ROWS = (
    ("training, examples/s", "train_examples_per_s", 1),
    ("ratio to transformers, padded", "ratio_vs_transformers_padded", 2),
    ("ratio to transformers, grouped by length", "ratio_vs_transformers_grouped", 2),
    ("ratio to mtmeta's modules, padded", "ratio_vs_mtmeta_padded", 2),
    ("ratio to sentence-transformers", "ratio_vs_sentence_transformers", 2),
    ("fraction of the GEMM bound", "fraction_of_gemm_bound", 3),
    ("GEMM, GFLOP/s", "gemm_gflops", 1),
    ("evaluation, examples/s", "eval_examples_per_s", 1),
    ("evaluation over training", "eval_over_train", 2),
    ("evaluation, ratio to transformers", "eval_ratio_vs_transformers", 2),
)


def _table(results: dict[str, Any]) -> Table:
    tasks = results["tasks"]
    table = Table(title=f"batch {results['batch']}: median and quartiles over rounds; ratios above 1: mtmeta is faster")
    table.add_column("", no_wrap=True)
    for name, values in tasks.items():
        table.add_column(f"{name} ({values['rounds']} rounds)", justify="right", no_wrap=True)
    for title, key, digits in ROWS:
        cells = []
        for values in tasks.values():
            low, high = values[f"{key}_quartiles"] or (0.0, 0.0)
            cells.append("" if values[key] is None else Spread(values[key], low, high, 0).text(digits))
        table.add_row(title, *cells)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print one table or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.train", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--quick", action="store_true", help="within five minutes on two cores")
    parser.add_argument("--seconds", type=float, help=f"in all (default: {FULL_SECONDS:g}, quick {QUICK_SECONDS:g})")
    parser.add_argument("--losses", action="store_true", help="instead: loss sequences with dropout off")
    parser.add_argument("--steps", type=int, default=20, help="steps of --losses (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    console = Console(width=120)
    if options.losses:
        results = compare_losses(options.weights, options.data, options.tasks.split(","), options.batch, options.steps)
    else:
        results = _measure(options)
    if options.json:
        print(json.dumps(results, indent=2, allow_nan=False))
        return
    if options.losses:
        for name, values in results.items():
            console.print(f"{name}: largest difference {values['largest_difference']:.2e}")
            for contender, losses in values["losses"].items():
                console.print(f"  {contender:20}" + " ".join(f"{loss:.6f}" for loss in losses), soft_wrap=True)
        return
    console.print(_table(results))
    console.print(f"bound: {results['bound']}", soft_wrap=True)
    console.print(", ".join(f"{key} {value}" for key, value in results["machine"].items()), soft_wrap=True)


if __name__ == "__main__":
    main()
