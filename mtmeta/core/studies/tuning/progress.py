"""How a run gets on, read from its events.jsonl while it is written: the value that selects, at each evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from mtmeta.core.run.event_stream import read_event
from mtmeta.core.storage.reading import LIMITS, open_regular, read_lines
from mtmeta.core.studies.tuning.sampling import SHARES

TAIL = 256  # bytes before the place that was read up to, by which a file is known to be the same up to there


class Progress:
    """The evaluations of one run, each given once, in order, however often the run is cut and its events rewound.

    A run that goes on from a checkpoint cuts its events back and makes them again, with the same values and other
    times. So where the file is no longer what it was, it is read from its beginning, and what was given is skipped.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "events.jsonl"
        self._given = 0
        self._start_over()

    def _start_over(self) -> None:
        self._offset, self._tail = 0, b""
        self._groups = self._steps = self._seen = 0

    def new(self) -> list[tuple[int, float | None]]:
        """Return the evaluations that came since: share of the training in percent, and value (None: not finite).

        Of a run that trains several groups one after another there are none: no value is that of all tasks.
        """
        try:
            return list(self._read())
        except OSError:  # not there yet
            return []

    def _read(self) -> Iterator[tuple[int, float | None]]:
        with open_regular(self._path, LIMITS["events"]) as file:
            file.seek(self._offset - len(self._tail))
            size = os.fstat(file.fileno()).st_size
            if size < self._offset or file.read(len(self._tail)) != self._tail:
                self._start_over()
                file.seek(0)
            for line in read_lines(file):
                if not line.endswith(b"\n"):
                    break  # still being written
                self._offset += len(line)
                self._tail = (self._tail + line)[-TAIL:]
                if (found := self._take(line)) is not None:
                    self._seen += 1
                    if self._seen > self._given:
                        self._given = self._seen
                        yield found

    def _take(self, line: bytes) -> tuple[int, float | None] | None:
        try:
            event = read_event(line)
        except ValueError:
            return None  # of a reporter of somebody else
        if event["type"] == "run_started":
            self._groups = len(event["groups"])
        elif event["type"] == "step":
            self._steps = event["steps"]
        elif event["type"] == "evaluated" and self._groups == 1 and self._steps:
            return max(1, round(SHARES * event["step"] / self._steps)), event["selected"]
        return None
