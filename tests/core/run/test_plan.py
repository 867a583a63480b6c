"""`mtmeta run --dry-run`: the plan says what the run then does, writes nothing, and changes nothing."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import mtmeta
from mtmeta.core.errors import DataError, PluginError
from mtmeta.core.machine import waiting_seconds
from mtmeta.core.reports.terminal.plan import duration
from mtmeta.core.run import plan as planning
from mtmeta.core.run.estimate import Measured, Seconds, foretold, picked, predicted, together
from mtmeta.core.run.request import RunRequest
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import call, contents
from tests.support.quick import ALGORITHMS, outcome, quick


def plan(recipe: Path, *, probe_steps: int = 20, **options: Any) -> dict[str, Any]:
    return planning.plan(RunRequest(recipe, **options), probe_steps)


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    lines = (run / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["type"] == kind]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_run_does_what_the_plan_says(algorithm: str, tmp_path: Path) -> None:
    recipe, out = quick(tmp_path, algorithm, evaluation={"every": 3}), tmp_path / "run"
    if algorithm == "reptile":
        mtmeta.run(recipe, out=tmp_path / "plain")
    before = contents(tmp_path)
    found = plan(recipe, out=out, probe_steps=3)
    assert contents(tmp_path) == before  # no run directory, nor anything else
    summary = mtmeta.run(recipe, out=out)
    if algorithm == "reptile":
        assert outcome(out) == outcome(tmp_path / "plain"), "a dry run before it changes a run"
    assert found["state"] == "new"
    assert sum(group["steps"] for group in found["groups"]) == summary["steps"]
    assert sum(group["examples"] for group in found["groups"]) == summary["examples"]
    assert {name: task["examples"] for name, task in found["tasks"].items()} == {
        name: used["examples"] for name, used in summary["sampling"].items()
    }
    assert sum(group["evaluations"] for group in found["groups"]) == len(events(out, "evaluated"))
    assert sum(group["checkpoints"] for group in found["groups"]) == len(events(out, "checkpoint"))
    (started,) = events(out, "run_started")
    assert started["parameters"] <= found["encoder_parameters"] + found["own_parameters"]
    if len(found["groups"]) == 1:
        assert started["parameters"] == found["encoder_parameters"] + found["own_parameters"]
    for group in found["groups"]:
        folder = out / "checkpoints" / (group["tasks"][0] if len(found["groups"]) > 1 else "")
        last = folder / f"step-{group['steps']:08d}"
        sizes = {
            name: sum(tensor.nbytes for tensor in load_file(last / f"{name}.safetensors").values())
            for name in ("model", "optimizer")
        }
        drawn = events(out, "step")
        if all(task in {name for step in drawn for name in step["losses"]} for task in group["tasks"]):
            assert group["checkpoint_bytes"] == sizes["model"] + sizes["optimizer"]
        assert group["best_bytes"] == sizes["model"]
    assert found["seconds"]["total"]["seconds"] > 0


def test_a_budget_and_epochs_are_counted(tmp_path: Path) -> None:
    recipe = quick(tmp_path, training={"epochs": 2}, evaluation={"every": "epoch"})
    found = plan(recipe, probe_steps=0)
    (group,) = found["groups"]
    assert (group["steps"], group["examples"], group["evaluate_every"], group["evaluations"]) == (6, 48, 3, 2)
    assert (found["seconds"], group["checkpoint_bytes"], found["disk_bytes"]) == (None, None, None)
    assert {task["epochs"] for task in found["tasks"].values()} == {2.0}
    recipe = quick(tmp_path, budget={"examples": 30})
    assert plan(recipe, probe_steps=0)["groups"][0]["steps"] == 3


def test_bad_rows_and_a_share_of_the_data(tmp_path: Path) -> None:
    recipe = quick(tmp_path, data={"on_bad_rows": "skip", "train_fraction": 0.5})
    with open(tmp_path / "train.tsv", "a") as file:
        file.write("odd\n")
    warnings: list[str] = []
    found = plan(recipe, probe_steps=0, warn=warnings.append)
    train = {"name": "train.tsv", "file": str(tmp_path / "train.tsv"), "rows": 6, "bad_rows": 1}
    assert found["tasks"]["kind"]["train"] == train
    assert any("skipped 1 bad rows" in text for text in warnings)


def test_what_is_left_of_a_run_that_was_cut(tmp_path: Path) -> None:
    recipe, out = quick(tmp_path), tmp_path / "run"
    mtmeta.run(recipe, out=out)
    found = plan(recipe, out=out, probe_steps=2)
    assert (found["state"], found["seconds"]) == ("finished", None)
    (out / "summary.json").unlink()
    last = out / "checkpoints" / "step-00000004" / "MANIFEST.json"
    last.unlink()
    before = contents(tmp_path)
    found = plan(recipe, out=out, probe_steps=2)
    assert (found["state"], found["groups"][0]["done"]) == ("goes on", 2)
    assert found["seconds"]["evaluations"] == 2  # after steps 3 and 4
    assert contents(tmp_path) == before
    with open(tmp_path / "train.tsv", "a") as file:
        file.write("99\tnew words\tyes\t3\n")
    with pytest.raises(DataError, match="changed since this run started"):
        plan(recipe, out=out, probe_steps=0)
    assert plan(recipe, out=out, probe_steps=0, allow_changed_data=True)["groups"][0]["done"] == 2


def test_an_algorithm_that_cannot_be_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> Iterator[dict[str, int]]:
        raise PluginError("", "cannot be counted")

    monkeypatch.setattr(planning, "rehearse", refuse)
    (group,) = plan(quick(tmp_path), probe_steps=2)["groups"]
    assert (group["counted"], group["examples"]) == (False, 4 * 8)  # as many as the probed steps read
    (group,) = plan(quick(tmp_path), probe_steps=0)["groups"]
    assert (group["counted"], group["examples"]) == (False, None)


def test_only_the_beginning_of_a_long_run_is_gone_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "MOST_REHEARSED", 5)
    (group,) = plan(quick(tmp_path, training={"steps": 1_000_000}), probe_steps=0)["groups"]
    assert (group["counted"], group["examples"]) == (False, 8_000_000)


def test_a_probe_that_diverges_is_told(tmp_path: Path) -> None:
    recipe = quick(tmp_path, optimizer={"name": "sgd", "lr": 1e30}, schedule="constant")
    found = plan(recipe, probe_steps=3)
    assert len(found["notes"]) == 1 and found["notes"][0].startswith("the probe diverged: ")
    assert found["seconds"] is None


# ------------------------------------------------------------------------------------------------------- arithmetic


def timed(steps: int, noise: Callable[[int], float] = lambda step: 0.0) -> Measured:
    """Steps of one task each, in turn: a tenth of a second and 10 ms an example of `a`, 20 ms of `b`."""
    found = Measured()
    for step in range(steps):
        read = {"a": 8, "b": 0} if step % 2 else {"a": 0, "b": 4}
        found.reads.append(read)
        found.seconds.append((0.1 + 0.01 * read["a"] + 0.02 * read["b"]) * (1 + noise(step)))
    return found


def test_the_time_of_a_run_is_that_of_its_steps_and_examples() -> None:
    whole = predicted(timed(8), ["a", "b"], {"a": 800, "b": 40}, 110)
    assert whole.seconds == pytest.approx(110 * 0.1 + 800 * 0.01 + 40 * 0.02)
    assert whole.off == pytest.approx(0, abs=1e-6)
    noisy = predicted(timed(40, lambda step: 0.1 * (-1) ** (step // 2)), ["a", "b"], {"a": 80, "b": 40}, 20)
    true = 20 * 0.1 + 80 * 0.01 + 40 * 0.02
    # a tenth either way, known from 40 steps less 2 unknowns, spread over 20; t is 1.304
    assert noisy.off is not None
    assert noisy.off / noisy.seconds == pytest.approx(1.304 * 0.1 * math.sqrt(40 / 38) * math.sqrt(3 / 40), rel=0.1)
    assert abs(noisy.seconds - true) < noisy.off
    assert predicted(timed(2), ["a", "b"], {"a": 8, "b": 4}, 2).off is None  # nothing is left to judge by


def test_estimates_add_up() -> None:
    assert together([Seconds(3, 3), Seconds(4, 4)]) == Seconds(7, 5)
    assert together([Seconds(1, 0), Seconds(1, None)]) == Seconds(2, None)
    assert together([]) == Seconds(0, 0)
    assert Seconds(2, 1).times(3) == Seconds(6, 3)
    assert Seconds(1, 2).json() == {"seconds": 1, "low": 0, "high": 3}


def test_a_run_is_foretold_with_what_others_may_do_to_the_machine() -> None:
    """A probe had the processor half of its time: alone the run takes half, beside others twice as much."""
    assert foretold(Seconds(100, 10), 0.0) == {"seconds": 100, "low": 76.5, "high": 137.5}
    assert foretold(Seconds(100, 10), 0.5) == {"seconds": 100, "low": 38.25, "high": 275.0}
    assert foretold(Seconds(100, 10), 0.0, 500_000_000)["high"] == 150.0  # ten seconds on a slow disk
    assert foretold(Seconds(100, None), 0.0) == {"seconds": 100, "low": 42.5, "high": 187.5}  # too little was measured


def test_the_time_that_a_thread_waits_is_counted() -> None:
    before = waiting_seconds()
    assert 0.0 <= before <= waiting_seconds() < 3600


def test_the_steps_that_are_probed_lie_over_the_run_and_meet_every_task() -> None:
    reads = np.array([[8, 0]] * 50 + [[0, 8]] + [[8, 0]] * 49)
    chosen = picked(reads, 0, 5)
    assert chosen[:2] == [0, 50]
    assert len(chosen) == len(set(chosen)) == 5
    assert picked(reads, 98, 5) == [98, 99]
    assert picked(reads, 100, 5) == [99]
    assert picked(reads[:3], 0, 20) == [0, 1, 2]
    assert picked(reads, 0, 1) == [0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0.0 s"), (8.24, "8.2 s"), (95.4, "95 s"), (600, "10 min"), (7199, "2 h 0 min"), (12000, "3 h 20 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


# ------------------------------------------------------------------------------------------------------ command line


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick(tmp_path, "individual")
    before = contents(tmp_path)
    done = call("run", "quick.yaml", "--dry-run", "--probe", "2", cwd=tmp_path, capsys=capsys)
    probing = "probing: 2 steps at most, in memory, for 15 s or less; --probe 0 for none\n"
    assert (done.code, done.err) == (0, probing)
    for words in (
        "plan of quick",
        "runs/quick (new)",
        "steps grade",
        "4, 16 example-forwards, 4 evaluations (every 1 steps)",
        "2 scheduled of ",
        "| kind (classification)",
        "in all",
        "steps timed",
        "foretold by a probe of ",
    ):
        assert words in done.out
    quiet = call("run", "quick.yaml", "--dry-run", "--probe", "0", "--json", cwd=tmp_path, capsys=capsys)
    assert json.loads(quiet.out)["seconds"] is None
    none = call("run", "quick.yaml", "--dry-run", "--probe", "0", cwd=tmp_path, capsys=capsys)
    assert "no estimate of the time" in none.out
    assert contents(tmp_path) == before
    lone = call("run", "quick.yaml", "--probe", "2", cwd=tmp_path, capsys=capsys)
    assert (lone.code, lone.err) == (2, "error: --probe: is for --dry-run; give both\n")


@pytest.mark.parametrize(
    "change", [["--set", "tasks.kind.train=gone.tsv"], ["--device", "gpu"], ["--out", "train.tsv"]]
)
def test_it_refuses_what_the_run_refuses(change: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quick(tmp_path)
    real = call("run", "quick.yaml", *change, cwd=tmp_path, capsys=capsys)
    dry = call("run", "quick.yaml", "--dry-run", *change, cwd=tmp_path, capsys=capsys)
    assert real.code != 0
    assert (dry.code, dry.err, dry.out) == (real.code, real.err, "")
