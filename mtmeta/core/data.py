"""A task's file to a `Dataset`: read, parsed, tokenized once, held as flat arrays.

Shapes: `N` examples, `V` sequences an example (2 for separately encoded pairs, else 1).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.contracts import SAMPLE, Example, Inputs, Task, Tokenizer
from mtmeta.core.errors import DataError, quote
from mtmeta.core.options import DataOptions
from mtmeta.core.rng import permutation
from mtmeta.core.tables import BadRow, DataFile, Dialect

__all__ = ["Dataset", "RawData", "TokenStore", "overlap", "read_examples", "subset", "tokenize"]

BAD_ROWS_SHOWN = 5
QUANTILES = 5  # strata of regression labels
TOKENIZE_AT_ONCE = 8192  # texts handed to the tokenizer in one call: bounds memory, keeps its threads busy


@dataclass(frozen=True)
class RawData:
    """The parsed examples of one file. Every label is a number."""

    file: str
    examples: list[Example]
    bad: list[BadRow]
    sha256: str


@dataclass(frozen=True)
class TokenStore:
    """Token ids of N sequences end to end; sequence i is `ids[offsets[i]:offsets[i + 1]]`."""

    ids: NDArray[np.int32]
    types: NDArray[np.uint8] | None
    offsets: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)


@dataclass(frozen=True)
class Dataset:
    """One split of one task, ready to be packed into batches."""

    task: str
    split: str
    file: str
    ids: list[str]
    labels: NDArray[np.float64]
    stores: tuple[TokenStore, ...]
    skipped: int = 0
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def tokens(self) -> int:
        return sum(len(store.ids) for store in self.stores)


def read_examples(
    name: str, task: Task, split: str, options: DataOptions, root: str, path: str | None = None
) -> RawData:
    """Read and parse one split of a task.

    Raises DataError for an unreadable file and, unless `on_bad_rows: skip`, for bad rows, naming the first lines.
    """
    given = path if path is not None else getattr(task, split)
    if given is None:
        raise DataError(
            f"task '{name}'", f"has no {split} file; add '{split}:' to the recipe or pass --file {name}=PATH"
        )
    if given == SAMPLE:
        found, bad, shown = list(task.sample(split)), [], SAMPLE
        digest = hashlib.sha256(repr(found).encode()).hexdigest()
    else:
        dialect = task.dialect or Dialect(**{key: getattr(options, key) for key in Dialect.__dataclass_fields__})
        # --file paths are the user's own, recipe paths live under data_root
        if path is None and not Path(root).is_dir():
            raise DataError(root, "no such folder, in which the recipe's data should be; set data_root or --data-root")
        file = DataFile(given if path is not None else Path(root) / given, dialect)
        shown = str(file.path)
        found, bad = list(task.read(file)), file.bad
        digest = file.sha256()
    examples = _parse(task, found, bad)
    bad.sort(key=lambda row: row.line)
    if bad and options.on_bad_rows == "error":
        raise _bad_rows(shown, bad)
    if not examples:
        raise DataError(shown, "no examples" if not bad else f"no good rows, {len(bad)} bad ones")
    _check_classes(task, split, shown, examples)
    return RawData(shown, examples, bad, digest)


def _parse(task: Task, found: Sequence[Example], bad: list[BadRow]) -> list[Example]:
    """Labels as numbers; examples that cannot be used are moved to `bad`."""
    examples = []
    objective, pair = task.objective, task.inputs != "single"
    for index, example in enumerate(found):
        line = example.line or index + 1
        if not example.text.strip() or (pair and not (example.pair or "").strip()):
            bad.append(BadRow(line, "text is empty"))
            continue
        try:
            label = objective.parse(example.label)
        except ValueError as error:
            bad.append(BadRow(line, str(error)))
            continue
        examples.append(replace(example, label=label, id=example.id or str(line)))
    return examples


def _bad_rows(file: str, bad: Sequence[BadRow]) -> DataError:
    first = bad[0]
    rest = ""
    if len(bad) > 1:
        lines = ", ".join(str(row.line) for row in bad[:BAD_ROWS_SHOWN])
        rest = f" ({len(bad)} such lines: {lines}{', ...' if len(bad) > BAD_ROWS_SHOWN else ''})"
    fix = "" if ";" in first.reason else "; mend it or set data.on_bad_rows: skip"
    return DataError(f"{file}:{first.line}", f"{first.reason}{rest}{fix}")


def _check_classes(task: Task, split: str, file: str, examples: Sequence[Example]) -> None:
    classes = task.objective.classes
    if split == "train" and len(classes) > 1 and len(examples) > 1:
        labels = {example.label for example in examples}
        if len(labels) == 1:
            label = classes[int(examples[0].label or 0)]
            raise DataError(file, f"all {len(examples)} labels are {quote(label)}; there is nothing to learn")


def overlap(train: RawData, other: RawData) -> int:
    """How many examples of another split stand in train too."""
    seen = {(example.text, example.pair) for example in train.examples}
    return sum((example.text, example.pair) in seen for example in other.examples)


def subset(examples: Sequence[Example], fraction: float, seed: int, name: str) -> list[Example]:
    """A seeded share of the examples, stratified by label (regression labels by the fifth of the ranking they are in).

    Every stratum keeps its share to within one example, and at least one; file order is kept.
    """
    if fraction >= 1.0:
        return list(examples)
    labels = np.array([example.label for example in examples], dtype=np.float64)
    if any(isinstance(example.label, float) for example in examples):  # class labels are whole numbers
        ranks = np.empty(len(labels), dtype=np.int64)
        ranks[np.argsort(labels, kind="stable")] = np.arange(len(labels))
        labels = (ranks * QUANTILES // len(labels)).astype(np.float64)
    strata: dict[int, list[int]] = {}
    for index, label in enumerate(labels.tolist()):
        strata.setdefault(int(label), []).append(index)
    kept: list[int] = []
    for label in sorted(strata):
        members = strata[label]
        order = permutation(len(members), seed, "fraction", name, label)
        kept += [members[i] for i in order[: max(1, round(fraction * len(members)))]]
    return [examples[i] for i in sorted(kept)]


def tokenize(name: str, split: str, raw: RawData, inputs: Inputs, tokenizer: Tokenizer, max_length: int) -> Dataset:
    """Token ids of all examples, special tokens in place, cut to `max_length` (pairs: the longer text first)."""
    truncated = 0
    pairs = inputs != "single"
    builder_a, builder_b = _Builder(tokenizer), _Builder(tokenizer)
    for start in range(0, len(raw.examples), TOKENIZE_AT_ONCE):
        part = raw.examples[start : start + TOKENIZE_AT_ONCE]
        first = tokenizer.encode([example.text for example in part])
        second = tokenizer.encode([example.pair or "" for example in part]) if pairs else []
        if inputs == "cross":
            for a, b in zip(first, second, strict=True):
                truncated += builder_a.pair(a, b, max_length)
        else:
            truncated += sum(builder_a.single(a, max_length) for a in first)
            truncated += sum(builder_b.single(b, max_length) for b in second)
    stores = (builder_a.store(),) if inputs != "separate" else (builder_a.store(), builder_b.store())
    return Dataset(
        task=name,
        split=split,
        file=raw.file,
        ids=[example.id for example in raw.examples],
        labels=np.array([example.label for example in raw.examples], dtype=np.float64),
        stores=stores,
        skipped=len(raw.bad),
        truncated=truncated,
    )


class _Builder:
    """Collects sequences into a TokenStore; each method returns whether the sequence was cut."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.prefix, self.middle, self.suffix = map(list, (tokenizer.prefix, tokenizer.middle, tokenizer.suffix))
        self.ids: list[int] = []
        self.types: list[tuple[int, int]] = []  # tokens of segment 0, then of segment 1
        self.offsets = [0]

    def single(self, a: list[int], max_length: int) -> bool:
        room = max_length - len(self.prefix) - len(self.suffix)
        self.ids += self.prefix + a[:room] + self.suffix
        self.offsets.append(len(self.ids))
        return len(a) > room

    def pair(self, a: list[int], b: list[int], max_length: int) -> bool:
        room = max_length - len(self.prefix) - len(self.middle) - len(self.suffix)
        cut = len(a) + len(b) > room
        if cut:
            half = room // 2
            keep_b = min(len(b), max(half, room - len(a)))
            a, b = a[: room - keep_b], b[:keep_b]
        self.ids += self.prefix + a + self.middle + b + self.suffix
        self.types.append((len(self.prefix) + len(a) + len(self.middle), len(b) + len(self.suffix)))
        self.offsets.append(len(self.ids))
        return cut

    def store(self) -> TokenStore:
        types = None
        if self.types:
            counts = np.array(self.types, dtype=np.int64).reshape(-1)
            types = np.repeat(np.tile(np.array([0, 1], dtype=np.uint8), len(self.types)), counts)
        return TokenStore(np.array(self.ids, dtype=np.int32), types, np.array(self.offsets, dtype=np.int64))
