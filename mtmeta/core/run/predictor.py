"""What `mtmeta.load` returns: the best weights of a run as a function from texts to predictions."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from typing import Any, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.api.contracts import Task, count_texts
from mtmeta.core.api.multi_output import MultiOutput
from mtmeta.core.api.objectives import Objective
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.loading import from_texts
from mtmeta.core.data.packing import by_tokens, pack_chunk
from mtmeta.core.errors import DivergedError, UsageError
from mtmeta.core.machine import autocast, fitting_threads, memory_errors, own_settings
from mtmeta.core.registry.guard import accused
from mtmeta.core.run.evaluate import best_model, check_threshold, restore_backbone
from mtmeta.core.run.session import Session
from mtmeta.core.tables.data_file import Dialect
from mtmeta.core.training.evaluation import check_classes, checked, decoded, forward
from mtmeta.core.training.model import MultiTaskModel, evaluation_mode, mean_pool
from mtmeta.core.wording import did_you_mean, quote

BLOCK = 1024  # texts predicted at once: enough to sort them into batches of like length, few enough to come soon
Text = str | tuple[str, ...]
"""A text, or the texts of an example in the order of the task's columns: two of a pair, or text and choices."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """The prediction of a task's head for one text or pair of texts."""

    label: str | None
    """The class, as data files write it; None for a number, and for several classes."""
    score: float | None
    """The probability of that class, or the number; None if the task's objective has no probabilities."""
    probabilities: dict[str, float] | None
    """Of every class; None for a number."""
    labels: tuple[str, ...] | None = None
    """The classes, of a task whose examples have any number of them, or one for each word; None for all other tasks."""
    words: tuple[str, ...] | None = None
    """The words that `labels` are of; None where they are of the whole text."""
    spans: tuple[tuple[str, int, int], ...] | None = None
    """What the labels of words mark: name, first word, and the word after it; None where they mark nothing."""

    abstained: bool = False
    """Whether no label is given, for the highest probability, which `score` is, lies below the threshold."""
    scores: dict[str, float] | None = None
    """The numbers by name, of a task with several for each text; None for all other tasks."""
    outputs: dict[str, Prediction] | None = None
    """The prediction of each label by its name, of a task with several labels; None for all other tasks."""

    def json(self) -> dict[str, Any]:
        """Return the fields that are not None, and `abstained` where it is so."""
        words = self.words or ()
        spans = [
            {"label": name, "start": start, "end": end, "text": " ".join(words[start:end])}
            for name, start, end in self.spans or ()
        ]
        fields: dict[str, Any] = {"label": self.label, "score": self.score, "probabilities": self.probabilities}
        fields |= {name: list(value) for name in ("words", "labels") if (value := getattr(self, name)) is not None}
        fields |= {"scores": self.scores, "spans": None if self.spans is None else spans}
        if self.outputs is not None:
            fields["outputs"] = {name: each.json() for name, each in self.outputs.items()}
        shown = {name: value for name, value in fields.items() if value is not None}
        return {**shown, "abstained": True} if self.abstained else shown


class Predictor:
    """A run's best weights, each group of tasks loaded when it is first asked for."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._models: dict[str, tuple[MultiTaskModel, LoadedBackbone]] = {}

    @property
    def tasks(self) -> list[str]:
        """Return the names of the tasks."""
        return list(self._session.recipe.tasks)

    def task(self, name: str) -> Task:
        """Return a task of the run, or that of one label of it. Raises UsageError if there is none of that name."""
        recipe = self._session.recipe
        tasks = recipe.tasks | recipe.scored
        if name not in tasks:
            message = f"this run has no task {quote(name)}{did_you_mean(name, tasks)} (tasks: {', '.join(tasks)})"
            raise UsageError("task", message)
        return tasks[name]

    def dialect(self, name: str) -> Dialect:
        """Return the dialect of a task's files."""
        dialect = self.task(name).dialect or self._session.recipe.data
        return replace(dialect, id=None)  # texts to predict need no names

    @overload
    def predict(  # type: ignore[overload-overlap]
        self, task: str, texts: str, *, abstain: float | None = None
    ) -> Prediction: ...

    @overload
    def predict(self, task: str, texts: Iterable[Text], *, abstain: float | None = None) -> list[Prediction]: ...

    def predict(
        self, task: str, texts: str | Iterable[Text], *, abstain: float | None = None
    ) -> Prediction | list[Prediction]:
        """Predict each text, or each (text, text) where the task takes pairs, (text, choice, ...) where it chooses.

        One text alone, as `predict("sst", "a film")`, has one answer alone; so has one pair, as
        `predict("para", ("one", "other"))`. A prediction depends on its own text alone (to 1e-5 in fp32). Probabilities
        are those at the temperature of the run, if it was calibrated. Where the highest one is below `abstain`, no
        label is given. Of a task with several labels `outputs` has the answer to each, all of one pass; the name of a
        label stands for a task of that label alone. Raises UsageError for an unknown task and for anything but texts,
        and MtmetaError for weights that do not verify.
        """
        if _is_one(texts, count_texts(self.task(task))):
            return self._one(task, texts, abstain)
        return list(self.stream(task, texts, abstain=abstain))

    def stream(self, task: str, texts: Iterable[Text], *, abstain: float | None = None) -> Iterator[Prediction]:
        """Return the predictions one after the other; of an endless `texts`, no more than a block is held at a time.

        Raises UsageError for an unknown task, one text alone, and a table in place of its column.
        """
        name = self.task(task).name
        if isinstance(texts, str | bytes | Mapping) or _is_table(texts):
            kind = "one text" if isinstance(texts, str) else f"a {type(texts).__name__}"
            fix = "give a list of texts" if isinstance(texts, str) else "give its column of texts"
            raise UsageError("texts", f"is {kind}, task {quote(name)} is asked for several here; {fix}")
        self.check_threshold(task, abstain)
        return self._stream(task, texts, abstain)

    def check_threshold(self, task: str, abstain: float | None) -> None:
        """Raise UsageError for a threshold that is no probability, or that the task's answers cannot be held to."""
        if abstain is None:
            return
        check_threshold(abstain)
        objective = self.task(task).objective
        if not objective.classes or objective.labelled != "one":
            message = f"needs one of several classes, task {quote(task)} predicts others; leave it out"
            raise UsageError("abstain", message)

    def _stream(self, task: str, texts: Iterable[Text], abstain: float | None) -> Iterator[Prediction]:
        remaining, start = iter(texts), 0
        while block := list(itertools.islice(remaining, BLOCK)):
            yield from self.block(task, block, start, abstain)
            start += len(block)

    def _one(self, task: str, text: Any, abstain: float | None) -> Prediction:
        self.check_threshold(task, abstain)
        try:
            return self.block(task, [text], abstain=abstain)[0]
        except UsageError as error:
            raise UsageError("texts" if error.place == "texts[0]" else error.place, error.message) from None

    @own_settings()
    def block(self, name: str, texts: Sequence[Text], start: int = 0, abstain: float | None = None) -> list[Prediction]:
        """Predict one block of texts; `start` is the number of its first text, for messages."""
        task, owner = self.task(name), self._session.recipe.owner(name)
        if owner != name:  # one of several labels
            found = [(answer.outputs or {})[name] for answer in self.block(owner, texts, start)]
            return found if abstain is None else [_held(one, abstain) for one in found]
        firsts, *others = _columns(task, name, texts, start)
        model, backbone = self._model(name)
        dataset = from_texts(name, task, firsts, others, backbone)
        values, chances = self._answers(model, backbone, dataset)
        objective = model.objectives[name]
        if isinstance(objective, MultiOutput):
            return _of_labels(objective, values, chances)
        if objective.labelled == "words":
            rows = zip(firsts, dataset.by_example(values), strict=True)
            return [_of_words(objective, text, row) for text, row in rows]
        if abstain is not None and name not in chances:
            raise UsageError("abstain", f"needs probabilities, task {quote(name)} has none; leave it out")
        said = _predictions(objective, values, chances.get(name))
        return said if abstain is None else [_held(one, abstain) for one in said]

    def _answers(
        self, model: MultiTaskModel, backbone: LoadedBackbone, dataset: Dataset
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Return predictions [N], [N, L] or [W], and by name the probabilities [N, C] of classes, if there are any."""
        name = dataset.task
        task, objective, count = model.tasks[name], model.objectives[name], len(dataset.labels)
        tokens = self._session.recipe.evaluation.batch_tokens
        values = np.empty((count, objective.width) if objective.labelled == "row" else count)
        chances: dict[str, NDArray[np.float64]] = {}
        doing, heat = f"predicting task '{name}' (batch_tokens {tokens})", self._session.temperatures.get(name)
        with (
            torch.inference_mode(),
            fitting_threads(backbone.encoder),
            memory_errors(doing, "lower evaluation.batch_tokens in the run's recipe.yaml"),
            closing(forward(model, dataset, batch_tokens=tokens, precision=self._session.precision)) as batches,
        ):
            for indices, chunk, outputs in batches:
                found = decoded(objective, task, name, outputs, len(chunk.labels))
                values[dataset.places(indices)] = found.double().cpu().numpy()
                for key, raw in _probabilities(name, objective, outputs / heat if heat else outputs).items():
                    classes = len((task.parts or {name: task})[key].objective.classes)
                    own = chances.setdefault(key, np.empty((count, classes)))
                    shown = checked(task, name, "probabilities", raw, [len(indices), classes])
                    own[indices] = shown.double().cpu().numpy()
        if not all(np.isfinite(each).all() for each in (values, *chances.values())):
            raise DivergedError(accused(task), f"predictions for task '{name}' are not finite; train it again")
        check_classes(task, name, values)
        return values, chances

    @own_settings()
    def encode(self, texts: str | Iterable[str], task: str | None = None) -> NDArray[np.float32]:
        """Return the vectors [N, D] of texts, each by itself: the mean of its hidden states, which heads read.

        One text alone has one vector [D]. `task` chooses the encoder, where the run has one for each; a text of a pair
        is one text here. Raises UsageError for anything but texts, for an unknown task and for none where it is needed,
        and MtmetaError for weights that do not verify.
        """
        name = self._encoder_of(task)
        if _is_table(texts) or isinstance(texts, bytes | Mapping):
            raise UsageError("texts", f"is a {type(texts).__name__}; give its column of texts")
        given = [texts] if isinstance(texts, str) else list(texts)
        for number, text in enumerate(given):
            if not isinstance(text, str) or not text.strip():
                reason = "text is empty" if isinstance(text, str) else f"is {quote(repr(text))}, expected a text"
                raise UsageError("texts" if isinstance(texts, str) else f"texts[{number}]", reason)
        model, backbone = self._model(name)
        vectors = np.empty((len(given), model.hidden_size), dtype=np.float32)
        with torch.inference_mode(), fitting_threads(backbone.encoder), evaluation_mode(model):
            for start in range(0, len(given), BLOCK):
                self._encode_block(name, given[start : start + BLOCK], vectors[start : start + BLOCK])
        return vectors[0] if isinstance(texts, str) else vectors

    def _encode_block(self, name: str, texts: Sequence[str], into: NDArray[np.float32]) -> None:
        model, backbone = self._model(name)
        tokens, device = self._session.recipe.evaluation.batch_tokens, self._session.device
        dataset = from_texts(name, self.task(name), texts, (), backbone, inputs="single")
        doing = f"encoding texts (batch_tokens {tokens})"
        with memory_errors(doing, "lower evaluation.batch_tokens in the run's recipe.yaml"):
            for indices in by_tokens(dataset, tokens):
                packed = pack_chunk(dataset, indices).packed.to(device)
                with autocast(device, self._session.precision):
                    hidden = model.encode(name, packed)
                into[indices] = mean_pool(hidden, packed).float().cpu().numpy()
        if not np.isfinite(into).all():
            raise DivergedError("", "vectors of texts are not finite; train the run again")

    def _encoder_of(self, task: str | None) -> str:
        """Return the task whose encoder is asked for. Raises UsageError where that is open."""
        if task is not None:
            self.task(task)
            return self._session.recipe.owner(task)
        adapters = self._session.recipe.adapters
        several = len(self._session.groups) > 1 or (adapters is not None and adapters.per == "task")
        if several and len(self.tasks) > 1:
            raise UsageError("task", f"is needed, each task has an encoder of its own: {', '.join(self.tasks)}")
        return self.tasks[0]

    def _model(self, name: str) -> tuple[MultiTaskModel, LoadedBackbone]:
        session = self._session
        if name not in self._models:
            group = next(group for group in session.groups if name in group)
            weights, _ = session.checkpoints(group).best_and_step()
            # an encoder of its own: groups differ in their weights
            session.backbone = backbone = restore_backbone(session)
            if not self._models:
                session.warn_of_slowness()
            self._models |= dict.fromkeys(group, (best_model(session, backbone, group, weights), backbone))
        return self._models[name]


def _predictions(
    objective: Objective, values: NDArray[np.float64], chances: NDArray[np.float64] | None
) -> list[Prediction]:
    """Return predictions [N] or [N, L], and probabilities [N, C], in the words of the data files."""
    classes = objective.classes
    if not classes and objective.labelled == "row":
        numbers = (dict(zip(objective.targets, row, strict=True)) for row in values.tolist())
        return [Prediction(None, None, None, scores=each) for each in numbers]
    if not classes:
        return [Prediction(None, value, None) for value in values.tolist()]
    rows: list[dict[str, float] | None] = [None] * len(values)
    if chances is not None:
        rows = [dict(zip(classes, row, strict=True)) for row in chances.tolist()]
    if objective.labelled == "row":
        sets = (tuple(classes[at] for at in np.flatnonzero(row).tolist()) for row in values)
        return [Prediction(None, None, row, labels) for row, labels in zip(rows, sets, strict=True)]
    names = [classes[at] for at in values.astype(np.int64).tolist()]
    return [Prediction(name, row[name] if row else None, row) for name, row in zip(names, rows, strict=True)]


def _probabilities(name: str, objective: Objective, outputs: Tensor) -> dict[str, Tensor]:
    """Return the probabilities of a task's classes [B, C] under its name, or those of each of its labels."""
    if isinstance(objective, MultiOutput):
        own, each = objective.outputs_of(outputs), objective.objectives
        return {key: chances for part in each for key, chances in _probabilities(part, each[part], own[part]).items()}
    if not objective.classes or objective.labelled == "words":
        return {}
    chances = objective.probabilities(outputs)
    return {} if chances is None else {name: chances}


def _of_labels(
    objective: MultiOutput, values: NDArray[np.float64], chances: Mapping[str, NDArray[np.float64]]
) -> list[Prediction]:
    """Return predictions of several labels, of the rows of all [N, L] and the probabilities of each [N, C]."""
    found = []
    for name, each in objective.objectives.items():
        own = values[:, objective.columns[name]]
        found.append(_predictions(each, own if each.labelled == "row" else own[:, 0], chances.get(name)))
    rows = zip(*found, strict=True)
    return [Prediction(None, None, None, outputs=dict(zip(objective.objectives, row, strict=True))) for row in rows]


def _of_words(objective: Objective, text: str, values: tuple[int, ...]) -> Prediction:
    """Return the prediction for the words of a text, a class for each."""
    labels = tuple(objective.classes[at] for at in values)
    return Prediction(None, None, None, labels, tuple(text.split()), objective.spans(values))


def _held(prediction: Prediction, threshold: float) -> Prediction:
    """Return a prediction, or an abstention where its probability is below a threshold."""
    sure = prediction.score is not None and prediction.score >= threshold
    return prediction if sure else replace(prediction, label=None, abstained=True)


def _is_one(given: object, count: int) -> bool:
    """Return whether what is to be predicted is one text, or a tuple of all texts of one example of a task."""
    if count > 1 and isinstance(given, tuple) and len(given) == count:
        return all(isinstance(text, str) for text in given)
    return isinstance(given, str)


def _is_table(given: object) -> bool:
    """Return whether something is a table of whatever library: to go through it gives the names of its columns."""
    return any(hasattr(given, name) for name in ("columns", "column_names"))


def _columns(task: Task, name: str, texts: Sequence[Text], start: int) -> list[list[str]]:
    """Return the first texts, and the second or those of each choice. Raises UsageError for other inputs."""
    count = count_texts(task)
    columns: list[list[str]] = [[] for _ in range(count)]
    for number, given in enumerate(texts, start):
        parts: object = (given,) if isinstance(given, str) else given
        if (
            not isinstance(parts, tuple | list)
            or len(parts) != count
            or isinstance(given, str) == (count > 1)
            or not all(isinstance(part, str) for part in parts)
        ):
            expected = ("a text", "a pair of texts", f"a text and {count - 1} choices")[min(count, 3) - 1]
            raise UsageError(
                f"texts[{number}]",
                f"is {quote(given if isinstance(given, str) else repr(given))}, task '{name}' takes {expected}",
            )
        if not all(part.strip() for part in parts):
            raise UsageError(f"texts[{number}]", "text is empty")
        for column, part in zip(columns, parts, strict=True):
            column.append(part)
    return columns
