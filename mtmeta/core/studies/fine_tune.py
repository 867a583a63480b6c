"""Fine-tuning on a few examples of one task: the head it begins with, and the steps.

It has a loop of its own because `Trainer` evaluates, selects and writes checkpoints, and clips with another rounding,
which would change the bits of adapted weights.
"""

from __future__ import annotations

import math
import time
from contextlib import closing
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn

from mtmeta.core.api.contracts import Task
from mtmeta.core.api.events import StepDone
from mtmeta.core.api.heads import PrototypeHead
from mtmeta.core.api.optimizers import set_lr
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.feed import Feed
from mtmeta.core.errors import DivergedError, UsageError
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.rng import derive
from mtmeta.core.training import evaluation
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.occurring import Everything, Occurring, occurring_rows
from mtmeta.core.wording import quote

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class Tuned:
    """The steps of a fine-tuning as events, and how much it read of the task."""

    steps: list[StepDone] = field(default_factory=list)
    usage: dict[str, dict[str, float]] = field(default_factory=dict)
    examples: int = 0
    seconds: float = 0.0


def fine_tune(
    model: MultiTaskModel,
    few: Dataset,
    recipe: Recipe,
    *,
    precision: Precision = "fp32",
    draw: int = 0,
    embedding: str = "",
) -> Tuned:
    """Train a model with the head of one task on a few examples, for the recipe's steps, in place.

    A batch is the task's batch_size, or all examples where there are fewer; every epoch has another order. Of
    `embedding`, the encoder's `token_embedding`, only the rows that occur are trained, where the optimizer moves all
    others alike. Raises DivergedError for a loss or a gradient that is not finite, and OtherRows.
    """
    name = embedding if recipe.optimizer.scales_alike else ""
    ids = [torch.from_numpy(store.ids.astype(np.int64)) for store in few.stores]
    with occurring_rows(model.encoder, name, ids) as rows:
        return _steps(model, few, recipe, rows, precision, draw)


def _steps(
    model: MultiTaskModel, few: Dataset, recipe: Recipe, rows: Occurring | Everything, precision: Precision, draw: int
) -> Tuned:
    name, steps, started = few.task, recipe.training.steps or 0, time.perf_counter()
    task = model.tasks[name]
    seed = derive(recipe.seed, "adapt", name, draw)
    feed = Feed(
        {name: task}, {name: few}, recipe.sampler, seed=seed, grad_accumulation=recipe.training.grad_accumulation
    )
    learner = Learner(model, seed=seed, steps=steps, group=name, precision=precision)
    optimizer = recipe.optimizer.build(rows.beside(learner.parameters.items()))
    limit = recipe.training.clip or math.inf  # an infinite one changes no gradient
    events = []
    model.train()
    for step in range(steps):
        learner.begin_step(step)
        factor = recipe.schedule.factor(step, steps)
        set_lr(optimizer, factor)
        loss = float(learner.gradient(feed.batch(name)))
        norm = float(nn.utils.clip_grad_norm_(learner.parameters.values(), limit))
        if not math.isfinite(norm):
            message = f"gradient norm became {norm} at step {step + 1}, task '{name}'; lower the learning rate"
            raise DivergedError("", message)
        rows.before_step()
        optimizer.step()
        events.append(
            StepDone(
                group=name,
                step=step + 1,
                steps=steps,
                losses={name: [loss]},
                lr=float(recipe.optimizer.lr * factor),
                norm=norm,
                examples=learner.examples,
                seconds=round(time.perf_counter() - started, 3),
            )
        )
    learner.clear_gradient()
    seconds = time.perf_counter() - started
    return Tuned(steps=events, usage=feed.usage(), examples=learner.examples, seconds=seconds)


def prototypes(
    model: MultiTaskModel, task: Task, few: Dataset, *, batch_tokens: int, precision: Precision = "fp32"
) -> nn.Module:
    """Build a head that begins as a nearest-prototype classifier. Raises UsageError for a task without classes."""
    classes, outputs = len(task.objective.classes), task.objective.outputs
    if task.objective.labelled != "one" or model.takes(few.task) != "pooled":
        message = f"prototype needs a class for each text, task {quote(few.task)} has other labels; use reset"
        raise UsageError("--head", message)
    if classes < 2:
        raise UsageError("--head", f"prototype needs classes, task {quote(few.task)} has none; use reset")
    if task.inputs == "choices" or (outputs != classes and (classes, outputs) != (2, 1)):
        message = f"prototype scores each class by itself, task {quote(few.task)} does not; use reset"
        raise UsageError("--head", message)
    head = model.heads[few.task]
    model.replace_head(few.task, nn.Flatten())  # [B, V, D] -> [B, V * D]: the pooled vectors themselves
    try:
        with (
            torch.inference_mode(),
            closing(evaluation.forward(model, few, batch_tokens=batch_tokens, precision=precision)) as batches,
        ):
            parts = [(indices, pooled.float().cpu().numpy()) for indices, _, pooled in batches]
    finally:
        model.replace_head(few.task, head)
    indices, vectors = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    vectors = vectors[np.argsort(indices)]  # in the order of the labels
    labels = few.labels.astype(np.int64)
    # a class that no example is of has its prototype at the origin
    means = [vectors[labels == c].mean(axis=0) if (labels == c).any() else 0 * vectors[0] for c in range(classes)]
    return PrototypeHead(torch.from_numpy(np.stack(means)), binary=outputs < classes)
