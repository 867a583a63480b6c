"""The check of an export against `mtmeta predict`: the run's packed model beside the padded one.

Shapes: `N` examples, `T` tokens of the longest, padding included, `D` hidden, `C` outputs.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.api.contracts import PairTask, Task, count_texts
from mtmeta.core.data.dataset import Dataset, TokenStore
from mtmeta.core.data.loading import from_texts
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.errors import DivergedError, MachineError
from mtmeta.core.export.heads import Answer, Vector
from mtmeta.core.training import evaluation
from mtmeta.core.training.model import MultiTaskModel, evaluation_mode, mean_pool

Inputs = list[NDArray[np.int64]]
"""Ids, mask and segments [N, T] of one text after the other."""
Outputs = Sequence[Sequence[NDArray[Any]]]
"""For each batch, what `Answer` gives."""
TEXT = "A man who had never seen the sea walked down to it, twice, in the rain; why? nobody could say for certain!"
BATCHES: tuple[slice, ...] = (slice(0, 1), slice(4, 5), slice(2, 4), slice(1, 8), slice(None))
"""Batches of the probes, of several sizes and lengths; the last is all of them, from one token to the most."""


class Single(Task):
    """Single texts, whatever the tasks of the run take."""

    name = "single"


class Cross(PairTask):
    """Pairs in one sequence, whatever the tasks of the run take."""

    name = "cross"


def probes(task: Task, backbone: LoadedBackbone, *, words: bool = False) -> tuple[Dataset, list[Inputs]]:
    """Return examples to compare by, as a dataset and in padded batches; `words` is whether each word has an answer.

    Their texts have from one word to more than the encoder takes; the others of an example are of other lengths.
    """
    counts = [1, 2, 3, 5, 8, 13, 21, 34, 55, backbone.max_length]
    texts = [" ".join(itertools.islice(itertools.cycle(TEXT.split()), count)) for count in counts]
    others = [[*texts[number:], *texts[:number]] for number in range(3, 2 + count_texts(task))]
    dataset = from_texts(task.name, task, texts, others, backbone, None if words else task.inputs)
    return dataset, [pad(dataset.stores, range(len(texts))[part]) for part in BATCHES]


@torch.inference_mode()
def encoder_difference(model: MultiTaskModel, name: str, encoder: torch.nn.Module, backbone: LoadedBackbone) -> float:
    """Return how far the mean-pooled vectors of texts, and of pairs, are from those that task `name` has in the run."""
    worst = 0.0
    for task in (Single(train=""), Cross(train="", pair_mode="cross")):
        dataset, batches = probes(task, backbone)
        packed = pack_sequences(dataset.stores, np.arange(len(dataset)))
        with evaluation_mode(model):
            wanted = mean_pool(model.encode(name, packed), packed).numpy()
        vector = Vector(encoder)
        found = [[vector(*map(torch.from_numpy, batch)).numpy()] for batch in batches]
        worst = max(worst, difference([wanted], found))
    return worst


def pad(stores: Sequence[TokenStore], examples: Sequence[int]) -> Inputs:
    """Return the sequences of some examples, filled up with zeros to the longest."""
    inputs: Inputs = []
    for store in stores:
        starts, lengths = store.offsets[list(examples)], store.lengths[list(examples)]
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]  # [N, T]
        where = np.where(mask, starts[:, None] + columns, 0)
        types = np.zeros_like(where) if store.types is None else np.where(mask, store.types[where], 0)
        inputs += [np.where(mask, store.ids[where], 0).astype(np.int64), mask.astype(np.int64), types.astype(np.int64)]
    return inputs


def run_module(module: torch.nn.Module, batch: Inputs) -> torch.Tensor:
    """Return what a module makes of a padded batch."""
    logits: torch.Tensor = module(*map(torch.from_numpy, batch))
    return logits


@torch.inference_mode()
def expected(model: MultiTaskModel, name: str, dataset: Dataset, temperature: float = 1.0) -> list[NDArray[Any]]:
    """Return the answers of the run's own model, as `Answer` gives them: logits, and probabilities or the number.

    Logits are divided by the temperature, as `mtmeta predict` divides them for the probabilities.
    """
    objective = model.objectives[name]
    answers: list[NDArray[Any]] = []
    for indices, _, outputs in evaluation.forward(model, replace(dataset, task=name), batch_tokens=8192):
        outputs = outputs if temperature == 1.0 else outputs / temperature
        chances = objective.probabilities(outputs)
        raw = outputs[:, None] if outputs.ndim == 1 else outputs
        parts = [raw, objective.decode(outputs) if chances is None else chances]
        answers = answers or [np.empty((len(dataset), *part.shape[1:]), dtype=np.float64) for part in parts]
        for whole, part in zip(answers, parts, strict=True):
            whole[indices] = part.double().numpy()
    return answers


@torch.inference_mode()
def padded_answers(encoder: torch.nn.Module, answer: Answer, batches: Sequence[Inputs]) -> Outputs:
    """Return the same by the padded module, for each batch."""
    vector, answers = Vector(encoder, answer.pooling), []
    for batch in batches:
        tensors = [torch.from_numpy(part) for part in batch]
        vectors = [vector(*tensors[at : at + 3]) for at in range(0, len(tensors), 3)]
        answers.append([part.numpy() for part in answer(*vectors)])
    return answers


def difference(expected: Sequence[NDArray[Any]], answers: Outputs) -> float:
    """Return the largest absolute difference, in units of the largest output where that is above 1."""
    worst = 0.0
    for part, batch in zip(BATCHES, answers, strict=True):
        for own, other in zip(expected, batch, strict=True):
            unit = max(1.0, float(np.abs(own).max()))
            errors = np.abs(own[part] - other)
            worst = max(worst, float(errors.max()) / unit if np.isfinite(errors).all() else float("inf"))
    return worst


def check(place: str, observed: float, limit: float) -> float:
    """Return the difference itself. Raises MachineError if it is too large: then nothing is to be left behind."""
    if observed == float("inf"):
        raise DivergedError(place, "outputs are not finite; train the run again")
    if not observed <= limit:
        message = f"what was exported differs from `mtmeta predict` by {observed:.2g}, more than {limit:g}"
        fix = "nothing was kept, report this with the versions of torch and onnxruntime"
        raise MachineError(place, f"{message}; {fix}")
    return observed
