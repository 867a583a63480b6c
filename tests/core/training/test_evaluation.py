"""Metrics against scikit-learn and SciPy, and evaluation that neither depends on batching nor leaves a trace."""

from __future__ import annotations

import csv
import hashlib
import math
import random
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

import mtmeta
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.rng import derive
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.session import Session
from mtmeta.core.training.evaluation import Predictions, Score, aggregate, detail, interval, predict, score
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins import metrics as plugin
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts

NAMES = tuple("01234")
METRICS = {metric.name: metric for metric in plugin.register_metrics() if metric.fits(mtmeta.Classification(5))}
TASKS: dict[str, mtmeta.Task] = {
    "sst": Sst(train="sample"),
    "para": Para(train="sample", pair_mode="cross"),
    "sts": Sts(train="sample"),
}
RECIPE = """
backbone: {name: bert, weights: tiny, max_length: 64}
tasks:
  sst: {train: sample, dev: sample}
  sts: {train: sample, dev: sample}
algorithm: joint
optimizer: {name: sgd, lr: 0.1}
training: {steps: 1}
"""
Array = NDArray[np.float64]
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def datasets() -> dict[str, Dataset]:
    backbone = Bert(weights="tiny", max_length=64).load(3)
    return {
        name: from_examples(name, task, "dev", list(task.sample("dev"))[:120], backbone) for name, task in TASKS.items()
    }


@pytest.fixture(scope="module")
def model(datasets: dict[str, Dataset]) -> MultiTaskModel:
    loaded = Bert(weights="tiny", max_length=64).load(3)
    with torch.no_grad():
        for parameter in loaded.encoder.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
        model = MultiTaskModel(loaded.encoder, TASKS, seed=3).eval()
        for task in ("sst", "para"):  # so that predictions are not all one class
            model.get_parameter(f"heads.{task}.out.weight").mul_(20.0)
            outputs = model(task, pack_sequences(datasets[task].stores, np.arange(120))).view(120, -1)
            model.get_parameter(f"heads.{task}.out.bias").sub_(outputs.mean(0))
    return model


def made_up(labels: Array, values: Array, task: str = "sst") -> Predictions:
    ids = [f"e{i}" for i in range(len(labels))]
    return Predictions(Dataset(task, "dev", "f", ids, labels, (), skipped=3), values, loss=0.5)


# ----------------------------------------------------------------------------------------------------------- metrics


def classes(n: int = 400) -> tuple[Array, Array]:
    generator = np.random.default_rng(1)
    labels = generator.integers(0, 5, n)
    return labels.astype(float), np.where(generator.random(n) < 0.6, labels, generator.integers(0, 4, n)).astype(float)


def numbers(n: int = 400) -> tuple[Array, Array]:
    generator = np.random.default_rng(2)
    labels = np.round(generator.random(n) * 25) / 5  # ties
    return labels, labels + generator.normal(size=n)


def test_classification_metrics_are_scikit_learns() -> None:
    labels, values = classes()
    y, p = labels.astype(int), values.astype(int)
    assert METRICS["accuracy"](labels, values) == accuracy_score(y, p) == float((y == p).mean())
    assert METRICS["macro_f1"](labels, values) == pytest.approx(f1_score(y, p, average="macro"), rel=1e-12)
    assert METRICS["matthews"](labels, values) == pytest.approx(matthews_corrcoef(y, p), rel=1e-12)
    f1s = []
    for c in range(5):
        hits = int(((y == c) & (p == c)).sum())
        f1s.append(2 * hits / (int((y == c).sum()) + int((p == c).sum())))
    assert METRICS["macro_f1"](labels, values) == pytest.approx(sum(f1s) / 5, rel=1e-12)


def test_regression_metrics_are_scipys() -> None:
    labels, values = numbers()
    assert METRICS["pearson"](labels, values) == pytest.approx(pearsonr(labels, values)[0], rel=1e-12)
    assert METRICS["spearman"](labels, values) == pytest.approx(spearmanr(labels, values)[0], rel=1e-12)
    a, b = labels - labels.mean(), values - values.mean()
    assert METRICS["pearson"](labels, values) == pytest.approx(
        float((a * b).sum() / math.sqrt((a**2).sum() * (b**2).sum()))
    )


@pytest.mark.parametrize("name", METRICS)
def test_shuffling_changes_nothing(name: str) -> None:
    labels, values = numbers() if name in ("pearson", "spearman") else classes()
    if name == "oos_recall":  # outside the classes
        labels, values = labels - 1, values - 1
    order = np.random.default_rng(3).permutation(len(labels))
    one, other = (METRICS[name](*each, classes=NAMES) for each in ((labels, values), (labels[order], values[order])))
    assert other == pytest.approx(one, rel=1e-12)
    assert METRICS[name].greater_is_better == (name not in ("mae", "rmse"))


@pytest.mark.parametrize("name", ["pearson", "spearman", "matthews"])
@pytest.mark.parametrize("which", ["labels", "predictions"])
def test_correlation_of_constants_is_zero_with_one_warning(name: str, which: str) -> None:
    labels, values = classes(20)
    (labels if which == "labels" else values)[:] = 2.0
    made, warned = score(made_up(labels, values), [METRICS[name]], seed=1)
    assert made.value == 0.0
    assert warned == [f"sst: {name} of constant {which} is undefined; reported as 0"]
    assert (made.low, made.high) == (0.0, 0.0)


def test_a_single_example_has_no_correlation() -> None:
    made, warned = score(made_up(np.array([1.0]), np.array([2.0])), [METRICS["pearson"]], seed=1, intervals=False)
    assert (made.value, made.low, made.high) == (0.0, None, None)
    assert warned == ["sst: pearson of constant labels is undefined; reported as 0"]


# ---------------------------------------------------------------------------------------------------------- predict


@pytest.mark.parametrize("name", TASKS)
def test_batching_changes_nothing(name: str, model: MultiTaskModel, datasets: dict[str, Dataset]) -> None:
    small, large = (predict(model, datasets[name], batch_tokens=tokens) for tokens in (50, 5000))
    np.testing.assert_allclose(small.values, large.values, rtol=0, atol=1e-5)
    assert small.loss == pytest.approx(large.loss, abs=1e-6)
    metrics = [METRICS[metric] for metric in TASKS[name].metrics]
    one, other = (score(p, metrics, seed=1, intervals=name != "sts")[0] for p in (small, large))
    assert one.value == pytest.approx(other.value, abs=1e-6)
    assert one.others == pytest.approx(other.others, abs=1e-6)
    assert (one.low, one.high) == (other.low, other.high)
    assert len(set(small.values.tolist())) >= {"sst": 2, "para": 2, "sts": 100}[name]


@pytest.mark.parametrize("name", TASKS)
def test_predictions_are_in_file_order(name: str, model: MultiTaskModel, datasets: dict[str, Dataset]) -> None:
    dataset = datasets[name]
    order = np.random.default_rng(5).permutation(len(dataset))
    task = TASKS[name]
    found = list(task.sample("dev"))[:120]
    shuffled = [found[i] for i in order]
    other = from_examples(name, task, "dev", shuffled, Bert(weights="tiny", max_length=64).load(3))
    one, two = (predict(model, d, batch_tokens=400) for d in (dataset, other))
    np.testing.assert_allclose(one.values[order], two.values, rtol=0, atol=1e-5)
    assert list(two.dataset.ids) == [dataset.ids[i] for i in order]
    assert one.loss == pytest.approx(two.loss, abs=1e-6)


def test_values_and_loss_are_those_of_one_example_at_a_time(
    model: MultiTaskModel, datasets: dict[str, Dataset]
) -> None:
    from mtmeta.core.data.packing import pack_sequences

    dataset = datasets["sts"]
    objective = TASKS["sts"].objective
    found = predict(model, dataset, batch_tokens=5000)
    model.eval()
    losses = []
    with torch.inference_mode():
        for i in range(len(dataset)):
            outputs = model("sts", pack_sequences(dataset.stores, np.array([i])))
            losses.append(float((outputs - dataset.labels[i]).square()))
            assert float(objective.decode(outputs)) == pytest.approx(found.values[i], abs=1e-5)
    assert found.loss == pytest.approx(sum(losses) / len(losses), abs=1e-5)


def fingerprint(model: MultiTaskModel) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_leaves_no_trace(training: bool, model: MultiTaskModel, datasets: dict[str, Dataset]) -> None:
    model.train(training)
    model.heads["sst"].eval()  # a part that a plugin keeps in evaluation mode
    for i, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, i) if i % 2 else None
    torch.manual_seed(1)
    np.random.seed(1)
    random.seed(1)
    modes = [module.training for module in model.modules()]
    assert any(modes) == training
    hash_before, torch_before = fingerprint(model), torch.get_rng_state()
    numpy_before: Any = np.random.get_state()
    python_before = random.getstate()
    for name, dataset in datasets.items():
        found = predict(model, dataset, batch_tokens=500)
        score(found, [METRICS[metric] for metric in TASKS[name].metrics], seed=1, intervals=name == "sst")
    assert fingerprint(model) == hash_before
    assert torch.equal(torch.get_rng_state(), torch_before)
    numpy_after: Any = np.random.get_state()
    assert np.array_equal(numpy_after[1], numpy_before[1]) and numpy_after[2:] == numpy_before[2:]
    assert random.getstate() == python_before
    assert [module.training for module in model.modules()] == modes
    for i, parameter in enumerate(model.parameters()):
        assert parameter.requires_grad and not parameter.is_inference()
        assert (parameter.grad is None) == (i % 2 == 0)
        assert parameter.grad is None or bool((parameter.grad == i).all())
        parameter.grad = None
    model.train()


def test_the_mode_comes_back_when_a_prediction_fails(model: MultiTaskModel, datasets: dict[str, Dataset]) -> None:
    model.train()
    bias = model.get_parameter("heads.sst.out.bias")
    kept = bias.detach().clone()
    with torch.no_grad():
        bias[2] = math.nan
    with pytest.raises(mtmeta.DivergedError) as caught:
        predict(model, datasets["sst"], batch_tokens=500)
    assert str(caught.value) == "predictions for task 'sst' are not finite; lower the learning rate"
    assert all(module.training for module in model.modules())
    with torch.no_grad():
        bias.copy_(kept)


# --------------------------------------------------------------------------------------------------------- intervals


@pytest.mark.parametrize("name", ["accuracy", "pearson"])
def test_bootstrap_equals_a_loop_by_hand(name: str) -> None:
    labels, values = classes(150) if name == "accuracy" else numbers(150)
    metric = METRICS[name]
    made, _ = score(made_up(labels, values), [metric], seed=7)
    generator = np.random.Generator(np.random.PCG64(derive(7, "bootstrap", "sst")))
    drawn = []
    for _ in range(1000):
        at = generator.integers(0, 150, 150)
        hits = (labels[at] == values[at]).mean()
        drawn.append(float(hits) if name == "accuracy" else float(np.corrcoef(labels[at], values[at])[0, 1]))
    drawn.sort()

    def percentile(q: float) -> float:
        place = q / 100 * 999
        low = int(place)
        return drawn[low] + (place - low) * (drawn[low + 1] - drawn[low])

    assert made.low == pytest.approx(percentile(2.5), abs=1e-12)
    assert made.high == pytest.approx(percentile(97.5), abs=1e-12)
    assert made.low is not None and made.high is not None
    assert made.low < made.value < made.high


def test_bootstrap_is_seeded() -> None:
    labels, values = classes(997)
    one, same, other = (interval(labels, values, METRICS["accuracy"], seed) for seed in (1, 1, 2))
    assert one == same != other
    sst, sts = (score(made_up(labels, values, task), [METRICS["accuracy"]], seed=1)[0] for task in ("sst", "sts"))
    assert (sst.low, sst.high) != (sts.low, sts.high)
    assert sst.value == sts.value


def test_bootstrap_width_of_an_accuracy_is_that_of_the_binomial() -> None:
    labels = np.zeros(1000)
    values = (np.arange(1000) < 300).astype(float)
    low, high = interval(labels, values, METRICS["accuracy"], 1)
    assert (high - low) / 2 == pytest.approx(1.96 * math.sqrt(0.7 * 0.3 / 1000), rel=0.1)


# ------------------------------------------------------------------------------------------------------------ scores


def test_score_holds_all_metrics_and_counts() -> None:
    labels, values = classes(50)
    made, warned = score(made_up(labels, values), [METRICS["accuracy"], METRICS["macro_f1"]], seed=1, intervals=False)
    f1 = float(f1_score(labels, values, average="macro"))
    assert made == Score("accuracy", float((labels == values).mean()), None, None, 50, 0.5, 3, {"macro_f1": f1})
    assert warned == []
    assert made.json()["others"] == {"macro_f1": f1}


def test_aggregate() -> None:
    def one(metric: str, value: float) -> Score:
        return Score(metric, value, None, None, 1, 0.0, 0, {})

    error = mtmeta.Metric("error", lambda labels, values: 0.0, greater_is_better=False)
    metrics = {**METRICS, "error": error}
    scores = {"a": one("accuracy", 0.5), "b": one("pearson", 0.8), "c": one("error", 0.3)}
    assert aggregate(scores, metrics, "mean") == pytest.approx((0.5 + 0.8 - 0.3) / 3, rel=1e-12)
    assert aggregate(scores, metrics, "b") == 0.8
    assert aggregate(scores, metrics, "c") == -0.3
    assert aggregate({"a": scores["a"]}, metrics, "b") == 0.5  # the selecting task is in another group


def test_detail() -> None:
    labels, values = np.array([0.0, 0, 1, 4, 4]), np.array([0.0, 1, 1, 4, 3])
    found = detail(TASKS["sst"], made_up(labels, values))
    by_hand = [[0] * 5 for _ in range(5)]
    for row, column in ((0, 0), (0, 1), (1, 1), (4, 4), (4, 3)):
        by_hand[row][column] += 1
    assert found == {"classes": ["0", "1", "2", "3", "4"], "confusion": by_hand}
    found = detail(TASKS["sts"], made_up(np.array([1.0, 2, 3]), np.array([2.0, 2, 0])))
    assert found["mean_error"] == pytest.approx(-2 / 3)
    assert found["mean_absolute_error"] == pytest.approx(4 / 3)
    assert found["root_mean_square_error"] == pytest.approx(math.sqrt(10 / 3))
    assert [row["id"] for row in found["worst"]] == ["e2", "e0", "e1"]
    assert found["worst"][0] == {"id": "e2", "label": 3.0, "prediction": 0.0}


def test_predictions_file_is_in_file_order(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    registry = build_registry()
    recipe = load_recipe(tmp_path / "r.yaml", registry, environ={})
    warned: list[str] = []
    session = Session(recipe, registry, RunDir(tmp_path / "run"), torch.device("cpu"), warned.append)
    session.backbone = recipe.backbone.load(1)
    model = MultiTaskModel(session.backbone.encoder, recipe.tasks, 1)
    for name, task in recipe.tasks.items():
        found = [replace(row, label=task.objective.parse(row.label)) for row in task.sample("dev")][40:0:-1]
        dataset = from_examples(name, task, "dev", found, session.backbone)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            ((made, predictions),) = session.score(model, dataset).values()
        with open(tmp_path / "run" / "predictions" / f"{name}-dev.csv", encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        assert rows[0] == ["id", "label", "prediction"]
        assert [row[0] for row in rows[1:]] == [example.id for example in found]
        assert [float(row[1]) for row in rows[1:]] == [example.label for example in found]
        np.testing.assert_allclose([float(row[2]) for row in rows[1:]], predictions.values, rtol=1e-5)
        labels, values = (np.array([float(row[column]) for row in rows[1:]]) for column in (1, 2))
        assert METRICS[task.metrics[0]](labels, values) == pytest.approx(made.value, abs=1e-4)
    assert [line for line in warned if "constant" not in line] == []
