"""`training.average`: what is averaged, what is evaluated, selected and kept, and that training knows nothing of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import mtmeta
from mtmeta.core.errors import CheckpointError, RecipeError
from mtmeta.core.methods.averaging import Average
from mtmeta.core.recipe.sections import AverageOptions
from tests.core.run.test_run import write_recipe

STEPS = 6


def trained(folder: Path, *overrides: str, **options: Any) -> Path:
    """Train every step's checkpoint kept, evaluating at the end alone; returns the run's checkpoints."""
    recipe = write_recipe(folder, "joint", **options)
    kept = ("checkpoint.every=1", f"checkpoint.keep={STEPS}", "evaluation.every=null", f"training.steps={STEPS}")
    mtmeta.run(recipe, out=folder / "run", overrides=[*kept, *overrides])
    return folder / "run" / "checkpoints"


def weights_after(checkpoints: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(checkpoints / f"step-{step:08d}" / "model.safetensors")


@pytest.mark.parametrize("kind", ["ema", "swa"])
def test_the_best_weights_are_the_average_of_those_after_each_step(kind: str, tmp_path: Path) -> None:
    average = f"training.average={{kind: {kind}, decay: 0.75, from: 0.4}}"
    checkpoints = trained(tmp_path, average)
    first = 3  # of 6 steps the share .4 is 2.4
    for name, best in load_file(checkpoints / "best" / "model.safetensors").items():
        thetas = [weights_after(checkpoints, step)[name].double() for step in range(first, STEPS + 1)]
        expected = thetas[0]
        for count, theta in enumerate(thetas[1:], start=2):
            share = 1 / count if kind == "swa" else 0.25
            expected = expected + share * (theta - expected)
        assert best.double().sub(expected).abs().max() < 1e-6, name
        assert not best.equal(weights_after(checkpoints, STEPS)[name]), name


def test_training_does_not_feel_it(tmp_path: Path) -> None:
    (tmp_path / "with").mkdir()
    (tmp_path / "without").mkdir()
    averaged = trained(tmp_path / "with", "training.average={from: 0.0}", "evaluation.every=2")
    plain = trained(tmp_path / "without", "evaluation.every=2")
    for step in range(1, STEPS + 1):
        one, other = weights_after(averaged, step), weights_after(plain, step)
        assert all(one[name].equal(other[name]) for name in one)


def test_until_it_begins_the_weights_themselves_are_evaluated(tmp_path: Path) -> None:
    checkpoints = trained(tmp_path, "training.average={from: 0.99}")
    best = load_file(checkpoints / "best" / "model.safetensors")
    last = weights_after(checkpoints, STEPS)  # the first step averaged is theta itself
    assert all(best[name].equal(last[name]) for name in best)


def test_a_checkpoint_holds_it(tmp_path: Path) -> None:
    checkpoints = trained(tmp_path, "training.average={from: 0.4}")
    before, after = (load_file(checkpoints / f"step-{step:08d}" / "optimizer.safetensors") for step in (2, STEPS))
    assert not [name for name in before if name.startswith("average|")]
    held = {name for name in after if name.startswith("average|bar|")}
    assert held == {f"average|bar|{name}" for name in weights_after(checkpoints, STEPS)}
    assert int(after["average|steps|count"]) == 4


def test_parameters_are_back_whatever_an_evaluation_raises() -> None:
    parameter = torch.nn.Parameter(torch.zeros(3))
    average = Average(AverageOptions(begin=0.0), {"encoder.w": parameter}, 2)
    average.after_step(1)
    with torch.no_grad():
        parameter.add_(1.0)
    with pytest.raises(ValueError, match="seen"), average.in_place():
        assert parameter.equal(torch.zeros(3))
        raise ValueError("seen")
    assert parameter.equal(torch.ones(3))


def test_a_state_of_other_parameters_is_refused() -> None:
    one = Average(AverageOptions(begin=0.0), {"encoder.w": torch.nn.Parameter(torch.zeros(3))}, 2)
    one.after_step(1)
    other = Average(AverageOptions(begin=0.0), {"encoder.v": torch.nn.Parameter(torch.zeros(3))}, 2)
    with pytest.raises(KeyError):
        other.restore(one.state())


def test_a_run_goes_on_only_with_the_average_it_began_with(tmp_path: Path) -> None:
    trained(tmp_path, "training.average={from: 0.4}")
    with pytest.raises(CheckpointError, match=r"differs in: training.average"):
        trained(tmp_path, "training.average={from: 0.5}")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("{from: 1.0}", "training.average.from must be a number >= 0 and < 1, found 1.0"),
        ("{begin: 0.5}", "unknown key 'begin' in 'training.average'; one of kind, decay, from"),
        ("{kind: ewa}", "training.average.kind must be one of ema, swa, found 'ewa'"),
        ("{decay: 1}", "training.average.decay must be a number > 0 and < 1, found 1"),
    ],
)
def test_what_cannot_be_averaged(given: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message.replace(".", r"\.")):
        trained(tmp_path, f"training.average={given}")
