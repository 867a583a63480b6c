"""One file over HTTP: it goes on where an earlier attempt was cut, and takes its place only when its hash is right.

The bytes that have come lie beside the target in `NAME.mtmeta.incomplete`, and stay when the connection or the process
ends. A lock on that very file keeps two processes from writing it at once; the system drops it with the process.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from mtmeta.core.errors import MachineError
from mtmeta.core.storage.atomic import make_folder, move_file
from mtmeta.core.storage.disk import fingerprint
from mtmeta.core.storage.lock import file_lock
from mtmeta.core.wording import byte_text, safe

WAITS = (0.5, 1.0, 2.0, 4.0)  # seconds before trying again; from the beginning after every byte that came
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


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


class Unreachable(Exception):
    """The server did not answer, or broke off again and again. The text says how."""


@dataclass(frozen=True)
class Download:
    """A file to fetch, where it goes, and the hash it must have: its SHA-256, or the SHA-1 by which git names it."""

    label: str
    url: str
    target: Path
    digest: str
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
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

    Raises WrongHash, Unreachable, what the hub's library raises for an answer, and MachineError.
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
        with _writing(job.target.parent):
            os.fsync(file.fileno())
            move_file(job.partial, job.target)
    return True


@contextlib.contextmanager
def _locked(job: Download, watcher: Watcher) -> Iterator[BinaryIO]:
    """Open the partial file, locked. Without locks the hash still tells what two writers made of it."""
    waits = f"{job.label}: waits for another process, which is fetching it"
    with contextlib.ExitStack() as stack:
        with _writing(job.target.parent):
            make_folder(job.target.parent)
            handle = stack.enter_context(file_lock(job.partial, lambda _: watcher.note(waits)))
        yield open(handle, "r+b", buffering=0, closefd=False)  # unbuffered: a kill loses nothing


def _fill(job: Download, file: BinaryIO, watcher: Watcher) -> str:
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
    return fingerprint(job.partial)["sha256"] if job.algorithm == "sha256" else git_sha1(job.partial)


def _stream(job: Download, file: BinaryIO, watcher: Watcher) -> None:
    """Ask for the rest until all of it is there; gives up when nothing new comes for several attempts."""
    failures = 0
    while True:
        before = os.fstat(file.fileno()).st_size
        try:
            if _once(job, file, before, watcher):
                return
            why = "it closed the connection in the middle"
        except Unreachable as error:
            why = str(error)
        failures = 0 if os.fstat(file.fileno()).st_size > before else failures + 1
        if failures >= len(WAITS):
            raise Unreachable(why)
        time.sleep(WAITS[failures])


def _once(job: Download, file: BinaryIO, start: int, watcher: Watcher) -> bool:
    """Write one answer of the server from byte `start` on; return whether it was the whole rest."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]  # re-exported

    # identity: a range of a compressed body would be a range of something else
    headers = {**job.headers, "Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
    with contextlib.ExitStack() as stack:
        with _network():
            timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
            response = stack.enter_context(get_session().stream("GET", job.url, headers=headers, timeout=timeout))
            status = response.status_code
        if status == 416:  # more is there than the server has, or just as much; the hash will tell
            if _total(response) == start:
                return True
            file.truncate(0)
            return False
        if status in TRANSIENT:
            raise Unreachable(f"the server answers {status}")
        hf_raise_for_status(response)
        sent = response.headers.get("Content-Range", "")
        if start and not (status == 206 and sent.startswith(f"bytes {start}-")):
            start = file.truncate(0)  # it sends all of it again
        done, total = start, _total(response) or job.size
        _check_room(job, (total or 0) - done)
        chunks = response.iter_bytes()  # as they come: what a chunk of a given size still lacks would be lost in a cut
        while True:
            with _network():
                chunk = next(chunks, None)
            if chunk is None:
                return total is None or done >= total
            with _writing(job.partial.parent):
                _write(file, chunk)
            done += len(chunk)
            watcher.advance(done, total)


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Within, the system's refusal to write is one line."""
    try:
        yield
    except OSError as error:
        message = f"cannot be written ({safe(error.strerror or str(error))}); make room, or set HF_HOME or MTMETA_CACHE"
        raise MachineError(str(folder), message) from error


def _write(file: BinaryIO, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:  # without a buffer, an almost full disk takes a part
        rest = rest[file.write(rest) :]


@contextlib.contextmanager
def _network() -> Iterator[None]:
    """Within, whatever the HTTP client raises is the network's fault; its classes change between releases."""
    try:
        yield
    except Exception as error:
        raise Unreachable(reason(error)) from error


def reason(error: BaseException) -> str:
    """Return the text of an HTTP client's exception, on one line."""
    text = str(error).strip().splitlines()
    return safe(text[0] if text else type(error).__name__, 200)


def transient(error: BaseException) -> bool:
    """Return whether a failed request may succeed a moment later: a busy server, a lost connection."""
    if (response := getattr(error, "response", None)) is not None:
        return getattr(response, "status_code", 0) in TRANSIENT
    return type(error).__module__.partition(".")[0] in ("httpx", "httpx2", "httpcore", "httpcore2", "requests")


def _total(response: Any) -> int | None:
    """Return the bytes of the whole file, as the server tells."""
    given = response.headers.get("Content-Range", "").rpartition("/")[2]
    if not given and response.status_code == 200 and not response.headers.get("Content-Encoding"):
        given = response.headers.get("Content-Length", "")
    return int(given) if given.isdecimal() else None


def _check_room(job: Download, needed: int) -> None:
    with contextlib.suppress(OSError):  # some network drives say nothing
        free = shutil.disk_usage(job.target.parent).free
        if needed > free:
            text = f"{job.label} needs {byte_text(needed)} more, {byte_text(free)} are free; make room"
            raise MachineError(str(job.target.parent), text)


def git_sha1(path: Path) -> str:
    """Return the hash by which git, and so the hub, names a file that is not in large-file storage."""
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        return hashlib.file_digest(file, lambda: hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)).hexdigest()
