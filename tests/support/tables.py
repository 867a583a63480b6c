"""Data files of no form in particular, and what other readers make of them: `json` on the whole, and `csv`.

What a file gives is held to the reference row by row; where the two differ by definition, a bad row or a refusal must
say so.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import strategies as st

from mtmeta.core.authoring.table_profile import profile_table
from mtmeta.core.errors import DataError
from mtmeta.core.tables.data_file import DataFile, Dialect, Row
from mtmeta.core.tables.readings import readings
from tests.support.commands import LABELS
from tests.support.fuzzing import json_bytes, mutated

Read = tuple[list[Row], int] | None
"""The rows and the number of bad ones; None if the file was refused."""


def read(path: Path | str, dialect: Dialect | None = None) -> Read:
    file = DataFile(path, dialect or Dialect())
    try:
        rows = list(file.rows())
    except DataError as error:
        assert error.message.isprintable() and error.place.startswith(str(file.path)), str(error)
        return None
    assert all(row.id and row.line >= 1 for row in rows)
    return rows, file.bad.total


def profiled(path: Path | str) -> None:
    """What `mtmeta new recipe` does with any file: a profile, or one line."""
    try:
        table = profile_table(Path(path))
    except DataError as error:
        assert error.message.isprintable()
    else:
        assert all(note.isprintable() for note in table.notes)
        again = read(path, table.dialect)
        assert again is not None and (len(again[0]), again[1]) == (table.rows, table.bad.total)


# --------------------------------------------------------------------------------------------------------------- JSON


class Pairs(list[Any]):
    """An object as it stands in the file, with what is there twice."""


class Constant(str):
    """NaN or an infinity, which `json` takes for numbers."""


def parsed(text: str) -> Any:
    """The value a text stands for by Python's reader; ValueError where it is none."""
    hooks: Any = {"object_pairs_hook": Pairs, "parse_int": str, "parse_float": str, "parse_constant": Constant}
    try:
        return json.loads(text, **hooks)
    except RecursionError:
        raise ValueError from None


def depth(value: Any) -> int:
    inner = [one for _, one in value] if isinstance(value, Pairs) else value if isinstance(value, list) else []
    return 1 + max(map(depth, inner), default=0) if isinstance(value, list) else 0


def is_clean(value: Any) -> bool:
    """Whether no object has a named key twice, and all numbers are finite."""
    if isinstance(value, Pairs):
        named = [key for key, _ in value if key.strip()]
        return len(set(named)) == len(named) and all(is_clean(one) for _, one in value)
    return all(map(is_clean, value)) if isinstance(value, list) else not isinstance(value, Constant)


def shown(value: Any) -> str:
    return value if isinstance(value, str) else "" if value is None else "true" if value else "false"


def row_of(value: Any, width: int) -> dict[str, str] | None:
    """The row that an element is, None for a bad one; `width` is -1 among objects."""
    if not isinstance(value, list) or depth(value) > 32 or not is_clean(value):
        return None
    if isinstance(value, Pairs) != (width < 0) or (width >= 0 and len(value) != width):
        return None
    pairs = dict(value) if isinstance(value, Pairs) else {str(at): one for at, one in enumerate(value)}
    flat = {key: shown(one) for key, one in pairs.items() if key.strip() and not isinstance(one, list)}
    name = pairs.get("id")
    # a name may be anything that can be read; a byte that is no UTF-8 makes a row bad wherever it stands
    texts = [*flat.values(), shown(name), *(key for key in pairs if re.search("[\udc80-\udcff]", key))]
    bad = isinstance(name, list) or any(not text.isascii() and lone(text) for text in texts)
    return None if bad else flat


def lone(text: str) -> bool:
    return any("\ud800" <= c <= "\udfff" for c in text)


def elements(values: list[Any]) -> list[dict[str, str] | None]:
    width: int | None = None
    found = []
    for value in values:
        if width is None and isinstance(value, list) and depth(value) <= 32 and is_clean(value):
            width = -1 if isinstance(value, Pairs) else len(value)
        found.append(row_of(value, -1 if width is None else width))
    return found


OBJECT = {"idx": 1, "sentence1": "a b", "sentence2": "c", "label": "neutral"}
objects = st.one_of(json_bytes(OBJECT), mutated(json.dumps(OBJECT).encode()), st.just(json.dumps(OBJECT).encode()))
rows_of_json = st.lists(
    st.one_of(objects, st.sampled_from([b"3", b"null", b'["a b", "c"]', b"[1, [2]]", b"NaN", b'{"": 1, "": 2}'])),
    max_size=5,
)
blanks = st.sampled_from([b"", b" ", b"\n", b"\r\n\t", b"\n\n"])


@st.composite
def json_files(draw: st.DrawFn) -> tuple[bytes, str, str]:
    """Bytes, a suffix, and `#TABLE` or nothing."""
    rows, gap = draw(rows_of_json), draw(blanks)
    array = b"[" + gap + (b"," + gap).join(rows) + gap + b"]"
    content = draw(
        st.one_of(
            st.just(array),
            st.just(b"\n".join(rows)),
            st.just(b'{"x": [' + gap + b"1, 2]," + gap + b'"t":' + gap + array + b', "u": {"a": [1]}}' + gap),
            st.just(b'{"t": ' + array + b', "t": ' + array + b"}"),
            st.just(b'{"text": ["a", "b"], "label": [1, 2]}'),
            st.just(json.dumps([OBJECT, {"a": "9" * 5000, "b": 10**300}], indent=draw(st.integers(0, 2))).encode()),
            st.just(b"[" * draw(st.integers(1, 2000)) + array),
            mutated(array),
            st.binary(max_size=60),
        )
    )
    content = draw(st.sampled_from([b"", b"", b"\xef\xbb\xbf", b" \n"])) + content + draw(blanks)
    if draw(st.integers(0, 7)) == 0:
        content = content[: draw(st.integers(0, len(content)))]
    return (
        content,
        draw(st.sampled_from([".json", ".json", ".jsonl", ".ndjson", ".txt"])),
        draw(st.sampled_from(["", "", "#t", "#x", "#gone"])),
    )


def check_json(path: Path, table: str) -> None:
    """Hold the rows of a JSON file to those of `json.loads` of the whole, or of each line."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    text = raw.decode("utf-8", "surrogateescape")
    found = read(f"{path}{table}")
    profiled(f"{path}{table}")
    try:
        whole = parsed(text)
    except ValueError:
        whole = None
    if table:
        check_table(whole, table, found)
    elif isinstance(whole, list) and not isinstance(whole, Pairs) and path.suffix == ".json":
        check_elements(whole, found)
    elif found and path.suffix in (".jsonl", ".ndjson") and not text.lstrip().startswith("["):
        check_lines(raw, found)
    elif found and path.suffix == ".json" and whole is None and text.lstrip().startswith("["):
        assert found[1] > 0 and ("\0" in text or lone(text)), "an array that is no JSON was read to its end"


def check_table(whole: Any, table: str, found: Read) -> None:
    named = [value for key, value in whole if key == table[1:]] if isinstance(whole, Pairs) else []
    if len(named) == 1 and isinstance(named[0], list) and not isinstance(named[0], Pairs):
        check_elements(named[0], found)
    elif whole is not None:
        assert found is None


def check_elements(values: list[Any], found: Read) -> None:
    expected = elements(values)
    if not values:
        assert found is None
        return
    assert found is not None, "a good array was refused"
    assert [dict(row) for row in found[0]] == [one for one in expected if one is not None]
    assert found[1] == expected.count(None)
    # `id` may be a column of the file
    places = [number for number, one in enumerate(expected, 1) if one is not None]
    assert all("id" in row or row.id == str(place) for row, place in zip(found[0], places, strict=True))


def check_lines(raw: bytes, found: tuple[list[Row], int]) -> None:
    good, bad = [], 0
    for line in (one.removesuffix(b"\r") for one in raw.split(b"\n")):
        if line:
            try:
                value = parsed(line.decode("utf-8"))
                row = row_of(value, -1) if isinstance(value, Pairs) and b"\0" not in line else None
            except ValueError:
                row = None
            bad += row is None
            good += [] if row is None else [row]
    assert ([dict(row) for row in found[0]], found[1]) == (good, bad)


# ----------------------------------------------------------------------------------------------------------- dialects

PIECES = ["a", "b c", "", " ", '"', '""', '"a"', '"a', 'b"', 'say ""hi""', "a,b", "x;y", "\t", "1", "é", *LABELS]
NAMES = ["text", "label", "id", "sentence1", "sentence2", "", "", " ", '"text"', '"a,b"', "a;b"]
SETTINGS = [
    Dialect(quoting=quoting, multiline=multiline, delimiter=delimiter)
    for quoting in ("csv", "none")
    for multiline in (False, True)
    for delimiter in ("auto", "tab", "comma", "semicolon")
]


@st.composite
def delimited_files(draw: st.DrawFn) -> tuple[bytes, str, Dialect]:
    """A table written in a dialect, in two, or in none."""
    mark, end = draw(st.sampled_from("\t,;")), draw(st.sampled_from(["\n", "\n", "\r\n", "\r", "\n\n"]))
    width, style = draw(st.integers(1, 4)), draw(st.sampled_from(["plain", "all", "some", "broken"]))
    names = draw(st.lists(st.sampled_from(NAMES), min_size=width, max_size=width))
    lines = [mark.join(names)]
    for _ in range(draw(st.integers(0, 8))):
        fields = draw(st.lists(st.sampled_from(PIECES), min_size=width, max_size=width))
        if style in ("all", "some"):
            inner = draw(st.sampled_from(["", "\n", mark, "\n\n"]))
            fields = [
                '"' + field.replace('"', '""') + inner + '"' if style == "all" or draw(st.booleans()) else field
                for field in fields
            ]
        elif style == "broken":
            fields[draw(st.integers(0, width - 1))] = draw(st.sampled_from(['"open', 'close"', '"in" out', '"']))
        lines.append(mark.join(fields[: draw(st.sampled_from([width, width, width, width - 1])) or 1]))
    content = (end.join(lines) + draw(st.sampled_from(["", end]))).encode()
    content = draw(st.one_of(st.just(content), st.just(content), mutated(content), st.binary(max_size=80)))
    return content, draw(st.sampled_from([".csv", ".tsv", ".txt"])), draw(st.sampled_from(SETTINGS))


def check_dialects(path: Path, dialect: Dialect) -> None:
    """Hold the rows of a table to a plain split of its lines, or to `csv`; and every reading to what it promises."""
    raw = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    found = read(path, dialect)
    profiled(path)
    file = DataFile(path, dialect)
    try:
        promised = readings(file, dialect)
        names = file.columns()
    except DataError:
        promised, names = [], []
    for one in promised:
        again = read(path, one.dialect)
        assert (one.rows + one.bad == 0 and again is None) or again is not None, one
        assert again is None or (len(again[0]), again[1]) == (one.rows, one.bad), (one, again)
    if found is None or not names or raw.lstrip().startswith((b"{", b"[")):
        return
    lines = [(at, line.removesuffix(b"\r")) for at, line in enumerate(raw.split(b"\n"), 1)]
    filled = [at for at, line in lines if line]
    if dialect.quoting == "none" or b'"' not in raw:
        told = [row.line for row in found[0]] + [bad.line for bad in bad_of(path, dialect)]
        assert sorted(told) == filled[1:]  # every line once
    expected = list(reference(raw, path, dialect))
    if expected:
        width = len(expected[0])
        good = [row for row in expected[1:] if len(row) == width]
        assert (len(found[0]), found[1]) == (len(good), len(expected) - 1 - len(good))
        kept = [at for at, name in enumerate(expected[0]) if name.strip()]
        assert [list(row.values()) for row in found[0]] == [[row[at] for at in kept] for row in good]


def bad_of(path: Path, dialect: Dialect) -> list[Any]:
    file = DataFile(path, dialect)
    list(file.rows())
    return list(file.bad)


def reference(raw: bytes, path: Path, dialect: Dialect) -> Iterator[list[str]]:
    """Header and rows as Python reads them; nothing where its definitions are others."""
    try:
        text = raw.decode("utf-8").replace("\r\n", "\n")
    except UnicodeDecodeError:
        return
    marks = {"tab": "\t", "comma": ",", "semicolon": ";"}
    header = next((line for line in text.split("\n") if line), "")
    if dialect.delimiter == "auto" and path.suffix != ".tsv" and sum(mark in header for mark in marks.values()) != 1:
        return
    if "\0" in text or "\r" in text:  # a row ends at a lone CR in `csv`, not here
        return
    auto = "\t" if path.suffix == ".tsv" else next((mark for mark in marks.values() if mark in header), ",")
    mark = marks.get(dialect.delimiter, auto)
    if dialect.quoting == "none":
        yield from (line.split(mark) for line in text.split("\n") if line)
        return
    if not dialect.multiline and any(line.count('"') % 2 for line in text.split("\n")):
        return
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=mark, strict=True) if row]
    except csv.Error:
        return
    if dialect.multiline or not any("\n" in field for row in rows for field in row):
        yield from rows
