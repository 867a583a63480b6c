"""The compiled kernels: equal to the modules, dropout as its formula says, and harmless where there is no compiler."""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import special
from torch import Tensor, nn
from torch.nn import functional

import mtmeta
from mtmeta.core.api.batch import Packed
from mtmeta.core.errors import CheckpointError
from mtmeta.plugins.backbones.encoder import compiled, kernels
from mtmeta.plugins.backbones.encoder.encoder import Attention, Encoder, Layer
from mtmeta.plugins.backbones.encoder.fused import Noise
from mtmeta.plugins.backbones.encoder.kernels import NO_MASK, Kernels, Mask
from tests.support.encoders import encoder_of, offsets_of, packed_of, random
from tests.support.groups import set_group
from tests.support.parameters import some_quick

pytestmark = pytest.mark.usefixtures("one_thread")
# one token, beside and at a multiple of 8, more than a block of 48 queries, more than one block of 64 rows in all
LENGTHS = [1, 1, 3, 7, 8, 9, 16, 31, 48, 49, 70, 130]
TOKENS = sum(LENGTHS)


@pytest.fixture
def k() -> Kernels:
    found = kernels.load()
    if found is None:
        pytest.skip("no C compiler that can build the kernels")
    return found


@pytest.fixture
def fresh() -> Iterator[None]:
    """What `load` remembers is forgotten before and after."""
    kernels.load.cache_clear()
    yield
    kernels.load.cache_clear()


def outcome(encoder: Encoder, packed: Packed) -> dict[str, Tensor]:
    """Hidden states, with and without a backward pass, and the gradient of every parameter."""
    encoder.zero_grad()
    torch.manual_seed(11)
    hidden = encoder(packed)
    hidden.backward(random(*hidden.shape, seed=7))
    with torch.no_grad():
        torch.manual_seed(11)
        found = {"hidden": hidden.detach(), "without gradient": encoder(packed)}
    return found | {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("hidden", "heads", "intermediate"), [(32, 4, 40), (64, 1, 64), (112, 14, 8), (24, 3, 16)])
def test_layers_equal_the_modules(
    k: Kernels, monkeypatch: pytest.MonkeyPatch, hidden: int, heads: int, intermediate: int
) -> None:
    encoder, packed = encoder_of(0.0, hidden, heads, intermediate), packed_of(LENGTHS)
    with monkeypatch.context() as patch:
        called: list[str] = []
        call = Kernels.call

        def noted(self: Kernels, name: str, *arguments: object) -> None:
            called.append(name)
            call(self, name, *arguments)

        patch.setattr(Kernels, "call", noted)
        found = outcome(encoder, packed)
        assert called.count("attention_forward") == 4 and called.count("gelu_backward") == 2
    monkeypatch.setattr(Encoder, "_can_fuse", lambda self, x: False)
    wanted = outcome(encoder, packed)
    assert list(found) == list(wanted) and len(found) == 2 + len(list(encoder.parameters()))
    for name, tensor in wanted.items():
        assert float((found[name] - tensor).abs().max()) <= 1e-5 * max(1.0, float(tensor.abs().max())), name


def test_with_dropout_a_pass_without_gradient_is_the_same(k: Kernels) -> None:
    found = outcome(encoder_of(0.3), packed_of(LENGTHS))
    assert torch.equal(found["hidden"], found["without gradient"])


def row_mask(k: Kernels, mask: Mask, rows: int, width: int) -> Tensor:
    """What norm_backward multiplies the gradient by on its way to x."""
    d_residual, dx, _ = k.norm_backward(
        random(rows, width, seed=1), random(rows, width, seed=2), torch.ones(rows), torch.ones(width), mask
    )
    return dx / d_residual


def weight_masks(k: Kernels, mask: Mask, lengths: list[int], heads: int, d: int) -> list[Tensor]:
    """[heads, T, T] for each sequence: with equal scores, a value that is 1 at one token shows that token's factor."""
    offsets, total = offsets_of(lengths), sum(lengths)
    found = [torch.zeros(heads, t, t) for t in lengths]
    for first in range(0, max(lengths), d):  # d tokens are looked at together
        qkv = torch.zeros(total, 3, heads, d)
        for start, t in zip(offsets.tolist(), lengths, strict=False):
            for j in range(first, min(first + d, t)):
                qkv[start + j, 2, :, j - first] = 1.0
        mixed, _ = k.attention(qkv.view(total, -1), torch.zeros(3 * heads * d), offsets, max(lengths), heads, mask)
        for i, (start, t) in enumerate(zip(offsets.tolist(), lengths, strict=False)):
            seen = min(d, t - first)
            if seen > 0:
                part = mixed[start : start + t].view(t, heads, d)[:, :, :seen]
                found[i][:, :, first : first + seen] = part.permute(1, 0, 2) * t
    return found


def test_dropout_is_that_of_the_formula(k: Kernels) -> None:
    """Both halves with known masks against plain operations that autograd differentiates."""
    heads, size, wide, p = 3, 24, 40, 0.3
    d, offsets = size // heads, offsets_of(LENGTHS)
    x = random(TOKENS, size, seed=2).requires_grad_()
    qkv, out, up, down = nn.Linear(size, 3 * size), nn.Linear(size, size), nn.Linear(size, wide), nn.Linear(wide, size)
    norms = nn.LayerNorm(size, eps=1e-5), nn.LayerNorm(size, eps=1e-5)
    parts: tuple[Any, ...] = (qkv, out, norms[0], up, down, norms[1])
    with torch.no_grad():
        for i, part in enumerate(parts):
            part.bias.copy_(random(*part.bias.shape, seed=20 + i, scale=0.5))
    parameters = [x, *(parameter for part in parts for parameter in part.parameters())]
    direction = random(TOKENS, size, seed=4)

    def noises() -> tuple[Noise, Noise]:
        torch.manual_seed(6)
        return Noise(p), Noise(p / 2)

    noise, weight_noise = noises()
    span = compiled.Span(offsets, max(LENGTHS))
    half = compiled.attend(k, x, qkv, out, norms[0], heads, span, weight_noise, noise)
    found = compiled.feed_forward(k, half, up, down, norms[1], noise)
    gradients = torch.autograd.grad(found, parameters, direction)

    noise, weight_noise = noises()  # drawn in the same order: weights and rows of the first half, rows of the second
    weight_mask = weight_masks(k, kernels.mask(weight_noise), LENGTHS, heads, d)
    masks = [row_mask(k, kernels.mask(noise), TOKENS, size) for _ in range(2)]
    mixed = []
    for start, t, kept in zip(offsets.tolist(), LENGTHS, weight_mask, strict=False):
        q, key, v = qkv(x[start : start + t]).view(t, 3, heads, d).permute(1, 2, 0, 3)
        weights = (q @ key.transpose(1, 2) / math.sqrt(d)).softmax(-1) * kept
        mixed.append((weights @ v).transpose(0, 1).reshape(t, size))
    first = norms[0](x + masks[0] * out(torch.cat(mixed)))
    wanted = norms[1](first + masks[1] * down(functional.gelu(up(first))))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    for one, other in zip(gradients, torch.autograd.grad(wanted, parameters, direction), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_drop_their_share_and_keep_the_mean(k: Kernels, p: float) -> None:
    torch.manual_seed(0)
    noise = Noise(p)
    rows = row_mask(k, kernels.mask(noise), 2000, 248).double()
    weights = torch.cat([each.flatten() for each in weight_masks(k, kernels.mask(noise), [130] * 6, 8, 8)]).double()
    for factors in (rows, weights):
        kept = factors > 0.5
        torch.testing.assert_close(factors[kept], torch.full_like(factors[kept], noise.scale), rtol=1e-4, atol=0)
        assert float(factors[~kept].abs().max()) < 1e-6
        count = kept.numel()
        assert abs(float(kept.double().mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / count)
    kept = (rows > 0.5).double() - (1 - p)
    for shift in (1, 8, 16, 128):  # along a row: neighbours, halves of a word, the next words
        assert abs(float((kept[:, shift:] * kept[:, :-shift]).mean())) < 5 * p * (1 - p) / math.sqrt(kept.numel() / 2)
    for shift in (1, 64):  # the next row, the next block
        assert abs(float((kept[shift:] * kept[:-shift]).mean())) < 5 * p * (1 - p) / math.sqrt(kept.numel() / 2)


def test_every_mask_is_another_and_torch_decides_which(k: Kernels) -> None:
    def draw(seed: int) -> list[Tensor]:
        torch.manual_seed(seed)
        noise = Noise(0.5)
        return [row_mask(k, kernels.mask(noise), 64, 64) > 0.5 for _ in range(3)]

    one, again, other = draw(1), draw(1), draw(2)
    assert all(torch.equal(a, b) for a, b in zip(one, again, strict=True))
    masks = [*one, *other]
    shares = [float((a == b).double().mean()) for i, a in enumerate(masks) for b in masks[:i]]
    assert all(abs(share - 0.5) < 5 * 0.5 / 64 for share in shares)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_results_do_not_depend_on_the_number_of_threads(k: Kernels, p: float) -> None:
    mask = kernels.mask(Noise(p)) if p else NO_MASK
    heads, d, offsets = 5, 16, offsets_of(LENGTHS)
    size = heads * d

    def everything() -> list[Tensor]:
        qkv, bias = random(TOKENS, 3 * size, seed=1), random(3 * size, seed=2)
        mixed, lse = k.attention(qkv, bias, offsets, max(LENGTHS), heads, mask)
        grad = random(TOKENS, size, seed=3)
        back = k.attention_backward(qkv, bias, offsets, max(LENGTHS), mask, mixed, lse, grad)
        x, gain = random(TOKENS, size, seed=4), random(size, seed=5)
        y, rstd = k.norm(x, gain, grad, gain, gain, 1e-12, mask)
        norms = k.norm_backward(grad, x, rstd, gain, mask)
        wide = random(TOKENS, size, seed=6)
        return [mixed, lse, *back, y, x, rstd, *norms, k.gelu_backward_(wide, random(TOKENS, size), gain), wide]

    one = everything()
    torch.set_num_threads(3)
    for a, b in zip(one, everything(), strict=True):
        assert torch.equal(a, b)


def test_gelu_to_the_last_bits(k: Kernels) -> None:
    x = torch.cat([torch.linspace(-12, 12, 2**16 - 8), torch.tensor([0.0, -0.0, 5.6, -5.6, 1e30, -1e30, 1e-30, 88.0])])
    wanted = x.double().numpy() * special.ndtr(x.double().numpy())
    zero = torch.zeros(8)
    found = k.gelu(x.view(-1, 8).clone(), zero, in_place=False).flatten().double().numpy()
    small = np.abs(x.numpy()) < 1e3
    assert np.abs(found - wanted)[small].max() < 1e-6
    assert list(found[~small]) == [float(x[-4]), 0.0]
    slope = special.ndtr(x.double().numpy()) + x.double().numpy() * np.exp(-(x.double().numpy() ** 2) / 2) / math.sqrt(
        2 * math.pi
    )
    grad = torch.ones(len(x) // 8, 8)
    sums = k.gelu_backward_(grad, x.view(-1, 8), zero)
    assert np.abs(grad.flatten().double().numpy() - slope).max() < 1e-6
    torch.testing.assert_close(sums, grad.double().sum(0).float(), rtol=1e-5, atol=1e-3)


def test_attention_survives_large_scores_and_shows_broken_ones(k: Kernels) -> None:
    heads, d, lengths = 2, 8, [5, 60]
    offsets, total = offsets_of(lengths), 65
    qkv = random(total, 3 * heads * d, scale=100.0)
    mixed, lse = k.attention(qkv, torch.zeros(3 * heads * d), offsets, 60, heads, NO_MASK)
    for start, t in ((0, 5), (5, 60)):
        q, key, v = qkv[start : start + t].view(t, 3, heads, d).permute(1, 2, 0, 3).double()
        scores = q @ key.transpose(1, 2) / math.sqrt(d)
        wanted = (scores.softmax(-1) @ v).transpose(0, 1).reshape(t, -1).float()
        torch.testing.assert_close(mixed[start : start + t], wanted, rtol=1e-3, atol=0.05)
        torch.testing.assert_close(lse[start : start + t], scores.logsumexp(-1).t().float(), rtol=1e-5, atol=1e-3)
    qkv[7, 0] = math.nan  # a query of the second sequence's first head
    mixed, _ = k.attention(qkv, torch.zeros(3 * heads * d), offsets, 60, heads, NO_MASK)
    assert bool(mixed[7, :d].isnan().all()) and int(mixed.isnan().sum()) == d
    x = torch.full((1, 8), math.nan)
    assert bool(k.gelu(x.clone(), torch.zeros(8), in_place=False).isnan().all())
    assert bool(
        k.norm_(x, torch.zeros(8), torch.zeros(1, 8), torch.ones(8), torch.zeros(8), 1e-12, NO_MASK).isnan().all()
    )


def test_widths_that_are_no_multiples_go_another_way(k: Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Kernels, "call", lambda *_: pytest.fail("a kernel was called"))
    for hidden, heads, intermediate in ((24, 2, 16), (32, 4, 36), (20, 5, 8)):
        assert not Kernels.fits(hidden, heads, intermediate)
        encoder_of(0.1, hidden, heads, intermediate)(packed_of([3, 5])).sum().backward()
    assert Kernels.fits(768, 12, 3072) and Kernels.fits(384, 12, 1536) and not Kernels.fits(30, 4, 8)


def test_other_tensors_are_refused(k: Kernels) -> None:
    zero = torch.zeros(8)
    for wrong in (torch.zeros(2, 8, dtype=torch.float64), torch.zeros(2, 16)[:, ::2]):
        with pytest.raises(ValueError, match="contiguous fp32"):
            k.gelu(wrong, zero, in_place=True)


def test_frozen_weights_get_no_gradient_and_others_the_same(k: Kernels) -> None:
    encoder, packed = encoder_of(0.1), packed_of([3, 5, 60])
    whole = outcome(encoder, packed)
    layers: Any = encoder.layers
    frozen = [layers[0].up.weight, layers[1].attention.qkv.weight, layers[1].attention.out.weight]
    for parameter in frozen:
        parameter.requires_grad_(False)
    found = outcome(encoder, packed)
    assert len(found) == len(whole) - 3
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())


@pytest.mark.parametrize("change", ["norm", "hook", "backward hook"])
def test_changed_norms_are_not_bypassed(change: str) -> None:
    class Scaled(nn.LayerNorm):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    encoder = encoder_of(0.0)
    layer: Any = encoder.layers[0]
    assert encoder._can_fuse(torch.zeros(1))
    if change == "norm":
        layer.norm = Scaled(32)
    elif change == "hook":
        layer.norm.register_forward_hook(lambda *_: None)
    else:
        layer.norm.register_full_backward_hook(lambda *_: None)
    assert not encoder._can_fuse(torch.zeros(1))


# ---- finding and keeping the library


def counting_compiler(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that notes every call in the file returned."""
    calls, script = folder / "calls", folder / "compiler"
    script.write_text(f'#!/bin/sh\necho "$@" >> {calls}\nexec cc "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("CC", str(script))
    return calls


def load_again() -> Kernels | None:
    kernels.load.cache_clear()
    return kernels.load()


def test_it_is_compiled_once_and_kept(k: Kernels, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTMETA_CACHE", str(tmp_path / "cache"))
    calls = counting_compiler(tmp_path, monkeypatch)
    first = load_again()
    assert first and first.identity == k.identity  # the same code, whichever way it was made
    made = len(calls.read_text().splitlines())
    (folder,) = (tmp_path / "cache").iterdir()
    assert {path.name for path in folder.iterdir()} == {"kernels.so", "kernels.sha256"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert load_again() and len(calls.read_text().splitlines()) == made
    folder.chmod(0o777)  # somebody else may have changed it: not loaded, but made again
    assert load_again() and len(calls.read_text().splitlines()) == 2 * made
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    library = (folder / "kernels.so").read_bytes()
    (folder / "kernels.so").unlink()
    (folder / "kernels.so").write_bytes(library[:-9] + bytes([library[-9] ^ 1]) + library[-8:])
    (folder / "kernels.so").chmod(0o700)  # a flipped bit
    again = load_again()
    assert again and again.identity == k.identity and len(calls.read_text().splitlines()) == 3 * made


def test_without_a_cache_it_is_made_for_the_process(
    k: Kernels, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = counting_compiler(tmp_path, monkeypatch)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    for where in ("off", str(tmp_path / "compiler" / "below a file")):
        monkeypatch.setenv("MTMETA_CACHE", where)
        calls.write_text("")
        assert load_again() and calls.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"calls", "compiler"}


@pytest.mark.parametrize(
    "setting", [("MTMETA_KERNELS", "off"), ("CC", "no-such-compiler"), ("CC", "false"), ("CC", " ")]
)
def test_without_a_compiler_the_encoder_goes_by_pytorch(
    fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, setting: tuple[str, str]
) -> None:
    monkeypatch.setenv("MTMETA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv(*setting)
    assert load_again() is None
    encoder_of(0.1)(packed_of([3, 5])).sum().backward()


def test_a_run_does_not_go_on_with_other_kernels(
    k: Kernels, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their sums round otherwise and their dropout draws other bits."""
    (tmp_path / "r.yaml").write_text(
        "name: r\nbackbone: {name: bert, weights: tiny}\ntasks: {sst: {train: sample, dev: sample, batch_size: 4}}\n"
        "algorithm: joint\noptimizer: {name: adamw, lr: 1e-3}\ntraining: {steps: 2}\nreporters: []\n"
    )
    recipe, out = tmp_path / "r.yaml", tmp_path / "run"
    mtmeta.run(recipe, out=out)
    assert f"kernels: {k.identity}\n" in (out / "recipe.lock.yaml").read_text().replace("'", "")
    (out / "summary.json").unlink()
    kernels.load.cache_clear()
    monkeypatch.setenv("MTMETA_KERNELS", "off")
    with pytest.raises(CheckpointError, match=f"run used kernels {k.identity}; now kernels none"):
        mtmeta.run(recipe, out=out)
    mtmeta.run(recipe, out=out, allow_inexact=True)


def test_settings_are_read_at_the_first_use(fresh: None, tmp_path: Path) -> None:
    """`import mtmeta` and the backbone's modules compile nothing."""
    import subprocess

    code = "import mtmeta.plugins.backbones.encoder.encoder;"
    code += "from mtmeta.plugins.backbones.encoder.kernels import load; print(load.cache_info())"
    environment = {**os.environ, "MTMETA_CACHE": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert "currsize=0" in done.stdout and not list(tmp_path.iterdir())


def test_layers_of_other_shapes_and_kinds_are_not_bypassed() -> None:
    class Mine(Layer):
        def forward(self, x: Tensor, sequences: Any) -> Tensor:
            return super().forward(x, sequences) + 1

    class MyAttention(Attention):
        pass

    def changed(change: Callable[[Any, Encoder], None]) -> Encoder:
        encoder = encoder_of(0.0)
        change(encoder.layers[0], encoder)
        return encoder

    def pruned(layer: Any, encoder: Encoder) -> None:
        layer.up, layer.down = nn.Linear(32, 37), nn.Linear(37, 32)

    def own(layer: Any, encoder: Encoder) -> None:
        encoder.layers[0] = Mine(encoder.config)

    def attention(layer: Any, encoder: Encoder) -> None:
        layer.attention = MyAttention(encoder.config)

    def relu(layer: Any, encoder: Encoder) -> None:
        layer.activation = torch.relu

    def heads(layer: Any, encoder: Encoder) -> None:
        layer.attention.heads = 8

    assert encoder_of(0.0)._can_fuse(torch.zeros(1))
    assert copy.deepcopy(encoder_of(0.0))._can_fuse(torch.zeros(1))
    for change in (pruned, own, attention, relu, heads):
        encoder = changed(change)
        assert not encoder._can_fuse(torch.zeros(1)), change
        assert bool(torch.isfinite(encoder(packed_of([3, 5]))).all())


def test_a_batch_that_contradicts_itself_is_refused(k: Kernels) -> None:
    packed = packed_of([3, 5])
    for lengths in ([3, 9], [0, 8], [3, 4]):
        with pytest.raises(ValueError, match="tokens in a batch of 8"):
            encoder_of(0.0)(dataclasses.replace(packed, lengths=torch.tensor(lengths)))


def test_compilers_that_fail_are_as_none(fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTMETA_CACHE", str(tmp_path))
    for command in ("cc '", "cc -fvisibility=hidden", "cc -no-such-flag"):
        monkeypatch.setenv("CC", command)
        assert load_again() is None, command
    monkeypatch.delenv("CC")
    monkeypatch.setenv("MTMETA_CACHE", "/proc")  # nothing can be written there
    assert (load_again() is None) == (shutil.which("cc") is None)


def test_the_library_that_was_hashed_is_loaded(
    k: Kernels, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another one takes its place between the two, which is what a path would find."""
    monkeypatch.setenv("MTMETA_CACHE", str(tmp_path))
    assert load_again()
    (library,) = tmp_path.glob("kernels-*/kernels.so")
    hashed = kernels._digest

    def swapped(handle: int) -> str:
        digest = hashed(handle)
        library.unlink()
        library.write_bytes(b"no library")
        return digest

    monkeypatch.setattr(kernels, "_digest", swapped)
    found = Kernels(library)
    assert library.read_bytes() == b"no library"
    if os.path.exists("/proc/self/fd"):
        assert found.identity == k.identity
        x = random(3, 8)
        assert torch.equal(found.gelu(x, torch.zeros(8), in_place=False), k.gelu(x, torch.zeros(8), in_place=False))


@pytest.mark.parametrize(
    "what", some_quick(["library of others", "hash of others", "link", "pipe", "other key", "open root"], 3)
)
def test_a_library_that_somebody_else_could_have_put_there_is_made_anew(
    what: str, k: Kernels, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTMETA_CACHE", str(tmp_path / "cache"))
    calls = counting_compiler(tmp_path, monkeypatch)
    assert load_again()
    (folder,) = (tmp_path / "cache").iterdir()
    made = len(calls.read_text().splitlines())
    library, digest = folder / "kernels.so", folder / "kernels.sha256"
    if what == "library of others":
        library.chmod(0o722)
    elif what == "hash of others":
        digest.chmod(0o606)
    elif what == "link":
        library.rename(tmp_path / "away")
        library.symlink_to(tmp_path / "away")
    elif what == "pipe":
        digest.unlink()
        os.mkfifo(digest)
    elif what == "other key":  # the library of another compiler or processor, moved here
        digest.write_text(digest.read_text().replace("kernels-", "kernels-0"))
    else:
        folder.parent.chmod(0o777)
    again = load_again()
    assert again and again.identity == k.identity
    assert len(calls.read_text().splitlines()) == 2 * made
    assert load_again()
    assert len(calls.read_text().splitlines()) == (3 if what == "open root" else 2) * made
    for path in (folder, library, digest):
        assert what == "open root" or path.lstat().st_mode & 0o022 == 0


def test_a_cache_that_a_group_of_nobody_else_may_write_to_keeps_the_library(
    k: Kernels, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_group(monkeypatch)
    monkeypatch.setenv("MTMETA_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o775)
    calls = counting_compiler(tmp_path, monkeypatch)
    assert load_again()
    made = calls.read_text()
    assert load_again() and calls.read_text() == made


@pytest.mark.parametrize("entry", ["", ".", "bin"])
def test_a_compiler_of_the_current_folder_is_none(
    entry: str, fresh: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder in (tmp_path, tmp_path / "bin"):
        folder.mkdir(exist_ok=True)
        (folder / "cc").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\nexit 1\n")
        (folder / "cc").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("MTMETA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", entry)
    assert load_again() is None
    monkeypatch.setenv("PATH", f"{entry}{os.pathsep}{os.defpath}")
    load_again()
    assert not (tmp_path / "ran").exists()
