"""Predictions for a whole dataset, and metrics with confidence intervals.

Evaluation leaves weights, optimizer, RNG and mode as they were; predictions come in the file's order.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtmeta.core.api.batch import Chunk
from mtmeta.core.api.contracts import Metric, Task
from mtmeta.core.api.multi_output import MultiOutput
from mtmeta.core.api.objectives import Objective
from mtmeta.core.data.dataset import Dataset, label_views
from mtmeta.core.data.packing import by_tokens, pack_chunk
from mtmeta.core.distributed.group import Group
from mtmeta.core.errors import DivergedError, PluginError
from mtmeta.core.machine import Precision, autocast, without_autocast
from mtmeta.core.registry.guard import accused, fault
from mtmeta.core.rng import derive
from mtmeta.core.training.model import MultiTaskModel, evaluation_mode, task_loss
from mtmeta.core.training.statistics import as_metrics_see, on_resamples

BOOTSTRAP_DRAWS = 1000
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Predictions:
    """Predictions [N] or [N, L], as metrics get them, in the dataset's order, and the mean loss."""

    dataset: Dataset
    values: Array
    loss: float
    objective: Objective = field(default_factory=Objective)
    """The task's, with the numbers that `values` were decoded by."""
    scores: Array | None = None
    """The head's raw outputs [N, ...], where they were asked for."""
    tuned: Mapping[str, Tensor] = field(default_factory=dict)
    """Numbers that were tuned on these examples, by name."""
    losses: Mapping[str, float] = field(default_factory=dict)
    """The mean loss of each part of a task that has parts; `loss` is their sum."""

    @property
    def labels(self) -> Array:
        """The labels, as metrics get them."""
        return self.dataset.by_example(self.dataset.labels)

    @property
    def seen(self) -> dict[str, Any]:
        """Return what metrics may take beside labels and predictions, by name."""
        ids = np.array(list(self.dataset.ids), dtype=object)
        return {"scores": self.scores, "ids": ids, "classes": self.objective.classes}


@dataclass(frozen=True)
class Score:
    """A task's primary metric with its 95% interval, and its other metrics."""

    metric: str
    value: float
    low: float | None
    high: float | None
    examples: int
    loss: float
    skipped: int
    others: dict[str, float]

    def json(self) -> dict[str, Any]:
        """As `--json` and summary.json show it."""
        return asdict(self)


def wants_scores(metrics: Iterable[Metric]) -> bool:
    """Return whether any of these metrics takes raw outputs, which `predict` keeps if it is asked to."""
    return any("scores" in metric.takes for metric in metrics)


@torch.inference_mode()
@without_autocast()
def predict(
    model: MultiTaskModel,
    dataset: Dataset,
    *,
    batch_tokens: int,
    precision: Precision = "fp32",
    ranks: Group | None = None,
    scores: bool = False,
    tune: bool = False,
    answer: Callable[[Tensor], Tensor] | None = None,
) -> Predictions:
    """Return the predictions of the dataset's task, in batches of sequences of like length, without dropout.

    Of many `ranks` each has its share of the batches, and all get all predictions. With `scores` the head's raw outputs
    are among them. With `tune` the numbers that an objective may tune are those of these very examples; else they are
    the model's. `answer` is what makes predictions of raw outputs, -1 for an abstention; by default the objective.
    """
    ranks, task = ranks or Group(), model.tasks[dataset.task]
    objective, tune = model.objectives[dataset.task], tune and task.objective.tunes
    by_text = task.objective.labelled == "texts"
    raw_too = scores or tune or answer is not None or by_text
    outcomes: list[tuple[NDArray[np.int64], Tensor, Tensor]] = []  # stays on the device: one synchronisation at the end
    options: Any = {"batch_tokens": batch_tokens, "precision": precision, "share": (ranks.rank, ranks.world)}
    with closing(forward(model, dataset, **options)) as batches:
        for indices, chunk, outputs in batches:
            labels = chunk.labels.to(outputs.device, non_blocking=True)
            loss, count = _summed_loss(task, dataset, outputs, labels), len(chunk.labels)
            found = outputs if raw_too else decoded(objective, task, dataset.task, outputs, count)
            outcomes.append((dataset.places(indices), found.float() if by_text else found.double(), loss))
    values, losses = _gathered(outcomes, len(dataset.labels), ranks, np.float32 if by_text else np.float64)
    if by_text:
        return _told_apart(model, dataset, torch.from_numpy(values), scores=scores)
    summed, known = map(math.fsum, zip(*losses, strict=True)), _known(task, dataset)
    means = [total / max(1, count) for total, count in zip(summed, known, strict=True)]
    mean, numbers, raw = math.fsum(means), dict[str, Tensor](), None
    if not math.isfinite(mean) or not np.isfinite(values).all():
        message = f"predictions for task '{dataset.task}' are not finite; lower the learning rate"
        raise DivergedError(accused(task), message)
    if raw_too:
        raw, outputs = values, torch.from_numpy(values).float()
        if tune:
            numbers = dict(task.objective.tune(outputs, torch.from_numpy(dataset.labels).float()))
            objective = task.objective.tuned(numbers)
        values = decoded(objective, task, dataset.task, outputs, len(dataset.labels)).double().numpy()
    check_classes(task, dataset.task, values)
    if answer is not None and raw is not None:
        values = answer(torch.from_numpy(raw).float()).double().numpy()
    raw = raw if scores else None
    by_part = dict(zip(task.parts, means, strict=True)) if task.parts else {}
    return Predictions(dataset, dataset.by_example(values), mean, objective, raw, numbers, by_part)


def _known(task: Task, dataset: Dataset) -> list[int]:
    """Return how many examples the loss is the mean over; of a task with parts those of each."""
    if isinstance(objective := task.objective, MultiOutput):
        return list(objective.counted(dataset.labels).values())
    return [len(dataset.labels) - sum(dataset.unseen.values())]


def of_parts(task: Task, predictions: Predictions) -> dict[str, tuple[Task, Predictions]]:
    """Return what is scored by itself, by name: a task's predictions, or of one with parts those of each.

    A part's are of the examples that have its label, and by its own objective.
    """
    dataset, objective = predictions.dataset, predictions.objective
    if not isinstance(objective, MultiOutput):
        return {dataset.task: (task, predictions)}
    found = {}
    outputs = {} if predictions.scores is None else objective.outputs_of(torch.from_numpy(predictions.scores))
    for name, (own, there) in label_views(dataset, objective).items():
        part, at = objective.objectives[name], objective.columns[name]
        values = predictions.values[there][:, at] if part.labelled == "row" else predictions.values[there, at.start]
        check_classes(task.parts[name], name, values)
        raw = outputs[name].numpy()[there] if outputs else None
        found[name] = task.parts[name], Predictions(own, values, predictions.losses[name], part, raw)
    return found


def abstaining(task: Task, threshold: float, temperature: float | None) -> Callable[[Tensor], Tensor]:
    """Return what makes predictions [B] of a task's raw outputs: -1 where the answer's probability is lower.

    Raises PluginError for a task without probabilities when it is called.
    """
    objective = task.objective

    def answer(outputs: Tensor) -> Tensor:
        chances = objective.probabilities(outputs if temperature is None else outputs / temperature)
        if chances is None:
            raise fault(task, f"task {task.name!r} has no probabilities to be held to a threshold")
        found = objective.decode(outputs)
        return torch.where(chances.gather(1, found.long()[:, None])[:, 0] < threshold, -1, found)

    return answer


def _summed_loss(task: Task, dataset: Dataset, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of the losses of a batch [1], of a task with parts that of each [P].

    A label that is no class has none, nor have texts by now.
    """
    if isinstance(objective := task.objective, MultiOutput):
        return objective.losses(outputs, labels)
    if dataset.unseen:
        known = labels >= 0
        outputs, labels = outputs[known], labels[known]
    if not len(labels) or dataset.by_text:  # of a batch of like lengths it would be that of other neighbours
        return torch.zeros(1, device=outputs.device)
    loss = checked(task, dataset.task, "loss", task_loss(task, dataset.task, outputs, labels), [])
    return (loss * len(labels))[None]


def _told_apart(model: MultiTaskModel, dataset: Dataset, outputs: Tensor, *, scores: bool) -> Predictions:
    """Return what metrics see of examples that are told from the others by their texts, of all raw outputs [N, T, C].

    The loss is the mean over parts of `batch_size` examples in the dataset's order, the same at every evaluation.
    """
    name, device, losses = dataset.task, next(model.parameters()).device, []
    task, objective = model.tasks[name], model.objectives[name]
    outputs, texts = outputs.to(device), torch.from_numpy(dataset.texts.astype(np.int64)).to(device)
    for start in range(0, len(texts), task.batch_size):
        at = slice(start, start + task.batch_size)
        losses.append(checked(task, name, "loss", task_loss(task, name, outputs[at], texts[at]), []) * len(texts[at]))
    mean = math.fsum(torch.stack(losses).tolist()) / len(texts)
    if not math.isfinite(mean) or not outputs.isfinite().all():
        message = f"predictions for task '{name}' are not finite; lower the learning rate"
        raise DivergedError(accused(task), message)
    ranks = checked(task, name, "ranks", objective.ranks(outputs, texts), [len(texts)])
    raw = outputs.flatten(1).double().cpu().numpy() if scores else None
    return Predictions(dataset, ranks.double().cpu().numpy(), mean, objective, raw)


def _gathered(
    outcomes: Sequence[tuple[NDArray[np.int64], Tensor, Tensor]],
    size: int,
    ranks: Group,
    kind: type[np.floating[Any]] = np.float64,
) -> tuple[NDArray[Any], list[list[float]]]:
    """Return what was found [N, ...] in the dataset's order, and the losses of all batches, of all ranks together."""
    losses: list[list[float]] = []
    shape: list[int] = []
    if outcomes:
        shape = list(outcomes[0][1].shape[1:])
        losses = torch.stack([loss for *_, loss in outcomes]).tolist()
    if ranks.world > 1:
        told = ranks.settle({"losses": losses, "shape": shape, "some": bool(outcomes)})
        losses = [loss for each in told for loss in each["losses"]]
        shape = next(each["shape"] for each in told if each["some"])  # a rank may have had no batch
    values = np.zeros((size, *shape), dtype=kind)
    if outcomes:
        order = np.concatenate([indices for indices, *_ in outcomes])
        values[order] = torch.cat([found for _, found, _ in outcomes]).cpu().numpy()
    if ranks.world > 1:
        ranks.sum(
            torch.from_numpy(values.view(f"i{values.itemsize}"))
        )  # bits: each number is of one rank, and 0 on the others
    return values, losses


def forward(
    model: MultiTaskModel,
    dataset: Dataset,
    *,
    batch_tokens: int,
    precision: Precision = "fp32",
    share: tuple[int, int] = (0, 1),
) -> Generator[tuple[NDArray[np.int64], Chunk, Tensor], None, None]:
    """Yield indices [B], their batch and the head's raw outputs: sequences of like length together, no dropout.

    To be run through under `torch.inference_mode`, and closed: then every module is in the mode it was. `share` is
    (k, n) for every n-th batch from the k-th.
    """
    device = next(model.parameters()).device
    with evaluation_mode(model):
        for indices in itertools.islice(by_tokens(dataset, batch_tokens), share[0], None, share[1]):
            chunk = pack_chunk(dataset, indices, pin=device.type == "cuda")
            with autocast(device, precision):
                outputs = model(dataset.task, chunk.packed.to(device))
            yield indices, chunk, outputs


def check_classes(task: Task, name: str, values: Array) -> None:
    """Raise PluginError unless the predictions [N] of a task with classes are indices of them; of label sets 0 or 1."""
    if classes := 2 if task.objective.labelled == "row" and task.objective.classes else len(task.objective.classes):
        odd = values[(values != np.floor(values)) | (values < 0) | (values >= classes)]
        if len(odd):
            message = f"predictions for task '{name}' hold {odd[0]:g}, expected indices of its {classes} classes"
            raise fault(task, message)


def decoded(objective: Objective, task: Task, name: str, outputs: Tensor, size: int) -> Tensor:
    """Return the predictions [B] or [B, L] of raw outputs, or [W] of words, if they have that shape."""
    width = [objective.width] if objective.labelled == "row" else []
    return checked(task, name, "predictions", objective.decode(outputs), [size, *width])


def checked(task: Task, name: str, noun: str, result: object, shape: list[int]) -> Tensor:
    """Return what an objective gives, a `noun` in messages, if it is a tensor of the right shape."""
    if not isinstance(result, Tensor) or list(result.shape) != shape:
        seen = f"shape {list(result.shape)}" if isinstance(result, Tensor) else f"a {type(result).__name__}"
        raise fault(task, f"{noun} for task '{name}': found {seen}, expected shape {shape}")
    return result


def score(
    predictions: Predictions, metrics: Sequence[Metric], *, seed: int, intervals: bool = True
) -> tuple[Score, list[str]]:
    """Return the metrics of the predictions (the first is the primary one), and the warnings they gave."""
    name, objective = predictions.dataset.task, predictions.objective
    labels, values = (as_metrics_see(objective, each) for each in (predictions.labels, predictions.values))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        seen = predictions.seen if any(metric.takes for metric in metrics) else {}
        computed = {metric.name: metric(labels, values, **metric.seen(seen)) for metric in metrics}
    for metric, value in computed.items():
        if not math.isfinite(value):
            message = f"metric '{metric}' is {value} for task '{name}', expected a number"
            raise PluginError(accused(next(one.function for one in metrics if one.name == metric)), message)
    primary = metrics[0]
    bounds: tuple[float, ...] = ()
    if intervals:
        bounds = interval(labels, values, primary, derive(seed, "bootstrap", name), primary.seen(seen))
    low, high = bounds if bounds and all(map(math.isfinite, bounds)) else (None, None)
    scored = Score(
        metric=primary.name,
        value=computed[primary.name],
        low=low,
        high=high,
        examples=len(labels),
        loss=predictions.loss,
        skipped=predictions.dataset.skipped,
        others={other: value for other, value in computed.items() if other != primary.name},
    )
    return scored, [f"{name}: {warning.message}" for warning in caught if issubclass(warning.category, UserWarning)]


def interval(
    labels: Array, values: Array, metric: Metric, seed: int, seen: Mapping[str, Any] | None = None
) -> tuple[float, float]:
    """Return the 95% interval of a metric by the percentile bootstrap over examples, seeded, 1,000 draws."""
    ((drawn,),) = on_resamples(labels, [values[None]], metric, seed, BOOTSTRAP_DRAWS, seen=[[seen or {}]])
    low, high = np.nanpercentile(drawn, [2.5, 97.5])  # a metric may be undefined on a resample
    return float(low), float(high)


def aggregate(scores: Mapping[str, Score], metrics: Mapping[str, Metric], select: str) -> float:
    """Return the value that selects the best weights, higher is better: of one task, or the mean of all."""
    names = list(scores) if select == "mean" or select not in scores else [select]
    signed = [scores[n].value if metrics[scores[n].metric].greater_is_better else -scores[n].value for n in names]
    return math.fsum(signed) / len(signed)


def detail(task: Task, predictions: Predictions) -> dict[str, Any]:
    """Return the facts under the table of `--verbose`: the confusion of classes, or how far off values are."""
    labels, values = predictions.labels, predictions.values
    classes = task.objective.classes
    if (own := predictions.objective.confusion(labels, values)) is not None:
        return {"table": asdict(own)}
    if predictions.objective.labelled != "one":
        return {}
    if classes:
        matrix = np.zeros((len(classes), len(classes)), dtype=np.int64)
        inside = (labels >= 0) & (values >= 0)
        np.add.at(matrix, (labels[inside].astype(np.int64), values[inside].astype(np.int64)), 1)
        found: dict[str, Any] = {"classes": list(classes), "confusion": matrix.tolist()}
        if predictions.dataset.unseen:
            found["unseen"] = dict(predictions.dataset.unseen)
        return found | ({"abstained": int((values < 0).sum())} if (values < 0).any() else {})
    error = values - labels
    worst = np.argsort(-np.abs(error), kind="stable")[:5]
    return {
        "mean_error": float(error.mean()),
        "mean_absolute_error": float(np.abs(error).mean()),
        "root_mean_square_error": float(np.sqrt((error**2).mean())),
        "worst": [
            {"id": predictions.dataset.ids[i], "label": float(labels[i]), "prediction": float(values[i])} for i in worst
        ],
    }
