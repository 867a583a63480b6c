"""Budgets of example-forwards: the steps they pay for, counted without a model, are those that training spends."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mtmeta
from mtmeta.core.data.feed import Feed
from mtmeta.core.errors import PluginError, RecipeError
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import decisive, describe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.training import budget as budgets
from mtmeta.core.training.budget import share_of, steps_within
from mtmeta.plugins.algorithms.fomaml import Fomaml
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.algorithms.reptile import Reptile
from mtmeta.plugins.samplers import Annealed, Fixed, Uniform
from tests.core.run.test_run import ALGORITHMS, write_recipe
from tests.support import tiny
from tests.support.parameters import some_quick

SEED = 5


def parts(examples: int = 50) -> dict[str, Any]:
    """Encoder, tasks and datasets; 50 examples in batches of 8, so that the last batch of an epoch is short."""
    learner, feed = tiny.tiny(examples=examples)
    datasets = {name: feed.streams[name].dataset for name in feed.tasks}
    return {"encoder": learner.model.encoder, "tasks": feed._tasks, "datasets": datasets}


def trained(algorithm: mtmeta.Algorithm, sampler: mtmeta.Sampler, steps: int) -> list[int]:
    """Example-forwards after each step of real training."""
    learner, feed = tiny.tiny(examples=50)
    again = Feed(feed._tasks, {n: feed.streams[n].dataset for n in feed.tasks}, sampler, seed=SEED)
    again.steps = steps
    spent = []
    for step in range(steps):
        again.step = step
        learner.begin_step(step)
        algorithm.backward(learner, again)
        spent.append(learner.examples)
    return spent


@pytest.mark.parametrize(
    "algorithm",
    [
        Joint(),
        Joint(step="alternate"),
        Reptile(),
        Reptile(tasks_per_step=2),
        Fomaml(),
        Fomaml(inner_steps=0),
        Fomaml(support="all", head_policy="reset"),
    ],
    ids=repr,
)
@pytest.mark.parametrize(
    "sampler",
    some_quick([Uniform(), Annealed(epochs=3), Fixed(weights={"sst": 0.6, "para": 0.1, "sts": 0.3})], 1),
    ids=repr,
)
def test_it_is_the_longest_run_that_stays_within(algorithm: mtmeta.Algorithm, sampler: mtmeta.Sampler) -> None:
    budget = 500
    steps = steps_within(budget, algorithm, sampler, **parts(), seed=SEED)
    assert trained(algorithm, sampler, steps)[-1] <= budget
    assert trained(algorithm, sampler, steps + 1)[-1] > budget


def test_a_budget_that_is_met_exactly_is_spent() -> None:
    spent = trained(Reptile(), Uniform(), 7)
    assert steps_within(spent[-1], Reptile(), Uniform(), **parts(), seed=SEED) == 7
    assert steps_within(spent[-1] - 1, Reptile(), Uniform(), **parts(), seed=SEED) == 6


def test_the_encoder_is_left_alone() -> None:
    given = parts()
    before = {name: value.clone() for name, value in given["encoder"].state_dict().items()}
    steps_within(200, Fomaml(), Uniform(), **given, seed=SEED)
    assert all(parameter.grad is None for parameter in given["encoder"].parameters())
    assert all(value.equal(before[name]) for name, value in given["encoder"].state_dict().items())


def test_less_than_a_step_is_refused() -> None:
    with pytest.raises(RecipeError, match=r"budget.examples: 23 example-forwards are less than one step takes \(24\)"):
        steps_within(23, Joint(), Uniform(), **parts(), seed=SEED)
    assert steps_within(24, Joint(), Uniform(), **parts(), seed=SEED) == 1


@dataclass(frozen=True)
class Idle(mtmeta.Algorithm):
    """Reads nothing."""

    name = "idle"

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        pass


def test_an_algorithm_that_reads_nothing_has_no_length() -> None:
    with pytest.raises(PluginError, match="reads no example in its first step"):
        steps_within(100, Idle(), Uniform(), **parts(), seed=SEED)


@pytest.mark.parametrize("limit", [1, 2, 3, 63, 64, 65, 1000, 123_456])
@pytest.mark.parametrize("guess", [0, 1, 50, 70, 10_000, 10**9])
def test_the_search_finds_the_last_that_fits(limit: int, guess: int) -> None:
    asked: list[int] = []

    def fits(number: int) -> bool:
        asked.append(number)
        return number <= limit

    assert budgets._largest(fits, at_least=1, most=10**7, guess=guess) == limit
    assert len(asked) < 50
    if abs(guess - limit) <= 2:
        assert len(asked) <= 4


# ---------------------------------------------------------------------------------------------------------- whole runs


def sha256s(run: Path) -> dict[str, str]:
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in run.rglob("model.safetensors")}


@pytest.mark.parametrize("name", some_quick(ALGORITHMS, 2))
def test_a_run_on_a_budget_is_the_run_of_as_many_steps(name: str, tmp_path: Path) -> None:
    """Schedules too have the true length: the weights are those of a recipe that gives the steps."""
    path = write_recipe(tmp_path, name)
    budget = 300
    summary = mtmeta.run(path, overrides=[f"budget.examples={budget}"], out=tmp_path / "budget")
    assert 0 < summary["examples"] <= budget
    groups = 3 if name == "individual" else 1
    steps, odd = divmod(summary["steps"], groups)
    assert odd == 0  # tasks of one size have the same steps
    plain = mtmeta.run(path, overrides=[f"training.steps={steps}"], out=tmp_path / "steps")
    assert plain["examples"] == summary["examples"]
    assert sha256s(tmp_path / "steps") == sha256s(tmp_path / "budget")
    longer = mtmeta.run(path, overrides=[f"training.steps={steps + 1}"], out=tmp_path / "longer")
    assert longer["examples"] > budget


def test_tasks_that_train_alone_share_the_budget(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "individual")
    summary = mtmeta.run(path, overrides=["budget.examples=330", "tasks.sst.batch_size=10"], out=tmp_path / "run")
    read = {task: used["examples"] for task, used in summary["sampling"].items()}
    assert read == {"sst": 110, "para": 96, "sts": 96}  # at most 110 each, in whole batches of 10 and 16


def test_tasks_that_train_alone_have_the_shares_of_the_recipe(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "individual")
    shares = "budget.shares={sst: 0.3, para: 0.58, sts: 0.12}"
    summary = mtmeta.run(path, overrides=["budget.examples=400", shares], out=tmp_path / "run")
    read = {task: used["examples"] for task, used in summary["sampling"].items()}
    assert read == {"sst": 112, "para": 224, "sts": 48}  # at most 120, 232 and 48, in batches of 16


def test_shares_are_taken_as_they_are_written(tmp_path: Path) -> None:
    """In binary floats, floor(100 * 0.58) is 57."""
    assert math.floor(100 * 0.58 / (0.01 + 0.41 + 0.58)) == 57
    overrides = ["budget.examples=100", "budget.shares={sst: 0.01, para: 0.41, sts: 0.58}"]
    recipe = load_recipe(write_recipe(tmp_path, "individual"), build_registry(), overrides=overrides)
    assert [share_of(recipe, [task]) for task in ("sst", "para", "sts")] == [1, 41, 58]
    assert share_of(recipe, ["sst", "para", "sts"]) == 100


def test_equal_shares_are_those_of_none(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "individual")
    alike = ["budget.examples=100", "budget.shares={sst: 2, para: 2, sts: 2}"]
    for overrides in (alike, alike[:1]):
        recipe = load_recipe(path, build_registry(), overrides=overrides)
        assert [share_of(recipe, [task]) for task in recipe.tasks] == [33, 33, 33]


@pytest.mark.parametrize(
    ("algorithm", "budget", "message"),
    [
        ("individual", {"examples": 99, "shares": {"sst": 1, "paar": 1, "sts": 1}}, "'paar'; did you mean 'para'?"),
        (
            "individual",
            {"examples": 99, "shares": {"sst": 1, "sts": 1}},
            "budget.shares gives no share for task 'para'",
        ),
        ("individual", {"examples": 99, "shares": {"sst": 1, "para": 0, "sts": 1}}, "budget.shares.para"),
        ("individual", {"shares": {"sst": 1, "para": 1, "sts": 1}}, "divides budget.examples, and there is none"),
        ("joint", {"examples": 99, "shares": {"sst": 1, "para": 1, "sts": 1}}, "'joint' trains all tasks together"),
    ],
)
def test_shares_that_divide_nothing(algorithm: str, budget: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        mtmeta.run(write_recipe(tmp_path, algorithm, budget=budget), out=tmp_path / "run")
    assert message in str(raised.value)
    assert not (tmp_path / "run").exists()


def test_a_misspelt_share_counts_for_one_that_is_missing(tmp_path: Path) -> None:
    budget = {"examples": 99, "shares": {"sst": 1, "paar": 1}}
    with pytest.raises(mtmeta.Problems) as raised:
        mtmeta.run(write_recipe(tmp_path, "individual", budget=budget), out=tmp_path / "run")
    told = [str(problem) for problem in raised.value.problems]
    assert len(told) == 2
    assert "names no task of this recipe: 'paar'" in told[0] and "gives no share for task 'sts'" in told[1]


def test_one_task_has_nothing_to_divide(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "individual", budget={"examples": 99, "shares": {"sst": 1}})
    recipe = json.loads(path.read_text())
    recipe["tasks"] = {"sst": recipe["tasks"]["sst"]}
    path.write_text(json.dumps(recipe))
    with pytest.raises(RecipeError, match="there is one task, so nothing to divide"):
        mtmeta.run(path, out=tmp_path / "run")


def test_a_faulty_task_is_a_task_all_the_same(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "individual", budget={"examples": 99, "shares": {"sst": 1, "para": 1, "sts": 1}})
    with pytest.raises(RecipeError) as raised:
        mtmeta.run(path, overrides=["tasks.para=7"], out=tmp_path / "run")
    assert "must be a mapping, found 7" in str(raised.value) and "shares" not in str(raised.value)


def test_a_share_below_a_step_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "individual")
    shares = "budget.shares={sst: 0.01, para: 1, sts: 1}"
    what = r"of 400 example-forwards, the 1 of task 'sst' are less than one step takes \(16\); raise it or its share or"
    with pytest.raises(RecipeError, match=what):
        mtmeta.run(path, overrides=["budget.examples=400", shares], out=tmp_path / "run")


def test_recipes_without_shares_are_those_that_they_were(tmp_path: Path) -> None:
    """Runs from before there were shares go on."""
    recipe = load_recipe(write_recipe(tmp_path, "individual"), build_registry(), overrides=["budget.examples=400"])
    described = describe(recipe)
    assert decisive(described)["budget"] == {"examples": 400}
    shares = replace(recipe.budget, shares={"sst": 1.0, "para": 1.0, "sts": 1.0})
    assert "shares" in decisive(describe(replace(recipe, budget=shares)))["budget"]


def test_a_budget_comes_before_steps_and_epochs(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "joint", training={"epochs": 9})
    summary = mtmeta.run(path, overrides=["budget.examples=96"], out=tmp_path / "run")
    assert (summary["steps"], summary["examples"]) == (2, 96)


def test_a_recipe_may_have_a_budget_alone(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "joint", training=None, budget={"examples": 100})
    assert mtmeta.run(path, out=tmp_path / "run")["examples"] == 96
    with pytest.raises(RecipeError, match="training needs either steps or epochs"):
        mtmeta.run(path, overrides=["budget.examples=null"], out=tmp_path / "other")


@pytest.mark.parametrize(
    ("value", "what"),
    [
        ("0", "budget.examples: must be an integer from 1"),
        ("1.5", "budget.examples: must be an integer from 1"),
        ("many", "budget.examples: expected an integer, found 'many'"),
    ],
)
def test_budgets_that_are_none(value: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=what):
        mtmeta.run(write_recipe(tmp_path, "joint"), overrides=[f"budget.examples={value}"], out=tmp_path / "run")


def test_a_budget_too_small_for_a_step_changes_nothing(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"budget.examples: 40 example-forwards are less than one step takes \(48\)"):
        mtmeta.run(write_recipe(tmp_path, "joint"), overrides=["budget.examples=40"], out=tmp_path / "run")
    assert not (tmp_path / "run" / "summary.json").exists()


def test_an_algorithm_that_goes_by_its_losses_does_not_exceed_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The steps are counted as if every loss were 0; where that was too few, the run ends instead."""

    def more_where_it_hurts(self: Joint, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            while float(learner.gradient(feed.batch(task))) > 0.1 and learner.examples % 160:
                pass

    monkeypatch.setattr(Joint, "backward", more_where_it_hurts)
    with pytest.raises(PluginError, match=r"reads more than could be counted before training; give training.steps"):
        mtmeta.run(write_recipe(tmp_path, "joint"), overrides=["budget.examples=300"], out=tmp_path / "run")


# ------------------------------------------------------------------------------------------------ parts as plugins are


@dataclass(frozen=True)
class Curious(mtmeta.Algorithm):
    """Asks for all that a learner has: where it computes, how far an inner loop went, which examples a batch holds."""

    name = "curious"

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        task = feed.tasks[0]
        seen: list[str] = []
        with learner.excursion(task, mtmeta.AdamW(lr=1e-3), mtmeta.Step(every=30, gamma=0.8)) as inner:
            for _ in range(2):
                batch = feed.batch(task)
                seen += batch.ids
                assert len(batch) == len(set(batch.ids))
                inner.step(batch)
            inner.keep_delta()
            assert float(inner.drift()) >= 0
        order.append(tuple(seen))
        best = int(torch.tensor([1.0, 3.0, 2.0], device=learner.device).argmax())
        assert len(learner.drifts) == best == 1


order: list[tuple[str, ...]] = []


def test_what_an_algorithm_may_ask_for_is_there() -> None:
    order.clear()
    steps = steps_within(200, Curious(), Uniform(), **parts(), seed=SEED)
    assert steps > 6  # more than an epoch
    rehearsed = order[1 : 1 + steps]  # the second time it is gone through; the first is of one step
    order.clear()
    trained(Curious(), Uniform(), steps)
    assert rehearsed == order  # the very same examples, in their order


class Decoded(list[str]):
    """Ids that count how many were looked up."""

    looked_up = 0

    def __getitem__(self, at: Any) -> Any:
        Decoded.looked_up += 1
        return super().__getitem__(at)


def test_ids_are_not_decoded_for_nothing() -> None:
    given = parts()
    given["datasets"] = {n: replace(data, ids=Decoded(data.ids)) for n, data in given["datasets"].items()}
    Decoded.looked_up = 0
    steps_within(500, Reptile(), Uniform(), **given, seed=SEED)
    assert Decoded.looked_up == 0
    steps_within(500, Curious(), Uniform(), **given, seed=SEED)
    assert Decoded.looked_up > 0


@dataclass(frozen=True)
class Counting(mtmeta.Algorithm):
    """Reads one batch more each step, by a count of its own."""

    name = "counting"
    counted: list[int] = field(default_factory=list)

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        self.counted.append(1)
        for _ in self.counted:
            learner.gradient(feed.batch(feed.tasks[0]))


def test_parts_that_count_for_themselves_begin_training_as_they_were() -> None:
    algorithm = Counting()
    steps = steps_within(200, algorithm, Uniform(), **parts(), seed=SEED)
    assert algorithm.counted == []
    assert trained(Counting(), Uniform(), steps)[-1] <= 200 < trained(Counting(), Uniform(), steps + 1)[-1]


def test_parts_keep_their_plugin_when_they_are_copied(tmp_path: Path) -> None:
    """A plugin holds its module, which cannot be copied."""
    algorithm = load_recipe(write_recipe(tmp_path, "joint"), build_registry()).algorithm
    assert budgets._own(algorithm) == algorithm
    assert getattr(budgets._own(algorithm), "mtmeta_supplier", None) is getattr(algorithm, "mtmeta_supplier", None)


def test_more_than_a_run_may_have_is_refused() -> None:
    """Not cut to ten million steps in silence; nor gone through, which would take an hour."""
    what = r"10,000,000,000,000 example-forwards are more than the 10,000,000 steps take that a run may have; lower it"
    with pytest.raises(RecipeError, match=what):
        steps_within(10**13, Joint(), Uniform(), **parts(), seed=SEED)


def test_more_than_a_run_may_have_at_the_very_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(budgets, "MOST_STEPS", 10)
    spent = trained(Reptile(), Uniform(), 10)[-1]
    assert steps_within(spent, Reptile(), Uniform(), **parts(), seed=SEED) == 10
    with pytest.raises(RecipeError, match="more than the 10 steps take"):
        steps_within(spent + 40, Reptile(), Uniform(), **parts(), seed=SEED)


def test_a_share_that_is_too_small_names_the_whole(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "individual")
    what = r"budget.examples: of 45 example-forwards, the 15 of task 'sst' are less than one step takes \(16\)"
    with pytest.raises(RecipeError, match=what):
        mtmeta.run(path, overrides=["budget.examples=45"], out=tmp_path / "run")


def test_epochs_that_a_budget_overrules_are_not_asked_for(tmp_path: Path) -> None:
    """Reptile has no epochs; with a budget nobody counts them."""
    path = write_recipe(tmp_path, "reptile", training={"epochs": 2})
    summary = mtmeta.run(path, overrides=["budget.examples=100"], out=tmp_path / "run")
    assert 0 < summary["examples"] <= 100
    with pytest.raises(RecipeError, match="algorithm 'reptile' counts steps, not epochs"):
        mtmeta.run(path, out=tmp_path / "other")
