"""A search whose processes are killed, and share the work: the trials, values and best of one that nobody disturbed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import QUIET, command
from tests.support.quick import quick

pytest.importorskip("optuna")

SPACE = """\
algorithm.name: {choices: [reptile, fomaml, joint]}
optimizer.lr: {low: 1e-2, high: 2.0, log: true}
tasks.kind.inner_steps: {low: 1, high: 2}
algorithm.inner_optimizer:
  choices: [{name: adamw, lr: 1e-3}, {name: sgd, lr: 0.1}]
  when: {algorithm.name: [reptile, fomaml]}
"""
TRIALS, KILLS = 20, 5


def search(folder: Path, out: str, *more: str) -> tuple[str, ...]:
    given = ("tune", "quick.yaml", "--space", "space.yaml", "--trials", str(TRIALS), "--seeds", "1", "--json")
    return (*given, "--out", out, *more)


def trials(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: trial[key] for key in ("state", "value", "seeds", "settings", "course")} for trial in found["trials"]]


def started(folder: Path, number: int) -> subprocess.Popen[bytes]:
    with (folder / f"log-{number}").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mtmeta", *search(folder, "killed")],
            cwd=folder,
            env={**os.environ, **QUIET},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def ended(folder: Path) -> int:
    """How many trials have ended, by the lines of the journal."""
    path = folder / "killed" / "journal.log"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return sum(b'"op_code":6' in line for line in lines)


@pytest.mark.slow
def test_two_processes_killed_five_times_search_as_one_does(tmp_path: Path) -> None:
    quick(tmp_path, "reptile")
    (tmp_path / "space.yaml").write_text(SPACE)
    draw = random.Random(7)
    processes = [started(tmp_path, number) for number in range(2)]
    kills = 0
    deadline = time.monotonic() + 1800
    while any(process.poll() is None for process in processes):
        assert time.monotonic() < deadline
        time.sleep(draw.uniform(0.5, 4))
        if kills < KILLS and ended(tmp_path) >= 2 * kills + 1:  # at any place, spread over the search
            victim = draw.randrange(2)
            if processes[victim].poll() is None:
                os.kill(processes[victim].pid, signal.SIGKILL)
                processes[victim].wait()
                kills += 1
                processes[victim] = started(tmp_path, victim)
    assert kills == KILLS
    assert [process.returncode for process in processes] == [0, 0]
    killed = json.loads(command(*search(tmp_path, "killed"), cwd=tmp_path).out)
    whole = json.loads(command(*search(tmp_path, "whole"), cwd=tmp_path).out)
    assert len(killed["trials"]) == TRIALS
    assert [trial["number"] for trial in killed["trials"]] == list(range(TRIALS))
    assert killed["counts"]["running"] == killed["counts"]["failed"] == 0
    assert trials(killed) == trials(whole)
    assert killed["best"] == whole["best"]
    for folder in sorted((tmp_path / "killed").glob("trial-*")):  # each was trained once, from its first step on
        events = [json.loads(line) for line in (folder / "seed-5" / "events.jsonl").read_text().splitlines()]
        steps = [event["step"] for event in events if event["type"] == "step"]
        assert steps == list(range(1, len(steps) + 1))
        assert sum(event["type"] == "run_started" for event in events) == 1
