"""What a run does with the machine's memory and threads."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

__all__ = ["Heap", "fitting_threads"]

SMALL = 1_000_000  # parameters


@contextlib.contextmanager
def fitting_threads(model: nn.Module) -> Iterator[None]:
    """One thread for a small encoder, PyTorch's own choice for others; on exit the number is what it was.

    On matrices this small a second thread saves a seventh of the time on an idle machine, and on a busy one the
    threads wait for each other: the same run then takes ten times as long.
    """
    before = torch.get_num_threads()
    if sum(parameter.numel() for parameter in model.parameters()) < SMALL:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Heap:
    """Keeps the holes in glibc's heap from growing; does nothing where the C library is another.

    Batches differ in length, so their buffers leave holes, and over a hundred steps the heap grows to twice what is
    in use. Giving the holes back costs some tenths of a second, so it is done only when they have become a quarter.
    """

    def __init__(self) -> None:
        self._settled = 0  # resident pages after the first step since the last release

    def after_step(self) -> None:
        """Look at the resident memory, some microseconds, and release it if it has grown too much."""
        resident = _resident()
        if not self._settled:
            self._settled = resident
        elif resident > 1.25 * self._settled:
            self.release()

    def release(self) -> None:
        """Return freed heap to the system."""
        self._settled = 0
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).malloc_trim(0)


def _resident() -> int:
    """Resident pages of this process; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
