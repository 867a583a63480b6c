"""Methods beside their formulas: each row computes a method's result and the same by hand, and the largest difference.

    python -m benchmarks.identities [--json]

Each module of this package has a function `rows()`; `tests/plugins/test_identities.py` holds every row to its bound.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Row", "all_rows"]


@dataclass(frozen=True)
class Row:
    """A method, what it must equal, and how far off it was."""

    method: str
    formula: str
    """The identity, in a line, with its paper."""
    difference: float
    """Largest absolute difference seen."""
    bound: float
    """Largest difference allowed; 0 where bits must be equal."""

    @property
    def holds(self) -> bool:
        """Whether the difference is within its bound; a NaN never is."""
        return self.difference <= self.bound


def all_rows() -> Iterator[Row]:
    """Compute the rows of every module, in the order of their names."""
    for module in sorted(pkgutil.iter_modules(__path__), key=lambda found: found.name):
        if not module.name.startswith("_"):
            yield from importlib.import_module(f"{__name__}.{module.name}").rows()
