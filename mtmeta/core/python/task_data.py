"""Tasks whose data is in Python: what is to be learned, where its examples come from, and how a row is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from mtmeta.core.errors import DataError, RecipeError
from mtmeta.core.python.tables import (
    ONE_TEXT,
    columns_of,
    decoded_labels,
    named_labels,
    of_columns,
    of_rows,
    opened,
    shown,
    together,
)
from mtmeta.core.wording import safe

SPLITS = ("train", "dev", "test")
TEXTS = ("text", "sentence")
PAIRS = (("text1", "text2"), ("sentence1", "sentence2"), ("question1", "question2"), ("premise", "hypothesis"))
LABELS = ("label", "score")
MAX_CLASSES = 100_000
Row = dict[str, Any]
Columns = str | tuple[str, str] | None


@dataclass(frozen=True)
class TaskData:
    """A task with its examples, for `mtmeta.train`; made by `classification`, `similarity` and their like."""

    task: str
    """What the task is registered as."""
    splits: Mapping[str, Any] = field(repr=False)
    """Data of train, dev and test; in the place of dev perhaps {fraction: 0.1}, to be taken out of train."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the task, as a recipe has them."""
    text: Columns | tuple[str, ...] = None
    """The column of the text, or those of the two texts, in tables and mappings."""
    label: str | None = None
    """The column of the label."""
    kind: Literal["class", "number", "rows"] = "rows"
    """What a label is; `rows` are written as they are, for a task that reads them itself."""

    @property
    def pair(self) -> bool:
        """Whether an example has two texts."""
        return self.task in ("pair_classification", "similarity")

    @property
    def in_memory(self) -> list[str]:
        """Return the splits whose rows are Python's, to be written."""
        return [split for split in SPLITS if split in self.splits and not is_share(self.splits[split])]


def classification(
    data: Any,
    labels: Any = None,
    *,
    dev: Any = None,
    test: Any = None,
    text: str | None = None,
    label: str | None = None,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> TaskData:
    """Make a task of one text and one of several classes out of data in Python.

    `data` are texts, with as many `labels`; or a table of any library (pandas, polars, datasets, Arrow, a dict of
    lists) with columns `text` and `label`; or rows that come one by one, as (text, label) or mappings, of more than
    memory holds if need be; or a function that returns any of these. `dev` and `test` are alike, texts and labels as
    (texts, labels); of `dev` a share of the training data may be given in their place, as 0.1, which is taken out of
    it. Column names are by default the first of text and sentence, and of label and score, that the table has.
    `classes` are by default those of the table's type, or else the labels of the training data in order. `options` are
    the task's others, as `batch_size=64`. Nothing is read before the training. Raises DataError then for what is no
    data of the task.
    """
    splits = {"train": _side_by_side(data, labels), "dev": dev, "test": test}
    own = {} if classes is None else {"labels": [str(name) for name in classes]}
    return TaskData("classification", _share(splits), {**own, **options}, text, label, "class")


def pair_classification(
    data: Any,
    labels: Any = None,
    *,
    dev: Any = None,
    test: Any = None,
    text: tuple[str, str] | None = None,
    label: str | None = None,
    classes: Sequence[str] | None = None,
    **options: Any,
) -> TaskData:
    """Make a task of two texts and one of several classes out of data in Python.

    As `classification`, with pairs in the place of texts: a list of (text, text), or a tuple of two lists. Raises
    DataError in the training for what is no data of the task.
    """
    splits = {"train": _side_by_side(data, labels), "dev": dev, "test": test}
    own = {} if classes is None else {"labels": [str(name) for name in classes]}
    return TaskData("pair_classification", _share(splits), {**own, **options}, text, label, "class")


def similarity(
    data: Any,
    scores: Any = None,
    *,
    dev: Any = None,
    test: Any = None,
    text: tuple[str, str] | None = None,
    label: str | None = None,
    low: float = 0.0,
    high: float = 5.0,
    **options: Any,
) -> TaskData:
    """Make a task of two texts and a number from `low` to `high`, the score of equal texts, out of data in Python.

    As `pair_classification`, with scores in the place of labels. Raises DataError in the training for what is no data
    of the task.
    """
    splits = {"train": _side_by_side(data, scores), "dev": dev, "test": test}
    return TaskData("similarity", _share(splits), {"low": low, "high": high, **options}, text, label, "number")


def regression(
    data: Any,
    scores: Any = None,
    *,
    low: float,
    high: float,
    dev: Any = None,
    test: Any = None,
    text: str | None = None,
    label: str | None = None,
    **options: Any,
) -> TaskData:
    """Make a task of one text and a number from `low` to `high` out of data in Python.

    As `classification`, with scores in the place of labels. Raises DataError in the training for what is no data of the
    task.
    """
    splits = {"train": _side_by_side(data, scores), "dev": dev, "test": test}
    return TaskData("regression", _share(splits), {"low": low, "high": high, **options}, text, label, "number")


def task(name: str | type[Any], data: Any, *, dev: Any = None, test: Any = None, **options: Any) -> TaskData:
    """Make any registered task, or one's own by its class, out of rows in Python, which the task reads as a table's.

    `data`, `dev` and `test` are tables, or rows as mappings; all their columns are written, and `read` finds them by
    name. `options` are the task's. Raises DataError in the training for rows that are no mappings.
    """
    registered = name if isinstance(name, str) else getattr(name, "name", None)
    if not isinstance(registered, str):
        raise RecipeError("tasks", f"{safe(repr(name))} has no name; give a registered name or a class of mtmeta.Task")
    return TaskData(registered, _share({"train": data, "dev": dev, "test": test}), options)


def _side_by_side(data: Any, labels: Any) -> Any:
    return data if labels is None else (data, labels)


def _share(splits: Mapping[str, Any]) -> dict[str, Any]:
    """Return the splits that there are; a share to be taken out of train as recipes have it."""
    given = {split: data for split, data in splits.items() if data is not None}
    if isinstance(dev := given.get("dev"), int | float):
        given["dev"] = {"fraction": float(dev)}
    return given


# ------------------------------------------------------------------------------------------------------------- rows


class Rows:
    """The rows of one split, as they are to be written, and what was seen of their labels on the way."""

    def __init__(self, task: TaskData, split: str, place: str) -> None:
        self.task, self.place = task, place
        self.data = task.splits[split]
        self.classes: list[str] | None = None
        """The classes that the data itself names, in its order."""
        self.seen: dict[str, None] = {}
        """The labels of classes that came, as text."""
        self.count = 0

    def __iter__(self) -> Iterator[Row]:
        made = self._as_they_are() if self.task.kind == "rows" else self._examples()
        for row in made:
            self.count += 1
            yield row
        if not self.count:
            raise DataError(self.place, "holds no examples; an iterator that was gone through once is empty")

    def _as_they_are(self) -> Iterator[Row]:
        data = opened(self.data, self.place)
        names = columns_of(data)
        if names is not None:
            rows: Iterable[Any] = (
                dict(zip(names, cells, strict=True)) for cells in of_columns(data, names, self.place)
            )
        else:
            rows = data
        for number, row in enumerate(rows, 1):
            if not isinstance(row, Mapping):
                message = f"row {number} is {shown(row)}, expected a mapping of column names to values"
                raise DataError(self.place, message)
            yield {str(key): self._value(value, number, str(key)) for key, value in row.items()}

    def _examples(self) -> Iterator[Row]:
        label = self._label_of_class if self.task.kind == "class" else self._number
        names = ["text", "pair"] if self.task.pair else ["text"]
        for number, cells in enumerate(self._cells(), 1):
            *texts, value = cells
            row: Row = {name: self._text(text, number) for name, text in zip(names, texts, strict=True)}
            row["label"] = label(value, number)
            yield row

    def _cells(self) -> Iterator[tuple[Any, ...]]:
        """Yield text, second text where there is one, and label of every example."""
        task, place, data = self.task, self.place, self.data
        if isinstance(data, tuple) and len(data) == 2:
            return self._beside(opened(data[0], place), opened(data[1], place))
        data = opened(data, place)
        if (known := columns_of(data)) is None:
            return of_rows(data, [*self._text_columns(None), task.label or LABELS[0]], place)
        label = task.label or next((name for name in LABELS if name in known), LABELS[0])
        self.classes = named_labels(data, label)
        cells = of_columns(data, [*self._text_columns(known), label], place)
        decode: Callable[[Any], Any] | None = decoded_labels(data, label)
        return cells if decode is None else ((*texts, decode(value)) for *texts, value in cells)

    def _beside(self, texts: Any, labels: Any) -> Iterator[tuple[Any, ...]]:
        if columns_of(texts) is not None or columns_of(labels) is not None:
            raise DataError(self.place, "is a table beside labels; give the table alone, and its columns by name")
        if not self.task.pair:
            yield from together([texts, labels], self.place)
        elif isinstance(texts, tuple) and len(texts) == 2 and not any(isinstance(side, ONE_TEXT) for side in texts):
            yield from together([*texts, labels], self.place)
        else:
            for number, (pair, label) in enumerate(together([texts, labels], self.place), 1):
                if isinstance(pair, ONE_TEXT) or not isinstance(pair, Sequence) or len(pair) != 2:
                    raise DataError(self.place, f"row {number} is {shown(pair)}, expected two texts")
                yield (*pair, label)

    def _text_columns(self, known: Sequence[str] | None) -> list[str]:
        """Return the columns of the texts: those asked for, or the usual ones that there are."""
        given = self.task.text
        if given is not None:
            names = [given] if isinstance(given, str) else list(given)
            if len(names) != 1 + self.task.pair:
                wanted = "two columns, text=(ONE, OTHER)" if self.task.pair else "one column"
                raise DataError(self.place, f"takes {wanted}, found {len(names)}")
            return names
        usual: Sequence[tuple[str, ...]] = PAIRS if self.task.pair else [(name,) for name in TEXTS]
        fits = (names for names in usual if known is None or set(names) <= set(known))
        if (found := next(fits, None)) is None:
            listed = safe(", ".join(known or ()), 300)
            wanted = "text=(ONE, OTHER)" if self.task.pair else "text=COLUMN"
            raise DataError(self.place, f"which column holds the text is not clear of {listed}; give {wanted}")
        return list(found)

    def _text(self, value: Any, number: int) -> str | None:
        if isinstance(value, str):
            return value
        if is_missing(value):
            return None
        raise DataError(self.place, f"row {number}: text is {shown(value)}, expected a str; give the right column")

    def _label_of_class(self, value: Any, number: int) -> str | None:
        plain = self._value(value, number, "label")
        if plain is None or isinstance(plain, list | dict):
            if plain is None:
                return None
            raise DataError(self.place, f"row {number}: label is {shown(value)}, expected one class")
        if isinstance(plain, float) and plain.is_integer():
            plain = int(plain)  # as a column of whole numbers becomes where one is missing
        text = str(plain)
        if text not in self.seen:
            if len(self.seen) == MAX_CLASSES:
                raise DataError(self.place, f"holds more than {MAX_CLASSES} classes; for numbers take regression")
            self.seen[text] = None
        return text

    def _number(self, value: Any, number: int) -> float | int | None:
        plain = self._value(value, number, "label")
        if plain is None or (isinstance(plain, int | float) and not isinstance(plain, bool)):
            return plain
        raise DataError(self.place, f"row {number}: label is {shown(value)}, expected a number")

    def _value(self, value: Any, number: int, name: str) -> Any:
        """Return a value as JSON has it, of numpy's numbers and others' too. Raises DataError for anything else."""
        if isinstance(value, str | bool | int):
            return value
        if is_missing(value):
            return None
        if isinstance(value, float):
            if not math.isfinite(value):
                raise DataError(self.place, f"row {number}: {safe(name)} is {value}; give a finite number")
            return float(value)
        if getattr(value, "shape", None) == () and hasattr(value, "item"):
            return self._value(value.item(), number, name)
        if isinstance(value, Mapping):
            return {str(key): self._value(item, number, name) for key, item in value.items()}
        if isinstance(value, list | tuple) or hasattr(value, "tolist"):
            items = value.tolist() if hasattr(value, "tolist") else value
            return [self._value(item, number, name) for item in items]
        if hasattr(value, "__float__"):  # Decimal, Fraction
            return self._value(float(value), number, name)
        raise DataError(self.place, f"row {number}: {safe(name)} is {shown(value)}, expected text or a number")


def is_share(data: Any) -> bool:
    """Return whether a dev split is a share of the training data, as recipes have it, and no table."""
    return isinstance(data, Mapping) and isinstance(data.get("fraction"), int | float)


def is_missing(value: Any) -> bool:
    """Return whether a value stands for none at all, in whatever library: None, NaN, NA, NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float) and value != value


def in_order(labels: Iterable[str]) -> list[str]:
    """Return classes in order: as numbers where all are whole ones, else as text."""
    found = list(labels)
    if all(label.lstrip("-").isascii() and label.lstrip("-").isdecimal() for label in found):
        return sorted(found, key=int)
    return sorted(found)
