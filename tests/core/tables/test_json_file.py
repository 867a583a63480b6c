"""JSON as a table: objects in lines whatever the suffix, arrays as a stream, tables in an object, and refusals."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.errors import DataError
from mtmeta.core.tables import json_file, text_file
from mtmeta.core.tables.data_file import DataFile, Dialect

ROWS = [{"text": f"words {i}, é", "label": ["no", "yes"][i % 2], "n": i} for i in range(6)]
PLAIN = [{key: str(value) for key, value in row.items()} for row in ROWS]
PAIRS = [[row["text"], row["label"]] for row in ROWS]


def write(path: Path, content: Any, **options: Any) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else json.dumps(content, **options).encode())
    return path


def rows(path: Path | str, *columns: str, **dialect: Any) -> list[dict[str, str]]:
    file = DataFile(path, Dialect(**dialect))
    found = [dict(row) for row in file.rows(*columns)]
    assert file.bad == []
    return found


def bad(path: Path | str) -> tuple[list[str], list[tuple[int, str]]]:
    """The ids of the good rows, and line and reason of the bad ones."""
    file = DataFile(path)
    ids = [row.id for row in file.rows()]
    return ids, [(row.line, row.reason) for row in file.bad]


def fails(path: Path | str, *columns: str) -> str:
    with pytest.raises(DataError) as caught:
        list(DataFile(path).rows(*columns))
    return str(caught.value).replace(f"{Path(path).parent}/", "")


LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.txt", "a.csv", "a.tsv", "a", "a.JSON"])
@pytest.mark.parametrize("content", [LINES, b"\xef\xbb\xbf" + LINES, b"\n\n" + LINES.replace(b"\n", b"\r\n")])
def test_objects_in_lines_are_rows_whatever_the_suffix(name: str, content: bytes, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    assert rows(path) == PLAIN
    assert DataFile(path).columns() == ["text", "label", "n"]


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.ndjson", "a.txt"])
@pytest.mark.parametrize(
    "options", [{}, {"indent": 1}, {"indent": "\t", "ensure_ascii": False}, {"separators": (",", ":")}]
)
def test_an_array_of_objects(name: str, options: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / name, ROWS, **options)
    assert rows(path) == PLAIN
    assert rows(path, "label") == [{"label": row["label"]} for row in ROWS]
    assert DataFile(path).columns() == ["text", "label", "n"]
    assert [row.id for row in DataFile(path).rows()] == [str(number) for number in range(1, 7)]


def test_lines_are_where_the_objects_begin_and_ids_may_be_a_column(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'\n[\n{"t":\n"a"}, {"t": "b"},\n\n\n {"t": "c", "id": "x7"}]')
    assert [(row.line, row.id) for row in DataFile(path).rows("t")] == [(3, "1"), (4, "2"), (7, "x7")]


@pytest.mark.parametrize("options", [{}, {"indent": 2}])
def test_the_tables_of_an_object_are_read_by_name(options: dict[str, Any], tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"train": ROWS, "info": {"n": [1]}, "test": ROWS[:2], "v": "1"}, **options)
    assert rows(f"{path}#train") == PLAIN
    assert rows(f"{path}#test", "text") == [{"text": row["text"]} for row in ROWS[:2]]
    several = "name one, as in a.json#train, or several, as #train+test"
    assert fails(path) == f"a.json: holds the tables train (6 rows), test (2 rows); {several}"
    assert fails(f"{path}#tset") == "a.json#tset: no table 'tset' in it; there are: train, test; did you mean 'test'?"
    assert fails(f"{path}#info").endswith("'info' is no array of rows")
    assert fails(f"{path}#").startswith("a.json#: no table '' in it; there are: train, test")


@pytest.mark.parametrize("key", ["data", "rows", "a/b", "a b", "a#b", "é"])
def test_an_object_with_one_table_whatever_its_name(key: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {key: ROWS})
    assert "holds the tables" in fails(path)
    assert rows(f"{path}#{key}") == PLAIN


def test_rows_that_are_arrays_have_columns_by_place(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"train": PAIRS, "oos_train": [["a", "oos"]]})
    assert DataFile(f"{path}#train").columns() == ["0", "1"]
    assert rows(f"{path}#train", "1", "0") == [{"1": label, "0": text} for text, label in PAIRS]
    assert rows(f"{path}#oos_train") == [{"0": "a", "1": "oos"}]
    assert fails(f"{path}#train", "text") == "a.json#train: no column 'text'; columns are: 0, 1"
    write(path, [["a", 1], ["b"], {"c": 1}, ["d", 2]])
    assert bad(path) == (["1", "4"], [(1, "1 value, expected 2"), (1, "an object among arrays; write all rows alike")])


def test_several_tables_of_an_object_are_read_one_after_the_other(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"oos": [["x", "oos"]], "val": [["v", "no"]], "train": PAIRS[:2]})
    file = DataFile(f"{path}#train+oos")
    found = [(row.id, row["0"], row["1"]) for row in file.rows()]
    assert found == [("1", "x", "oos"), *((str(at), text, label) for at, (text, label) in enumerate(PAIRS[:2], 2))]
    assert file.sha256() == hashlib.sha256(path.read_bytes() + b"#train+oos").hexdigest()
    message = "a.json#train+oss: no table 'oss' in it; there are: train, oos, val; did you mean 'oos'?"
    assert fails(f"{path}#train+oss") == message
    assert fails(f"{path}#oos+oos") == "a.json#oos+oos: names a table twice; name each once"
    write(path, {"a+b": ROWS[:1], "a": ROWS[:2]})
    assert len(rows(f"{path}#a")) == 2
    assert fails(f"{path}#a+b") == "a.json#a+b: names one table, and several with + between; rename it"
    write(path, {"a+b": ROWS[:1], "c": ROWS[:2]})
    assert len(rows(f"{path}#a+b")) == 1
    assert len(rows(f"{path}#c")) == 2


def test_a_file_of_that_very_name_wins(tmp_path: Path) -> None:
    write(tmp_path / "a.json", {"train": ROWS})
    write(tmp_path / "a.json#train", ROWS[:1])
    assert len(rows(f"{tmp_path}/a.json#train")) == 1
    (tmp_path / "d#1").mkdir()
    write(tmp_path / "d#1" / "a.json", {"train": ROWS[:2]})
    assert len(rows(f"{tmp_path}/d#1/a.json#train")) == 2
    assert fails(f"{tmp_path}/b.json#train").startswith("b.json#train: no such file") is False
    assert "b.json: no such file; did you mean 'a.json'?" in fails(f"{tmp_path}/b.json#train")
    write(tmp_path / "t.csv", b"text,label\na,1\n")
    assert fails(f"{tmp_path}/t.csv#x") == (
        "t.csv#x: is no JSON object with a table 'x' in it; leave '#' and what follows out"
    )


def test_two_tables_of_a_file_have_two_hashes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", {"train": ROWS, "test": ROWS})
    content = path.read_bytes()
    assert DataFile(path).sha256() == hashlib.sha256(content).hexdigest()
    assert DataFile(f"{path}#train").sha256() == hashlib.sha256(content + b"#train").hexdigest()
    assert DataFile(f"{path}#train").sha256() != DataFile(f"{path}#test").sha256()


BAD_ELEMENTS = [
    ('{"t": "a", "t": 1}', "duplicate key 't'"),
    ('{"t": {"b": 1, "b": 2}}', "duplicate key 'b'"),
    ('{"t": NaN}', "NaN is not JSON; write a finite number"),
    ('{"t": "\\ud800"}', "field 't' holds the lone surrogate U+D800; remove it"),
    ('{"t": ' + "[" * 32 + "]" * 32 + "}", "nested deeper than 32 levels"),
    ('{"t": ' + '{"a":' * 50_000 + "1" + "}" * 50_001, "nested deeper than 32 levels"),
    ('"text"', "not a JSON object but '\"text\"'; write one object a row"),
    ("12.5e3", "not a JSON object but '12.5e3'; write one object a row"),
    ('["a"]', "an array among objects; write all rows alike"),
    ('{"t": "' + "x" * 131_073 + '"}', "field 't' has 131073 characters (limit 131072; raise max_field)"),
    (b'{"t": "caf\xe9"}', "byte 0xe9 is not UTF-8; if the file is Latin-1 set encoding: latin-1"),
    (b'{"t": "a\0"}', "NUL byte; save the file as UTF-8 text"),
]


@pytest.mark.parametrize(("element", "reason"), BAD_ELEMENTS)
def test_limits_of_an_element_are_those_of_a_line(element: str | bytes, reason: str, tmp_path: Path) -> None:
    raw = element.encode() if isinstance(element, str) else element
    path = write(tmp_path / "a.json", b'[{"t": "first"},\n\n ' + raw + b',\n{"t": "last"}]')
    assert bad(path) == (["1", "3"], [(3, reason)])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"t": "a"}\n{"t": "b"}]', "a.json:2: not JSON (expected ], found '{'); write the file again"),
        ('[{"t": "a"},\n]', "a.json:2: not JSON (found ']', no value); write the file again"),
        ('[{"t": "a"},\n{"t" 1}]', "a.json:2: not JSON (Expecting ':' delimiter); write the file again"),
        ('[{"t": "a"},\n{"t": "b', "a.json:2: not JSON (a value that does not end); write the file again"),
        ('[{"t": "a"},\n"b', "a.json:2: not JSON (a text in quotes does not end); write the file again"),
        ('[{"t": "a"},\n', "a.json:2: not JSON (found the end, no value); write the file again"),
        ('[{"t": "a"}]\n[]', "a.json:2: text after the end of the JSON; write one array, or one object a line"),
        ('[{"t": "a\n"}]', "a.json:1: not JSON (Invalid control character at); write the file again"),
        ("[" * 100_000, "a.json:1: not JSON (a value that does not end); write the file again"),
        ("[]", "a.json: no examples"),
        ("[ \n]", "a.json: no examples"),
        ("", "a.json: no examples"),
        ('{"text": ["a", "b"], "label": [0, 1]}', "a.json: one list or object a column, not a row; write one object a"),
        ('{"text": {"0": "a"}, "label": {"0": 1}}', "a.json: one list or object a column, not a row; write one object"),
        ('{\n"text": "a",\n"label": 1\n}', "a.json: one object over several lines, and no rows in it; write one obj"),
        ('{\n"t": 1}\n{\n"t": 2}', "a.json: objects over several lines each; write one object a line, or an array of"),
    ],
)
def test_what_is_no_table_is_refused_in_one_line(content: str, message: str, tmp_path: Path) -> None:
    assert fails(write(tmp_path / "a.json", content.encode())).startswith(message)


def test_an_object_with_a_table_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", b'{"t": [{"a": 1}],\n "t": [{"a": 2}]}')
    assert fails(f"{path}#t").startswith("a.json#t:2: duplicate key 't'")


def test_one_row_of_jsonl_may_hold_lists_beside_its_text(tmp_path: Path) -> None:
    row = {"text": "a b", "label": "x", "spans": [{"at": 1}]}
    assert rows(write(tmp_path / "a.jsonl", row)) == [{"text": "a b", "label": "x"}]
    assert "holds the tables spans (1 row)" in fails(write(tmp_path / "a.json", row))
    assert rows(write(tmp_path / "b.json", LINES.replace(b"}\n", b', "spans": [{"at": 1}]}\n'))) == PLAIN


def test_jsonl_with_a_bad_first_line_stays_jsonl(tmp_path: Path) -> None:
    for name in ("a.json", "a.jsonl"):
        path = write(tmp_path / name, b'{"t": "a"\n{"t": "b"}\n')
        ids, told = bad(path)
        assert (ids, [line for line, _ in told]) == (["2"], [1])


def test_columns_without_a_name_are_left_out_in_every_form(tmp_path: Path) -> None:
    """Only what has a name must have one of its own."""
    lines = b'{"": 1, "t": "a", "": 2}\n{"": 1, " ": 3, "t": "b", " ": 4}\n'
    array = b"[" + b",".join(lines.splitlines()) + b"]"
    for name, content in (("a.jsonl", lines), ("a.json", array)):
        path = write(tmp_path / name, content)
        assert (rows(path), DataFile(path).columns()) == ([{"t": "a"}, {"t": "b"}], ["t"])


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "utf-8", "shift_jis", "gb18030", "iso2022_jp"])
def test_an_array_in_another_encoding(encoding: str, tmp_path: Path) -> None:
    text = "caf\xe9" if encoding in ("latin-1", "cp1252", "utf-8") else "ソ表 日本"  # bytes that look like \
    content = json.dumps([{"t": text}, {"t": text * 2}], ensure_ascii=False).encode(encoding)
    assert rows(write(tmp_path / "a.json", content), encoding=encoding) == [{"t": text}, {"t": text * 2}]


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 64])
def test_rows_are_the_same_wherever_the_file_is_cut(
    chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "a.json", {"x": 1.5, "t": [*ROWS, {"text": 'a "quoted" \\ text', "label": [], "n": -1e30}]})
    whole = rows(f"{path}#t")
    monkeypatch.setattr(json_file, "CHUNK", chunk)
    assert rows(f"{path}#t") == whole and len(whole) == 7 and whole[-1] == {"text": 'a "quoted" \\ text', "n": "-1e+30"}


def test_an_array_is_never_held_whole(tmp_path: Path) -> None:
    """On one line, as `json.dump` writes it, and before the table that is asked for."""
    many = [{"text": "x" * 1000, "label": 1}] * 10_000
    path = write(tmp_path / "a.json", {"other": many, "train": many})
    tracemalloc.start()
    try:
        assert sum(1 for _ in DataFile(f"{path}#train").rows("text")) == 10_000
        assert "other (10000 rows), train (10000 rows)" in fails(path)
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_value_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.json", b'[{"t": "a"},\n{"t": "' + b"x" * 500_000 + b'"}]')
    monkeypatch.setattr(text_file, "MAX_LINE", 100_000)
    assert fails(path) == "a.json:2: a value of more than 100000 characters; write rows, or one object a line"


def test_a_long_text_is_looked_at_in_proportion(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read again and again, as more of a text comes in, is at most a few times the text."""
    size, calls = 4_000_000, 0
    flat = json_file.FLAT

    class Counted:
        @staticmethod
        def match(text: str, at: int) -> Any:
            nonlocal calls
            calls += len(text) - at
            return flat.match(text, at)

    monkeypatch.setattr(json_file, "FLAT", Counted)
    path = write(tmp_path / "a.json", ["x" * size, {"t": "b"}])
    assert bad(path)[0] == ["2"]
    assert calls < 6 * size
