"""The environment of the process: the packages it needs, where its cache is, a launcher that it cannot serve."""

from __future__ import annotations

import grp
import importlib.metadata
import math
import os
import pwd
import re
import resource
import stat
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from mtmeta.core.errors import MachineError
from mtmeta.core.wording import byte_text, quote, safe

LEAST_TORCH = (2, 10)
LEAST_MEMORY = {"numpy": 320 * 2**20, "PyTorch": 640 * 2**20}  # bytes of addresses taken before anything is done
MOST_THREADS = 128  # that are tried
HUGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # read by PyTorch when it first takes memory


def want_huge_pages() -> None:
    """Have PyTorch ask Linux for huge pages behind large tensors, unless the user has decided about it.

    A batch has some hundred MB, which a processor finds faster in pages of 2 MB. Nothing happens once PyTorch has taken
    memory. Bits stay what they are.
    """
    if os.path.exists("/sys/kernel/mm/transparent_hugepage/enabled"):  # elsewhere PyTorch would warn
        os.environ.setdefault(HUGE_PAGES, "1")


def check_torch() -> None:
    """Raise MachineError without a torch new enough; asked before torch is imported, which may fail in any way."""
    check_memory("PyTorch")
    want_huge_pages()
    _check_threads()
    needed = ".".join(map(str, LEAST_TORCH))
    try:
        installed = importlib.metadata.version("torch")
    except importlib.metadata.PackageNotFoundError:
        return  # put on the path by other means than a package; importing it shows
    numbers = re.match(r"(\d+)\.(\d+)", installed)
    if numbers and (int(numbers[1]), int(numbers[2])) < LEAST_TORCH:
        message = f"this command needs torch >= {needed}, found {safe(installed)}; pip install 'torch>={needed}'"
        raise MachineError("", message)


def has_memory_limit(least: float = math.inf) -> bool:
    """Return whether this process has a limit on its memory, below so many bytes."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    return limit != resource.RLIM_INFINITY and limit < least


def check_memory(library: Literal["numpy", "PyTorch"]) -> None:
    """Raise MachineError if this process may not have the memory that a library begins with.

    It would end the process on the spot, or send it the signal of Ctrl-C.
    """
    if has_memory_limit(LEAST_MEMORY[library]):
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        message = f"may have {byte_text(limit)} of memory (ulimit -v), {library} alone takes more"
        raise MachineError("this process", f"{message}; raise the limit to {byte_text(LEAST_MEMORY[library])} at least")


def _check_threads() -> None:
    """Raise MachineError if this process may not start the threads that PyTorch and numpy begin with."""
    done, started = threading.Event(), list[threading.Thread]()
    count = min(os.cpu_count() or 1, MOST_THREADS)
    try:
        for _ in range(count):
            thread = threading.Thread(target=done.wait, daemon=True)
            thread.start()
            started.append(thread)
    except RuntimeError:
        message = f"can start {len(started)} threads beside its own, {count} are needed (ulimit -u, or -v)"
        raise MachineError("this process", f"{message}; raise the limit") from None
    finally:
        done.set()
        for thread in started:
            thread.join()


def check_launcher(environ: Mapping[str, str] = os.environ) -> None:
    """Raise MachineError if torchrun, or half of its variables, ask for several processes to work together."""
    rank, world = environ.get("RANK"), environ.get("WORLD_SIZE")
    if rank is not None and world is None:
        raise MachineError("RANK", "is set but WORLD_SIZE is not; unset it, a run is one process")
    if world is not None and (not world.isdecimal() or int(world[:9]) != 1):
        raise MachineError("WORLD_SIZE", f"is {quote(world)}, but a run is one process; start it without torchrun")


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path | None:
    """Return the folder for what can be made anew: MTMETA_CACHE, else mtmeta/ under XDG_CACHE_HOME or ~/.cache.

    None where MTMETA_CACHE is `off`, or the user has no home.
    """
    given, xdg = environ.get("MTMETA_CACHE", ""), environ.get("XDG_CACHE_HOME", "")
    if given == "off":
        return None
    try:
        if given:
            return Path(given).expanduser()
        return (Path(xdg) if xdg.startswith("/") else Path("~/.cache").expanduser()) / "mtmeta"
    except RuntimeError:  # no home
        return None


def why_unsafe(status: os.stat_result) -> str:
    """Return why a file or folder of a cache may not be used, for somebody else can write to it; empty if nobody can.

    It is safe if it is the user's or the administrator's, and neither everybody may write to it nor a group that has
    other members: on Debian and Ubuntu every user has a group of their own, and the umask leaves that one in. In a
    folder with the sticky bit, such as /tmp, nobody can change what belongs to others.
    """
    if not hasattr(os, "getuid"):
        return ""
    if status.st_uid not in (os.getuid(), 0):
        return f"belongs to another user ({status.st_uid})"
    sticky = stat.S_ISDIR(status.st_mode) and status.st_mode & stat.S_ISVTX
    if sticky or stat.S_ISLNK(status.st_mode):
        return ""
    by_group = status.st_mode & stat.S_IWGRP and not _is_private(status.st_gid)
    return "may be written to by others" if by_group or status.st_mode & stat.S_IWOTH else ""


def _is_private(group: int) -> bool:
    """Return whether a group is the user's own: their first one, of their name, without another member."""
    try:
        user, found = pwd.getpwuid(os.getuid()), grp.getgrgid(group)
    except KeyError:  # unknown to the system, as in containers
        return False
    return user.pw_gid == group and found.gr_name == user.pw_name and set(found.gr_mem) <= {user.pw_name}
