"""The numbers of a run, one by one, each with its place: what trackers take, under the same names for all."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtmeta.core.api.events import Evaluated, Event, GradientsMeasured, RunFinished, StepDone, StepSkipped

__all__ = ["Scalar", "scalars"]


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
        """A path for it: `loss/sst`, `lr`, `dev/sst/accuracy`, `dev/mean`.

        `with_group`, for runs of several groups, makes `lr/sst` and `lr/para` of what would be `lr` twice.
        """
        owner = self.task or (self.group if with_group else "")
        parts = (self.name, owner) if self.split == "train" else (self.split, owner, self.name)
        return "/".join(part for part in parts if part)


def scalars(event: Event) -> list[Scalar]:
    """The numbers of an event; none for what tells of something else.

    Of a step, `loss` and `drift` are means over the task's inner losses and inner loops.
    """
    return list(_of(event))


def _of(event: Event) -> Iterator[Scalar]:
    if isinstance(event, StepDone):
        where = (event.step, event.group, "train")
        for task, losses in event.losses.items():
            yield Scalar(*where, task, "loss", _mean(losses))
        for task, drifts in event.drifts.items():
            yield Scalar(*where, task, "drift", _mean(drifts))
        found = {"lr": event.lr, "grad_norm": event.norm, "examples": event.examples, "seconds": event.seconds}
        for name, value in found.items():
            yield Scalar(*where, "", name, float(value))
    elif isinstance(event, StepSkipped):
        yield Scalar(event.step, event.group, "train", "", "skipped", 1.0)
    elif isinstance(event, GradientsMeasured):
        where = (event.step, event.group, "train")
        for task, norm in event.norms.items():
            yield Scalar(*where, task, "gradient_norm", norm)
        for one, two in itertools.combinations(event.cosines, 2):
            cosine = event.cosines[one].get(two)
            if cosine is not None:
                yield Scalar(*where, f"{one}+{two}", "gradient_cosine", cosine)
    elif isinstance(event, Evaluated):
        yield from _scores(event.tasks, event.step, event.group, event.split)
        yield Scalar(event.step, event.group, event.split, "", "selected", event.selected)
        for task, used in event.sampling.items():
            yield Scalar(event.step, event.group, "train", task, "draws", float(used["draws"]))
            yield Scalar(event.step, event.group, "train", task, "epochs", float(used["epochs"]))
    elif isinstance(event, RunFinished):
        yield from _scores(event.summary.get("tasks", {}), int(event.summary.get("steps", 0)), "", "final")


def _scores(tasks: Mapping[str, Mapping[str, Any]], step: int, group: str, split: str) -> Iterator[Scalar]:
    for task, made in tasks.items():
        for name, value in {"loss": made["loss"], made["metric"]: made["value"], **made.get("others", {})}.items():
            yield Scalar(step, group, split, task, name, _number(value))
    if len(tasks) > 1:
        yield Scalar(step, group, split, "", "mean", _mean([_number(made["value"]) for made in tasks.values()]))


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan
