"""Typed events: the one channel from a run to its reporters. events.jsonl holds them all, and reports need only it."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar

__all__ = [
    "CheckpointSaved",
    "DataLoaded",
    "Evaluated",
    "Event",
    "GradientsMeasured",
    "RunFinished",
    "RunResumed",
    "RunStarted",
    "Scalar",
    "StepDone",
    "StepSkipped",
    "StoppedEarly",
    "Warned",
    "scalars",
]


@dataclass(frozen=True)
class Event:
    """Base of all events; `type` is the name in events.jsonl."""

    type: ClassVar[str]
    recorded: ClassVar[bool] = True
    """Whether events.jsonl holds it: not events of resuming, for the file is the same however often a run was cut."""

    def json(self) -> str:
        """Return the event as one line of JSON; non-finite numbers become null, as JSON has none."""
        return json.dumps({"type": self.type, **_finite(dataclasses.asdict(self))}, allow_nan=False)


@dataclass(frozen=True)
class RunStarted(Event):
    """A run begins."""

    type = "run_started"
    name: str
    algorithm: str
    tasks: list[str]
    groups: list[list[str]]
    device: str
    parameters: int
    time: float = 0.0
    precision: str = ""


@dataclass(frozen=True)
class RunResumed(Event):
    """A run goes on from the checkpoint of `group` at `step`; for those who watch, not for events.jsonl."""

    type = "run_resumed"
    recorded = False
    name: str
    algorithm: str
    tasks: list[str]
    device: str
    parameters: int
    group: str
    step: int
    time: float = 0.0
    groups: list[list[str]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    """The step that each group goes on from; a group that is missing begins. Events of later steps come again."""
    precision: str = ""


@dataclass(frozen=True)
class DataLoaded(Event):
    """One file was read and tokenized."""

    type = "data_loaded"
    task: str
    split: str
    file: str
    examples: int
    skipped: int
    tokens: int
    truncated: int


@dataclass(frozen=True)
class Warned(Event):
    """Something a user should know; `group` and `step` where it was noticed, if that was in training."""

    type = "warning"
    text: str
    group: str = ""
    step: int = 0


@dataclass(frozen=True)
class StepDone(Event):
    """One outer step: every inner loss by task, and the encoder example-forwards spent so far."""

    type = "step"
    group: str
    step: int
    steps: int
    losses: dict[str, list[float]]
    lr: float
    norm: float
    examples: int
    seconds: float
    drifts: dict[str, list[float]] = field(default_factory=dict)
    """|theta' - theta| of every inner loop, by task."""


@dataclass(frozen=True)
class StepSkipped(Event):
    """A step whose loss or gradient was non-finite, left out by `on_nonfinite: skip`."""

    type = "step_skipped"
    group: str
    step: int
    reason: str


@dataclass(frozen=True)
class Evaluated(Event):
    """Metrics of the tasks of a group on one split."""

    type = "evaluated"
    group: str
    step: int
    split: str
    tasks: dict[str, dict[str, Any]]
    selected: float
    """What selects the best weights, higher is better: `evaluation.select`, with the sign turned where less is
    better."""
    best: bool
    sampling: dict[str, dict[str, float]] = field(default_factory=dict)
    """Per task, since the run began: draws planned and made, batches, examples and epochs read."""


@dataclass(frozen=True)
class GradientsMeasured(Event):
    """Norms of the tasks' gradients on the shared encoder, and the cosines between each two (null where one is 0)."""

    type = "gradients"
    group: str
    step: int
    norms: dict[str, float]
    cosines: dict[str, dict[str, float | None]]


@dataclass(frozen=True)
class CheckpointSaved(Event):
    """A checkpoint was committed."""

    type = "checkpoint"
    group: str
    step: int
    path: str


@dataclass(frozen=True)
class StoppedEarly(Event):
    """A learner's training ended before its last step, by `training.stop`; its evaluation comes before."""

    type = "stopped_early"
    group: str
    step: int
    steps: int
    evaluations: int
    """In a row, the last one included, none of which was better."""
    best: float
    """The value of `selected` that none of them rose above."""


@dataclass(frozen=True)
class RunFinished(Event):
    """The run is over; the same as summary.json."""

    type = "run_finished"
    summary: dict[str, Any] = field(default_factory=dict)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not (-float("inf") < value < float("inf")):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


# The numbers in events, one by one, each with its place: trackers take them, under the same names for all.


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
