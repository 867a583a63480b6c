"""A real SLURM, where there is one: MTMETA_SLURM=1 says that it is for tests, and so does a controller that answers.

Jobs that a test leaves are cancelled; jobs of others are left alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import GIVEN

FOREVER = 240.0  # seconds after which a test gives up; a requeue alone takes two minutes


def answers() -> bool:
    """Whether a SLURM answers here that has a node of this machine."""
    if shutil.which("sinfo") is None:
        return False
    done = subprocess.run(["sinfo", "-h", "-o", "%T"], capture_output=True, text=True, timeout=60, check=False)
    return done.returncode == 0 and any(state in done.stdout for state in ("idle", "mix", "alloc"))


def require_slurm() -> None:
    """Skip the test, and say so, without a SLURM; fail where MTMETA_SLURM promises one."""
    if answers():
        return
    if GIVEN.get("MTMETA_SLURM"):
        pytest.fail("MTMETA_SLURM is set, and sinfo shows no node that works")
    pytest.skip("no SLURM answers (sinfo); start one, on this machine alone if need be, to test on it")


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def state_of(job: str) -> str:
    """The state of a job, or an empty text for one that SLURM has forgotten."""
    lines = ask("squeue", "-h", "--states=all", "-o", "%i|%T").splitlines()
    return dict(line.split("|") for line in lines).get(job, "")


def wait_for(condition: Callable[[], object], what: str) -> None:
    end = time.monotonic() + FOREVER
    while not condition():
        assert time.monotonic() < end, f"{what}, not in {FOREVER:g} s"
        time.sleep(0.1)


def environment(folder: Path) -> dict[str, str]:
    """The variables of commands in tests on SLURM."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")}
    return kept | {"OMP_NUM_THREADS": "1", "MTMETA_CACHE": str(folder / "cache")}
