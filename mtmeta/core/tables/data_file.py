"""Reads one data file (CSV, TSV, JSON, JSONL or Parquet) a row at a time.

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

from mtmeta.core.errors import DataError, NoExamples
from mtmeta.core.tables import parquet
from mtmeta.core.tables.bad_rows import BadRowError, BadRows
from mtmeta.core.tables.delimited import DelimitedReader, looks_like_data
from mtmeta.core.tables.json_file import SUFFIXES, Element, Form, JsonReader, find_form, parse_object, table_elements
from mtmeta.core.tables.text_file import check_text, decode, open_file, read_lines
from mtmeta.core.wording import did_you_mean, quote, safe

__all__ = ["DataFile", "Dialect", "Record", "Row"]

Lines = Iterable[tuple[int, Any]]
"""The numbers of lines, and each as its format reads it."""
Parsed = TypeVar("Parsed")
Made = TypeVar("Made")
Fields = Mapping[str, object]
Parse = Callable[[int, Any], Fields]
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
    delimiter: Literal["auto", "tab", "comma", "semicolon"] = "auto"
    """What stands between fields; `auto`: the first of tab, comma and semicolon in the header, tab in .tsv files."""
    header: bool = True
    """Whether the first line of CSV and TSV files holds the names of columns; else these are "0", "1" and so on."""
    max_field: int = 131072
    """Characters allowed in one field."""
    id: str | None = None
    """Column that names an example in predictions and reports; default: the column `id`, or else the row's number."""


class Row(dict[str, str]):
    """Column name to text; `line` is its 1-based line in the file.

    `id` is the column that the dialect names, or `id`; lacking that, the line, in a JSON array the number of the row.
    """

    __slots__ = ("id", "line")
    id: str
    line: int


class Record(dict[str, Any]):
    """Column name to text, or to a list or object as JSON has it; all else as in a `Row`."""

    __slots__ = ("id", "line")
    id: str
    line: int


def parted(path: str | os.PathLike[str]) -> tuple[Path, str | None]:
    """Part FILE#TABLE into the file and the name of a table in it, None if there is none; a real name wins."""
    text = os.fspath(path)
    at = len(text)
    if "#" in text and not os.path.lexists(text):
        while (at := text.rfind("#", 0, at)) > 0:
            if os.path.isfile(text[:at]):
                return Path(text[:at]), text[at + 1 :]
        name, _, table = text.rpartition("#")
        if name.lower().endswith(SUFFIXES):  # a file that is missing
            return Path(name), table
    return Path(path), None


class DataFile(os.PathLike[str]):
    """A data file. `rows()` puts the rows that cannot be read into `bad`."""

    def __init__(
        self,
        path: str | os.PathLike[str],
        dialect: Dialect = Dialect(),
        *,
        table: str | None = None,
        stream: BufferedReader | None = None,
    ) -> None:
        """Read `path`; of a JSON file FILE#TABLE is the array TABLE, which `table` may name as well.

        `stream`, if given, is read in place of the file, once; `path` then names it, and its suffix the format.
        """
        self.path, self.table = (Path(path), table) if table is not None or stream else parted(path)
        self.dialect = dialect
        self._stream = stream
        self.bad = BadRows()
        """The rows of the last reading that could not be read."""
        self.notes: list[str] = []
        """What the last reading joined or dropped that may have been meant to be read, in words."""
        self.place = str(self.path) if self.table is None else f"{self.path}#{self.table}"
        """What messages call it."""
        self._suffix = self.path.suffix.lower()
        self.is_parquet = self._suffix == ".parquet"

    def __fspath__(self) -> str:
        return str(self.path)

    def sha256(self) -> str:
        """Return the hexadecimal SHA-256 of the file's bytes; of a table in it, with # and its name after them."""
        with self._open() as file:
            digest = hashlib.file_digest(file, "sha256")
        if self.table is not None:
            digest.update(f"#{self.table}".encode("utf-8", "surrogatepass"))
        return digest.hexdigest()

    def is_delimited(self) -> bool:
        """Return whether the file is CSV or TSV. Raises DataError."""
        with self._open() as file:
            return self._form(file) is None

    def columns(self) -> list[str]:
        """Return the column names: those of the header, or the keys of the first JSON row that can be read."""
        with self._open() as file:
            form = self._form(file)
            if form == "parquet":
                return _named(parquet.columns(file, self.place))
            if form is None:
                return _named(self._delimited(file).names)
            lines, parse = self._json(file, form, ())
            for number, raw in lines:
                with suppress(BadRowError):
                    return _named(parse(number, raw))
        raise NoExamples(self.place, "no examples")

    def rows(self, *columns: str) -> Iterator[Row]:
        """Yield the good rows with the named columns (all if none is named); DataError if the file is unusable."""
        return self._all(self._row, columns)

    def records(self, *columns: str) -> Iterator[Record]:
        """Yield the same, with lists and objects of JSON and lists of Parquet as they are, all in them as text."""
        return self._all(self._record, columns)

    def _all(self, make: Callable[[int, int, Fields, Sequence[str]], Made], columns: Sequence[str]) -> Iterator[Made]:
        self.bad.clear()
        self.notes = []
        row = None
        with self._open() as file:
            form = self._form(file)
            lines, parse, notes = self._records(file, form, columns)

            def numbered(line: int, element: Element) -> Made:
                return make(line, element.number, parse(line, element), columns)

            def plain(line: int, raw: Any) -> Made:
                return make(line, line, parse(line, raw), columns)

            for _, row in self._good(lines, numbered if form in ("array", "tables") else plain):
                yield row
            self.notes = notes()
        if row is None and not self.bad:
            raise NoExamples(self.place, "no examples")

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield each line with its 1-based number, as text that is no table; bad ones are kept as those of rows are."""
        self.bad.clear()
        encoding = self.dialect.encoding
        with self._open() as file:
            yield from self._good(self._lines(file), lambda _, raw: self._text("line", decode(raw, encoding)))

    def _open(self) -> AbstractContextManager[BufferedReader]:
        return open_file(self.path) if self._stream is None else nullcontext(self._stream)

    def _lines(self, file: BufferedReader) -> Iterator[tuple[int, bytes]]:
        return read_lines(file, self.place, self.dialect.encoding)

    def _delimited(self, file: BufferedReader) -> DelimitedReader:
        lines, dialect, quoted = self._lines(file), self.dialect, self.dialect.quoting == "csv"
        options: Any = {"delimiter": dialect.delimiter, "quoted": quoted, "multiline": dialect.multiline}
        options["header"] = dialect.header
        return DelimitedReader(lines, self.place, dialect.encoding, **options)

    def _form(self, file: BufferedReader) -> Form | Literal["parquet"] | None:
        """Return what the file is, None for CSV and TSV; its byte order mark is taken off. Raises DataError."""
        if self.is_parquet:
            return "parquet"
        check_text(file, self.place, self.dialect.encoding)
        if self.table is not None:
            return "tables"
        stream = self._stream is not None
        return find_form(file, self.place, self.dialect.encoding, self._suffix, stream=stream)

    def _good(self, lines: Lines, parse: Callable[[int, Any], Parsed]) -> Iterator[tuple[int, Parsed]]:
        """Yield each line's number and what `parse` makes of it; a line that it refuses goes to `bad`."""
        for number, raw in lines:
            try:
                parsed = parse(number, raw)
            except BadRowError as error:
                self.bad.add(number, str(error), error.kind)
            else:
                yield number, parsed

    def _records(
        self, file: BufferedReader, form: Form | Literal["parquet"] | None, columns: Sequence[str]
    ) -> tuple[Lines, Parse, Callable[[], list[str]]]:
        """Return the numbered rows that are not blank, what makes a record of one, and the notes at the end."""
        if form == "parquet":
            if self.table is not None:
                message = f"is no JSON object with a table {quote(self.table)} in it; leave '#' and what follows out"
                raise DataError(self.place, message)
            self._check_columns(columns, parquet.columns(file, self.place))
            wanted = [*columns, self._id] if columns else []
            return enumerate(parquet.rows(file, self.place, wanted), 1), lambda _, record: record, list
        if form is not None:
            return *self._json(file, form, columns), list
        reader = self._delimited(file)
        data = self.dialect.header and any(map(looks_like_data, reader.names))
        hint = "; if the first line is data set header: false" if data else ""
        self._check_columns(columns, reader.names, hint)
        return ((number, raw) for number, raw in reader.lines if raw), reader.record, reader.notes

    def _json(self, file: BufferedReader, form: Form, columns: Sequence[str]) -> tuple[Lines, Parse]:
        encoding = self.dialect.encoding
        lines: Lines = ((number, raw) for number, raw in self._lines(file) if raw)
        record: Parse = lambda _, raw: parse_object(decode(raw, encoding))  # noqa: E731
        if form != "lines":
            reader = JsonReader(file, self.place, encoding)
            record = reader.record
            lines = reader.rows() if self.table is None else table_elements(reader, self.place, self.table)
        names: list[str] = []

        def parse(number: int, raw: Any) -> Fields:
            found = record(number, raw)
            if not names:  # the first row decides which columns there are
                names.extend(found)
                self._check_columns(columns, names)
            return found

        return lines, parse

    @property
    def _id(self) -> str:
        return self.dialect.id or "id"

    def _check_columns(self, wanted: Sequence[str], names: Sequence[str], hint: str = "") -> None:
        known = _named(names)
        for name in [*wanted, *([self.dialect.id] if self.dialect.id else [])]:
            if name not in known:
                listed = safe(", ".join(known), 400) or "none"
                near = did_you_mean(name, known[:MAX_COMPARED])
                raise DataError(self.place, f"no column {quote(name)}; columns are: {listed}{near or hint}")

    def _record(self, line: int, number: int, fields: Fields, columns: Sequence[str]) -> Record:
        record = Record()
        for name in columns or fields:
            if name not in fields:
                raise BadRowError("column missing", f"no column {quote(name)}")
            record[name] = self._nested(name, fields[name])
        record.line, record.id = line, self._text(self._id, fields.get(self._id)) or str(number)
        return record

    def _nested(self, name: str, value: object) -> Any:
        if isinstance(value, list):
            return [self._nested(name, each) for each in value]
        if isinstance(value, dict):
            return {key: self._nested(name, each) for key, each in value.items()}
        return self._text(name, value)

    def _row(self, line: int, number: int, record: Fields, columns: Sequence[str]) -> Row:
        row = Row()
        for name in columns or [key for key, value in record.items() if key.strip() and not isinstance(value, NO_TEXT)]:
            if name not in record:
                raise BadRowError("column missing", f"no column {quote(name)}")
            row[name] = self._text(name, record[name])
        row.line, row.id = line, self._text(self._id, record.get(self._id)) or str(number)
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


def _named(names: Iterable[str]) -> list[str]:
    """Return the names but those of columns without one."""
    return [name for name in names if name.strip()]
