"""Counts of a server, as Prometheus reads them (text format 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from mtmeta.core.machine import resident_bytes

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """Counts by task. Threads may add to them at the same time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._texts: Counter[str] = Counter()
        self._times: dict[str, _Histogram] = {}
        self._batches: dict[str, _Histogram] = {}
        self.accepted = 0
        """Requests to predict whose head was read."""
        self.answered = 0
        """Those of them that were answered, whatever the answer."""

    def accept(self) -> None:
        """Count a request that has come."""
        with self._lock:
            self.accepted += 1

    def answer(self, task: str, status: int, seconds: float) -> None:
        """Count an answer; `task` is empty where there is none of that name."""
        with self._lock:
            self.answered += 1
            self._requests[task, status] += 1
            self._times.setdefault(task, _Histogram(SECONDS)).add(seconds)

    def batch(self, task: str, texts: int) -> None:
        """Count texts that were predicted together."""
        with self._lock:
            self._texts[task] += texts
            self._batches.setdefault(task, _Histogram(SIZES)).add(texts)

    def text(self, waiting: int) -> str:
        """Return all of it; `waiting` texts wait at the moment."""
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines(waiting))

    def _lines(self, waiting: int) -> Iterator[str]:
        yield from _head("mtmeta_requests_total", "counter", "Requests to predict, by task and status.")
        for (task, status), count in sorted(self._requests.items()):
            yield f'mtmeta_requests_total{{task="{_escaped(task)}",status="{status}"}} {count}'
        yield from _head("mtmeta_texts_total", "counter", "Texts predicted, by task.")
        for task, count in sorted(self._texts.items()):
            yield f'mtmeta_texts_total{{task="{_escaped(task)}"}} {count}'
        for name, about, histograms in (
            ("mtmeta_request_seconds", "Time from a request's head to its answer.", self._times),
            ("mtmeta_batch_texts", "Texts predicted together.", self._batches),
        ):
            yield from _head(name, "histogram", about)
            for task, histogram in sorted(histograms.items()):
                yield from histogram.lines(name, f'task="{_escaped(task)}"')
        yield from _head("mtmeta_waiting_texts", "gauge", "Texts that wait to be predicted.")
        yield f"mtmeta_waiting_texts {waiting}"
        if memory := resident_bytes():
            yield from _head("process_resident_memory_bytes", "gauge", "Memory of the process.")
            yield f"process_resident_memory_bytes {memory}"


class _Histogram:
    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds, self._counts, self._sum = bounds, [0] * (len(bounds) + 1), 0.0

    def add(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def lines(self, name: str, labels: str) -> Iterator[str]:
        below = 0
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            below += count
            yield f'{name}_bucket{{{labels},le="{bound}"}} {below}'
        yield f"{name}_sum{{{labels}}} {self._sum:.6f}"
        yield f"{name}_count{{{labels}}} {below}"


def _head(name: str, kind: str, about: str) -> Iterator[str]:
    yield f"# HELP {name} {about}"
    yield f"# TYPE {name} {kind}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
