"""Every schedule against its twin in torch.optim.lr_scheduler, every optimizer against torch's own."""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import lr_scheduler

from mtmeta.core.api.heads import CosineHead, MLPHead
from mtmeta.core.api.optimizers import SGD, Adam, AdamW, NAdam, set_lr
from mtmeta.core.api.schedules import Constant, Cosine, Linear, OneCycle, Plateau, PlateauState, Step
from mtmeta.core.training.state import optimizer_state, restore_optimizer
from mtmeta.plugins.backbones.bert import Bert

BASE = 0.7


def twin_rates(steps: int, make: Callable[[torch.optim.Optimizer], Any]) -> list[float]:
    """The learning rates torch's scheduler gives over a whole run."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=BASE)
    scheduler = make(optimizer)
    rates = []
    for step in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        if step + 1 < steps:
            scheduler.step()
    return rates


def our_rates(steps: int, schedule: Any) -> list[float]:
    """The learning rates of our schedule, set as the loop sets them."""
    optimizer = SGD(lr=BASE).build([("encoder.w", nn.Parameter(torch.zeros(1)))])
    rates = []
    for step in range(steps):
        set_lr(optimizer, schedule.factor(step, steps))
        rates.append(float(optimizer.param_groups[0]["lr"]))
    return rates


def check(steps: int, schedule: Any, make: Callable[[torch.optim.Optimizer], Any]) -> None:
    # torch's chained forms multiply rounding errors along the run; ours is closed
    assert our_rates(steps, schedule) == pytest.approx(twin_rates(steps, make), rel=1e-9, abs=1e-12)


STEPS = [1, 2, 7, 100]


@pytest.mark.parametrize("steps", STEPS)
def test_constant(steps: int) -> None:
    check(steps, Constant(), lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0))
    assert our_rates(steps, Constant()) == [BASE] * steps


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("end", [0.0, 0.25, 1.0])
def test_linear(steps: int, end: float) -> None:
    check(steps, Linear(end=end), lambda o: lr_scheduler.LinearLR(o, 1.0, end, total_iters=steps))


@pytest.mark.parametrize("warmup", [1, 10, 99, 100, 150])
def test_linear_with_warmup(warmup: int) -> None:
    def by_hand(step: int) -> float:
        if step < warmup:
            return step / warmup
        return max(0.0, (100 - step) / (100 - warmup)) if warmup < 100 else 1.0

    check(100, Linear(warmup=warmup), lambda o: lr_scheduler.LambdaLR(o, by_hand))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize(("every", "gamma"), [(30, 0.8), (1, 0.5), (7, 1.0)])
def test_step(steps: int, every: int, gamma: float) -> None:
    check(steps, Step(every=every, gamma=gamma), lambda o: lr_scheduler.StepLR(o, every, gamma))


@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("end", [0.0, 0.1])
def test_cosine(steps: int, end: float) -> None:
    check(steps, Cosine(end=end), lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=steps, eta_min=end * BASE))


@pytest.mark.parametrize("steps", [3, 4, 7, 100, 400])
@pytest.mark.parametrize(("rise", "div", "final"), [(0.3, 25.0, 1e4), (0.5, 10.0, 2.0), (1.0, 4.0, 10.0)])
def test_one_cycle(steps: int, rise: float, div: float, final: float) -> None:
    def twin(optimizer: torch.optim.Optimizer) -> Any:
        return lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=BASE,
            total_steps=steps,
            pct_start=rise,
            div_factor=div,
            final_div_factor=final,
            cycle_momentum=False,
        )

    check(steps, OneCycle(rise=rise, div=div, final_div=final), twin)


def test_one_cycle_whose_rise_is_one_step_starts_at_the_peak() -> None:
    # torch divides by zero here
    rates = our_rates(2, OneCycle(rise=0.5, div=10.0, final_div=2.0))
    assert rates == pytest.approx([BASE, BASE / 20.0], rel=1e-12)


METRICS = {
    "rise and stall": [0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3],
    "below the threshold": [0.5, 0.50004, 0.50008, 0.50012, 0.5004, 0.5005, 0.5006, 0.5007, 0.5008],
    "from zero": [0.0, 0.0, 0.0, 0.0, 1e-9, 0.0, 0.0, 0.0, 0.0],
    "noise": [math.sin(3.7 * i) ** 2 for i in range(60)],
}


@pytest.mark.parametrize("metrics", METRICS)
@pytest.mark.parametrize("patience", [0, 1, 2, 5])
@pytest.mark.parametrize("threshold", [0.0, 1e-4, 0.1])
def test_plateau(metrics: str, patience: int, threshold: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=BASE)
    twin = lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience, threshold=threshold, eps=0.0
    )
    options = Plateau(gamma=0.5, patience=patience, threshold=threshold)
    state = PlateauState()
    reductions = 0
    for value in METRICS[metrics]:
        twin.step(value)
        before = state.factor
        state.update(options, value)
        reductions += state.factor < before
        assert state.factor * BASE == float(optimizer.param_groups[0]["lr"])
        assert (state.best, state.waited) == (twin.best, twin.num_bad_epochs)
    assert options.factor(3, 10) == 1.0
    assert metrics != "rise and stall" or patience > 2 or reductions >= 2


def test_plateau_of_a_negative_metric_needs_a_rise() -> None:
    # torch asks a negative metric only to fall by less than the threshold; a fall is no rise here
    state = PlateauState()
    for value, best, waited in [(-0.5, -0.5, 0), (-0.50001, -0.5, 1), (-0.49999, -0.5, 2), (-0.4, -0.4, 0)]:
        state.update(Plateau(patience=5, threshold=1e-4), value)
        assert (state.best, state.waited) == (best, waited)


def test_plateau_with_a_threshold_of_one_takes_the_first_metric() -> None:
    state = PlateauState()
    state.update(Plateau(threshold=1.0), 0.3)
    assert (state.best, state.waited) == (0.3, 0)


# ------------------------------------------------------------------------------------------------------- optimizers

SHAPES = {"encoder.w": (5, 4), "encoder.b": (5,), "heads.sst.out.weight": (3, 5), "heads.sst.out.bias": (3,)}


def parameters() -> dict[str, nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}


def run(optimizer: torch.optim.Optimizer, params: dict[str, nn.Parameter], steps: int = 5) -> list[Tensor]:
    """The parameters after steps on seeded gradients."""
    generator = torch.Generator().manual_seed(2)
    for _ in range(steps):
        for parameter in params.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimizer.step()
    return [parameter.detach() for parameter in params.values()]


CASES: list[tuple[Any, Any, dict[str, Any]]] = [
    (SGD(lr=0.1), torch.optim.SGD, {"lr": 0.1, "foreach": True}),
    (SGD(lr=0.1, momentum=0.9), torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "foreach": True}),
    (Adam(lr=0.1), torch.optim.Adam, {"lr": 0.1, "fused": True}),
    (
        Adam(lr=0.1, betas=(0.5, 0.9), eps=1e-3),
        torch.optim.Adam,
        {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "fused": True},
    ),
    (AdamW(lr=0.1, weight_decay=0.0), torch.optim.AdamW, {"lr": 0.1, "weight_decay": 0.0, "fused": True}),
    (
        AdamW(lr=0.1, weight_decay=0.0, betas=(0.0, 0.99)),
        torch.optim.AdamW,
        {"lr": 0.1, "weight_decay": 0.0, "betas": (0.0, 0.99), "fused": True},
    ),
    (NAdam(lr=0.1), torch.optim.NAdam, {"lr": 0.1, "foreach": True}),
    (
        NAdam(lr=0.1, betas=(0.5, 0.9), eps=1e-3),
        torch.optim.NAdam,
        {"lr": 0.1, "betas": (0.5, 0.9), "eps": 1e-3, "foreach": True},
    ),
]


@pytest.mark.parametrize(("options", "twin", "arguments"), CASES, ids=lambda value: getattr(value, "name", None))
def test_optimizer_is_that_of_torch_bit_for_bit(options: Any, twin: Any, arguments: dict[str, Any]) -> None:
    one, other, plain = parameters(), parameters(), parameters()
    ours = run(options.build(one.items()), one)
    theirs = run(twin(other.values(), **arguments), other)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    # and the kernels chosen for speed compute the same as the plain loop
    slow = {key: value for key, value in arguments.items() if key not in ("fused", "foreach")}
    for a, b in zip(ours, run(twin(plain.values(), **slow, foreach=False), plain), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


DECAYED: list[tuple[Any, Any, dict[str, Any]]] = [
    (SGD(lr=0.1, weight_decay=0.3), torch.optim.SGD, {"foreach": True}),
    (Adam(lr=0.1, weight_decay=0.3), torch.optim.Adam, {"fused": True}),
    (AdamW(lr=0.1, weight_decay=0.3), torch.optim.AdamW, {"fused": True}),
    (NAdam(lr=0.1, weight_decay=0.3), torch.optim.NAdam, {"foreach": True}),
]


@pytest.mark.parametrize(("options", "twin", "how"), DECAYED, ids=lambda value: getattr(value, "name", None))
def test_weight_decay_and_head_rate_are_those_of_torch_per_group(options: Any, twin: Any, how: dict[str, Any]) -> None:
    options = type(options)(lr=0.1, weight_decay=0.3, head_lr=0.02)
    one, other = parameters(), parameters()
    ours = run(options.build(one.items()), one)
    groups = [
        {"params": [other["encoder.w"]], "lr": 0.1, "weight_decay": 0.3},
        {"params": [other["encoder.b"]], "lr": 0.1, "weight_decay": 0.0},
        {"params": [other["heads.sst.out.weight"]], "lr": 0.02, "weight_decay": 0.3},
        {"params": [other["heads.sst.out.bias"]], "lr": 0.02, "weight_decay": 0.0},
    ]
    theirs = run(twin(groups, lr=1.0, **how), other)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_sgd_with_rate_one_lands_on_theta_minus_gradient() -> None:
    params = parameters()
    before = [parameter.detach().clone() for parameter in params.values()]
    after = run(SGD(lr=1.0).build(params.items()), params, steps=1)
    grads = [parameter.grad for parameter in params.values()]
    for old, new, grad in zip(before, after, grads, strict=True):
        assert grad is not None
        assert torch.equal(new, old - grad)


def test_decoupled_decay_by_hand() -> None:
    params = parameters()
    optimizer = AdamW(lr=0.1, weight_decay=0.3).build(params.items())
    before = {name: parameter.detach().clone() for name, parameter in params.items()}
    for parameter in params.values():
        parameter.grad = torch.zeros_like(parameter)  # Adam's own step is then zero, decay alone is left
    optimizer.step()
    for name, parameter in params.items():
        kept = 1.0 - 0.1 * 0.3 if name in ("encoder.w", "heads.sst.out.weight") else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * kept, rtol=1e-6, atol=0.0)
        assert kept < 1.0 or torch.equal(parameter.detach(), before[name])


def test_an_absent_gradient_moves_nothing() -> None:
    for options in (SGD(lr=0.1, momentum=0.9, weight_decay=0.3), *(case[0] for case in DECAYED)):
        params = parameters()
        optimizer = options.build(params.items())
        run(optimizer, params, steps=2)
        before = {name: parameter.detach().clone() for name, parameter in params.items()}
        for name, parameter in params.items():
            parameter.grad = torch.ones_like(parameter) if name == "encoder.w" else None
        optimizer.step()
        assert [n for n, p in params.items() if not torch.equal(p.detach(), before[n])] == ["encoder.w"]


def model() -> nn.Module:
    """A real encoder and real heads, named as MultiTaskModel names them."""
    whole = nn.Module()
    whole.encoder = Bert(weights="tiny", max_length=16).load(0).encoder
    whole.heads = nn.ModuleDict({"sst": MLPHead(32, outputs=5), "sts": CosineHead(32)})
    return whole


def test_decay_skips_exactly_biases_and_layer_norm() -> None:
    whole = model()
    names = {id(parameter): name for name, parameter in whole.named_parameters()}
    norms = [f"{name}." for name, module in whole.named_modules() if isinstance(module, nn.LayerNorm)]
    optimizer = AdamW(lr=0.1, weight_decay=0.3).build(whole.named_parameters())
    seen = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            seen.append(name)
            spared = name.endswith(".bias") or name.startswith(tuple(norms))
            assert group["weight_decay"] == (0.0 if spared else 0.3), name
    assert sorted(seen) == sorted(names.values())
    assert len(norms) == 5


def test_head_rate_is_for_heads_only_and_follows_the_schedule() -> None:
    whole = model()
    names = {id(parameter): name for name, parameter in whole.named_parameters()}
    for options, head in ((AdamW(lr=0.1, head_lr=0.5), 0.5), (AdamW(lr=0.1), 0.1)):
        optimizer = options.build(whole.named_parameters())
        for factor in (1.0, 0.25):
            set_lr(optimizer, factor)
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    rate = head if names[id(parameter)].startswith("heads.") else 0.1
                    assert group["lr"] == rate * factor
        assert len(optimizer.param_groups) == 4


@pytest.mark.parametrize("kind", [Adam, AdamW, NAdam])
def test_betas(kind: Any) -> None:
    def betas(options: Any, **where: bool) -> list[Any]:
        return [group["betas"] for group in options.build(parameters().items(), **where).param_groups]

    assert betas(kind(lr=0.1)) == [(0.9, 0.999)] * 4
    assert betas(kind(lr=0.1), inner=True) == [(0.0, 0.999)] * 4
    assert betas(kind(lr=0.1, betas=(0.3, 0.4)), inner=True) == [(0.3, 0.4)] * 4


def test_without_first_moment_an_inner_adam_step_is_the_gradient_over_its_root_mean_square() -> None:
    params = parameters()
    optimizer = Adam(lr=0.1).build(params.items(), inner=True)
    w = params["encoder.w"]
    second, generator = torch.zeros_like(w), torch.Generator().manual_seed(2)
    for step in range(1, 6):
        grads = {name: torch.randn(p.shape, generator=generator) for name, p in params.items()}
        for name, parameter in params.items():
            parameter.grad = grads[name]
        before = w.detach().clone()
        optimizer.step()
        second = 0.999 * second + 0.001 * grads["encoder.w"] ** 2
        by_hand = before - 0.1 * grads["encoder.w"] / ((second / (1 - 0.999**step)).sqrt() + 1e-8)
        torch.testing.assert_close(w.detach(), by_hand, rtol=1e-5, atol=1e-6)


def test_a_first_moment_that_no_step_reads_is_neither_saved_nor_missed() -> None:
    """With a first beta of 0 an optimizer restored without it moves the weights to the same bits."""

    def step(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, seed: int) -> None:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()

    weights = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    through, resumed = torch.nn.Parameter(weights.clone()), torch.nn.Parameter(weights.clone())
    optimizer = AdamW(lr=0.1).build([("w", through)], inner=True)
    for seed in range(3):
        step(optimizer, through, seed)
    saved = optimizer_state(optimizer, {"w": through})
    assert set(saved["w"]) == {"step", "exp_avg_sq"}
    with torch.no_grad():
        resumed.copy_(through)
    other = AdamW(lr=0.1).build([("w", resumed)], inner=True)
    restore_optimizer(other, {"w": resumed}, {"w": {key: value.clone() for key, value in saved["w"].items()}})
    for seed in range(3, 6):
        step(optimizer, through, seed)
        step(other, resumed, seed)
    assert torch.equal(through, resumed)


def test_training_does_not_import_the_compiler() -> None:
    """Which takes longer than the rest of a start; torch.optim would, at the first group and the first step."""
    code = (
        "import sys, torch\n"
        "from mtmeta.core.api.optimizers import SGD, Adam, AdamW, NAdam\n"
        "from mtmeta.plugins.backbones.checkpoint.config import BertConfig\n"
        "from mtmeta.plugins.backbones.encoder.encoder import Encoder\n"
        "with torch.device('meta'): Encoder(BertConfig(9, 8, 1, 1, 8))\n"
        "w = torch.nn.Parameter(torch.ones(2, 2))\n"
        "for kind in (SGD, Adam, AdamW, NAdam):\n"
        "    optimizer = kind(lr=0.1).build([('encoder.w', w)])\n"
        "    w.sum().backward()\n"
        "    optimizer.step()\n"
        "    optimizer.zero_grad()\n"
        "    optimizer.load_state_dict(optimizer.state_dict())\n"
        "print('torch._dynamo' in sys.modules, float(w.min()) < 1)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]


def test_hooks_of_a_step_still_run() -> None:
    w, seen = nn.Parameter(torch.ones(2)), []
    optimizer = SGD(lr=0.1).build([("encoder.w", w)])
    optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    w.grad = torch.ones(2)
    optimizer.step()
    assert seen == ["before", "after"] and w.tolist() == pytest.approx([0.9, 0.9])
    assert w.requires_grad and w.is_leaf
