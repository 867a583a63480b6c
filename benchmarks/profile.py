"""Operators of mtmeta's training step: share of the CPU's own time, and of matrix products in it.

    python -m benchmarks.profile [--task sst] [--steps 5] [--top 20] [--json]

torch.profiler over a few whole steps (pack, forward, loss, backward, AdamW) after two that are not counted. Shares are
of self CPU time, so what an operator calls is counted there and not twice; the profiler itself makes small operators
look a little dearer than they are.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity

from benchmarks.contenders import Mtmeta
from benchmarks.parts import SEED, Parts, add_arguments, load_parts
from benchmarks.stats import machine
from mtmeta.core.machine import Heap
from mtmeta.core.rng import permutation

__all__ = ["main", "profile_step"]

GEMMS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation", "aten::addbmm")


def profile_step(parts: Parts, task: str, *, batch: int, steps: int) -> dict[str, Any]:
    """Operators by self CPU time over `steps` steps, the dearest first, and the share of matrix products."""
    contender = Mtmeta(parts, task)
    order = permutation(len(parts.datasets[task, "train"]), SEED, "profile", task)
    chosen = [order.take(range(i * batch, (i + 1) * batch), mode="wrap") for i in range(steps + 2)]
    heap = Heap()  # as in every run
    for indices in chosen[:2]:
        contender.step(indices)
        heap.after_step()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler:
        for indices in chosen[2:]:
            contender.step(indices)
    events: Any = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    operators = [
        {
            "operator": event.key,
            "share": event.self_cpu_time_total / total,
            "milliseconds_per_step": event.self_cpu_time_total / 1000 / steps,
            "calls_per_step": event.count / steps,
        }
        for event in sorted(events, key=lambda event: -event.self_cpu_time_total)
    ]
    gemms = sum(each["share"] for each in operators if each["operator"] in GEMMS)
    return {"task": task, "batch": batch, "steps": steps, "gemm_share": gemms, "operators": operators}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print one table or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.profile", description=(__doc__ or "").partition("\n")[0])
    add_arguments(parser)
    parser.add_argument("--task", default="sst")
    parser.add_argument("--steps", type=int, default=5, help="steps under the profiler (default: %(default)s)")
    parser.add_argument("--top", type=int, default=20, help="operators in the table (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    parts = load_parts(options.weights, options.data, [options.task])
    results = {"machine": machine()} | profile_step(parts, options.task, batch=options.batch, steps=options.steps)
    if options.json:
        print(json.dumps(results, indent=2))
        return
    table = Table(title=f"{options.task}, batch {options.batch}: matrix products {results['gemm_share']:.1%}")
    table.add_column("operator")
    for title in ("share", "ms a step", "calls a step"):
        table.add_column(title, justify="right")
    for each in results["operators"][: options.top]:
        cells = f"{each['share']:.1%}", f"{each['milliseconds_per_step']:.1f}", f"{each['calls_per_step']:.0f}"
        table.add_row(each["operator"], *cells)
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
