"""Files that a user names for a command's output.

A file is there once it is whole, with the permissions of the one it replaces. Whatever else is there, such as a pipe,
a terminal or /dev/stdout, is written into as the output comes, and never replaced. A link is followed: it stays, and
the file that it leads to is replaced in its own folder. Not so in a run directory, which somebody else may have made:
there nothing is followed, and nothing but a file is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mtmeta.core.errors import UsageError
from mtmeta.core.storage.atomic import atomic_file, clear_leftovers, make_folder
from mtmeta.core.storage.disk import disk_errors

RUN_MARK = "recipe.lock.yaml"  # a folder that holds it is a run directory
LINKS = 40  # as many as Linux follows


@contextlib.contextmanager
def output_file(path: Path, mode: str = "w", *, named: bool = True, **options: Any) -> Iterator[IO[Any]]:
    """Open an output for writing, as `open` does; `named` unless the path is our own default, which is no link.

    Raises OSError, and UsageError for a link or a device that is not followed.
    """
    descriptor, root = _descriptor(path), run_root(path)
    if descriptor is not None:
        for stream in (sys.stdout, sys.stderr):  # what was printed before comes before
            if stream is not None:
                stream.flush()
        with open(os.dup(descriptor), mode, **options) as file:
            yield file
        return
    link, status = path.is_symlink(), _status(path)
    regular = status is None or stat.S_ISREG(status.st_mode)
    if link and (root is not None or not named):
        raise UsageError(str(path), "is a symbolic link; name another file")
    if status is not None and stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if regular:
        place = Path(os.path.realpath(path)) if link else path
        clear_leftovers(place.parent, root, name=place.name)
        permissions = stat.S_IMODE(status.st_mode) & 0o777 if status is not None else None
        with atomic_file(place, mode, root=root, permissions=permissions, **options) as file:
            yield file
        return
    if root is not None:
        raise UsageError(str(path), "is no regular file, in a run directory; name another file")
    with open(os.open(path, os.O_WRONLY | getattr(os, "O_NOCTTY", 0)), mode, **options) as file:
        yield file


def write_output(path: Path, data: str, *, named: bool = True) -> None:
    """Write an output at once, and make the folders above it. Raises MachineError and UsageError."""
    with disk_errors(path):
        make_folder(path.parent, run_root(path))
        with output_file(path, "wb", named=named) as file:
            file.write(data.encode())


def is_stream(path: Path) -> bool:
    """Return whether an output is no file of its own: a pipe, a device, or what standard output goes to."""
    try:
        status = _status(path)
    except OSError:  # whoever opens it is told why
        return False
    return _descriptor(path) is not None or (status is not None and not stat.S_ISREG(status.st_mode))


def run_root(path: Path) -> Path | None:
    """Return the outermost run directory that a path leads through, or None."""
    folders = reversed(path.absolute().parents)
    return next((folder for folder in folders if os.path.lexists(folder / RUN_MARK)), None)


def _status(path: Path) -> os.stat_result | None:
    """Return what a path leads to; None if nothing is there."""
    try:
        return path.stat()
    except FileNotFoundError:
        return None


def _descriptor(path: Path) -> int | None:
    """Return the number of the open file that a path such as /dev/stdout or /dev/fd/63 stands for, or None.

    To open the path would cut the file that the shell redirected it to.
    """
    place = path.absolute()
    for _ in range(LINKS):
        folder = os.path.realpath(place.parent)
        if place.name.isdecimal() and re.fullmatch(rf"/dev/fd|/proc/{os.getpid()}(/task/[0-9]+)?/fd", folder):
            return int(place.name)
        try:
            place = Path(folder, os.readlink(place))
        except OSError:  # no link
            return None
    return None
