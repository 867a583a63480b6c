"""How a file may be read: the dialects that fit it, how many rows each gives, and which of them is taken.

A quotation that opens in one row of a TSV file and closes in a later one fits two readings. A line that is a row by
itself, and would not be one if quotes were not ordinary characters, tells for `quoting: none`; a delimiter or a
doubled quote inside quotes, and a quoted field in most rows, tell for `csv`.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from mtmeta.core.errors import DataError
from mtmeta.core.tables.bad_rows import BadRowError
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.core.tables.delimited import DELIMITERS, DelimitedReader, delimiters
from mtmeta.core.tables.text_file import decode, open_file, read_lines
from mtmeta.core.wording import plural, quote

CHUNK = 2**20  # bytes
CONTROLS = re.compile(rb"[\x80-\x9f]")  # control characters in Latin-1, letters and quotes in Windows' code page 1252


@dataclass(frozen=True)
class Reading:
    """What one dialect makes of a file."""

    dialect: Dialect
    rows: int
    bad: int
    why: str = ""
    """Why it is taken."""
    differs: str = ""
    """What tells its rows from another reading's with as many."""

    def describe(self) -> str:
        """Return the dialect in words, and its rows."""
        options = [f"quoting: {self.dialect.quoting}"]
        options += ["multiline: true"] if self.dialect.multiline else []
        options += [] if self.dialect.delimiter == "auto" else [f"delimiter: {self.dialect.delimiter}"]
        bad = f" and {plural(self.bad, 'bad row')}" if self.bad else ""
        return f"{', '.join(options)} gives {plural(self.rows, 'row')}{bad}{self.differs}"


@dataclass
class _Survey:
    """Rows of a file with and without quoting, and the lines that tell which of the two is meant."""

    rows: int = 0
    bad: int = 0
    error: DataError | None = None
    """Why it cannot be read to its end with quoting."""
    joined: int = 0
    plain_rows: int = 0
    plain_bad: int = 0
    wrapped: int = 0
    """Rows with a quoted field."""
    needed: int = 0
    """Lines that are rows, or parts of rows, only if quotes quote."""
    broken: int = 0
    """Lines that are rows only if quotes are ordinary characters."""

    plain_width: int = 0

    def tell(self, plain: _Plain, lines: list[bytes]) -> None:
        """Count lines that are a row together if quotes quote."""
        whole = sum([plain.count(self, line) for line in lines])
        self.needed += len(lines) - whole
        # beside lines of one quoted field, the line with the others looks like a row
        self.broken += max(0, whole - 1)

    def row(self, reader: DelimitedReader, number: int, raw: bytes, seen: list[bytes], plain: _Plain) -> None:
        """Count the row that begins with a line with quoting, and each of the lines it takes without."""
        width = len(reader.names)
        try:
            fields = reader.fields(number, raw)
        except BadRowError:
            fields = []
        except DataError as error:
            self.error, fields = error, []
        good = len(fields) == width
        self.rows += good
        self.bad += not good
        if len(seen) > 1:
            self.joined += len(seen)
            self.tell(plain, seen)
            return
        if b'"' not in raw and width == plain.width and reader.delimiter == plain.mark:
            self.plain_rows += good
            self.plain_bad += not good
            return
        whole = plain.count(self, raw)
        if not good:
            self.broken += whole
        elif fields != (text := decode(raw, plain.encoding)).split(plain.mark):
            self.wrapped += 1
            self.needed += not whole or any('"' in field and field not in text for field in fields)

    @property
    def is_text(self) -> bool:
        """Whether quotes are ordinary characters."""
        return self.plain_width > 0 and self.broken > self.needed and 2 * self.wrapped <= self.plain_rows

    def readings(self, dialect: Dialect) -> list[Reading]:
        """Return the readings that go to the end of the file, the one that is taken first."""
        every = "every line has" if not self.plain_bad else "most lines with quotes have"
        kept = " with quotes kept as text" if self.wrapped and not self.joined else ""
        reason = "quotes stand around whole fields" if not self.joined else "quotes hold line breaks"
        plain = replace(dialect, quoting="none", multiline=False)
        none = Reading(plain, self.plain_rows, self.plain_bad, f"{every} the header's number of fields by itself", kept)
        if self.error:
            return [none]
        csv = Reading(replace(dialect, quoting="csv", multiline=self.joined > 0), self.rows, self.bad, reason)
        if not self.plain_width or not (self.wrapped or self.broken or self.joined):
            return [csv]
        return [none, csv] if self.is_text else [csv, none]


class _Lines:
    """The lines of a file, one after the other; `seen` keeps those taken since it was cleared."""

    def __init__(self, lines: Iterator[tuple[int, bytes]]) -> None:
        self._lines = lines
        self.seen: list[bytes] = []

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        for number, raw in self._lines:
            if raw:
                self.seen.append(raw)
            yield number, raw


@dataclass(frozen=True)
class _Plain:
    """How lines are split where quotes are ordinary characters."""

    encoding: str
    mark: str
    width: int
    """Fields of the header; 0 if it cannot be read so."""

    def count(self, found: _Survey, raw: bytes) -> bool:
        """Count a line; whether it is a row."""
        try:
            whole = decode(raw, self.encoding).count(self.mark) + 1 == self.width
        except BadRowError:
            whole = False
        found.plain_rows += whole
        found.plain_bad += not whole
        return whole


def _survey(file: DataFile, dialect: Dialect) -> _Survey:
    """Go through a file once, counting its rows with quoting over several lines, and with none. Raises DataError."""
    found, place = _Survey(), file.place
    options: Any = {"delimiter": dialect.delimiter, "header": dialect.header}
    with open_file(file.path) as opened:
        lines = _Lines(read_lines(opened, place, dialect.encoding))
        numbered = iter(lines)
        error = None
        try:
            reader = DelimitedReader(numbered, place, dialect.encoding, quoted=True, multiline=True, **options)
            reader.lines = numbered  # a first row that is no header is counted apart
        except DataError as refusal:
            if not lines.seen:
                raise
            error = found.error = refusal
        header, *rest = lines.seen
        try:
            quoteless = DelimitedReader(
                iter([(1, header)]), place, dialect.encoding, quoted=False, multiline=False, **options
            )
            plain = _Plain(dialect.encoding, quoteless.delimiter, len(quoteless.names))
        except DataError:
            if error:
                raise error from None
            plain = _Plain(dialect.encoding, reader.delimiter, 0)
        found.plain_width = plain.width
        found.joined = len(lines.seen) if rest else 0
        if rest:  # of a header over several lines
            found.tell(plain, lines.seen)
            found.plain_rows -= plain.width > 0 and dialect.header  # the header itself
        if not dialect.header:
            if error:
                plain.count(found, header)
            elif rest:
                found.rows += 1
            else:
                found.row(reader, 1, header, [header], plain)
        lines.seen.clear()
        for number, raw in numbered:
            if not raw:
                pass
            elif found.error:
                whole = plain.count(found, raw)
                found.broken += whole and error is not None
            else:
                found.row(reader, number, raw, lines.seen, plain)
            lines.seen.clear()
    return found


def readings(file: DataFile, dialect: Dialect) -> list[Reading]:
    """Return what the dialects make of a file, the one that fits first; `dialect` gives encoding and delimiter.

    One pass over the file, none if it has no quotes and one delimiter. Empty for what is neither CSV nor TSV, and for
    that. Raises DataError where no dialect can read it.
    """
    if not DataFile(file.path, dialect, table=file.table).is_delimited():
        return []
    with open_file(file.path) as opened:
        quotes = any(b'"' in chunk for chunk in iter(lambda: opened.read(CHUNK), b""))
    others = _other_delimiters(file, dialect) if dialect.delimiter == "auto" else []
    if not quotes and not others:
        return []
    found = _survey(file, dialect)
    result = found.readings(dialect)
    if found.error and not found.is_text:
        raise found.error
    if others:
        first = result[0]
        why = first.why if len(result) > 1 else f"of {', '.join(DELIMITERS)} the first that parts the header"
        result[0] = replace(first, why=why)
    for name in others:
        other: Any = {"delimiter": name}
        with suppress(DataError):
            result += _survey(file, replace(dialect, **other)).readings(replace(dialect, **other))[:1]
    return result


def _other_delimiters(file: DataFile, dialect: Dialect) -> list[str]:
    """Return the delimiters that part the header as well as the one that is taken."""
    if file.path.suffix.lower() == ".tsv":
        return []
    with open_file(file.path) as opened:
        lines = read_lines(opened, file.place, dialect.encoding)
        header = next((raw for _, raw in lines if raw), b"").decode(dialect.encoding, "replace")
    return delimiters(header, quoted=dialect.quoting == "csv")[1:]


def both_fit(found: list[Reading], taken: Dialect) -> list[str]:
    """Return a note for each other reading that fits as well as the one that is taken, with the rows of both."""
    ours = next((one for one in found if _same(one.dialect, taken)), None)
    if ours is None:
        return []
    notes = []
    for one in found:
        if one is not ours and one.bad <= ours.bad:
            options = {key: value for key, value in vars(one.dialect).items() if value != getattr(Dialect(), key)}
            shown = ", ".join(f"{key}: {_yaml(value)}" for key, value in (options or {"quoting": "csv"}).items())
            why = f" (taken: {ours.why})" if ours is found[0] and ours.why else " (taken)"
            notes.append(f"two readings fit: {ours.describe()}{why}, {one.describe()}; for it set dialect: {{{shown}}}")
    return notes


def _yaml(value: object) -> str:
    """Return an option as a recipe has it: a text that YAML may read as something else in quotes."""
    return str(value) if isinstance(value, str) and value.isidentifier() else json.dumps(value, ensure_ascii=False)


def _same(one: Dialect, other: Dialect) -> bool:
    """Return whether two dialects part rows alike; what one allows and the file does not use makes no difference."""
    multiline = one.multiline <= other.multiline and one.quoting == "csv"
    return one.quoting == other.quoting and one.delimiter == other.delimiter and (multiline or one.quoting == "none")


def find_encoding(file: DataFile) -> tuple[str, list[str]]:
    """Return UTF-8 or, where more of what is no ASCII is no UTF-8 than is, an 8-bit encoding, with what to look at."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    wrong = right = 0
    controls, example = False, b""
    with open_file(file.path) as opened:
        for chunk in iter(lambda: opened.read(CHUNK), b""):
            if chunk.isascii():
                continue
            text = decoder.decode(chunk)
            bad = text.count("\ufffd")
            wrong += bad
            right += len(text) - len(text.encode("ascii", "ignore")) - bad
            controls = controls or CONTROLS.search(chunk) is not None
            example = example or _example(chunk)
    if wrong <= right:
        return "utf-8", []
    name = "latin-1"
    if controls:
        name = "cp1252" if _decodes(file, "cp1252") else name
    shown = quote(example.decode(name, "replace"))
    return name, [f"not UTF-8: read as {name}, in which it says {shown}; if that is wrong set encoding to what it is"]


def _example(chunk: bytes) -> bytes:
    found = re.search(rb"[^\r\n\t,;]{0,20}[\x80-\xff][^\r\n\t,;]{0,20}", chunk)
    return found[0].strip() if found else b""


def _decodes(file: DataFile, encoding: str) -> bool:
    with open_file(file.path) as opened:
        try:
            for chunk in iter(lambda: opened.read(CHUNK), b""):
                chunk.decode(encoding)
        except UnicodeDecodeError:
            return False
    return True


def find_dialect(file: DataFile) -> tuple[Dialect, list[str]]:
    """Return the dialect that a file is written in, and notes on what else it may be. Raises DataError.

    Whether it has a header is taken from the file's own dialect.
    """
    if file.is_parquet:
        return Dialect(), []
    encoding, notes = find_encoding(file)
    dialect = Dialect(encoding=encoding, header=file.dialect.header)
    found = readings(file, dialect)
    taken = found[0].dialect if found else dialect
    return taken, [*notes, *both_fit(found, taken)]
