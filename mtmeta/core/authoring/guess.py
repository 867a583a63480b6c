"""What a task on a data file may be: kind, labels, metrics, how pairs are read; each choice with its reason."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.backbone import LoadedTokenizer
from mtmeta.core.authoring.columns import MISSING, Look
from mtmeta.core.authoring.roles import MAX_CLASSES, SCORES, Roles
from mtmeta.core.errors import DataError
from mtmeta.core.wording import quote, safe

__all__ = ["Choice", "TaskGuess", "guess_task"]

RANGES = ((0, 1), (-1, 1), (1, 5), (0, 5), (1, 7), (0, 10), (1, 10), (0, 100), (1, 100))
MAX_GRADES = 20  # different whole numbers that are taken for classes
LEAST_ROWS = 10
DEV_ROWS = 2000  # a dev split this large tells a metric to about two points
WORDS_OF_NO = ("0", "no", "false", "negative", "neg", "not", "ham", "f", "n")


@dataclass(frozen=True)
class Choice:
    """A key of a recipe, its value, and why it is so."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class TaskGuess:
    """One task: its choices, and what the rest of the recipe depends on."""

    name: str
    choices: tuple[Choice, ...]
    notes: tuple[str, ...]
    rows: int
    """Usable training rows, those of a carved dev split apart."""
    dev_rows: int
    bad: int
    lengths: NDArray[np.int64]
    """Tokens of the sequences of a sample of rows, special tokens included."""
    inputs: int
    """Sequences an example."""

    @property
    def options(self) -> dict[str, Any]:
        """The task's options as the recipe has them."""
        return {choice.key: choice.value for choice in self.choices}


def guess_task(
    name: str, train: Look, dev: Look | None, files: tuple[str, str | None], roles: Roles, tokens: LoadedTokenizer
) -> TaskGuess:
    """The task that fits a file; `files` are the names of training and dev file as the recipe has them.

    Raises DataError if there is nothing to learn from the labels.
    """
    place, column = str(train.path), roles.label
    values = _values(train, roles) + (_values(dev, roles) if dev else Counter())
    if not values and column.values is not None:
        raise DataError(place, f"column {quote(column.name)} is empty; name the label with --columns")
    numbers = _is_number(roles, values)
    if numbers:
        choices, kind, shares = _on_numbers(train, dev, roles), "numbers", ""
    else:
        choices, kind, shares = _on_classes(train, roles, values), "classes", _shares(values)
    pair = roles.pair is not None
    task = {
        "numbers": "similarity" if pair else "regression",
        "classes": "pair_classification" if pair else "classification",
    }
    goal = "a number" if numbers else f"one of {len(_classes(values))} classes"
    message = f"{'two texts' if pair else 'one text'} to {goal}"
    made = [Choice("task", task[kind], message), Choice("train", files[0], f"{train.rows:,} rows")]
    bad = _bad(train, roles, numbers) + (_bad(dev, roles, numbers) if dev else 0)
    usable = max(1, train.rows - _bad(train, roles, numbers))
    if dev is None and usable < LEAST_ROWS:
        message = f"{usable} usable rows are too few to take a dev split out of"
        raise DataError(place, f"{message}; give a dev file: --task {name}={files[0]},DEV")
    made.append(_dev(files[1], dev, usable, numbers))
    made.append(Choice("text", roles.text.name, roles.why_text))
    if roles.pair is not None:
        made.append(Choice("pair", roles.pair.name, roles.why_text))
    made.append(Choice("label", column.name, roles.why_label))
    mode = "separate" if numbers else "cross"
    made += choices
    if pair:
        why = (
            "each text alone, compared by cosine"
            if numbers
            else "both texts in one sequence: better, and slower, than separate"
        )
        made.append(Choice("pair_mode", mode, why))
    rows = usable if dev else max(1, usable - round(usable * made[2].value["fraction"]))
    size = next((size for size in (32, 16, 8, 4, 2) if rows >= 10 * size), 1)
    made.append(Choice("batch_size", size, "32, less where there are few rows"))
    if train.dialect.quoting != "csv" or train.dialect.multiline or train.dialect.encoding != "utf-8":
        made.append(Choice("dialect", _dialect(train), "as the file is written"))
    notes = [f"labels: {shares}"] if shares else []
    if roles.ignored:
        notes.append(f"columns not used: {safe(', '.join(roles.ignored), 200)}")
    if dev and not numbers:
        unseen = sorted(set(_classes(_values(dev, roles))) - set(_classes(_values(train, roles))))
        if unseen:
            notes.append(f"labels that only the dev file has: {safe(', '.join(unseen), 200)}")
    lengths = _lengths(train, roles, tokens, cross=mode == "cross")
    dev_rows = dev.rows if dev else usable - rows
    return TaskGuess(
        name, tuple(made), tuple(notes), rows, dev_rows, bad, lengths, 2 if pair and mode == "separate" else 1
    )


# ------------------------------------------------------------------------------------------------------------- labels


def _values(found: Look, roles: Roles) -> Counter[str]:
    values = found.columns[roles.label.name].values
    return Counter() if values is None else values


def _is_number(roles: Roles, values: Counter[str]) -> bool:
    """Whether the label is a quantity rather than one of a few names."""
    column = roles.label
    if not column.number:
        return False
    different = {float(value) for value in values if value.lower() not in MISSING}
    if column.values is None or not column.whole:
        return True
    graded = bool(SCORES.search(column.name.lower()))
    if roles.pair is not None and graded and len(different) > 2:
        return True  # how alike two texts are
    contiguous = different == set(range(len(different)))  # as numbered classes are
    return len(different) > (MAX_GRADES if graded or not contiguous else MAX_CLASSES)


def _classes(values: Counter[str]) -> dict[str, int]:
    """Class names in their order, with counts: numbers by value and written whole, no before yes, else by alphabet."""
    found: Counter[str] = Counter()
    numeric = all(re.fullmatch(r"[+-]?\d+(\.0*)?", value) for value in values)
    for value, count in values.items():
        found[str(int(float(value))) if numeric else value] += count
    if numeric:
        return {value: found[value] for value in sorted(found, key=int)}
    return {value: found[value] for value in sorted(found, key=lambda v: (v.lower() not in WORDS_OF_NO, v))}


def _shares(values: Counter[str]) -> str:
    classes = _classes(values)
    total = sum(classes.values())
    shown = [f"{safe(name, 20)} {count / total:.1%}" for name, count in list(classes.items())[:12]]
    return ", ".join(shown) + (f", ... ({len(classes)} in all)" if len(classes) > 12 else "")


def _on_classes(train: Look, roles: Roles, values: Counter[str]) -> list[Choice]:
    classes, column, place = _classes(values), roles.label, str(train.path)
    if len(classes) < 2:
        message = f"all {sum(classes.values())} labels in column {quote(column.name)} are {quote(next(iter(classes)))}"
        raise DataError(place, f"{message}; there is nothing to learn")
    if 2 * len(classes) > sum(classes.values()):
        message = f"{len(classes)} different labels in {sum(classes.values())} rows of column {quote(column.name)}"
        raise DataError(place, f"{message}: no classes; name another with --columns")
    if len(classes) > MAX_CLASSES:
        raise DataError(
            place, f"column {quote(column.name)} has {len(classes)} different labels; name another with --columns"
        )
    names = list(classes)
    numbered = names == [str(i) for i in range(len(names))]
    counts = list(classes.values())
    largest, least = max(counts) / sum(counts), min(counts)
    if len(names) == 2 and largest > 0.65:
        metrics, why = ["matthews", "accuracy"], f"unbalanced, {largest:.0%} are one class: accuracy would flatter"
    elif len(names) > 2 and max(counts) > 3 * least:
        metrics, why = (
            ["macro_f1", "accuracy"],
            f"unbalanced, {max(counts):,} to {least:,} rows a class: each counts alike",
        )
    else:
        metrics, why = ["accuracy", "macro_f1"], f"balanced, the largest class has {largest:.0%}"
    labels: Any = len(names) if numbered else names
    return [
        Choice(
            "labels",
            labels,
            f"numbered from 0 to {len(names) - 1}"
            if numbered
            else f"the {len(names)} values of {safe(column.name, 40)}",
        ),
        Choice("metrics", metrics, why),
    ]


def _on_numbers(train: Look, dev: Look | None, roles: Roles) -> list[Choice]:
    columns = [found.columns[roles.label.name] for found in (train, dev) if found]
    low, high = min(c.low for c in columns), max(c.high for c in columns)
    if low == high:
        raise DataError(
            str(train.path), f"all labels in column {quote(roles.label.name)} are {low:g}; there is nothing to learn"
        )
    fitting = [(a, b) for a, b in RANGES if a <= low and high <= b]
    if fitting:
        bottom, top = min(fitting, key=lambda pair: pair[1] - pair[0])
    else:
        bottom, top = math.floor(low), math.ceil(high)
    if roles.pair is not None and top <= 0:
        message = f"labels from {low:g} to {high:g}; a similarity is greatest for equal texts, and greater than 0"
        raise DataError(str(train.path), f"{message}; shift the labels")
    made = [
        Choice("low", float(bottom), f"labels are from {low:g} to {high:g}"),
        Choice("high", float(top), "of equal texts" if roles.pair else "predictions stay within"),
    ]
    if roles.pair is not None and bottom < 0:
        made.append(Choice("activation", "none", "labels below 0 need negative cosines"))
    made.append(Choice("metrics", ["pearson", "spearman"], "labels are numbers"))
    return made


# --------------------------------------------------------------------------------------------------------------- rows


def _bad(found: Look, roles: Roles, numbers: bool) -> int:
    """Rows without text or label, at most: a row may lack both."""
    label = found.columns[roles.label.name]
    missing = label.empty
    if numbers and label.values is not None:
        missing += sum(count for value, count in label.values.items() if value.lower() in MISSING)
    texts = [roles.text, *([roles.pair] if roles.pair else [])]
    return found.skipped + missing + sum(found.columns[column.name].empty for column in texts)


def _dev(file: str | None, dev: Look | None, rows: int, numbers: bool) -> Choice:
    if file is not None and dev is not None:
        return Choice("dev", file, f"{dev.rows:,} rows")
    wanted = 0.2 if rows < 500 else min(0.1, DEV_ROWS / rows)
    fraction = float(f"{wanted:.2g}")
    share = f"{100 * fraction:g}% of the rows, {'low and high alike' if numbers else 'of every class'}"
    return Choice("dev", {"fraction": fraction}, f"no dev file was given: {share}")


def _dialect(found: Look) -> dict[str, Any]:
    options = found.dialect
    chosen: dict[str, Any] = {}
    if options.quoting != "csv":
        chosen["quoting"] = options.quoting
    if options.multiline:
        chosen["multiline"] = True
    if options.encoding != "utf-8":
        chosen["encoding"] = options.encoding
    return chosen


def _lengths(found: Look, roles: Roles, tokens: LoadedTokenizer, *, cross: bool) -> NDArray[np.int64]:
    tokenizer = tokens.tokenizer
    ends = len(tokenizer.prefix) + len(tokenizer.suffix)
    columns = [roles.text.name, *([roles.pair.name] if roles.pair else [])]
    counted = [_count(tokenizer, [row.get(name, "") for row in found.sample]) for name in columns]
    if cross and len(counted) == 2:
        return counted[0] + counted[1] + ends + len(tokenizer.middle)
    return np.concatenate(counted) + ends


def _count(tokenizer: Any, texts: Sequence[str]) -> NDArray[np.int64]:
    return np.array([len(ids) for ids in tokenizer.encode(texts)], dtype=np.int64)
