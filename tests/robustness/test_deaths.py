"""Death and failure at every point of saving a small checkpoint: afterwards it is the old one or the new one, whole.

The sweeps are in `saving.py`; each test shows with `-s` what it went through.
"""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.forks import Forks

needs_strace = pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: apt-get install strace")


def sweep(forks: Forks, function: str, folder: Path, *arguments: Any) -> None:
    ended = forks.call(f"tests.robustness.saving:{function}", str(folder), *arguments, cwd=folder)
    assert ended.code == 0, ended.output
    assert '"swept"' in ended.output
    print(ended.output, end="")


@pytest.mark.parametrize("dying", [True, False], ids=["death", "error"])
@pytest.mark.parametrize("stride", [pytest.param(1, marks=pytest.mark.slow), 23])
def test_every_byte(dying: bool, stride: int, forks: Forks, tmp_path: Path) -> None:
    """No file may grow beyond n bytes, for every n up to the largest file: death in that write, or an error."""
    sweep(forks, "sweep_file_sizes", tmp_path, dying, stride)


@pytest.mark.parametrize("how", ["before", "after"])
def test_death_at_every_call(how: str, forks: Forks, tmp_path: Path) -> None:
    sweep(forks, "sweep_calls", tmp_path, how)


@pytest.mark.parametrize(
    "number",
    [
        errno.EIO,
        *(pytest.param(number, marks=pytest.mark.slow) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)),
    ],
    ids=errno.errorcode.get,
)
def test_failure_of_every_call(number: int, forks: Forks, tmp_path: Path) -> None:
    sweep(forks, "sweep_errors", tmp_path, number)


@needs_strace
@pytest.mark.slow
@pytest.mark.parametrize("fault", ["signal=KILL", "error=EIO", "error=ENOSPC"])
def test_every_system_call(fault: str, forks: Forks, tmp_path: Path) -> None:
    sweep(forks, "sweep_system_calls", tmp_path, fault)
