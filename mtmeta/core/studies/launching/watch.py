"""Jobs of a launcher, submitted and watched until their runs are over.

The launcher says only which jobs are not over. What came of a run is read in the study's folder: its summary, and the
journal of the attempts at it.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.api import contracts
from mtmeta.core.api.contracts import JobState, Launcher
from mtmeta.core.errors import MachineError, MtmetaError, Problems, raise_all
from mtmeta.core.run.directory import RunDir
from mtmeta.core.signals import StopRequest
from mtmeta.core.studies.launching.attempts import JOB, Attempts, facts_for, lost_too_often
from mtmeta.core.studies.launching.records import Record, Records
from mtmeta.core.studies.processes.pool import Job, without_options

Say = Callable[[str], None]
POLL = 0.5  # seconds between two looks at the summaries
ABSENT = 2  # looks of the launcher in which a job is missing before it is taken to be over
THREADS = "OMP_NUM_THREADS"
LATE = 6  # such looks for a summary that a network disk does not show yet


class Submitter:
    """Has jobs of a study started by a launcher, each once, whoever asks for them and how often."""

    def __init__(self, launcher: Launcher, options: Mapping[str, Any], study: Path, say: Say) -> None:
        self.launcher, self.options, self.say = launcher, dict(options), say
        self.records = Records(study.absolute())

    def submit(self, jobs: Sequence[Job]) -> dict[Path, str]:
        """Submit those that are not under way; return the handle of each by its run directory."""
        with self.records.locked():
            records = {job.folder: self.records.read(job.folder.name) for job in jobs}
            known = [one.handle for one in records.values() if one is not None and self._is_ours(one)]
            under_way = self.launcher.poll(known) if known else {}
            handles = {}
            for job in jobs:
                record = records[job.folder]
                failed = Attempts.read(self.records.journal(job.folder.name)).failed  # its last moments in the queue
                if record is not None and self._is_ours(record) and record.handle in under_way and not failed:
                    handles[job.folder] = record.handle
                    self.say(f"{job.label}: {self.name(record.handle)} has it already")
                else:
                    handles[job.folder] = self._submit_first(job)
        return handles

    def cancel(self, jobs: Sequence[Job]) -> None:
        """End jobs that are under way, and wait until the launcher has none of them any more.

        That they are cancelled is written first, so that nobody who waits for them submits them again. While the
        launcher gives no answer it is asked again.
        """
        with self.records.locked():
            records = {job.folder.name: self.records.read(job.folder.name) for job in jobs}
            ours = {name: one for name, one in records.items() if one is not None and self._is_ours(one)}
            for name, record in ours.items():
                self.records.note_cancelled(name, record)
        waiting, told = {record.handle for record in ours.values()}, set[str]()
        mute = ""
        while waiting:
            try:
                for handle in waiting - told:
                    self.launcher.cancel(handle)
                    told.add(handle)
                waiting &= set(self.launcher.poll(sorted(waiting)))
            except MachineError as error:
                if str(error) != mute:
                    self.say(f"{error}; asked again until it answers")
                mute = str(error)
            if waiting:
                time.sleep(self.launcher.every)

    def _is_ours(self, record: Record) -> bool:
        return bool(record.handle) and record.launcher == self.launcher.name and not record.cancelled

    def name(self, handle: str) -> str:
        """Return a job as messages name it."""
        return f"{self.launcher.name} job {handle}"

    def _submit_first(self, job: Job) -> str:
        self.records.begin(job.folder.name, Record(label=job.label, launcher=self.launcher.name, options=self.options))
        return self.submit_again(job)

    def submit_again(self, job: Job) -> str:
        """Submit a job whose losses so far count; return its handle."""
        name = job.folder.name
        record = self.records.read(name) or Record(label=job.label, launcher=self.launcher.name, options=self.options)
        handle = self.launcher.submit(self._command(job))
        self.records.note_handle(name, record, handle)
        self.say(f"{job.label}: {self.name(handle)} submitted")
        return handle

    def _command(self, job: Job) -> contracts.Job:
        folder, name = job.folder.absolute(), job.folder.name
        facts = facts_for(self.records.journal(name), self.launcher.lost, folder)
        # a cluster may give jobs an environment of its own; what decides where files are, and bits, goes along anyhow
        given = {key: value for key, value in os.environ.items() if key.startswith("MTMETA_") or key == THREADS}
        threads = {THREADS: str(job.threads)} if job.threads is not None else {}
        return contracts.Job(
            name=re.sub(r"[^A-Za-z0-9._-]", "-", name),
            command=(sys.executable, "-P", "-m", "mtmeta", "run", *job.arguments, "--out", str(folder), "--wait"),
            environment={**given, **threads, JOB: facts},
            cwd=Path(os.getcwd()),
            logs=self.records.logs(name),
        )


class _Watched:
    """A job, and what was seen of it last."""

    def __init__(self, job: Job, handle: str) -> None:
        self.job, self.handle = job, handle
        self.said = ""
        self.absent = 0
        """Looks since which the launcher knows nothing of it."""
        self.begun = 0
        """Starts that were in the journal when it was submitted."""
        self.silent = 0
        """Submissions of which the journal has no start."""


def watch(
    submitter: Submitter,
    jobs: Sequence[Job],
    *,
    ended: Callable[[Job], None],
    failed: Callable[[Job, MtmetaError], None] | None,
    stop: StopRequest,
) -> None:
    """Submit jobs and wait until all their runs are over; what is lost is submitted again."""
    problems: list[MtmetaError] = []
    note = failed or (lambda job, error: problems.append(error))
    stop.where = f"with 0 of {len(jobs)} runs done; the jobs go on"
    handles = submitter.submit(jobs)
    waiting = [_Watched(job, handles[job.folder]) for job in jobs]
    watcher = _Watcher(submitter)
    with stop.deferred():
        while waiting and not stop.signal:
            watcher.ask(waiting)
            for one in list(waiting):
                try:
                    over = watcher.is_over(one)
                except MtmetaError as error:
                    waiting.remove(one)
                    note(one.job, error)
                    continue
                if over:
                    waiting.remove(one)
                    submitter.say(f"{one.job.label}: done")
                    stop.where = f"with {len(jobs) - len(waiting)} of {len(jobs)} runs done; the jobs go on"
                    ended(one.job)
            if waiting:
                time.sleep(POLL)
    stop.check()
    raise_all(problems)


class _Watcher:
    """Looks at jobs through their launcher, from time to time, and at their runs."""

    def __init__(self, submitter: Submitter) -> None:
        self._submitter = submitter
        self._records, self._launcher, self._say = submitter.records, submitter.launcher, submitter.say
        self._asked = -float("inf")
        self._fresh = False
        """Whether the launcher has just answered."""
        self._mute = ""
        """Why it cannot answer, once that was said."""

    def ask(self, waiting: Sequence[_Watched]) -> None:
        """Ask the launcher for its jobs, if it is time."""
        self._fresh = False
        if time.monotonic() - self._asked < self._launcher.every:
            return
        self._asked = time.monotonic()
        try:
            states = self._launcher.poll([one.handle for one in waiting])
        except MachineError as error:
            if str(error) != self._mute:
                self._say(f"{error}; asked again until it answers")
            self._mute = str(error)
            return
        self._fresh, self._mute = True, ""
        for one in waiting:
            state = states.get(one.handle)
            one.absent = 0 if state is not None else one.absent + 1
            if state is not None:
                self._tell(one, state)

    def _tell(self, one: _Watched, state: JobState) -> None:
        """Say what became of a job, where that is news."""
        begun = Attempts.read(self._records.journal(one.job.folder.name)).begun
        text = f"{state_word(state, begun)}{f' on {state.where}' if state.running and state.where else ''}"
        if text != one.said and (text != "queued" or one.said):
            self._say(f"{one.job.label}: {text}")
        one.said = text

    def is_over(self, one: _Watched) -> bool:
        """Return whether a run is finished. Raises its error, or MachineError where it is given up."""
        name = one.job.folder.name
        if os.path.lexists(RunDir(one.job.folder).summary):
            return True
        if not self._fresh:
            return False
        record = self._records.read(name)
        attempts = Attempts.read(self._records.journal(name))
        if record is not None and record.handle and record.handle != one.handle:  # another shell submitted it anew
            one.handle, one.absent = record.handle, 0
        if attempts.failed:
            raise_as(one.job, attempts.errors, attempts.code)
        if record is None or record.cancelled:
            raise MachineError(one.job.label, "was cancelled; run the same command again to go on with it")
        if one.absent < (LATE if attempts.code == 0 else ABSENT):
            return False
        self._go_on(one, attempts)
        return False

    def _go_on(self, one: _Watched, attempts: Attempts) -> None:
        """Submit a job again that is over without its run being so. Raises MachineError where that was too often."""
        one.silent += attempts.begun == one.begun
        logs, most = self._records.logs(one.job.folder.name), self._launcher.lost
        if one.silent > most:
            message = f"{self._submitter.name(one.handle)} ended without a trace of mtmeta; see {logs}, and whether"
            raise MachineError(one.job.label, f"{message} {self._records.study} is a folder that its machine has too")
        if attempts.lost > most:
            raise MachineError(one.job.label, lost_too_often(attempts.lost, most))
        if attempts.code == 0:
            raise MachineError(one.job.label, f"ended well, but {one.job.folder} holds no summary; see {logs}")
        how = "was stopped" if attempts.code is not None else "was lost"
        self._say(f"{one.job.label}: {self._submitter.name(one.handle)} {how}")
        with self._records.locked():
            record = self._records.read(one.job.folder.name)
            if record is not None and record.cancelled:
                return  # this moment, of which the next look tells
            elsewhere = record is not None and record.handle != one.handle  # another shell was faster
            one.handle = record.handle if record and elsewhere else self._submitter.submit_again(one.job)
        one.absent, one.begun, one.said = 0, attempts.begun, ""


def state_word(state: JobState, begun: int) -> str:
    """Return the state of a job in a word; one that has begun and waits was preempted."""
    return "running" if state.running else "preempted" if begun else "queued"


def raise_as(job: Job, errors: Sequence[MtmetaError], code: int | None) -> None:
    """Raise the errors of a job's process in the name of its run."""
    if not errors:
        raise MtmetaError(job.label, f"ended with exit code {code}")
    texts = [without_options(str(error), job.folder) for error in errors]
    named = [type(error)(job.label, text, help=error.help) for error, text in zip(errors, texts, strict=True)]
    raise named[0] if len(named) == 1 else Problems(named)
