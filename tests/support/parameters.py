"""Parameters of tests, of which only some belong to the quick suite."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some_quick(cases: Iterable[Any], quick: int) -> list[Any]:
    """Return the cases, all but `quick` of them marked slow; those left are spread evenly over the list."""
    every = list(cases)
    kept = {round(number * (len(every) - 1) / max(1, quick - 1)) for number in range(min(quick, len(every)))}
    return [case if number in kept else slow(case) for number, case in enumerate(every)]


def slow(case: Any) -> Any:
    """Return a case, of one parameter or of several in a tuple, for the long suite alone."""
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
