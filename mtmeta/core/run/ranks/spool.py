"""Events of groups that other ranks train: each lies beside its checkpoints until the rank that reports takes it up.

checkpoints/GROUP/events.jsonl is there only while a run is under way, and after a kill.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from mtmeta.core.api.events import CheckpointSaved, Event
from mtmeta.core.run.event_stream import placed_event, typed_event
from mtmeta.core.storage.atomic import make_folder, own_file, remove_entry
from mtmeta.core.storage.disk import disk_errors
from mtmeta.core.storage.reading import LIMITS, open_regular, read_lines

NAME = "events.jsonl"


@contextmanager
def spooled(folder: Path, root: Path) -> Iterator[Callable[[Event], None]]:
    """Yield what takes the events of a group with its checkpoints in `folder`, below the run directory `root`."""
    path = folder / NAME
    with disk_errors(path):
        make_folder(folder, root)
        file = own_file(path, "ab", root=root)

    def write(event: Event) -> None:
        line = memoryview((event.json() + "\n").encode())
        with disk_errors(path):
            while line:
                line = line[file.write(line) :]

    with file:
        yield write


def still_reported(folders: Mapping[str, Path], steps: Mapping[str, int]) -> dict[str, int]:
    """Return up to which step the events of each group stand in the run's own file, given the steps it goes on from.

    What lies in `folders`, of checkpoints by group, comes after that, if it has not been taken up already.
    """
    first = {group: min((step for step, _ in _read(folder)), default=None) for group, folder in folders.items()}
    found = {group: min(step, (first.get(group) or step + 1) - 1) for group, step in steps.items()}
    return {group: step for group, step in found.items() if step}


def spooled_checkpoints(folders: Mapping[str, Path]) -> list[tuple[str, int]]:
    """Return group and step of the checkpoints that events in `folders` tell of."""
    read = ((group, step, event) for group, folder in folders.items() for step, event in _read(folder))
    return [(group, step) for group, step, event in read if isinstance(event, CheckpointSaved)]


def take_up(folders: Mapping[str, Path], steps: Mapping[str, int], emit: Callable[[Event], None], root: Path) -> None:
    """Report the events of groups up to these steps, in the order of groups, and remove their files."""
    for group, folder in folders.items():
        for step, event in _read(folder):
            if step <= steps.get(group, 0):
                emit(event)
        if os.path.lexists(folder / NAME):
            with disk_errors(folder / NAME):
                remove_entry(folder / NAME, root)


def _read(folder: Path) -> Sequence[tuple[int, Event]]:
    """Return the events that lie in a folder, with their steps; none after one that a kill has torn."""
    found = list[tuple[int, Event]]()
    try:
        with open_regular(folder / NAME, LIMITS["events"]) as file:
            for line in read_lines(file):
                fields = placed_event(line)
                event = typed_event(fields) if fields else None
                if fields is None or event is None:
                    break
                found.append((int(fields["step"]), event))
    except FileNotFoundError:
        pass
    return found
