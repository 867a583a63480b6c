"""SIGKILL while teachers are trained, while they label, and in training by their labels: the same bytes as without."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.conftest import Material
from tests.robustness.forks import Forks
from tests.robustness.small import differences, outcome, write_recipe
from tests.robustness.test_kills import RUN, Runs, kill_at_file_operations, kill_at_random_times
from tests.support.taught import make_labels, teachers

TEACH = ("teach", "../recipe.yaml", "--folds", "2", "--out", "out")


def _runs(forks: Forks, folder: Path, material: Material, algorithm: str) -> Runs:
    """Runs of a recipe with teachers, on a cache that is warm."""
    options: dict[str, Any] = {"data": material.data, "weights": str(material.weights)}
    alone = write_recipe(folder / "alone.yaml", "individual", steps=4, **options)
    make_labels(alone, folder / "labels")
    write_recipe(folder / "recipe.yaml", algorithm, steps=8, teachers=teachers(folder / "labels"), **options)
    warm = folder / "warm"
    warm.mkdir()
    done = forks.mtmeta(*RUN, "--set", "training.steps=1", cwd=warm, env=material.env)
    assert done.code == 0, done.output
    return Runs(forks, folder, material.env)


@pytest.mark.parametrize("algorithm", ["joint", pytest.param("reptile", marks=pytest.mark.slow)])
def test_a_few_kills_of_a_student(algorithm: str, forks: Forks, tmp_path: Path, material: Material) -> None:
    runs = _runs(forks, tmp_path, material, algorithm)
    assert any("teachers" in name or "recipe.lock" in name for name in runs.whole)
    assert list(kill_at_random_times(runs, f"taught {algorithm}", 2, 0.9))
    assert len(kill_at_file_operations(runs, f"taught {algorithm}", 2)) == 2


def _kill_teaching(forks: Forks, folder: Path, material: Material, kills: int) -> list[str]:
    """Kill `mtmeta teach` as often at random times, then finish; returns when it was killed."""
    write_recipe(folder / "recipe.yaml", "joint", data=material.data, weights=str(material.weights), steps=8)
    whole, cut = folder / "whole", folder / "cut"
    whole.mkdir()
    cut.mkdir()
    done = forks.mtmeta(*TEACH, cwd=whole, env=material.env)
    assert done.code == 0, done.output
    draw, story = random.Random(f"teach {kills}"), list[str]()
    while len(story) < kills:
        after = draw.uniform(0, (1.1 if kills == 1 else 0.6) * done.seconds)
        ended = forks.mtmeta(*TEACH, cwd=cut, kill_after=after, env=material.env)
        if not ended.killed:
            assert ended.code == 0, f"after {story}: {ended.output}"
            break
        story.append(f"{after:.2f}")
    ended = forks.mtmeta(*TEACH, cwd=cut, env=material.env)
    assert ended.code == 0, ended.output
    expected, found = outcome(whole / "out"), outcome(cut / "out")
    assert {"teachers/sst/table.safetensors", "teachers/para/table.sha256"} <= set(expected)
    assert differences(expected, found) == [], f"killed after {', '.join(story)} s of {done.seconds:.1f} s"
    return story


@pytest.mark.slow
def test_ten_kills_of_teaching(forks: Forks, tmp_path: Path, material: Material) -> None:
    print(_kill_teaching(forks, tmp_path, material, 10))


@pytest.mark.slow
def test_a_death_at_each_file_operation_of_labelling(forks: Forks, tmp_path: Path, material: Material) -> None:
    """Fold models are there; dying at any third operation on files while they label leaves a table whole or absent."""
    recipe = write_recipe(tmp_path / "recipe.yaml", "joint", data=material.data, weights=str(material.weights), steps=4)
    whole = tmp_path / "whole"
    whole.mkdir()
    make_labels(recipe, whole / "out")
    expected = outcome(whole / "out")

    def teaching(folder: Path, at: int, how: str, count: str = "") -> Any:
        arguments = (TEACH, at, how, *([count] if count else []))
        return forks.call("tests.robustness.faults:run_with_fault", *arguments, cwd=folder, env=material.env)

    def fresh(name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        copy_without_labels(whole / "out", folder / "out")
        return folder

    counted = fresh("counted")
    done = teaching(counted, 0, "", "count")
    assert done.code == 0, done.output
    assert differences(expected, outcome(counted / "out")) == []
    total = int((counted / "count").read_text())
    assert total > 4
    for at in range(1, total + 1, 3):
        folder = fresh(f"at{at}")
        ended = teaching(folder, at, "before" if at % 2 else "after")
        assert ended.killed, f"operation {at} of {total}: {ended.output}"
        ended = forks.mtmeta(*TEACH, cwd=folder, env=material.env)
        assert ended.code == 0, ended.output
        assert differences(expected, outcome(folder / "out")) == [], f"died at operation {at} of {total}"


def copy_without_labels(labels: Path, to: Path) -> None:
    import shutil

    shutil.copytree(labels, to, symlinks=True, ignore=shutil.ignore_patterns("teachers"))
