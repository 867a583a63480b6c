"""Stateless randomness: every draw is a pure function of the seed and what the draw is for.

There is no generator state to lose on resume, and removing a task does not move another task's draws.
"""

from __future__ import annotations

import hashlib

import numpy as np


def derive(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed for `purpose`, such as ("order", "sst", epoch)."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in (seed, *purpose))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1


def uniform(seed: int, *purpose: str | int) -> float:
    """Return a float in [0, 1) for `purpose`."""
    return (derive(seed, *purpose) >> 10) / 2**53


def permutation(n: int, seed: int, *purpose: str | int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Return a permutation of 0..n-1 for `purpose`. PCG64's stream is fixed by NumPy's compatibility policy."""
    return np.random.Generator(np.random.PCG64(derive(seed, *purpose))).permutation(n)
