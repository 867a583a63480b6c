"""Every code block of README.md and docs/ is run or checked, and the site builds with warnings as errors."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from docs_blocks import PAGES, ROOT, RUN, Block, Reader, blocks_of, check, commands, matches

import mtmeta

CASES = [(page, index) for page in PAGES for index, block in enumerate(blocks_of(page))]


@pytest.fixture(scope="module")
def readers() -> dict[Path, Reader]:
    return {}


@pytest.mark.parametrize(
    ("page", "index"), CASES, ids=[f"{page.relative_to(ROOT)}:{blocks_of(page)[index].line}" for page, index in CASES]
)
def test_block(page: Path, index: int, readers: dict[Path, Reader], tmp_path_factory: pytest.TempPathFactory) -> None:
    """It runs after those before it and prints what the page says; or it is checked, and says why it is not run."""
    if page not in readers:
        folder = tmp_path_factory.mktemp("page") / page.stem
        folder.mkdir()
        readers[page] = Reader(page, folder)
    readers[page].go_to(index)
