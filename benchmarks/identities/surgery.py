"""Algorithms `surgery` and `weighting` beside the formulas of their papers, computed by hand on small matrices.

The matrices hold one gradient a row: independent, orthogonal, parallel, opposite and of different lengths, one of 0.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize

from benchmarks.identities import Row
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.algorithms.surgery import balances, baselines, descents, extra, gramian, projections, scalarisers
from mtmeta.plugins.algorithms.surgery.method import weigh
from mtmeta.plugins.algorithms.surgery.surgery import Surgery
from mtmeta.plugins.algorithms.surgery.weighting import Weighting
from mtmeta.testing import tiny_learner

Array = NDArray[np.float64]
SEED = 5
TASKS = ("a", "b", "c", "d")
_DRAWN = np.random.default_rng(0).standard_normal((4, 6))
INDEPENDENT = _DRAWN[:3] * np.array([[1.0], [3.0], [0.2]])
CASES: dict[str, Array] = {
    "independent": INDEPENDENT,
    "orthogonal": np.diag([1.0, 2.0, 0.5]),
    "parallel": np.outer([1.0, 2.0, 0.5], _DRAWN[0]),
    "opposite": np.stack([_DRAWN[0], -3 * _DRAWN[0]]),
    "conflicting": np.array([[1.0, 0.0], [-2.0, 1.0]]),
    "three in a plane": np.array([[1.0, 0.0], [-2.0, 1.0], [0.3, -1.0]]),
    "one is 0": np.stack([_DRAWN[0], np.zeros(6), _DRAWN[1]]),
}


def direction(method: Any, rows: Array, memory: dict[str, Any] | None = None, step: int = 0) -> Array:
    """The direction of a method for gradients [T, n], by way of their Gramian."""
    weights = weigh(method, TASKS[: len(rows)], rows @ rows.T, {} if memory is None else memory, step=step, seed=SEED)
    return np.asarray(weights @ rows)


def worst(
    method: Any, by_hand: Callable[[Array], Array], cases: Sequence[str] = tuple(CASES), scale: float = 1.0
) -> float:
    """The largest difference to the formula over the cases, relative to the longest gradient."""
    found = []
    for name in cases:
        rows = CASES[name] * scale
        difference = np.abs(direction(method, rows) - by_hand(rows)).max()
        found.append(float(difference / np.sqrt((rows**2).sum(1).max())))
    return max(found)


def rows() -> Iterator[Row]:
    """The identities of both algorithms."""
    yield from _projections()
    yield from _balances()
    yield from _descents()
    yield from _baselines()
    yield from _scales()
    yield from _absent()
    yield from _whole_steps()
    yield from _losses()


# ---------------------------------------------------------------------------------------------- PCGrad to DualProj


def pcgrad(rows: Array) -> Array:
    """Algorithm 1 of Yu et al. 2020 on vectors, the orders being TorchJD's for this seed."""
    generator, projected = torch.Generator().manual_seed(SEED), []
    for i, row in enumerate(rows):
        own = row.copy()
        for j in torch.randperm(len(rows), generator=generator).tolist():
            if j != i and own @ rows[j] < 0:
                own = own - (own @ rows[j]) / (rows[j] @ rows[j]) * rows[j]
        projected.append(own)
    return np.asarray(np.mean(projected, axis=0))


def gradvac(steps: Sequence[Array], beta: float) -> list[Array]:
    """Algorithm 1 of Wang et al. 2021 on vectors, for several steps with one moving average."""
    usual, directions = np.zeros((len(steps[0]), len(steps[0]))), []
    for rows in steps:
        generator, turned = torch.Generator().manual_seed(SEED), []
        for i, row in enumerate(rows):
            own = row.copy()
            others = [j for j in range(len(rows)) if j != i]
            for place in torch.randperm(len(others), generator=generator).tolist():
                j = others[place]
                size, other = np.linalg.norm(own), np.linalg.norm(rows[j])
                cosine, aim = own @ rows[j] / (size * other), usual[i, j]
                if cosine < aim:
                    sine, wanted = math.sqrt(1 - cosine**2), math.sqrt(1 - aim**2)
                    own = own + size * (aim * sine - cosine * wanted) / (other * wanted) * rows[j]
                usual[i, j] = (1 - beta) * aim + beta * cosine
            turned.append(own)
        directions.append(np.mean(turned, axis=0))
    return directions


def onto_cone(vector: Array, rows: Array) -> Array:
    """The nearest vector that opposes no row: of all sets of rows to be orthogonal to, the one that meets KKT."""
    found = []
    for size in range(len(rows) + 1):
        for chosen in itertools.combinations(range(len(rows)), size):
            active = rows[list(chosen)]
            pull = -np.linalg.pinv(active.T, rcond=1e-9) @ vector if size else np.zeros(0)
            there = vector + active.T @ pull
            if (rows @ there).min() >= -1e-9 and (pull >= -1e-9).all():
                found.append(there)
    return min(found, key=lambda there: float(np.linalg.norm(there - vector)))


def _of_length_one(by_hand: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The formula for gradients of length 1e-5, computed for those of length 1."""
    return lambda rows: by_hand(rows * 1e5) / 1e5


def _projections() -> Iterator[Row]:
    yield Row("pcgrad", "algorithm 1 of Yu et al. 2020 on vectors, over T", worst(projections.PCGrad(), pcgrad), 1e-12)
    orders = [INDEPENDENT, -INDEPENDENT[::-1], np.stack([INDEPENDENT[0], -INDEPENDENT[0] + INDEPENDENT[1], _DRAWN[3]])]
    memory: dict[str, Any] = {}
    method = projections.GradVac(beta=0.5)
    found = [direction(method, rows, memory) for rows in orders]
    off = max(np.abs(a - b).max() for a, b in zip(found, gradvac(orders, 0.5), strict=True))
    yield Row("gradvac", "algorithm 1 of Wang et al. 2021 on vectors, three steps, over T", float(off), 1e-9)
    pairs = [CASES["conflicting"], CASES["conflicting"][::-1]]
    off = max(np.abs(direction(projections.GradVac(), rows) - pcgrad(rows)).max() for rows in pairs)
    yield Row("gradvac", "first step with two opposed tasks: PCGrad", float(off), 1e-9)

    def upgrad(rows: Array) -> Array:
        return np.asarray(np.mean([onto_cone(row, rows) for row in rows], axis=0))

    def dualproj(rows: Array) -> Array:
        return onto_cone(np.asarray(rows.mean(axis=0)), rows)

    up, dual = projections.UPGrad(), projections.DualProj()
    yield Row("upgrad", "mean of projections on the dual cone, by active sets", worst(up, upgrad), 1e-7)
    yield Row("dualproj", "projection of the mean on the dual cone, by active sets", worst(dual, dualproj), 1e-7)
    cones: tuple[tuple[Any, Callable[[Array], Array]], ...] = ((up, upgrad), (dual, dualproj))
    for cone, by_hand in cones:
        least = min((rows @ direction(cone, rows)).min() for rows in CASES.values())
        yield Row(cone.name, "no task is opposed: least inner product, if negative", max(0.0, -float(least)), 1e-7)
        small = worst(cone, _of_length_one(by_hand), scale=1e-5)
        yield Row(cone.name, "the same for gradients of length 1e-5", small, 1e-7)


# ------------------------------------------------------------------------------------------------ IMTL-G to Nash-MTL


def imtl_g(rows: Array) -> Array:
    """The closed form of Liu et al. 2021: (w_2, ..., w_T) = g_1 U^T (D U^T)^-1, w_1 = 1 - their sum."""
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    turns, apart = units[0] - units[1:], rows[0] - rows[1:]
    others = rows[0] @ turns.T @ np.linalg.inv(apart @ turns.T)
    return np.asarray(np.append(1 - others.sum(), others) @ rows)


def aligned(rows: Array) -> Array:
    """The mean of gradients whose singular values are all the least one (Senushkin et al. 2023, equation 9)."""
    left, values, right = np.linalg.svd(rows, full_matrices=False)
    there = values > 1e-9 * values[0]
    return np.asarray((left[:, there] * values[there].min() @ right[there]).mean(axis=0))


def _balances() -> Iterator[Row]:
    free = ("independent", "orthogonal", "conflicting")
    off = worst(balances.IMTLG(), imtl_g, free)
    yield Row("imtl_g", "closed form of Liu et al. 2021", off, 1e-12)
    off = worst(balances.IMTLG(), lambda rows: _torchjd("IMTLGWeighting", rows), free)
    yield Row("imtl_g", "TorchJD's, for independent gradients", off, 1e-9)
    spread = []
    for name in ("independent", "orthogonal", "conflicting", "opposite", "parallel"):
        units = CASES[name] / np.linalg.norm(CASES[name], axis=1, keepdims=True)
        along = units @ direction(balances.IMTLG(), CASES[name])
        spread.append(float(along.max() - along.min()))
    # parallel gradients have one projection whatever the weights
    yield Row("imtl_g", "equal projections on every g_t / |g_t|, opposite and parallel too", max(spread), 1e-12)
    yield Row("aligned_mtl", "equation 9 of Senushkin et al. 2023 by SVD", worst(balances.AlignedMTL(), aligned), 1e-7)
    yield from _fair()


def _torchjd(name: str, rows: Array, **options: Any) -> Array:
    weights = extra.weighting(name, **options)(torch.from_numpy(rows @ rows.T)).numpy()
    return np.asarray(weights @ rows)


def _fair() -> Iterator[Row]:
    for alpha in (0.5, 1.0, 2.0, 5.0):
        method = balances.FairGrad(alpha=alpha)
        off = 0.0
        for name in ("independent", "orthogonal", "parallel", "conflicting", "one is 0"):
            for scale in (1.0, 1e-4):
                rows = CASES[name] * scale
                weights = weigh(method, TASKS[: len(rows)], rows @ rows.T, {}, step=0, seed=SEED)
                there = weights > 0
                gains, wanted = (rows @ (weights @ rows))[there], weights[there] ** (-1 / alpha)
                off = max(off, float(np.abs(gains / wanted - 1).max()))
        yield Row("fairgrad", f"G w = w^(-1/alpha), alpha {alpha:g} (Ban and Ji 2024, equation 4), relative", off, 1e-9)
    off = worst(
        balances.FairGrad(alpha=2.0), lambda rows: _torchjd("FairGradWeighting", rows, alpha=2.0), ("independent",)
    )
    yield Row("fairgrad", "TorchJD's least squares, gradients of length about 1", off, 1e-4)
    rows = CASES["orthogonal"]
    by_hand = ((rows**2).sum(1) ** (-2 / 3)) @ rows
    off = np.abs(direction(balances.FairGrad(alpha=2.0), rows) - by_hand).max()
    yield Row("fairgrad", "orthogonal gradients: w = |g|^(-2 alpha / (1 + alpha))", float(off), 1e-12)
    nash = balances.NashMTL(max_norm=None)
    off = worst(nash, lambda rows: direction(balances.FairGrad(alpha=1.0), rows))
    yield Row("nash_mtl", "G w = 1 / w (Navon et al. 2022): fairgrad with alpha 1", off, 0.0)
    off = np.abs(direction(nash, INDEPENDENT) - direction(nash, INDEPENDENT * np.array([[5.0], [1.0], [0.01]]))).max()
    yield Row("nash_mtl", "a task's scale does not matter", float(off), 1e-10)
    lengths = [np.linalg.norm(direction(nash, CASES[name])) - math.sqrt(3) for name in ("independent", "parallel")]
    yield Row("nash_mtl", "|d| = sqrt(T)", float(np.abs(lengths).max()), 1e-12)
    limited = np.linalg.norm(direction(balances.NashMTL(), INDEPENDENT))
    yield Row("nash_mtl", "|d| = max_norm where it would be longer", abs(float(limited) - 1.0), 1e-12)
    neither: tuple[Any, ...] = (nash, balances.FairGrad())
    for one in neither:
        gone = float(np.abs(direction(one, CASES["opposite"])).max())
        yield Row(one.name, "opposite gradients: no direction serves both, 0", gone, 0.0)


# ------------------------------------------------------------------------------------------------- MGDA, CAGrad, PCD


def shorter(rows: Array) -> Array:
    """The shortest vector between two gradients: w = clip(g2 (g2 - g1) / |g1 - g2|^2) (Sener and Koltun 2018)."""
    one, two = rows
    share = np.clip(two @ (two - one) / max((one - two) @ (one - two), 1e-300), 0, 1)
    return np.asarray(share * one + (1 - share) * two)


def cagrad(rows: Array, c: float) -> Array:
    """Equation 3 of Liu et al. 2021, its dual solved by SLSQP."""
    mean = rows.mean(axis=0)
    size = np.linalg.norm(mean)

    def dual(w: Array) -> float:
        return float(w @ rows @ mean + c * size * np.linalg.norm(w @ rows))

    start, limits = np.full(len(rows), 1 / len(rows)), [(0.0, 1.0)] * len(rows)
    whole = {"type": "eq", "fun": lambda w: w.sum() - 1}
    best = minimize(dual, start, bounds=limits, constraints=whole, method="SLSQP", options={"ftol": 1e-15}).x
    toward = best @ rows
    return np.asarray(mean + c * size / np.linalg.norm(toward) * toward)


def _descents() -> Iterator[Row]:
    two = ("opposite", "conflicting")
    pairs = {f"{i}": CASES["independent"][[i, j]] for i, j in ((0, 1), (1, 2), (2, 0))}
    off = worst(descents.MGDA(), shorter, two)
    off = max(off, *(float(np.abs(direction(descents.MGDA(), rows) - shorter(rows)).max()) for rows in pairs.values()))
    yield Row("mgda", "two tasks: the shortest vector between them, in closed form", off, 1e-9)
    excess = []
    for rows in (*CASES.values(), _DRAWN + 0.5):
        found = direction(descents.MGDA(), rows)
        excess.append(found @ found - (rows @ found).min())
    yield Row("mgda", "shortest of the hull: g_t d >= |d|^2 for all t (Desideri 2012)", float(max(excess)), 1e-9)
    for c in (0.0, 0.4, 0.8):
        cases = ("independent", "orthogonal", "conflicting")
        off = worst(descents.CAGrad(c=c), functools.partial(cagrad, c=c), cases)
        yield Row("cagrad", f"equation 3 of Liu et al. 2021 by another solver, c {c:g}", off, 2e-3 if c else 1e-12)
    within = []
    for rows in CASES.values():
        mean = rows.mean(axis=0)
        within.append(np.linalg.norm(direction(descents.CAGrad(), rows) - mean) - 0.4 * np.linalg.norm(mean))
    # where 0 is in the hull d is 0, which is |g0| away
    inside = [
        away
        for away, rows in zip(within, CASES.values(), strict=True)
        if np.abs(direction(descents.CAGrad(), rows)).max() > 0
    ]
    yield Row("cagrad", "within c |g0| of g0", max(0.0, float(max(inside))), 1e-9)
    tiny = _of_length_one(functools.partial(cagrad, c=0.4))
    small = worst(descents.CAGrad(), tiny, ("independent", "conflicting"), 1e-5)
    yield Row("cagrad", "the same for gradients of length 1e-5", small, 2e-3)
    yield from _priorities()


def _priorities() -> Iterator[Row]:
    """Two tasks: d = g~1 + max(0, tau |g~2|^2 - g~1 g~2) / |g~2|^2 g~2, brought to |g1|; g~ = g / sqrt(v + eps)."""
    tau, beta, memory, off = 0.1, 0.9, dict[str, Any](), []
    average = np.zeros(2)
    for step, rows in enumerate(
        (CASES["conflicting"], 3 * CASES["conflicting"], CASES["conflicting"][:, ::-1]), start=1
    ):
        average = beta * average + (1 - beta) * (rows**2).sum(1)
        one, two = rows / np.sqrt(average / (1 - beta**step) + 1e-8)[:, None]
        wanted = one + max(0.0, tau * (two @ two) - one @ two) / (two @ two) * two
        wanted = wanted * np.linalg.norm(rows[0]) / np.linalg.norm(wanted)
        off.append(np.abs(direction(descents.PCD(tau=tau, beta=beta), rows, memory) - wanted).max())
    yield Row("pcd", "two tasks in closed form, three steps of one moving average", float(max(off)), 1e-12)
    turned = direction(descents.PCD(primary="b"), CASES["conflicting"])
    same = direction(descents.PCD(), CASES["conflicting"][::-1])
    yield Row("pcd", "`primary: b` is the recipe with b first", float(np.abs(turned - same).max()), 0.0)


# ----------------------------------------------------------------------------------------------------------- baselines


def _baselines() -> Iterator[Row]:
    numbers = torch.randn(3, generator=torch.Generator().manual_seed(SEED), dtype=torch.float64).numpy()
    by_hand = np.exp(numbers) / np.exp(numbers).sum() @ INDEPENDENT
    off = np.abs(direction(baselines.Random(), INDEPENDENT) - by_hand).max()
    yield Row("random", "softmax of normal numbers of the seed (Lin et al. 2022)", float(off), 1e-12)
    rows = np.concatenate([_DRAWN, _DRAWN[:1] * 1.1])  # two that lie close, and three others
    scores = [
        sum(sorted(float((one - other) @ (one - other)) for j, other in enumerate(rows) if j != i)[: len(rows) - 1 - 2])
        for i, one in enumerate(rows)
    ]
    two = np.argsort(scores)[:2]
    weights = weigh(baselines.Krum(byzantine=1, selected=2), "abcde", rows @ rows.T, {}, step=0, seed=SEED)
    off = np.abs(weights @ rows - rows[two].mean(axis=0)).max()
    yield Row("krum", "least sums of squared distances on vectors (Blanchard et al. 2017)", float(off), 1e-12)


# ------------------------------------------------------------------------------------------- scale and None gradients


def _scales() -> Iterator[Row]:
    """Every g doubled: d doubles too, but for those whose papers say otherwise."""
    doubling: list[Any] = [
        *(projections.PCGrad(), projections.GradVac(), projections.UPGrad(), projections.DualProj()),
        *(descents.MGDA(), descents.CAGrad(), descents.PCD(), balances.IMTLG(), balances.AlignedMTL()),
        *(baselines.Constant(), baselines.Random(), baselines.Krum()),
    ]
    for method in doubling:
        off = np.abs(direction(method, 2 * INDEPENDENT) - 2 * direction(method, INDEPENDENT)).max()
        # PCD adds 1e-8 to squared lengths
        yield Row(method.name, "every g doubled: d doubles", float(off), 1e-6 if method.name == "pcd" else 1e-9)
    others: tuple[tuple[Any, float], ...] = (
        (balances.NashMTL(max_norm=None), 1.0),
        (balances.FairGrad(alpha=2.0), 2 ** (-1 / 3)),
        (balances.FairGrad(alpha=0.5), 2 ** (1 / 3)),
    )
    for method, factor in others:
        off = np.abs(direction(method, 2 * INDEPENDENT) - factor * direction(method, INDEPENDENT)).max()
        text = "d stays" if factor == 1 else f"d times 2^((1-alpha)/(1+alpha)), alpha {method.alpha:g}"
        yield Row(method.name, f"every g doubled: {text}", float(off), 1e-9)


def _absent() -> Iterator[Row]:
    """A task that left None on a tensor has no part there; in the Gramian it is a task whose numbers there are 0."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(70_001,), (3, 5), (4,), (7,)]  # one of more than one piece
    full = [[torch.randn(shape, generator=draw) for shape in shapes] for _ in range(3)]
    absent = {(0, 1), (2, 1), (0, 2), (1, 3), (0, 3), (2, 3)}
    gradients = [[None if (t, k) in absent else g for k, g in enumerate(row)] for t, row in enumerate(full)]
    zeros = [[torch.zeros(g.shape) if (t, k) in absent else g for k, g in enumerate(row)] for t, row in enumerate(full)]
    vectors = torch.stack([torch.cat([g.double().flatten() for g in row]) for row in zeros])
    found = gramian.gramian(gradients)
    off = float((found - vectors @ vectors.T).abs().max() / (vectors @ vectors.T).abs().max())
    yield Row("surgery", "Gramian of gradients with None: float64, None as 0, relative", off, 1e-13)
    weights = [0.5, -2.0, 3.0]
    wanted = torch.tensor(weights, dtype=torch.float64) @ vectors
    copies = [[None if g is None else g.clone() for g in row] for row in gradients]
    combined = gramian.combine(copies, weights)
    if [g is None for g in combined] != [False, False, False, True]:
        yield Row("surgery", "None where no task touched a tensor", math.inf, 0.0)
    flat = torch.cat(
        [torch.zeros(shape).flatten() if g is None else g.flatten() for g, shape in zip(combined, shapes, strict=True)]
    )
    off = float((flat.double() - wanted).abs().max())
    yield Row("surgery", "sum of w_t g_t over tasks that touched a tensor; None where none did", off, 2e-6)


# --------------------------------------------------------------------------------------------------------- whole steps


def _step(algorithm: Any, tasks: Mapping[str, Any] | None = None) -> tuple[dict[str, torch.Tensor | None], Any, Any]:
    learner, feed = tiny_learner(tasks, algorithm=algorithm)
    learner.begin_step(0)
    algorithm.backward(learner, feed)
    return {name: p.grad for name, p in learner.parameters.items()}, learner, feed


def _one_by_one() -> list[dict[str, torch.Tensor | None]]:
    """The gradient of each task alone, on the batch of the first step."""
    learner, feed = tiny_learner()
    learner.begin_step(0)
    found = []
    for task in feed.tasks:
        learner.clear_gradient()
        learner.gradient(feed.batch(task))
        found.append(dict(zip(learner.parameters, learner.take_gradient(), strict=True)))
    return found


def _apart(one: Mapping[str, torch.Tensor | None], two: Mapping[str, torch.Tensor | None]) -> float:
    """The largest difference, relative to the largest number; inf where one has None and the other has not."""
    off, size = 0.0, 0.0
    for name, a in one.items():
        b = two.get(name)
        if (a is None) != (b is None):
            return math.inf
        if a is not None and b is not None:
            off, size = max(off, float((a - b).abs().max())), max(size, float(a.abs().max()))
    return off / size


def _combined(weights: Sequence[float], heads: Sequence[float]) -> dict[str, torch.Tensor | None]:
    """sum_t w_t g_t on the encoder, with other weights on the heads."""
    total: dict[str, torch.Tensor | None] = {}
    for gradient, w, h in zip(_one_by_one(), weights, heads, strict=True):
        for name, grad in gradient.items():
            kept = total.get(name)
            if grad is not None:
                scaled = grad.double() * (w if name.startswith("encoder.") else h)
                total[name] = scaled if kept is None else kept + scaled
            else:
                total[name] = kept
    return total


def _length(step: Mapping[str, torch.Tensor | None]) -> float:
    """The length of a direction on the encoder."""
    shared = [grad for name, grad in step.items() if grad is not None and name.startswith("encoder.")]
    return math.sqrt(sum(float(grad.double().square().sum()) for grad in shared))


def _whole_steps() -> Iterator[Row]:
    joint, _, _ = _step(Joint())
    constant, _, _ = _step(Surgery(method=baselines.Constant()))
    yield Row("surgery", "a step of `constant` with equal weights: `joint`, relative", _apart(joint, constant), 1e-6)
    flat = [
        torch.cat(
            [grad.double().flatten() for name, grad in gradient.items() if grad is not None and "encoder" in name]
        )
        for gradient in _one_by_one()
    ]
    vectors = torch.stack(flat).numpy()
    for method in (descents.MGDA(), balances.FairGrad(), projections.UPGrad()):
        found, _, _ = _step(Surgery(method=method))
        weights = weigh(method, TASKS[:3], vectors @ vectors.T, {}, step=0, seed=SEED)
        off = _apart(found, _combined(weights.tolist(), [1 / 3] * 3))
        yield Row("surgery", f"a step of {method.name}: w on the encoder, 1/T on heads, relative", off, 1e-6)
    found, _, _ = _step(Surgery(method=balances.FairGrad(), norm="mean"))
    off = abs(_length(found) / _length(joint) - 1)
    yield Row("surgery", "`norm: mean`: the length of joint's direction, relative", off, 1e-6)


# ------------------------------------------------------------------------------------------------------------- losses


def slope(function: Callable[[Array], float], losses: Array) -> Array:
    """The derivative of a function of losses, by central differences."""
    step = 1e-6 * np.eye(len(losses))
    return np.array([(function(losses + row) - function(losses - row)) / 2e-6 for row in step])


def _losses() -> Iterator[Row]:
    functions: list[tuple[Any, str, Callable[[Array], float]]] = [
        (
            scalarisers.GLS(),
            "(l_1 ... l_T)^(1/T) (Chennupati et al. 2019)",
            lambda losses: float(np.prod(losses) ** (1 / len(losses))),
        ),
        (
            scalarisers.STCH(mu=0.3),
            "mu log sum exp(l / mu) (Lin et al. 2024)",
            lambda losses: float(0.3 * np.log(np.exp(losses / 0.3).sum())),
        ),
        (
            scalarisers.UW(),
            "exp(-s) l + s/2, half for regression (Kendall et al. 2018), over T",
            lambda losses: float((losses * [1, 1, 0.5]).sum() / 3),
        ),
        (scalarisers.IMTLL(), "exp(s) l - s (Liu et al. 2021), over T", lambda losses: float(losses.sum() / 3)),
    ]
    for method, text, function in functions:
        found, learner, _ = _step(Weighting(method=method))
        losses = np.array([float(loss) for _, _, loss in learner.losses])
        weights = slope(function, losses).tolist()
        own = {name: grad for name, grad in found.items() if not name.startswith("algorithm.")}
        yield Row(method.name, f"weights are the derivative of {text}", _apart(own, _combined(weights, weights)), 1e-5)
    yield from _trained_along()
    yield from _famo()
    yield from _dwa()


def _trained_along() -> Iterator[Row]:
    """The gradients of s_t, away from s = 0."""
    forms: list[tuple[Any, Callable[[float, float, bool], float]]] = [
        (scalarisers.UW(), lambda s, loss, number: (0.5 if number else 1.0) * math.exp(-s) * loss + s / 2),
        (scalarisers.IMTLL(), lambda s, loss, number: math.exp(s) * loss - s),
    ]
    for method, form in forms:
        algorithm = Weighting(method=method)
        learner, feed = tiny_learner(algorithm=algorithm)
        with torch.no_grad():
            for i, task in enumerate(feed.tasks):
                learner.parameters[f"algorithm.{task}"].fill_(0.3 * i - 0.2)
        learner.begin_step(0)
        algorithm.backward(learner, feed)
        off = 0.0
        for i, (task, _, loss) in enumerate(learner.losses):
            s, number = 0.3 * i - 0.2, task == "sts"
            wanted = (form(s + 1e-6, float(loss), number) - form(s - 1e-6, float(loss), number)) / 2e-6 / 3
            grad = learner.parameters[f"algorithm.{task}"].grad
            off = max(off, math.inf if grad is None else abs(float(grad) - wanted))
        yield Row(method.name, "the gradient of s by central differences", off, 1e-6)


def _famo() -> Iterator[Row]:
    """Weights z_t / l_t over their sum, and three steps of xi beside TorchJD's FAMO in float64."""
    from torchjd.scalarization import FAMO

    found, learner, _ = _step(Weighting(method=scalarisers.FAMO()))
    losses = np.array([float(loss) for _, _, loss in learner.losses])
    weights = (1 / losses / (1 / losses).sum()).tolist()
    text = "weights z / l over their sum (Liu et al. 2023)"
    yield Row("famo", text, _apart(found, _combined(weights, weights)), 1e-6)
    theirs, method = FAMO(3).double(), scalarisers.FAMO()
    learner.memory.clear()
    draw, off = np.random.default_rng(1), 0.0
    for _ in range(4):
        before, after = draw.uniform(0.1, 2.0, 3), draw.uniform(0.1, 2.0, 3)
        values = torch.tensor(before, requires_grad=True)
        (wanted,) = torch.autograd.grad(theirs(values), values)
        parts = [method.part(learner, i, 1.0, float(loss)) for i, loss in enumerate(before)]
        whole = method.whole([1.0] * 3, before.tolist(), parts)
        off = max(off, float(np.abs(np.exp(np.array(parts) + whole) - wanted.numpy()).max()))
        method.update(learner, before.tolist(), after.tolist())
        theirs.update(torch.tensor(after))
    yield Row("famo", "four steps of xi beside TorchJD's FAMO", off, 1e-6)


def _dwa() -> Iterator[Row]:
    method, off = scalarisers.DWA(every=2, temperature=2.0), 0.0
    learner, feed = tiny_learner()
    draw = np.random.default_rng(1)
    means: list[Array] = []
    for _ in range(4):
        seen = []
        for _ in range(2):
            weights = method.begin(learner, feed.tasks)
            wanted = np.ones(3)
            if len(means) > 1:
                raised = np.exp(means[-1] / means[-2] / 2.0)
                wanted = 3 * raised / raised.sum()
            off = max(off, float(np.abs(np.array([float(weights[t]) for t in feed.tasks]) - wanted).max()))
            seen.append(draw.uniform(0.1, 2.0, 3))
            now = {task: torch.tensor(loss) for task, loss in zip(feed.tasks, seen[-1], strict=True)}
            method.end(learner, now, dict.fromkeys(feed.tasks, 1 / 3))
        means.append(np.mean(seen, axis=0))
    yield Row("dwa", "T softmax(L' / (L'' temperature)) (Liu et al. 2019), eight steps", off, 1e-12)
