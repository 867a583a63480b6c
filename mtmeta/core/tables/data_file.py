"""Reads one data file (CSV, TSV, JSONL or Parquet) a row at a time.

A row that cannot be read goes to `DataFile.bad`, for the caller to judge; an unusable file raises `DataError`.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any, Literal, TypeVar

from mtmeta.core.errors import DataError
from mtmeta.core.tables import parquet
from mtmeta.core.tables.bad_rows import BadRowError, BadRows
from mtmeta.core.tables.delimited import DelimitedReader
from mtmeta.core.tables.text_file import decode, open_file, parse_object, read_lines
from mtmeta.core.wording import did_you_mean, quote, safe

__all__ = ["DataFile", "Dialect", "Row"]

Lines = Iterable[tuple[int, Any]]
"""The numbers of lines, and each as its format reads it."""
Parsed = TypeVar("Parsed")
Record = Mapping[str, object]
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
        row = None
        with self._open() as file:
            lines, parse = self._records(file, columns)
            for _, row in self._good(lines, lambda line, raw: self._row(line, parse(line, raw), columns)):
                yield row
        if row is None and not self.bad:
            raise DataError(self._place, "no examples")

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield each line with its 1-based number, as text that is no table; bad ones are kept as those of rows are."""
        self.bad.clear()
        encoding = self.dialect.encoding
        with self._open() as file:
            yield from self._good(self._lines(file), lambda _, raw: self._text("line", decode(raw, encoding)))

    def _open(self) -> AbstractContextManager[BufferedReader]:
        return open_file(self.path) if self._stream is None else nullcontext(self._stream)

    def _lines(self, file: BufferedReader) -> Iterator[tuple[int, bytes]]:
        return read_lines(file, self._place, self.dialect.encoding)

    def _delimited(self, file: BufferedReader) -> DelimitedReader:
        lines, dialect, quoted = self._lines(file), self.dialect, self.dialect.quoting == "csv"
        return DelimitedReader(lines, self._place, dialect.encoding, quoted=quoted, multiline=dialect.multiline)

    def _good(self, lines: Lines, parse: Callable[[int, Any], Parsed]) -> Iterator[tuple[int, Parsed]]:
        """Yield each line's number and what `parse` makes of it; a line that it refuses goes to `bad`."""
        for number, raw in lines:
            try:
                parsed = parse(number, raw)
            except BadRowError as error:
                self.bad.add(number, str(error), error.kind)
            else:
                yield number, parsed

    def _records(self, file: BufferedReader, columns: Sequence[str]) -> tuple[Lines, Callable[[int, Any], Record]]:
        """Return the numbered rows that are not blank, and what makes a record of one. Raises DataError."""
        if self.is_parquet:
            self._check_columns(columns, parquet.columns(file, self._place))
            wanted = [*columns, "id"] if columns else []
            return enumerate(parquet.rows(file, self._place, wanted), 1), lambda _, record: record
        if self._jsonl:
            lines, parse = self._lines(file), self._json_parser(columns)
        else:
            reader = self._delimited(file)
            self._check_columns(columns, reader.names)
            lines, parse = reader.lines, reader.record
        return ((number, raw) for number, raw in lines if raw), parse

    def _json_parser(self, columns: Sequence[str]) -> Callable[[int, bytes], Record]:
        names: list[str] = []

        def parse(number: int, raw: bytes) -> Record:
            record = parse_object(decode(raw, self.dialect.encoding))
            if not names:  # the first row decides which columns there are
                names.extend(record)
                self._check_columns(columns, names)
            return record

        return parse

    def _check_columns(self, wanted: Sequence[str], names: Sequence[str]) -> None:
        known = [name for name in names if name]
        for name in wanted:
            if name not in known:
                listed = safe(", ".join(known), 400) or "none"
                near = did_you_mean(name, known[:MAX_COMPARED])
                raise DataError(self._place, f"no column {quote(name)}; columns are: {listed}{near}")

    def _row(self, line: int, record: Record, columns: Sequence[str]) -> Row:
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
