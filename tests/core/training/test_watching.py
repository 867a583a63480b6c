"""Watching a run changes none of its weights: evaluating, saving, reporting and measuring, more often or less."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

import mtmeta

ByAlgorithm = Callable[[str], str]
STEPS = 12
TASKS = "{sst: {train: sample, dev: sample}, para: {train: sample, dev: sample}, sts: {train: sample, dev: sample}}"
ALGORITHMS = {
    "joint": "joint",
    "reptile": "{name: reptile, tasks_per_step: 2, inner_optimizer: {name: adamw, lr: 1.0e-2}}",
    "fomaml": "{name: fomaml, tasks_per_step: 2, inner_optimizer: {name: adamw, lr: 1.0e-2}}",
}
WATCHED = {
    "evaluated every 2 steps": "evaluation: {every: 2}",
    "evaluated every 3 steps": "evaluation: {every: 3}",
    "evaluated every 6 steps": "evaluation: {every: 6}",
    "evaluated at every step": "evaluation: {every: 1}",
    "evaluated in other batches": "evaluation: {every: 4, batch_tokens: 100}",
    "selected by one task": "evaluation: {every: 4, select: sst}",
    "gradients measured": "evaluation: {every: 2, gradients: true}",
    "saved at every step": "checkpoint: {every: 1}",
    "saved every 5 steps, all kept": "checkpoint: {every: 5, keep: 9}",
    "saved all the time": "checkpoint: {minutes: 0.00001}",
    "reported to nobody": "reporters: []",
    "reported to all": "reporters: [console, jsonl, metrics, tensorboard]",
}


def run(folder: Path, algorithm: str, extra: str) -> str:
    """The SHA-256 of the weights after the last step. Dropout is on: a draw more or less would change them."""
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        f"name: watched\nbackbone: {{name: bert, weights: tiny, max_length: 32, dropout: 0.3}}\ntasks: {TASKS}\n"
        f"algorithm: {ALGORITHMS[algorithm]}\noptimizer: {{name: adamw, lr: 1.0e-2}}\ntraining: {{steps: {STEPS}}}\n"
        f"{extra}\n"
    )
    mtmeta.run(recipe, out=folder / "run")
    last = folder / "run" / "checkpoints" / f"step-{STEPS:08}" / "model.safetensors"
    return hashlib.sha256(last.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def at_the_end_only(tmp_path_factory: pytest.TempPathFactory) -> ByAlgorithm:
    """The SHA-256 by algorithm of a run that nobody watches."""
    return cache(lambda algorithm: run(tmp_path_factory.mktemp(algorithm), algorithm, "evaluation: {every: null}"))


@pytest.mark.slow
@pytest.mark.parametrize("watched", WATCHED)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_watching_a_run_changes_no_weight(
    tmp_path: Path, algorithm: str, watched: str, at_the_end_only: object
) -> None:
    assert callable(at_the_end_only)
    assert run(tmp_path, algorithm, WATCHED[watched]) == at_the_end_only(algorithm)


def test_the_order_of_draws_would_show(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.mkdir()
    second.mkdir()
    assert run(first, "joint", "seed: 1") != run(second, "joint", "seed: 2")
