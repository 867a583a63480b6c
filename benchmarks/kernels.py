"""The compiled kernels one by one, on batches of sst's lengths, beside PyTorch's operator where there is one.

    python -m benchmarks.kernels [--precision fp32] [--rounds 5] [--json]

Milliseconds of a call, the best of --rounds; each round goes over six copies of its arguments, which together do not
fit the cache, as those of six layers do not. MiniLM's widths: D = 384, 12 heads, I = 1,536; dropout 0.1. In bf16, on a
processor with AMX, also the parts of a layer with their products, beside the same by torch.mm and kernels.
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
from mtmeta.core.environment import want_huge_pages
from mtmeta.core.machine import Heap
from mtmeta.plugins.backbones.encoder import kernels
from mtmeta.plugins.backbones.encoder.fused import Noise
from mtmeta.plugins.backbones.encoder.kernels import Kernels
from mtmeta.plugins.backbones.encoder.kernels_bf16 import Bf16Kernels

__all__ = ["main", "measure"]

SEQUENCES, HIDDEN, HEADS, WIDE, COPIES = 128, 384, 12, 1536, 6


class Copies:
    """Batches of one length after another, each of several arrays, and the best time of a call over all of them."""

    def __init__(self, rounds: int, dtype: torch.dtype) -> None:
        lengths = np.sort(np.clip(np.random.default_rng(0).normal(23.5, 10, SEQUENCES), 4, 60).astype(int))
        lengths[-1] += -lengths.sum() % 32
        self.offsets, self.longest = torch.from_numpy(np.cumsum([0, *lengths])), int(lengths.max())
        self.tokens = int(lengths.sum())
        self.rounds, self.dtype = rounds, dtype

    def of(self, width: int) -> list[torch.Tensor]:
        """Random arrays [S, width]."""
        return [torch.randn(self.tokens, width).to(self.dtype) for _ in range(COPIES)]

    def best(self, call: Callable[[int], object]) -> float:
        """Milliseconds of a call with the number of a copy."""
        seconds = []
        for _ in range(self.rounds):
            started = time.perf_counter()
            for i in range(COPIES):
                call(i)
            seconds.append((time.perf_counter() - started) / COPIES)
        return round(1000 * min(seconds), 2)


def measure(functions: Kernels, copies: Copies) -> dict[str, float]:
    """Milliseconds by kernel."""
    mask, best = kernels.mask(Noise(0.1)), copies.best
    x, residual, grad = (copies.of(HIDDEN) for _ in range(3))
    qkv, wide, d_wide = copies.of(3 * HIDDEN), copies.of(WIDE), copies.of(WIDE)
    bias, bias3, wide_bias = torch.randn(HIDDEN), torch.randn(3 * HIDDEN), torch.randn(WIDE)
    rstd, span = torch.ones(copies.tokens), (copies.offsets, copies.longest)
    given = [functions.attention(each, bias3, *span, HEADS, mask) for each in qkv]
    return {
        "norm": best(lambda i: functions.norm(x[i], bias, residual[i], bias, bias, 1e-12, mask)),
        "norm_backward": best(lambda i: functions.norm_backward(grad[i], x[i], rstd, bias, mask)),
        "gelu": best(lambda i: functions.gelu(wide[i], wide_bias, in_place=False)),
        "gelu of PyTorch, without bias": best(lambda i: functional.gelu(wide[i])),
        "gelu_backward": best(lambda i: functions.gelu_backward_(d_wide[i], wide[i], wide_bias)),
        "attention": best(lambda i: functions.attention(qkv[i], bias3, *span, HEADS, mask)),
        "attention_backward": best(
            lambda i: functions.attention_backward(qkv[i], bias3, *span, mask, *given[i], grad[i])
        ),
    }


def measure_products(k: Bf16Kernels, copies: Copies) -> dict[str, float]:
    """Milliseconds of a layer's parts by the matrix unit, each beside the same by torch.mm and kernels."""
    mask, best = kernels.mask(Noise(0.1)), copies.best
    x, residual, grad, wider, d_wide = *(copies.of(HIDDEN) for _ in range(3)), copies.of(WIDE), copies.of(3 * HIDDEN)
    bias, wide_bias, rstd = torch.randn(HIDDEN), torch.randn(WIDE), torch.ones(copies.tokens)
    shapes = (3 * HIDDEN, HIDDEN), (HIDDEN, HIDDEN), (WIDE, HIDDEN), (HIDDEN, WIDE)
    weights = [torch.randn(*shape) * 0.05 for shape in shapes]
    qkv, out, up, down = (weight.bfloat16() for weight in weights)
    pairs: list[Any] = [k.pairs(weight, both=True) for weight in weights]
    (of_qkv, qkv_back), (of_out, out_back), (of_up, up_back), (of_down, down_back) = pairs
    units = copies.of(HIDDEN)
    norms, backs = (bias, bias, 1e-12, mask), (rstd, bias, mask)

    def feed_by_mm(i: int) -> None:
        active = k.gelu(x[i] @ up.t(), wide_bias, in_place=False)
        k.norm(active @ down.t(), bias, x[i], *norms)

    def over_tokens(narrow: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        return k.transposed(narrow) @ other

    def feed_back_by_mm(i: int) -> None:
        _, d_unit, _ = k.norm_backward(grad[i], units[i], *backs)
        over_tokens(d_unit, wider[i]).float()
        d_active = d_unit @ down
        k.gelu_backward_(d_active, wider[i], wide_bias)
        k.transposed_fp32(over_tokens(x[i], d_active))
        d_active @ up

    return {
        "qkv": best(lambda i: k.product(x[i], of_qkv)),
        "qkv by mm": best(lambda i: x[i] @ qkv.t()),
        "out and norm": best(lambda i: k.out(x[i], of_out, bias, residual[i], *norms, (units[i], rstd))),
        "out and norm by mm": best(lambda i: k.norm(x[i] @ out.t(), bias, residual[i], *norms)),
        "feed": best(lambda i: k.feed(x[i], of_up, wide_bias, of_down, bias, *norms, (wider[i], units[i], rstd))),
        "feed by mm": best(feed_by_mm),
        "feed, no backward pass": best(
            lambda i: k.feed(x[i], of_up, wide_bias, of_down, bias, *norms, (None, None, None))
        ),
        "feed_backward": best(
            lambda i: k.feed_backward(
                grad[i], units[i], *backs, down_back, wider[i], wide_bias, up_back, x[i], (True, True)
            )
        ),
        "feed_backward by mm": best(feed_back_by_mm),
        "out_backward": best(lambda i: k.out_backward(grad[i], units[i], *backs, out_back, x[i], True)),
        "qkv_backward": best(lambda i: k.qkv_backward_(grad[i], d_wide[i], qkv_back, x[i], True)),
        "qkv_backward by mm": best(
            lambda i: (k.transposed_fp32(over_tokens(x[i], d_wide[i])), grad[i].addmm(d_wide[i], qkv))
        ),
        "weights to pairs": best(lambda i: [k.pairs(weight, both=True) for weight in weights]),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, then print one table or one JSON document."""
    parser = ArgumentParser(prog="python -m benchmarks.kernels", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--rounds", type=int, default=5, help="the best of so many counts (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    options = parser.parse_args(arguments)
    want_huge_pages()  # as in every command
    Heap()  # as in every run: what is freed is kept
    in_bf16 = options.precision == "bf16"
    functions = kernels.load(Bf16Kernels if in_bf16 else Kernels)
    if functions is None:
        parser.exit(6, "no kernels: no C compiler that can build them, or MTMETA_KERNELS=off\n")
    copies = Copies(options.rounds, torch.bfloat16 if in_bf16 else torch.float32)
    milliseconds = measure(functions, copies)
    if isinstance(functions, Bf16Kernels) and functions.multiplies:
        milliseconds |= measure_products(functions, copies)
    results: dict[str, Any] = {"machine": machine(), "milliseconds": milliseconds}
    if options.json:
        print(json.dumps(results, indent=2))
        return
    table = Table("kernel", "ms a call")
    for name, value in results["milliseconds"].items():
        table.add_row(name, f"{value:.2f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
