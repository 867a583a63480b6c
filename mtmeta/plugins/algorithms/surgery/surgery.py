"""Surgery on gradients: one gradient a task on the shared encoder, weighted by their Gramian."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Literal, get_args

from pydantic import Field

import mtmeta
from mtmeta.plugins.algorithms.joint import Epoch, steps_of_epoch
from mtmeta.plugins.algorithms.surgery import extra
from mtmeta.plugins.algorithms.surgery.balances import IMTLG, AlignedMTL, FairGrad, NashMTL
from mtmeta.plugins.algorithms.surgery.baselines import Constant, Krum, Random
from mtmeta.plugins.algorithms.surgery.descents import MGDA, PCD, CAGrad
from mtmeta.plugins.algorithms.surgery.method import Method, weigh
from mtmeta.plugins.algorithms.surgery.projections import DualProj, GradVac, PCGrad, UPGrad

if TYPE_CHECKING:
    from torch import Tensor

    from mtmeta.plugins.algorithms.surgery.method import Array

SHARED = "encoder."
"""What the names of shared parameters begin with; all others are some task's own."""
MethodOptions = Annotated[
    PCGrad
    | GradVac
    | MGDA
    | IMTLG
    | AlignedMTL
    | UPGrad
    | DualProj
    | CAGrad
    | FairGrad
    | NashMTL
    | PCD
    | Krum
    | Random
    | Constant,
    Field(discriminator="name"),
]
METHODS: tuple[type[Method], ...] = get_args(get_args(MethodOptions)[0])
"""Every method, as a class."""


@dataclass(frozen=True)
class Surgery(mtmeta.Algorithm):
    """Combines the tasks' gradients on the encoder by weights found from their inner products.

    From a batch of every task comes its gradient g_t of lambda_t l_t. The direction on the encoder is sum_t w_t(G) g_t,
    where G holds the inner products of the g_t in float64 and `method` makes weights of it; a head gets its own task's
    gradient over the number of tasks T, as in `joint`. Methods whose paper adds gradients up (pcgrad, gradvac) are
    divided by T: without a conflict their direction is that of `joint`. Memory: T gradients of the encoder, `joint` has
    one. Some methods need the extra `surgery`: pip install 'mtmeta[surgery]'.
    """

    name = "surgery"

    method: MethodOptions = field(default_factory=PCGrad)
    """How the weights are found, by name (`method: pcgrad`) or with options (`method: {name: cagrad, c: 0.4}`): pcgrad,
    gradvac (beta), mgda, imtl_g, aligned_mtl (scale), upgrad, dualproj, cagrad (c), fairgrad (alpha),
    nash_mtl (max_norm, every), pcd (primary, tau, beta), krum (byzantine, selected), random, constant (weights)."""
    norm: Literal["method", "mean"] = "method"
    """Length of the direction on the encoder: as the method leaves it, or that of the mean of the g_t, as in `joint`
    (nash_mtl and fairgrad are as long for small gradients as for large ones)."""
    epoch: Epoch = "mean"
    """Steps in an epoch: the mean, least or greatest number of batches among the tasks."""

    def require(self) -> None:
        extra.require(self.method.name, self.method.packages)

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[tuple[str, str]]:
        if len(tasks) < 2:
            yield "method", f"{self.method.name} weighs tasks against each other, there is only one; use joint"
            return
        yield from ((f"method.{option}", message) for option, message in self.method.check(list(tasks)))

    def extra_bytes(self, shared: int, tasks: Sequence[str]) -> int:
        return shared * (len(tasks) - 1)

    def steps_per_epoch(self, batches: Mapping[str, int]) -> int:
        return steps_of_epoch(self.epoch, batches)

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        from mtmeta.plugins.algorithms.surgery import gramian

        shared = [name.startswith(SHARED) for name in learner.parameters]
        if not any(shared):
            message = "surgery combines gradients of the encoder, which is frozen; set adapters.encoder: trained"
            raise mtmeta.RecipeError("algorithm", message)
        gradients: list[list[Tensor | None]] = []
        total: list[Tensor | None] = [None] * len(shared)
        learner.clear_gradient()
        for task in feed.tasks:
            learner.gradient(feed.batch(task), feed.loss_weight(task))
            taken = learner.take_gradient()
            gradients.append([grad for grad, is_shared in zip(taken, shared, strict=True) if is_shared])
            for i, (grad, is_shared) in enumerate(zip(taken, shared, strict=True)):
                if grad is not None and not is_shared:
                    grad.div_(len(feed.tasks))
                    kept = total[i]
                    total[i] = grad if kept is None else kept.add_(grad)
        moved = [any(grad is not None for grad in gradient) for gradient in gradients]
        if any(moved) and not all(moved):
            message = (
                f"surgery combines gradients of the encoder, which task '{feed.tasks[moved.index(False)]}' has none of"
            )
            raise mtmeta.RecipeError("algorithm", f"{message}; leave adapters.trained_by out")
        if any(moved):
            weights = self._weights(learner, feed.tasks, gramian.gramian(gradients).numpy())
            combined = iter(gramian.combine(gradients, weights.tolist()))
            total = [next(combined) if is_shared else own for own, is_shared in zip(total, shared, strict=True)]
        learner.put_gradient(total)

    def _weights(self, learner: mtmeta.Learner, tasks: Sequence[str], products: Array) -> Array:
        import numpy as np

        for task, square in zip(tasks, np.diag(products), strict=True):
            if not np.isfinite(square):
                message = f"gradient of task '{task}' became non-finite at meta-step {learner.step + 1}"
                raise mtmeta.DivergedError("", f"{message}; lower the learning rate")
        seed = random.Random(f"surgery {learner.seed} {learner.step}").getrandbits(63)
        weights = weigh(self.method, tasks, products, learner.memory, step=learner.step, seed=seed)
        if self.norm == "mean":
            length = float(np.sqrt(max(0.0, float(weights @ products @ weights))))
            mean = float(np.sqrt(max(0.0, float(products.sum())))) / len(tasks)
            weights = weights * (mean / length) if length > 0 else weights
        return weights
