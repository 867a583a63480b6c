"""`mtmeta new recipe`, `validate --data`, `run` and `predict` on files that can be read in two ways, and on JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.storage.addresses import part_address
from mtmeta.core.tables.data_file import Dialect
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, call

Capture = pytest.CaptureFixture[str]
RECIPE = """\
name: r
data_root: .
backbone: {name: bert, weights: tiny, max_length: 32}
tasks:
  t: {task: classification, text: text, label: label, labels: ["0", "1"], train: TRAIN, dev: DEV, batch_size: 4}
algorithm: joint
optimizer: {name: sgd, lr: 0.1}
training: {steps: 1}
"""
ROWS = [{"text": f"some words {i}", "label": str(i % 2)} for i in range(60)]


def broken(mark: str) -> str:
    texts = [f"A child jumps {i}." for i in range(200)]
    texts[40], texts[50], texts[90], texts[99] = '"Go on', 'he said"', '"Stop', 'she said"'
    return "".join(
        f"{text}{mark}{label}\n" for text, label in [("text", "label"), *zip(texts, "01" * 100, strict=True)]
    )


def recipe(folder: Path, train: str, dev: str) -> None:
    (folder / "r.yaml").write_text(RECIPE.replace("TRAIN", json.dumps(train)).replace("DEV", dev))


@pytest.mark.parametrize(("name", "mark"), [("t.tsv", "\t"), ("t.csv", ","), ("t.csv", ";")])
def test_no_row_is_lost_to_quotations(name: str, mark: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / name).write_text(broken(mark))
    outcome = call("new", "recipe", "r.yaml", "--task", f"t={name}", "--backbone", "tiny", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0, outcome.err
    both = "quoting: none gives 200 rows", "quoting: csv, multiline: true gives 181 rows; for it set dialect: {multi"
    assert all(words in outcome.out and words in (tmp_path / "r.yaml").read_text() for words in both)
    assert load_recipe(tmp_path / "r.yaml", build_registry(), environ={}).tasks["t"].dialect == Dialect(quoting="none")
    outcome = call("validate", "--data", "--json", "r.yaml", cwd=tmp_path, capsys=capsys)
    splits = json.loads(outcome.out)["recipes"][0]["data"]["tasks"]["t"]["splits"]
    assert splits["train"]["rows"] + splits["dev"]["rows"] == 200
    assert all(words in splits["train"]["readings"][0] for words in both)
    outcome = call("validate", "--data", "r.yaml", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and all(words in outcome.out for words in both)


def test_rows_that_quotes_join_are_told_by_every_command(tmp_path: Path, capsys: Capture) -> None:
    """Also where the rows come from the cache, and also where the recipe was written by hand."""
    (tmp_path / "t.csv").write_text(broken(","))
    recipe(tmp_path, "t.csv", "{fraction: 0.2}")
    joined = "21 lines with the header's 2 fields each were joined into 2 rows by quotes (the first at line 42)"
    multi = ("--set", "data.multiline=true")
    for _ in range(2):
        outcome = call("run", "r.yaml", "--fresh", *multi, cwd=tmp_path, capsys=capsys)
        assert outcome.code == 0 and (outcome.out + outcome.err).count(joined) == 1
    outcome = call("validate", "--data", "r.yaml", *multi, cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and f"note: {joined}" in outcome.out
    assert "quoting: none gives 200 rows; for it set dialect: {quoting: none}" in outcome.out
    outcome = call("validate", "--data", "--strict", "r.yaml", *multi, cwd=tmp_path, capsys=capsys)
    assert outcome.code == 3 and joined in outcome.err
    found = ("--task", "t", "--input", "t.csv", "--output", "out.csv")
    outcome = call("predict", "runs/r", *found, cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and joined in outcome.err
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 182
    # with the standard dialect nothing is joined, and nothing read
    outcome = call("validate", "--data", "r.yaml", cwd=tmp_path, capsys=capsys)
    assert_refused(
        outcome, 3, "t.csv:42: quoted field runs over 11 lines; is this TSV without quoting? set quoting: none"
    )


def test_columns_without_a_name(tmp_path: Path, capsys: Capture) -> None:
    rows = "".join(f'{"ham" if i % 3 else "spam"},"words, {i} \xa3",,,\n' for i in range(60))
    (tmp_path / "t.csv").write_text("v1,v2,,,\n" + rows + "ham,so, lost,,\n", encoding="latin-1")
    outcome = call("new", "recipe", "r.yaml", "--task", "t=t.csv", "--json", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0, outcome.err
    task = json.loads(outcome.out)["tasks"]["t"]
    assert {key: task["options"][key]["value"] for key in ("text", "label")} == {"text": "v2", "label": "v1"}
    lost = "values in columns without a name are not read, in 1 row (the first at line 62)"
    assert [note for note in task["notes"] if lost in note]
    outcome = call("validate", "--data", "r.yaml", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and f"note: {lost}" in outcome.out


@pytest.mark.parametrize("name", ["t.json", "t.jsonl", "t.txt"])
@pytest.mark.parametrize("form", ["array", "lines"])
def test_json_by_what_stands_in_it(name: str, form: str, tmp_path: Path, capsys: Capture) -> None:
    lines = "\n".join(map(json.dumps, ROWS))
    (tmp_path / name).write_text(json.dumps(ROWS, indent=1) if form == "array" else lines)
    outcome = call("new", "recipe", "r.yaml", "--task", f"t={name}", "--backbone", "tiny", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and f"train: {name}  (60 rows)" in outcome.out, outcome.err
    outcome = call("validate", "--data", "r.yaml", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and "t train: 48 rows" in outcome.out


@pytest.mark.parametrize("pairs", [False, True])
def test_the_tables_of_a_json_file(pairs: bool, tmp_path: Path, capsys: Capture) -> None:
    """CLINC's shape among them: by its name, in every command; two of a file are two files for cache and lock."""
    rows = [list(row.values()) for row in ROWS] if pairs else ROWS
    text, label = ("0", "1") if pairs else ("text", "label")
    (tmp_path / "c.json").write_text(json.dumps({"train": rows, "val": rows[::-1][:20], "oos": rows[:1]}))
    new = ("new", "recipe", "r.yaml", "--backbone", "tiny", "--columns", f"t={text},{label}", "--task")
    outcome = call(*new, "t=c.json", cwd=tmp_path, capsys=capsys)
    assert outcome.errors == [
        "error: c.json: holds the tables train (60 rows), val (20 rows), oos (1 row); name one, as in c.json#train, or "
        "several, as #train+val"
    ]
    outcome = call(*new, "t=c.json#train,c.json#val", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0, outcome.err
    task = load_recipe(tmp_path / "r.yaml", build_registry(), environ={}).tasks["t"]
    assert (task.train, task.dev, task.columns) == ("c.json#train", "c.json#val", (text,))
    run = ("run", "r.yaml", "--set", "training.steps=1", "--set", "reporters=[jsonl]", "--json")
    outcome = call(*run, cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and json.loads(outcome.out)["tasks"]["t"]["examples"] == 20, outcome.err
    lock = yaml.safe_load((tmp_path / "runs/r/recipe.lock.yaml").read_text())["data"]
    assert lock["t-train"] != lock["t-dev"]
    predict = ("predict", "runs/r", "--task", "t", "--input", "c.json#val", "--output")
    assert call(*predict, "out.csv", cwd=tmp_path, capsys=capsys).code == 0
    assert [line.split(",")[0] for line in (tmp_path / "out.csv").read_text().splitlines()[1:3]] == ["1", "2"]
    before = (tmp_path / "c.json").read_bytes()
    assert_refused(call(*predict, "c.json", cwd=tmp_path, capsys=capsys), 2, "--output: is the file that is read")
    assert (tmp_path / "c.json").read_bytes() == before
    outcome = call("validate", "--data", "r.yaml", "--set", "tasks.t.train='c.json#tain'", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 3, "no table 'tain' in it; there are: train, val, oos; did you mean 'train'?")


def test_a_table_of_a_remote_file() -> None:
    sha = "a" * 64
    for address in ("hf://datasets/o/n/a.json", f"hf://o/n@v1/a.JSONL#sha256={sha}", f"https://h/a.json#sha256={sha}"):
        assert part_address(address) == (address, None)
        assert part_address(f"{address}#train") == (address, "train")
        assert part_address(f"{address}#a b#c") == (address, "a b#c")
    assert part_address("hf://datasets/o/n/a#b.csv") == ("hf://datasets/o/n/a#b.csv", None)


def test_what_cannot_be_a_table_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    cases = {
        '{"text": ["a"], "label": [1]}': "one list or object a column, not a row; write one object a row",
        '[{"text": "a", "label": "0"}': "t.json:1: not JSON (expected ], found the end)",
        '{\n"text": "a"\n}': "one object over several lines",
    }
    for content, words in cases.items():
        (tmp_path / "t.json").write_text(content)
        recipe(tmp_path, "t.json", "{fraction: 0.2}")
        assert_refused(call("validate", "--data", "r.yaml", cwd=tmp_path, capsys=capsys), 3, words)
        outcome = call("new", "recipe", "n.yaml", "--task", "t=t.json", cwd=tmp_path, capsys=capsys)
        assert (outcome.code, len(outcome.errors)) == (3, 1) and words in outcome.err
