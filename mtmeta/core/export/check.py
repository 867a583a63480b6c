"""Whether what is exported gives the figures of `mtmeta predict`: the run's packed model beside the padded one.

Shapes: `N` examples, `T` tokens of the longest, padding included, `D` hidden, `C` outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.api.contracts import Task
from mtmeta.core.data.dataset import Dataset, TokenStore
from mtmeta.core.data.loading import from_texts
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.errors import DivergedError, MachineError
from mtmeta.core.export.heads import Answer, Vector
from mtmeta.core.training import evaluation
from mtmeta.core.training.model import MultiTaskModel, evaluation_mode, mean_pool

__all__ = [
    "BATCHES",
    "Inputs",
    "Single",
    "check",
    "difference",
    "encoder_difference",
    "expected",
    "pad",
    "padded_answers",
    "probes",
]

Inputs = list[NDArray[np.int64]]
"""Ids, mask and segments [N, T] of one text after the other."""
WORDS = (
    "A man who had never seen the sea walked down to it, twice, in the rain; why? nobody could say for certain!".split()
)
BATCHES: tuple[slice, ...] = (slice(0, 1), slice(4, 5), slice(2, 4), slice(1, 8), slice(None))
"""Batches of the probes, of several sizes and lengths; the last is all of them, from one token to the most."""


@dataclass(frozen=True)
class Probes:
    """Examples to compare by: a dataset, and the same in padded batches."""

    dataset: Dataset
    batches: tuple[Inputs, ...]


class Single(Task):
    """Single texts, whatever the tasks of the run take."""

    name = "single"


def probes(task: Task, backbone: LoadedBackbone) -> Probes:
    """Texts from one word to more than the encoder takes; the second of a pair is of another length."""
    counts = [1, 2, 3, 5, 8, 13, 21, 34, 55, backbone.max_length]
    texts = [" ".join((WORDS * (count // len(WORDS) + 1))[:count]) for count in counts]
    seconds = [] if task.inputs == "single" else [*texts[3:], *texts[:3]]
    dataset = from_texts(task.name, task, texts, seconds, backbone)
    return Probes(dataset, tuple(pad(dataset.stores, range(len(texts))[part]) for part in BATCHES))


@torch.inference_mode()
def encoder_difference(model: MultiTaskModel, encoder: torch.nn.Module, backbone: LoadedBackbone) -> float:
    """How far the mean-pooled vectors of single texts are from those of the run's own encoder."""
    given = probes(Single(train=""), backbone)
    packed = pack_sequences(given.dataset.stores, np.arange(len(given.dataset)))
    with evaluation_mode(model):
        wanted = mean_pool(model.encoder(packed), packed).numpy()
    vector = Vector(encoder)
    return difference([wanted], [[vector(*map(torch.from_numpy, batch)).numpy()] for batch in given.batches])


def pad(stores: Sequence[TokenStore], examples: Sequence[int]) -> Inputs:
    """The sequences of some examples, filled up with zeros to the longest."""
    found: Inputs = []
    for store in stores:
        starts, lengths = store.offsets[list(examples)], store.lengths[list(examples)]
        columns = np.arange(lengths.max())
        mask = columns < lengths[:, None]  # [N, T]
        where = np.where(mask, starts[:, None] + columns, 0)
        types = np.zeros_like(where) if store.types is None else np.where(mask, store.types[where], 0)
        found += [np.where(mask, store.ids[where], 0).astype(np.int64), mask.astype(np.int64), types.astype(np.int64)]
    return found


@torch.inference_mode()
def expected(model: MultiTaskModel, name: str, dataset: Dataset) -> list[NDArray[Any]]:
    """What the run's own model gives of a task, as `Answer` does: logits, and probabilities or the number."""
    objective = model.tasks[name].objective
    found: list[NDArray[Any]] = []
    for indices, _, outputs in evaluation.forward(model, replace(dataset, task=name), batch_tokens=8192):
        chances = objective.probabilities(outputs)
        parts = [outputs[:, None], objective.decode(outputs)] if chances is None else [outputs, chances]
        found = found or [np.empty((len(dataset), *part.shape[1:]), dtype=np.float64) for part in parts]
        for whole, part in zip(found, parts, strict=True):
            whole[indices] = part.double().numpy()
    return found


@torch.inference_mode()
def padded_answers(encoder: torch.nn.Module, answer: Answer, batches: Sequence[Inputs]) -> list[list[NDArray[Any]]]:
    """The same by the padded module, for each batch."""
    vector, found = Vector(encoder), []
    for batch in batches:
        given = [torch.from_numpy(part) for part in batch]
        vectors = [vector(*given[at : at + 3]) for at in range(0, len(given), 3)]
        found.append([part.numpy() for part in answer(*vectors)])
    return found


def difference(wanted: Sequence[NDArray[Any]], made: Sequence[Sequence[NDArray[Any]]]) -> float:
    """The largest absolute difference, in units of the largest output where that is above 1."""
    worst = 0.0
    for part, batch in zip(BATCHES, made, strict=True):
        for own, other in zip(wanted, batch, strict=True):
            unit = max(1.0, float(np.abs(own).max()))
            found = np.abs(own[part] - other)
            worst = max(worst, float(found.max()) / unit if np.isfinite(found).all() else float("inf"))
    return worst


def check(place: str, found: float, limit: float) -> float:
    """The difference itself. Raises MachineError if it is too large: then nothing is to be left behind."""
    if found == float("inf"):
        raise DivergedError(place, "outputs are not finite; train the run again")
    if not found <= limit:
        message = f"what was exported differs from `mtmeta predict` by {found:.2g}, more than {limit:g}"
        raise MachineError(
            place, f"{message}; nothing was kept, report this with the versions of torch and onnxruntime"
        )
    return found
