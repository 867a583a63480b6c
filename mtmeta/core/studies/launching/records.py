"""Jobs of a study as files in its folder, `.jobs/NAME.json`, so that any shell finds them, on whatever machine."""

from __future__ import annotations

import contextlib
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtmeta.core.errors import CheckpointError
from mtmeta.core.storage.atomic import make_folder, remove_entry
from mtmeta.core.storage.disk import disk_errors, write_file
from mtmeta.core.storage.lock import file_lock
from mtmeta.core.storage.reading import read_json
from mtmeta.core.wording import safe

FOLDER = ".jobs"
"""The folder of a study in which its jobs stand."""
Text = Annotated[str, Field(max_length=1000)]


class Record(BaseModel):
    """A job of one run: the launcher that has it, and by which handle."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    label: Text
    launcher: Text
    options: dict[str, Any]
    handle: Text = ""
    """Empty until it was submitted."""
    submitted: Text = ""
    cancelled: bool = False


@dataclass(frozen=True)
class Records:
    """The records of a study, by the names of its run directories."""

    study: Path

    @property
    def folder(self) -> Path:
        return self.study / FOLDER

    def path(self, name: str) -> Path:
        return self.folder / f"{name}.json"

    def journal(self, name: str) -> Path:
        """Return the file of the attempts at a job."""
        return self.folder / f"{name}.attempts"

    def logs(self, name: str) -> Path:
        """Return the folder of what a job prints."""
        return self.folder / f"{name}.logs"

    def names(self) -> list[str]:
        """Return the runs that have a job, or had one."""
        return sorted(path.stem for path in self.folder.glob("*.json") if not path.name.startswith("."))

    def read(self, name: str) -> Record | None:
        """Return the job of a run, None if it never had one. Raises CheckpointError for a damaged file."""
        path = self.path(name)
        if not path.exists() and not path.is_symlink():
            return None
        try:
            return Record.model_validate(read_json(path, "lock", within=self.study))
        except ValidationError as error:
            first = error.errors()[0]
            reason = safe(f"{'.'.join(map(str, first['loc']))}: {first['msg'].lower()}", 200)
            raise CheckpointError(str(path), f"damaged ({reason}); remove it to submit the run anew") from error

    def write(self, name: str, record: Record) -> None:
        """Write the job of a run. Raises MachineError."""
        write_file(self.path(name), record.model_dump_json(indent=2) + "\n", self.study)

    def begin(self, name: str, record: Record) -> None:
        """Write a job that is about to be submitted for the first time: attempts at an earlier one count no more."""
        with disk_errors(self.folder):
            make_folder(self.folder)
            make_folder(self.logs(name), self.study)
            remove_entry(self.journal(name), self.study)
        self.write(name, record)

    def note_handle(self, name: str, record: Record, handle: str) -> Record:
        """Write under which handle a job was submitted."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        record = record.model_copy(update={"handle": handle, "submitted": now})
        self.write(name, record)
        return record

    def note_cancelled(self, name: str, record: Record) -> None:
        """Write that a job is cancelled, so that nobody who waits for it submits it again."""
        self.write(name, record.model_copy(update={"cancelled": True}))

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other shells of this machine from submitting the same jobs; two submitted ones would run in turn."""
        with contextlib.ExitStack() as stack:
            with disk_errors(self.folder):
                make_folder(self.folder)
                stack.enter_context(file_lock(self.folder / ".lock", lambda handle: None))
            yield
