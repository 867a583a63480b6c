"""THE writer: files and folders are written beside their place, flushed to disk, and moved there by one rename.

A kill at any instant leaves the old one or the new one, whole. Scratch names cannot be foreseen, nothing that lies at
one is opened, and no link is followed: a folder is held open while something in it is made, renamed or removed, so
that another folder that takes its path meanwhile stays as it is. Below `root`, where one is given, no part of the path
may be a link; the path up to there is the user's own, who may have links in it. A scratch is locked as long as its
process works on it, so that leftovers of a killed one are known by being free.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from mtmeta.core.errors import CheckpointError

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # a system without file locks of this kind
    fcntl = None

NO_LINK = getattr(os, "O_NOFOLLOW", 0)
FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
HANDLES = {os.open, os.mkdir, os.rename, os.unlink, os.symlink} <= os.supports_dir_fd and bool(NO_LINK)
LONGEST = 200  # bytes of a name that its scratch is named by; file systems take 255
SCRATCH = re.compile(r"\.(?P<name>.*)\.[0-9a-f]{16}\.(tmp|trash)", re.DOTALL)
DEAD_AFTER = 86400  # seconds after which a scratch on a disk without locks belongs to a process that was killed


@dataclass(frozen=True)
class Held:
    """An open folder, whose entries are named by `at(name)` and `handle`; on systems that cannot, by their paths."""

    path: Path
    handle: int | None

    def at(self, name: str) -> str:
        return name if self.handle is not None else str(self.path / name)

    def status(self, name: str) -> os.stat_result | None:
        """Return what is there, without following a link; None if nothing is."""
        try:
            return os.stat(self.at(name), dir_fd=self.handle, follow_symlinks=False)
        except FileNotFoundError:
            return None

    def open(self, name: str, flags: int, mode: int = 0o666) -> int:
        """Open an entry unless it is a link; the descriptor is the caller's to close."""
        return os.open(self.at(name), flags | NO_LINK, mode, dir_fd=self.handle)

    def replace(self, name: str, to: str) -> None:
        """Rename a file or a link over another."""
        os.replace(self.at(name), self.at(to), src_dir_fd=self.handle, dst_dir_fd=self.handle)

    def move(self, name: str, to: str) -> None:
        """Rename a folder."""
        os.rename(self.at(name), self.at(to), src_dir_fd=self.handle, dst_dir_fd=self.handle)

    def unlink(self, name: str) -> None:
        os.unlink(self.at(name), dir_fd=self.handle)

    def discard(self, name: str) -> None:
        """Remove a file, a link or a folder with all that is in it; what cannot be removed does no harm."""
        with contextlib.suppress(OSError):
            status = self.status(name)
            if status is not None and stat.S_ISDIR(status.st_mode):
                shutil.rmtree(self.at(name), ignore_errors=True, dir_fd=self.handle)  # follows no link
            elif status is not None:
                self.unlink(name)


@contextlib.contextmanager
def held(folder: Path, root: Path | None = None) -> Iterator[Held]:
    """Hold a folder open. Raises OSError where it is none, or where a part of its path below `root` is a link."""
    if not HANDLES:
        yield Held(folder, None)
        return
    handle = os.open(folder if root is None else root, FOLDER)
    try:
        for part in () if root is None else folder.absolute().relative_to(root.absolute()).parts:
            below = os.open(part, FOLDER | NO_LINK, dir_fd=handle)
            os.close(handle)
            handle = below
        yield Held(folder, handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def atomic_file(
    path: Path, mode: str = "wb", *, root: Path | None = None, permissions: int | None = None, **options: Any
) -> Iterator[IO[Any]]:
    """Open a file for writing, as `open` does, which takes the place of `path` at the end; on an error it is removed.

    A link that lies there is replaced, not followed. The file has `permissions`, by default those of the umask. Raises
    OSError, and CheckpointError for a device, a pipe or a socket, which a rename would replace by a file.
    """
    with held(path.parent, root) as folder:
        there = folder.status(path.name)
        if there is not None and not stat.S_ISREG(there.st_mode) and not stat.S_ISLNK(there.st_mode):
            if stat.S_ISDIR(there.st_mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
            raise CheckpointError(str(path), "is no regular file; remove it")
        name, handle = _claimed(folder, path.name, lambda scratch: _new(folder, scratch))
        with contextlib.ExitStack() as stack:
            try:
                if fcntl is not None:
                    stack.callback(os.close, os.dup(handle))  # keeps the lock until the file has its place
                with _opened(handle, mode, **options) as file:
                    # some disks have one mode for all files, and refuse to hear of another
                    if permissions not in (None, stat.S_IMODE(os.fstat(handle).st_mode)):
                        os.fchmod(handle, permissions)
                    yield file
                    file.flush()
                    os.fsync(handle)
                folder.replace(name, path.name)
                sync(path.parent)
            except BaseException:
                folder.discard(name)
                raise


@contextlib.contextmanager
def staged_folder(
    path: Path,
    scratch: Path | None = None,
    *,
    replace: Callable[[], bool] | None = None,
    mode: int = 0o777,
    durable: bool = True,
    root: Path | None = None,
) -> Iterator[Path]:
    """Make a folder beside `path`, to be filled, and rename it to `path` at the end.

    `scratch` is its path, where the caller knows it by another name than ours, which cannot be foreseen. Where a folder
    is there already, `replace` is asked: on true it is removed, on false the new one is dropped; without `replace` that
    is an OSError. On an error nothing is left, nor folders that were made above it. `mode` is before the umask. Files
    are flushed to disk by who writes them, folders if `durable`: what can be made anew need not be.
    """
    path = path.absolute()
    new_parents = [folder for folder in path.parents if not folder.exists()]
    try:
        make_folder(path.parent, root)
        with held(path.parent, root) as folder:
            make = lambda name: _new_folder(folder, name, mode)  # noqa: E731
            name, handle = _claimed(folder, path.name, make, scratch.name if scratch else None)
            try:
                made = path.with_name(name)
                yield made
                if durable:
                    for below in (made, *(place for place in made.rglob("*") if place.is_dir())):
                        sync(below)
                _move_folder(folder, name, path.name, replace)
            except BaseException:
                folder.discard(name)
                raise
            finally:
                if handle >= 0:
                    os.close(handle)
            if durable:
                sync(path.parent)
    except BaseException:
        for parent in new_parents:
            with contextlib.suppress(OSError):  # not made yet, or in use by others by now
                parent.rmdir()
        raise


def _move_folder(folder: Held, scratch: str, name: str, replace: Callable[[], bool] | None) -> None:
    try:
        folder.move(scratch, name)
    except OSError:
        if replace is None or folder.status(name) is None:
            raise
        if not replace():
            folder.discard(scratch)
            return
        with contextlib.suppress(FileNotFoundError):  # another process replaces it too
            _remove(folder, name)
        folder.move(scratch, name)


def new_file(path: Path, mode: str = "xb", *, root: Path | None = None, **options: Any) -> IO[Any]:
    """Open a file that is not there yet, as `open` does with mode x. Raises OSError, also for a link to nowhere."""
    with held(path.parent, root) as folder:
        return _opened(_new(folder, path.name), mode, **options)


@contextlib.contextmanager
def unnamed_file(path: Path, root: Path | None = None) -> Iterator[tuple[IO[bytes], Callable[[str], None]]]:
    """Open a file whose name is known only once its content is, in the folder of `path`, whose scratch it is named as.

    The function beside it flushes it to disk and moves it to a name in that folder; one that was not moved is removed
    at the end.
    """
    with held(path.parent, root) as folder:
        name, handle = _claimed(folder, path.name, lambda scratch: _new(folder, scratch))
        with contextlib.ExitStack() as stack:
            stack.callback(folder.discard, name)
            if fcntl is not None:
                stack.callback(os.close, os.dup(handle))  # keeps the lock until the file has its place
            with _opened(handle, "wb") as file:

                def move(to: str) -> None:
                    file.flush()
                    os.fsync(handle)
                    folder.replace(name, to)
                    sync(path.parent)

                yield file, move


def own_file(path: Path, mode: str, *, root: Path | None = None) -> IO[bytes]:
    """Open a file to append to it or to cut it, without a buffer: mode ab makes it if need be, r+b does not.

    Raises CheckpointError where it is a link, no regular file, or has another name, under which it would change too.
    """
    strange = CheckpointError(str(path), "is no file of its own; remove it")
    flags = {"ab": os.O_WRONLY | os.O_CREAT | os.O_APPEND, "r+b": os.O_RDWR}[mode]
    with held(path.parent, root) as folder:
        there = folder.status(path.name)
        if there is not None and not _is_own(there):
            raise strange
        try:
            handle = folder.open(path.name, flags | getattr(os, "O_NONBLOCK", 0))
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENXIO):  # since we looked
                raise strange from error
            raise
    if not _is_own(os.fstat(handle)):
        os.close(handle)
        raise strange
    return _opened(handle, mode, buffering=0)


def _is_own(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and status.st_nlink <= 1


def replace_link(link: Path, target: str, root: Path | None = None) -> None:
    """Point a symbolic link at `target` in one step."""
    with held(link.parent, root) as folder:
        scratch = scratch_name(link.name)
        try:
            os.symlink(target, folder.at(scratch), dir_fd=folder.handle)
            folder.replace(scratch, link.name)
            sync(link.parent)
        except BaseException:
            folder.discard(scratch)
            raise


def move_file(scratch: Path, path: Path) -> None:
    """Rename a file that was flushed to disk over `path`, and enter that in its folder on disk."""
    scratch.replace(path)
    sync(path.parent)


def make_folder(path: Path, root: Path | None = None) -> None:
    """Make a folder and those above it, each entered in its parent on disk."""
    if root is not None and path.absolute() != root.absolute():
        make_folder(path.parent, root)
        with held(path.parent, root) as parent:
            if parent.status(path.name) is not None:
                return  # whoever uses it is told if it is no folder
            with contextlib.suppress(FileExistsError):
                os.mkdir(parent.at(path.name), dir_fd=parent.handle)
        sync(path.parent)
    elif not path.exists():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or a directory to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove(path: Path, root: Path | None = None) -> None:
    """Rename a folder out of sight, then remove it, so that a half-removed one is never taken for a whole one."""
    with held(path.parent, root) as folder:
        _remove(folder, path.name)


def _remove(folder: Held, name: str) -> None:
    trash = scratch_name(name, "trash")
    folder.move(name, trash)
    folder.discard(trash)


def remove_entry(path: Path, root: Path | None = None) -> None:
    """Remove a file, a link, or a folder with all that is in it, if it is there. Raises OSError where it cannot be."""
    with held(path.parent, root) as folder:
        status = folder.status(path.name)
        if status is not None and stat.S_ISDIR(status.st_mode):
            shutil.rmtree(folder.at(path.name), dir_fd=folder.handle)
        elif status is not None:
            folder.unlink(path.name)


def clear_leftovers(path: Path, root: Path | None = None, *, name: str | None = None) -> None:
    """Remove what killed processes left half-written or half-removed in a folder, of the entry `name` or of all.

    What a process still works on stays, and so does whatever is not named as our scratches are. What cannot be removed
    does no harm.
    """
    wanted = None if name is None else _stem(name)
    with contextlib.suppress(OSError), held(path, root) as folder:
        for entry in sorted(os.listdir(path if folder.handle is None else folder.handle)):
            found = SCRATCH.fullmatch(entry)
            if found and wanted in (None, found["name"]):
                with contextlib.suppress(OSError):
                    _sweep(folder, entry)


def scratch_name(name: str, kind: str = "tmp") -> str:
    """Return a name for what is to become, or was, the entry `name`, which nobody can foresee."""
    return f".{_stem(name)}.{secrets.token_hex(8)}.{kind}"


def _stem(name: str) -> str:
    data = os.fsencode(name)
    return name if len(data) <= LONGEST else data[:LONGEST].decode("utf-8", "ignore")


def _claimed(folder: Held, name: str, make: Callable[[str], int], given: str | None = None) -> tuple[str, int]:
    """Make a scratch for the entry `name`, locked; returns its name and the descriptor that `make` returned."""
    while True:
        scratch = given or scratch_name(name)
        handle = make(scratch)
        if handle < 0 or (_lock(handle) is not False and _is_at(folder, scratch, handle)):
            return scratch, handle
        os.close(handle)  # somebody swept it before it was locked


def _is_at(folder: Held, name: str, handle: int) -> bool:
    there = folder.status(name)
    return there is not None and os.path.samestat(there, os.fstat(handle))


def _lock(handle: int) -> bool | None:
    """Lock what is open; False where another process has it, None where there are no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # as on some network drives
        return None
    return True


def _sweep(folder: Held, name: str) -> None:
    """Remove a scratch that nobody works on any more."""
    status = folder.status(name)
    if status is None or stat.S_ISLNK(status.st_mode) or name.endswith(".trash"):
        folder.discard(name)  # a link is renamed as soon as it is made, which one process at a time does
        return
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        return
    handle = folder.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    try:
        locked = _lock(handle)
        if time.time() - status.st_mtime > DEAD_AFTER if locked is None else locked:
            folder.discard(name)  # while it is locked, so that nobody begins with it
    finally:
        os.close(handle)


def _new(folder: Held, name: str) -> int:
    return folder.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)


def _new_folder(folder: Held, name: str, mode: int) -> int:
    """Make a folder; returns a descriptor of it, or -1 on systems that open no folders."""
    os.mkdir(folder.at(name), mode, dir_fd=folder.handle)
    try:
        return folder.open(name, FOLDER) if folder.handle is not None else -1
    except BaseException:
        folder.discard(name)
        raise


def _opened(handle: int, mode: str, **options: Any) -> IO[Any]:
    """Make a descriptor a file, or close it."""
    try:
        return os.fdopen(handle, mode.replace("x", "w"), **options)
    except BaseException:
        with contextlib.suppress(OSError):
            os.close(handle)
        raise
