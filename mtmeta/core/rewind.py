"""events.jsonl of a run that goes on, cut back to the checkpoints it goes on from: nothing stands there twice."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtmeta.core.disk import disk_errors, write_file

__all__ = ["Recorded", "rewind_events"]


@dataclass
class Recorded:
    """What of the beginning of a run, and which checkpoints, events.jsonl still tells of."""

    started: bool = False
    checkpoints: set[tuple[str, int]] = field(default_factory=set)
    """(group, step)"""


def rewind_events(path: Path, steps: Mapping[str, int]) -> Recorded:
    """Keep the events up to the step that each group goes on from; without any checkpoint, none.

    As a rule that is a cut. Only where an earlier group has to go back behind its end, because its last checkpoints
    are damaged, later groups' events stay in front of those it will make again.
    """
    found = Recorded()
    if not path.exists():
        return found
    end, scattered = 0, []
    with disk_errors(path):
        with open(path, "rb") as file:
            cut = False
            for line in file if any(steps.values()) else ():
                event = _parse(line)
                if event is None or not _stands(event, steps):
                    cut = True
                    continue
                found.started |= event["type"] == "run_started"
                if event["type"] == "checkpoint":
                    found.checkpoints.add((event["group"], event["step"]))
                if cut:
                    scattered.append(line)
                else:
                    end += len(line)
        if scattered:
            with open(path, "rb") as file:
                write_file(path, file.read(end) + b"".join(scattered))
        else:
            with open(path, "r+b") as file:
                file.truncate(end)
    return found


def _parse(line: bytes) -> dict[str, Any] | None:
    """An event, or None for a line that a kill has torn."""
    try:
        event = json.loads(line)
        known = isinstance(event, dict) and isinstance(event["type"], str) and isinstance(event.get("group", ""), str)
        known = known and (event["type"] != "checkpoint" or {"group", "step"} <= event.keys())
        return event if known and isinstance(event.get("step", 0), int) and line.endswith(b"\n") else None
    except (ValueError, KeyError, RecursionError):
        return None


def _stands(event: Mapping[str, Any], steps: Mapping[str, int]) -> bool:
    """Whether an event lies before what the run goes on from; one of no group belongs to its beginning or its end."""
    group = event.get("group", "")
    return bool(event.get("step", 0) <= steps.get(group, 0)) if group else event["type"] != "run_finished"
