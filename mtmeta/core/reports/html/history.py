"""The history of a run, read from its directory without PyTorch: recipe, lock, events, summary."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtmeta.core.errors import CheckpointError
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import Registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.run.event_stream import read_event
from mtmeta.core.storage.reading import MAX_LINE, open_regular, read_lines, why
from mtmeta.core.wording import quote

Event = dict[str, Any]
MAX_EVENTS = 2**30  # bytes of a file that is read into memory
MAX_WARNINGS = 3  # lines of one file that are warned of one by one
BY_TASK = ("losses", "drifts", "tasks", "sampling", "norms", "cosines")  # fields of events


@dataclass(frozen=True)
class History:
    """A run as its files tell it; `summary` is None while it is not finished."""

    folder: RunDir
    recipe: Recipe
    lock: dict[str, Any]
    events: list[Event]
    summary: dict[str, Any] | None

    @property
    def label(self) -> str:
        """Name and seed, in a line."""
        return label_of(self.recipe)

    def of(self, kind: str) -> list[Event]:
        """Return the events of one type, in order."""
        return [event for event in self.events if event["type"] == kind]

    def metric(self, task: str) -> tuple[list[int], list[int], list[float]]:
        """Return the primary metric of a task at each evaluation: steps, example-forwards of its learner, values."""
        spent = {(event["group"], event["step"]): event["examples"] for event in self.of("step")}
        evaluations = [event for event in self.of("evaluated") if task in event["tasks"]]
        examples: list[int] = []
        for event in evaluations:
            # a skipped step has no event; the one before it knows what the learner had spent
            examples.append(spent.get((event["group"], event["step"]), examples[-1] if examples else 0))
        values = [_number(event["tasks"][task]["value"]) for event in evaluations]
        return [event["step"] for event in evaluations], examples, values

    def seen(self, task: str) -> tuple[list[float], list[float]]:
        """Return the examples of a task that were read till each evaluation, and its primary metric there.

        Learners of one task and of many share this axis. A step axis stands in for it in events of earlier versions.
        """
        steps, _, values = self.metric(task)
        evaluations = [event for event in self.of("evaluated") if task in event["tasks"]]
        owner = self.recipe.owner(task)
        read = [event["sampling"].get(owner, {}).get("examples") for event in evaluations]
        return [float(at) if at is not None else float(step) for at, step in zip(read, steps, strict=True)], values

    def peaks(self) -> list[tuple[float, float]]:
        """Return for each learner after what share of its steps it scored best, and how far it had fallen at the end.

        By what selects its weights, on the split that selects; of a learner that was scored once there is nothing.
        """
        steps = {event["group"]: event["steps"] for event in self.of("step")}
        scores: dict[str, list[tuple[int, float]]] = {}
        for event in self.of("evaluated"):
            if event["selected"] is not None and event["group"] in steps:
                scores.setdefault(event["group"], []).append((event["step"], event["selected"]))
        found = []
        for group, points in scores.items():
            if len(points) > 1:
                at, best = max(points, key=lambda point: (point[1], -point[0]))
                found.append((at / steps[group], best - points[-1][1]))
        return found

    def losses(self, task: str) -> tuple[list[float], list[float]]:
        """Return every training loss of a task, after its place: the i-th of n in a step lies i / n into it."""
        points = []
        for event in self.of("step"):
            losses = event["losses"].get(task, ())
            at = enumerate(losses, 1)
            points += [(event["step"] - 1 + i / len(losses), loss) for i, loss in at if loss is not None]
        return [at for at, _ in points], [loss for _, loss in points]

    def drifts(self, task: str) -> tuple[list[int], list[float]]:
        """Return step and |theta' - theta| of every inner loop of a task."""
        points = [(event["step"], drift) for event in self.of("step") for drift in event["drifts"].get(task, ())]
        points = [(step, drift) for step, drift in points if drift is not None]
        return [step for step, _ in points], [drift for _, drift in points]

    def sampling(self) -> dict[str, dict[str, float]]:
        """Return for each task, at the last evaluation: draws planned and made, batches, examples and epochs read."""
        return {task: used for event in self.of("evaluated") for task, used in event["sampling"].items()}


def label_of(recipe: Recipe) -> str:
    """Return what a run of a recipe is called, in a line."""
    return f"{recipe.name}, seed {recipe.seed}"


def read_history(path: str | Path, registry: Registry, warn: Callable[[str], None]) -> History:
    """Read a run directory. Raises UsageError if it is none, MtmetaError if its files are damaged."""
    folder = RunDir(Path(path))
    folder.check_is_run()
    recipe = load_recipe(folder.recipe, registry, environ={})
    events = _read_events(folder.path / "events.jsonl", recipe, warn)
    summary = folder.finished()
    return History(folder, recipe, folder.lock(), events, summary.plain() if summary is not None else None)


def _read_events(path: Path, recipe: Recipe, warn: Callable[[str], None]) -> list[Event]:
    """Read events; a line that is none is left out with a warning, unless it is the last of a run under way."""
    try:
        events, bad = [], 0
        with open_regular(path, MAX_EVENTS) as file:
            for number, line in enumerate(read_lines(file), 1):
                try:
                    events.append(_checked(read_event(line), recipe))
                except ValueError as error:
                    whole = line.endswith(b"\n") or len(line) == MAX_LINE
                    bad += whole
                    if whole and bad <= MAX_WARNINGS:
                        warn(f"{path}:{number}: is no event and was left out ({error})")
    except FileNotFoundError:
        warn(f"{path} is not there; the recipe's reporters have no jsonl, so there is nothing to draw")
        return []
    except OSError as error:
        raise CheckpointError(str(path), f"{why(error)}; remove it to do without the curves") from error
    if bad > MAX_WARNINGS:
        warn(f"{path}: {bad - MAX_WARNINGS} more lines are no events and were left out")
    return events


def _checked(event: Event, recipe: Recipe) -> Event:
    """Return an event about tasks of the recipe alone. Raises ValueError for another one."""
    for name in BY_TASK:
        value = event.get(name)
        if isinstance(value, dict) and (others := value.keys() - recipe.tasks.keys() - recipe.scored.keys()):
            raise ValueError(f"of the task {quote(min(others))}, which the recipe does not have")
    return event


def _number(value: float | None) -> float:
    """Return a number as it was before JSON, which has no others than finite ones."""
    return math.nan if value is None else value
