"""Run directories with pipes, devices, links and holes in place of files, and with values that no run writes."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.api.events import Evaluated, StepDone
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, call, contents, data_folder, quietly
from tests.support.fuzzing import no_hang
from tests.support.parameters import some_quick
from tests.support.spoilt_runs import HUGE, REPLACEMENTS

RUN = ("run", "r.yaml", "--out", "out", "--set", "reporters=[jsonl]", "--set", "checkpoint.every=1")
EVAL = ("eval", "out")
PREDICT = ("predict", "out", "--input", "texts.txt")
REPORT = ("report", "out")
ADAPT = ("adapt", "out", "r.yaml", "--set", "training.steps=1")
EXPORT = ("export", "out", "--format", "transformers", "--out", "exported")
BEST, STEP = "checkpoints/best-00000001", "checkpoints/step-00000001"


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data and a finished run at `out`."""
    from mtmeta.cli import main

    folder, here = data_folder(tmp_path_factory.mktemp("good")), Path.cwd()
    (folder / "texts.txt").write_text("one\tother\n")
    os.chdir(folder)
    with quietly():
        with pytest.raises(SystemExit) as ended:
            main(RUN)
        assert ended.value.code == 0
        os.chdir(here)
        yield folder


@pytest.fixture
def place(good: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    shutil.copytree(good, tmp_path / "place", symlinks=True)
    return tmp_path / "place"


def replaced(name: str, kind: str) -> Callable[[Path], None]:
    """A harm: something else lies where the file or folder of a run was."""

    def harm(run: Path) -> None:
        path = run / name
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        if kind.startswith("link to ") and kind not in REPLACEMENTS:
            path.symlink_to(kind.removeprefix("link to "))
        else:
            REPLACEMENTS[kind](path)

    return harm


def moved(name: str) -> Callable[[Path], None]:
    """A harm: a piece of the run lies elsewhere, whole, and a link leads there."""

    def harm(run: Path) -> None:
        elsewhere = run.parent / "elsewhere"
        shutil.move(run / name, elsewhere)
        (run / name).symlink_to(elsewhere)

    return harm


def edited(name: str, before: str, after: str) -> Callable[[Path], None]:
    """A harm: other text in a file."""

    def harm(run: Path) -> None:
        text = (run / name).read_text()
        assert before in text
        (run / name).write_bytes(text.replace(before, after, 1).encode("utf-8", "surrogatepass"))

    return harm


def summary(before: str, after: str) -> Callable[[Path], None]:
    return edited("summary.json", before, after)


GIGABYTES = f"{HUGE / 1e9:.1f} GB"
# number of the row -> harm, command, exit code, and words of the one line
UNFIT: dict[str, tuple[Callable[[Path], None], tuple[str, ...], int, tuple[str, ...]]] = {
    "130 summary pipe": (replaced("summary.json", "pipe"), REPORT, 4, ("out/summary.json: is a pipe", "remove it")),
    "131 recipe pipe": (replaced("recipe.yaml", "pipe"), PREDICT, 2, ("out/recipe.yaml: not a regular file",)),
    "132 recipe device": (replaced("recipe.yaml", "link to /dev/zero"), EVAL, 4, ("recipe.yaml: is a symbolic link",)),
    "133 lock pipe": (replaced("recipe.lock.yaml", "pipe"), REPORT, 4, ("recipe.lock.yaml: damaged (not a regular",)),
    "134 lock link": (moved("recipe.lock.yaml"), EXPORT, 4, ("out/recipe.lock.yaml: is a symbolic link",)),
    "135 events pipe": (replaced("events.jsonl", "pipe"), REPORT, 4, ("out/events.jsonl: is a pipe", "remove it")),
    "136 events socket": (replaced("events.jsonl", "socket"), REPORT, 4, ("out/events.jsonl: is a socket",)),
    "137 events hole": (replaced("events.jsonl", "ten gigabytes"), REPORT, 4, (f"out/events.jsonl: has {GIGABYTES}",)),
    "138 manifest pipe": (replaced(f"{BEST}/MANIFEST.json", "pipe"), PREDICT, 4, ("best/MANIFEST.json: is a pipe",)),
    "139 manifest hole": (replaced(f"{BEST}/MANIFEST.json", "ten gigabytes"), PREDICT, 4, (f"has {GIGABYTES}, more",)),
    "140 weights pipe": (replaced(f"{BEST}/model.safetensors", "pipe"), PREDICT, 4, ("model.safetensors", "size 0 of")),
    "141 weights link": (moved(f"{BEST}/model.safetensors"), EXPORT, 4, ("best/model.safetensors", "damaged (size")),
    "142 weights hole": (
        replaced(f"{BEST}/model.safetensors", "ten gigabytes"), ADAPT, 4, ("model.safetensors", f"size {HUGE} of"),
    ),
    "143 best elsewhere": (moved(BEST), PREDICT, 4, ("checkpoints/best: is a link to 'best-00000001'",)),
    "144 best link up": (replaced("checkpoints/best", "link to ../.."), PREDICT, 4, ("best: is a link to '../..'",)),
    "145 best to best": (replaced("checkpoints/best", "link to best"), PREDICT, 4, ("best: no such checkpoint",)),
    "146 checkpoints link": (moved("checkpoints"), PREDICT, 4, ("out/checkpoints: is a symbolic link",)),
    "147 tokenizer pipe": (replaced("backbone/tokenizer.json", "pipe"), PREDICT, 4, ("tokenizer.json: is a pipe",)),
    "148 config device": (
        replaced("backbone/config.json", "link to /dev/zero"), EXPORT, 4, ("out/backbone/config.json: is a link",),
    ),
    "149 tokenizer hole": (
        replaced("backbone/tokenizer.json", "ten gigabytes"), ADAPT, 4, ("tokenizer.json", f"has {GIGABYTES}, more"),
    ),
    "150 huge number": (summary('"seed": ', '"more": 1e999, "seed": '), REPORT, 4, ("number 1e999 is out of range",)),
    "151 key twice": (summary('"seed": ', '"seed": 1, "seed": '), REPORT, 4, ("key 'seed' is given twice",)),
    "152 deep": (summary('"seed": ', f'"x": {"[" * 99}{"]" * 99}, "seed": '), REPORT, 4, ("nested deeper than 32",)),
    "153 very deep": (summary('"seed": ', f'"x": {"[" * 99999}'), REPORT, 4, ("nested deeper than 32 levels",)),
    "154 surrogate": (summary('"small"', r'"\ud800"'), REPORT, 4, ("half of a surrogate pair",)),
    "155 beyond float32": (summary('"mean": ', '"mean": 1e308, "m": '), REPORT, 4, ("damaged (mean: ", "less than")),
    "156 digits": (summary('"mean": ', f'"mean": {"9" * 5000}, "m": '), REPORT, 4, ("the number 999", "out of range")),
    "157 true": (summary('"seed": ', '"seed": true, "s": '), REPORT, 4, ("damaged (seed: ",)),
    "158 manifest keys": (
        edited(f"{BEST}/MANIFEST.json", '"files": {', '"files": {}, "files": {'), PREDICT, 4, ("best/MANIFEST.json: ",),
    ),
    "159 best empty": (replaced("checkpoints/best", "folder"), PREDICT, 4, ("best: not a committed checkpoint",)),
}  # fmt: skip


@pytest.mark.parametrize("row", UNFIT)
def test_unfit(row: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    harm, command, code, words = UNFIT[row]
    harm(place / "out")
    before = None if (place / "elsewhere").is_dir() else sizes(place)
    with no_hang(10):
        assert_refused(call(*command, cwd=place, capsys=capsys), code, *words)
    assert before is None or sizes(place) == before


def sizes(folder: Path) -> dict[str, int]:
    """What lies in a folder; the size says enough of files that are all hole."""
    return {str(path): path.lstat().st_size for path in folder.rglob("*") if path.is_symlink() or not path.is_dir()}


# -------------------------------------------------------------------------------------------------- a folder of runs


@pytest.mark.parametrize("kind", ["pipe", "socket", "folder", "link to /dev/zero", "link to nowhere", "ten gigabytes"])
@pytest.mark.parametrize("name", ["summary.json", "events.jsonl", ".lock", "recipe.yaml", "recipe.lock.yaml"])
def test_the_other_runs_are_listed(name: str, kind: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(place / "out", place / "other", symlinks=True)
    if name == "events.jsonl":
        (place / "out" / "summary.json").unlink()  # of a finished run nobody asks for events
    replaced(name, kind)(place / "out")
    with no_hang(10):
        shown = call("runs", ".", "--json", cwd=place, capsys=capsys)
    assert (shown.code, shown.err) == (0, "")
    rows = {row["run"]: row["status"] for row in json.loads(shown.out)}
    assert rows.pop("other") == "finished"
    if name == "summary.json":
        assert rows["out"].startswith("damaged: ")
    elif name == "events.jsonl" and kind != "ten gigabytes":  # of a long file only the end is read
        assert rows["out"].startswith("damaged: events.jsonl is a ")
    elif kind != "folder":  # no run, but for a folder that only looks like one
        assert rows.get("out", "finished") in ("finished", "stopped")
    table = call("runs", ".", cwd=place, capsys=capsys)
    assert table.code == 0 and "other" in table.out


def event(**changes: Any) -> bytes:
    """A line about a step, with other fields."""
    made = json.loads(StepDone("pairs", 1, 1, {"pairs": [1.0]}, 0.1, 1.0, 4, 1.0, {"pairs": [0.5]}).json())
    return json.dumps(made | changes).encode() + b"\n"


def evaluated(**changes: Any) -> bytes:
    made = json.loads(Evaluated("pairs", 1, "dev", {"pairs": {"value": 0.5}}, 0.5, True).json())
    return json.dumps(made | changes).encode() + b"\n"


NOTHING: dict[str, bytes] = {
    "no JSON": b"{\n",
    "list": b"[1]\n",
    "other type": b'{"type": 1}\n',
    "not UTF-8": b'{"type": "\xff"}\n',
    "deep": b'{"type": "step", "losses": ' + b"[" * 10**5 + b"\n",
    "long": b'{"type": "step", "x": "' + b"x" * (2**24 + 10) + b'"}\n',
    "huge step": event(step=10**400),
    "large step": event(step=2**64),
    "negative step": event(step=-1),
    "true step": event(step=True),
    "fraction of a step": event(step=1.5),
    "text for a number": event(lr="0.1"),
    "number for a text": event(group=1),
    "huge loss": event(losses={"pairs": [1e308]}),
    "loss beyond JSON": event(losses={"pairs": [7.5]}).replace(b"7.5", b"1e999"),
    "NaN": event(losses={"pairs": [7.5]}).replace(b"7.5", b"NaN"),
    "losses no list": event(losses={"pairs": 1.0}),
    "losses no mapping": event(losses=[1.0]),
    "missing": b'{"type": "step", "step": 1}\n',
    "task unknown": event(losses={"nobody": [1.0]}),
    "value missing": evaluated(tasks={"pairs": {}}),
    "value a list": evaluated(tasks={"pairs": {"value": [1]}}),
    "score no mapping": evaluated(tasks={"pairs": 3}),
    "best a number": evaluated(best=1),
    "sampling without keys": evaluated(sampling={"pairs": {"draws": 1}}),
    "sampling null": evaluated(sampling={"pairs": {"draws": None, "planned_draws": 1.0, "epochs": 1.0}}),
    "warning no text": b'{"type": "warning", "text": {"a": 1}}\n',
    "started with more": b'{"type": "run_started", "name": 1}\n',
    "key twice": b'{"type": "warning", "text": "a", "text": "b"}\n',
    "surrogate": b'{"type": "warning", "text": "\\ud800"}\n',
}


@pytest.mark.parametrize("name", some_quick(NOTHING, 10))
def test_a_line_that_no_run_writes_is_left_out_and_said(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = place / "out" / "events.jsonl"
    good = path.read_bytes()
    call(*REPORT, "--out", "good.html", cwd=place, capsys=capsys)
    path.write_bytes(NOTHING[name] + good + NOTHING[name].rstrip(b"\n")[:1000])  # the last one may be under way
    with no_hang(20):
        told = call(*REPORT, "--out", "page.html", cwd=place, capsys=capsys)
    assert told.code == 0
    assert [line.partition(" and was left out")[0] for line in told.err.splitlines()] == [
        "warning: out/events.jsonl:1: is no event"
    ]
    assert (place / "page.html").read_bytes() == (place / "good.html").read_bytes()
    (place / "out" / "summary.json").unlink()
    whole = json.loads(call("runs", ".", "--json", cwd=place, capsys=capsys).out)
    path.write_bytes(good)
    assert whole[0] | {"changed": 0} == json.loads(call("runs", ".", "--json", cwd=place, capsys=capsys).out)[0] | {
        "changed": 0
    }


def test_many_lines_are_said_in_few(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(place / "out" / "events.jsonl", "ab") as file:
        file.write(b"x\n" * 100_000)
    told = call(*REPORT, cwd=place, capsys=capsys)
    assert told.code == 0 and len(told.err.splitlines()) == 4
    assert "99997 more lines are no events" in told.err


def test_events_of_a_plugin_and_of_an_earlier_version_are_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made = json.loads(event())
    del made["drifts"]
    with open(place / "out" / "events.jsonl", "ab") as file:
        file.write(json.dumps(made).encode() + b'\n{"type": "my plugin", "anything": [1, {}]}\n')
    told = call(*REPORT, cwd=place, capsys=capsys)
    assert (told.code, told.err) == (0, "")


def test_numbers_that_were_not_finite_are_gaps(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open(place / "out" / "events.jsonl", "ab") as file:
        file.write(event(losses={"pairs": [None, 1.0]}, norm=None, drifts={"pairs": [None]}))
        file.write(evaluated(tasks={"pairs": {"value": None}}, selected=None))
    told = call(*REPORT, cwd=place, capsys=capsys)
    assert (told.code, told.err) == (0, "")


def test_every_event_of_a_run_has_the_form_that_is_read(good: Path) -> None:
    from mtmeta.core.run.event_stream import read_event

    lines = (good / "out" / "events.jsonl").read_bytes().splitlines(keepends=True)
    kinds = [read_event(line)["type"] for line in lines]
    assert {"run_started", "data_loaded", "step", "evaluated", "checkpoint", "run_finished"} <= set(kinds)


@pytest.mark.parametrize("name", ["summary.json", "events.jsonl", "recipe.lock.yaml", "recipe.yaml"])
def test_a_report_leaves_out_the_run_that_is_damaged(
    name: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(place / "out", place / "other", symlinks=True)
    replaced(name, "pipe")(place / "out")
    with no_hang(20):
        told = call("report", "out", "other", cwd=place, capsys=capsys)
    assert told.code == 0
    (line,) = told.err.splitlines()
    assert line.startswith(f"warning: out/{name}: ") and line.endswith("the report is of the other runs")
    page = (place / "report.html").read_text()
    assert f"Left out: out/{name}: " in page and "other" in page


@pytest.mark.parametrize("value", ["nan", "inf", "1e999", "1e200", "9" * 400, "", "contradiction\x1b"])
def test_predictions_that_are_none_are_said(value: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = place / "out" / "predictions" / "pairs-dev.csv"
    lines = path.read_text().splitlines()
    lines[1] = f"0,neutral,{value}"
    path.write_text("\n".join(lines) + "\n")
    told = call(*REPORT, cwd=place, capsys=capsys)
    assert told.code == 0
    (line,) = told.err.splitlines()
    assert line.startswith("warning: out/predictions/pairs-dev.csv: cannot be read") and line.isprintable()


def test_nothing_of_a_refused_command_is_left(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replaced("summary.json", "zeros")(place / "out")
    before = contents(place)
    call(*REPORT, cwd=place, capsys=capsys)
    assert contents(place) == before
