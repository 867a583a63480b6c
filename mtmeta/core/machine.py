"""What a run does with the machine's memory and threads."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

import torch
from torch import nn

__all__ = ["fitting_threads", "release"]

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


def release() -> None:
    """Return freed heap to the system; does nothing where the C library is not glibc.

    Batches differ in length, so their buffers leave holes, and over a few hundred steps glibc's heap grows to half as
    much again as is in use. Giving the holes back costs some tenths of a second, so it is done between evaluations,
    not between steps.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
