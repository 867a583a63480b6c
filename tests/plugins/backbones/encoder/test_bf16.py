"""The encoder in bf16 on a CPU: each kernel against its formula, whole passes against fp32, and weights never stale."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from scipy import special
from torch import Tensor, nn
from torch.nn import functional

from mtmeta.core.api.batch import Packed
from mtmeta.core.machine import autocast
from mtmeta.plugins.backbones.encoder import bf16, compiled, kernels, matrix_unit
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.backbones.encoder.fused import Noise
from mtmeta.plugins.backbones.encoder.kernels import NO_MASK, Mask
from mtmeta.plugins.backbones.encoder.kernels_bf16 import Bf16Kernels
from tests.support.encoders import encoder_of, offsets_of, packed_of, random

pytestmark = pytest.mark.usefixtures("one_thread")
# one token, beside and at a tile's 16 and 32, more than a block of 64 queries, more than one block of 64 rows in all
LENGTHS = [1, 1, 2, 15, 16, 17, 31, 32, 33, 64, 65, 97, 130]
TOKENS = sum(LENGTHS)
WHOLE = [*LENGTHS, -TOKENS % matrix_unit.ROWS]
"""A multiple of 32 in all, which products by the matrix unit take."""
HALF = 2.0**-8  # what rounding to bf16 costs at most, relative
CPU = torch.device("cpu")


@pytest.fixture(params=["matrix unit", "vectors"])
def k(request: pytest.FixtureRequest) -> Iterator[Bf16Kernels]:
    """The kernels by the processor's matrix unit, if it has one, and by vector instructions."""
    found = kernels.load(Bf16Kernels)
    if not isinstance(found, Bf16Kernels):
        pytest.skip("no C compiler that can build the kernels")
    if found.use_matrix_unit(request.param == "matrix unit") != (request.param == "matrix unit"):
        pytest.skip("no AMX that the system lets us use")
    yield found
    found.use_matrix_unit(True)


def half(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return random(*shape, seed=seed, scale=scale).bfloat16()


def close(found: Tensor, wanted: Tensor, *, roundings: float = 1, small: float = 1e-5) -> None:
    """Hold a bf16 or fp32 result to one in fp64 up to a number of roundings to bf16."""
    bound = roundings * HALF * wanted.abs() + small
    worst = ((found.double() - wanted).abs() / bound).max()
    assert float(worst) <= 1, float(worst)


@pytest.mark.parametrize("more", [False, True])
def test_norm_equals_its_formula(k: Bf16Kernels, more: bool) -> None:
    rows, size = 130, 48
    x, residual = half(rows, size, seed=1), half(rows, size, seed=2)
    bias, gain, shift = (random(size, seed=seed) for seed in (3, 4, 5))
    given = [tensor.double().requires_grad_() for tensor in (residual, x, gain, shift, bias)]
    wanted = functional.layer_norm(given[0] + given[1] + given[4], (size,), given[2], given[3], 1e-5)
    y, rstd = k.norm(unit := x.clone(), bias, residual, gain, shift, 1e-5, NO_MASK)
    close(y, wanted.detach())
    assert torch.equal(k.norm_(x.clone(), bias, residual, gain, shift, 1e-5, NO_MASK), y)
    parts = [half(rows, size, seed=seed) for seed in (6, 7)[: 1 + more]]
    gradients = torch.autograd.grad(wanted, given, torch.stack(parts).double().sum(0))
    d_residual, dx, sums = k.norm_backward(parts[0], unit, rstd, gain, NO_MASK, *parts[1:])
    # the normalised rows were rounded, too
    scale = float(gradients[0].abs().max())
    close(d_residual, gradients[0], small=HALF * scale)
    assert torch.equal(dx, d_residual)
    for found, exact in zip(sums, gradients[2:], strict=True):
        close(found, exact, small=HALF * math.sqrt(rows))


def test_gelu_equals_its_formula(k: Bf16Kernels) -> None:
    x = torch.cat(
        [torch.linspace(-12, 12, 2**14 - 16), torch.tensor([0.0, -0.0, 5.6, -5.6, 1e30, -1e30, 1e-30, 88.0] * 2)]
    )
    x = x.bfloat16().view(-1, 16)
    bias = random(16, seed=1)
    at = (x.float() + bias).double()
    normal = torch.from_numpy(special.ndtr(at.numpy()))
    found = k.gelu(x.clone(), bias, in_place=False)
    close(found, torch.nan_to_num(at * normal), small=2e-6)
    grad = half(*x.shape, seed=2)
    slope = normal + at * torch.exp(-at.square() / 2) / math.sqrt(2 * math.pi)
    moved = grad.clone()
    sums = k.gelu_backward_(moved, x, bias)
    close(moved, grad.double() * torch.nan_to_num(slope), small=1e-5)
    assert float((sums.double() - (grad.double() * slope).sum(0)).abs().max()) < 1e-3


@pytest.mark.parametrize("shape", [(1, 16), (8, 16), (63, 32), (130, 48), (64, 384)])
def test_a_transpose_is_one(k: Bf16Kernels, shape: tuple[int, int]) -> None:
    x = half(*shape, seed=1)
    assert torch.equal(k.transposed(x), x.t())
    if not shape[0] % 8:
        assert torch.equal(k.transposed_fp32(x), x.t().float())


@pytest.mark.parametrize(("heads", "d"), [(1, 16), (3, 32), (14, 16), (2, 48), (2, 64), (1, 128)])
def test_attention_equals_its_formula(k: Bf16Kernels, heads: int, d: int) -> None:
    """Against fp64 from what the kernel multiplies: queries, keys and values with their bias, rounded."""
    size, offsets = heads * d, offsets_of(LENGTHS)
    bias = random(3 * size, seed=2, scale=0.5)
    qkv = half(TOKENS, 3 * size, seed=1)
    grad = half(TOKENS, size, seed=3)
    exact = (qkv + bias).bfloat16().double().requires_grad_()
    parts, logs = [], []
    for start, t in zip(offsets.tolist(), LENGTHS, strict=False):
        q, key, v = exact[start : start + t].view(t, 3, heads, d).permute(1, 2, 0, 3)
        scores = q @ key.transpose(1, 2) / math.sqrt(d)
        parts.append((scores.softmax(-1) @ v).transpose(0, 1).reshape(t, size))
        logs.append(scores.logsumexp(-1).t())
    wanted = torch.cat(parts)
    (d_wanted,) = torch.autograd.grad(wanted, exact, grad.double())
    mixed, lse = k.attention(qkv, bias, offsets, max(LENGTHS), heads, NO_MASK)
    d_qkv, d_bias = k.attention_backward(qkv, bias, offsets, max(LENGTHS), NO_MASK, mixed, lse, grad)
    # one token's result: its weights and the result itself are rounded
    close(mixed, wanted.detach(), small=HALF * float(wanted.detach().abs().max()))
    assert float((lse.double() - torch.cat(logs).detach()).abs().max()) < 1e-4
    for found, exactly in ((d_qkv, d_wanted), (d_bias, d_wanted.sum(0))):
        distance = float((found.double() - exactly).norm() / exactly.norm())
        assert distance < HALF, distance
        assert float((found.double() - exactly).abs().max()) < 4 * HALF * float(exactly.abs().max())


def test_the_matrix_unit_changes_last_bits_alone() -> None:
    k = kernels.load(Bf16Kernels)
    if not isinstance(k, Bf16Kernels) or not k.use_matrix_unit(True):
        pytest.skip("no AMX that the system lets us use")
    heads, d = 3, 32
    given = half(TOKENS, 9 * d, seed=1), random(9 * d, seed=2), offsets_of(LENGTHS), max(LENGTHS), heads, NO_MASK
    assert k.identity.endswith(" amx")
    one = k.attention(*given)
    assert not k.use_matrix_unit(False) and k.identity.endswith(" vectors")
    try:
        other = k.attention(*given)
    finally:
        k.use_matrix_unit(True)
    close(one[0], other[0].double(), roundings=2, small=1e-3)
    torch.testing.assert_close(one[1], other[1], rtol=1e-5, atol=1e-5)


def row_mask(k: Bf16Kernels, mask: Mask, rows: int, width: int) -> Tensor:
    """What norm_backward multiplies the gradient by on its way to x."""
    given = half(rows, width, seed=1), half(rows, width, seed=2), torch.ones(rows), torch.ones(width), mask
    _, dx, _ = k.norm_backward(*given)
    return torch.where(dx == 0, 0.0, mask.scale)


def weight_masks(k: Bf16Kernels, mask: Mask, lengths: list[int], heads: int, d: int) -> list[Tensor]:
    """[heads, T, T] for each sequence: with equal scores, a value that is 1 at one token shows whether it is kept."""
    offsets, total = offsets_of(lengths), sum(lengths)
    found = [torch.zeros(heads, t, t) for t in lengths]
    for first in range(0, max(lengths), d):
        qkv = torch.zeros(total, 3, heads, d, dtype=torch.bfloat16)
        for start, t in zip(offsets.tolist(), lengths, strict=False):
            for j in range(first, min(first + d, t)):
                qkv[start + j, 2, :, j - first] = 1.0
        mixed, _ = k.attention(qkv.view(total, -1), torch.zeros(3 * heads * d), offsets, max(lengths), heads, mask)
        for i, (start, t) in enumerate(zip(offsets.tolist(), lengths, strict=False)):
            seen = min(d, t - first)
            if seen > 0:
                part = mixed[start : start + t].view(t, heads, d)[:, :, :seen]
                found[i][:, :, first : first + seen] = torch.where(part > 0, mask.scale, 0.0).permute(1, 0, 2)
    return found


@pytest.mark.parametrize(
    ("heads", "size", "wide", "by_unit"),
    # the last is wider than what stays in L1 of the other side of a product
    [(3, 48, 80, False), (3, 96, 160, False), (3, 96, 160, True), (10, 480, 512, True)],
)
def test_dropout_is_that_of_the_formula(k: Bf16Kernels, heads: int, size: int, wide: int, by_unit: bool) -> None:
    """A layer with known masks against plain operations in fp64 that autograd differentiates."""
    if by_unit and not k.multiplies:
        pytest.skip("products are PyTorch's without the matrix unit")
    p, d, offsets, tokens = 0.3, size // heads, offsets_of(WHOLE), sum(WHOLE)
    qkv, out, up, down = nn.Linear(size, 3 * size), nn.Linear(size, size), nn.Linear(size, wide), nn.Linear(wide, size)
    parts: tuple[Any, ...] = (qkv, out, nn.LayerNorm(size, eps=1e-5), up, down, nn.LayerNorm(size, eps=1e-5))
    with torch.no_grad():
        for i, part in enumerate(parts):
            part.weight.copy_(part.weight.bfloat16())  # what is multiplied, so that no cast of weights is compared
            part.bias.copy_(random(*part.bias.shape, seed=20 + i, scale=0.5))
    parameters = [parameter for part in parts for parameter in (part.weight, part.bias)]
    x = half(tokens, size, seed=2).requires_grad_()
    direction = half(tokens, size, seed=4)

    def noises() -> tuple[Noise, Noise]:
        torch.manual_seed(6)
        return Noise(p), Noise(p / 2)

    noise, weight_noise = noises()
    plan = bf16.Plan(k, by_unit, compiled.Span(offsets, max(WHOLE)), heads, weight_noise, noise, noise)
    cast = bf16.Casts().of([(qkv, out, up, down)], k if by_unit else None)[0]
    found = bf16.layer(x, parts, cast, plan)
    gradients = torch.autograd.grad(found, [x, *parameters], direction)

    noise, weight_noise = noises()
    weight_mask = weight_masks(k, kernels.mask(weight_noise), WHOLE, heads, d)
    masks = [row_mask(k, kernels.mask(noise), tokens, size) for _ in range(2)]
    exact = [copy.deepcopy(part).double() for part in parts]
    at = x.detach().double().requires_grad_()
    mixed = []
    for start, t, kept in zip(offsets.tolist(), WHOLE, weight_mask, strict=False):
        q, key, v = exact[0](at[start : start + t]).view(t, 3, heads, d).permute(1, 2, 0, 3)
        mixed.append(
            (((q @ key.transpose(1, 2) / math.sqrt(d)).softmax(-1) * kept) @ v).transpose(0, 1).reshape(t, size)
        )
    first = exact[2](at + masks[0] * exact[1](torch.cat(mixed)))
    wanted = exact[5](first + masks[1] * exact[4](functional.gelu(exact[3](first))))
    of_wanted = [parameter for part in exact for parameter in (part.weight, part.bias)]
    exactly = torch.autograd.grad(wanted, [at, *of_wanted], direction.double())
    # four products and what lies between them round some ten times
    for one, other in zip([found, *gradients], [wanted, *exactly], strict=True):
        assert float((one.double() - other).detach().norm() / other.detach().norm()) < 3 * HALF


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_masks_drop_their_share(k: Bf16Kernels, p: float) -> None:
    torch.manual_seed(0)
    noise = Noise(p)
    rows = row_mask(k, kernels.mask(noise), 2000, 240) > 0
    weights = torch.cat([each.flatten() for each in weight_masks(k, kernels.mask(noise), [130] * 6, 8, 16)]) > 0
    for kept in (rows, weights):
        assert abs(float(kept.double().mean()) - (1 - p)) < 5 * math.sqrt(p * (1 - p) / kept.numel())
    centred = rows.double() - (1 - p)
    for shift in (1, 16, 32, 128):  # along a row: neighbours, halves of a word, the next words
        product = (centred[:, shift:] * centred[:, :-shift]).mean()
        assert abs(float(product)) < 5 * p * (1 - p) / math.sqrt(rows.numel() / 2)
    for shift in (1, 64):  # the next row, the next block
        product = (centred[shift:] * centred[:-shift]).mean()
        assert abs(float(product)) < 5 * p * (1 - p) / math.sqrt(rows.numel() / 2)


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_results_do_not_depend_on_the_number_of_threads(k: Bf16Kernels, p: float) -> None:
    mask = kernels.mask(Noise(p)) if p else NO_MASK
    heads, d, offsets = 5, 16, offsets_of(LENGTHS)
    size = heads * d

    def everything() -> list[Tensor]:
        qkv, bias, grad = half(TOKENS, 3 * size, seed=1), random(3 * size, seed=2), half(TOKENS, size, seed=3)
        mixed, lse = k.attention(qkv, bias, offsets, max(LENGTHS), heads, mask)
        back = k.attention_backward(qkv, bias, offsets, max(LENGTHS), mask, mixed, lse, grad)
        x, gain = half(TOKENS, size, seed=4), random(size, seed=5)
        y, rstd = k.norm(x, gain, grad, gain, gain, 1e-12, mask)
        norms = k.norm_backward(grad, x, rstd, gain, mask)
        wide = half(TOKENS, size, seed=6)
        return [mixed, lse, *back, y, x, rstd, *norms, k.gelu_backward_(wide, half(TOKENS, size), gain), wide]

    one = everything()
    torch.set_num_threads(3)
    for a, b in zip(one, everything(), strict=True):
        assert torch.equal(a, b)


def test_what_is_not_finite_shows(k: Bf16Kernels) -> None:
    heads, d, lengths = 2, 16, [5, 60]
    qkv = half(65, 3 * heads * d, scale=100.0)
    qkv[7, 0] = math.nan  # a query of the second sequence's first head
    mixed, _ = k.attention(qkv, torch.zeros(3 * heads * d), offsets_of(lengths), 60, heads, NO_MASK)
    assert bool(mixed[7, :d].isnan().all()) and int(mixed.isnan().sum()) == d
    x = torch.full((1, 16), math.nan, dtype=torch.bfloat16)
    zero, one = torch.zeros(16), torch.ones(16)
    assert bool(k.gelu(x.clone(), zero, in_place=False).isnan().all())
    assert bool(k.norm_(x, zero, torch.zeros_like(x), one, zero, 1e-12, NO_MASK).isnan().all())


def test_a_key_that_is_not_finite_shows_in_all_of_its_sequence(k: Bf16Kernels) -> None:
    """In the logarithms of the sums, too, of which the backward pass computes weights."""
    qkv, bias, offsets = half(65, 48), torch.zeros(48), offsets_of([5, 60])
    qkv[8, 16 + 3] = math.nan  # not the first key, which all others are compared with
    mixed, lse = k.attention(qkv, bias, offsets, 60, 1, NO_MASK)
    d_qkv, _ = k.attention_backward(qkv, bias, offsets, 60, NO_MASK, mixed, lse, half(65, 16, seed=1))
    for found in (mixed, lse, *torch.split(d_qkv, 16, 1)):
        assert torch.equal(found.isnan().any(1), torch.arange(65) >= 5)


def test_other_tensors_are_refused(k: Bf16Kernels) -> None:
    for wrong in (torch.zeros(2, 16, dtype=torch.float64), half(2, 32)[:, ::2]):
        with pytest.raises(ValueError, match="contiguous bf16"):
            k.gelu(wrong, torch.zeros(16), in_place=True)


# ------------------------------------------------------------------------------------------------------ the encoder


def in_bf16(encoder: Encoder, packed: Packed) -> Tensor:
    with autocast(CPU, "bf16"):
        hidden: Tensor = encoder(packed)
    return hidden


def outcome(encoder: Encoder, packed: Packed) -> dict[str, Tensor]:
    encoder.zero_grad()
    torch.manual_seed(11)
    hidden = in_bf16(encoder, packed)
    assert hidden.dtype == torch.float32
    torch.autograd.backward(hidden, random(*hidden.shape, seed=7))
    with torch.no_grad():
        torch.manual_seed(11)
        found = {"hidden": hidden.detach(), "without gradient": in_bf16(encoder, packed)}
    return found | {n: p.grad.clone() for n, p in encoder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("hidden", "heads", "intermediate"), [(32, 2, 48), (64, 1, 64), (224, 14, 16), (48, 1, 32)])
def test_an_encoder_is_that_in_fp32_up_to_roundings(
    k: Bf16Kernels, monkeypatch: pytest.MonkeyPatch, hidden: int, heads: int, intermediate: int
) -> None:
    encoder, packed = encoder_of(0.0, hidden, heads, intermediate), packed_of(LENGTHS)
    called: list[str] = []
    with monkeypatch.context() as patch:
        call = Bf16Kernels.call

        def noted(self: Bf16Kernels, name: str, *arguments: object) -> None:
            called.append(name)
            call(self, name, *arguments)

        patch.setattr(Bf16Kernels, "call", noted)
        found = outcome(encoder, packed)
    by_unit = k.multiplies and not hidden % 32 and not intermediate % 32
    backward = "feed_backward_bf16" if by_unit else "gelu_backward_bf16"
    assert called.count("attention_forward_bf16") == 4 and called.count(backward) == 2
    encoder.zero_grad()
    wanted = encoder(packed)
    torch.autograd.backward(wanted, random(*wanted.shape, seed=7))
    named = {name: p.grad for name, p in encoder.named_parameters()}
    assert torch.equal(found["hidden"], found["without gradient"]) and len(found) == 2 + len(named)
    for name, tensor in {"hidden": wanted.detach(), **named}.items():
        assert tensor is not None and found[name].dtype == torch.float32
        assert float((found[name] - tensor).norm() / tensor.norm()) < 9 * HALF, name


def test_a_pass_with_dropout_is_the_same_without_gradient_and_each_time(k: Bf16Kernels) -> None:
    encoder, packed = encoder_of(0.3, 64, 2, 96), packed_of(LENGTHS)
    one, again = outcome(encoder, packed), outcome(encoder, packed)
    assert torch.equal(one["hidden"], one["without gradient"])
    assert all(torch.equal(one[name], again[name]) for name in one)


@pytest.mark.parametrize("wide", [48, 64])  # products by PyTorch, and by the matrix unit
def test_frozen_weights_get_no_gradient_and_others_the_same(k: Bf16Kernels, wide: int) -> None:
    encoder, packed = encoder_of(0.1, 32, 2, wide), packed_of([3, 5, 60])
    whole = outcome(encoder, packed)
    layers: Any = encoder.layers
    frozen = [
        layers[0].up.weight,
        layers[1].attention.qkv.weight,
        layers[1].attention.out.weight,
        layers[1].down.weight,
    ]
    for parameter in frozen:
        parameter.requires_grad_(False)
    found = outcome(encoder, packed)
    assert len(found) == len(whole) - len(frozen)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())


def test_a_sequence_does_not_depend_on_its_batch_mates(k: Bf16Kernels) -> None:
    encoder = encoder_of(0.0, 64, 2, 96).eval()
    packed = packed_of(LENGTHS)
    with torch.inference_mode():
        together = torch.split(in_bf16(encoder, packed), LENGTHS)
        for i, (length, start) in enumerate(zip(LENGTHS, offsets_of(LENGTHS).tolist(), strict=False)):
            alone = packed_of([length])
            alone.ids.copy_(packed.ids[start : start + length])
            mine = in_bf16(encoder, alone)
            assert float((mine - together[i]).abs().max()) <= 2 * HALF * float(mine.abs().max())
            assert not k.multiplies or torch.equal(mine, together[i])  # oneDNN's products differ with their sizes


@pytest.mark.parametrize("wide", [48, 64])  # products by PyTorch, and by the matrix unit
@pytest.mark.parametrize("grad", [True, False])
def test_weights_are_never_those_of_an_earlier_step(k: Bf16Kernels, grad: bool, wide: int) -> None:
    """Whatever way they were changed, by hands that PyTorch does not count included."""
    encoder, packed = encoder_of(0.0, 32, 2, wide), packed_of([3, 5, 60])
    layers: Any = encoder.layers
    weight = layers[0].up.weight
    other = {name: 1.5 * tensor for name, tensor in encoder.state_dict().items()}

    def uncounted() -> None:
        weight.data.mul_(1.1)
        encoder.eval()

    changes = {
        "in place": lambda: weight.mul_(1.1),
        "state": lambda: encoder.load_state_dict(other),
        "uncounted": uncounted,
        "replaced": lambda: setattr(layers[0].up, "weight", nn.Parameter(0.7 * weight.detach())),
    }
    for name, change in changes.items():
        with torch.set_grad_enabled(grad):
            before = in_bf16(encoder, packed)
            with torch.no_grad():
                change()  # type: ignore[no-untyped-call]
            after, fresh = in_bf16(encoder, packed), in_bf16(copy.deepcopy(encoder), packed)
        assert not torch.equal(before, after), name
        assert torch.equal(after, fresh), name


@pytest.mark.parametrize("wide", [48, 64])  # products by PyTorch, and by the matrix unit
def test_gradients_may_be_turned_on_between_two_layers(k: Bf16Kernels, wide: int) -> None:
    encoder, packed = encoder_of(0.0, 32, 2, wide), packed_of([3, 5, 60])
    whole = outcome(encoder, packed)
    encoder.zero_grad()
    with autocast(CPU, "bf16"):
        states = encoder.hidden_states(packed)
        with torch.no_grad():
            _, _ = next(states), next(states)  # the embeddings and a layer
        hidden = next(states).float()
    torch.autograd.backward(hidden, random(*hidden.shape, seed=7))
    given = {name: p.grad for name, p in encoder.named_parameters() if p.grad is not None}
    assert given and set(given) == {name for name in whole if name.startswith("layers.1.")}
    assert all(torch.equal(tensor, whole[name]) for name, tensor in given.items())


@pytest.mark.parametrize("wide", [48, 64])
def test_weights_of_another_type_are_not_read_as_fp32(k: Bf16Kernels, wide: int) -> None:
    encoder, packed = encoder_of(0.0, 32, 2, wide).eval(), packed_of([3, 5, 60])
    with torch.inference_mode():
        wanted = in_bf16(encoder, packed)
    for name, parameter in encoder.named_parameters():
        if name.startswith("layers.") and name.endswith(("qkv.weight", "up.weight")):
            parameter.data = parameter.data.bfloat16()
    assert not encoder.has_bf16_kernels
    with torch.inference_mode():
        found = in_bf16(encoder, packed)
    assert float((found - wanted).norm() / wanted.norm()) < 6 * HALF


def test_batches_have_few_sizes_and_hardly_more_tokens() -> None:
    assert all((tokens + bf16.missing(tokens, by_unit=True)) % 32 == 0 for tokens in range(1, 100))
    more = [bf16.missing(tokens, by_unit=False) for tokens in range(1, 20_000)]
    sizes = {tokens + extra for tokens, extra in enumerate(more, 1)}
    assert len(sizes) < 160
    assert all(0 <= extra < max(16, tokens / 16) for tokens, extra in enumerate(more, 1))
    assert not any(bf16.missing(size, by_unit=False) for size in sizes)


def test_what_is_added_to_a_batch_reaches_nobody(k: Bf16Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same hidden states and gradients, up to roundings of products of another size, dropout and all."""
    encoder, packed = encoder_of(0.3, 64, 2, 96), packed_of([3, 5, 60, 61])
    found = outcome(encoder, packed)
    assert bf16.missing(129, by_unit=False) and bf16.missing(129, by_unit=True) == 31
    monkeypatch.setattr(bf16, "missing", lambda tokens, by_unit: 63 if by_unit else 0)
    for name, tensor in outcome(encoder, packed).items():
        assert found[name].shape == tensor.shape
        assert float((found[name] - tensor).norm() / tensor.norm()) < 2 * HALF, name


@pytest.mark.parametrize("wide", [48, 64])  # products by PyTorch, and by the matrix unit
def test_evaluation_casts_the_weights_once(k: Bf16Kernels, monkeypatch: pytest.MonkeyPatch, wide: int) -> None:
    encoder, packed = encoder_of(0.0, 32, 2, wide).eval(), packed_of([3, 5, 60])
    times: list[int] = []
    cast = bf16._cast

    def counted(layers: Any, unit: Any) -> Any:
        times.append(len(layers))
        return cast(layers, unit)

    monkeypatch.setattr(bf16, "_cast", counted)
    with torch.inference_mode():
        for _ in range(3):
            in_bf16(encoder, packed)
    assert times == [2]
    in_bf16(encoder, packed)
    in_bf16(encoder, packed)
    assert times == [2, 2, 2]  # with gradients once a pass


def test_widths_that_are_no_multiples_go_another_way(k: Bf16Kernels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bf16Kernels, "call", lambda *_: pytest.fail("a kernel was called"))
    for hidden, heads, intermediate in ((24, 3, 16), (32, 4, 48), (32, 2, 40)):
        assert not Bf16Kernels.fits(hidden, heads, intermediate)
        encoder, packed = encoder_of(0.0, hidden, heads, intermediate), packed_of([3, 5, 60])
        found = in_bf16(encoder, packed)
        torch.autograd.backward(found.sum())
        assert float((found - encoder(packed)).detach().norm() / found.detach().norm()) < 6 * HALF
    assert Bf16Kernels.fits(768, 12, 3072) and Bf16Kernels.fits(384, 12, 1536)


def test_fp32_kernels_are_not_touched() -> None:
    """The sums of a run in fp32 are pinned by the name of its kernels: bf16 must not be part of that library."""
    one, other = kernels.load(), kernels.load(Bf16Kernels)
    if one is None or other is None:
        pytest.skip("no C compiler that can build the kernels")
    assert one.digest != other.digest
    assert not {name for name in kernels.Kernels.files if "bf16" in name}
    with pytest.raises(AttributeError):
        _ = one.library.norm_forward_bf16
