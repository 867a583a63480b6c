"""Work shared out to copies of a process: in order, with what goes wrong raised here, and nobody left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mtmeta
from mtmeta.core.errors import DivergedError, MachineError, UsageError
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies import adapt as module
from mtmeta.core.studies.adapt import adapt
from mtmeta.core.studies.adaptations import Shots
from mtmeta.core.studies.processes.forks import can_fork, in_order
from tests.core.run.test_run import write_recipe
from tests.core.studies.test_adapt import NEW

pytestmark = pytest.mark.skipif(not can_fork(torch.device("cpu")), reason="copies need Linux and no GPU")


@pytest.mark.parametrize("copies", [0, 1, 3, 9])
def test_results_come_in_order_from_so_many_processes(copies: int) -> None:
    def work(number: int) -> tuple[int, int]:
        time.sleep(0.05 * (number % 3 == 0))
        return number, os.getpid()

    done = list(in_order(7, work, copies))
    assert [number for number, _ in done] == list(range(7))
    processes = {process for _, process in done}
    assert processes == {os.getpid()} if not copies else os.getpid() not in processes
    assert len(processes) <= max(1, min(copies, 7))
    gone(processes - {os.getpid()})


def gone(processes: set[int]) -> None:
    """Hold that they are no more, not even as zombies."""
    for process in processes:
        with pytest.raises(ProcessLookupError):
            os.kill(process, 0)


def test_a_copy_computes_with_one_thread_forwards_and_backwards() -> None:
    layer, x = nn.Linear(300, 300), torch.randn(400, 300)

    def work(number: int) -> tuple[int, list[float]]:
        layer.zero_grad()
        (layer(x) * number).square().sum().backward()
        assert layer.weight.grad is not None
        return torch.get_num_threads(), layer.weight.grad[0, :5].tolist()

    before = torch.get_num_threads()
    made = list(in_order(4, work, 2))
    assert torch.get_num_threads() == before
    torch.set_num_threads(1)
    try:
        assert made == [work(number) for number in range(4)]
    finally:
        torch.set_num_threads(before)


def test_what_goes_wrong_in_a_copy_is_raised_here_in_its_turn() -> None:
    here = os.getpid()
    seen: list[int] = []

    def work(number: int) -> int:
        if number == 2:
            raise DivergedError("", f"number {number}, {'here' if os.getpid() == here else 'elsewhere'}")
        return number

    with closing(in_order(9, work, 2)) as results:
        seen += [next(results), next(results)]
        with pytest.raises(DivergedError, match="number 2, here"):
            next(results)
    assert seen == [0, 1]


def test_a_copy_that_is_killed_is_told_in_one_line() -> None:
    def work(number: int) -> int:
        if number == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return number

    with pytest.raises(MachineError) as told:
        list(in_order(4, work, 2))
    assert told.value.lines() == [
        "error: a process of this command: was ended by signal 9, as happens where memory runs out; lower --jobs"
    ]


def test_an_interrupt_ends_the_copies_and_what_they_had_open(tmp_path: Path) -> None:
    here = os.getpid()

    def work(number: int) -> int:
        if not number:
            return os.getpid()
        try:
            (tmp_path / str(os.getpid())).touch()
            time.sleep(60)
        finally:
            (tmp_path / str(os.getpid())).unlink()
        raise AssertionError

    with closing(in_order(3, work, 2)) as results, pytest.raises(KeyboardInterrupt):
        process = next(results)
        while not list(tmp_path.iterdir()):
            time.sleep(0.01)
        started = time.monotonic()
        raise KeyboardInterrupt
    results.close()
    assert process != here and time.monotonic() - started < 50
    assert not list(tmp_path.iterdir())
    gone({process})


# ---------------------------------------------------------------------------------------------------- mtmeta adapt


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forks")
    mtmeta.run(write_recipe(folder, "reptile", training={"steps": 2}), out=folder / "reptile")
    (folder / "new.yaml").write_text(json.dumps(NEW))
    return folder


def figures(runs: Path, say: Callable[[str], None] = lambda text: None, **options: Any) -> dict[str, Any]:
    overrides = options.pop("overrides", ())
    plan = Shots((2, 4), 2, options.pop("head", "reset"))
    found = adapt(
        [runs / "reptile"], RunRequest(runs / "new.yaml", overrides=overrides), plan, tasks=["mood"], say=say, **options
    )
    for row in found["adapted"]:
        row.pop("seconds")
    return found


@pytest.mark.parametrize("head", ["reset", "prototype"])
def test_the_figures_do_not_depend_on_the_number_of_processes(head: str, runs: Path, tmp_path: Path) -> None:
    said: dict[int | None, list[str]] = {}
    made, weights = {}, {}
    for jobs in (None, 1, 3):
        said[jobs] = []
        folder = tmp_path / str(jobs)
        made[jobs] = figures(runs, said[jobs].append, head=head, jobs=jobs, keep=folder)
        (kept,) = made[jobs].pop("kept")
        assert kept == str(folder / "reptile-mood-4")
        weights[jobs] = (Path(kept) / "checkpoints/best/model.safetensors").read_bytes()
        said[jobs] = [line.replace(str(folder), "") for line in said[jobs]]
    assert made[None] == made[1] == made[3]
    assert weights[None] == weights[1] == weights[3]
    assert said[None] == said[1] == said[3]
    assert "kept /reptile-mood-4" in said[None]


def test_an_error_in_another_process_is_that_of_the_command(runs: Path) -> None:
    texts = []
    for jobs in (None, 2):
        with pytest.raises(DivergedError) as told:
            figures(runs, jobs=jobs, overrides=["optimizer={name: sgd, lr: 1e30}", "training.steps=4"])
        texts.append(told.value.lines())
    assert texts[0] == texts[1]


def test_where_there_can_be_no_copies(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "can_fork", lambda device: False)
    with pytest.raises(UsageError, match="--jobs: several adaptations at a time need Linux and no GPU; leave it out"):
        figures(runs, jobs=2)
    assert figures(runs, jobs=1) == figures(runs)


def test_how_many_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    class Some:
        device = torch.device("cpu")

        class backbone:
            encoder = nn.Linear(1000, 1000, bias=False)  # 16 MB with gradient and moments

    def copies(cores: int, count: int, free: int | None = None, jobs: int | None = None) -> int:
        monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
        monkeypatch.setattr(module, "free_memory", lambda: free)
        session: Any = Some()
        return module.copies_for(session, count, jobs)

    assert [copies(*given) for given in [(1, 60), (2, 60), (8, 60), (8, 4), (8, 1), (32, 4)]] == [0, 2, 8, 4, 0, 0]
    each = module.ROOM + 16_000_000
    assert [copies(8, 60, free) for free in (each - 1, 2 * each - 1, 3 * each, 100 * each)] == [0, 0, 3, 8]
    assert [copies(2, 60, 0, jobs) for jobs in (1, 5)] == [1, 5]


def test_ctrl_c_ends_all_processes_with_130(runs: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mtmeta", "adapt", str(runs / "reptile"), str(runs / "new.yaml"), "--jobs", "2"]
    command += ["--shots", "2,4", "--seeds", "1", "--task", "mood", "--set", "training.steps=3"]
    command += ["--keep", str(tmp_path / "kept"), "--set", "schedule=linear"]
    slow = tmp_path / "slow.py"
    # a second size that takes for ever, so that there is something to interrupt once the first is told
    slow.write_text(
        "import sys, time\n"
        "from mtmeta.cli import main\n"
        "from mtmeta.core.studies import adaptations\n"
        "real = adaptations.fine_tune\n"
        "def wait(model, few, *a, **o):\n"
        "    if len(few) > 10: time.sleep(600)\n"
        "    return real(model, few, *a, **o)\n"
        "adaptations.fine_tune = wait\n"
        "main(sys.argv[1:])\n"
    )
    command[1:3] = [str(slow)]
    options: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    # a shell starts what is in the background with Ctrl-C ignored, which the tests may have inherited
    options["preexec_fn"] = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, **options) as process:
        assert process.stderr is not None
        try:
            assert process.stderr.readline().startswith("mood, 2 shots: pretrained 0.")
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
            _, err = process.communicate(timeout=120)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    assert (process.returncode, err) == (130, "error: interrupted; run the same command again to continue\n")
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
    assert not (tmp_path / "kept").exists()
