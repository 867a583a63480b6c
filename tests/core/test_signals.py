"""Signals: the run stops at the end of a step, says where and how to go on, and goes on as if nothing had been."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.errors import Stopped
from mtmeta.core.run import run as running
from mtmeta.core.run.session import Session
from mtmeta.core.signals import SIGNALS, stop_on_signals
from mtmeta.core.training import evaluation as evaluate
from mtmeta.core.training.trainer import Trainer
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import QUIET, assert_refused, call
from tests.support.quick import outcome, quick

Capture = pytest.CaptureFixture[str]
AGAIN = "; rerun the same command to continue\n"
ALL = [
    (signal.SIGTERM, 75, "stopped by SIGTERM"),
    (signal.SIGUSR1, 75, "stopped by SIGUSR1"),
    (signal.SIGUSR2, 75, "stopped by SIGUSR2"),
    (signal.SIGINT, 130, "interrupted"),
]
HANGUP = (signal.SIGHUP, 75, "stopped by SIGHUP")  # as when a terminal is closed


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(evaluate, "BOOTSTRAP_DRAWS", 5)


@pytest.fixture(autouse=True)
def default_handlers() -> Any:
    """What a shell gives a program; pytest itself may have been started where SIGINT is ignored."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def send_in(
    patch: pytest.MonkeyPatch,
    owner: Any,
    name: str,
    number: int,
    *signals: int,
    then: Callable[[], None] = lambda: None,
) -> None:
    """Send this process `signals` at the beginning of the `number`-th call of a method."""
    original, calls = getattr(owner, name), 0

    def sending(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            for one in signals:
                os.kill(os.getpid(), one)
            then()
        return original(*arguments, **named)

    patch.setattr(owner, name, sending)


def run_here(folder: Path, capsys: Capture) -> Any:
    return call("run", "quick.yaml", "--out", "out", cwd=folder, capsys=capsys)


@pytest.mark.parametrize(
    ("number", "code", "words", "step"), [(*one, min(i, 4)) for i, one in enumerate((*ALL, HANGUP), 1)]
)
def test_the_step_is_ended_and_saved(
    number: int, code: int, words: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Rows 73 and 74. Steps 1 and 3 have no checkpoint by schedule; what is saved for them leaves no trace."""
    algorithm = ("joint", "reptile", "fomaml", "joint")[step - 1]
    recipe = quick(tmp_path, algorithm)
    with monkeypatch.context() as patch:
        send_in(patch, Trainer, "_one_step", step, number)
        stopped = run_here(tmp_path, capsys)
    assert_refused(stopped, code, words)
    assert stopped.err == f"error: {words} at meta-step {step}{AGAIN}"
    newest = sorted(path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*"))[-1]
    assert newest == f"step-{step:08d}"
    calls: list[int] = []
    one_step = Trainer._one_step

    def counted(self: Trainer) -> None:
        calls.append(self.step)
        one_step(self)

    monkeypatch.setattr(Trainer, "_one_step", counted)
    assert run_here(tmp_path, capsys).code == 0
    assert calls == list(range(step, 4)), "a step was done twice"
    mtmeta.run(recipe, out=tmp_path / "whole")
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


PLACES: list[tuple[str, Any, str, int, str]] = [
    ("joint", running.Training, "load", 1, "before training"),
    ("joint", Session, "read_split", 2, "before training"),
    ("joint", running.Training, "open_reporters", 1, "before training"),
    ("joint", Session, "score", 2, "at meta-step 4"),
    ("joint", running.Training, "summarise", 1, "at meta-step 4"),
    ("individual", Trainer, "_one_step", 3, "at meta-step 3 of group 'kind'"),
    ("individual", running.Training, "trainer", 2, "at meta-step 4 of group 'kind'"),
    ("individual", running.Training, "finish", 2, "at meta-step 4 of group 'grade'"),
]


@pytest.mark.parametrize(("algorithm", "owner", "name", "number", "where"), PLACES)
def test_outside_the_loop_it_stops_at_once(
    algorithm: str,
    owner: Any,
    name: str,
    number: int,
    where: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    recipe = quick(tmp_path, algorithm)
    with monkeypatch.context() as patch:
        send_in(patch, owner, name, number, signal.SIGTERM)
        stopped = run_here(tmp_path, capsys)
    assert (stopped.code, stopped.err) == (75, f"error: stopped by SIGTERM {where}{AGAIN}")
    assert run_here(tmp_path, capsys).code == 0
    mtmeta.run(recipe, out=tmp_path / "whole")
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


@pytest.mark.parametrize("first", SIGNALS)
def test_a_second_interrupt_stops_at_once(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    recipe = quick(tmp_path, "reptile")
    with monkeypatch.context() as patch:
        send_in(patch, Trainer, "_one_step", 4, first, signal.SIGINT)
        stopped = run_here(tmp_path, capsys)
    assert_refused(stopped, 130, "interrupted; run the same command again to continue")
    steps = [path.name for path in (tmp_path / "out" / "checkpoints").glob("step-*")]
    assert steps == ["step-00000002"], "the step was not to be ended"
    assert run_here(tmp_path, capsys).code == 0
    mtmeta.run(recipe, out=tmp_path / "whole")
    assert outcome(tmp_path / "out") == outcome(tmp_path / "whole")


def test_a_second_polite_signal_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """`timeout` sends SIGTERM to the process and then to its group, that is, twice."""
    quick(tmp_path, "reptile")
    send_in(monkeypatch, Trainer, "_one_step", 3, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM)
    stopped = run_here(tmp_path, capsys)
    assert (stopped.code, stopped.err) == (75, f"error: stopped by SIGUSR1 at meta-step 3{AGAIN}")


def test_handlers_are_put_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    def handlers() -> list[Any]:
        return [signal.getsignal(number) for number in SIGNALS]

    before, seen = handlers(), []
    quick(tmp_path, "joint")
    send_in(monkeypatch, Trainer, "_one_step", 1, then=lambda: seen.extend(handlers()))
    assert run_here(tmp_path, capsys).code == 0
    assert handlers() == before
    assert len(seen) == 5 and not set(seen) & set(before)


def test_what_is_ignored_stays_ignored() -> None:
    """A command in the background of a script is not to be stopped by the Ctrl-C of its terminal."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with stop_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.signal == ""
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_the_library_installs_nothing_and_runs_in_any_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe, found = quick(tmp_path, "joint"), []
    before = [signal.getsignal(number) for number in SIGNALS]
    seen: list[Any] = []
    with monkeypatch.context() as patch:
        send_in(patch, Trainer, "_one_step", 1, then=lambda: seen.extend(map(signal.getsignal, SIGNALS)))
        thread = threading.Thread(target=lambda: found.append(mtmeta.run(recipe, out=tmp_path / "thread")))
        thread.start()
        thread.join()
    assert seen == before
    mtmeta.run(recipe, out=tmp_path / "main")
    assert found and outcome(tmp_path / "thread") == outcome(tmp_path / "main")

    asked: list[str] = []

    def in_a_thread() -> None:
        with stop_on_signals() as stop:
            asked.append(stop.signal)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert asked == [""]


def test_an_interrupt_in_library_use_stays_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send_in(monkeypatch, Trainer, "_one_step", 3, signal.SIGINT)
    with pytest.raises(KeyboardInterrupt) as interrupted:
        mtmeta.run(quick(tmp_path, "joint"), out=tmp_path / "out")
    assert not isinstance(interrupted.value, Stopped)


@pytest.mark.parametrize(("number", "code", "words"), [ALL[0], ALL[2]])
def test_a_process_of_its_own(number: int, code: int, words: str, tmp_path: Path) -> None:
    """Whenever it comes: one line, the exit code, and the same command goes on."""
    quick(tmp_path, "reptile", training={"steps": 100_000}, evaluation={"every": None}, checkpoint={"every": None})
    arguments = [sys.executable, "-m", "mtmeta", "run", "quick.yaml", "--out", "out"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | QUIET
    process = subprocess.Popen(
        arguments,
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
        text=True,
    )
    events = tmp_path / "out" / "events.jsonl"
    while process.poll() is None and not (events.exists() and events.read_text().count('"step"') > 10):
        threading.Event().wait(0.05)
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out) == (code, ""), err
    (newest,) = (tmp_path / "out" / "checkpoints").glob("step-*")
    assert err == f"error: {words} at meta-step {int(newest.name.removeprefix('step-'))}{AGAIN}"


@pytest.mark.skipif(sys.platform != "linux", reason="what writing to a terminal that is gone comes to is the system's")
def test_a_terminal_that_is_closed(tmp_path: Path) -> None:
    """The run is saved and ends as if asked to, although its console reporter has nowhere to write to."""
    sections = {"training": {"steps": 100_000}, "evaluation": {"every": 100_000}, "checkpoint": {"every": None}}
    recipe = quick(tmp_path, "joint", reporters=["console", "jsonl"], **sections)
    ours, its = os.openpty()
    given = [sys.executable, "-m", "mtmeta", "run", str(recipe), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(given, stdout=its, stderr=its, env=os.environ | QUIET)
    os.close(its)
    events, end = tmp_path / "out" / "events.jsonl", time.monotonic() + 120
    while not events.exists() or '"step"' not in events.read_text():
        assert time.monotonic() < end, "it did not begin"
        time.sleep(0.05)
    os.close(ours)
    process.send_signal(signal.SIGHUP)
    assert process.wait(120) == 75
    assert len(list((tmp_path / "out" / "checkpoints").glob("step-*"))) == 1
