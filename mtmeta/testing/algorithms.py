"""The contract of an algorithm that the training loop, checkpoints and resuming rely on, as a check."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from mtmeta.core.api.contracts import Algorithm, Task
from mtmeta.core.errors import DivergedError, RecipeError
from mtmeta.testing.tiny import builtins, check, check_documented, tiny_learner

if TYPE_CHECKING:
    from torch import Tensor

    from mtmeta.core.data.feed import Feed
    from mtmeta.core.training.learner import Learner

RATE = 0.05  # of the plain gradient steps between two directions
Directions = list[dict[str, "Tensor | None"]]
"""The direction of each step, by parameter name."""


def check_algorithm(algorithm: Algorithm, *, tasks: Mapping[str, Task] | None = None, steps: int = 3) -> None:
    """Check that an algorithm keeps its contract, for `steps` steps on the tasks of `tiny_learner`, or on `tasks`.

    - Class and options are documented; `groups` has every task once; an epoch has one step or more.
    - `backward` computes a gradient, leaves a finite direction in `.grad`, in memory of its own, and None for the
      heads of tasks it computed nothing for; the parameters stay bit for bit the same.
    - The same seed gives the same directions, whatever the state of the global random generators is, and from an
      object that has been used before: all randomness is a function of seed, step and task.
    - Taken up in the middle from the state that a checkpoint holds, its own `state` with it, it goes on with the same
      directions. That state is of finite tensors; `after_step` changes no parameter.
    - A budget in examples can go through it without a model, as `budget.examples` does to count its steps, and finds
      no fewer example-forwards than it then takes.
    - Where a gradient fails inside `backward`, also in the middle of an inner loop, the failure comes out, the
      parameters are unchanged, and the next step can be made.
    - It trains a single task, unless its own `check` refuses one.
    """
    if tasks is None:
        tasks = tiny_learner(examples=1)[0].tasks
    for group in _groups(algorithm, tasks):
        used = copy.deepcopy(algorithm)
        first = _walk(used, group, steps, random_seed=1)
        for who, again in (("of the same seed", copy.deepcopy(algorithm)), ("of the same object", used)):
            _check_same(first, _walk(again, group, steps, random_seed=2), f"differs between two runs {who}")
        if steps > 1:
            _check_resume(algorithm, group, first)
        _check_rehearsal(algorithm, group, steps)
        _check_failure(algorithm, group)
    alone = dict(list(tasks.items())[:1])
    if len(tasks) > 1 and not list(algorithm.check(alone)):
        _walk(copy.deepcopy(algorithm), alone, 1, random_seed=1)
    check_documented(type(algorithm), Algorithm)


def _groups(algorithm: Algorithm, tasks: Mapping[str, Task]) -> list[dict[str, Task]]:
    groups = [list(group) for group in algorithm.groups(list(tasks))]
    grouped = [task for group in groups for task in group]
    check(sorted(grouped) == sorted(tasks), f"groups has the tasks {grouped}, expected each of them once")
    for option, message in algorithm.check(tasks):
        check(False, f"{option} {message}")
    with suppress(RecipeError):  # it counts no epochs
        epoch = algorithm.steps_per_epoch(dict.fromkeys(tasks, 3))
        check(isinstance(epoch, int) and epoch >= 1, f"steps_per_epoch is {epoch!r}, expected a whole number from 1")
    return [{task: tasks[task] for task in group} for group in groups]


def _begin(algorithm: Algorithm, group: Mapping[str, Task], steps: int) -> tuple[Learner, Feed]:
    learner, feed = tiny_learner(group, algorithm=algorithm)
    feed.steps = learner.steps = steps
    learner.model.train()
    return learner, feed


def _walk(algorithm: Algorithm, group: Mapping[str, Task], steps: int, *, random_seed: int) -> Directions:
    learner, feed = _begin(algorithm, group, steps)
    return [_one_step(algorithm, learner, feed, step, random_seed) for step in range(steps)]


def _one_step(algorithm: Algorithm, learner: Learner, feed: Feed, step: int, random_seed: int) -> dict[str, Any]:
    """Make one step as the loop does, with a plain gradient step for an optimizer; returns the direction."""
    import torch

    theta = {name: parameter.detach().clone() for name, parameter in learner.parameters.items()}
    feed.step = step
    learner.begin_step(step)
    random.seed(random_seed + step)  # none of these may decide anything
    torch.manual_seed(random_seed + step)
    with learner.counting():
        algorithm.backward(learner, feed)
    check(bool(learner.losses), f"step {step}: no gradient was computed by the learner")
    used = [task for task, *_ in learner.losses]
    direction = {name: parameter.grad for name, parameter in learner.parameters.items()}
    check(any(grad is not None for grad in direction.values()), f"step {step}: every .grad is None")
    for name, parameter in learner.parameters.items():
        check(parameter.equal(theta[name]), f"step {step}: backward changed {name}; only .grad may change")
        grad = direction[name]
        if grad is not None:
            check(bool(grad.isfinite().all()), f"step {step}: the direction of {name} is not finite")
            owner = name.split(".")[1] if name.startswith("heads.") else None
            check(owner is None or owner in used, f"step {step}: {name} has a direction, but no loss of its task")
    _check_own_memory(learner, step)
    copied = {name: None if grad is None else grad.clone() for name, grad in direction.items()}
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            if (grad := direction[name]) is not None:
                parameter.add_(grad, alpha=-RATE)
    theta = {name: parameter.detach().clone() for name, parameter in learner.parameters.items()}
    with learner.counting():
        algorithm.after_step(learner, feed)
    learner.scratch.clear()
    for name, parameter in learner.parameters.items():
        check(parameter.equal(theta[name]), f"step {step}: after_step changed {name}; it may only look")
    _check_state(algorithm, learner, step)
    return copied


def _check_state(algorithm: Algorithm, learner: Learner, step: int) -> None:
    """Check that the algorithm's own state is one that a checkpoint can hold."""
    from torch import Tensor

    for name, tensor in algorithm.state(learner).items():
        fits = isinstance(name, str) and bool(name) and "|" not in name and isinstance(tensor, Tensor)
        check(fits, f"step {step}: state holds {name!r}: {type(tensor).__name__}; expected tensors, names without '|'")
        finite = not tensor.is_floating_point() or bool(tensor.isfinite().all())
        check(finite, f"step {step}: {name} of the state is not finite")


def _check_own_memory(learner: Learner, step: int) -> None:
    """Check that no `.grad` shares memory: clipping scales each in place, so a shared one would be scaled twice."""
    owners = {parameter.data_ptr(): name for name, parameter in learner.parameters.items()}
    for name, parameter in learner.parameters.items():
        if parameter.grad is not None:
            place = parameter.grad.data_ptr()
            message = f"step {step}: the direction of {name} is the memory of {owners.get(place)}; leave a clone"
            check(place not in owners, message)
            owners[place] = f"the direction of {name}"


def _check_same(one: Directions, two: Directions, message: str, first: int = 0) -> None:
    for step, (a, b) in enumerate(zip(one, two, strict=True), start=first):
        for name, grad in a.items():
            other = b[name]
            same = other is None if grad is None else other is not None and grad.equal(other)
            check(same, f"step {step}: the direction of {name} {message}")


def _check_resume(algorithm: Algorithm, group: Mapping[str, Task], expected: Directions) -> None:
    """Check that a checkpoint after the first step can be taken up by a new learner, feed and algorithm."""
    import torch

    steps = len(expected)
    before, feed = _begin(algorithm, group, steps)
    stepped = copy.deepcopy(algorithm)
    _one_step(stepped, before, feed, 0, random_seed=1)
    after, fresh = _begin(algorithm, group, steps)
    with torch.no_grad():
        for name, parameter in after.parameters.items():
            parameter.copy_(before.parameters[name])
    states = copy.deepcopy(before.inner_states())
    after.load_inner_states(states)
    after.examples = before.examples
    after.episodes.update(before.episodes)
    fresh.load_state(feed.state())
    pristine = copy.deepcopy(algorithm)
    saved = {name: tensor.detach().clone() for name, tensor in stepped.state(before).items()}
    pristine.restore(after, saved)
    rest = [_one_step(pristine, after, fresh, step, random_seed=3) for step in range(1, steps)]
    message = "is another after a checkpoint; it may depend on parameters, seed, step, tasks and `state` only"
    _check_same(expected[1:], rest, message, first=1)


def _check_rehearsal(algorithm: Algorithm, group: Mapping[str, Task], steps: int) -> None:
    """Check that what the algorithm reads can be counted before training, for a budget in examples."""
    from mtmeta.core.training.budget import rehearse

    learner, feed = _begin(algorithm, group, steps)
    parts = (algorithm, builtins().get("sampler", "uniform", "sampler")(), learner.model.encoder, group, feed.datasets)
    numbers = partial(algorithm.parameters_of, list(group))
    try:
        counted = list(rehearse(steps, *parts, learner.seed, numbers))
    except Exception as error:  # of any kind: it is the algorithm's own
        message = f"it cannot be gone through without a model, as budget.examples does: {type(error).__name__}: {error}"
        raise AssertionError(
            f"{message}; a batch has ids and a length there and no chunks, every .grad is None, losses are 0"
        ) from error
    trained = copy.deepcopy(algorithm)
    for step in range(steps):
        _one_step(trained, learner, feed, step, random_seed=1)
        expected = sum(sum(read.values()) for read in counted[: step + 1])
        message = (
            f"takes {learner.examples} example-forwards by step {step}, {expected} when gone through without a model"
        )
        check(learner.examples <= expected, f"{message}; a budget.examples would end it")


class _Failure(DivergedError):
    """Error of the failing gradients; the loop leaves such a step out, where the recipe says so."""


def _check_failure(algorithm: Algorithm, group: Mapping[str, Task]) -> None:
    """Let the first and the last gradient of a step fail, then make the step."""
    learner, feed = _begin(algorithm, group, 4)
    calls = _Calls(learner)
    pristine = copy.deepcopy(algorithm)
    pristine.backward(learner, feed)
    for step, failing in enumerate(dict.fromkeys((1, calls.count)), start=1):
        theta = [parameter.detach().clone() for parameter in learner.parameters.values()]
        feed.step = step
        learner.begin_step(step)
        state = {name: tensor.detach().clone() for name, tensor in pristine.state(learner).items()}
        calls.begin(failing)
        try:
            pristine.backward(learner, feed)
            raised = calls.count < failing  # the step computed fewer gradients than the one before
        except _Failure:
            raised = True
        check(raised, "a DivergedError of learner.gradient was swallowed; the training loop has to see it")
        for (name, parameter), home in zip(learner.parameters.items(), theta, strict=True):
            message = f"{name} is not what it was after gradient {failing} of a step failed; use learner.excursion"
            check(parameter.equal(home), message)
        learner.forget_inner_states()
        pristine.restore(learner, state)
    calls.begin()
    _one_step(pristine, learner, feed, 3, random_seed=1)


class _Calls:
    """Counts the gradients that a learner computes in a step, and lets one of them fail."""

    def __init__(self, learner: Learner) -> None:
        self.begin()
        for name in ("gradient", "descend"):
            setattr(learner, name, self._counted(getattr(learner, name)))

    def begin(self, failing: int | None = None) -> None:
        """Count from 0 again; the gradient of the number `failing` is to fail."""
        self.failing, self.count = failing, 0

    def _counted(self, compute: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def counted(*arguments: Any, **options: Any) -> Tensor:
            self.count += 1
            if self.count == self.failing:
                raise _Failure("a gradient", "fails on purpose, to see what becomes of it")
            return compute(*arguments, **options)

        return counted
