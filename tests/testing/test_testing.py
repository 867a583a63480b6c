"""What plugin authors test with: right parts pass, and each kind of fault is noticed by name."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

import mtmeta
from mtmeta.core.registry.discovery import load_plugins
from mtmeta.core.registry.registry import Registry
from mtmeta.testing.algorithms import check_algorithm
from mtmeta.testing.launchers import check_launcher
from mtmeta.testing.tasks import check_task
from mtmeta.testing.tiny import tiny_learner


class Spoiled(mtmeta.Algorithm):
    """Joint learning, then something forbidden."""

    name = "spoiled"
    calls: ClassVar[Iterator[int]] = itertools.count(1)

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks[:2]:
            learner.gradient(feed.batch(task))
        self.spoil(learner)

    def spoil(self, learner: mtmeta.Learner) -> None:
        """Nothing, here."""


class MovesTheta(Spoiled):
    def spoil(self, learner: mtmeta.Learner) -> None:
        next(iter(learner.parameters.values())).data.add_(1.0)


class LeavesNan(Spoiled):
    def spoil(self, learner: mtmeta.Learner) -> None:
        learner.put_gradient([None if g is None else g / 0 for g in learner.take_gradient()])


class LeavesNothing(Spoiled):
    def spoil(self, learner: mtmeta.Learner) -> None:
        learner.clear_gradient()


class FillsWithZeros(Spoiled):
    def spoil(self, learner: mtmeta.Learner) -> None:
        for parameter in learner.parameters.values():
            parameter.grad = parameter.detach() * 0 if parameter.grad is None else parameter.grad


class Unrepeatable(Spoiled):
    def spoil(self, learner: mtmeta.Learner) -> None:
        learner.put_gradient([None if g is None else g * next(self.calls) for g in learner.take_gradient()])


class Aliases(Spoiled):
    def spoil(self, learner: mtmeta.Learner) -> None:
        for parameter in learner.parameters.values():
            parameter.grad = None if parameter.grad is None else parameter.data


class Global(Spoiled):
    """Goes by a random generator that no checkpoint holds."""

    def spoil(self, learner: mtmeta.Learner) -> None:
        learner.put_gradient([None if g is None else g * random.random() for g in learner.take_gradient()])


@dataclass(frozen=True)
class Momentum(Spoiled):
    """Remembers the last direction, where no checkpoint can see it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "last", {})

    def spoil(self, learner: mtmeta.Learner) -> None:
        kept: dict[int, list[torch.Tensor]] = self.last  # type: ignore[attr-defined]
        direction = [torch.zeros_like(p) if p.grad is None else p.grad for p in learner.parameters.values()]
        old = kept.get(learner.step - 1) or [0.0 * x for x in direction]
        kept[learner.step] = [x + y for x, y in zip(direction, old, strict=True)]
        touched = [p.grad is not None for p in learner.parameters.values()]
        learner.put_gradient([g.clone() if t else None for g, t in zip(kept[learner.step], touched, strict=True)])


class Swallowing(Spoiled):
    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            with contextlib.suppress(mtmeta.DivergedError):
                learner.gradient(feed.batch(task))


class Wandering(Spoiled):
    """An inner loop by hand, which comes back only if nothing goes wrong."""

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        theta = [parameter.detach().clone() for parameter in learner.parameters.values()]
        for _ in range(2):
            learner.clear_gradient()
            learner.gradient(feed.batch("sst"))
            self.move([p - 0.1 * (0 if p.grad is None else p.grad) for p in learner.parameters.values()], learner)
        self.move(theta, learner)

    def move(self, there: Sequence[Any], learner: mtmeta.Learner) -> None:
        for parameter, values in zip(learner.parameters.values(), there, strict=True):
            parameter.data.copy_(values)


class Sociable(Spoiled):
    """Needs a second task, and does not say so."""

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.draw(2):
            learner.gradient(feed.batch(task))


class Epochless(Spoiled):
    def steps_per_epoch(self, batches: Mapping[str, int]) -> int:
        return 0


@dataclass(frozen=True)
class Optional(Spoiled):
    """An option without a word."""

    strength: float = 1.0


class Mute(mtmeta.Algorithm):
    name = "mute"
    backward = Spoiled.backward
    spoil = Spoiled.spoil


class LosesATask(Spoiled):
    def groups(self, tasks: Sequence[str]) -> list[list[str]]:
        return [[task] for task in tasks[1:]]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (MovesTheta, "step 0: backward changed encoder.* only .grad may change"),
        (LeavesNan, "step 0: the direction of encoder.* is not finite"),
        (LeavesNothing, "step 0: every .grad is None"),
        (FillsWithZeros, "step 0: heads.sts.* has a direction, but no loss of its task"),
        (Unrepeatable, "step 0: the direction of encoder.* differs between two runs of the same seed"),
        (Aliases, "the direction of encoder.* is the memory of encoder.*; leave a clone"),
        (Global, "step 0: the direction of encoder.* differs between two runs of the same seed"),
        (Momentum, "step 1: the direction of encoder.* is another after a checkpoint"),
        (Swallowing, "a DivergedError of learner.gradient was swallowed"),
        (Wandering, "is not what it was after gradient 2 of a step failed; use learner.excursion"),
        (Epochless, "steps_per_epoch is 0, expected a whole number from 1"),
        (Optional, "option strength has no help"),
        (Mute, "Mute has no docstring"),
        (LosesATask, "expected each of them once"),
    ],
)
def test_check_algorithm_notices(kind: type[mtmeta.Algorithm], expected: str) -> None:
    with pytest.raises(AssertionError, match=expected):
        check_algorithm(kind(), steps=2 if kind is Momentum else 1)


def test_check_algorithm_tries_one_task() -> None:
    with pytest.raises(mtmeta.RecipeError, match="draws 2 different tasks, but only 1"):
        check_algorithm(Sociable(), steps=1)


@pytest.mark.slow
def test_check_algorithm_passes_what_is_right() -> None:
    check_algorithm(Spoiled(), steps=2)
    registry = Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"}))
    tasks = dict(tiny_learner()[0].tasks)
    classes = {name: task for name, task in tasks.items() if task.objective.classes}  # protonet takes no other
    for name in registry.names("algorithm"):
        options = {"shots": 2, "queries": 2} if name == "protonet" else {}
        algorithm = registry.get("algorithm", name, "")(**options)
        check_algorithm(algorithm, tasks=classes if name == "protonet" else tasks, steps=1)


ROWS: list[dict[str, object]] = [{"sentence": "They sleep.", "label": 1}, {"sentence": "Sleep they the.", "label": 0}]


class Plain(mtmeta.Task):
    """Two classes."""

    name = "plain"
    objective = mtmeta.Classification(labels=2)
    metrics = ("accuracy",)

    def read(self, file: mtmeta.DataFile) -> Iterator[mtmeta.Example]:
        for row in file.rows("sentence", "label"):
            yield mtmeta.Example(row["sentence"], label=row["label"], id=row.id, line=row.line)


class Swallows(Plain):
    def read(self, file: mtmeta.DataFile) -> Iterator[mtmeta.Example]:
        yield from itertools.islice(super().read(file), 2)


class Cuts(mtmeta.Classification):
    def loss(self, outputs: Any, labels: Any) -> Any:
        return super().loss(outputs * 0, labels)


class CutsTask(Plain):
    objective = Cuts(labels=2)


class Deafened(mtmeta.Classification):
    def soft_loss(self, outputs: Any, labels: Any, teacher: Any, trust: float) -> Any:
        return self.loss(outputs, labels) * (1.5 - trust)


class DeafenedTask(Plain):
    objective = Deafened(labels=2)


class Undecoded(mtmeta.Classification):
    def decode(self, outputs: Any) -> Any:
        return outputs


class UndecodedTask(Plain):
    objective = Undecoded(labels=2)


class Unshown(mtmeta.Classification):
    def show(self, prediction: float) -> str:
        return f"class {prediction}"


class UnshownTask(Plain):
    objective = Unshown(labels=2)


class Vague(mtmeta.Regression):
    def show(self, prediction: float) -> str:
        return f"about {prediction:.1f}"


class VagueTask(mtmeta.Task):
    name = "vague"
    objective = Vague()
    metrics = ("pearson",)
    read = Plain.read

    def build_head(self, hidden_size: int) -> Any:
        return mtmeta.MLPHead(hidden_size, outputs=None)


class Unmeasured(Plain):
    metrics = ()  # type: ignore[assignment]


class Lineless(Plain):
    def read(self, file: mtmeta.DataFile) -> Iterator[mtmeta.Example]:
        for row in file.rows("sentence", "label"):
            yield mtmeta.Example(row["sentence"], label=row["label"])


class Twins(Plain):
    def read(self, file: mtmeta.DataFile) -> Iterator[mtmeta.Example]:
        for row in file.rows("sentence", "label"):
            yield mtmeta.Example(row["sentence"], label=row["label"], id=row["label"], line=row.line)


class Wavering(Plain):
    calls: ClassVar[Iterator[int]] = itertools.count(1)

    def read(self, file: mtmeta.DataFile) -> Iterator[mtmeta.Example]:
        for example in super().read(file):
            yield dataclasses.replace(example, text=f"{example.text} {next(self.calls)}")


class Elsewhere(Plain):
    columns = ("text",)


class Misfitting(VagueTask):
    metrics = ("accuracy",)


class Ordered(mtmeta.Classification):
    def loss(self, outputs: Any, labels: Any) -> Any:
        return super().loss(outputs[:1], labels[:1])


class OrderedTask(Plain):
    objective = Ordered(labels=2)


class Normed(torch.nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.out = torch.nn.Linear(hidden_size, 2)

    def forward(self, pooled: Any) -> Any:
        return self.out(pooled[:, 0] - pooled[:, 0].mean(dim=0))


class NormedTask(Plain):
    def build_head(self, hidden_size: int) -> Any:
        return Normed(hidden_size)


class BadSample(Plain):
    def sample(self, split: str) -> Iterator[mtmeta.Example]:
        yield mtmeta.Example("They sleep.", label="perhaps")


class Silent(mtmeta.Task):
    name = "silent"
    objective = mtmeta.Classification(labels=2)
    metrics = ("accuracy",)
    read = Plain.read


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Swallows, "2 of 4 rows became examples"),
        (CutsTask, r"the loss has no gradient in encoder\.\*"),
        (DeafenedTask, "soft_loss at trust 0 is .* they must be the same bits"),
        (UndecodedTask, r"decode gives shape \[4, 2\], expected \[B\]"),
        (UnshownTask, "is no class"),
        (VagueTask, r"prediction 'about 0\.\d' cannot be read as a label: label 'about 0\.\d' is not a finite number"),
        (Unmeasured, "metrics must name at least one metric"),
        (Misfitting, "metric 'accuracy' is for classes, but the objective has none"),
        (Lineless, "the example of line 2 has line 0; pass line=row.line"),
        (Twins, "two examples have the same id"),
        (Wavering, "read gives other examples when it reads the same file again"),
        (Elsewhere, "columns names 'text', which the rows have not"),
        (OrderedTask, "with the order changed"),
        (NormedTask, "the head's output for an example depends on the others"),
        (BadSample, "sample train: label 'perhaps' is not one of 0, 1"),
        (Silent, "Silent has no docstring"),
    ],
)
def test_check_task_notices(kind: type[mtmeta.Task], expected: str) -> None:
    with pytest.raises(AssertionError, match=expected):
        check_task(kind, ROWS * 2)


def test_check_task_passes_what_is_right() -> None:
    check_task(Plain, ROWS)
    registry = Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"}))
    check_task(registry.get("task", "sst", ""), [{"sentence": "Good.", "sentiment": i} for i in range(5)])
    pairs = [{"sentence1": "A cat.", "sentence2": "A dog.", "similarity": x} for x in (0.5, 4.0)]
    check_task(registry.get("task", "sts", ""), pairs, activation="none")
    check_task(registry.get("task", "regression", ""), ROWS, low=0.0, high=1.0)
    words = [{"tokens": "Anna went home", "tags": "B-PER O O"}, {"tokens": "to Rome", "tags": "O B-LOC"}]
    check_task(registry.get("task", "tagging", ""), words, labels=("PER", "LOC"))
    classes = [{"tokens": "a b", "tags": "x y"}, {"tokens": "unaccustomed", "tags": "y"}]
    check_task(
        registry.get("task", "tagging", ""), classes, labels=("x", "y"), scheme="none", metrics=("word_accuracy",)
    )


@pytest.mark.parametrize("mode", ["separate", "cross"])
def test_check_task_swaps_pairs(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    para = Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"})).get("task", "para", "")
    pairs = [{"sentence1": "A cat.", "sentence2": "A dog.", "is_duplicate": x} for x in (0, 1)]
    check_task(para, pairs, pair_mode=mode, orders="both")
    monkeypatch.setattr(para, "views", lambda self, pooled: (pooled[:, :1] if mode == "cross" else pooled,))
    with pytest.raises(AssertionError, match="orders: both, and a pair swapped has other outputs"):
        check_task(para, pairs, pair_mode=mode, orders="both")


def test_tiny_learner_is_the_same_every_time() -> None:
    one, two, other = tiny_learner(seed=3), tiny_learner(seed=3), tiny_learner(seed=4)
    assert one[1].tasks == ("sst", "para", "sts")
    assert all(p.equal(two[0].parameters[name]) for name, p in one[0].parameters.items())
    assert not all(p.equal(other[0].parameters[name]) for name, p in one[0].parameters.items())
    assert one[1].batch("sst").ids == two[1].batch("sst").ids


# ------------------------------------------------------------------------------------------------------- launchers


@dataclass(frozen=True, kw_only=True)
class Children(mtmeta.Launcher):
    """Child processes."""

    name = "children"
    processes: ClassVar[dict[str, subprocess.Popen[bytes]]] = {}

    def submit(self, job: mtmeta.Job) -> str:
        process = subprocess.Popen(job.command, env=os.environ | self.variables(job), cwd=job.cwd)
        self.processes[str(process.pid)] = process
        return str(process.pid)

    def variables(self, job: mtmeta.Job) -> dict[str, str]:
        return dict(job.environment)

    def poll(self, handles: Sequence[str]) -> dict[str, mtmeta.JobState]:
        return {handle: mtmeta.JobState(True) for handle in handles if self.processes[handle].poll() is None}

    def cancel(self, handle: str) -> None:
        self.processes[handle].terminate()


class Forgetful(Children):
    """Leaves variables out."""

    name = "forgetful"

    def variables(self, job: mtmeta.Job) -> dict[str, str]:
        return {"MTMETA_CHECK": "another"}


class Sticky(Children):
    """Tells of jobs that are over."""

    name = "sticky"

    def poll(self, handles: Sequence[str]) -> dict[str, mtmeta.JobState]:
        return dict.fromkeys(handles, mtmeta.JobState(True))


class Brutal(Children):
    """Gives a job no time."""

    name = "brutal"

    def cancel(self, handle: str) -> None:
        self.processes[handle].kill()


@dataclass(frozen=True, kw_only=True)
class Unexplained(Children):
    """Has an option without help."""

    name = "unexplained"

    color: str = "red"


def test_check_launcher_passes_what_is_right(tmp_path: Path) -> None:
    check_launcher(Children(), tmp_path)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (Forgetful, "expected its cwd and variables"),
        (Sticky, "poll still holds a job that is over, in 3 s"),
        (Brutal, "a cancelled job got no SIGTERM, in 3 s"),
        (Unexplained, "option color has no help"),
    ],
)
def test_check_launcher_notices(kind: type[Children], expected: str, tmp_path: Path) -> None:
    try:
        with pytest.raises(AssertionError, match=expected):
            check_launcher(kind(), tmp_path, patience=3 if kind in (Sticky, Brutal) else 60)
    finally:
        for process in Children.processes.values():
            process.kill()
            process.wait()
