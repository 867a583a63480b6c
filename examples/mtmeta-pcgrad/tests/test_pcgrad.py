"""Gradient surgery against projections made by hand."""

from __future__ import annotations

import pytest
import torch
from mtmeta_pcgrad import PCGrad, add, dot, surgery
from torch import Tensor

import mtmeta
from mtmeta.testing import check_algorithm, tiny_learner


def tensors(*rows: list[float] | None) -> list[Tensor | None]:
    return [None if row is None else torch.tensor(row) for row in rows]


def test_contract() -> None:
    check_algorithm(PCGrad())
    assert PCGrad().steps_per_epoch({"sst": 3, "sts": 5}) == 4


def test_two_conflicting_gradients_by_hand() -> None:
    one, two = tensors([1.0, 0.0]), tensors([-1.0, 1.0])
    # (1, 0) . (-1, 1) = -1: (1, 0) + 1/2 (-1, 1) and (-1, 1) + 1/1 (1, 0)
    assert torch.equal(surgery(one, [two])[0], torch.tensor([0.5, 0.5]))
    assert torch.equal(surgery(two, [one])[0], torch.tensor([0.0, 1.0]))
    assert dot(surgery(one, [two]), two) == 0.0
    assert torch.equal(one[0], torch.tensor([1.0, 0.0])), "surgery may not change what it is given"


def test_the_inner_product_runs_over_all_parameters_together() -> None:
    one, two = tensors([1.0], [3.0]), tensors([-1.0], [1.0])
    assert surgery(one, [two]) == one  # -1 + 3 > 0: no conflict, although the first parameter alone has one


def test_later_projections_see_what_the_earlier_left() -> None:
    own, a, b = tensors([1.0, 0.0]), tensors([-1.0, 1.0]), tensors([0.0, -1.0])
    # after a: (0.5, 0.5); after b: (0.5, 0). The other way round b is no conflict and a leaves (0.5, 0.5).
    assert torch.equal(surgery(own, [a, b])[0], torch.tensor([0.5, 0.0]))
    assert torch.equal(surgery(own, [b, a])[0], torch.tensor([0.5, 0.5]))


def test_what_no_task_touched_stays_none() -> None:
    one, two = tensors([1.0], None, None), tensors([-1.0], [1.0], None)
    first, second, third = surgery(one, [two])
    assert torch.equal(first, torch.tensor([0.5]))  # 1 - (-1/2)(-1)
    assert torch.equal(second, torch.tensor([0.5]))  # 0 - (-1/2)(1): None counts as zero
    assert third is None
    assert add(tensors(None), tensors(None)) == [None]


def task_gradients(learner: mtmeta.Learner, feed: mtmeta.Feed) -> dict[str, list[Tensor | None]]:
    found = {}
    for task in feed.tasks:
        learner.gradient(feed.batch(task), 1 / len(feed.tasks))
        found[task] = learner.take_gradient()
    return found


def flat(gradient: list[Tensor | None], learner: mtmeta.Learner) -> Tensor:
    zipped = zip(gradient, learner.parameters.items(), strict=True)
    return torch.cat(
        [
            (torch.zeros_like(p) if grad is None else grad).double().flatten()
            for grad, (name, p) in zipped
            if name.startswith("encoder.")
        ]
    )


def test_two_tasks_of_a_real_model_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, feed = tiny_learner()
    feed.tasks = ("sst", "sts")
    found = task_gradients(learner, feed)
    a, b = flat(found["sst"], learner), flat(found["sts"], learner)
    if a @ b >= 0:  # make them conflict: climb the second task's loss
        found["sts"] = [None if grad is None else -grad for grad in found["sts"]]
        b = -b
    expected = (a - (a @ b) / (b @ b) * b) + (b - (a @ b) / (a @ a) * a)

    def gradient(batch: mtmeta.Batch, scale: float = 1.0) -> None:
        learner.put_gradient(found[batch.task])

    monkeypatch.setattr(learner, "gradient", gradient)
    PCGrad().backward(learner, feed)
    direction = [parameter.grad for parameter in learner.parameters.values()]
    torch.testing.assert_close(flat(direction, learner), expected, rtol=1e-5, atol=1e-7)
    for index, name in enumerate(learner.parameters):
        owner = name.split(".")[1]
        if name.startswith("heads.") and owner in found:
            assert direction[index] is found[owner][index], f"{name} must pass through"
        elif name.startswith("heads."):
            assert direction[index] is None, f"{name} belongs to no task of this step"


def test_without_conflict_it_is_the_joint_sum_bit_for_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, feed = tiny_learner()
    found = {
        task: [None if g is None else g.abs() for g in grads] for task, grads in task_gradients(learner, feed).items()
    }

    def gradient(batch: mtmeta.Batch, scale: float = 1.0) -> None:
        for parameter, grad in zip(learner.parameters.values(), found[batch.task], strict=True):
            if grad is not None:  # as loss.backward() adds
                parameter.grad = grad * scale if parameter.grad is None else parameter.grad + grad * scale

    monkeypatch.setattr(learner, "gradient", gradient)
    monkeypatch.setattr(feed, "loss_weight", {"sst": 0.5, "para": 2.0, "sts": 1.0}.__getitem__)
    for task in feed.tasks:
        learner.gradient(feed.batch(task), feed.loss_weight(task) / len(feed.tasks))
    joint = learner.take_gradient()
    PCGrad().backward(learner, feed)
    for one, parameter in zip(joint, learner.parameters.values(), strict=True):
        assert (one is None and parameter.grad is None) or torch.equal(one, parameter.grad)


def test_the_order_depends_on_seed_and_step_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, feed = tiny_learner()
    generator = torch.Generator().manual_seed(3)
    made = {
        task: [torch.randn(p.shape, generator=generator) for p in learner.parameters.values()] for task in feed.tasks
    }
    made["sts"] = [-x - y for x, y in zip(made["sst"], made["para"], strict=True)]  # opposes both
    monkeypatch.setattr(learner, "gradient", lambda batch, scale: learner.put_gradient(made[batch.task]))

    def direction(step: int) -> Tensor:
        learner.begin_step(step)
        PCGrad().backward(learner, feed)
        return flat([parameter.grad for parameter in learner.parameters.values()], learner)

    first = direction(0)
    assert any(not torch.equal(first, direction(step)) for step in range(1, 6))
    assert torch.equal(first, direction(0))
