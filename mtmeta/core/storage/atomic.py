"""Atomic writes: files and folders are written beside their place, flushed to disk, and moved there by one rename.

A kill at any instant leaves the old one or the new one, whole.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from mtmeta.core.errors import MachineError


@contextlib.contextmanager
def atomic_file(path: Path, mode: str = "wb", **options: Any) -> Iterator[IO[Any]]:
    """Open a file for writing, as `open` does, which takes the place of `path` at the end; on an error it is removed.

    Raises OSError, and MachineError for a device such as /dev/null, which a rename would replace by a file.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise MachineError(str(path), "is a device or a pipe; name a file")
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        with open(scratch, mode.replace("w", "x"), **options) as file:  # never through a link that lies there
            yield file
            file.flush()
            os.fsync(file.fileno())
        move_file(scratch, path)
    except BaseException:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def staged_folder(
    path: Path,
    scratch: Path | None = None,
    *,
    replace: Callable[[], bool] | None = None,
    mode: int = 0o777,
    durable: bool = True,
) -> Iterator[Path]:
    """Make a folder, `scratch` or one beside `path`, to be filled, and rename it to `path` at the end.

    Where a folder is there already, `replace` is asked: on true it is removed, on false the new one is dropped; without
    `replace` that is an OSError. On an error nothing is left, nor folders that were made above it. `mode` is before the
    umask. Files are flushed to disk by who writes them, folders if `durable`: what can be made anew need not be.
    """
    path = path.absolute()
    scratch = scratch.absolute() if scratch else path.with_name(f".{path.name}.{os.getpid()}.tmp")
    new_parents = [folder for folder in path.parents if not folder.exists()]
    try:
        make_folder(path.parent)
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(mode)
        yield scratch
        if durable:
            for folder in (scratch, *(below for below in scratch.rglob("*") if below.is_dir())):
                sync(folder)
        _move_folder(scratch, path, replace)
        if durable:
            sync(path.parent)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        for folder in new_parents:
            with contextlib.suppress(OSError):  # not made yet, or in use by others by now
                folder.rmdir()
        raise


def _move_folder(scratch: Path, path: Path, replace: Callable[[], bool] | None) -> None:
    try:
        scratch.rename(path)
    except OSError:
        if replace is None or not os.path.lexists(path):
            raise
        if not replace():
            shutil.rmtree(scratch, ignore_errors=True)
            return
        with contextlib.suppress(FileNotFoundError):  # another process replaces it too
            remove(path)
        scratch.rename(path)


def move_file(scratch: Path, path: Path) -> None:
    """Rename a file that was flushed to disk over `path`, and enter that in its folder on disk."""
    scratch.replace(path)
    sync(path.parent)


def replace_link(link: Path, target: str) -> None:
    """Point a symbolic link at `target` in one step."""
    scratch = link.with_name(f".{link.name}.tmp")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(target)
    move_file(scratch, link)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, each entered in its parent on disk."""
    if not path.exists():
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


def remove(path: Path) -> None:
    """Rename a folder out of sight, then remove it, so that a half-removed one is never taken for a whole one."""
    trash = path.with_name(f".{path.name}.trash")
    shutil.rmtree(trash, ignore_errors=True)
    path.rename(trash)
    shutil.rmtree(trash, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Remove what a kill left half-written or half-removed. What cannot be removed does no harm."""
    for path in sorted(folder.glob(".*")):
        if path.name.endswith((".tmp", ".trash")):
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
