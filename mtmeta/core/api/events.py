"""Typed events: the one channel from a run to its reporters. events.jsonl holds them all, and reports need only it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
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
    "StepDone",
    "StepSkipped",
    "StoppedEarly",
    "Warned",
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
