"""Reporters on a recorded run: plain lines, the live bar, and events.jsonl that gives every event back."""

from __future__ import annotations

import inspect
import io
import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.api import events
from mtmeta.core.api.events import (
    CheckpointSaved,
    DataLoaded,
    Evaluated,
    Event,
    RunFinished,
    RunResumed,
    RunStarted,
    StepDone,
    StepSkipped,
    StoppedEarly,
    Warned,
)
from mtmeta.plugins.reporters import ConsoleReporter, Jsonl


def scored(metric: str, value: float) -> dict[str, Any]:
    return {"metric": metric, "value": value, "low": None, "high": None, "examples": 300, "loss": 0.5}


EVENTS: list[Event] = [
    RunStarted("demo", "reptile", ["sst", "sts"], [["sst", "sts"]], "cpu", 1_234_567, time=1.5),
    DataLoaded("sst", "train", "data/sst-train.csv", 8544, 0, 213_600, 0),
    DataLoaded("sts", "train", "data/sts-train.csv", 6040, 2, 177_576, 3),
    Warned("sts: 18 of 863 dev examples also in train"),
    StepDone("sst+sts", 1, 40, {"sst": [1.7, 1.5]}, 1.0, 0.25, 64, 2.0),
    StepSkipped("sst+sts", 2, "loss became nan at meta-step 2, task 'sts', inner step 1; lower the learning rate"),
    StepDone("sst+sts", 3, 40, {"sst": [1.4], "sts": [3.0, 2.0]}, 0.9, 0.5, 160, 4.0),
    Evaluated("sst+sts", 20, "dev", {"sst": scored("accuracy", 0.4), "sts": scored("pearson", 0.75)}, 0.575, True),
    Evaluated("sst", 40, "dev", {"sst": scored("accuracy", 0.41)}, 0.41, False),
    Evaluated("a+b", 50, "dev", {"a": scored("mae", 0.7), "b": scored("accuracy", 0.6)}, -0.05, True),
    Evaluated("a+b", 60, "dev", {"a": scored("mae", 0.5), "b": scored("rmse", 0.7)}, -0.6, False),
    StoppedEarly("a+b", 60, 90, 5, -0.05),
    CheckpointSaved("sst+sts", 40, "runs/demo/checkpoints/step-00000040"),
    RunFinished({"mean": 0.575, "tasks": {"sst": scored("accuracy", 0.4)}}),
]
LINES = [
    "demo: reptile on sst, sts; 1.2 M parameters, cpu",
    "  sst train: 8,544 examples, 213,600 tokens (data/sst-train.csv)",
    "  sts train: 6,040 examples, 177,576 tokens, 3 texts cut, 2 bad rows skipped (data/sts-train.csv)",
    "warning: sts: 18 of 863 dev examples also in train",
    "step 2 skipped: loss became nan at meta-step 2, task 'sts', inner step 1; lower the learning rate",
    "step 20 (dev): sst accuracy 0.400  sts pearson 0.750  mean 0.575  best so far",
    "step 40 (dev): sst accuracy 0.410",
    # the mean is that of the table, and what selects has the sign turned of values of which less is better
    "step 50 (dev): a mae 0.700  b accuracy 0.600  mean 0.650  selected -0.050  best so far",
    "step 60 (dev): a mae 0.500  b rmse 0.700  mean 0.600  selected -0.600",
    "a+b: stopped at step 60 of 90, none of 5 evaluations better",
]
EVIL = "[red]a[/red] :smile: \x1b[31m\x07\r\n\u202eb{task}"
SHOWN = "[red]a[/red] :smile: \\x1b[31m\\x07\\r\\n\\u202eb{task}"


class Terminal(io.StringIO):
    """A stderr that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def console(events: Sequence[Event], tmp_path: Path, every: float = 1e-9) -> None:
    with ConsoleReporter(every=every).open(tmp_path) as handle:
        for event in events:
            handle(event)


def terminal_of(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """The terminal that stderr now is. No fixture: pytest's capture takes stderr back between setup and call."""
    stream = Terminal()
    monkeypatch.setattr("sys.stderr", stream)
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "200")
    return stream


def without_codes(text: str) -> str:
    """What a terminal would show: cursor movements and colours out."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


# ----------------------------------------------------------------------------------------------------------- console


def view_of(handle: Callable[[Any], None]) -> Any:
    """What a console reporter's handle draws on."""
    return inspect.getclosurevars(handle).nonlocals["view"]


def test_plain_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console(EVENTS, tmp_path)
    out, err = capsys.readouterr()
    # 64 examples in 2 s; then 96 in the 2 s between the steps. 2 s a step leaves 78 s; 4/3 s a step 49 s
    progress = [
        "sst+sts step 1/40  sst 1.600  32 ex/s  1:18 left",
        "sst+sts step 3/40  sst 1.400  sts 2.500  48 ex/s  0:49 left",
    ]
    assert err.splitlines() == [*LINES[:4], progress[0], LINES[4], progress[1], *LINES[5:]]
    assert out == ""


def test_plain_progress_is_not_more_often_than_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [StepDone("sst", i, 40, {"sst": [1.0]}, 1.0, 0.25, i, float(i)) for i in range(1, 20)]
    console(steps, tmp_path, every=1000.0)
    assert capsys.readouterr().err.splitlines() == ["sst step 1/40  sst 1.000  1 ex/s  0:39 left"]


def test_a_resumed_run_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    console([RunResumed("demo", "joint", ["sst", "sts"], "cpu", 5_000_000, "sst+sts", 20)], tmp_path)
    line = "demo: joint on sst, sts; 5.0 M parameters, cpu, going on from step 20 of sst+sts\n"
    assert capsys.readouterr().err == line


def test_the_rate_starts_again_with_another_group(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [
        StepDone("sst", 1, 2, {"sst": [1.0]}, 1.0, 0.25, 10, 1.0),
        StepDone("sst", 2, 2, {"sst": [1.0]}, 1.0, 0.25, 30, 2.0),
        StepDone("sts", 1, 2, {"sts": [1.0]}, 1.0, 0.25, 5, 1.0),
    ]
    console(steps, tmp_path)
    assert [line.split("  ")[2] for line in capsys.readouterr().err.splitlines()] == ["10 ex/s", "20 ex/s", "5 ex/s"]


def test_live_lines_are_the_plain_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    console(EVENTS, tmp_path)
    text = terminal.getvalue()
    assert "\x1b[" in text
    shown = [line.rstrip() for line in re.split(r"[\r\n]+", without_codes(text))]
    assert [line for line in shown if line in LINES] == LINES
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1  # the cursor comes back


def test_live_bar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with ConsoleReporter().open(tmp_path) as handle:
        for event in EVENTS:
            handle(event)
        view = view_of(handle)
        view.bar.refresh()
        (task,) = view.bar.tasks
        assert (task.completed, task.total) == (3, 40)
        assert task.fields == {"group": "sst+sts", "text": "sst 1.400  sts 2.500  48 ex/s"}
    last = [line for line in re.split(r"[\r\n]+", without_codes(terminal.getvalue())) if "ex/s" in line][-1]
    assert re.fullmatch(r"sst\+sts \S+ +3/40 [-:0-9]+ sst 1\.400  sts 2\.500  48 ex/s\s*", last)


def test_the_bar_is_closed_when_a_run_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    with pytest.raises(RuntimeError, match="stop"), ConsoleReporter().open(tmp_path) as handle:
        handle(EVENTS[4])
        raise RuntimeError("stop")
    assert terminal.getvalue().count("\x1b[?25h") == 1


def test_a_dumb_terminal_gets_plain_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = terminal_of(monkeypatch)
    monkeypatch.setenv("TERM", "dumb")
    console(EVENTS[:4], tmp_path)
    assert terminal.getvalue().splitlines() == LINES[:4]


EVIL_EVENTS: list[Event] = [
    RunStarted("demo", "reptile", [EVIL], [[EVIL]], EVIL, 1_000_000),
    DataLoaded(EVIL, "train", EVIL, 1, 0, 1, 0),
    Warned(EVIL),
    StepDone(EVIL, 1, 40, {EVIL: [1.0]}, 1.0, 0.25, 64, 2.0),
    StepSkipped(EVIL, 2, EVIL),
    Evaluated(EVIL, 20, "dev", {EVIL: scored("accuracy", 0.4)}, 0.4, True),
]
EVIL_LINES = [
    f"demo: reptile on {SHOWN}; 1.0 M parameters, {SHOWN}",
    f"  {SHOWN} train: 1 examples, 1 tokens ({SHOWN})",
    f"warning: {SHOWN}",
    f"step 2 skipped: {SHOWN}",
    f"step 20 (dev): {SHOWN} accuracy 0.400  best so far",
]


def test_markup_and_control_characters_are_escaped_in_plain_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console(EVIL_EVENTS, tmp_path)
    lines = capsys.readouterr().err.split("\n")
    progress = f"{SHOWN} step 1/40  {SHOWN} 1.000  32 ex/s  1:18 left"
    assert lines == [*EVIL_LINES[:3], progress, *EVIL_LINES[3:], ""]


def test_markup_and_control_characters_are_escaped_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = terminal_of(monkeypatch)
    with ConsoleReporter().open(tmp_path) as handle:
        for event in EVIL_EVENTS:
            handle(event)
        view_of(handle).bar.refresh()
    text = terminal.getvalue()
    shown = without_codes(text)
    lines = [line.rstrip() for line in re.split(r"[\r\n]+", shown)]
    assert [line for line in lines if line in EVIL_LINES] == EVIL_LINES
    assert "\x1b[31m" not in text and "\x07" not in text and "\u202e" not in text and "\U0001f604" not in text
    bar = [line for line in lines if "ex/s" in line][-1]
    assert bar.count(SHOWN) == 2


# ------------------------------------------------------------------------------------------------------ events.jsonl


def test_jsonl_lines_parse_back_to_the_events(tmp_path: Path) -> None:
    with Jsonl().open(tmp_path) as handle:
        for number, event in enumerate(EVENTS, 1):
            handle(event)
            # each line is on disk at once: a killed run keeps what it reported
            assert len((tmp_path / "events.jsonl").read_text().splitlines()) == number
    kinds = {kind.type: kind for kind in Event.__subclasses__()}
    assert {f"{kind.__name__}" for kind in kinds.values()} | {"Event", "Scalar", "scalars"} == set(events.__all__)
    back = []
    for line in (tmp_path / "events.jsonl").read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        back.append(kinds[record.pop("type")](**record))
    assert back == EVENTS


def test_jsonl_does_not_tell_of_resuming(tmp_path: Path) -> None:
    """So that events.jsonl is the same however often a run was cut."""
    with Jsonl().open(tmp_path) as handle:
        for event in (EVENTS[0], RunResumed("demo", "joint", ["sst"], "cpu", 5_000_000, "sst", 20), EVENTS[4]):
            handle(event)
    assert (tmp_path / "events.jsonl").read_text().splitlines() == [EVENTS[0].json(), EVENTS[4].json()]


def test_jsonl_goes_on_where_an_earlier_run_stopped(tmp_path: Path) -> None:
    for part in (EVENTS[:3], EVENTS[3:]):
        with Jsonl().open(tmp_path) as handle:
            for event in part:
                handle(event)
    assert (tmp_path / "events.jsonl").read_text().splitlines() == [event.json() for event in EVENTS]


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_jsonl_holds_no_nan_literal(tmp_path: Path) -> None:
    found = [
        StepDone("sst", 1, 40, {"sst": [math.nan, 1.0, math.inf]}, 1.0, -math.inf, 64, 2.0),
        Evaluated("sst", 20, "dev", {"sst": {"value": math.nan, "others": {"f1": math.inf}}}, math.nan, False),
        RunFinished({"mean": math.nan, "list": [math.nan, (math.inf, 2)]}),
    ]
    with Jsonl().open(tmp_path) as handle:
        for event in found:
            handle(event)
    text = (tmp_path / "events.jsonl").read_text()
    assert "NaN" not in text and "Infinity" not in text
    step, evaluated, finished = (json.loads(line, parse_constant=refuse) for line in text.splitlines())
    assert (step["losses"], step["norm"]) == ({"sst": [None, 1.0, None]}, None)
    assert evaluated["tasks"] == {"sst": {"value": None, "others": {"f1": None}}}
    assert finished["summary"] == {"mean": None, "list": [None, [None, 2]]}
    assert step == {"type": "step", **asdict(found[0]), "losses": step["losses"], "norm": None}


def test_jsonl_keeps_one_event_on_one_line(tmp_path: Path) -> None:
    with Jsonl().open(tmp_path) as handle:
        handle(Warned(EVIL + "\u2028\x85\u65e5"))
    text = (tmp_path / "events.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 1 and text.isascii()
    assert json.loads(text)["text"] == EVIL + "\u2028\x85\u65e5"
