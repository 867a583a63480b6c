"""Jobs on a real SLURM; what it is asked for, and what a job does on a signal, also without one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.errors import MachineError, UsageError
from mtmeta.plugins.launchers import slurm
from mtmeta.plugins.launchers.slurm import LaunchedRun, Slurm
from mtmeta.testing import check_launcher
from tests.support.slurm import ask, require_slurm, state_of, wait_for

SLEEPER = """
import signal, sys, time
def save(number, frame):
    print("saved", flush=True)
    time.sleep(float(sys.argv[1]))
    sys.exit(75)
signal.signal(signal.SIGUSR2, save)
print("up", flush=True)
time.sleep(600)
"""


@pytest.fixture
def jobs() -> Iterator[list[str]]:
    """Handles of jobs to cancel at the end; needs a SLURM."""
    require_slurm()
    handles: list[str] = []
    yield handles
    for handle in handles:
        subprocess.run(["scancel", handle], check=False, timeout=60)


def job(folder: Path, *command: str, name: str = "job") -> mtmeta.Job:
    (folder / name).mkdir(exist_ok=True)
    return mtmeta.Job(name, command, {}, folder, folder / name)


def printed(folder: Path, handle: str, name: str = "job") -> str:
    path = folder / name / handle / f"{handle}_0_log.out"
    return path.read_text() if path.exists() else ""


# ------------------------------------------------------------------------------------------------------ on a SLURM


@pytest.mark.slow
def test_contract(tmp_path: Path) -> None:
    require_slurm()
    check_launcher(Slurm(time=10, warning=60), tmp_path, patience=240)


def test_usr2_has_the_run_save_and_the_job_requeued(tmp_path: Path, jobs: list[str]) -> None:
    """As at the time limit, or a preemption that says so; the job keeps its number, and SLURM starts it again."""
    handle = Slurm(time=10, warning=60).submit(job(tmp_path, sys.executable, "-c", SLEEPER, "0"))
    jobs.append(handle)
    wait_for(lambda: "up" in printed(tmp_path, handle), "the job did not start")
    ask("scancel", "--signal=USR2", handle)
    wait_for(lambda: state_of(handle) == "PENDING", "the job was not requeued")
    assert "saved" in printed(tmp_path, handle)
    assert re.search(r"Requeued job \d+ \(99 remaining timeouts\)", printed(tmp_path, handle))
    assert not Slurm().poll([handle])[handle].running


@pytest.mark.slow
def test_a_run_that_is_killed_has_its_job_requeued(tmp_path: Path, jobs: list[str]) -> None:
    """As by whoever ends processes where memory runs out; so has one that was told to stop, one that fails has not."""
    for name, end in (("killed", "kill -9 $$"), ("stopped", "exit 75")):
        handle = Slurm(time=10, warning=60).submit(job(tmp_path, "/bin/sh", "-c", f"echo up; {end}", name=name))
        jobs.append(handle)
        requeued = lambda: state_of(handle) == "PENDING" and "up" in printed(tmp_path, handle, name)  # noqa: B023, E731
        wait_for(requeued, f"a job whose run was {name} was not requeued")
    failing = Slurm(time=10, warning=60).submit(job(tmp_path, "/bin/sh", "-c", "echo up; exit 3", name="failing"))
    jobs.append(failing)
    wait_for(lambda: state_of(failing) == "FAILED", "a job whose run fails did not fail")
    assert Slurm().poll([failing, "999999"]) == {}


@pytest.mark.slow
def test_what_sbatch_refuses_is_one_line(tmp_path: Path) -> None:
    require_slurm()
    with pytest.raises(MachineError, match=r"^launcher slurm: sbatch refused: .*Invalid partition name specified$"):
        Slurm(partition="nowhere").submit(job(tmp_path, "/bin/true"))


# --------------------------------------------------------------------------------------------------- without one


class Program:
    """A stand-in for one of SLURM's commands."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder / "bin"
        self.folder.mkdir()
        patch.setenv("PATH", f"{self.folder}{os.pathsep}{os.environ['PATH']}")

    def __call__(self, name: str, script: str) -> None:
        path = self.folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    return Program(tmp_path, monkeypatch)


def test_what_sbatch_is_given(tmp_path: Path, program: Program) -> None:
    program("sbatch", f'cp "$1" {tmp_path}/script; echo Submitted batch job 17')
    program("srun", "exit 1")
    launcher = Slurm(
        partition="a,b", time=90, gpus=2, cpus=3, memory=1.5, account="me", qos="low", constraint="x&y",
        exclude="n1", warning=100, setup=("module load cuda",), more={"mail-type": "FAIL"},
    )  # fmt: skip
    assert launcher.submit(job(tmp_path, "/bin/true")) == "17"
    script = (tmp_path / "script").read_text()
    options = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", script, re.MULTILINE))
    assert options.pop("output") == f"{tmp_path}/job/%j/%j_0_log.out"
    assert options == {
        "partition": "a,b", "time": "90", "gpus-per-node": "2", "cpus-per-task": "3", "mem": "1536MB", "nodes": "1",
        "account": "me", "qos": "low", "constraint": "'x&y'", "exclude": "n1", "signal": "USR2@100", "requeue": "",
        "open-mode": "append", "job-name": "job", "mail-type": "FAIL",
    }  # fmt: skip
    lines = script.splitlines()
    assert lines.index("module load cuda") < next(i for i, line in enumerate(lines) if line.startswith("srun "))
    assert re.search(rf"^srun .* --cpus-per-task=3 {re.escape(sys.executable)} -P -u -m submitit", script, re.MULTILINE)
    assert "num_gpus" not in script and "wckey" not in script


def test_a_study_that_is_a_job_itself(tmp_path: Path, program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its jobs know nothing of it, but where SLURM's configuration is, and what its user has set for all jobs."""
    program("sbatch", f"env > {tmp_path}/seen; echo Submitted batch job 17")
    program("srun", "exit 1")
    ours = {"SLURM_JOB_ID": "3", "SLURM_CPUS_PER_TASK": "9", "SRUN_DEBUG": "3"}
    kept = {"SLURM_CONF": "/etc/slurm/here.conf", "SBATCH_ACCOUNT": "me"}
    for name, value in (ours | kept).items():
        monkeypatch.setenv(name, value)
    Slurm().submit(job(tmp_path, "/bin/true"))
    seen = dict(line.split("=", 1) for line in (tmp_path / "seen").read_text().splitlines() if "=" in line)
    assert {name: seen.get(name) for name in ours | kept} == dict.fromkeys(ours) | kept
    assert os.environ["SLURM_CPUS_PER_TASK"] == "9"


def test_squeue_is_read_as_it_answers(program: Program) -> None:
    lines = [
        "7|PENDING||Priority",
        "8|RUNNING|n1|None",
        "9|COMPLETING|n2|None",
        "10|FAILED|n1|None",
        "11|REQUEUED||x|y",
    ]
    program(
        "squeue",
        'test "$4" = "" && test "$3" = --jobs=7,8,9,10,11,12 || exit 9\n'
        + "\n".join(f"echo '{line}'" for line in lines),
    )
    State = mtmeta.JobState
    assert Slurm().poll(["7", "8", "9", "10", "11", "12"]) == {
        "7": State(False, "", "Priority"),
        "8": State(True, "n1", ""),
        "9": State(True, "n2", ""),
        "11": State(False, "", "x|y"),
    }
    program("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    assert Slurm().poll(["7"]) == {}
    program("squeue", "echo 'slurm_load_jobs error: Unable to contact slurm controller' >&2; exit 1")
    with pytest.raises(MachineError, match=r"^launcher slurm: squeue: Unable to contact slurm controller$"):
        Slurm().poll(["7"])


def test_what_it_needs(monkeypatch: pytest.MonkeyPatch, program: Program) -> None:
    for name in ("sbatch", "srun", "squeue"):
        program(name, "")
    program("scancel", "")
    Slurm().require()
    with pytest.raises(UsageError, match=r"^--set launcher.time: 3 minutes leave too little before the warning"):
        Slurm(time=3).require()
    with monkeypatch.context() as patch:
        patch.setenv("PATH", "")
        with pytest.raises(MachineError, match="there is no sbatch here; give the command on a machine that submits"):
            Slurm().require()
    monkeypatch.setattr(slurm, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match=r"needs submitit; pip install 'mtmeta\[slurm\]'"):
        Slurm().require()


def launched(*command: str, cwd: Path, patience: float = 30.0) -> LaunchedRun:
    return LaunchedRun(command, {"MTMETA_CHECK": "yes"}, str(cwd), patience)


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", 137), ("kill -15 $$", 143)])
def test_a_job_ends_as_its_run(script: str, code: int, tmp_path: Path) -> None:
    run = launched("/bin/sh", "-c", f'test "$MTMETA_CHECK$PWD" = "yes{tmp_path}" || exit 9; {script}', cwd=tmp_path)
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == code


def during(run: LaunchedRun, work: Any) -> int:
    """Run a job in this thread, and meanwhile do something in another; returns the exit code."""
    errors: list[BaseException] = []

    def other() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    with pytest.raises(SystemExit) as end:
        run()
    thread.join()
    assert not errors, errors
    return int(str(end.value.code))


def test_a_checkpoint_waits_for_the_run_to_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a signal handler, in the middle of the wait for the run, as submitit calls it; that must not lock up."""
    monkeypatch.setattr(slurm, "LAST_SIGNALS", 0.0)
    run, seen = launched(sys.executable, "-c", SLEEPER, "0.5", cwd=tmp_path), []

    def handle(number: int, frame: object) -> None:
        started = time.monotonic()
        again = run.checkpoint()
        seen.append((again.function, time.monotonic() - started))

    def tell() -> None:
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGUSR2)

    before = signal.signal(signal.SIGUSR2, handle)
    try:
        code = during(run, tell)
    finally:
        signal.signal(signal.SIGUSR2, before)
    ((again, seconds),) = seen
    assert code == 75 and seconds > 0.4
    assert again == launched(sys.executable, "-c", SLEEPER, "0.5", cwd=tmp_path)  # and with no process of the past


def test_a_run_that_saves_too_long_is_left_to_slurm(tmp_path: Path) -> None:
    run = launched(sys.executable, "-c", SLEEPER, "600", cwd=tmp_path, patience=0.3)

    def cut() -> None:
        time.sleep(2)
        started = time.monotonic()
        run.checkpoint()
        assert time.monotonic() - started < 10
        os.kill(run.pid, signal.SIGKILL)  # as SLURM does at the limit

    assert during(run, cut) == 137


def test_a_job_that_is_checkpointed_before_its_run_began(tmp_path: Path) -> None:
    run = launched("/bin/true", cwd=tmp_path)
    assert run.checkpoint().function == run
