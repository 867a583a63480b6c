"""Every recipe of recipes/methods, shortened, killed at random moments and run again: the same bytes as without a kill.

They are found by glob, so that a new one is covered when it is there. Shorter are steps and the encoder, `tiny`; tasks,
data, batches and algorithm are the recipe's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.recipe.strict_yaml import read_file
from tests.robustness.conftest import Material
from tests.robustness.forks import Forks
from tests.robustness.test_kills import RUN, Runs, kill_at_random_times
from tests.support.paths import ROOT

RECIPES = sorted((ROOT / "recipes" / "methods").glob("*.yaml"))
TEACHING = ("--folds", "2", "--set", "algorithm=individual", "--set", "training.steps=2", "--out", "teachers")


def shortened(recipe: Path, steps: int) -> dict[str, Any]:
    """A recipe with few steps, a checkpoint at each second one, and an encoder of a few thousand weights."""
    document: dict[str, Any] = read_file(recipe).data
    document["backbone"] |= {"weights": "tiny"}
    document["training"] |= {"steps": steps}
    document["evaluation"] |= {"every": steps // 2}
    document["checkpoint"] = {"every": 2, "keep": 2}
    document["data_root"] = str(ROOT)  # else the folder a run was begun in, which its recipe.yaml tells
    return document


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document))  # JSON is YAML


def _runs(recipe: Path, forks: Forks, folder: Path, env: dict[str, str], *, steps: int) -> Runs:
    """Runs of a shortened recipe, with teachers' tables where it names any, on a cache that is warm."""
    document = shortened(recipe, steps)
    if taught := document.get("teachers"):
        _write(folder / "teaching.yaml", {key: value for key, value in document.items() if key != "teachers"})
        done = forks.mtmeta("teach", "teaching.yaml", *TEACHING, cwd=folder, env=env)
        assert done.code == 0, done.output
        for task in document["tasks"]:
            taught[task] = {"runs": [str(folder / "teachers")], "folds": 2}
    _write(folder / "recipe.yaml", document)
    warm = folder / "warm"
    warm.mkdir()
    done = forks.mtmeta(*RUN, "--set", "training.steps=1", cwd=warm, env=env)
    assert done.code == 0, done.output
    return Runs(forks, folder, env)


def test_recipes_are_found() -> None:
    names = {recipe.stem for recipe in RECIPES}
    assert {"anil", "average", "distil", "maml", "metasgd", "protonet", "surgery", "weighting"} <= names


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_a_kill(recipe: Path, forks: Forks, tmp_path: Path, material: Material) -> None:
    runs = _runs(recipe, forks, tmp_path, material.env, steps=6)
    kinds = {Path(name).name for name in runs.whole}
    assert {"model.safetensors", "optimizer.safetensors", "events.jsonl", "summary.json"} <= kinds
    assert list(kill_at_random_times(runs, f"one {recipe.stem}", 1, 0.9))


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.stem)
def test_ten_kills(recipe: Path, forks: Forks, tmp_path: Path, material: Material) -> None:
    runs = _runs(recipe, forks, tmp_path, material.env, steps=20)
    for story in kill_at_random_times(runs, f"ten {recipe.stem}", 10, 0.5):
        print(f"{recipe.stem}: {story}")
