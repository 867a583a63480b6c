"""Optimizers of the paper's Table 1, for the outer step and for inner loops.

They are PyTorch's, with learning rates of their own for heads, tasks and layers.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal

from pydantic import Field

from mtmeta.core.api.option_types import Fraction, NonNegativeFloat, PositiveFloat

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer

Beta = Annotated[float, Field(ge=0, lt=1)]
OUTER_BETAS = (0.9, 0.999)
INNER_BETAS = (0.0, 0.999)  # the first moment never crosses episodes


def _leave_compiler_out() -> None:
    """Keep torch.optim from importing torch's compiler, two seconds, which is never used here.

    It does so at the first call of some methods, only to tell the compiler to leave them alone, unless they have been
    told already (torch/_compile.py). Where PyTorch does otherwise this changes nothing.
    """
    from torch.optim import Optimizer

    for method in (Optimizer.add_param_group, Optimizer.zero_grad, Optimizer.state_dict, Optimizer.load_state_dict):
        function = getattr(method, "__wrapped__", None)
        if function is not None:
            vars(function).setdefault("__dynamo_disable", function)


@functools.cache
def _bare(kind: type[Optimizer]) -> type[Any]:
    """Return the optimizer class without the wrapper around `step`, which imports the compiler, too."""
    import torch

    return type(kind.__name__, (kind,), {"step": torch.no_grad()(inspect.unwrap(kind.step))})


@dataclass(frozen=True, kw_only=True)
class _Options:
    lr: PositiveFloat
    """Learning rate."""
    head_lr: PositiveFloat | dict[str, PositiveFloat] | None = None
    """Learning rate of the task heads, one for all or one for each task named, as {sst: 1e-3}; default: `lr`."""
    adapter_lr: PositiveFloat | None = None
    """Learning rate of adapters, which may want one ten times larger than the encoder's weights; default: `lr`."""
    layer_decay: Fraction = 1.0
    """Factor on the learning rate from each encoder layer to the one below it, down to the embeddings (discriminative
    fine-tuning, Howard and Ruder 2018); 1 for the same everywhere. Adapters have that of their layer."""
    weight_decay: NonNegativeFloat = 0.0
    """Decay of weights; biases and LayerNorm are never decayed."""

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]], *, inner: bool = False) -> Optimizer:
        """Return the optimizer over named parameters; `inner` picks the defaults of inner loops."""
        raise NotImplementedError

    @property
    def scales_alike(self) -> bool:
        """Whether it multiplies all numbers of a parameter whose gradient stays zero by the same factor."""
        return not self.weight_decay

    def _build(self, kind: str, parameters: Iterable[tuple[str, nn.Parameter]], **options: Any) -> Optimizer:
        """Return torch.optim's optimizer of that name."""
        from torch import optim

        _leave_compiler_out()
        optimizer: Optimizer = _bare(getattr(optim, kind))(self._groups(parameters), lr=self.lr, **options)
        return optimizer

    def _groups(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> list[dict[str, Any]]:
        """Return groups of one learning rate and weight decay; without `layer_decay` at most two of the backbone."""
        named = list(parameters)
        rates = self._rates([name for name, _ in named])
        groups: dict[tuple[bool, bool, float], list[nn.Parameter]] = {}
        for (name, parameter), rate in zip(named, rates, strict=True):
            groups.setdefault((_is_head(name), parameter.ndim >= 2, rate), []).append(parameter)
        return [
            {
                "params": members,
                "lr": rate,
                "base_lr": rate,
                # biases and LayerNorm scales are the one-dimensional parameters of a BERT
                "weight_decay": self.weight_decay if decayed else 0.0,
            }
            for (_, decayed, rate), members in groups.items()
        ]

    def _rates(self, names: Sequence[str]) -> list[float]:
        """Return the base learning rate of each parameter, by its name."""
        depths = _depths([name for name in names if not _is_head(name)])
        top = max(depths.values(), default=0)
        rates = []
        for name in names:
            if name in depths:
                base = self.adapter_lr or self.lr if name.startswith("adapters.") else self.lr
                rates.append(base * self.layer_decay ** (top - depths[name]))
            elif isinstance(self.head_lr, dict):
                rates.append(self.head_lr.get(name.split(".")[1], self.lr))
            else:
                rates.append(self.head_lr or self.lr)
        return rates


def _is_head(name: str) -> bool:
    """Return whether a parameter is of a head or of the algorithm: not pretrained, it may need larger steps."""
    return name.startswith(("heads.", "algorithm."))


def _depths(names: Sequence[str]) -> dict[str, int]:
    """Return the depth of each backbone parameter: 0 below the first layer, i in the i-th and what follows it."""
    depths: dict[str, int] = {}
    depth = 0
    for name in names:
        if match := re.search(r"\.(?:layers?|blocks?|h)\.(\d+)\.", f".{name}"):
            depth = int(match[1]) + 1
        depths[name] = depth
    return depths


@dataclass(frozen=True, kw_only=True)
class SGD(_Options):
    """Stochastic gradient descent. As the meta optimizer with lr e: theta + e (theta' - theta), equation 4."""

    name: Literal["sgd"] = "sgd"
    momentum: Beta = 0.0
    """Momentum; 0 keeps the plain step of equation 4."""

    scales_alike: ClassVar[bool] = True  # decay, with momentum too, is linear in the number

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]], *, inner: bool = False) -> Optimizer:
        return self._build("SGD", parameters, momentum=self.momentum, foreach=True)


@dataclass(frozen=True, kw_only=True)
class _AdamOptions(_Options):
    betas: tuple[Beta, Beta] | None = None
    """Decay of first and second moment; default (0.9, 0.999), in an inner loop (0, 0.999)."""
    eps: PositiveFloat = 1e-8
    """Added to the denominator."""

    kind: ClassVar[str]
    engine: ClassVar[str] = "fused"  # PyTorch's fastest; NAdam has none that is fused

    def build(self, parameters: Iterable[tuple[str, nn.Parameter]], *, inner: bool = False) -> Optimizer:
        options: dict[str, Any] = {"betas": self.betas or (INNER_BETAS if inner else OUTER_BETAS), self.engine: True}
        return self._build(self.kind, parameters, eps=self.eps, **options)


@dataclass(frozen=True, kw_only=True)
class Adam(_AdamOptions):
    """Adam (Kingma and Ba 2017)."""

    kind = "Adam"
    name: Literal["adam"] = "adam"


@dataclass(frozen=True, kw_only=True)
class AdamW(_AdamOptions):
    """Adam with decoupled weight decay."""

    kind = "AdamW"
    name: Literal["adamw"] = "adamw"
    weight_decay: NonNegativeFloat = 0.01
    """Decay of weights; biases and LayerNorm are never decayed."""

    scales_alike: ClassVar[bool] = True  # decay is a factor by itself


@dataclass(frozen=True, kw_only=True)
class NAdam(_AdamOptions):
    """Adam with Nesterov momentum."""

    kind, engine = "NAdam", "foreach"
    name: Literal["nadam"] = "nadam"


OptimizerOptions = Annotated[SGD | Adam | AdamW | NAdam, Field(discriminator="name")]


def set_lr(optimizer: Optimizer, factor: float) -> None:
    """Set every group's learning rate to its base rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
