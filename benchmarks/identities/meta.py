"""Meta-learning beside torch.func, finite differences and sums by hand, on the tiny encoder without dropout."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, grad
from torch.nn.attention import SDPBackend, sdpa_kernel

import mtmeta
from benchmarks.identities import Row
from mtmeta.core.data.feed import Feed
from mtmeta.core.training.learner import Learner
from mtmeta.plugins.algorithms.anil import Anil
from mtmeta.plugins.algorithms.fomaml import Fomaml
from mtmeta.plugins.algorithms.maml import Maml
from mtmeta.plugins.algorithms.metasgd import MetaSgd
from mtmeta.plugins.algorithms.protonet import Protonet
from mtmeta.testing import tiny_learner

RATE, STEPS = 0.1, 2
EPSILON = 1e-5  # of central differences; their error is of its square
EPISODES = 200
Values = Mapping[str, Tensor]
Objective = Callable[[Values], Tensor]


def rows() -> Iterator[Row]:
    """Yield the rows of anil, maml, metasgd and protonet."""
    yield from _second_order(
        "anil",
        Anil(inner_lr=RATE, inner_steps=STEPS),
        _anil,
        "d L(phi_k, h_q) / d(phi_0, theta), phi_{j+1} = phi_j - a grad L(phi_j, h_s) (Raghu et al. 2020)",
    )
    yield from _second_order(
        "maml, order 2",
        Maml(inner_optimizer=mtmeta.SGD(lr=RATE), inner_schedule=mtmeta.Constant(), inner_steps=STEPS),
        _maml,
        "d L_q(theta - a grad L_s(theta)) / d theta, 2 steps (Finn et al. 2017)",
    )
    yield from _first_order()
    yield from _rates()
    yield from _prototypes()


# -------------------------------------------------------------------------------------------------- second derivatives


def _second_order(method: str, algorithm: Any, reference: Callable[..., Objective], formula: str) -> Iterator[Row]:
    exact, feed = _begin(algorithm, torch.float64)
    found = _direction(algorithm, exact, feed)
    _, again = _begin(algorithm, torch.float64)
    objective = _objective(reference, exact, again, exact.losses[-1][0])
    theta = {name: parameter.detach() for name, parameter in exact.parameters.items()}
    with sdpa_kernel(SDPBackend.MATH):  # of PyTorch's attention the one that has second derivatives; ours is not it
        expected = grad(objective)(theta)
    formula = f"{formula}, by torch.func on the whole model in float64"
    yield Row(method, formula, _largest(found, expected), 1e-8)
    single = {name: g.double() for name, g in _direction(algorithm, *_begin(algorithm, torch.float32)).items()}
    yield Row(method, "the same of the run's own arithmetic, fp32", _largest(single, expected), 1e-6)

    generator = torch.Generator().manual_seed(0)
    along = {n: torch.randn(p.shape, dtype=torch.float64, generator=generator) for n, p in theta.items()}
    slope = sum(float((along[name] * gradient).sum()) for name, gradient in found.items())
    ahead, behind = (
        float(objective({name: value + sign * EPSILON * along[name] for name, value in theta.items()}))
        for sign in (1, -1)
    )
    difference = abs(slope - (ahead - behind) / (2 * EPSILON)) / max(1.0, abs(slope))
    yield Row(method, "its slope along a random direction by central differences, float64, relative", difference, 1e-6)


def _objective(reference: Callable[..., Objective], learner: Learner, feed: Feed, task: str) -> Objective:
    """Draw the episode again that the algorithm had, and return its query loss as a function of theta."""
    feed.step = 0
    assert feed.draw() == [task]
    support, query = feed.episode(task, 1 if reference is _anil else STEPS)
    return reference(learner, support, query)


def _loss(learner: Learner, values: Values, batch: mtmeta.Batch) -> Tensor:
    (chunk,) = batch.chunks
    outputs = functional_call(learner.model, dict(values), (batch.task, chunk.packed))
    return learner.tasks[batch.task].objective.loss(outputs, chunk.labels)


def _maml(learner: Learner, support: list[mtmeta.Batch], query: mtmeta.Batch) -> Objective:
    own = _own(learner, query.task)

    def objective(theta: Values) -> Tensor:
        adapted = {name: theta[name] for name in own}
        for batch in support:
            slopes = grad(lambda values, batch=batch: _loss(learner, values, batch))(adapted)
            adapted = {name: value - RATE * slopes[name] for name, value in adapted.items()}
        return _loss(learner, adapted, query)

    return objective


def _anil(learner: Learner, support: list[mtmeta.Batch], query: mtmeta.Batch) -> Objective:
    heads = [name for name in _own(learner, query.task) if name.startswith("heads.")]

    def objective(theta: Values) -> Tensor:
        fast = {name: theta[name] for name in heads}
        rest = {name: value for name, value in theta.items() if name not in fast}
        for _ in range(STEPS):
            # of the whole model, encoder and all, for each step: what anil leaves out by encoding once
            slopes = grad(lambda head: _loss(learner, rest | head, support[0]))(fast)
            fast = {name: value - RATE * slopes[name] for name, value in fast.items()}
        return _loss(learner, rest | fast, query)

    return objective


# ---------------------------------------------------------------------------------------------------------- first order


def _first_order() -> Iterator[Row]:
    options: Any = {"inner_optimizer": mtmeta.AdamW(lr=1e-3), "tasks_per_step": 2}
    found = []
    for algorithm in (Maml(order=1, **options), Fomaml(**options)):
        learner, feed = _begin(algorithm, torch.float32)
        for step in range(3):
            found.append(_direction(algorithm, learner, feed, step))
    difference = max(_largest(a, b) for a, b in zip(found[:3], found[3:], strict=True))
    yield Row("maml, order 1", "fomaml with support: own, 3 steps of 2 tasks, bit for bit", difference, 0.0)


def _rates() -> Iterator[Row]:
    for steps in (1, STEPS):
        algorithm = MetaSgd(inner_lr=RATE, inner_steps=steps)
        learner, feed = _begin(algorithm, torch.float64)
        found = _direction(algorithm, learner, feed)
        _, again = _begin(algorithm, torch.float64)
        again.step, task = 0, learner.losses[-1][0]
        assert again.draw() == [task]
        support, query = again.episode(task, steps)
        own = _own(learner, task)
        theta = {name: learner.parameters[name].detach() for name in own}
        logs = {name: learner.parameters[f"algorithm.{name.replace('.', '/')}"].detach() for name in own}
        slopes: dict[str, Tensor] = dict.fromkeys(own, torch.zeros((), dtype=torch.float64))
        for batch in support:
            at = {name: theta[name] - logs[name].exp() * slopes[name] for name in own}
            more = grad(lambda values, batch=batch, learner=learner: _loss(learner, values, batch))(at)
            slopes = {name: slopes[name] + more[name] for name in own}

        def query_loss(values: Values, theta: Values = theta, slopes: Values = slopes, query: Any = query) -> Tensor:
            moved = {name: theta[name] - values[name].exp() * slopes[name] for name in theta}
            return _loss(learner, moved, query)  # noqa: B023  # called within the turn

        expected = grad(query_loss)(logs)
        rates = {name: found[f"algorithm.{name.replace('.', '/')}"] for name in own if expected[name].abs() > 0}
        what = (
            "d L_q(theta - a g_s) / d log a_l = -a_l <g_q, g_s>_l" if steps == 1 else "the same over 2 steps, g_j held"
        )
        paper = " (Li et al. 2017), by torch.func, float64" if steps == 1 else ", by torch.func, float64"
        yield Row("metasgd", what + paper, _largest(rates, {name: expected[name] for name in rates}), 1e-10)
        if steps == 1:
            name = max(rates, key=lambda name: float(rates[name].abs()))
            ahead, behind = (float(query_loss({**logs, name: logs[name] + sign * EPSILON})) for sign in (1, -1))
            slope = (ahead - behind) / (2 * EPSILON)
            yield Row(
                "metasgd", "the largest of them by central differences, float64", abs(slope - float(rates[name])), 1e-7
            )


# ----------------------------------------------------------------------------------------------------------- prototypes


def _prototypes() -> Iterator[Row]:
    for distance in ("euclidean", "cosine"):
        algorithm = Protonet(ways=3, shots=2, queries=2, distance=distance)
        learner, feed = _begin(algorithm, torch.float64, regression=False)
        found = _direction(algorithm, learner, feed)
        _, again = _begin(algorithm, torch.float64, regression=False)
        again.step, task = 0, learner.losses[-1][0]
        assert again.draw() == [task]
        support, query = again.episode_of_classes(task, 3, 2, 2)
        formula = "-|h - c|^2" if distance == "euclidean" else "cos(h, c) / temperature"
        own = [name for name in learner.parameters if name.startswith("encoder.")]
        theta = {name: learner.parameters[name].detach() for name in own}

        def objective(
            values: Values,
            support: Any = support,
            query: Any = query,
            learner: Any = learner,
            algorithm: Any = algorithm,
        ) -> Tensor:
            known, asked = (_vectors(learner, values, batch) for batch in (support, query))
            return _prototype_loss(known, support.chunks[0].labels, asked, query.chunks[0].labels, algorithm)

        expected = grad(objective)(theta)
        loss = abs(float(learner.losses[-1][2]) - float(objective(theta)))
        yield Row(
            f"protonet, {distance}", f"cross entropy of {formula}, a pair at a time (Snell et al. 2017)", loss, 1e-12
        )
        difference = _largest({name: g for name, g in found.items() if name in own}, expected)
        yield Row(f"protonet, {distance}", "its gradient by torch.func, float64", difference, 1e-10)
        digits, bound = ("fp32", 1e-6) if distance == "euclidean" else ("float64", 1e-10)  # what its Linear is made in
        what = f"the head in evaluation: logits less the first, {digits}"
        yield Row(f"protonet, {distance}", what, _head(algorithm), bound)
    yield Row("protonet", f"ids that support and query of {EPISODES} episodes share", _shared_ids(), 0.0)


def _vectors(learner: Learner, values: Values, batch: mtmeta.Batch) -> Tensor:
    (chunk,) = batch.chunks
    encoder = {name.removeprefix("encoder."): value for name, value in values.items()}
    hidden = functional_call(learner.model.encoder, encoder, (chunk.packed,))
    means = torch.stack([part.mean(dim=0) for part in hidden.split(chunk.packed.lengths.tolist())])
    pooled = means[chunk.packed.order]  # [V * B, D], all first texts before all second ones
    return torch.cat(pooled.chunk(learner.model.vectors(batch.task)), dim=1)


def _logit(h: Tensor, c: Tensor, algorithm: Protonet) -> Tensor:
    if algorithm.distance == "euclidean":
        return -((h - c) @ (h - c))
    return h @ c / (h @ h).sqrt() / (c @ c).sqrt() / algorithm.temperature


def _prototype_loss(known: Tensor, labels: Tensor, asked: Tensor, wanted: Tensor, algorithm: Protonet) -> Tensor:
    classes = sorted(set(labels.tolist()))
    means = [torch.stack([h for h, y in zip(known, labels, strict=True) if y == c]).mean(dim=0) for c in classes]
    losses = []
    for h, y in zip(asked, wanted.tolist(), strict=True):
        logits = torch.stack([_logit(h, c, algorithm) for c in means])
        losses.append(logits.logsumexp(dim=0) - logits[classes.index(y)])
    return torch.stack(losses).mean()


def _head(algorithm: Protonet) -> float:
    """Largest difference of the head that evaluation uses to the formula; of all tasks, [B, C] or the one of two."""
    learner, feed = _begin(algorithm, torch.float64, regression=False)
    learner.model.eval()
    algorithm.before_evaluation(learner, feed)
    worst = 0.0
    theta = {name: p.detach() for name, p in learner.parameters.items() if name.startswith("encoder.")}
    for task in feed.tasks:
        known = torch.cat([_vectors(learner, theta, b) for b in feed.examples_of_classes(task, 100)])
        labels = torch.cat([b.chunks[0].labels for b in feed.examples_of_classes(task, 100)])
        batch = feed.batch(task)
        with torch.no_grad():
            outputs = learner.model(task, batch.chunks[0].packed)
        means = [known[labels == c].mean(dim=0) for c in range(len(learner.tasks[task].objective.classes))]
        asked = _vectors(learner, theta, batch)
        wanted = torch.stack([torch.stack([_logit(h, c, algorithm) for c in means]) for h in asked])
        wanted = wanted[:, 1:] - wanted[:, :1]
        found = outputs if outputs.shape[1] == 1 else outputs[:, 1:] - outputs[:, :1]
        worst = max(worst, float((found - wanted).abs().max()))
    return worst


def _shared_ids() -> float:
    _, feed = tiny_learner()
    shared = 0
    for _ in range(EPISODES):
        support, query = feed.episode_of_classes("sst", 3, 2, 2)
        assert len(support) == len(query) == 6
        shared += 12 - len({*support.ids, *query.ids})
    return float(shared)


# --------------------------------------------------------------------------------------------------------------- tools


def _begin(algorithm: mtmeta.Algorithm, dtype: torch.dtype, *, regression: bool = True) -> tuple[Learner, Feed]:
    tasks = {name: task for name, task in tiny_learner(examples=1)[0].tasks.items() if regression or name != "sts"}
    learner, feed = tiny_learner(tasks, algorithm=algorithm)
    learner.model.to(dtype)
    return learner, feed


def _direction(algorithm: mtmeta.Algorithm, learner: Learner, feed: Feed, step: int = 0) -> dict[str, Tensor]:
    feed.step = step
    learner.begin_step(step)
    algorithm.backward(learner, feed)
    return {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}


def _own(learner: Learner, task: str) -> list[str]:
    return [name for name in learner.parameters if name.startswith(("encoder.", f"heads.{task}."))]


def _largest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> float:
    """Largest difference; what only one of them has counts as it stands."""
    worst = 0.0
    for name in dict.fromkeys([*found, *expected]):
        a, b = found.get(name), expected.get(name)
        difference = b if a is None else a if b is None else a - b
        assert difference is not None
        worst = max(worst, float(difference.abs().max()))
    return worst
