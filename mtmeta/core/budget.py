"""How many steps a budget of example-forwards pays for, found by going through the run without a model.

What an algorithm reads in a step is often a draw: which task, and with it how many inner steps. Every draw is a pure
function of the seed, so the number of steps is known before training, and schedules and samplers that look at the
whole run have its true length.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtmeta.core.blame import blame, supplier
from mtmeta.core.contracts import Algorithm, Sampler, Task
from mtmeta.core.data import Dataset
from mtmeta.core.errors import MtmetaError, PluginError, RecipeError
from mtmeta.core.feed import Feed
from mtmeta.core.learner import Learner
from mtmeta.core.model import MultiTaskModel
from mtmeta.core.packing import Batch

__all__ = ["steps_within"]

MOST_STEPS = 10_000_000


def steps_within(
    budget: int,
    algorithm: Algorithm,
    sampler: Sampler,
    encoder: nn.Module,
    tasks: Mapping[str, Task],
    datasets: Mapping[str, Dataset],
    seed: int,
    numbers: Mapping[str, float] | None = None,
) -> int:
    """The most steps with which training spends at most `budget` example-forwards.

    `numbers` are what the algorithm trains beside the model.

    Raises RecipeError if that is not one step, PluginError if the algorithm cannot be gone through without a model.
    """
    shape = MultiTaskModel(_shapes_only(encoder), tasks, seed, numbers)

    def walk(steps: int) -> tuple[int, int]:
        """Goes through a run of that many steps until it is over budget; steps gone and example-forwards spent."""
        feed = _Counted(tasks, datasets, sampler, seed=seed)
        feed.steps = steps
        learner = _Rehearsal(shape, seed=seed, steps=steps, check_each_loss=False)
        for step in range(steps):
            feed.step = step
            learner.begin_step(step)
            _rehearse(algorithm, learner, feed)
            if learner.examples > budget:
                return step + 1, learner.examples
        return steps, learner.examples

    _, first = walk(1)
    if not first:
        what = f"algorithm '{algorithm.name}' reads no example in its first step, so a budget has no end"
        raise PluginError(supplier(algorithm, "algorithm"), f"{what}; give training.steps")
    if first > budget:
        what = f"{budget:,} example-forwards are less than one step takes ({first:,}); raise it or lower batch_size"
        raise RecipeError("budget.examples", what)
    guess = min(budget // first, MOST_STEPS)
    gone, spent = walk(guess)
    guess = gone - 1 if spent > budget else gone * budget // spent
    return _largest(lambda steps: walk(steps)[1] <= budget, at_least=1, most=MOST_STEPS, guess=guess)


def _largest(fits: Callable[[int], bool], *, at_least: int, most: int, guess: int) -> int:
    """The largest number from `at_least`, which fits, to `most` that fits: in strides from a guess, then by halves."""
    good, bad = at_least, most + 1
    guess = min(max(guess, at_least), most)
    stride = 1
    if fits(guess):
        good = guess
        while good + stride < bad:
            if not fits(good + stride):
                bad = good + stride
                break
            good, stride = good + stride, 2 * stride
    else:
        bad = guess
        while bad - stride > good:
            if fits(bad - stride):
                good = bad - stride
                break
            bad, stride = bad - stride, 2 * stride
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def _rehearse(algorithm: Algorithm, learner: _Rehearsal, feed: Feed) -> None:
    try:
        with blame(algorithm, "algorithm"):
            algorithm.backward(learner, feed)
    except RecipeError:
        raise
    except MtmetaError as error:
        what = f"cannot be counted without training ({error.what}); give training.steps instead of a budget"
        raise PluginError(supplier(algorithm, "algorithm"), what) from error


def _shapes_only(encoder: nn.Module) -> nn.Module:
    """The same modules on the meta device: names and shapes, no memory, nothing to be changed by accident."""
    tensors: dict[int, Any] = {}
    for parameter in encoder.parameters():
        tensors[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in encoder.buffers():
        tensors[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(encoder, tensors)


class _Counted(Feed):
    """Draws as the feed does, and packs nothing."""

    def batch(self, task: str) -> Batch:
        stream = self._streams[task]
        return self._pack(stream, stream.take())

    def _pack(self, stream: Any, indices: Any) -> Batch:
        return Batch(stream.name, tuple(stream.dataset.ids[i] for i in indices), ())


class _Rehearsal(Learner):
    """Counts what would go through the encoder. Gradients stay absent, as those of parameters that nothing touched."""

    def gradient(self, batch: Batch, scale: float | Tensor = 1.0) -> Tensor:
        self.examples += len(batch)
        self.losses.append((batch.task, self._inner_step, torch.zeros(())))
        return self.losses[-1][2]

    @contextmanager
    def excursion(self, task: str, *options: Any, **more: Any) -> Iterator[Any]:
        if self._away:
            raise RuntimeError("an excursion is under way already; they cannot be nested")
        self._inner_step, self._away = 0, True
        try:
            yield _Trip(self)
            self.episodes[task] += 1
        finally:
            self._away = False


class _Trip:
    """An excursion that goes nowhere."""

    def __init__(self, learner: _Rehearsal) -> None:
        self._learner = learner

    def step(self, *batches: Batch, scale: Callable[[str], float] = lambda task: 1.0) -> None:
        for batch in batches:
            self._learner.gradient(batch, scale(batch.task))
        self._learner._inner_step += 1

    def keep_delta(self, scale: float = 1.0) -> None:
        pass

    def keep_gradient(self, batch: Batch, scale: float = 1.0) -> None:
        self._learner.gradient(batch, scale)
        self._learner._inner_step += 1
