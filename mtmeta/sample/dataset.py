"""Draws the examples of the sample data, and makes their WordPiece vocabulary."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from mtmeta.sample.grammar import SPLITS, WRITERS, Writer
from mtmeta.sample.lexicon import words

TASKS = tuple(WRITERS)
SIZES = {"train": 1200, "dev": 300, "test": 300}
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;?@_"


@dataclass(frozen=True, slots=True)
class SampleRow:
    """One example: a sentence, or a pair of them, with its label."""

    id: str
    text: str
    pair: str | None
    label: int | float


def _plain(text: str) -> str:
    text = text.replace("+", "").replace("_", " ")
    return re.sub(r"\b([Aa]) (?=[aeio]|u[np])", r"\1n ", text)


@cache
def _draw(task: str, split: str) -> tuple[tuple[SampleRow, ...], tuple[str, ...], tuple[str, ...]]:
    """Draw the rows of one set, with the templates they were written with, and their words with the pieces marked."""
    if task not in WRITERS or split not in SPLITS:
        raise ValueError(f"no sample data for task {task!r}, split {split!r}; tasks: {TASKS}, splits: {SPLITS}")
    write = Writer(task, split)
    drawn: list[tuple[str, str | None, int | float]] = []
    seen: set[tuple[str, str | None]] = set()
    marked: set[str] = set()
    while len(drawn) < SIZES[split]:
        # A duplicate is drawn again under the same number, for the number sets the label or the kind of example.
        text, pair, label = WRITERS[task](write, len(drawn))
        if text == pair or (text, pair) in seen:
            continue
        seen.add((text, pair))
        marked.update(re.findall(r"[a-z+]+", f"{text} {pair or ''}".lower()))
        drawn.append((_plain(text), None if pair is None else _plain(pair), label))
    write.rng.shuffle(drawn)
    rows = tuple(SampleRow(f"{task}-{split}-{number:04d}", *row) for number, row in enumerate(drawn))
    return rows, tuple(sorted(set(write.used))), tuple(sorted(marked))


def examples(task: str, split: str) -> list[SampleRow]:
    """Return the examples of `task` (sst, para or sts) for `split` (train, dev or test), always the same ones."""
    return list(_draw(task, split)[0])


@cache
def things() -> frozenset[tuple[str, ...]]:
    """Return what reviews are about, each as its words."""
    entries = [entry for column in words("things") for entry in column]
    return frozenset(tuple(_plain(name).split()) for entry in entries for name in entry.split("/"))


def templates_used(task: str, split: str) -> list[str]:
    """Return the templates that the examples of `task` and `split` were written with."""
    return list(_draw(task, split)[1])


def marked_words(task: str, split: str) -> list[str]:
    """Return the words of a set in order, in lower case and with a plus sign between their pieces."""
    return list(_draw(task, split)[2])


def vocabulary() -> list[str]:
    """Return the vocabulary: special tokens, single characters, then the words of the train sets and word pieces.

    A word made from a stem and affixes is not an entry, its parts are; so a reader of the train sets learns the
    meaning of the parts, and can read new words built from them. No entry is a word that only dev or test sets have.
    """
    entries = dict.fromkeys([*SPECIAL, *CHARACTERS, *("##" + character for character in CHARACTERS)])
    words = {split: sorted({word for task in TASKS for word in marked_words(task, split)}) for split in SPLITS}
    known = {word.replace("+", "") for word in words["train"]}
    unknown = {word.replace("+", "") for word in words["dev"] + words["test"]} - known
    for word in words["train"] + words["dev"] + words["test"]:
        first, *rest = word.split("+")
        if rest or word in words["train"]:
            entries.update(dict.fromkeys(piece for piece in [first, *map("##".__add__, rest)] if piece not in unknown))
    return list(entries)
