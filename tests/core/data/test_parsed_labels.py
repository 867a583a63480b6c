"""What a plugin's `parse` may give: a number that fits, a refusal, or one line that names the plugin."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mtmeta
from tests.support import tiny  # noqa: F401  # the backbone

GIVEN: list[Any] = []


class Odd:
    """An object whose every method raises."""

    def __float__(self) -> float:
        raise RuntimeError("no number")

    def __repr__(self) -> str:
        raise RuntimeError("no words")


@dataclass(frozen=True)
class Loose(mtmeta.Classification):
    """Parses every label to the same thing."""

    def parse(self, label: object) -> Any:
        return GIVEN[0] if label == "1" else 0


@dataclass(frozen=True)
class LooseNumber(mtmeta.Regression):
    def parse(self, label: object) -> Any:
        return GIVEN[0] if label == "1" else 0


@dataclass(frozen=True, kw_only=True)
class Mood(mtmeta.Task):
    """One sentence, two labels."""

    name = "mood"
    objective = Loose(labels=2)
    metrics = ("accuracy",)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows("text", "label"):
            yield mtmeta.Example(row["text"], label=row["label"], id=row.id, line=row.line)


@dataclass(frozen=True, kw_only=True)
class Grade(mtmeta.Task):
    """One sentence to a number."""

    name = "grade"
    objective = LooseNumber(0.0, 5.0)
    metrics = ("pearson",)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        for row in file.rows("text", "label"):
            yield mtmeta.Example(row["text"], label=row["label"], id=row.id, line=row.line)


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("MTMETA_CACHE", str(tmp_path / "cache"))  # what a label means is no part of the classes here
    lines = [f"text {number}\t{number % 2}\n" for number in range(8)]
    (tmp_path / "train.tsv").write_text("text\tlabel\n" + "".join(lines))
    task = {"task": "mood", "train": "train.tsv", "dev": "train.tsv", "batch_size": 2}
    return {
        "name": "odd",
        "data_root": str(tmp_path),
        "backbone": {"name": "bert", "weights": "tiny", "max_length": 16},
        "tasks": {"mood": task},
        "algorithm": "individual",
        "optimizer": {"name": "sgd", "lr": 0.1},
        "training": {"steps": 1},
    }


def check(recipe: dict[str, Any], given: Any) -> list[str]:
    GIVEN[:] = [given]
    return list(mtmeta.validate(recipe, data=True, plugins=[Mood, Grade])["problems"])


ODD = [None, [], {}, [1, 2], object(), b"1", 1j, float("nan"), float("inf"), 10**400, np.array([1, 2]), type]


@pytest.mark.parametrize("given", [*ODD, -1, 2, 0.5, np.int64(7)], ids=lambda given: f"{type(given).__name__}")
def test_what_is_no_class_is_the_plugins_fault_in_one_line(given: Any, recipe: dict[str, Any]) -> None:
    problems = check(recipe, given)
    assert problems and all("expected the index of one of its 2 classes" in line for line in problems), problems
    assert all("mood" in line.partition("parse gave")[0].lower() for line in problems)
    assert not any("\n" in line for line in problems)


@pytest.mark.parametrize("given", ODD, ids=lambda given: f"{type(given).__name__}")
def test_and_what_is_no_number(given: Any, recipe: dict[str, Any]) -> None:
    recipe["tasks"]["mood"]["task"] = "grade"
    problems = check(recipe, given)
    assert problems and all("expected a finite number" in line for line in problems), problems


def test_an_object_that_cannot_even_be_shown(recipe: dict[str, Any]) -> None:
    (first, *_) = check(recipe, Odd())
    assert "no words" in first and "RuntimeError" in first


@pytest.mark.parametrize("given", ["not today", ("a", "b")])
def test_a_text_is_a_refusal(given: Any, recipe: dict[str, Any]) -> None:
    problems = check(recipe, given)
    assert all("not today" in line or "('a', 'b')" in line for line in problems) and len(problems) == 1


@pytest.mark.parametrize("given", [1, True, 1.0, np.int32(1), np.float32(1)], ids=repr)
def test_numbers_that_fit_are_taken(given: Any, recipe: dict[str, Any]) -> None:
    assert check(recipe, given) == []
