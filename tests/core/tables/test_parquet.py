"""Parquet files: the rows of the same table as CSV, typed columns as text, refusals."""

from __future__ import annotations

import datetime
import json
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from mtmeta.core.data.loading import load_split
from mtmeta.core.errors import DataError
from mtmeta.core.recipe.sections import DataOptions
from mtmeta.core.storage.cache import Cache
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.generic import PairClassificationTask
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import HEADER, LABELS, SMALL, assert_refused, call, data_folder

Capture = pytest.CaptureFixture[str]
ROWS = [(str(i), f'word {i}, "quoted"', f"other {i}\té", LABELS[i % 3]) for i in range(20)]


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def pairs(path: Path, **options: Any) -> Path:
    names = ("id", "sentence1", "sentence2", "label")
    return write(path, dict(zip(names, map(list, zip(*ROWS, strict=True)), strict=True)), **options)


def test_a_table_is_the_same_in_every_format(tmp_path: Path) -> None:
    """Ids, labels, tokens, hashes of texts: those of CSV and JSONL, whatever the row groups."""
    names = ("id", "sentence1", "sentence2", "label")
    quoted = [[f'"{field.replace(chr(34), 2 * chr(34))}"' for field in row] for row in ROWS]
    (tmp_path / "t.csv").write_text("\n".join(",".join(row) for row in [names, *quoted]), encoding="utf-8")
    lines = [json.dumps(dict(zip(names, row, strict=True))) for row in ROWS]
    (tmp_path / "t.jsonl").write_text("\n".join(lines), encoding="utf-8")
    pairs(tmp_path / "t.parquet", row_group_size=7)
    pairs(tmp_path / "d.parquet", use_dictionary=["label"], compression="gzip")
    texts, found = Bert(weights="tiny", max_length=32).load_tokenizer(), []
    for name in ("t.csv", "t.jsonl", "t.parquet", "d.parquet"):
        task = PairClassificationTask(train=name, labels=LABELS)
        for cache in (Cache(None), Cache(tmp_path / "cache"), Cache(tmp_path / "cache")):
            data = load_split("t", task, "train", DataOptions(), str(tmp_path), texts, cache=cache)
            arrays = [data.labels, data.texts, data.cut, *(a for s in data.stores for a in (s.ids, s.offsets, s.full))]
            found.append(([*data.ids], [None if a is None else a.tolist() for a in arrays]))
    assert all(one == found[0] for one in found)
    assert found[0][0] == [row[0] for row in ROWS]


def test_values_become_the_text_a_csv_file_would_have(tmp_path: Path) -> None:
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5)
    path = write(
        tmp_path / "t.parquet",
        {
            "int": pyarrow.array([1, None], pyarrow.int8()),
            "float": [4.6, float("nan")],
            "single": pyarrow.array([0.1, 1.0], pyarrow.float32()),
            "bool": [True, False],
            "decimal": [Decimal("1.50"), None],
            "date": [moment.date(), None],
            "time": pyarrow.array([moment, None], pyarrow.timestamp("ms")),
            "category": pyarrow.array(["a", None]).dictionary_encode(),
            "large": pyarrow.array(["x", ""], pyarrow.large_string()),
            "bytes": pyarrow.array(["é".encode(), None]),
            "null": pyarrow.nulls(2),
        },
    )
    one, other = DataFile(path).rows()
    assert one == {
        "int": "1",
        "float": "4.6",
        "single": "0.1",
        "bool": "true",
        "decimal": "1.50",
        "date": "2026-01-02",
        "time": "2026-01-02 03:04:05.000",
        "category": "a",
        "large": "x",
        "bytes": "é",
        "null": "",
    }
    assert set(other.values()) == {"", "nan", "1", "false"}
    assert [(row.line, row.id) for row in DataFile(path).rows("int")] == [(1, "1"), (2, "2")]
    assert DataFile(path).columns() == list(one)


def test_bad_rows_are_set_apart_with_their_number(tmp_path: Path) -> None:
    path = write(
        tmp_path / "t.parquet",
        {
            "text": pyarrow.array([b"good", b"\xff\xfe", b"x" * 11, b"fine"]),
            "list": [[1], None, [2], [3]],
            "label": [1, 2, 3, 4],
        },
    )
    file = DataFile(path, Dialect(max_field=10))
    assert [row["label"] for row in file.rows("text", "label")] == ["1", "4"]
    assert [(row.line, row.reason) for row in file.bad] == [
        (2, "field 'text' is not UTF-8; save it as text"),
        (3, "field 'text' has 11 characters (limit 10; raise max_field)"),
    ]
    assert file.bad.kinds == {"wrong encoding": 1, "field too long": 1}
    assert [row.line for row in file.rows("list")] == [2]  # a null is an empty field
    assert file.bad[0].reason == "field 'list' is nested, expected text or a number"
    assert [list(row) for row in DataFile(path).rows()] == [
        ["text", "label"],
        ["list", "label"],
        *[["text", "label"]] * 2,
    ]


def test_lists_and_structs_are_those_of_pyarrow(tmp_path: Path) -> None:
    """At any depth, with nulls between; numbers are text, and what is null in a list is empty."""
    rows = {
        "names": pyarrow.array([["a", "b"], None, [], ["c", None]]),
        "numbers": pyarrow.array([[1, 2], [3], None, []]),
        "fixed": pyarrow.array([[1, 2], None, [3, 4], [5, 6]], pyarrow.list_(pyarrow.int8(), 2)),
        "deep": pyarrow.array([[["a"], []], [], None, [["b", "c"]]]),
        "choices": pyarrow.array(
            [{"text": ["u", "v"], "at": 1}, None, {"text": [], "at": None}, {"text": ["k"], "at": 2}]
        ),
    }
    parquet.write_table(pyarrow.table(rows), tmp_path / "t.parquet", row_group_size=3)

    def shown(value: Any) -> Any:
        if isinstance(value, list):
            return [shown(each) for each in value]
        if isinstance(value, dict):
            return {key: shown(each) for key, each in value.items()}
        return "" if value is None else str(value)

    found = [dict(row) for row in DataFile(tmp_path / "t.parquet").records()]
    assert found == [shown(row) for row in pyarrow.table(rows).to_pylist()]


def test_files_that_are_none(tmp_path: Path) -> None:
    for name, content in (("no.parquet", b"text,label\na,b\n"), ("empty.parquet", b""), ("cut.parquet", b"PAR1" * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=rf"{name}: no Parquet file that can be read \(.*\); write it again"):
            list(DataFile(tmp_path / name).rows())
    write(tmp_path / "t.parquet", {"a": ["x"]})
    with pytest.raises(DataError, match=r"no column 'b'; columns are: a$"):
        list(DataFile(tmp_path / "t.parquet").rows("b"))
    write(tmp_path / "none.parquet", {"a": pyarrow.array([], pyarrow.string())})
    with pytest.raises(DataError, match="no examples"):
        list(DataFile(tmp_path / "none.parquet").rows("a"))
    twice = pyarrow.Table.from_arrays([pyarrow.array(["x"])] * 2, names=["a", "a"])
    parquet.write_table(twice, tmp_path / "twice.parquet")
    with pytest.raises(DataError, match="column 'a' appears 2 times; rename one"):
        list(DataFile(tmp_path / "twice.parquet").rows("a"))
    (tmp_path / "t.parquet").rename(tmp_path / "t.csv")
    with pytest.raises(DataError, match=r"a Parquet file; give it a name that ends in \.parquet"):
        list(DataFile(tmp_path / "t.csv").rows("a"))


@pytest.mark.parametrize("place", [4, 40, 200, 400, -60, -12, -6])
def test_a_flipped_byte_is_refused_or_read(place: int, tmp_path: Path) -> None:
    path = pairs(tmp_path / "t.parquet")
    data = bytearray(path.read_bytes())
    data[place] ^= 0x55
    path.write_bytes(data)
    try:
        rows = list(DataFile(path).rows("sentence1"))
    except DataError as error:
        assert str(error).startswith(str(path))
    else:
        assert len(rows) <= len(ROWS)


def test_without_pyarrow(tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data_folder(tmp_path)
    pairs(folder / "data" / "t.parquet")
    (folder / "r.yaml").write_text(SMALL.replace("train.tsv", "t.parquet"))
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    outcome = call("validate", "--data", "r.yaml", cwd=folder, capsys=capsys)
    assert_refused(outcome, 6, "data/t.parquet: needs pyarrow, which is not installed; pip install 'mtmeta[parquet]'")


def test_a_run_on_parquet_evaluates_and_predicts_from_it(tmp_path: Path, capsys: Capture) -> None:
    """The same weights as from TSV, the same table for --file, and the same predictions for --input."""
    folder = data_folder(tmp_path)
    rows = [(i, f"word {i}", f"other {i}", LABELS[i % 3]) for i in range(9)]
    assert HEADER.split() == ["idx", "sentence1", "sentence2", "label"]
    columns = dict(zip(("idx", "sentence1", "sentence2", "label"), map(list, zip(*rows, strict=True)), strict=True))
    write(folder / "data" / "train.parquet", columns)
    (folder / "p.yaml").write_text(SMALL.replace("train.tsv", "train.parquet").replace("dev.tsv", "{fraction: 0.34}"))
    (folder / "c.yaml").write_text(SMALL.replace("dev.tsv", "{fraction: 0.34}"))
    quiet = ("--set", "reporters=[jsonl]", "--json")
    made = [json.loads(call("run", f"{n}.yaml", "--out", n, *quiet, cwd=folder, capsys=capsys).out) for n in "pc"]
    assert made[0]["tasks"] == made[1]["tasks"]
    tables = [
        json.loads(call("eval", "p", "--json", f"--file=pairs={f}", cwd=folder, capsys=capsys).out)["tasks"]
        for f in ("data/train.parquet", "data/train.tsv")
    ]
    assert tables[0] == tables[1]
    shown = []
    for name in ("train.parquet", "train.tsv"):
        outcome = call("predict", "p", "--input", f"data/{name}", cwd=folder, capsys=capsys)
        assert outcome.code == 0, outcome.err
        shown.append([line.partition(",")[2] for line in outcome.out.splitlines()])
    assert shown[0] == shown[1]
    assert len(shown[0]) == 10
