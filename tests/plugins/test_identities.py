"""Every method beside its formula, as `python -m benchmarks.identities` prints it."""

from __future__ import annotations

import importlib
import pkgutil

import pytest

from benchmarks import identities

MODULES = [module.name for module in pkgutil.iter_modules(identities.__path__) if not module.name.startswith("_")]


@pytest.mark.parametrize("name", MODULES)
def test_the_identities_of(name: str) -> None:
    rows = list(importlib.import_module(f"benchmarks.identities.{name}").rows())
    assert rows
    assert [row for row in rows if not row.holds] == []
