"""Several numbers a text: loss, gradient and metrics by hand, missing numbers, and a run from file to export."""

from __future__ import annotations

import csv
import io
import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

import mtmeta
from mtmeta.core.data.loading import from_examples
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.studies.comparison import read_predictions, same_labels
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.generic import RegressionTask
from mtmeta.plugins.tasks.targets import Targets
from mtmeta.testing import check_task
from tests.core.export.test_export import answers_of_export
from tests.support.commands import call
from tests.support.quick import assert_kills_change_nothing, quick_beside, read_table

NAN = math.nan
THREE = Targets(("a", "b", "c"), (0.0, 0.0, -1.0), (5.0, 5.0, 1.0))
REGISTRY = build_registry()


def metric(name: str) -> mtmeta.Metric:
    found: mtmeta.Metric = REGISTRY.get("metric", name, "test")
    return found


# ---------------------------------------------------------------------------------------------------- loss and answers


def test_the_loss_is_the_mean_over_texts_of_the_mean_over_the_numbers_they_have() -> None:
    generator = np.random.default_rng(1)
    outputs, labels = generator.normal(0, 2, (5, 3)), generator.normal(0, 1, (5, 3))
    labels[0, 1] = labels[2, 0] = labels[2, 2] = NAN
    there = ~np.isnan(labels)
    by_hand = np.mean([((outputs[b] - labels[b]) ** 2)[there[b]].mean() for b in range(5)])
    tensors = torch.tensor(outputs), torch.tensor(labels)
    assert float(THREE.loss(*tensors)) == pytest.approx(by_hand, rel=1e-12)
    assert float(THREE.loss(*(each.float() for each in tensors))) == pytest.approx(by_hand, rel=1e-6)
    parts = [float(THREE.loss(*(each[at] for each in tensors))) for at in (slice(2), slice(2, 5))]
    assert (2 * parts[0] + 3 * parts[1]) / 5 == pytest.approx(by_hand, rel=1e-12)  # however a batch is cut
    for bad in (torch.zeros(5, 2), torch.zeros(5), torch.zeros(4, 3)):
        with pytest.raises(ValueError, match=r"the loss needs \[5, 3\] of both"):
            THREE.loss(bad, tensors[1])


def test_a_missing_number_has_no_gradient_and_the_others_have_that_of_finite_differences() -> None:
    outputs = torch.randn(4, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[1.0, NAN, 0.0], [NAN, NAN, 2.0], [1.0, 2.0, 3.0], [0.0, 0.5, NAN]], dtype=torch.double)
    assert torch.autograd.gradcheck(lambda outputs: THREE.loss(outputs, labels), (outputs,))
    (grad,) = torch.autograd.grad(THREE.loss(outputs, labels), outputs)
    assert (grad[labels.isnan()] == 0).all() and (grad[~labels.isnan()] != 0).all()


def test_of_one_number_it_is_what_regression_does() -> None:
    one, plain = Targets(("a",), (0.0,), (5.0,)), mtmeta.Regression(0.0, 5.0)
    outputs, labels = torch.tensor([1.0, 7.0, -2.0]), torch.tensor([1.5, 4.0, 0.0])
    assert one.loss(outputs[:, None], labels[:, None]).equal(plain.loss(outputs, labels))
    assert one.decode(outputs[:, None])[:, 0].equal(plain.decode(outputs))


def test_answers_are_within_the_bounds_of_each() -> None:
    outputs = torch.tensor([[9.0, -9.0, 0.5], [1.0, 2.0, -3.0]])
    assert THREE.decode(outputs).tolist() == [[5.0, 0.0, 0.5], [1.0, 2.0, -1.0]]


def test_numbers_as_files_write_them() -> None:
    assert THREE.parse(("1", 2, "-0.5")) == THREE.parse("1 2 -0.5") == (1.0, 2.0, -0.5)
    for mark in ("", " NaN ", None, "NA", "null"):
        row = THREE.parse(("1", mark, "0"))
        assert row[::2] == (1.0, 0.0) and math.isnan(row[1])
    assert THREE.show((1.0, NAN, 0.25)) == "1 nan 0.25"
    assert math.isnan(THREE.parse("1 nan 0.25")[1])
    for bad, words in (
        (("1", "x", "0"), "column 'b': label 'x' is not a finite number"),
        (("1", "6", "0"), "column 'b': label '6' is outside 0 to 5"),
        (("1", "inf", "0"), "column 'b': label 'inf' is not a finite number"),
        (("1", "0"), "label has 2 numbers, expected 3"),
        (("", "", None), "label '' is not a finite number"),
        (3.0, "label has no numbers, expected 3"),
    ):
        with pytest.raises(ValueError, match=words):
            THREE.parse(bad)


# ------------------------------------------------------------------------------------------------------------- metrics


def by_hand(name: str, labels: Any, values: Any) -> float:
    functions: dict[str, Any] = {
        "pearson": lambda y, p: pearsonr(y, p).statistic,
        "spearman": lambda y, p: spearmanr(y, p).statistic,
        "mae": lambda y, p: np.abs(y - p).mean(),
        "rmse": lambda y, p: np.sqrt(((y - p) ** 2).mean()),
    }
    of_each = []
    for own, found in zip(labels.T, values.T, strict=True):
        there = ~np.isnan(own)
        if there.any():
            of_each.append(functions[name](own[there], found[there]))
    return float(np.mean(of_each))


@pytest.mark.parametrize("name", ["pearson", "spearman", "mae", "rmse"])
def test_metrics_are_the_mean_over_the_numbers(name: str) -> None:
    generator = np.random.default_rng(2)
    labels, values = generator.normal(size=(40, 3)), generator.normal(size=(40, 3))
    labels[generator.random((40, 3)) < 0.2] = NAN
    assert metric(name)(labels, values, classes=()) == pytest.approx(by_hand(name, labels, values), rel=1e-12)
    drawn = [generator.integers(0, 40, 40) for _ in range(12)]
    counts = np.stack([np.bincount(at, minlength=40) for at in drawn]).astype(float)
    resampled = metric(name).resampled
    assert resampled is not None
    seen = metric(name).seen({"classes": ()})
    wanted = [by_hand(name, labels[at], values[at]) for at in drawn]
    assert resampled(labels, values, counts, **seen) == pytest.approx(wanted, rel=1e-9)
    assert metric(name).greater_is_better == (name in ("pearson", "spearman"))
    labels[:, 1] = NAN
    with pytest.warns(UserWarning, match=f"{name}: 1 of 3 numbers have no example and do not count"):
        assert metric(name)(labels, values, classes=()) == pytest.approx(by_hand(name, labels, values), rel=1e-12)


def test_each_number_has_a_line_of_its_own() -> None:
    labels, values = np.array([[0.0, NAN], [1.0, NAN], [3.0, 1.0]]), np.array([[0.5, 1.0], [1.0, 1.0], [2.0, 0.0]])
    table = Targets(("x", "y"), (0.0, 0.0), (5.0, 5.0)).confusion(labels, values)
    assert table.columns == ("labelled", "pearson", "spearman", "rmse", "mae")
    name, figures = table.rows[0]
    wanted = [by_hand(each, labels[:, :1], values[:, :1]) for each in table.columns[1:]]
    assert name == "x" and figures == pytest.approx((3, *wanted))
    assert table.rows[1][0] == "y" and table.rows[1][1] == pytest.approx((1, 0.0, 0.0, 1.0, 1.0))


# --------------------------------------------------------------------------------------------------------- the task


def task_of(**options: Any) -> RegressionTask:
    return RegressionTask(**{"train": "t", "label": ("a", "b"), "low": 0.0, "high": 5.0, **options})


def test_bounds_are_for_all_or_for_each() -> None:
    assert task_of().objective == Targets(("a", "b"), (0.0, 0.0), (5.0, 5.0))
    assert task_of(low=(1.0, 2.0)).objective == Targets(("a", "b"), (1.0, 2.0), (5.0, 5.0))
    assert task_of(label="a").objective == mtmeta.Regression(0.0, 5.0)


def test_the_sample_is_of_grades_from_0_to_4() -> None:
    one, two = next(iter(task_of(label="a").sample("dev"))), next(iter(task_of().sample("dev")))
    assert isinstance(two.label, tuple) and (two.label[0], two.id) == (one.label, one.id)
    assert two.text.startswith(f"{one.text} ")
    for unfit in (task_of(high=3.0), task_of(low=(0.0, 1.0)), task_of(label=("a", "b", "c"))):
        with pytest.raises(mtmeta.DataError, match="file of your own"):
            list(unfit.sample("dev"))


def test_options_that_do_not_fit() -> None:
    def problems(**options: Any) -> list[tuple[str, str]]:
        return list(task_of(**options).check())

    assert problems() == problems(low=(0.0, 1.0), high=(1.0, 2.0)) == []
    assert problems(label=("a", "a")) == [("label", "names column 'a' twice")]
    assert problems(low=(0.0, 1.0, 2.0)) == [("low", "has 3 numbers for 2 columns; give one for each, or one for all")]
    assert problems(label="a", high=(1.0, 2.0))[0][0] == "high"
    assert problems(low=(0.0, 7.0)) == [("low", "must be below high, which is 5, found 7")]
    assert problems(head="hf") == [("head", "cannot be hf, for label names several columns; leave it out")]


def test_the_contract_of_a_task() -> None:
    rows = [{"sentence": f"text {at}", "a": at, "b": 5 - at} for at in range(4)]
    check_task(RegressionTask, rows, label=("a", "b"), low=0.0, high=5.0)


def test_shares_go_by_the_mean_of_the_numbers_that_are_there() -> None:
    backbone = Bert(weights="tiny", max_length=16).load(1)
    labels = [("1", "3"), ("", "5"), ("0", "0"), ("1", "1")]
    examples = [mtmeta.Example(f"text {at}", label=label) for at, label in enumerate(labels)]
    data = from_examples("t", task_of(), "train", examples, backbone)
    assert data.of_label.tolist() == [2.0, 5.0, 0.0, 1.0]
    assert data.labels.shape == (4, 2) and math.isnan(data.labels[1, 0])
    whole = from_examples("t", task_of(), "train", [examples[0], *examples[2:]], backbone)
    assert whole.of_label.tolist() == [2.0, 0.0, 1.0]  # whole numbers are no sets of classes


# ---------------------------------------------------------------------------------------------------------- whole runs


def recipe_of(folder: Path) -> Path:
    """A recipe of a task of two numbers, some of them missing, and a task with two classes."""
    generator, files = random.Random(4), {}
    for split, count in (("train", 32), ("dev", 24), ("test", 12)):
        lines = []
        for i in range(count):
            nice, bad = generator.randrange(4), generator.randrange(4)
            cell = "" if i % 8 == 3 else str(bad / 2)
            lines.append(f"{i}\tso {'nice ' * nice}{'bad ' * bad}{i}\t{nice}\t{cell}\n")
        files[split] = "id\tsentence\tnice\tbad\n" + "".join(lines)
    two = {"task": "regression", "label": ["nice", "bad"], "low": 0, "high": [3, 1.5]}
    return quick_beside(folder, "two", {**two, "metrics": ["pearson", "rmse", "mae"]}, files)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("targets")
    mtmeta.run(recipe_of(folder), out=folder / "run", device="cpu")
    return folder / "run"


def test_scores_are_those_of_the_predictions(run: Path) -> None:
    task = mtmeta.load(run, device="cpu").task("two")
    labels, values = read_predictions(run / "predictions" / "two-dev.csv", task)
    rows = read_table(run.parent / "two-dev.tsv")
    wanted = np.array([[float(row[name] or NAN) for name in ("nice", "bad")] for row in rows])
    assert same_labels(labels, wanted) and np.isnan(labels).sum() == 3
    score = json.loads((run / "summary.json").read_text())["tasks"]["two"]
    assert score["value"] == pytest.approx(by_hand("pearson", labels, values), rel=1e-4)
    for name in ("rmse", "mae"):
        assert score["others"][name] == pytest.approx(by_hand(name, labels, values), rel=1e-4)
    assert score["low"] < score["value"] < score["high"]


def test_predict_eval_and_report_show_each_number(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    rows = read_table(run / "predictions" / "two-dev.csv")
    source = str(run.parent / "two-dev.tsv")
    done = call("predict", str(run), "--task", "two", "--input", source, cwd=run.parent, capsys=capsys)
    found = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0 and list(found[0]) == ["id", "score_nice", "score_bad"]
    numbers = np.array([[float(row["score_nice"]), float(row["score_bad"])] for row in found])
    assert numbers == pytest.approx(np.array([row["prediction"].split() for row in rows], dtype=float), abs=1e-5)
    texts = [row["sentence"] for row in read_table(run.parent / "two-dev.tsv")]
    in_python = mtmeta.load(run, device="cpu").predict("two", texts)
    assert np.array([list((each.scores or {}).values()) for each in in_python]) == pytest.approx(numbers, abs=1e-5)
    assert list(in_python[0].json()) == ["scores"] and list(in_python[0].scores or ()) == ["nice", "bad"]
    done = call("eval", str(run), "--split", "dev", "--task", "two", "--verbose", cwd=run.parent, capsys=capsys)
    assert done.code == 0 and "how each number is predicted" in done.out
    done = call("report", str(run), "--out", str(tmp_path / "r.html"), cwd=run.parent, capsys=capsys)
    assert done.code == 0 and not done.err
    page = (tmp_path / "r.html").read_text()
    assert "how each number is predicted" in page and "mean error" in page


def test_validate_tells_of_each_number_and_of_missing_ones(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call("validate", "--data", str(run.parent / "quick.yaml"), cwd=run.parent, capsys=capsys)
    assert done.code == 0
    assert "note: numbers are missing ('bad' 4); the loss and metrics go by those that are there" in done.out
    assert "labels: nice 0 to 3, mean " in done.out and "; bad 0 to 1.5, mean " in done.out


def test_killed_and_resumed_it_is_the_same_run(run: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(recipe_of(tmp_path), run, tmp_path / "run")


@pytest.mark.parametrize("form", ["transformers", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exports_answer_as_predict_does(form: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["so nice 1", "so nice nice nice 3", "x", "so bad bad 0"]
    wanted = mtmeta.load(run, device="cpu").predict("two", texts)
    found = answers_of_export(run, form, "two", texts, tmp_path / form, monkeypatch)
    for one, other in zip(found, wanted, strict=True):
        assert one["scores"] == pytest.approx(other.scores, abs=1e-4), form


def test_few_shots_of_it(run: Path, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"] = {"two": recipe["tasks"]["two"]}
    recipe["evaluation"] = {}
    recipe["training"]["steps"] = 2
    found = mtmeta.adapt([run], recipe, shots=[4], seeds=1)
    assert all(-1 <= row["value"] <= 1 for row in found.records())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": ["accuracy"]}, "metric 'accuracy' needs classes, task 'two' predicts several numbers; use "),
        ({"low": [0, 1, 2]}, "has 3 numbers for 2 columns"),
        ({"low": 5}, "must be below high"),
        ({"label": "nice"}, "has 2 numbers for 1 columns"),
    ],
)
def test_recipes_that_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"]["two"] |= change
    problems = mtmeta.validate(recipe).problems
    assert any(words in problem for problem in problems) and all("\n" not in each for each in problems), problems


def test_distillation_refuses_it(tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    problems = mtmeta.validate({**recipe, "teachers": {"two": {"runs": ["t"]}}}).problems
    assert any("the objective of task 'two' has no soft_loss" in problem for problem in problems), problems


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml", "maml", "anil", "metasgd"])
def test_every_algorithm_trains_it(algorithm: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe |= {"algorithm": {"name": algorithm, "tasks_per_step": 2}, "training": {"steps": 1}}
    finished = mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    assert -1 <= finished.tasks["two"]["value"] <= 1
