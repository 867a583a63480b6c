"""What a run directory tells of a run, read without PyTorch: recipe, lock, events, summary, predictions."""

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

__all__ = ["History", "read_history"]

Event = dict[str, Any]


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
        return f"{self.recipe.name}, seed {self.recipe.seed}"

    def of(self, kind: str) -> list[Event]:
        """The events of one type, in order."""
        return [event for event in self.events if event["type"] == kind]

    def metric(self, task: str) -> tuple[list[int], list[int], list[float]]:
        """The primary metric of a task at each evaluation: steps, example-forwards of its learner, values."""
        spent = {(event["group"], event["step"]): event["examples"] for event in self.of("step")}
        steps: list[int] = []
        examples: list[int] = []
        values: list[float] = []
        for event in self.of("evaluated"):
            if task in event["tasks"]:
                steps.append(event["step"])
                # a step that was skipped tells nothing; what the learner had spent by then, the last one knows
                examples.append(spent.get((event["group"], event["step"]), examples[-1] if examples else 0))
                values.append(event["tasks"][task]["value"])
        return steps, examples, values

    def losses(self, task: str) -> tuple[list[float], list[float]]:
        """Every training loss of a task, and when: the i-th of n in a step lies i / n of the way to its end."""
        found = []
        for event in self.of("step"):
            losses = event["losses"].get(task, ())
            found += [(event["step"] - 1 + i / len(losses), loss) for i, loss in enumerate(losses, 1)]
        return [at for at, _ in found], [loss for _, loss in found]

    def drifts(self, task: str) -> tuple[list[int], list[float]]:
        """|theta' - theta| of every inner loop of a task, and its step."""
        found = [(event["step"], drift) for event in self.of("step") for drift in event["drifts"].get(task, ())]
        return [step for step, _ in found], [drift for _, drift in found]

    def sampling(self) -> dict[str, dict[str, float]]:
        """Per task, at the last evaluation: draws planned and made, batches, examples and epochs read."""
        return {task: used for event in self.of("evaluated") for task, used in event["sampling"].items()}


def read_history(path: str | Path, registry: Registry, warn: Callable[[str], None]) -> History:
    """A run directory as data. Raises UsageError if it is none, MtmetaError if its files are damaged."""
    folder = RunDir(Path(path))
    folder.check_is_run()
    recipe = load_recipe(folder.recipe, registry, environ={})
    events = _read_events(folder.path / "events.jsonl", warn)
    return History(folder, recipe, folder.lock(), events, folder.finished())


def _read_events(path: Path, warn: Callable[[str], None]) -> list[Event]:
    """The events of a run; a line that is none is left out, and said, unless it is the last of a run under way."""
    try:
        lines: Sequence[str] = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    except FileNotFoundError:
        warn(f"{path} is not there; the recipe's reporters have no jsonl, so there is nothing to draw")
        return []
    found: list[Event] = []
    for number, line in enumerate(lines, 1):
        try:
            event = json.loads(line)
            if not isinstance(event, dict) or not isinstance(event.get("type"), str):
                raise ValueError("no event")
            found.append({**DEFAULTS.get(event["type"], {}), **event})
        except (ValueError, RecursionError):
            if line.endswith("\n"):
                warn(f"{path}:{number}: is no event and was left out")
    return found


# what events of an earlier version lack
DEFAULTS: dict[str, Event] = {"step": {"drifts": {}}, "evaluated": {"sampling": {}}}
