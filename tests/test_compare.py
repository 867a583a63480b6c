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
from typing import Any

import numpy as np
import pytest
import tiny  # noqa: F401  # one thread
from commands import quietly
from test_run import write_recipe

import mtmeta
from mtmeta.core import compare_view
from mtmeta.core.errors import DataError, DivergedError, MachineError, Problems, RecipeError, UsageError
from mtmeta.core.hold import hold, holder
from mtmeta.core.many import Job, run_all
from mtmeta.core.registry import Registry

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
    names = sorted(path.name for path in (done / "runs").iterdir())
    assert [name.rpartition("-")[0] for name in names] == ["individual-3", "individual-4", "reptile-3", "reptile-4"]
    for name in names:
        assert (
            mtmeta.core.strict_yaml.read_file(done / "runs" / name / "recipe.lock.yaml")
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
    shown = compare_view.as_markdown(again(done, seeds=1))
    assert "one seed cannot tell, so nothing is marked 'worse'" in shown


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
        (run / "summary.json").write_text(json.dumps(summary))


@pytest.mark.usefixtures("no_process")
def test_negative_transfer_is_flagged(done: Path) -> None:
    rewrite(done, "individual", "para", lambda label, made: label)
    rewrite(done, "reptile", "para", lambda label, made: "1" if label == "0" else "0")
    rewrite(done, "individual", "sst", lambda label, made: "0" if label != "0" else "1")
    rewrite(done, "reptile", "sst", lambda label, made: label)
    found = rows(again(done))["reptile"]["columns"]
    assert found["para"]["delta"] == {
        "value": -1.0, "low": -1.0, "high": -1.0, "p": pytest.approx(2 / 1001), "negative_transfer": True
    }  # fmt: skip
    assert found["sst"]["delta"]["value"] == 1.0
    assert found["sst"]["delta"]["negative_transfer"] is False
    assert found["sst"]["best"] is True
    assert found["para"]["best"] is False
    text = compare_view.as_markdown(again(done))
    assert "-1.0000 [-1.000, -1.000] worse" in text
    assert "+1.0000 [+1.000, +1.000] |" in text
    assert "It covers other seeds and other examples (paired two-level bootstrap" in text
    alone = rows(again(done, seeds=1))["reptile"]["columns"]  # as sure of the examples, but who knows another seed
    assert (alone["para"]["delta"]["high"], alone["para"]["delta"]["negative_transfer"]) == (-1.0, None)


@pytest.mark.usefixtures("no_process")
def test_the_table_as_people_and_programs_read_it(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = again(done)
    compare_view.show_comparison(found)
    out = capsys.readouterr().out
    for cell in [cell for row in found["rows"] for cell in row["columns"].values()]:
        assert f"{cell['mean']:.4f} [" in out
    assert "differences to individual" in out
    lines = list(csv.DictReader(io.StringIO(compare_view.as_csv(found))))
    assert [(line["regime"], line["column"]) for line in lines] == [
        (name, column) for name in ("individual", "reptile") for column in (*TASKS, "mean")
    ]
    for line in lines:
        cell = rows(found)[line["regime"]]["columns"][line["column"]]
        assert float(line["mean"]) == cell["mean"]
        assert line["delta_value"] == (str(cell["delta"]["value"]) if "delta" in cell else "")
        assert line["seeds"] == "3 4"
    table = [line for line in compare_view.as_markdown(found).splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({line.count("|") for line in table}) == 1
    assert sum(line.count("**") for line in table) == 2 * 4 or any(
        a["mean"] == b["mean"] for a, b in zip(*(row["columns"].values() for row in found["rows"]), strict=True)
    )


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


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)
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
    wait_for(lambda: len(list((tmp_path / "runs").iterdir())) > 1, cut)
    cut.send_signal(number)
    _, told = cut.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert cut.returncode == (75 if number == signal.SIGTERM else 130)
        how = "stopped by SIGTERM" if number == signal.SIGTERM else "interrupted"
        assert f"error: {how} with 1 of 4 runs done; rerun the same command to continue" in told.splitlines()
        for run in (tmp_path / "runs").iterdir():
            assert holder(run) == ""  # no process is left
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


def test_a_run_that_another_process_is_at_is_waited_for(tmp_path: Path) -> None:
    (path,) = recipes(tmp_path, "joint")
    folder = tmp_path / "run"
    lines: list[str] = []
    done: list[Job] = []
    job = Job("joint", folder, [str(path)])
    with hold(folder, print):
        assert holder(folder).startswith(f"pid {os.getpid()} on host ")
        worker = threading.Thread(target=lambda: run_all([job], say=lines.append, ended=done.append))
        worker.start()
        time.sleep(1.5)
        assert done == []
        assert not (folder / "recipe.yaml").exists()
    worker.join(timeout=120)
    assert done == [job]
    assert [line for line in lines if "waits for pid" in line] == [lines[0]]
    assert holder(folder) == ""


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
    assert holder(tmp_path / "two") == ""
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
        ({"tasks": {"sst": {"train": "sample", "dev": "sample"}}}, "has the tasks sst, para, sts, 'fomaml' has sst"),
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
    what = "holds other examples than the other runs" if harm == "cut" else "cannot be read .* mtmeta eval "
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
    with pytest.raises(DataError, match="nowhere"):
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
    assert "point in different directions" in compare_view.as_markdown(found)
