"""A caller's own `torch.autocast`, and other settings of PyTorch's, change no bit of weights, scores, predictions."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import mtmeta
from mtmeta.core.machine import Precision
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies.adapt import adapt
from mtmeta.core.studies.adaptations import Shots
from mtmeta.core.training.diagnostics import gradient_cosines
from mtmeta.core.training.learner import Learner
from mtmeta.plugins.tasks.sst import Sst
from tests.support import tiny
from tests.support.parameters import some_quick

TASKS = "{sst: {train: sample, dev: sample, batch_size: 8}, sts: {train: sample, dev: sample, batch_size: 8}}"
ALGORITHMS = {
    "joint": "joint",
    "reptile": "{name: reptile, tasks_per_step: 2, inner_optimizer: {name: adamw, lr: 1.0e-2}}",
    "fomaml": "{name: fomaml, tasks_per_step: 2, inner_optimizer: {name: adamw, lr: 1.0e-2}}",
}
TEXTS = ["a joy from start to end", "two hours in a dark room", "it is what it is"]
Caller = Callable[[], AbstractContextManager[Any]]


@contextmanager
def one_within_another() -> Iterator[None]:
    """Autocast that looks switched off, though copies of weights are kept until the outer one ends."""
    with torch.autocast("cpu", torch.bfloat16), torch.autocast("cpu", enabled=False):
        yield


CALLERS: dict[str, Caller] = {
    "bf16": lambda: torch.autocast("cpu", torch.bfloat16),
    "fp16": lambda: torch.autocast("cpu", torch.float16),
    "cache off": lambda: torch.autocast("cpu", torch.bfloat16, cache_enabled=False),
    "switched off inside": one_within_another,
    "switched off": lambda: torch.autocast("cpu", enabled=False),
}


def recipe(folder: Path, *, precision: str, algorithm: str, steps: int = 4) -> Path:
    path = folder / f"{algorithm}-{precision}.yaml"
    path.write_text(
        f"name: tiny\nbackbone: {{name: bert, weights: tiny, max_length: 32}}\ntasks: {TASKS}\n"
        f"algorithm: {ALGORITHMS[algorithm]}\noptimizer: {{name: adamw, lr: 1.0e-2}}\n"
        f"training: {{steps: {steps}, precision: {precision}}}\nevaluation: {{every: 2}}\n"
    )
    return path


def weights(run: Path) -> str:
    (best,) = run.glob("checkpoints/best/model.safetensors")
    return hashlib.sha256(best.read_bytes()).hexdigest()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("algorithm", some_quick(ALGORITHMS, 1))
def test_a_run_within_autocast_has_the_same_weights_scores_and_predictions(
    tmp_path: Path, precision: str, algorithm: str
) -> None:
    path = recipe(tmp_path, precision=precision, algorithm=algorithm)

    def all_of_it(name: str) -> tuple[str, Any, Any]:
        mtmeta.run(path, out=tmp_path / name)
        scores = mtmeta.evaluate(tmp_path / name)
        return weights(tmp_path / name), scores["tasks"], mtmeta.load(tmp_path / name).predict("sst", TEXTS)

    plain = all_of_it("plain")
    with torch.autocast("cpu", torch.bfloat16):
        assert all_of_it("within") == plain


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


OTHER_SETTINGS: dict[str, Caller] = {
    "no gradients": torch.no_grad,
    "inference mode": torch.inference_mode,
    "float64 by default": lambda: default_dtype(torch.float64),
    "bfloat16 by default": lambda: default_dtype(torch.bfloat16),
    "another device by default": lambda: torch.device("meta"),
}


@pytest.mark.parametrize("caller", some_quick([*CALLERS, *OTHER_SETTINGS], 3))
def test_whatever_the_caller_has_set(tmp_path: Path, caller: str) -> None:
    path = recipe(tmp_path, precision="bf16", algorithm="reptile")
    mtmeta.run(path, out=tmp_path / "plain")
    with (CALLERS | OTHER_SETTINGS)[caller]():
        mtmeta.run(path, out=tmp_path / "within")
        within = mtmeta.load(tmp_path / "within").predict("sst", TEXTS)
    assert within == mtmeta.load(tmp_path / "plain").predict("sst", TEXTS)
    assert weights(tmp_path / "within") == weights(tmp_path / "plain")


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapting_within_autocast_gives_the_same_scores(tmp_path: Path, precision: str) -> None:
    start = tmp_path / "start"
    mtmeta.run(recipe(tmp_path, precision=precision, algorithm="reptile"), out=start)
    few = recipe(tmp_path, precision=precision, algorithm="joint", steps=3)

    def adapted() -> list[dict[str, Any]]:
        found = adapt([start], RunRequest(recipe=few), Shots(sizes=[4], draws=2), tasks=["sst"])
        return [{**one, "seconds": 0} for one in found["adapted"]]

    plain = adapted()
    with torch.autocast("cpu", torch.bfloat16):
        assert adapted() == plain
    assert len(plain) == 4


class Doubled(nn.Module):
    """A head that a plugin brings: its linear layer is used twice, so that autocast would keep a copy of it."""

    def __init__(self, hidden_size: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, outputs)

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        vector = pooled[:, 0]
        logits: torch.Tensor = self.linear(vector) + self.linear(2 * vector)
        return logits


@dataclass(frozen=True)
class Rotated(mtmeta.Classification):
    """An objective that a plugin brings, with a matrix product, which autocast would round."""

    def loss(self, outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        turn = torch.linspace(-1, 1, self.outputs**2).view(self.outputs, -1)
        return super().loss(outputs.float() @ turn, labels)


@dataclass(frozen=True, kw_only=True)
class Turned(Sst):
    objective = Rotated(labels=5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("caller", CALLERS)
def test_an_inner_loop_in_an_algorithms_own_autocast_with_a_head_and_an_objective_of_plugins(
    caller: str, precision: Precision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tiny.TASKS, "sst", Turned)

    def delta(within: Caller) -> list[torch.Tensor]:
        made, feed = tiny.tiny("sst", "sts")
        torch.manual_seed(3)
        made.model.replace_head("sst", Doubled(made.model.hidden_size, 5))
        learner = Learner(made.model, seed=7, steps=feed.steps, precision=precision)
        learner.begin_step(0)
        support, query = feed.episode("sst", 3)
        with within(), learner.excursion("sst", mtmeta.AdamW(lr=0.01), mtmeta.Step(every=30, gamma=0.8)) as inner:
            for batch in support:
                inner.step(batch)
            inner.keep_delta()
            inner.keep_gradient(query)
        return [gradient for gradient in learner.take_gradient() if gradient is not None]

    plain, within = delta(nullcontext), delta(CALLERS[caller])
    assert len(plain) == len(within) > 10
    assert all(torch.equal(a, b) for a, b in zip(plain, within, strict=True))


def test_gradients_are_measured_as_without_autocast() -> None:
    def cosines() -> Any:
        learner, feed = tiny.tiny()
        return gradient_cosines(learner.model, feed.datasets, seed=1, precision="bf16")

    plain = cosines()
    with torch.autocast("cpu", torch.bfloat16):
        assert cosines() == plain


def test_a_callers_autocast_is_as_it_was_afterwards(tmp_path: Path) -> None:
    path = recipe(tmp_path, precision="bf16", algorithm="joint", steps=2)
    matrix = torch.eye(3)
    with torch.autocast("cpu", torch.float16, cache_enabled=False):
        mtmeta.run(path, out=tmp_path / "run")
        assert torch.is_autocast_enabled("cpu") and not torch.is_autocast_cache_enabled()
        assert (matrix @ matrix).dtype == torch.float16
    assert (matrix @ matrix).dtype == torch.float32
