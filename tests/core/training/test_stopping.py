"""`training.stop`: when training ends early, what it leaves then, and that training up to there knows nothing of it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.cli import main
from mtmeta.core.errors import RecipeError
from mtmeta.core.methods.stopping import Stopping
from mtmeta.core.recipe.sections import StopOptions
from mtmeta.core.training.selection import Selection
from tests.core.run.test_run import events, weights
from tests.robustness import small
from tests.support import tiny  # noqa: F401  # one thread

STEPS = 12
ALL = "sst+para"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Small data and a very small encoder."""
    folder = tmp_path_factory.mktemp("material")
    return {"data": small.make_data(folder / "data"), "weights": str(small.make_backbone(folder / "weights"))}


def write_recipe(folder: Path, algorithm: str, material: dict[str, Any], **changes: Any) -> Path:
    given = {"steps": STEPS, "evaluate_every": 2, "checkpoint": {"every": 2, "keep": 9}, "schedule": "cosine"}
    folder.mkdir(exist_ok=True)
    return small.write_recipe(folder / "recipe.yaml", algorithm, **{**material, **given, **changes})


def evaluations_made(values: list[float], **options: Any) -> int:
    """How many of these evaluations there are until training ends; one more than there are if it does not."""
    stopping = Stopping(StopOptions(**options))
    for number, value in enumerate(values, 1):
        stopping.after_evaluation(value)
        if stopping.is_over:
            return number
    return len(values) + 1


@pytest.mark.parametrize(
    ("values", "options", "expected"),
    [
        ([0.5, 0.5], {"patience": 1}, 2),
        ([0.5, 0.6, 0.7], {"patience": 1}, 4),  # each a rise
        ([0.5, 0.4, 0.45, 0.49, 0.6], {"patience": 3}, 4),  # rising, and still not above .5
        ([0.5, 0.4, 0.45, 0.51, 0.4, 0.4, 0.4], {"patience": 3}, 7),  # counted anew from .51
        ([-0.5, -0.4, -0.45, -0.45], {"patience": 2}, 4),  # less is better, as negative values that rise
        ([0.5, 0.5625, 0.625, 0.6875], {"patience": 2, "min_delta": 0.0625}, 5),  # .625 is above .5 + .0625
        ([0.5, 0.5625, 0.5625, 0.75], {"patience": 2, "min_delta": 0.0625}, 3),
    ],
)
def test_it_ends_after_so_many_evaluations_without_a_rise(
    values: list[float], options: dict[str, Any], expected: int
) -> None:
    assert evaluations_made(values, **options) == expected


def scripted(monkeypatch: pytest.MonkeyPatch, values: dict[str, dict[int, float]]) -> None:
    """Have the value that selects come from a script, by group and step; what is scored stays as it is."""
    evaluate = Selection.evaluate

    def evaluate_by_script(self: Selection, model: Any, step: int, *rest: Any) -> Any:
        return replace(evaluate(self, model, step, *rest), selected=values[self.group][step])

    monkeypatch.setattr(Selection, "evaluate", evaluate_by_script)


def test_a_run_that_stops_is_the_beginning_of_one_that_does_not(
    tmp_path: Path, material: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {ALL: {2: 0.1, 4: 0.3, 6: 0.3, 8: 0.2, 10: 0.9, 12: 0.9}})
    mtmeta.run(write_recipe(tmp_path, "reptile", material), out=tmp_path / "whole")
    stopping = write_recipe(tmp_path, "reptile", material, training={"stop": {"patience": 2}})
    run = mtmeta.run(stopping, out=tmp_path / "cut")
    whole, cut = ({n: w for n, w in weights(tmp_path / run).items() if "step-" in n} for run in ("whole", "cut"))
    assert sorted(cut)[-1] == "checkpoints/step-00000008/optimizer.safetensors"
    assert len(cut) == 8 and cut.items() <= whole.items()
    assert (run["steps"], run["planned_steps"]) == (8, STEPS)
    told, all_told = events(tmp_path / "cut"), events(tmp_path / "whole")
    losses, all_losses = ([event["losses"] for event in each if event["type"] == "step"] for each in (told, all_told))
    assert losses == all_losses[:8]
    assert [event["type"] for event in told[-4:]] == ["evaluated", "stopped_early", "checkpoint", "run_finished"]
    expected = {"group": ALL, "step": 8, "steps": STEPS, "evaluations": 2, "best": 0.3}
    assert told[-3] == {"type": "stopped_early", **expected}
    assert run["examples"] == [event["examples"] for event in told if event["type"] == "step"][-1]


def test_learners_that_train_alone_stop_each_by_itself(
    tmp_path: Path, material: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = {"sst": {2: 0.1, 4: 0.1}, "para": {2: 0.1, 4: 0.2, 6: 0.3, 8: 0.4, 10: 0.4, 12: 0.5}}
    scripted(monkeypatch, script)
    recipe = write_recipe(tmp_path, "individual", material, training={"stop": {"patience": 1}})
    run = mtmeta.run(recipe, out=tmp_path / "runs" / "one")
    stopped = {e["group"]: e["step"] for e in events(tmp_path / "runs" / "one") if e["type"] == "stopped_early"}
    assert stopped == {"sst": 4, "para": 10}
    assert (run["steps"], run["planned_steps"]) == (14, 2 * STEPS)
    with pytest.raises(SystemExit, match="0"):
        main(["runs", str(tmp_path / "runs")])
    assert "finished, stopped early, step 14 of 24" in " ".join(capsys.readouterr().out.split())


def test_one_that_waits_till_the_last_step_did_not_stop_early(
    tmp_path: Path, material: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {ALL: {2: 0.3, 4: 0.2, 6: 0.1}})
    recipe = write_recipe(tmp_path, "joint", material, training={"steps": 6, "stop": {"patience": 2}})
    run = mtmeta.run(recipe, out=tmp_path / "run")
    assert (run["steps"], run["planned_steps"]) == (6, 6)
    assert "stopped_early" not in {event["type"] for event in events(tmp_path / "run")}


def test_what_a_budget_pays_for_is_not_spent_to_the_end(
    tmp_path: Path, material: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    scripted(monkeypatch, {ALL: {2: 0.3, 4: 0.3}})
    training = {"steps": None, "stop": {"patience": 1}}
    recipe = write_recipe(tmp_path, "anil", material, training=training, budget={"examples": 200})
    run = mtmeta.run(recipe, out=tmp_path / "run")
    assert run["steps"] == 4 < run["planned_steps"]
    spent = [event["examples"] for event in events(tmp_path / "run") if event["type"] == "step"]
    assert run["examples"] == spent[-1] == spent[0] * 4 < 200


def test_a_plan_says_that_it_may_end_before(tmp_path: Path, material: dict[str, Any]) -> None:
    recipe = write_recipe(tmp_path, "joint", material, training={"stop": {}})
    plan = mtmeta.plan(recipe, out=tmp_path / "run", probe=0)
    assert plan["notes"] == ["these steps are the most there can be: training.stop may end training before"]


def test_it_needs_evaluations_on_the_way(tmp_path: Path, material: dict[str, Any]) -> None:
    changes = {"training": {"stop": {}}, "evaluation": {"every": None}}
    with pytest.raises(
        RecipeError, match=r"training\.stop goes by evaluations on the way, and evaluation\.every is null"
    ):
        mtmeta.run(write_recipe(tmp_path, "joint", material, **changes), out=tmp_path / "run")


def test_a_recipe_without_it_is_the_recipe_it_was(tmp_path: Path, material: dict[str, Any]) -> None:
    from mtmeta.core.recipe.resolved import decisive, describe

    described = describe(mtmeta.read_recipe(json.loads(write_recipe(tmp_path, "joint", material).read_text())))
    assert described["training"]["stop"] is None
    assert "stop" not in decisive(described)["training"]
