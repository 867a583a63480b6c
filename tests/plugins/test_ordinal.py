"""Classes in order: CORAL's loss, head and probabilities by hand, its metrics by scikit-learn, a run to its export."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score

import mtmeta
from mtmeta.core.api.heads import CoralHead
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.studies.comparison import read_predictions, signs_of
from mtmeta.core.training.statistics import on_resamples
from mtmeta.plugins import distance_metrics as metrics
from mtmeta.plugins.tasks.ordinal import Ordinal, OrdinalTask
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.testing import check_task
from tests.core.export.test_export import answers_of_export
from tests.support.commands import call
from tests.support.quick import assert_adapts, assert_kills_change_nothing, quick_beside, read_table

NAMES = ("poor", "fair", "good", "great")


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(x, dtype=np.longdouble)))


# ------------------------------------------------------------------------------------------------- loss, head, answers


def test_the_loss_is_that_of_the_paper() -> None:
    """Equation 4 with all importances 1: over the questions a sum, over the batch a mean."""
    generator = np.random.default_rng(1)
    outputs, labels = generator.normal(0, 3, (7, 3)), generator.integers(0, 4, 7)
    by_hand = 0.0
    for row, label in zip(outputs, labels, strict=True):
        for k, logit in enumerate(row):
            by_hand -= np.log(sigmoid(logit) if label > k else 1 - sigmoid(logit)) / 7
    found = Ordinal(NAMES).loss(torch.tensor(outputs), torch.tensor(labels).float())
    assert float(found) == pytest.approx(float(by_hand), rel=1e-12)
    half = Ordinal(NAMES).loss(torch.tensor(outputs).float(), torch.tensor(labels).float())
    assert float(half) == pytest.approx(float(by_hand), rel=1e-6)
    with pytest.raises(ValueError, match=r"outputs have shape \[7, 2\], the loss needs \[7, 3\]"):
        Ordinal(NAMES).loss(torch.zeros(7, 2), torch.zeros(7))
    with pytest.raises(ValueError, match=r"labels have shape \[7, 1\], the loss needs \[B\]"):
        Ordinal(NAMES).loss(torch.zeros(7, 3), torch.zeros(7, 1))


def test_gradients_of_head_and_loss_are_those_of_finite_differences() -> None:
    head = CoralHead(5, outputs=3).double()
    pooled = torch.randn(4, 1, 5, dtype=torch.double, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, parameters = torch.tensor([0.0, 3.0, 1.0, 2.0]), dict(head.named_parameters())

    def loss(pooled: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(parameters, values, strict=True))
        return Ordinal(NAMES).loss(torch.func.functional_call(head, named, (pooled,)), labels)

    assert torch.autograd.gradcheck(loss, (pooled, *parameters.values()))


def test_the_head_has_one_weight_vector_and_a_bias_for_each_question() -> None:
    head = CoralHead(6, outputs=3)
    assert {name: list(p.shape) for name, p in head.named_parameters()} == {
        "bias": [3],
        "dense.weight": [6, 6],
        "dense.bias": [6],
        "out.weight": [1, 6],
    }
    chances = Ordinal(NAMES).probabilities(head.bias[None])
    assert chances[0].tolist() == pytest.approx([0.25] * 4, abs=1e-6)  # where the number is 0
    with torch.no_grad():
        head.bias.copy_(torch.tensor([1.0, 0.25, -2.0]))
        outputs = head(torch.randn(5, 1, 6))
    assert torch.allclose(outputs - outputs[:, :1], (head.bias - head.bias[0]).expand(5, 3), atol=1e-6)


def test_ranks_and_probabilities_are_of_the_answers() -> None:
    outputs = torch.tensor([[2.0, 1.0, -0.5], [-1.0, -2.0, -3.0], [40.0, 38.0, 36.0], [4.0, 0.0, -1.0]])
    objective = Ordinal(NAMES)
    assert objective.decode(outputs).tolist() == [2, 0, 3, 1]  # a probability of .5 is not above it
    found = objective.probabilities(outputs)
    for row, logits in zip(found.tolist(), outputs.double().numpy(), strict=True):
        above, below = (np.array([first, *sigmoid(s * logits), 1 - first]) for s, first in ((1, 1), (-1, 0)))
        wanted = np.diff(below) if logits[0] > 9 else -np.diff(above)  # 1 - p of a p near 1 would lose the digits
        assert row == pytest.approx(wanted.astype(float), rel=1e-4)
    assert float(found[2, 0]) == pytest.approx(float(np.exp(-40.0)), rel=1e-4)
    assert found.sum(dim=1).tolist() == pytest.approx([1.0] * 4, abs=1e-6)


def test_biases_out_of_order_leave_the_rank_as_the_count() -> None:
    outputs = torch.tensor([[1.0, 2.0, -3.0], [-1.0, 2.0, -3.0]])
    objective = Ordinal(NAMES)
    assert objective.decode(outputs).tolist() == [2, 1]
    found = objective.probabilities(outputs).double().numpy()
    a, b, c = sigmoid([1.0, 2.0, -3.0]).astype(float)
    kept = np.array([1 - a, 0.0, b - c, c])
    assert found[0] == pytest.approx(kept / kept.sum(), rel=1e-5)
    assert (found >= 0).all() and found.sum(axis=1) == pytest.approx([1.0, 1.0], abs=1e-6)


def test_a_teacher_is_heard_by_what_its_classes_come_to() -> None:
    generator = torch.Generator().manual_seed(3)
    outputs, labels = torch.randn(5, 3, generator=generator), torch.tensor([0.0, 1.0, 2.0, 3.0, 1.0])
    teacher = torch.rand(5, 4, generator=generator).softmax(dim=1)
    objective = Ordinal(NAMES)
    for trust in (0.0, 0.3, 1.0):
        by_hand = 0.0
        for row, label, said in zip(outputs.double().numpy(), labels.tolist(), teacher.double().numpy(), strict=True):
            for k, logit in enumerate(row):
                target = (1 - trust) * float(label > k) + trust * said[k + 1 :].sum()
                by_hand -= float(target * np.log(sigmoid(logit)) + (1 - target) * np.log(1 - sigmoid(logit))) / 5
        assert float(objective.soft_loss(outputs, labels, teacher, trust)) == pytest.approx(by_hand, rel=1e-6)
    certain = torch.nn.functional.one_hot(labels.long(), 4).float()
    assert objective.soft_loss(outputs, labels, certain, 1.0).equal(objective.loss(outputs, labels))


def test_of_two_classes_it_is_binary_cross_entropy() -> None:
    outputs, labels = torch.tensor([[0.3], [-2.0], [5.0]]), torch.tensor([1.0, 0.0, 0.0])
    two, binary = Ordinal(("no", "yes")), mtmeta.Binary(("no", "yes"))
    assert float(two.loss(outputs, labels)) == pytest.approx(float(binary.loss(outputs, labels)), rel=1e-6)
    assert two.decode(outputs).equal(binary.decode(outputs))
    assert torch.allclose(two.probabilities(outputs), binary.probabilities(outputs), atol=1e-7)


# ------------------------------------------------------------------------------------------------------------- metrics


@pytest.mark.parametrize("seed", range(4))
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = generator.choice([0.0, 1.0, 4.0], 50)  # classes 2 and 3 do not occur, and have their place all the same
    values = np.clip(labels + generator.integers(-1, 2, 50), 0, 4)
    classes = tuple("abcde")
    wanted = cohen_kappa_score(labels, values, labels=[0, 1, 2, 3, 4], weights="quadratic")
    assert metrics.quadratic_kappa(labels, values, classes=classes) == pytest.approx(wanted, rel=1e-12)
    assert metrics.mae(labels, values, classes=classes) == pytest.approx(np.abs(labels - values).mean(), rel=1e-12)


def test_what_has_no_rank_does_not_count_and_is_told() -> None:
    labels, values = np.array([0.0, 2.0, -1.0, 1.0, 2.0]), np.array([0.0, 1.0, 2.0, -1.0, 2.0])
    kept = (np.array([0.0, 2.0, 2.0]), np.array([0.0, 1.0, 2.0]))
    for metric in metrics.register():
        with pytest.warns(UserWarning, match="2 of 5 examples are outside the classes, have no rank and do not count"):
            assert metric(labels, values, classes=NAMES) == metric(*kept, classes=NAMES)
    assert metrics.mae(np.array([-1.5, 2.0]), np.array([-2.0, 1.0]), classes=()) == 0.75  # of numbers all count
    with pytest.warns(UserWarning, match="do not count"):
        assert metrics.mae(np.array([-1.0]), np.array([1.0]), classes=NAMES) == 3.0
    same = np.array([2.0, 2.0])
    with pytest.warns(UserWarning, match="quadratic_kappa of a single class is undefined; reported as 0"):
        assert metrics.quadratic_kappa(same, same, classes=NAMES) == 0.0


@pytest.mark.parametrize("name", ["mae", "quadratic_kappa"])
def test_resamples_at_once_are_the_metric_of_each(name: str) -> None:
    generator = np.random.default_rng(3)
    labels, values = generator.integers(0, 4, 40).astype(float), generator.integers(0, 4, 40).astype(float)
    labels[:3] = values[5:8] = -1.0
    drawn = [generator.integers(0, 40, 40) for _ in range(20)]
    counts = np.stack([np.bincount(at, minlength=40) for at in drawn]).astype(float)
    metric = next(each for each in metrics.register() if each.name == name)
    assert metric.resampled is not None
    found = metric.resampled(labels, values, counts, classes=NAMES)
    with pytest.warns(UserWarning, match="do not count"):
        wanted = [metric(labels[at], values[at], classes=NAMES) for at in drawn]
    assert found == pytest.approx(wanted, rel=1e-12)
    assert metric.greater_is_better == (name == "quadratic_kappa")


# --------------------------------------------------------------------------------------------------------- the task


def test_the_contract_of_a_task() -> None:
    rows = [{"sentence": f"a {name} film", "label": name} for name in NAMES]
    check_task(OrdinalTask, rows, labels=NAMES)
    check_task(OrdinalTask, [{"sentence": "bad", "label": "1"}, {"sentence": "nice", "label": "3"}], labels=4)


def test_the_sample_is_of_five_grades() -> None:
    named = OrdinalTask(labels={"0": "awful", "1": "bad", "2": "fair", "3": "good", "4": "great"}, train="sample")
    wanted = [each.label for each in Sst(train="sample").sample("dev")]
    assert [named.objective.parse(each.label) for each in named.sample("dev")] == wanted
    with pytest.raises(mtmeta.DataError, match="its reviews have five grades; name five labels"):
        list(OrdinalTask(labels=4, train="sample").sample("dev"))


# ---------------------------------------------------------------------------------------------------------- whole runs


def recipe_of(folder: Path) -> Path:
    """A recipe of a task of four grades, and a task with two classes."""
    files = {}
    for split, count in (("train", 32), ("dev", 24), ("test", 12)):
        lines = [f"{i}\tone {'nice ' * (i % 4)}{i}\t{NAMES[i % 4]}\n" for i in range(count)]
        files[split] = "id\tsentence\tlabel\n" + "".join(lines)
    return quick_beside(folder, "grade", {"task": "ordinal", "labels": list(NAMES)}, files)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ordinal")
    mtmeta.run(recipe_of(folder), out=folder / "run", device="cpu")
    return folder / "run"


def test_scores_are_those_of_the_predictions(run: Path) -> None:
    task = mtmeta.load(run, device="cpu").task("grade")
    labels, values = read_predictions(run / "predictions" / "grade-dev.csv", task)
    score = json.loads((run / "summary.json").read_text())["tasks"]["grade"]
    wanted = cohen_kappa_score(labels, values, labels=[0, 1, 2, 3], weights="quadratic")
    assert score["value"] == pytest.approx(wanted, rel=1e-12)
    assert score["others"]["mae"] == pytest.approx(np.abs(labels - values).mean(), rel=1e-12)
    assert score["others"]["accuracy"] == pytest.approx((labels == values).mean(), rel=1e-12)
    metric = next(each for each in metrics.register() if each.name == "quadratic_kappa")
    seen = [[{"classes": NAMES}]]
    (draws,) = on_resamples(labels, [values[None]], metric, 3, 20, seen=seen)
    assert draws.shape == (1, 20) and np.isfinite(draws).all()


def test_predict_eval_and_report_show_it(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = read_table(run / "predictions" / "grade-dev.csv")
    source = str(run.parent / "grade-dev.tsv")
    done = call("predict", str(run), "--task", "grade", "--input", source, cwd=run.parent, capsys=capsys)
    found = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0 and [row["label"] for row in found] == [row["prediction"] for row in rows]
    assert list(found[0]) == ["id", "label", "score", *(f"probability_{name}" for name in NAMES)]
    assert all(row["score"] == row[f"probability_{row['label']}"] for row in found)
    assert [sum(float(row[f"probability_{name}"]) for name in NAMES) for row in found] == pytest.approx(
        [1] * 24, abs=1e-4
    )
    done = call("eval", str(run), "--split", "dev", "--task", "grade", "--verbose", cwd=run.parent, capsys=capsys)
    assert done.code == 0 and "accuracy" in done.out and "great" in done.out
    done = call("validate", "--data", str(run.parent / "quick.yaml"), cwd=run.parent, capsys=capsys)
    assert done.code == 0 and "labels: poor 25.0%, fair 25.0%, good 25.0%, great 25.0%" in done.out


def test_killed_and_resumed_it_is_the_same_run(run: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(recipe_of(tmp_path), run, tmp_path / "run")


@pytest.mark.parametrize("form", ["transformers", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exports_answer_as_predict_does(form: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["one nice 1", "one nice nice nice 3", "x", "one 0"]
    wanted = mtmeta.load(run, device="cpu").predict("grade", texts)
    found = answers_of_export(run, form, "grade", texts, tmp_path / form, monkeypatch)
    assert [each["label"] for each in found] == [each.label for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-4)
        assert one["score"] == pytest.approx(other.score, abs=1e-4)


def test_less_is_better_where_mae_selects(tmp_path: Path) -> None:
    """The best weights are those of the smallest error, and in comparisons less is better."""
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"] = {"grade": {**recipe["tasks"]["grade"], "metrics": ["mae", "accuracy"]}}
    recipe["evaluation"] = {"every": 1}
    mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    lines = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    seen = [line["tasks"]["grade"]["value"] for line in lines if line["type"] == "evaluated"]
    assert min(seen) < max(seen)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["tasks"]["grade"]["value"] == min(seen)
    registry = build_registry()
    assert signs_of(mtmeta.read_recipe(recipe), registry) == {"grade": -1.0, "mean": -1.0}  # comparisons go by these


def test_few_shots_of_it(run: Path, tmp_path: Path) -> None:
    assert_adapts(
        run, recipe_of(tmp_path), "grade", "prototype scores each class by itself, task 'grade' does not", lowest=-1
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": ["micro_f1"]}, "predicts a class; use accuracy, "),
        ({"loss": {"weights": "balanced"}}, "loss"),
        ({"head": "hf"}, "tasks.grade.head cannot be hf, whose outputs have weights of their own"),
        ({"labels": ["a", "a"]}, "name 'a' twice"),
    ],
)
def test_recipes_that_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"]["grade"] |= change
    problems = mtmeta.validate(recipe).problems
    assert any(words in problem for problem in problems) and all("\n" not in each for each in problems), problems


def test_a_label_that_only_dev_has_is_wrong_and_told(run: Path, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    path = tmp_path / "grade-dev.tsv"
    path.write_text(path.read_text() + "99\tone odd 99\tsplendid\n")
    recipe["tasks"] = {"grade": recipe["tasks"]["grade"]}
    recipe["training"]["steps"] = 1
    recipe["evaluation"] = {}
    told: list[str] = []
    finished = mtmeta.run(recipe, out=tmp_path / "run", device="cpu", warn=told.append)
    assert any("1 of 25 examples are outside the classes, have no rank and do not count" in each for each in told)
    assert finished.tasks["grade"]["examples"] == 25


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml", "maml", "anil", "metasgd"])
def test_every_algorithm_trains_it(algorithm: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe |= {"algorithm": {"name": algorithm, "tasks_per_step": 2}, "training": {"steps": 1}}
    finished = mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    assert -1 <= finished.tasks["grade"]["value"] <= 1


def test_protonet_refuses_it(tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"] = {"grade": recipe["tasks"]["grade"]}
    (problem,) = mtmeta.validate({**recipe, "algorithm": "protonet"}).problems
    assert "protonet classifies, task 'grade' is no choice of one class" in problem
