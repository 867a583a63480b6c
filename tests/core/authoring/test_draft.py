"""`mtmeta new recipe`: its guesses about files, that its recipes run at once, and the files it refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.api.option_types import Carve
from mtmeta.core.authoring.recipe_text import scalar
from mtmeta.core.authoring.table_profile import MAX_SAMPLE, profile_table
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.schema import recipe_schema
from mtmeta.core.recipe.shipped import MADE_BY, SCHEMA_LINE
from mtmeta.core.recipe.strict_yaml import parse
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.tables.data_file import DataFile, Dialect
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, call, command, contents
from tests.support.parameters import some_quick

Capture = pytest.CaptureFixture[str]
NEW = ("new", "recipe", "my.yaml")


def lines(row: Callable[[int], str], header: str, count: int = 60) -> str:
    return "\n".join([header, *map(row, range(count))]) + "\n"


def drafted_task(folder: Path, capsys: Capture, *arguments: str) -> dict[str, Any]:
    """The options of task `t` in the recipe that is written, which must be a valid one."""
    outcome = call(*NEW, *arguments, "--json", cwd=folder, capsys=capsys)
    assert outcome.code == 0, outcome.err
    options = json.loads(outcome.out)["tasks"]["t"]["options"]
    assert all(option["why"] for option in options.values())
    data = parse((folder / "my.yaml").read_text(encoding="utf-8"), "my.yaml").data
    assert data["tasks"]["t"] == {key: option["value"] for key, option in options.items()}
    return {**data["tasks"]["t"], "data": data.get("data"), "recipe": data}


FILES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "classes by name": (
        "t.csv",
        lines(lambda i: f"{i},a text of words {i},{'ham' if i % 2 else 'spam'}", "id,message,kind"),
        {"task": "classification", "text": "message", "label": "kind", "labels": ["ham", "spam"]},
    ),
    "unnamed index, ids, 0.0 and 1.0, pairs": (
        "t.csv",
        lines(lambda i: f"{i}\t{i * 977:x}\tis it {i}?\tor {i}\t{i % 2}.0", "\tid\tquestion1\tquestion2\tis_duplicate"),
        {"task": "pair_classification", "text": "question1", "pair": "question2", "labels": 2, "pair_mode": "cross"},
    ),
    "scores of pairs": (
        "t.tsv",
        lines(lambda i: f"one text {i}\tother text {i}\t{i % 26 / 5}", "a\tb\tscore"),
        {"task": "similarity", "low": 0.0, "high": 5.0, "pair_mode": "separate", "metrics": ["pearson", "spearman"]},
    ),
    "scores below zero": (
        "t.csv",
        lines(lambda i: f"one text {i},other text {i},{(i - 30) / 30}", "s1,s2,similarity"),
        {"task": "similarity", "low": -1.0, "high": 1.0, "activation": "none"},
    ),
    "scores of a text": (
        "t.jsonl",
        "".join(json.dumps({"body": f"some words {i}", "valence": i / 7, "meta": [i]}) + "\n" for i in range(60)),
        {"task": "regression", "text": "body", "label": "valence", "low": 0.0, "high": 10.0},
    ),
    "stars beside a title": (
        "t.csv",
        lines(lambda i: f"{i},so so {i},a long review {i},bob {i},{i % 5 + 1}", ",title,review,author,stars"),
        {"task": "classification", "text": "review", "label": "stars", "labels": ["1", "2", "3", "4", "5"]},
    ),
    "label and its text": (
        "t.jsonl",
        "".join(json.dumps({"text": f"words {i} more", "label": i % 2, "label_text": "x"}) + "\n" for i in range(60)),
        {"task": "classification", "label": "label", "labels": 2},
    ),
    "unbalanced, two classes": (
        "t.csv",
        lines(lambda i: f"some words {i},{'no' if i % 5 else 'yes'}", "text,label"),
        {"labels": ["no", "yes"], "metrics": ["matthews", "accuracy"]},
    ),
    "unbalanced, many classes": (
        "t.csv",
        lines(lambda i: f"some words {i},{'abc'[0 if i % 6 else 1 + i // 6 % 2]}", "text,label"),
        {"labels": ["a", "b", "c"], "metrics": ["macro_f1", "accuracy"]},
    ),
    "sorted by label": (
        "t.csv",
        lines(lambda i: f"some words {i},class {i // 10}", "text,label", 120),
        {"labels": sorted(f"class {i}" for i in range(12)), "metrics": ["accuracy", "macro_f1"]},
    ),
    "BOM, semicolons, quotes": (
        "t.csv",
        "\ufeff" + lines(lambda i: f'"so; ""it"" is {i}";{"yes" if i % 2 else "no"}', "text;label"),
        {"text": "text", "labels": ["no", "yes"]},
    ),
    "fields over several lines": (
        "t.csv",
        lines(lambda i: f'"line {i}\nanother",{i % 3}', "text,label"),
        {"labels": 3, "dialect": {"multiline": True}},
    ),
    "stray quotes": (
        "t.tsv",
        lines(lambda i: f"{'' if i % 7 else chr(34)}odd quote {i}\t{i % 3}", "text\tlabel"),
        {"labels": 3, "dialect": {"quoting": "none"}},
    ),
    "rows without a label": (
        "t.csv",
        lines(lambda i: f"some words {i},{i % 2 if i % 20 else ''}", "text,label"),
        {"labels": 2, "data": {"on_bad_rows": "skip"}},
    ),
    "names that YAML takes for something else": (
        "t.csv",
        lines(lambda i: f'some words {i},"{["a: b", "#c", "- d", "[e", "true", "1e5"][i % 6]}"', 'te xt,"lab, el"'),
        {"text": "te xt", "label": "lab, el", "labels": ["#c", "- d", "1e5", "[e", "a: b", "true"]},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", some_quick(FILES, 6))
def test_what_a_file_is_taken_for(case: str, tmp_path: Path, capsys: Capture) -> None:
    name, content, wanted = FILES[case]
    (tmp_path / name).write_text(content, encoding="utf-8")
    task = drafted_task(tmp_path, capsys, "--task", f"t={name}")
    assert {key: task[key] for key in wanted} == wanted
    if "data" not in wanted:
        assert task["data"] is None
    # the recipe can be used as it is, here and now
    outcome = call("validate", "--data", "my.yaml", cwd=tmp_path, capsys=capsys)
    assert (outcome.code, outcome.err) == (0, ""), outcome.err
    assert outcome.out.endswith("my.yaml: ok\n")
    assert "no row of" not in outcome.out


def test_latin_1(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_bytes(
        lines(lambda i: f"caf\xe9 {i},{'oui' if i % 2 else 'non'}", "text,label").encode("latin-1")
    )
    assert drafted_task(tmp_path, capsys, "--task", "t=t.csv")["dialect"] == {"encoding": "latin-1"}


def test_a_dev_file(tmp_path: Path, capsys: Capture) -> None:
    """Classes are those of both files; a comma may belong to a name."""
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "train.csv").write_text(lines(lambda i: f"some words {i},{'ab'[i % 2]}", "text,label"))
    (tmp_path / "a" / "dev.csv").write_text(lines(lambda i: f"more words {i},{'ac'[i % 2]}", "text,label", 8))
    task = drafted_task(tmp_path, capsys, "--task", "t=a/train.csv,a/dev.csv")
    assert (task["train"], task["dev"], task["labels"]) == ("train.csv", "dev.csv", ["a", "b", "c"])
    assert task["recipe"]["data_root"] == "a"
    outcome = call(*NEW, "--task", "t=a/train.csv,a/dev.csv", "--force", cwd=tmp_path, capsys=capsys)
    assert "labels that only the dev file has: c" in outcome.out
    (tmp_path / "a" / "dev.csv").write_text("text,lable\nx,a\n")
    outcome = call(*NEW, "--task", "t=a/train.csv,a/dev.csv", "--force", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 3
    assert outcome.errors == [
        "error: a/dev.csv: no column 'label', which the training file has; columns are: text, lable"
    ]


def test_columns_as_told(tmp_path: Path, capsys: Capture) -> None:
    text = lines(lambda i: f"first one {i},second one {i},{'ab'[i % 2]},{'xyz'[i % 3]}", "one,two,kind,shade")
    (tmp_path / "t.csv").write_text(text)
    task = drafted_task(tmp_path, capsys, "--task", "t=t.csv", "--columns", "t=two,shade")
    assert (task["task"], task["text"], task["label"], task["labels"]) == ("classification", "two", "shade", [*"xyz"])
    (tmp_path / "my.yaml").unlink()
    task = drafted_task(tmp_path, capsys, "--task", "t=t.csv", "--columns", "t=two,one,kind")
    assert (task["task"], task["text"], task["pair"]) == ("pair_classification", "two", "one")


@pytest.mark.parametrize(
    ("count", "fraction"), [(60, 0.2), (600, 0.1), (50_000, 0.04)], ids=["few rows", "some rows", "many rows"]
)
def test_how_much_is_taken_for_dev(count: int, fraction: float, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_text(lines(lambda i: f"some words {i},{i % 2}", "text,label", count))
    drafted_task(tmp_path, capsys, "--task", "t=t.csv")
    task = load_recipe(tmp_path / "my.yaml", build_registry(), environ={}).tasks["t"]
    assert task.dev == Carve(fraction=fraction, seed=1)


def test_the_whole_file_is_looked_at(tmp_path: Path) -> None:
    """Values, ranges and counts are of all rows; the sample is spread over the file."""
    count = 50_000
    text = lines(lambda i: f"some words {i},{i % 7 if i < count - 1 else 'late'},{i}", "text,label,n", count)
    (tmp_path / "t.csv").write_text(text + "short\n")
    table = profile_table(tmp_path / "t.csv")
    assert (table.rows, table.bad.total) == (count, 1)
    values = table.columns["label"].values
    assert values is not None
    assert values["late"] == 1
    assert sum(values.values()) == count
    assert (table.columns["n"].low, table.columns["n"].high, table.columns["n"].values) == (0, count - 1, None)
    assert table.columns["text"].mean_words == 3
    at = [row.line - 2 for row in table.sample]
    assert MAX_SAMPLE / 2 <= len(at) <= MAX_SAMPLE
    assert len({b - a for a, b in pairwise(at)}) == 1
    assert at[-1] > count - 100


# ------------------------------------------------------------------------------------------------------------- whole


@pytest.fixture
def two(tmp_path: Path) -> Path:
    (tmp_path / "a.csv").write_text(lines(lambda i: f"{'good' if i % 2 else 'bad'} film {i},{i % 2}", "text,label", 80))
    (tmp_path / "b.tsv").write_text(lines(lambda i: f"x {i}\ty {i}\t{i % 6}.5", "s1\ts2\tscore", 80))
    return tmp_path


@pytest.mark.parametrize("algorithm", ["default", "individual", "reptile", "fomaml"])
def test_it_runs_at_once(algorithm: str, two: Path, capsys: Capture) -> None:
    chosen = () if algorithm == "default" else ("--algorithm", algorithm)
    outcome = call(
        *NEW, "--task", "a=a.csv", "--task", "b=b.tsv", "--backbone", "tiny", *chosen, cwd=two, capsys=capsys
    )
    assert outcome.code == 0, outcome.err
    recipe = load_recipe(two / "my.yaml", build_registry(), environ={})
    assert recipe.algorithm.name == {"default": "joint"}.get(algorithm, algorithm)
    assert outcome.out.splitlines()[-1].startswith("wrote my.yaml")
    quiet = ("--set", "training.steps=2", "--set", "reporters=[jsonl]", "--json")
    outcome = call("run", "my.yaml", *quiet, cwd=two, capsys=capsys)
    assert (outcome.code, outcome.err) == (0, "")
    tasks = json.loads(outcome.out)["tasks"]
    assert [(name, task["metric"], task["examples"]) for name, task in tasks.items()] == [
        ("a", "accuracy", 16),
        ("b", "pearson", 15),  # three of each fifth
    ]


def test_one_task_is_trained_alone_on_the_embedded_encoder(two: Path, capsys: Capture) -> None:
    assert call(*NEW, "--task", "a=a.csv", cwd=two, capsys=capsys).code == 0
    text = (two / "my.yaml").read_text()
    assert "algorithm: individual" in text
    assert "weights: embedded" in text
    quiet = ("--set", "training.steps=1", "--set", "reporters=[jsonl]")
    assert call("run", "my.yaml", *quiet, cwd=two, capsys=capsys).code == 0


def test_every_guess_stands_beside_its_line_and_is_printed(two: Path, capsys: Capture) -> None:
    outcome = call(*NEW, "--task", "a=a.csv", "--task", "b=b.tsv", cwd=two, capsys=capsys)
    text = (two / "my.yaml").read_text()
    for reason in ("by its name", "of every class", "two texts to a number", "99% of the sequences have at most"):
        assert reason in text
        assert reason in outcome.out
    assert outcome.out.isascii()
    assert "looking at" in outcome.err
    assert not [line for line in text.splitlines() if ":" in line and "#" not in line and line[0] not in " nstd"]


def test_a_test_file_and_a_column_of_ids(tmp_path: Path, capsys: Capture) -> None:
    """Nothing is learned of the test file; predictions name examples by the column."""
    for split, labels, count in (("train", "ab", 60), ("dev", "ab", 12), ("test", "az", 8)):
        written = [f"{split}{at},some words {at},{labels[at % 2]}" for at in range(count)]
        rows = lines(written.__getitem__, "uid,text,label", count)
        (tmp_path / f"{split}.csv").write_text(rows)
    files = ",".join(str(tmp_path / f"{split}.csv") for split in ("train", "dev", "test"))
    task = drafted_task(tmp_path, capsys, "--task", f"t={files}", "--id", "t=uid")
    assert (task["train"], task["dev"], task["test"]) == ("train.csv", "dev.csv", "test.csv")
    assert (task["dialect"], task["labels"]) == ({"id": "uid"}, ["a", "b"])
    assert task["recipe"]["data_root"] == "."  # here, though the files were named by whole paths
    recipe = load_recipe(tmp_path / "my.yaml", build_registry())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        read = recipe.tasks["t"].read(DataFile(tmp_path / "dev.csv", recipe.tasks["t"].dialect or Dialect()))
        assert [example.id for example in read][:2] == ["dev0", "dev1"]
    alone = drafted_task(tmp_path, capsys, "--task", "t=train.csv,,test.csv", "--force")
    assert (alone["dev"], alone["test"]) == ({"fraction": 0.2}, "test.csv")
    outcome = call(*NEW, "--task", "t=train.csv,dev.csv", "--id", "t=key", "--force", cwd=tmp_path, capsys=capsys)
    refusal = "error: train.csv: no column 'key', which --id names; columns are: uid, text, label"
    assert (outcome.code, outcome.errors) == (3, [refusal])
    for given in ("t=a,b,c,d", "t=a,", "t=,b"):
        outcome = call(*NEW, "--task", given, "--force", cwd=tmp_path, capsys=capsys)
        assert (outcome.code, "expected NAME=TRAIN, NAME=TRAIN,DEV or" in outcome.err) == (2, True)


@pytest.mark.parametrize("form", ["given", "lines", "json"])
def test_numbers_of_labels_get_names(form: str, tmp_path: Path, capsys: Capture) -> None:
    names = {"0": "not at all", "7": "yes", "10": "it's complicated: a, b"}
    rows = lines(lambda at: f"some words {at},{list(names)[at % 3]}", "text,label", 60)
    (tmp_path / "a.csv").write_text(rows)
    (tmp_path / "names.txt").write_text("".join(f"{label}\t{name}\n" for label, name in names.items()))
    (tmp_path / "names.json").write_text(json.dumps(names))
    if form == "given":
        names["10"] = "both: one"
    given = {"given": "0:not at all,7:yes,10:both: one", "lines": "names.txt", "json": "names.json"}[form]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        task = drafted_task(tmp_path, capsys, "--task", "t=a.csv", "--labels", f"t={given}")
    assert {str(label): name for label, name in task["labels"].items()} == names
    recipe = load_recipe(tmp_path / "my.yaml", build_registry())
    assert recipe.tasks["t"].objective.classes == tuple(names.values())
    for wrong, words in (
        ("t=0:a,7:b", "names no label '10'"),
        ("u=0:a,7:b,10:c", "names no task: 'u'"),
        ("t=0:a,0:b", "every label once"),
        ("t=nowhere.txt", "no such file"),
        ("t=", "NAME=FILE"),
    ):
        outcome = call(*NEW, "--task", "t=a.csv", "--labels", wrong, "--force", cwd=tmp_path, capsys=capsys)
        assert (outcome.code, len(outcome.errors)) == (2, 1) and words in outcome.errors[0], outcome.err


def test_files_are_found_where_a_run_finds_them(two: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    (two / "elsewhere").mkdir()
    monkeypatch.setenv("MTMETA_DATA", str(two))
    here = two / "elsewhere"
    (here / "own.csv").write_text((two / "a.csv").read_text())
    outcome = call(*NEW, "--task", "a=a.csv", "--task", "own=own.csv", cwd=here, capsys=capsys)
    assert outcome.code == 0, outcome.err
    recipe = load_recipe(here / "my.yaml", build_registry())
    assert (recipe.tasks["a"].train, recipe.tasks["own"].train) == ("a.csv", str(here / "own.csv"))
    assert call("validate", "--data", "my.yaml", cwd=here, capsys=capsys).code == 0
    monkeypatch.delenv("MTMETA_DATA")
    assert call("validate", "--data", "my.yaml", cwd=here, capsys=capsys).code == 0
    outcome = call("new", "recipe", "abs.yaml", "--task", f"a={two / 'a.csv'}", cwd=here, capsys=capsys)
    assert load_recipe(here / "abs.yaml", build_registry()).data_root == str(two)


def test_it_is_quick_and_light(two: Path) -> None:
    """No PyTorch: guessing takes a tokenizer."""
    (two / "torch.py").write_text("raise SystemExit('torch was loaded')\n")
    outcome = command(*NEW, "--task", "a=a.csv", cwd=two, env={"PYTHONPATH": str(two)})
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize(
    "value", ["a", "true", "No", "null", "1", "1e5", "-", "#x", "a: b", "é\u202e", "", "/a/b.c", "a,b", "'\""]
)
def test_a_value_is_read_back_as_it_was(value: str) -> None:
    assert parse(f"k: {scalar(value)}\nl: [{scalar(value)}]\n", "x").data == {"k": value, "l": [value]}


# --------------------------------------------------------------------------------------------- files without a header


def test_a_first_line_that_is_data_is_no_header(tmp_path: Path, capsys: Capture) -> None:
    """A label that comes again, and a text that is long: it is a row, and the recipe says so."""
    for first in ("another text,a", "one that has far more words than any name,c"):
        (tmp_path / "t.csv").write_text(lines(lambda i: f"some text {i},{'abc'[i % 3]}", first))
        (tmp_path / "dev.csv").write_text("a dev text,b\nand more,c\n")
        outcome = call(*NEW, "--force", "--task", "t=t.csv,dev.csv", cwd=tmp_path, capsys=capsys)
        assert outcome.code == 0, outcome.err
        assert "looks like data, not like the name of a column: it is read without a header" in outcome.err
        recipe = load_recipe(tmp_path / "my.yaml", build_registry(), environ={})
        task: Any = recipe.tasks["t"]
        assert (task.text, task.label, task.labels, task.dialect.header) == ("0", "1", ("a", "b", "c"), False)
        assert "(61 rows)" in outcome.out and "(2 rows)" in outcome.out
    outcome = call("validate", "--data", "my.yaml", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and "t train: 61 rows" in outcome.out


def test_columns_of_a_file_without_a_header_may_be_named(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_text(lines(lambda i: f"some text {i},{'ab'[i % 2]},{'xyz'[i % 3]}", "more text,b,x"))
    outcome = call(*NEW, "--task", "t=t.csv", "--columns", "t=0,1", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and 'label: "1"  (as given)' in outcome.out


def test_a_dev_file_alone_without_a_header_is_refused(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_text(lines(lambda i: f"some text {i},{'ab'[i % 2]}", "text,label"))
    (tmp_path / "dev.csv").write_text("text a,b\ntext b,b\ntext c,b\n")
    outcome = call(*NEW, "--task", "t=t.csv,dev.csv", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 3
    words = "dev.csv:1: 'b' looks like data, not like the name of a column; the training file has a header, write both"
    assert words in outcome.err


# ------------------------------------------------------------------------------------------------------ a word a line


def conll(texts: int, tag: str = "B-LOC") -> str:
    return "".join(f"word{i} NN O\nRome NNP {tag}\n\n" for i in range(texts))


def test_words_with_tags_are_a_tagging_task(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "train.conll").write_text("-DOCSTART- -X- O\n\n" + conll(30) + conll(10, "I-PER"))
    (tmp_path / "dev.txt").write_text(conll(5, "B-ORG"))
    outcome = call(*NEW, "--task", "t=train.conll,dev.txt", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0, outcome.err
    task: Any = load_recipe(tmp_path / "my.yaml", build_registry(), environ={}).tasks["t"]
    assert (task.name, task.labels, task.batch_size) == ("tagging", ("LOC", "ORG", "PER"), 4)
    assert "train: train.conll  (40 texts)" in outcome.out and "O 50.0%, LOC 37.5%, PER 12.5%" in outcome.out
    assert call("validate", "--data", "my.yaml", cwd=tmp_path, capsys=capsys).code == 0

    outcome = call(*NEW, "--force", "--task", "t=train.conll", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and "dev: {fraction: 0.2}  (no dev file was given: 20% of the texts)" in outcome.out
    outcome = call(*NEW, "--force", "--task", "t=train.conll", "--id", "t=0", cwd=tmp_path, capsys=capsys)
    assert "error: --id: is for tables, and the files of t hold a word a line" in outcome.err
    (tmp_path / "dev.txt").write_text("a B-X\nb Q\n")
    outcome = call(*NEW, "--force", "--task", "t=train.conll,dev.txt", cwd=tmp_path, capsys=capsys)
    assert "dev.txt: tag 'Q' is not O, B-TYPE or I-TYPE" in outcome.err
    (tmp_path / "train.conll").write_text(conll(9))
    outcome = call(*NEW, "--force", "--task", "t=train.conll", cwd=tmp_path, capsys=capsys)
    assert "train.conll: 9 texts are too few to learn from" in outcome.err


# ------------------------------------------------------------------------------------------ texts that belong together


def test_columns_called_so_are_a_ranking_task(tmp_path: Path, capsys: Capture) -> None:
    row = "{0},where is it {0},it is here {0},it rains {0},it snows {0},x".format
    (tmp_path / "t.csv").write_text(lines(row, "id,Query,positive,negative_1,hard_negative,source", 90))
    (tmp_path / "dev.csv").write_text(lines(row, "id,Query,positive,negative_1,hard_negative,source", 9))
    found = drafted_task(tmp_path, capsys, "--task", "t=t.csv,dev.csv", "--id", "t=id")
    assert {key: found[key] for key in ("task", "anchor", "positive", "negatives", "batch_size", "dialect")} == {
        "task": "ranking",
        "anchor": "Query",
        "positive": "positive",
        "negatives": ["negative_1", "hard_negative"],
        "batch_size": 8,
        "dialect": {"id": "id"},
    }
    outcome = call(*NEW, "--force", "--task", "t=t.csv", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and "no dev file was given: 20% of the rows)" in outcome.out
    assert "columns not used: id, source" in outcome.out
    assert call("validate", "--data", "my.yaml", cwd=tmp_path, capsys=capsys).code == 0

    outcome = call(*NEW, "--force", "--task", "t=t.csv", "--labels", "t=0:no,1:yes", cwd=tmp_path, capsys=capsys)
    assert "error: --labels: names labels, and the texts of t that belong together have none" in outcome.err
    (tmp_path / "dev.csv").write_text(lines(lambda i: f"where {i},here {i}", "Query,positive"))
    outcome = call(*NEW, "--force", "--task", "t=t.csv,dev.csv", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 3 and "no column 'negative_1'" in outcome.err
    (tmp_path / "t.csv").write_text(lines(lambda i: f"where is it {i},it is here {i},{i % 2}", "anchor,positive,label"))
    assert drafted_task(tmp_path, capsys, "--force", "--task", "t=t.csv")["task"] == "pair_classification"
    (tmp_path / "t.csv").write_text(lines(lambda i: f"where is it {i},it is here {i}", "question,answer"))
    outcome = call(*NEW, "--force", "--task", "t=t.csv", cwd=tmp_path, capsys=capsys)
    assert "texts that belong together need none, which is written by hand, as task: ranking" in outcome.err


# ---------------------------------------------------------------------------------------------------------- refusals

HUGE = "w " * 100_000
BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "t.csv: no examples"),
    "header": (b"text,label\n", "t.csv: no examples"),
    "one column": (b"text\na b c\nd e f\n", "t.csv: one column, text, but a task needs a text and a label"),
    "one class": (lines(lambda i: f"text {i},pos", "text,label").encode(), "all 60 labels in column 'label' are 'pos'"),
    "one number": (lines(lambda i: f"text {i},1.5", "text,score").encode(), "all labels in column 'score' are 1.5"),
    "no label": (
        lines(lambda i: f"some text {i},{i * 7919 % 65521:05x}", "text,uid").encode(),
        "no column looks like a label (beside the text: uid)",
    ),
    "no text": (lines(lambda i: f"{i},{i % 2}", "n,label").encode(), "no column looks like text: n (1.0 words a row)"),
    "no classes": (lines(lambda i: f"text {i},c{i}", "text,label").encode(), "60 different labels in 60 rows of"),
    "no header, twice a value": (b"0\ta b c\t0\n1\td e f\t1\n", "column '0' appears 2 times; rename one, or put"),
    "binary": (bytes(range(128, 256)) * 50, "t.csv:1: byte 0x80 is not UTF-8"),
    "wide": (f"text,label\n{HUGE},1\n{HUGE},0\n".encode(), "t.csv:2: field 'text' has 200000 characters (limit 131072"),
    "UTF-16": ("text,label\na b,1\n".encode("utf-16"), "t.csv: UTF-16 or UTF-32 text; save the file as UTF-8"),
    "few rows": (b"text,label\na b,x\nc d,y\ne f,x\ng h,y\n", "4 usable rows are too few to take a dev split out of"),
    "many columns": (",".join(f"c{i}" for i in range(1001)).encode() + b"\n" + b"," * 1000, "more than 1000 columns"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_files_that_are_no_task(case: str, tmp_path: Path, capsys: Capture) -> None:
    content, words = BAD[case]
    (tmp_path / "t.csv").write_bytes(content)
    outcome = call(*NEW, "--task", "t=t.csv", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 3, outcome.err
    (error,) = outcome.errors
    assert words in error
    assert (outcome.out, sorted(contents(tmp_path))) == ("", ["t.csv"])


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("--task", "t=gone.csv"), 3, "gone.csv: no such file; did you mean 'good.csv'?"),
        (("--task", "t=."), 3, "is a directory, expected CSV"),
        (("--task", "good.csv"), 2, "--task 'good.csv': expected NAME=TRAIN, NAME=TRAIN,DEV or NAME=TRAIN,DEV,TEST"),
        (("--task", "t="), 2, "--task 't=': expected NAME=TRAIN"),
        (("--task", "T=good.csv"), 2, "--task: task name 'T' is not allowed"),
        (("--task", "t=good.csv", "--task", "t=good.csv"), 2, "--task: names 't' twice"),
        ((), 2, "missing option '--task'"),
        (("--task", "t=good.csv", "--algorithm", "reptil"), 2, "unknown algorithm 'reptil'; did you mean 'reptile'?"),
        (("--task", "t=good.csv", "--backbone", "./no"), 4, "./no: no such folder"),
        (("--task", "t=good.csv", "--columns", "t=text"), 2, "expected NAME=TEXT,LABEL or NAME=TEXT,PAIR,LABEL"),
        (("--task", "t=good.csv", "--columns", "u=text,label"), 2, "--columns: names no task: 'u'"),
        (("--task", "t=good.csv", "--columns", "t=text,lable"), 2, "no column 'lable'; columns are: text, label; did"),
        (("--task", "t=good.csv", "--data-root", "no"), 0, ""),
    ],
)  # fmt: skip
def test_wrong_options(arguments: tuple[str, ...], code: int, words: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "good.csv").write_text(lines(lambda i: f"some words {i},{i % 2}", "text,label"))
    outcome = call(*NEW, *arguments, cwd=tmp_path, capsys=capsys)
    assert outcome.code == code, outcome.err
    assert len(outcome.errors) == (1 if code else 0)
    assert words in outcome.err
    assert (tmp_path / "my.yaml").exists() == (code == 0)


def test_nothing_is_overwritten_unless_asked(two: Path, capsys: Capture) -> None:
    (two / "my.yaml").write_text("mine")
    (two / "link.yaml").symlink_to("nowhere")
    for name in ("my.yaml", "link.yaml"):
        outcome = call("new", "recipe", name, "--task", "a=a.csv", cwd=two, capsys=capsys)
        assert_refused(outcome, 2, f"{name}: is there already; --force replaces it, or name another file")
    assert (two / "my.yaml").read_text() == "mine"
    assert_refused(call("new", "recipe", ".", "--task", "a=a.csv", cwd=two, capsys=capsys), 2, "is a directory; name a")
    assert call(*NEW, "--task", "a=a.csv", "--force", cwd=two, capsys=capsys).code == 0
    assert (two / "my.yaml").read_text() != "mine"


def test_every_bad_file_is_told_of(two: Path, capsys: Capture) -> None:
    (two / "bad.csv").write_text("text\nx y z\n")
    outcome = call(*NEW, "--task", "a=a.csv", "--task", "b=bad.csv", "--task", "c=gone.csv", cwd=two, capsys=capsys)
    assert outcome.code == 3
    assert len(outcome.errors) == 2
    assert not (two / "my.yaml").exists()


def test_a_dev_file_with_labels_of_another_kind(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_text(lines(lambda i: f"some words {i},{i % 2}", "text,label"))
    (tmp_path / "d.csv").write_text(lines(lambda i: f"other words {i},{'ab'[i % 2]}", "text,label"))
    outcome = call(*NEW, "--task", "t=t.csv,d.csv", cwd=tmp_path, capsys=capsys)
    (error,) = outcome.errors
    assert outcome.code == 3
    assert error.endswith("d.csv: column 'label' holds text, but numbers in the training file; write labels alike")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_place_that_cannot_be_written(two: Path, capsys: Capture) -> None:
    (two / "closed").mkdir(mode=0o500)
    outcome = call("new", "recipe", "closed/my.yaml", "--task", "a=a.csv", cwd=two, capsys=capsys)
    assert outcome.code == 6


def test_all_twelve_tasks(real_data: Path, tmp_path: Path, capsys: Capture) -> None:
    """The real files: the kind, the label and the metric that their own papers have."""
    if not (real_data / "more").is_dir():
        pytest.skip("MTMETA_DATA has no folder more/")
    wanted = {
        "sst": ("classification", 5, "accuracy"),
        "para": ("pair_classification", 2, "accuracy"),
        "sts": ("similarity", None, "pearson"),
        "mnli": ("pair_classification", ["contradiction", "entailment", "neutral"], "accuracy"),
        "qnli": ("pair_classification", ["entailment", "not_entailment"], "accuracy"),
        "rte": ("pair_classification", ["entailment", "not_entailment"], "accuracy"),
        "mrpc": ("pair_classification", 2, "matthews"),
        "cola": ("classification", 2, "matthews"),
        "trec": ("classification", 6, "macro_f1"),
        "subj": ("classification", 2, "accuracy"),
        "cr": ("classification", 2, "matthews"),
        "banking77": ("classification", 77, "macro_f1"),
    }
    tasks = []
    for name in wanted:
        where = "" if name in ("sst", "para", "sts") else "more/"
        tasks += ["--task", f"{name}={where}{name}-train.csv,{where}{name}-dev.csv"]
    root = ("--data-root", str(real_data))
    outcome = call(*NEW, *tasks, *root, "--json", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0, outcome.err
    tasks = json.loads(outcome.out)["tasks"]
    for name, (task, labels, metric) in wanted.items():
        options = {key: option["value"] for key, option in tasks[name]["options"].items()}
        if name == "banking77":
            options["labels"] = len(options["labels"])
        assert (options["task"], options.get("labels"), options["metrics"][0]) == (task, labels, metric), name
    assert call("validate", "my.yaml", cwd=tmp_path, capsys=capsys).code == 0


# ------------------------------------------------------------------------------------------------------------- schema


def schema_of(recipe: Path) -> Path | None:
    """Where the schema lies that a recipe's first line names."""
    first = recipe.read_text(encoding="utf-8").splitlines()[0]
    return recipe.parent / first.removeprefix(SCHEMA_LINE) if first.startswith(SCHEMA_LINE) else None


def test_the_schema_lies_beside_it_and_takes_it(two: Path, capsys: Capture) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    (two / "my.yaml").unlink(missing_ok=True)
    assert call("new", "recipe", "to here/my.yaml", "--task", "t=a.csv", cwd=two, capsys=capsys).code == 0
    schema = schema_of(two / "to here" / "my.yaml")
    assert schema == two / "to here" / ".mtmeta" / "recipe.schema.json"
    rules = json.loads(schema.read_text(encoding="utf-8"))
    assert rules == recipe_schema(build_registry())
    text = (two / "to here" / "my.yaml").read_text(encoding="utf-8")
    assert "mtmeta validate --data 'to here/my.yaml'" in text  # as a shell takes it
    jsonschema.Draft202012Validator(rules).validate(parse(text, "my.yaml").data)


@pytest.mark.parametrize(("label", "words"), [("class", "of every class"), ("number", "low and high alike")])
def test_what_a_dev_split_is_taken_by_is_said_of_classes_and_of_numbers(
    label: str, words: str, tmp_path: Path, capsys: Capture
) -> None:
    rows = [i % 2 if label == "class" else i / 7 for i in range(60)]
    (tmp_path / "t.csv").write_text(lines(lambda i: f"some words {i},{rows[i]}", "text,score"))
    outcome = call(*NEW, "--task", "t=t.csv", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and f"no dev file was given: 20% of the rows, {words})" in outcome.out


def test_what_the_user_has_of_a_schema_stays(two: Path, capsys: Capture) -> None:
    own = f"{SCHEMA_LINE}https://example.org/mine.json\n"
    (two / "my.yaml").write_text(own + "name: old\n")
    assert call(*NEW, "--task", "t=a.csv", "--force", cwd=two, capsys=capsys).code == 0
    text = (two / "my.yaml").read_text(encoding="utf-8")
    assert text.startswith(own + "# Written by") and text.count(SCHEMA_LINE) == 1
    assert not (two / ".mtmeta").exists()

    (two / ".mtmeta").mkdir()
    there = two / ".mtmeta" / "recipe.schema.json"
    for before, kept in (('{"mine": 1}', True), (f'{{"description": "{MADE_BY}, an older one"}}', False)):
        there.write_text(before)
        (two / "my.yaml").unlink()
        assert call(*NEW, "--task", "t=a.csv", cwd=two, capsys=capsys).code == 0
        assert (there.read_text() == before) is kept

    there.unlink()
    there.parent.rmdir()
    there.parent.write_text("a file of the user's")
    (two / "my.yaml").unlink()
    outcome = call(*NEW, "--task", "t=a.csv", cwd=two, capsys=capsys)
    assert outcome.code == 0 and "no schema for editors beside it" in outcome.err
    assert schema_of(two / "my.yaml") is None and there.parent.read_text() == "a file of the user's"
    load_recipe(two / "my.yaml", build_registry())
