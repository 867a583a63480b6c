"""Training a token embedding by the rows that occur in a few examples, while all others wait.

A row that no example has gets a gradient of exactly zero: no moment of it grows, it adds nothing to the norm, and only
weight decay moves it, by the same factor as any other such row. So the rows that occur are taken out into a parameter
of the same name, with a small gradient and a small optimizer state, and beside it a stand-in is trained: a single 1
whose gradient is zero. What it ends as is the factor of all rows that waited.

Shapes: `V` rows, `R` of them that occur, `D` wide.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mtmeta.core.api.batch import Packed
from mtmeta.core.training.model import evaluation_mode

LEAST = 2  # times as many rows as occur: below that it is not worth while


class OtherRows(Exception):
    """The encoder looked up a row that was not to occur: all rows have to be trained."""


class Occurring:
    """The rows [R] of an embedding that occur, as its only ones until `restore`."""

    def __init__(self, name: str, embedding: nn.Embedding, rows: Tensor) -> None:
        self.name = name
        self._embedding, self._whole = embedding, embedding.weight
        self._rows = rows.to(self._whole.device)
        place = torch.full((len(self._whole),), -1, device=self._whole.device)
        place[self._rows] = torch.arange(len(rows), device=place.device)
        self._place = place
        embedding.weight = nn.Parameter(self._whole.detach()[self._rows])
        self._stand_in = nn.Parameter(self._whole.new_ones(1, 1))
        self._zero = torch.zeros_like(self._stand_in)
        self._hook = embedding.register_forward_pre_hook(self._renumber)

    def _renumber(self, module: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor]:
        (ids,) = given
        places = self._place[ids]
        if bool((places < 0).any()):
            raise OtherRows
        return (places,)

    def beside(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield named parameters, and the stand-in right behind the embedding, for an optimizer."""
        for name, parameter in parameters:
            yield name, parameter
            if parameter is self._embedding.weight:
                yield f"{name}.others", self._stand_in  # where it stands decides on its learning rate

    def before_step(self) -> None:
        """Give the stand-in the gradient of a row that does not occur."""
        self._stand_in.grad = None if self._embedding.weight.grad is None else self._zero

    @torch.no_grad()
    def restore(self) -> None:
        """Put all rows back, those that occur as they were trained."""
        self._hook.remove()
        trained, self._embedding.weight = self._embedding.weight, self._whole
        factor = float(self._stand_in)
        if factor != 1.0:
            self._whole.mul_(factor)
        self._whole[self._rows] = trained.detach()


class Everything:
    """All rows are trained: nothing is put aside."""

    def beside(self, parameters: Iterable[tuple[str, nn.Parameter]]) -> Iterator[tuple[str, nn.Parameter]]:
        """Yield the parameters as they are."""
        yield from parameters

    def before_step(self) -> None:
        """Do nothing."""


@contextmanager
def occurring_rows(encoder: nn.Module, name: str, ids: Iterable[Tensor]) -> Iterator[Occurring | Everything]:
    """Within, the embedding `name` of an encoder has the rows that occur among `ids` alone; none if it has no name.

    Afterwards it is whole again, and the rows trained. The optimizer must treat all that has no gradient alike
    (`OptimizerOptions.scales_alike`). Raises OtherRows if the encoder looks up another row.
    """
    embedding = encoder.get_submodule(name) if name else None
    rows = torch.unique(torch.cat([part.flatten() for part in ids])) if name else torch.empty(0)
    if not isinstance(embedding, nn.Embedding) or LEAST * len(rows) > embedding.num_embeddings:
        yield Everything()
        return
    occurring = Occurring(name, embedding, rows)
    try:
        yield occurring
    finally:
        occurring.restore()


@torch.inference_mode()
def token_embedding(encoder: nn.Module, packed: Packed) -> str:
    """Return the name of the embedding that looks up a batch's token ids; an empty text if rows cannot be left out.

    It is tried: with the rows of the batch alone, the encoder must give the same hidden states to the last bit. It does
    not where weights are used otherwise than by looking rows up.
    """
    seen: dict[str, list[Tensor]] = {}
    embeddings = {name: module for name, module in encoder.named_modules() if _is_plain(module)}

    def look(name: str) -> Any:
        return lambda module, given: seen.setdefault(name, []).extend(given)

    hooks = [module.register_forward_pre_hook(look(name)) for name, module in embeddings.items()]
    with evaluation_mode(encoder):
        try:
            before = encoder(packed)
        finally:
            for hook in hooks:
                hook.remove()
        names = [name for name, given in seen.items() if all(_same(ids, packed.ids) for ids in given)]
        if len(names) != 1:
            return ""
        with occurring_rows(encoder, names[0], [packed.ids]) as rows:
            try:
                after = encoder(packed)
            except Exception:  # whatever an encoder says of weights of another shape
                return ""
    return names[0] if isinstance(rows, Occurring) and torch.equal(before, after) else ""


def _is_plain(module: nn.Module) -> bool:
    """Return whether it is an embedding that looks rows up, is trained, and does nothing else."""
    if type(module) is not nn.Embedding or not module.weight.requires_grad:
        return False
    odd = module.max_norm is not None or module.padding_idx is not None or module.sparse or module.scale_grad_by_freq
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    return not odd and not hooks


def _same(ids: Tensor, others: Tensor) -> bool:
    return ids.shape == others.shape and bool(torch.equal(ids, others))
