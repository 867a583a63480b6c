"""One file over HTTP: it goes on where an earlier attempt was cut, and takes its place only when its hash is right.

The bytes that have come lie beside the target in `NAME.mtmeta.incomplete`, and stay when the connection or the process
ends. A lock on that very file keeps two processes from writing it at once; the system drops it with the process.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path

from mtmeta.core import web
from mtmeta.core.errors import MachineError
from mtmeta.core.storage.atomic import make_folder, move_file
from mtmeta.core.storage.lock import file_lock
from mtmeta.core.web import Unreachable
from mtmeta.core.wording import byte_text, safe

WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before trying again; from the beginning after an attempt that brought something
UNANNOUNCED = 10 * 10**9  # bytes of a file whose size nobody gave
FULL = {getattr(errno, name) for name in ("ENOSPC", "EDQUOT", "EFBIG") if hasattr(errno, name)}


class Watcher:
    """Hears how a download goes; this one says nothing."""

    def begin(self, label: str, done: int, total: int | None) -> None:
        """Hear that a file is under way, `done` bytes of which were there already."""

    def advance(self, done: int, total: int | None) -> None:
        """Hear that `done` bytes are there."""

    def end(self, label: str, complete: bool) -> None:
        """Hear that it is over."""

    def note(self, text: str) -> None:
        """Hear a line that a person may want to know."""


class WrongHash(Exception):
    """The file that came is another one; nothing of it was kept. The text says which hash it has."""


@dataclass(frozen=True)
class Download:
    """A file to fetch, where it goes, and the hash it must have: its SHA-256, or the SHA-1 by which git names it."""

    label: str
    url: str
    target: Path
    digest: str
    size: int | None = None
    limit: int | None = None
    """The most bytes that it may have, whatever the server says."""
    headers: Mapping[str, str] = field(default_factory=dict)
    """A header `Authorization` goes to the server of `url` alone, not where that redirects to."""
    replace: bool = False
    """Whether the target is there and damaged."""

    @property
    def algorithm(self) -> str:
        return "sha256" if len(self.digest) == 64 else "sha1"

    @property
    def partial(self) -> Path:
        return self.target.with_name(f"{self.target.name}.mtmeta.incomplete")


def download(job: Download, watcher: Watcher) -> bool:
    """Fetch a file; false where another process has just done so.

    Raises WrongHash, Unreachable, Refused, Misanswer and MachineError.
    """
    with _locked(job, watcher) as file:
        if job.target.exists() and not job.replace:  # another process was faster
            job.partial.unlink(missing_ok=True)
            return False
        resumed = os.fstat(file.fileno()).st_size > 0
        digest = _fill(job, file, watcher)
        if digest != job.digest and resumed:  # the server may have another file by now, or the part was damaged
            watcher.note(f"{job.label}: the part that was there does not fit; fetching it from the beginning")
            file.truncate(0)
            digest = _fill(job, file, watcher)
        if digest != job.digest:
            job.partial.unlink(missing_ok=True)
            raise WrongHash(f"{job.algorithm} is {digest}, expected {job.digest}")
        with _writing(job):
            os.fsync(file.fileno())
            move_file(job.partial, job.target)
    return True


@contextlib.contextmanager
def _locked(job: Download, watcher: Watcher) -> Iterator[FileIO]:
    """Open the partial file, locked. Without locks the hash still tells what two writers made of it."""
    waits = f"{job.label}: waits for another process, which is fetching it"
    with contextlib.ExitStack() as stack:
        with _writing(job):
            make_folder(job.target.parent)
            _drop_unfit(job.partial)
            handle = stack.enter_context(file_lock(job.partial, lambda _: watcher.note(waits)))
            if not _is_own(os.fstat(handle)):
                raise MachineError(str(job.partial), "is no file of its own; remove it")
        yield open(handle, "r+b", buffering=0, closefd=False)  # unbuffered: a kill loses nothing


def _drop_unfit(path: Path) -> None:
    """Remove what lies in the place of a partial file and is none: a link, a pipe, a second name of another file."""
    with contextlib.suppress(FileNotFoundError):
        if not _is_own(path.lstat()):
            path.unlink()


def _is_own(status: os.stat_result) -> bool:
    mine = not hasattr(os, "getuid") or status.st_uid == os.getuid()  # who else made it may still be writing to it
    return stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and mine


def _fill(job: Download, file: FileIO, watcher: Watcher) -> str:
    """Bring the file to its end; returns its hash."""
    done, complete = os.fstat(file.fileno()).st_size, False
    if job.size is not None and done > job.size:
        done = file.truncate(0)
    watcher.begin(job.label, done, job.size)
    try:
        if job.size is None or done < job.size or not done:
            _stream(job, file, watcher)
        complete = True
    finally:
        watcher.end(job.label, complete)
    return file_hash(file, job.algorithm)


def _stream(job: Download, file: FileIO, watcher: Watcher) -> None:
    """Ask for the rest until all of it is there; gives up when little new comes for several attempts."""
    failures, furthest = 0, os.fstat(file.fileno()).st_size
    while True:
        try:
            if _once(job, file, os.fstat(file.fileno()).st_size, watcher):
                return
            why = "it closed the connection in the middle"
        except Unreachable as error:
            why = str(error)
        size = os.fstat(file.fileno()).st_size
        # what was lost and came again is no progress, nor are a few bytes
        failures = 0 if size >= furthest + web.LEAST_BYTES else failures + 1
        furthest = max(furthest, size)
        if failures >= len(WAITS):
            raise Unreachable(why)
        time.sleep(WAITS[failures])


def _once(job: Download, file: FileIO, start: int, watcher: Watcher) -> bool:
    """Write one answer of the server from byte `start` on; return whether it was the whole rest."""
    from huggingface_hub import constants

    headers = {**job.headers} | ({"Range": f"bytes={start}-"} if start else {})
    with web.ask("GET", job.url, headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as answer:
        total = answer.size()
        if answer.status == 416:  # more is there than the server has, or just as much; the hash will tell
            if start and total == start:
                return True
            file.truncate(0)
            return False
        if start and answer.status == 200:
            start = file.truncate(0)  # it sends all of it again
        if not answer.begins_at(start, job.size):
            file.truncate(0)
            raise Unreachable("it sends another part of the file than was asked for")
        most = next(size for size in (job.size, total, UNANNOUNCED) if size is not None)
        most = most if job.limit is None else min(most, job.limit)
        done, total = start, total or job.size
        _check_room(job, (total or 0) - done)
        for piece in answer.body:
            done += len(piece)
            if done > most or (total or 0) > most:
                job.partial.unlink(missing_ok=True)
                raise WrongHash(f"size is more than the {byte_text(most)} that it should have")
            with _writing(job):
                _write(file, piece)
            watcher.advance(done, total)
    return total is None or done >= total


@contextlib.contextmanager
def _writing(job: Download) -> Iterator[None]:
    """Within, the system's refusal to write is one line; where the disk is full, the part makes room again."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            with contextlib.suppress(OSError):
                job.partial.unlink(missing_ok=True)
        message = f"cannot be written ({safe(error.strerror or str(error))}); make room, or set HF_HOME or MTMETA_CACHE"
        raise MachineError(str(job.target.parent), message) from error


def _write(file: FileIO, piece: bytes) -> None:
    rest = memoryview(piece)
    while rest:  # without a buffer, an almost full disk takes a part
        rest = rest[file.write(rest) :]


def _check_room(job: Download, needed: int) -> None:
    with contextlib.suppress(OSError):  # some network drives say nothing
        free = shutil.disk_usage(job.target.parent).free
        if needed > free:
            text = f"{job.label} needs {byte_text(needed)} more, {byte_text(free)} are free; make room"
            raise MachineError(str(job.target.parent), text)


def file_hash(file: FileIO, algorithm: str) -> str:
    """Return the SHA-256 of an open file, or the SHA-1 by which git, and so the hub, names one outside large files."""
    file.seek(0)
    begin = b"" if algorithm == "sha256" else b"blob %d\0" % os.fstat(file.fileno()).st_size
    return hashlib.file_digest(file, lambda: hashlib.new(algorithm, begin, usedforsecurity=False)).hexdigest()
