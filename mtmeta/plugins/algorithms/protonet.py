"""Prototypical networks (Snell et al. 2017): an encoder that is trained to classify by the nearest class mean."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import mtmeta
from mtmeta.plugins.algorithms.inner_loop import Drawing

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Protonet(Drawing):
    """Draws episodes of N classes and has the query examples find the mean of their own class's support vectors.

    Vectors are the pooled ones; there is no head to train. Pairs want `pair_mode: cross`: encoded apart they are both
    vectors after one another, whose distance to a mean does not see whether the two belong together.
    For evaluation, prediction and export the class means over training examples are the head. Takes tasks with classes
    alone.
    """

    name = "protonet"
    hears_teachers = False  # the classes of an episode are not those that teachers know

    ways: mtmeta.PositiveInt | None = None
    """Classes of an episode; a task with fewer has all of its own. Default: all."""
    shots: mtmeta.PositiveInt = 5
    """Support examples of each class."""
    queries: mtmeta.PositiveInt = 5
    """Query examples of each class."""
    distance: Literal["euclidean", "cosine"] = "euclidean"
    """Logits: `euclidean`: -|h - c|^2; `cosine`: cos(h, c) / temperature."""
    temperature: mtmeta.PositiveFloat = 0.1
    """What cosines are divided by."""
    prototype_examples: mtmeta.PositiveInt = 100
    """Training examples of each class, at most, whose mean is its prototype in evaluation; always the same."""

    def check(self, tasks: Mapping[str, mtmeta.Task]) -> Iterator[tuple[str, str]]:
        yield from super().check(tasks)
        if self.ways == 1:
            yield "ways", "1 leaves nothing to tell apart; take 2 or more"
        for name, task in tasks.items():
            if not _is_single_choice(task):
                yield "name", f"protonet classifies, task '{name}' is no choice of one class; leave it out"

    def build_head(self, task: mtmeta.Task, hidden_size: int) -> nn.Module | None:
        import torch

        if not _is_single_choice(task):
            return None  # which `check` refuses
        vectors = 2 if task.inputs == "separate" else 1
        return self._head(torch.zeros(len(task.objective.classes), vectors * hidden_size), task)

    def _head(self, means: Tensor, task: mtmeta.Task) -> nn.Module:
        """Return the head whose logits are those of the episodes, for class means [C, V * D]."""
        binary = task.objective.outputs < len(task.objective.classes)
        if self.distance == "cosine":
            return mtmeta.CosinePrototypeHead(means, temperature=self.temperature, binary=binary)
        return mtmeta.PrototypeHead(means, binary=binary)

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        import torch
        from torch.nn import functional

        for task in learner.slots(self.drawn(feed)):
            ways = self.ways or len(learner.tasks[task].objective.classes)
            support, query = feed.episode_of_classes(task, ways, self.shots, self.queries)
            known, asked = learner.features(support), learner.features(query)
            classes = torch.unique(known.labels)  # [N], sorted
            means = _means(known, classes, learner.tasks[task])
            target = (asked.labels[:, None] == classes).long().argmax(dim=1)  # [Q]
            views = learner.tasks[task].views(asked.vectors)  # two of pairs in both orders
            logits = torch.stack([self.logits(view.flatten(1), means) for view in views]).mean(dim=0)
            loss = functional.cross_entropy(logits, target)
            learner.descend(task, loss, feed.loss_weight(task) / self.tasks_per_step)

    def logits(self, vectors: Tensor, means: Tensor) -> Tensor:
        """Return how near vectors [Q, V * D] are to class means [N, V * D]: [Q, N]."""
        from torch.nn import functional

        if self.distance == "cosine":
            return functional.normalize(vectors, dim=1) @ functional.normalize(means, dim=1).T / self.temperature
        return -(vectors[:, None] - means).square().sum(dim=2)

    def before_evaluation(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        import torch

        for name, task in learner.tasks.items():
            with torch.no_grad():
                parts = [learner.features(batch) for batch in feed.examples_of_classes(name, self.prototype_examples)]
                vectors = torch.cat([part.vectors for part in parts])
                encoded = mtmeta.Features(name, vectors, torch.cat([part.labels for part in parts]))
                classes = torch.arange(len(task.objective.classes), device=vectors.device)
                fresh = dict(self._head(_means(encoded, classes, task), task).named_parameters())
                for key, parameter in learner.head(name).items():
                    parameter.copy_(fresh[key])


def _is_single_choice(task: mtmeta.Task) -> bool:
    """Return whether the task is to choose one of several classes, by a logit for each or one for two."""
    classes, outputs = len(task.objective.classes), task.objective.outputs
    if task.inputs == "choices" or task.objective.labelled != "one":
        return False  # what a choice is, no mean of those in its place says
    return classes > 1 and (outputs == classes or (classes, outputs) == (2, 1))


def _means(features: mtmeta.Features, classes: Tensor, task: mtmeta.Task) -> Tensor:
    """Return the mean vector of each class [N, V * D]; a class without examples has its own at the origin."""
    import torch

    vectors = torch.stack([view.flatten(1) for view in task.views(features.vectors)]).mean(dim=0)
    members = (features.labels == classes[:, None]).to(vectors.dtype)  # [N, B]
    means: Tensor = members @ vectors / members.sum(dim=1, keepdim=True).clamp(min=1)
    return means
