"""The profile of a data file, column by column: one pass over every row, in constant memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain, islice, repeat
from pathlib import Path

from mtmeta.core.errors import DataError
from mtmeta.core.tables.bad_rows import MISSING, BadRows
from mtmeta.core.tables.data_file import DataFile, Dialect, Row
from mtmeta.core.tables.delimited import looks_like_data
from mtmeta.core.tables.readings import find_dialect
from mtmeta.core.wording import quote

BLOCK = 8192  # rows taken in together
MAX_VALUES = 2000  # different values of a column that are counted; more are hardly classes
MAX_SAMPLE = 4000  # rows kept, evenly spread, to measure texts by
MAX_COLUMNS = 1000


@dataclass
class Column:
    """Counts over the values of one column."""

    name: str
    rows: int = 0
    empty: int = 0
    characters: int = 0
    words: int = 0
    """Spaces, and one for each text that is not empty."""
    values: Counter[str] | None = field(default_factory=Counter)
    """Count of each value, blanks around it removed; None if there are too many different ones."""
    numbers: int = 0
    """Rows whose value is a finite number, as long as `number` holds."""
    numeric: bool = True
    """Whether no value is text, marks of missing ones aside."""
    whole: bool = True
    """Whether all numbers are whole."""
    low: float = math.inf
    high: float = -math.inf

    @property
    def filled(self) -> int:
        """Rows whose value is not empty."""
        return self.rows - self.empty

    @property
    def number(self) -> bool:
        """Whether every value is a finite number, missing ones aside."""
        return self.numeric and (self.numbers > 0 or not self.filled)

    @property
    def mean_words(self) -> float:
        """Words of a value that is not empty."""
        return self.words / max(1, self.filled)

    @property
    def mean_characters(self) -> float:
        """Characters of a value that is not empty."""
        return self.characters / max(1, self.filled)

    def add(self, block: Sequence[str]) -> None:
        """Count the column's values of a block of rows."""
        texts = [text for text in map(str.strip, block) if text]
        self.rows += len(block)
        self.empty += len(block) - len(texts)
        self.characters += sum(map(len, texts))
        self.words += len(texts) + sum(map(str.count, texts, repeat(" ")))
        if self.values is not None:
            self.values.update(texts)
            if len(self.values) > MAX_VALUES:
                self.values = None
        if self.numeric:
            self._add_numbers(texts)

    def _add_numbers(self, texts: list[str]) -> None:
        try:
            numbers = list(map(float, texts))
        except ValueError:
            texts = [text for text in texts if text.lower() not in MISSING]
            try:
                numbers = list(map(float, texts))
            except ValueError:
                self.numeric = False
                return
        finite = list(filter(math.isfinite, numbers))
        infinite = len(numbers) - len(finite) - sum(map(math.isnan, numbers))
        if infinite > 0.1 * len(texts) or "_" in "".join(texts):  # float() takes 1_0 for 10
            self.numeric = False
            return
        self.numbers += len(finite)
        self.whole = self.whole and all(map(float.is_integer, finite))
        self.low, self.high = min([self.low, *finite]), max([self.high, *finite])


@dataclass
class TableProfile:
    """Columns and row counts of a whole file."""

    path: Path
    dialect: Dialect
    """The dialect that it is written in."""
    columns: dict[str, Column]
    rows: int
    """Rows that could be read."""
    bad: BadRows
    """Those that could not."""
    sample: list[Row]
    """At most MAX_SAMPLE rows, evenly spread."""
    notes: tuple[str, ...] = ()
    """How else it may be read, and what was left out."""
    nested: tuple[str, ...] = ()
    """Names of columns, those of the first row, that hold lists or objects and are not read."""


def profile_table(path: Path, *, header: bool = True) -> TableProfile:
    """Read all rows of a file, with the dialect that it is written in. Raises DataError if none can be read."""
    file = DataFile(path, Dialect(header=header))
    try:
        dialect, notes = find_dialect(file)
        try:
            table = _profile(DataFile(path, dialect), notes)
        except DataError:
            if dialect.encoding == Dialect().encoding:
                raise
            table = _profile(file, [])  # whose refusal names the byte that is not UTF-8
    except DataError as error:
        if " appears " in error.message:
            message = f"{error.message}, or put a line of names before the data if there is none"
            raise DataError(error.place, message) from error
        raise
    if not table.rows:
        first = table.bad[0]
        raise DataError(f"{file.place}:{first.line}", f"{first.reason}; no row of the file can be read")
    return table


def _profile(file: DataFile, notes: Sequence[str]) -> TableProfile:
    path = Path(file.place)
    columns: dict[str, Column] = {}
    sample: list[Row] = []
    rows, stride, rows_left = 0, 1, file.rows()
    while block := list(islice(rows_left, BLOCK)):
        # in a table with a header every row has the same columns
        for name in chain.from_iterable({tuple(row): None for row in block}):
            if name not in columns:
                columns[name] = Column(name, rows, rows)  # a key that no earlier row had
                if len(columns) > MAX_COLUMNS:
                    raise DataError(str(path), f"more than {MAX_COLUMNS} columns; keep those that hold text and label")
        for name, column in columns.items():
            column.add([row.get(name, "") for row in block])
        sample += block[-rows % stride :: stride]
        rows += len(block)
        while len(sample) > MAX_SAMPLE:
            sample, stride = sample[::2], 2 * stride
    if not rows and not file.bad:
        raise DataError(str(path), "no examples")
    nested = tuple(name for name in file.columns() if name not in columns) if rows else ()
    return TableProfile(
        path=path,
        dialect=file.dialect,
        columns=columns,
        rows=rows,
        bad=file.bad,
        sample=sample,
        notes=(*notes, *file.notes),
        nested=nested,
    )


def looks_like_header(table: TableProfile) -> str:
    """Return why the first line of a table is hardly a line of names, '' where it may be one."""
    if list(table.columns) == [str(number) for number in range(len(table.columns))]:
        return ""  # as columns are called that have no names
    for name, column in table.columns.items():
        label = column.values is not None and len(column.values) <= 100 and column.values[name.strip()] > 1
        if label or looks_like_data(name):
            return f"{quote(name)} looks like data, not like the name of a column"
    return ""
