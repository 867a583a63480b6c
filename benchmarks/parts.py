"""What every benchmark starts from: weights, tasks and tokenized data as `mtmeta run` makes them."""

from __future__ import annotations

import copy
import os
from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

import mtmeta
from mtmeta.core import data as core_data
from mtmeta.core.data import Dataset, TokenStore
from mtmeta.core.learner import Learner
from mtmeta.core.model import MultiTaskModel
from mtmeta.core.options import DataOptions
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.encoder import BertConfig, Encoder
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts

__all__ = ["SEED", "TASKS", "Parts", "add_arguments", "first_rows", "load_parts", "make_learner"]

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
    """--tasks, --data and --weights, and what they default to."""
    data, weights = os.environ.get("MTMETA_DATA") or "sample", os.environ.get("MTMETA_MINILM") or "embedded"
    parser.add_argument("--tasks", default=tasks, help=f"comma-separated, of {', '.join(TASKS)} (default: %(default)s)")
    parser.add_argument("--data", default=data, help="folder of sst-train.csv and so on, or `sample`; MTMETA_DATA")
    parser.add_argument("--weights", default=weights, help="folder of a BERT, `tiny` or `embedded`; MTMETA_MINILM")
    parser.add_argument("--batch", type=int, default=128, help="examples in a batch (default: %(default)s)")


def load_parts(
    weights: str,
    data: str,
    names: Sequence[str],
    *,
    splits: Sequence[str] = ("train",),
    dropout: float | None = None,
    batch_size: int = 128,
    inner_steps: int = 4,
) -> Parts:
    """Read weights and data. `data` is a folder or `sample`; `dropout` overrides config.json."""
    backbone = Bert(weights=weights, max_length=128, dropout=dropout).load(SEED)
    encoder = backbone.encoder
    assert isinstance(encoder, Encoder)
    tasks: dict[str, mtmeta.Task] = {}
    datasets = {}
    for name in names:
        files = {split: "sample" if data == "sample" else f"{name}-{split}.csv" for split in ("train", "dev")}
        task = tasks[name] = TASKS[name](**files, batch_size=batch_size, inner_steps=inner_steps)
        for split in splits:
            datasets[name, split] = _load(name, task, split, "." if data == "sample" else data, backbone)
    return Parts(encoder, encoder.config, dict(backbone.files), tasks, datasets)


def _load(name: str, task: mtmeta.Task, split: str, root: str, backbone: mtmeta.LoadedBackbone) -> Dataset:
    options, core = DataOptions(on_bad_rows="skip"), vars(core_data)
    if "load_split" in core:
        made: Dataset = core["load_split"](name, task, split, options, root, backbone)
    else:  # before the token cache
        raw = core["read_examples"](name, task, split, options, root)
        made = core["tokenize"](name, split, raw, task.inputs, backbone.tokenizer, backbone.max_length)
    return made


def make_learner(parts: Parts, *names: str, steps: int = 1000) -> Learner:
    """A learner of its own on a copy of the weights, for the tasks `names`."""
    tasks = {name: parts.tasks[name] for name in names}
    return Learner(MultiTaskModel(copy.deepcopy(parts.encoder), tasks, SEED), seed=SEED, steps=steps)


def first_rows(dataset: Dataset, rows: int) -> Dataset:
    """The first `rows` examples of a dataset."""
    if rows >= len(dataset):
        return dataset
    stores = tuple(
        TokenStore(store.ids, store.types, np.asarray(store.offsets[: rows + 1])) for store in dataset.stores
    )
    return replace(dataset, ids=dataset.ids[:rows], labels=dataset.labels[:rows], stores=stores)
