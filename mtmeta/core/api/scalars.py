"""The numbers in events, one by one, each with its place: trackers take them, under the same names for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from mtmeta.core.api.events import Evaluated, Event, GradientsMeasured, RunFinished, StepDone, StepSkipped


@dataclass(frozen=True, slots=True)
class Scalar:
    """One number. `group` and `task` are empty where it belongs to none; a pair of tasks is written `a+b`."""

    step: int
    """Of the group, from 1."""
    group: str
    split: str
    """`train`; `dev` or `test` on the way; `final` for the table of the best weights."""
    task: str
    name: str
    value: float
    """May be NaN or infinite, as an undefined metric is."""

    def tag(self, *, with_group: bool = False) -> str:
        """Return a path for it: `loss/sst`, `lr`, `dev/sst/accuracy`, `dev/mean`.

        `with_group`, for runs of several groups, makes `lr/sst` and `lr/para`, which would be `lr` twice.
        """
        owner = self.task or (self.group if with_group else "")
        parts = (self.name, owner) if self.split == "train" else (self.split, owner, self.name)
        return "/".join(part for part in parts if part)


def scalars(event: Event) -> list[Scalar]:
    """Return the numbers of an event; an empty list for an event without any.

    Of a step, `loss` and `drift` are means over the task's inner losses and inner loops.
    """
    return list(_of(event))


def _of(event: Event) -> Iterator[Scalar]:
    if isinstance(event, StepDone):
        scalar = partial(Scalar, step=event.step, group=event.group, split="train")
        for task, losses in event.losses.items():
            yield scalar(task=task, name="loss", value=_mean(losses))
        for task, drifts in event.drifts.items():
            yield scalar(task=task, name="drift", value=_mean(drifts))
        figures = {"lr": event.lr, "grad_norm": event.norm, "examples": event.examples, "seconds": event.seconds}
        for name, value in figures.items():
            yield scalar(task="", name=name, value=float(value))
    elif isinstance(event, StepSkipped):
        yield Scalar(step=event.step, group=event.group, split="train", task="", name="skipped", value=1.0)
    elif isinstance(event, GradientsMeasured):
        scalar = partial(Scalar, step=event.step, group=event.group, split="train")
        for task, norm in event.norms.items():
            yield scalar(task=task, name="gradient_norm", value=norm)
        for one, two in itertools.combinations(event.cosines, 2):
            cosine = event.cosines[one].get(two)
            if cosine is not None:
                yield scalar(task=f"{one}+{two}", name="gradient_cosine", value=cosine)
    elif isinstance(event, Evaluated):
        scalar = partial(Scalar, step=event.step, group=event.group)
        yield from _scores(event.tasks, partial(scalar, split=event.split))
        yield scalar(split=event.split, task="", name="selected", value=event.selected)
        for task, used in event.sampling.items():
            yield scalar(split="train", task=task, name="draws", value=float(used["draws"]))
            yield scalar(split="train", task=task, name="epochs", value=float(used["epochs"]))
    elif isinstance(event, RunFinished):
        final = partial(Scalar, step=int(event.summary.get("steps", 0)), group="", split="final")
        yield from _scores(event.summary.get("tasks", {}), final)


def _scores(tasks: Mapping[str, Mapping[str, Any]], scalar: Callable[..., Scalar]) -> Iterator[Scalar]:
    for task, score in tasks.items():
        for name, value in {"loss": score["loss"], score["metric"]: score["value"], **score.get("others", {})}.items():
            yield scalar(task=task, name=name, value=_number(value))
    if len(tasks) > 1:
        yield scalar(task="", name="mean", value=_mean([_number(score["value"]) for score in tasks.values()]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
