"""The layer halves written out for the CPU are those of the modules, forward and backward, with and without dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from mtmeta.core.api.batch import Packed
from mtmeta.core.data.dataset import TokenStore
from mtmeta.core.data.packing import pack_sequences
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.encoder import kernels
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.backbones.encoder.fused import Noise, attend, drop, feed_forward
from mtmeta.plugins.backbones.encoder.tiles import MULTIPLE, Tiles

pytestmark = pytest.mark.usefixtures("one_thread", "no_kernels")
# (count, length): one token, equal to a multiple, beside it, alone in a tile, more than one length in a tile
GROUPS = ((2, 1), (1, 3), (3, 4), (1, 5), (2, 6), (1, 8), (1, 13), (2, 31))
TOKENS = sum(n * t for n, t in GROUPS)
SIZES: dict[str, Any] = {"vocab_size": 50, "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3}


@pytest.fixture
def no_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine without a C compiler."""
    monkeypatch.setattr(kernels, "load", lambda: None)


def encoder_of(dropout: float, attention_dropout: float | None = None) -> Encoder:
    attention_dropout = dropout if attention_dropout is None else attention_dropout
    config = BertConfig(
        **SIZES, intermediate_size=40, hidden_dropout_prob=dropout, attention_probs_dropout_prob=attention_dropout
    )
    encoder = Encoder(config)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.normal_(1.0 if name.endswith("norm.weight") else 0.0, 0.3, generator=generator)
    return encoder.train()


def packed_of(lengths: Sequence[int]) -> Packed:
    offsets = np.cumsum([0, *lengths])
    ids = np.random.default_rng(3).integers(0, 50, offsets[-1]).astype(np.int32)
    return pack_sequences([TokenStore(ids, None, offsets)], np.arange(len(lengths)))


def outcome(encoder: Encoder, packed: Packed, monkeypatch: pytest.MonkeyPatch, *, fused: bool) -> dict[str, Tensor]:
    """Hidden states and the gradient of every parameter, for a fixed random direction."""
    monkeypatch.setattr(Encoder, "_can_fuse", lambda self, x: fused)
    encoder.zero_grad()
    torch.manual_seed(11)
    hidden = encoder(packed)
    hidden.backward(torch.randn(hidden.shape, generator=torch.Generator().manual_seed(7)))
    return {"hidden": hidden.detach()} | {
        n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None
    }


def test_fused_layers_equal_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, packed = encoder_of(0.0), packed_of([t for n, t in GROUPS for _ in range(n)])
    fused = outcome(encoder, packed, monkeypatch, fused=True)
    modules = outcome(encoder, packed, monkeypatch, fused=False)
    assert list(fused) == list(modules) and len(fused) == 1 + len(list(encoder.parameters()))
    for name, tensor in modules.items():
        assert float((fused[name] - tensor).abs().max()) <= 1e-5 * max(1.0, float(tensor.abs().max())), name


def test_fused_is_what_runs_on_a_cpu_in_fp32_and_bf16_alone() -> None:
    encoder, x = encoder_of(0.1), torch.zeros(1)
    assert encoder._can_fuse(x)
    assert not encoder._can_fuse(x.double())
    with torch.autocast("cpu", dtype=torch.float16):
        assert not encoder._can_fuse(x)
    tanh = Encoder(BertConfig(**SIZES, intermediate_size=40, hidden_act="gelu_new"))
    assert not tanh._can_fuse(x)


def test_gradients_by_finite_differences() -> None:
    generator = torch.Generator().manual_seed(1)
    groups = ((2, 1), (1, 3), (1, 5))

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).mul_(0.5).requires_grad_()

    x, tiles = random(10, 6), Tiles(groups, 2)
    qkv, out, up, down = (nn.Linear(*shape).double() for shape in ((6, 18), (6, 6), (6, 8), (8, 6)))
    assert torch.autograd.gradcheck(
        lambda x, *_: attend(x, qkv, out, tiles, None, None), (x, *qkv.parameters(), *out.parameters())
    )
    assert torch.autograd.gradcheck(
        lambda x, *_: feed_forward(x, up, down, None), (x, *up.parameters(), *down.parameters())
    )


def test_dropout_is_that_of_the_formula() -> None:
    """Masks drawn again from the same seed, and plain operations that autograd differentiates."""
    heads, size, p = 3, 24, 0.3
    d = size // heads
    x = torch.randn(TOKENS, size, generator=torch.Generator().manual_seed(2)).requires_grad_()
    qkv, out, up, down = nn.Linear(size, 3 * size), nn.Linear(size, size), nn.Linear(size, 40), nn.Linear(40, size)
    tiles = Tiles(GROUPS, heads)
    parameters = [x, *(parameter for module in (qkv, out, up, down) for parameter in module.parameters())]
    direction = torch.randn(TOKENS, size, generator=torch.Generator().manual_seed(4))

    torch.manual_seed(6)
    noise, weight_noise = Noise(p), Noise(p / 2)
    y = feed_forward(attend(drop(x, noise), qkv, out, tiles, weight_noise, noise), up, down, noise)
    found = torch.autograd.grad(y, parameters, direction)

    torch.manual_seed(6)
    noise, weight_noise = Noise(p), Noise(p / 2)
    masks = [noise.kept(noise.bits(TOKENS, size)) * noise.scale for _ in range(3)]
    weight_mask = weight_noise.kept(weight_noise.bits(sum(tiles.scores))) * weight_noise.scale
    dropped = x * masks[0]
    blocks = [block.view(-1, heads, *block.shape[1:]) for block in tiles.split_scores(weight_mask)]
    mixed, start, seen = [], 0, {t: 0 for _, t in tiles.shapes}
    for n, length in GROUPS:
        tile = math.ceil(length / MULTIPLE) * MULTIPLE
        block = blocks[[t for _, t in tiles.shapes].index(tile)]
        for _ in range(n):
            q, k, v = qkv(dropped[start : start + length]).view(length, 3, heads, d).permute(1, 2, 0, 3)
            weights = (q @ k.transpose(1, 2) / math.sqrt(d)).softmax(-1) * block[seen[tile], :, :length, :length]
            mixed.append((weights @ v).transpose(0, 1).reshape(length, size))
            start, seen[tile] = start + length, seen[tile] + 1
    half = dropped + masks[1] * out(torch.cat(mixed))
    wanted = half + masks[2] * down(functional.gelu(up(half)))
    torch.testing.assert_close(y, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(found, torch.autograd.grad(wanted, parameters, direction), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_noise_drops_its_share_and_keeps_the_mean(p: float) -> None:
    torch.manual_seed(0)
    noise, count = Noise(p), 2**19 + 3
    kept = noise.kept(noise.bits(count))
    assert set(kept.tolist()) == {0.0, 1.0}
    assert abs(float(kept.double().mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / count)
    assert abs(noise.scale * (1 - p) - 1) < 2e-4
    pairs = kept[1:] * kept[:-1]  # neighbours are independent
    assert abs(float(pairs.double().mean()) - (1 - p) ** 2) < 5 / math.sqrt(count)


def test_noise_is_decided_by_torch_manual_seed() -> None:
    def draw(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return Noise(0.1).bits(3, 5)

    assert torch.equal(draw(1), draw(1)) and not torch.equal(draw(1), draw(2))
    assert draw(1).shape == (3, 5)


@pytest.mark.parametrize(("p", "dropped"), [(1e-9, 0), (2**-16, 1), (1 - 1e-9, 2**16 - 1)])
def test_noise_at_its_limits(p: float, dropped: int) -> None:
    noise = Noise(p)
    assert noise.dropped == dropped and noise.scale == 2**16 / (2**16 - dropped)
    extremes = torch.tensor([-(2**15), 2**15 - 1], dtype=torch.int16)
    assert noise.kept(extremes).tolist() == [float(dropped == 0), 1.0]


def test_dropout_off_draws_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, packed = encoder_of(0.2).eval(), packed_of([3, 5])
    torch.manual_seed(1)
    before = torch.get_rng_state()
    hidden = encoder(packed)
    assert torch.equal(torch.get_rng_state(), before) and torch.equal(hidden, encoder(packed))


@pytest.mark.parametrize("heads", [1, 3])
def test_tiles_hold_every_vector_once(heads: int) -> None:
    tiles = Tiles(GROUPS, heads)
    assert tiles.shapes == [(6, 4), (4, 8), (1, 16), (2, 32)]
    rows, vectors = sum(tiles.rows), TOKENS * heads
    assert torch.equal(tiles.by_head[tiles.by_token.long()], torch.arange(vectors, dtype=torch.int32))
    assert len(tiles.by_head) == rows and len(tiles.padded) == rows - vectors
    assert sorted([*tiles.by_token.tolist(), *tiles.padded.tolist()]) == list(range(rows))
    x = torch.arange(3 * vectors)
    by_head = x[tiles.qkv_by_head.long()]
    assert torch.equal(by_head[tiles.qkv_by_token.long()], x)
    assert tiles.bias is not None
    finite = [int(torch.isfinite(block).all(1).sum()) for block in tiles.split_scores(tiles.bias)]  # real keys
    assert finite == [heads * keys for keys in (2 * 1 + 3 + 3 * 4, 5 + 2 * 6 + 8, 13, 2 * 31)]


def test_tiles_without_a_gap_need_no_bias() -> None:
    tiles = Tiles(((2, 4), (1, 8)), 2)
    assert tiles.bias is None and not len(tiles.padded)


def test_frozen_weights_get_no_gradient() -> None:
    encoder, packed = encoder_of(0.1), packed_of([3, 5])
    for parameter in encoder.layers[0].parameters():
        parameter.requires_grad_(False)
    encoder(packed).sum().backward()
    got = {name for name, parameter in encoder.named_parameters() if parameter.grad is not None}
    assert got == {name for name, _ in encoder.named_parameters() if not name.startswith("layers.0.")}


def test_bf16_on_a_cpu_is_near_fp32() -> None:
    encoder, packed = encoder_of(0.0).eval(), packed_of([t for n, t in GROUPS for _ in range(n)])
    with torch.no_grad():
        exact = encoder(packed)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            near = encoder(packed).float()
    # bf16 has 8 bits; two layers of post-norm keep the error of unit-variance vectors to some hundredths
    error = (near - exact).abs()
    assert float(error.mean()) < 0.02 and float(error.max()) < 0.2


def test_changed_parts_are_not_bypassed() -> None:
    """An adapter in the place of a Linear, a hook, a layer in evaluation mode: the modules themselves run."""

    class Adapted(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) + 1.0

    x, packed = torch.zeros(1), packed_of([3, 5])
    changed: list[Encoder] = []
    for _ in range(4):
        changed.append(encoder_of(0.0))
        assert changed[-1]._can_fuse(x)
    layers: list[Any] = [encoder.layers[1] for encoder in changed]
    seen: list[int] = []
    layers[0].up = Adapted(24, 40)
    layers[1].down.register_forward_hook(lambda *_: seen.append(1))
    layers[2].eval()
    layers[3].attention.out = nn.Linear(24, 24, bias=False)
    for encoder in changed:
        assert not encoder._can_fuse(x)
        assert bool(torch.isfinite(encoder(packed)).all())
    assert seen == [1]
