"""A task's file to a `Dataset`: read as a stream, tokenized once, held as flat arrays that lie on disk.

Shapes: `N` examples, `V` sequences an example, `T` texts an example.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mtmeta.core.api.backbone import LoadedBackbone
from mtmeta.core.api.contracts import Example, Task
from mtmeta.core.api.multi_output import MultiOutput
from mtmeta.core.api.option_types import SAMPLE, Carve, Inputs
from mtmeta.core.data.cache_key import cache_key
from mtmeta.core.data.carving import carved, carved_digest
from mtmeta.core.data.dataset import QUANTILES, UNCACHED, Dataset, bad_rows_of, class_counts, dataset_of, select
from mtmeta.core.data.examples import bad_rows, write_examples
from mtmeta.core.data.subsets import SAMPLE_PLACES
from mtmeta.core.data.tokens import BLOCK, WithTokenizer, append_names, append_texts, append_words
from mtmeta.core.errors import DataError, RecipeError
from mtmeta.core.recipe.sections import DataOptions
from mtmeta.core.registry.guard import blame
from mtmeta.core.storage.addresses import is_remote, part_address
from mtmeta.core.storage.cache import Cache, Writer, in_memory
from mtmeta.core.storage.sources import Sources
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.core.wording import quote


def load_split(
    name: str,
    task: Task,
    split: str,
    options: DataOptions,
    root: str,
    backbone: WithTokenizer,
    *,
    path: str | None = None,
    cache: Cache = UNCACHED,
    sources: Sources | None = None,
    open_labels: bool | None = None,
) -> Dataset:
    """Load one split of a task, from the cache or read, parsed, tokenized and then kept there.

    Raises DataError for an unreadable file and, unless `on_bad_rows: skip`, for bad rows, naming the first lines. In
    other splits than train labels that are no class make none, for they may be what a model should not know; then
    `Dataset.unseen` has them, which `open_labels` settles where it is given.
    """
    given = path if path is not None else getattr(task, split)
    if given is None:
        fix = f"add '{split}:' to the recipe or pass --file {name}=PATH"
        raise DataError(f"task '{name}'", f"has no {split} file; {fix}")
    if path is None and isinstance(task.dev, Carve) and split in ("train", "dev"):
        bare = replace(task, dev=None)
        load = partial(load_split, name, bare, "train", options, root, backbone, cache=cache, sources=sources)
        whole = _hold(cache, (bare, options, root), split, load)
        dataset = _carve(replace(whole, task=name), task.dev, split)
        check_parts(task, split, dataset)
        return dataset
    _check_windows(name, task, backbone)
    strict = options.on_bad_rows == "error"
    if open_labels is None:
        open_labels = strict and split != "train"
    if given == SAMPLE:
        examples = list(task.sample(split))
        choices = [example.choices for example in examples if example.choices]
        digest = hashlib.sha256(f"{examples!r}{choices or ''}".encode()).hexdigest()
        dataset = replace(from_examples(name, task, split, examples, backbone, strict=strict), sha256=digest)
    else:
        file = _file(given, task, options, root if path is None else None, sources)
        dataset = _load_file(name, task, split, file, backbone, cache, strict=strict, open_labels=open_labels)
    _check_classes(task, split, dataset)
    check_parts(task, split, dataset)
    _check_texts(split, dataset)
    return dataset


def split_file(task: Task, split: str, options: DataOptions, root: str, sources: Sources) -> DataFile | None:
    """Return the file that a split of a task is read from, None for the sample. Raises DataError, MachineError."""
    given = task.train if isinstance(task.dev, Carve) and split == "dev" else getattr(task, split)
    return None if given == SAMPLE else _file(given, task, options, root, sources)


def _file(given: str, task: Task, options: DataOptions, root: str | None, sources: Sources | None) -> DataFile:
    """Return a task's file: its path is below `root`, or as it stands where that is None."""
    dialect = task.dialect or Dialect(**{key: getattr(options, key) for key in Dialect.__dataclass_fields__})
    if is_remote(given):
        address, table = part_address(given)
        return DataFile((sources or Sources()).file(address), dialect, table=table)
    if root is None:
        return DataFile(given, dialect)
    if not Path(root).is_dir():
        raise DataError(root, "no such folder, in which the recipe's data should be; set data_root or --data-root")
    path = os.path.join(root, given)
    if all(place in given for place in SAMPLE_PLACES) and not os.path.lexists(path):
        places = " and ".join(SAMPLE_PLACES)
        raise DataError(path, f"{places} name samples of a few examples: of `train`, and mtmeta adapt alone reads them")
    return DataFile(path, dialect)


def _hold(cache: Cache, asked: tuple[object, ...], split: str, load: Callable[[], Dataset]) -> Dataset:
    """Return a training file: dev is asked for right after train, and nothing else keeps a file that has no key."""
    whole: Dataset = cache.held[1] if cache.held and cache.held[0] == asked else load()
    cache.held = (asked, whole) if split == "train" and cache is not UNCACHED else None
    return whole


def _carve(whole: Dataset, carve: Carve, split: str) -> Dataset:
    """Return the dev split that `carve` takes out of a training set, or what it leaves."""
    labels = whole.of_label
    ranked = labels.astype(np.int64)
    if not whole.whole:
        ranked[np.lexsort((whole.examples, labels))] = np.arange(len(whole)) * QUANTILES // len(whole)
    in_dev = carved(whole.texts, ranked, carve)
    rows = np.flatnonzero(in_dev)
    if not len(rows):
        message = f"no dev split of {carve.fraction:g} can be taken out of {len(whole)} examples; name a dev file"
        raise DataError(whole.file, message)
    if split == "train":
        return select(whole, np.flatnonzero(~in_dev))
    dev = select(whole, rows)
    sha256 = carved_digest(whole.sha256, carve, rows)
    # bad rows are told of train, whose file it is
    return replace(dev, split="dev", sha256=sha256, labels=dev.labels.copy(), skipped=0, bad=(), kinds={}, notes=())


def _load_file(
    name: str,
    task: Task,
    split: str,
    file: DataFile,
    backbone: WithTokenizer,
    cache: Cache,
    *,
    strict: bool,
    open_labels: bool,
) -> Dataset:
    digest = file.sha256()
    state = _state(file)
    with blame(task, "task"):  # it asks options and objective for their repr
        key = cache_key(task, file, digest, backbone, open_labels=open_labels)
    entry = cache.get(key)
    if entry is None:

        def fill(writer: Writer) -> dict[str, Any]:
            how: dict[str, Any] = {"strict": strict, "open_labels": open_labels}
            meta = write_examples(writer, task, file.place, task.read(file), backbone, file, **how)
            if _state(file) != state:  # what was read may not be what was hashed
                raise DataError(file.place, "changed while it was read; run the same command again")
            return meta

        entry = cache.put(key, fill)
    elif strict and entry.meta["skipped"]:
        raise bad_rows(file.place, bad_rows_of(entry), entry.meta["skipped"])
    return dataset_of(name, split, file.place, entry, digest)


def _state(file: DataFile) -> tuple[int, ...]:
    try:
        status = os.stat(file.path)
    except OSError as error:
        raise DataError(file.place, f"cannot be read ({error.strerror})") from None
    return status.st_ino, status.st_size, status.st_mtime_ns


def from_examples(
    name: str, task: Task, split: str, examples: Iterable[Example], backbone: WithTokenizer, *, strict: bool = True
) -> Dataset:
    """Return a dataset of examples in memory. Raises DataError for bad ones, or skips them unless `strict`."""
    entry = in_memory(lambda writer: write_examples(writer, task, SAMPLE, examples, backbone, strict=strict))
    return dataset_of(name, split, SAMPLE, entry, "")


def from_texts(
    name: str,
    task: Task,
    texts: Sequence[str],
    others: Sequence[Sequence[str]],
    backbone: LoadedBackbone,
    inputs: Inputs | None = None,
) -> Dataset:
    """Make a dataset of texts [N] without labels, to predict; labels are 0.

    `others` are the second texts of pairs, or of each choice those of all examples, [N] each. They enter the encoder as
    `inputs` says, by default as the task's examples do.
    """

    def fill(writer: Writer) -> dict[str, Any]:
        append_names(writer, [str(number) for number in range(len(texts))])
        writer.append("texts", np.zeros((len(texts), 1), dtype=np.uint64))
        if inputs is None and task.objective.labelled == "words":
            writer.append("labels", np.zeros(sum(len(text.split()) for text in texts)))
            append_words(writer, backbone, texts)
        else:
            writer.append("labels", np.zeros(len(texts)))
            long = None if inputs else task.long
            how: dict[str, Any] = {"long": long, "both_orders": task.both_orders}
            append_texts(writer, inputs or task.inputs, backbone, texts, *others, **how)
        return {"skipped": 0, "bad": [], "whole": True, "kinds": {}}

    return dataset_of(name, "predict", "", in_memory(fill), "")


def _check_windows(name: str, task: Task, backbone: WithTokenizer) -> None:
    """Raise RecipeError where the encoder does not take a task's windows, or they would leave words out."""
    if (long := task.long) is None:
        return
    if message := long.too_wide(backbone.max_length):
        raise RecipeError(f"tasks.{name}.long.window", message)
    room = long.window - len(backbone.tokenizer.prefix) - len(backbone.tokenizer.suffix)
    if long.stride > room:
        message = f"is {long.stride}, and a window has {room} tokens of the text: what is between would be left out"
        raise RecipeError(f"tasks.{name}.long.stride", message)


def check_parts(task: Task, split: str, dataset: Dataset) -> None:
    """Raise DataError where no example of a split has the label of one of a task's parts, or all of train have one."""
    if not isinstance(objective := task.objective, MultiOutput):
        return
    for name, count in objective.counted(dataset.labels).items():
        if not count:
            message = f"no example of {split} has a label of {quote(name)}; leave it out, or give {split} some"
            raise DataError(dataset.file, message)
        counts = class_counts(dataset, task, name) if split == "train" else []
        if sum(map(bool, counts)) == 1 and task.parts[name].objective.labelled == "one":
            label = task.parts[name].objective.classes[int(np.argmax(counts))]
            message = f"all {count} labels of {quote(name)} are {quote(label)}; there is nothing to learn"
            raise DataError(dataset.file, message)


def _check_texts(split: str, dataset: Dataset) -> None:
    """Raise DataError for pairs of which nothing is to be told apart: on one side there is a single text."""
    if split != "train" or not dataset.by_text or dataset.texts.shape[1] > 2:
        return
    for column, side in zip(dataset.texts.T, ("first", "second"), strict=True):
        if (column[:BLOCK] == column[0]).all() and (column == column[0]).all():
            message = f"the {side} text of all {len(dataset)} examples is the same; there is nothing to learn"
            raise DataError(dataset.file, message)


def _check_classes(task: Task, split: str, dataset: Dataset) -> None:
    classes = task.objective.classes
    if split != "train" or len(classes) < 2 or len(dataset) < 2 or task.inputs == "choices":
        return  # of choices the right one may well stand in the same place always
    same = dataset.labels[0]
    if (dataset.labels[:BLOCK] == same).all() and (dataset.labels == same).all():  # a glance nearly always settles it
        label = classes[int(same)] if same.ndim == 0 else task.objective.show(same)
        raise DataError(dataset.file, f"all {len(dataset)} labels are {quote(label)}; there is nothing to learn")
