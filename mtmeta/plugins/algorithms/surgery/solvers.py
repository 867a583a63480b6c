"""Small problems on a Gramian of T gradients, solved exactly: each is a least-squares problem without negative numbers.

Shapes: `T` tasks. G is [T, T] in float64, its diagonal of mean 1. Weights w stand for the vector sum_t w_t g_t.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
STATIONARY = 1e-10
"""The squared length, in units of the mean squared gradient, below which the shortest point of the hull is taken for 0:
a hundred-thousandth of a gradient, far above the rounding of gradients in fp32."""
MOST_ROUNDS = 200


def root(gramian: Array) -> Array:
    """Return A [T, T] with A^T A = G: columns that lie to each other as the gradients do.

    The gradients are brought to length 1 before: short ones are as exact as long ones.
    """
    norms = np.sqrt(np.diag(gramian))
    safe = np.where(norms > 0, norms, 1.0)
    values, vectors = np.linalg.eigh(gramian / np.outer(safe, safe))
    cosines: Array = (vectors * np.sqrt(np.clip(values, 0.0, None))).T
    return cosines * norms


def min_norm(gramian: Array) -> Array:
    """Return the weights [T], none negative and of sum 1, of the shortest vector in the gradients' convex hull.

    With x = s w, s the sum of x, |A x|^2 + (s - 1)^2 is least over s at |A w|^2 / (1 + |A w|^2), which grows with
    |A w|^2; so the x of the least-squares problem points to the wanted w.
    """
    from scipy.optimize import nnls

    count = len(gramian)
    whole = np.vstack([root(gramian), np.ones(count)])
    found: Array = nnls(whole, np.append(np.zeros(count), 1.0))[0]
    weights: Array = found / found.sum()
    return weights


def is_stationary(gramian: Array) -> bool:
    """Return whether the gradients cancel with some weights: then no direction serves all tasks."""
    weights = min_norm(gramian)
    return bool(weights @ gramian @ weights <= STATIONARY)


def onto_dual_cone(given: Array, gramian: Array) -> Array:
    """Return the weights [T] of the projection of the vector of weights `given` onto the gradients' dual cone.

    The dual cone holds what has no negative inner product with any gradient. The weights are the v >= `given` of the
    least v^T G v (Quinton and Rey 2024, proposition 1), that is `given` + z with z >= 0 and |A (given + z)| least.
    """
    from scipy.optimize import nnls

    columns = root(gramian)
    more: Array = nnls(columns, -columns @ given)[0]
    return given + more


def fair(gramian: Array, alpha: float) -> Array:
    """Return the x > 0 [T] with G x = x^(-1/alpha), for gradients that do not cancel and of which none is 0.

    It is where the strictly convex x^T G x / 2 - sum_t p(x_t), p' = x^(-1/alpha), is least; found by Newton's method,
    each step cut so that x stays positive and the function falls.
    """
    power = 1.0 / alpha

    def value(x: Array) -> float:
        gains = np.log(x) if alpha == 1.0 else x ** (1.0 - power) / (1.0 - power)
        return float(x @ gramian @ x / 2 - gains.sum())

    x: Array = np.diag(gramian) ** (-alpha / (1.0 + alpha))  # exact where the gradients are orthogonal
    for _ in range(MOST_ROUNDS):
        slope = gramian @ x - x**-power
        if np.abs(slope * x**power).max() <= 1e-13:
            break
        step = -np.linalg.solve(gramian + np.diag(power * x ** (-power - 1.0)), slope)
        falling = step < 0
        share = min(1.0, 0.99 * float((x[falling] / -step[falling]).min())) if falling.any() else 1.0
        expected, here = float(slope @ step), value(x)
        while share > 1e-12 and value(x + share * step) > here + 1e-4 * share * expected + 1e-14 * abs(here):
            share /= 2
        x = x + share * step
    return x


def equal_projections(gramian: Array) -> Array:
    """Return weights [T] of sum 1 whose vector has the same projection on every g_t / |g_t|; none of g_t is 0.

    These are T linear equations. Where gradients depend on each other, the shortest of the solutions that come nearest.
    """
    along: Array = gramian / np.sqrt(np.diag(gramian))[:, None]  # row t: projections on g_t / |g_t|
    equations = np.vstack([along[1:] - along[0], np.ones(len(gramian))])
    wanted = np.append(np.zeros(len(gramian) - 1), 1.0)
    return np.asarray(np.linalg.lstsq(equations, wanted, rcond=1e-10)[0], dtype=np.float64)
