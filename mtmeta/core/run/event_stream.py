"""Events to reporters, none of which may cost the training: one that fails is left out, unless it is essential."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mtmeta.core.api.contracts import Reporter
from mtmeta.core.api.events import Event
from mtmeta.core.errors import MtmetaError
from mtmeta.core.registry.guard import accused
from mtmeta.core.storage.atomic import own_file
from mtmeta.core.storage.disk import disk_errors, write_file
from mtmeta.core.wording import exception_line


def open_reporters(
    stack: ExitStack,
    reporters: Sequence[Reporter],
    folder: Path,
    *,
    newest: Callable[[], str],
    warn: Callable[[str], None],
) -> Callable[[Event], None]:
    """Open every reporter until `stack` closes; returns the function that hands an event to each.

    One that cannot be opened ends the run, which has not begun. One that fails later is left out from there on.
    `newest` names the newest checkpoint, for messages about the disk.
    """
    handlers: dict[int, tuple[Reporter, Callable[[Event], None]]] = {}

    @contextmanager
    def excused(number: int, reporter: Reporter) -> Iterator[None]:
        try:
            with disk_errors(folder, f"reporter '{reporter.name}' cannot write", newest):
                yield
        except Exception as error:
            # a closed pipe is one for the console: its reader has seen enough
            if reporter.essential or (isinstance(error, BrokenPipeError) and not accused(reporter)):
                raise
            handlers.pop(number, None)
            reason = f"reporter '{reporter.name}' raised {exception_line(error)}"
            text = str(error) if isinstance(error, MtmetaError) else reason
            with suppress(OSError):  # stderr may be gone itself
                warn(f"{text}; the run goes on without this reporter")

    def close(number: int, reporter: Reporter, context: AbstractContextManager[Any], *raised: Any) -> None:
        with excused(number, reporter):
            context.__exit__(*raised)  # its result may not hide the exception

    for number, reporter in enumerate(reporters):
        with disk_errors(folder, newest=newest):
            context = reporter.open(folder)
            handle = context.__enter__()
        handlers[number] = (reporter, handle)
        stack.push(partial(close, number, reporter, context))

    def emit(event: Event) -> None:
        for number, (reporter, handle) in list(handlers.items()):
            with excused(number, reporter):
                handle(event)

    return emit


@dataclass
class Recorded:
    """The events that events.jsonl still holds: the beginning of the run, and checkpoints."""

    started: bool = False
    checkpoints: set[tuple[str, int]] = field(default_factory=set)
    """(group, step)"""


def rewind_events(path: Path, steps: Mapping[str, int]) -> Recorded:
    """Keep the events up to the step that each group goes on from; without any checkpoint, none.

    As a rule that is a cut. Only where an earlier group has to go back behind its end, because its last checkpoints
    are damaged, later groups' events stay in front of those it will make again.
    """
    recorded = Recorded()
    if not path.exists():
        return recorded
    end, scattered, cut = 0, [], False
    with disk_errors(path):
        with open(path, "rb") as file:
            for line in file if any(steps.values()) else ():
                event = _parse(line)
                if event is None or not _stands(event, steps):
                    cut = True
                    continue
                recorded.started |= event["type"] == "run_started"
                if event["type"] == "checkpoint":
                    recorded.checkpoints.add((event["group"], event["step"]))
                if cut:
                    scattered.append(line)
                else:
                    end += len(line)
        with own_file(path, "r+b") as file:
            if scattered:
                write_file(path, file.read(end) + b"".join(scattered))
            else:
                file.truncate(end)
    return recorded


def _parse(line: bytes) -> dict[str, Any] | None:
    """Parse an event; None for a line that a kill has torn."""
    try:
        event = json.loads(line)
        known = isinstance(event, dict) and isinstance(event["type"], str) and isinstance(event.get("group", ""), str)
        known = known and (event["type"] != "checkpoint" or {"group", "step"} <= event.keys())
        return event if known and isinstance(event.get("step", 0), int) and line.endswith(b"\n") else None
    except (ValueError, KeyError, RecursionError):
        return None


def _stands(event: Mapping[str, Any], steps: Mapping[str, int]) -> bool:
    """Return whether an event lies before the steps that groups go on from; one of no group is of the run's ends."""
    group = event.get("group", "")
    return bool(event.get("step", 0) <= steps.get(group, 0)) if group else event["type"] != "run_finished"
