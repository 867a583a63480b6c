"""Methods to compare with: constant and random weights, and Krum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

import mtmeta
from mtmeta.plugins.algorithms.surgery import extra
from mtmeta.plugins.algorithms.surgery.method import Look, Method, by_torchjd

if TYPE_CHECKING:
    from mtmeta.plugins.algorithms.surgery.method import Array


@dataclass(frozen=True, kw_only=True)
class Constant(Method):
    """The same weights in every step: without any, `joint`."""

    name: Literal["constant"] = "constant"
    weights_of: dict[str, mtmeta.NonNegativeFloat] | None = None
    """The weight of each task's gradient; default: 1 / T each, T being the number of tasks."""
    written: ClassVar[Mapping[str, str]] = {"weights_of": "weights"}  # `weights` is the method that has them

    def check(self, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
        if self.weights_of is None:
            return
        for name in self.weights_of:
            if name not in tasks:
                near = mtmeta.did_you_mean(name, list(tasks))
                yield f"weights.{name}", f"names no task of this recipe{near}"
        if missing := [task for task in tasks if task not in self.weights_of]:
            yield "weights", f"has no weight for {', '.join(missing)}; give each task one"
        elif not any(self.weights_of.values()):
            yield "weights", "are all 0; give one task a weight above 0"

    def weights(self, look: Look) -> Array:
        import numpy as np

        given = self.weights_of or dict.fromkeys(look.tasks, 1.0 / len(look.tasks))
        return np.array([given[task] for task in look.tasks], dtype=np.float64)


@dataclass(frozen=True, kw_only=True)
class Random(Method):
    """Weights drawn anew in every step: the softmax of normal numbers (Lin et al. 2022)."""

    packages = ("torchjd",)
    name: Literal["random"] = "random"

    def weights(self, look: Look) -> Array:
        with extra.seeded(look.seed):
            return by_torchjd("RandomWeighting", look.gramian)


@dataclass(frozen=True, kw_only=True)
class Krum(Method):
    """The gradients that lie nearest to the others, and no other (Blanchard et al. 2017)."""

    name: Literal["krum"] = "krum"
    byzantine: Annotated[int, Field(ge=0)] = 0
    """Tasks whose gradients may be anything, f of the paper."""
    selected: mtmeta.PositiveInt = 1
    """Gradients that are taken; the direction is their mean."""

    def check(self, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
        if len(tasks) < self.byzantine + 3:
            yield (
                "byzantine",
                f"is {self.byzantine}, which takes {self.byzantine + 3} tasks or more; {len(tasks)} exist",
            )
        if self.selected > len(tasks):
            yield "selected", f"is {self.selected} but only {len(tasks)} tasks exist; lower it"

    def weights(self, look: Look) -> Array:
        import numpy as np

        squares = np.diag(look.gramian)
        # the paper's score adds squared distances, TorchJD's the distances themselves
        distances = squares[:, None] + squares[None, :] - 2 * look.gramian
        np.fill_diagonal(distances, -np.inf)  # first of its row
        near = np.sort(distances, axis=1)[:, 1 : len(squares) - self.byzantine - 1]
        chosen = np.argsort(near.sum(axis=1), kind="stable")[: self.selected]
        weights = np.zeros(len(squares))
        weights[chosen] = 1.0 / self.selected
        return weights
