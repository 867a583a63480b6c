"""A study under way: what is said of its runs, how far they are, and how long the whole takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mtmeta.core.errors import DivergedError
from mtmeta.core.reports.terminal.study_progress import StudyView
from mtmeta.core.studies.processes.pool import Job
from mtmeta.core.studies.processes.progress import BLOCK, RunProgress


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def write(folder: Path, *events: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    with open(folder / "events.jsonl", "a", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)


def step(number: int, steps: int, group: str = "sst+para") -> dict[str, Any]:
    return {"type": "step", "group": group, "step": number, "steps": steps}


def shown(view: StudyView, width: int = 80) -> list[str]:
    console = Console(width=width, force_terminal=True, color_system=None)
    with console.capture() as captured:
        console.print(view.picture())
    return [line.rstrip() for line in captured.get().splitlines() if line.strip()]


def test_a_run_of_several_learners_is_as_far_as_all_of_them(tmp_path: Path) -> None:
    progress = RunProgress(tmp_path / "run")
    progress.look()  # nothing is there yet
    assert progress.share == 0.0
    write(tmp_path / "run", {"type": "run_started", "groups": [["sst"], ["para"]]}, step(5, 10, "sst"))
    progress.look()
    assert progress.share == 0.25
    with open(tmp_path / "run" / "events.jsonl", "a", encoding="utf-8") as file:
        file.write('{"type": "step", "group": "para", "st')  # under way
    progress.look()
    assert progress.share == 0.25
    with open(tmp_path / "run" / "events.jsonl", "a", encoding="utf-8") as file:
        file.write('ep": 4, "steps": 10}\n')
    progress.look()
    assert (progress.share, progress.group, progress.step) == (0.7, "para", 4)
    (tmp_path / "run" / "events.jsonl").write_text("")  # started over
    write(tmp_path / "run", step(1, 10, "sst"))
    progress.look()
    assert progress.share == 0.05


def test_of_a_long_file_the_beginning_and_the_end_are_read(tmp_path: Path) -> None:
    write(tmp_path / "run", {"type": "run_started", "groups": [["sst"], ["para"]]})
    with open(tmp_path / "run" / "events.jsonl", "ab") as file:
        file.write((b" " * 99 + b"\n") * (4 * BLOCK // 100))
    write(tmp_path / "run", step(5, 10, "para"))
    progress = RunProgress(tmp_path / "run")
    for _ in range(3):
        progress.look()
    assert progress.share == 0.75


def test_lines_where_there_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    view = StudyView(clock)
    jobs = {name: Job(f"{name} seed 1", tmp_path / name, []) for name in ("a", "b", "c")}
    with view.open():
        view.planned(4, 1, 2)
        for job in (jobs["a"], jobs["b"]):
            view.started(job)
            view.said(job, "sst step 1/62  sst 1.605  43 ex/s  0:45 left")
            view.said(job, "warning: 3 of 1101 dev examples also in train")
        clock.now = 60.0
        view.ended(jobs["a"], None)
        view.started(jobs["c"])
        clock.now = 90.0
        view.ended(jobs["b"], DivergedError("b seed 1", "loss became nan at step 2; lower the learning rate"))
        view.ended(jobs["c"], None)
    assert capsys.readouterr().err.splitlines() == [
        "a seed 1: warning: 3 of 1101 dev examples also in train",
        "a seed 1: done in 60 s (2 of 4 runs done, 60 s left)",
        "b seed 1: failed after 90 s: loss became nan at step 2; lower the learning rate",
        "c seed 1: done in 30 s (3 of 4 runs done, 1 failed)",
    ]


def test_the_display_by_hand(tmp_path: Path) -> None:
    """Two at a time of six, one done before: the rest is 2 x 100 s less what is done, and three that wait."""
    clock = Clock()
    view = StudyView(clock)
    view.planned(6, 1, 2)
    a, b = (Job(f"{name} seed 1", tmp_path / name, []) for name in ("a", "b"))
    view.started(a)
    write(tmp_path / "b", step(20, 100))  # goes on from a checkpoint
    view.started(b)
    assert shown(view)[-1] == "1 of 6 runs done"  # nothing is known yet
    write(tmp_path / "a", step(50, 100))
    write(tmp_path / "b", step(45, 100))
    clock.now = 50.0
    view.look()
    lines = shown(view)
    assert lines[0].startswith("a seed 1")
    assert lines[0].endswith("50% 50/100, 50 s left")
    assert lines[1].endswith("45% 45/100, 110 s left")  # a quarter took 50 s
    # rests of 50 and 110, and three of 150, the mean of what both take; two at a time
    assert view.left() == pytest.approx((50 + 110 + 3 * 150) / 2)
    assert lines[2] == "1 of 6 runs done, 5 min left"
    assert all(len(line) <= 80 for line in shown(view))
    assert all(len(line) <= 40 for line in shown(view, 40))
