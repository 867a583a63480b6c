"""`mtmeta runs`: finished, stopped, running and damaged runs, newest first."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.cli import main
from mtmeta.core.api.events import Evaluated, StepDone
from mtmeta.core.errors import UsageError
from mtmeta.core.reports.terminal.run_list import age, list_runs
from mtmeta.core.storage.lock import lock_folder
from tests.core.run.test_run import write_recipe
from tests.support import tiny  # noqa: F401  # one thread


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("listing")
    mtmeta.run(write_recipe(folder, "reptile"), out=folder / "reptile")
    return folder / "reptile"


def copy(run: Path, to: Path, changed: float) -> Path:
    shutil.copytree(run, to, symlinks=True)
    for file in ("recipe.yaml", "recipe.lock.yaml", "events.jsonl", "summary.json"):
        os.utime(to / file, (changed, changed))
    return to


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """Three runs, one below the others, and folders that are no runs."""
    copy(finished, tmp_path / "old", 1000.0)
    copy(finished, tmp_path / "deep" / "er" / "new", 3000.0)
    stopped = copy(finished, tmp_path / "stopped", 2000.0)
    (stopped / "summary.json").unlink()
    lines = (stopped / "events.jsonl").read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["type"] for line in lines]
    third = [at for at, kind in enumerate(kinds) if kind == "step"][2]
    (stopped / "events.jsonl").write_bytes(b"".join(lines[: third + 1]) + b'{"type": "ste')
    os.utime(stopped / "events.jsonl", (2000.0, 2000.0))
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "recipe.yaml").write_text("name: x\n")
    shutil.copytree(finished, tmp_path / ".hidden", symlinks=True)
    return tmp_path


def test_newest_first_with_what_they_came_to(folder: Path, finished: Path) -> None:
    listed_runs = list_runs(folder)
    assert [Path(run["run"]).name for run in listed_runs] == ["new", "stopped", "old"]
    assert [run["changed"] for run in listed_runs] == [3000.0, 2000.0, 1000.0]
    summary = json.loads((finished / "summary.json").read_text())
    for run in (listed_runs[0], listed_runs[2]):
        assert (run["status"], run["step"], run["steps"], run["split"]) == ("finished", 6, 6, "dev")
        assert run["metrics"] == {name: score["value"] for name, score in summary["tasks"].items()}
        assert run["mean"] == summary["mean"]


def test_where_a_stopped_run_is(folder: Path, finished: Path) -> None:
    (run,) = [run for run in list_runs(folder) if run["status"] == "stopped"]
    assert (run["step"], run["steps"], run["mean"], run["holder"]) == (3, 6, None, None)
    events = [json.loads(line) for line in (finished / "events.jsonl").read_text().splitlines()]
    first = next(event for event in events if event["type"] == "evaluated")  # after step 2
    assert run["metrics"] == {name: score["value"] for name, score in first["tasks"].items()}


def test_the_metrics_of_a_stopped_run_are_its_best(folder: Path) -> None:
    def line(group: str, best: bool, **metrics: float) -> bytes:
        tasks = {name: {"value": value} for name, value in metrics.items()}
        return Evaluated(group, 8, "dev", tasks, selected=0.5, best=best).json().encode() + b"\n"

    def listed(*lines: bytes) -> Any:
        (folder / "stopped" / "events.jsonl").write_bytes(b"".join(lines))
        return next(run["metrics"] for run in list_runs(folder) if run["status"] == "stopped")

    step = StepDone("a", 9, 10, {}, lr=0.1, norm=1.0, examples=4, seconds=1.0).json().encode() + b"\n"
    assert listed(line("a", True, a=0.5), step, line("a", True, a=0.7), step, line("a", False, a=0.6)) == {"a": 0.7}
    assert listed(line("a", True, a=0.5), line("a", False, a=0.4), line("b", True, b=0.3)) == {"a": 0.5, "b": 0.3}
    assert listed(line("a", False, a=0.4)) == {"a": 0.4}  # the best lies before the part that was read
    assert listed(step) == {}


def test_a_run_that_a_process_is_at(folder: Path) -> None:
    with lock_folder(folder / "stopped", print):
        (run,) = [run for run in list_runs(folder) if Path(run["run"]).name == "stopped"]
    assert run["status"] == "running"
    assert run["holder"].startswith(f"pid {os.getpid()} on host ")


def test_damaged_files_keep_no_other_run_from_being_listed(folder: Path) -> None:
    (folder / "old" / "summary.json").write_bytes(b"\xff{")
    (folder / "stopped" / "events.jsonl").write_bytes(b'{"type": "step", "step": "x"}\n[]\nnull\n\xff\n')
    by_name = {Path(run["run"]).name: run for run in list_runs(folder)}
    assert by_name["old"]["status"].startswith("damaged: cannot be read")
    assert (by_name["stopped"]["status"], by_name["stopped"]["step"]) == ("stopped", None)
    assert by_name["new"]["status"] == "finished"


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder; give one that holds run directories"):
        list_runs(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(-5, "0 s"), (0, "0 s"), (59.9, "59 s"), (60, "1 minute"), (7199, "1 hour"), (7200, "2 hours"), (2e5, "2 days")],
)
def test_ages(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = shown(capsys, "runs", str(folder))
    rows = [line for line in text.splitlines() if str(folder) in line]
    assert ["finished" in row for row in rows] == [True, False, True]
    assert "stopped, step 3 of 6" in rows[1]
    listed_runs: Any = json.loads(shown(capsys, "runs", str(folder), "--json"))
    assert listed_runs == list_runs(folder)
    (tmp_path / "empty").mkdir()
    assert shown(capsys, "runs", str(tmp_path / "empty")) == f"no runs in {tmp_path}/empty\n"
