"""`loss:` of tasks with classes by hand, beside torch's and scikit-learn's, and what runs make of it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import mtmeta
from mtmeta.core.api.losses import ClassLoss
from mtmeta.core.errors import MtmetaError, RecipeError
from mtmeta.core.recipe.resolved import decisive, describe
from tests.core.run.test_run import events
from tests.robustness import small
from tests.support import tiny  # noqa: F401  # one thread

CLASSES = ("a", "b", "c", "d")
WEIGHTS = {"a": 0.5, "b": 2.0, "c": 1.5}  # d: 1
W = [0.5, 2.0, 1.5, 1.0]


def batch(size: int = 7, scale: float = 3.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    logits = scale * torch.randn(size, 4, dtype=torch.float64, generator=generator)
    return logits.requires_grad_(), torch.randint(4, (size,), generator=generator)


def objective(**options: Any) -> mtmeta.Classification:
    return mtmeta.Classification(CLASSES, ClassLoss(**options))


# -------------------------------------------------------------------------------------------------------- by hand


def by_hand(logits: Tensor, labels: Tensor, weights: list[float], smoothing: float = 0.0, gamma: float = 0.0) -> float:
    """The formulas of the docs, number by number."""
    total = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        p = [math.exp(x) / sum(map(math.exp, row)) for x in row]
        target = [(1 - smoothing) * (c == label) + smoothing / len(row) for c in range(len(row))]
        total += sum(
            w * z * (1 - q) ** gamma * -math.log(q) for w, z, q in zip(weights, target, p, strict=True) if z > 0
        )
    return total / len(labels)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"weights": [1.0] * 4}),
        ({"weights": WEIGHTS}, {"weights": W}),
        ({"smoothing": 0.1}, {"weights": [1.0] * 4, "smoothing": 0.1}),
        ({"weights": WEIGHTS, "smoothing": 0.3}, {"weights": W, "smoothing": 0.3}),
        ({"focal": 2.0}, {"weights": [1.0] * 4, "gamma": 2.0}),
        ({"focal": 0.5, "weights": WEIGHTS}, {"weights": W, "gamma": 0.5}),
    ],
)
def test_the_formulas(options: dict[str, Any], expected: dict[str, Any]) -> None:
    logits, labels = batch()
    loss = objective(**options).training_loss(logits, labels)
    assert float(loss.detach()) == pytest.approx(by_hand(logits, labels, **expected), rel=1e-12)
    assert torch.autograd.gradcheck(lambda x: objective(**options).training_loss(x, labels), logits)
    assert torch.autograd.gradgradcheck(lambda x: objective(**options).training_loss(x, labels), logits)


def test_beside_torch_whose_mean_is_over_the_weights() -> None:
    logits, labels = batch()
    weight = torch.tensor(W, dtype=torch.float64)
    theirs = functional.cross_entropy(logits, labels, weight=weight, label_smoothing=0.2)  # sum / sum of w_y
    ours = objective(weights=WEIGHTS, smoothing=0.2).training_loss(logits, labels)
    torch.testing.assert_close(ours * len(labels) / weight[labels].sum(), theirs, rtol=1e-12, atol=0)
    plain = objective(smoothing=0.2).training_loss(logits, labels)
    torch.testing.assert_close(plain, functional.cross_entropy(logits, labels, label_smoothing=0.2), rtol=1e-12, atol=0)


def test_a_batch_is_the_mean_of_its_parts() -> None:
    logits, labels = batch(9)
    for options in ({"weights": WEIGHTS, "smoothing": 0.1}, {"weights": WEIGHTS, "focal": 2.0}):
        one = objective(**options)
        whole = one.training_loss(logits, labels)
        first, second = (one.training_loss(logits[at], labels[at]) for at in (slice(4), slice(4, 9)))
        torch.testing.assert_close((4 * first + 5 * second) / 9, whole, rtol=1e-12, atol=0)


def test_focal_loss_has_a_gradient_where_the_answer_is_sure() -> None:
    """The power of 1 - p has none at p = 1, where 1 - p is 0 in any precision."""
    missed = 200 + math.log(1 + math.exp(3) + math.exp(1))  # (1 - p)^gamma (-log p) of the second, with p = 0
    logits = torch.tensor([[200.0, 0.0, -5.0, 0.0], [-200.0, 0.0, 3.0, 1.0]], requires_grad=True)
    for gamma in (0.5, 1.0, 2.0, 5.0):
        loss = objective(focal=gamma).training_loss(logits, torch.tensor([0, 0]))
        (gradient,) = torch.autograd.grad(loss, logits)
        assert bool(gradient.isfinite().all()) and not gradient[0].any()
        assert float(loss.detach()) == pytest.approx(missed / 2, rel=1e-6)


def test_balanced_and_effective_weights() -> None:
    from sklearn.utils.class_weight import compute_class_weight

    counts = (60, 30, 9, 1)
    labels = np.repeat(np.arange(4), counts)
    balanced = ClassLoss(weights="balanced").fitted(CLASSES, counts).weights
    assert balanced == pytest.approx(
        dict(zip(CLASSES, compute_class_weight("balanced", classes=np.arange(4), y=labels), strict=True)), rel=1e-12
    )
    beta = 0.9
    effective = [sum(beta**i for i in range(count)) for count in counts]  # E_n, by its sum
    inverse = [1 / number for number in effective]
    expected = [4 * one / sum(inverse) for one in inverse]
    fitted = ClassLoss(weights="effective", beta=beta).fitted(CLASSES, counts)
    assert fitted.weights == pytest.approx(dict(zip(CLASSES, expected, strict=True)), rel=1e-12)
    assert isinstance(fitted.weights, dict) and sum(fitted.weights.values()) == pytest.approx(4)
    assert fitted.fitted(CLASSES, (1, 1, 1, 1)) is fitted  # numbers are numbers


def test_a_class_without_examples_has_no_part() -> None:
    for weights in ("balanced", "effective"):
        found = ClassLoss(weights=weights).fitted(CLASSES, (4, 0, 4, 0)).weights
        assert found == pytest.approx({"a": 1.0, "c": 1.0})


def test_with_a_teacher() -> None:
    logits, labels = batch()
    teacher = batch(scale=1.0)[0].detach().softmax(dim=1).float()
    for options in ({"weights": WEIGHTS}, {"smoothing": 0.2}, {"weights": WEIGHTS, "smoothing": 0.2}):
        one = objective(**options)
        assert one.soft_loss(logits, labels, teacher, 0.0).equal(one.training_loss(logits, labels))
        # nearly no trust is nearly the loss of labels: both ways to smooth are one
        near = one.soft_loss(logits, labels, teacher, 1e-9)
        torch.testing.assert_close(near, one.training_loss(logits, labels), rtol=1e-6, atol=0)
        hard = functional.one_hot(labels, 4).double()
        smooth = (1 - one.trained_by.smoothing) * hard + one.trained_by.smoothing / 4  # type: ignore[union-attr]
        target = 0.4 * smooth + 0.6 * teacher.double()
        weights = torch.tensor(W if "weights" in options else [1.0] * 4, dtype=torch.float64)
        expected = -(weights * target * logits.log_softmax(dim=1)).sum() / len(labels)
        torch.testing.assert_close(one.soft_loss(logits, labels, teacher, 0.6), expected, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="focal loss is not defined for soft targets"):
        objective(focal=1.0).soft_loss(logits, labels, teacher, 0.5)


def test_what_tables_show_is_cross_entropy() -> None:
    logits, labels = batch()
    options = {"weights": WEIGHTS, "focal": 2.0}
    assert objective(**options).loss(logits, labels).equal(mtmeta.Classification(CLASSES).loss(logits, labels))


# ------------------------------------------------------------------------------------------------------------ runs


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Small data of three classes, of which one is rare, and a very small encoder."""
    folder = tmp_path_factory.mktemp("material")
    small.make_data(folder / "data")
    for split, size in (("train", 24), ("dev", 12)):
        rows = [f"{small.WORDS[i % 10]} {small.WORDS[i % 7]}\t{'xyz'[0 if i % 4 else i % 3]}" for i in range(size)]
        (folder / "data" / f"three-{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    return {"data": folder / "data", "weights": str(small.make_backbone(folder / "weights"))}


def write_recipe(path: Path, material: dict[str, Any], algorithm: str, loss: Any, /, **changes: Any) -> Path:
    three = {"task": "classification", "labels": list("xyz"), "train": "three-train.tsv", "dev": "three-dev.tsv"}
    para = {"train": "para-train.tsv", "dev": "para-dev.tsv", "batch_size": 4, "inner_steps": 1}
    tasks = {"three": {**three, "batch_size": 6, "inner_steps": 1, "loss": loss}, "para": para}
    given = {"steps": 2, "evaluate_every": 2, "tasks": tasks, "schedule": "constant", "sampler": "uniform"}
    return small.write_recipe(path, algorithm, **{**material, **given, **changes})


def first_loss(folder: Path, recipe: Path) -> float:
    """The first loss of the task, in whichever step it came first."""
    mtmeta.run(recipe, out=folder)
    steps = [event for event in events(folder) if event["type"] == "step"]
    return float(next(event["losses"]["three"][0] for event in steps if "three" in event["losses"]))


def with_rate(algorithm: str, rate: float) -> dict[str, Any]:
    """An algorithm, with this rate in its inner loop, if it has one."""
    options: dict[str, Any] = {"name": algorithm}
    if algorithm == "anil":
        options |= {"inner_lr": rate}
    elif algorithm in ("reptile", "fomaml", "maml"):
        options |= {"inner_optimizer": {"name": "sgd", "lr": rate}}
    options |= {"order": 2} if algorithm == "maml" else {"method": "pcgrad"} if algorithm == "surgery" else {}
    return options if algorithm in ("joint", "surgery") else {**options, "tasks_per_step": 2}


@pytest.mark.parametrize("algorithm", ["joint", "reptile", "fomaml", "anil", "maml", "surgery"])
def test_every_algorithm_descends_it(algorithm: str, tmp_path: Path, material: dict[str, Any]) -> None:
    """Weights of 2 at half the inner rate lead along the same way, and double the loss that is told at its end."""
    losses = []
    for scale in (1, 2):
        changes = {"algorithm": with_rate(algorithm, 0.1 / scale), "optimizer": {"name": "sgd", "lr": 0.1}}
        loss = {"weights": dict.fromkeys("xyz", scale)}
        recipe = write_recipe(tmp_path / f"{scale}.yaml", material, algorithm, loss, **changes, training={})
        losses.append(first_loss(tmp_path / str(scale), recipe))
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)


def test_parts_of_a_batch_and_what_tables_show(tmp_path: Path, material: dict[str, Any]) -> None:
    """At a rate of next to nothing: accumulation gives the same loss, and dev is scored by plain cross entropy."""
    still = {"optimizer": {"name": "sgd", "lr": 1e-12}, "algorithm": {"name": "joint"}}
    found, balanced = {}, {"weights": "balanced"}
    for name, loss, chunks in (("plain", None, 1), ("whole", balanced, 1), ("parts", balanced, 3)):
        backbone = {"name": "bert", "weights": material["weights"], "max_length": 16, "dropout": 0.0}
        changes = {**still, "backbone": backbone, "training": {"grad_accumulation": chunks}}
        recipe = write_recipe(tmp_path / f"{name}.yaml", material, "joint", loss, **changes)
        trained = first_loss(tmp_path / name, recipe)
        found[name] = trained, json.loads((tmp_path / name / "summary.json").read_text())["tasks"]["three"]["loss"]
    assert found["whole"][0] == pytest.approx(found["parts"][0], rel=1e-6)
    assert found["whole"][0] != pytest.approx(found["plain"][0], rel=1e-3)
    assert found["whole"][1] == pytest.approx(found["plain"][1], rel=1e-6)


def test_weights_of_the_few_shots_in_adapt(tmp_path: Path, material: dict[str, Any]) -> None:
    """As many shots of every class: balanced weights are all 1, and the adapted model is that without weights."""
    mtmeta.run(write_recipe(tmp_path / "run.yaml", material, "reptile", None), out=tmp_path / "run")
    values = []
    for loss in (None, {"weights": "balanced"}):
        few = write_recipe(tmp_path / "few.yaml", material, "joint", loss, schedule="constant", training={})
        found = mtmeta.adapt(tmp_path / "run", few, tasks=["three"], shots=[2], seeds=1)
        values.append([one["value"] for one in found["adapted"]])
    assert values[0] == values[1]


@pytest.mark.parametrize(
    ("algorithm", "loss", "message"),
    [
        ("joint", {"focal": 2, "smoothing": 0.1}, "tasks.three.loss.smoothing does not go with focal loss"),
        ("joint", {"weights": {"w": 2}}, "tasks.three.loss.weights names no label of the task: 'w'"),
        ("joint", {"weights": {"x": 0}}, "tasks.three.loss.weights.x must be a number > 0 and finite, found 0"),
        ("protonet", {"focal": 2}, "tasks.three.loss: algorithm 'protonet' makes the loss of its tasks by itself"),
    ],
)
def test_what_is_refused(algorithm: str, loss: Any, message: str, tmp_path: Path, material: dict[str, Any]) -> None:
    with pytest.raises(MtmetaError) as caught:
        mtmeta.run(write_recipe(tmp_path / "recipe.yaml", material, algorithm, loss), out=tmp_path / "run")
    assert message in str(caught.value)


def test_a_teacher_is_refused_for_focal_loss(tmp_path: Path, material: dict[str, Any]) -> None:
    teachers = {"three": {"runs": ["nowhere"]}}
    with pytest.raises(RecipeError, match=r"teachers\.three: focal loss is not defined for soft targets; leave it out"):
        mtmeta.run(write_recipe(tmp_path / "r.yaml", material, "joint", {"focal": 2}, teachers=teachers), out=tmp_path)


def test_an_algorithm_that_makes_losses_by_itself_is_found_out(tmp_path: Path, material: dict[str, Any]) -> None:
    class Own(mtmeta.Algorithm):
        """Cross entropy of its own, of features."""

        name = "own"

        def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
            features = learner.features(feed.batch("three"))
            outputs = learner.model.outputs("three", features.vectors)  # type: ignore[attr-defined]
            learner.descend("three", functional.cross_entropy(outputs, features.labels.long()))

    recipe = write_recipe(tmp_path / "r.yaml", material, "joint", {"smoothing": 0.1}, algorithm="own", training={})
    with pytest.raises(RecipeError, match=r"tasks\.three\.loss: algorithm 'own' makes the loss of task 'three' by"):
        mtmeta.run(recipe, out=tmp_path / "run", plugins=[Own])


def test_recipes_without_it_are_what_they_were(tmp_path: Path, material: dict[str, Any]) -> None:
    recipe = mtmeta.read_recipe(write_recipe(tmp_path / "r.yaml", material, "joint", None))
    assert "loss" not in decisive(describe(recipe))["tasks"]["three"]
