"""The commands as functions: what `--json` prints, with types and as tables, of recipes that are objects too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import mtmeta
from mtmeta.cli import main
from tests.support.quick import quick


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe quick.yaml, and a run of it."""
    folder = tmp_path_factory.mktemp("functions")
    recipe = quick(folder)
    mtmeta.run(recipe, out=folder / "run", device="cpu")
    return folder


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--json"])
    assert ended.value.code in (0, None)
    return json.loads(capsys.readouterr().out)


def test_a_recipe_is_the_same_as_a_path_a_mapping_and_an_object(folder: Path, tmp_path: Path) -> None:
    path = folder / "quick.yaml"
    recipe = mtmeta.read_recipe(path)
    assert isinstance(recipe, mtmeta.Recipe) and recipe.training.steps == 4
    means = [
        mtmeta.run(given, out=tmp_path / f"{number}", device="cpu").mean
        for number, given in enumerate((path, json.loads(path.read_text()), recipe))
    ]
    locks = [(tmp_path / f"{number}" / "recipe.lock.yaml").read_text() for number in range(3)]
    assert len(set(means)) == 1 and len(set(locks)) == 1
    assert mtmeta.read_recipe(recipe, overrides=["training.steps=5"]).training.steps == 5


def test_evaluate(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scores = mtmeta.evaluate(folder / "run", split="train", device="cpu")
    said = printed(capsys, "eval", str(folder / "run"), "--split", "train", "--device", "cpu")
    assert scores.tasks == said["tasks"] and scores.mean == said["mean"] and scores.split == "train"
    table = scores.to_pandas().set_index("task")
    assert table.loc["kind", "value"] == said["tasks"]["kind"]["value"]
    assert table.loc["kind", "macro_f1"] == said["tasks"]["kind"]["others"]["macro_f1"]


@pytest.mark.slow
def test_compare_of_objects(folder: Path, tmp_path: Path) -> None:
    recipe = json.loads((folder / "quick.yaml").read_text())
    options: dict[str, Any] = {"seeds": 2, "out": tmp_path / "c", "device": "cpu"}
    alone = recipe | {"name": "alone", "algorithm": mtmeta.Individual(), "training": {"steps": 2}}
    with pytest.raises(mtmeta.UsageError, match="is one recipe; give a list"):
        mtmeta.compare(recipe, **options)
    with pytest.raises(mtmeta.RecipeError, match="needs a 'name' of its own"):
        mtmeta.compare([{"algorithm": "joint"}], **options)
    comparison = mtmeta.compare([recipe, alone], **options)
    assert sorted(path.name for path in (tmp_path / "c" / "recipes").iterdir()) == ["alone.yaml", "quick.yaml"]
    assert [row["name"] for row in comparison.rows] == ["quick", "alone"]
    table = comparison.to_pandas()
    assert list(table.recipe) == ["quick"] * 3 + ["alone"] * 3
    mean = table[(table.recipe == "quick") & (table.column == "mean")].iloc[0]
    assert mean["mean"] == comparison.rows[0]["columns"]["mean"]["mean"]
    assert mean["difference_value"] == comparison.rows[0]["columns"]["mean"]["delta"]["value"]
    runs = [Path(path) for path in comparison.rows[0]["runs"]]
    before = [(run / "summary.json").stat().st_mtime_ns for run in runs]
    assert mtmeta.compare([recipe, alone], **options)["rows"] == comparison.rows  # what is finished is used as it is
    assert [(run / "summary.json").stat().st_mtime_ns for run in runs] == before


def test_adapt(folder: Path) -> None:
    run = mtmeta.run(folder / "run")
    adapted = mtmeta.adapt(run, folder / "quick.yaml", shots=[1, 2], seeds=2, tasks=["kind"], device="cpu", jobs=1)
    table = adapted.to_pandas()
    assert len(table) == 2 * 2 * 2 and set(table.shots) == {1, 2} and set(table.start) == {"run", "pretrained"}
    with pytest.raises(mtmeta.UsageError, match="must be reset or prototype"):
        mtmeta.adapt(run, folder / "quick.yaml", head="rest")  # type: ignore[arg-type]


def test_export_and_report(folder: Path, tmp_path: Path) -> None:
    exported = mtmeta.export(folder / "run", "transformers", out=tmp_path / "e")
    assert exported.folder == tmp_path / "e" and (exported.folder / "config.json").exists()
    assert list(exported.to_pandas().task) == ["kind", "grade"] and exported.to_pandas().difference.max() < 1e-5
    page = mtmeta.report([folder / "run"], out=tmp_path / "r.html")
    assert page == tmp_path / "r.html" and "<svg" in page.read_text()


def test_validate(folder: Path) -> None:
    recipe = json.loads((folder / "quick.yaml").read_text())
    checked = mtmeta.validate(recipe, data=True)
    assert checked.ok and checked["data"] and not checked.to_pandas().size
    checked = mtmeta.validate(recipe | {"seeed": 1, "optimizer": {"name": "adamw", "lr": -1}})
    assert not checked.ok and len(checked.problems) == 2
    assert checked.problems[0].startswith("recipe: unknown key 'seeed'; did you mean 'seed'")
    assert list(checked.to_pandas().problem) == checked.problems
    with pytest.raises(mtmeta.UsageError, match="strict: is for data=True"):
        mtmeta.validate(recipe, strict=True)


def test_plan(folder: Path, tmp_path: Path) -> None:
    plan = mtmeta.plan(folder / "quick.yaml", out=tmp_path / "p", probe=0, device="cpu")
    assert plan["state"] == "new" and not (tmp_path / "p").exists()
    assert list(plan.to_pandas().name) == ["kind", "grade"] and list(plan.to_pandas().train_rows) == [12, 12]


def test_vectors_are_those_of_the_exported_encoder(folder: Path, tmp_path: Path) -> None:
    """Mean-pooled by transformers, and the same whatever stands beside a text."""
    texts = [f"word {i} " * (1 + i % 3) for i in range(9)]
    predictor = mtmeta.load(folder / "run", device="cpu")
    vectors = predictor.encode(texts)
    place = mtmeta.export(folder / "run", "transformers", out=tmp_path / "e").folder
    model, tokenizer = AutoModel.from_pretrained(place).eval(), AutoTokenizer.from_pretrained(place)
    given = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
    with torch.no_grad():
        hidden, mask = model(**given).last_hidden_state, given["attention_mask"][..., None]
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    assert vectors.shape == (9, 32) and vectors.dtype == np.float32
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    np.testing.assert_allclose(predictor.encode(texts[4]), vectors[4], atol=1e-5)
    np.testing.assert_allclose(mtmeta.run(folder / "run").encode(texts, "grade"), vectors, atol=1e-6)
    assert predictor.encode([]).shape == (0, 32)


def test_each_task_has_an_encoder_of_its_own(folder: Path, tmp_path: Path) -> None:
    mtmeta.run(quick(tmp_path, "individual"), out=tmp_path / "run", device="cpu")
    predictor = mtmeta.load(tmp_path / "run", device="cpu")
    with pytest.raises(mtmeta.UsageError, match="task: is needed, each task has an encoder of its own: kind, grade"):
        predictor.encode(["a"])
    one, other = (predictor.encode("word 1", task) for task in predictor.tasks)
    assert one.shape == (32,) and not np.allclose(one, other, atol=1e-6)


@pytest.mark.parametrize(
    ("texts", "message"),
    [(["a", ""], r"texts\[1\]: text is empty"), (" ", "texts: text is empty"), ([5], "is '5', exp")],
)
def test_what_is_no_text_has_no_vector(texts: Any, message: str, folder: Path) -> None:
    with pytest.raises(mtmeta.UsageError, match=message):
        mtmeta.load(folder / "run", device="cpu").encode(texts)


def test_a_directory_without_a_run_is_no_recipe(tmp_path: Path) -> None:
    with pytest.raises(mtmeta.UsageError, match="is no mtmeta run"):
        mtmeta.run(tmp_path)
