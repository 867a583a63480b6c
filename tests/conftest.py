"""Fixtures that several test files share. Tests on real data and weights are skipped, and say so, without them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.no_pickle import poisoned

if "PYTEST_XDIST_WORKER" in os.environ:  # there is a worker for each core; before PyTorch is loaded
    os.environ.setdefault("OMP_NUM_THREADS", "1")
GIVEN = {key: value for key, value in os.environ.items() if key.startswith("MTMETA_")}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the documentation's pages first: idle workers take tests from the end, and half a page would be run twice."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


@pytest.fixture(scope="session", autouse=True)
def no_settings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Tests start without settings from outside: MTMETA_DATA would override the data_root of every recipe.

    Nor do they write to the user's cache.
    """
    with pytest.MonkeyPatch.context() as patch:
        for key in GIVEN:
            patch.delenv(key)
        patch.setenv("MTMETA_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def no_pickle() -> Iterator[None]:
    """Nothing in the whole suite unpickles, nor may it; see no_pickle.py."""
    with poisoned() as touched:
        yield
    assert touched == [], "unpickled, and the error was caught"


def _folder(variable: str, what: str) -> Path:
    value = GIVEN.get(variable)
    if not value:
        pytest.skip(f"{variable} is unset; set it to {what}")
    folder = Path(value)
    assert folder.is_dir(), f"{variable}={value} is no folder"
    return folder


@pytest.fixture(scope="session")
def minilm() -> Path:
    """The folder of all-MiniLM-L6-v2: config.json, vocab.txt, tokenizer.json, model.safetensors."""
    return _folder("MTMETA_MINILM", "the folder of all-MiniLM-L6-v2 to test on real weights")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of the real data: sst-train.csv, para-dev.csv and so on."""
    return _folder("MTMETA_DATA", "the folder of sst-train.csv and the other real files to test on them")


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Small matrices are slower on many threads, the more so where other work waits for the cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
