"""Several labels a text: one pass against a pass for each label, missing labels, and a run from file to export."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtmeta
from mtmeta.core.data.packing import pack
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import describe, digest
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.serving import openapi
from mtmeta.core.serving.questions import Limits
from mtmeta.core.studies.comparable import Planned, check_alike
from mtmeta.core.studies.comparison import comparison
from mtmeta.core.studies.protocol import Protocol
from mtmeta.core.training.learner import Learner
from mtmeta.plugins.tasks.generic import ClassificationTask, RegressionTask
from mtmeta.plugins.tasks.multi_label import MultiLabel, MultiLabelTask
from mtmeta.plugins.tasks.multi_output import MultiOutputTask
from mtmeta.plugins.tasks.ordinal import OrdinalTask
from mtmeta.testing import check_task, tiny_learner
from tests.core.export.test_export import answers_of_export
from tests.support.commands import call
from tests.support.quick import assert_kills_change_nothing, quick, read_table

NAN = math.nan
REGISTRY = build_registry()
COMMON: dict[str, Any] = {"train": "t.tsv", "batch_size": 8, "text": "sentence"}
PARTS: dict[str, mtmeta.Task] = {
    "kind": ClassificationTask(**COMMON, labels=("no", "yes", "none"), label="kind", loss_weight=0.5),
    "grade": RegressionTask(**COMMON, low=0.0, high=5.0, label="grade"),
    "stars": OrdinalTask(**COMMON, labels=4, label="stars", loss_weight=2.0),
    "marks": MultiLabelTask(**COMMON, labels=("a", "b"), label="marks"),
}
WHOLE = MultiOutputTask(**COMMON, labels=PARTS)


def rows_of(count: int, seed: int = 1) -> list[dict[str, str]]:
    """Rows with the four labels, of which about a third are missing, but never all of one row."""
    generator, rows = random.Random(seed), []
    for at in range(count):
        nice = generator.randrange(4)
        row = {
            "kind": ("no", "yes", "none")[nice % 3],
            "grade": f"{nice + 0.5}",
            "stars": str(nice),
            "marks": ",".join([*["a"] * (nice > 0), *["b"] * (nice != 2)]),
        }
        kept = generator.sample(list(row), generator.randrange(1, 5))
        rows.append({"id": str(at), "sentence": f"so {'nice ' * nice}{at}"} | {k: row[k] * (k in kept) for k in row})
    return rows


def write(path: Path, rows: list[dict[str, str]]) -> None:
    lines = ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)]
    path.write_text("\n".join(lines) + "\n")


# ----------------------------------------------------------------------------------- one pass against a pass for each


@pytest.fixture
def sides(tmp_path: Path) -> tuple[Learner, Any, dict[str, tuple[Learner, Any]]]:
    """A learner of all labels with its batch, and one of each label with a batch of the rows that have it."""
    rows = rows_of(24)
    write(tmp_path / "t.tsv", rows)
    learner, feed = tiny_learner({"whole": WHOLE}, data_root=str(tmp_path))
    batch = pack(feed.datasets["whole"], np.arange(len(rows)))
    apart = {}
    for name, part in PARTS.items():
        own = [row for row in rows if row[name]]
        (tmp_path / name).mkdir()
        write(tmp_path / name / "t.tsv", own)
        other, feed = tiny_learner({name: part}, data_root=str(tmp_path / name))
        apart[name] = other, pack(feed.datasets[name], np.arange(len(own)))
    return learner, batch, apart


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}


def test_one_pass_has_the_outputs_losses_and_gradients_of_a_pass_for_each_label(
    sides: tuple[Learner, Any, dict[str, tuple[Learner, Any]]],
) -> None:
    learner, batch, apart = sides
    objective = WHOLE.objective
    (chunk,) = batch.chunks
    outputs = learner.model("whole", chunk.packed)
    loss = float(learner.gradient(batch))
    found, total, wanted = gradients(learner), 0.0, dict[str, torch.Tensor]()
    given = {name: (own, labels) for name, own, labels in objective.given(outputs, chunk.labels)}
    for name, (other, its) in apart.items():
        assert 8 < len(its) < len(batch)
        own = other.model(name, its.chunks[0].packed)
        assert torch.allclose(given[name][0], own, rtol=0, atol=1e-6)
        assert given[name][1].equal(its.chunks[0].labels)
        weight = PARTS[name].loss_weight
        total += weight * float(other.gradient(its))
        for key, grad in gradients(other).items():
            key = key.replace(f"heads.{name}.", f"heads.whole.{name}.")
            wanted[key] = wanted.get(key, 0) + weight * grad
    assert loss == pytest.approx(total, abs=1e-6)
    assert found.keys() == wanted.keys()
    for key, grad in wanted.items():
        assert torch.allclose(found[key], grad, rtol=0, atol=1e-6), key


def test_the_head_of_a_label_begins_as_that_of_a_task_of_its_name(
    sides: tuple[Learner, Any, dict[str, tuple[Learner, Any]]],
) -> None:
    learner, _, apart = sides
    for name, (other, _) in apart.items():
        for key, value in other.head(name).items():
            assert learner.parameters[f"heads.whole.{name}.{key}"].equal(value)


def test_a_batch_in_parts_has_the_gradient_of_the_whole(
    sides: tuple[Learner, Any, dict[str, tuple[Learner, Any]]], tmp_path: Path
) -> None:
    learner, batch, _ = sides
    loss = float(learner.gradient(batch))
    wanted = gradients(learner)
    _, feed = tiny_learner({"whole": WHOLE}, data_root=str(tmp_path))
    parted = pack(feed.datasets["whole"], np.arange(len(batch)), chunks=5)
    shares = [chunk.labels.isnan().float().mean() for chunk in parted.chunks]
    assert len(set(map(float, shares))) > 1  # so that the mean of means would be another one
    learner.clear_gradient()
    assert float(learner.gradient(parted)) == pytest.approx(loss, abs=1e-6)
    for key, grad in gradients(learner).items():
        assert torch.allclose(grad, wanted[key], rtol=0, atol=1e-6), key
    assert float(learner.measure(parted)) == pytest.approx(loss, abs=1e-6)
    assert float(learner.loss_at(parted, learner.parameters).detach()) == pytest.approx(loss, abs=1e-5)


def test_the_loss_by_hand() -> None:
    objective = mtmeta.MultiOutput({"a": mtmeta.Binary(("no", "yes")), "b": mtmeta.Regression(0, 5)}, {"b": 0.25})
    outputs = torch.tensor([[1.0, 2.0], [-1.0, 3.0], [0.5, 4.0]], dtype=torch.double)
    labels = torch.tensor([[1.0, NAN], [0.0, 1.0], [NAN, 5.0]], dtype=torch.double)
    a = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-1))) / 2
    b = ((3 - 1) ** 2 + (4 - 5) ** 2) / 2
    assert float(objective.loss(outputs, labels)) == pytest.approx(a + 0.25 * b, rel=1e-12)
    assert objective.losses(outputs, labels).tolist() == pytest.approx([2 * a, 2 * b], rel=1e-6)
    parts = [objective.within(labels).loss(outputs[at], labels[at]) for at in (slice(1), slice(1, 3))]
    assert float(sum(parts)) == pytest.approx(a + 0.25 * b, rel=1e-12)
    assert objective.decode(outputs).tolist() == [[1.0, 2.0], [0.0, 3.0], [1.0, 4.0]]
    for bad in (outputs[:, :1], outputs[:2]):
        with pytest.raises(ValueError, match="the loss needs"):
            objective.loss(bad, labels)


# ------------------------------------------------------------------------------------------------------------- labels


def test_labels_as_files_write_them() -> None:
    objective = WHOLE.objective
    assert objective.targets == ("kind", "grade", "stars", "marks_a", "marks_b")
    assert objective.parse(("yes", "2.5", "3", "b")) == (1, 2.5, 3, 0, 1)
    for mark in (None, "", " NA ", "-", "null"):
        row = objective.parse((mark, mark, "0", mark or None))  # an empty text is a set without any label
        assert np.isnan(row).tolist() == [True, True, False, True, True], mark
    assert objective.parse(("none", None, None, None))[0] == 2  # a mark that is one of the labels is that label
    assert objective.absent(("none", "none", "", ("a",))) == ["grade", "stars"]
    assert objective.show((2, NAN, 1, 1, 1)) == '{"kind": "none", "grade": null, "stars": "1", "marks": "a,b"}'
    assert np.isnan(objective.parse(objective.show((2, NAN, 1, 1, 1)))).tolist() == [False, True, False, False, False]
    for bad, words in (
        (("maybe", "1", "1", "a"), "kind: label 'maybe' is not one of no, yes, none"),
        (("yes", "9", "1", "a"), "grade: label '9' is outside 0 to 5"),
        (("yes", "1", "1", "a,c"), "marks: label 'c' is not one of a, b"),
        (("", None, "NA", None), "all labels are empty"),
        (("yes", "1"), "2 labels, expected 4"),
        (3.0, "no labels, expected 4"),
        ("3", "no labels, expected 4"),
    ):
        with pytest.raises(ValueError, match=words):
            objective.parse(bad)


def test_an_empty_cell_of_a_set_is_missing_unless_it_means_none() -> None:
    either = [MultiLabelTask(**COMMON, labels=("a", "b"), label="marks", empty=empty) for empty in (False, True)]
    assert [part.label_in({"marks": ""}) for part in either] == [None, ""]
    objective = mtmeta.MultiOutput({"kind": PARTS["kind"].objective, "marks": either[1].objective})
    assert objective.parse(("no", either[1].label_in({"marks": ""}))) == (0, 0, 0)


def test_the_contract_of_a_task() -> None:
    rows = [{key: value for key, value in row.items() if key != "id"} for row in rows_of(6)]
    check_task(MultiOutputTask, rows, labels=PARTS)


def test_weights_of_classes_are_fitted_to_each_label() -> None:
    balanced = ClassificationTask(**COMMON, labels=3, loss=mtmeta.ClassLoss(weights="balanced"))
    whole = replace(WHOLE, labels={"one": balanced, "grade": PARTS["grade"], "two": replace(balanced, labels=2)})
    fitted = whole.for_training([1, 2, 3, 6, 2])
    for name, counts in (("one", [1, 2, 3]), ("two", [6, 2])):
        assert fitted.parts[name] == whole.parts[name].for_training(counts) != whole.parts[name]
    assert fitted.parts["grade"] == PARTS["grade"]


# ---------------------------------------------------------------------------------------------------------- whole runs


def recipe_of(folder: Path, **changes: Any) -> Path:
    """A recipe of a task of four labels, some of them missing, and a task with two classes."""
    path = quick(folder, **changes)
    recipe = json.loads(path.read_text())
    for split, count in (("train", 48), ("dev", 40), ("test", 12)):
        write(folder / f"several-{split}.tsv", rows_of(count, seed=count))
    several = {
        "task": "multi_output",
        "batch_size": 8,
        "inner_steps": 1,
        **{split: f"several-{split}.tsv" for split in ("train", "dev", "test")},
        "labels": {
            "mood": {"labels": ["no", "yes", "none"], "label": "kind", "loss": {"weights": "balanced"}},
            "grade": {"task": "regression", "low": 0, "high": 5, "loss_weight": 0.5, "metrics": ["rmse"]},
            "stars": {"task": "ordinal", "labels": 4},
            "marks": {"task": "multi_label", "labels": ["a", "b"]},
        },
    }
    recipe["tasks"] = {"several": several, "extra": {**recipe["tasks"]["kind"]}}
    recipe["optimizer"] = {"name": "adamw", "lr": 1e-2}
    recipe["training"] = {"steps": 6, "precision": "fp32"}
    recipe["evaluation"] = {"every": 3, "select": "stars"}
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("several")
    mtmeta.run(recipe_of(folder), out=folder / "run", device="cpu")
    return folder / "run"


def test_every_label_has_its_own_line_over_the_texts_that_have_it(run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["tasks"]) == ["mood", "grade", "stars", "marks", "extra"]
    rows = read_table(run.parent / "several-dev.tsv")
    for name, column in (("mood", "kind"), ("grade", "grade"), ("stars", "stars"), ("marks", "marks")):
        own = {row["id"]: row[column] for row in rows if row[column]}
        predicted = read_table(run / "predictions" / f"{name}-dev.csv")
        assert [row["id"] for row in predicted] == list(own)
        assert summary["tasks"][name]["examples"] == len(own) < len(rows)
        if name == "grade":
            errors = [float(row["prediction"]) - float(own[row["id"]]) for row in predicted]
            assert summary["tasks"][name]["value"] == pytest.approx(
                float(np.sqrt(np.mean(np.square(errors)))), rel=1e-4
            )
            assert summary["tasks"][name]["loss"] < 30  # of clamped predictions it is smaller
        else:
            assert [row["label"] for row in predicted] == list(own.values())
    predicted = read_table(run / "predictions" / "mood-dev.csv")
    accuracy = np.mean([row["label"] == row["prediction"] for row in predicted])
    assert summary["tasks"]["mood"]["value"] == pytest.approx(accuracy, abs=1e-9)


def test_the_loss_of_a_label_is_that_of_its_texts_however_they_are_batched(run: Path) -> None:
    told = json.loads((run / "summary.json").read_text())["tasks"]
    shorter = mtmeta.evaluate(run, split="dev")
    recipe = run / "recipe.yaml"
    text = recipe.read_text()
    try:
        recipe.write_text(text.replace("batch_tokens: 8192", "batch_tokens: 40"))
        assert recipe.read_text() != text
        other = mtmeta.evaluate(run, split="dev")
    finally:
        recipe.write_text(text)
    for name in ("mood", "grade", "stars", "marks"):
        assert shorter.tasks[name]["loss"] == pytest.approx(told[name]["loss"], abs=1e-9)
        assert other.tasks[name]["loss"] == pytest.approx(told[name]["loss"], rel=1e-5)


def test_thresholds_of_a_label_are_tuned_and_kept_with_the_weights(run: Path) -> None:
    predictor = mtmeta.load(run, device="cpu")
    predictor.predict("several", "a text")
    model, _ = predictor._model("several")
    objective = model.objectives["several"]
    assert isinstance(objective, mtmeta.MultiOutput)
    marks = objective.objectives["marks"]
    assert isinstance(marks, MultiLabel) and len(marks.thresholds) == 2


def test_predict_answers_all_labels_of_one_pass(
    run: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    source = str(run.parent / "several-dev.tsv")
    texts = [row["sentence"] for row in read_table(Path(source))]
    predictor = mtmeta.load(run, device="cpu")
    answers = predictor.predict("several", texts)
    passes: list[int] = []
    model, _ = predictor._model("several")
    monkeypatch.setattr(model.encoder, "forward", _counting(model.encoder.forward, passes))
    one = predictor.predict("several", texts[0])
    assert len(passes) == 1 and list(one.outputs or {}) == ["mood", "grade", "stars", "marks"]
    done = call("predict", str(run), "--task", "several", "--input", source, cwd=run.parent, capsys=capsys)
    found = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0
    assert list(found[0]) == ["id", "mood", "score_mood", "grade", "stars", "score_stars", "marks"]
    for row, answer in zip(found, answers, strict=True):
        each = answer.outputs or {}
        assert row["mood"] == each["mood"].label and float(row["score_mood"]) == pytest.approx(
            each["mood"].score, abs=1e-5
        )
        assert float(row["grade"]) == pytest.approx(each["grade"].score, abs=1e-5)
        assert row["marks"] == ",".join(each["marks"].labels or ())
    for name in ("mood", "grade", "stars", "marks"):
        written = {row["id"]: row["prediction"] for row in read_table(run / "predictions" / f"{name}-dev.csv")}
        kept = {row["id"]: row[name] for row in found if row["id"] in written}
        same = [
            kept[key] == value or float(kept[key]) == pytest.approx(float(value), abs=1e-4)
            for key, value in written.items()
        ]
        assert all(same)
        assert predictor.predict(name, texts) == [(answer.outputs or {})[name] for answer in answers]
    done = call(
        "predict", str(run), "--task", "mood", "--abstain", "0.99", "--input", source, cwd=run.parent, capsys=capsys
    )
    assert done.code == 0 and {row["abstained"] for row in csv.DictReader(io.StringIO(done.out))} >= {"yes"}
    assert json.loads(json.dumps(one.json()))["outputs"]["grade"]["score"] == one.outputs["grade"].score  # type: ignore[index]


def _counting(forward: Any, passes: list[int]) -> Any:
    def counted(*given: Any) -> Any:
        passes.append(1)
        return forward(*given)

    return counted


def test_eval_and_report_show_each_label(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = call("eval", str(run), "--split", "dev", "--verbose", cwd=run.parent, capsys=capsys)
    assert done.code == 0 and "mood: rows are labels" in done.out and "labels, by how often" in done.out
    assert list(mtmeta.evaluate(run, split="dev", task="several").tasks) == ["mood", "grade", "stars", "marks"]
    assert list(mtmeta.evaluate(run, split="dev", task="stars").tasks) == ["stars"]
    done = call("report", str(run), "--out", str(tmp_path / "r.html"), cwd=run.parent, capsys=capsys)
    assert done.code == 0 and not done.err, done.err
    page = (tmp_path / "r.html").read_text()
    for words in ("mood: predictions", "stars: predictions", "marks: predictions", "The worst errors", "so nice"):
        assert words in page, words
    done = call("eval", str(run), "--abstain", "0.5", cwd=run.parent, capsys=capsys)
    assert done.code == 2 and "is for tasks of one label, task 'several' has several" in done.err


def test_a_server_describes_each_label() -> None:
    described = openapi.describe({"several": WHOLE})
    assert list(described["several"]["outputs"]) == list(PARTS) and described["several"]["texts"] == 1
    paths = openapi.document("t", "1", described, Limits())["paths"]
    answer = paths["/predict/several"]["post"]["responses"]["200"]["content"]["application/json"]["schema"]
    outputs = answer["properties"]["predictions"]["items"]["properties"]["outputs"]["properties"]
    assert outputs["kind"]["properties"]["label"] == {"type": "string", "enum": ["no", "yes", "none"]}
    assert outputs["grade"]["properties"]["score"] == {"type": "number", "minimum": 0.0, "maximum": 5.0}
    assert outputs["marks"]["properties"]["labels"]["items"]["enum"] == ["a", "b"]


def test_validate_tells_of_each_label_and_of_missing_ones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call("validate", "--data", str(run.parent / "quick.yaml"), cwd=run.parent, capsys=capsys)
    rows = read_table(run.parent / "several-train.tsv")
    missing = {name: sum(not row[name] for row in rows) for name in ("kind", "grade", "stars", "marks")}
    told = ", ".join(f"'{'mood' if name == 'kind' else name}' {count}" for name, count in missing.items())
    assert done.code == 0
    assert f"note: labels are missing ({told}); losses and metrics go by the texts that have them" in done.out
    assert f"labels: mood, {48 - missing['kind']} rows: no " in done.out


def test_a_run_holds_its_recipe(run: Path) -> None:
    registry = build_registry()
    first, again = (
        load_recipe(path, registry, environ={}) for path in (run.parent / "quick.yaml", run / "recipe.yaml")
    )
    assert digest(first) == digest(again) and first.tasks == again.tasks
    written = describe(first)["tasks"]["several"]["labels"]
    assert "train" not in written["stars"] and "text" not in written["stars"] and written["stars"]["label"] == "stars"
    assert list(first.scored) == ["mood", "grade", "stars", "marks", "extra"] and first.owner("stars") == "several"


def test_killed_and_resumed_it_is_the_same_run(run: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(recipe_of(tmp_path), run, tmp_path / "run")


@pytest.mark.parametrize("form", ["transformers", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exports_have_a_task_for_each_label(
    form: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["so nice 1", "so nice nice nice 3", "x"]
    predictor = mtmeta.load(run, device="cpu")
    for name in ("mood", "marks"):
        wanted = predictor.predict(name, texts)
        found = answers_of_export(run, form, name, texts, tmp_path / f"{form}-{name}", monkeypatch)
        for one, other in zip(found, wanted, strict=True):
            assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-4)
    done = mtmeta.export(run, form, tasks=["several"], out=tmp_path / "all")
    assert list(done["tasks"]) == ["mood", "grade", "stars", "marks"]


def test_it_can_be_compared_with_a_task_for_each_label(tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    several = recipe["tasks"].pop("several")
    common = {key: several[key] for key in ("train", "dev", "test", "batch_size", "inner_steps")}
    for name, part in several["labels"].items():
        recipe["tasks"][name] = {"task": "classification", "label": name, **common, **part}
    skip = {"data": {"on_bad_rows": "skip"}}  # a task for each label has no row for a label that is missing
    one = {**json.loads((tmp_path / "quick.yaml").read_text()), **skip}
    rows = {}
    for name, given in (("several", one), ("apart", {**recipe, **skip})):
        mtmeta.run({**given, "name": name}, out=tmp_path / name, device="cpu")
        folder = RunDir(tmp_path / name)
        rows[name] = [Planned(folder.recipe, load_recipe(folder.recipe, REGISTRY, environ={}), folder)]
    check_alike([row[0].recipe for row in rows.values()])
    found = comparison(rows, Protocol(baselines=("apart",)).settled(rows), REGISTRY)
    assert list(found["metrics"]) == ["mood", "grade", "stars", "marks", "extra"]
    for row in found["rows"]:
        assert set(row["columns"]) == {*found["metrics"], "mean"}


def test_training_from_memory(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {
            "review": f"so {'nice ' * (at % 3)}{at}",
            "mood": None if at % 4 == 1 else ("no", "yes")[at % 2],
            "score": at % 3,
        }
        for at in range(24)
    ]
    labels = {"mood": {"labels": ["no", "yes"]}, "score": {"task": "regression", "low": 0, "high": 3}}
    data = mtmeta.task("multi_output", rows, dev=rows[:12], text="review", labels=labels, batch_size=8)
    finished = mtmeta.train(tasks={"reviews": data}, backbone="tiny", steps=2, out=tmp_path / "run", device="cpu")
    assert {name: score["examples"] for name, score in finished.tasks.items()} == {"mood": 9, "score": 12}
    assert finished.predict("reviews", "so nice").outputs.keys() == labels.keys()  # type: ignore[union-attr]


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml", "maml", "anil", "metasgd", "surgery"])
def test_every_algorithm_trains_it(algorithm: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    options = {} if algorithm == "surgery" else {"tasks_per_step": 2}
    recipe["tasks"]["several"]["labels"]["mood"].pop("loss")
    recipe |= {"algorithm": {"name": algorithm, **options}, "training": {"steps": 1}}
    finished = mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    assert 0 <= finished.tasks["mood"]["value"] <= 1


def test_shards_add_up_to_the_whole_step(tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["backbone"]["dropout"] = 0.0
    recipe["optimizer"] = {"name": "sgd", "lr": 0.1}
    whole = mtmeta.run(recipe, out=tmp_path / "whole", device="cpu")
    recipe["training"] |= {"shards": 4}
    cut = mtmeta.run(recipe, out=tmp_path / "cut", device="cpu")
    for name, score in whole.tasks.items():
        assert cut.tasks[name]["loss"] == pytest.approx(score["loss"], abs=1e-5), name


# -------------------------------------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"labels": {}}, "tasks.several.labels must be a mapping, found an empty mapping"),
        ({"labels": {"mood": ["no", "yes"]}}, "tasks.several.labels.mood must be a mapping, found a list of 2"),
        ({"labels": {"mood": {"labels": 3, "train": "x"}}}, "'train' is an option of the whole task; write it there"),
        ({"labels": {"mood": {"labels": 3, "text": "x"}}}, "'text' is an option of the whole task; write it there"),
        ({"labels": {"mood": {}}}, "tasks.several.labels.mood needs 'labels'; add it"),
        ({"labels": {"mood": {"task": "zebra"}}}, "unknown task 'zebra'"),
        ({"labels": {"mood": {"task": "tagging", "labels": ["A"]}}}, "is a tagging, which is no kind of label beside"),
        (
            {"labels": {"mood": {"labels": 3, "metrics": ["micro_f1"]}}},
            "metric 'micro_f1' makes no sense for task 'mood'",
        ),
        ({"labels": {"extra": {"labels": 3}}}, "'extra' is the name of another task or label"),
        ({"labels": {"Mood": {"labels": 3}}}, "label name 'Mood' is not allowed"),
        ({"labels": {"mood": {"labels": ["a", "a"]}}}, "name 'a' twice"),
        ({"labels": {"mood": {"labels": "names.txt"}}}, "tasks.several.labels.mood.labels: 'names.txt' no such file"),
        ({"labels": {"a": {"labels": 2}, "score_a": {"labels": 2}}}, "give predictions two columns 'score_a'"),
        ({"head": "hf"}, "tasks.several.head cannot be hf"),
    ],
)
def test_recipes_that_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"]["several"] |= change
    recipe["evaluation"]["select"] = "mean"
    problems = mtmeta.validate(recipe).problems
    assert any(words in problem for problem in problems) and all("\n" not in each for each in problems), problems


def test_names_of_labels_may_stand_in_a_file(tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    (tmp_path / "names.txt").write_text("no\tbad\nyes\tgood\nnone\tneither\n")
    recipe["tasks"]["several"]["labels"]["mood"] |= {"labels": "names.txt"}
    found = load_recipe(recipe, REGISTRY, environ={})
    assert found.scored["mood"].objective.classes == ("bad", "good", "neither")


def test_what_goes_by_one_class_refuses_it(run: Path, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    problems = mtmeta.validate({**recipe, "teachers": {"several": {"runs": ["t"]}}}).problems
    assert any("the objective of task 'several' has no soft_loss" in problem for problem in problems), problems
    problems = mtmeta.validate({**recipe, "algorithm": "protonet"}).problems
    assert any("task 'several' is no choice of one class" in problem for problem in problems), problems
    with pytest.raises(mtmeta.RecipeError, match="has several labels for each text") as refused:
        mtmeta.adapt([run], recipe, shots=[4], seeds=1)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("column", "value", "words"),
    [
        ("stars", "", "no example of train has a label of 'stars'"),
        ("kind", "yes", "labels of 'mood' are 'yes'; there is nothing to learn"),
        ("kind", "maybe", "mood: label 'maybe' is not one of no, yes, none"),
    ],
)
def test_files_that_are_refused(column: str, value: str, words: str, tmp_path: Path) -> None:
    path = recipe_of(tmp_path)
    rows = rows_of(24)
    write(tmp_path / "several-train.tsv", [{**row, column: value, "grade": "1"} for row in rows])
    with pytest.raises(mtmeta.DataError, match=words) as refused:
        mtmeta.run(path, out=tmp_path / "run", device="cpu")
    assert "\n" not in str(refused.value)
