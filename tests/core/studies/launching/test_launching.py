"""Runs as jobs of a launcher: submitted once, found again by any shell, started anew when lost and not when wrong."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.errors import DivergedError, Incomplete, MachineError, MtmetaError, RecipeError, Stopped, UsageError
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.reports.terminal.run_list import list_runs, show_runs
from mtmeta.core.run.request import RunRequest
from mtmeta.core.signals import StopRequest
from mtmeta.core.studies.compare import compare_recipes
from mtmeta.core.studies.launching import watch as watching
from mtmeta.core.studies.launching.attempts import JOB, Attempts, facts_for
from mtmeta.core.studies.launching.overview import cancel_jobs
from mtmeta.core.studies.launching.placement import Placement, place
from mtmeta.core.studies.launching.records import Records
from mtmeta.core.studies.processes.pool import Job
from mtmeta.core.studies.protocol import Protocol
from mtmeta.core.studies.teach import teach
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, call
from tests.support.launchers import Desk, scripted, wait_for
from tests.support.quick import outcome, quick

Capture = pytest.CaptureFixture[str]
ON = {"on": "scripted"}


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "POLL", 0.02)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    with scripted(monkeypatch) as desk:
        yield desk


def jobs_in(study: Path, *names: str) -> list[Job]:
    return [Job(f"run {name}", study / name, ["recipe.yaml"]) for name in names or ("a", "b")]


def placement(*overrides: str, **options: Any) -> Placement:
    return place(RunRequest(overrides=overrides), "scripted", **options)[0]


def write_attempts(study: Path, name: str, *codes: int | None, errors: list[dict[str, Any]] | None = None) -> None:
    """Write the journal of a job that ended like this, start after start; None for one that was lost."""
    lines = []
    for number, code in enumerate(codes):
        lines.append({"attempt": str(number), "pid": 1, "host": "n1"})
        if code is not None:
            lines.append({"attempt": str(number), "code": code, "errors": errors or []})
    Records(study).journal(name).write_text("".join(json.dumps(line) + "\n" for line in lines))


# ------------------------------------------------------------------------------------------------------- whole studies


@pytest.mark.slow
def test_a_comparison_whose_jobs_are_killed_is_that_of_a_pool(desk: Desk, tmp_path: Path) -> None:
    """One is killed after a checkpoint, one vanishes before it starts, and the launcher once gives no answer."""
    recipe = quick(tmp_path, "reptile", training={"steps": 30}, evaluation={"every": 30})
    said: list[str] = []
    desk.plan = ["kill", "vanish"]
    table = mtmeta.compare([recipe], seeds=2, out=tmp_path / "jobs", on="scripted", say=said.append)
    for seed in (5, 6):
        mtmeta.run(recipe, overrides=[f"seed={seed}"], out=tmp_path / str(seed))
        (run,) = (tmp_path / "jobs").glob(f"quick-{seed}-*")
        assert outcome(run) == outcome(tmp_path / str(seed))
    assert mtmeta.compare([recipe], seeds=2, out=tmp_path / "jobs") == table  # of the pool, which finds nothing to do
    assert len(desk.submitted) == 4
    records = Records(tmp_path / "jobs")
    killed, vanished = (job.name for job in desk.submitted[:2])
    assert (Attempts.read(records.journal(killed)).begun, Attempts.read(records.journal(killed)).lost) == (2, 1)
    assert (Attempts.read(records.journal(vanished)).begun, Attempts.read(records.journal(vanished)).lost) == (1, 0)
    assert said[1:3] == ["quick seed 5: scripted job 1 submitted", "quick seed 6: scripted job 2 submitted"]
    assert {f"quick seed {seed}: scripted job {seed - 4} was lost" for seed in (5, 6)} <= set(said)
    assert {"quick seed 5: running on n1", "quick seed 6: done"} <= set(said)
    again = mtmeta.compare([recipe], seeds=2, out=tmp_path / "jobs", on="scripted")
    assert again == table and len(desk.submitted) == 4  # finished runs are used as they are


@pytest.mark.slow
def test_fold_models_of_teachers_are_jobs_too(desk: Desk, tmp_path: Path) -> None:
    recipe = quick(tmp_path, "joint", name="taught")
    request = RunRequest(recipe, out=tmp_path / "folds", device="cpu")
    submitted = teach(request, folds=2, placement=placement(detach=True))
    assert [Path(one["run"]).name for one in submitted["submitted"]] == ["fold-1", "fold-2"]
    assert (submitted["finished"], submitted["runs"]) == (0, 2)
    document = teach(request, folds=2, placement=placement())
    assert len(desk.submitted) == 2  # it picked up those that were submitted
    assert [table["task"] for table in document["tables"]] == ["kind", "grade"]
    assert teach(request, folds=2) == document  # of the pool, which finds nothing to do


@pytest.mark.slow
def test_a_run_that_fails_by_itself_is_not_started_again(desk: Desk, tmp_path: Path) -> None:
    good = quick(tmp_path, "joint", name="good")
    (tmp_path / "good.yaml").write_text(good.read_text())
    wild = quick(tmp_path, "joint", name="wild", optimizer={"name": "sgd", "lr": 1e30})
    with pytest.raises(Incomplete) as caught:
        mtmeta.compare([tmp_path / "good.yaml", wild], seeds=1, out=tmp_path / "runs", on="scripted")
    (error,) = caught.value.problems
    assert isinstance(error, DivergedError) and error.place == "wild seed 5"
    assert [row["name"] for row in caught.value.comparison["rows"]] == ["good"]
    assert len(desk.submitted) == 2
    statuses = {Path(run["run"]).name.partition("-")[0]: run["status"] for run in list_runs(tmp_path / "runs")}
    assert statuses == {"good": "finished", "wild": "failed"}


# -------------------------------------------------------------------------------------------------- submitted, watched


def test_jobs_under_way_are_not_submitted_again(desk: Desk, tmp_path: Path) -> None:
    said: list[str] = []
    desk.plan = ["hold", "hold"]
    first = placement().submit(jobs_in(tmp_path), tmp_path)
    again = placement().submit(jobs_in(tmp_path, "a", "b", "c"), tmp_path, said.append)
    assert [one["job"] for one in (*first, *again)] == ["1", "2", "1", "2", "3"]
    assert said == [
        "run a: scripted job 1 has it already",
        "run b: scripted job 2 has it already",
        "run c: scripted job 3 submitted",
    ]


def test_what_a_job_is(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.plan = ["hold"]
    monkeypatch.setenv("MTMETA_DATA", "/data")
    monkeypatch.chdir(tmp_path)
    placement("launcher.lost=7").submit([Job("run a b", Path("study/a b"), ["r.yaml", "--set=x=1"], 3)], Path("study"))
    (job,) = desk.submitted
    out = str(tmp_path / "study" / "a b")
    assert job.command == (sys.executable, "-P", "-m", "mtmeta", "run", "r.yaml", "--set=x=1", "--out", out, "--wait")
    assert (job.name, job.cwd, job.logs) == ("a-b", tmp_path, tmp_path / "study" / ".jobs" / "a b.logs")
    assert job.logs.is_dir()
    given = {key: value for key, value in job.environment.items() if key != "MTMETA_CACHE"}
    facts = given.pop(JOB)
    assert given == {"OMP_NUM_THREADS": "3", "MTMETA_DATA": "/data"}
    assert json.loads(facts)["lost"] == 7
    assert json.loads(facts)["journal"] == str(tmp_path / "study" / ".jobs" / "a b.attempts")


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        ((6,), r"^run a: ended with exit code 6$"),
        ((None, None, None, None), r"^run a: was lost 4 times, killed or with its machine, and may be 3 times; "),
        ((0,), r"^run a: ended well, but .*/a holds no summary; see .*/.jobs/a.logs$"),
    ],
)
def test_a_job_that_is_given_up(codes: tuple[int | None], message: str, desk: Desk, tmp_path: Path) -> None:
    desk.plan = ["vanish"] * 9
    placement().submit(jobs_in(tmp_path, "a"), tmp_path)
    watched = watching._Watched(jobs_in(tmp_path, "a")[0], "1")
    write_attempts(tmp_path, "a", *codes)
    launcher = placement().launcher
    assert launcher is not None
    watcher = watching._Watcher(watching.Submitter(launcher, {}, tmp_path, lambda text: None))
    with pytest.raises(MtmetaError, match=message):
        for _ in range(watching.LATE):
            watcher._asked = -1e9
            watcher.ask([watched])
            assert not watcher.is_over(watched)
    assert len(desk.submitted) == 1


@pytest.mark.parametrize("codes", [(None,), (None, None, None), (75,), (75,) * 20, (None, 75, None, 75, 130)])
def test_a_job_that_goes_on(codes: tuple[int | None], desk: Desk, tmp_path: Path) -> None:
    """Lost three times at most; stopped by signals any number of times."""
    desk.plan = ["vanish", "hold"]
    placement().submit(jobs_in(tmp_path, "a"), tmp_path)
    write_attempts(tmp_path, "a", *codes)
    stop = StopRequest()
    said: list[str] = []

    def say(text: str) -> None:
        said.append(text)
        if len(desk.submitted) == 2:
            stop.signal = "SIGTERM"

    launcher = placement().launcher
    assert launcher is not None
    submitter = watching.Submitter(launcher, {}, tmp_path, say)
    submitter.submit = lambda jobs: {job.folder: "1" for job in jobs}  # type: ignore[method-assign]
    with pytest.raises(Stopped, match="with 0 of 1 runs done; the jobs go on; rerun the same command to continue"):
        watching.watch(submitter, jobs_in(tmp_path, "a"), ended=lambda job: None, failed=None, stop=stop)
    how = "lost" if codes[-1] is None else "stopped"
    assert said == [f"run a: scripted job 1 was {how}", "run a: scripted job 2 submitted"]
    assert Attempts.read(Records(tmp_path).journal("a")).begun == len(codes)  # they still count


def test_jobs_that_never_start_are_given_up(desk: Desk, tmp_path: Path) -> None:
    """As in a folder that the nodes do not have, where SLURM fails without a word."""
    desk.plan = ["vanish"] * 9
    with pytest.raises(MachineError, match=r"^run a: scripted job 4 ended without a trace of mtmeta; see .*"):
        placement().run(jobs_in(tmp_path, "a"), tmp_path)
    assert len(desk.submitted) == 4


def test_a_launcher_that_gives_no_answer_is_asked_again(desk: Desk, tmp_path: Path) -> None:
    said: list[str] = []
    desk.plan = ["hold"]
    stop = StopRequest()

    def say(text: str) -> None:
        said.append(text)
        stop.signal = "SIGINT" if "queued" in text or "running" in text else ""

    def answer() -> None:
        wait_for(lambda: bool(said))
        desk.silent = 3
        wait_for(lambda: desk.silent == 0)
        desk.held.clear()
        desk.processes["1"] = subprocess.Popen(["sleep", "100"])

    thread = threading.Thread(target=answer)
    thread.start()
    with pytest.raises(Stopped):
        placement().run(jobs_in(tmp_path, "a"), tmp_path, say=say, stop=stop)
    thread.join()
    assert said == [
        "run a: scripted job 1 submitted",
        "launcher scripted: gives no answer; asked again until it answers",
        "run a: running on n1",
    ]


# ----------------------------------------------------------------------------------------------------- other shells


def test_other_shells_see_and_cancel_jobs(desk: Desk, tmp_path: Path, capsys: Capture) -> None:
    desk.plan = ["hold"] * 3
    placement().submit(jobs_in(tmp_path / "study", "a", "b", "c"), tmp_path / "study")
    write_attempts(tmp_path / "study", "b", 75)
    runs = {Path(run["run"]).name: run for run in list_runs(tmp_path)}
    assert [(name, run["status"], run["job"]["job"]) for name, run in sorted(runs.items())] == [
        ("a", "queued", "1"),
        ("b", "preempted", "2"),
        ("c", "queued", "3"),
    ]
    show_runs(list_runs(tmp_path), tmp_path)
    assert "queued (Priority), scripted job 1" in " ".join(capsys.readouterr().out.split())
    assert call("cancel", "study/b", cwd=tmp_path, capsys=capsys).out == (
        "run b: scripted job 2 cancelled, which was preempted\n"
    )
    assert desk.cancelled == ["2"]
    assert {Path(run["run"]).name: run["status"] for run in list_runs(tmp_path)}["b"] == "cancelled"
    waiting = placement()
    error: list[MtmetaError] = []
    thread = threading.Thread(
        target=lambda: waiting.run(
            jobs_in(tmp_path / "study", "a"), tmp_path / "study", failed=lambda job, why: error.append(why)
        )
    )
    thread.start()
    cancelled = json.loads(call("cancel", "study", "--json", cwd=tmp_path, capsys=capsys).out)
    assert [one["handle"] for one in cancelled] == ["1", "3"]
    thread.join()
    assert [str(one) for one in error] == ["run a: was cancelled; run the same command again to go on with it"]
    assert call("cancel", "study", cwd=tmp_path, capsys=capsys).out == "no job to cancel\n"
    assert [one["job"] for one in placement().submit(jobs_in(tmp_path / "study", "a"), tmp_path / "study")] == ["4"]


def test_a_launcher_that_is_gone(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk.plan, desk.silent = ["hold"], 0
    placement().submit(jobs_in(tmp_path, "a"), tmp_path)
    desk.silent = 1
    (run,) = list_runs(tmp_path)
    assert (run["status"], run["job"]["why"]) == ("unknown", "launcher scripted: gives no answer")
    desk.silent, desk.cancelled = 0, []
    monkeypatch.undo()
    (run,) = list_runs(tmp_path)
    assert run["status"] == "unknown" and "unknown launcher 'scripted'" in run["job"]["why"]


def test_a_damaged_record(desk: Desk, tmp_path: Path) -> None:
    desk.plan = ["hold"]
    placement().submit(jobs_in(tmp_path, "a"), tmp_path)
    Records(tmp_path).path("a").write_text('{"label": 3}')
    with pytest.raises(MtmetaError, match=r"a\.json: damaged \(label: input should be a valid string\); remove it"):
        cancel_jobs([tmp_path], build_registry())


# ---------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "launcher.gpus=1"), ("error: --set launcher.gpus: is an option of a launcher; ", "--on slurm")),
        (("--on", "slrum"), ("error: --on: unknown launcher 'slrum'; did you mean 'slurm'?",)),
        (("--on", "slurm", "--set", "launcher.partitoin=x"), ("launcher.partitoin", "did you mean 'partition'?")),
        (("--on", "slurm", "--set", "launcher.gpus=many"), ("--set launcher.gpus: expected an integer", "many")),
        (("--on", "scripted", "--jobs", "2"), ("error: --jobs: is for runs of this machine", "scripted")),
        (("--detach",), ("error: --detach: runs on local end with this command; --on slurm",)),
        (
            ("--on", "scripted", "--detach", "--until", "interval", "--seeds", "4"),
            ("--detach: cannot be with --until",),
        ),
    ],
)
def test_refused(
    arguments: tuple[str, ...], words: tuple[str, ...], desk: Desk, tmp_path: Path, capsys: Capture
) -> None:
    quick(tmp_path)
    done = call("compare", "quick.yaml", *arguments, "--out", "runs", cwd=tmp_path, capsys=capsys)
    assert_refused(done, 2, *words)
    assert not (tmp_path / "runs").exists() and not desk.submitted


def test_adaptations_are_no_jobs(tmp_path: Path, capsys: Capture) -> None:
    done = call("adapt", "run", "new.yaml", "--on", "slurm", cwd=tmp_path, capsys=capsys)
    assert_refused(done, 2, "error: --on: mtmeta adapt adapts for seconds at a time", "sbatch")


def test_local_is_what_there_is_without(tmp_path: Path) -> None:
    request = RunRequest(overrides=["training.steps=1"])
    assert place(request, "local", jobs=3) == place(request, None, jobs=3) == (Placement(at_once=3), request)
    with pytest.raises(RecipeError, match="unknown key 'gpus' in 'launcher'"):
        place(RunRequest(overrides=["launcher.gpus=1"]), "local")


def test_overrides_of_the_launcher_are_not_the_recipes(desk: Desk) -> None:
    placed, request = place(RunRequest(overrides=["launcher.color=red", "seed=3"]), "scripted")
    assert (placed.options, request.overrides) == ({"color": "red"}, ["seed=3"])
    assert getattr(placed.launcher, "color", None) == "red"


def test_one_that_is_detached_makes_no_table(desk: Desk, tmp_path: Path) -> None:
    desk.plan = ["hold"] * 2
    request = RunRequest(out=tmp_path / "runs")
    done = compare_recipes([quick(tmp_path)], request, Protocol(), placement(detach=True), seeds=2)
    assert (done["finished"], done["runs"], len(done["submitted"])) == (0, 2, 2)
    with pytest.raises(UsageError, match="is for fold models"):
        teach(RunRequest(quick(tmp_path, teachers={"kind": {"runs": ["x"]}})), placement=placement(detach=True))


# --------------------------------------------------------------------------------------------- the process of a job


def attempt(recipe: Path, out: Path, journal: Path, lost: int = 3, **options: Any) -> subprocess.Popen[str]:
    environment = os.environ | {JOB: facts_for(journal, lost, out)}
    command = [sys.executable, "-m", "mtmeta", "run", str(recipe), "--out", str(out), "--wait"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_attempts_are_noted_and_limited(tmp_path: Path) -> None:
    """A start that is killed has no end; one that is told to stop has; one too many is refused, and is no loss."""
    recipe, journal = quick(tmp_path, training={"steps": 5000}, checkpoint={"every": 1}), tmp_path / "a.attempts"
    out = tmp_path / "out"
    for number, losing in ((signal.SIGKILL, 1), (signal.SIGUSR2, 1), (signal.SIGKILL, 2)):
        process = attempt(recipe, out, journal, 1)
        before = newest(out)
        wait_for(lambda before=before: newest(out) > before)  # type: ignore[misc]
        process.send_signal(number)
        _, errors = process.communicate()
        seen = Attempts.read(journal)
        assert (seen.lost, seen.code) == (losing, None if number == signal.SIGKILL else 75)
        assert not seen.failed
        if number == signal.SIGUSR2:
            assert process.returncode == 75 and "error: stopped by SIGUSR2 at meta-step" in errors
    process = attempt(recipe, out, journal, 1)
    _, errors = process.communicate()
    message = "was lost 2 times, killed or with its machine, and may be 1 times; raise launcher.lost"
    assert (process.returncode, errors) == (6, f"error: {out}: {message}\n")
    seen = Attempts.read(journal)
    assert (seen.begun, seen.lost, seen.code, seen.failed) == (4, 2, 6, True)
    assert [str(error) for error in seen.errors] == [f"{out}: {message}"]


def newest(out: Path) -> int:
    return max([int(path.name[5:]) for path in out.glob("checkpoints/step-????????")], default=0)


@pytest.mark.slow
def test_two_copies_of_a_job_run_in_turn(tmp_path: Path) -> None:
    """As they did after a requeue: the second one waits for the first, and goes on to the bits of one alone."""
    recipe, journal = quick(tmp_path, training={"steps": 60}, checkpoint={"every": 1}), tmp_path / "a.attempts"
    mtmeta.run(recipe, out=tmp_path / "whole")
    first = attempt(recipe, tmp_path / "out", journal)
    wait_for(lambda: newest(tmp_path / "out") > 0)
    first.send_signal(signal.SIGSTOP)
    second = attempt(recipe, tmp_path / "out", journal)
    assert second.stderr is not None
    line = second.stderr.readline()
    assert line.startswith(f"warning: {tmp_path / 'out'} is in use by pid {first.pid} on host ")
    assert line.endswith("; waiting\n") and second.poll() is None
    first.send_signal(signal.SIGCONT)
    first.send_signal(signal.SIGTERM)
    first.communicate()
    assert first.returncode == 75
    second.communicate()
    assert second.returncode == 0
    seen = Attempts.read(journal)
    assert (seen.begun, seen.lost, seen.code) == (2, 0, 0)
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_a_torn_journal(tmp_path: Path) -> None:
    path = tmp_path / "a"
    assert Attempts.read(path) == Attempts()
    path.write_text('{"attempt": "1"}\n{"attempt": "1", "code": 75, "errors": []}\n{"attempt": "2"}\n{"attem')
    assert Attempts.read(path) == Attempts(begun=2, lost=1)
    path.write_text('{"attempt": "1"}\n[]\n{"attempt": "1", "code": "x"}\nnull\n')
    assert Attempts.read(path) == Attempts(begun=1, lost=1)
