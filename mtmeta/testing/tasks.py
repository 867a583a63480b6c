"""The contract of a task, checked.

Shapes: `B` examples in a batch, `C` outputs.
"""

from __future__ import annotations

import csv
import dataclasses
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtmeta.core.api.contracts import Example, Task, count_texts
from mtmeta.core.api.objectives import Objective, has_soft_loss
from mtmeta.core.errors import DataError
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.testing.tiny import builtins, check, check_documented, tiny_learner

if TYPE_CHECKING:
    from torch import Tensor

    from mtmeta.core.api.batch import Batch
    from mtmeta.core.training.learner import Learner

TOLERANCE = 1e-4  # of a loss or an output in fp32, against the same in another order
DIGITS = 1e-5  # relative, of a number that was written as text


def check_task(task: type[Task], rows: Sequence[Mapping[str, object]], **options: Any) -> None:
    """Check that a task keeps its contract, on a CSV file of `rows`, two or more.

    `rows` map column names to values, in the order of the columns; `options` are further options of the task.

    - Class and options are documented, the metrics are named, the options fit together.
    - Every row becomes an example, the same each time, with its texts, its line, and an id that no other has; labels
      are such as the objective takes, rows of its width where it has rows, and come back from the words that
      predictions are written in.
    - Head and loss fit: one output an example, a finite scalar whose gradient reaches the encoder and the head, and
      which does not depend on the order of the examples; nor do the outputs depend on the rest of the batch. With
      `orders: both` they are the same for the pairs swapped.
    - Predictions are [B], or [B, L], or [W] where each of the W words of the batch has a label; they are finite, and
      can be written and read back; so they can with tuned numbers. Where data have no labels, ranks are numbers from 1
      that do not depend on the order of the examples.
    - The columns of `mtmeta predict` are in the file; sample data, where there are any, can be read.
    """
    check(len(rows) >= 2, "give at least two rows")
    if "__dataclass_fields__" not in task.__dict__:
        dataclasses.dataclass(frozen=True)(task)  # as the registry does
    instance = task(**{"train": "train.csv", "batch_size": len(rows), **options})
    _check_metrics(instance)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.csv"
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        learner, feed = tiny_learner({task.name: instance}, data_root=folder, examples=len(rows))
        batch = feed.batch(task.name)
        check(len(batch) == len(rows), f"{len(batch)} of {len(rows)} rows became examples")
        _check_model(learner, batch, instance)
        _check_examples(instance, path, len(rows))
        columns = DataFile(path, instance.dialect or Dialect()).columns()
    for column in instance.columns:
        check(column in columns, f"columns names {column!r}, which the rows have not; `mtmeta predict` looks for it")
    _check_sample(instance)
    for option, message in instance.check():
        check(False, f"{option} {message}")
    check_documented(task, Task)


def _check_metrics(task: Task) -> None:
    for part in task.parts.values():
        _check_metrics(part)
    if task.parts:
        return
    names = task.metrics
    check(bool(names) and all(isinstance(name, str) for name in names), "metrics must name at least one metric")
    check(isinstance(task.objective, Objective), f"objective is {task.objective!r}, expected a mtmeta.Objective")
    registry = builtins()
    for name in names:
        for known in registry.suppliers("metric", name):
            unfit = f"metric {name!r} is for {known.part.needs}, which the labels of the objective are not"
            if known.part.needs == "classes" and not task.objective.classes:
                unfit = f"metric {name!r} is for classes, but the objective has none"
            check(known.part.fits(task.objective), unfit)


def _check_examples(task: Task, path: Path, count: int) -> None:
    """Check the examples that `read` yields, before they are tokenized."""

    def read() -> list[Example]:
        return list(task.read(DataFile(path, task.dialect or Dialect())))

    examples = read()
    check(read() == examples, "read gives other examples when it reads the same file again")
    needs_pair, others = task.inputs in ("separate", "cross"), count_texts(task) - 1
    for line, example in enumerate(examples, start=2):
        place = f"the example of line {line}"
        check(example.line == line, f"{place} has line {example.line}; pass line=row.line, for messages to name it")
        check(bool(example.text.strip()), f"{place} has no text")
        check((example.pair is not None) == needs_pair, f"{place}: pair is {example.pair!r}, inputs {task.inputs!r}")
        wanted = others if task.inputs == "choices" else task.extra_texts
        more = f"{place} has {len(example.choices)} choices, and the task takes {wanted}"
        check(len(example.choices) == wanted, more)
    ids = [example.id for example in examples if example.id]
    unique = len(set(ids)) == len(ids)
    check(unique, "two examples have the same id; pass id=row.id, which is the line without a column")
    objective = task.objective
    for example in examples:
        value = objective.parse(example.label)
        check(_is_label(objective, value, example), f"label {example.label!r} is parsed as {value}")
        _check_round_trip(objective, value, f"label {example.label!r}")


def _is_label(objective: Objective, value: Any, example: Example) -> bool:
    """Return whether what `parse` gave is a number, a row of the objective's width, or a number for each word."""
    if objective.labelled in ("one", "texts"):
        return math.isfinite(value)
    return len(value) == (len(example.text.split()) if objective.labelled == "words" else objective.width)


def _check_round_trip(objective: Objective, value: Any, subject: str) -> None:
    """Check that `parse` reads the value back from the text that `show` writes."""
    shown = objective.show(value)
    check(isinstance(shown, str), f"{subject} is shown as {shown!r}, expected a text")
    one = objective.labelled == "one" and objective.classes
    check(not one or shown in objective.classes, f"{subject}, shown as {shown!r}, is no class")
    try:
        back = objective.parse(shown)
    except ValueError as error:
        raise AssertionError(f"prediction {shown!r} cannot be read as a label: {error}") from error
    single = objective.labelled in ("one", "texts")
    pairs = [(back, value)] if single else list(zip(back, value, strict=True))
    missing = [math.isnan(one) and math.isnan(other) for one, other in pairs]
    near = [math.isclose(one, other, rel_tol=DIGITS, abs_tol=DIGITS) for one, other in pairs]
    same = all(there or gone for there, gone in zip(near, missing, strict=True))
    check(same, f"{subject} is shown as {shown!r}, which is read as {back}, expected {value}")


def _check_model(learner: Learner, batch: Batch, task: Task) -> None:
    import torch

    name, objective = task.name, task.objective
    loss = learner.gradient(batch)  # refuses anything but a finite scalar
    for part in ("encoder.", f"heads.{name}."):
        grads = [p.grad for key, p in learner.parameters.items() if key.startswith(part)]
        bare = not grads and objective.labelled == "texts"  # vectors may be compared as they are
        check(
            bare or any(grad is not None and bool(grad.any()) for grad in grads), f"the loss has no gradient in {part}*"
        )

    (chunk,) = batch.chunks
    count = len(chunk.labels)  # of words, where each has a label
    learner.model.eval()
    with torch.no_grad():
        outputs = learner.model(name, chunk.packed)
        _check_predictions(objective, outputs, count)
        if objective.tunes:
            _check_predictions(objective.tuned(objective.tune(outputs, chunk.labels)), outputs, count)
        _check_outputs(outputs, objective, count)
        if objective.labelled == "texts":
            _check_ranks(objective, outputs, chunk.labels)
        straight = objective.loss(outputs, chunk.labels)
        for shift in range(1, count):
            turned = objective.loss(outputs.roll(shift, dims=0), chunk.labels.roll(shift, dims=0))
            check(_close(straight, turned), f"the loss is {float(straight)}, with the order changed {float(turned)}")
        _check_soft_loss(objective, outputs, chunk.labels)
        _check_alone(learner, task, outputs)
    learner.model.train()
    check(bool(loss.isfinite()), f"the loss is {float(loss)}")


def _check_predictions(objective: Objective, outputs: Tensor, count: int) -> None:
    predictions = objective.decode(outputs)
    shapes = {"row": ([count, objective.width], "[B, L]"), "words": ([count], "[W]")}
    shape, expected = shapes.get(objective.labelled, ([count], "[B]"))
    check(list(predictions.shape) == shape, f"decode gives shape {list(predictions.shape)}, expected {expected}")
    check(bool(predictions.isfinite().all()), "decode gives predictions that are not finite")
    values = predictions.tolist()
    for value in [tuple(values)] if objective.labelled == "words" else values:  # words of one text, say
        _check_round_trip(objective, value, f"prediction {value}")


def _check_ranks(objective: Objective, outputs: Tensor, labels: Tensor) -> None:
    """Check that ranks are numbers from 1 that do not depend on the order of the examples."""
    import torch

    ranks = objective.ranks(outputs, labels)
    check(list(ranks.shape) == [len(labels)], f"ranks gives shape {list(ranks.shape)}, expected [N]")
    check(bool((ranks >= 1).all()), f"ranks gives {ranks.tolist()}, expected numbers from 1")
    check(torch.equal(objective.ranks(outputs.flip(0), labels.flip(0)), ranks.flip(0)), "ranks depend on the order")


def _check_outputs(outputs: Tensor, objective: Objective, count: int) -> None:
    if objective.labelled == "texts":
        check(outputs.ndim == 3 and len(outputs) == count, f"outputs have shape {list(outputs.shape)}, not [B, T, C]")
        return
    width = objective.outputs
    shapes = [[count, width]] if width > 1 else [[count], [count, 1]]
    expected = " or ".join(str(shape) for shape in shapes)
    check(list(outputs.shape) in shapes, f"the head's outputs have shape {list(outputs.shape)}, expected {expected}")
    probabilities = objective.probabilities(outputs)
    if probabilities is not None:
        shape = [count, len(objective.classes)]
        check(list(probabilities.shape) == shape, f"probabilities have shape {list(probabilities.shape)}, not {shape}")
        if objective.labelled == "one":
            check(_close(probabilities.sum(dim=1), outputs.new_ones(count)), "probabilities do not sum to 1")


def _check_soft_loss(objective: Objective, outputs: Tensor, labels: Tensor) -> None:
    """Check that a teacher who is not trusted changes nothing, of an objective that can have one."""
    teacher = objective.probabilities(outputs) if objective.classes else objective.decode(outputs)
    if not has_soft_loss(type(objective)) or teacher is None:
        return
    plain, deaf = objective.training_loss(outputs, labels), objective.soft_loss(outputs, labels, teacher, 0.0)
    check(plain.equal(deaf), f"soft_loss at trust 0 is {float(deaf)}, loss {float(plain)}; they must be the same bits")
    heard = objective.soft_loss(outputs, labels, teacher, 1.0)
    check(heard.ndim == 0 and bool(heard.isfinite()), f"soft_loss at trust 1 is {heard}, expected a finite scalar")


def _check_alone(learner: Learner, task: Task, outputs: Tensor) -> None:
    """Check that each example by itself has the outputs that it has among the others."""
    import torch

    if learner.model.takes(task.name) != "pooled":
        return
    torch.manual_seed(0)
    head = learner.model.heads[task.name]
    vectors = 1 if task.inputs == "cross" else learner.model.vectors(task.name)
    pooled = torch.randn(len(outputs), vectors, learner.model.hidden_size)  # [B, V, D]
    together = head(pooled)
    for i in range(len(outputs)):
        check(_close(head(pooled[i : i + 1])[0], together[i]), "the head's output for an example depends on the others")
    if task.both_orders:
        pooled = torch.randn(len(outputs), 2, learner.model.hidden_size)
        given, swapped = (learner.model.outputs(task.name, each) for each in (pooled, pooled.flip(1)))
        check(_close(given, swapped), "orders: both, and a pair swapped has other outputs; `views` gives other vectors")


def _check_sample(task: Task) -> None:
    """Check the sample data, which not every task has."""
    for split in ("train", "dev"):
        try:
            examples = list(task.sample(split))
        except DataError:
            continue
        check(bool(examples), f"the sample data of {split} are empty")
        for example in examples:
            whole = len(example.texts) == count_texts(task) + task.extra_texts
            check(whole, f"sample {split}: a text or its pair is missing")
            try:
                task.objective.parse(example.label)
            except ValueError as error:
                raise AssertionError(f"sample {split}: {error}") from error


def _close(one: Tensor, two: Tensor) -> bool:
    import torch

    return one.shape == two.shape and bool(torch.allclose(one, two, rtol=TOLERANCE, atol=TOLERANCE))
