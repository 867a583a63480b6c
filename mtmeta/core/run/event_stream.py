"""Events to reporters, none of which may cost the training: one that fails is left out, unless it is essential."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import MISSING, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from mtmeta.core.api.contracts import Reporter
from mtmeta.core.api.events import Event
from mtmeta.core.errors import MtmetaError
from mtmeta.core.registry.guard import accused
from mtmeta.core.run.summary import LARGEST
from mtmeta.core.storage.atomic import own_file
from mtmeta.core.storage.disk import disk_errors, write_file
from mtmeta.core.storage.reading import LIMITS, open_regular, parse_json, read_lines
from mtmeta.core.wording import exception_line, safe


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


# ------------------------------------------------------------------------------------------------------ reading back

Check = Callable[[Any], bool]


def read_event(line: bytes) -> dict[str, Any]:
    """Return the event in a line of events.jsonl, its fields as `mtmeta.Event` and those below it declare them.

    Fields that an earlier version did not have yet have their defaults; an event of another type, by a plugin or a
    later version, is taken as it is. Raises ValueError for a line that no run has written.
    """
    event = parse_json(line)
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise ValueError("no event")
    for name, (check, default) in _fields(event["type"]).items():
        if name not in event and default is not None:
            event[name] = default()
        if name not in event or not check(event[name]):
            raise ValueError(f"{safe(event['type'])} event with another '{name}' than a run writes")
    return event


@functools.cache
def _fields(kind: str) -> dict[str, tuple[Check, Callable[[], Any] | None]]:
    """Return the fields of a type of events: what each must be, and its default, if it has one."""
    ours = (each for each in Event.__subclasses__() if each.__module__ == Event.__module__)
    known = next((each for each in ours if each.type == kind), None)
    if known is None:
        return {"group": (_check_of(str), str), "step": (_check_of(int), int)}
    hints = get_type_hints(known)
    fields: dict[str, tuple[Check, Callable[[], Any] | None]] = {}
    for each in dataclasses.fields(known):
        default: Callable[[], Any] | None = None
        if each.default_factory is not MISSING:
            default = each.default_factory
        elif each.default is not MISSING:
            default = _constantly(each.default)
        fields[each.name] = _CHECKS.get((kind, each.name)) or _check_of(hints[each.name]), default
    return fields


def _constantly(value: Any) -> Callable[[], Any]:
    return lambda: value


def _check_of(hint: Any) -> Check:
    """Return what says whether a value of JSON is of a type; a number that was not finite is null there."""
    arguments = get_args(hint)
    if get_origin(hint) is list:
        of_item = _check_of(arguments[0])
        return lambda value: isinstance(value, list) and all(map(of_item, value))
    if get_origin(hint) is dict:
        of_value = _check_of(arguments[1])
        return lambda value: isinstance(value, dict) and all(map(of_value, value.values()))
    if hint in (str, bool):
        return lambda value: type(value) is hint
    if hint is int:
        return lambda value: type(value) is int and 0 <= value <= 2**63
    if hint is Any:
        return _is_plain
    assert hint in (float, float | None), hint
    return _is_number


def _is_number(value: Any) -> bool:
    return value is None or (type(value) in (int, float) and -LARGEST <= value <= LARGEST)


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict | list):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return isinstance(value, str | bool) or _is_number(value)


def _has(*names: str, null: bool = False) -> Check:
    """Return what says whether a value maps each task to a mapping that has these numbers; `null` ones too if so."""
    of_task = _check_of(dict[str, Any])

    def has(task: Any, name: str) -> bool:
        return name in task and _is_number(task[name]) and (null or task[name] is not None)

    return lambda value: (
        isinstance(value, dict)
        and all(of_task(task) and all(has(task, name) for name in names) for task in value.values())
    )


_CHECKS: dict[tuple[str, str], Check] = {
    ("evaluated", "tasks"): _has("value", null=True),
    ("evaluated", "sampling"): _has("planned_draws", "draws", "epochs"),
}
"""Of fields that hold more than their types say."""


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
        with open_regular(path, LIMITS["events"]) as file:
            for line in read_lines(file) if any(steps.values()) else ():
                event = placed_event(line)
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


def typed_event(fields: Mapping[str, Any]) -> Event | None:
    """Return the event of these fields, as JSON has them, `type` among them; None for one that is not of mtmeta."""
    given = {name: value for name, value in fields.items() if name != "type"}
    for kind in Event.__subclasses__():
        if kind.__module__ == Event.__module__ and kind.type == fields["type"]:
            known = {each.name for each in dataclasses.fields(kind)}
            return kind(**given) if given.keys() <= known else None
    return None


def placed_event(line: bytes) -> dict[str, Any] | None:
    """Return an event that says where in the run it stands; None for a line that a kill has torn."""
    try:
        event = parse_json(line)
        placed = isinstance(event, dict) and isinstance(event["type"], str) and isinstance(event.get("group", ""), str)
        placed = placed and (event["type"] != "checkpoint" or {"group", "step"} <= event.keys())
        return event if placed and type(event.get("step", 0)) is int and line.endswith(b"\n") else None
    except (ValueError, KeyError):
        return None


def _stands(event: Mapping[str, Any], steps: Mapping[str, int]) -> bool:
    """Return whether an event lies before the steps that groups go on from; one of no group is of the run's ends."""
    group = event.get("group", "")
    return bool(event.get("step", 0) <= steps.get(group, 0)) if group else event["type"] != "run_finished"
