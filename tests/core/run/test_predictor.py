"""`mtmeta predict` and `mtmeta.load`: the figures of evaluation, in input order, from files, tables and pipes."""

from __future__ import annotations

import csv
import io
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtmeta
from mtmeta.cli import main
from mtmeta.core.run.predictor import BLOCK
from tests.support.commands import QUIET
from tests.support.quick import ALGORITHMS, LABELS, quick

PAIRS = [("A dog runs.", "A dog is running."), ("It rains.", "The sun shines."), ("One.", "One.")]


@pytest.fixture(scope="module", params=["individual", "joint"])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the tasks `kind` (two classes), `grade` (a number) and `same` (pairs, yes or no)."""
    folder = tmp_path_factory.mktemp(request.param)
    recipe = json.loads(quick(folder, request.param).read_text())
    rows = "".join(f"{i}\tword {i}\tword {i + i % 2}\t{1 - i % 2}\n" for i in range(12))
    (folder / "pairs.tsv").write_text("id\tsentence1\tsentence2\tis_duplicate\n" + rows)
    recipe["tasks"]["same"] = {"task": "para", "train": "pairs.tsv", "dev": "pairs.tsv", "batch_size": 4}
    recipe["training"]["precision"] = "fp32"  # to 1e-5 in whatever batch a text is
    path = folder / "three.yaml"
    path.write_text(json.dumps(recipe))
    mtmeta.run(path, out=folder / "run", device="cpu")
    return folder / "run"


def command(
    run: Path, *arguments: str, given: bytes = b"", cwd: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    """`mtmeta predict` in a process of its own, with `given` on its standard input."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | QUIET
    line = [sys.executable, "-m", "mtmeta", "predict", str(run), *arguments]
    return subprocess.run(line, input=given, capture_output=True, timeout=300, env=environ, cwd=cwd, check=False)


def said(run: Path, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The same in this process."""
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(run), *arguments])
    captured = capsys.readouterr()
    assert isinstance(ended.value.code, int)
    return ended.value.code, captured.out, captured.err


def table(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


# ---------------------------------------------------------------------------------------------------------- in Python


def test_predictions_are_those_of_evaluation(run: Path) -> None:
    """Of every task, the individual algorithm's encoder of its own included, and in any order of asking."""
    mtmeta.evaluate(run, split="dev", device="cpu")
    predictor = mtmeta.load(run, device="cpu")
    assert predictor.tasks == ["kind", "grade", "same"]
    for name in ("grade", "same", "kind", "grade"):
        file = "pairs.tsv" if name == "same" else "dev.tsv"
        rows = list(csv.DictReader((run.parent / file).read_text().splitlines(), delimiter="\t"))
        pairs: list[Any] = [(r["sentence1"], r["sentence2"]) for r in rows] if name == "same" else []
        found = predictor.predict(name, pairs or [r["sentence"] for r in rows])
        expected = table((run / "predictions" / f"{name}-dev.csv").read_text())
        for made, row in zip(found, expected, strict=True):
            if name == "grade":
                assert made.score == pytest.approx(float(row["prediction"]), abs=1e-5)
                assert (made.label, made.probabilities) == (None, None)
            else:
                assert made.label == row["prediction"]


def test_probabilities_are_softmax_and_sigmoid_of_the_logits(run: Path) -> None:
    predictor = mtmeta.load(run, device="cpu")
    texts = ["word 1 good", "a much longer text of other words", "x"]
    for name, given in (("kind", texts), ("same", PAIRS)):
        model, backbone = predictor._model(name)
        for text, made in zip(given, predictor.predict(name, given), strict=True):
            from mtmeta.core.data.loading import from_texts
            from mtmeta.core.data.packing import pack_sequences

            parts = [text] if isinstance(text, str) else list(text)
            data = from_texts(name, predictor.task(name), parts[:1], [[part] for part in parts[1:]], backbone)
            with torch.inference_mode():
                logits = model.eval()(name, pack_sequences(data.stores, np.array([0])))[0].double()
            wanted = (
                logits.softmax(0) if name == "kind" else torch.stack([1 - logits[0].sigmoid(), logits[0].sigmoid()])
            )
            assert made.probabilities is not None
            assert list(made.probabilities) == (list(LABELS) if name == "kind" else ["0", "1"])
            assert list(made.probabilities.values()) == pytest.approx(wanted.tolist(), abs=1e-5)
            assert made.score == max(made.probabilities.values()) == made.probabilities[str(made.label)]


def test_order_and_batch_mates_do_not_matter(run: Path) -> None:
    predictor = mtmeta.load(run, device="cpu")
    texts = [f"word {i} " * (1 + i % 9) for i in range(60)]
    alone = [predictor.predict("grade", [text])[0].score for text in texts]
    together = [made.score for made in predictor.predict("grade", texts)]
    assert together == pytest.approx(alone, abs=1e-5)
    assert len({round(score or 0, 6) for score in together}) > 20


def test_a_stream_is_asked_for_a_block_at_a_time(run: Path) -> None:
    asked = 0

    def endless() -> Any:
        nonlocal asked
        while True:
            asked += 1
            yield f"word {asked}"

    stream = mtmeta.load(run, device="cpu").stream("kind", endless())
    for _ in range(3):
        next(stream)
    assert asked == BLOCK


@pytest.mark.parametrize(
    ("task", "texts", "message"),
    [
        ("kint", ["a"], "no task 'kint'; did you mean 'kind'?"),
        ("kind", [("a", "b")], r"texts\[0\]: is .*task 'kind' takes a text"),
        ("kind", ["a", 5], r"texts\[1\]: is '5', task 'kind' takes a text"),
        ("same", ["ab"], r"texts\[0\]: .*task 'same' takes a pair of texts"),
        ("same", [("a", "b", "c")], "takes a pair of texts"),
        ("kind", ["a", "  "], r"texts\[1\]: text is empty"),
    ],
)
def test_what_is_no_text_is_refused(task: str, texts: list[Any], message: str, run: Path) -> None:
    with pytest.raises(mtmeta.UsageError, match=message):
        mtmeta.load(run, device="cpu").predict(task, texts)


def test_one_text_or_one_pair_has_one_answer(run: Path) -> None:
    predictor = mtmeta.load(run, device="cpu")
    one = predictor.predict("kind", "word 1 good")
    assert isinstance(one, mtmeta.Prediction)
    assert one == predictor.predict("kind", ["word 1 good"])[0]
    assert predictor.predict("same", PAIRS[1]) == predictor.predict("same", [PAIRS[1]])[0]  # type: ignore[comparison-overlap]
    several = predictor.predict("kind", ("word 1 good", "x"))  # two texts, however they are held
    assert isinstance(several, list) and len(several) == 2


class Table:
    """What a table of any library has: to go through it gives the names of its columns."""

    columns = ("sentence",)

    def __iter__(self) -> Any:
        return iter(self.columns)


@pytest.mark.parametrize(
    ("method", "task", "texts", "message"),
    [
        ("predict", "same", "one text", "texts: is 'one text', task 'same' takes a pair of texts"),
        ("predict", "kind", " ", "texts: text is empty"),
        ("predict", "kint", "one", "no task 'kint'"),
        ("predict", "kind", Table(), "texts: is a Table, .*; give its column of texts"),
        ("predict", "kind", {"sentence": ["a"]}, "texts: is a dict, .*; give its column of texts"),
        ("predict", "kind", b"one", "texts: is a bytes"),
        ("stream", "kind", "one text", "texts: is one text, .*; give a list of texts"),
    ],
)
def test_what_would_be_taken_apart_is_refused(method: str, task: str, texts: Any, message: str, run: Path) -> None:
    with pytest.raises(mtmeta.UsageError, match=message):
        getattr(mtmeta.load(run, device="cpu"), method)(task, texts)


# ------------------------------------------------------------------------------------------------------- files, pipes


@pytest.mark.parametrize("name", ["train.txt", "train", "train.data", "train.TXT"])
@pytest.mark.parametrize("form", ["tsv", "csv", "jsonl", "json"])
def test_a_file_that_trained_is_read_as_it_was_in_training(
    name: str, form: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A table of any suffix, form and number of columns, and the same answers as for the .tsv file."""
    rows = list(csv.DictReader((run.parent / "train.tsv").read_text().splitlines(), delimiter="\t"))
    lines = {
        "tsv": ["\t".join(rows[0]), *("\t".join(row.values()) for row in rows)],
        "csv": [",".join(rows[0]), *(",".join(row.values()) for row in rows)],
        "jsonl": [json.dumps(row) for row in rows],
        "json": [json.dumps(rows)],
    }[form]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    arguments = ("--task", "kind", "--device", "cpu", "--input")
    code, out, err = said(run, capsys, *arguments, str(tmp_path / name))
    assert (code, err.count("\n")) == (0, 1)
    assert f"{tmp_path / name}: is read as a table, for its header names 'sentence'" in err
    assert out == said(run, capsys, *arguments, str(run.parent / "train.tsv"))[1]
    assert [row["id"] for row in table(out)] == [str(i) for i in range(12)]


def test_a_file_without_a_header_that_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What has tabs is read as it was in training, and plain lines as texts, commas and all."""
    path = quick(tmp_path)
    lines = (tmp_path / "train.tsv").read_text().splitlines()[1:]
    (tmp_path / "bare.txt").write_text("\n".join(lines) + "\n")
    recipe = json.loads(path.read_text())
    names = (tmp_path / "train.tsv").read_text().splitlines()[0].split("\t")
    text, label = (str(names.index(name)) for name in ("sentence", "label"))
    kind = {**recipe["tasks"]["kind"], "text": text, "label": label, "train": "bare.txt", "dev": "bare.txt"}
    recipe["tasks"] = {"kind": {**kind, "dialect": {"header": False}}}
    path.write_text(json.dumps(recipe))
    mtmeta.run(path, out=tmp_path / "run", device="cpu")
    arguments = ("--task", "kind", "--device", "cpu", "--input")
    code, out, err = said(tmp_path / "run", capsys, *arguments, str(tmp_path / "bare.txt"))
    assert (code, len(table(out))) == (0, len(lines))
    assert "bare.txt: is read as a table, for it has tabs, as data files of the task; - with --input takes" in err
    (tmp_path / "lines.txt").write_text("a, b, and c\nd\n")
    code, out, err = said(tmp_path / "run", capsys, *arguments, str(tmp_path / "lines.txt"))
    assert (code, err, [row["id"] for row in table(out)]) == (0, "", ["1", "2"])


def test_lines_of_three_fields_are_no_pairs(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("a\tb\tc\n")
    code, _, err = said(run, capsys, "--task", "same", "--input", str(tmp_path / "t.txt"), "--device", "cpu")
    assert (code, "t.txt:1: 3 fields, expected 2 with a tab between" in err) == (3, True)


def test_lines_of_a_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "texts.txt"
    path.write_bytes(b"\xef\xbb\xbfword 1 good\r\nsecond,\ttext\nlast without an end")
    code, out, err = said(run, capsys, "--task", "kind", "--input", str(path), "--device", "cpu")
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == "id,label,score,probability_no,probability_yes"
    wanted = mtmeta.load(run, device="cpu").predict("kind", ["word 1 good", "second,\ttext", "last without an end"])
    for number, (row, made) in enumerate(zip(table(out), wanted, strict=True), 1):
        assert (row["id"], row["label"]) == (str(number), made.label)
        assert float(row["score"]) == pytest.approx(made.score, abs=1e-5)
        assert float(row["probability_no"]) + float(row["probability_yes"]) == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", "id\tsentence1\tsentence2\nx\tA dog runs.\tA dog is running.\ny\tIt rains.\tThe sun shines.\n"),
        ("t.csv", 'id,sentence1,sentence2\nx,A dog runs.,A dog is running.\ny,"It rains.",The sun shines.\n'),
        (
            "t.jsonl",
            '{"id": "x", "sentence1": "A dog runs.", "sentence2": "A dog is running."}\n'
            '{"id": "y", "sentence1": "It rains.", "sentence2": "The sun shines."}\n',
        ),
        ("t.txt", "A dog runs.\tA dog is running.\nIt rains.\tThe sun shines.\n"),
    ],
)
def test_pairs_of_tables_and_lines(
    name: str, content: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_text(content)
    out = tmp_path / "out.jsonl"
    arguments = ("--task", "same", "--input", str(tmp_path / name), "--output", str(out), "--device", "cpu")
    assert said(run, capsys, *arguments) == (0, "", "")
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    wanted = mtmeta.load(run, device="cpu").predict("same", PAIRS[:2])
    assert [row["id"] for row in rows] == (["1", "2"] if name == "t.txt" else ["x", "y"])
    for row, made in zip(rows, wanted, strict=True):
        assert list(row) == ["id", "label", "score", "probabilities"]
        assert row["label"] == made.label
        assert row["probabilities"] == pytest.approx(made.probabilities, abs=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_columns_of_other_names_from_a_pipe(run: Path) -> None:
    for given in (b"a;b;c\n1;word 1;x\n2;word 2 good;y\n", b'{"b": "word 1"}\n{"b": "word 2 good"}\n'):
        done = command(run, "--task", "grade", "--column", "b", "--format", "jsonl", "--device", "cpu", given=given)
        assert (done.returncode, done.stderr) == (0, b"")
        rows = [json.loads(line) for line in done.stdout.splitlines()]
        wanted = mtmeta.load(run, device="cpu").predict("grade", ["word 1", "word 2 good"])
        assert [row["score"] for row in rows] == pytest.approx([made.score for made in wanted], abs=1e-5)
        assert list(rows[0]) == ["id", "score"]


def test_a_pipe_is_answered_while_it_is_open(run: Path) -> None:
    """Whoever waits for the answer before writing the next line gets it."""
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | QUIET
    line = [sys.executable, "-m", "mtmeta", "predict", str(run), "--task", "kind", "--device", "cpu"]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ) as child:
        assert child.stdin and child.stdout
        for number in (1, 2, 3):
            child.stdin.write(f"word {number}\n".encode())
            child.stdin.flush()
            if number == 1:
                assert child.stdout.readline().startswith(b"id,")
            assert child.stdout.readline().startswith(f"{number},".encode())
        child.stdin.close()
        assert child.wait(60) == 0


HEAP = """
import os, sys, torch
from pathlib import Path
from mtmeta.cli import main

def freed():
    block = torch.ones(2**24)
    before = resident()
    del block
    return (before - resident()) >> 20

def resident():
    return os.sysconf("SC_PAGE_SIZE") * int(Path("/proc/self/statm").read_text().split()[1])

print(freed())
try:
    main(sys.argv[1:])
except SystemExit as ended:
    print(freed(), ended.code)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is another")
def test_predicting_keeps_the_memory_of_a_batch_for_the_next(run: Path, tmp_path: Path) -> None:
    """Of 64 MiB that are freed, all go back to the system before a file is predicted, and none after it."""
    (tmp_path / "t.txt").write_text("word 1\nword 2\n")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | QUIET
    arguments = ("predict", str(run), "--task", "kind", "--input", "t.txt", "--output", "o.csv", "--device", "cpu")
    line = [sys.executable, "-c", HEAP, *arguments]
    done = subprocess.run(line, cwd=tmp_path, env=environ, capture_output=True, text=True, timeout=120, check=True)
    before, after, code = map(int, done.stdout.split())
    assert code == 0 and before >= 60 and after < 4


def test_head_ends_it_quietly(run: Path, tmp_path: Path) -> None:
    """`cat texts | mtmeta predict | head -2` prints two lines and nothing else, and comes back at once."""
    (tmp_path / "texts").write_text("".join(f"word {i}\n" for i in range(200_000)))
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | QUIET
    script = 'set -o pipefail; cat texts | "$0" -m mtmeta predict "$1" --task kind --device cpu | head -2'
    shell = ["bash", "-c", script, sys.executable, str(run)]
    done = subprocess.run(shell, cwd=tmp_path, env=environ, capture_output=True, timeout=120, check=False)
    assert done.stderr == b""
    assert len(done.stdout.splitlines()) == 2
    assert done.returncode == 141


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", b"good\n\nthird\n", "t.txt:2: text is empty; mend it or give --skip-bad-rows"),
        ("t.txt", b"good\nb\xe4d\n", "t.txt:2: byte 0xe4 is not UTF-8; if the file is Latin-1 set encoding: latin-1"),
        ("t.tsv", b"sentence\tx\ngood\t1\nbad\n", "t.tsv:3: 1 field, expected 2; mend it or give --skip-bad-rows"),
    ],
)
def test_a_bad_row_ends_it_after_those_before_or_is_left_out_with_a_word(
    name: str, content: bytes, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    arguments = ("--task", "kind", "--input", str(tmp_path / name), "--device", "cpu")
    code, out, err = said(run, capsys, *arguments)
    assert (code, err) == (3, f"error: {tmp_path}/{message}\n")
    assert len(table(out)) == 1
    code, out, err = said(run, capsys, *arguments, "--skip-bad-rows")
    assert code == 0
    assert len(table(out)) == (2 if content.endswith(b"third\n") else 1)
    assert err.startswith(f"warning: {tmp_path}/{name}: skipped 1 bad rows (the first is line ")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "error: --task: is needed, the run has several tasks: kind, grade, same"),
        (("--task", "kint"), 2, "did you mean 'kind'?"),
        (("--task", "kind", "--format", "xml"), 2, "error: --format: must be csv or jsonl, found 'xml'"),
        (
            ("--task", "same", "--column", "a"),
            2,
            "error: --column: task takes 2 columns, in the place of 'sentence1' and 'sentence2', found 1",
        ),
        (("--task", "kind", "--input", "FOLDER/none.txt"), 3, "none.txt: no such file"),
        (("--task", "kind", "--input", "FOLDER/t.csv", "--column", "x"), 3, "no column 'x'; columns are: sentence"),
        (("--task", "kind", "--input", "FOLDER/t.csv", "--output", "FOLDER/t.csv"), 2, "--output: is the file that is"),
        (("--task", "kind", "--input", "FOLDER/t.csv", "--output", "FOLDER"), 2, "--output: is a directory"),
        (
            ("--task", "kind", "--input", "FOLDER/t.csv", "--output", "FOLDER/no/o"),
            6,
            "cannot be written (No such file",
        ),
    ],
)
def test_what_cannot_be_done_is_one_line(
    arguments: tuple[str, ...], code: int, message: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "t.csv").write_text("sentence\ngood\n")
    given = [argument.replace("FOLDER", str(tmp_path)) for argument in arguments]
    ended, out, err = said(run, capsys, *given, "--device", "cpu")
    assert (ended, out) == (code, "")
    assert message in err and err.count("\n") == 1
    assert (tmp_path / "t.csv").read_text() == "sentence\ngood\n"


def test_a_failed_prediction_leaves_the_old_file(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.txt").write_text("good\n\n")
    (tmp_path / "out.csv").write_text("old")
    arguments = ("--task", "kind", "--input", str(tmp_path / "t.txt"), "--output", str(tmp_path / "out.csv"))
    assert said(run, capsys, *arguments, "--device", "cpu")[0] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "t.txt"]
    assert (tmp_path / "out.csv").read_text() == "old"


def test_no_run_is_no_predictor(tmp_path: Path) -> None:
    with pytest.raises(mtmeta.UsageError, match="is no mtmeta run"):
        mtmeta.load(tmp_path)


def test_these_algorithms_are_known() -> None:
    assert {"individual", "joint"} <= set(ALGORITHMS)
