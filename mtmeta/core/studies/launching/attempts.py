"""The attempts at a job: a journal in which each start of its process stands, and how it ended, if it did.

A process that is killed writes no end. So a start without an end is a loss, on whatever launcher and however it came.
"""

from __future__ import annotations

import datetime
import json
import os
import secrets
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtmeta.core.errors import MachineError, MtmetaError, RunInUse, Stopped
from mtmeta.core.storage.atomic import own_file
from mtmeta.core.storage.lock import lock_owner
from mtmeta.core.storage.reading import open_regular, parse_json
from mtmeta.core.studies.processes.error_pipe import events_of, receive_errors

JOB = "MTMETA_JOB"
"""Variable with the attempts at the job that a process is one of, the losses it may have, and its run directory."""
STOPPED = (75, Stopped.interrupted)
LIMIT = 2**24  # bytes of a journal


@dataclass(frozen=True)
class Attempts:
    """What a journal tells: starts, those of them that nobody saw end, and how the newest one ended."""

    begun: int = 0
    lost: int = 0
    """Starts without an end; the newest may still run."""
    code: int | None = None
    """Exit code of the newest start; None while it runs, or if it was lost."""
    errors: Sequence[MtmetaError] = ()

    @classmethod
    def read(cls, path: Path) -> Attempts:
        """Read a journal; none is there before the first start. Lines that a kill has torn are left out."""
        begun: list[str] = []
        ends: dict[str, Any] = {}
        with suppress(OSError), open_regular(path, LIMIT) as file:
            for line in file:
                with suppress(ValueError, KeyError, TypeError):
                    entry = parse_json(line)
                    if "code" in entry:
                        ends[str(entry["attempt"])] = int(entry["code"]), [json.dumps(one) for one in entry["errors"]]
                    else:
                        begun.append(str(entry["attempt"]))
        code, errors = ends.get(begun[-1], (None, [])) if begun else (None, [])
        return cls(len(begun), sum(attempt not in ends for attempt in begun), code, tuple(receive_errors(errors)))

    @property
    def failed(self) -> bool:
        """Return whether the newest start ended by an error of the run itself, which another start would meet too."""
        taken = any(isinstance(error, RunInUse) for error in self.errors)
        return self.code is not None and self.code not in (0, *STOPPED) and not taken


@dataclass
class Attempt:
    """One start of a job's process, which notes its end with the errors it came to."""

    journal: Path
    most_lost: int
    run: Path
    id: str = field(default_factory=lambda: secrets.token_hex(8))
    errors: list[MtmetaError | Stopped] = field(default_factory=list)

    def check(self) -> None:
        """Raise MachineError if the job was lost too often before."""
        earlier = Attempts.read(self.journal)
        # a copy of this job may run yet, as after a requeue, and its start has no end so far
        lost = earlier.lost - 1 - bool(earlier.lost > 1 and lock_owner(self.run))
        if lost > self.most_lost:
            raise MachineError(str(self.run), lost_too_often(lost, self.most_lost))

    def note(self, **facts: Any) -> None:
        entry = {"attempt": self.id, "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), **facts}
        with suppress(OSError, MtmetaError), own_file(self.journal, "ab") as file:
            file.write(json.dumps(entry).encode() + b"\n")


@contextmanager
def attempt_at_job() -> Iterator[Attempt | None]:
    """Note the start of this process, and its exit code, if it is an attempt at a job; else yield None."""
    given = os.environ.pop(JOB, "")  # ours alone, not of what we start
    try:
        facts = parse_json(given.encode())
        attempt = Attempt(Path(facts["journal"]), int(facts["lost"]), Path(facts["run"]))
    except (ValueError, KeyError, TypeError):
        yield None
        return
    attempt.note(pid=os.getpid(), host=socket.gethostname())
    code: Any = 1
    try:
        yield attempt
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        raise
    finally:
        attempt.note(code=code, errors=[event for error in attempt.errors for event in events_of(error)])


def facts_for(journal: Path, most_lost: int, run: Path) -> str:
    """Return the value of the variable JOB."""
    return json.dumps({"journal": str(journal), "lost": most_lost, "run": str(run)})


def lost_too_often(lost: int, most: int) -> str:
    """Return the message about a job that is not started again."""
    return f"was lost {lost} times, killed or with its machine, and may be {most} times; raise launcher.lost"
