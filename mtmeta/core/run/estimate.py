"""Estimates of the seconds that training and evaluation take, from a few steps and batches that are really done."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls
from scipy.special import stdtrit

from mtmeta.core.api.contracts import Metric
from mtmeta.core.api.objectives import Objective
from mtmeta.core.data.dataset import Dataset, select
from mtmeta.core.machine import memory_errors
from mtmeta.core.rng import permutation
from mtmeta.core.training import evaluation
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.trainer import Trainer

ENOUGH = 4  # steps beside which the first one, slower than the rest, can be left out
REPEATS = 3
SLOW_DISK = 50e6
"""Bytes a second that a slow disk writes and confirms."""
FASTER, SLOWER = 0.85, 1.25
"""How far a run may be from what its probe foretells, for nobody knows what else a machine will do by then."""
LEAST_EXAMPLES = 64
CONFIDENCE = 0.9  # of either side: 80% between them, by Student's t, for few measurements make it wide


@dataclass
class Measured:
    """Examples that each probed step read of each task, and how long it took."""

    reads: list[dict[str, int]] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def examples(self, tasks: Sequence[str], steps: int) -> dict[str, float] | None:
        """Return the example-forwards by task of so many steps, if they are like those that were probed."""
        if not self.seconds:
            return None
        return {task: steps * float(np.mean([read.get(task, 0) for read in self.reads])) for task in tasks}


@dataclass(frozen=True)
class Seconds:
    """An estimate, and by how much it may be off (80%, None where too little was measured to say)."""

    seconds: float
    off: float | None

    def times(self, count: int) -> Seconds:
        """Return the estimate of so many of the same, which are all off by as much as the one."""
        return Seconds(count * self.seconds, None if self.off is None else count * self.off)

    def json(self) -> dict[str, float | None]:
        """Return the seconds and the 80% interval around them, rounded to milliseconds."""
        low, high = (None, None) if self.off is None else (max(0.0, self.seconds - self.off), self.seconds + self.off)
        interval = {"seconds": self.seconds, "low": low, "high": high}
        return {key: None if value is None else round(value, 3) for key, value in interval.items()}


def foretold(total: Seconds, waiting: float, written: int = 0) -> dict[str, float]:
    """Return the seconds of a whole run, and the range that most runs fall into; it writes so many bytes.

    Beside what was measured too little, a machine changes: where the probe waited for a processor for the share
    `waiting` of its time, because others worked, the run may have it for itself, or wait longer. How often runs fall
    into the range `python -m benchmarks.dry_run` counts.
    """
    off = total.off if total.off is not None else total.seconds / 2
    low = max(0.0, total.seconds - off) * (1 - min(waiting, 0.9)) * FASTER
    high = (
        (total.seconds + off + written / SLOW_DISK) * (1 + 2 * waiting) * SLOWER
    )  # who waits much also waits unevenly
    return {key: round(value, 3) for key, value in {"seconds": total.seconds, "low": low, "high": high}.items()}


def together(parts: Sequence[Seconds]) -> Seconds:
    """Return the sum of estimates that are off independently of each other."""
    known = [part.off for part in parts if part.off is not None]
    off = math.hypot(*known) if len(known) == len(parts) else None
    return Seconds(math.fsum(part.seconds for part in parts), off)


def picked(reads: NDArray[np.int64], start: int, steps: int) -> list[int]:
    """Pick steps to probe, from `start`: spread over the run, those first that between them read every task.

    `reads` are the example-forwards [steps, tasks] of the run.
    """
    start = min(start, len(reads) - 1)
    spread = np.unique(np.linspace(start, len(reads) - 1, num=min(steps, len(reads) - start)).astype(int)).tolist()
    read = reads[start:] > 0
    first = sorted({start + int(step) for step in read.argmax(axis=0)[read.any(axis=0)]})  # the first of each task
    return [*first, *(step for step in spread if step not in first)][: max(steps, 1)]


def probe(trainer: Trainer, reads: NDArray[np.int64], start: int, steps: int, seconds: float) -> Measured:
    """Train some steps of a run in memory and time them; ends early after so many seconds, but not before a step.

    One batch of each task goes first, untimed: it compiles, allocates and fills caches, as the run does but once.
    """
    learner, feed, began = trainer.learner, trainer.feed, time.perf_counter()
    trainer.budget = None  # the warm-up is no part of it
    trainer.start()
    learner.begin_step(0)
    with memory_errors("the probe", "lower batch_size or max_length"):
        for task in feed.tasks:
            learner.gradient(feed.batch(task))
    measured = Measured()
    for step in picked(reads, start, steps):
        before = dict(learner.read)
        trainer.step = step
        at = time.perf_counter()
        trainer.make_step()
        measured.seconds.append(time.perf_counter() - at)
        measured.reads.append({task: count - before.get(task, 0) for task, count in learner.read.items()})
        if time.perf_counter() - began > seconds:
            break
    covered = {task for read in measured.reads[1:] for task, count in read.items() if count}
    if len(measured.seconds) > ENOUGH and {task for task, count in measured.reads[0].items() if count} <= covered:
        del measured.reads[0], measured.seconds[0]
    return measured


def predicted(measured: Measured, tasks: Sequence[str], examples: Mapping[str, float], steps: int) -> Seconds:
    """Predict the seconds of `steps` steps that read so many examples of each task.

    A step takes a fixed time and one for each example, by task; least squares without negative times finds them.
    """
    rows = np.array([[1.0, *(read.get(task, 0) for task in tasks)] for read in measured.reads])
    taken = np.array(measured.seconds)
    weight = 1.0 / taken  # relative errors: a long step is no better known than a short one
    rates, _ = nnls(rows * weight[:, None], taken * weight)
    total = float(rates @ np.array([float(steps), *(examples[task] for task in tasks)]))
    free = len(taken) - int(np.linalg.matrix_rank(rows))
    if free < 1:
        return Seconds(total, None)
    relative = (taken - rows @ rates) / np.maximum(rows @ rates, 1e-12)
    spread = math.sqrt(float((relative**2).sum()) / free)
    wide = float(stdtrit(free, CONFIDENCE))
    return Seconds(total, wide * total * spread * math.sqrt(1 / len(taken) + 1 / max(1, steps)))


def evaluation_seconds(
    model: MultiTaskModel,
    data: Dataset,
    *,
    batch_tokens: int,
    precision: Literal["fp32", "bf16"],
    seed: int,
    until: float = math.inf,
) -> Seconds:
    """Measure one evaluation of a dataset, from three random parts of it of one batch each, or all of it.

    After the time `until`, by `time.perf_counter`, no further part is begun.
    """
    share = min(1.0, batch_tokens / max(1, data.tokens))
    count = min(len(data), max(LEAST_EXAMPLES, math.ceil(share * len(data))))
    if time.perf_counter() > until:
        count = min(count, LEAST_EXAMPLES // 4)
    taken = []
    for turn in range(REPEATS + 1):
        chosen = np.sort(permutation(len(data), seed, "probe", data.task, turn)[:count])
        part = select(data, chosen) if count < len(data) else data
        at = time.perf_counter()
        evaluation.predict(model, part, batch_tokens=batch_tokens, precision=precision)
        taken.append((time.perf_counter() - at) * data.tokens / max(1, part.tokens))
        if time.perf_counter() > until:
            break
    timed = taken[1:] or taken  # the first one finds no buffers yet
    if len(timed) < 2:
        return Seconds(timed[0], None)
    wide = float(stdtrit(len(timed) - 1, CONFIDENCE))
    return Seconds(float(np.mean(timed)), wide * float(np.std(timed, ddof=1)) / math.sqrt(len(timed)))


def interval_seconds(metric: Metric, data: Dataset, objective: Objective) -> float:
    """Measure the seconds of the bootstrap interval of a metric."""
    labels: Any = data.by_example(data.labels)
    # labels in the place of the head's outputs: of the right number, and of a like spread
    scores = labels if labels.ndim > 1 else np.repeat(labels[:, None], objective.outputs, axis=1)
    seen = metric.seen({"scores": scores, "ids": np.array(list(data.ids), object), "classes": objective.classes})
    taken = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(REPEATS + 1):
            at = time.perf_counter()
            metric(labels, labels, **seen)
            taken.append(time.perf_counter() - at)
    return evaluation.BOOTSTRAP_DRAWS * float(np.median(taken[1:]))
