"""What a method of surgery is: weights of the tasks' gradients from their Gramian.

Shapes: `T` tasks. A Gramian is [T, T] in float64, its entry s, t the inner product of the gradients of tasks s and t.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from mtmeta.plugins.algorithms.surgery import extra

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    Array = NDArray[np.float64]


@dataclass(frozen=True)
class Look:
    """What a method sees in one step."""

    tasks: Sequence[str]
    gramian: Array
    """The Gramian divided by `scale`, so that its diagonal has the mean 1 whatever the losses' units are."""
    scale: float
    """Mean of the squared lengths of the gradients, above 0."""
    step: int
    seed: int
    """Seed of what is drawn in this step, a function of the recipe's seed and the step."""
    memory: dict[str, Tensor]
    """The algorithm's own memory, which checkpoints hold."""


@dataclass(frozen=True, kw_only=True)
class Method:
    """A way from the Gramian to weights w: the direction on the shared parameters is sum_t w_t g_t."""

    packages: ClassVar[tuple[str, ...]] = ()
    """Packages of the extra `surgery` that it needs."""
    name: str = ""

    def weights(self, look: Look) -> Array:
        """Return the weights [T]."""
        raise NotImplementedError

    def check(self, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for options that do not fit the recipe's tasks."""
        yield from ()


def weigh(
    method: Any, tasks: Sequence[str], gramian: Array, memory: dict[str, Tensor], *, step: int, seed: int
) -> Array:
    """Return the weights [T] of a method for the Gramian of the gradients; of equal parts where all gradients are 0."""
    import numpy as np

    scale = float(np.diag(gramian).mean())
    if scale == 0.0:
        return np.full(len(tasks), 1.0 / len(tasks))
    weights: Array = method.weights(Look(tasks, gramian / scale, scale, step, seed, memory))
    return np.where(np.diag(gramian) > 0, weights, 0.0)  # some solvers have any number for a gradient of 0


def on_nonzero(gramian: Array, solve: Callable[[Array], Array]) -> Array:
    """Return the weights [T] that `solve` finds without the tasks whose gradient is 0, which get the weight 0."""
    import numpy as np

    there = np.diag(gramian) > 0
    weights = np.zeros(len(gramian))
    weights[there] = solve(gramian[np.ix_(there, there)])
    return weights


def by_torchjd(name: str, gramian: Array, *arguments: Any, **options: Any) -> Array:
    """Return the weights [T] that a weighting of TorchJD has for the Gramian."""
    import torch

    found: Array = extra.weighting(name, *arguments, **options)(torch.from_numpy(gramian)).numpy()
    return found


def by_torchjd_with(
    name: str, gramian: Array, kept: dict[str, Tensor], *, seed: int = 0, **options: Any
) -> tuple[Array, dict[str, Tensor]]:
    """Return the weights [T] of a weighting of TorchJD that has a state, and its state afterwards.

    `kept` is the state from the step before, empty in the first one. Its buffers exist, and can be filled, only after
    a first call; so there is one without consequence before.
    """
    import torch

    weighting = extra.weighting(name, **options)
    if kept:
        with extra.seeded(seed):
            weighting(torch.eye(len(gramian), dtype=torch.float64))
        weighting.load_state_dict(kept)
    with extra.seeded(seed):
        found: Array = weighting(torch.from_numpy(gramian)).numpy()
    return found, {key: tensor.clone() for key, tensor in weighting.state_dict().items()}
