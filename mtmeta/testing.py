"""For the tests of plugins: a tiny learner, and checks that a task or an algorithm keeps its contract.

    from mtmeta.testing import check_algorithm, check_task, tiny_learner

    def test_contract() -> None:
        check_task(Cola, [{"sentence": "They slept.", "label": 1}, {"sentence": "Slept they the.", "label": 0}])

The checks raise AssertionError, which pytest shows, and need no GPU, no download and about a second.

Shapes: `B` examples in a batch.
"""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtmeta.core.contracts import Algorithm, Task
from mtmeta.core.plugins import load_plugins
from mtmeta.core.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from mtmeta.core.feed import Feed
    from mtmeta.core.learner import Learner

__all__ = ["check_algorithm", "check_task", "tiny_learner"]


def tiny_learner(
    tasks: Mapping[str, Task] | None = None,
    *,
    data_root: str = ".",
    seed: int = 0,
    examples: int = 48,
    algorithm: Algorithm | None = None,
) -> tuple[Learner, Feed]:
    """A learner on backbone `tiny` without dropout, and a feed of each task's first `examples` training examples.

    `tasks` are instances by name; their `train` is a file under `data_root` or `sample`. Without them there are
    sst, para and sts on sample data, with batches of 4 and 2 inner steps. The same seed gives the same of everything.
    The learner has the numbers that `algorithm` trains beside the model.
    """
    import numpy as np

    from mtmeta.core.data import load_split, select
    from mtmeta.core.feed import Feed
    from mtmeta.core.learner import Learner
    from mtmeta.core.model import MultiTaskModel
    from mtmeta.core.options import DataOptions

    registry = Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"}))
    if tasks is None:
        made = {name: registry.get("task", name, "tasks") for name in ("sst", "para", "sts")}
        tasks = {name: task(train="sample", batch_size=4, inner_steps=2) for name, task in made.items()}
    bert = registry.get("backbone", "bert", "backbone")
    backbone = bert(weights="tiny", max_length=64, dropout=0.0).load(seed)
    datasets = {}
    for name, task in tasks.items():
        found = load_split(name, task, "train", DataOptions(), data_root, backbone)
        datasets[name] = select(found, np.arange(min(examples, len(found))))
    feed = Feed(tasks, datasets, registry.get("sampler", "uniform", "sampler")(), seed=seed)
    numbers = algorithm.parameters(list(tasks)) if algorithm is not None else None
    learner = Learner(MultiTaskModel(backbone.encoder, tasks, seed, numbers), seed=seed, steps=feed.steps)
    return learner, feed


def check_task(task: type[Task], rows: Sequence[Mapping[str, object]], **options: Any) -> None:
    """Check that a task reads a file of `rows`, and that its head, loss and predictions have the right shapes.

    `rows` map column names to values, in the order of the columns; `options` are further options of the task.
    """
    with tempfile.TemporaryDirectory() as folder:
        with open(Path(folder) / "train.csv", "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        made = task(**{"train": "train.csv", "batch_size": len(rows), **options})
        names = made.metrics
        _check(bool(names) and all(isinstance(name, str) for name in names), "metrics must name at least one metric")
        learner, feed = tiny_learner({task.name: made}, data_root=folder, examples=len(rows))
    batch = feed.batch(task.name)
    _check(len(batch) == len(rows), f"{len(batch)} of {len(rows)} rows became examples")
    loss = learner.gradient(batch)  # refuses anything but a finite scalar
    _check(loss.ndim == 0, f"the loss has shape {list(loss.shape)}")
    for part in ("encoder.", f"heads.{task.name}."):
        grads = [p.grad for name, p in learner.parameters.items() if name.startswith(part)]
        _check(any(grad is not None and bool(grad.any()) for grad in grads), f"the loss has no gradient in {part}*")
    outputs = learner.model(task.name, batch.chunks[0].packed)
    objective = made.objective
    predictions = objective.decode(outputs.detach())
    _check(list(predictions.shape) == [len(rows)], f"decode gives shape {list(predictions.shape)}, expected [B]")
    for prediction in predictions.tolist():
        shown = objective.show(prediction)
        _check(not objective.classes or shown in objective.classes, f"prediction {shown!r} is no class")
        try:
            objective.parse(shown)
        except ValueError as error:
            raise AssertionError(f"prediction {shown!r} cannot be read as a label: {error}") from error


def check_algorithm(algorithm: Algorithm, *, tasks: Mapping[str, Task] | None = None, steps: int = 3) -> None:
    """Check what the training loop relies on, for `steps` steps on the tasks of `tiny_learner`.

    `backward` leaves a finite direction in `.grad`, the parameters bit for bit as they were, and None for the heads
    of tasks it computed nothing for; the same seed gives the same direction; `groups` has every task once.
    """
    first = _directions(algorithm, tasks, steps)
    again = _directions(algorithm, tasks, steps)
    for step, (one, two) in enumerate(zip(first, again, strict=True)):
        for name, grad in one.items():
            other = two[name]
            same = (grad is None) == (other is None) and (grad is None or other is None or grad.equal(other))
            _check(same, f"step {step}: the direction of {name} differs between two runs of the same seed")


def _directions(algorithm: Algorithm, tasks: Mapping[str, Task] | None, steps: int) -> list[dict[str, Tensor | None]]:
    """The direction of each step, by parameter name."""
    learner, feed = tiny_learner(tasks, algorithm=algorithm)
    feed.steps = learner.steps = steps
    grouped = [task for group in algorithm.groups(list(feed.tasks)) for task in group]
    _check(sorted(grouped) == sorted(feed.tasks), f"groups has the tasks {grouped}, expected each of them once")
    theta = {name: parameter.detach().clone() for name, parameter in learner.parameters.items()}
    found = []
    for step in range(steps):
        feed.step = step
        learner.begin_step(step)
        algorithm.backward(learner, feed)
        used = [task for task, *_ in learner.losses]
        direction = {name: parameter.grad for name, parameter in learner.parameters.items()}
        _check(any(grad is not None for grad in direction.values()), f"step {step}: every .grad is None")
        for name, parameter in learner.parameters.items():
            _check(parameter.equal(theta[name]), f"step {step}: backward changed {name}; only .grad may change")
            grad = direction[name]
            if grad is not None:
                _check(bool(grad.isfinite().all()), f"step {step}: the direction of {name} is not finite")
                owner = name.split(".")[1] if name.startswith("heads.") else None
                _check(owner is None or owner in used, f"step {step}: {name} has a direction, but no loss of its task")
        found.append({name: None if grad is None else grad.clone() for name, grad in direction.items()})
    return found


def _check(holds: bool, text: str) -> None:
    if not holds:
        raise AssertionError(text)
