"""ANIL (Raghu et al. 2020): MAML whose inner loop moves the head alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

import mtmeta
from mtmeta.plugins.algorithms.inner_loop import Drawing

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Anil(Drawing):
    """Adapts the head to a support batch by steps of SGD and descends the query loss there, encoder and head together.

    The second derivatives are exact, and cost no more than first order does: support and query are encoded once each,
    and the gradient goes through the encoder once, for only the head is differentiated twice.
    """

    name = "anil"
    by_vectors = True

    inner_lr: mtmeta.PositiveFloat = 0.1
    """Learning rate of the head in the inner loop."""
    inner_steps: Annotated[int, Field(ge=0, le=10_000)] | None = None
    """Steps of the head on the support batch; default: each task's own `inner_steps`. They cost next to nothing."""
    order: Literal[1, 2] = 2
    """`2`: differentiates through the inner loop; `1`: takes its gradients for constants, and no graph of the support
    is kept."""

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[tuple[str, str]]:
        yield from super().check(tasks)
        for name, task in tasks.items():
            if not task.objective.outputs:
                message = "anil adapts heads alone, task '{}' has one without parameters; leave it out, or take maml"
                yield "name", message.format(name)

    def episode_batches(self, task: mtmeta.Task) -> int:
        return 2  # support and query

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in learner.slots(self.drawn(feed)):
            (support,), query = feed.episode(task, 1)
            steps = feed.inner_steps(task) if self.inner_steps is None else self.inner_steps
            head = self._adapted(learner, support, steps)
            loss = learner.loss(learner.features(query), head=head)
            learner.descend(task, loss, feed.loss_weight(task) / self.tasks_per_step)

    def _adapted(self, learner: mtmeta.Learner, support: mtmeta.Batch, steps: int) -> dict[str, Tensor]:
        """Return phi_k, from phi_{j+1} = phi_j - a grad L(phi_j, h_s), with the graph that leads back to phi_0."""
        import torch

        head = learner.head(support.task)
        with torch.set_grad_enabled(self.order == 2):
            features = learner.features(support)
        for _ in range(steps):
            loss = learner.loss(features, head=head)
            found = torch.autograd.grad(loss, list(head.values()), create_graph=self.order == 2, allow_unused=True)
            moved = zip(head.items(), found, strict=True)
            head = {name: p if grad is None else p - self.inner_lr * grad for (name, p), grad in moved}
        return head
