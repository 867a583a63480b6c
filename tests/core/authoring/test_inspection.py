"""`mtmeta validate --data`: every figure by hand on small files, and those we know of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mtmeta.core.api.contracts import Example
from mtmeta.core.api.objectives import Classification, Objective, Regression
from mtmeta.core.data.examples import _Parser
from mtmeta.core.tables.data_file import DataFile
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.sts import Sts
from tests.support.commands import assert_refused, call, command

Capture = pytest.CaptureFixture[str]
RECIPE = """\
name: r
data_root: .
backbone: {name: bert, weights: tiny, max_length: 12}
tasks:
  p: {task: pair_classification, labels: [no, yes, maybe], train: train.tsv, dev: dev.tsv, batch_size: 2}
  s: {task: regression, low: 0, high: 5, train: s.csv, dev: {fraction: 0.25}}
data: {on_bad_rows: skip}
algorithm: joint
optimizer: {name: sgd, lr: 0.1}
training: {steps: 1}
"""
TRAIN = """\
sentence1\tsentence2\tlabel
the film\tthe end\tyes
a film\tan end\tno
The film!\tthe  end\tno
the end\tthe film\tyes
one two three four five six seven eight nine ten\tx\tno
only\tperhaps\t
only\tone
\tempty\tyes
known\tlabel\tperhaps
"""
DEV = """\
sentence1\tsentence2\tlabel
The end.\tthe film\tyes
an end\tnew\tyes
quite\tnew\tno
more\twords\tyes
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "r.yaml").write_text(RECIPE)
    (tmp_path / "train.tsv").write_text(TRAIN)
    (tmp_path / "dev.tsv").write_text(DEV)
    rows = [f"number {i},{i / 4}" for i in range(20)]
    (tmp_path / "s.csv").write_text("\n".join(["sentence,label", *rows, "an end,5", "bad,nan", "bad,7"]) + "\n")
    return tmp_path


def facts(folder: Path, capsys: Capture, *more: str) -> dict[str, Any]:
    outcome = call("validate", "--data", "r.yaml", "--json", *more, cwd=folder, capsys=capsys)
    assert (outcome.code, outcome.err) == (0, "")
    (document,) = json.loads(outcome.out)["recipes"]
    assert (document["recipe"], document["ok"], document["problems"]) == ("r.yaml", True, [])
    data: dict[str, Any] = document["data"]
    return data


def test_every_figure(folder: Path, capsys: Capture) -> None:
    data = facts(folder, capsys)
    assert data["max_length"] == 12
    train, dev = (data["tasks"]["p"]["splits"][split] for split in ("train", "dev"))
    assert (train["rows"], dev["rows"]) == (5, 4)
    kinds = {"label is empty": 1, "wrong number of fields": 1, "text is empty": 1, "unknown label": 1}
    assert train["bad"]["rows"] == 4
    assert train["bad"]["kinds"] == kinds
    assert train["bad"]["first"][0] == {"line": 7, "reason": "label is empty"}
    assert train["labels"] == {"classes": {"no": 3, "yes": 2, "maybe": 0}, "largest_share": 0.6}
    # three rows are the same two texts, case, punctuation and order aside; they have two labels
    assert train["duplicates"] == {"rows": 2, "of_other_labels": 3}
    assert dev["duplicates"] == {"rows": 0, "of_other_labels": 0}
    assert dev["in_train"] == {"examples": 1, "sharing_a_sentence": 2}

    tokenizer = Bert(weights="tiny").load_tokenizer().tokenizer
    texts = [text for line in TRAIN.splitlines()[1:6] for text in line.split("\t")[:2]]
    lengths = sorted(len(ids) + 2 for ids in tokenizer.encode(texts))
    tokens = train["tokens"]
    assert tokens["sequences"] == 10
    assert tokens["mean"] == pytest.approx(sum(lengths) / 10)
    assert tokens["p50"] == (lengths[4] + lengths[5]) / 2
    assert tokens["longest"] == lengths[-1] > 12
    assert (tokens["cut"], tokens["cut_share"]) == (sum(n > 12 for n in lengths), sum(n > 12 for n in lengths) / 10)

    taken = data["tasks"]["s"]["splits"]
    assert (taken["train"]["rows"], taken["dev"]["rows"]) == (16, 5)
    assert taken["dev"]["carved"]
    assert taken["train"]["bad"]["kinds"] == {"label is not a number": 1, "label out of range": 1}
    assert taken["train"]["labels"]["least"] >= 0
    held = "dev" if data["across"] and data["across"][0]["task"] == "s" else "train"
    expected = {"task": "p", "split": "dev", "rows": 1, "of": 4, "train_of": "s"}
    assert data["across"] == ([expected] if held == "train" else [expected | {"task": "s", "of": 5, "train_of": "p"}])


def test_the_lines_say_the_same(folder: Path, capsys: Capture) -> None:
    outcome = call("validate", "--data", "r.yaml", cwd=folder, capsys=capsys)
    assert outcome.code == 0
    for line in (
        "p train: 5 rows,",
        "bad rows: 4 (label is empty 1, text is empty 1, unknown label 1, wrong number of fields 1)",
        "first line 7: label is empty",
        "labels: no 60.0%, yes 40.0%, maybe 0.0%; no row of maybe",
        "p: 2 of 5 train examples repeat another's text (40.0%); 3 stand under different labels",
        "p: 1 of 4 dev examples also in train (25.0%)",
        "p: 2 of 4 dev examples share a sentence with train (50.0%)",
        "s dev: 5 rows, taken out of",
        "r.yaml: ok",
    ):
        assert line in outcome.out, outcome.out
    assert outcome.out.isascii()


def test_bad_rows_are_an_error_unless_they_are_skipped(folder: Path, capsys: Capture) -> None:
    outcome = call("validate", "--data", "r.yaml", "--set", "data.on_bad_rows=error", cwd=folder, capsys=capsys)
    assert outcome.code == 3
    assert [line.split(": ")[1] for line in outcome.errors] == [
        str(folder / "train.tsv") + ":7",
        str(folder / "s.csv") + ":23",
    ]
    assert "label is empty (4 such lines: 7, 8, 9, 10)" in outcome.errors[0]
    assert "p train: 5 rows" in outcome.out  # the facts are printed all the same
    assert "r.yaml: ok" not in outcome.out
    outcome = call(
        "validate", "--data", "--json", "--set", "data.on_bad_rows=error", "r.yaml", cwd=folder, capsys=capsys
    )
    (document,) = json.loads(outcome.out)["recipes"]
    assert (outcome.code, document["ok"], len(document["problems"])) == (3, False, 2)


def test_strict(folder: Path, capsys: Capture) -> None:
    outcome = call("validate", "--data", "--strict", "r.yaml", cwd=folder, capsys=capsys)
    assert outcome.code == 3
    assert [line.split(": ", 2)[2] for line in outcome.errors] == [
        "p: 2 of 5 train examples repeat another's text",
        "p: 1 of 4 dev examples also in train",
    ]


def test_a_recipe_that_is_wrong_is_in_the_document_too(folder: Path, capsys: Capture) -> None:
    (folder / "bad.yaml").write_text("name: x\n")
    outcome = call("validate", "bad.yaml", "r.yaml", "--json", cwd=folder, capsys=capsys)
    bad, good = json.loads(outcome.out)["recipes"]
    assert outcome.code == 2
    assert (bad["ok"], good["ok"]) == (False, True)
    assert len(bad["problems"]) == len(outcome.errors) > 1


def test_weights_are_looked_at_when_asked(folder: Path, capsys: Capture) -> None:
    assert_refused(
        call("validate", "r.yaml", "--weights", "--set", "backbone.weights=./no", cwd=folder, capsys=capsys), 4, "./no"
    )
    assert call("validate", "r.yaml", "--weights", cwd=folder, capsys=capsys).code == 0


def test_torch_is_not_loaded(folder: Path) -> None:
    """With a tokenizer of its own, a backbone needs no PyTorch to count tokens."""
    (folder / "torch.py").write_text("raise SystemExit('torch was loaded')\n")
    more = ("--set", "backbone.weights=embedded")
    outcome = command("validate", "--data", "r.yaml", *more, cwd=folder, env={"PYTHONPATH": str(folder)})
    assert (outcome.code, outcome.err) == (0, "")


def test_what_is_read_is_kept_for_the_run(folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run reads no row of a file that was validated: the cache's keys are the same."""
    assert call("validate", "--data", "r.yaml", cwd=folder, capsys=capsys).code == 0
    monkeypatch.setattr(_Parser, "parse", None)
    quiet = ("--set", "reporters=[jsonl]", "--out", "o")
    outcome = call("run", "r.yaml", *quiet, cwd=folder, capsys=capsys)
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("weights", ["tiny", "embedded"])
def test_the_tokenizer_alone_is_that_of_the_backbone(weights: str) -> None:
    backbone = Bert(weights=weights)
    alone, whole = backbone.load_tokenizer(), backbone.load(0)
    assert alone.files["tokenizer.json"] == whole.files["tokenizer.json"]
    assert alone.max_length == whole.max_length
    texts = ["A probe of words.", "unaccustomed-ness 12"]
    assert alone.tokenizer.encode(texts) == whole.tokenizer.encode(texts)


class Odd(Regression):
    """An objective of a plugin, which knows of no kinds."""

    def parse(self, label: object) -> float:
        raise ValueError("too odd")


def test_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("a\tb\tc\td\n1\t2\t3\n1\t2\t3\t4\n")
    (tmp_path / "a.jsonl").write_text('{"a": NaN}\n{"a": 1}\n')

    def of_row(name: str) -> list[tuple[str, str]]:
        file = DataFile(tmp_path / name)
        assert len(list(file.rows())) == 1
        return [(row.reason, row.kind) for row in file.bad]

    def of_label(objective: Objective, label: str) -> list[tuple[str, str]]:
        parser = _Parser(SimpleNamespace(inputs="single", extra_texts=0, objective=objective))  # type: ignore[arg-type]
        parser.parse([Example(text="t", label=label)])
        return [(row.reason, row.kind) for row in parser.bad]

    assert of_row("a.tsv") == [("3 fields, expected 4", "wrong number of fields")]
    assert of_label(Regression(), "") == [("label '' is not a finite number", "label is empty")]
    assert of_label(Classification(("a", "b")), "x") == [("label 'x' is not one of a, b", "unknown label")]
    assert of_row("a.jsonl") == [("NaN is not JSON; write a finite number", "not a JSON object")]
    assert of_label(Odd(), "1") == [("too odd", "other")]


def test_a_file_without_a_good_row_is_read_once(
    tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is carved out of it."""
    opened: list[str] = []
    rows = DataFile.rows

    def counted(self: DataFile, *columns: str) -> Any:
        opened.append(self.path.name)
        return rows(self, *columns)

    monkeypatch.setattr(DataFile, "rows", counted)
    (tmp_path / "t.tsv").write_text("text\tlabel\n" + "".join(f"some words\tclas {i}\n" for i in range(40)))
    task = "{task: classification, text: text, labels: [class, other], train: t.tsv, dev: {fraction: 0.5}}"
    (tmp_path / "r.yaml").write_text(
        RECIPE[: RECIPE.index("tasks:")] + f"tasks:\n  t: {task}\n" + RECIPE[RECIPE.index("algorithm") :]
    )
    outcome = call("validate", "--data", "r.yaml", cwd=tmp_path, capsys=capsys)
    wanted = (
        "t.tsv:2: label 'clas 0' is not one of class, other; did you mean 'class'? (40 such lines: 2, 3, 4, 5, 6, ...)"
    )
    assert outcome.code == 3 and len(outcome.errors) == 1 and wanted in outcome.errors[0]
    assert opened == ["t.tsv"]


def test_the_real_pairs(real_data: Path, tmp_path: Path, capsys: Capture) -> None:
    """2.1% of the sts dev pairs stand in train, and 22% share a sentence with it."""
    assert Sts.name == "sts"
    text = RECIPE[: RECIPE.index("  p:")] + "  sts: {train: sts-train.csv, dev: sts-dev.csv}\n"
    (tmp_path / "r.yaml").write_text(text + RECIPE[RECIPE.index("data: {on") :])
    dev = facts(tmp_path, capsys, "--data-root", str(real_data))["tasks"]["sts"]["splits"]["dev"]
    assert (dev["rows"], dev["in_train"]) == (863, {"examples": 18, "sharing_a_sentence": 194})
    assert f"{18 / 863:.1%}, {194 / 863:.0%}" == "2.1%, 22%"


def test_strict_is_for_data(tmp_path: Path, capsys: Capture) -> None:
    outcome = call("validate", "--strict", "r.yaml", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "--strict: is for --data; give both", "--strict")
