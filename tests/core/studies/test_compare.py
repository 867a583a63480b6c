"""`mtmeta compare`: runs that are used again, a table that is right, and what cannot be compared."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import pytest
from rich.console import Console
from safetensors.torch import load_file

import mtmeta
from mtmeta.core.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    Incomplete,
    MachineError,
    MtmetaError,
    Problems,
    RecipeError,
    RunInUse,
    UsageError,
)
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.reports.comparison import as_csv, as_markdown
from mtmeta.core.reports.terminal import comparison as compare_view
from mtmeta.core.storage.lock import file_lock, lock_folder, lock_owner
from mtmeta.core.studies.comparable import check_alike, notes_on_recipes
from mtmeta.core.studies.processes.error_pipe import PIPE, send_error
from mtmeta.core.studies.processes.pool import Job, run_all, without_options
from mtmeta.core.studies.protocol import Protocol, Register
from tests.core.run.test_run import write_recipe
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, call, quietly
from tests.support.quick import quick

SMALL = {"training": {"steps": 2}, "evaluation": {"every": 1}, "checkpoint": {"every": 1}}
TASKS = ("sst", "para", "sts")


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    with quietly():
        yield


def recipes(folder: Path, *names: str, **changes: Any) -> list[Path]:
    return [write_recipe(folder, name, **SMALL, **changes) for name in names]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with recipes, and runs/ of a comparison of two of them with two seeds."""
    folder = tmp_path_factory.mktemp("compare")
    with quietly():
        mtmeta.compare(recipes(folder, "individual", "reptile"), seeds=2, out=folder / "runs", jobs=2)
    return folder


@pytest.fixture
def done(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to change."""
    shutil.copytree(finished, tmp_path / "done", symlinks=True)
    return tmp_path / "done"


def again(folder: Path, **options: Any) -> dict[str, Any]:
    """The comparison of finished runs."""
    given = [folder / "individual.yaml", folder / "reptile.yaml"]
    return mtmeta.compare(given, **{"seeds": 2, "out": folder / "runs", **options})


@pytest.fixture
def no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any, **options: Any) -> None:
        raise AssertionError(f"started {arguments}")

    monkeypatch.setattr(subprocess, "Popen", refuse)


def summaries(folder: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads((run / "summary.json").read_text()) for run in sorted((folder / "runs").glob(f"{name}-*"))]


def rows(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {row["name"]: row for row in found["rows"]}


# ----------------------------------------------------------------------------------------------------------- the table


def test_runs_are_named_after_recipe_seed_and_digest(done: Path) -> None:
    names = sorted(path.name for path in (done / "runs").iterdir() if path.is_dir())
    assert [name.rpartition("-")[0] for name in names] == ["individual-3", "individual-4", "reptile-3", "reptile-4"]
    for name in names:
        assert (
            mtmeta.core.recipe.strict_yaml.read_file(done / "runs" / name / "recipe.lock.yaml")
            .data["recipe"]
            .startswith(name.rpartition("-")[2])
        )


@pytest.mark.usefixtures("no_process")
def test_the_table_is_that_of_the_summaries(done: Path) -> None:
    found = again(done)
    assert (found["split"], found["baseline"]) == ("dev", "individual")
    assert found["metrics"] == {"sst": "accuracy", "para": "accuracy", "sts": "pearson"}
    assert list(rows(found)) == ["individual", "reptile"]
    for name, row in rows(found).items():
        made = summaries(done, name)
        assert (row["algorithm"], row["seeds"]) == (name, [3, 4])
        assert list(row["columns"]) == [*TASKS, "mean"]
        for task in TASKS:
            values = [summary["tasks"][task]["value"] for summary in made]
            assert row["columns"][task]["values"] == values
            assert row["columns"][task]["mean"] == pytest.approx(sum(values) / 2)
        assert row["columns"]["mean"]["values"] == [summary["mean"] for summary in made]
        assert row["examples"] == sum(summary["examples"] for summary in made) / 2
        assert row["seconds"] == pytest.approx(sum(summary["seconds"] for summary in made) / 2)
        assert row["peak_memory_bytes"] == max(summary["peak_memory_bytes"] for summary in made)
    for column in (*TASKS, "mean"):
        one, two = (row["columns"][column] for row in found["rows"])
        assert one["best"] == (one["mean"] >= two["mean"])
        assert two["best"] == (two["mean"] >= one["mean"])
        assert "delta" not in one
        assert two["delta"]["value"] == pytest.approx(two["mean"] - one["mean"])
        assert two["delta"]["low"] <= two["delta"]["high"]
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.usefixtures("no_process")
def test_tasks_that_count(done: Path) -> None:
    """Of the same runs: other columns are as they were, and the mean is that of the tasks that count."""
    whole, some = again(done), again(done, tasks=["sts", "sst"])
    assert some["metrics"] == {"sts": "pearson", "sst": "accuracy"}
    for name, row in rows(some).items():
        assert list(row["columns"]) == ["sts", "sst", "mean"]
        made = summaries(done, name)
        means = [(each["tasks"]["sst"]["value"] + each["tasks"]["sts"]["value"]) / 2 for each in made]
        assert row["columns"]["mean"]["values"] == pytest.approx(means, abs=1e-12)
        for task in ("sst", "sts"):
            assert row["columns"][task] == rows(whole)[name]["columns"][task] | {
                "surely_best": row["columns"][task]["surely_best"]
            }
    delta = rows(some)["reptile"]["columns"]["mean"]["delta"]
    one, two = (fmean(rows(some)[name]["columns"]["mean"]["values"]) for name in ("reptile", "individual"))
    assert delta["value"] == pytest.approx(one - two)
    for tasks, words in ((["knd"], "no task of"), (["sst", "sst"], "twice"), ([""], "empty name"), ("sst", "a list")):
        with pytest.raises(UsageError, match=words):
            again(done, tasks=tasks)


@pytest.mark.slow
def test_helper_tasks_stand_beside_those_that_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = quick(tmp_path, "individual", name="alone", training={"steps": 1, "precision": "fp32"})
    plain = plain.rename(tmp_path / "alone.yaml")
    helped = json.loads(quick(tmp_path, name="helped", training={"steps": 1, "precision": "fp32"}).read_text())
    helped["tasks"]["more"] = {**helped["tasks"]["kind"], "metrics": ["macro_f1"]}
    (tmp_path / "helped.yaml").write_text(json.dumps(helped))
    both = ["alone.yaml", "helped.yaml"]
    refused = call("compare", *both, "--seeds", "1", cwd=tmp_path, capsys=capsys)
    assert_refused(refused, 2, "--tasks kind,grade")
    done = call("compare", *both, "--seeds", "1", "--tasks", "kind,grade", "--json", cwd=tmp_path, capsys=capsys)
    table = json.loads(done.out)
    assert [list(row["columns"]) for row in table["rows"]] == [["kind", "grade", "mean"]] * 2
    assert "helped also trains more, which do not count here." in table["notes"]
    runs = [run for row in table["rows"] for run in row["runs"]]
    page = mtmeta.report([tmp_path / run for run in runs], out=tmp_path / "page.html", tasks=["kind", "grade"])
    assert "helped also trains more" in page.read_text()


@pytest.mark.usefixtures("no_process")
def test_another_baseline_and_a_single_seed(done: Path) -> None:
    both, other = rows(again(done)), rows(again(done, baseline="reptile"))
    for column in (*TASKS, "mean"):
        there, back = both["reptile"]["columns"][column]["delta"], other["individual"]["columns"][column]["delta"]
        assert (back["value"], back["low"], back["high"]) == pytest.approx(
            (-there["value"], -there["high"], -there["low"])
        )
    one = rows(again(done, seeds=1))["reptile"]["columns"]
    made = summaries(done, "reptile")[0]["tasks"]["sst"]
    assert (one["sst"]["mean"], one["sst"]["low"], one["sst"]["high"]) == (made["value"], made["low"], made["high"])
    assert one["mean"]["low"] is None
    shown = as_markdown(again(done, seeds=1))
    assert "one seed cannot tell, so nothing is marked 'worse'." in shown
    with_margin = as_markdown(again(done, seeds=1, margin=0.9))
    assert "so nothing is marked 'worse' or 'not inferior'." in with_margin


def rewrite(folder: Path, name: str, task: str, change: Any) -> None:
    """Change the predictions of every run of a recipe; `change` takes the label and the prediction."""
    for run in (folder / "runs").glob(f"{name}-*"):
        path = run / "predictions" / f"{task}-dev.csv"
        with open(path, encoding="utf-8", newline="") as file:
            lines = [[row["id"], row["label"], change(row["label"], row["prediction"])] for row in csv.DictReader(file)]
        with open(path, "w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([["id", "label", "prediction"], *lines])
        values = np.array([[float(line[1]), float(line[2])] for line in lines])
        summary = json.loads((run / "summary.json").read_text())
        score = summary["tasks"][task]
        score["value"] = float(np.mean(values[:, 0] == values[:, 1]))
        summary["mean"] = sum(made["value"] for made in summary["tasks"].values()) / len(summary["tasks"])
        (run / "summary.json").write_text(json.dumps(summary))


@pytest.mark.usefixtures("no_process")
def test_negative_transfer_is_flagged(done: Path) -> None:
    rewrite(done, "individual", "para", lambda label, made: label)
    rewrite(done, "reptile", "para", lambda label, made: "1" if label == "0" else "0")
    rewrite(done, "individual", "sst", lambda label, made: "0" if label != "0" else "1")
    rewrite(done, "reptile", "sst", lambda label, made: label)
    found = rows(again(done))["reptile"]["columns"]
    assert found["para"]["delta"] == {
        "value": -1.0, "low": -1.0, "high": -1.0, "p": pytest.approx(2 / 1001), "effect": None,
        "negative_transfer": True, "non_inferior": None,
        "seeds": [3, 4], "paired": True, "fewest": 2, "too_few": True,
    }  # fmt: skip
    assert found["sst"]["delta"]["value"] == 1.0
    assert found["sst"]["delta"]["negative_transfer"] is False
    assert found["sst"]["best"] is True
    assert found["para"]["best"] is False
    assert (found["sst"]["surely_best"], found["para"]["surely_best"]) == (False, False)  # of two seeds
    text = as_markdown(again(done))
    assert "-1.0000 (2 seeds) |" in text
    assert "+1.0000 (2 seeds) |" in text
    assert "It covers other seeds and other examples (paired two-level bootstrap" not in text  # no interval is shown
    alone = rows(again(done, seeds=1))["reptile"]["columns"]  # as sure of the examples, but who knows another seed
    assert (alone["para"]["delta"]["high"], alone["para"]["delta"]["negative_transfer"]) == (-1.0, None)


@pytest.mark.usefixtures("no_process")
def test_the_table_as_people_and_programs_read_it(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = again(done)
    compare_view.show_comparison(found)
    out = capsys.readouterr().out
    for cell in [cell for row in found["rows"] for cell in row["columns"].values()]:
        assert f"{cell['mean']:.4f} (2 seeds)" in out
    assert "differences to individual" in out
    assert "2 seeds: too few for an interval" in out
    lines = list(csv.DictReader(io.StringIO(as_csv(found))))
    assert [(line["regime"], line["column"]) for line in lines] == [
        (name, column) for name in ("individual", "reptile") for column in (*TASKS, "mean")
    ]
    for line in lines:
        cell = rows(found)[line["regime"]]["columns"][line["column"]]
        assert float(line["mean"]) == cell["mean"]
        assert line["delta_value"] == (str(cell["delta"]["value"]) if "delta" in cell else "")
        assert line["seeds"] == "3 4"
    table = [line for line in as_markdown(found).splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert sum(line.count("**") for line in table) == 0  # two seeds make nothing sure


# --------------------------------------------------------------- margins, baselines, seeds, and looks on the way


@pytest.mark.usefixtures("no_process")
def test_several_baselines(done: Path) -> None:
    found = again(done, baseline=["reptile", "individual"])
    both = rows(found)
    assert (found["baseline"], found["baselines"]) == ("reptile", ["reptile", "individual"])
    for column in (*TASKS, "mean"):
        one, two = both["individual"]["columns"][column], both["reptile"]["columns"][column]
        assert (list(one["deltas"]), list(two["deltas"])) == (["reptile"], ["individual"])
        assert one["delta"] == one["deltas"]["reptile"]
        assert "delta" not in two  # which stands for the first baseline alone
        assert one["deltas"]["reptile"]["value"] == pytest.approx(-two["deltas"]["individual"]["value"])
    text = as_markdown(found)
    assert "to reptile" in text
    assert "Below: differences to reptile, individual." in text
    flat = [(line["regime"], line["column"], line["baseline"]) for line in csv.DictReader(io.StringIO(as_csv(found)))]
    assert flat == [
        (row, column, other)
        for row, other in (("individual", "reptile"), ("reptile", "individual"))
        for column in (*TASKS, "mean")
    ]


@pytest.mark.usefixtures("no_process")
def test_a_margin_tells_what_is_not_inferior(done: Path) -> None:
    """A row with the baseline's own predictions is at no margin inferior, one that is worse than it is."""
    for name in ("individual", "reptile"):
        rewrite(done, name, "para", lambda label, made: label)
        rewrite(done, name, "sst", lambda label, made: label)
    rewrite(done, "reptile", "sst", lambda label, made: "0")
    found = rows(again(done, margin=0.02))["reptile"]["columns"]
    assert (found["para"]["delta"]["low"], found["para"]["delta"]["non_inferior"]) == (0.0, True)
    assert found["sst"]["delta"]["high"] < -0.02
    assert found["sst"]["delta"]["non_inferior"] is False
    low = found["sts"]["delta"]["low"]
    assert rows(again(done, margin=1.01 * abs(low)))["reptile"]["columns"]["sts"]["delta"]["non_inferior"] is True
    assert rows(again(done, margin=0.99 * abs(low)))["reptile"]["columns"]["sts"]["delta"]["non_inferior"] is False
    assert "not inferior" in as_markdown(again(done, margin=0.02))
    alone = rows(again(done, margin=0.02, seeds=1))["reptile"]["columns"]
    assert alone["para"]["delta"]["non_inferior"] is None  # one seed cannot tell
    for margin in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="--margin: must be a number > 0 and finite"):
            again(done, margin=margin)


@pytest.mark.usefixtures("no_process")
def test_a_margin_that_was_not_planned_is_told_of(done: Path) -> None:
    assert again(done)["notes"] == []
    (record,) = (done / "runs").glob(".compare-*.json")
    planned = json.loads(record.read_text())
    assert (planned["margin"], planned["seeds"]) == (None, 2)
    (note,) = again(done, margin=0.005)["notes"]
    assert note.startswith(f"The margin changed: none when the runs began on {planned['began']}, now 0.005")
    assert json.loads(record.read_text()) == planned
    record.unlink()  # as for runs of an earlier version
    lines = again(done, margin=0.005)["notes"]
    assert lines == ["This was planned when 4 of the runs were finished already."]
    assert json.loads(record.read_text())["finished"] == 4
    record.write_text(json.dumps(planned | {"seeds": 0}))
    with pytest.raises(CheckpointError, match=r"\.compare-.*damaged \(seeds: .*\); remove it to plan anew"):
        again(done)
    record.write_text("[]")
    with pytest.raises(CheckpointError, match=r"\.compare-.*damaged \(it holds no mapping\); remove it to plan anew"):
        again(done)
    record.unlink()
    record.symlink_to("nowhere")
    with pytest.raises(CheckpointError, match=r"\.compare-.*is a link, not a regular file; remove it to plan anew"):
        again(done)


def test_finished_runs_may_lie_where_nobody_writes(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: str) -> None:
        raise MachineError(str(path), "cannot be written")

    (record,) = (done / "runs").glob(".compare-*.json")
    record.unlink()
    monkeypatch.setattr("mtmeta.core.studies.protocol.write_file", refuse)
    found = again(done, margin=0.005)
    assert found["notes"] == ["This was planned when 4 of the runs were finished already."]
    with pytest.raises(MachineError, match=r"\.compare-.*: cannot be written"):
        again(done, seeds=3)


def test_of_two_starts_at_once_one_plans(tmp_path: Path) -> None:
    """The second one waits, and finds what was planned; no lock file is left."""
    register = Register(tmp_path / "runs" / ".compare-0.json")
    register.path.parent.mkdir()
    found: list[float | None] = []

    def plan(margin: float) -> None:
        found.append(register.write(Protocol(margin=margin), seeds=3, finished=0, runs=3).margin)

    other = threading.Thread(target=plan, args=(0.01,))
    with file_lock(register.path.with_suffix(".lock"), lambda handle: None):
        other.start()
        other.join(0.2)
        assert other.is_alive() and not found
        register.path.write_text(_planned(0.02))
    other.join(20)
    assert found == [0.02]
    plan(0.03)
    assert found == [0.02, 0.02] and os.listdir(register.path.parent) == [register.path.name]


def _planned(margin: float) -> str:
    plan = {"began": "now", "finished": 0, "seeds": 3, "baselines": [], "margin": margin, "until_interval": False}
    return json.dumps(plan)


def jobs_of(monkeypatch: pytest.MonkeyPatch, folder: Path, **options: Any) -> list[str]:
    """The labels of the runs that a comparison would start first."""
    seen: list[str] = []

    def capture(jobs: list[Job], **options: Any) -> None:
        if jobs:
            seen.extend(job.label for job in jobs)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("mtmeta.core.studies.launching.placement.run_all", capture)
        try:
            again(folder, **options)
        except KeyboardInterrupt:
            pass
    return seen


def test_more_seeds(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (record,) = (done / "runs").glob(".compare-*.json")
    record.unlink()
    with pytest.raises(UsageError, match="--add-seeds: has nothing to add to"):
        again(done, seeds=None, add_seeds=2)
    again(done)
    assert jobs_of(monkeypatch, done, seeds=None) == []  # as many as before
    more = [f"{name} seed {seed}" for seed in (5, 6) for name in ("individual", "reptile")]
    assert jobs_of(monkeypatch, done, seeds=None, add_seeds=2) == more
    # cut, and the same command again: it goes on, and adds no more
    assert jobs_of(monkeypatch, done, seeds=None, add_seeds=2) == more
    with pytest.raises(UsageError, match="--seeds, --add-seeds: say two numbers"):
        again(done, add_seeds=2)


def test_looks_on_the_way(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "done"
    shutil.copytree(finished, folder, symlinks=True)
    again(folder, seeds=3, jobs=2)
    # of at most 5 seeds the first look is at 3; between the two is nothing that three seeds could tell
    undecided = jobs_of(monkeypatch, folder, seeds=5, until="interval")
    assert undecided == ["individual seed 6", "reptile seed 6"]
    for task in ("sst", "para"):
        rewrite(folder, "individual", task, lambda label, made: label)
        rewrite(folder, "reptile", task, lambda label, made: "0" if label != "0" else "1")
    said: list[str] = []
    monkeypatch.setattr(subprocess, "Popen", None)  # nothing more is run
    found = again(folder, seeds=5, until="interval", say=said.append)
    row = rows(found)["reptile"]
    level = 1 - 0.05 * (3 / 5) ** 3
    assert row["seeds"] == [3, 4, 5]
    assert row["look"] == {"seeds": 3, "level": pytest.approx(level)}
    assert rows(found)["individual"]["look"] is None
    delta = row["columns"]["mean"]["delta"]
    assert delta["high"] < 0
    assert (delta["p"], delta["negative_transfer"]) == (None, True)
    assert said[0].startswith("at most 10 runs, 6 of them finished already")
    assert "no further seeds after 3" in said[1]
    assert f"reptile 3 seeds, {level:.2%}" in as_markdown(found)
    lines = {(line["regime"], line["column"]): line for line in csv.DictReader(io.StringIO(as_csv(found)))}
    levels = [lines["reptile", column]["delta_level"] for column in (*TASKS, "mean")]
    assert levels == ["0.95"] * 3 + [str(row["look"]["level"])]
    assert lines["individual", "mean"]["delta_level"] == ""
    # 95% of the tasks stay as they are
    plain = rows(again(folder, seeds=3))["reptile"]["columns"]
    assert row["columns"]["sst"]["delta"] == plain["sst"]["delta"]
    assert (
        delta["low"] < plain["mean"]["delta"]["low"] < plain["mean"]["delta"]["high"] < delta["high"]
    )  # the interval of a look is wider


@pytest.mark.usefixtures("no_process")
def test_looks_that_cannot_be(done: Path) -> None:
    with pytest.raises(UsageError, match="--until: needs --seeds 4 or more, the most that a row may get; found 3"):
        again(done, seeds=3, until="interval")
    path = done / "reptile.yaml"
    with pytest.raises(UsageError, match="--until: needs a baseline"):
        mtmeta.compare([path], seeds=4, out=done / "runs", until="interval")


@pytest.mark.usefixtures("no_process")
def test_looks_that_have_nothing_to_decide(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told before anything is trained, and before the plan is written down."""
    (record,) = (done / "runs").glob(".compare-*.json")
    record.unlink()
    with pytest.raises(UsageError, match="--until: has no row to decide on, for every recipe here is a baseline"):
        again(done, seeds=4, until="interval", baseline=["individual", "reptile"])
    with pytest.raises(UsageError, match="--until: must be interval, found 'always'"):
        again(done, seeds=4, until="always")
    get = Registry.get

    def lower(self: Registry, kind: str, name: str, place: str) -> Any:
        found = get(self, kind, name, place)
        return dataclasses.replace(found, greater_is_better=False) if name == "pearson" else found

    monkeypatch.setattr(Registry, "get", lower)
    with pytest.raises(UsageError, match="--until: compares means, and these metrics point in different directions"):
        again(done, seeds=4, until="interval")
    assert not record.exists()


def run_here(jobs: list[Job], *, ended: Any = None, failed: Any = None, **options: Any) -> None:
    """What a pool does, in this process; runs of `joint` diverge."""
    for job in jobs:
        name, _, seed = job.label.partition(" seed ")
        if name == "joint":
            failed(job, DivergedError(job.label, "loss became nan"))
            continue
        mtmeta.run(job.arguments[0], overrides=[f"seed={seed}"], out=job.folder)


@pytest.mark.slow
def test_a_row_that_fails_on_the_way_does_not_end_the_looks(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*recipes(tmp_path, "joint"), done / "individual.yaml", done / "reptile.yaml"]
    monkeypatch.setattr("mtmeta.core.studies.launching.placement.run_all", run_here)
    options: dict[str, Any] = {"seeds": 5, "out": done / "runs", "until": "interval", "margin": 0.5}
    with pytest.raises(Incomplete) as raised:
        mtmeta.compare(given, **options)
    found = raised.value.comparison
    # the first look is at three seeds, and nothing was decided there: the others go on, the failed one does not
    assert found["left_out"] == {"joint": "joint seed 3: loss became nan (and 2 more of its runs)"}
    assert rows(found)["reptile"]["seeds"] == [3, 4, 5, 6, 7]
    assert rows(found)["reptile"]["look"] == {"seeds": 5, "level": pytest.approx(1 - 0.05 * (1 - (4 / 5) ** 3))}
    assert "This was planned when 4 of the runs were finished already." in found["notes"]
    for run in (done / "runs").glob("individual-7-*"):
        shutil.rmtree(run)
    # a baseline that fails: its differences are not shown, and nothing more is run for them
    with monkeypatch.context() as patch:
        patch.setattr(
            "mtmeta.core.studies.launching.placement.run_all",
            lambda jobs, failed, **rest: [failed(job, DivergedError(job.label, "loss became nan")) for job in jobs],
        )
        with pytest.raises(Incomplete) as without:
            mtmeta.compare(given[1:], **options)
    assert list(without.value.comparison["left_out"]) == ["individual"]
    assert "delta" not in rows(without.value.comparison)["reptile"]["columns"]["mean"]


@pytest.mark.slow
def test_seeds_are_added_to_rows_that_were_decided(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "done"
    shutil.copytree(finished, folder, symlinks=True)
    (record,) = (folder / "runs").glob(".compare-*.json")
    record.unlink()
    assert jobs_of(monkeypatch, folder, seeds=5, until="interval") == ["individual seed 5", "reptile seed 5"]
    again(folder, seeds=3, jobs=2)
    for task in ("sst", "para"):
        rewrite(folder, "individual", task, lambda label, made: label)
        rewrite(folder, "reptile", task, lambda label, made: "0" if label != "0" else "1")
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)  # nothing more is run
        found = again(folder, seeds=5, until="interval")
    assert rows(found)["reptile"]["seeds"] == [3, 4, 5]
    assert not any("number of seeds" in note for note in found["notes"])
    # of 5 + 6 seeds the first look is at four
    more = jobs_of(monkeypatch, folder, seeds=None, add_seeds=6, until="interval")
    assert more == ["individual seed 6", "reptile seed 6"]
    # cut, it goes on, and says so
    said: list[str] = []
    assert jobs_of(monkeypatch, folder, seeds=None, add_seeds=6, until="interval", say=said.append) == more
    assert said[0].startswith("not all runs of the 11 seeds before are finished")
    with monkeypatch.context() as patch:
        patch.setattr("mtmeta.core.studies.launching.placement.run_all", run_here)
        found = again(folder, seeds=4)
    assert not any("number of seeds" in note for note in found["notes"])  # nothing was planned that depends on it
    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", None)
        found = again(folder, seeds=4, margin=0.5)
    assert any(note.startswith("The number of seeds changed: 5 when the runs began on") for note in found["notes"])


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("greater", [True, False])
def test_a_margin_where_less_is_better(greater: bool, done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers from the other side: what loses at most the margin there gains at least its negative here."""
    get = Registry.get

    def turned(self: Registry, kind: str, name: str, place: str) -> Any:
        found = get(self, kind, name, place)
        return dataclasses.replace(found, greater_is_better=greater) if kind == "metric" else found

    monkeypatch.setattr(Registry, "get", turned)
    for task in ("sst", "para"):
        rewrite(done, "individual", task, lambda label, made: label)
        rewrite(done, "reptile", task, lambda label, made: "0" if label != "0" else "1")
    columns = rows(again(done, margin=0.25))["reptile"]["columns"]
    for task in ("sst", "para"):
        delta = columns[task]["delta"]
        assert delta["high"] < 0  # surely lower
        assert (delta["negative_transfer"], delta["non_inferior"]) == (greater, not greater)


@pytest.mark.usefixtures("no_process")
def test_seeds_beyond_every_number_are_refused(done: Path) -> None:
    with pytest.raises(UsageError, match="--seeds: must be a number from 1 to 1000, found 0"):
        again(done, seeds=0)
    with pytest.raises(UsageError, match="--add-seeds: comes to 1001 seeds, at most 1000 are allowed"):
        again(done, seeds=None, add_seeds=999)


@pytest.mark.usefixtures("no_process")
def test_what_a_row_costs_to_use(done: Path) -> None:
    """Three encoders with a head each, or one with three: the numbers are those of the saved weights."""
    found = rows(again(done))
    sizes = {}
    for name, groups in (("individual", TASKS), ("reptile", ("",))):
        (run,) = (done / "runs").glob(f"{name}-3-*")
        saved = [load_file(run / "checkpoints" / group / "best" / "model.safetensors") for group in groups]
        sizes[name] = sum(tensor.numel() for model in saved for tensor in model.values())
        assert found[name]["parameters"] == sizes[name]
    assert (found["individual"]["encodings"], found["reptile"]["encodings"]) == (3, 1)
    assert f"| {sizes['reptile']:,} | 1 |" in as_markdown(again(done))
    for seed in (3, 4):
        assert rows(again(done))["reptile"]["parameters"] == sizes["reptile"]  # those of one seed are those of all
        for run in (done / "runs").glob(f"*-{seed}-*"):  # of an earlier version
            summary = json.loads((run / "summary.json").read_text())
            del summary["parameters"], summary["encodings"]
            (run / "summary.json").write_text(json.dumps(summary))
    assert "Parameters:" not in as_markdown(again(done))
    assert rows(again(done))["reptile"]["parameters"] is None


# ------------------------------------------------------------------------------------------- what is kept and goes on


def command(folder: Path, *arguments: str) -> list[str]:
    given = [
        str(folder / "individual.yaml"),
        str(folder / "reptile.yaml"),
        "--seeds",
        "2",
        "--out",
        str(folder / "runs"),
    ]
    return [sys.executable, "-m", "mtmeta", "compare", *given, *arguments]


def hashes(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*.safetensors"))}


def wait_for(what: Any, process: subprocess.Popen[str], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not come to that"
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_cut_off_and_started_again(number: signal.Signals, finished: Path, tmp_path: Path) -> None:
    """What is finished is not touched again, and the table is that of a comparison that was never cut."""
    recipes(tmp_path, "individual", "reptile")
    cut = subprocess.Popen(
        command(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # where the tests themselves run behind nohup or a shell's `&`, SIGINT is ignored, and stays so
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    first = tmp_path / "runs" / next(path.name for path in (finished / "runs").glob("individual-3-*"))
    wait_for((first / "summary.json").exists, cut)
    wait_for(lambda: len(list((tmp_path / "runs").glob("[!.]*"))) > 1, cut)
    cut.send_signal(number)
    _, told = cut.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert cut.returncode == (75 if number == signal.SIGTERM else 130)
        how = "stopped by SIGTERM" if number == signal.SIGTERM else "interrupted"
        assert f"error: {how} with 1 of 4 runs done; rerun the same command to continue" in told.splitlines()
        for run in (tmp_path / "runs").glob("[!.]*"):
            assert lock_owner(run) == ""  # no process is left
    before = (first / "summary.json").stat().st_mtime_ns
    done = subprocess.run(command(tmp_path, "--json"), capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    # a run whose comparison was killed goes on by itself, so by now it may be finished too
    assert re.search(r"4 runs, [12] of them" if number == signal.SIGKILL else r"4 runs, 1 of them", done.stderr)
    assert (first / "summary.json").stat().st_mtime_ns == before
    assert hashes(tmp_path / "runs") == hashes(finished / "runs")
    found, never_cut = json.loads(done.stdout), again(finished)
    for row, other in zip(found["rows"], never_cut["rows"], strict=True):
        assert row["columns"] == other["columns"]


@pytest.mark.slow
def test_a_run_that_another_process_is_at_is_waited_for(tmp_path: Path) -> None:
    (path,) = recipes(tmp_path, "joint")
    folder = tmp_path / "run"
    lines: list[str] = []
    done: list[Job] = []
    job = Job("joint", folder, [str(path)])
    with lock_folder(folder, print):
        assert lock_owner(folder).startswith(f"pid {os.getpid()} on host ")
        worker = threading.Thread(target=lambda: run_all([job], say=lines.append, ended=done.append))
        worker.start()
        time.sleep(1.5)
        assert done == []
        assert not (folder / "recipe.yaml").exists()
    worker.join(timeout=120)
    assert done == [job]
    assert [line for line in lines if "waits for pid" in line] == [lines[0]]
    assert lock_owner(folder) == ""


@pytest.mark.slow
def test_one_that_fails_does_not_keep_the_others_from_running(tmp_path: Path) -> None:
    good, bad = recipes(tmp_path, "joint", "reptile")
    lines: list[str] = []
    jobs = [
        Job("reptile seed 3", tmp_path / "bad", [str(bad), "--set=algorithm.inner_optimizer.lr=1e30"]),
        Job("joint seed 3", tmp_path / "good", [str(good)]),
    ]
    with pytest.raises(DivergedError, match=r"reptile seed 3: .*became \S+ at meta-step") as raised:
        run_all(jobs, say=lines.append)
    assert raised.value.exit_code == 7
    assert (tmp_path / "good" / "summary.json").exists()
    assert not any("error: " in line for line in lines)


@pytest.mark.slow
def test_what_is_found_after_a_run_ends_everything_else(tmp_path: Path) -> None:
    """Runs on other data than the first would be of no use, however long they took."""
    one, two = recipes(tmp_path, "joint", "reptile")
    jobs = [
        Job("one", tmp_path / "one", [str(one)]),
        Job("two", tmp_path / "two", [str(two), "--set=training.steps=100000"]),
        Job("three", tmp_path / "three", [str(one)]),
    ]

    def ended(job: Job) -> None:
        raise DataError("here", "is other data")

    with pytest.raises(DataError, match="here: is other data"):
        run_all(jobs, at_once=2, ended=ended)
    assert lock_owner(tmp_path / "two") == ""
    assert not (tmp_path / "two" / "summary.json").exists()
    assert not (tmp_path / "three").exists()


def test_a_run_that_is_killed_is_told_of(tmp_path: Path) -> None:
    (path,) = recipes(tmp_path, "joint")

    def kill(text: str) -> None:
        if "parameters" in text:
            for line in Path("/proc/self/task").glob("*/children"):
                for pid in line.read_text().split():
                    if b"mtmeta" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        os.kill(int(pid), signal.SIGKILL)

    job = Job("joint", tmp_path / "run", [str(path), "--set=reporters=[console]", "--set=training.steps=500"])
    with pytest.raises(MachineError, match="joint: was killed by SIGKILL; run the same command again"):
        run_all([job], say=kill)


# --------------------------------------------------------------------------------------- what cannot be compared


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"evaluation": {"report_on": "test"}}, "reports on dev, 'fomaml' on test; --set evaluation.report_on=dev"),
        ({"tasks": {"sst": {"train": "sample", "dev": "sample"}}}, "trains sst, para, sts, and 'fomaml' sst"),
        ({"name": "joint"}, "has the name 'joint' of another recipe; give each a 'name:' of its own"),
        ({"seed": -1}, "seed must be an integer"),
    ],
)
def test_recipes_that_do_not_fit(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    one, two = write_recipe(tmp_path, "joint"), write_recipe(tmp_path, "fomaml")
    two.write_text(json.dumps(json.loads(two.read_text()) | changes))
    with pytest.raises(RecipeError, match=what):
        mtmeta.compare([one, two], out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_process")
def test_tasks_scored_by_different_metrics(tmp_path: Path) -> None:
    def task(metric: str) -> dict[str, Any]:
        more = {"task": "classification", "labels": 2, "metrics": [metric], "train": "a.csv", "dev": "a.csv"}
        return {"tasks": {"mine": more}}

    one = write_recipe(tmp_path, "joint", **task("accuracy"))
    two = write_recipe(tmp_path, "individual", **task("macro_f1"))
    with pytest.raises(RecipeError, match="scores task 'mine' by accuracy, 'individual' by macro_f1"):
        mtmeta.compare([one, two], out=tmp_path / "runs")


@pytest.mark.usefixtures("no_process")
def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    one, two = write_recipe(tmp_path, "joint", seed="x"), write_recipe(tmp_path, "reptile", sampler="nobody")
    with pytest.raises(Problems) as raised:
        mtmeta.compare([one, two], out=tmp_path / "runs")
    assert len(raised.value.problems) == 2


@pytest.mark.usefixtures("no_process")
def test_a_baseline_that_is_none_of_them(done: Path) -> None:
    with pytest.raises(UsageError, match=r"'reptil' is none of these recipes; did you mean 'reptile'"):
        again(done, baseline="reptil")


@pytest.mark.usefixtures("no_process")
def test_runs_on_other_data(done: Path) -> None:
    lock = next((done / "runs").glob("reptile-4-*")) / "recipe.lock.yaml"
    text = lock.read_text()
    key = next(line for line in text.splitlines() if line.strip().startswith("sst-dev:"))
    lock.write_text(text.replace(key, "  sst-dev: " + "e" * 64))
    with pytest.raises(
        DataError, match=r"sst-dev has sha256 \w{4}.. in 'individual seed 3', eeee.. in 'reptile seed 4'"
    ):
        again(done)


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("harm", ["gone", "cut", "label"])
def test_predictions_that_are_damaged(harm: str, done: Path) -> None:
    path = next((done / "runs").glob("reptile-4-*")) / "predictions" / "sst-dev.csv"
    lines = path.read_text().splitlines(keepends=True)
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_text("".join(lines[:-3]))
    else:
        path.write_text("".join([*lines[:-1], "x,seven,1\n"]))
    # a label that is no class may be one that only dev has, but then all runs have it
    what = "cannot be read .* mtmeta eval " if harm == "gone" else "holds other examples than the other runs"
    with pytest.raises(mtmeta.CheckpointError, match=what):
        again(done)


def test_two_ways_of_printing_are_one_too_many(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from mtmeta.cli import main

    with pytest.raises(SystemExit) as ended:
        main(["compare", str(done / "joint.yaml"), "--json", "--csv"])
    assert ended.value.code == 2
    assert capsys.readouterr().err == (
        "error: --json, --markdown, --csv: say three ways of printing; give one of them\n"
    )


def test_jobs_share_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, str]] = []

    class Process:
        returncode = 0

        def __init__(self, *arguments: Any, env: dict[str, str], **options: Any) -> None:
            self.stderr = io.StringIO()
            seen.append(env)

        def poll(self) -> int:
            return 0

    monkeypatch.setattr(subprocess, "Popen", Process)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    jobs = [Job(str(number), tmp_path / str(number), []) for number in range(2)]
    monkeypatch.delenv("OMP_NUM_THREADS")
    run_all(jobs, at_once=2)
    assert [env["OMP_NUM_THREADS"] for env in seen] == ["4", "4"]
    run_all(jobs, at_once=1)
    assert "OMP_NUM_THREADS" not in seen[-1]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    run_all(jobs, at_once=2)
    assert seen[-1]["OMP_NUM_THREADS"] == "3"


# ------------------------------------------------------------------------------- numbers that would be wrong in silence


@pytest.mark.slow
def test_a_recipe_edited_while_the_comparison_runs(tmp_path: Path) -> None:
    one, two = recipes(tmp_path, "joint", "reptile")

    def edit(text: str) -> None:
        if "0 of them finished" in text:
            two.write_text(two.read_text().replace('"steps": 2', '"steps": 1'))

    with pytest.raises(RecipeError, match=r"reptile.yaml: was edited while the comparison ran; remove "):
        mtmeta.compare([one, two], seeds=1, out=tmp_path / "runs", say=edit)


def on_files(folder: Path) -> list[Path]:
    rows = "".join(f"{i}\tgood film {i}\t{i % 2}\n" for i in range(40))
    for root in ("d1", "d2"):
        (folder / root).mkdir()
        for name in ("train", "dev"):
            (folder / root / f"{name}.tsv").write_text("id\tsentence\tlabel\n" + rows)
    task = {"task": "classification", "labels": 2, "train": "train.tsv", "dev": "dev.tsv", "batch_size": 8}
    return recipes(folder, "joint", "individual", tasks={"mine": task}, data={}, data_root=str(folder / "d1"))


def test_finished_runs_on_other_files_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths, out = on_files(tmp_path), tmp_path / "runs"
    first = mtmeta.compare(paths, seeds=1, out=out)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert mtmeta.compare(paths, seeds=1, out=out) == first
    assert mtmeta.compare(paths, seeds=1, out=out, data_root=str(tmp_path / "d2")) == first  # the same bytes
    (tmp_path / "d2" / "dev.tsv").write_text((tmp_path / "d2" / "dev.tsv").read_text().replace("good", "fine"))
    with pytest.raises(DataError, match=r"d2/dev.tsv: is not the file that .* was trained with; choose another --out"):
        mtmeta.compare(paths, seeds=1, out=out, data_root=str(tmp_path / "d2"))
    with pytest.raises(Problems, match=r"2 problems, the first: .*nowhere/train.tsv: no such file"):
        mtmeta.compare(paths, seeds=1, out=out, data_root=str(tmp_path / "nowhere"))


@pytest.mark.usefixtures("no_process")
def test_metrics_of_different_directions_have_no_better_mean(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    get = Registry.get

    def lower(self: Registry, kind: str, name: str, place: str) -> Any:
        found = get(self, kind, name, place)
        return dataclasses.replace(found, greater_is_better=False) if name == "pearson" else found

    monkeypatch.setattr(Registry, "get", lower)
    found = again(done)
    for row in found["rows"]:
        assert row["columns"]["mean"]["best"] is False
        assert "delta" not in row["columns"]["mean"]
    one, two = (row["columns"]["sts"] for row in found["rows"])
    assert one["best"] == (one["mean"] <= two["mean"])
    assert two["delta"]["negative_transfer"] == (two["delta"]["low"] > 0)
    assert "point in different directions" in as_markdown(found)


# -------------------------------------------------------------------------------------------- the whole plan at once


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"labels": ["0", "1", "2"]}, r"has \[\"0\", \"1\"\] for tasks.mine.labels, 'individual' has "),
        ({"text": "other"}, "has sentence for tasks.mine.text, 'individual' has other; compare recipes that measure"),
        ({"label": "grade"}, "has label for tasks.mine.label, 'individual' has grade"),
        ({"dialect": {"encoding": "latin-1"}}, "has utf-8 for tasks.mine.dialect.encoding, 'individual' has latin-1"),
        ({"select_on": "test"}, "selects on dev, 'individual' on test; --set evaluation.select_on=dev"),
    ],
)
def test_recipes_that_measure_something_else(changes: dict[str, Any], what: str, tmp_path: Path) -> None:
    one, two = on_files(tmp_path)
    made = json.loads(two.read_text())
    if "select_on" in changes:
        made["tasks"]["mine"]["test"] = "dev.tsv"
        made["evaluation"] = changes
    else:
        made["tasks"]["mine"] |= changes
    two.write_text(json.dumps(made))
    with pytest.raises(RecipeError, match=what):
        mtmeta.compare([one, two], out=tmp_path / "runs")


def test_the_same_in_other_words_is_the_same(tmp_path: Path) -> None:
    one, two = on_files(tmp_path)
    made = json.loads(two.read_text())
    made["tasks"]["mine"] |= {"labels": ["0", "1"], "batch_size": 4, "inner_steps": 9, "loss_weight": 0.5}
    made["data"] = {"on_bad_rows": "skip"}
    two.write_text(json.dumps(made))
    recipes_ = [load_recipe(path, build_registry()) for path in (one, two)]
    check_alike(recipes_)
    assert notes_on_recipes(recipes_) == []


def test_what_only_changes_training_is_noted(tmp_path: Path) -> None:
    one = write_recipe(tmp_path, "joint")
    two = write_recipe(tmp_path, "reptile", data={"train_fraction": 0.1})
    three = write_recipe(tmp_path, "fomaml")
    overrides = ["backbone.max_length=32", "tasks.para.pair_mode=cross"]
    made = [load_recipe(path, build_registry()) for path in (one, two)]
    made.append(load_recipe(three, build_registry(), overrides=overrides))
    check_alike(made)
    path = write_recipe(tmp_path, "individual")
    shares = ["budget.examples=400", "budget.shares={sst: 0.2, para: 0.6, sts: 0.2}"]
    divided = [load_recipe(path, build_registry(), overrides=some) for some in (shares[:1], ["name=parts", *shares])]
    assert notes_on_recipes(divided) == [
        "Rows differ in budget.shares: null (individual); sst 0.2, para 0.6, sts 0.2 (parts)."
    ]
    assert notes_on_recipes(made) == [
        "Rows differ in backbone.max_length: 64 (joint, reptile); 32 (fomaml).",
        "Rows differ in data.train_fraction: 0.2 (joint, fomaml); 0.1 (reptile).",
        "Rows differ in tasks.para.pair_mode: separate (joint, reptile); cross (fomaml).",
    ]


def relock(folder: Path, name: str, old: str, new: str) -> None:
    """Change a line of the locks of a recipe's runs."""
    for run in (folder / "runs").glob(f"{name}-*"):
        lock = run / "recipe.lock.yaml"
        text = lock.read_text()
        assert re.search(old, text, re.MULTILINE)
        lock.write_text(re.sub(old, new, text, flags=re.MULTILINE))


@pytest.mark.usefixtures("no_process")
def test_versions_that_differ_are_noted(done: Path) -> None:
    assert again(done)["notes"] == []
    relock(done, "reptile-4", r"^torch: .*", "torch: 2.99.0")
    relock(done, "reptile", r"^plugins: .*", "plugins: {mtmeta-cola: '1.0'}")
    relock(done, "individual-4", r"^plugins: .*", "plugins: {mtmeta-cola: '2.0'}")  # what others lack is no version
    relock(done, "individual", r"^backbone: .*", "backbone: another, and longer than is shown")
    notes = again(done)["notes"]
    torch = re.search(r"torch: (\S+)", next((done / "runs").glob("reptile-3-*/recipe.lock.yaml")).read_text())
    assert torch is not None
    assert sorted(notes) == [
        "Rows differ in backbone weights: another, and ... (individual); tiny, seed 3 (reptile).",
        "Rows differ in backbone weights: another, and ... (individual); tiny, seed 4 (reptile).",
        "Rows differ in plugin mtmeta-cola: 2.0 (individual); 1.0 (reptile).",
        f"Rows differ in torch: {torch[1]} (individual, reptile seed 3); 2.99.0 (reptile seed 4).",
    ]
    assert notes[0] in as_markdown(again(done))


@pytest.mark.usefixtures("no_process")
def test_files_are_checked_before_anything_runs(tmp_path: Path) -> None:
    one, two = on_files(tmp_path)
    made = json.loads(two.read_text())
    with pytest.raises(DataError, match=r"d1/nowhere.tsv: no such file"):
        two.write_text(json.dumps(made | {"tasks": {"mine": made["tasks"]["mine"] | {"train": "nowhere.tsv"}}}))
        mtmeta.compare([one, two], out=tmp_path / "runs")
    (tmp_path / "d2" / "dev.tsv").write_text((tmp_path / "d2" / "dev.tsv").read_text().replace("good", "fine"))
    with pytest.raises(DataError, match=r"mine-dev has sha256 \w{6}.. in 'joint', \w{6}.. in 'individual'; compare"):
        two.write_text(json.dumps(made | {"data_root": str(tmp_path / "d2")}))
        mtmeta.compare([one, two], out=tmp_path / "runs")
    for path in (one, two):
        path.write_text(path.read_text().replace('"labels": 2', '"labels": 2, "text": "txet"'))
    two.write_text(json.dumps(json.loads(two.read_text()) | {"data_root": str(tmp_path / "d1")}))
    with pytest.raises(Problems, match=r"2 problems, the first: .*train.tsv: no column 'txet'"):
        mtmeta.compare([one, two], out=tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("device", "error", "what"),
    [
        ("cuda:99", MachineError, "device cuda:99: this machine has"),
        ("gpu", UsageError, "--device: 'gpu' is no device"),
    ],
)
def test_the_device_too(device: str, error: type[Exception], what: str, tmp_path: Path) -> None:
    with pytest.raises(error, match=what):
        mtmeta.compare(recipes(tmp_path, "joint"), out=tmp_path / "runs", device=device)


@pytest.mark.usefixtures("no_process")
def test_what_is_wrong_with_an_option_is_told_once(tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        mtmeta.compare(recipes(tmp_path, "joint", "reptile"), out=tmp_path / "runs", overrides=["training.stesp=1"])
    assert raised.value.place == "--set training.stesp"


# ---------------------------------------------------------------------------------------------- damaged, or not theirs


def spoil(path: Path, *keys: str, value: Any) -> None:
    made = json.loads(path.read_text())
    at = made
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    path.write_text(json.dumps(made))


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize(
    ("keys", "value", "what"),
    [
        (("tasks",), {}, r"damaged \(tasks: dictionary should have at least 1 item"),
        (("tasks", "sst"), 3, r"damaged \(tasks.sst: "),
        (("tasks", "sst", "value"), "0.5", r"damaged \(tasks.sst.value: input should be a valid number"),
        (("tasks", "sst", "value"), float("nan"), r"cannot be read \(NaN is no JSON\)"),
        (("mean",), float("inf"), r"cannot be read \(Infinity is no JSON\)"),
        (("peak_memory_bytes",), None, r"damaged \(peak_memory_bytes: "),
        (("seed",), 7, r"is not that of the run's recipe \(seed\)"),
        (("mean",), 0.9, r"is not that of the run's recipe \(mean\)"),
        (("tasks", "sst", "metric"), "macro_f1", r"is not that of the run's recipe \(tasks\)"),
    ],
)
def test_summaries_that_are_damaged(keys: tuple[str, ...], value: Any, what: str, done: Path) -> None:
    spoil(next((done / "runs").glob("reptile-4-*/summary.json")), *keys, value=value)
    with pytest.raises(CheckpointError, match=what) as raised:
        again(done)
    assert str(raised.value).endswith("; remove it and the same command writes it again")
    assert raised.value.exit_code == 4


@pytest.mark.usefixtures("no_process")
def test_a_value_that_is_not_that_of_the_predictions(done: Path) -> None:
    path = next((done / "runs").glob("reptile-4-*/summary.json"))
    found = json.loads(path.read_text())
    found["tasks"]["sts"]["value"] += 0.01
    found["mean"] += 0.01 / 3
    path.write_text(json.dumps(found))
    with pytest.raises(CheckpointError, match=r"says \S+ for sts pearson, the predictions beside it come to"):
        again(done)


@pytest.mark.usefixtures("no_process")
def test_errors_name_no_option_that_compare_lacks(done: Path) -> None:
    lock = next((done / "runs").glob("reptile-4-*/recipe.lock.yaml"))
    lock.write_text("recipe: [")
    with pytest.raises(CheckpointError, match=f"damaged.*; remove {lock.parent} to train it again") as raised:
        again(done)
    assert "--fresh" not in str(raised.value)


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("a; choose another --out, or --fresh to start over", "a; remove R to train it again"),
        ("run used threads 1; now threads 2; results would differ: pass --allow-inexact to go on",
         "run used threads 1; now threads 2; results would differ; remove R to train it again"),
        ("x changed; start a new run or pass --allow-changed-data", "x changed; remove R to train it again"),
        ("warning: R is finished; --fresh trains it again", "warning: R is finished; remove R to train it again"),
        ("fresh data: --device cpu", "fresh data: --device cpu"),
    ],
)  # fmt: skip
def test_advice_in_the_words_of_compare(line: str, shown: str) -> None:
    assert without_options(line, Path("R")) == shown


# ----------------------------------------------------------------------------------------------------------- processes


def test_a_run_goes_on_with_the_threads_it_began_with(done: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever --jobs is: with another number the numbers would differ, and it would be refused."""
    for run in (done / "runs").glob("*-4-*"):
        (run / "summary.json").unlink()
    relock(done, "reptile-4", r"^threads: 1", "threads: 3")
    (next((done / "runs").glob("individual-4-*")) / "recipe.yaml").unlink()  # that one has not begun
    seen: list[Job] = []
    monkeypatch.setattr("mtmeta.core.studies.launching.placement.run_all", lambda jobs, **options: seen.extend(jobs))
    with pytest.raises(CheckpointError, match="is not finished"):
        again(done, jobs=2)
    assert {job.label: job.threads for job in seen} == {"individual seed 4": None, "reptile seed 4": 3}


class Pretended:
    """A process that ends with what is told of it; `told` holds exit codes, lines and errors of one after the other."""

    told: ClassVar[list[tuple[int, str, MtmetaError | None]]] = []
    started: ClassVar[list[tuple[list[str], dict[str, str]]]] = []

    def __init__(self, command: list[str], *, env: dict[str, str], **options: Any) -> None:
        self.started.append((command, env))
        self.returncode, lines, error = self.told[len(self.started) - 1]
        self.stderr = io.StringIO(lines)
        if error is not None:
            assert send_error(error, str(os.dup(int(env[PIPE]))))

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> type[Pretended]:
    monkeypatch.setattr(Pretended, "told", [])
    monkeypatch.setattr(Pretended, "started", [])
    monkeypatch.setattr(subprocess, "Popen", Pretended)
    return Pretended


def test_the_threads_of_a_job_come_before_the_environment(
    tmp_path: Path, pretended: type[Pretended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    pretended.told += [(0, "", None), (0, "", None)]
    run_all([Job("a", tmp_path / "a", [], 3), Job("b", tmp_path / "b", [])], at_once=2)
    assert [env["OMP_NUM_THREADS"] for _, env in pretended.started] == ["3", "7"]


def test_a_run_that_another_process_took_first_is_waited_for(tmp_path: Path, pretended: type[Pretended]) -> None:
    """Between our look and the start of our process: that is no failure."""
    in_use = RunInUse(f"{tmp_path}/a", "is in use by pid 7 on host h; wait for it to end")
    pretended.told += [(4, "", in_use), (0, "", None)]
    done: list[Job] = []
    job = Job("a", tmp_path / "a", [])
    run_all([job], ended=done.append)
    assert (done, len(pretended.started)) == ([job], 2)
    pretended.told.append((4, "", CheckpointError("weights", "are damaged")))
    with pytest.raises(CheckpointError, match="a: weights: are damaged"):
        run_all([job])


def test_lines_that_nobody_listens_to_do_not_stop_a_run(tmp_path: Path, pretended: type[Pretended]) -> None:
    def say(text: str) -> None:
        heard.append(text)
        raise BrokenPipeError

    heard: list[str] = []
    lines = "one\nwarning: R is finished; --fresh trains it again\n"
    pretended.told.append((7, lines, DivergedError("", "loss became nan")))
    with pytest.raises(DivergedError, match="a: loss became nan"):
        run_all([Job("a", tmp_path / "a", [])], say=say)
    assert heard == ["a: one", f"a: warning: R is finished; remove {tmp_path / 'a'} to train it again"]


def test_a_recipe_whose_name_begins_like_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path,) = recipes(tmp_path, "joint")
    path.rename(tmp_path / "--joint.yaml")
    monkeypatch.chdir(tmp_path)
    made = mtmeta.compare(["--joint.yaml"], seeds=1, out="runs")
    assert [row["name"] for row in made["rows"]] == ["joint"]


def test_all_processes_are_asked_before_any_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Slow(Pretended):
        def __init__(self, command: list[str], **options: Any) -> None:
            self.name, self.stderr, self.returncode = command[-2], io.StringIO(), 0

        def poll(self) -> Any:
            return None if not self.name.endswith("0") else 0

        def terminate(self) -> None:
            told.append("asked")

        def wait(self, seconds: float | None = None) -> None:
            told.append("waited")

        def kill(self) -> None:
            pass

    def ended(job: Job) -> None:
        raise DataError("here", "is other data")

    monkeypatch.setattr(subprocess, "Popen", Slow)
    with pytest.raises(DataError):
        run_all([Job(str(n), tmp_path / str(n), []) for n in range(3)], at_once=3, ended=ended)
    assert told[:3] == ["asked", "asked", "waited"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_run_does_not_outlive_a_comparison_that_is_killed(tmp_path: Path) -> None:
    recipes(tmp_path, "individual", "reptile")
    more = ["--set=training.steps=100000", "--set=evaluation.every=100000", "--set=checkpoint.every=100000"]
    cut = subprocess.Popen(command(tmp_path, *more), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list((tmp_path / "runs").glob("*/events.jsonl")), cut)
    (run,) = (tmp_path / "runs").glob("[!.]*")
    wait_for(lambda: '"step"' in (run / "events.jsonl").read_text(), cut)
    cut.kill()
    cut.communicate()
    end = time.monotonic() + 60
    while lock_owner(run):
        assert time.monotonic() < end, "it goes on"
        time.sleep(0.05)
    assert list((run / "checkpoints" / "sst").glob("step-*"))  # and saved what it had


# ---------------------------------------------------------------------------------------------------------- what fails


def test_the_others_are_shown_where_one_fails(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from mtmeta.cli import main

    run = next((done / "runs").glob("individual-4-*"))
    (run / "summary.json").unlink()

    def diverge(jobs: list[Job], *, failed: Any, **options: Any) -> None:
        for job in jobs:
            failed(job, DivergedError(job.label, "loss became nan at meta-step 2; lower the learning rate"))

    monkeypatch.setattr("mtmeta.core.studies.launching.placement.run_all", diverge)
    with pytest.raises(Incomplete) as raised:
        again(done)
    found = raised.value.comparison
    assert list(rows(found)) == ["reptile"]
    why = "individual seed 4: loss became nan at meta-step 2; lower the learning rate"
    assert found["left_out"] == {"individual": why}
    given = [str(done / "individual.yaml"), str(done / "reptile.yaml"), "--seeds=2", f"--out={done / 'runs'}"]
    for form in ("--json", "--markdown", "--csv", ""):
        with pytest.raises(SystemExit) as ended:
            main(["compare", *given, *filter(None, [form])])
        assert ended.value.code == 7
        out, err = capsys.readouterr()
        assert err.splitlines()[1:] == [f"error: {why}"]
        assert "reptile" in out
        if form == "--json":
            assert json.loads(out) == found
        elif form != "--csv":
            assert f"Left out: individual, because of {why}" in out
    for run in (done / "runs").glob("reptile-*/summary.json"):
        run.unlink()
    with pytest.raises(Problems) as nothing:
        again(done)
    assert not isinstance(nothing.value, Incomplete)


# --------------------------------------------------------------------------------------------------------- as it looks


@pytest.mark.usefixtures("no_process")
@pytest.mark.parametrize("columns", [30, 60, 100])
def test_no_number_is_cut_in_a_narrow_terminal(
    columns: int, done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def console() -> Console:
        return Console(width=columns, force_terminal=True, highlight=False, markup=False, soft_wrap=True)

    monkeypatch.setattr(compare_view, "console_for_tables", console)
    found = again(done)
    compare_view.show_comparison(found)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "\N{HORIZONTAL ELLIPSIS}" not in out
    bar = "[\N{BOX DRAWINGS LIGHT VERTICAL}\N{BOX DRAWINGS HEAVY VERTICAL}]"
    lines = [line for line in out[: out.index("other metrics")].splitlines() if re.match(bar, line)]
    cells = [[cell.strip() for cell in re.split(bar, line)[1:-1]] for line in lines]
    shown = ["".join(column) for column in zip(*cells, strict=True)]
    if columns < 60:  # cells are broken, but no character of them is lost
        for name, text in zip(("", *TASKS, "mean"), shown, strict=True):
            for row in found["rows"]:
                assert (row["name"] if not name else f"{row['columns'][name]['mean']:.4f}") in text
        return
    # turned, or with intervals below their numbers: whatever is printed no cell is broken
    for row in found["rows"]:
        for cell in row["columns"].values():
            assert any(f"{cell['mean']:.4f}" in one for line in cells for one in line)
    assert all(len(line) <= columns for line in lines)


def test_rows_of_other_seeds_say_so() -> None:
    cell = {"values": [0.5], "mean": 0.5, "low": 0.4, "high": 0.6, "best": False}
    sure = {"negative_transfer": None, "non_inferior": None}
    delta = {"value": 0.1, "low": -0.1, "high": 0.3, "p": 0.4, "effect": None} | sure
    undefined = {"value": 0.1, "low": None, "high": None, "p": None, "effect": None} | sure
    costs = {"examples": 10, "seconds": 1, "peak_memory_bytes": 1, "parameters": None, "encodings": None, "look": None}
    below = {"sst": cell | {"deltas": {"one": delta}}, "mean": cell | {"deltas": {"one": undefined}}}
    made: list[dict[str, Any]] = [
        {"name": "one", "algorithm": "a", "seeds": [3, 4, 5], "columns": {"sst": cell, "mean": cell}, **costs},
        {"name": "two", "algorithm": "b", "seeds": [3], "columns": below, **costs},
    ]
    found: dict[str, Any] = {"split": "dev", "baseline": "one", "metrics": {"sst": "accuracy"}, "rows": made}
    found |= {"baselines": ["one"], "margin": None, "notes": [], "left_out": {}}
    text = as_markdown(found)
    assert "seeds: one 3, 4, 5; two 3" in text
    assert "Student's t over the seeds (of two, with one run, bootstrap over its examples)" in text
    assert "one seed cannot tell" in text
    assert "| 0.5000 [0.400, 0.600]<br>+0.1000 |" in text
    made.append({**made[1], "name": "three", "seeds": [3, 4, 5]})
    text = as_markdown(found)
    assert "'worse' marks negative transfer: no part of it is better. Of two it covers other examples" in text


@pytest.mark.slow
def test_with_the_console_reporter_and_without_anywhere_to_say_it(tmp_path: Path) -> None:
    """As most people run it: reporters at their default; and with stderr closed, where a line has nowhere to go."""
    (path,) = recipes(tmp_path, "joint")
    made = json.loads(path.read_text())
    del made["reporters"]
    path.write_text(json.dumps(made))
    given = [sys.executable, "-m", "mtmeta", "compare", str(path), "--seeds", "1", "--json", "--out"]
    done = subprocess.run([*given, str(tmp_path / "a")], capture_output=True, text=True, check=True)
    assert re.search(r"^joint seed 3: done in \d.*, mean 0\.\d{4} \(1 of 1 run done\)$", done.stderr, re.MULTILINE)
    closed = ["sh", "-c", '"$@" 2>&-', "sh", *given, str(tmp_path / "b")]
    silent = subprocess.run(closed, capture_output=True, text=True, check=True)
    assert silent.stderr == ""
    one, other = json.loads(done.stdout), json.loads(silent.stdout)
    assert [row["columns"] for row in one["rows"]] == [row["columns"] for row in other["rows"]]


def test_an_error_that_nobody_reads_keeps_its_exit_code(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    given = [sys.executable, "-m", "mtmeta", "compare", str(tmp_path / "nothing.yaml")]
    assert subprocess.run(given, stderr=write, check=False).returncode == 2
    os.close(write)


@pytest.mark.slow
def test_a_model_of_millions_goes_on_with_other_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Begun two at a time, cut, and ended one at a time: the weights of a comparison that was never cut."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    one = {"train": "sample", "dev": "sample", "batch_size": 4}
    changes = {"backbone": {"name": "bert", "weights": "embedded", "max_length": 16}, "checkpoint": {"every": 1}}
    path = write_recipe(tmp_path, "joint", **{**SMALL, **changes, "tasks": {"sst": one}})
    whole = mtmeta.compare([path], seeds=2, jobs=2, out=tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", symlinks=True)
    for run in (tmp_path / "cut").glob("[!.]*"):
        (run / "summary.json").unlink()
        shutil.rmtree(run / "checkpoints" / "step-00000002")
    found = mtmeta.compare([path], seeds=2, jobs=1, out=tmp_path / "cut")
    assert hashes(tmp_path / "cut") == hashes(tmp_path / "whole")
    assert [row["columns"] for row in found["rows"]] == [row["columns"] for row in whole["rows"]]
