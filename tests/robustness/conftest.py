"""Fixtures of the reliability tests."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.robustness.forks import Forks
from tests.robustness.small import make_backbone, make_data
from tests.support import tiny  # noqa: F401  # one thread


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    """Forks of one warm process."""
    with Forks() as server:
        yield server


@dataclass(frozen=True)
class Material:
    """Folders of data and weights, and what runs on them in forks need to find the data tokenized."""

    data: Path
    weights: Path
    env: dict[str, str]


@pytest.fixture(scope="session")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """Small files of sst, para and sts, and an encoder of a thousand parameters."""
    folder = tmp_path_factory.mktemp("material")
    env = {"MTMETA_CACHE": str(folder / "cache")}
    return Material(make_data(folder / "data"), make_backbone(folder / "weights"), env)
