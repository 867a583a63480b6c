"""`labels: {0: sadness, 1: joy}`, or a file of names: they are what predictions, tables and exports say."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.errors import RecipeError
from mtmeta.core.recipe.label_names import read_label_names
from mtmeta.core.recipe.strict_yaml import read_file
from tests.robustness import small
from tests.support import tiny  # noqa: F401  # one thread

NAMES = {"0": "sadness", "1": "joy", "7": "anger"}


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("names.json", '{"0": "sadness", "1": "joy", "7": "anger"}', NAMES),
        ("names.json", '["sadness", "joy"]', {"0": "sadness", "1": "joy"}),
        ("emotions.txt", "sadness\njoy\n\n", {"0": "sadness", "1": "joy"}),
        ("names.tsv", "\ufeffneg\tvery bad\r\npos\tvery good\r\n", {"neg": "very bad", "pos": "very good"}),
    ],
)
def test_files_of_names(file: str, text: str, expected: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / file).write_text(text, encoding="utf-8", newline="")
    assert read_label_names(tmp_path / file) == expected


@pytest.mark.parametrize(
    ("file", "data", "message"),
    [
        ("names.json", b'{"0": 1}', "holds no names"),
        ("names.json", b"[]", "holds no names"),
        ("names.json", b"{", "is no JSON"),
        ("names.txt", b"joy\n", "names 1 labels, expected from 2 to 100,000"),
        ("names.txt", b"a\tb\nc\n", "holds lines with and without a tab"),
        ("names.txt", b"0\tb\n0\tc\n", "names label '0' twice"),
        ("names.txt", b"\xff\n\xfe\n", "is no UTF-8"),
        ("names.txt", None, "no such file"),
    ],
)
def test_what_is_no_file_of_names(file: str, data: bytes | None, message: str, tmp_path: Path) -> None:
    if data is not None:
        (tmp_path / file).write_bytes(data)
    with pytest.raises(ValueError, match=message):
        read_label_names(tmp_path / file)


def write_recipe(folder: Path, labels: Any, **changes: Any) -> Path:
    data = folder / "data"
    data.mkdir(exist_ok=True)
    (data / "names.tsv").write_text("".join(f"{label}\t{name}\n" for label, name in NAMES.items()))
    for split, size in (("train", 12), ("dev", 6)):
        rows = [f"{small.WORDS[i % 10]} {small.WORDS[i % 7]}\t{'017'[i % 3]}" for i in range(size)]
        (data / f"{split}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    task = {"task": "classification", "labels": labels, "train": "train.tsv", "dev": "dev.tsv", **changes}
    given: dict[str, Any] = {"weights": str(small.make_backbone(folder / "weights")), "steps": 2, "evaluate_every": 2}
    given |= {"algorithm": {"name": "joint"}, "training": {}, "sampler": "uniform", "schedule": "constant"}
    return small.write_recipe(folder / "r.yaml", "joint", **{"data": data, "tasks": {"mood": task}, **given})


def test_names_are_what_a_run_says(tmp_path: Path) -> None:
    run = mtmeta.run(write_recipe(tmp_path, "names.tsv"), out=tmp_path / "run")
    assert read_file(tmp_path / "run" / "recipe.yaml").data["tasks"]["mood"]["labels"] == NAMES
    rows = list(csv.DictReader((tmp_path / "run" / "predictions" / "mood-dev.csv").read_text().splitlines()))
    assert [row["label"] for row in rows] == ["sadness", "joy", "anger"] * 2
    assert {row["prediction"] for row in rows} <= set(NAMES.values())
    found = run.predict("mood", "good film")
    assert list(found.probabilities or {}) == list(NAMES.values()) and found.label in NAMES.values()
    detail = mtmeta.evaluate(tmp_path / "run", verbose=True)["details"]["mood"]
    assert detail["classes"] == list(NAMES.values())
    mtmeta.export(tmp_path / "run", "transformers", out=tmp_path / "export")
    heads = json.loads((tmp_path / "export" / "heads.json").read_text())
    assert list(NAMES.values()) in [task["labels"] for task in heads["tasks"].values()]


def test_names_change_no_weight(tmp_path: Path) -> None:
    """A file and a mapping are the same recipe, and trains what labels without names do."""
    digests = [
        json.dumps(mtmeta.run(write_recipe(tmp_path, labels), out=tmp_path / str(n))["tasks"]["mood"]["loss"])
        for n, labels in enumerate(("names.tsv", NAMES, ["0", "1", "7"]))
    ]
    assert len(set(digests)) == 1
    assert mtmeta.run(write_recipe(tmp_path, NAMES), out=tmp_path / "0")["run"] == str(tmp_path / "0")  # finished


def test_weights_by_label_or_name(tmp_path: Path) -> None:
    for weights in ({"7": 3}, {"anger": 3}):
        task = mtmeta.read_recipe(write_recipe(tmp_path, NAMES, loss={"weights": weights})).tasks["mood"]
        assert task.objective.trained_by.weights == {"anger": 3}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ("none.txt", r"tasks\.mood\.labels: 'none\.txt' no such file"),
        ({"0": "joy", "1": "joy"}, r"tasks\.mood\.labels name 'joy' twice; each class has one name"),
        ({"0": "1", "1": "b"}, r"tasks\.mood\.labels give '0' the name '1', which is another label"),
    ],
)
def test_what_is_refused(labels: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        mtmeta.read_recipe(write_recipe(tmp_path, labels))
