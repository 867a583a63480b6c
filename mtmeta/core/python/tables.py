"""Rows of whatever holds them in Python: lists, tables of any library, streams of rows; none is held as a whole.

No library of tables is imported: they are known by what they offer (columns by name, batches of Arrow, rows that are
mappings), and rows are taken as they come.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from mtmeta.core.api.contracts import Example
from mtmeta.core.errors import DataError
from mtmeta.core.wording import did_you_mean, quote, safe

Cells = tuple[Any, ...]
"""Values of the columns asked for, in one row."""
ONE_TEXT = (str, bytes, bytearray)
ENDED = object()


def shown(value: object) -> str:
    """Return a value as messages show it."""
    return quote(value) if isinstance(value, str) else safe(repr(value))


def columns_of(data: Any) -> list[str] | None:
    """Return the names of a table's columns; None for what is no table."""
    if isinstance(data, Mapping):
        return [str(name) for name in data]
    for attribute in ("column_names", "columns"):
        names = getattr(data, attribute, None)
        if names is not None and not callable(names) and not isinstance(names, str):
            return [str(name) for name in names]
    names = getattr(getattr(data, "schema", None), "names", None)  # a reader of Arrow batches
    return [str(name) for name in names] if isinstance(names, list) else None


def of_columns(data: Any, names: Sequence[str], place: str) -> Iterator[Cells]:
    """Yield the named columns' values, row by row. Raises DataError for a table that lacks one."""
    known = columns_of(data) or []
    for name in names:
        if name not in known:
            listed = safe(", ".join(known), 300) or "none"
            raise DataError(place, f"no column {quote(name)}; columns are: {listed}{did_you_mean(name, known)}")
    if hasattr(data, "to_batches"):  # Arrow's table
        return _batches(data.select(list(names)).to_batches())
    if hasattr(data, "read_next_batch"):  # Arrow's reader, perhaps of more than memory holds
        return _batches(batch.select(list(names)) for batch in data)
    if hasattr(data, "select_columns"):  # of datasets: what is not asked for is not decoded
        return _picked(data.select_columns(list(names)), names)
    return together([data[name] for name in names], place)


def _batches(batches: Iterable[Any]) -> Iterator[Cells]:
    for batch in batches:
        yield from zip(*(column.to_pylist() for column in batch.columns), strict=True)


def _picked(rows: Iterable[Any], names: Sequence[str]) -> Iterator[Cells]:
    for row in rows:
        yield tuple(row[name] for name in names)


def together(columns: Sequence[Any], place: str) -> Iterator[Cells]:
    """Yield rows of columns that stand side by side. Raises DataError where one ends before another."""
    for column in columns:
        if isinstance(column, ONE_TEXT) or not isinstance(column, Iterable):
            raise DataError(place, f"holds {shown(column)} where a list is expected; give one item for each example")
    for number, cells in enumerate(itertools.zip_longest(*columns, fillvalue=ENDED)):
        if any(cell is ENDED for cell in cells):
            counts = "texts and labels" if len(columns) == 2 else "columns"
            raise DataError(place, f"{counts} are not of one length: one ends after {number}; give as many of each")
        yield cells


def of_rows(rows: Iterable[Any], names: Sequence[str], place: str) -> Iterator[Cells]:
    """Yield the values of rows that come one by one: mappings by `names`, tuples in their order, or examples."""
    for number, row in enumerate(rows, 1):
        if isinstance(row, Mapping):
            missing = next((name for name in names if name not in row), None)
            if missing is not None:
                message = f"row {number} has no {quote(missing)}{did_you_mean(missing, [str(key) for key in row])}"
                raise DataError(place, f"{message} (it has {safe(', '.join(map(str, row)), 200)})")
            yield tuple(row[name] for name in names)
        elif isinstance(row, Example):
            yield (row.text, row.label) if len(names) == 2 else (row.text, row.pair, row.label)
        elif isinstance(row, tuple | list) and len(row) == len(names):
            yield tuple(row)
        else:
            wanted = f"a mapping or a tuple of {len(names)}: {', '.join(names)}"
            raise DataError(place, f"row {number} is {shown(row)}, expected {wanted}")


def opened(data: Any, place: str) -> Any:
    """Return the data that a function makes, or the data as it is. Raises DataError for what has no rows at all."""
    if hasattr(data, "collect") and hasattr(data, "collect_schema"):
        raise DataError(place, f"is a {type(data).__name__}, which holds no rows yet; give TABLE.collect()")
    if callable(data) and not hasattr(data, "__iter__") and columns_of(data) is None:
        data = data()
    # columns of pandas and polars have the same method, and are lists enough
    if hasattr(data, "__arrow_c_stream__") and not isinstance(data, Iterable) and columns_of(data) is None:
        data = _arrow_reader(data, place)
    if isinstance(data, ONE_TEXT) or (not isinstance(data, Iterable) and columns_of(data) is None):
        raise DataError(place, f"is {shown(data)}, expected a list or a table")
    return data


def _arrow_reader(data: Any, place: str) -> Any:
    try:
        import pyarrow
    except ImportError:
        raise DataError(place, "comes as a stream of Arrow, which takes pyarrow; pip install pyarrow") from None
    return pyarrow.RecordBatchReader.from_stream(data)


def named_labels(data: Any, column: str) -> list[str] | None:
    """Return the classes that a table itself names for a column of labels, in its order; None where it does not."""
    features = getattr(data, "features", None)
    if isinstance(features, Mapping) and isinstance(names := getattr(features.get(column), "names", None), list):
        return [str(name) for name in names]
    try:
        kind = data[column].dtype if columns_of(data) is not None and not isinstance(data, Mapping) else None
    except Exception:  # whatever library it is of, the column itself is asked for later
        return None
    categories = getattr(kind, "categories", None)
    return None if categories is None or callable(categories) else [str(name) for name in categories]


def decoded_labels(data: Any, column: str) -> Callable[[Any], Any] | None:
    """Return what turns a table's numbers of classes into their names, for one that keeps the names beside."""
    if getattr(data, "features", None) is None or (names := named_labels(data, column)) is None:
        return None
    known = dict(enumerate(names))
    return lambda number: known.get(number) if isinstance(number, int) else number
