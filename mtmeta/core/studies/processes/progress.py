"""How far a run is, read from the end of its events as they are written."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtmeta.core.storage.reading import UnfitFile, open_regular

BLOCK = 2**20
"""Bytes that are read at a time; of more the next look reads the rest."""


@dataclass
class RunProgress:
    """How far the run in a directory is; `look` brings it up to date.

    What is written is read once, from where the last look ended. A run without events.jsonl stays at 0.
    """

    folder: Path
    share: float = 0.0
    """Of all steps of all learners."""
    step: int = 0
    steps: int = 0
    group: str = ""
    _groups: list[str] = field(default_factory=list)
    _at: int = 0
    _rest: bytes = b""

    def look(self) -> None:
        """Read what was written since the last look."""
        try:
            with open_regular(self.folder / "events.jsonl") as file:
                size = file.seek(0, 2)
                if size < self._at:  # the run started over, or took events back
                    self._at, self._rest = 0, b""
                if self._at == BLOCK and size > 3 * BLOCK:  # of a long run that goes on: its beginning, and its end
                    self._at, self._rest = size - BLOCK, b""
                file.seek(self._at)
                text = file.read(BLOCK)
        except (OSError, UnfitFile):
            return  # none yet, or none that a look could be worth an error for
        self._at += len(text)
        *lines, self._rest = (self._rest + text).split(b"\n")
        for line in lines:
            if b'"step"' in line or b'"run_started"' in line:
                self._take(line)

    def _take(self, line: bytes) -> None:
        try:
            event: dict[str, Any] = json.loads(line)
            if event["type"] == "run_started":
                self._groups = ["+".join(group) for group in event["groups"]]
            elif event["type"] == "step":
                self.group, self.step, self.steps = str(event["group"]), int(event["step"]), int(event["steps"])
                before = self._groups.index(self.group) if self.group in self._groups else 0
                self.share = (before + self.step / max(1, self.steps)) / max(1, len(self._groups))
        except (ValueError, KeyError, TypeError):
            pass  # a line that a kill has torn
