"""Whole runs through the public API and the command line: files, figures, determinism, resume."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.cli import main
from mtmeta.core.errors import CheckpointError, DataError, DivergedError, RecipeError, UsageError
from mtmeta.core.training.trainer import Trainer
from mtmeta.plugins.backbones.encoder import kernels
from tests.support import tiny  # noqa: F401  # one thread

ALGORITHMS: dict[str, dict[str, Any]] = {
    "individual": {"algorithm": "individual", "optimizer": {"name": "adam", "lr": 1e-3}},
    "joint": {"algorithm": "joint", "optimizer": {"name": "adamw", "lr": 1e-3}, "schedule": "linear"},
    "reptile": {
        "algorithm": {"name": "reptile", "inner_optimizer": {"name": "adamw", "lr": 1e-3}, "tasks_per_step": 2},
        "optimizer": {"name": "sgd", "lr": 1.0, "momentum": 0.5},
        "schedule": "cosine",
    },
    "fomaml": {
        "algorithm": {"name": "fomaml", "inner_optimizer": {"name": "adamw", "lr": 1e-3}},
        "optimizer": {"name": "nadam", "lr": 1e-3},
        "schedule": "one_cycle",
    },
}


def write_recipe(folder: Path, name: str, **changes: Any) -> Path:
    task = {"train": "sample", "dev": "sample", "test": "sample", "batch_size": 16, "inner_steps": 2}
    recipe = {
        "name": name,
        "seed": 3,
        "backbone": {"name": "bert", "weights": "tiny", "max_length": 64},
        "tasks": {"sst": task, "para": task, "sts": task},
        "data": {"train_fraction": 0.2},
        "training": {"steps": 6},
        "evaluation": {"every": 2},
        "checkpoint": {"every": 2, "keep": 2},
        "reporters": ["jsonl"],
        **ALGORITHMS[name],
        **changes,
    }
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


def weights(run: Path) -> dict[str, str]:
    """SHA-256 of every weights file of a run."""
    files = sorted(run.glob("checkpoints/**/*.safetensors"))
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_leaves_exactly_these_files_and_the_same_weights_every_time(name: str, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, name)
    summary = mtmeta.run(recipe, out=tmp_path / "one")
    groups = ["sst/", "para/", "sts/"] if name == "individual" else [""]
    found = {str(p.relative_to(tmp_path / "one")) for p in (tmp_path / "one").rglob("*")}
    expected = {"recipe.yaml", "recipe.lock.yaml", "events.jsonl", "summary.json"}
    expected |= {"backbone", "backbone/config.json", "backbone/tokenizer.json", "predictions", "checkpoints"}
    expected |= {f"predictions/{task}-dev.csv" for task in ("sst", "para", "sts")}
    assert expected <= found
    for group in groups:
        assert f"checkpoints/{group}best" in found
        for step in (4, 6):
            files = ("model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json")
            assert {f"checkpoints/{group}step-{step:08d}/{file}" for file in files} <= found
        assert f"checkpoints/{group}step-00000002" not in found  # keep: 2
    links = {"best"} if name == "individual" else {"best", "best-sst", "best-para", "best-sts"}
    rest = [p for p in found - expected if not p.startswith("checkpoints/")]
    assert rest == []
    for group in groups:
        folder = tmp_path / "one" / "checkpoints" / group
        assert {p.name for p in folder.iterdir() if p.is_symlink()} == links

    assert json.loads((tmp_path / "one" / "summary.json").read_text()) == summary
    mtmeta.run(recipe, out=tmp_path / "two")
    assert weights(tmp_path / "one") == weights(tmp_path / "two")
    timeless = [
        [{k: v for k, v in e.items() if k not in ("seconds", "time", "path", "summary")} for e in events(run)]
        for run in (tmp_path / "one", tmp_path / "two")
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("stop_after", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_a_run_that_is_cut_off_goes_on_to_the_very_same_weights(
    name: str, stop_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_recipe(tmp_path, name)
    mtmeta.run(recipe, out=tmp_path / "whole")
    one_step, done = Trainer._one_step, 0

    def interrupted(self: Trainer) -> None:
        nonlocal done
        if done == stop_after:
            raise KeyboardInterrupt
        done += 1
        one_step(self)

    monkeypatch.setattr(Trainer, "_one_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        mtmeta.run(recipe, out=tmp_path / "cut")
    monkeypatch.undo()
    again = mtmeta.run(recipe, out=tmp_path / "cut")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    whole = json.loads((tmp_path / "whole" / "summary.json").read_text())
    for key in ("tasks", "mean", "steps", "examples", "sampling"):
        assert again[key] == whole[key]
    steps = [(e["group"], e["step"], e["losses"]) for e in events(tmp_path / "cut") if e["type"] == "step"]
    assert steps == [(e["group"], e["step"], e["losses"]) for e in events(tmp_path / "whole") if e["type"] == "step"]


def test_a_damaged_checkpoint_is_skipped_with_a_warning(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "joint")
    mtmeta.run(recipe, out=tmp_path / "run")
    good = weights(tmp_path / "run")
    (tmp_path / "run" / "summary.json").unlink()
    newest = tmp_path / "run" / "checkpoints" / "step-00000006" / "model.safetensors"
    data = bytearray(newest.read_bytes())
    data[-1] ^= 1
    newest.write_bytes(data)
    said: list[str] = []
    mtmeta.run(recipe, out=tmp_path / "run", warn=said.append)
    assert len(said) == 1
    assert "model.safetensors: damaged (sha256 mismatch); using step-00000004" in said[0]
    assert weights(tmp_path / "run") == good


@pytest.mark.parametrize("by", ["kernels", "torch"])  # whose dropout draws other bits
def test_losses_of_the_first_steps_are_these(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "torch":
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif kernels.load() is None:
        pytest.skip("no C compiler that can build the kernels")
    recipe = write_recipe(tmp_path, "reptile", training={"steps": 6, "precision": "fp32"})
    mtmeta.run(recipe, out=tmp_path / "run")
    first = [e["losses"] for e in events(tmp_path / "run") if e["type"] == "step"][:2]
    for found, expected in zip(first, EXPECTED_LOSSES[by], strict=True):
        assert list(found) == list(expected)
        for task, losses in expected.items():
            assert found[task] == pytest.approx(losses, abs=1e-4)  # other processors round otherwise


EXPECTED_LOSSES = {
    "kernels": [
        {"sst": [1.58885, 1.56609], "para": [0.68752, 0.72409]},
        {"para": [0.68749, 0.66013], "sts": [6.14991, 3.28419]},
    ],
    "torch": [
        {"sst": [1.58875, 1.56631], "para": [0.68748, 0.72418]},
        {"para": [0.68757, 0.66018], "sts": [6.14524, 3.27903]},
    ],
}


def test_run_and_eval_print_one_json_document_with_the_same_figures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe, out = write_recipe(tmp_path, "fomaml"), tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        main(["run", str(recipe), "--out", str(out), "--json"])
    assert ended.value.code == 0
    ran = json.loads(capfd.readouterr().out)
    assert ran == json.loads((out / "summary.json").read_text())
    assert {"run", "split", "tasks", "mean", "steps", "seconds"} <= set(ran)
    before = (out / "predictions" / "sst-dev.csv").read_text()
    with pytest.raises(SystemExit):
        main(["eval", str(out), "--json"])
    scored = json.loads(capfd.readouterr().out)
    assert set(scored) == {"run", "split", "tasks", "mean", "steps", "seconds"}
    assert (scored["tasks"], scored["mean"], scored["split"]) == (ran["tasks"], ran["mean"], "dev")
    assert set(scored["tasks"]["sst"]) == {*("metric", "value", "low", "high", "examples", "loss", "skipped", "others")}
    assert ran["mean"] == math.fsum(made["value"] for made in ran["tasks"].values()) / 3
    assert (out / "predictions" / "sst-dev.csv").read_text() == before

    with pytest.raises(SystemExit):
        main(["eval", str(out), "--json", "--split", "test", "--task", "sts"])
    tested = json.loads(capfd.readouterr().out)
    assert (list(tested["tasks"]), tested["split"]) == (["sts"], "test")
    assert (out / "predictions" / "sts-test.csv").exists()


def test_eval_shows_a_table_with_detail(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run")
    with pytest.raises(SystemExit):
        main(["eval", str(tmp_path / "run"), "--verbose"])
    shown = capfd.readouterr().out
    for text in ("task", "95% interval", "accuracy", "pearson", "mean", "rows are labels", "farthest off"):
        assert text in shown
    details = mtmeta.evaluate(tmp_path / "run", verbose=True)["details"]
    assert sum(map(sum, details["sst"]["confusion"])) == 300


def test_eval_scores_another_file(tmp_path: Path) -> None:
    mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run")
    other = tmp_path / "mine.tsv"
    other.write_text("id\tsentence\tsentiment\na\tA lovely film .\t4\nb\tA dull film .\t0\n")
    scored = mtmeta.evaluate(tmp_path / "run", files={"sst": str(other)})
    assert scored["tasks"]["sst"]["examples"] == 2
    rows = (tmp_path / "run" / "predictions" / "sst-file-mine.csv").read_text().splitlines()
    assert [row.split(",")[:2] for row in rows] == [["id", "label"], ["a", "4"], ["b", "0"]]


def test_a_finished_run_says_so_and_is_not_touched(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "joint")
    first = mtmeta.run(recipe, out=tmp_path / "run")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")}
    said: list[str] = []
    assert mtmeta.run(recipe, out=tmp_path / "run", warn=said.append) == first
    assert said == [f"{tmp_path / 'run'} is finished; --fresh trains it again"]
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run").rglob("*")} == before


def test_another_recipe_in_the_same_directory_is_refused_naming_what_differs(tmp_path: Path) -> None:
    mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"differs in: seed, training\.steps"):
        mtmeta.run(write_recipe(tmp_path, "joint", seed=4, training={"steps": 8}), out=tmp_path / "run")
    fresh = mtmeta.run(write_recipe(tmp_path, "joint", seed=4), out=tmp_path / "run", fresh=True)
    assert fresh["seed"] == 4


def test_a_data_file_that_changed_since_the_run_began_is_refused(tmp_path: Path) -> None:
    data = tmp_path / "sst.tsv"
    data.write_text("sentence\tsentiment\n" + "".join(f"word {i}\t{i % 5}\n" for i in range(40)))
    task = {"train": str(data), "dev": str(data), "batch_size": 8}
    recipe = write_recipe(tmp_path, "joint", tasks={"sst": task}, data={})
    said: list[str] = []
    mtmeta.run(recipe, out=tmp_path / "run", warn=said.append)
    data.write_text(data.read_text() + "one more\t3\n")
    with pytest.raises(DataError, match=r"sst\.tsv: changed since this run started \(sha256 ....\.\. -> ....\.\.\)"):
        mtmeta.evaluate(tmp_path / "run")
    assert mtmeta.evaluate(tmp_path / "run", allow_changed_data=True)["tasks"]["sst"]["examples"] == 41


def test_a_run_that_diverges_stops_before_anything_bad_is_saved(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "joint", optimizer={"name": "sgd", "lr": 1e18})
    with pytest.raises(DivergedError, match=r"became (nan|inf|non-finite)"):
        mtmeta.run(recipe, out=tmp_path / "run")
    assert not list((tmp_path / "run").glob("checkpoints/step-*"))


def test_non_finite_steps_are_skipped_and_counted_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtmeta.core.training.learner import Learner

    gradient = Learner.gradient

    def poisoned(self: Learner, batch: Any, scale: float = 1.0) -> Any:
        return gradient(self, batch, math.nan if self.step == 2 else scale)

    monkeypatch.setattr(Learner, "gradient", poisoned)
    training = {"steps": 6, "on_nonfinite": "skip"}
    summary = mtmeta.run(write_recipe(tmp_path, "joint", training=training), out=tmp_path / "run")
    assert summary["skipped_steps"] == 1
    (skipped,) = [e for e in events(tmp_path / "run") if e["type"] == "step_skipped"]
    assert (skipped["step"], skipped["reason"].split(";")[0]) == (
        3,
        "gradient norm became nan at meta-step 3, task 'sst', 'para', 'sts'",
    )


def test_epochs_and_plateau_train_individual_tasks(tmp_path: Path) -> None:
    changes = {"training": {"epochs": 3}, "evaluation": {"every": "epoch"}, "data": {"train_fraction": 0.05}}
    schedule = {"name": "plateau", "patience": 0, "gamma": 0.5}
    mtmeta.run(write_recipe(tmp_path, "individual", schedule=schedule, **changes), out=tmp_path / "run")
    made = [e for e in events(tmp_path / "run") if e["type"] == "evaluated" and e["group"] == "sst"]
    assert [e["step"] for e in made] == [4, 8, 12]  # 60 examples in batches of 16
    rates = [e["lr"] for e in events(tmp_path / "run") if e["type"] == "step" and e["group"] == "sst"]
    best, factor, expected = -math.inf, 1.0, []
    for number in range(3):
        expected += [1e-3 * factor] * 4
        if made[number]["selected"] > best * (1 + 1e-4 * math.copysign(1, best)):
            best = made[number]["selected"]
        else:
            factor *= 0.5
    assert rates == pytest.approx(expected)


def test_clipping_bounds_the_norm_of_the_whole_direction(tmp_path: Path) -> None:
    base = {"optimizer": {"name": "sgd", "lr": 1.0}, "evaluation": {"every": None}}
    mtmeta.run(write_recipe(tmp_path, "joint", training={"steps": 1}, **base), out=tmp_path / "free")
    mtmeta.run(write_recipe(tmp_path, "joint", training={"steps": 1, "clip": 0.01}, **base), out=tmp_path / "clipped")
    norms = [e["norm"] for run in ("free", "clipped") for e in events(tmp_path / run) if e["type"] == "step"]
    assert norms[0] == norms[1] > 0.01  # reported before clipping
    moved = []
    start = tiny_start(tmp_path)
    for run in ("free", "clipped"):
        after = load_best(tmp_path / run)
        moved.append(math.sqrt(sum(float(((after[n] - start[n]) ** 2).sum()) for n in after)))
    assert moved[0] == pytest.approx(norms[0], rel=1e-4)
    assert moved[1] == pytest.approx(0.01, rel=1e-3)


def tiny_start(tmp_path: Path) -> dict[str, Any]:
    """The weights a run of seed 3 starts from."""
    changes = {"optimizer": {"name": "sgd", "lr": 1e-30}, "training": {"steps": 1}, "evaluation": {"every": None}}
    mtmeta.run(write_recipe(tmp_path, "joint", **changes), out=tmp_path / "start")
    return load_best(tmp_path / "start")


def load_best(run: Path) -> dict[str, Any]:
    from safetensors.torch import load

    return load((run / "checkpoints" / "best" / "model.safetensors").read_bytes())


def test_a_run_directory_can_be_moved_and_scored_elsewhere(tmp_path: Path) -> None:
    first = mtmeta.run(write_recipe(tmp_path, "reptile"), out=tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert mtmeta.evaluate(tmp_path / "moved")["tasks"] == first["tasks"]


def test_a_task_may_have_any_name_of_the_allowed_form(tmp_path: Path) -> None:
    task = {"task": "sst", "train": "sample", "dev": "sample", "batch_size": 16}
    names = ["type", "train", "keys", "forward", "half", "shared", "reset", "best"]
    recipe = write_recipe(tmp_path, "joint", tasks=dict.fromkeys(names, task), training={"steps": 1})
    summary = mtmeta.run(recipe, out=tmp_path / "run")
    assert list(summary["tasks"]) == names
    assert mtmeta.evaluate(tmp_path / "run")["tasks"] == summary["tasks"]


def test_a_kill_between_a_checkpoint_and_its_event_loses_no_earlier_events(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "joint")
    mtmeta.run(recipe, out=tmp_path / "run")
    whole = [e for e in events(tmp_path / "run") if e["type"] in ("step", "evaluated")]
    (tmp_path / "run" / "summary.json").unlink()
    lines = (tmp_path / "run" / "events.jsonl").read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"checkpoint"' in line)
    (tmp_path / "run" / "events.jsonl").write_text("".join(lines[:last]))
    mtmeta.run(recipe, out=tmp_path / "run")
    strip = [{k: v for k, v in e.items() if k != "seconds"} for e in whole]
    again = [e for e in events(tmp_path / "run") if e["type"] in ("step", "evaluated")]
    assert [{k: v for k, v in e.items() if k != "seconds"} for e in again] == strip


def test_eval_of_a_file_does_not_touch_the_runs_own_predictions(tmp_path: Path) -> None:
    mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run")
    own = tmp_path / "run" / "predictions" / "sst-dev.csv"
    before = own.read_text()
    (tmp_path / "dev.tsv").write_text("id\tsentence\tsentiment\na\tA lovely film .\t4\nb\tA dull film .\t0\n")
    mtmeta.evaluate(tmp_path / "run", files={"sst": str(tmp_path / "dev.tsv")})
    assert own.read_text() == before
    with pytest.raises(UsageError, match="give the same task"):
        mtmeta.evaluate(tmp_path / "run", task="para", files={"sst": str(tmp_path / "dev.tsv")})


def test_class_metrics_are_refused_for_regression(tmp_path: Path) -> None:
    task = {"task": "regression", "low": 0, "high": 5, "train": "a.tsv", "dev": "a.tsv", "metrics": ["macro_f1"]}
    with pytest.raises(RecipeError, match=r"metric 'macro_f1' needs classes, task 'grade' predicts a number"):
        mtmeta.run(write_recipe(tmp_path, "joint", tasks={"grade": task}), out=tmp_path / "run")
