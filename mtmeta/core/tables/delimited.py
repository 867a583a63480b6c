"""The header of a CSV or TSV file, and the fields of its lines, a quoted one over several lines included."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from mtmeta.core.errors import DataError, NoExamples
from mtmeta.core.tables import text_file
from mtmeta.core.tables.bad_rows import BadRowError
from mtmeta.core.tables.text_file import decode
from mtmeta.core.wording import plural, quote

MAX_JOINED, MAX_SCANNED = 1000, 100_000  # lines of one quoted field if multiline; lines read to see how far it runs
QUOTED = re.compile(r'"((?:[^"]++|"")*+)("?)')  # from an opening quote on; group 2 is the closing one, if any
INSIDE = re.compile(r'((?:[^"]++|"")*+)("?)')  # the same on a line that begins in a quoted field
DELIMITERS = {"tab": "\t", "comma": ",", "semicolon": ";"}
LONG_SWALLOW = 4  # lines of one quoted field that hardly all look like rows by chance


def split_fields(text: str, delimiter: str) -> tuple[list[str], str | None]:
    """Return the fields of a line, and what stands in a last one that does not close, None if all do.

    No field at all means that text follows a closing quote.
    """
    # as csv.reader(strict=True), which has one field limit for the whole process and ends a row at a lone CR
    fields: list[str] = []
    at = 0
    while at <= len(text):
        if quoted := QUOTED.match(text, at):
            end = quoted.end()
            if not quoted[2]:
                return fields, quoted[1].replace('""', '"')
            if text[end : end + 1] not in ("", delimiter):
                return [], None
            fields.append(quoted[1].replace('""', '"'))
        else:
            end = text.find(delimiter, at) % (len(text) + 1)  # -1 becomes the end of the line
            fields.append(text[at:end])
        at = end + 1
    return fields, None


class JoinedRow:
    """A row whose quoted fields run over lines, each of which is looked at once."""

    def __init__(self, fields: list[str], opened: str, delimiter: str) -> None:
        self.fields, self._delimiter = fields, delimiter
        self._opened = [opened]
        """Lines of the field that has not closed."""

    @property
    def is_open(self) -> bool:
        """Whether its last field has not closed."""
        return bool(self._opened)

    def add(self, text: str) -> bool:
        """Take the next line; False if text follows a closing quote."""
        inside = INSIDE.match(text)
        assert inside is not None  # it matches nothing as well
        self._opened.append(inside[1].replace('""', '"'))
        if not inside[2]:
            return True
        self.fields.append("\n".join(self._opened))
        self._opened = []
        end = inside.end()
        if end == len(text):
            return True
        fields, opened = split_fields(text[end + 1 :], self._delimiter)
        self.fields += fields
        self._opened = [] if opened is None else [opened]
        return text[end] == self._delimiter and bool(fields or self._opened)


def delimiters(header: str, *, quoted: bool) -> list[str]:
    """Return the names of the delimiters that part a header, those in quotes aside: tab first, then comma, semicolon.

    Where none does, the first that stands in it, or the comma.
    """
    parting = [
        name
        for name, mark in DELIMITERS.items()
        if len(split_fields(header, mark)[0] if quoted else header.split(mark)) > 1
    ]
    return parting or [next((name for name, mark in DELIMITERS.items() if mark in header), "comma")]


class DelimitedReader:
    """Reads the header from `lines`, and takes more of them where a quoted field runs on.

    `names` are those of the columns: '' is a column without one, such as the index pandas writes. Without a `header`
    they are the numbers of the first row's fields, from 0. Raises DataError.
    """

    def __init__(
        self,
        lines: Iterator[tuple[int, bytes]],
        place: str,
        encoding: str,
        *,
        delimiter: str = "auto",
        quoted: bool,
        multiline: bool,
        header: bool = True,
    ) -> None:
        self.lines, self._place, self._encoding = lines, place, encoding
        self._first = "the header" if header else "the first row"
        self._quoted, self._multiline = quoted, multiline
        self.names: list[str] = []
        self.joined = self.swallowed = self.fields_swallowing = self._longest = 0
        """Lines that quoted fields run over; those of rows of which each line is a row by itself, and such rows."""
        self._first_swallowed = self._first_unnamed = self.unnamed_filled = 0
        number, raw = next((line for line in lines if line[1]), (0, b""))
        if not number:
            raise NoExamples(place, "no examples")
        try:
            text = decode(raw, encoding)
            if delimiter == "auto":
                delimiter = "tab" if Path(place).suffix.lower() == ".tsv" else delimiters(text, quoted=quoted)[0]
            self.delimiter = DELIMITERS[delimiter]
            taken: list[tuple[int, bytes]] = []
            self.lines = _keeping(lines, taken)
            self.names = [name if name.strip() else "" for name in self.fields(number, raw)]
            self.lines = lines
            if not header:
                self.names = list(map(str, range(len(self.names))))
                self.lines = chain([(number, raw), *taken], lines)
        except BadRowError as error:
            raise DataError(f"{place}:{number}", str(error)) from None
        check_unique(self.names, f"{place}:{number}")
        self.joined = 0  # of rows
        # the first may be the index that pandas writes; in others stands what the file's writer meant to be read
        self._unnamed = [at for at, name in enumerate(self.names) if not name and at]

    def record(self, number: int, raw: bytes) -> dict[str, str]:
        """Return the fields of a line by their columns. Raises BadRowError, DataError."""
        fields = self.fields(number, raw)
        if len(fields) != len(self.names):
            raise BadRowError("wrong number of fields", f"{plural(len(fields), 'field')}, expected {len(self.names)}")
        if self._unnamed and any(fields[at].strip() for at in self._unnamed):
            self.unnamed_filled += 1
            self._first_unnamed = self._first_unnamed or number
        return dict(zip(self.names, fields, strict=True))

    def fields(self, number: int, raw: bytes) -> list[str]:
        """Return the fields of a line. Raises BadRowError, and DataError for a quoted field that does not close."""
        try:
            text = decode(raw, self._encoding)
        except BadRowError as error:
            if self._quoted and self._multiline and error.kind != "line too long":
                text = raw.decode(self._encoding, "replace")
                fields, opened = split_fields(text, self.delimiter)
                if opened is not None:  # the lines that follow belong to the bad row
                    self._join(number, raw, JoinedRow(fields, opened, self.delimiter), error)
            raise
        if not self._quoted or '"' not in text:
            return text.split(self.delimiter)
        fields, opened = split_fields(text, self.delimiter)
        if opened is not None:
            return self._join(number, raw, JoinedRow(fields, opened, self.delimiter))
        if not fields:
            raise BadRowError("stray quote", "text after a closing quote; if quotes are text set quoting: none")
        return fields

    def notes(self) -> list[str]:
        """Return what was read without a bad row and may be read wrongly: rows joined by quotes, values dropped."""
        notes = []
        if 2 * self.swallowed > self.joined or self._longest >= LONG_SWALLOW:
            fields = f"{self._first}'s {plural(len(self.names), 'field')}"
            lines = f"{plural(self.swallowed, 'line')} with {fields} each were"
            where = f"{plural(self.fields_swallowing, 'row')} by quotes (the first at line {self._first_swallowed})"
            notes.append(f"{lines} joined into {where}; if quotes are text set quoting: none")
        if self.unnamed_filled:
            rows = f"{plural(self.unnamed_filled, 'row')} (the first at line {self._first_unnamed})"
            notes.append(
                f"values in columns without a name are not read, in {rows}; name the columns or quote the texts"
            )
        return notes

    def is_row(self, text: str) -> bool:
        """Return whether a line has as many fields as the header if quotes are ordinary characters."""
        return len(self.names) > 1 and text.count(self.delimiter) + 1 == len(self.names)

    def _join(self, number: int, raw: bytes, row: JoinedRow, refusal: BadRowError | None = None) -> list[str]:
        """Return the fields of a row whose last field closes on a later line, if that is allowed.

        A bad byte must not end the row before its quote closes: `refusal` waits till then.
        """
        count, size, end = 1, len(raw), " to the end of the file"
        whole = self.is_row(raw.decode(self._encoding, "replace"))
        fix = "is this TSV without quoting? set quoting: none"
        for _, raw in self.lines:
            count += 1
            size += len(raw)
            try:
                text = decode(raw, self._encoding)
            except BadRowError as error:
                refusal, text = refusal or error, raw.decode(self._encoding, "replace")
            whole = whole and self.is_row(text)
            before = len(row.fields)
            good = row.add(text)
            if good and not row.is_open and self._multiline:
                if refusal:
                    raise refusal
                self._note(number, count, whole)
                return row.fields
            closed = not good or (not self._multiline and len(row.fields) > before)
            too_many = count >= (MAX_JOINED if self._multiline else MAX_SCANNED)
            if closed or too_many or size > text_file.MAX_LINE:
                end = "" if closed else " or more"
                if good and not row.is_open and not whole and len(row.fields) == len(self.names):
                    fix = "set multiline: true, or quoting: none if quotes are text"
                break
        raise DataError(f"{self._place}:{number}", f"quoted field runs over {plural(count, 'line')}{end}; {fix}")

    def _note(self, number: int, count: int, whole: bool) -> None:
        self.joined += count
        if whole:
            self.swallowed += count
            self.fields_swallowing += 1
            self._longest = max(self._longest, count)
            self._first_swallowed = self._first_swallowed or number


def _keeping(lines: Iterator[tuple[int, bytes]], taken: list[tuple[int, bytes]]) -> Iterator[tuple[int, bytes]]:
    """Yield lines, and keep those that were taken."""
    for line in lines:
        taken.append(line)
        yield line


def looks_like_data(name: str) -> bool:
    """Return whether what stands where a column's name is expected is rather a number or a text."""
    number = name.replace(".", "", 1).replace("-", "", 1).isdecimal()
    return number or len(name) > 60 or name.count(" ") > 5


def check_unique(names: list[str], place: str) -> None:
    """Raise DataError for a name that two columns have; columns without one are left out of every table."""
    counts = Counter(name for name in names if name.strip())
    for name, times in counts.most_common(1):
        if times > 1:
            raise DataError(place, f"column {quote(name)} appears {times} times; rename one")
