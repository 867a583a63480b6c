"""Algorithms `surgery` and `weighting`: contract, state, refusals; their formulas are in benchmarks.identities."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

import mtmeta
from mtmeta.core import machine
from mtmeta.core.errors import MachineError
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.algorithms.surgery import (
    balances,
    baselines,
    descents,
    projections,
    scalarisers,
    surgery,
    weighting,
)
from mtmeta.testing import check_algorithm, tiny_learner
from tests.robustness.conftest import Material, material
from tests.robustness.test_exact_resume import assert_resumes
from tests.support.paths import ROOT

__all__ = ["material"]  # a fixture
METHODS = surgery.METHODS
SCALARISERS = get_args(get_args(weighting.ScalariserOptions)[0])
STATEFUL = (
    {"name": "surgery", "method": {"name": "gradvac", "beta": 0.5}},
    {"name": "surgery", "method": {"name": "pcd", "primary": "para", "beta": 0.5}},
    {"name": "surgery", "method": {"name": "nash_mtl", "every": 3}},
    {"name": "surgery", "method": "pcgrad"},
    {"name": "surgery", "method": "random"},
    {"name": "weighting", "method": "famo"},
    {"name": "weighting", "method": {"name": "dwa", "every": 2}},
    {"name": "weighting", "method": "uw"},
    {"name": "weighting", "method": "imtl_l"},
)


def some(cases: Sequence[Any], every: int) -> list[Any]:
    """Every third of the cases, or whatever `every` says; the others are slow."""
    return [
        case if number % every == 0 else pytest.param(case, marks=pytest.mark.slow) for number, case in enumerate(cases)
    ]


@pytest.mark.parametrize("method", some(METHODS, 3), ids=lambda method: str(method.name))
def test_the_contract_of_surgery(method: type[Any]) -> None:
    check_algorithm(surgery.Surgery(method=method()))


@pytest.mark.parametrize("method", some(SCALARISERS, 3), ids=lambda method: str(method.name))
def test_the_contract_of_weighting(method: type[Any]) -> None:
    check_algorithm(weighting.Weighting(method=method()))


@pytest.mark.parametrize("algorithm", some(STATEFUL, 3), ids=lambda algorithm: str(algorithm["method"]))
def test_a_run_goes_on_to_the_same_bits(algorithm: dict[str, Any], tmp_path: Path, material: Material) -> None:
    assert_resumes(tmp_path / "run", material, algorithm, optimizer={"name": "adamw", "lr": 1e-2})


def test_famo_pays_for_its_second_look() -> None:
    learner, feed = tiny_learner()
    algorithm = weighting.Weighting(method=scalarisers.FAMO())
    learner.begin_step(0)
    algorithm.backward(learner, feed)
    once = learner.examples
    algorithm.after_step(learner, feed)
    assert learner.examples == 2 * once


def test_a_gradient_that_is_not_finite_is_told_with_its_task(monkeypatch: pytest.MonkeyPatch) -> None:
    learner, feed = tiny_learner()
    learner.begin_step(0)
    whole = learner.gradient

    def broken(batch: Any, scale: Any = 1.0) -> Any:
        return whole(batch, scale * (float("inf") if batch.task == "para" else 1.0))

    monkeypatch.setattr(learner, "gradient", broken)
    with pytest.raises(mtmeta.DivergedError, match="gradient of task 'para' became non-finite at meta-step 1"):
        surgery.Surgery(method=descents.MGDA()).backward(learner, feed)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{name: surgery, method: {name: pcd, primary: stss}}", "method.primary names no task of this recipe: 'stss'"),
        ("{name: surgery, method: {name: constant, weights: {sst: 1}}}", "method.weights has no weight for para, sts"),
        ("{name: surgery, method: {name: krum, byzantine: 1}}", "method.byzantine is 1, which takes 4 tasks or more"),
        ("{name: surgery, method: {name: cagrad, c: 1}}", "algorithm.method.c must be a number >= 0 and < 1"),
        ("{name: surgery, method: pcgra}", "did you mean 'pcgrad'?"),
        ("{name: weighting, method: {name: stch, mu: 0}}", "algorithm.method.mu must be a number > 0"),
    ],
)
def test_options_that_do_not_fit(options: str, message: str, tmp_path: Path) -> None:
    from mtmeta.core.recipe.reader import load_recipe
    from mtmeta.core.registry.registry import build_registry

    text = (ROOT / "recipes" / "methods" / "weighting.yaml").read_text()
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text.replace("  name: weighting\n", "").replace("algorithm:", f"algorithm: {options}\nx:"))
    recipe.write_text(
        "\n".join(line for line in recipe.read_text().splitlines() if not line.startswith(("x:", "  method:")))
    )
    with pytest.raises(mtmeta.MtmetaError) as raised:
        load_recipe(recipe, build_registry())
    assert message in "\n".join(raised.value.lines())


def test_one_task_or_weights_without_effect_are_refused() -> None:
    tasks = dict(tiny_learner(examples=1)[0].tasks)
    alone = {"sst": tasks["sst"]}
    assert [option for option, _ in surgery.Surgery().check(alone)] == ["method"]
    assert [option for option, _ in weighting.Weighting().check(alone)] == ["method"]
    heavy = {**tasks, "sts": type(tasks["sts"])(train="sample", loss_weight=2.0)}
    for method in (scalarisers.FAMO(), scalarisers.GLS()):
        (problem,) = weighting.Weighting(method=method).check(heavy)
        assert "in which the loss_weight of sts has no part" in problem[1]


def test_uncertainty_of_joint_is_uw_but_for_a_regression() -> None:
    directions = []
    for algorithm in (Joint(weighting="uncertainty"), weighting.Weighting(method=scalarisers.UW())):
        learner, feed = tiny_learner(algorithm=algorithm)
        learner.begin_step(0)
        algorithm.backward(learner, feed)
        named = learner.parameters.items()
        directions.append({name: p.grad for name, p in named if p.grad is not None and not name.startswith("encoder.")})
    one, other = directions
    assert set(one) == set(other)
    different = {name for name in one if not one[name].allclose(other[name])}
    assert different == {name for name in one if name.startswith("heads.sts.") or name == "algorithm.sts"}
    assert other["heads.sts.dense.weight"].mul(2).allclose(one["heads.sts.dense.weight"])


def test_a_frozen_encoder_has_no_gradients_to_combine() -> None:
    learner, feed = tiny_learner(adapters={"rank": 2, "encoder": "frozen"})
    with pytest.raises(mtmeta.RecipeError, match=r"the encoder, which is frozen; set adapters\.encoder: trained"):
        surgery.Surgery(method=descents.MGDA()).backward(learner, feed)


def test_without_the_extra_only_what_needs_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in ("torchjd", "cvxpy") else found(name))
    with pytest.raises(MachineError) as raised:
        surgery.Surgery(method=descents.CAGrad()).require()
    line = "error: algorithm.method 'cagrad': needs torchjd and cvxpy; pip install 'mtmeta[surgery]'"
    assert raised.value.lines() == [line]
    for method in (descents.MGDA(), balances.NashMTL(), balances.FairGrad(), baselines.Constant(), baselines.Krum()):
        surgery.Surgery(method=method).require()
    weighting.Weighting().require()


def test_another_torchjd_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.19.0")
    with pytest.raises(MachineError, match=r"needs torchjd 0\.18, found 0\.19\.0; pip install"):
        surgery.Surgery(method=projections.PCGrad()).require()


def test_gradients_that_memory_does_not_hold_are_refused_before_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemAvailable: 1 kB\n")
    monkeypatch.setattr(machine, "MEMINFO", meminfo)
    recipe = ROOT / "recipes" / "methods" / "surgery.yaml"
    tiny = ["backbone={name: bert, weights: tiny}", "algorithm.method=mgda"]
    with pytest.raises(MachineError) as raised:
        mtmeta.run(recipe, overrides=tiny, out=tmp_path / "out")
    assert "algorithm 'surgery': holds" in str(raised.value) and not (tmp_path / "out").exists()


def test_the_global_generator_is_left_alone() -> None:
    import torch

    before = torch.get_rng_state()
    from mtmeta.plugins.algorithms.surgery import extra

    with extra.seeded(3):
        torch.randn(3)
    assert torch.equal(before, torch.get_rng_state())
