"""A learner and a feed on a tiny encoder without dropout, so that every number can be computed again by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

import mtmeta
from mtmeta.core.api.batch import Batch
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.feed import Feed
from mtmeta.core.data.loading import from_examples
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.samplers import Uniform
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts

torch.set_num_threads(1)  # two threads on matrices this small only wait for each other

TASKS: dict[str, Any] = {"sst": Sst, "para": Para, "sts": Sts}


@dataclass(frozen=True)
class Always(mtmeta.Sampler):
    """Draws the named tasks in turn, in the order given."""

    name = "always"
    order: tuple[str, ...] = ("sst",)

    def probabilities(self, sizes: Mapping[str, int], draw: mtmeta.Draw) -> dict[str, float]:
        return {self.order[draw.index % len(self.order)]: 1.0}


def tiny(
    *names: str,
    sampler: mtmeta.Sampler | None = None,
    batch_size: int = 8,
    inner_steps: int = 3,
    examples: int = 96,
    seed: int = 7,
    grad_accumulation: int = 1,
    weights: Mapping[str, float] | None = None,
    ids: Sequence[str] | None = None,
    dropout: float = 0.0,
) -> tuple[Learner, Feed]:
    """A learner and a feed over the sample data of `names` (default: all three tasks)."""
    names = names or tuple(TASKS)
    weights = weights or {}
    tasks = {
        n: TASKS[n](train="sample", batch_size=batch_size, inner_steps=inner_steps, loss_weight=weights.get(n, 1.0))
        for n in names
    }
    backbone = Bert(weights="tiny", max_length=64, dropout=dropout).load(seed)
    datasets: dict[str, Dataset] = {}
    for name, task in tasks.items():
        datasets[name] = from_examples(name, task, "train", list(task.sample("train"))[:examples], backbone)
        if ids is not None:
            datasets[name] = replace(datasets[name], ids=list(ids))
    model = MultiTaskModel(backbone.encoder, tasks, seed)
    feed = Feed(tasks, datasets, sampler or Uniform(), seed=seed, grad_accumulation=grad_accumulation)
    feed.steps = 100
    return Learner(model, seed=seed, steps=100), feed


def values(learner: Learner) -> dict[str, Tensor]:
    """A copy of every parameter."""
    return {name: parameter.detach().clone() for name, parameter in learner.parameters.items()}


def load(learner: Learner, theta: Mapping[str, Tensor]) -> None:
    """Set every parameter."""
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            parameter.copy_(theta[name])


def by_hand_loss(learner: Learner, batch: Batch) -> Tensor:
    """The batch's mean loss with its graph, without the learner's own machinery."""
    (chunk,) = batch.chunks
    return learner.tasks[batch.task].objective.loss(learner.model(batch.task, chunk.packed), chunk.labels)


def by_hand_gradient(learner: Learner, *terms: tuple[float, Batch]) -> dict[str, Tensor | None]:
    """Gradient of the sum of weight times batch loss, through torch.autograd.grad."""
    total = torch.stack([weight * by_hand_loss(learner, batch) for weight, batch in terms]).sum()
    found = torch.autograd.grad(total, list(learner.parameters.values()), allow_unused=True)
    return dict(zip(learner.parameters, found, strict=True))


def gradients(learner: Learner) -> dict[str, Tensor | None]:
    """A copy of every `.grad`."""
    return {n: None if p.grad is None else p.grad.detach().clone() for n, p in learner.parameters.items()}
