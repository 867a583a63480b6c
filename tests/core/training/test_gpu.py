"""What only a CUDA device can show: FlashAttention on packed batches, inner loops that never wait, same bits."""

from __future__ import annotations

import hashlib
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mtmeta
from mtmeta.core.api.optimizers import AdamW
from mtmeta.core.api.schedules import Step
from mtmeta.core.data.dataset import TokenStore
from mtmeta.core.data.feed import Feed
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.machine import make_deterministic
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from tests.plugins.backbones.encoder.test_fused import GROUPS, packed_of
from tests.support.paths import ROOT
from tests.support.tiny import tiny

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
LENGTHS = [t for n, t in GROUPS for _ in range(n)]


def encoder_of(dropout: float = 0.0) -> Encoder:
    encoder = Encoder(BertConfig(50, 128, 2, 2, 256, hidden_dropout_prob=dropout, attention_probs_dropout_prob=dropout))
    encoder.initialise(3)
    return encoder


def outcome(encoder: Encoder, device: str, *, bf16: bool) -> tuple[Tensor, Tensor]:
    """Hidden states and the gradient of the first layer's query, key and value."""
    encoder = encoder.to(device).eval()
    encoder.zero_grad()
    packed = packed_of(LENGTHS).to(torch.device(device))
    with torch.autocast(device, dtype=torch.bfloat16, enabled=bf16):
        hidden = encoder(packed)
    hidden.float().backward(torch.randn(hidden.shape, generator=torch.Generator().manual_seed(7)).to(device))
    grad = dict(encoder.named_parameters())["layers.0.attention.qkv.weight"].grad
    assert grad is not None
    return hidden.detach().float().cpu(), grad.float().cpu().clone()  # moving the module moves its gradients too


def test_fp32_equals_the_cpu() -> None:
    encoder = encoder_of()
    for one, other in zip(outcome(encoder, "cpu", bf16=False), outcome(encoder, "cuda", bf16=False), strict=True):
        assert float((one - other).abs().max()) <= 1e-4 * max(1.0, float(one.abs().max()))


def test_flash_in_bf16_is_near_fp32() -> None:
    encoder = encoder_of()
    for one, other in zip(outcome(encoder, "cuda", bf16=False), outcome(encoder, "cuda", bf16=True), strict=True):
        scale = float(one.abs().mean())
        assert float((one - other).abs().mean()) <= 0.02 * scale  # bf16 has 8 bits


def test_flash_is_what_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    from mtmeta.plugins.backbones.encoder import attention

    calls: list[int] = []
    flash = attention.Sequences._flash

    def counted(*args: Any) -> Tensor:
        calls.append(1)
        return flash(*args)

    monkeypatch.setattr(attention.Sequences, "_flash", counted)
    outcome(encoder_of(), "cuda", bf16=True)
    assert len(calls) == 2


def test_a_sentence_does_not_depend_on_its_batch_mates() -> None:
    encoder = encoder_of().cuda().eval()
    offsets = np.cumsum([0, 17, 17, 3, 40])
    store = TokenStore(np.arange(offsets[-1], dtype=np.int32) % 50, None, offsets)
    with torch.no_grad():
        alone = encoder(pack_sequences([store], np.array([1])).to(torch.device("cuda")))
        beside = encoder(pack_sequences([store], np.arange(4)).to(torch.device("cuda")))
    assert float((alone - beside[3 + 17 : 3 + 2 * 17]).abs().max()) <= 1e-5  # shortest first, then in the order given


def learner_on_gpu() -> tuple[Learner, Feed]:
    """The tiny learner and its feed on the GPU, with dropout, bf16 autocast and batches in pinned memory."""
    source, feed = tiny(batch_size=8)
    old = source.model.encoder
    assert isinstance(old, Encoder)
    encoder = Encoder(replace(old.config, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1))
    encoder.load_state_dict(old.state_dict())
    model = MultiTaskModel(encoder, source.tasks, 1).cuda()
    feed._pin = True
    return Learner(model, seed=1, steps=4, precision="bf16", check_each_loss=False), feed


def inner_loop(learner: Learner, feed: Feed, task: str, steps: int) -> None:
    with learner.excursion(task, AdamW(lr=1e-3), Step()) as inner:
        for _ in range(steps):
            inner.step(feed.batch(task))
        inner.keep_delta()


@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_an_inner_loop_never_waits_for_the_gpu(task: str) -> None:
    learner, feed = learner_on_gpu()
    learner.begin_step(0)
    inner_loop(learner, feed, task, 2)  # allocates and compiles what is needed once
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this mode is a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            inner_loop(learner, feed, task, 3)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_the_same_bits_every_time() -> None:
    def trained() -> str:
        make_deterministic(torch.device("cuda"))
        learner, feed = learner_on_gpu()
        for step in range(3):
            learner.begin_step(step)
            inner_loop(learner, feed, "sst", 2)
            with torch.no_grad():
                for parameter in learner.parameters.values():
                    if parameter.grad is not None:
                        parameter.sub_(parameter.grad)
        digest = hashlib.sha256()
        for parameter in learner.parameters.values():
            digest.update(parameter.detach().cpu().numpy().tobytes())
        return digest.hexdigest()

    assert trained() == trained()


def test_the_default_recipe_trains_on_a_gpu(tmp_path: Path) -> None:
    recipe = ROOT / "recipes" / "reptile_three_task.yaml"
    overrides = ["training.steps=4", "evaluation.every=2"]
    summary = mtmeta.run(recipe, overrides=overrides, out=tmp_path / "run", device="cuda")
    assert set(summary["tasks"]) == {"sst", "para", "sts"}
    assert (tmp_path / "run" / "summary.json").is_file()
