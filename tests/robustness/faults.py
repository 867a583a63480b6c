"""Faults at the file operations of this process: death before or after the n-th one, or an error in its place."""

from __future__ import annotations

import builtins
import io
import os
import signal
from collections.abc import Callable
from typing import Any

__all__ = ["CALLS", "Faults", "run_with_fault"]

# all that change a file system and go through Python; what is written to open files is cut by RLIMIT_FSIZE and strace
CALLS = (
    *("open", "write", "pwrite", "fsync", "fdatasync", "truncate", "ftruncate", "rename", "replace", "link", "symlink"),
    *("unlink", "remove", "mkdir", "rmdir", "chmod", "fchmod"),
)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Faults:
    """Counts the calls of `CALLS`, and has the one numbered `at` (from 1) fail.

    `how` is "before" or "after" (SIGKILL before the call, or when it has been carried out), or an errno.
    """

    def __init__(self, at: int = 0, how: str | int = "before") -> None:
        self.at, self.how = at, how
        self.names: list[str] = []
        self._replaced: list[tuple[Any, str, Any]] = []

    def install(self) -> Faults:
        for name in CALLS:
            self._replace(os, name, self._wrap(name, getattr(os, name), lambda flags: bool(int(flags) & WRITING)))
        opened = self._wrap("open", builtins.open, lambda mode: set(str(mode)) & set("wax+") != set())
        self._replace(builtins, "open", opened)
        self._replace(io, "open", opened)
        return self

    def remove(self) -> None:
        for owner, name, original in reversed(self._replaced):
            setattr(owner, name, original)

    def _replace(self, owner: Any, name: str, function: Any) -> None:
        self._replaced.append((owner, name, getattr(owner, name)))
        setattr(owner, name, function)

    def _wrap(self, name: str, original: Callable[..., Any], writes: Callable[[Any], bool]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            if name == "open":
                mode = arguments[1] if len(arguments) > 1 else options.get("mode", options.get("flags", "r"))
                if not writes(mode):
                    return original(*arguments, **options)
            self.names.append(name)
            if len(self.names) != self.at:
                return original(*arguments, **options)
            if isinstance(self.how, int):
                raise OSError(self.how, os.strerror(self.how))
            try:
                if self.how == "after":
                    original(*arguments, **options)
            finally:
                os.kill(os.getpid(), signal.SIGKILL)

        return call


def run_with_fault(arguments: list[str], at: int, how: str | int, count: str = "") -> None:
    """`mtmeta ARGUMENTS` with one fault; the number of file operations goes to the file `count` if one is named."""
    from mtmeta.cli import main

    faults = Faults(at, how).install()
    try:
        main(arguments)
    finally:
        faults.remove()
        if count:
            with open(count, "w") as file:
                file.write(str(len(faults.names)))
