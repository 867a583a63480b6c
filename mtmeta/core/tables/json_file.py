"""JSON as a table: objects in lines, an array of rows, or the arrays of an object, which are splits.

Arrays are read as a stream: memory is that of one row, whatever the line breaks. A row is an object, or an array
whose values are called by their places: 0, 1 and so on.
"""

from __future__ import annotations

import codecs
import json
import re
from collections import Counter
from collections.abc import Iterator
from io import BufferedReader
from itertools import accumulate
from typing import Literal, NamedTuple, NoReturn

from mtmeta.core.errors import DataError
from mtmeta.core.tables import text_file
from mtmeta.core.tables.bad_rows import BadRowError
from mtmeta.core.tables.text_file import decode, wrong_byte
from mtmeta.core.wording import did_you_mean, plural, quote, safe

Form = Literal["lines", "array", "tables"]
SUFFIXES = (".json", ".jsonl", ".ndjson")
MAX_DEPTH = 32  # levels of nesting in a row
MAX_LISTED = 20  # splits named in a message
CHUNK = 2**16  # bytes
STRING = r'"(?:[^"\\]++|\\.)*+"'
NOT_BRACKETS = re.compile(rf'{STRING[:-1]}"?|[^\[\]{{}}"]++', re.DOTALL)  # strings whole, and what stands between
BLANK = re.compile(r"[ \t\r\n]*+")
FLAT = re.compile(rf'\{{(?:[^"{{}}\[\]]++|{STRING})*+\}}|{STRING}', re.DOTALL)  # an object without nesting, a string
STEP = re.compile(rf'(?:[^"\[\]{{}}]++|{STRING})*+([\[\]{{}}])', re.DOTALL)  # as far as the next bracket
PLAIN = re.compile(r'[^\s,\[\]{}":]++')  # numbers, true, false, null
ARRAY = re.compile(rb"\s*\[\s*[\[{]")
ARRAY_OF_OBJECTS = re.compile(rb'\s*\[\s*\{\s*"')
BAD_BYTE = re.compile("[\udc80-\udcff]")  # as `surrogateescape` decodes it


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) < len(pairs):
        # what has no name is no column, so it may stand there twice
        for key, times in Counter(key for key, _ in pairs if key.strip()).most_common(1):
            if times > 1:
                raise BadRowError("duplicate key", f"duplicate key {quote(key)}")
    return result


def _refuse(constant: str) -> NoReturn:
    raise BadRowError("not a JSON object", f"{constant} is not JSON; write a finite number")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_float=str, parse_int=str, parse_constant=_refuse)
LENIENT = json.JSONDecoder(parse_float=str, parse_int=str, strict=False)


def parse_object(text: str) -> dict[str, object]:
    """Return the object on a JSONL line; numbers keep the text they have in the file. Raises BadRowError."""
    if max(accumulate(1 if c in "[{" else -1 for c in NOT_BRACKETS.sub("", text)), default=0) > MAX_DEPTH:
        raise BadRowError("not a JSON object", f"nested deeper than {MAX_DEPTH} levels")
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        reason = f"not JSON ({safe(error.msg)} at character {error.colno}); write one object a line"
        raise BadRowError("not a JSON object", reason) from None
    if not isinstance(value, dict):
        raise BadRowError("not a JSON object", "not a JSON object; write one object a line")
    return value


class Element(NamedTuple):
    """A value in a JSON file that has not been parsed: its number among its neighbours, its text, its depth."""

    number: int
    text: str
    depth: int


class JsonReader:
    """Reads a JSON file value by value. Raises DataError where it is no JSON, naming the line."""

    def __init__(self, file: BufferedReader, place: str, encoding: str) -> None:
        self._file, self._place, self._encoding = file, place, encoding
        try:
            self._decoder = codecs.getincrementaldecoder(encoding)("surrogateescape")
        except LookupError:
            raise DataError(
                place, f"encoding {quote(encoding)} cannot be read bit by bit; save the file as UTF-8"
            ) from None
        self._text, self._at, self._ended = "", 0, False
        self._line, self._counted = 1, 0  # line of the character `_counted`
        self._width: int | None = None
        """Values of each row that is an array, as the first has them; -1 where rows are objects."""
        self.count = 0
        """Elements of the array that was skipped last."""

    @property
    def line(self) -> int:
        """The line, from 1, of what comes next."""
        self._line += self._text.count("\n", self._counted, self._at)
        self._counted = self._at
        return self._line

    def fail(self, reason: str, line: int | None = None) -> NoReturn:
        """Raise DataError for the line, by default that of what comes next."""
        raise DataError(f"{self._place}:{line or self.line}", reason)

    def peek(self) -> str:
        """Return the next character that is not blank, without taking it; '' at the end of the file."""
        while True:
            self._at = BLANK.match(self._text, self._at).end()  # type: ignore[union-attr]  # it matches nothing as well
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def elements(self) -> Iterator[tuple[int, Element]]:
        """Yield line and element of the array that comes next."""
        self._take("[")
        if self.peek() == "]":
            self._take("]")
            return
        number = 0
        while True:
            number += 1
            yield self._element(number)
            if self.peek() != ",":
                return self._take("]")
            self._take(",")

    def keys(self) -> Iterator[str]:
        """Yield the keys of the object that comes next; the caller takes the value of each before it asks on."""
        self._take("{")
        if self.peek() == "}":
            self._take("}")
            return
        while True:
            line, key = self._element(0)
            try:
                name = json.loads(key.text)
            except json.JSONDecodeError:
                name = None
            if not isinstance(name, str):
                self.fail(f"not JSON (expected a key in quotes, found {quote(key.text)}); write it again", line)
            self._take(":")
            yield name
            if self.peek() != ",":
                return self._take("}")
            self._take(",")

    def skip(self) -> Literal["rows", "list", "object", "value"]:
        """Take the value that comes next, an array bit by bit, and return what it is: `rows` are arrays of rows."""
        first = self.peek()
        if first != "[":
            self._element(0)
            return "object" if first == "{" else "value"
        self.count, kind = 0, False
        for _, element in self.elements():
            self.count += 1
            kind = kind or (self.count == 1 and element.text[0] in "[{")
        return "rows" if kind else "list"

    def rows(self) -> Iterator[tuple[int, Element]]:
        """Yield line and element of the array that the file is."""
        yield from self.elements()
        self.end()

    def end(self) -> None:
        """Raise DataError if anything follows."""
        if self.peek():
            self.fail("text after the end of the JSON; write one array, or one object a line")

    def record(self, line: int, element: Element) -> dict[str, object]:
        """Return the row that an element is. Raises BadRowError, and DataError where it is no JSON."""
        try:
            return self._record(line, element)
        except BadRowError:
            try:
                LENIENT.decode(element.text)
            except json.JSONDecodeError as error:  # where it ends, and the next row begins, is not known then
                self._no_json(line, error)
            except RecursionError:
                pass
            raise

    def _no_json(self, line: int, error: json.JSONDecodeError) -> NoReturn:
        self.fail(f"not JSON ({safe(error.msg)}); write the file again", line + error.lineno - 1)

    def _record(self, line: int, element: Element) -> dict[str, object]:
        text = element.text
        if element.depth > MAX_DEPTH:
            raise BadRowError("not a JSON object", f"nested deeper than {MAX_DEPTH} levels")
        if not text.isascii() and (bad := BAD_BYTE.search(text)):
            raise wrong_byte(ord(bad[0]) - 0xDC00, self._encoding)
        if "\0" in text:
            raise BadRowError("NUL byte", "NUL byte; save the file as UTF-8 text")
        try:
            value = DECODER.decode(text)
        except json.JSONDecodeError as error:
            self._no_json(line, error)
        if not isinstance(value, dict | list):
            raise BadRowError("not a JSON object", f"not a JSON object but {quote(text)}; write one object a row")
        if self._width is None:
            self._width = len(value) if isinstance(value, list) else -1
        if isinstance(value, list) == (self._width < 0):
            message = "an array among objects" if self._width < 0 else "an object among arrays"
            raise BadRowError("not a JSON object", f"{message}; write all rows alike")
        if isinstance(value, dict):
            return value
        if len(value) != self._width:
            raise BadRowError("wrong number of fields", f"{plural(len(value), 'value')}, expected {self._width}")
        return {str(at): field for at, field in enumerate(value)}

    def _take(self, mark: str) -> None:
        if (found := self.peek()) != mark:
            self.fail(f"not JSON (expected {mark}, found {quote(found) if found else 'the end'}); write the file again")
        self._at += 1

    def _element(self, number: int) -> tuple[int, Element]:
        first = self.peek()
        line = self.line
        if flat := FLAT.match(self._text, self._at):
            depth, size = int(first == "{"), len(flat[0])
        elif first in ("[", "{"):
            size, depth = self._nested(line)
        elif first == '"':
            depth, size = 0, -1
        else:
            depth, size = 0, self._plain()
        while size < 0:  # a string that goes on
            if not self._more():
                self.fail("not JSON (a text in quotes does not end); write the file again", line)
            if flat := FLAT.match(self._text, self._at):
                size = len(flat[0])
        text = self._text[self._at : self._at + size]
        self._at += size
        return line, Element(number, text, depth)

    def _nested(self, line: int) -> tuple[int, int]:
        """Return size and depth of the array or object that comes next."""
        size = depth = deepest = 0
        while True:
            step = STEP.match(self._text, self._at + size)
            if step is None:
                if not self._more():
                    self.fail("not JSON (a value that does not end); write the file again", line)
                continue
            size = step.end() - self._at
            depth += 1 if step[1] in "[{" else -1
            deepest = max(deepest, depth)
            if not depth:
                return size, deepest

    def _plain(self) -> int:
        """Return the size of the number, or true, false or null, that comes next."""
        while True:
            plain = PLAIN.match(self._text, self._at)
            if plain and (plain.end() < len(self._text) or not self._more()):
                return len(plain[0])
            if not plain:
                found = self._text[self._at : self._at + 1]
                self.fail(f"not JSON (found {quote(found) if found else 'the end'}, no value); write the file again")

    def _more(self) -> bool:
        """Read on; what was taken is let go. False at the end of the file."""
        if self._ended:
            return False
        self._line, rest = self.line, self._text[self._at :]
        if len(rest) > text_file.MAX_LINE:
            self.fail(f"a value of more than {text_file.MAX_LINE} characters; write rows, or one object a line")
        # twice as much each time, so that what is looked at again stays in proportion
        data = self._file.read(max(CHUNK, len(rest)))
        self._ended = not data
        try:
            self._text = rest + self._decoder.decode(data, self._ended)
        except UnicodeError as error:
            self.fail(f"{safe(str(error))}; save the file as UTF-8")
        self._at = self._counted = 0
        return True


def find_form(file: BufferedReader, place: str, encoding: str, suffix: str, *, stream: bool = False) -> Form | None:
    """Return how JSON stands in a file by its beginning and `suffix`; None if it is no JSON.

    Leaves the file where it was; of a `stream` only what has come in is looked at. Raises DataError for an object that
    is no row, naming the tables in it.
    """
    start = 0 if stream else file.tell()
    head = file.peek(CHUNK) if stream else file.read(CHUNK)
    known, first = suffix in SUFFIXES, head.lstrip()[:1]
    try:
        if first == b"[" and ((ARRAY if known else ARRAY_OF_OBJECTS).match(head) or suffix == ".json"):
            return "array"
        if first != b"{" or stream:
            return "lines" if known else None
        file.seek(start)
        if not known:
            return "lines" if _is_object(file, encoding) else None
        if problem := _problem(file, place, encoding, suffix, head):
            raise DataError(place, problem)
        return "lines"
    finally:
        if not stream:
            file.seek(start)


def _is_object(file: BufferedReader, encoding: str) -> bool:
    """Return whether the first line that is not blank is a JSON object."""
    for raw in iter(lambda: file.readline(text_file.MAX_LINE + 2), b""):
        if raw.strip():
            try:
                return bool(parse_object(decode(raw.rstrip(b"\r\n"), encoding)))
            except BadRowError:
                return False
    return False


def _problem(file: BufferedReader, place: str, encoding: str, suffix: str, head: bytes) -> str:
    """Return why a file that begins with an object has no objects in lines; '' if it may. Raises DataError."""
    reader = JsonReader(file, place, encoding)
    counts: dict[str, int] = {}
    kinds = []
    reader.peek()
    begin, of_lines = reader.line, suffix != ".json"
    try:
        for key in reader.keys():
            kinds.append(reader.skip())
            if kinds[-1] == "rows":
                counts[key] = reader.count
        over_lines, alone = reader.line > begin, not reader.peek()
    except DataError:
        second = [line.strip() for line in head.splitlines() if line.strip()][1:2]
        if of_lines or not second or second[0].startswith(b'{"'):
            return ""  # a bad row
        raise
    if (of_lines and (over_lines or len(counts) < max(1, len(kinds)))) or not (over_lines or alone):
        return ""
    if not alone:
        return "" if of_lines else "objects over several lines each; write one object a line, or an array of them"
    if counts:
        names = [f"{safe(name, 40)} ({plural(count, 'row')})" for name, count in counts.items()]
        listed = ", ".join(names[:MAX_LISTED]) + ", ..." * (len(names) > MAX_LISTED)
        first, *more = (safe(name, 40) for name in counts)
        several = f", or several, as #{first}+{more[0]}" if more else ""
        return f"holds the tables {listed}; name one, as in {safe(place, 200)}#{first}{several}"
    if kinds and "value" not in kinds:
        return "one list or object a column, not a row; write one object a row (pandas: orient='records', lines=True)"
    return "one object over several lines, and no rows in it; write one object a line" if over_lines else ""


def table_elements(reader: JsonReader, place: str, table: str) -> Iterator[tuple[int, Element]]:
    """Yield line and element of the array that `table` names in the object that the file is, numbered from 1.

    With + between names those of several arrays, one after the other as they stand in the file. Raises DataError.
    """
    if reader.peek() != "{":
        raise DataError(place, f"is no JSON object with a table {quote(table)} in it; leave '#' and what follows out")
    parts = table.split("+")
    found: list[str] = []
    others, number = [], 0
    for key in reader.keys():
        if key != table and key not in parts:
            if reader.skip() == "rows":
                others.append(key)
            continue
        if key in found:
            reader.fail(f"duplicate key {quote(key)}")
        found.append(key)
        if reader.peek() != "[":
            reader.fail(f"{quote(key)} is no array of rows")
        for line, element in reader.elements():
            number += 1
            yield line, Element(number, element.text, element.depth)
    reader.end()
    if table in found:
        if len(found) > 1:
            raise DataError(place, "names one table, and several with + between; rename it")
        return
    if missing := [name for name in parts if name not in found]:
        names = ", ".join(safe(name, 40) for name in [*found, *others][:MAX_LISTED]) or "none"
        message = f"no table {quote(missing[0])} in it; there are: {names}{did_you_mean(missing[0], others)}"
        raise DataError(place, message)
    if len(found) < len(parts):
        raise DataError(place, "names a table twice; name each once")
