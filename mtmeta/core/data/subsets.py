"""What two datasets share, and seeded subsets of one: a share of the examples, a few shots of each class."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.option_types import LeaveOut
from mtmeta.core.data.dataset import QUANTILES, Dataset, select
from mtmeta.core.errors import DataError
from mtmeta.core.rng import derive, permutation

SCANNED = 2**20  # hashes looked at once
SAMPLE_PLACES = ("{shots}", "{draw}")
"""In the path of a training file: fixed samples with so many examples of each class, numbered by draw from 0."""


def shared(hashes: NDArray[np.uint64], others: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return which of `hashes` stand in `others` too. Only `hashes` are held in memory at once."""
    wanted = np.unique(hashes)
    is_shared = np.zeros(len(wanted), dtype=bool)
    begins = np.zeros(2**16, dtype=bool)  # how any of them begins: sorts out most of the others at once
    begins[wanted >> np.uint64(48)] = True
    for start in range(0, len(others) if len(wanted) else 0, SCANNED):
        block = others[start : start + SCANNED]
        block = block[begins[block >> np.uint64(48)]]
        at = np.searchsorted(wanted, block).clip(max=len(wanted) - 1)
        is_shared[at[wanted[at] == block]] = True
    result: NDArray[np.bool_] = is_shared[np.searchsorted(wanted, hashes)]
    return result


def overlap(train: Dataset, other: Dataset) -> int:
    """Return how many examples of another split stand in train too."""
    return int(shared(other.examples, train.examples).sum())


def subset(data: Dataset, fraction: float, seed: int, name: str) -> Dataset:
    """Return a seeded share of the examples, stratified by label (for regression by fifths of the ranking).

    Every stratum keeps its share to within one example, and at least one; file order is kept.
    """
    if fraction >= 1.0:
        return data
    kept = []
    for label, members in strata(data).items():
        order = permutation(len(members), seed, "fraction", name, label)
        kept.append(members[order[: max(1, round(fraction * len(members)))]])
    return select(data, np.sort(np.concatenate(kept)))


def folds_of(data: Dataset, folds: int, seed: int, name: str) -> NDArray[np.int64]:
    """Return the fold of each example [N], from 1; of two examples with one id it is the same."""
    # ascii: ids of a plugin's own reader may hold what no encoding knows
    drawn = (derive(seed, "fold", name, ascii(id)) % folds + 1 for id in data.ids)
    return np.fromiter(drawn, dtype=np.int64, count=len(data))


def without_fold(data: Dataset, left_out: LeaveOut | None, seed: int, name: str) -> Dataset:
    """Return the examples of the other folds, in file order. Raises DataError if the fold is empty, or the others."""
    if left_out is None:
        return data
    inside = folds_of(data, left_out.folds, seed, name) == left_out.fold
    if inside.all() or not inside.any():
        message = f"has too few examples ({len(data)}) for {left_out.folds} folds, fold {left_out.fold} has"
        raise DataError(f"task '{name}'", f"{message} {'all' if inside.any() else 'none'}; choose fewer folds")
    return select(data, np.flatnonzero(~inside))


def draw_shots(data: Dataset, k: int, seed: int, name: str, draw: int) -> Dataset:
    """`k` seeded examples of every class, in file order (of a regression task, of each fifth of the ranking).

    Those of a smaller k are among those of a larger one in the same draw. A class with fewer than k gives all it has.
    """
    kept = []
    for label, members in strata(data).items():
        kept.append(members[permutation(len(members), seed, "shots", name, draw, label)[:k]])
    return select(data, np.sort(np.concatenate(kept)))


def sample_path(train: str, k: int, draw: int) -> str:
    """Return the path of a fixed sample, of one with SAMPLE_PLACES in it."""
    for place, number in zip(SAMPLE_PLACES, (k, draw), strict=True):
        train = train.replace(place, str(number))
    return train


@dataclass(frozen=True)
class FewShots:
    """The few examples of a task, by their number of each class and the draw.

    Drawn of a training set, or, where a protocol has fixed samples, those of `fixed` by (k, draw): then `train` is one
    of them, and a sample that holds nothing is missing.
    """

    train: Dataset
    seed: int
    fixed: Mapping[tuple[int, int], Dataset] = field(default_factory=dict)

    def draws(self, k: int, count: int) -> list[int]:
        """Return the draws that there are of the first `count`."""
        return [draw for draw in range(count) if not self.fixed or (k, draw) in self.fixed]

    def first(self, k: int) -> int:
        """Return the first draw that there is."""
        return min((draw for size, draw in self.fixed if size == k), default=0)

    def draw(self, k: int, draw: int) -> Dataset:
        """Return the examples of a draw, counted from 0, with `k` of each class."""
        return self.fixed[k, draw] if self.fixed else draw_shots(self.train, k, self.seed, self.train.task, draw)


def strata(data: Dataset) -> dict[int, NDArray[np.int64]]:
    """Return the indices of the examples of each class, or of each fifth of the ranking by label."""
    labels = data.of_label
    stratum_of = labels.astype(np.int64)
    if not data.whole:
        stratum_of[np.argsort(labels, kind="stable")] = np.arange(len(data)) * QUANTILES // len(data)
    return {label: np.flatnonzero(stratum_of == label) for label in np.unique(stratum_of).tolist()}


def rows_by_class(data: Dataset) -> dict[int, int]:
    """Return how many examples have each class, one of a set or that of a word, too; or are in each fifth."""
    if data.words is not None:
        examples = np.repeat(np.arange(len(data)), np.diff(data.words))
        each, count = np.unique(
            np.unique(np.stack([examples, data.labels.astype(np.int64)]), axis=1)[1], return_counts=True
        )
        return dict(zip(each.tolist(), count.tolist(), strict=True))
    if data.labels.ndim == 2 and data.whole:
        return dict(enumerate(data.labels.sum(axis=0, dtype=np.int64).tolist()))
    return {label: len(members) for label, members in strata(data).items()}
