"""Methods that take away from each gradient what opposes others: PCGrad, GradVac, UPGrad, DualProj."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

from mtmeta.plugins.algorithms.surgery import extra
from mtmeta.plugins.algorithms.surgery.method import Look, Method, by_torchjd, by_torchjd_with

if TYPE_CHECKING:
    from mtmeta.plugins.algorithms.surgery.method import Array


@dataclass(frozen=True, kw_only=True)
class PCGrad(Method):
    """Each gradient without its projections on those it opposes, in random order; their mean (Yu et al. 2020)."""

    packages = ("torchjd",)
    name: Literal["pcgrad"] = "pcgrad"

    def weights(self, look: Look) -> Array:
        with extra.seeded(look.seed):  # TorchJD draws the order
            return by_torchjd("PCGradWeighting", look.gramian) / len(look.tasks)  # of the sum


@dataclass(frozen=True, kw_only=True)
class GradVac(Method):
    """Each gradient turned towards others until their cosine is the usual one of the pair (Wang et al. 2021)."""

    packages = ("torchjd",)
    name: Literal["gradvac"] = "gradvac"
    beta: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.01
    """Share of a step's cosine in the moving average that a pair's cosine is compared with; LibMTL and
    TorchJD take 0.5, by which it is mostly that of the last few steps."""

    def weights(self, look: Look) -> Array:
        kept = {"_phi_t": look.memory["cosines"]} if look.memory else {}
        # TorchJD adds eps to products of lengths; the Gramian's are about 1
        options: dict[str, Any] = {"beta": self.beta, "eps": 1e-12}
        weights, state = by_torchjd_with("GradVacWeighting", look.gramian, kept, seed=look.seed, **options)
        look.memory["cosines"] = state["_phi_t"]
        return weights / len(look.tasks)  # of the sum


@dataclass(frozen=True, kw_only=True)
class UPGrad(Method):
    """The mean of the gradients' projections onto the cone in which no task is opposed (Quinton and Rey 2024)."""

    packages = ("torchjd",)
    name: Literal["upgrad"] = "upgrad"

    def weights(self, look: Look) -> Array:
        return by_torchjd("UPGradWeighting", look.gramian, projector=_projector())


@dataclass(frozen=True, kw_only=True)
class DualProj(Method):
    """The projection of the mean gradient onto the cone in which no task is opposed (Lopez-Paz and Ranzato 2017)."""

    packages = ("torchjd",)
    name: Literal["dualproj"] = "dualproj"

    def weights(self, look: Look) -> Array:
        return by_torchjd("DualProjWeighting", look.gramian, projector=_projector())


def _projector() -> Callable[..., Any]:
    """Return a projector that is exact where gradients depend on each other.

    TorchJD's own adds 1e-4 to the diagonal, and takes gradients of squared length below 1e-4 for 0.
    """
    import numpy as np
    import torch
    from torchjd.linalg import DualConeProjector

    from mtmeta.plugins.algorithms.surgery import solvers

    class Exact(DualConeProjector):
        def __call__(self, U: torch.Tensor, G: Any) -> torch.Tensor:  # TorchJD's names
            gramian = G.numpy()
            found = [solvers.onto_dual_cone(row, gramian) for row in U.reshape(-1, len(gramian)).numpy()]
            return torch.from_numpy(np.stack(found)).reshape(U.shape)

    return Exact()
