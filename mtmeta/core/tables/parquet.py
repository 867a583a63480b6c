"""Parquet files through pyarrow (extra `[parquet]`): their columns, and their rows as text, a batch at a time.

Numbers, truth values and dates become the text they would be in a CSV file; a null is an empty field, as in JSONL.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from typing import Any

from mtmeta.core.errors import DataError, MachineError
from mtmeta.core.tables.delimited import check_unique
from mtmeta.core.wording import safe

BATCH = 8192  # rows decoded at once


@contextmanager
def _opened(file: BufferedReader, place: str) -> Iterator[Any]:
    """Open the file by pyarrow. Raises MachineError without pyarrow, DataError for what it cannot read."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MachineError(place, "needs pyarrow, which is not installed; pip install 'mtmeta[parquet]'") from error
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            yield table
    except (pyarrow.ArrowException, OSError, ValueError, TypeError) as error:  # some of its refusals are plain ones
        text = " ".join(str(error).split())
        raise DataError(place, f"no Parquet file that can be read ({safe(text, 200)}); write it again") from None


def columns(file: BufferedReader, place: str) -> list[str]:
    """Return the names of the columns."""
    with _opened(file, place) as table:
        names = list(table.schema_arrow.names)
    check_unique(names, place)
    return names


def rows(file: BufferedReader, place: str, wanted: Sequence[str]) -> Iterator[dict[str, object]]:
    """Yield each row's `wanted` columns, all if none is named.

    A value is text, None for a null, bytes where it is no UTF-8; lists and structs are lists and dicts of such. Rows of
    a batch are decoded together; memory is that of a row group.
    """
    with _opened(file, place) as table:
        names = [name for name in table.schema_arrow.names if name.strip() and (not wanted or name in wanted)]
        for batch in table.iter_batches(batch_size=BATCH, columns=names, use_threads=False):
            decoded = [_texts(batch.column(name)) for name in names]
            for values in zip(*decoded, strict=True):
                yield dict(zip(names, values, strict=True))


def _texts(column: Any) -> list[object]:
    import pyarrow
    from pyarrow import types

    kind = column.type
    if types.is_dictionary(kind):
        column, kind = column.dictionary_decode(), kind.value_type
    if isinstance(kind, pyarrow.BaseExtensionType):
        column, kind = column.storage, kind.storage_type
    if types.is_nested(kind):
        return list(_nested(column, kind))
    if types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind):
        column = column.cast(pyarrow.large_binary())  # what claims to be UTF-8 may not be
    elif not (types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)):
        try:
            values: list[object] = column.cast(pyarrow.string()).to_pylist()
        except pyarrow.ArrowException:  # a time in a zone that this machine does not know, for one
            values = [None if value is None else str(value) for value in column.to_pylist()]
        return values
    return [_decoded(value) for value in column.to_pylist()]


def _nested(column: Any, kind: Any) -> Iterator[object]:
    """Yield the values of a column of lists or structs; what maps hold is not read, they are empty lists."""
    from pyarrow import compute, types

    valid = column.is_valid().to_pylist()
    if types.is_map(kind):
        yield from ([] if is_there else None for is_there in valid)
        return
    if types.is_struct(kind):
        names, parts = [field.name for field in kind], [_texts(part) for part in column.flatten()]
        for is_there, *values in zip(valid, *parts, strict=True):
            yield dict(zip(names, values, strict=True)) if is_there else None
        return
    values, at = _texts(column.flatten()), 0  # without those of lists that are null
    for is_there, length in zip(valid, compute.list_value_length(column).to_pylist(), strict=True):
        yield values[at : at + length] if is_there else None
        at += length if is_there else 0


def _decoded(value: bytes | None) -> object:
    try:
        return value if value is None else value.decode("utf-8")
    except UnicodeDecodeError:
        return value
