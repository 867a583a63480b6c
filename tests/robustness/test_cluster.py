"""A study on a real SLURM whose jobs are requeued and killed while nobody waits comes to the table of this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.studies.launching.attempts import Attempts
from mtmeta.core.studies.launching.records import Records
from tests.support.quick import ALGORITHMS, quick
from tests.support.slurm import ask, environment, require_slurm, state_of, wait_for

TIMES = ("seconds", "peak_memory_bytes", "runs")
STEPS = 240


@pytest.fixture
def study(tmp_path: Path) -> Iterator[Path]:
    """A folder with four recipes; jobs that are left in its study are cancelled."""
    require_slurm()
    for name in ALGORITHMS:
        every = {"training": {"steps": STEPS}, "evaluation": {"every": STEPS // 4}, "checkpoint": {"every": 10}}
        quick(tmp_path, name, name=name, **every).rename(tmp_path / f"{name}.yaml")
    yield tmp_path
    if (tmp_path / "jobs" / ".jobs").is_dir():
        mtmeta(tmp_path, "cancel", "jobs")


def mtmeta(folder: Path, *arguments: str) -> str:
    """What a command prints, from a shell of its own, which is closed then."""
    done = subprocess.run(
        [sys.executable, "-m", "mtmeta", *arguments],
        cwd=folder,
        env=environment(folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        start_new_session=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def compare(folder: Path, out: str, *options: str) -> Any:
    recipes = [f"{name}.yaml" for name in ALGORITHMS]
    return json.loads(mtmeta(folder, "compare", *recipes, "--seeds", "2", "--out", out, "--json", *options))


def jobs_of(study: Path) -> dict[str, str]:
    """The newest job of each run that is not finished, by the name of its directory."""
    runs = json.loads(mtmeta(study, "runs", "jobs", "--json"))
    return {Path(run["run"]).name: run["job"]["job"] for run in runs if run["job"] is not None}


def under_way(study: Path, among: Sequence[str]) -> list[str]:
    """The runs that have a checkpoint and no summary, and whose job runs."""
    jobs = jobs_of(study)
    folders = [study / "jobs" / name for name in jobs if name in among]
    begun = [
        one.name for one in folders if list(one.glob("checkpoints/**/step-*")) and not (one / "summary.json").exists()
    ]
    return [name for name in begun if state_of(jobs[name]) == "RUNNING"]


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items() if key not in TIMES}
    return [plain(item) for item in value] if isinstance(value, list) else value


def weights(out: Path) -> dict[str, str]:
    files = sorted(out.glob("*/checkpoints/**/best/model.safetensors"))
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.mark.slow
def test_a_study_whose_jobs_are_requeued_and_killed(study: Path) -> None:
    on = ["--on", "slurm", "--set", "launcher.every=2", "--set", "launcher.time=60"]
    submitted = compare(study, "jobs", *on, "--detach")
    names = [Path(one["run"]).name for one in submitted["submitted"]]
    assert len(names) == 8 and submitted["finished"] == 0
    records, hit = Records(study / "jobs"), dict[str, str]()
    for fate in ("requeue", "requeue", "kill"):
        others = [name for name in names if name not in hit]
        wait_for(lambda others=others: under_way(study, others), "no run has a checkpoint")  # type: ignore[misc]
        name = under_way(study, others)[0]
        hit[name] = fate
        job = jobs_of(study)[name]
        ask(*(("scontrol", "requeue", job) if fate == "requeue" else ("scancel", "--signal=KILL", job)))
        wait_for(lambda job=job: state_of(job) in ("PENDING", "CANCELLED"), f"{fate} did nothing")  # type: ignore[misc]

    restart_controller()
    assert any(run["status"] == "preempted" for run in json.loads(mtmeta(study, "runs", "jobs", "--json")))
    table = compare(study, "jobs", *on)
    assert plain(table) == plain(compare(study, "alone"))
    assert weights(study / "jobs") == weights(study / "alone")
    assert len(weights(study / "alone")) == 10  # individual has a model for each of its two tasks
    for name in names:
        attempts = Attempts.read(records.journal(name))
        assert attempts.begun == (2 if name in hit else 1) and attempts.code == 0, name


def restart_controller() -> None:
    """Restart the controller, where it is a process of this machine that we may end."""
    found = subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True, text=True, check=False).stdout.split()
    if len(found) != 1 or os.geteuid() != 0:
        return
    os.kill(int(found[0]), 15)
    wait_for(lambda: not Path(f"/proc/{found[0]}").exists(), "the controller did not end")
    subprocess.run(["slurmctld"], check=True, timeout=60)
    wait_for(lambda: subprocess.run(["squeue"], capture_output=True, check=False).returncode == 0, "no controller")
