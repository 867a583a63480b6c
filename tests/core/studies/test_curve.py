"""`mtmeta curve`: a comparison of shares of the training data, told as points, a table and a page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.cli import main
from mtmeta.core.errors import UsageError
from mtmeta.core.recipe.strict_yaml import read_file
from mtmeta.core.studies.curve import checked
from tests.robustness import small
from tests.support import tiny  # noqa: F401  # one thread

SHARES = [0.5, 1.0]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe, and a learning curve of it in `curve`."""
    folder = tmp_path_factory.mktemp("curve")
    given: dict[str, Any] = {"data": small.make_data(folder / "data"), "steps": 2, "evaluate_every": 2}
    given |= {"weights": str(small.make_backbone(folder / "weights")), "sampler": "uniform", "schedule": "constant"}
    small.write_recipe(folder / "r.yaml", "joint", algorithm={"name": "joint"}, training={}, **given)
    return folder


@pytest.fixture(scope="module")
def curve(study: Path) -> mtmeta.LearningCurve:
    overrides = ["optimizer.lr=0.01"]
    return mtmeta.curve(
        study / "r.yaml", fractions=[1.0, 0.5], seeds=2, out=study / "curve", overrides=overrides, jobs=1
    )


@pytest.mark.slow
def test_points_are_the_rows_of_a_comparison(curve: mtmeta.LearningCurve, study: Path) -> None:
    assert [point["fraction"] for point in curve.points] == SHARES
    assert [point["examples"] for point in curve.points] == [{"sst": 20, "para": 16}, {"sst": 36, "para": 30}]
    for point, row in zip(curve.points, curve.comparison.rows, strict=True):
        assert row["name"] == f"joint-{point['fraction']:g}" and row["seeds"] == [11, 12]
        assert point["columns"] == row["columns"]
        recipe = read_file(study / "curve" / "recipes" / f"{row['name']}.yaml").data
        assert recipe["data"]["train_fraction"] == point["fraction"] and recipe["optimizer"]["lr"] == 0.01
        for run, value in zip(row["runs"], point["columns"]["sst"]["values"], strict=True):
            assert json.loads((Path(run) / "summary.json").read_text())["tasks"]["sst"]["value"] == value
    assert curve["comparison"]["baseline"] == "joint-1"


@pytest.mark.slow
def test_the_largest_share_is_the_recipe_itself(curve: mtmeta.LearningCurve, study: Path) -> None:
    run = mtmeta.run(study / "r.yaml", out=study / "whole", overrides=["optimizer.lr=0.01"])
    assert curve.points[-1]["columns"]["mean"]["values"][0] == run["mean"]


@pytest.mark.slow
def test_as_a_table_and_as_a_page(curve: mtmeta.LearningCurve, study: Path, capsys: Any) -> None:
    rows = curve.records()
    expected = [(share, column) for share in SHARES for column in ("sst", "para", "mean")]
    assert [(row["fraction"], row["column"]) for row in rows] == expected
    assert [row["examples"] for row in rows] == [20, 16, None, 36, 30, None] and {row["seeds"] for row in rows} == {2}
    arguments = ["curve", str(study / "r.yaml"), "--fractions", ".5,1", "--seeds", "2", "--out", str(study / "curve")]
    with pytest.raises(SystemExit, match="0"):  # all runs are there already
        main([*arguments, "--set", "optimizer.lr=0.01", "--jobs", "1"])
    printed = capsys.readouterr().out
    for point in curve.points:
        assert f"{point['columns']['sst']['mean']:.4f}" in printed
    assert "20, 16" in printed and "36, 30" in printed
    page = (study / "curve" / "curve.html").read_text()
    assert page.count("<svg") == 3 and "training examples" in page
    with pytest.raises(SystemExit, match="0"):
        main([*arguments, "--set", "optimizer.lr=0.01", "--jobs", "1", "--json"])
    assert json.loads(capsys.readouterr().out)["points"] == json.loads(json.dumps(curve.points))


@pytest.mark.parametrize(
    ("fractions", "message"),
    [
        ([0.1, 2.0], "must be above 0 and at most 1, found 2"),
        ([0.0, 1.0], "must be above 0 and at most 1, found 0"),
        ([float("nan"), 1.0], "must be above 0 and at most 1, found nan"),
        ([1.0], "takes from 2 to 20 different shares, such as"),
        ([0.1, 0.1, 1.0], "takes from 2 to 20 different shares, such as"),
    ],
)
def test_what_are_no_shares(fractions: list[float], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        checked(fractions)


def test_shares_that_are_no_numbers(capsys: Any) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["curve", "minilm/joint", "--fractions", ".1,a"])
    assert "--fractions: takes numbers with commas between, found '.1,a'" in capsys.readouterr().err
