"""Reads one data file (CSV, TSV, JSONL or Parquet) a row at a time.

A row that cannot be read goes to `DataFile.bad`, for the caller to judge; an unusable file raises `DataError`.
"""

from __future__ import annotations

import codecs
import hashlib
import os
import re
import stat
from collections import Counter
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Literal

from mtmeta.core.errors import DataError
from mtmeta.core.tables import parquet
from mtmeta.core.tables.bad_rows import kind_of
from mtmeta.core.tables.fields import BadLine, parse_object, split_fields
from mtmeta.core.wording import did_you_mean, quote, safe

__all__ = ["BadRow", "DataFile", "Dialect", "Row"]

MAX_LINE = 64 * 2**20  # bytes of one line; more is hardly text, and reading it whole could fill the memory
MAX_JOINED, MAX_SCANNED = 1000, 100_000  # lines of one quoted field if multiline; lines read to see how far it runs
MAX_BAD = 100  # rows kept in `DataFile.bad`
MAX_COMPARED = 1000  # names compared with a mistyped one
FORMATS = "CSV, TSV, JSONL or Parquet"
ARCHIVES = {b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip archive", b"BZh9": "a bzip2 file"}
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32-LE starts like UTF-16-LE
# Cutting a file at b"\n" needs ASCII bytes that stand for themselves; hz, utf-7, unicode_escape change ~, + and \.
ASCII_PROBE = 'azAZ09 \t\r\n",;{}[]:~{+AGE-\\n\\u0041'
CLOSES = re.compile(r'(?:[^"]++|"")*+"')  # a line inside a quoted field that closes the field
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


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that could not be read: its 1-based line in the file, and why."""

    line: int
    reason: str


class Row(dict[str, str]):
    """Column name to text; `line` is its 1-based line in the file, `id` its `id` column or, lacking that, the line."""

    __slots__ = ("id", "line")
    id: str
    line: int


class DataFile(os.PathLike[str]):
    """A data file. `rows()` puts the first rows that cannot be read into `bad`, and counts all of them in `skipped`."""

    def __init__(
        self, path: str | os.PathLike[str], dialect: Dialect = Dialect(), *, stream: BufferedReader | None = None
    ) -> None:
        """`stream` is read in place of the file, once; `path` then only names it, and its suffix the format."""
        self.path, self.dialect = Path(path), dialect
        self._stream = stream
        self.bad: list[BadRow] = []
        self.skipped = 0
        self.kinds: Counter[str] = Counter()
        """How many rows were skipped of each kind of badness."""
        self._place = str(self.path)
        self.is_parquet = self.path.suffix.lower() == ".parquet"
        self._jsonl = self.path.suffix.lower() in (".jsonl", ".ndjson")

    def __fspath__(self) -> str:
        return self._place

    def columns(self) -> list[str]:
        """The column names: those of the header, or the keys of the first JSONL row that can be read."""
        if self.is_parquet:
            with self._open() as file:
                return parquet.columns(file, self._place)
        with closing(self._lines()) as lines:
            if not self._jsonl:
                return [name for name in self._header(lines)[1] if name]
            for _, raw in lines:
                with suppress(BadLine):
                    return list(parse_object(self._decode(raw)))
        raise DataError(self._place, "no examples")

    def rows(self, *columns: str) -> Iterator[Row]:
        """Yield the good rows with the named columns (all if none is named); DataError if the file is unusable."""
        self.bad.clear()
        self.kinds.clear()
        delimiter, names, blank, self.skipped = "", list[str](), True, 0
        if self.is_parquet:
            yield from self._parquet_rows(columns)
            return
        with closing(self._lines()) as lines:
            if not self._jsonl:
                delimiter, names = self._header(lines)
                self._check_columns(columns, names)
            for number, raw in lines:
                if not raw:
                    continue
                blank = False
                try:
                    if self._jsonl:
                        record = parse_object(self._decode(raw))
                        if not names:  # the first row decides which columns there are
                            names = list(record)
                            self._check_columns(columns, names)
                    else:
                        fields = self._fields(number, raw, delimiter, lines)
                        if len(fields) != len(names):
                            raise BadLine(f"{len(fields)} field{'s' * (len(fields) > 1)}, expected {len(names)}")
                        record = dict(zip(names, fields, strict=True))
                    yield self._row(number, record, columns)
                except BadLine as bad:
                    self._skip(number, bad)
        if blank:
            raise DataError(self._place, "no examples")

    def _parquet_rows(self, columns: Sequence[str]) -> Iterator[Row]:
        """The good rows; `line` is their number in the file."""
        with self._open() as file:
            self._check_columns(columns, parquet.columns(file, self._place))
            number = 0
            for number, record in enumerate(parquet.rows(file, self._place, [*columns, "id"] if columns else []), 1):
                try:
                    yield self._row(number, record, columns)
                except BadLine as bad:
                    self._skip(number, bad)
        if not number:
            raise DataError(self._place, "no examples")

    def texts(self) -> Iterator[tuple[int, str]]:
        """Yield each line with its 1-based number, as text that is no table; bad ones are kept as those of rows are."""
        self.bad.clear()
        self.kinds.clear()
        self.skipped = 0
        with closing(self._lines()) as lines:
            for number, raw in lines:
                try:
                    yield number, self._text("line", self._decode(raw))
                except BadLine as bad:
                    self._skip(number, bad)

    def _skip(self, number: int, bad: BadLine) -> None:
        self.skipped += 1
        self.kinds[kind_of(str(bad))] += 1
        if len(self.bad) < MAX_BAD:
            self.bad.append(BadRow(number, str(bad)))

    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the file's bytes."""
        with self._open() as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    @contextmanager
    def _open(self) -> Iterator[BufferedReader]:
        if self._stream is not None:
            yield self._stream
            return
        try:
            # before opening, which would wait for the writer of a pipe
            if not stat.S_ISREG(os.stat(self.path).st_mode):
                kind = "a directory" if self.path.is_dir() else "not a file"
                raise DataError(self._place, f"is {kind}, expected {FORMATS}")
            with open(self.path, "rb") as file:
                yield file
        except FileNotFoundError:
            siblings = next(os.walk(self.path.parent), ("", [], []))[2]  # none, where the directory cannot be read
            near = did_you_mean(self.path.name, sorted(siblings)[:MAX_COMPARED]) or "; check the path"
            raise DataError(self._place, f"no such file{near}") from None
        except (OSError, ValueError) as error:  # ValueError: a NUL in the path
            raise DataError(self._place, f"cannot be read ({getattr(error, 'strerror', 'not a valid path')})") from None

    def _lines(self) -> Generator[tuple[int, bytes], None, None]:
        """Line numbers and lines without their ends; of an overlong line, just enough for `_decode` to refuse it."""
        encoding = quote(self.dialect.encoding)
        try:
            splits = ASCII_PROBE.encode("ascii").decode(self.dialect.encoding, "replace") == ASCII_PROBE
        except (LookupError, ValueError):  # ValueError: a NUL or a surrogate in the name
            raise DataError(self._place, f"unknown encoding {encoding}; use a codec name such as utf-8") from None
        if not splits:
            raise DataError(self._place, f"encoding {encoding} cannot be read line by line; save the file as UTF-8")
        with self._open() as file:
            head = file.peek(8)[:8]  # a stream cannot go back
            if kind := next((kind for magic, kind in ARCHIVES.items() if head.startswith(magic)), ""):
                raise DataError(self._place, f"{kind}, expected {FORMATS}; unpack it first")
            if head.startswith(parquet.MAGIC):
                raise DataError(self._place, "a Parquet file; give it a name that ends in .parquet")
            if head.startswith(WIDE):
                raise DataError(self._place, "UTF-16 or UTF-32 text; save the file as UTF-8")
            if head.startswith(codecs.BOM_UTF8):
                file.read(len(codecs.BOM_UTF8))
            for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 2), b""), 1):
                yield number, raw.removesuffix(b"\n").removesuffix(b"\r")
                while len(raw) == MAX_LINE + 2 and not raw.endswith(b"\n"):
                    raw = file.readline(MAX_LINE + 2)

    def _decode(self, raw: bytes) -> str:
        if len(raw) > MAX_LINE:
            raise BadLine(f"line of more than {MAX_LINE} bytes; put one row on a line")
        try:
            text = raw.decode(self.dialect.encoding)
        except UnicodeDecodeError as error:
            name = codecs.lookup(self.dialect.encoding).name
            fix = "if the file is Latin-1 set encoding: latin-1" if name == "utf-8" else "set the encoding it has"
            raise BadLine(f"byte 0x{raw[error.start]:02x} is not {name.upper()}; {fix}") from None
        if "\0" in text:
            raise BadLine("NUL byte; save the file as UTF-8 text")
        return text

    def _header(self, lines: Iterator[tuple[int, bytes]]) -> tuple[str, list[str]]:
        """The delimiter and the column names: '' is a column without one, such as the index pandas writes."""
        number, raw = next((line for line in lines if line[1]), (0, b""))
        if not number:
            raise DataError(self._place, "no examples")
        place, tsv = f"{self._place}:{number}", self.path.suffix.lower() == ".tsv"
        try:
            text = self._decode(raw)
            delimiter = "\t" if tsv else next((mark for mark in "\t,;" if mark in text), ",")
            names = self._fields(number, raw, delimiter, lines)
        except BadLine as bad:
            raise DataError(place, str(bad)) from None
        name, times = Counter(names).most_common(1)[0]
        if times > 1:
            raise DataError(place, f"column {quote(name)} appears {times} times; rename one")
        return delimiter, names

    def _check_columns(self, wanted: Sequence[str], names: Sequence[str]) -> None:
        known = [name for name in names if name]
        for name in wanted:
            if name not in known:
                listed = safe(", ".join(known), 400) or "none"
                near = did_you_mean(name, known[:MAX_COMPARED])
                raise DataError(self._place, f"no column {quote(name)}; columns are: {listed}{near}")

    def _fields(self, number: int, raw: bytes, delimiter: str, lines: Iterator[tuple[int, bytes]]) -> list[str]:
        """The fields of a line; where a quoted field does not close on it, takes further lines or raises."""
        text, encoding = self._decode(raw), self.dialect.encoding
        if self.dialect.quoting == "none" or '"' not in text:
            return text.split(delimiter)
        if fields := split_fields(text, delimiter):
            return fields
        if fields is not None:
            raise BadLine("text after a closing quote; if quotes are text set quoting: none")
        multiline, joined, size, end = self.dialect.multiline, [raw], len(raw), " to the end of the file"
        for _, raw in lines:
            joined.append(raw)
            size += len(raw)
            closed = CLOSES.match(raw.decode(encoding, "replace")) is not None
            if closed and multiline:
                # decoded strictly only now: a bad byte must not end the row before its quote closes
                if fields := split_fields(b"\n".join(joined).decode(encoding, "replace"), delimiter):
                    return split_fields(self._decode(b"\n".join(joined)), delimiter) or []
                closed = fields is not None
            if closed or len(joined) >= (MAX_JOINED if multiline else MAX_SCANNED) or size > MAX_LINE:
                end = "" if closed else " or more"
                break
        message = f"quoted field runs over {len(joined)} line{'s' * (len(joined) > 1)}{end}"
        raise DataError(f"{self._place}:{number}", f"{message}; is this TSV without quoting? set quoting: none")

    def _row(self, line: int, record: Mapping[str, object], columns: Sequence[str]) -> Row:
        row = Row()
        for name in columns or [key for key, value in record.items() if key and not isinstance(value, NO_TEXT)]:
            if name not in record:
                raise BadLine(f"no column {quote(name)}")
            row[name] = self._text(name, record[name])
        row.line, row.id = line, self._text("id", record.get("id")) or str(line)
        return row

    def _text(self, name: str, value: object) -> str:
        if isinstance(value, str):
            if len(value) > (limit := self.dialect.max_field):
                raise BadLine(f"field {quote(name)} has {len(value)} characters (limit {limit}; raise max_field)")
            if not value.isascii() and (found := SURROGATE.search(value)):
                raise BadLine(f"field {quote(name)} holds the lone surrogate U+{ord(found[0]):04X}; remove it")
            return value
        if isinstance(value, bytes):
            raise BadLine(f"field {quote(name)} is not UTF-8; save it as text")
        if isinstance(value, dict | list):
            raise BadLine(f"field {quote(name)} is nested, expected text or a number")
        return "" if value is None else "true" if value else "false"
