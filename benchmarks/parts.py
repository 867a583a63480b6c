"""The parts that every benchmark starts from: weights, tasks and tokenized data as `mtmeta run` makes them."""

from __future__ import annotations

import copy
import os
import shutil
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import mtmeta
from mtmeta.core.data.dataset import Dataset, TokenStore, select
from mtmeta.core.data.loading import load_split
from mtmeta.core.machine import Precision
from mtmeta.core.recipe.sections import DataOptions
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts

__all__ = [
    "SEED",
    "TASKS",
    "Parts",
    "add_arguments",
    "add_sources",
    "by_length",
    "copy_in_precision",
    "first_rows",
    "load_backbone",
    "load_dataset",
    "load_parts",
    "make_learner",
    "make_task",
]

SEED = 11711
TASKS: dict[str, Any] = {"sst": Sst, "para": Para, "sts": Sts}


@dataclass(frozen=True)
class Parts:
    """An encoder with its weights, never trained itself, the tasks, and their datasets by (task, split)."""

    encoder: Encoder
    config: BertConfig
    files: dict[str, bytes]
    """config.json and tokenizer.json."""
    tasks: dict[str, mtmeta.Task]
    datasets: dict[tuple[str, str], Dataset]


def add_arguments(parser: ArgumentParser, *, tasks: str = "sst,para,sts") -> None:
    """--tasks, --data, --weights and --batch, and what they default to."""
    parser.add_argument("--tasks", default=tasks, help=f"comma-separated, of {', '.join(TASKS)} (default: %(default)s)")
    add_sources(parser)
    parser.add_argument("--batch", type=int, default=128, help="examples in a batch (default: %(default)s)")


def add_sources(parser: ArgumentParser) -> None:
    """--data and --weights, and what they default to."""
    data, weights = os.environ.get("MTMETA_DATA") or "sample", os.environ.get("MTMETA_MINILM") or "embedded"
    parser.add_argument("--data", default=data, help="folder of sst-train.csv and so on, or `sample`; MTMETA_DATA")
    parser.add_argument("--weights", default=weights, help="folder of a BERT, `tiny` or `embedded`; MTMETA_MINILM")


def load_backbone(weights: str, dropout: float | None = None) -> mtmeta.LoadedBackbone:
    """Encoder and tokenizer; `dropout` overrides config.json."""
    return Bert(weights=weights, max_length=128, dropout=dropout).load(SEED)


def make_task(name: str, data: str, **options: Any) -> mtmeta.Task:
    """The task on the files of the folder `data`, or on `sample`."""
    files = {split: "sample" if data == "sample" else f"{name}-{split}.csv" for split in ("train", "dev")}
    task: mtmeta.Task = TASKS[name](**files, **options)
    return task


def load_dataset(name: str, task: mtmeta.Task, split: str, data: str, backbone: mtmeta.LoadedBackbone) -> Dataset:
    """Read, parse and tokenize one file, without the cache."""
    root = "." if data == "sample" else data
    return load_split(name, task, split, DataOptions(on_bad_rows="skip"), root, backbone)


def load_parts(
    weights: str, data: str, names: Sequence[str], *, splits: Sequence[str] = ("train",), dropout: float | None = None
) -> Parts:
    """Read weights and data."""
    backbone = load_backbone(weights, dropout)
    encoder = backbone.encoder
    assert isinstance(encoder, Encoder)
    tasks = {name: make_task(name, data) for name in names}
    datasets = {
        (name, split): load_dataset(name, task, split, data, backbone)
        for name, task in tasks.items()
        for split in splits
    }
    return Parts(encoder, encoder.config, dict(backbone.files), tasks, datasets)


def make_learner(parts: Parts, *names: str, steps: int = 1000, precision: Precision = "fp32") -> Learner:
    """A learner of its own on a copy of the weights, for the tasks `names`."""
    tasks = {name: parts.tasks[name] for name in names}
    model = MultiTaskModel(copy.deepcopy(parts.encoder), tasks, SEED)
    return Learner(model, seed=SEED, steps=steps, precision=precision)


def first_rows(dataset: Dataset, rows: int) -> Dataset:
    """The first `rows` examples of a dataset."""
    if rows >= len(dataset):
        return dataset
    stores = tuple(
        TokenStore(store.ids, store.types, np.asarray(store.offsets[: rows + 1])) for store in dataset.stores
    )
    return replace(dataset, ids=dataset.ids[:rows], labels=dataset.labels[:rows], stores=stores)


def by_length(dataset: Dataset) -> Dataset:
    """The examples in the order of their tokens, the shortest first, so that a batch needs hardly any padding."""
    return select(dataset, np.argsort(np.sum([store.lengths for store in dataset.stores], axis=0), kind="stable"))


def copy_in_precision(run: Path, out: Path, precision: Precision) -> None:
    """Copy a finished run whose recipe says fp32 to `out`: the same weights, used in another precision."""
    shutil.copytree(run, out)
    recipe = out / "recipe.yaml"
    text = recipe.read_text()
    if text.count("precision: fp32") != 1:
        raise ValueError(f"{recipe}: expected one line with precision: fp32")
    recipe.write_text(text.replace("precision: fp32", f"precision: {precision}"))
