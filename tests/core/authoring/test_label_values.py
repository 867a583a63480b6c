"""Which values of a label column are classes: marks of missing labels are none, and nor are lists of labels."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.authoring.label_values import several_labels
from mtmeta.core.recipe.strict_yaml import parse
from tests.core.authoring.test_draft import NEW, drafted_task, lines
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import Outcome, call
from tests.support.parameters import some_quick

Capture = pytest.CaptureFixture[str]


def spread(**rows: int) -> list[str]:
    """So many rows of each value, evenly mixed."""
    total = sum(rows.values())
    at = sorted(((i + 0.5) / count, value) for value, count in rows.items() for i in range(count))
    assert len(at) == total
    return [value for _, value in at]


def refused(outcome: Outcome, *words: str) -> None:
    """One line `error: ` with all of these words, beside those that say what is looked at."""
    assert outcome.code == 3, outcome.err
    (line,) = outcome.errors
    assert not [word for word in words if word not in line], line


def table(labels: Sequence[str], column: str = "label") -> str:
    return lines(lambda i: f'some words {i},"{labels[i]}"', f"text,{column}", len(labels))


def drafted(folder: Path, capsys: Capture, labels: Sequence[str], column: str = "label") -> tuple[dict[str, Any], str]:
    """The options of the task that is drafted, and the notes on it."""
    (folder / "t.csv").write_text(table(labels, column), encoding="utf-8")
    outcome = call(*NEW, "--task", "t=t.csv", "--backbone", "tiny", cwd=folder, capsys=capsys)
    assert outcome.code == 0, outcome.err
    data = parse((folder / "my.yaml").read_text(encoding="utf-8"), "my.yaml").data
    return {**data["tasks"]["t"], "data": data.get("data")}, outcome.out


def with_marks(*marks: str, of: Sequence[str] = ("entailment", "neutral"), each: int = 40) -> list[str]:
    return spread(**dict.fromkeys(of, each), **dict.fromkeys(marks, 2))


MISSING: dict[str, tuple[list[str], Any, dict[str, int]]] = {
    "hyphen": (with_marks("-"), ["entailment", "neutral"], {"-": 2}),
    "question mark": (with_marks("?"), ["entailment", "neutral"], {"?": 2}),
    "words of any case": (
        with_marks("nan", "NaN", "NULL", "None", "N/A", "NA"),
        ["entailment", "neutral"],
        {"nan": 2, "NaN": 2, "NULL": 2, "None": 2, "N/A": 2, "NA": 2},
    ),
    "-1 beside 0, 1, 2": (with_marks("-1", of="012"), 3, {"-1": 2}),
    "-1 beside 0 and 1, rare": (with_marks("-1", of="01"), 2, {"-1": 2}),
    "-1 beside 0, 1, 2, often": (spread(**{"0": 30, "1": 30, "2": 30, "-1": 90}), 3, {"-1": 90}),
    "-1 beside 1 to 5": (with_marks("-1", of="12345"), [*"12345"], {"-1": 2}),
    "-1.0 beside 0.0 and 1.0": (with_marks("-1.0", of=("0.0", "1.0")), 2, {"-1.0": 2}),
    "-1 beside many numbers": (spread(**{str(i): 3 for i in range(30)}, **{"-1": 4}), 30, {"-1": 4}),
    "-100": (with_marks("-100", of="012"), 3, {"-100": 2}),
    "-1 beside words": (with_marks("-1"), ["entailment", "neutral"], {"-1": 2}),
    "nan beside 0.0 and 1.0, as pandas writes it": (spread(**{"0.0": 30, "1.0": 30, "nan": 20}), 2, {"nan": 20}),
    "none, rare, in relations of another name": (with_marks("none", of="abc"), [*"abc"], {"none": 2}),
}


@pytest.mark.parametrize("case", some_quick(MISSING, 5))
def test_marks_of_missing_labels_are_no_classes(case: str, tmp_path: Path, capsys: Capture) -> None:
    """They are counted and told, and the recipe skips their rows, here and in a run."""
    values, labels, marks = MISSING[case]
    task, shown = drafted(tmp_path, capsys, values)
    assert (task["labels"], task["data"]) == (labels, {"on_bad_rows": "skip"})
    assert task["task"] == "classification"
    for mark, rows in marks.items():
        assert f"'{mark}' {rows} rows ({rows / len(values):.1%})" in shown
    total = sum(marks.values())
    assert "missing labels: " in shown and "write it into labels" in shown
    assert f"up to {total} rows cannot be used (t {total})" in shown

    outcome = call("validate", "--data", "--json", "my.yaml", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0, outcome.err
    splits = json.loads(outcome.out)["recipes"][0]["data"]["tasks"]["t"]["splits"]
    assert (splits["train"]["bad"]["rows"], splits["train"]["bad"]["kinds"]) == (total, {"label is missing": total})
    assert splits["train"]["rows"] + splits["dev"]["rows"] == len(values) - total
    first = splits["train"]["bad"]["first"][0]
    assert first["line"] == 2 + next(i for i, value in enumerate(values) if value in marks)
    assert first["reason"].endswith(": it may mark a missing label")


def test_empty_labels_are_counted_with_them(tmp_path: Path, capsys: Capture) -> None:
    """In CSV what is empty or blank, in JSON null; by themselves, and beside marks."""
    task, shown = drafted(tmp_path, capsys, spread(yes=40, no=36, **{"": 3, " ": 1}))
    assert (task["labels"], task["data"]) == (["no", "yes"], {"on_bad_rows": "skip"})
    assert "missing labels: empty 4 rows (5.0%); no class, these rows are skipped\n" in shown
    (tmp_path / "marks").mkdir()
    _, shown = drafted(tmp_path / "marks", capsys, spread(yes=40, no=32, **{"": 4, "?": 4}))
    assert "missing labels: empty 4 rows (5.0%), '?' 4 rows (5.0%); no class, these rows are skipped; if it" in shown
    rows = [{"text": f"some words {i}", "label": None if i % 10 == 0 else "ab"[i % 2]} for i in range(80)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = call(*NEW, "--task", "t=t.jsonl", "--backbone", "tiny", "--force", cwd=tmp_path, capsys=capsys)
    assert "missing labels: empty 8 rows (10.0%); no class" in outcome.out


def test_a_run_says_that_it_skips_them(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_text(table(with_marks("-")))
    command = (*NEW, "--task", "t=t.csv", "--backbone", "tiny")
    assert call(*command, cwd=tmp_path, capsys=capsys).code == 0
    quiet = ("--set", "training.steps=1", "--set", "reporters=[jsonl]", "--out", "run")
    assert call("run", "my.yaml", *quiet, cwd=tmp_path, capsys=capsys).code == 0
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    (train,) = [event for event in events if event["type"] == "data_loaded" and event["split"] == "train"]
    assert train["skipped"] == 2
    (warned,) = [event["text"] for event in events if event["type"] == "warning"]
    assert "skipped 2 bad rows (lines " in warned and "label '-' is not one of entailment, neutral: it may" in warned


CLASSES: dict[str, tuple[list[str], str, Any, str]] = {
    "none in stance": (spread(favor=30, against=40, none=30), "label", ["against", "favor", "none"], "none"),
    "none, rare, but by name a stance": (spread(favor=30, against=60, none=5), "stance", None, "none"),
    "None of most relations": (spread(Cause=20, Part=20, None_=60), "label", None, "None"),
    "none or hate": (spread(hate=10, none=50), "label", ["hate", "none"], "none"),
    "-1, 0, 1": (spread(**{"-1": 30, "0": 30, "1": 40}), "label", ["-1", "0", "1"], "-1"),
    "-1, 0, 1, rare, but by name a sentiment": (spread(**{"-1": 5, "0": 30, "1": 40}), "sentiment", None, "-1"),
    "-1, 1": (spread(**{"-1": 30, "1": 40}), "label", ["-1", "1"], "-1"),
    "-2 to 2": (spread(**{str(i): 20 for i in range(-2, 3)}), "label", [*map(str, range(-2, 3))], "-1"),
    "plus and minus": (spread(**{"+": 30, "-": 30, "0": 10}), "label", None, "-"),
    "punctuation": (spread(**{"?": 30, "!": 30, ".": 40}), "label", None, "?"),
    "a language's code": (
        spread(**dict.fromkeys(["deu", "eng", "fra", "nan", "rus", "spa"], 20)),
        "label",
        None,
        "nan",
    ),
    "a country's code": (spread(**dict.fromkeys(["DE", "FR", "GB", "NA", "US", "ZA"], 20)), "label", None, "NA"),
}


@pytest.mark.parametrize("case", some_quick(CLASSES, 5))
def test_what_elsewhere_marks_missing_labels_may_be_a_class(case: str, tmp_path: Path, capsys: Capture) -> None:
    """And it is said how to have it otherwise."""
    values, column, labels, mark = CLASSES[case]
    values = [value.rstrip("_") for value in values]
    task, shown = drafted(tmp_path, capsys, values, column)
    assert sorted(task["labels"]) == sorted(set(values))
    assert labels is None or task["labels"] == labels
    assert task["data"] is None
    share = values.count(mark) / len(values)
    assert f"'{mark}', {share:.1%} of the rows, is taken for a class; if it marks missing labels, take it out" in shown
    assert "missing labels: " not in shown


def test_of_two_values_both_are_classes(tmp_path: Path, capsys: Capture) -> None:
    task, shown = drafted(tmp_path, capsys, spread(spam=40, nan=20))
    assert task["labels"] == ["nan", "spam"]
    assert "'nan', 33.3% of the rows, is taken for a class" in shown


def test_long_numbers_are_names(tmp_path: Path, capsys: Capture) -> None:
    """A float would make 11111111111111110656 of the first."""
    task, _ = drafted(tmp_path, capsys, spread(**{"1" * 20: 40, "2" * 20: 40}))
    assert task["labels"] == ["1" * 20, "2" * 20]


def test_a_test_file_is_no_dev_file(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_text(table(spread(**{"0": 40, "1": 40})))
    (tmp_path / "d.csv").write_text(table(["-1"] * 20))
    outcome = call(*NEW, "--task", "t=t.csv,d.csv", cwd=tmp_path, capsys=capsys)
    refused(outcome, "d.csv: column 'label' holds '-1' alone, as test files do: no labels; give a dev file")
    outcome = call(*NEW, "--task", "t=d.csv", cwd=tmp_path, capsys=capsys)
    refused(
        outcome, "d.csv: all 20 labels in column 'label' are '-1', a mark of missing labels, as in test files; there"
    )
    (tmp_path / "d.csv").write_text(table(spread(**{"0": 9, "1": 9, "-1": 2})))
    task = drafted_task(tmp_path, capsys, "--task", "t=t.csv,d.csv")
    assert (task["labels"], task["data"]) == (2, {"on_bad_rows": "skip"})


def test_a_recipe_by_hand_refuses_them_and_says_what_they_are(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_text(table(spread(**{"0": 20, "1": 20, "2": 20, "-1": 20})))
    recipe = {
        "name": "r",
        "backbone": {"name": "bert", "weights": "tiny"},
        "tasks": {"t": {"task": "classification", "text": "text", "labels": 3, "train": "t.csv", "dev": "t.csv"}},
        "algorithm": "individual",
        "optimizer": {"name": "adamw", "lr": 1e-3},
        "training": {"steps": 1},
    }
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    outcome = call("run", "r.yaml", cwd=tmp_path, capsys=capsys)
    words = "label '-1' is not one of 0, 1, 2: it may mark a missing label (20 such lines: "
    refused(outcome, words, "; mend it or set data.on_bad_rows: skip")
    # named among the labels it is a class like any other
    recipe["tasks"]["t"]["labels"] = ["-1", "0", "1", "2"]  # type: ignore[index]
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert call("validate", "--data", "r.yaml", cwd=tmp_path, capsys=capsys).code == 0


# --------------------------------------------------------------------------------------------------------- multi-label

EMOTIONS = ["joy", "anger", "fear", "love"]


def some_of(i: int) -> list[int]:
    return [k for k in range(4) if (i * 7 + 3) >> k & 1] or [i % 4]


LISTS: dict[str, Callable[[int], str]] = {
    "JSON numbers": lambda i: json.dumps(some_of(i)),
    "JSON names": lambda i: json.dumps([EMOTIONS[k] for k in some_of(i)]).replace('"', '""'),
    "Python's names": lambda i: str([EMOTIONS[k] for k in some_of(i)]),
    "as numpy writes them": lambda i: "[" + " ".join(map(str, some_of(i))) + "]",
    "joined by a bar": lambda i: "|".join(EMOTIONS[k] for k in some_of(i)),
    "joined by commas": lambda i: ", ".join(EMOTIONS[k] for k in some_of(i)),
    "joined by semicolons": lambda i: ";".join(EMOTIONS[k] for k in some_of(i)),
    "numbers joined by commas": lambda i: ",".join(map(str, some_of(i))),
    "0 and 1 of every class": lambda i: " ".join(str(int(k in some_of(i))) for k in range(4)),
}


JOINED = {"joined by a bar": "|", "joined by commas": ",", "joined by semicolons": ";", "numbers joined by commas": ","}


@pytest.mark.parametrize("column", ["labels", "kind"])
@pytest.mark.parametrize("case", some_quick(JOINED, 2))
def test_labels_that_are_joined_are_a_multi_label_task(case: str, column: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_text(lines(lambda i: f'some words {i},"{LISTS[case](i)}"', f"text,{column}", 120))
    named = 4 if case.startswith("numbers") else sorted(EMOTIONS)
    for columns in ((), ("--columns", f"t=text,{column}", "--force")):
        task = drafted_task(tmp_path, capsys, "--task", "t=t.csv", *columns)
        assert (task["task"], task["label"], task["labels"]) == ("multi_label", column, named)
        assert task.get("separator", ",") == JOINED[case]
        assert task["metrics"] == ["micro_f1", "macro_f1", "label_ranking_ap"]
    assert call("validate", "--data", "my.yaml", cwd=tmp_path, capsys=capsys).code == 0


@pytest.mark.parametrize("column", ["labels", "kind"])
@pytest.mark.parametrize("case", [case for case in LISTS if case not in JOINED])
def test_lists_of_labels_are_told_to_be_multi_label(case: str, column: str, tmp_path: Path, capsys: Capture) -> None:
    rows = [LISTS[case](i) for i in range(120)]
    (tmp_path / "t.csv").write_text(lines(lambda i: f'some words {i},"{rows[i]}"', f"text,{column}", 120))
    words = (
        f"t.csv: column '{column}' holds several labels a row, such as '",
        ": multi-label, which is written by hand, as task: multi_label",
    )
    for columns in ((), ("--columns", f"t=text,{column}")):
        outcome = call(*NEW, "--task", "t=t.csv", *columns, cwd=tmp_path, capsys=capsys)
        refused(outcome, *words, "; give each row one label, or name another column with --columns")


def test_arrays_in_json_lines(tmp_path: Path, capsys: Capture) -> None:
    rows = [{"text": f"some words {i}", "labels": some_of(i), "gold_label": EMOTIONS[i % 4]} for i in range(60)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert drafted_task(tmp_path, capsys, "--task", "t=t.jsonl")["label"] == "gold_label"
    words = "column 'labels' holds lists or objects: several labels a row are multi-label, which is written by hand"
    outcome = call(*NEW, "--force", "--task", "t=t.jsonl", "--columns", "t=text,labels", cwd=tmp_path, capsys=capsys)
    refused(outcome, words)
    for left in ({"n": 1.5}, {}):
        (tmp_path / "t.jsonl").write_text(
            "".join(json.dumps({"text": row["text"], "labels": row["labels"], **left}) + "\n" for row in rows)
        )
        outcome = call(*NEW, "--force", "--task", "t=t.jsonl", cwd=tmp_path, capsys=capsys)
        refused(outcome, words, "give each row one label")


def test_a_class_in_each_of_several_columns(tmp_path: Path, capsys: Capture) -> None:
    header = "text,toxic,obscene,threat"
    (tmp_path / "t.csv").write_text(lines(lambda i: f"some words {i},{i % 2},{i // 2 % 2},{i // 3 % 2}", header))
    outcome = call(*NEW, "--task", "t=t.csv", cwd=tmp_path, capsys=capsys)
    words = "columns toxic, obscene, threat hold 0 and 1 each: multi-label, which is written by hand, as task:"
    refused(outcome, words, "--columns takes one of them alone")
    task = drafted_task(tmp_path, capsys, "--task", "t=t.csv", "--columns", "t=text,threat")
    assert (task["label"], task["labels"]) == ("threat", 2)

    (tmp_path / "t.csv").write_text(lines(lambda i: f"some words {i},{','.join('100010001'[i % 3 * 3 :][:3])}", header))
    outcome = call(*NEW, "--force", "--task", "t=t.csv", cwd=tmp_path, capsys=capsys)
    refused(outcome, "columns toxic, obscene, threat hold 1 in one of them and else 0; write one column of")

    (tmp_path / "t.csv").write_text(
        lines(lambda i: f"some words {i},{i % 2},{i // 2 % 2},{i // 3 % 2},{i % 3}", "text,link,caps,reply,label")
    )
    assert drafted_task(tmp_path, capsys, "--force", "--task", "t=t.csv")["labels"] == 3


@pytest.mark.parametrize(
    "values",
    [
        ("yes, of course", "no, never", "maybe, some day", "maybe"),
        ("ARTS & CULTURE", "FOOD & DRINK", "CULTURE & ARTS", "STYLE & BEAUTY", "STYLE", "ARTS"),
        ("news/politics", "news/world", "sport/tennis", "sport/golf"),
        ("pos|food", "neg|food", "pos|staff", "neg|staff"),
        ("1,5", "2,0", "2,5", "1", "2"),
        ("C++", "C", "Java", "C#"),
        ("(a)", "(b)", "[neg]", "[pos]"),
        ("positive", "negative", "positive, negative"),
        ("New York, NY", "Boston, MA", "Paris", "Austin, TX"),
        ("not relevant", "relevant"),
        ("0", "1", "2"),
        ("-", "?", ""),
    ],
    ids=lambda values: values[0],
)  # fmt: skip
def test_one_label_may_have_marks_in_it(values: tuple[str, ...]) -> None:
    assert several_labels(values * 20) is None
