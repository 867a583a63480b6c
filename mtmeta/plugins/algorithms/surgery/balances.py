"""Methods that give the tasks equal shares: IMTL-G, Aligned-MTL, FairGrad, Nash-MTL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import mtmeta
from mtmeta.plugins.algorithms.surgery.method import Look, Method, by_torchjd, on_nonzero

if TYPE_CHECKING:
    from mtmeta.plugins.algorithms.surgery.method import Array


@dataclass(frozen=True, kw_only=True)
class IMTLG(Method):
    """The weights of sum 1 whose direction has the same projection on every g_t / |g_t| (Liu et al. 2021)."""

    name: Literal["imtl_g"] = "imtl_g"

    def weights(self, look: Look) -> Array:
        from mtmeta.plugins.algorithms.surgery import solvers

        # TorchJD's pseudo-inverse has another answer for gradients that depend on each other, such as g and -3 g
        return on_nonzero(look.gramian, solvers.equal_projections)


@dataclass(frozen=True, kw_only=True)
class AlignedMTL(Method):
    """The mean of gradients made orthogonal and equally long (Senushkin et al. 2023)."""

    packages = ("torchjd",)
    name: Literal["aligned_mtl"] = "aligned_mtl"
    scale: Literal["min", "median", "rmse"] = "min"
    """The singular value that all get: the least (the paper), the median, or the root of their mean square."""

    def weights(self, look: Look) -> Array:
        return by_torchjd("AlignedMTLWeighting", look.gramian, scale_mode=self.scale)


@dataclass(frozen=True, kw_only=True)
class FairGrad(Method):
    """The alpha-fair direction: G w = w^(-1/alpha) (Ban and Ji 2024, equation 4).

    Where the gradients cancel with some weights, there is no such w, and the direction is 0.
    """

    name: Literal["fairgrad"] = "fairgrad"
    alpha: mtmeta.PositiveFloat = 2.0
    """1: proportional fairness, as Nash-MTL; 2: least delay; the larger, the more the worst task counts."""

    def weights(self, look: Look) -> Array:
        return _fair(look, self.alpha)


@dataclass(frozen=True, kw_only=True)
class NashMTL(Method):
    """The Nash bargaining solution: G w = 1 / w (Navon et al. 2022).

    It is solved to the end, not by the paper's few convex steps; so nothing is kept but the weights for `every`. Where
    the gradients cancel with some weights, there is no such w, and the direction is 0.
    """

    name: Literal["nash_mtl"] = "nash_mtl"
    max_norm: mtmeta.PositiveFloat | None = 1.0
    """Longest direction; null leaves it as it is, of length sqrt(T) for T tasks."""
    every: mtmeta.PositiveInt = 1
    """Steps between two solutions; between them the last weights serve."""

    def weights(self, look: Look) -> Array:
        import torch

        if look.step % self.every and "weights" in look.memory:
            weights: Array = look.memory["weights"].numpy(force=True).copy()
        else:
            weights = _fair(look, 1.0)
            if self.every > 1:
                look.memory["weights"] = torch.from_numpy(weights.copy())
        length = math.sqrt(max(0.0, look.scale * float(weights @ look.gramian @ weights)))
        if self.max_norm is not None and length > self.max_norm:
            weights *= self.max_norm / length
        return weights


def _fair(look: Look, alpha: float) -> Array:
    from mtmeta.plugins.algorithms.surgery import solvers

    def solve(gramian: Array) -> Array:
        return 0.0 * gramian[0] if solvers.is_stationary(gramian) else solvers.fair(gramian, alpha)

    # of G / s it is the w of G, times s^(alpha / (1 + alpha))
    factor = float(look.scale ** (-alpha / (1.0 + alpha)))
    return factor * on_nonzero(look.gramian, solve)
