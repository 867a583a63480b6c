"""Every bad input has tests or a reason to have none."""

from __future__ import annotations

import subprocess
import sys

from tests.robustness.bad_inputs import LEFT_OUT, PARTLY, ROWS
from tests.support.paths import ROOT


def test_every_row_is_in_the_table_once() -> None:
    first = [row for row in (*ROWS, *LEFT_OUT) if row < 100]
    assert sorted(first) == list(range(1, 76))
    assert [row for row in ROWS if row >= 100] == list(range(100, 240))
    assert set(PARTLY) <= set(ROWS)
    assert all(len(entry) > 1 for entry in ROWS.values())
    assert all(LEFT_OUT.values()) and all(PARTLY.values())


def test_every_test_of_the_table_is_there() -> None:
    command = [sys.executable, "-m", "tests.robustness.bad_inputs", "--collect"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout
    assert f"{len(ROWS)} of {len(ROWS) + len(LEFT_OUT)} rows have tests; left out: " in done.stdout
