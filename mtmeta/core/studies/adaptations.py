"""The adaptations of a study, numbered: each from one start, to one draw of examples, with a head of its own.

Each begins from weights that are loaded anew and from seeds that are its own, so any process may do any of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from typing import Any, Literal

import numpy as np
from torch import Tensor

from mtmeta.core.data.dataset import Dataset, class_counts
from mtmeta.core.data.packing import pack_chunk
from mtmeta.core.data.subsets import FewShots
from mtmeta.core.machine import memory_errors
from mtmeta.core.rng import derive
from mtmeta.core.run.session import Session
from mtmeta.core.studies.adapted_runs import Keeper
from mtmeta.core.studies.fine_tune import Tuned, fine_tune, prototypes
from mtmeta.core.training import evaluation
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.occurring import OtherRows, token_embedding

HeadPolicy = Literal["reset", "prototype"]
PLAIN = "pretrained"
TRIED = 8  # examples with which it is tried whether rows of the embedding can be left out


@dataclass(frozen=True)
class Shots:
    """The adaptations of one start to one task."""

    sizes: Sequence[int] = (4, 16, 64)
    """Numbers of examples of each class."""
    draws: int = 5
    """Seeded draws of examples for each size."""
    head: HeadPolicy = "reset"
    baseline: str | None = None
    """A run that differences are to, beside those to the pretrained encoder."""


@dataclass(frozen=True)
class Adapted:
    """The result of one adaptation."""

    start: str
    task: str
    shots: int
    draw: int
    examples: int
    metric: str
    value: float
    seconds: float


@dataclass(frozen=True)
class Start:
    """Weights of an encoder that adaptation starts from, and the step they are of."""

    weights: dict[str, Tensor]
    step: int = 0
    own: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    """By task, what its adapters make of some of the weights."""

    def of(self, task: str) -> dict[str, Tensor]:
        """Return the weights that the adaptation to a task starts from."""
        return {**self.weights, **self.own.get(task, {})}


@dataclass(frozen=True)
class Outcome:
    """What came of one adaptation: the result, lines for the user by channel, and paths of runs kept."""

    adapted: Adapted
    lines: list[tuple[str, str]]
    kept: list[str]


@dataclass
class Channels:
    """Where lines for the user go; within an adaptation they are held back, for it may be another process."""

    warn_user: Callable[[str], None]
    say_to_user: Callable[[str], None]
    _held: list[tuple[str, str]] | None = field(default=None, init=False)

    def warn(self, text: str) -> None:
        """Warn, now or later."""
        self._put("warn", text)

    def say(self, text: str) -> None:
        """Say, now or later."""
        self._put("say", text)

    def hold(self) -> list[tuple[str, str]]:
        """Hold back what comes; it is collected in the list returned."""
        self._held = []
        return self._held

    def release(self, lines: Sequence[tuple[str, str]] = ()) -> None:
        """Hold nothing back any more, and put lines out that were."""
        self._held = None
        for channel, text in lines:
            self._put(channel, text)

    def _put(self, channel: str, text: str) -> None:
        if self._held is not None:
            self._held.append((channel, text))
        else:
            (self.warn_user if channel == "warn" else self.say_to_user)(text)


class Adaptations:
    """Adaptations by number: of a task all sizes, of a size all draws, of a draw all starts."""

    def __init__(
        self,
        session: Session,
        starts: Mapping[str, Start],
        data: Mapping[str, tuple[FewShots, Dataset]],
        plan: Shots,
        keeper: Keeper,
        channels: Channels,
    ) -> None:
        self._session, self._starts, self._data, self._plan = session, starts, data, plan
        self._keeper, self._channels = keeper, channels
        self._all = [
            (task, k, draw, start)
            for (task, (shots, _)), k in product(data.items(), plan.sizes)
            for draw, start in product(shots.draws(k, plan.draws), starts)
        ]
        self._draw = lru_cache(maxsize=1)(lambda task, k, draw: data[task][0].draw(k, draw))
        first = next(iter(data.values()))[0].train
        tried = pack_chunk(first, np.arange(min(TRIED, len(first))))
        self._embedding = token_embedding(session.backbone.encoder.to(session.device), tried.packed.to(session.device))

    def __len__(self) -> int:
        return len(self._all)

    def __call__(self, number: int) -> Outcome:
        """Adapt, score, and keep the model if it is one to be kept."""
        task, k, draw, start = self._all[number]
        few, (shots, test) = self._draw(task, k, draw), self._data[task]
        lines = self._channels.hold()
        try:
            adapted, model, tuned = self._adapt(start, few, test, k, draw)
            kept = draw == shots.first(k) and k == max(self._plan.sizes) and start != PLAIN
            paths = self._keeper.keep(start, model, few, test, tuned) if kept else []
        finally:
            self._channels.release()
        return Outcome(adapted, lines, paths)

    def _adapt(
        self, start: str, few: Dataset, test: Dataset, k: int, draw: int
    ) -> tuple[Adapted, MultiTaskModel, Tuned]:
        """Adapt the session's encoder to the few examples from a start's weights, and score it."""
        started = time.perf_counter()
        try:
            model, tuned = self._tune(start, few, k, draw, self._embedding)
        except OtherRows:
            model, tuned = self._tune(start, few, k, draw, "")
        metrics = [self._session.metrics[name] for name in self._session.recipe.tasks[few.task].metrics]
        predictions = evaluation.predict(model, test, scores=evaluation.wants_scores(metrics), **self._options)
        scored = self._session.measure(predictions, intervals=False)
        adapted = Adapted(
            start=start,
            task=few.task,
            shots=k,
            draw=draw,
            examples=len(few),
            metric=scored.metric,
            value=scored.value,
            seconds=round(time.perf_counter() - started, 3),
        )
        return adapted, model, tuned

    def _tune(self, start: str, few: Dataset, k: int, draw: int, embedding: str) -> tuple[MultiTaskModel, Tuned]:
        recipe, encoder, name = self._session.recipe, self._session.backbone.encoder, few.task
        encoder.load_state_dict(self._starts[start].of(name))
        task, seed = recipe.tasks[name], derive(recipe.seed, "adapt", name, k, draw)
        task = task.for_training(class_counts(few, task))
        model = MultiTaskModel(encoder, {name: task}, seed).to(self._session.device)
        if self._plan.head == "prototype":
            model.replace_head(name, prototypes(model, task, few, **self._options).to(self._session.device))
        with memory_errors(f"adapting to task '{name}'", "lower batch_size"):
            precision = self._session.precision
            tuned = fine_tune(model, few, recipe, precision=precision, draw=draw, embedding=embedding)
        return model, tuned

    @property
    def _options(self) -> dict[str, Any]:
        tokens = self._session.recipe.evaluation.batch_tokens
        return {"batch_tokens": tokens, "precision": self._session.precision}
