"""The examples of a task by class, and the few-shot episodes that are drawn from them.

An episode is a pure function of (seed, task, number of the episode), so how many there were is all its state.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.subsets import strata
from mtmeta.core.errors import DataError
from mtmeta.core.rng import derive

Indices = NDArray[np.int64]


class Classes:
    """The training examples of one task by class."""

    def __init__(self, name: str, dataset: Dataset, seed: int) -> None:
        self._name, self._dataset, self._seed = name, dataset, seed
        self._rows = strata(dataset)

    def ways(self, most: int, needed: int) -> int:
        """Return the classes of an episode: `most`, or all where there are fewer.

        Raises DataError if too few of them have the `needed` examples.
        """
        ways = min(most, len(self._rows))
        enough = self._with(needed)
        if len(enough) < ways:
            short = next(label for label in self._rows if label not in enough)
            message = f"an episode takes {needed} examples of each of {ways} classes, but class {short} has only"
            fix = "lower shots, queries or ways"
            raise DataError(f"task '{self._name}'", f"{message} {len(self._rows[short])}; {fix}")
        return ways

    def episode(self, ways: int, shots: int, queries: int, number: int) -> tuple[Indices, Indices]:
        """Return the indices of support [ways * shots] and query [ways * queries], disjoint by example id."""
        support: list[int] = []
        query: list[int] = []
        eligible = self._with(shots + queries)
        for way in self._drawn(eligible, ways, "classes", number):
            rows = self._rows[way]
            seen: set[str] = set()
            chosen: list[int] = []
            # ids should be unique in a file; where they are not, of twins the first that is drawn counts
            for at in self._in_random_order(len(rows), "shots", number, way):
                if (own := self._dataset.ids[rows[at]]) not in seen:
                    seen.add(own)
                    chosen.append(int(rows[at]))
                if len(chosen) == shots + queries:
                    break
            else:
                message = f"task '{self._name}': ids repeat so often that class {way} has too few examples"
                raise DataError(self._dataset.file, f"{message} for an episode; lower shots or queries")
            support += chosen[:shots]
            query += chosen[shots:]
        return np.array(support, dtype=np.int64), np.array(query, dtype=np.int64)

    def some_of_each(self, most: int) -> Indices:
        """Return the indices of up to `most` examples of every class, always the same."""
        chosen = []
        for label, rows in self._rows.items():
            at = self._drawn(range(len(rows)), min(most, len(rows)), "examples", label)
            chosen.append(rows[np.array(at, dtype=np.int64)])
        return np.concatenate(chosen)

    def _with(self, examples: int) -> list[int]:
        return [label for label, rows in self._rows.items() if len(rows) >= examples]

    def _drawn(self, of: list[int] | range, count: int, *purpose: str | int) -> list[int]:
        """Draw `count` different members, in their own order."""
        order = self._in_random_order(len(of), *purpose)
        return [of[at] for at in sorted(next(order) for _ in range(count))]

    def _in_random_order(self, size: int, *purpose: str | int) -> Iterator[int]:
        """Yield 0 to size - 1 in a random order, at the cost of those that are asked for (Fisher and Yates)."""
        moved: dict[int, int] = {}
        for at in range(size):
            # 63 bits: what the remainder prefers is one in 10^12 for a million rows
            other = at + derive(self._seed, "class episode", self._name, *purpose, at) % (size - at)
            yield moved.get(other, other)
            moved[other] = moved.get(at, at)
