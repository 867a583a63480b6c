"""One process at a time: a file lock on the run directory, which the system drops with the process that held it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

from mtmeta.core.errors import CheckpointError
from mtmeta.core.storage.atomic import make_folder
from mtmeta.core.storage.disk import disk_errors
from mtmeta.core.wording import safe

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # a system without file locks of this kind
    fcntl = None

__all__ = ["IN_USE", "LOCK_NAME", "hold", "holder"]

LOCK_NAME = ".lock"
"""A file in the run directory that says which process holds it; left behind only by a kill."""
IN_USE = "is in use by"
"""How the error goes on that names the holder, for whoever started the process that prints it."""


@contextlib.contextmanager
def hold(folder: Path, warn: Callable[[str], None]) -> Iterator[None]:
    """Hold a run directory, made if need be. Raises CheckpointError naming the process that holds it already."""
    path = folder / LOCK_NAME
    with disk_errors(folder):
        make_folder(folder)
        handle = _take(path, folder, warn)
    try:
        with disk_errors(folder):
            os.ftruncate(handle, 0)
            os.write(handle, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode() + b"\n")
        yield
    finally:
        try:
            path.unlink(missing_ok=True)  # while it is still held, so that it is surely ours
        except OSError:
            pass  # the file says nothing once nobody holds it
        finally:
            os.close(handle)


def holder(folder: Path) -> str:
    """Which process holds a run directory, in words; empty if none does, or none can be known to."""
    try:
        handle = os.open(folder / LOCK_NAME, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0))
    except OSError:
        return ""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
    return ""


def _take(path: Path, folder: Path, warn: Callable[[str], None]) -> int:
    while True:
        # never through a link, nor into a file that has another name elsewhere: its contents are replaced
        if path.is_symlink():
            raise CheckpointError(str(path), "is no file of its own; remove it")
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
            os.close(handle)
            raise CheckpointError(str(path), "is no file of its own; remove it")
        try:
            if fcntl is None:
                raise OSError("this system has none")
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = _holder(handle)
            os.close(handle)
            message = f"{IN_USE} {holder}; wait for it to end, or choose another directory with --out"
            raise CheckpointError(str(folder), message) from None
        except OSError as error:  # some network drives cannot either
            why = safe(error.strerror or str(error))
            warn(f"{folder}: no file lock ({why}); take care that no other process uses this run directory")
            return handle
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(handle), os.lstat(path)):
                return handle
        os.close(handle)  # whoever held it has just removed it: what we hold is no longer there


def _holder(handle: int) -> str:
    try:
        found = json.loads(os.pread(handle, 4096, 0))
        return f"pid {int(found['pid'])} on host {safe(str(found['host']))}"
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return "another process"  # which has not come to write its name
