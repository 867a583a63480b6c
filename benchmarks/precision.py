"""bf16 beside fp32 and beside transformers' BertModel in its best setting: training and evaluation on real data.

    python -m benchmarks.precision --data DATA --weights FOLDER [--tasks sst,para,sts] [--seconds 1200] [--rounds N]
                                   [--rows 1024] [--json FILE]

Each contender has a process of its own and they take turns: in a round of training each takes one whole step (see
`benchmarks.train`) on the same examples, in a round of evaluation each predicts the first `--rows` of the dev set; who
follows whom changes from round to round. Contenders:

    mtmeta, mtmeta_bf16       the product's own path in fp32, which is bit for bit what it was before bf16, and in bf16
    transformers              BertModel, fp32, attention by sdpa, padded batches of 128
    transformers_bf16_eager   the same under torch.autocast to bf16, attention by plain products
    transformers_bf16_sdpa    under torch.autocast to bf16, attention by sdpa
    ..._grouped               each of the three on batches of like length: in training those of LengthGroupedSampler,
                              compared by time per real token, in evaluation the dev set in the order of lengths

A ratio is the median over rounds of their time over ours in bf16: above 1, bf16 of mtmeta is faster.

    ratio_vs_fp32                against mtmeta in fp32
    ratio_vs_transformers_best   against the fastest of the six of transformers, which `transformers_best` names
    fraction_of_gemm_bound       FLOPs no step can do without (6 x real tokens x weights of the layers' matrices, in
                                 evaluation 2 x) at the rate of torch.mm [S, D] x [D, 3D] in bf16, the median of ten
                                 calls, five right before and five right after, over the time of mtmeta_bf16
"""

from __future__ import annotations

import json
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.contenders import BATCH_TOKENS, grouped_batches, random_batches, tokens_of
from benchmarks.parts import Parts, add_arguments, load_parts
from benchmarks.stats import Spread, gemm_rates, load, machine, ratios, spread, step_flops
from benchmarks.workers import Worker
from mtmeta.core.data.dataset import Dataset

__all__ = ["main", "measure_task", "summary"]

SECONDS = 1200.0
ROWS = 1024
TRAINING_SHARE = 0.6  # of a task's time
OURS = ("mtmeta", "mtmeta_bf16")
THEIRS = ("transformers", "transformers_bf16_eager", "transformers_bf16_sdpa")
GROUPED = "_grouped"
FIELD = (*OURS, *THEIRS, *(name + GROUPED for name in THEIRS))
Times = dict[str, list[float]]


def measure_task(
    parts: Parts, workers: Mapping[str, Worker], task: str, *, batch: int, seconds: float, rounds: int, rows: int
) -> dict[str, Any]:
    """All figures of one task, within about `seconds`, but at least one round each of training and evaluation."""
    began = time.perf_counter()
    for worker in workers.values():
        worker.start(task)
        worker.step(np.arange(min(batch, len(parts.datasets[task, "train"]))))  # not counted: the first is slow
    training = _training(parts, workers, task, batch, _within(began + TRAINING_SHARE * seconds, rounds))
    rows = min(rows, len(parts.datasets[task, "dev"]))
    for worker in workers.values():
        worker.evaluate(min(rows, batch))
    evaluation = _evaluation(parts, workers, task, rows, _within(began + seconds, rounds))
    return {"training": training, "evaluation": evaluation}


def _within(deadline: float, most: int) -> Iterator[int]:
    """Count rounds while another one as long as the longest fits in; there is always a first."""
    longest, started = 0.0, time.perf_counter()
    for number in range(most):
        if number and started + longest > deadline:
            return
        yield number
        now = time.perf_counter()
        longest, started = max(longest, now - started), now


def _turn(number: int) -> tuple[str, ...]:
    at = number % len(FIELD)  # nobody always follows the same one
    return FIELD[at:] + FIELD[:at]


def _training(
    parts: Parts, workers: Mapping[str, Worker], task: str, batch: int, rounds: Iterator[int]
) -> dict[str, Any]:
    dataset = parts.datasets[task, "train"]
    batches = random_batches(dataset, batch)
    grouped = {name: grouped_batches(dataset, batch) for name in THEIRS}
    times: Times = {name: [] for name in FIELD}
    gemms = _Gemms(parts.config.hidden_size)
    flops = []
    for number in rounds:
        indices = next(batches)
        tokens = tokens_of(dataset, indices)
        flops.append(step_flops(parts.config, tokens))
        for name in _turn(number):
            kind = name.removesuffix(GROUPED)
            own = indices if name == kind else next(grouped[kind])
            step = _asking(workers[kind].step, own)
            seconds = gemms.around(tokens, step) if name == "mtmeta_bf16" else step()
            times[name].append(seconds * tokens / tokens_of(dataset, own))
    return summary(times, flops, gemms.rates) | _rates(times, len(indices))


def _evaluation(
    parts: Parts, workers: Mapping[str, Worker], task: str, rows: int, rounds: Iterator[int]
) -> dict[str, Any]:
    dataset: Dataset = parts.datasets[task, "dev"]
    tokens = tokens_of(dataset, np.arange(rows))
    times: Times = {name: [] for name in FIELD}
    gemms = _Gemms(parts.config.hidden_size)
    flops = []
    for number in rounds:
        flops.append(step_flops(parts.config, tokens) // 3)  # the forward pass alone
        for name in _turn(number):
            kind = name.removesuffix(GROUPED)
            ask = _asking(workers[kind].evaluate, rows, grouped=name != kind)
            seconds = gemms.around(min(tokens, BATCH_TOKENS), ask) if name == "mtmeta_bf16" else ask()
            times[name].append(seconds)
    return summary(times, flops, gemms.rates) | _rates(times, rows) | {"rows": rows}


def _asking(ask: Callable[..., float], *arguments: Any, **options: Any) -> Callable[[], float]:
    return lambda: ask(*arguments, **options)


class _Gemms:
    """Rates of torch.mm in bf16 right before and after what is timed, one figure for each."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.rates: list[float] = []

    def around(self, tokens: int, timed: Callable[[], float]) -> float:
        before = gemm_rates(tokens, self.width, torch.bfloat16)
        seconds = timed()
        self.rates.append(float(np.median(before + gemm_rates(tokens, self.width, torch.bfloat16))))
        return seconds


def summary(times: Mapping[str, Sequence[float]], flops: Sequence[int], rates: Sequence[float]) -> dict[str, Any]:
    """Ratios of the times of a round to those of mtmeta_bf16, and its share of the bound, over rounds."""
    ours = times["mtmeta_bf16"]
    against = {name: ratios(times[name], ours) for name in times if name not in OURS}
    best = min(against, key=lambda name: against[name].median)
    fractions = [flop / rate / seconds for flop, rate, seconds in zip(flops, rates, ours, strict=True)]
    results: dict[str, Any] = {"rounds": len(ours), "transformers_best": best}
    results |= ratios(times["mtmeta"], ours).json("ratio_vs_fp32")
    results |= against[best].json("ratio_vs_transformers_best")
    results |= spread(fractions).json("fraction_of_gemm_bound")
    results |= spread([rate / 1e9 for rate in rates]).json("gemm_gflops", 1)
    for name, values in against.items():
        results |= values.json(f"ratio_vs_{name}")
    return results


def _rates(times: Times, examples: int) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name in OURS:
        made |= spread([examples / seconds for seconds in times[name]]).json(f"{name}_examples_per_s", 1)
    return made


def _measure(options: Namespace) -> dict[str, Any]:
    """The whole document: this machine, and every task within its share of the time; written after each of them."""
    started, load_before = time.perf_counter(), load()
    names = options.tasks.split(",")
    parts = load_parts(options.weights, options.data, names, splits=("train", "dev"))
    workers = {kind: Worker(kind, options.weights, options.data, names) for kind in (*OURS, *THEIRS)}
    for worker in workers.values():
        worker.ready()
    about = machine() | {"bf16_kernels": parts.encoder.bf16_kernels_identity}
    results: dict[str, Any] = {"machine": about, "load_before": load_before, "batch": options.batch, "tasks": {}}
    for done, name in enumerate(names):
        share = max(0.0, (options.seconds - (time.perf_counter() - started)) / (len(names) - done))
        results["tasks"][name] = measure_task(
            parts, workers, name, batch=options.batch, seconds=share, rounds=options.rounds, rows=options.rows
        )
        results |= {"load_after": load(), "seconds": round(time.perf_counter() - started, 1)}
        if options.json and options.json != "-":  # so that what is done stays when the rest is stopped
            Path(options.json).write_text(json.dumps(results, indent=2, allow_nan=False) + "\n")
        print(f"{name}: done after {results['seconds']} s", file=sys.stderr)
    for worker in workers.values():
        worker.stop()
    return results


LINES = (
    ("bf16 over mtmeta in fp32", "ratio_vs_fp32", 2),
    ("bf16 over transformers' best", "ratio_vs_transformers_best", 2),
    *((f"  {name}", f"ratio_vs_{name}", 2) for name in FIELD if name not in OURS),
    ("fraction of the GEMM bound", "fraction_of_gemm_bound", 3),
    ("torch.mm in bf16, GFLOP/s", "gemm_gflops", 0),
    ("examples/s in bf16", "mtmeta_bf16_examples_per_s", 1),
    ("examples/s in fp32", "mtmeta_examples_per_s", 1),
)


def _table(tasks: Mapping[str, Any], kind: str) -> Table:
    table = Table(title=f"{kind}: median and quartiles over rounds; ratios above 1: mtmeta in bf16 is faster")
    table.add_column("", no_wrap=True)
    for name, values in tasks.items():
        table.add_column(f"{name} ({values[kind]['rounds']} rounds)", justify="right", no_wrap=True)
    for title, key, digits in LINES:
        cells = []
        for values in tasks.values():
            low, high = values[kind][f"{key}_quartiles"]
            cells.append(Spread(values[kind][key], low, high, 0).text(digits))
        table.add_row(title, *cells)
    return table


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print two tables, and write the JSON document where it is asked for."""
    parser = ArgumentParser(prog="python -m benchmarks.precision", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="in all (default: %(default)g)")
    parser.add_argument("--rounds", type=int, default=1000, help="at most, of each task and kind (default: by time)")
    parser.add_argument("--rows", type=int, default=ROWS, help="of a dev set to predict (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write the JSON document there; - is stdout, without tables")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error("--rounds must be at least 1")
    results = _measure(options)
    if options.json == "-":
        print(json.dumps(results, indent=2, allow_nan=False))
        return
    console = Console(width=120)
    for kind in ("training", "evaluation"):
        console.print(_table(results["tasks"], kind))
    about = results["machine"] | {key: results[key] for key in ("load_before", "load_after", "seconds")}
    console.print(", ".join(f"{key} {value}" for key, value in about.items()), soft_wrap=True)


if __name__ == "__main__":
    main()
