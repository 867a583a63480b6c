"""A number that is not finite ends the run before it can be saved, wherever it appears; and memory that runs out."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import mtmeta
from mtmeta.cli.errors import unforeseen
from mtmeta.core.errors import DivergedError, MachineError, PluginError, out_of_memory
from mtmeta.core.machine import order_errors
from mtmeta.core.registry.discovery import Plugin
from mtmeta.core.registry.guard import blame
from mtmeta.core.training import evaluation as evaluate
from mtmeta.core.training import learner
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.trainer import Trainer
from tests.support import tiny
from tests.support.commands import assert_refused, call
from tests.support.quick import quick

Capture = pytest.CaptureFixture[str]
ALL = ("individual", "joint", "reptile", "fomaml")
STEP = 3  # the meta-step, from 1, in which something goes wrong


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)
    monkeypatch.setattr(evaluate, "BOOTSTRAP_DRAWS", 5)


def everything_saved_is_finite(out: Path) -> int:
    """The number of files of tensors looked at."""
    files = sorted(out.glob("checkpoints/**/*.safetensors"))
    for file in files:
        for name, tensor in load_file(file).items():
            assert tensor.isfinite().all(), (file, name)
    return len(files)


# -- the places where it can begin; each is patched into step STEP only


def bad_loss(patch: pytest.MonkeyPatch, value: float) -> None:
    loss = Learner._loss

    def made(self: Learner, task: str, *given: Any) -> Tensor:
        return loss(self, task, *given) * (value if self.step + 1 == STEP else 1.0)

    patch.setattr(Learner, "_loss", made)


def bad_gradient(patch: pytest.MonkeyPatch, value: float) -> None:
    """Of the outer step: each loss is finite."""
    clip = Trainer._clip

    def made(self: Trainer) -> float:
        if self.step + 1 == STEP:
            next(p.grad for p in self.learner.parameters.values() if p.grad is not None).view(-1)[0] = value
        return clip(self)

    patch.setattr(Trainer, "_clip", made)


def bad_inner_gradient(patch: pytest.MonkeyPatch, value: float) -> None:
    """Of every batch: the loss is finite, the inner optimizer takes it, and theta' is what is not."""
    gradient = Learner.gradient

    def made(self: Learner, batch: Any, scale: float = 1.0) -> Tensor:
        found = gradient(self, batch, scale)
        if self.step + 1 == STEP:
            next(p.grad for p in self.parameters.values() if p.grad is not None).view(-1)[0] = value
        return found

    patch.setattr(Learner, "gradient", made)


def bad_parameter(patch: pytest.MonkeyPatch, value: float) -> None:
    one_step = Trainer._one_step

    def made(self: Trainer) -> None:
        one_step(self)
        if self.step == STEP:
            with torch.no_grad():
                next(iter(self.learner.parameters.values())).view(-1)[0] = value

    patch.setattr(Trainer, "_one_step", made)


def bad_state(patch: pytest.MonkeyPatch, value: float) -> None:
    """A moment overflows where its gradient does not."""
    one_step = Trainer._one_step

    def made(self: Trainer) -> None:
        one_step(self)
        if self.step == STEP + 1:  # which is saved
            state = next(iter(self.optimizer.state.values()))
            next(slot for slot in state.values() if isinstance(slot, Tensor) and slot.ndim).view(-1)[0] = value

    patch.setattr(Trainer, "_one_step", made)


Break = Callable[[pytest.MonkeyPatch, float], None]
PLACES: list[tuple[str, Break, str]] = [
    *((name, bad_loss, r"loss became \S+ at meta-step 3, task '(kind|grade)', inner step 1; lower") for name in ALL),
    *((name, bad_gradient, r"gradient norm became \S+ at meta-step 3, task '(kind|grade)'") for name in ALL),
    ("individual", bad_inner_gradient, "gradient norm became .* at meta-step 3, task 'kind'; lower"),
    ("joint", bad_inner_gradient, "gradient norm became .* at meta-step 3, task 'kind', 'grade'; lower"),
    ("reptile", bad_inner_gradient, r"delta became \S+ at meta-step 3, task '(kind|grade)', inner step 1; lower"),
    ("fomaml", bad_inner_gradient, r"query gradient became \S+ at meta-step 3, task '(kind|grade)', inner step 2"),
    *((name, bad_parameter, r"parameter 'encoder\.\S+' became non-finite by meta-step (3|4); lower") for name in ALL),
    *((name, bad_state, r"optimizer state 'outer\|\S+' became non-finite by meta-step 4; lower") for name in ALL),
]


@pytest.mark.parametrize(("algorithm", "breaks", "words"), PLACES)
@pytest.mark.parametrize("value", [math.nan, pytest.param(math.inf, marks=pytest.mark.slow)])
def test_it_stops_before_anything_bad_is_saved(
    algorithm: str, breaks: Break, words: str, value: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 72."""
    breaks(monkeypatch, value)
    changes = {"optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.5}} if breaks is bad_state else {}
    with pytest.raises(DivergedError, match=words):
        mtmeta.run(quick(tmp_path, algorithm, **changes), out=tmp_path / "out")
    assert everything_saved_is_finite(tmp_path / "out") >= 3
    assert not (tmp_path / "out" / "summary.json").exists()


def test_the_command_ends_with_7(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    quick(tmp_path, "reptile")
    bad_loss(monkeypatch, math.nan)
    outcome = call("run", "quick.yaml", "--out", "out", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 7, "error: loss became nan at meta-step 3, task '", "inner step 1; lower the learning rate")


@pytest.mark.parametrize(
    ("algorithm", "breaks"),
    [
        ("individual", bad_loss),
        ("joint", bad_gradient),
        ("reptile", bad_inner_gradient),
        ("fomaml", bad_inner_gradient),
    ],
)
def test_a_step_is_skipped_and_counted_where_that_is_asked_for(
    algorithm: str, breaks: Break, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    breaks(monkeypatch, math.nan)
    recipe = quick(tmp_path, algorithm, training={"steps": 4, "on_nonfinite": "skip"})
    summary = mtmeta.run(recipe, out=tmp_path / "out")
    groups = 2 if algorithm == "individual" else 1
    assert summary["skipped_steps"] == groups
    text = (tmp_path / "out" / "events.jsonl").read_text()
    assert text.count('"type": "step_skipped"') == groups and text.count('"type": "step"') == 3 * groups
    assert everything_saved_is_finite(tmp_path / "out") >= 5 * groups


def test_a_parameter_cannot_be_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad_parameter(monkeypatch, math.nan)
    with pytest.raises(DivergedError, match="parameter "):
        mtmeta.run(quick(tmp_path, training={"steps": 4, "on_nonfinite": "skip"}), out=tmp_path / "out")
    assert everything_saved_is_finite(tmp_path / "out") >= 3


def test_a_gpu_is_asked_once_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """There neither a loss nor a delta is looked at by itself: each look would wait for the GPU."""
    made, feed = tiny.tiny("sst", inner_steps=2)
    made._check_each_loss = False
    monkeypatch.setattr(made, "_loss", lambda task, outputs, *labels: outputs.sum() * math.nan)
    algorithm = mtmeta_reptile()
    algorithm.backward(made, feed)
    with pytest.raises(DivergedError, match="loss became nan at meta-step 1, task 'sst', inner step 1"):
        made.check_losses()


def mtmeta_reptile() -> mtmeta.Algorithm:
    from mtmeta.plugins.algorithms.reptile import Reptile

    return Reptile()


# ---------------------------------------------------------------------------------------------------------- memory


def too_much() -> None:
    """PyTorch's own error on a CPU."""
    torch.empty(2**52)


def too_much_for_python() -> None:
    bytearray(2**62)


def too_much_for_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of ...")


MEMORY = [
    (too_much, "out of memory"),
    (too_much_for_python, "out of memory"),
    (too_much_for_a_gpu, "CUDA out of memory"),
]


@pytest.mark.parametrize(("exhaust", "whose"), MEMORY)
def test_memory_that_runs_out_in_a_step(
    exhaust: Callable[[], None], whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Row 64."""
    quick(tmp_path, training={"steps": 4, "grad_accumulation": 2})
    forward = MultiTaskModel.forward

    def exhausting(self: MultiTaskModel, task: str, packed: Any) -> Tensor:
        if task == "grade":
            exhaust()
        return forward(self, task, packed)

    monkeypatch.setattr(MultiTaskModel, "forward", exhausting)
    outcome = call("run", "quick.yaml", "--out", "out", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 6, f"error: {whose} in task 'grade' (batch 4, length ")
    assert outcome.err.endswith("); halve batch_size or set training.grad_accumulation: 4\n")


@pytest.mark.parametrize(("exhaust", "whose"), MEMORY)
def test_memory_that_runs_out_elsewhere(
    exhaust: Callable[[], None], whose: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_clip", lambda self: exhaust())
        with pytest.raises(MachineError, match=f"^{whose} in meta-step 1; lower batch_size"):
            mtmeta.run(recipe, out=tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "predict", lambda *a, **b: exhaust())
        with pytest.raises(MachineError, match=rf"^{whose} in evaluating task 'kind' \(batch_tokens 8192\); lower"):
            mtmeta.run(recipe, out=tmp_path / "out")
    mtmeta.run(recipe, out=tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "predict", lambda *a, **b: exhaust())
        with pytest.raises(MachineError, match=rf"^{whose} in scoring task 'kind' \(batch_tokens 8192\); lower"):
            mtmeta.evaluate(tmp_path / "out")


@dataclass(frozen=True)
class Part:
    name = "part"
    mtmeta_supplier = Plugin("p", "1", "mtmeta-p")


@pytest.mark.parametrize(("exhaust", "whose"), MEMORY)
def test_too_large_a_batch_is_no_plugin_s_fault(exhaust: Callable[[], None], whose: str) -> None:
    with pytest.raises((RuntimeError, MemoryError)) as raised, blame(Part(), "task"):
        exhaust()
    assert out_of_memory(raised.value) == whose
    assert str(unforeseen(raised.value)) == f"{whose}; lower batch_size or max_length"
    with pytest.raises(PluginError, match="task 'part' raised RuntimeError: no"), blame(Part(), "task"):
        raise RuntimeError("no")


def test_other_errors_are_not_taken_for_a_lack_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    made, feed = tiny.tiny("sst")

    def broken(*arguments: object) -> Tensor:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(learner.Learner, "_loss", broken)
    with pytest.raises(RuntimeError, match=r"^shape mismatch$"):
        made.gradient(feed.batch("sst"))
    assert out_of_memory(ValueError("out of memory")) is None


def test_an_operator_that_adds_in_any_order_is_named() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.raises(PluginError) as raised, order_errors("plugin 'p'", "task 'kind'"):
            torch.zeros(3).put_(torch.tensor([0]), torch.tensor([1.0]))
    finally:
        torch.use_deterministic_algorithms(False)
    assert str(raised.value) == (
        "plugin 'p': task 'kind' uses put_, which PyTorch cannot do in the same order every time; use another operator"
    )
    with pytest.raises(RuntimeError, match="anything else"), order_errors("plugin 'p'", "task 'kind'"):
        raise RuntimeError("anything else")
