"""A search whose runs are jobs of a launcher: that of one process, whatever becomes of the jobs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.errors import MachineError, RecipeError, Stopped
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run.request import RunRequest
from mtmeta.core.signals import StopRequest
from mtmeta.core.studies.launching import watch
from mtmeta.core.studies.launching.overview import cancel_jobs
from mtmeta.core.studies.tuning import sampling, search
from mtmeta.core.studies.tuning.tune import tune_recipe
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.launchers import Desk, scripted
from tests.support.quick import quick

pytest.importorskip("optuna")
SPACE = """\
optimizer.lr: {low: 1e-2, high: 2.0, log: true}
schedule.name: {choices: [constant, cosine]}
"""


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(watch, "POLL", 0.02)
    monkeypatch.setattr(search, "POLL", 0.02)
    monkeypatch.setattr(search, "CLAIM", 0.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with scripted(monkeypatch) as desk:
        yield desk


def study(folder: Path, out: str, **options: Any) -> dict[str, Any]:
    (folder / "space.yaml").write_text(SPACE)
    given = {"trials": 3, "seeds": 1, "device": "cpu", **options}
    of_request = {key: given.pop(key) for key in ("device", "stop", "overrides") if key in given}
    return tune_recipe(
        RunRequest(folder / "quick.yaml", out=folder / out, **of_request), folder / "space.yaml", **given
    )


def trials_of(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [{key: one[key] for key in ("state", "value", "seeds", "settings", "course")} for one in found["trials"]]


@pytest.mark.slow
def test_it_is_the_search_of_one_process_whatever_becomes_of_the_jobs(desk: Desk, tmp_path: Path) -> None:
    """One job is killed after a checkpoint, and one vanishes before it starts."""
    quick(tmp_path, "reptile", training={"steps": 30}, evaluation={"every": 30})
    desk.plan = ["kill", "vanish"]
    said: list[str] = []
    jobs = study(tmp_path, "jobs", on="scripted", say=said.append)
    assert trials_of(jobs) == trials_of(study(tmp_path, "processes"))
    assert len(desk.submitted) == 5
    assert json.loads((tmp_path / "jobs" / "study.json").read_text())["threads"] == 1
    assert {f"trial-000{number} seed 5: scripted job {number + 1} submitted" for number in range(2)} <= set(said)


@pytest.mark.slow
def test_a_trial_that_is_given_up_leaves_no_job(desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quick(tmp_path, "reptile", training={"steps": 30}, evaluation={"every": 2})
    real = sampling.Judge.gives_up
    monkeypatch.setattr(sampling.Judge, "gives_up", lambda self, step, value: real(self, step, value) or True)
    found = study(tmp_path, "study", on="scripted", trials=1, in_flight=1)
    assert found["counts"]["pruned"] == 1
    # it may have been over by itself when its first value was seen; it was cancelled in any case, and ran no more
    assert all(process.poll() is not None for process in desk.processes.values())
    assert desk.cancelled == ["1"]


@pytest.mark.slow
def test_jobs_outlive_a_search_and_are_picked_up_or_cancelled(desk: Desk, tmp_path: Path) -> None:
    quick(tmp_path, "reptile")
    desk.plan = ["hold", "hold"]
    stop = StopRequest()

    def leave(text: str) -> None:
        if "job 2 submitted" in text:
            stop.signal = "SIGTERM"

    with pytest.raises(Stopped, match="0 of 2 trials"):
        study(tmp_path, "study", on="scripted", trials=2, stop=stop, say=leave)
    assert (len(desk.submitted), desk.held, desk.cancelled) == (2, ["1", "2"], [])
    said: list[str] = []

    def cancel(text: str) -> None:
        said.append(text)
        if "job 2" in text:
            said.extend(f"cancelled {job.handle}" for job in cancel_jobs([tmp_path / "study"], build_registry()))

    with pytest.raises(MachineError, match="was cancelled; run the same command again"):
        study(tmp_path, "study", on="scripted", trials=2, say=cancel)
    assert {f"trial-000{number - 1} seed 5: scripted job {number} has it already" for number in (1, 2)} <= set(said)
    assert {"cancelled 1", "cancelled 2"} <= set(said)
    assert (len(desk.submitted), desk.held) == (2, [])
    assert study(tmp_path, "study", on="scripted", trials=2)["counts"]["complete"] == 2
    assert len(desk.submitted) == 4


def test_options_of_a_launcher_need_one(tmp_path: Path) -> None:
    quick(tmp_path, "reptile")
    with pytest.raises(RecipeError, match="is an option of a launcher; name it with --on"):
        study(tmp_path, "study", overrides=["launcher.gpus=1"])
