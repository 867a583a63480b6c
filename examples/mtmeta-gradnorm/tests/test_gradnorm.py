"""GradNorm against two steps worked out on paper, and against autograd on a whole model."""

from __future__ import annotations

from pathlib import Path

import mtmeta_gradnorm
import pytest
import torch
from mtmeta_gradnorm import GradNorm

import mtmeta
from mtmeta.testing import check_algorithm, tiny_learner

SHARED = "encoder.layers.1.down.weight"  # the last matrix that the tasks of a tiny learner share


def test_it_has_less_than_forty_lines() -> None:
    assert len(Path(mtmeta_gradnorm.__file__).read_text().splitlines()) < 40


def test_contract() -> None:
    check_algorithm(GradNorm())
    check_algorithm(GradNorm(alpha=3.0, rate=5.0))


def test_two_steps_on_paper(monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms of grad L are 3 and 1; alpha = 1, rate = 1/10.

    Step 0: w = (1, 1), G = (3, 1), mean 2, r = (1, 1), so |G_1 - 2| falls with w_1 at slope 3, |G_2 - 2| rises at 1:
    (1 - .3, 1 + .1), which has the sum 1.8 and becomes (7/9, 11/9).
    Step 1: losses are 1/2 and 1 of the first, mean 3/4, r = (2/3, 4/3); G = (7/3, 11/9), mean 16/9, targets 32/27 and
    64/27: the same slopes, (7/9 - .3, 11/9 + .1), of sum 1.8, become (43/81, 119/81).
    """
    learner, feed = tiny_learner()
    feed.tasks = ("sst", "sts")
    norms, losses = {"sst": 3.0, "sts": 1.0}, {"sst": 2.0, "sts": 4.0}
    scales = []

    def gradient(batch: mtmeta.Batch, scale: float) -> torch.Tensor:
        grad = torch.zeros_like(learner.parameters[SHARED])
        grad[0, 0] = scale * norms[batch.task]
        kept = learner.parameters[SHARED].grad
        learner.parameters[SHARED].grad = grad if kept is None else kept + grad
        scales.append(scale)
        return torch.tensor(losses[batch.task])

    monkeypatch.setattr(learner, "gradient", gradient)
    for expected in ([7 / 9, 11 / 9], [43 / 81, 119 / 81]):
        learner.begin_step(learner.step)
        GradNorm(alpha=1.0, rate=0.1).backward(learner, feed)
        torch.testing.assert_close(learner.memory["weights"], torch.tensor(expected))
        losses["sst"] = 1.0
    assert scales == pytest.approx([1 / 2, 1 / 2, 7 / 18, 11 / 18])  # a step descends by the weights it began with
    assert float(learner.parameters[SHARED].grad[0, 0]) == pytest.approx(3 * 7 / 18 + 11 / 18)


def test_against_autograd_on_a_whole_model() -> None:
    algorithm = GradNorm(alpha=1.5, rate=0.2)
    (learner, feed), (other, others) = (tiny_learner(seed=5) for _ in range(2))
    weights, first = torch.ones(3, dtype=torch.float64), None
    for step in range(4):
        learner.begin_step(step)
        algorithm.backward(learner, feed)
        losses = []
        for task in others.tasks:
            (chunk,) = others.batch(task).chunks
            losses.append(other.tasks[task].objective.loss(other.model(task, chunk.packed), chunk.labels))
        total = sum(float(w) * loss / 3 for w, loss in zip(weights, losses, strict=True))
        expected = torch.autograd.grad(total, list(other.parameters.values()), retain_graph=True)
        grads = [torch.autograd.grad(loss, other.parameters[SHARED], retain_graph=True)[0] for loss in losses]
        w = weights.clone().requires_grad_()
        norm = w * torch.stack([grad.double().norm() for grad in grads])
        values = torch.stack(losses).detach().double()
        first = values if first is None else first
        rate = (values / first) / (values / first).mean()
        (norm - (norm.mean() * rate**algorithm.alpha).detach()).abs().sum().backward()  # equation 2 of the paper
        weights = w.detach() - algorithm.rate * w.grad
        weights = 3 * weights / weights.sum()
        torch.testing.assert_close(learner.memory["weights"].double(), weights, rtol=1e-5, atol=1e-6)
        for (name, p), q, grad in zip(learner.parameters.items(), other.parameters.values(), expected, strict=True):
            torch.testing.assert_close(p.grad, grad, rtol=1e-4, atol=1e-6, msg=name)
            with torch.no_grad():
                p -= 0.3 * p.grad
                q.copy_(p)
    assert (weights - 1).abs().max() > 0.02


def test_an_encoder_that_no_task_trains_is_refused() -> None:
    learner, feed = tiny_learner(adapters={"rank": 2, "encoder": "frozen"})
    with pytest.raises(mtmeta.RecipeError, match=r"needs a trained encoder; set adapters\.encoder: trained"):
        GradNorm().backward(learner, feed)
