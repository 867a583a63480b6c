"""`mtmeta report`: the page stands alone, shows the contents of the files, and nothing in them gets out of its text."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jinja2 import UndefinedError

import mtmeta
from mtmeta.cli import main
from mtmeta.core.errors import MachineError, UsageError
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.reports.html import plots
from mtmeta.core.reports.html.history import read_history
from mtmeta.core.reports.html.page import HeatTable, environment
from mtmeta.core.reports.html.report import report
from mtmeta.core.reports.html.run_section import running_mean
from mtmeta.core.reports.table import Cell, Table
from tests.core.run.test_run import write_recipe
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import quietly

TASKS = ("sst", "para", "sts")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of two recipes, one of them with two seeds, and with gradients measured."""
    folder = tmp_path_factory.mktemp("report")
    with quietly():
        for name, seeds in (("individual", (3,)), ("reptile", (3, 4))):
            recipe = write_recipe(folder, name)
            for seed in seeds:
                options = ["evaluation.gradients=true", f"seed={seed}"]
                mtmeta.run(recipe, overrides=options, out=folder / f"{name}-{seed}")
    return folder


def all_of(folder: Path) -> list[Path]:
    return [folder / name for name in ("individual-3", "reptile-3", "reptile-4")]


class Reader(HTMLParser):
    """Tags that are open and close, ids, references to them, and the text."""

    VOID = ("meta", "br", "use", "path", "rect")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.ids: list[str] = []
        self.wanted: list[str] = []
        self.tags: list[str] = []
        self.outside: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        if tag not in self.VOID[:2]:
            self.stack.append(tag)
        self._look(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._look(attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def _look(self, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            value = value or ""
            if key == "id":
                self.ids.append(value)
            if key.endswith("href"):
                self.wanted.append(value.removeprefix("#")) if value.startswith("#") else self.outside.append(value)
            self.wanted += re.findall(r"url\(#([^)]+)\)", value)
            if key in ("src", "action", "formaction", "data") or key.startswith("on"):
                self.outside.append(f"{key}={value}")


def page_text(folder: Path, tmp_path: Path, *paths: Path, **options: Any) -> str:
    return report(paths or all_of(folder), out=tmp_path / "report.html", **options).read_text(encoding="utf-8")


def test_the_page_stands_alone(runs: Path, tmp_path: Path) -> None:
    text = page_text(runs, tmp_path)
    reader = Reader(text)
    assert reader.outside == []
    assert not {"script", "link", "img", "iframe", "object", "embed"} & set(reader.tags)
    assert len(reader.ids) == len(set(reader.ids))
    assert set(reader.wanted) <= set(reader.ids)
    assert "default-src 'none'" in text
    elsewhere = set(re.findall(r"https?://[^\"' <>]+", text))
    assert elsewhere <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}  # names, not places
    assert not re.search(r"#0[0-3]0[0-3]0[0-9a-f]\b", text), "a placeholder colour is left"
    assert page_text(runs, tmp_path) == text  # the same files, the same bytes


def test_it_shows_every_part(runs: Path, tmp_path: Path) -> None:
    text = page_text(runs, tmp_path)
    shown = Reader(text).text
    for words in (
        "2 recipes: individual, reptile",
        "Results",
        "Every seed",
        "On the way",
        "Run by run",
        "Training losses",
        "All training losses",
        "Epochs seen",
        "Drift of the inner loops",
        "Cosines of gradients",
        "sst: predictions",
        "Rows are labels, columns predictions",
        "Each class",
        "The worst errors",
        "Did it overfit?",
        "What is confused?",
        "Other metrics",
        "differences to individual",
        "max_length: 64",
        "torch: 2.",
    ):
        assert words in shown, words
    for name in ("individual, seed 3", "reptile, seed 3", "reptile, seed 4"):
        assert name in shown
    # differences for a wide and a narrow page; every seed of four columns; three curves of the metric; the confusion of
    # two tasks in two rows; losses 3 + 1, epochs, norms, sts of one run alone; draws, drift, cosines of the others
    assert text.count("<svg") == 2 + 4 + 3 + 4 + 3 * (4 + 1 + 1 + 1) + 2 * 3


@pytest.mark.slow
def test_its_figures_are_those_of_the_comparison(runs: Path, tmp_path: Path) -> None:
    shown = Reader(page_text(runs, tmp_path)).text
    summaries = {path.name: json.loads((path / "summary.json").read_text()) for path in all_of(runs)}
    alone = summaries["individual-3"]["tasks"]
    two = [summaries[name] for name in ("reptile-3", "reptile-4")]
    for task in TASKS:
        mean = sum(summary["tasks"][task]["value"] for summary in two) / 2
        assert f"{alone[task]['value']:.4f} [{alone[task]['low']:.3f}, {alone[task]['high']:.3f}]" in shown
        assert f"{mean:.4f} (2 seeds)" in shown
        assert f"{mean - alone[task]['value']:+.4f} (2 seeds)" in shown


@pytest.mark.slow
def test_seeds_given_by_looks_are_told_of(runs: Path, tmp_path: Path) -> None:
    """Plain intervals of rows that were looked at on the way err more often than they say."""
    folder = tmp_path / "runs"
    shutil.copytree(runs, folder, symlinks=True)
    assert "if looks on the way" not in page_text(folder, tmp_path)
    plan = {"began": "2026-01-01", "finished": 0, "seeds": 4, "baselines": ["individual"], "margin": None}
    (folder / ".compare-0.json").write_text("{")  # damaged: says nothing
    (folder / ".compare-1.json").write_text(json.dumps(plan | {"until_interval": False}))
    assert "if looks on the way" not in page_text(folder, tmp_path)
    (folder / ".compare-1.json").write_text(json.dumps(plan | {"until_interval": True}))
    assert "if looks on the way" in page_text(folder, tmp_path)
    as_many = [folder / "individual-3", folder / "reptile-3"]
    assert "if looks on the way" not in page_text(folder, tmp_path, *as_many)


def test_strips_have_room_for_many_rows_and_long_names() -> None:
    names = [f"recipe-of-a-long-study-{number}" for number in range(20)] + ["n" * 128]
    few, many = ([plots.Strip(name, [0.8, 0.9], 0.85, 0.7, 1.0) for name in part] for part in (names[:2], names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of a layout that leaves the plot no room
        heights = [
            float(re.search(r'viewBox="0 0 [0-9.]+ ([0-9.]+)"', plots.strips("sst", "", "", one).svg)[1])  # type: ignore[index]
            for one in (few, many)
        ]
    assert heights[0] == pytest.approx(72 * 2.5)
    assert heights[1] / len(many) > 12  # points: as high as a label


def test_history_is_what_the_events_say(runs: Path) -> None:
    run = read_history(runs / "reptile-3", build_registry(), print)
    lines = [json.loads(line) for line in (runs / "reptile-3" / "events.jsonl").read_text().splitlines()]
    steps = [event for event in lines if event["type"] == "step"]
    evaluated = [event for event in lines if event["type"] == "evaluated"]
    at, examples, values = run.metric("para")
    assert at == [2, 4, 6]
    assert run.seen("para") == ([event["sampling"]["para"]["examples"] for event in evaluated], values)
    assert examples == [step["examples"] for step in steps[1::2]]
    assert values == [event["tasks"]["para"]["value"] for event in evaluated]
    when, losses = run.losses("para")
    assert losses == [loss for step in steps for loss in step["losses"].get("para", [])]
    assert when[:2] == [steps[0]["step"] - 0.5, steps[0]["step"]] if "para" in steps[0]["losses"] else True
    assert run.drifts("sst")[1] == [drift for step in steps for drift in step["drifts"].get("sst", [])]
    assert run.sampling() == json.loads((runs / "reptile-3" / "summary.json").read_text())["sampling"]


def test_the_running_mean_is_of_the_past() -> None:
    assert running_mean([1.0] * 30) == pytest.approx([1.0] * 30)
    assert running_mean(list(range(20))) == pytest.approx([0.0, *(i - 0.5 for i in range(1, 20))])  # a tenth of 20 is 2


def test_one_run(runs: Path, tmp_path: Path) -> None:
    text = page_text(runs, tmp_path, runs / "reptile-3")
    shown = Reader(text).text
    assert "1 run on sst, para, sts; backbone bert, weights tiny." in shown
    assert "95% interval" in shown
    assert "differences to" not in shown
    assert "<details open>" in text
    summary = json.loads((runs / "reptile-3" / "summary.json").read_text())
    for task in TASKS:
        assert f"{summary['tasks'][task]['loss']:.4f}" in shown


# -------------------------------------------------------------------------------------------- runs that lack something


@pytest.fixture
def copy(runs: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(runs / "reptile-3", tmp_path / "copy", symlinks=True))


def test_a_run_that_is_under_way(copy: Path, tmp_path: Path) -> None:
    (copy / "summary.json").unlink()
    lines = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    (copy / "events.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]) + b'{"type": "st')
    warnings: list[str] = []
    shown = Reader(page_text(copy, tmp_path, copy, warn=warnings.append)).text
    assert "reptile, seed 3 is not finished; what it has so far is shown." in shown
    assert "No run is finished." in shown
    assert warnings == []  # a last line without its end is no damage


def test_a_damaged_event_is_left_out_and_said(copy: Path, tmp_path: Path) -> None:
    lines = (copy / "events.jsonl").read_bytes().splitlines(keepends=True)
    lines[3] = b"\xff\x00 {\n"
    (copy / "events.jsonl").write_bytes(b"".join(lines))
    warnings: list[str] = []
    page_text(copy, tmp_path, copy, warn=warnings.append)
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{copy}/events.jsonl:4: is no event and was left out ('utf-8' codec")


def test_a_run_without_events_or_predictions(copy: Path, tmp_path: Path) -> None:
    (copy / "events.jsonl").unlink()
    shutil.rmtree(copy / "predictions")
    warnings: list[str] = []
    text = page_text(copy, tmp_path, copy, warn=warnings.append)
    assert "events.jsonl is not there" in warnings[0]
    assert len([line for line in warnings if "cannot be read" in line]) == 3
    assert "95% interval" in text


def test_runs_of_other_tasks_are_shown_without_comparing_them(runs: Path, tmp_path: Path) -> None:
    task = {"train": "sample", "dev": "sample", "batch_size": 16}
    mtmeta.run(write_recipe(tmp_path, "joint", tasks={"sst": task}), out=tmp_path / "other")
    warnings: list[str] = []
    text = page_text(runs, tmp_path, runs / "reptile-3", tmp_path / "other", warn=warnings.append)
    shown = Reader(text).text
    assert "These runs cannot be compared" in shown
    assert ["trains sst, and 'reptile' sst, para, sts; compare" in line for line in warnings] == [True]
    assert shown.count("95% interval") == 2
    assert "These runs cannot be compared" in text[text.index('class="verdict"') :][:200]
    with pytest.raises(mtmeta.RecipeError, match="trains sst, and 'reptile' sst, para, sts; compare"):
        page_text(runs, tmp_path, runs / "reptile-3", tmp_path / "other", baseline="reptile")


def test_two_recipes_of_one_name_are_two_rows(runs: Path, tmp_path: Path) -> None:
    mtmeta.run(write_recipe(tmp_path, "reptile"), overrides=["training.steps=2"], out=tmp_path / "short")
    shown = Reader(page_text(runs, tmp_path, runs / "reptile-3", tmp_path / "short", baseline="reptile")).text
    assert "differences to reptile" in shown
    assert "short" in shown


# ----------------------------------------------------------------------------------------------------- hostile and bad


def test_nothing_in_a_file_gets_out_of_its_text(copy: Path, tmp_path: Path) -> None:
    evil = "</pre><script>alert(1)</script>$x_1$ & \" '"
    lines = (copy / "events.jsonl").read_text().splitlines()
    lines.append(json.dumps({"type": "warning", "text": evil, "group": "", "step": 0}))
    (copy / "events.jsonl").write_text("\n".join(lines) + "\n")
    text = page_text(copy, tmp_path, copy)
    reader = Reader(text)
    assert "script" not in reader.tags
    assert f"Warning: {evil}" in reader.text


def pieces(call: str, **values: Any) -> str:
    """Return the markup that macros of the templates make of these values."""
    imports = '{% from "pieces.html.j2" import figures, heat_table, table %}'
    return environment().from_string(imports + call).render(values)


PIECES = {
    "heading": "<h2>{{ text }}</h2>",
    "paragraph": "<p>{{ text }}</p>",
    "preformatted": '<pre tabindex="0">{{ text }}</pre>',
    "details": "<details><summary>{{ text }}</summary></details>",
}


@pytest.mark.parametrize("markup", PIECES.values(), ids=PIECES)
def test_pieces_escape(markup: str) -> None:
    assert Reader(pieces(markup, text="<b> & </b>")).text.strip() == "<b> & </b>"
    assert "<b>" not in pieces(markup, text="<b> & </b>")


def test_a_name_that_a_template_is_not_given_raises() -> None:
    with pytest.raises(UndefinedError, match="'nothing' is undefined"):
        pieces("{{ nothing }}")


def test_tables_escape() -> None:
    plain, heat = Table(["<a>"], [[Cell("<b>", "<c>", True)]]), HeatTable("<d>", ["<e>"], [("<f>", [("<g>", -2.0)])])
    text = pieces("{{ table(plain) }}{{ heat_table(heat) }}", plain=plain, heat=heat)
    assert Reader(text).text == "<a><b>\n<c><d><e><f><g>"
    assert '<strong>&lt;b&gt;</strong>\n<span class="below">&lt;c&gt;</span>' in text
    assert "var(--s1) 55%" in text  # no stronger than whole


def test_labels_that_look_like_formulas(tmp_path: Path) -> None:
    from mtmeta.core.reports.html import plots

    figure = plots.lines(
        "$\\frac{", "$x", "y", [plots.Line("a_$1$", [1, 2], [3, 4]), plots.Line("<b>", [1, 2], [4, 3], 1)]
    )
    reader = Reader(figure.svg)
    assert {"$\\frac{", "a_$1$", "<b>"} <= set(re.split(r"\n\s*", reader.text))


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no mtmeta run"):
        report([tmp_path], out=tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


def test_without_matplotlib(copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MachineError) as raised:
        report([copy], out=tmp_path / "report.html")
    expected = "error: mtmeta report: needs matplotlib, which is not installed; pip install 'mtmeta[report]'"
    assert raised.value.lines() == [expected]
    assert raised.value.exit_code == 6


def test_the_command_prints_where_the_page_is(copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["report", str(copy), "--out", str(tmp_path / "a" / "page.html")])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"{tmp_path}/a/page.html\n"
    assert (tmp_path / "a" / "page.html").read_text().startswith("<!DOCTYPE html>")


def test_it_needs_no_torch(copy: Path, tmp_path: Path) -> None:
    program = "import sys; from mtmeta.core.reports.html.report import report;"
    program += f"report([{str(copy)!r}], out={str(tmp_path / 'r')!r});"
    program += "print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_cloud_shows_every_point_where_it_lies() -> None:
    """Also of thousands of them, in few bytes: each is a line of no length with round ends, at its place."""
    labels = [number % 26 / 5 for number in range(4000)]
    predictions = [label + number / 4000 for number, label in enumerate(labels)]
    svg = plots.cloud("near", "true", "predicted", labels, predictions).svg
    assert len(svg) < 20 * len(labels)
    dots = np.array([[float(x), float(y)] for x, y in re.findall(r"M([0-9.]+) ([0-9.]+)h0", svg)])
    assert len(dots) == len(labels)
    # the points of a layer come one after the other; both axes are linear, y grows downwards
    wanted = np.array([[labels[at], predictions[at]] for layer in range(8) for at in range(layer, 4000, 8)])
    for column, sign in ((0, 1), (1, -1)):
        scale, offset = np.polyfit(wanted[:, column], dots[:, column], 1)
        assert sign * scale > 0
        assert np.abs(dots[:, column] - scale * wanted[:, column] - offset).max() < 0.02
    assert plots.cloud("near", "true", "predicted", labels[:3], predictions[:3]).svg.count("h0") == 3
