"""What `mtmeta adapt` leaves: adapted models as runs that every command takes, and the page of curves."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import mtmeta
from mtmeta.cli import main
from mtmeta.core.data.subsets import draw_shots
from mtmeta.core.errors import UsageError
from mtmeta.core.export.export import export
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.reports.html import plots
from mtmeta.core.reports.html.adaptation import write_page
from mtmeta.core.reports.html.page import Figure
from mtmeta.core.reports.terminal.run_list import list_runs
from mtmeta.core.run.evaluate import open_run, restore_backbone
from mtmeta.core.storage import disk
from mtmeta.core.storage.atomic import atomic_file
from mtmeta.core.training.statistics import over_seeds
from tests.core.run.test_run import write_recipe
from tests.core.studies.test_adapt import NEW, few


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapt")
    for name in ("reptile", "joint"):
        mtmeta.run(write_recipe(folder, name, training={"steps": 2}), out=folder / name)
    (folder / "new.yaml").write_text(json.dumps(NEW))
    return folder


@pytest.mark.parametrize("head", ["reset", "prototype"])
def test_a_kept_run_is_the_first_draw_of_the_most_shots(head: Any, runs: Path, tmp_path: Path) -> None:
    """And a run like any: scored, predicted with, listed and exported as the model that was adapted."""
    found = few(runs, tasks=["mood", "same"], draws=2, shots=(4, 2), head=head, keep=tmp_path / "kept")
    assert found["kept"] == [str(tmp_path / "kept" / f"reptile-{task}-4") for task in ("mood", "same")]
    recipe = load_recipe(runs / "new.yaml", build_registry())
    parent = hashlib.sha256((runs / "reptile/checkpoints/best/model.safetensors").read_bytes()).hexdigest()
    for task, run in zip(("mood", "same"), map(Path, found["kept"]), strict=True):
        summary = json.loads((run / "summary.json").read_text())
        assert mtmeta.evaluate(run)["tasks"] == summary["tasks"]
        values = [
            row["value"] for row in found["adapted"]
            if (row["start"], row["task"], row["shots"], row["draw"]) == ("reptile", task, 4, 0)
        ]  # fmt: skip
        assert values == [summary["tasks"][task]["value"]]
        assert summary["run"] == str(run)
        lock = yaml.safe_load((run / "recipe.lock.yaml").read_text())
        session = open_run(run)
        session.backbone = restore_backbone(session)
        train = session.read_split(task, "train")
        told = lock["adapted"]
        assert told["ids"] == list(draw_shots(train, 4, recipe.seed, task, 0).ids)
        assert [told[key] for key in ("run", "weights", "shots", "draw", "head")] == ["reptile", parent, 4, 1, head]
        assert lock["data"][f"{task}-train"] == train.sha256
        assert lock["recipe"] == digest(load_recipe(run / "recipe.yaml", build_registry()))
    assert {one["run"] for one in list_runs(tmp_path) if one["status"] == "finished"} == set(found["kept"])
    run = Path(found["kept"][1])
    kinds = [json.loads(line)["type"] for line in (run / "events.jsonl").read_text().splitlines()]
    assert kinds == ["run_started", "data_loaded", "data_loaded", "step", "step", "evaluated", "run_finished"]
    with open(run / "predictions" / "same-dev.csv", newline="") as file:
        expected = {row["id"]: row["prediction"] for row in csv.DictReader(file)}
    examples = list(open_run(run).recipe.tasks["same"].sample("dev"))
    predicted = mtmeta.load(run).predict("same", [(one.text, one.pair or "") for one in examples])
    assert {str(one.id): made.label for one, made in zip(examples, predicted, strict=True)} == expected
    made = export(run, form="transformers", out=tmp_path / "exported")
    assert max(made["differences"].values()) < 1e-5
    assert "adapted from the run reptile, weights sha256" in (tmp_path / "exported" / "README.md").read_text()


def test_a_recipe_of_several_tasks_becomes_one_of_the_task(runs: Path, tmp_path: Path) -> None:
    overrides = ["data.train_fraction=0.5", "evaluation.select=near", "optimizer.head_lr={mood: 1e-2, near: 1e-3}"]
    sampler = "sampler={name: fixed, weights: {mood: 0.5, same: 0.3, near: 0.2}}"
    found = few(runs, shots=(2,), draws=1, keep=tmp_path, overrides=[*overrides, sampler])
    recipe = load_recipe(Path(found["kept"][0]) / "recipe.yaml", build_registry())
    assert (list(recipe.tasks), recipe.optimizer.head_lr) == (["mood"], {"mood": 1e-2})


def test_keeping_again_and_what_is_in_the_way(runs: Path, tmp_path: Path) -> None:
    said: list[str] = []
    options: dict[str, Any] = {"shots": (2,), "draws": 1, "keep": tmp_path / "kept", "say": said.append}
    (run,) = map(Path, few(runs, **options)["kept"])
    (run / "export").mkdir()  # whatever a user puts there stays
    assert few(runs, **options)["kept"] == [str(run)]
    assert f"{run} is kept already" in said and (run / "export").is_dir()
    lines = len(said)
    with pytest.raises(UsageError, match="holds something else than this adaptation; choose another folder"):
        few(runs, **options, overrides=["training.steps=1"])
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="file: is a file; choose another folder with --keep"):
        few(runs, **{**options, "keep": tmp_path / "file"})
    assert len(said) == lines, "refused before anything was adapted"


@pytest.mark.parametrize("allowed", [0, 3, 6])
def test_a_cut_leaves_no_half_run(allowed: int, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left, real = [allowed], atomic_file

    def counting(path: Path, **options: Any) -> Any:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(path, **options)

    monkeypatch.setattr(disk, "atomic_file", counting)
    with pytest.raises(KeyboardInterrupt):
        few(runs, shots=(2,), draws=1, keep=tmp_path / "kept")
    assert not (tmp_path / "kept").exists()


def test_the_page(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, list[plots.Curve]] = {}
    real = plots.curves

    def look(title: str, x: str, y: str, drawn: list[plots.Curve], *, zero: bool = False) -> Figure:
        seen[title] = drawn
        return real(title, x, y, drawn, zero=zero)

    monkeypatch.setattr(plots, "curves", look)
    found = few(runs, "reptile", "joint", shots=(4, 2))
    text = write_page(found, tmp_path / "new" / "adapt.html").read_text()
    assert list(seen) == ["mood: accuracy", "mood: gain over the pretrained encoder"]
    cells = {cell["shots"]: cell["starts"] for cell in found["cells"]}
    for title, drawn in seen.items():
        gain = "gain" in title
        assert [curve.label for curve in drawn] == found["starts"][gain:]
        for curve in drawn:
            assert list(curve.x) == [2, 4]
            made = [cells[k][curve.label]["gain"] if gain else cells[k][curve.label] for k in (2, 4)]
            shown = list(zip(curve.mean, curve.low, curve.high, strict=True))
            assert shown == [(one["mean"], one["low"], one["high"]) for one in made]
            assert shown == [over_seeds(list(values)) for values in curve.values]
    assert "<script" not in text and not re.search(r'(?:src|href)="(?!#)', text)
    assert all(f"{row['value']:.4f}</td>" in text for row in found["adapted"])


@pytest.mark.parametrize(
    ("out", "what"),
    [("folder", "is a directory; name a file, such as"), ("file/a.html", "is no directory; name another file")],
)
def test_a_page_that_cannot_be_written_is_refused_first(
    out: str, what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as ended:
        main(["adapt", "nothing", "nothing.yaml", "--out", str(tmp_path / out)])
    err = capsys.readouterr().err
    assert ended.value.code == 2 and err.startswith("error: --out: ") and what in err and err.count("\n") == 1


def test_a_page_needs_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "matplotlib.figure", raising=False)
    with pytest.raises(SystemExit) as ended:
        main(["adapt", "nothing", "nothing.yaml", "--out", "a.html"])
    assert ended.value.code == 6
    expected = "error: mtmeta adapt --out: needs matplotlib, which is not installed; pip install 'mtmeta[report]'\n"
    assert capsys.readouterr().err == expected


def test_the_command_with_page_and_kept_run(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["adapt", str(runs / "reptile"), str(runs / "new.yaml"), "--shots", "2", "--seeds", "1", "--task", "mood"]
    page, kept = tmp_path / "a.html", tmp_path / "kept" / "reptile-mood-2"
    with pytest.raises(SystemExit) as ended:
        main([*given, "--json", "--out", str(page), "--keep", str(kept.parent)])
    out, err = capsys.readouterr()
    assert ended.value.code == 0 and json.loads(out)["kept"] == [str(kept)]
    assert (err.splitlines()[0], err.splitlines()[-1]) == (f"kept {kept}", f"wrote {page}")
    assert "of one draw, so without interval" in page.read_text()
