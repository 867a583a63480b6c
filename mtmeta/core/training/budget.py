"""How many steps a budget of example-forwards pays for, found by going through the run without a model.

What an algorithm reads in a step is often a draw: which task, and with it how many inner steps. Every draw is a pure
function of the seed, so the number of steps is known before training, and schedules and samplers that look at the
whole run have its true length.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import nn

from mtmeta.core.api.batch import Batch
from mtmeta.core.api.contracts import Algorithm, Sampler, Task
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.feed import Feed, Stream
from mtmeta.core.errors import MtmetaError, RecipeError
from mtmeta.core.recipe.sections import AdapterOptions, Recipe
from mtmeta.core.registry.guard import fault, plugin_of
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel, NumbersOf
from mtmeta.core.training.spread.rehearsal import Rehearsal

MOST_STEPS = 10_000_000
PROBE = 64  # steps whose mean cost tells whether a budget has an end at all


def share_of(recipe: Recipe, group: Sequence[str]) -> int:
    """Of the recipe's budget, what a group's learner may spend: floor(B w / sum of all w)."""
    shares = recipe.budget.shares or dict.fromkeys(recipe.tasks, 1.0)
    weights = {task: Fraction(repr(shares[task])) for task in recipe.tasks}  # as written: 0.3, 0.58 and 0.12 make 1
    return math.floor((recipe.budget.examples or 0) * sum(weights[task] for task in group) / sum(weights.values()))


def steps_on_budget(
    recipe: Recipe,
    groups: Sequence[Sequence[str]],
    encoder: nn.Module,
    datasets: Mapping[str, Dataset],
    numbers: Callable[[Sequence[str], Sequence[str]], Mapping[str, float]],
) -> dict[str, int]:
    """Return the steps that the recipe's budget pays for, by group; empty if it has none. Takes training sets.

    Raises as `steps_within` does.
    """
    steps: dict[str, int] = {}
    for group in groups if recipe.budget.examples is not None else ():
        tasks = {task: recipe.tasks[task] for task in group}
        parts = (recipe.algorithm, recipe.sampler, encoder, tasks, datasets, recipe.seed)
        own = functools.partial(numbers, group)
        whole = recipe.budget.examples
        steps["+".join(group)] = steps_within(share_of(recipe, group), *parts, own, whole, adapters=recipe.adapters)
    return steps


def steps_within(
    budget: int,
    algorithm: Algorithm,
    sampler: Sampler,
    encoder: nn.Module,
    tasks: Mapping[str, Task],
    datasets: Mapping[str, Dataset],
    seed: int,
    numbers: Mapping[str, float] | NumbersOf | None = None,
    whole: int | None = None,
    *,
    adapters: AdapterOptions | None = None,
) -> int:
    """Return the most steps with which training spends at most `budget` example-forwards.

    `numbers` are what the algorithm trains beside the model; `whole` is the recipe's budget, where `budget` is a
    learner's share of it. Raises RecipeError if that is not one step or more than a run may have, PluginError if the
    algorithm cannot be gone through without a model.
    """
    shape = MultiTaskModel(_shapes_only(encoder), tasks, seed, numbers, adapters=adapters)
    given, raised = f"{budget:,} example-forwards", "it"
    if whole not in (None, budget):
        raised = "it or its share"
        given = f"of {whole:,} example-forwards, the {budget:,} of task {', '.join(map(repr, tasks))}"

    @functools.cache
    def walk(steps: int) -> tuple[int, int]:
        """Go through a run of that many steps until it is over budget; return steps gone and examples spent."""
        gone, spent = 0, 0
        for learner in _walk(shape, algorithm, sampler, datasets, steps):
            gone, spent = gone + 1, learner.examples
            if spent > budget:
                break
        return gone, spent

    _, first = walk(1)
    if not first:
        message = f"algorithm '{algorithm.name}' reads no example in its first step, so a budget has no end"
        raise fault(algorithm, f"{message}; give training.steps")
    if first > budget:
        message = f"{given} are less than one step takes ({first:,}); raise {raised} or lower batch_size"
        raise RecipeError("budget.examples", message)
    too_much = f"{given} are more than the {MOST_STEPS:,} steps take that a run may have; lower it"
    gone, spent = walk(PROBE)
    if spent * MOST_STEPS <= budget * gone:  # going through them all would take an hour
        raise RecipeError("budget.examples", too_much)
    guess = min(budget // first, MOST_STEPS)
    gone, spent = walk(guess)
    guess = gone - 1 if spent > budget else gone * budget // spent
    steps = _largest(lambda steps: walk(steps)[1] <= budget, at_least=1, most=MOST_STEPS, guess=guess)
    if steps == MOST_STEPS and walk(steps)[1] + first <= budget:
        raise RecipeError("budget.examples", too_much)
    return steps


def rehearse(
    steps: int,
    algorithm: Algorithm,
    sampler: Sampler,
    encoder: nn.Module,
    tasks: Mapping[str, Task],
    datasets: Mapping[str, Dataset],
    seed: int,
    numbers: Mapping[str, float] | NumbersOf | None = None,
    *,
    adapters: AdapterOptions | None = None,
) -> Iterator[dict[str, int]]:
    """Example-forwards of each task in each of the `steps` steps of a run, in order.

    Raises PluginError if the algorithm cannot be gone through without a model.
    """
    shape = MultiTaskModel(_shapes_only(encoder), tasks, seed, numbers, adapters=adapters)
    before = dict.fromkeys(tasks, 0)
    for learner in _walk(shape, algorithm, sampler, datasets, steps):
        now = {task: learner.read[task] for task in tasks}
        yield {task: now[task] - before[task] for task in tasks}
        before = now


def _walk(
    shape: MultiTaskModel, algorithm: Algorithm, sampler: Sampler, datasets: Mapping[str, Dataset], steps: int
) -> Iterator[Learner]:
    """Yield the learner after each step of a run of that many."""
    # copies: a part of a plugin may count for itself, and training is to find it as it was
    algorithm, sampler = _own(algorithm), _own(sampler)
    feed = _Counted(shape.tasks, datasets, sampler, seed=shape.seed)
    feed.steps = steps
    learner = Rehearsal(shape, seed=shape.seed, steps=steps)
    learner.device = torch.device("cpu")  # where losses are; the encoder's own has no numbers
    for step in range(steps):
        feed.step = step
        learner.begin_step(step)
        try:
            algorithm.backward(learner, feed)
            algorithm.after_step(learner, feed)
        except RecipeError:
            raise
        except MtmetaError as error:
            message = f"cannot be counted without training ({error.message}); give training.steps instead of a budget"
            raise fault(algorithm, message) from error
        yield learner


def _largest(fits: Callable[[int], bool], *, at_least: int, most: int, guess: int) -> int:
    """Return the largest number of `at_least` (it fits) to `most` that fits: strides from a guess, then halves."""
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


def _shapes_only(encoder: nn.Module) -> nn.Module:
    """Return the same modules on the meta device: names and shapes, no memory, nothing to be changed by accident."""
    tensors: dict[int, Any] = {id(buffer): torch.empty_like(buffer, device="meta") for buffer in encoder.buffers()}
    for parameter in encoder.parameters():
        tensors[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    return copy.deepcopy(encoder, tensors)


def _own(part: Any) -> Any:
    """Return a copy of a part, but for the plugin it came from, which cannot be copied."""
    plugin = plugin_of(part)
    return copy.deepcopy(part, {id(plugin): plugin} if plugin is not None else {})


class _Ids(Sequence[str]):
    """The ids of a batch, looked up only if the algorithm asks: of millions of rows that is what takes the time."""

    def __init__(self, size: int, look_up: Callable[[], Sequence[str]]) -> None:
        self._size = size
        self._look_up = functools.cache(look_up)

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, at: Any) -> Any:
        return self._look_up()[at]


def _of_size(stream: Stream, size: int, indices: Callable[[], Any]) -> Batch:
    """Return a batch without tokens, whose examples are found out only if the algorithm asks for their ids."""
    ids = _Ids(size, lambda: [stream.dataset.ids[i] for i in indices()])
    return Batch(stream.name, ids, ())  # type: ignore[arg-type]  # a sequence of them will do


class _Counted(Feed):
    """Draws as the feed does, and packs nothing."""

    def batch(self, task: str) -> Batch:
        # the sizes of batches are the same in any order, so no order is drawn
        stream = self.streams[task]
        if stream.offset >= len(stream.dataset):
            stream.epoch, stream.offset = stream.epoch + 1, 0
        place = stream.epoch, stream.offset
        size = min(stream.batch_size, len(stream.dataset) - stream.offset)
        stream.offset += size
        stream.count(size)
        return _of_size(stream, size, lambda: stream.at(*place)[0])

    def episode_of_classes(self, task: str, ways: int, shots: int, queries: int) -> tuple[Batch, Batch]:
        stream = self.streams[task]
        ways, at = stream.classes.ways(ways, shots + queries), stream.episodes
        stream.count_episode(ways * (shots + queries))

        draw = functools.partial(stream.classes.episode, ways, shots, queries, at)
        support = _of_size(stream, ways * shots, lambda: draw()[0])
        return support, _of_size(stream, ways * queries, lambda: draw()[1])

    def _pack(self, stream: Stream, indices: Any) -> Batch:
        return _of_size(stream, len(indices), lambda: indices)
