"""Lock files: one process at a time in a run directory, or at a download. The system drops a lock with its process.

A run directory has a lease beside its lock, for disks whose locks do not reach other machines: leases/lease.py.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from mtmeta.core.errors import CheckpointError, RunInUse
from mtmeta.core.storage.atomic import NO_LINK, make_folder
from mtmeta.core.storage.disk import disk_errors
from mtmeta.core.storage.leases.lease import hold_lease, lease_owner
from mtmeta.core.storage.reading import open_regular, parse_json
from mtmeta.core.wording import safe

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # a system without file locks of this kind
    fcntl = None

LOCK_NAME = ".lock"
"""A file in the run directory that says which process uses it; left behind only by a kill."""


@contextlib.contextmanager
def file_lock(
    path: Path, busy: Callable[[int], None], unsupported: Callable[[str], None] = lambda reason: None
) -> Iterator[int]:
    """Open a file for appending, made if need be, and lock it; yields its descriptor.

    Where another process has it, `busy` is called with the descriptor, once: it raises, or returns for a wait. Where
    there are no locks, as on some network drives, `unsupported` is told why, and the file is not locked.
    """
    waited = False
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | NO_LINK, 0o666)
        try:
            try:
                _lock(handle, wait=False)
            except BlockingIOError:
                if not waited:
                    busy(handle)
                waited = True
                _lock(handle, wait=True)
            except OSError as error:
                unsupported(error.strerror or str(error))
            if _is_at(path, handle):
                yield handle
                return
        finally:
            os.close(handle)  # and once more where another process has just removed or renamed it


def _lock(handle: int, *, wait: bool) -> None:
    if fcntl is None:
        raise OSError("this system has none")
    fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


def _is_at(path: Path, handle: int) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def lock_folder(
    folder: Path, warn: Callable[[str], None], *, wait: bool = False, lost: Callable[[str], None] = lambda message: None
) -> Iterator[None]:
    """Lock a run directory, made if need be, and hold its lease.

    Raises RunInUse naming the process that uses it already; with `wait` that one is waited for, and `warn` told of it.
    `lost` is called, from another thread, where another process took the directory over; see leases/lease.py.
    """
    said = False

    def refuse(owner: str) -> None:
        nonlocal said
        if not wait:
            message = f"is in use by {owner}; wait for it to end, or choose another directory with --out"
            raise RunInUse(str(folder), message) from None
        if not said:
            warn(f"{folder} is in use by {owner}; waiting")
        said = True

    def taken(owner: str) -> None:
        lost(f"was taken over by {owner}, while this process was halted or its disk away; that one goes on")

    with contextlib.ExitStack() as stack:
        with disk_errors(folder):
            handle, locked = stack.enter_context(_lock_file(folder, warn, refuse, wait=wait))

            def now() -> float:
                os.utime(handle if os.utime in os.supports_fd else folder / LOCK_NAME)
                return os.fstat(handle).st_mtime

            stack.enter_context(hold_lease(folder, now, locked=locked, busy=refuse, lost=taken))
        yield


@contextlib.contextmanager
def _lock_file(
    folder: Path, warn: Callable[[str], None], refuse: Callable[[str], None], *, wait: bool
) -> Iterator[tuple[int, bool]]:
    """Lock the lock file of a run directory; yields its descriptor, and whether there are locks here."""
    path, locked = folder / LOCK_NAME, True

    def unsupported(reason: str) -> None:
        nonlocal locked
        locked = False
        warn(f"{folder}: no file lock ({safe(reason)}); its lease alone keeps other processes out")

    make_folder(folder)
    # never through a link, nor into a file that has another name elsewhere: its contents are replaced
    if path.is_symlink():
        raise CheckpointError(str(path), "is no file of its own; remove it")
    with file_lock(path, lambda handle: refuse(_owner(handle)), unsupported) as handle:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
            raise CheckpointError(str(path), "is no file of its own; remove it")
        try:
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n")
            yield handle, locked
        finally:
            _unlink(path)  # while it is still locked, so that it is surely ours


def _unlink(path: Path) -> None:
    with contextlib.suppress(OSError):  # the file says nothing once nobody locks it
        path.unlink(missing_ok=True)


def lock_owner(folder: Path) -> str:
    """Return which process uses a run directory, in words; empty if none does, or none can be known to."""
    locked = False
    try:
        with open_regular(folder / LOCK_NAME) as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
                    locked = True
            except BlockingIOError:
                return _owner(file.fileno())
    except FileNotFoundError:
        locked = True  # or it would be there: nobody of this machine uses the directory
    except OSError:
        pass
    return lease_owner(folder, locked=locked)


def _owner(handle: int) -> str:
    try:
        owner = parse_json(os.pread(handle, 4096, 0))
        if type(owner["pid"]) is int and isinstance(owner["host"], str):
            return f"pid {safe(str(owner['pid']))} on host {safe(owner['host'])}"
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return "another process"  # which has not come to write its name
