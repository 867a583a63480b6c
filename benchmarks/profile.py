"""Operators of mtmeta's training step: share of the CPU's own time, and of matrix products in it.

    python -m benchmarks.profile [--task sst] [--precision fp32] [--steps 5] [--top 20] [--json]

torch.profiler over a few whole steps (pack, forward, loss, backward, AdamW) after two that are not counted. Shares are
of self CPU time, so what an operator calls is counted there and not twice; the profiler itself makes small operators
look a little dearer than they are. Each function of the C kernels is an operator of its own, `kernel ...`; some in bf16
hold matrix products.
"""

from __future__ import annotations

import json
from argparse import ArgumentParser
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table
from torch.profiler import ProfilerActivity

from benchmarks.contenders import Mtmeta
from benchmarks.parts import SEED, Parts, add_arguments, load_parts
from benchmarks.stats import machine
from mtmeta.core.environment import want_huge_pages
from mtmeta.core.machine import Heap, Precision
from mtmeta.core.rng import permutation
from mtmeta.plugins.backbones.encoder.kernels import Kernels

__all__ = ["main", "profile_step"]

GEMMS = ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::_addmm_activation", "aten::addbmm")


@contextmanager
def named_kernels() -> Iterator[None]:
    """Show the functions of the C kernels to the profiler within the block."""
    call = Kernels.call

    def shown(self: Kernels, function: str, *arguments: object) -> None:
        with torch.profiler.record_function(f"kernel {function}"):
            call(self, function, *arguments)

    with patch.object(Kernels, "call", shown):
        yield


def profile_step(parts: Parts, task: str, *, batch: int, steps: int, precision: Precision = "fp32") -> dict[str, Any]:
    """Operators by self CPU time over `steps` steps, the dearest first, and the share of matrix products."""
    contender = Mtmeta(parts, task, precision)
    order = permutation(len(parts.datasets[task, "train"]), SEED, "profile", task)
    chosen = [order.take(range(i * batch, (i + 1) * batch), mode="wrap") for i in range(steps + 2)]
    heap = Heap()  # as in every run
    for indices in chosen[:2]:
        contender.step(indices)
        heap.after_step()
    with torch.profiler.profile(activities=[ProfilerActivity.CPU]) as profiler, named_kernels():
        for indices in chosen[2:]:  # the profiler's own memory grows: the heap would be released for it
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
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=5, help="steps under the profiler (default: %(default)s)")
    parser.add_argument("--top", type=int, default=20, help="operators in the table (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    want_huge_pages()  # as in every command
    parts = load_parts(options.weights, options.data, [options.task])
    chosen = {"batch": options.batch, "steps": options.steps, "precision": options.precision}
    results = {"machine": machine()} | profile_step(parts, options.task, **chosen)
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
