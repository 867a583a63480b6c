from __future__ import annotations

import codecs
import csv
import encodings.aliases
import gzip
import hashlib
import os
import tracemalloc
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mtmeta.core.errors import DataError
from mtmeta.core.tables import data_file as tables
from mtmeta.core.tables import text_file
from mtmeta.core.tables.bad_rows import BadRow
from mtmeta.core.tables.data_file import DataFile, Dialect, Row
from mtmeta.core.tables.delimited import split_fields

DATA = os.environ.get("MTMETA_DATA", "")
HEADER = b"text\tlabel\n"


def read(path: Path, content: bytes, *columns: str, **dialect: Any) -> tuple[list[Row], list[tuple[int, str]]]:
    path.write_bytes(content)
    file = DataFile(path, Dialect(**dialect))
    rows = list(file.rows(*columns))
    return rows, [(bad.line, bad.reason) for bad in file.bad]


def fails(path: Path, content: bytes, *columns: str, **dialect: Any) -> str:
    """The error of reading `content`, without the directory of the file."""
    with pytest.raises(DataError) as caught:
        read(path, content, *columns, **dialect)
    return str(caught.value).removeprefix(f"{path.parent}{os.sep}")


# --- the interface


def test_public_names() -> None:
    assert tables.__all__ == ["DataFile", "Dialect", "Record", "Row"]
    assert Dialect() == Dialect(encoding="utf-8", quoting="csv", multiline=False, max_field=131072)


def test_a_data_file_is_a_path(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\na,1\n")
    file = DataFile(str(path))
    assert file.path == path
    assert os.fspath(file) == str(path)
    assert file.dialect == Dialect()
    with open(file, "rb") as opened:
        assert opened.read() == b"text,label\na,1\n"


def test_sha256(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xff\xfe\x00" * 100_000)
    assert DataFile(path).sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def test_sha256_of_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.csv: no such file; check the path$"):
        DataFile(tmp_path / "a.csv").sha256()


def test_rows_hold_the_requested_columns_line_and_id(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.tsv", b"id\ttext\tlabel\nx7\ta\t1\n\tb\t0\n", "label", "text")
    assert rows == [{"label": "1", "text": "a"}, {"label": "0", "text": "b"}]
    assert [(row.line, row.id) for row in rows] == [(2, "x7"), (3, "3")]
    assert list(rows[0]) == ["label", "text"]
    assert bad == []


def test_rows_without_names_hold_all_columns(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "a.csv", b"text,label\na,1\n")
    assert rows == [{"text": "a", "label": "1"}]
    assert rows[0].id == "2"


def test_a_second_pass_starts_with_no_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(HEADER + b"a\nb\t1\n")
    file = DataFile(path)
    held = file.bad
    for _ in range(2):
        assert [row["text"] for row in file.rows("text")] == ["b"]
        assert file.bad == [BadRow(2, "1 field, expected 2", "wrong number of fields")]
    assert file.bad is held


def test_bad_fills_while_rows_are_consumed(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(HEADER + b"a\t1\nb\nc\t1\n")
    file = DataFile(path)
    rows = file.rows("text")
    assert next(rows)["text"] == "a"
    assert file.bad == []
    assert next(rows)["text"] == "c"
    assert file.bad == [BadRow(3, "1 field, expected 2", "wrong number of fields")]
    del rows  # an abandoned iteration closes its file, or the ResourceWarning is an error


# --- delimiter, header and line ends


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("tab in .csv", b"\tid\ttext\n0\tx\tb,c;d\n"),
        ("comma", b"id,text\nx,b\tc;d\n"),
        ("comma before semicolon", b"id,a;b,text\nx,;,b c\n"),
        ("semicolon", b"id;text\nx;b,c\n"),
    ],
)
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".CSV", ""])
def test_the_header_shows_the_delimiter(tmp_path: Path, name: str, content: bytes, suffix: str) -> None:
    rows, bad = read(tmp_path / f"a{suffix}", content, "text")
    assert bad == []
    assert rows[0]["text"].startswith("b")
    assert rows[0].id == "x"


def test_tsv_is_tab_separated_whatever_its_header_holds(tmp_path: Path) -> None:
    for name in ("a.tsv", "a.TSV"):
        rows, bad = read(tmp_path / name, b"a,b\nx,y,z\n", "a,b")
        assert (rows, bad) == ([{"a,b": "x,y,z"}], [])


def test_one_column(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.csv", b"text\na\n \nb\n", "text")
    assert [row["text"] for row in rows] == ["a", " ", "b"]
    assert bad == []


def test_a_leading_unnamed_column_is_ignored(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows, bad = read(path, b"\ttext\tlabel\n7\ta\t1\n8\ta\n")
    assert rows == [{"text": "a", "label": "1"}]
    assert rows[0].id == "2"
    assert bad == [(3, "2 fields, expected 3")]
    assert DataFile(path).columns() == ["text", "label"]


def test_columns(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbf"te""xt","a,b",label\r\n')
    assert DataFile(path).columns() == ['te"xt', "a,b", "label"]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_line_ends_and_line_numbers(tmp_path: Path, end: bytes) -> None:
    content = end.join([b"text\tlabel", b"a\t1", b"", b"b\r1\t2", b"c", b'"d"\t3', b"e\t4"])
    rows, bad = read(tmp_path / "a.tsv", content, "text", "label")
    assert [(row.line, row["text"], row["label"]) for row in rows] == [
        (2, "a", "1"),
        (4, "b\r1", "2"),
        (6, "d", "3"),
        (7, "e", "4"),
    ]
    assert bad == [(5, "1 field, expected 2")]


def test_a_lone_cr_is_data_beside_quotes_too(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.tsv", HEADER + b'a\rb\t"1"\n"c\rd"\t2\n', "text")
    assert [row["text"] for row in rows] == ["a\rb", "c\rd"]
    assert bad == []


def test_other_line_separators_are_data(tmp_path: Path) -> None:
    text = "a\x0bb\x0c\x1cc\x85\u2028d"
    rows, _ = read(tmp_path / "a.tsv", HEADER + f"{text}\t1\n".encode(), "text")
    assert [row["text"] for row in rows] == [text]


def test_blank_lines_may_stand_before_the_header(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.tsv", b"\n\r\n" + HEADER + b"a\t1\n", "text")
    assert ([row.line for row in rows], bad) == ([4], [])


def test_only_wholly_empty_lines_are_skipped(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.tsv", HEADER + b"\n \n\t\na\t1\n", "text", "label")
    assert rows == [{"text": "", "label": ""}, {"text": "a", "label": "1"}]
    assert bad == [(3, "1 field, expected 2")]
    rows, bad = read(tmp_path / "a.jsonl", b'\n{"text": "a"}\n\r\n \n', "text")
    assert [row.line for row in rows] == [2]
    assert bad == [(4, "not JSON (Expecting value at character 2); write one object a line")]


# --- quotes


def test_quoted_fields(tmp_path: Path) -> None:
    content = b'text,label\n"a, ""b""",1\n"",2\nsay "hi",3\n5" disk,"4"\n'
    rows, bad = read(tmp_path / "a.csv", content, "text", "label")
    assert [row["text"] for row in rows] == ['a, "b"', "", 'say "hi"', '5" disk']
    assert [row["label"] for row in rows] == ["1", "2", "3", "4"]
    assert bad == []


def test_quoting_none_takes_quotes_for_text(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.tsv", HEADER + b'"a\t1\nb"\t"2"\n', "text", "label", quoting="none")
    assert rows == [{"text": '"a', "label": "1"}, {"text": 'b"', "label": '"2"'}]
    assert bad == []


def test_text_after_a_closing_quote_is_a_bad_row(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.tsv", HEADER + b'"Hi" he said\t1\nb\t2\n', "text")
    assert [row["text"] for row in rows] == ["b"]
    assert bad == [(2, "text after a closing quote; if quotes are text set quoting: none")]


@pytest.mark.parametrize(
    ("body", "line", "runs"),
    [
        (b'a\t1\n"b\t2\n' + b"c\t3\n" * 11_998 + b'd"\t4\ne\t5\n', 3, "12000 lines"),
        (b'"b\t2\nc"\t3\n', 2, "2 lines"),
        (b'"b\t2\n\nc "" d\t3\n', 2, "3 lines to the end of the file"),
        (b'a\t1\n"b\t2', 3, "1 line to the end of the file"),
        (b'"b\t2\n' + b"c\t3\n" * 120_000 + b'd"\t4\n', 2, "100000 lines or more"),
        (b'"b\t2\n\xff\t1\nc"\t3\n', 2, "3 lines"),
    ],
)
def test_a_stray_quote_never_swallows_rows(tmp_path: Path, body: bytes, line: int, runs: str) -> None:
    expected = f"a.tsv:{line}: quoted field runs over {runs}; is this TSV without quoting? set quoting: none"
    assert fails(tmp_path / "a.tsv", HEADER + body, "text") == expected


def test_a_stray_quote_in_the_header(tmp_path: Path) -> None:
    expected = "a.csv:1: quoted field runs over 2 lines; is this TSV without quoting? set quoting: none"
    assert fails(tmp_path / "a.csv", b'"text,label\na",1\n') == expected
    expected = "a.csv:1: text after a closing quote; if quotes are text set quoting: none"
    assert fails(tmp_path / "a.csv", b'"te"xt,label\na,1\n') == expected


def test_multiline_joins_lines(tmp_path: Path) -> None:
    body = b'"a\n\nb ""q""\r\n","c\nd"\nx,y\n"p\nq\n"\nlast,z\n'
    rows, bad = read(tmp_path / "a.csv", b"text,label\n" + body, "text", "label", multiline=True)
    assert [(row.line, row["text"], row["label"]) for row in rows] == [
        (2, 'a\n\nb "q"\n', "c\nd"),
        (7, "x", "y"),
        (11, "last", "z"),
    ]
    assert bad == [(8, "1 field, expected 2")]


def test_multiline_header(tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "a.csv", b'"te\nxt",label\na,1\n', multiline=True)
    assert (rows, rows[0].line) == ([{"te\nxt": "a", "label": "1"}], 3)


def test_multiline_takes_a_field_of_a_thousand_lines_and_no_more(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    rows, bad = read(path, b'text,label\n"' + b"a\n" * 998 + b'a",1\nb,2\n', "text", multiline=True)
    assert ([row.line for row in rows], bad) == ([2, 1001], [])
    expected = "a.csv:2: quoted field runs over 1000 lines or more; is this TSV without quoting? set quoting: none"
    assert fails(path, b'text,label\n"' + b"a\n" * 2000 + b'a",1\n', "text", multiline=True) == expected
    # closing one quote and opening the next on every line does not get round the limit
    assert fails(path, b'text,label\n"a' + b'\na","a' * 2000, "text", multiline=True) == expected


@pytest.mark.parametrize(
    ("body", "runs"), [(b'"a\nb" c,1\nd,2\n', "2 lines"), (b'"a\nb,1\n', "2 lines to the end of the file")]
)
def test_multiline_still_refuses_what_is_no_quoted_field(tmp_path: Path, body: bytes, runs: str) -> None:
    expected = f"a.csv:2: quoted field runs over {runs}; is this TSV without quoting? set quoting: none"
    assert fails(tmp_path / "a.csv", b"text,label\n" + body, "text", multiline=True) == expected


def test_multiline_with_a_bad_byte_drops_the_whole_row(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.csv", b'text,label\n"a\n\xe9,0\nb",1\nc,2\n', "text", multiline=True)
    assert [(row.line, row["text"]) for row in rows] == [(5, "c")]
    assert bad == [(2, "byte 0xe9 is not UTF-8; if the file is Latin-1 set encoding: latin-1")]


def test_a_quoted_field_is_joined_only_so_far(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_file, "MAX_LINE", 20)
    for multiline in (True, False):
        message = fails(tmp_path / "a.csv", b'text\n"' + b"12345678\n" * 9 + b'"\n', "text", multiline=multiline)
        assert message.startswith("a.csv:2: quoted field runs over 3 lines or more; ")


# --- files without a header


def test_without_a_header_columns_are_numbered_and_the_first_line_is_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    rows, bad = read(path, b'\na "b" c\t4,27\tx1\nd\t2\n"e\t0\tx2\n', header=False, quoting="none", id="2")
    assert [(row.line, row.id, row["0"], row["1"]) for row in rows] == [
        (2, "x1", 'a "b" c', "4,27"),
        (4, "x2", '"e', "0"),
    ]
    assert bad == [(3, "2 fields, expected 3")]
    assert DataFile(path, Dialect(header=False)).columns() == ["0", "1", "2"]
    assert fails(path, b"a\t1\n", "text", header=False) == "a.tsv: no column 'text'; columns are: 0, 1"


def test_the_first_row_may_have_fields_over_lines(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.csv", b'"a\nb\n",1\nc,2\n"d\ne",3\n', header=False, multiline=True)
    assert [(row.line, row["0"], row["1"]) for row in rows] == [(1, "a\nb\n", "1"), (4, "c", "2"), (5, "d\ne", "3")]
    assert bad == []
    assert fails(tmp_path / "a.csv", b'"a\nb",1\nc,2\n', header=False).startswith(
        "a.csv:1: quoted field runs over 2 li"
    )


def test_a_header_that_looks_like_data_is_told_with_the_missing_column(tmp_path: Path) -> None:
    expected = "a.csv: no column 'text'; columns are: {}; if the first line is data set header: false"
    assert fails(tmp_path / "a.csv", b"so it goes, day after day, b\nand,so,on\n", "text").endswith(
        "columns are: so it goes,  day after day,  b"
    )
    assert fails(tmp_path / "a.csv", b"a b c d e f g,1\nand,2\n", "text") == expected.format("a b c d e f g, 1")
    assert fails(tmp_path / "a.csv", b"txt,1\nand,2\n", "text").endswith("columns are: txt, 1; did you mean 'txt'?")


FIELD = st.text(st.sampled_from(['"', "a", ",", " ", "é"]), max_size=8)


@given(st.lists(FIELD, min_size=1, max_size=5))
def test_a_line_is_split_as_csv_splits_it(fields: list[str]) -> None:
    line = ",".join(fields)
    try:
        expected = next(csv.reader([line], strict=True), [""]) or [""]
    except csv.Error:
        fields, opened = split_fields(line, ",")
        assert opened is not None or not fields
    else:
        assert split_fields(line, ",") == (expected, None)


# --- bad rows of a table


def test_ragged_rows(tmp_path: Path) -> None:
    content = b"a\tb\tc\td\n1\t2\t3\n1\t2\t3\t4\n1\t2\t3\t4\t5\n1\n"
    rows, bad = read(tmp_path / "a.tsv", content, "a")
    assert [row.line for row in rows] == [3]
    assert bad == [(2, "3 fields, expected 4"), (4, "5 fields, expected 4"), (5, "1 field, expected 4")]


@pytest.mark.parametrize("suffix", [".tsv", ".jsonl"])
def test_a_field_over_the_limit(tmp_path: Path, suffix: str) -> None:
    long = b"x" * 200_000
    content = HEADER + long + b"\t1\nb\t2\n"
    if suffix == ".jsonl":
        content = b'{"text": "' + long + b'"}\n{"text": "b"}\n'
    rows, bad = read(tmp_path / f"a{suffix}", content, "text")
    assert [row["text"] for row in rows] == ["b"]
    assert [reason for _, reason in bad] == ["field 'text' has 200000 characters (limit 131072; raise max_field)"]
    rows, bad = read(tmp_path / f"a{suffix}", content, "text", max_field=200_000)
    assert ([len(row["text"]) for row in rows], bad) == ([200_000, 1], [])


def test_the_limit_counts_characters_and_holds_for_quoted_fields(tmp_path: Path) -> None:
    content = HEADER + '"éé"\t1\n"ééé"\t2\n'.encode()
    rows, bad = read(tmp_path / "a.tsv", content, "text", max_field=2)
    assert [row["text"] for row in rows] == ["éé"]
    assert bad == [(3, "field 'text' has 3 characters (limit 2; raise max_field)")]


@pytest.mark.parametrize("tail", [b"\n", b"\r\n", b""])
def test_an_overlong_line_is_skipped_without_being_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tail: bytes
) -> None:
    monkeypatch.setattr(text_file, "MAX_LINE", 20)
    reason = "line of more than 20 bytes; put one row on a line"
    for size in range(18, 80):
        content = HEADER + b"x" * (size - 2) + b"\t1" + tail
        rows, bad = read(tmp_path / "a.tsv", content + (b"b\t2\n" if tail else b""), "text")
        lines = [row.line for row in rows] + [line for line, _ in bad]
        assert sorted(lines) == ([2, 3] if tail else [2])
        assert bad == ([(2, reason)] if size > 20 else [])
    assert fails(tmp_path / "a.csv", b"x" * 21 + b"\n1\n") == f"a.csv:1: {reason}"


@pytest.mark.parametrize("suffix", [".tsv", ".csv", ".jsonl"])
def test_bytes_that_are_not_text(tmp_path: Path, suffix: str) -> None:
    content = HEADER + b"caf\xe9\t1\na\0b\t1\nc\t1\n"
    if suffix == ".jsonl":
        content = b'{"text": "z"}\n{"text": "caf\xe9"}\n{"text": "a\0b"}\n{"text": "c"}\n'
    rows, bad = read(tmp_path / f"a{suffix}", content, "text")
    assert [row["text"] for row in rows][-1] == "c"
    assert bad == [
        (2, "byte 0xe9 is not UTF-8; if the file is Latin-1 set encoding: latin-1"),
        (3, "NUL byte; save the file as UTF-8 text"),
    ]


def test_an_encoding(tmp_path: Path) -> None:
    content = "text\tlabel\ncafé\t1\n"
    rows, bad = read(tmp_path / "a.tsv", content.encode("latin-1"), "text", encoding="latin-1")
    assert ([row["text"] for row in rows], bad) == (["café"], [])
    rows, bad = read(tmp_path / "a.tsv", content.encode(), "text", encoding="ascii")
    assert (rows, bad) == ([], [(2, "byte 0xc3 is not ASCII; set the encoding it has")])


def test_a_header_that_is_not_text(tmp_path: Path) -> None:
    expected = "a.tsv:1: byte 0xe9 is not UTF-8; if the file is Latin-1 set encoding: latin-1"
    assert fails(tmp_path / "a.tsv", b"t\xe9xt\tlabel\na\t1\n") == expected
    content = "text\tlabel\na\t1\n".encode("utf-16-le")
    assert fails(tmp_path / "a.tsv", content) == "a.tsv:1: NUL byte; save the file as UTF-8 text"


# --- JSONL


def test_jsonl_values_are_text(tmp_path: Path) -> None:
    line = b'{"a": "x", "b": 1e-05, "c": 10.50, "d": true, "e": false, "f": null, "g": %s}' % (b"9" * 5000)
    rows, bad = read(tmp_path / "a.jsonl", line, *"abcdefg")
    assert bad == []
    assert list(rows[0].values()) == ["x", "1e-05", "10.50", "true", "false", "", "9" * 5000]


def test_jsonl_ids(tmp_path: Path) -> None:
    content = b'{"text": "a", "id": 7}\n{"text": "b", "id": null}\n{"text": "c"}\n{"text": "d", "id": "x"}\n'
    rows, bad = read(tmp_path / "a.ndjson", content, "text")
    assert ([row.id for row in rows], bad) == (["7", "2", "3", "x"], [])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "a", "label": 1, "label": 2}', "duplicate key 'label'"),
        (b'{"text": "a", "more": [{"b": 1, "b": 2}]}', "duplicate key 'b'"),
        (b'{"text": NaN}', "NaN is not JSON; write a finite number"),
        (b'{"text": "a", "label": -Infinity}', "-Infinity is not JSON; write a finite number"),
        (b"[1, 2]", "not a JSON object; write one object a line"),
        (b'"text"', "not a JSON object; write one object a line"),
        (b'{"text": "a"', "not JSON (Expecting ',' delimiter at character 13); write one object a line"),
        (b'{"text" 1}', "not JSON (Expecting ':' delimiter at character 9); write one object a line"),
        (b'{"text": "a"} {}', "not JSON (Extra data at character 15); write one object a line"),
        (b'{"more": ' + b"[" * 32 + b"]" * 32 + b"}", "nested deeper than 32 levels"),
        (b'{"text": ' * 100_000, "nested deeper than 32 levels"),
        (b'{"text": "\\ud800"}', "field 'text' holds the lone surrogate U+D800; remove it"),
        (b'{"text": "\\udc00\\ud83d"}', "field 'text' holds the lone surrogate U+DC00; remove it"),
        (b'{"text": ["a"]}', "field 'text' is nested, expected text or a number"),
        (b'{"text": {"a": 1}}', "field 'text' is nested, expected text or a number"),
        (b'{"label": 1}', "no column 'text'"),
    ],
)
def test_bad_jsonl_rows(tmp_path: Path, line: bytes, reason: str) -> None:
    content = b'{"text": "first"}\n' + line + b'\n{"text": "last"}\n'
    rows, bad = read(tmp_path / "a.jsonl", content, "text")
    assert [row.line for row in rows] == [1, 3]
    assert bad == [(2, reason)]


def test_jsonl_may_nest_what_is_not_asked_for(tmp_path: Path) -> None:
    deep = b'{"text": "[[[[", "label": ' + b"[" * 31 + b"]" * 31 + b', "\\"{{{": "\\ud83d\\ude00"}'
    rows, bad = read(tmp_path / "a.jsonl", deep, "text")
    assert (rows, bad) == ([{"text": "[[[["}], [])
    rows, bad = read(tmp_path / "a.jsonl", deep)
    assert (rows, bad) == ([{"text": "[[[[", '"{{{': "😀"}], [])


def test_jsonl_columns_are_those_of_the_first_good_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\n[]\n{"sentence": "a", "label": 1}\n{"text": "b"}\n')
    file = DataFile(path)
    assert file.columns() == ["sentence", "label"]
    with pytest.raises(DataError) as caught:
        list(file.rows("text"))
    assert str(caught.value) == f"{path}: no column 'text'; columns are: sentence, label"


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.JSONL"])
def test_jsonl_goes_by_extension(tmp_path: Path, name: str) -> None:
    rows, bad = read(tmp_path / name, b'{"a": 1, "b": 2}', "b")
    assert (rows, bad) == ([{"b": "2"}], [])


def test_a_jsonl_bom_is_stripped(tmp_path: Path) -> None:
    rows, bad = read(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "a"}\n', "text")
    assert (rows, bad) == ([{"text": "a"}], [])


# --- whole-file problems


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("premise", "no column 'premise'; columns are: idx, sentence1, label"),
        ("sentence2", "no column 'sentence2'; columns are: idx, sentence1, label; did you mean 'sentence1'?"),
        ("\x1b[31m", "no column '\\x1b[31m'; columns are: idx, sentence1, label"),
    ],
)
def test_a_missing_column(tmp_path: Path, wanted: str, message: str) -> None:
    assert (
        fails(tmp_path / "rte.tsv", b"\tidx\tsentence1\tlabel\n0\t1\t2\t3\n", "label", wanted) == f"rte.tsv: {message}"
    )


def test_a_missing_column_is_told_before_bad_rows(tmp_path: Path) -> None:
    expected = "a.tsv: no column 'premise'; columns are: text, label"
    assert fails(tmp_path / "a.tsv", HEADER + b"a\n", "premise") == expected
    assert fails(tmp_path / "a.csv", b'""\n1\n', "premise") == "a.csv: no column 'premise'; columns are: none"


def test_a_column_twice(tmp_path: Path) -> None:
    expected = "a.csv:1: column 'text' appears 2 times; rename one"
    assert fails(tmp_path / "a.csv", b"id,text,text\n1,a,b\n", "id") == expected


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xef\xbb\xbf", b"text\tlabel", HEADER, HEADER + b"\r\n\n"])
def test_no_examples(tmp_path: Path, content: bytes) -> None:
    assert fails(tmp_path / "rte.tsv", content, "text") == "rte.tsv: no examples"
    if not content.startswith(b"text"):
        assert fails(tmp_path / "rte.jsonl", content, "text") == "rte.jsonl: no examples"
        for name in ("rte.tsv", "rte.jsonl"):
            with pytest.raises(DataError, match=r": no examples$"):
                DataFile(tmp_path / name).columns()


def test_only_bad_rows_is_not_no_examples(tmp_path: Path) -> None:
    assert read(tmp_path / "a.tsv", HEADER + b"a\n", "text") == ([], [(2, "1 field, expected 2")])
    assert read(tmp_path / "a.jsonl", b"[]\n", "text")[1] == [(1, "not a JSON object; write one object a line")]


def test_a_missing_file(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").touch()
    for path, message in [
        (tmp_path / "tarin.tsv", "no such file; did you mean 'train.tsv'?"),
        (tmp_path / "zzz", "no such file; check the path"),
        (tmp_path / "nowhere" / "train.tsv", "no such file; check the path"),
        (tmp_path, "is a directory, expected CSV, TSV, JSONL or Parquet"),
        (tmp_path / "train.tsv" / "x", "cannot be read (Not a directory)"),
        (tmp_path / ("x" * 5000), "cannot be read (File name too long)"),
        (tmp_path / "a\0b", "cannot be read (not a valid path)"),
        (Path(os.devnull), "is not a file, expected CSV, TSV, JSONL or Parquet"),
    ]:
        for use in (lambda file: list(file.rows("text")), DataFile.columns, DataFile.sha256):
            with pytest.raises(DataError) as caught:
                use(DataFile(path))
            assert str(caught.value) == f"{path}: {message}"


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    (tmp_path / "a.csv").touch()
    monkeypatch.setattr("builtins.open", refuse)  # permissions do not bind root
    with pytest.raises(DataError, match=r"a\.csv: cannot be read \(Permission denied\)$"):
        DataFile(tmp_path / "a.csv").columns()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(DataError, match=r"a\.csv: is not a file, expected CSV, TSV, JSONL or Parquet$"):
        DataFile(tmp_path / "a.csv").columns()


def test_compressed_files(tmp_path: Path) -> None:
    table = HEADER + b"a\t1\n"
    assert fails(tmp_path / "data.csv", gzip.compress(table)) == (
        "data.csv: a gzip file, expected CSV, TSV, JSONL or Parquet; unpack it first"
    )
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        archive.writestr("../../.bashrc", table)
    content = (tmp_path / "data.zip").read_bytes()
    for name in ("data.csv", "data.jsonl", "data.zip"):
        expected = f"{name}: a zip archive, expected CSV, TSV, JSONL or Parquet; unpack it first"
        assert fails(tmp_path / name, content) == expected


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_wide_byte_order_marks(tmp_path: Path, encoding: str, suffix: str) -> None:
    content = '{"text": 1}\n'.encode(encoding)
    expected = f"a.{suffix}: UTF-16 or UTF-32 text; save the file as UTF-8"
    assert fails(tmp_path / f"a.{suffix}", content) == expected
    assert fails(tmp_path / f"a.{suffix}", codecs.BOM_UTF32_BE + content) == expected


def test_the_utf8_bom_is_stripped(tmp_path: Path) -> None:
    for encoding in ("utf-8", "utf-8-sig", "latin-1"):
        rows, _ = read(tmp_path / "a.tsv", codecs.BOM_UTF8 + HEADER + b"a\t1\n", "text", encoding=encoding)
        assert rows == [{"text": "a"}]


@pytest.mark.parametrize("encoding", ["utf-9", "", "rot13", "hex", "a\0b", "\ud800", "../utf-8"])
def test_unknown_encodings(tmp_path: Path, encoding: str) -> None:
    message = fails(tmp_path / "a.tsv", HEADER + b"a\t1\n", "text", encoding=encoding)
    assert message.startswith("a.tsv: unknown encoding '")
    assert message.endswith("'; use a codec name such as utf-8")
    assert message.isprintable()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "utf-7", "cp037", "hz", "unicode_escape"])
def test_encodings_that_cannot_be_cut_into_lines(tmp_path: Path, encoding: str) -> None:
    message = fails(tmp_path / "a.tsv", HEADER + b"a\t1\n", "text", encoding=encoding)
    assert message == f"a.tsv: encoding '{encoding}' cannot be read line by line; save the file as UTF-8"


def test_every_encoding_python_has_reads_or_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(HEADER + bytes(range(256)) + b"\t1\n" + b"".join(b"%c\t1\n" % i for i in range(256)))
    for encoding in sorted(
        {*encodings.aliases.aliases.values(), "idna", "punycode", "undefined", "raw_unicode_escape"}
    ):
        file = DataFile(path, Dialect(encoding=encoding))
        try:
            rows = list(file.rows("text"))
        except DataError:
            continue
        assert "A" in [row["text"] for row in rows], encoding


# --- anything at all


MARKS = [
    b"\t",
    b",",
    b";",
    b'"',
    b'""',
    b"\n",
    b"\r",
    b"\r\n",
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b"\0",
    b"\xe9",
    b"\xc3\xa9",
]
WORDS = [b"text", b"label", b"id", b'"text":', b'"label":', b"1", b"-", b"NaN", b"null", b"\\ud800", b"\xef\xbb\xbf"]
PIECES = st.sampled_from([*MARKS, *WORDS])
CONTENT = st.one_of(
    st.binary(max_size=200),
    st.lists(PIECES, max_size=40).map(b"".join),
    st.lists(PIECES, max_size=40).map(lambda pieces: b"id\ttext\tlabel\n" + b"".join(pieces)),
    st.lists(PIECES, max_size=40).map(lambda pieces: b'{"text": "a", "label": 1}\n' + b"".join(pieces)),
)


@settings(max_examples=300, deadline=None)
@given(
    content=CONTENT,
    suffix=st.sampled_from([".csv", ".tsv", ".jsonl"]),
    dialect=st.builds(
        Dialect,
        encoding=st.sampled_from(["utf-8", "latin-1", "ascii", "shift_jis"]),
        quoting=st.sampled_from(["csv", "none"]),
        multiline=st.booleans(),
        max_field=st.sampled_from([3, 131072]),
    ),
)
@example(content=b'""\n""\n', suffix=".csv", dialect=Dialect())
@example(content=b'{"a":' * 50_000, suffix=".jsonl", dialect=Dialect())
def test_any_bytes_are_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, suffix: str, dialect: Dialect
) -> None:
    path = tmp_path_factory.getbasetemp() / f"fuzz{suffix}"
    path.write_bytes(content)
    for columns in ((), ("text", "label")):
        file = DataFile(path, dialect)
        try:
            rows = list(file.rows(*columns))
        except DataError as error:
            assert str(error).startswith(str(path))
            assert "\n" not in error.message
            continue
        lines = [row.line for row in rows] + [bad.line for bad in file.bad]
        assert lines and len(set(lines)) == len(lines) and 1 <= min(lines) and max(lines) <= content.count(b"\n") + 1
        for row in rows:
            assert row.id
            assert set(row) == {*columns} if columns else all(isinstance(value, str) for value in row.values())
    try:
        assert all(isinstance(name, str) for name in DataFile(path, dialect).columns())
    except DataError as error:
        assert str(error).startswith(str(path))


# --- size, and the real files


def test_sixteen_thousand_pairs_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    row = "{0}\tid{0}\tWhat is the best way to learn number {0}?\t{1}How do I learn number {0}, please?{1}\t1.0\n"
    path.write_text("\tid\ta\tb\tlabel\n" + "".join(row.format(i, '"' * (i % 20 == 0)) for i in range(16_000)))
    rows = list(DataFile(path).rows("a", "b", "label"))
    assert len(rows) == 16_000
    assert (rows[0].id, rows[-1].id, rows[20]["b"]) == ("id0", "id15999", "How do I learn number 20, please?")


def test_a_file_is_never_held_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv"
    path.write_bytes(HEADER + (b"x" * 1000 + b"\t1\n") * 10_000)
    tracemalloc.start()
    try:
        assert sum(1 for _ in DataFile(path).rows("text")) == 10_000
        DataFile(path).sha256()
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.skipif(not DATA, reason="set MTMETA_DATA to the directory with the real data files")
@pytest.mark.parametrize(
    ("name", "count", "columns"),
    [
        ("sst-train.csv", 8544, ["sentence", "sentiment"]),
        ("sst-dev.csv", 1101, ["sentence", "sentiment"]),
        ("para-train.csv", 16002, ["sentence1", "sentence2", "is_duplicate"]),
        ("para-dev.csv", 2000, ["sentence1", "sentence2", "is_duplicate"]),
        ("para-extra.csv", 50503, ["sentence1", "sentence2", "is_duplicate"]),
        ("sts-train.csv", 6040, ["sentence1", "sentence2", "similarity"]),
        ("sts-dev.csv", 863, ["sentence1", "sentence2", "similarity"]),
        ("more/mnli-train.csv", 8999, ["sentence1", "sentence2", "label"]),
        ("more/qnli-train.csv", 8999, ["sentence1", "sentence2", "label"]),
        ("more/rte-train.csv", 2240, ["sentence1", "sentence2", "label"]),
        ("more/mrpc-train.csv", 3300, ["sentence1", "sentence2", "label"]),
        ("more/cola-train.csv", 7695, ["sentence", "label"]),
        ("more/trec-train.csv", 4906, ["sentence", "label"]),
        ("more/subj-train.csv", 7200, ["sentence", "label"]),
        ("more/cr-train.csv", 1595, ["sentence", "label"]),
        ("more/banking77-train.csv", 10003, ["sentence", "label"]),
    ],
)
def test_the_real_files_read_whole(name: str, count: int, columns: list[str]) -> None:
    file = DataFile(Path(DATA) / name)
    assert file.columns() == (columns if "/" in name else ["id", *columns])
    rows = list(file.rows(*columns))
    assert len(rows) == count
    assert file.bad == []
    with open(file, encoding="utf-8", newline="") as opened:  # the same text as the csv module reads
        expected = [[row[column] for column in columns] for row in csv.DictReader(opened, delimiter="\t")]
    assert [list(row.values()) for row in rows] == expected
