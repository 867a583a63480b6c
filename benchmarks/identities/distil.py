"""Distillation: soft losses beside their formulas in float64, and who labelled what."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import mtmeta
from benchmarks.identities import Row
from mtmeta.core.data.packing import pack
from mtmeta.core.data.teachers import Table, read_table
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies.teach import teach
from mtmeta.core.training.learner import Learner
from mtmeta.testing.tiny import tiny_learner

TRUSTS = (0.0, 0.3, 1.0)
FOLDS = 3
WORDS = "good bad fine dull film plot very not a the".split()
Array = NDArray[np.float64]
ByHand = Callable[[Array, Array, Array, float], float]


def rows() -> Iterator[Row]:
    """Yield the losses of the three objectives, then the folds of a small run of `mtmeta teach`."""
    for objective, outputs, labels, teacher, formula, by_hand in _cases():
        yield from _of_loss(objective, outputs, labels, teacher, formula, by_hand)
    yield from _of_training()
    yield from _of_folds()


# -------------------------------------------------------------------------------------------------- losses


def _cases() -> Iterator[tuple[Any, Tensor, Tensor, Tensor, str, ByHand]]:
    """Yield each objective with outputs, labels and teacher's rows of 7 examples, and its loss in NumPy."""
    draw = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(7, 5, generator=draw, dtype=torch.float64)
    sure = torch.softmax(torch.randn(7, 5, generator=draw, dtype=torch.float64), dim=1)
    classes = torch.arange(7) % 5
    q = "-(1-u) log p_y - u sum_c t_c log p_c (Hinton et al. 2015, T = 1)"
    yield mtmeta.Classification(labels=5), logits, classes.float(), sure, q, _cross_entropy
    chance = torch.rand(7, 1, generator=draw, dtype=torch.float64)
    both = torch.cat([1 - chance, chance], dim=1)
    y = "-z log s - (1-z) log(1-s), z = (1-u) y + u t"
    yield mtmeta.Binary(), logits[:, :1], (torch.arange(7) % 2).float(), both, y, _binary
    values = 5 * torch.rand(2, 7, generator=draw, dtype=torch.float64)
    squared = "(s - (1-u) y - u t)^2"
    yield mtmeta.Regression(low=0, high=5), values[0], (torch.arange(7) % 6).float(), values[1], squared, _squared


def _cross_entropy(outputs: Array, labels: Array, teacher: Array, trust: float) -> float:
    log = outputs - np.log(np.exp(outputs).sum(axis=1, keepdims=True))
    own = log[np.arange(len(labels)), labels.astype(int)]
    return float(-((1 - trust) * own + trust * (teacher * log).sum(axis=1)).mean())


def _binary(outputs: Array, labels: Array, teacher: Array, trust: float) -> float:
    target, yes = (1 - trust) * labels + trust * teacher[:, 1], 1 / (1 + np.exp(-outputs[:, 0]))
    return float(-(target * np.log(yes) + (1 - target) * np.log(1 - yes)).mean())


def _squared(outputs: Array, labels: Array, teacher: Array, trust: float) -> float:
    return float(((outputs - (1 - trust) * labels - trust * teacher) ** 2).mean())


def _of_loss(
    objective: Any, outputs: Tensor, labels: Tensor, teacher: Tensor, formula: str, by_hand: ByHand
) -> Iterator[Row]:
    method = f"distil: {type(objective).__name__.lower()}"
    arrays = outputs.numpy(), labels.double().numpy(), teacher.numpy()
    off, slope = 0.0, 0.0
    for trust in TRUSTS:
        leaf = outputs.clone().requires_grad_()
        loss = objective.soft_loss(leaf, labels, teacher, trust)
        off = max(off, abs(loss.item() - by_hand(*arrays, trust)))
        (found,) = torch.autograd.grad(loss, leaf)
        expected = _finite_differences(partial(_at, by_hand, trust, *arrays[1:]), arrays[0])
        slope = max(slope, float(np.abs(found.numpy() - expected).max()))
    yield Row(method, formula, off, 1e-12)
    yield Row(method, "its gradient by finite differences in float64", slope, 1e-7)
    narrow = outputs.float(), labels, teacher.float()
    none = objective.soft_loss(*narrow, 0.0) - objective.loss(*narrow[:2])
    yield Row(method, "u = 0 is the plain loss, bit for bit", abs(none.item()), 0.0)
    right = _as_teacher(objective, labels)
    plain = objective.loss(outputs, labels)
    same = max(abs((objective.soft_loss(outputs, labels, right, trust) - plain).item()) for trust in TRUSTS)
    yield Row(method, "a teacher that says the labels is the plain loss at any u", same, 1e-12)


def _at(loss: ByHand, trust: float, labels: Array, teacher: Array, outputs: Array) -> float:
    return loss(outputs, labels, teacher, trust)


def _as_teacher(objective: Any, labels: Tensor) -> Tensor:
    """Return the labels as a teacher says them."""
    count = len(objective.classes)
    return torch.nn.functional.one_hot(labels.long(), count).double() if count else labels.double()


def _finite_differences(function: Callable[[Array], float], at: Array, step: float = 1e-6) -> Array:
    gradient = np.empty_like(at)
    for index in np.ndindex(*at.shape):
        there, back = at.copy(), at.copy()
        there[index] += step
        back[index] -= step
        gradient[index] = (function(there) - function(back)) / (2 * step)
    return gradient


# ------------------------------------------------------------------------------------------------ a learner


class _Said:
    """A teacher of which every row is known."""

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self._rows = rows

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._rows[indices]


def _of_training() -> Iterator[Row]:
    """Yield the gradient of a batch with a teacher beside that of its parts, and the trust of each step."""
    learner, feed = tiny_learner()
    data = feed.datasets["sst"]
    said = np.random.default_rng(0).dirichlet(np.ones(5), len(data)).astype(np.float32)
    taught, indices = replace(data, teacher=_Said(said)), np.arange(6)
    learner.steps = 8
    trusts = []
    for step in range(8):
        learner.begin_step(step)
        trusts.append(abs(learner.trust - (1 - step / 8)))
    yield Row("distil: trust", "u = 1 - n / steps in step n, from 0 (Clark et al. 2019)", max(trusts), 1e-15)
    learner.begin_step(6)  # u = 1/4
    mixed = _gradient(learner, lambda: learner.gradient(pack(taught, indices)))
    parts = _gradient(learner, lambda: learner.gradient(pack(taught, indices, chunks=3)))
    encoded = _gradient(learner, lambda: learner.descend("sst", learner.loss(learner.features(pack(taught, indices)))))
    plain = _gradient(learner, lambda: learner.gradient(pack(data, indices)))
    learner.begin_step(0)  # u = 1
    pure = _gradient(learner, lambda: learner.gradient(pack(taught, indices)))
    off = max(float((mixed[n] - 0.75 * plain[n] - 0.25 * pure[n]).abs().max()) for n in mixed)
    yield Row("distil: gradient", "is (1-u) that of the labels + u that of the teacher", off, 1e-6)
    off = max(float((mixed[name] - other[name]).abs().max()) for other in (parts, encoded) for name in mixed)
    yield Row("distil: gradient", "in 3 chunks, or by features and loss: the same", off, 1e-6)


def _gradient(learner: Learner, descend: Callable[[], Tensor]) -> dict[str, Tensor]:
    learner.clear_gradient()
    descend()
    return {name: p.grad.clone() for name, p in learner.parameters.items() if p.grad is not None}


# ---------------------------------------------------------------------------------------------------- folds


def _of_folds() -> Iterator[Row]:
    """Train three fold models on a small file, have them label it, and see by id who had seen what."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        texts = _write(Path("."))
        seen = [_train(fold) for fold in range(1, FOLDS + 1)]
        with mock.patch.dict(os.environ, {"MTMETA_PLUGINS": "none"}):
            teach(RunRequest("recipe.yaml", out="out", data_root=".", device="cpu"), folds=FOLDS)
        table = read_table(Path("out"), "sst")
        assert table is not None
        ids = list(table.ids)
        unseen = [set(ids) - given for given in seen]
        parted = len(set(ids)) - sum(map(len, unseen)) + sum(not part for part in unseen)
        yield Row("distil: folds", "every example is unseen by one model alone; no fold is empty", abs(parted), 0.0)
        twins = sum(len({ids[row] in part for row in rows}) - 1 for part in unseen for rows in _equal(ids).values())
        yield Row("distil: folds", "examples with one id are in one fold", twins, 0.0)
        off, near = _attributed(table, texts, unseen)
        yield Row("distil: folds", "a row is what the model says that did not see it", off, 1e-6)
        yield Row("distil: folds", "and no other says the same (share of rows within 1e-6)", near, 0.0)
        yield Row("distil: training", "trust 0 trains to the same bits as no teacher", _taught_or_not(), 0.0)


def _write(folder: Path) -> list[str]:
    """Write a training file of 47 examples, two of them with one id, and a recipe; returns the texts."""
    draw = np.random.default_rng(3)
    texts = [" ".join(draw.choice(WORDS, size=5)) + f" {number}" for number in range(47)]
    lines = [f"{number // 2 if number < 2 else number}\t{text}\t{number % 5}" for number, text in enumerate(texts)]
    for split in ("train", "dev"):
        (folder / f"{split}.tsv").write_text("\n".join(["id\tsentence\tsentiment", *lines]) + "\n")
    recipe = {
        "backbone": {"name": "bert", "weights": "tiny", "max_length": 16},
        "tasks": {"sst": {"train": "train.tsv", "dev": "dev.tsv", "batch_size": 8}},
        "algorithm": "joint",
        "optimizer": {"name": "adamw", "lr": 1e-2},
        "training": {"epochs": 2, "precision": "fp32"},
        "evaluation": {"every": None},
        "reporters": ["jsonl"],
    }
    (folder / "recipe.yaml").write_text(json.dumps(recipe))
    return texts


def _train(fold: int) -> set[str]:
    """Make the run that `mtmeta teach` would make of a fold; returns the ids of all that it had a gradient of."""
    seen: set[str] = set()
    gradient = Learner.gradient

    def watched(learner: Learner, batch: Any, scale: Any = 1.0) -> Tensor:
        seen.update(batch.ids)
        return gradient(learner, batch, scale)

    with mock.patch.object(Learner, "gradient", watched):
        _run(f"out/fold-{fold}", f"data.leave_out={{folds: {FOLDS}, fold: {fold}}}")
    return seen


def _run(out: str, *overrides: str) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    with mock.patch.dict(os.environ, {"MTMETA_PLUGINS": "none"}):
        mtmeta.run("recipe.yaml", out=out, data_root=".", device="cpu", overrides=overrides)
    return load_file(Path(out, "checkpoints", "best", "model.safetensors"))


def _equal(ids: list[str]) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = {}
    for row, name in enumerate(ids):
        rows.setdefault(name, []).append(row)
    return rows


def _attributed(table: Table, texts: list[str], unseen: list[set[str]]) -> tuple[float, float]:
    """Return how far rows are from what `mtmeta.load` says of the model that did not see them, and the share of rows
    that are as near to another's."""
    off, near = 0.0, 0
    for fold, part in enumerate(unseen, 1):
        said = mtmeta.load(f"out/fold-{fold}", device="cpu").predict("sst", texts)
        chances = np.array([list((one.probabilities or {}).values()) for one in said])
        far = np.abs(chances - table.outputs).max(axis=1)
        own = np.array([name in part for name in table.ids])
        off, near = max(off, float(far[own].max())), near + int((far[~own] < 1e-6).sum())
    return off, near / len(texts)


def _taught_or_not() -> float:
    """Return the largest difference between weights trained without teachers and with such as are not trusted."""
    plain = _run("plain")
    taught = _run("taught", "teachers={sst: {runs: [out], folds: 3}, anneal: 0}")
    heard = _run("heard", "teachers={sst: {runs: [out], folds: 3}}")
    assert any(not plain[name].equal(heard[name]) for name in plain), "a teacher that is trusted is heard"
    return max(float((plain[name] - taught[name]).abs().max()) for name in plain)
