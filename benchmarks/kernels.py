"""The compiled kernels one by one, on batches of sst's lengths, beside PyTorch's operator where there is one.

    python -m benchmarks.kernels [--rounds 5] [--json]

Milliseconds of a call, the best of --rounds; each round goes over six copies of its arguments, which together do not
fit the cache, as those of six layers do not. MiniLM's widths: D = 384, 12 heads, I = 1,536; dropout 0.1.
"""

from __future__ import annotations

import json
import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch.nn import functional

from benchmarks.stats import machine
from mtmeta.core.machine import Heap
from mtmeta.plugins.backbones.encoder import kernels
from mtmeta.plugins.backbones.encoder.fused import Noise
from mtmeta.plugins.backbones.encoder.kernels import Kernels

__all__ = ["main", "measure"]

SEQUENCES, HIDDEN, HEADS, WIDE, COPIES = 128, 384, 12, 1536, 6


def measure(functions: Kernels, rounds: int) -> dict[str, float]:
    """Milliseconds by kernel."""
    lengths = np.sort(np.clip(np.random.default_rng(0).normal(23.5, 10, SEQUENCES), 4, 60).astype(int))
    offsets, longest, tokens = torch.from_numpy(np.cumsum([0, *lengths])), int(lengths.max()), int(lengths.sum())
    mask = kernels.mask(Noise(0.1))
    Heap()  # as in every run: what is freed is kept

    def copies(width: int) -> list[torch.Tensor]:
        return [torch.randn(tokens, width) for _ in range(COPIES)]

    def best(call: Callable[[int], object]) -> float:
        seconds = []
        for _ in range(rounds):
            started = time.perf_counter()
            for i in range(COPIES):
                call(i)
            seconds.append((time.perf_counter() - started) / COPIES)
        return round(1000 * min(seconds), 2)

    x, residual, grad = (copies(HIDDEN) for _ in range(3))
    qkv, wide, d_wide = copies(3 * HIDDEN), copies(WIDE), copies(WIDE)
    bias, bias3, wide_bias = torch.randn(HIDDEN), torch.randn(3 * HIDDEN), torch.randn(WIDE)
    rstd = torch.ones(tokens)
    given = [functions.attention(each, bias3, offsets, longest, HEADS, mask) for each in qkv]
    return {
        "norm": best(lambda i: functions.norm(x[i], bias, residual[i], bias, bias, 1e-12, mask)),
        "norm_backward": best(lambda i: functions.norm_backward(grad[i], x[i], rstd, bias, mask)),
        "gelu": best(lambda i: functions.gelu(wide[i], wide_bias, in_place=False)),
        "gelu of PyTorch, without bias": best(lambda i: functional.gelu(wide[i])),
        "gelu_backward": best(lambda i: functions.gelu_backward_(d_wide[i], wide[i], wide_bias)),
        "attention": best(lambda i: functions.attention(qkv[i], bias3, offsets, longest, HEADS, mask)),
        "attention_backward": best(
            lambda i: functions.attention_backward(qkv[i], bias3, offsets, longest, mask, *given[i], grad[i])
        ),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print one table or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="the best of so many counts (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    functions = kernels.load()
    if functions is None:
        parser.exit(6, "no kernels: no C compiler that can build them, or MTMETA_KERNELS=off\n")
    results: dict[str, Any] = {"machine": machine(), "milliseconds": measure(functions, options.rounds)}
    if options.json:
        print(json.dumps(results, indent=2))
        return
    table = Table("kernel", "ms a call")
    for name, value in results["milliseconds"].items():
        table.add_row(name, f"{value:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
