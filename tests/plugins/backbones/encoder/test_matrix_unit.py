"""Products of bf16 matrices by the processor's matrix unit, with what lies between them, against fp64."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional

import mtmeta
from mtmeta.core.machine import autocast
from mtmeta.core.methods.adapters import Adapters
from mtmeta.core.recipe.sections import AdapterOptions
from mtmeta.plugins.backbones.encoder import kernels
from mtmeta.plugins.backbones.encoder.fused import Noise
from mtmeta.plugins.backbones.encoder.kernels import NO_MASK, Mask
from mtmeta.plugins.backbones.encoder.kernels_bf16 import Bf16Kernels
from tests.support.encoders import encoder_of, packed_of, random

pytestmark = pytest.mark.usefixtures("one_thread")
HALF = 2.0**-8
EPS = 1e-5
# less than a block of rows, several chunks of rows and a part of one, and more than the tokens summed over at once
TOKENS = [32, 64, 96, 544, 1312]
D, WIDE = 64, 160


@pytest.fixture
def k() -> Bf16Kernels:
    found = kernels.load(Bf16Kernels)
    if not isinstance(found, Bf16Kernels) or not found.use_matrix_unit(True):
        pytest.skip("no AMX that the system lets us use")
    return found


def half(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return random(*shape, seed=seed, scale=scale).bfloat16()


def weight(*shape: int, seed: int) -> Tensor:
    """In fp32, of numbers that bf16 has."""
    return half(*shape, seed=seed, scale=shape[1] ** -0.5).float()


def close(found: Tensor, wanted: Tensor, roundings: float = 1.0) -> None:
    assert found.shape == wanted.shape
    assert float((found.double() - wanted).norm() / wanted.norm()) < roundings * HALF


def row_mask(k: Bf16Kernels, mask: Mask, rows: int) -> Tensor:
    given = half(rows, D, seed=1), half(rows, D, seed=2), torch.ones(rows), torch.ones(D), mask
    return torch.where(k.norm_backward(*given)[1] == 0, 0.0, mask.scale).double()


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize(("n", "m"), [(D, D), (3 * D, D), (D, WIDE), (32, 32), (544, 480)])
def test_a_product_is_one(k: Bf16Kernels, tokens: int, n: int, m: int) -> None:
    x, w = half(tokens, m, seed=1), weight(n, m, seed=2)
    transposed, plain = k.pairs(w, both=True)
    found = k.product(x, transposed)
    wanted = x.double() @ w.double().t()
    # a rounding of the sum, whose own error is far smaller
    assert bool(((found.double() - wanted).abs() <= HALF * wanted.abs() + 1e-5).all())
    assert plain is not None and len(plain) == n * m
    back = half(tokens, n, seed=3)
    exactly = back.double() @ w.double()
    assert bool(((k.product(back, plain).double() - exactly).abs() <= HALF * exactly.abs() + 1e-5).all())
    assert k.pairs(w, both=False)[1] is None


def test_weights_are_rounded_to_the_nearest(k: Bf16Kernels) -> None:
    w = random(32, 32, seed=1)
    one = torch.eye(32, dtype=torch.bfloat16)
    transposed, plain = k.pairs(w, both=True)
    assert plain is not None
    assert torch.equal(k.product(one, transposed), w.bfloat16().t())
    assert torch.equal(k.product(one, plain), w.bfloat16())


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_out_and_its_gradients_are_those_of_the_formula(k: Bf16Kernels, tokens: int, p: float) -> None:
    mask = kernels.mask(Noise(p)) if p else NO_MASK
    x, residual, w = half(tokens, D, seed=1), half(tokens, D, seed=2), weight(D, D, seed=3)
    bias, gain, shift = (random(D, seed=seed) for seed in (4, 5, 6))
    pairs, back = k.pairs(w, both=True)
    unit, rstd = torch.empty_like(x), torch.empty(tokens)
    y = k.out(x, pairs, bias, residual, gain, shift, EPS, mask, (unit, rstd))
    assert torch.equal(y, k.out(x, pairs, bias, residual, gain, shift, EPS, mask, (None, None)))
    kept = row_mask(k, mask, tokens) if p else torch.ones(tokens, D).double()
    exact = [tensor.double().requires_grad_() for tensor in (residual, x, w, gain, shift, bias)]
    at, given, matrix, by, to, plus = exact
    wanted = functional.layer_norm(at + kept * (given @ matrix.t() + plus), [D], by, to, EPS)
    close(y, wanted.detach())
    grad = half(tokens, D, seed=7)
    exactly = torch.autograd.grad(wanted, exact, grad.double())
    assert back is not None
    *found, sums = k.out_backward(grad, unit, rstd, gain, mask, back, x, True)
    assert len(found) == 3
    for one, other in zip([*found, *sums], exactly, strict=True):
        assert one is not None
        close(one, other, 1.5)
    assert k.out_backward(grad, unit, rstd, gain, mask, back, x, False)[2] is None


@pytest.mark.parametrize("tokens", TOKENS)
@pytest.mark.parametrize("p", [0.0, 0.3])
def test_feed_forward_and_its_gradients_are_those_of_the_formula(k: Bf16Kernels, tokens: int, p: float) -> None:
    mask = kernels.mask(Noise(p)) if p else NO_MASK
    x, up, down = half(tokens, D, seed=1), weight(WIDE, D, seed=2), weight(D, WIDE, seed=3)
    up_bias, bias, gain, shift = random(WIDE, seed=8), *(random(D, seed=seed) for seed in (4, 5, 6))
    (of_up, up_back), (of_down, down_back) = k.pairs(up, both=True), k.pairs(down, both=True)
    assert up_back is not None and down_back is not None
    kept = half(tokens, WIDE), torch.empty_like(x), torch.empty(tokens)
    given = x, of_up, up_bias, of_down, bias, gain, shift, EPS, mask
    y = k.feed(*given, kept)
    assert torch.equal(y, k.feed(*given, (None, None, None)))
    dropped = row_mask(k, mask, tokens) if p else torch.ones(tokens, D).double()
    exact = [tensor.double().requires_grad_() for tensor in (x, down, up, gain, shift, bias, up_bias)]
    at, second, first, by, to, plus, up_plus = exact
    fed = functional.gelu(at @ first.t() + up_plus) @ second.t() + plus
    wanted = functional.layer_norm(at + dropped * fed, [D], by, to, EPS)
    close(y, wanted.detach())
    grad = half(tokens, D, seed=7)
    exactly = torch.autograd.grad(wanted, exact, grad.double())
    wider, unit, rstd = kept
    back = grad, unit, rstd, gain, mask, down_back, wider, up_bias, up_back, x
    d_x, d_down, d_up, sums, d_up_bias = k.feed_backward(*back, (True, True))
    for one, other in zip([d_x, d_down, d_up, *sums, d_up_bias], exactly, strict=True):
        assert one is not None
        close(one, other, 2.5)
    for wants in ((True, False), (False, True), (False, False)):
        again = k.feed_backward(*back, wants)
        assert torch.equal(again[0], d_x) and torch.equal(again[4], d_up_bias)
        for found, was, wanted_now in zip(again[1:3], (d_down, d_up), wants, strict=True):
            assert was is not None
            assert torch.equal(found, was) if wanted_now and found is not None else found is None


@pytest.mark.parametrize("tokens", TOKENS)
def test_gradients_of_queries_keys_and_values_go_on(k: Bf16Kernels, tokens: int) -> None:
    x, w, grad = half(tokens, D, seed=1), weight(3 * D, D, seed=2), half(tokens, 3 * D, seed=3)
    before = half(tokens, D, seed=4)
    _, back = k.pairs(w, both=True)
    assert back is not None
    d_x, d_w = before.clone(), k.qkv_backward_(before.clone(), grad, back, x, True)
    assert k.qkv_backward_(d_x, grad, back, x, False) is None and d_w is not None
    wanted = before.double() + grad.double() @ w.double()
    assert bool(((d_x.double() - wanted).abs() <= HALF * wanted.abs() + 1e-5).all())
    exactly = grad.double().t() @ x.double()
    assert float((d_w.double() - exactly).norm() / exactly.norm()) < 1e-6  # in fp32 to the end


def low_rank(n: int, m: int, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, A and B of small whole numbers, whose sums and products have no rounding in fp32."""
    generator = torch.Generator().manual_seed(rank)
    weight, a, b = (torch.randint(-8, 9, shape, generator=generator) for shape in ((n, m), (rank, m), (n, rank)))
    return weight.float(), a.float(), b.float()


@pytest.mark.parametrize("rank", [1, 3, 4, 8, 13, 32])
@pytest.mark.parametrize(("n", "m"), [(32, 32), (96, 64), (64, 1152)])
def test_a_low_rank_sum_is_formed_where_a_weight_is_read(k: Bf16Kernels, n: int, m: int, rank: int) -> None:
    weight, a, b = low_rank(n, m, rank)
    stand_in: Any = torch.tensor(torch.nan).expand(n, m)
    stand_in.low_rank_sum = mtmeta.LowRankSum(weight, a, b, 0.5)
    for both in (True, False):
        found, wanted = k.pairs(stand_in, both=both), k.pairs(weight + 0.5 * b @ a, both=both)
        assert torch.equal(found[0], wanted[0])
        assert (found[1] is None) != both
        assert found[1] is None or wanted[1] is None or torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("rank", [1, 3, 4, 8, 13, 32])
@pytest.mark.parametrize(("n", "m"), [(32, 32), (96, 64), (64, 1152), (416, 800)])
def test_gradients_of_a_low_rank_sum_are_those_of_the_formula(k: Bf16Kernels, n: int, m: int, rank: int) -> None:
    grad, a, b = random(n, m, seed=1), random(rank, m, seed=2), random(n, rank, seed=3)
    found = k.low_rank_backward(grad, a, b, 0.7)
    for own, wanted in zip(found, (b.double().t() @ grad.double(), grad.double() @ a.double().t()), strict=True):
        assert own.shape == wanted.shape
        assert float((own.double() - 0.7 * wanted).norm() / (0.7 * wanted).norm()) < 1e-6
    for threads in (3, 11):
        torch.set_num_threads(threads)
        assert all(map(torch.equal, k.low_rank_backward(grad, a, b, 0.7), found))


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("on", [("qkv", "out", "up", "down"), ("up",)])
def test_an_encoder_forms_the_sums_of_its_adapters(k: Bf16Kernels, on: Any, frozen: bool) -> None:
    encoder, packed = encoder_of(0.1, 64, 2, 96), packed_of([3, 5, 60])
    encoder.requires_grad_(not frozen)
    adapters = Adapters(AdapterOptions(rank=3, alpha=6.0, on=on), encoder, ["own"], seed=1)
    for at, (name, parameter) in enumerate(adapters.named_parameters()):
        if name.endswith(".B"):
            parameter.data = random(*parameter.shape, seed=at, scale=0.1)
    everything = [*encoder.named_parameters(), *adapters.named_parameters()]

    def outcome(*, formed: bool) -> dict[str, Tensor]:
        torch.manual_seed(11)
        with autocast(torch.device("cpu"), "bf16"):
            assert encoder.forms_sums()
            own = adapters.merged("own", encoder) if formed else adapters.standing_in("own", encoder)
            assert formed or all(own[name].isnan().all() for name in adapters.matrices)
            hidden = functional_call(encoder, own, (packed,))
        wanted = [parameter for _, parameter in everything if parameter.requires_grad]
        grads = torch.autograd.grad(hidden, wanted, random(*hidden.shape, seed=7), allow_unused=True)
        names = [name for name, parameter in everything if parameter.requires_grad]
        return {"hidden": hidden.detach()} | {n: g for n, g in zip(names, grads, strict=True) if g is not None}

    found, explicit = outcome(formed=False), outcome(formed=True)
    assert found.keys() == explicit.keys() and len([name for name in found if name.endswith(".A")]) == 2 * len(on)
    for name, tensor in explicit.items():
        # an element of a sum, in fp32 the same up to its last bit, may be rounded to the other side
        assert float((found[name] - tensor).norm() / tensor.norm()) < HALF / 4, name


def test_what_stands_in_for_a_sum_is_no_number_elsewhere(k: Bf16Kernels) -> None:
    encoder, packed = encoder_of(0.0, 64, 2, 96), packed_of([3, 5, 60])
    adapters = Adapters(AdapterOptions(), encoder, ["own"], seed=1)
    assert not encoder.forms_sums()  # in fp32
    assert all(tensor.isfinite().all() for tensor in adapters.standing_in("own", encoder).values())
    with autocast(torch.device("cpu"), "bf16"):
        own = adapters.standing_in("own", encoder)
        with torch.no_grad():
            assert all(tensor.isfinite().all() for tensor in adapters.standing_in("own", encoder).values())
    assert functional_call(encoder, own, (packed,)).isnan().all()


@pytest.mark.parametrize("p", [0.0, 0.3])
def test_results_do_not_depend_on_the_number_of_threads(k: Bf16Kernels, p: float) -> None:
    """Nor on how many tokens are summed over at once, which grows with threads."""
    mask, tokens = kernels.mask(Noise(p)) if p else NO_MASK, 2592
    x, other = half(tokens, D, seed=1), half(tokens, D, seed=2)
    bias, wide_bias = random(D, seed=3), random(WIDE, seed=4)
    qkv, out, up, down = (
        k.pairs(weight(n, m, seed=5), both=True) for n, m in ((3 * D, D), (D, D), (WIDE, D), (D, WIDE))
    )

    def everything() -> list[Tensor | None]:
        wide, unit, rstd = k.product(x, qkv[0]), torch.empty_like(x), torch.empty(tokens)
        inner = k.out(x, out[0], bias, other, bias, bias, EPS, mask, (unit, rstd))
        kept = half(tokens, WIDE), torch.empty_like(x), torch.empty(tokens)
        y = k.feed(inner, up[0], wide_bias, down[0], bias, bias, bias, EPS, mask, kept)
        assert out[1] is not None and up[1] is not None and down[1] is not None and qkv[1] is not None
        fed = k.feed_backward(y, kept[1], kept[2], bias, mask, down[1], kept[0], wide_bias, up[1], inner, (True, True))
        back = k.out_backward(fed[0], unit, rstd, bias, mask, out[1], x, True)
        return [wide, inner, y, *kept, *fed, *back, k.qkv_backward_(back[0].clone(), wide, qkv[1], x, True)]

    one = everything()
    for threads in (3, 11):
        torch.set_num_threads(threads)
        for a, b in zip(one, everything(), strict=True):
            assert a is not None and b is not None and torch.equal(a, b)


def test_what_is_not_finite_shows(k: Bf16Kernels) -> None:
    x, w = half(64, D, seed=1), weight(D, D, seed=2)
    x[7, 3] = torch.nan
    found = k.product(x, k.pairs(w, both=False)[0])
    assert bool(found[7].isnan().all()) and int(found.isnan().sum()) == D
