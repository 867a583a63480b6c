"""Which dialect a file is written in, and every other that fits, each with its rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.errors import DataError
from mtmeta.core.tables import delimited
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.core.tables.readings import both_fit, find_dialect, readings

CSV, MULTI, NONE = Dialect(), Dialect(multiline=True), Dialect(quoting="none")


def lines(*rows: str, header: str = "text,label") -> bytes:
    return ("\n".join([header, *rows]) + "\n").encode()


def broken(mark: str = ",", count: int = 200) -> bytes:
    """Two quotations that open in one row and close in a later one, as the texts have them."""
    texts = [f"A child jumps {i}." for i in range(count)]
    texts[40], texts[50], texts[90], texts[99] = '"Go on', 'he said"', '"Stop', 'she said"'
    return lines(*(f"{text}{mark}{i % 2}" for i, text in enumerate(texts)), header=f"text{mark}label")


def found(path: Path, content: bytes) -> tuple[Dialect, list[str], int, int]:
    """The dialect, the notes, and the good and bad rows that it gives."""
    path.write_bytes(content)
    dialect, notes = find_dialect(DataFile(path))
    file = DataFile(path, dialect)
    return dialect, notes, sum(1 for _ in file.rows()), file.bad.total


PLAIN = [f"text {i},{i % 2}" for i in range(20)]
QUOTED = [f'"text {i}","{i % 2}"' for i in range(20)]
KEPT = "none gives {} rows with quotes kept"
CASES: dict[str, tuple[bytes, Dialect, int, str]] = {
    "no quotes": (lines(*PLAIN), CSV, 20, ""),
    "quotes inside texts": (lines(*PLAIN, 'say "hi" now,1'), CSV, 21, ""),
    "quotations over rows": (broken(), NONE, 200, "multiline: true gives 181 rows"),
    "one more row is ragged": (broken() + b"ragged\n", NONE, 200, "gives 181 rows and 1 bad row"),
    "a ragged row inside the quotation": (broken().replace(b"jumps 45.,", b"jumps 45. "), NONE, 199, "gives 181 rows"),
    "quotation to the end": (lines(*PLAIN, '"open,1', *PLAIN), NONE, 41, ""),
    "every field quoted": (lines(*QUOTED, header='"text","label"'), CSV, 20, KEPT.format(20)),
    "texts quoted": (lines(*(f'"text {i}",{i % 2}' for i in range(20))), CSV, 20, KEPT.format(20)),
    "delimiters in quotes": (lines(*(f'"text, {i}",{i % 2}' for i in range(20))), CSV, 20, ""),
    "some delimiters in quotes": (lines(*PLAIN, '"a, b",1', '"c, d",0'), CSV, 22, ""),
    "doubled quotes": (lines(*PLAIN, '"he said ""hi""",1'), CSV, 21, KEPT.format(21)),
    "empty quoted fields": (lines(*PLAIN, '"",1', 'a,""'), CSV, 22, KEPT.format(22)),
    "line breaks in quotes": (lines(*(f'"text {i}\nmore",{i % 2}' for i in range(20))), MULTI, 20, ""),
    "few line breaks in quotes": (lines(*PLAIN, '"a\nb\nc",1', '"d\n\ne",0'), MULTI, 22, ""),
    "line breaks and commas in quotes": (
        lines(*(f'"so, {i}\nmore, or, even\nless",{i % 2}' for i in range(20))), MULTI, 20, ""
    ),
    "every field quoted, one broken": (lines(*QUOTED, '"he "said" so","1"'), CSV, 20, "none gives 21 rows"),
    "stray quotes": (lines(*PLAIN, '"Hi" he said,1', '"Yes" she said,0'), NONE, 22, ""),
    "quotes over two columns": (lines(*(f'"a {i},b" {i},1' for i in range(9)), header="s,t,label"), NONE, 9, ""),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("mark", "name"), [(",", "t.csv"), ("\t", "t.tsv"), (";", "t.txt")])
def test_the_dialect_of_a_file(case: str, mark: str, name: str, tmp_path: Path) -> None:
    content, dialect, rows, words = CASES[case]
    taken, notes, good, _ = found(tmp_path / name, content.replace(b",", mark.encode()))
    assert (taken, good) == (dialect, rows)
    assert len(notes) == bool(words), notes
    assert all(words in note and f"gives {rows} row" in note and "for it set dialect: {" in note for note in notes)


def test_quotes_are_text_where_every_line_is_a_row(tmp_path: Path) -> None:
    """The files of a user: 200 rows, of which 181 would be left; both are said, and how to choose the other."""
    path = tmp_path / "t.tsv"
    taken, (note,), good, bad = found(path, broken("\t"))
    assert (taken, good, bad) == (NONE, 200, 0)
    assert note == (
        "two readings fit: quoting: none gives 200 rows (taken: every line has the header's number of fields by "
        "itself), quoting: csv, multiline: true gives 181 rows; for it set dialect: {multiline: true}"
    )
    assert both_fit(readings(DataFile(path), MULTI), MULTI) == [
        "two readings fit: quoting: csv, multiline: true gives 181 rows (taken), quoting: none gives 200 rows; "
        "for it set dialect: {quoting: none}"
    ]


def test_two_delimiters_in_the_header(tmp_path: Path) -> None:
    content = b"id,note;text\n" + b"".join(b"%d,n;some text %d\n" % (i, i) for i in range(9))
    taken, (note,), good, _ = found(tmp_path / "t.csv", content)
    assert (taken, good) == (CSV, 9)
    assert "delimiter: semicolon gives 9 rows; for it set dialect: {delimiter: semicolon}" in note
    rows = list(DataFile(tmp_path / "t.csv", Dialect(delimiter="semicolon")).rows())
    assert rows[3] == {"id,note": "3,n", "text": "some text 3"}
    # one that stands in quotes does not part the header
    taken, notes, good, _ = found(tmp_path / "t.csv", b'"text, English";label\n"a, b";1\n"c; d";0\n')
    assert (taken, notes, good) == (CSV, [], 2)
    assert DataFile(tmp_path / "t.csv").columns() == ["text, English", "label"]


@pytest.mark.parametrize(
    ("text", "encoding", "expected"),
    [
        ("caf\xe9 {0}", "latin-1", "latin-1"),
        ("it\u2019s {0} \u201cso\u201d", "cp1252", "cp1252"),
        ("caf\xe9 {0}", "utf-8", "utf-8"),
        ("words {0}", "ascii", "utf-8"),
        ("日本 {0}", "utf-8", "utf-8"),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.json"])
def test_encodings(text: str, encoding: str, expected: str, name: str, tmp_path: Path) -> None:
    texts = [text.format(i) for i in range(30)]
    forms = {
        "t.csv": "text,label\n" + "".join(f"{one},1\n" for one in texts),
        "t.jsonl": "".join(f'{{"text": "{one}", "label": 1}}\n' for one in texts),
        "t.json": "[" + ", ".join(f'{{"text": "{one}", "label": 1}}' for one in texts) + "]",
    }
    path = tmp_path / name
    taken, notes, _, _ = found(path, forms[name].encode(encoding))
    assert taken.encoding == expected
    assert [row["text"] for row in DataFile(path, taken).rows("text")] == texts
    assert [expected in note for note in notes if note.startswith("not UTF-8")] == [True] * (expected != "utf-8")


def test_a_few_bad_bytes_do_not_make_mojibake_of_the_rest(tmp_path: Path) -> None:
    """Latin-1 would read every row, 29 of them wrongly."""
    content = b"text,label\n" + "".join(f"caf\xe9 {i},1\n" for i in range(29)).encode() + b"caf\xe9,0\n"
    taken, notes, good, bad = found(tmp_path / "t.csv", content)
    assert (taken, notes, good, bad) == (CSV, [], 29, 1)


def test_a_quoted_file_with_an_open_quote_is_refused_not_read_with_its_quotes(tmp_path: Path) -> None:
    content = lines(*(f'"text, {i}","{i % 2}"' for i in range(20)), '"open, 1","0')
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(DataError, match=r"t\.csv:22: quoted field runs over 1 line to the end of the file"):
        find_dialect(DataFile(tmp_path / "t.csv"))


# --- what is said while rows are read, whoever reads them


def notes(path: Path, content: bytes, **dialect: Any) -> list[str]:
    path.write_bytes(content)
    file = DataFile(path, Dialect(**dialect))
    list(file.rows())
    return file.notes


def test_rows_that_quotes_join_are_told(tmp_path: Path) -> None:
    told = notes(tmp_path / "t.csv", broken(), multiline=True)
    assert told == [
        "21 lines with the header's 2 fields each were joined into 2 rows by quotes (the first at line 42); "
        "if quotes are text set quoting: none"
    ]
    genuine = lines(*(f'"text {i}\nmore",{i % 2}' for i in range(20)))
    assert notes(tmp_path / "t.csv", genuine, multiline=True) == []
    # one swallow among many genuine rows
    mixed = genuine + b'"Go on,1\n' + b"x,0\n" * 5 + b'he said",1\n'
    assert notes(tmp_path / "t.csv", mixed, multiline=True)[0].startswith("7 lines with the header's 2 fields each")
    assert notes(tmp_path / "t.csv", broken(), quoting="none") == []


def test_line_breaks_in_quotes_are_named_where_they_are_not_allowed(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(lines('"a\nb",1'))
    with pytest.raises(DataError, match=r"t\.csv:2: quoted field runs over 2 lines; set multiline: true, or quoting"):
        list(DataFile(tmp_path / "t.csv").rows())


def test_columns_without_a_name_are_left_out_and_what_stands_in_them_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    assert notes(path, b"v1,v2,,,\nham,a,,,\nspam,b,,,\n") == []
    assert [dict(row) for row in DataFile(path).rows()] == [{"v1": "ham", "v2": "a"}, {"v1": "spam", "v2": "b"}]
    assert DataFile(path).columns() == ["v1", "v2"]
    told = notes(path, b"v1,v2, ,\nham,a,,\nspam,b, or c,\nham,d,,x\nham,e, ,\n")
    assert told == [
        "values in columns without a name are not read, in 2 rows (the first at line 3); "
        "name the columns or quote the texts"
    ]
    # the index that pandas writes is no text
    assert notes(path, b",text,label\n0,a,1\n1,b,0\n") == []
    assert notes(path, b",text,,label\n0,a,,1\n1,b,c,0\n")[0].startswith("values in columns without a name")
    for header in (b"a,,b,a", b'"",a,,a'):
        path.write_bytes(header + b"\n1,2,3,4\n")
        with pytest.raises(DataError, match="column 'a' appears 2 times; rename one"):
            DataFile(path).columns()


def test_a_row_over_many_lines_is_looked_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line closes a field and opens another; looking at all of the row at each would be 6 GB of text, not 6 MB."""
    seen: list[int] = []
    split = delimited.split_fields

    def counted(text: str, delimiter: str) -> tuple[list[str], str | None]:
        seen.append(len(text))
        return split(text, delimiter)

    monkeypatch.setattr(delimited, "split_fields", counted)
    row = '"x' + ("y" * 55 + '","z\n') * 899 + 'e"'
    header = ",".join(f"c{i}" for i in range(900))
    (tmp_path / "t.csv").write_text(f"{header}\n" + f"{row}\n" * 100)
    (tmp_path / "t.csv").stat()
    rows = list(DataFile(tmp_path / "t.csv", MULTI).rows())
    assert (len(rows), len(rows[0]), rows[99]["c899"], rows[99]["c1"]) == (100, 900, "z\ne", "z\n" + "y" * 55)
    assert sum(seen) < 1.1 * (tmp_path / "t.csv").stat().st_size


def test_a_bad_byte_in_the_first_line_of_a_row_drops_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(b'text,label\n"caf\xe9\nb",1\nc,2\n')
    file = DataFile(path, MULTI)
    assert [dict(row) for row in file.rows()] == [{"text": "c", "label": "2"}]
    assert [row.line for row in file.bad] == [2]


@pytest.mark.parametrize("case", CASES)
def test_readings_of_a_file_without_a_header_have_the_rows_that_are_read(case: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(CASES[case][0].partition(b"\n")[2])
    for reading in readings(DataFile(path), Dialect(header=False)):
        assert not reading.dialect.header
        file = DataFile(path, reading.dialect)
        assert (sum(1 for _ in file.rows()), file.bad.total) == (reading.rows, reading.bad)
