"""Losses, labels and heads by hand; every shape that would broadcast is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import mtmeta
from mtmeta.core.api.contracts import count_sequences
from mtmeta.core.api.heads import CosineHead, LinearHead, MLPHead
from mtmeta.core.api.objectives import Binary, Classification, Objective, Regression
from mtmeta.core.training.model import build_head
from mtmeta.plugins.tasks.generic import SimilarityTask
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts

# ------------------------------------------------------------------------------------------------------------ losses


def test_cross_entropy_by_hand() -> None:
    outputs = torch.tensor([[1.0, 2.0, -0.5], [0.0, 0.0, 0.0], [3.0, -3.0, 1.0]], requires_grad=True)
    labels = torch.tensor([1.0, 2.0, 0.0])  # batches carry labels as float32
    loss = Classification(3).loss(outputs, labels)
    rows = [[math.exp(x) for x in row] for row in outputs.tolist()]
    by_hand = sum(-math.log(row[y] / sum(row)) for row, y in zip(rows, (1, 2, 0), strict=True)) / 3
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-6)
    (grad,) = torch.autograd.grad(loss, outputs)
    wanted = [
        [(x / sum(row) - (i == y)) / 3 for i, x in enumerate(row)] for row, y in zip(rows, (1, 2, 0), strict=True)
    ]
    torch.testing.assert_close(grad, torch.tensor(wanted), rtol=1e-5, atol=1e-7)


def test_binary_cross_entropy_by_hand() -> None:
    logits = [0.3, -2.0, 5.0, 40.0]
    labels = [1.0, 0.0, 0.0, 1.0]
    outputs = torch.tensor([[x] for x in logits], requires_grad=True)
    loss = Binary().loss(outputs, torch.tensor(labels))
    p = [1 / (1 + math.exp(-x)) for x in logits]
    by_hand = sum(-math.log(q if y else 1 - q) for q, y in zip(p, labels, strict=True)) / 4
    assert float(loss.detach()) == pytest.approx(by_hand, rel=1e-6)
    (grad,) = torch.autograd.grad(loss, outputs)
    wanted = torch.tensor([[(q - y) / 4] for q, y in zip(p, labels, strict=True)])
    torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-7)


def test_mean_squared_error_by_hand() -> None:
    outputs = torch.tensor([1.0, 6.5, -2.0], requires_grad=True)  # not clamped: only predictions are
    loss = Regression(0.0, 5.0).loss(outputs, torch.tensor([0.5, 5.0, 0.0]))
    assert float(loss.detach()) == pytest.approx((0.25 + 2.25 + 4.0) / 3, rel=1e-6)
    (grad,) = torch.autograd.grad(loss, outputs)
    torch.testing.assert_close(grad, torch.tensor([0.5, 1.5, -2.0]) * 2 / 3)


CASES: list[tuple[Objective, Tensor, Tensor]] = [
    (Classification(5), torch.randn(6, 5), torch.tensor([0.0, 1, 2, 3, 4, 0])),
    (Binary(), torch.randn(6, 1), torch.tensor([0.0, 1, 0, 1, 1, 1])),
    (Regression(0, 5), torch.randn(6), torch.rand(6) * 5),
]
KINDS = ["classification", "binary", "regression"]


@pytest.mark.parametrize(("objective", "outputs", "labels"), CASES, ids=KINDS)
def test_losses_are_means_over_the_examples_there_are(objective: Objective, outputs: Tensor, labels: Tensor) -> None:
    each = torch.stack([objective.loss(outputs[i : i + 1], labels[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(objective.loss(outputs, labels), each.mean())
    short = objective.loss(outputs[:2], labels[:2])  # the last short batch is not shrunk
    torch.testing.assert_close(short, each[:2].mean())
    assert short.ndim == 0


@pytest.mark.parametrize(("objective", "outputs", "labels"), CASES, ids=KINDS)
def test_losses_are_computed_in_fp32(objective: Objective, outputs: Tensor, labels: Tensor) -> None:
    half = objective.loss(outputs.bfloat16(), labels)
    assert half.dtype == torch.float32
    assert torch.equal(half, objective.loss(outputs.bfloat16().float(), labels))


MISMATCHED: list[tuple[Objective, tuple[int, ...], tuple[int, ...], str]] = [
    (Regression(), (4, 1), (4,), "outputs have shape [4, 1], the loss needs [4]"),
    (Regression(), (4,), (4, 1), "labels have shape [4, 1], the loss needs [B]"),
    (Regression(), (4, 1), (4, 1), "labels have shape [4, 1], the loss needs [B]"),
    (Regression(), (1,), (4,), "outputs have shape [1], the loss needs [4]"),
    (Regression(), (4,), (1,), "outputs have shape [4], the loss needs [1]"),
    (Regression(), (), (4,), "outputs have shape [], the loss needs [4]"),
    (Regression(), (4,), (), "labels have shape [], the loss needs [B]"),
    (Binary(), (4,), (4,), "outputs have shape [4], the loss needs [4, 1]"),
    (Binary(), (4, 2), (4,), "outputs have shape [4, 2], the loss needs [4, 1]"),
    (Binary(), (4, 1), (4, 1), "labels have shape [4, 1], the loss needs [B]"),
    (Binary(), (1, 1), (4,), "outputs have shape [1, 1], the loss needs [4, 1]"),
    (Classification(5), (4,), (4,), "outputs have shape [4], the loss needs [4, 5]"),
    (Classification(5), (4, 1), (4,), "outputs have shape [4, 1], the loss needs [4, 5]"),
    (Classification(5), (4, 6), (4,), "outputs have shape [4, 6], the loss needs [4, 5]"),
    (Classification(5), (5, 4), (4,), "outputs have shape [5, 4], the loss needs [4, 5]"),
    (Classification(5), (4, 5), (4, 5), "labels have shape [4, 5], the loss needs [B]"),
]


@pytest.mark.parametrize(("objective", "outputs", "labels", "message"), MISMATCHED, ids=lambda value: str(value)[:40])
def test_mismatched_shapes_are_refused(
    objective: Objective, outputs: tuple[int, ...], labels: tuple[int, ...], message: str
) -> None:
    with pytest.raises(ValueError) as caught:
        objective.loss(torch.zeros(outputs), torch.zeros(labels))
    assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------- decode and labels


def test_decode() -> None:
    assert Classification(3).decode(torch.tensor([[0.1, 0.3, 0.2], [5.0, -1.0, 2.0]])).tolist() == [1, 0]
    assert Binary().decode(torch.tensor([[-0.1], [0.1], [0.0]])).tolist() == [0, 1, 0]
    assert Regression(0, 5).decode(torch.tensor([-1.0, 2.5, 7.0])).tolist() == [0.0, 2.5, 5.0]


def test_outputs_classes_and_show() -> None:
    assert (Classification(3).outputs, Classification(3).classes) == (3, ("0", "1", "2"))
    named = Classification(("no", "maybe", "yes"))
    assert (named.outputs, named.show(2.0)) == (3, "yes")
    assert (Binary().outputs, Binary().classes, Binary().show(1.0)) == (1, ("0", "1"), "1")
    assert (Regression().outputs, Regression().classes, Regression(0, 5).show(3.25)) == (1, (), "3.25")


PARSED: list[tuple[Objective, object, object]] = [
    (Classification(5), "3", 3),
    (Classification(5), 3, 3),
    (Classification(5), 3.0, 3),
    (Classification(5), "1.0", 1),
    (Classification(5), " 4 ", 4),
    (Binary(), "0.0", 0),
    (Binary(), "1.0", 1),
    (Binary(labels=("different", "same")), "same", 1),
    (Classification(("entailment", "neutral")), "neutral", 1),
    (Classification(("1", "0")), "1.0", 0),
    (Regression(0, 5), "3.8", 3.8),
    (Regression(0, 5), "0", 0.0),
    (Regression(0, 5), 5, 5.0),
    (Regression(-1, 1), "-1e-3", -0.001),
]


@pytest.mark.parametrize(("objective", "label", "value"), PARSED, ids=repr)
def test_labels_are_parsed(objective: Objective, label: object, value: object) -> None:
    parsed = objective.parse(label)
    assert parsed == value and type(parsed) is type(value)


ENTAILMENT = Classification(("entailment", "neutral", "contradiction"))
REFUSED: list[tuple[Objective, Any, str]] = [
    (Binary(), "", "label is empty"),
    (Binary(), "  ", "label is empty"),
    (Binary(), "2", "label '2' is not one of 0, 1"),
    (Binary(), "nan", "label 'nan' is not one of 0, 1"),
    (Binary(), "inf", "label 'inf' is not one of 0, 1"),
    (Binary(), "0.5", "label '0.5' is not one of 0, 1"),
    (Binary(), "-1", "label '-1' is not one of 0, 1"),
    (Binary(), "yes", "label 'yes' is not one of 0, 1"),
    (Binary(), None, "label nothing is not one of 0, 1"),
    (Classification(5), "5", "label '5' is not one of 0, 1, 2, 3, 4"),
    (Classification(12), "1_0", "label '1_0' is not one of 0, 1, 2, 3, 4, 5, 6, 7, ...; did you mean '10'?"),
    (Classification(12), "12", "label '12' is not one of 0, 1, 2, 3, 4, 5, 6, 7, ..."),
    (
        ENTAILMENT,
        "nuetral",
        "label 'nuetral' is not one of entailment, neutral, contradiction; did you mean 'neutral'?",
    ),
    (ENTAILMENT, "\x1b[31m", "label '\\x1b[31m' is not one of entailment, neutral, contradiction"),
    (ENTAILMENT, "1", "label '1' is not one of entailment, neutral, contradiction"),
    (Regression(0, 5), "", "label '' is not a finite number"),
    (Regression(0, 5), "nan", "label 'nan' is not a finite number"),
    (Regression(0, 5), "inf", "label 'inf' is not a finite number"),
    (Regression(0, 5), "-Infinity", "label '-Infinity' is not a finite number"),
    (Regression(0, 5), "1e999", "label '1e999' is not a finite number"),
    (Regression(0, 5), "high", "label 'high' is not a finite number"),
    (Regression(0, 50), "1_0", "label '1_0' is not a finite number"),
    (Regression(0, 5), None, "label nothing is not a finite number"),
    (Regression(0, 5), True, "label true is not a finite number"),
    (Regression(0, 5), "5.2", "label '5.2' is outside 0 to 5"),
    (Regression(0, 5), -0.1, "label -0.1 is outside 0 to 5"),
]


@pytest.mark.parametrize(("objective", "label", "message"), REFUSED, ids=repr)
def test_labels_are_refused(objective: Objective, label: object, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        objective.parse(label)
    assert str(caught.value) == message


# ------------------------------------------------------------------------------------------------------------- heads


def pooled(vectors: int, hidden: int = 8, count: int = 3) -> Tensor:
    return torch.randn(count, vectors, hidden, generator=torch.Generator().manual_seed(4))


def gelu(x: Tensor) -> Tensor:
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


@pytest.mark.parametrize(("vectors", "outputs"), [(1, 5), (2, 1), (1, None)])
def test_mlp_head_by_hand(vectors: int, outputs: int | None) -> None:
    head, x = MLPHead(8, vectors=vectors, outputs=outputs), pooled(vectors)
    for i, output in enumerate(head(x)):
        joined = torch.cat(list(x[i]))  # u and v, one after the other
        wanted = head.out.weight @ gelu(head.dense.weight @ joined + head.dense.bias) + head.out.bias
        torch.testing.assert_close(output, wanted if outputs else wanted[0], rtol=1e-5, atol=1e-6)
    assert head(x).shape == ((3, outputs) if outputs else (3,))


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_cosine_head_by_hand(activation: Any) -> None:
    head, x = CosineHead(8, activation=activation), pooled(2, count=20)
    wanted = []
    for u, v in x:
        a, b = (head.dense.weight @ w + head.dense.bias for w in (u, v))
        cosine = (a @ b) / (a.norm() * b.norm())
        wanted.append(5 * (cosine.clamp(min=0) if activation == "relu" else cosine))
    torch.testing.assert_close(head(x), torch.stack(wanted), rtol=1e-5, atol=1e-6)
    assert (min(wanted) < 0) == (activation == "none")
    same = x[:, :1].expand(-1, 2, -1)
    torch.testing.assert_close(head(same), torch.full((20,), 5.0), rtol=1e-5, atol=1e-5)


def test_linear_head_by_hand() -> None:
    head, x = LinearHead(8), pooled(1)
    wanted = torch.stack([head.out.weight[0] @ row[0] + head.out.bias[0] for row in x])
    torch.testing.assert_close(head(x), wanted, rtol=1e-5, atol=1e-6)
    assert head(x).shape == (3,)


@pytest.mark.parametrize("activation", ["relu", "none"])
def test_relu_has_no_gradient_at_a_negative_cosine(activation: Any) -> None:
    head = Sts(train="sample", activation=activation).build_head(2)
    assert isinstance(head, CosineHead)
    with torch.no_grad():
        head.dense.weight.copy_(torch.eye(2))
        head.dense.bias.zero_()
    angles = {"negative": 2.0, "positive": 0.5}
    for name, angle in angles.items():
        x = torch.tensor([[[1.0, 0.0], [math.cos(angle), math.sin(angle)]]], requires_grad=True)
        outputs = head(x)
        cosine = math.cos(angle)
        clipped = activation == "relu" and name == "negative"
        assert outputs.tolist() == pytest.approx([0.0 if clipped else 5 * cosine], abs=1e-6)
        loss = Regression(0, 5).loss(outputs, torch.tensor([4.0]))
        (grad,) = torch.autograd.grad(loss, x)
        # d loss / d cosine = 2 (5 cos - 4) 5, and d cos / d (second vector, along the circle) = -sin
        slope = 0.0 if clipped else 10 * (5 * cosine - 4) * -math.sin(angle)
        along = torch.tensor([-math.sin(angle), math.cos(angle)])
        assert float(grad[0, 1] @ along) == pytest.approx(slope, rel=1e-5, abs=1e-6)
        assert (float(grad.abs().max()) == 0.0) == clipped
        assert Regression(0, 5).decode(outputs).tolist() == pytest.approx([max(0.0, 5 * cosine)], abs=1e-6)


HEADS: list[tuple[mtmeta.Task, type, tuple[int, ...]]] = [
    (Sst(train="sample"), MLPHead, (3, 5)),
    (Para(train="sample"), MLPHead, (3, 1)),
    (Para(train="sample", pair_mode="cross"), MLPHead, (3, 1)),
    (Sts(train="sample"), CosineHead, (3,)),
    (Sts(train="sample", pair_mode="cross"), LinearHead, (3,)),
    (SimilarityTask(train="a.csv", high=1.0), CosineHead, (3,)),
]


@pytest.mark.parametrize(("task", "kind", "shape"), HEADS, ids=lambda value: getattr(value, "name", ""))
def test_each_tasks_head_fits_its_loss(task: mtmeta.Task, kind: type, shape: tuple[int, ...]) -> None:
    head = task.build_head(8)
    vectors = 2 if task.inputs == "separate" else 1
    outputs = head(pooled(vectors))
    assert type(head) is kind and outputs.shape == shape
    assert task.objective.loss(outputs, torch.ones(3)).ndim == 0
    if isinstance(task, SimilarityTask):
        assert isinstance(head, CosineHead) and head.scale == 1.0


def test_a_head_is_a_function_of_seed_and_task_name_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = build_head("sst", Sst(train="sample"), 8, 5)
    torch.manual_seed(2)
    torch.rand(3)
    same = build_head("sst", Sst(train="sample"), 8, 5)
    other = build_head("other", Sst(train="sample"), 8, 5)
    again = build_head("sst", Sst(train="sample"), 8, 6)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    for different in (other, again):
        pairs = zip(one.parameters(), different.parameters(), strict=True)
        assert not any(torch.equal(a, b) for a, b in pairs)
    torch.set_rng_state(state)
    build_head("sst", Sst(train="sample"), 8, 5)
    assert torch.equal(torch.get_rng_state(), state)


def test_an_objective_without_a_method_names_it() -> None:
    class Bare(Objective):
        pass

    for call in (lambda: Bare().outputs, lambda: Bare().parse("x"), lambda: Bare().decode(torch.zeros(2))):
        with pytest.raises(NotImplementedError, match=r"Bare has no `(outputs|parse|decode)`"):
            call()
    with pytest.raises(NotImplementedError, match="Bare has no `loss`"):
        Bare().loss(torch.zeros(2), torch.zeros(2))


class _Words(Classification):
    labelled = "words"


@pytest.mark.parametrize(
    ("objective", "inputs", "columns", "kind", "shape"),
    [
        (Classification(3), "single", ("a",), "MLPHead", [2, 3]),
        (Regression(0, 5), "separate", ("a", "b"), "MLPHead", [2]),
        (Classification(2), "choices", ("a", "b", "c"), "ChoiceHead", [2, 2]),
        (_Words(3), "single", ("a",), "WordHead", None),
    ],
)
def test_the_head_of_a_task_that_builds_none(
    objective: Objective, inputs: str, columns: tuple[str, ...], kind: str, shape: list[int] | None
) -> None:
    """It fits the labels: numbers without an axis, a score for each choice, an output for each word."""
    members = {"name": "t", "objective": objective, "inputs": inputs, "columns": columns, "metrics": ("accuracy",)}
    task = type("Own", (mtmeta.Task,), members)(train="t")
    head = task.build_head(4)
    assert type(head).__name__ == kind
    assert getattr(head, "takes", "pooled") == task.head_takes
    if shape is not None:
        assert list(head(torch.zeros(2, count_sequences(task), 4)).shape) == shape
