"""Methods that look for a direction of descent for all: MGDA, CAGrad, PCD."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

import mtmeta
from mtmeta.plugins.algorithms.surgery.method import Look, Method, by_torchjd, by_torchjd_with

if TYPE_CHECKING:
    from mtmeta.plugins.algorithms.surgery.method import Array

STATE = {"squares": "_sq_norm_ema", "count": "_n_steps"}  # of TorchJD's PCD, by our names


@dataclass(frozen=True, kw_only=True)
class MGDA(Method):
    """The shortest vector in the convex hull of the gradients (Desideri 2012; Sener and Koltun 2018)."""

    name: Literal["mgda"] = "mgda"

    def weights(self, look: Look) -> Array:
        from mtmeta.plugins.algorithms.surgery import solvers

        # TorchJD's hundred rounds of Frank-Wolfe are some hundredths off with three tasks
        return solvers.min_norm(look.gramian)


@dataclass(frozen=True, kw_only=True)
class CAGrad(Method):
    """The direction within c |g0| of the mean g0 in which the worst task gains most (Liu et al. 2021)."""

    packages = ("torchjd", "cvxpy", "clarabel")
    name: Literal["cagrad"] = "cagrad"
    c: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.4
    """How far from the mean: 0 is `joint`; below 1 the mean loss still falls. With 0.4 the
    authors' code runs NYU-v2."""

    def weights(self, look: Look) -> Array:
        # with a Gramian as it comes, TorchJD takes gradients of squared length below 1e-4 for 0
        return by_torchjd("CAGradWeighting", look.gramian, c=self.c, norm_eps=1e-6)


@dataclass(frozen=True, kw_only=True)
class PCD(Method):
    """The direction nearest to one task's gradient in which all others gain a share (arXiv:2606.29521, TMLR 2026).

    Gradients are divided by a moving average of their length before; the direction gets the length of the first
    task's gradient.
    """

    packages = ("torchjd",)
    name: Literal["pcd"] = "pcd"
    primary: str | None = None
    """The task that comes first; default: the first of the recipe."""
    tau: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.02
    """Share of the gain of its own gradient that every other task gets."""
    beta: Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)] = 0.999
    """Decay of the moving average of squared lengths."""

    def check(self, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
        if self.primary is not None and self.primary not in tasks:
            near = mtmeta.did_you_mean(self.primary, list(tasks))
            yield "primary", f"names no task of this recipe: {mtmeta.quote(self.primary)}{near}"

    def weights(self, look: Look) -> Array:
        import numpy as np

        first = 0 if self.primary is None else list(look.tasks).index(self.primary)
        order = [first, *(i for i in range(len(look.tasks)) if i != first)]
        kept = {theirs: look.memory[ours] for ours, theirs in STATE.items()} if look.memory else {}
        gramian = look.gramian[np.ix_(order, order)] * look.scale  # lengths of different steps are compared
        options: dict[str, Any] = {"tau": self.tau, "beta": self.beta, "eps": 1e-8}
        found, state = by_torchjd_with("PCDWeighting", gramian, kept, **options)
        look.memory.update({ours: state[theirs] for ours, theirs in STATE.items()})
        weights = np.empty(len(order))
        weights[order] = found
        return weights
