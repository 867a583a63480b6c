"""The jobs of studies as any shell sees them: where each is, and how they are ended."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from mtmeta.core.api.contracts import JobState, Launcher
from mtmeta.core.errors import MachineError, MtmetaError, UsageError, raise_all
from mtmeta.core.registry.registry import Registry
from mtmeta.core.run.directory import RunDir
from mtmeta.core.studies.launching.attempts import Attempts
from mtmeta.core.studies.launching.options import launcher_of
from mtmeta.core.studies.launching.records import FOLDER, Record, Records
from mtmeta.core.studies.launching.watch import state_word


@dataclass(frozen=True)
class JobStatus:
    """A job of a run that is not finished: its status in a word, as `mtmeta runs` shows it."""

    run: Path
    label: str
    launcher: str
    handle: str
    status: str
    """queued, running, preempted, cancelled, failed, lost, or unknown where its launcher does not answer."""
    where: str = ""
    """The machine it runs on."""
    why: str = ""
    """Why it waits, or what went wrong."""


def jobs_of(studies: Sequence[Path], registry: Registry) -> list[JobStatus]:
    """Return the jobs of runs that are not finished, of all these studies. Each launcher is asked once."""
    found = [(records, name, record) for study in studies for records, name, record in _unfinished(Records(study))]
    asked: dict[str, dict[str, JobState] | str] = {}
    for launcher in dict.fromkeys(record.launcher for *_, record in found):
        of_launcher = [one for one in found if one[2].launcher == launcher]
        asked[launcher] = _ask(of_launcher, registry)
    return [_status(*one, asked[one[2].launcher]) for one in found]


def _unfinished(records: Records) -> Iterator[tuple[Records, str, Record]]:
    for name in records.names():
        record = records.read(name)
        if record is not None and not os.path.lexists(RunDir(records.study / name).summary):
            yield records, name, record


def _ask(found: Sequence[tuple[Records, str, Record]], registry: Registry) -> dict[str, JobState] | str:
    """Return the states of jobs of one launcher by handle, or why it cannot tell."""
    handles = [record.handle for *_, record in found if record.handle]
    try:
        return dict(_launcher(*found[0], registry).poll(handles)) if handles else {}
    except MtmetaError as error:
        return str(error)


def _launcher(records: Records, name: str, record: Record, registry: Registry) -> Launcher:
    return launcher_of(registry, record.launcher, record.options, str(records.path(name)))


def _status(records: Records, name: str, record: Record, states: dict[str, JobState] | str) -> JobStatus:
    attempts = Attempts.read(records.journal(name))
    state = states.get(record.handle) if not isinstance(states, str) else None
    where, why = (state.where if state.running else "", state.why) if state is not None else ("", "")
    if isinstance(states, str):
        status, why = "unknown", states
    elif attempts.failed:
        status, why = "failed", str(attempts.errors[0]) if attempts.errors else f"exit code {attempts.code}"
    elif state is not None:
        status = state_word(state, attempts.begun)
    else:
        status = "cancelled" if record.cancelled else "lost"
    return JobStatus(records.study / name, record.label, record.launcher, record.handle, status, where, why)


def cancel_jobs(paths: Sequence[Path], registry: Registry) -> list[JobStatus]:
    """Cancel the jobs of studies or of single runs; return those that were not over, as they were before.

    That they are cancelled is written first, so that nobody who waits for them submits them again. Raises UsageError
    for a folder without jobs, MachineError where a launcher does not answer.
    """
    meant = [one for path in paths for one in _meant(path)]  # before anything is cancelled
    cancelled, problems = [], []
    for records, wanted in meant:
        for status in jobs_of([records.study], registry):
            name = status.run.name
            if (wanted is not None and name != wanted) or status.status in ("cancelled", "failed"):
                continue
            record = records.read(name)
            assert record is not None
            records.note_cancelled(name, record)
            try:
                if record.handle:
                    _launcher(records, name, record, registry).cancel(record.handle)
                cancelled.append(status)
            except MachineError as error:
                problems.append(MachineError(status.label, f"{error}; it is not started again, but may still run"))
    raise_all(problems)
    return cancelled


def _meant(path: Path) -> list[tuple[Records, str | None]]:
    """Return the records that are meant, each with the name of the one run, None for all of them.

    A search has records in the folder of each trial. Raises UsageError for a folder without jobs.
    """
    if studies := [place for place in (path, *sorted(path.glob("*/"))) if (place / FOLDER).is_dir()]:
        return [(Records(place.absolute()), None) for place in studies]
    records, name = Records(path.absolute().parent), path.absolute().name
    if records.path(name).exists():
        return [(records, name)]
    raise UsageError(
        str(path), "has no jobs; give the folder of a study, or one of its runs, that was started with --on"
    )
