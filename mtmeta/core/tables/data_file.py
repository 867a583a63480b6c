"""Reads one data file (CSV, TSV, JSONL or Parquet) a row at a time.

A row that cannot be read goes to `DataFile.bad`, for the caller to judge; an unusable file raises `DataError`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal

from mtmeta.core.errors import DataError
from mtmeta.core.tables import parquet
from mtmeta.core.tables.bad_rows import BadRowError, BadRows
from mtmeta.core.tables.delimited import DelimitedReader
from mtmeta.core.tables.fields import parse_object
from mtmeta.core.tables.text_file import decode, open_file, read_lines
from mtmeta.core.wording import did_you_mean, plural, quote, safe

__all__ = ["DataFile", "Dialect", "Row"]

Records = Iterator[tuple[int, Mapping[str, object]]]
MAX_COMPARED = 1000  # column names compared with a mistyped one
NO_TEXT = (dict, list, bytes)
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Dialect:
    """How data files are read."""

    encoding: str = "utf-8"
    """Encoding of the file: a Python codec name, not UTF-16 or UTF-32."""
    quoting: Literal["csv", "none"] = "csv"
    """`csv` reads "..." as one field; `none` takes quotes for ordinary characters."""
    multiline: bool = False
    """Allow a quoted field to run over several lines."""
    max_field: int = 131072
    """Characters allowed in one field."""


class Row(dict[str, str]):
    """Column name to text; `line` is its 1-based line in the file, `id` its `id` column or, lacking that, the line."""

    __slots__ = ("id", "line")
    id: str
    line: int


class DataFile(os.PathLike[str]):
    """A data file. `rows()` puts the rows that cannot be read into `bad`."""

    def __init__(
        self, path: str | os.PathLike[str], dialect: Dialect = Dialect(), *, stream: BufferedReader | None = None
    ) -> None:
        """Read `stream`, if given, in place of the file, once; `path` then names it, and its suffix the format."""
        self.path, self.dialect = Path(path), dialect
        self._stream = stream
        self.bad = BadRows()
        """The rows of the last reading that could not be read."""
        self._place = str(self.path)
        self.is_parquet = self.path.suffix.lower() == ".parquet"
        self._jsonl = self.path.suffix.lower() in (".jsonl", ".ndjson")

    def __fspath__(self) -> str:
        return self._place

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of the file's bytes."""
        with self._open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def columns(self) -> list[str]:
        """Return the column names: those of the header, or the keys of the first JSONL row that can be read."""
        with self._open() as file:
            if self.is_parquet:
                return parquet.columns(file, self._place)
            if not self._jsonl:
                return [name for name in self._delimited(file).names if name]
            for _, raw in self._lines(file):
                with suppress(BadRowError):
                    return list(parse_object(decode(raw, self.dialect.encoding)))
        raise DataError(self._place, "no examples")

    def rows(self, *columns: str) -> Iterator[Row]:
        """Yield the good rows with the named columns (all if none is named); DataError if the file is unusable."""
        self.bad.clear()
        read = self._parquet_records if self.is_parquet else self._json_records if self._jsonl else self._records
        number = 0
        with self._open() as file:
            for number, record in read(file, columns):
                try:
                    row = self._row(number, record, columns)
                except BadRowError as error:
                    self._skip(number, error)
                else:
                    yield row
        if not number and not self.bad:
            raise DataError(self._place, "no examples")

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield each line with its 1-based number, as text that is no table; bad ones are kept as those of rows are."""
        self.bad.clear()
        with self._open() as file:
            for number, raw in self._lines(file):
                try:
                    text = self._text("line", decode(raw, self.dialect.encoding))
                except BadRowError as error:
                    self._skip(number, error)
                else:
                    yield number, text

    def _open(self) -> AbstractContextManager[BufferedReader]:
        return open_file(self.path) if self._stream is None else nullcontext(self._stream)

    def _lines(self, file: BufferedReader) -> Iterator[tuple[int, bytes]]:
        return read_lines(file, self._place, self.dialect.encoding)

    def _delimited(self, file: BufferedReader) -> DelimitedReader:
        quoted, multiline = self.dialect.quoting == "csv", self.dialect.multiline
        return DelimitedReader(
            self._lines(file), self._place, self.dialect.encoding, quoted=quoted, multiline=multiline
        )

    def _records(self, file: BufferedReader, columns: Sequence[str]) -> Records:
        """Yield the 1-based line and the fields of each row of a CSV or TSV file."""
        reader = self._delimited(file)
        names = reader.names
        self._check_columns(columns, names)
        for number, raw in reader.lines:
            if not raw:
                continue
            try:
                fields = reader.fields(number, raw)
                if len(fields) != len(names):
                    reason = f"{plural(len(fields), 'field')}, expected {len(names)}"
                    raise BadRowError("wrong number of fields", reason)
            except BadRowError as error:
                self._skip(number, error)
            else:
                yield number, dict(zip(names, fields, strict=True))

    def _json_records(self, file: BufferedReader, columns: Sequence[str]) -> Records:
        """Yield the 1-based line and the object of each row of a JSONL file."""
        names: list[str] = []
        for number, raw in self._lines(file):
            if not raw:
                continue
            try:
                record = parse_object(decode(raw, self.dialect.encoding))
            except BadRowError as error:
                self._skip(number, error)
                continue
            if not names:  # the first row decides which columns there are
                names = list(record)
                self._check_columns(columns, names)
            yield number, record

    def _parquet_records(self, file: BufferedReader, columns: Sequence[str]) -> Records:
        """Yield the 1-based number and the values of each row of a Parquet file."""
        self._check_columns(columns, parquet.columns(file, self._place))
        yield from enumerate(parquet.rows(file, self._place, [*columns, "id"] if columns else []), 1)

    def _skip(self, number: int, error: BadRowError) -> None:
        self.bad.add(number, str(error), error.kind)

    def _check_columns(self, wanted: Sequence[str], names: Sequence[str]) -> None:
        known = [name for name in names if name]
        for name in wanted:
            if name not in known:
                listed = safe(", ".join(known), 400) or "none"
                near = did_you_mean(name, known[:MAX_COMPARED])
                raise DataError(self._place, f"no column {quote(name)}; columns are: {listed}{near}")

    def _row(self, line: int, record: Mapping[str, object], columns: Sequence[str]) -> Row:
        row = Row()
        for name in columns or [key for key, value in record.items() if key and not isinstance(value, NO_TEXT)]:
            if name not in record:
                raise BadRowError("column missing", f"no column {quote(name)}")
            row[name] = self._text(name, record[name])
        row.line, row.id = line, self._text("id", record.get("id")) or str(line)
        return row

    def _text(self, name: str, value: object) -> str:
        if isinstance(value, str):
            if len(value) > (limit := self.dialect.max_field):
                reason = f"field {quote(name)} has {len(value)} characters (limit {limit}; raise max_field)"
                raise BadRowError("field too long", reason)
            if not value.isascii() and (surrogate := SURROGATE.search(value)):
                reason = f"field {quote(name)} holds the lone surrogate U+{ord(surrogate[0]):04X}; remove it"
                raise BadRowError("lone surrogate", reason)
            return value
        if isinstance(value, bytes):
            raise BadRowError("wrong encoding", f"field {quote(name)} is not UTF-8; save it as text")
        if isinstance(value, dict | list):
            raise BadRowError("nested value", f"field {quote(name)} is nested, expected text or a number")
        return "" if value is None else "true" if value else "false"
