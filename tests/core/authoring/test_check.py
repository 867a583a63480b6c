"""The check of one recipe, without a command line around it."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtmeta.core.authoring.check import check_recipe
from mtmeta.core.errors import DataError, Problems, RecipeError, WeightsError
from mtmeta.core.registry.registry import build_registry
from tests.support.commands import data_folder


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(data_folder(tmp_path))
    return Path("r.yaml")


def test_a_recipe_alone(recipe: Path) -> None:
    check = check_recipe(recipe, build_registry())
    assert (check.facts, check.problems) == ({}, [])
    assert check.document() == {"recipe": "r.yaml", "ok": True, "problems": []}


def test_every_problem_is_collected_and_none_raised(recipe: Path) -> None:
    check = check_recipe(recipe, build_registry(), overrides=["seed=-1", "nosuch=1"], data=True)
    (problems,) = check.problems
    assert isinstance(problems, Problems) and all(isinstance(error, RecipeError) for error in problems.problems)
    assert check.document() == {"recipe": "r.yaml", "ok": False, "problems": [str(e) for e in problems.problems]}
    assert len(problems.problems) == 2


def test_data(recipe: Path) -> None:
    registry = build_registry()
    train = Path("data/train.tsv")
    train.write_text(train.read_text() + "9\tword 0\tother 0\tneutral\n")
    check = check_recipe(recipe, registry, data=True)
    assert check.document() == {"recipe": "r.yaml", "ok": True, "problems": [], "data": check.facts}
    assert check.facts["tasks"]["pairs"]["splits"]["train"]["rows"] == 10
    strict = check_recipe(recipe, registry, data=True, strict=True)
    (problem,) = strict.problems
    assert isinstance(problem, DataError) and problem.message == "pairs: 1 of 10 train examples repeat another's text"
    assert strict.facts == check.facts


def test_weights_that_cannot_be_loaded_leave_the_data_unread(recipe: Path) -> None:
    check = check_recipe(recipe, build_registry(), overrides=["backbone.weights=./no"], data=True, weights=True)
    (problem,) = check.problems
    assert isinstance(problem, WeightsError)
    assert check.facts == {}
    assert check_recipe(recipe, build_registry(), weights=True).problems == []
