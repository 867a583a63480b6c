"""Who holds a lease: one process of one machine, in terms that another process can check."""

from __future__ import annotations

import json
import os
import secrets
import socket
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from mtmeta.core.storage.reading import parse_json
from mtmeta.core.wording import safe


@dataclass(frozen=True)
class Holder:
    """A process that holds, or held, a lease.

    `boot` is the start of its machine's system, `space` the space that its `pid` is a number of (containers have one
    each), `started` the tick at which the process began; all three are empty where the system does not tell.
    """

    id: str
    pid: int
    host: str
    boot: str = ""
    space: str = ""
    started: str = ""

    @classmethod
    def new(cls) -> Holder:
        """Return this process as the holder of a new lease."""
        space = ""
        with suppress(OSError):
            space = os.readlink("/proc/self/ns/pid")
        pid = os.getpid()
        return cls(secrets.token_hex(8), pid, socket.gethostname(), _boot(), space, _start_of(pid))

    @classmethod
    def read(cls, data: bytes) -> Holder | None:
        """Return the holder that a lease names; None for one that is being written, or is damaged."""
        try:
            given = parse_json(data)
            values = {field.name: given[field.name] for field in fields(cls)}
        except (ValueError, TypeError, KeyError):
            return None
        texts = all(isinstance(value, str) for name, value in values.items() if name != "pid")
        return cls(**values) if texts and type(values["pid"]) is int else None

    def line(self) -> bytes:
        """Return what the lease file holds."""
        return json.dumps(asdict(self)).encode() + b"\n"

    def is_on_this_machine(self) -> bool:
        """Return whether it runs, or ran, under the system that we run under; after a restart it did not."""
        return self.boot == _boot() if self.boot else self.host == socket.gethostname()

    def has_surely_ended(self) -> bool:
        """Return whether its process is over for certain, which only its own machine can tell."""
        if not self.is_on_this_machine() or not self.started:
            return False
        try:
            here = os.readlink("/proc/self/ns/pid")
        except OSError:
            return False
        return here == self.space and _start_of(self.pid) != self.started

    def __str__(self) -> str:
        """`pid 12 on host n1`, as messages name it."""
        return f"pid {safe(str(self.pid))} on host {safe(self.host)}"


def _boot() -> str:
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""


def _start_of(pid: int) -> str:
    """Return the tick at which a process began: its number alone may have gone to another one."""
    with suppress(OSError, IndexError):
        after_name = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "" if after_name[0] in ("Z", "X") else after_name[19]
    return ""
