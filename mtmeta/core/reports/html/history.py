"""The history of a run, read from its directory without PyTorch: recipe, lock, events, summary."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import Registry
from mtmeta.core.run.directory import RunDir

Event = dict[str, Any]
# keys that events of an earlier version lack
DEFAULTS: dict[str, Event] = {"step": {"drifts": {}}, "evaluated": {"sampling": {}}}


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
        return f"{self.recipe.name}, seed {self.recipe.seed}"

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
        values = [event["tasks"][task]["value"] for event in evaluations]
        return [event["step"] for event in evaluations], examples, values

    def losses(self, task: str) -> tuple[list[float], list[float]]:
        """Return every training loss of a task, after its place: the i-th of n in a step lies i / n into it."""
        points = []
        for event in self.of("step"):
            losses = event["losses"].get(task, ())
            points += [(event["step"] - 1 + i / len(losses), loss) for i, loss in enumerate(losses, 1)]
        return [at for at, _ in points], [loss for _, loss in points]

    def drifts(self, task: str) -> tuple[list[int], list[float]]:
        """Return step and |theta' - theta| of every inner loop of a task."""
        points = [(event["step"], drift) for event in self.of("step") for drift in event["drifts"].get(task, ())]
        return [step for step, _ in points], [drift for _, drift in points]

    def sampling(self) -> dict[str, dict[str, float]]:
        """Return for each task, at the last evaluation: draws planned and made, batches, examples and epochs read."""
        return {task: used for event in self.of("evaluated") for task, used in event["sampling"].items()}


def read_history(path: str | Path, registry: Registry, warn: Callable[[str], None]) -> History:
    """Read a run directory. Raises UsageError if it is none, MtmetaError if its files are damaged."""
    folder = RunDir(Path(path))
    folder.check_is_run()
    recipe = load_recipe(folder.recipe, registry, environ={})
    events = _read_events(folder.path / "events.jsonl", warn)
    summary = folder.finished()
    return History(folder, recipe, folder.lock(), events, summary.plain() if summary is not None else None)


def _read_events(path: Path, warn: Callable[[str], None]) -> list[Event]:
    """Read events; a line that is none is left out with a warning, unless it is the last of a run under way."""
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        warn(f"{path} is not there; the recipe's reporters have no jsonl, so there is nothing to draw")
        return []
    events: list[Event] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("type"), str):
                raise ValueError("no event")
            events.append({**DEFAULTS.get(event["type"], {}), **event})
        except (ValueError, RecursionError):
            if line.endswith("\n"):
                warn(f"{path}:{number}: is no event and was left out")
    return events
