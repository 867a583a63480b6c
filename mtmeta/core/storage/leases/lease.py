"""A lease on a run directory: a file that its holder renews, for disks whose locks do not reach other machines.

flock is between the processes of one machine on NFSv3 and on Lustre. A lease is a file that is made only if there is
none, which every disk does in one step, and whose time is renewed every few seconds. It is free when its holder removes
it, when its process is known to be over, or when it was not renewed for LENGTH seconds by the disk's own clock: clocks
of two machines are never compared.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from mtmeta.core.errors import CheckpointError
from mtmeta.core.storage.atomic import atomic_file, new_file
from mtmeta.core.storage.leases.holder import Holder
from mtmeta.core.storage.reading import UnfitFile, open_regular

LEASE_NAME = ".lease"
LENGTH = 60.0
"""Seconds after which a lease that was not renewed is nobody's."""
BEAT = 10.0
"""Seconds between two renewals."""
SETTLE = 2.0
"""Seconds after which whoever took a lease over looks whether another one did so in the same moment."""
POLL = 1.0
"""Seconds between two looks at a lease that is waited for."""


@contextlib.contextmanager
def hold_lease(
    folder: Path,
    now: Callable[[], float],
    *,
    locked: bool,
    busy: Callable[[str], None],
    lost: Callable[[str], None] = lambda who: None,
) -> Iterator[None]:
    """Hold the lease on a folder, renewed from time to time by a thread.

    `now` is the disk's own clock. `locked` says that we have the folder's lock, so that no process of this machine can
    hold a lease on it. Where somebody holds one, `busy` is called with their name: it raises, or returns for a wait.
    `lost` is called with the name of whoever took the lease over, as happens to a process that was halted for longer
    than a lease lasts. Raises OSError, and CheckpointError where something else lies at the lease's place.
    """
    holder = Holder.new()
    while not _acquire(folder, holder, now, locked, busy):
        time.sleep(POLL)
    ended = threading.Event()
    beat = threading.Thread(target=_renew, args=(folder / LEASE_NAME, holder, ended, lost), daemon=True)
    beat.start()
    try:
        yield
    finally:
        ended.set()
        beat.join(BEAT)
        with contextlib.suppress(OSError):
            if _holder_at(folder / LEASE_NAME) == holder:
                os.unlink(folder / LEASE_NAME)


def lease_owner(folder: Path, *, locked: bool = False) -> str:
    """Return who holds the lease on a folder, in words; empty if nobody does. For a look only, by our own clock.

    `locked` says that we have the folder's lock, or that nobody of this machine has it.
    """
    path = folder / LEASE_NAME
    with contextlib.suppress(OSError, CheckpointError):
        age = time.time() - path.lstat().st_mtime
        holder = _holder_at(path)
        if not _is_free(holder, age, locked):
            return _named(holder)
    return ""


def _acquire(folder: Path, holder: Holder, now: Callable[[], float], locked: bool, busy: Callable[[str], None]) -> bool:
    """Take the lease if it is free; False to look again."""
    path = folder / LEASE_NAME
    try:
        with new_file(path, root=folder, buffering=0) as file:
            try:
                file.write(holder.line())
            except OSError:
                os.unlink(path)  # a lease without a name would keep the next one waiting
                raise
        return True
    except FileExistsError:
        pass
    try:
        there = _holder_at(path)
        age = now() - path.lstat().st_mtime
    except FileNotFoundError:
        return False  # it was given back this moment
    if not _is_free(there, age, locked):
        busy(_named(there))
        return False
    with atomic_file(path, root=folder) as file:
        file.write(holder.line())
    if not _cannot_be_contested(there, locked):
        time.sleep(SETTLE)  # whoever found it free beside us has put their name there by now, and the last one has it
    return _holder_at(path) == holder


def _is_free(there: Holder | None, age: float, locked: bool) -> bool:
    most = LENGTH if there is not None else BEAT  # to write a name takes no time: whoever began to was killed
    return age > most or _cannot_be_contested(there, locked)


def _cannot_be_contested(there: Holder | None, locked: bool) -> bool:
    """Return whether a lease is free for a reason that holds on this machine alone."""
    return there is not None and ((locked and there.is_on_this_machine()) or there.has_surely_ended())


def _renew(path: Path, holder: Holder, ended: threading.Event, lost: Callable[[str], None]) -> None:
    while not ended.wait(BEAT):
        # a disk that is away for a moment is told of where the run writes
        with contextlib.suppress(OSError, CheckpointError):
            there = _holder_at(path)
            if there != holder:
                lost(_named(there))
                return
            os.utime(path, follow_symlinks=os.utime not in os.supports_follow_symlinks)


def _holder_at(path: Path) -> Holder | None:
    """Read a lease; to open it has a network disk look at the file anew. Raises FileNotFoundError without one."""
    try:
        with open_regular(path) as file:
            return Holder.read(file.read(4096))
    except UnfitFile as error:
        raise CheckpointError(str(path), f"{error}; remove it") from error


def _named(holder: Holder | None) -> str:
    return str(holder) if holder is not None else "another process"  # which has not come to write its name
