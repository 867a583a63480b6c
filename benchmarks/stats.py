"""Ratios with their spread, the bound that the matrix-multiply rate sets, and the machine."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtmeta.plugins.backbones.checkpoint.config import BertConfig

__all__ = ["Spread", "gemm_rates", "instructions", "layer_weights", "load", "machine", "ratios", "spread", "step_flops"]

GEMM_CALLS = 5
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")


@dataclass(frozen=True)
class Spread:
    """Median and quartiles over rounds."""

    median: float
    low: float
    high: float
    rounds: int

    def json(self, name: str, digits: int = 3) -> dict[str, Any]:
        """`name` and `name_quartiles`."""
        return {
            name: round(self.median, digits),
            f"{name}_quartiles": [round(self.low, digits), round(self.high, digits)],
        }

    def text(self, digits: int = 2) -> str:
        """`2.31 [2.25, 2.38]`."""
        return f"{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles, linear between neighbours."""
    low, median, high = np.percentile(np.asarray(values, dtype=np.float64), [25, 50, 75]).tolist()
    return Spread(median, low, high, len(values))


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> Spread:
    """Spread of the per-round ratios: noise that lasts longer than a round hits both sides and cancels."""
    return spread([a / b for a, b in zip(numerators, denominators, strict=True)])


def layer_weights(config: BertConfig) -> int:
    """Entries of the matrices in the encoder's layers: query, key, value, output, up and down. MiniLM: 10.6 million."""
    d, i = config.hidden_size, config.intermediate_size
    return config.num_hidden_layers * (4 * d * d + 2 * d * i)


def step_flops(config: BertConfig, tokens: int) -> int:
    """FLOPs no training step on `tokens` real tokens can do without: a multiply and an add for each weight in the
    forward pass and twice that in the backward pass.

    Special tokens count, padding does not; embeddings, attention products, heads and everything else are left out.
    """
    return 6 * tokens * layer_weights(config)


def gemm_rates(tokens: int, width: int, dtype: torch.dtype = torch.float32) -> list[float]:
    """FLOP/s of torch.mm [tokens, width] x [width, 3 * width] in five calls after a first one."""
    a, b = torch.randn(tokens, width).to(dtype), torch.randn(width, 3 * width).to(dtype)
    out = torch.empty(tokens, 3 * width, dtype=dtype)
    rates = []
    for _ in range(1 + GEMM_CALLS):
        started = time.perf_counter()
        torch.mm(a, b, out=out)
        rates.append(2 * tokens * width * 3 * width / (time.perf_counter() - started))
    return rates[1:]


def machine() -> dict[str, Any]:
    """The kind of machine and the versions that matter, without names or paths."""
    return {
        "cpu": _cpu(),
        "instructions": instructions(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "sentence_transformers": _version("sentence-transformers"),
        "python": platform.python_version(),
    }


def instructions(flags: str | None = None) -> list[str]:
    """Of the instruction sets that decide the speed of matrix products, those that the processor has."""
    flags = _cpu_fields().get("flags", "") if flags is None else flags
    has = set(flags.split())
    return [name for name in INSTRUCTIONS if name in has]


def load() -> list[float] | None:
    """How many processes wanted a core over the last 1, 5 and 15 minutes, this one among them."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    fields = _cpu_fields()
    name = fields.get("model name", platform.processor() or platform.machine())
    return name + (f" family {fields['cpu family']} model {fields['model']}" if "cpu family" in fields else "")


def _cpu_fields() -> dict[str, str]:
    """What Linux says of the first core; nothing elsewhere."""
    fields: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            key, _, value = line.partition(":")
            fields.setdefault(key.strip(), value.strip())
    return fields
