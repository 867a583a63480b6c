"""The guess of a tagging task: files of a word a line with its tag in the last column, as those of CoNLL."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.backbone import LoadedTokenizer
from mtmeta.core.authoring.task_guess import Choice, TaskFiles, TaskGuess
from mtmeta.core.errors import DataError
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.core.tables.readings import find_encoding
from mtmeta.core.tables.word_lines import TAG
from mtmeta.core.wording import quote, safe

MAX_SAMPLE = 4000


@dataclass
class _Tagged:
    """What a file holds."""

    texts: int
    bad: int
    tags: Counter[str]
    lengths: NDArray[np.int64]
    """Tokens of the first texts."""


def guess_tagging(name: str, kind: type[Any], files: TaskFiles, root: Path, tokens: LoadedTokenizer) -> TaskGuess:
    """Guess a task whose files are such; `kind` reads them. Raises DataError where there are too few texts."""
    encoding, notes = find_encoding(DataFile(root / files[0]))
    dialect = Dialect(encoding=encoding)
    train = _read(root / files[0], kind, dialect, tokens)
    dev = None if files[1] is None else _read(root / files[1], kind, dialect, tokens)
    test = None if files[2] is None else _read(root / files[2], kind, dialect, tokens)
    if train.texts < 10:
        raise DataError(str(root / files[0]), f"{train.texts} texts are too few to learn from")
    types = sorted({tag[2:] for tag in train.tags + (dev.tags if dev else Counter()) if tag != "O"})
    share = 0.2 if train.texts < 500 else 0.1
    rows = train.texts if dev else round(train.texts * (1 - share))
    size = next((size for size in (32, 16, 8, 4, 2) if rows >= 10 * size), 1)
    choices = [
        Choice("task", "tagging", "a word a line, tags O, B-TYPE and I-TYPE in the last column"),
        Choice("train", files[0], f"{train.texts:,} texts"),
        Choice("dev", files[1], f"{dev.texts:,} texts")
        if dev
        else Choice("dev", {"fraction": share}, f"no dev file was given: {100 * share:g}% of the texts"),
        *([Choice("test", files[2], f"{test.texts:,} texts, never looked at by a guess")] if test else []),
        Choice("labels", types, f"the {len(types)} types of entities"),
        Choice("metrics", ["entity_f1", "word_accuracy"], "tags mark entities"),
        Choice("batch_size", size, "32, less where there are few texts"),
    ]
    if encoding != Dialect().encoding:
        choices.append(Choice("dialect", {"encoding": encoding}, "as the file is written"))
    return TaskGuess(
        name=name,
        choices=tuple(choices),
        notes=(f"words with a tag: {_shares(train.tags)}", *notes),
        rows=rows,
        dev_rows=dev.texts if dev else train.texts - rows,
        bad=train.bad + (dev.bad if dev else 0),
        lengths=train.lengths,
        inputs=1,
        batch_size=size,
    )


def _read(path: Path, kind: type[Any], dialect: Dialect, tokens: LoadedTokenizer) -> _Tagged:
    """Count the texts of a file and their tags. Raises DataError for tags that are no BIO."""
    file = DataFile(path, dialect)
    tags: Counter[str] = Counter()
    texts: list[str] = []
    count = 0
    for example in kind(labels=("TYPE",), train=str(path)).read(file):
        count += 1
        tags.update(example.label)
        if len(texts) < MAX_SAMPLE:
            texts.append(example.text)
    if odd := next((tag for tag in tags if not TAG.fullmatch(tag)), None):
        raise DataError(str(path), f"tag {quote(odd)} is not O, B-TYPE or I-TYPE; write the recipe by hand")
    tokenizer = tokens.tokenizer
    ends = len(tokenizer.prefix) + len(tokenizer.suffix)
    lengths = np.array([len(ids) + ends for ids in tokenizer.encode(texts)] or [0], dtype=np.int64)
    return _Tagged(count, file.bad.total, tags, lengths)


def _shares(tags: Counter[str]) -> str:
    total = max(1, sum(tags.values()))
    kinds: Counter[str] = Counter()
    for tag, count in tags.items():
        kinds[tag[2:] or "O"] += count
    return ", ".join(f"{safe(kind, 20)} {count / total:.1%}" for kind, count in kinds.most_common(12))
