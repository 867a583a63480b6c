"""Batches for the algorithm: an endless seeded stream per task, and the draws between tasks.

Everything drawn is a pure function of (seed, task, epoch) or (seed, step, slot); the only state is how far each
stream has been read, so another task's presence never changes a task's batches.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.batch import Batch
from mtmeta.core.api.contracts import Draw, Sampler, Task
from mtmeta.core.data.classes import Classes
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.packing import pack
from mtmeta.core.errors import DataError, RecipeError
from mtmeta.core.registry.guard import fault
from mtmeta.core.rng import permutation, uniform
from mtmeta.core.wording import safe

COUNTERS = ("epoch", "offset", "batches", "examples")  # of a stream: how far it has been read


def check_episode(name: str, batches: int, batch_size: int, examples: int) -> None:
    """Raise DataError if a task has too few examples for the disjoint batches of one episode."""
    if (needed := batches * batch_size) > examples:
        message = f"needs {needed} examples per episode ({batches} batches of {batch_size}), has {examples}"
        raise DataError(f"task '{name}'", f"{message}; lower batch_size or inner_steps")


def _has_classes(task: Task) -> bool:
    """Return whether every example of a task has one class."""
    return task.objective.labelled == "one" and bool(task.objective.classes)


@dataclass
class Stream:
    """One task's endless stream of training examples, reshuffled with a new permutation on every wrap-around."""

    name: str
    dataset: Dataset
    batch_size: int
    seed: int
    has_classes: bool = True
    epoch: int = 0
    offset: int = 0
    batches: int = 0
    examples: int = 0
    episodes: int = 0
    """Episodes of classes drawn so far."""

    def __post_init__(self) -> None:
        # a permutation costs as much as its task has rows, so it is drawn once an epoch, not once a batch
        self._permute = functools.lru_cache(maxsize=1)(
            lambda epoch: permutation(len(self.dataset), self.seed, "order", self.name, epoch)
        )

    def take(self) -> NDArray[np.int64]:
        """Return the indices of the next batch. Batches do not cross epochs; the last one of an epoch may be short."""
        indices, self.epoch, self.offset = self.at(self.epoch, self.offset)
        self.count(len(indices))
        return indices

    def at(self, epoch: int, offset: int) -> tuple[NDArray[np.int64], int, int]:
        """Return the indices of the batch that comes at a place of the stream, and the place after it."""
        if offset >= len(self.dataset):
            epoch, offset = epoch + 1, 0
        indices = self._permute(epoch)[offset : offset + self.batch_size]
        return indices, epoch, offset + len(indices)

    def take_episode(self, support: int) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
        """Return the indices of `support` batches and one query batch, disjoint by example id.

        An episode lies within one epoch, so that no example can come twice; one that no longer fits starts the next.
        """
        check_episode(self.name, support + 1, self.batch_size, len(self.dataset))
        needed = (support + 1) * self.batch_size
        if self.offset + needed > len(self.dataset):
            self.epoch, self.offset = self.epoch + 1, 0
        chosen = self._permute(self.epoch)[self.offset : self.offset + needed]
        self.offset += needed
        *batches, last = chosen.reshape(-1, self.batch_size)
        seen = {self.dataset.ids[i] for batch in batches for i in batch}
        # ids should be unique in a file; where they are not, a twin of a support example may not be a query
        query = np.array([i for i in last if self.dataset.ids[i] not in seen], dtype=np.int64)
        if not len(query):
            raise DataError(self.dataset.file, f"task '{self.name}': ids repeat so often that no query example is left")
        self.count(support * self.batch_size + len(query), batches=support + 1)
        return batches, query

    @functools.cached_property
    def classes(self) -> Classes:
        """The examples by class; they take a pass over the labels. Raises DataError for a task without classes."""
        if not self.has_classes:
            raise DataError(f"task '{self.name}'", "has no classes to draw an episode from; leave it out")
        return Classes(self.name, self.dataset, self.seed)

    def take_classes(self, ways: int, shots: int, queries: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the indices of the support and the query of the next episode of classes."""
        ways = self.classes.ways(ways, shots + queries)
        support, query = self.classes.episode(ways, shots, queries, self.episodes)
        self.count_episode(len(support) + len(query))
        return support, query

    def count_episode(self, examples: int) -> None:
        """Count an episode of classes."""
        self.episodes += 1
        self.count(examples, batches=2)

    def count(self, examples: int, batches: int = 1) -> None:
        """Count what was read."""
        self.examples += examples
        self.batches += batches


class Feed:
    """What an algorithm draws tasks and batches from in one step."""

    def __init__(
        self,
        tasks: Mapping[str, Task],
        datasets: Mapping[str, Dataset],
        sampler: Sampler,
        *,
        seed: int,
        grad_accumulation: int = 1,
        pin: bool = False,
    ) -> None:
        self.tasks = tuple(tasks)
        self.step = 0
        self.steps = 1
        """Steps of the whole run; the loop sets it."""
        self.draws, self.planned = dict.fromkeys(self.tasks, 0), dict.fromkeys(self.tasks, 0.0)
        self._tasks = dict(tasks)
        self.packs = True
        """Whether batches hold their tokens; those that another rank computes need only be counted."""
        self._sampler, self._seed = sampler, seed
        self._chunks, self._pin = grad_accumulation, pin
        self.streams = {
            name: Stream(name, datasets[name], task.batch_size, seed, _has_classes(task))
            for name, task in tasks.items()
        }
        self._sizes = {name: len(datasets[name]) for name in self.tasks}
        self._worker = ThreadPoolExecutor(1, thread_name_prefix="mtmeta-feed")
        self._ahead: dict[str, tuple[tuple[int, int], Future[Batch]]] = {}

    def draw(self, count: int = 1, *, with_replacement: bool = False) -> list[str]:
        """`count` tasks drawn with the sampler's probabilities, in the recipe's order of tasks.

        Without replacement the weights of tasks already drawn in this step are taken out, so a task comes at most once.
        The order is fixed so that floating-point sums over the drawn tasks do not depend on the draw's order.
        """
        drawn: list[str] = []
        for slot in range(count):
            weights = self._probabilities(Draw(self.step * count + slot, self.steps * count))
            if not with_replacement:
                weights |= dict.fromkeys(drawn, 0.0)
            left = math.fsum(weights.values())
            if not left:
                message = f"draws {count} different tasks, but only {slot} have a weight above 0; lower tasks_per_step"
                raise RecipeError("sampler", message)
            for name in self.tasks:
                self.planned[name] += weights[name] / left
            drawn.append(self._pick(weights, uniform(self._seed, "sampler", self.step, slot)))
        for name in drawn:
            self.draws[name] += 1
        return sorted(drawn, key=self.tasks.index)

    def batch(self, task: str) -> Batch:
        """Return the task's next training batch."""
        stream = self.streams[task]
        if not self.packs:
            return self._pack(stream, stream.take())
        place, prepared = self._ahead.pop(task, (None, None))
        ready = prepared if place == (stream.epoch, stream.offset) else None
        indices = stream.take()
        batch = ready.result() if ready else self._pack(stream, indices)
        # while the step computes, the next batch is packed; what is drawn is a function of the place alone
        place = (stream.epoch, stream.offset)
        self._ahead[task] = place, self._worker.submit(lambda: self._packed(stream, stream.at(*place)[0]))
        return batch

    def episode(self, task: str, support: int) -> tuple[list[Batch], Batch]:
        """`support` support batches and one query batch, disjoint by example id. Raises DataError if too few."""
        stream = self.streams[task]
        support_indices, query = stream.take_episode(support)
        return [self._pack(stream, indices) for indices in support_indices], self._pack(stream, query)

    def episode_of_classes(self, task: str, ways: int, shots: int, queries: int) -> tuple[Batch, Batch]:
        """Return support and query of an episode of few shots, which is a function of seed, task and their number."""
        stream = self.streams[task]
        support, query = stream.take_classes(ways, shots, queries)
        return self._pack(stream, support), self._pack(stream, query)

    def examples_of_classes(self, task: str, most: int) -> Iterator[Batch]:
        """Yield up to `most` training examples of every class, always the same, in batches of the task's size."""
        stream = self.streams[task]
        indices = stream.classes.some_of_each(most)
        for start in range(0, len(indices), stream.batch_size):
            yield self._pack(stream, indices[start : start + stream.batch_size])

    def inner_steps(self, task: str) -> int:
        """Inner steps of one episode of the task."""
        return self._tasks[task].inner_steps

    def loss_weight(self, task: str) -> float:
        """Lambda of the task."""
        return self._tasks[task].loss_weight

    @property
    def batches_per_epoch(self) -> dict[str, int]:
        """Batches in one pass over each task's training set."""
        return {name: math.ceil(self._sizes[name] / stream.batch_size) for name, stream in self.streams.items()}

    @property
    def datasets(self) -> dict[str, Dataset]:
        """The training set of each task."""
        return {name: stream.dataset for name, stream in self.streams.items()}

    def usage(self) -> dict[str, dict[str, float]]:
        """Per task: draws planned and made, batches, examples and epochs read."""
        return {
            name: {
                "planned_draws": self.planned[name],
                "draws": self.draws[name],
                "batches": stream.batches,
                "examples": stream.examples,
                "epochs": stream.examples / len(stream.dataset),
            }
            for name, stream in self.streams.items()
        }

    def state(self) -> dict[str, dict[str, float]]:
        """Return how far each stream has been read."""
        read = {name: {key: getattr(stream, key) for key in COUNTERS} for name, stream in self.streams.items()}
        for name, stream in self.streams.items():
            read[name] |= {"draws": self.draws[name], "planned": self.planned[name]}
            if stream.episodes:  # where there are none, a checkpoint is as it was before there could be any
                read[name]["episodes"] = stream.episodes
        return read

    def load_state(self, state: Mapping[str, Mapping[str, float]]) -> None:
        """Go on where `state` was taken."""
        for name, stream in self.streams.items():
            for key in COUNTERS:
                setattr(stream, key, int(state[name][key]))
            stream.episodes = int(state[name].get("episodes", 0))
            self.draws[name], self.planned[name] = int(state[name]["draws"]), state[name]["planned"]

    def _pack(self, stream: Stream, indices: NDArray[np.int64]) -> Batch:
        if not self.packs:
            return Batch(stream.name, tuple(stream.dataset.ids[i] for i in indices), ())
        return self._packed(stream, indices)

    def _packed(self, stream: Stream, indices: NDArray[np.int64]) -> Batch:
        return pack(stream.dataset, indices, chunks=self._chunks, pin=self._pin)

    def _probabilities(self, draw: Draw) -> dict[str, float]:
        weights = dict.fromkeys(self.tasks, 0.0) | self._sampler.probabilities(self._sizes, draw)
        total = math.fsum(weights.values())
        fair = all(math.isfinite(w) and w >= 0 for w in weights.values())
        if set(weights) != set(self.tasks) or not fair or not total > 0:
            raise fault(self._sampler, f"sampler '{self._sampler.name}' gives unusable weights {safe(str(weights))}")
        return {name: weights[name] / total for name in self.tasks}

    def _pick(self, weights: Mapping[str, float], at: float) -> str:
        """Inverse of the cumulative weights, in the recipe's order of tasks."""
        names = [name for name in self.tasks if weights[name] > 0]
        target = at * math.fsum(weights.values())
        sums = accumulate(weights[name] for name in names)
        return next((name for name, passed in zip(names, sums, strict=True) if target < passed), names[-1])
