"""TorchJD, which comes with the extra `surgery`: is it there, and its parts when they are used."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

import mtmeta

VERSIONS = "0.18"
"""The series whose results are known; others may weigh in another way."""
INSTALL = "pip install 'mtmeta[surgery]'"


def require(method: str, packages: Sequence[str]) -> None:
    """Raise MachineError if a package that a method needs is missing, or is a TorchJD of another series."""
    place = f"algorithm.method '{method}'"
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise mtmeta.MachineError(place, f"needs {' and '.join(missing)}; {INSTALL}")
    if "torchjd" in packages:
        found = metadata.version("torchjd")
        if not found.startswith(f"{VERSIONS}."):
            raise mtmeta.MachineError(place, f"needs torchjd {VERSIONS}, found {mtmeta.safe(found)}; {INSTALL}")


def weighting(name: str, *arguments: Any, **options: Any) -> Any:
    """Return an object of `torchjd.aggregation`, a function from a Gramian, a float64 tensor, to weights."""
    return getattr(importlib.import_module("torchjd.aggregation"), name)(*arguments, **options)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within, what draws from PyTorch's generator draws by `seed`; afterwards the generator is as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: torch.manual_seed would reach for GPUs
        yield
