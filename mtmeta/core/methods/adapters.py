"""Low-rank adapters: of each task a W + (alpha / rank) B A in place of each adapted W (LoRA, Hu et al. 2022).

A batch holds sequences of one task, so the sum is formed once a pass and takes the place of W: the encoder runs the
code that it runs without adapters, at the same speed, and a merged export computes what training computed.

Shapes: W [out, in], A [rank, in], B [out, rank].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, nn

from mtmeta.core.api.backbone import AdapterPlaces, LowRankSum
from mtmeta.core.errors import RecipeError
from mtmeta.core.machine import without_autocast
from mtmeta.core.recipe.sections import AdapterOptions
from mtmeta.core.rng import derive
from mtmeta.core.wording import plural

SHARED = "all"
"""The name of adapters that all tasks share."""


def find_places(encoder: nn.Module, options: AdapterOptions) -> list[AdapterPlaces]:
    """Return where an encoder takes the adapters of a recipe: of its layers, those it names, the lowest first.

    Raises RecipeError for an encoder that does not say where, and for options that it has no room for.
    """
    say = getattr(encoder, "adapter_places", None)
    if say is None:
        message = f"encoder {type(encoder).__name__} does not say where adapters go; use backbone `bert`"
        raise RecipeError("adapters", f"{message}, or leave them out")
    layers: list[AdapterPlaces] = list(say())
    count = len(layers) if options.layers == "all" else int(options.layers.removeprefix("last "))
    if count > len(layers):
        message = f"are the {options.layers}, the encoder has {plural(len(layers), 'layer')}; write `all`"
        raise RecipeError("adapters.layers", message)
    places = [_chosen(layer, options) for layer in layers[len(layers) - count :]]
    for name in (name for layer in places for name in layer.matrices.values()):
        narrow = min(attrgetter(name)(encoder).shape)
        if options.rank > narrow:
            message = f"is {options.rank}, no rank of a matrix whose narrower side is {narrow}; lower it"
            raise RecipeError("adapters.rank", message)
    return places


def _chosen(layer: AdapterPlaces, options: AdapterOptions) -> AdapterPlaces:
    missing = [kind for kind in options.on if kind not in layer.matrices]
    if missing:
        message = f"names {missing[0]}, the encoder has {', '.join(layer.matrices)}; leave it out"
        raise RecipeError("adapters.on", message)
    on: tuple[str, ...] = options.on
    matrices = {kind: name for kind, name in layer.matrices.items() if kind in on}
    return AdapterPlaces(matrices, layer.norms if options.norms else ())


class _Branch(nn.Module):
    """Parameters and further branches by name."""


class Adapters(nn.Module):
    """The adapters of some tasks, or of all together; parameters are named by task, then as the encoder's.

    `TASK.layers.0.up.A`, `TASK.layers.0.up.B` beside the encoder's `layers.0.up.weight`, and `TASK.layers.0.norm.bias`
    in the place of its `layers.0.norm.bias`. Every B begins as zeros and every norm as the encoder's, so that the first
    step is that of the plain encoder; A is uniform within 1 / sqrt(in), drawn from (seed, task, place) alone, so that
    no other task moves it.
    """

    def __init__(self, options: AdapterOptions, encoder: nn.Module, tasks: Iterable[str], seed: int) -> None:
        """Make them for an encoder, which is not kept. Raises RecipeError as `find_places` does."""
        super().__init__()
        self.options = options
        self.scale = options.alpha / options.rank
        places = find_places(encoder, options)
        self.matrices = tuple(name for layer in places for name in layer.matrices.values())
        """Names of the encoder's weights that a low-rank product is added to."""
        self.norms = tuple(name for layer in places for name in layer.norms)
        """Names of the encoder's parameters that the task's own stand in for."""
        for owner in dict.fromkeys(self.owner(task) for task in tasks if self.has(task)):
            self._modules[owner] = self._make(encoder, owner, seed)
        self._kept: tuple[str, list[Tensor], list[int], dict[str, Tensor]] | None = None

    def has(self, task: str) -> bool:
        """Return whether a task has adapters, and is not one of those that train the encoder itself."""
        return self.options.adapts(task)

    def owner(self, task: str) -> str:
        """Return under which name the adapters of a task stand, "" for one that has none."""
        if not self.has(task):
            return ""
        return SHARED if self.options.per == "all" else task

    def _make(self, encoder: nn.Module, task: str, seed: int) -> _Branch:
        own, rank = _Branch(), self.options.rank
        for name in self.matrices:
            weight: Tensor = attrgetter(name)(encoder)
            generator = torch.Generator().manual_seed(derive(seed, "adapter", task, name))
            bound = 1.0 / math.sqrt(weight.shape[1])
            a = torch.empty(rank, weight.shape[1]).uniform_(-bound, bound, generator=generator)
            _put(own, [*_stem(name), "A"], a.to(weight.device))
            _put(own, [*_stem(name), "B"], weight.new_zeros(weight.shape[0], rank))
        for name in self.norms:
            _put(own, name.split("."), attrgetter(name)(encoder).detach().clone())
        return own

    def pair(self, task: str, name: str) -> tuple[Tensor, Tensor]:
        """Return A and B of a task beside the encoder's weight of this name."""
        place = attrgetter(".".join(_stem(name)))(self._modules[self.owner(task)])
        return place.A, place.B

    def norm(self, task: str, name: str) -> Tensor:
        """Return what a task has in the place of the encoder's parameter of this name, one of `norms`."""
        own: Tensor = attrgetter(name)(self._modules[self.owner(task)])
        return own

    def standing_in(self, task: str, encoder: nn.Module) -> dict[str, Tensor]:
        """Return what stands in for the encoder's parameters while a task's sequences go through it, by their names.

        An encoder that forms sums itself is given what they are of. Where other tasks train the encoder, the rest of
        its parameters are there too, without a gradient.
        """
        if not self.has(task):
            return {}
        if not torch.is_grad_enabled():
            return self.merged(task, encoder)
        forms_sums = getattr(encoder, "forms_sums", None)
        if forms_sums is None or not forms_sums():
            own = self.merged(task, encoder)
        else:
            self._kept = None
            own = {name: _unformed(self._sum(task, name, encoder)) for name in self.matrices}
            own |= {name: self.norm(task, name) for name in self.norms}
        if self.options.trained_by is None:
            return own
        return {name: parameter.detach() for name, parameter in encoder.named_parameters()} | own

    def merged(self, task: str, encoder: nn.Module) -> dict[str, Tensor]:
        """Return the encoder's parameters that a task's adapters change, as they make them, by their names.

        With gradients, and in training, they are formed anew. In evaluation they are kept for the task's next batch,
        beside the tensors that they were made of: as long as these are alive and unchanged they are what these make.
        """
        if not self.has(task):
            return {}
        if self.training or torch.is_grad_enabled():
            self._kept = None
            return self._merge(task, encoder)
        sources = self._sources(task, encoder)
        if any(source.is_inference() for source in sources):  # of which PyTorch counts no changes
            return self._merge(task, encoder)
        versions = [source._version for source in sources]
        if self._kept is not None:
            owner, were, counts, merged = self._kept
            same = owner == self.owner(task) and counts == versions
            if same and all(source is was for source, was in zip(sources, were, strict=True)):
                return merged
        merged = self._merge(task, encoder)
        self._kept = self.owner(task), sources, versions, merged
        return merged

    @torch.no_grad()
    def merged_copy(self, task: str, encoder: nn.Module) -> nn.Module:
        """Return a copy of an encoder that has a task's adapters in it; all other weights are the encoder's own."""
        merged = self.merged(task, encoder)
        own = {
            id(parameter): nn.Parameter(merged.get(name, parameter).detach(), requires_grad=False)
            for name, parameter in encoder.named_parameters()
        }
        return copy.deepcopy(encoder, own).eval()

    def train(self, mode: bool = True) -> Adapters:
        self._kept = None
        return super().train(mode)

    def _sources(self, task: str, encoder: nn.Module) -> list[Tensor]:
        made = [tensor for name in self.matrices for tensor in (attrgetter(name)(encoder), *self.pair(task, name))]
        return [*made, *(self.norm(task, name) for name in self.norms)]

    def _merge(self, task: str, encoder: nn.Module) -> dict[str, Tensor]:
        merged = {}
        with without_autocast():  # which would make W one of 16 bits
            for name in self.matrices:
                s = self._sum(task, name, encoder)
                merged[name] = _Sum.apply(s.weight, s.a, s.b, s.scale)  # type: ignore[no-untyped-call]
        return merged | {name: self.norm(task, name) for name in self.norms}

    def _sum(self, task: str, name: str, encoder: nn.Module) -> LowRankSum:
        weight: Tensor = attrgetter(name)(encoder)
        if self.options.trained_by is not None:
            weight = weight.detach()
        return LowRankSum(weight, *self.pair(task, name), self.scale)


def _unformed(sum_: LowRankSum) -> Tensor:
    """Return what stands in for a weight whose sum the encoder forms: of its shape, without memory, and NaN, so that
    code that does not know it cannot compute with it unnoticed."""
    stand_in: Any = sum_.weight.new_full((), math.nan).expand_as(sum_.weight)
    stand_in.low_rank_sum = sum_
    return stand_in  # type: ignore[no-any-return]


class _Sum(torch.autograd.Function):
    """W + scale B A; W's gradient is that of the sum itself, not a copy of it."""

    @staticmethod
    def forward(weight: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
        return torch.addmm(weight, b, a, alpha=scale)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, a, b, ctx.scale = inputs
        ctx.save_for_backward(a, b)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        a, b = ctx.saved_tensors
        own = grad if ctx.needs_input_grad[0] else None
        return own, ctx.scale * (b.t() @ grad), ctx.scale * (grad @ a.t()), None


def _put(root: nn.Module, path: Sequence[str], values: Tensor) -> None:
    """Make a parameter at a path, with the branches on its way."""
    for name in path[:-1]:
        branch = root._modules.setdefault(name, _Branch())
        assert branch is not None
        root = branch
    root._parameters[path[-1]] = nn.Parameter(values)


def _stem(name: str) -> list[str]:
    """Return the path of the module that has a weight of this name."""
    return name.split(".")[:-1]
