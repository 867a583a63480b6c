"""Learning rates of heads, tasks and layers, and the weights that joint learning finds by itself."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import mtmeta
from mtmeta.core.api.optimizers import SGD, AdamW
from mtmeta.core.errors import PluginError, RecipeError
from mtmeta.core.run.evaluate import open_run
from mtmeta.core.run.session import Session
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.testing.algorithms import check_algorithm
from tests.core.run.test_run import write_recipe
from tests.core.training.test_budget import sha256s
from tests.support.tiny import Always, by_hand_loss, gradients, tiny


def rates(options: Any, parameters: dict[str, Any]) -> dict[str, float]:
    """The learning rate each parameter is given."""
    names = {id(parameter): name for name, parameter in parameters.items()}
    groups = options.build(parameters.items()).param_groups
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def test_each_layer_takes_a_part_of_the_rate_of_the_one_above_it() -> None:
    learner, _ = tiny("sst")
    found = rates(AdamW(lr=0.1, head_lr=0.7, layer_decay=0.5), learner.parameters)
    for name, rate in found.items():
        if name.startswith("heads."):
            expected = 0.7
        elif ".layers.1." in name:
            expected = 0.1
        else:
            expected = 0.05 if ".layers.0." in name else 0.025  # embeddings lie below the first of two layers
        assert rate == expected, name
    assert {0.7, 0.1, 0.05, 0.025} == set(found.values())


def parameters(*names: str) -> dict[str, torch.nn.Parameter]:
    return {name: torch.nn.Parameter(torch.zeros(2, 2)) for name in names}


@pytest.mark.parametrize("layer", ["encoder.layer.{}.w", "layers.{}.a.b", "h.{}.mlp.w", "body.blocks.{}.w"])
def test_layers_are_known_by_the_names_that_encoders_give_them(layer: str) -> None:
    names = ["encoder.words.w", *(f"encoder.{layer.format(i)}" for i in range(3)), "encoder.final_norm.w"]
    found = rates(SGD(lr=1.0, layer_decay=0.1), parameters(*names))
    assert [found[name] for name in names] == pytest.approx([1e-3, 1e-2, 1e-1, 1.0, 1.0])


def test_without_decay_or_layers_there_is_one_rate() -> None:
    learner, _ = tiny("sst")
    assert set(rates(AdamW(lr=0.1), learner.parameters).values()) == {0.1}
    assert len(AdamW(lr=0.1).build(learner.parameters.items()).param_groups) == 4
    assert set(rates(SGD(lr=0.1, layer_decay=0.5), parameters("encoder.a", "encoder.b")).values()) == {0.1}


def test_a_rate_for_the_head_of_each_task() -> None:
    learner, _ = tiny()
    found = rates(AdamW(lr=0.1, head_lr={"sst": 0.3, "sts": 0.4}), learner.parameters)
    for name, rate in found.items():
        task = name.split(".")[1] if name.startswith("heads.") else ""
        assert rate == {"sst": 0.3, "sts": 0.4}.get(task, 0.1), name


def test_an_inner_loop_takes_them_too(tmp_path: Path) -> None:
    """With a rate of almost nothing for the para head that head stays, and no other parameter does."""
    path = write_recipe(tmp_path, "reptile", sampler="round_robin")
    text = json.loads(path.read_text())
    text["algorithm"]["inner_optimizer"] |= {"head_lr": {"para": 1e-30, "sst": 1e-2, "sts": 1e-2}, "weight_decay": 0.0}
    path.write_text(json.dumps(text))
    mtmeta.run(path, out=tmp_path / "run")
    run = open_run(tmp_path / "run")
    start = dict(model_of(run).named_parameters())
    moved = {name: not value.equal(start[name]) for name, value in weights_of(run).items()}
    assert [name for name in moved if not moved[name]] == [name for name in moved if name.startswith("heads.para.")]


def weights_of(run: Session) -> dict[str, torch.Tensor]:
    (group,) = run.groups
    newest = run.checkpoints(group).newest()[0]
    assert newest is not None
    return run.checkpoints(group).load(newest)[0]


def model_of(run: Session) -> MultiTaskModel:
    """The model that a run began from."""
    backbone = run.recipe.backbone.load(run.recipe.seed)
    return run.model(backbone.encoder, run.groups[0])


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ("optimizer.head_lr={sst: 1e-3, par: 1e-3}", "names no task of this recipe: 'par'; did you mean 'para'"),
        ("optimizer.head_lr={sst: 0}", "optimizer.head_lr"),
        ("optimizer.head_lr=[1]", "optimizer.head_lr"),
        ("optimizer.layer_decay=0", "optimizer.layer_decay"),
        ("optimizer.layer_decay=1.5", "optimizer.layer_decay"),
        ("algorithm.weighting=other", "algorithm.weighting"),
    ],
)
def test_rates_that_are_none(options: str, what: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError) as raised:
        mtmeta.run(write_recipe(tmp_path, "joint"), overrides=[options], out=tmp_path / "run")
    assert what in str(raised.value)


def test_an_inner_optimizer_that_names_no_task(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "reptile")
    what = r"algorithm\.inner_optimizer\.head_lr:? names no task of this recipe: 'x'; one of sst, para, sts"
    with pytest.raises(RecipeError, match=what):
        mtmeta.run(path, overrides=["algorithm.inner_optimizer.head_lr={x: 1.0}"], out=tmp_path / "run")


# ------------------------------------------------------------------------------------------------------- uncertainty


def uncertain(**options: Any) -> Any:
    """A learner and a feed with the numbers that Joint trains beside the model, moved from where they begin."""
    learner, feed = tiny(**options)
    numbers = Joint(weighting="uncertainty").parameters(list(learner.tasks))
    model = MultiTaskModel(learner.model.encoder, learner.tasks, 7, numbers)
    made = Learner(model, seed=7, steps=100)
    with torch.no_grad():
        for value, task in zip((0.3, -0.7, 1.1), learner.tasks, strict=True):
            made.parameters[f"algorithm.{task}"].fill_(value)
    return made, feed


@pytest.mark.parametrize("step", ["sum", "alternate"])
def test_uncertainty_descends_the_sum_of_weighted_losses_and_log_variances(step: Any) -> None:
    """Kendall et al. 2018: the gradient of lambda_t (exp(-s_t) l_t + s_t / 2), by autograd, model and s_t together."""
    weights = {"sst": 0.5, "para": 2.0, "sts": 1.5}
    learner, feed = uncertain(weights=weights, sampler=Always(("para",)))
    learner.begin_step(0)
    Joint(weighting="uncertainty", step=step).backward(learner, feed)
    other, feed = uncertain(weights=weights, sampler=Always(("para",)))
    total = torch.zeros(())
    for task in ("sst", "para", "sts") if step == "sum" else ("para",):
        s = other.parameters[f"algorithm.{task}"]
        weight = weights[task] / (3 if step == "sum" else 1)
        total = total + weight * ((-s).exp() * by_hand_loss(other, feed.batch(task)) + s / 2)
    expected = torch.autograd.grad(total, list(other.parameters.values()), allow_unused=True)
    for (name, found), grad in zip(gradients(learner).items(), expected, strict=True):
        assert (found is None) == (grad is None), name
        if found is not None:
            torch.testing.assert_close(found, grad, rtol=1e-4, atol=1e-6)


def test_at_the_beginning_it_weighs_as_fixed_does() -> None:
    learner, feed = tiny()
    learner.begin_step(0)
    Joint().backward(learner, feed)
    fixed = gradients(learner)
    learner, feed = uncertain()
    with torch.no_grad():
        for name, parameter in learner.parameters.items():
            if name.startswith("algorithm."):
                parameter.zero_()
    learner.begin_step(0)
    Joint(weighting="uncertainty").backward(learner, feed)
    for name, grad in fixed.items():
        torch.testing.assert_close(learner.parameters[name].grad, grad, rtol=1e-6, atol=1e-8)


def test_a_run_trains_keeps_and_restores_them(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "joint", algorithm={"name": "joint", "weighting": "uncertainty"})
    options = ["optimizer.head_lr=0.05", "training.steps=8"]
    summary = mtmeta.run(path, overrides=options, out=tmp_path / "run")
    found = {n: float(v) for n, v in weights_of(open_run(tmp_path / "run")).items() if n.startswith("algorithm.")}
    assert sorted(found) == ["algorithm.para", "algorithm.sst", "algorithm.sts"]
    assert all(abs(value) > 0.01 for value in found.values())
    # an MSE of 2 and more is far above the 1/2 at which the gradient of s is 0: Adam takes its whole step each time
    assert 0.2 < found["algorithm.sts"] < 0.225  # 0.05 times the sum of the linear factors is 0.225
    assert mtmeta.evaluate(tmp_path / "run")["mean"] == summary["mean"]
    assert len(list(mtmeta.load(tmp_path / "run").predict("sst", ["good"]))) == 1
    half = tmp_path / "half"
    mtmeta.run(path, overrides=options, out=half)
    (half / "summary.json").unlink()
    (half / "checkpoints" / "step-00000008" / "MANIFEST.json").unlink()
    mtmeta.run(path, overrides=options, out=half)  # goes on from step 6
    assert sha256s(half) == sha256s(tmp_path / "run")


def test_it_counts_in_a_budget_as_fixed_does(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, "joint", algorithm={"name": "joint", "weighting": "uncertainty"})
    assert mtmeta.run(path, overrides=["budget.examples=100"], out=tmp_path / "run")["examples"] == 96


def test_it_needs_two_tasks(tmp_path: Path) -> None:
    task = {"sst": {"train": "sample", "dev": "sample"}}
    path = write_recipe(tmp_path, "joint", tasks=task, algorithm={"name": "joint", "weighting": "uncertainty"})
    with pytest.raises(RecipeError, match=r"algorithm\.weighting uncertainty weighs tasks against each other"):
        mtmeta.run(path, out=tmp_path / "run")


@dataclass(frozen=True)
class Odd(mtmeta.Algorithm):
    """Trains a number of its own that it should not."""

    name = "odd"
    numbers: Any = None

    def parameters(self, tasks: Any) -> Any:
        return self.numbers


@pytest.mark.parametrize("numbers", [{"a.b": 1.0}, {"": 1.0}, {"a": math.nan}, {"a|b": 0.0}])
def test_numbers_that_cannot_be_trained(numbers: Any) -> None:
    session = object.__new__(Session)
    session.recipe = type("R", (), {"algorithm": Odd(numbers)})()
    with pytest.raises(PluginError, match=r"algorithm 'odd' trains .*names have no dots and numbers are finite"):
        session.numbers(["sst"], [])


def test_the_check_for_plugin_authors_knows_them() -> None:
    check_algorithm(Joint(weighting="uncertainty"), steps=2)
