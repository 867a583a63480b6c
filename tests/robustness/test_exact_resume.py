"""Ten steps are five, a new start, and five more, bit for bit: every algorithm, sampler, optimizer and schedule.

The parts are those of the registry, so a new one is covered when it is registered. A few combinations run by default,
all of them under `-m slow`.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest

from mtmeta.core.api.optimizers import OptimizerOptions
from mtmeta.core.api.option_types import InnerState
from mtmeta.core.api.schedules import ScheduleOptions
from mtmeta.core.registry.discovery import load_plugins
from mtmeta.core.registry.registry import Registry
from tests.robustness.conftest import Material
from tests.robustness.small import differences, outcome, train, write_recipe

REGISTRY = Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"}))
TASKS = ("sst", "para")
# what a part needs, or what makes it keep state
OPTIONS: dict[str, dict[str, Any]] = {
    "joint": {"step": "alternate"},
    "maml": {"order": 1},  # order 2 takes sgd alone
    "protonet": {"shots": 2, "queries": 2},
    "fixed": {"weights": {"sst": 0.7, "para": 0.3}},
    "annealed": {"epochs": 4},
    "temperature": {"temperature": 3.0},
    "sgd": {"lr": 0.1, "momentum": 0.5},
    "plateau": {"patience": 0, "threshold": 0.5},
    "step": {"every": 2},
    "linear": {"warmup": 3},
}
STEPS = 10


def _names(union: Any) -> list[str]:
    """Names of the members of a union of options."""
    return [member.name for member in get_args(get_args(union)[0])]


ALGORITHMS, SAMPLERS = REGISTRY.names("algorithm"), REGISTRY.names("sampler")
OPTIMIZERS, SCHEDULES = _names(OptimizerOptions), _names(ScheduleOptions)
INNER_STATES = list(get_args(InnerState))
INNER_SCHEDULES = [name for name in SCHEDULES if name != "plateau"]  # an inner loop has no metric
LOOPING = [
    name
    for name in ALGORITHMS
    if "inner_optimizer" in {field.name for field in dataclasses.fields(REGISTRY.get("algorithm", name, ""))}
]


def covering(*axes: Sequence[str], rows: int) -> list[tuple[str, ...]]:
    """`rows` combinations in which every member of every axis comes, the pairs as mixed as a shift makes them."""
    assert rows >= max(map(len, axes))
    return [
        tuple(axis[(row + row // len(axis) * shift) % len(axis)] for shift, axis in enumerate(axes))
        for row in range(rows)
    ]


def _part(name: str, **options: Any) -> dict[str, Any]:
    rate = {"lr": 1e-3} if name in OPTIMIZERS else {}
    return {"name": name, **rate, **OPTIONS.get(name, {}), **options}


def assert_resumes(folder: Path, material: Material, algorithm: dict[str, Any], **sections: Any) -> None:
    """Cut off after half of the last group's steps and continued, the run ends as one that was not."""
    folder.mkdir()
    recipe = write_recipe(
        folder / "recipe.yaml",
        "joint",
        data=material.data,
        weights=str(material.weights),
        steps=STEPS,
        evaluate_every=2,
        checkpoint_every=STEPS // 2,
        **{"schedule": "constant", "sampler": "uniform", "training": {}, "algorithm": algorithm, **sections},
    )
    whole = train(recipe, folder / "whole")
    groups = len(TASKS) if algorithm["name"] == "individual" else 1
    cut = train(recipe, folder / "cut", stop_after=(groups - 1) * STEPS + STEPS // 2)
    (last,) = {path.parent for path in whole.rglob(f"step-{STEPS:08d}") if groups == 1 or path.parent.name == TASKS[-1]}
    assert not (cut / last.relative_to(whole) / f"step-{STEPS:08d}").exists(), "it was to be cut off"
    assert (cut / last.relative_to(whole) / f"step-{STEPS // 2:08d}").exists()
    assert train(recipe, folder / "cut") == cut
    assert differences(outcome(whole), outcome(cut)) == [], (algorithm, sections)


def _check(folder: Path, material: Material, algorithm: str, sampler: str, optimizer: str, schedule: str) -> None:
    sections = {"sampler": _part(sampler), "optimizer": _part(optimizer), "schedule": _part(schedule)}
    training = {"on_nonfinite": "skip", "grad_accumulation": 2} if schedule == "cosine" else {}
    assert_resumes(folder, material, _part(algorithm), **sections, training=training)


def _check_inner(folder: Path, material: Material, algorithm: str, state: str, optimizer: str, schedule: str) -> None:
    inner = {
        "inner_state": state,
        "inner_optimizer": _part(optimizer) | ({} if optimizer == "sgd" else {"betas": [0.9, 0.99]}),
        "inner_schedule": _part(schedule),
        "tasks_per_step": 2,
    }
    assert_resumes(folder, material, _part(algorithm, **inner), optimizer=_part("sgd"))


def test_every_kind_of_part_is_known() -> None:
    """The axes hold what the registry holds, and were not found empty."""
    assert {"individual", "joint", "reptile", "fomaml"} <= set(ALGORITHMS)
    assert len(SAMPLERS) >= 6
    assert len(OPTIMIZERS) >= 4
    assert len(SCHEDULES) >= 6
    assert {"reptile", "fomaml"} <= set(LOOPING)
    rows = covering(ALGORITHMS, SAMPLERS, OPTIMIZERS, SCHEDULES, rows=ROWS)
    for axis, seen in zip((ALGORITHMS, SAMPLERS, OPTIMIZERS, SCHEDULES), zip(*rows, strict=True), strict=True):
        assert set(axis) == set(seen)


ROWS = max(*map(len, (ALGORITHMS, SAMPLERS, OPTIMIZERS, SCHEDULES)))


@pytest.mark.parametrize(
    ("algorithm", "sampler", "optimizer", "schedule"), covering(ALGORITHMS, SAMPLERS, OPTIMIZERS, SCHEDULES, rows=ROWS)
)
def test_parts(algorithm: str, sampler: str, optimizer: str, schedule: str, tmp_path: Path, material: Material) -> None:
    _check(tmp_path / "run", material, algorithm, sampler, optimizer, schedule)


@pytest.mark.parametrize(
    ("algorithm", "state", "optimizer", "schedule"),
    covering(LOOPING, INNER_STATES, OPTIMIZERS, INNER_SCHEDULES, rows=len(INNER_SCHEDULES)),
)
def test_inner_parts(
    algorithm: str, state: str, optimizer: str, schedule: str, tmp_path: Path, material: Material
) -> None:
    _check_inner(tmp_path / "run", material, algorithm, state, optimizer, schedule)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "optimizer"), list(itertools.product(ALGORITHMS, OPTIMIZERS)))
def test_all_parts(algorithm: str, optimizer: str, tmp_path: Path, material: Material) -> None:
    for sampler, schedule in itertools.product(SAMPLERS, SCHEDULES):
        _check(tmp_path / f"{sampler}-{schedule}", material, algorithm, sampler, optimizer, schedule)


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "state"), list(itertools.product(LOOPING, INNER_STATES)))
def test_all_inner_parts(algorithm: str, state: str, tmp_path: Path, material: Material) -> None:
    for optimizer, schedule in itertools.product(OPTIMIZERS, INNER_SCHEDULES):
        _check_inner(tmp_path / f"{optimizer}-{schedule}", material, algorithm, state, optimizer, schedule)
