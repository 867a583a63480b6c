"""The header of a CSV or TSV file, and the fields of its lines, a quoted one over several lines included."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from mtmeta.core.errors import DataError
from mtmeta.core.tables import text_file
from mtmeta.core.tables.bad_rows import BadRowError
from mtmeta.core.tables.text_file import decode
from mtmeta.core.wording import plural, quote

MAX_JOINED, MAX_SCANNED = 1000, 100_000  # lines of one quoted field if multiline; lines read to see how far it runs
QUOTED = re.compile(r'"((?:[^"]++|"")*+)("?)')  # from an opening quote on; group 2 is the closing one, if any
CLOSES = re.compile(r'(?:[^"]++|"")*+"')  # a line inside a quoted field that closes the field


def split_fields(text: str, delimiter: str) -> list[str] | None:
    """Return the fields of a line; [] if text follows a closing quote, None if the last field does not close."""
    # as csv.reader(strict=True), which has one field limit for the whole process and ends a row at a lone CR
    fields: list[str] = []
    at = 0
    while at <= len(text):
        if quoted := QUOTED.match(text, at):
            end = quoted.end()
            if not quoted[2]:
                return None
            if text[end : end + 1] not in ("", delimiter):
                return []
            fields.append(quoted[1].replace('""', '"'))
        else:
            end = text.find(delimiter, at) % (len(text) + 1)  # -1 becomes the end of the line
            fields.append(text[at:end])
        at = end + 1
    return fields


class DelimitedReader:
    """Reads the header from `lines`, and takes more of them where a quoted field runs on.

    `names` are those of the columns: '' is a column without one, such as the index pandas writes. Raises DataError.
    """

    def __init__(
        self, lines: Iterator[tuple[int, bytes]], place: str, encoding: str, *, quoted: bool, multiline: bool
    ) -> None:
        self.lines, self._place, self._encoding = lines, place, encoding
        self._quoted, self._multiline = quoted, multiline
        number, raw = next((line for line in lines if line[1]), (0, b""))
        if not number:
            raise DataError(place, "no examples")
        try:
            text = decode(raw, encoding)
            tab_only = Path(place).suffix.lower() == ".tsv"
            self._delimiter = "\t" if tab_only else next((mark for mark in "\t,;" if mark in text), ",")
            self.names = self.fields(number, raw)
        except BadRowError as error:
            raise DataError(f"{place}:{number}", str(error)) from None
        name, times = Counter(self.names).most_common(1)[0]
        if times > 1:
            raise DataError(f"{place}:{number}", f"column {quote(name)} appears {times} times; rename one")

    def record(self, number: int, raw: bytes) -> dict[str, str]:
        """Return the fields of a line by their columns. Raises BadRowError, DataError."""
        fields = self.fields(number, raw)
        if len(fields) != len(self.names):
            raise BadRowError("wrong number of fields", f"{plural(len(fields), 'field')}, expected {len(self.names)}")
        return dict(zip(self.names, fields, strict=True))

    def fields(self, number: int, raw: bytes) -> list[str]:
        """Return the fields of a line. Raises BadRowError, and DataError for a quoted field that does not close."""
        text = decode(raw, self._encoding)
        if not self._quoted or '"' not in text:
            return text.split(self._delimiter)
        if fields := split_fields(text, self._delimiter):
            return fields
        if fields is not None:
            raise BadRowError("stray quote", "text after a closing quote; if quotes are text set quoting: none")
        return self._joined_fields(number, raw)

    def _joined_fields(self, number: int, raw: bytes) -> list[str]:
        """Return the fields of a line whose last field closes on a later one, if that is allowed."""
        joined, size, end = [raw], len(raw), " to the end of the file"
        for _, raw in self.lines:
            joined.append(raw)
            size += len(raw)
            closed = CLOSES.match(raw.decode(self._encoding, "replace")) is not None
            if closed and self._multiline:
                # decoded strictly only now: a bad byte must not end the row before its quote closes
                whole = b"\n".join(joined)
                if fields := split_fields(whole.decode(self._encoding, "replace"), self._delimiter):
                    return split_fields(decode(whole, self._encoding), self._delimiter) or []
                closed = fields is not None
            too_many = len(joined) >= (MAX_JOINED if self._multiline else MAX_SCANNED)
            if closed or too_many or size > text_file.MAX_LINE:
                end = "" if closed else " or more"
                break
        message = f"quoted field runs over {plural(len(joined), 'line')}{end}"
        raise DataError(f"{self._place}:{number}", f"{message}; is this TSV without quoting? set quoting: none")
