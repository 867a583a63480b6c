"""Search spaces: what is read of them, and what is wrong with them, in one line at its place."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.errors import MtmetaError, Problems, RecipeError, UsageError
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies.tuning.settings import Recipes
from mtmeta.core.studies.tuning.space import read_space, text_of
from tests.support.quick import quick

GOOD = """\
algorithm.name: {choices: [reptile, joint]}
algorithm.inner_optimizer.lr: {low: 1e-4, high: 1e-2, log: true, when: {algorithm.name: [reptile]}}
optimizer.lr: {low: 0.1, high: 1.0, step: 0.1}
tasks.kind.inner_steps: {low: 1, high: 5, step: 2}
schedule: {choices: [cosine, {name: step, every: 2, gamma: 0.5}, constant]}
"""


@pytest.fixture(scope="module")
def registry() -> Registry:
    return build_registry()


def recipes(folder: Path, text: str, registry: Registry, **changes: Any) -> Recipes:
    (folder / "space.yaml").write_text(text)
    path = quick(folder, "reptile")
    overrides = changes.pop("overrides", ())
    return Recipes.of(RunRequest(path, overrides=overrides), read_space(folder / "space.yaml"), registry)


def problems(folder: Path, text: str, registry: Registry) -> list[str]:
    try:
        recipes(folder, text, registry).check()
    except MtmetaError as error:
        every = error.problems if isinstance(error, Problems) else [error]
        return [str(one).removeprefix(f"{folder}/") for one in every]
    return []


def test_a_space_gives_recipes(tmp_path: Path, registry: Registry) -> None:
    made = recipes(tmp_path, GOOD, registry)
    made.check()
    draw, seen = random.Random(0), set()
    for _ in range(200):
        settings = made.drawn(draw)
        recipe = made.trial(settings, "trial-0003")
        assert recipe.name == "trial-0003"
        assert recipe.algorithm.name == settings["algorithm.name"]
        if recipe.algorithm.name == "reptile":
            inner: Any = recipe.algorithm
            assert inner.inner_optimizer.lr == settings["algorithm.inner_optimizer.lr"]
        else:
            assert "algorithm.inner_optimizer.lr" not in settings
        assert recipe.optimizer.lr == settings["optimizer.lr"]
        assert recipe.tasks["kind"].inner_steps == settings["tasks.kind.inner_steps"]
        seen.add((recipe.algorithm.name, recipe.schedule.name, recipe.tasks["kind"].inner_steps))
    assert len(seen) == 2 * 3 * 3


def test_dimensions_come_after_those_they_hang_on(tmp_path: Path) -> None:
    lines = GOOD.splitlines()
    (tmp_path / "space.yaml").write_text("\n".join([lines[1], lines[0]]))
    space = read_space(tmp_path / "space.yaml")
    assert [one.key for one in space.dimensions] == ["algorithm.name", "algorithm.inner_optimizer.lr"]
    assert [one.key for one in space.in_play({"algorithm.name": "joint"})] == ["algorithm.name"]
    assert space.dimensions[1].place.endswith("space.yaml:1:31")


BAD = {
    "": "space.yaml: empty; write a range or choices",
    "[optimizer.lr]": "space.yaml:1:1: expected a mapping, found a list",
    "optimizer.lr: 0.1": "space.yaml:1:15: optimizer.lr must be a mapping, found 0.1; write",
    "optimizer.lr: {lo: 1e-4, high: 0.1}": "space.yaml:1:16: unknown key 'lo' in 'optimizer.lr'; did you mean 'low'?",
    "optimizer.lr: {high: 0.1}": "space.yaml:1:15: optimizer.lr needs 'low'; add it",
    "optimizer.lr: {low: 0.1, high: 1e-3}": "space.yaml:1:21: low 0.1 is not below high 0.001; exchange them",
    "optimizer.lr: {low: 0, high: 0.1, log: true}": "space.yaml:1:21: low must be above 0 on a log scale, found 0",
    "optimizer.lr: {low: 0.1, high: 1.0, log: true, step: 0.1}": "space.yaml:1:48: a log scale has no steps",
    "optimizer.lr: {low: 0.1, choices: [1, 2]}": "space.yaml:1:15: optimizer.lr has both a range and choices",
    "optimizer.lr: {low: .nan, high: 1.0}": "space.yaml:1:21: low must be a finite number, found nan",
    "optimizer.lr: {low: '0.1', high: 1.0}": "space.yaml:1:21: low must be a finite number, found '0.1'; remove the",
    "optimizer.lr: {low: 0.1, high: 1.0, step: 0.4}": "space.yaml:1:32: high 1.0 is no number of steps of 0.4 from 0.1",
    "optimizer.lr: {low: 1, high: 10}": "space.yaml:1:15: optimizer.lr takes fractions, and low and high are whole",
    "optimizer.lr: {low: -1.0, high: 1.0}": "space.yaml:1:15: optimizer.lr=-1.0: must be a number > 0 and finite",
    "optimizer.lrr: {low: 0.1, high: 1.0}": "space.yaml:1:16: optimizer.lrr=0.1: unknown key 'lrr' in 'optimizer'",
    "tasks.kind.inner_steps: {low: 1, high: 4, step: 0.5}": "space.yaml:1:49: low and high are whole numbers and step",
    "algorithm.name: {choices: [reptile]}": "space.yaml:1:27: algorithm.name has 1 choice; give two or more",
    "algorithm.name: {choices: [joint, joint]}": "space.yaml:1:35: choice joint is given twice; leave one out",
    "algorithm.name: {choices: [reptile, jiont]}": "space.yaml:1:17: algorithm.name=jiont: unknown algorithm 'jiont'",
    "seed: {low: 1, high: 5}": "space.yaml:1:1: seed is not to be chosen: the seeds of a trial are those of --seeds",
    "evaluation.report_on: {choices: [dev, test]}": "space.yaml:1:1: evaluation.report_on is not to be chosen: trials",
    "tasks.kind.dev: {choices: [dev.tsv, train.tsv]}": "space.yaml:1:17: tasks.kind.dev decides what is measured",
    "tasks.kind.labels: {choices: [['no', 'yes'], ['yes', 'no']]}": "space.yaml:1:20: tasks.kind.labels decides what",
    "optimizer: {choices: [{name: sgd, lr: 1.0}, {name: adamw, lr: 0.1}]}\noptimizer.lr: {low: 0.1, high: 1.0}": (
        "space.yaml:2:1: optimizer.lr lies within optimizer, which the space chooses as a whole"
    ),
    "optimizer.lr: {low: 0.1, high: 1.0, when: {algorithm.nam: [joint]}}\n"
    "algorithm.name: {choices: [reptile, joint]}": (
        "space.yaml:1:44: when names no key of this space: 'algorithm.nam'; did you mean 'algorithm.name'?"
    ),
    "optimizer.lr: {low: 0.1, high: 1.0, when: {algorithm.name: [jint]}}\n"
    "algorithm.name: {choices: [reptile, joint]}": (
        "space.yaml:1:61: jint is no choice of algorithm.name; did you mean 'joint'?"
    ),
    "optimizer.lr: {low: 0.1, high: 1.0, when: {training.steps: [2]}}\ntraining.steps: {low: 1, high: 3}": (
        "space.yaml:1:44: when hangs on training.steps, which is a range; it must have choices"
    ),
    "optimizer.lr: {choices: [1, 2], when: {training.steps: [1]}}\n"
    "training.steps: {choices: [1, 2], when: {optimizer.lr: [1]}}": (
        "space.yaml:1:33: optimizer.lr and training.steps hang on each other"
    ),
    "optimizer.lr: {low: 0.1, high: 1.0}\noptimizer.lr: {low: 0.1, high: 2.0}": (
        "space.yaml:2:1: key 'optimizer.lr' already given at line 1"
    ),
    "optimizer.lr: {low: &a 0.1, high: *a}": "space.yaml:1:21: YAML anchors and aliases are not allowed here",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_space_is_one_line(text: str, tmp_path: Path, registry: Registry) -> None:
    (found,) = problems(tmp_path, text, registry)
    assert found.startswith(BAD[text]), found
    assert "\n" not in found


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path, registry: Registry) -> None:
    text = "optimizer.lr: {low: 2.0, high: 1.0}\nseed: {low: 1, high: 2}\ntasks.kind.inner_steps: {choices: []}\n"
    assert len(problems(tmp_path, text, registry)) == 3
    text = "optimizer.lrr: {low: 1.0, high: 2.0}\ntraining.steps: {low: 0, high: 2}\n"
    assert len(problems(tmp_path, text, registry)) == 2


def test_what_belongs_to_the_space_is_not_set_beside_it(tmp_path: Path, registry: Registry) -> None:
    with pytest.raises(UsageError, match=r"--set optimizer\.lr: is for the space to choose .*space\.yaml:1:15\)"):
        recipes(tmp_path, "optimizer.lr: {low: 0.1, high: 1.0}", registry, overrides=["optimizer.lr=3"])


def test_nothing_is_chosen_on_test(tmp_path: Path, registry: Registry) -> None:
    text = "optimizer.lr: {low: 0.1, high: 1.0}"
    on_test = ["evaluation.select_on=test", "tasks.kind.test=dev.tsv", "tasks.grade.test=dev.tsv"]
    with pytest.raises(RecipeError, match="is test, on which nothing may be chosen"):
        recipes(tmp_path, text, registry, overrides=on_test)
    reported = ["evaluation.report_on=test", *on_test[1:]]
    made = recipes(tmp_path, text, registry, overrides=reported)
    assert made.base.evaluation.report_on == "test"
    assert made.trial({"optimizer.lr": 0.5}, "trial").evaluation.report_on == "dev"
    assert (
        strict_yaml.parse(made.best({"optimizer.lr": 0.5}, ["best"]), "best").data["evaluation"]["report_on"] == "test"
    )


@pytest.mark.parametrize(
    "value",
    [
        *(1, 0.1, 1e-5, True, None, "joint", "0.1", "true", "null", "", " a", "a: b", "a # b", "[x]", "ä", "{", "no"),
        *([1, "a"], {"name": "step", "every": 2}, {"a": {"b": [True, None, "1"]}}, "1e3"),
    ],
)
def test_texts_are_read_back_as_they_were(value: Any) -> None:
    read = strict_yaml.parse_value(text_of(value), "")
    assert json.dumps(read) == json.dumps(value)
