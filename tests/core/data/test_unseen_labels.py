"""Labels that only dev or test has: they count as wrong, are told, and are what abstentions and `oos_recall` are of."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mtmeta
from mtmeta.core.errors import DataError
from mtmeta.plugins.metrics import oos_recall, oos_recalls
from tests.robustness import small
from tests.support import tiny  # noqa: F401  # one thread

KNOWN = [("good film", "x"), ("bad plot", "y"), ("very dull", "x"), ("fine film", "y")]
UNSEEN = [("the the", "oos"), ("not a film", "other"), ("a a a", "oos")]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(small.make_backbone(tmp_path_factory.mktemp("weights")))


def write_recipe(folder: Path, weights: str, dev: list[tuple[str, str]], train: Any = KNOWN, **task: Any) -> Path:
    folder.mkdir(exist_ok=True)
    for split, rows in (("train", train * 3), ("dev", dev)):
        lines = ["sentence\tlabel", *(f"{text}\t{label}" for text, label in rows)]
        (folder / f"{split}.tsv").write_text("\n".join(lines) + "\n")
    options: dict[str, Any] = {"task": "classification", "labels": ["x", "y"], "train": "train.tsv", "dev": "dev.tsv"}
    options |= {"metrics": ["accuracy", "macro_f1", "oos_recall"], **task}
    data = {"on_bad_rows": options.pop("on_bad_rows", "error")}
    given: dict[str, Any] = {
        "algorithm": {"name": "joint"},
        "sampler": "uniform",
        "schedule": "constant",
        "training": {},
    }
    given |= {"weights": weights, "data": folder, "steps": 2, "evaluate_every": 2, "tasks": {"intent": options}}
    recipe = small.write_recipe(folder / "r.yaml", "joint", **given)
    recipe.write_text(recipe.read_text()[:-1] + f', "data": {{"on_bad_rows": "{data["on_bad_rows"]}"}}}}')
    return recipe


def written(run: mtmeta.Run, split: str = "dev") -> list[dict[str, str]]:
    lines = (run.path / "predictions" / f"intent-{split}.csv").read_text().splitlines()
    return list(csv.DictReader(lines))


def test_they_count_as_wrong_and_are_told(tmp_path: Path, weights: str) -> None:
    warnings: list[str] = []
    recipe = write_recipe(tmp_path / "all", weights, KNOWN + UNSEEN)
    heard: list[Any] = []
    run = mtmeta.run(recipe, out=tmp_path / "run", warn=warnings.append, on_event=heard.append)
    rows = written(run)
    assert [row["label"] for row in rows] == [label for _, label in KNOWN + UNSEEN]
    right = sum(row["label"] == row["prediction"] for row in rows)
    assert run["tasks"]["intent"]["value"] == pytest.approx(right / 7) and run["tasks"]["intent"]["examples"] == 7
    (told,) = [event.text for event in heard if event.type == "warning" and "no class" in event.text]
    expected = "3 examples have labels that are no class of the recipe ('oos' 2, 'other' 1): all answers to them count"
    assert expected in told
    assert run["tasks"]["intent"]["others"]["oos_recall"] == 0.0
    fewer = mtmeta.run(write_recipe(tmp_path / "known", weights, KNOWN), out=tmp_path / "fewer")
    assert run["tasks"]["intent"]["loss"] == pytest.approx(fewer["tasks"]["intent"]["loss"], rel=1e-6)
    detail = mtmeta.evaluate(run.path, verbose=True)["details"]["intent"]
    assert detail["unseen"] == {"oos": 2, "other": 1} and int(np.sum(detail["confusion"])) == 4
    compared = mtmeta.compare([recipe], seeds=1, out=tmp_path / "compare", jobs=1)
    assert compared.rows[0]["columns"]["intent"]["mean"] == run["tasks"]["intent"]["value"]
    page = mtmeta.report([run.path], out=tmp_path / "page.html")
    assert "intent" in Path(page).read_text()
    checked = mtmeta.validate(recipe, data=True)
    assert checked["data"]["tasks"]["intent"]["splits"]["dev"]["labels"]["unseen"] == {"oos": 2, "other": 1}


def test_abstentions_are_right_for_them(tmp_path: Path, weights: str) -> None:
    recipe = write_recipe(tmp_path / "all", weights, KNOWN + UNSEEN)
    run = mtmeta.run(recipe, out=tmp_path / "run")
    every = mtmeta.evaluate(run.path, abstain=1.0)["tasks"]["intent"]
    assert (every["value"], every["others"]["oos_recall"]) == (pytest.approx(3 / 7), 1.0)
    assert [row["prediction"] for row in written(run, "dev-abstain")] == [""] * 7
    surest = [max((one.probabilities or {}).values()) for one in run.predict("intent", [t for t, _ in KNOWN + UNSEEN])]
    threshold = sorted(surest)[3]
    held = mtmeta.evaluate(run.path, abstain=threshold)["tasks"]["intent"]
    answers = [row["prediction"] if score >= threshold else "" for row, score in zip(written(run), surest, strict=True)]
    labels = ["" if label not in "xy" else label for _, label in KNOWN + UNSEEN]
    assert held["value"] == pytest.approx(np.mean([a == b for a, b in zip(answers, labels, strict=True)]))
    assert held["others"]["oos_recall"] == pytest.approx(np.mean([a == "" for a in answers[4:]]))
    assert written(run)[0]["prediction"]  # those of the run itself stay


def test_a_class_that_means_none_of_the_others(tmp_path: Path, weights: str) -> None:
    from sklearn.metrics import recall_score

    dev = [*KNOWN, ("the the", "oos"), ("a a a", "oos")]
    options = {"labels": ["x", "oos", "y"], "out_of_scope": "oos"}
    recipe = write_recipe(tmp_path / "all", weights, dev, [*KNOWN, ("the a", "oos"), ("not not", "oos")], **options)
    run = mtmeta.run(recipe, out=tmp_path / "run", overrides=["training.steps=6", "optimizer.lr=0.05"])
    rows = written(run)
    labels, found = [row["label"] for row in rows], [row["prediction"] for row in rows]
    expected = recall_score(labels, found, labels=["oos"], average=None, zero_division=0)[0]
    assert run["tasks"]["intent"]["others"]["oos_recall"] == pytest.approx(expected)
    train = [*KNOWN, ("the a", "oos"), ("not not", "oos")]
    recipe = write_recipe(tmp_path / "plain", weights, dev, train, labels=["x", "oos", "y"])
    plain = mtmeta.run(recipe, out=tmp_path / "other", overrides=["training.steps=6", "optimizer.lr=0.05"])
    assert plain["tasks"]["intent"]["others"]["macro_f1"] == run["tasks"]["intent"]["others"]["macro_f1"]
    assert plain["tasks"]["intent"]["value"] == run["tasks"]["intent"]["value"]


@pytest.mark.parametrize(
    ("dev", "train", "message"),
    [
        (UNSEEN, KNOWN, r"dev\.tsv:2: label 'oos' is not one of x, y \(3 such lines: 2, 3, 4\); mend it"),
        ([*KNOWN, ("a film", "-")], KNOWN, r"dev\.tsv:6: label '-' is not one of x, y: it may mark a missing label"),
        (KNOWN, [*KNOWN, UNSEEN[0]], r"train\.tsv:6: label 'oos' is not one of x, y"),
    ],
)
def test_what_is_an_error_all_the_same(dev: Any, train: Any, message: str, tmp_path: Path, weights: str) -> None:
    with pytest.raises(DataError, match=message):
        mtmeta.run(write_recipe(tmp_path / "data", weights, dev, train), out=tmp_path / "run")


def test_rows_that_are_to_be_skipped_are(tmp_path: Path, weights: str) -> None:
    recipe = write_recipe(tmp_path / "data", weights, KNOWN + UNSEEN, on_bad_rows="skip")
    run = mtmeta.run(recipe, out=tmp_path / "run")
    assert (run["tasks"]["intent"]["examples"], run["tasks"]["intent"]["skipped"]) == (4, 3)


def test_recall_on_resamples_is_the_recall_of_each() -> None:
    labels, found = np.array([0.0, -1, -1, 1, -1]), np.array([0.0, -1, 0, -1, -1])
    counts = np.array([[1, 1, 1, 1, 1], [0, 2, 1, 0, 2], [2, 0, 3, 0, 0]], dtype=np.float64)
    one_by_one = [oos_recall(np.repeat(labels, c), np.repeat(found, c)) for c in counts.astype(int)]
    assert oos_recalls(labels, found, counts).tolist() == pytest.approx(one_by_one)
    with pytest.warns(UserWarning, match="without examples outside the classes"):
        assert oos_recall(labels[:1], found[:1]) == 0.0
