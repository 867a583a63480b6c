"""The guess of a task from its data file: kind, labels, metrics, how pairs are read; each choice with its reason."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.api.backbone import LoadedTokenizer
from mtmeta.core.authoring.column_roles import MAX_CLASSES, SCORES, ColumnRoles, texts_of
from mtmeta.core.authoring.label_values import WHOLE, LabelValues, is_mark, notes_on_marks, parted, split_values, whole
from mtmeta.core.authoring.table_profile import TableProfile
from mtmeta.core.errors import DataError, UsageError
from mtmeta.core.tables.bad_rows import MISSING
from mtmeta.core.tables.data_file import Dialect
from mtmeta.core.wording import quote, safe

TaskFiles = tuple[str, str | None, str | None]  # training file, and dev and test file if there are any

RANGES = ((0, 1), (-1, 1), (1, 5), (0, 5), (1, 7), (0, 10), (1, 10), (0, 100), (1, 100))
MAX_GRADES = 20  # different whole numbers that are taken for classes
LEAST_ROWS = 10
DEV_ROWS = 2000  # from so many a metric is known to about two points
WORDS_OF_NO = ("0", "no", "false", "negative", "neg", "not", "ham", "f", "n")


@dataclass(frozen=True)
class Choice:
    """A key of a recipe, its value, and the reason for it."""

    key: str
    value: Any
    why: str


@dataclass(frozen=True)
class TaskGuess:
    """One task: its choices, and the figures that the rest of the recipe depends on."""

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
    batch_size: int


def guess_task(
    name: str,
    train: TableProfile,
    dev: TableProfile | None,
    files: TaskFiles,
    roles: ColumnRoles,
    tokens: LoadedTokenizer,
    *,
    test: TableProfile | None = None,
    id_column: str | None = None,
    label_names: Mapping[str, str] | None = None,
) -> TaskGuess:
    """Guess the task that fits a table; `files` are the names of its files as the recipe has them.

    Of the test file nothing is learned, not even the labels; `id_column` names examples, and `label_names` labels.
    Raises DataError if there is nothing to learn from the labels, or too few rows, UsageError for names that do not
    fit.
    """
    of_dev = _label_values(dev, roles) if dev else Counter()
    labels = split_values(_label_values(train, roles), of_dev, roles.label.name)
    values = labels.counts
    if not values and roles.label.values is not None:
        message = f"column {quote(roles.label.name)} is empty; name the label with --columns"
        raise DataError(str(train.path), message)
    try:
        numbers = label_names is None and _is_number(roles, values)  # what has names is a class
    except ValueError:  # numbers in the training file alone
        message = f"column {quote(roles.label.name)} holds text, but numbers in the training file; write labels alike"
        raise DataError(str((dev or train).path), message) from None
    label_choices = _number_choices(train, dev, roles) if numbers else _class_choices(train, roles, values, label_names)
    missing = {} if numbers else labels.missing
    bad = _bad_rows(train, roles, numbers, missing)
    if dev and not numbers and of_dev and not set(of_dev) - set(missing):
        marks = ", ".join(map(quote, of_dev))
        message = f"column {quote(roles.label.name)} holds {marks} alone, as test files do: no labels"
        raise DataError(str(dev.path), f"{message}; give a dev file that has them, or none")
    usable = max(1, train.rows - bad)
    dev_choice = _dev_choice(name, files, train, dev, usable, "low and high alike" if numbers else "of every class")
    rows = usable if dev else max(1, usable - round(usable * dev_choice.value["fraction"]))
    size = next((size for size in (32, 16, 8, 4, 2) if rows >= 10 * size), 1)
    return TaskGuess(
        name=name,
        choices=(
            _task_choice(roles, values, numbers),
            Choice("train", files[0], f"{train.rows:,} rows"),
            dev_choice,
            *([Choice("test", files[2], f"{test.rows:,} rows, never looked at by a guess")] if test else []),
            *_column_choices(roles),
            *label_choices,
            *_pair_mode_choices(roles, numbers),
            Choice("batch_size", size, "32, less where there are few rows"),
            *_dialect_choices(train, id_column),
        ),
        notes=tuple(_notes(train, dev, roles, labels, numbers, id_column)),
        rows=rows,
        dev_rows=dev.rows if dev else usable - rows,
        bad=bad + (_bad_rows(dev, roles, numbers, missing) if dev else 0),
        lengths=_lengths(train, [column.name for column in texts_of(roles)], tokens, cross=not numbers),
        inputs=2 if roles.pair is not None and numbers else 1,
        batch_size=size,
    )


def guess_ranking(
    name: str,
    tables: tuple[TableProfile, TableProfile | None, TableProfile | None],
    files: TaskFiles,
    columns: Sequence[str],
    tokens: LoadedTokenizer,
    id_column: str | None,
) -> TaskGuess:
    """Guess a task of texts that belong together; `columns` are anchor, positive and hard negatives.

    Raises DataError for too few rows.
    """
    (train, dev, test), (anchor, positive, *negatives) = tables, columns
    bad = [
        table.bad.total + sum(table.columns[each].empty for each in columns) if table else 0 for table in (train, dev)
    ]
    usable = max(1, train.rows - bad[0])
    dev_choice = _dev_choice(name, files, train, dev, usable, "")
    rows = usable if dev else max(1, usable - round(usable * dev_choice.value["fraction"]))
    size = next((size for size in (64, 32, 16, 8, 4) if rows >= 10 * size), 2)
    choices = [
        Choice("task", "ranking", "texts that belong together, by their columns' names"),
        Choice("train", files[0], f"{train.rows:,} rows"),
        dev_choice,
        *([Choice("test", files[2], f"{test.rows:,} rows, never looked at by a guess")] if test else []),
        Choice("anchor", anchor, "the text that is asked for"),
        Choice("positive", positive, "the text that belongs to it"),
        *([Choice("negatives", negatives, "texts that do not")] if negatives else []),
        Choice("metrics", ["accuracy_at_1", "accuracy_at_10", "mrr_at_10"], "how far up the right text stands"),
        Choice(
            "batch_size", size, "64, less where there are few rows: the others of a batch are what a text is told from"
        ),
        *_dialect_choices(train, id_column),
    ]
    ignored = [each for each in train.columns if each not in (*columns, id_column)]
    return TaskGuess(
        name=name,
        choices=tuple(choices),
        notes=(f"columns not used: {safe(', '.join(ignored), 200)}",) if ignored else (),
        rows=rows,
        dev_rows=dev.rows if dev else usable - rows,
        bad=sum(bad),
        lengths=_lengths(train, columns, tokens),
        inputs=len(columns),
        batch_size=size,
    )


def _task_choice(roles: ColumnRoles, values: Counter[str], numbers: bool) -> Choice:
    pair = roles.pair is not None
    if roles.separator is not None:
        task, goal = "multi_label", f"any number of {len(_classes(values))} labels"
    elif numbers:
        task, goal = "similarity" if pair else "regression", "a number"
    else:
        task, goal = "pair_classification" if pair else "classification", f"one of {len(_classes(values))} classes"
    return Choice("task", task, f"{'two texts' if pair else 'one text'} to {goal}")


def _column_choices(roles: ColumnRoles) -> Iterator[Choice]:
    yield Choice("text", roles.text.name, roles.why_text)
    if roles.pair is not None:
        yield Choice("pair", roles.pair.name, roles.why_text)
    yield Choice("label", roles.label.name, roles.why_label)
    if roles.separator not in (None, ","):
        yield Choice("separator", roles.separator, "stands between the labels of a row")


def _pair_mode_choices(roles: ColumnRoles, numbers: bool) -> Iterator[Choice]:
    if roles.pair is not None and numbers:
        yield Choice("pair_mode", "separate", "each text alone, compared by cosine")
    elif roles.pair is not None:
        yield Choice("pair_mode", "cross", "both texts in one sequence: better, and slower, than separate")


def _notes(
    train: TableProfile,
    dev: TableProfile | None,
    roles: ColumnRoles,
    labels: LabelValues,
    numbers: bool,
    id_column: str | None,
) -> Iterator[str]:
    if not numbers:
        yield f"labels: {_shares(labels.counts)}"
        yield from notes_on_marks(labels, sum(table.columns[roles.label.name].empty for table in (train, dev) if table))
    if ignored := [name for name in roles.ignored if name != id_column]:
        yield f"columns not used: {safe(', '.join(ignored), 200)}"
    if dev and not numbers:
        of_train, of_dev = (_label_values(table, roles) for table in (train, dev))
        unseen = sorted(set(_classes(of_dev & labels.counts)) - set(_classes(of_train & labels.counts)))
        if unseen:
            yield f"labels that only the dev file has: {safe(', '.join(unseen), 200)}"


# ------------------------------------------------------------------------------------------------------------- labels


def _label_values(table: TableProfile, roles: ColumnRoles) -> Counter[str]:
    values = table.columns[roles.label.name].values or Counter()
    return parted(values, roles.separator) if roles.separator is not None else values


def _is_number(roles: ColumnRoles, values: Counter[str]) -> bool:
    """Return whether the label is a quantity rather than one of a few names. Raises ValueError if a value is text."""
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
    """Count the classes, in their order: numbers by value and written whole, no before yes, else by alphabet."""
    counts: Counter[str] = Counter()
    numeric = all(WHOLE.fullmatch(value) for value in values)
    for value, count in values.items():
        counts[whole(value) if numeric else value] += count
    names = sorted(counts, key=int if numeric else lambda name: (name.lower() not in WORDS_OF_NO, name))
    return {name: counts[name] for name in names}


def _shares(values: Counter[str]) -> str:
    classes = _classes(values)
    total = sum(classes.values())
    shown = [f"{safe(name, 20)} {count / total:.1%}" for name, count in list(classes.items())[:12]]
    return ", ".join(shown) + (f", ... ({len(classes)} in all)" if len(classes) > 12 else "")


def _class_choices(
    train: TableProfile, roles: ColumnRoles, values: Counter[str], label_names: Mapping[str, str] | None
) -> list[Choice]:
    classes, column, place = _classes(values), roles.label, str(train.path)
    if len(classes) < 2:
        only = next(iter(classes))
        message = f"all {sum(classes.values())} labels in column {quote(column.name)} are {quote(only)}"
        message += ", a mark of missing labels, as in test files" if is_mark(only) else ""
        raise DataError(place, f"{message}; there is nothing to learn")
    if 2 * len(classes) > sum(classes.values()):
        message = f"{len(classes)} different labels in {sum(classes.values())} rows of column {quote(column.name)}"
        raise DataError(place, f"{message}: no classes; name another with --columns")
    if len(classes) > MAX_CLASSES:
        message = f"column {quote(column.name)} has {len(classes)} different labels"
        raise DataError(place, f"{message}; name another with --columns")
    names, counts = list(classes), list(classes.values())
    if label_names is not None:
        if unnamed := [name for name in names if name not in label_names and name not in label_names.values()]:
            raise UsageError("--labels", f"names no label {quote(unnamed[0])}, which stands in {place}; name all")
        labels = Choice("labels", dict(label_names), "the names that were given")
    elif names == [str(i) for i in range(len(names))]:
        labels = Choice("labels", len(names), f"numbered from 0 to {len(names) - 1}")
    else:
        labels = Choice("labels", names, f"the {len(names)} values of {safe(column.name, 40)}")
    largest, least = max(counts) / sum(counts), min(counts)
    if roles.separator is not None:
        metrics, why = ["micro_f1", "macro_f1", "label_ranking_ap"], "several labels a row"
    elif len(names) == 2 and largest > 0.65:
        metrics, why = ["matthews", "accuracy"], f"unbalanced, {largest:.0%} are one class: accuracy would flatter"
    elif len(names) > 2 and max(counts) > 3 * least:
        metrics = ["macro_f1", "accuracy"]
        why = f"unbalanced, {max(counts):,} to {least:,} rows a class: each counts alike"
    else:
        metrics, why = ["accuracy", "macro_f1"], f"balanced, the largest class has {largest:.0%}"
    return [labels, Choice("metrics", metrics, why)]


def _number_choices(train: TableProfile, dev: TableProfile | None, roles: ColumnRoles) -> list[Choice]:
    columns = [table.columns[roles.label.name] for table in (train, dev) if table]
    low, high = min(c.low for c in columns), max(c.high for c in columns)
    if low == high:
        message = f"all labels in column {quote(roles.label.name)} are {low:g}; there is nothing to learn"
        raise DataError(str(train.path), message)
    fitting = [(a, b) for a, b in RANGES if a <= low and high <= b] or [(math.floor(low), math.ceil(high))]
    bottom, top = min(fitting, key=lambda pair: pair[1] - pair[0])
    if roles.pair is not None and top <= 0:
        message = f"labels from {low:g} to {high:g}; a similarity is greatest for equal texts, and greater than 0"
        raise DataError(str(train.path), f"{message}; shift the labels")
    choices = [
        Choice("low", float(bottom), f"labels are from {low:g} to {high:g}"),
        Choice("high", float(top), "of equal texts" if roles.pair else "predictions stay within"),
    ]
    if roles.pair is not None and bottom < 0:
        choices.append(Choice("activation", "none", "labels below 0 need negative cosines"))
    choices.append(Choice("metrics", ["pearson", "spearman"], "labels are numbers"))
    return choices


# --------------------------------------------------------------------------------------------------------------- rows


def _bad_rows(table: TableProfile, roles: ColumnRoles, numbers: bool, marks: Iterable[str]) -> int:
    """Count rows without text or label; at most so many are bad, for a row may lack both."""
    label = table.columns[roles.label.name]
    values = label.values or Counter()
    missing = label.rows - label.numbers if numbers else label.empty + sum(values[mark] for mark in marks)
    return table.bad.total + missing + sum(table.columns[column.name].empty for column in texts_of(roles))


def _dev_choice(
    name: str, files: TaskFiles, train: TableProfile, dev: TableProfile | None, usable: int, how: str
) -> Choice:
    """Choose the dev file, or a share of the `usable` training rows. Raises DataError where these are too few."""
    file = files[1]
    if file is not None and dev is not None:
        return Choice("dev", file, f"{dev.rows:,} rows")
    if usable < LEAST_ROWS:
        message = f"{usable} usable rows are too few to take a dev split out of"
        raise DataError(str(train.path), f"{message}; give a dev file: --task {name}={files[0]},DEV")
    wanted = 0.2 if usable < 500 else min(0.1, DEV_ROWS / usable)
    fraction = float(f"{wanted:.2g}")
    share = f"{100 * fraction:g}% of the rows{f', {how}' if how else ''}"
    return Choice("dev", {"fraction": fraction}, f"no dev file was given: {share}")


def _dialect_choices(table: TableProfile, id_column: str | None) -> Iterator[Choice]:
    dialect, standard = vars(table.dialect), vars(Dialect())
    options = ("header", "quoting", "multiline", "encoding")
    changed = {option: dialect[option] for option in options if dialect[option] != standard[option]}
    if changed or id_column is not None:
        named = {"id": id_column} if id_column is not None else {}
        why = " and ".join(["as the file is written"] * bool(changed) + ["its id names an example"] * bool(named))
        yield Choice("dialect", changed | named, why)


def _lengths(
    table: TableProfile, columns: Sequence[str], tokens: LoadedTokenizer, *, cross: bool = False
) -> NDArray[np.int64]:
    tokenizer = tokens.tokenizer
    ends = len(tokenizer.prefix) + len(tokenizer.suffix)
    encoded = [tokenizer.encode([row.get(name, "") for row in table.sample]) for name in columns]
    counted = [np.array(list(map(len, texts)), dtype=np.int64) for texts in encoded]
    if cross and len(counted) == 2:
        return counted[0] + counted[1] + ends + len(tokenizer.middle)
    return np.concatenate(counted) + ends
