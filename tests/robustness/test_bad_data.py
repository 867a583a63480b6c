"""Every way we know for a data file to be wrong: one line, the file and its line, the user's token, exit code 3.

The numbers are the rows of our list of bad inputs. Every case runs in this process; the first of each row also in
another one, several recipes to a process, since `validate --data` reports on all it is given.
"""

from __future__ import annotations

import gzip
import io
import json
import zipfile
from pathlib import Path

import pytest

from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import HEADER, ROWS, SMALL, assert_refused, call, command, contents, data_folder

Capture = pytest.CaptureFixture[str]


def zipped(name: str) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(name, "x")
    return made.getvalue()


def jsonl(line: str) -> bytes:
    good = [{"sentence1": f"a {i}", "sentence2": "b", "label": "neutral" if i % 2 else "entailment"} for i in range(6)]
    return ("".join(json.dumps(row) + "\n" for row in good) + line + "\n").encode()


def bad(line: str) -> bytes:
    return (HEADER + ROWS + line + "\n").encode("utf-8", "surrogatepass")


STS = (
    SMALL.replace("task: pair_classification", "task: similarity")
    .replace("label: label", "")
    .replace("    labels: [contradiction, entailment, neutral]\n", "")
)


def similarity(label: str) -> bytes:
    rows = "".join(f"{i}\ta {i}\tb {i}\t{i % 5}\n" for i in range(6))
    return f"{HEADER}{rows}9\ta\tb\t{label}\n".encode()


ALIKE = HEADER + ROWS.replace("contradiction", "neutral").replace("entailment", "neutral")
QUOTE = 'x\t"a\tb\tneutral\n' + ROWS
DATA: list[tuple[int, str, bytes | None, tuple[str, ...]]] = [
    (24, "tarin.tsv", None, ("data/tarin.tsv: no such file; did you mean 'train.tsv'?",)),
    (24, "nowhere/x.tsv", None, ("data/nowhere/x.tsv: no such file; check the path",)),
    (24, "../data", None, ("data: is a directory, expected CSV, TSV, JSONL or Parquet",)),
    (25, "x.tsv", b"", ("data/x.tsv: no examples",)),
    (25, "x.tsv", HEADER.encode(), ("data/x.tsv: no examples",)),
    (26, "x.tsv", (HEADER.replace("sentence2", "sentnce2") + ROWS).encode(), ("no column 'sentence2'; columns are",)),
    (27, "x.tsv", bad("a\tb\tc\nd\te"), ("data/x.tsv:11: 3 fields, expected 4 (2 such lines: 11, 12)",)),
    (28, "x.tsv", bad(QUOTE.rstrip("\n")), ("data/x.tsv:11: quoted field runs over 10 lines", "set quoting: none")),
    (29, "x.tsv", bad(f"x\t{'y' * 131073}\tb\tneutral"), ("data/x.tsv:11: field 'sentence1' has 131073 characters",)),
    (30, "x.tsv", bad("").rstrip() + b"\n9\tcaf\xe9\tb\tneutral\n", ("x.tsv:11: byte 0xe9 is not UTF-8", "latin-1")),
    (30, "x.tsv", bad("9\tca\0fe\tb\tneutral"), ("data/x.tsv:11: NUL byte",)),
    (30, "x.tsv", (HEADER + ROWS).encode("utf-16"), ("data/x.tsv: UTF-16 or UTF-32 text; save the file as UTF-8",)),
    (31, "x.tsv", bad("9\ta\tb\tentailmnt"), ("x.tsv:11: label 'entailmnt' is not one of", "mean 'entailment'?")),
    (31, "x.tsv", bad("9\ta\tb\t\x1b[31m"), ("label '\\x1b[31m' is not one of",)),
    (32, "sts.tsv", similarity("nan"), ("data/sts.tsv:8: label 'nan' is not a finite number",)),
    (32, "sts.tsv", similarity("inf"), ("label 'inf' is not a finite number",)),
    (32, "sts.tsv", similarity(""), ("data/sts.tsv:8: label",)),
    (32, "sts.tsv", similarity("6"), ("data/sts.tsv:8: label '6' is outside 0 to 5",)),
    (33, "x.tsv", ALIKE.encode(), ("data/x.tsv: all 9 labels are 'neutral'",)),
    (35, "x.tsv", gzip.compress(HEADER.encode()), ("data/x.tsv: a gzip file, expected CSV",)),
    (35, "x.zip", zipped("../../.bashrc"), ("data/x.zip: a zip archive",)),
    (36, "x.jsonl", jsonl('{"label": "neutral", "label": "x"}'), ("data/x.jsonl:7: duplicate key 'label'",)),
    (36, "x.jsonl", jsonl('{"sentence1": NaN}'), ("data/x.jsonl:7: NaN is not JSON; write a finite number",)),
    (36, "x.jsonl", jsonl("[" * 5000), ("data/x.jsonl:7: nested deeper than 32 levels",)),
    (36, "x.jsonl", jsonl('{"sentence1": "\\ud800", "sentence2": "b", "label": "neutral"}'), ("x.jsonl:7: ", "U+D800")),
]  # fmt: skip


def write_case(folder: Path, file: str, content: bytes | None, recipe: str = "r.yaml") -> None:
    if content is not None:
        (folder / "data" / file).write_bytes(content)
    (folder / recipe).write_text((STS if "sts" in file else SMALL).replace("train.tsv", file))
    if "sts" in file:
        text = (folder / recipe).read_text()
        (folder / recipe).write_text(text.replace("dev.tsv", "train-sts.tsv"))
        (folder / "data" / "train-sts.tsv").write_bytes(similarity("1"))


@pytest.mark.parametrize(
    ("row", "file", "content", "words"), DATA, ids=[f"{row}-{words[0]}" for row, _, _, words in DATA]
)
def test_data(
    row: int, file: str, content: bytes | None, words: tuple[str, ...], tmp_path: Path, capsys: Capture
) -> None:
    folder = data_folder(tmp_path)
    write_case(folder, file, content)
    before = contents(folder)
    assert_refused(call("validate", "--data", "r.yaml", cwd=folder, capsys=capsys), 3, *words)
    assert contents(folder) == before


def test_data_in_a_process_of_its_own(tmp_path: Path) -> None:
    """The first case of each row, one recipe each."""
    firsts = {row: (file, content, words) for row, file, content, words in reversed(DATA)}
    assert sorted(firsts) == [*range(24, 34), 35, 36]
    rows = sorted(firsts)
    for row in rows:
        file, content, _ = firsts[row]
        folder = tmp_path / str(row)
        folder.mkdir()
        data_folder(folder / "in")
        write_case(folder / "in", file, content)
        text = (folder / "in" / "r.yaml").read_text()
        (tmp_path / f"{row}.yaml").write_text(text.replace("data_root: data", f"data_root: {row}/in/data"))
    for part in (rows[:6], rows[6:]):
        outcome = command("validate", "--data", *(f"{row}.yaml" for row in part), cwd=tmp_path)
        assert outcome.code == 3, outcome.err
        assert outcome.err.count("\n") == len(outcome.errors) == len(part), outcome.err
        for row, line in zip(part, outcome.errors, strict=True):
            assert all(word in line for word in firsts[row][2]), line


def test_every_file_of_a_recipe_is_looked_at(tmp_path: Path, capsys: Capture) -> None:
    folder = data_folder(tmp_path)
    (folder / "data" / "train.tsv").write_text(HEADER)
    (folder / "data" / "dev.tsv").write_text("idx\n1\n")
    outcome = call("validate", "--data", "r.yaml", cwd=folder, capsys=capsys)
    assert outcome.code == 3
    assert len(outcome.errors) == 2
    assert "train.tsv: no examples" in outcome.errors[0]
    assert "dev.tsv: no column 'sentence1'" in outcome.errors[1]


def test_no_data_root(tmp_path: Path, capsys: Capture) -> None:
    folder = data_folder(tmp_path)
    outcome = call("validate", "--data", "r.yaml", "--data-root", "nowhere", cwd=folder, capsys=capsys)
    assert_refused(outcome, 3, "nowhere: no such folder", "--data-root")


def test_overlap_is_a_warning_and_with_strict_an_error(tmp_path: Path, capsys: Capture) -> None:
    """Row 34."""
    folder = data_folder(tmp_path)
    (folder / "data" / "dev.tsv").write_text(HEADER + ROWS)
    outcome = call("validate", "--data", "r.yaml", cwd=folder, capsys=capsys)
    assert (outcome.code, outcome.err) == (0, "")
    assert "pairs: 9 of 9 dev examples also in train" in outcome.out
    outcome = command("validate", "--data", "r.yaml", "--strict", cwd=folder)
    assert_refused(outcome, 3, "data/dev.tsv: pairs: 9 of 9 dev examples also in train")
