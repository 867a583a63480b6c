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
STEPS = 320


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


def under_way(study: Path, names: Sequence[str]) -> dict[str, str]:
    """Runs that have a checkpoint and no summary, and the job that runs each."""
    found = {}
    for name in names:
        run, record = study / "jobs" / name, Records(study / "jobs").read(name)
        if record and list(run.glob("checkpoints/**/step-*")) and not (run / "summary.json").exists():
            found[name] = record.handle
    return {name: job for name, job in found.items() if state_of(job) == "RUNNING"}


def cut(study: Path, name: str, job: str, command: Sequence[str]) -> bool:
    """Have SLURM end a job; return whether its run was cut by that, and had not come to its end just then."""
    ask(*command, job)
    wait_for(lambda: state_of(job) in ("PENDING", "CANCELLED", "COMPLETED"), f"{command} did nothing")
    journal = Records(study / "jobs").journal(name)
    wait_for(lambda: Attempts.read(journal).code is not None, "the run noted no end")
    return Attempts.read(journal).code == 75


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
    hit: list[str] = []
    for command in (("scontrol", "requeue"), ("scontrol", "requeue"), ("scancel", "--signal=KILL")):
        others = [name for name in names if name not in hit]
        while True:
            wait_for(lambda others=others: under_way(study, others), "no run has a checkpoint")  # type: ignore[misc]
            name, job = next(iter(under_way(study, others).items()), ("", ""))
            if job and cut(study, name, job, command):
                hit.append(name)
                break
    restart_controller()
    assert any(run["status"] == "preempted" for run in json.loads(mtmeta(study, "runs", "jobs", "--json")))
    table = compare(study, "jobs", *on)
    assert plain(table) == plain(compare(study, "alone", "--jobs", "2"))
    assert weights(study / "jobs") == weights(study / "alone")
    assert len(weights(study / "alone")) == 10  # individual has a model for each of its two tasks
    for name in names:
        attempts = Attempts.read(Records(study / "jobs").journal(name))
        starts = 2 if name in hit[:2] else 1  # what was cancelled began anew with the command that found it so
        assert attempts.code == 0 and (attempts.begun == starts or name == hit[2]), name


def restart_controller() -> None:
    """Restart the controller, where it is a process of this machine that we may end."""
    found = subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True, text=True, check=False).stdout.split()
    if len(found) != 1 or os.geteuid() != 0:
        return
    os.kill(int(found[0]), 15)
    wait_for(lambda: not Path(f"/proc/{found[0]}").exists(), "the controller did not end")
    subprocess.run(["slurmctld"], check=True, timeout=60)
    wait_for(lambda: subprocess.run(["squeue"], capture_output=True, check=False).returncode == 0, "no controller")
