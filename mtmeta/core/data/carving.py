"""A dev split taken out of the training file: which rows it gets.

What decides is the text of a row and a seed, not where the row stands, so that the same rows are chosen on every
machine and in every order of the file, and a row that is added moves hardly any other. (With `together: none` the
place does count, or equal rows would never part.)

Shapes: `N` examples, `T` texts an example.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.option_types import Carve
from mtmeta.core.rng import derive

Hashes = NDArray[np.uint64]


def _mix(values: Hashes) -> Hashes:
    """Return a bijection of 64-bit numbers that looks random (the finaliser of SplitMix64, Steele et al. 2014)."""
    mixed = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def example_hashes(texts: Hashes) -> Hashes:
    """Return one hash [N] of the texts of each example [N, T], in whatever order they stand."""
    return _mix(texts).sum(axis=1, dtype=np.uint64) if texts.shape[1] > 1 else texts[:, 0]


def carved(texts: Hashes, strata: NDArray[np.int64], carve: Carve) -> NDArray[np.bool_]:
    """Return which of N examples, with text hashes [N, T] and strata [N], are in the dev split.

    Every stratum gives its share, to the nearest example where what stays together allows it, at least one example
    and never all; a stratum that cannot be divided gives nothing.
    """
    members, hashes = _groups(texts, carve.together)
    keys = _mix(hashes ^ np.uint64(derive(carve.seed or 0, "dev")))  # of every group
    sizes, stratum_of = np.bincount(members, minlength=len(keys)), np.full(len(keys), np.iinfo(np.int64).max)
    np.minimum.at(stratum_of, members, strata)  # a group counts where its least stratum is
    chosen = np.zeros(len(keys), dtype=bool)
    for stratum in np.unique(stratum_of).tolist():
        here = np.flatnonzero(stratum_of == stratum)
        here = here[np.argsort(keys[here], kind="stable")]
        chosen[here[_take(sizes[here].tolist(), carve.fraction)]] = True
    return chosen[members]


def _groups(texts: Hashes, together: str) -> tuple[NDArray[np.int64], Hashes]:
    """Return the group [N] that each example is in, and a hash of each group."""
    if together == "none":
        places = np.arange(len(texts), dtype=np.uint64)
        return np.arange(len(texts)), example_hashes(texts) ^ _mix(places + np.uint64(1))
    if together == "example" or texts.shape[1] == 1:
        hashes, members = np.unique(example_hashes(texts), return_inverse=True)
        return members.astype(np.int64), hashes
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    sentences, numbers = np.unique(texts, return_inverse=True)
    numbers = numbers.reshape(texts.shape)
    edges = (np.ones(len(texts), dtype=np.int8), (numbers[:, 0], numbers[:, 1]))
    count, parts = connected_components(coo_array(edges, shape=(len(sentences),) * 2), directed=False)
    hashes = np.full(count, np.iinfo(np.uint64).max, dtype=np.uint64)
    np.minimum.at(hashes, parts, sentences)  # a part is known by its least sentence
    return parts[numbers[:, 0]].astype(np.int64), hashes


def _take(sizes: Sequence[int], fraction: float) -> list[int]:
    """Return which groups of one stratum, in the order given, make up its share without going beyond it."""
    rows = sum(sizes)
    if len(sizes) < 2:
        return []
    target = min(max(1, round(fraction * rows)), rows - 1)
    chosen, taken = [], 0
    for number, size in enumerate(sizes):
        if taken + size <= target:
            chosen.append(number)
            taken += size
    return chosen or [min(range(len(sizes)), key=sizes.__getitem__)]


def carved_digest(sha256: str, carve: Carve, rows: NDArray[np.int64]) -> str:
    """Return the SHA-256 of a carved split in the lock: of the file's own, the options and the rows chosen."""
    options = f"{sha256} {sorted(asdict(carve).items())} "
    return hashlib.sha256(options.encode() + rows.astype("<i8").tobytes()).hexdigest()


def carvings(tasks: Mapping[str, Any], rows: Mapping[str, int]) -> dict[str, Any]:
    """Return the `carved` part of the lock: where each dev split comes from, how, and its `rows`; or nothing."""
    taken = [(name, task) for name, task in tasks.items() if isinstance(task.dev, Carve) and name in rows]
    described = {name: {"from": task.train, **asdict(task.dev), "rows": rows[name]} for name, task in taken}
    return {"carved": described} if described else {}
