"""Memory that is free inside the process, given back to the system."""

from __future__ import annotations

import ctypes
import sys

__all__ = ["release"]


def release() -> None:
    """Return freed heap to the system; does nothing where the C library is not glibc.

    Batches differ in length, so their buffers leave holes, and over a few hundred steps glibc's heap grows to half as
    much again as is in use. Giving the holes back costs some tenths of a second, so it is done between evaluations,
    not between steps.
    """
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).malloc_trim(0)
        except (OSError, AttributeError):
            return
