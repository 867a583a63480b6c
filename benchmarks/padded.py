"""mtmeta's own encoder weights on padded batches: their plain modules, PyTorch's dropout and attention.

Shapes: `B` sequences of `T` tokens, padding included, `D` hidden, `H` heads, `d` = D / H, `V` sequences an example.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mtmeta.core.data.dataset import TokenStore
from mtmeta.core.export.heads import masked_mean
from mtmeta.plugins.backbones.encoder.encoder import ACTIVATIONS, Encoder

__all__ = ["Padded", "PaddedModel", "masked_mean", "pad", "padded_forward"]


@dataclass(frozen=True)
class Padded:
    """Sequences in the order given, filled up with token 0 to the longest."""

    ids: Tensor
    """[B, T], int64."""
    types: Tensor
    """Segment of each token [B, T], int64."""
    mask: Tensor
    """[B, T], bool; False at padding."""


def pad(store: TokenStore, indices: NDArray[np.int64]) -> Padded:
    """The sequences `indices` of a store, collated in NumPy as fast as packing is."""
    starts = np.asarray(store.offsets[indices])
    lengths = np.asarray(store.offsets[indices + 1]) - starts
    columns = np.arange(lengths.max())
    mask = columns < lengths[:, None]  # [B, T]
    where = np.where(mask, starts[:, None] + columns, 0)
    ids = np.where(mask, store.ids[where], 0).astype(np.int64)
    types = np.zeros_like(ids) if store.types is None else np.where(mask, store.types[where], 0).astype(np.int64)
    return Padded(torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(mask))


def padded_forward(encoder: Encoder, batch: Padded) -> Tensor:
    """Hidden states [B, T, D] of the encoder's own modules, attention masked at padding."""
    config, training = encoder.config, encoder.training
    activation = ACTIVATIONS[config.hidden_act]
    attention_dropout = config.attention_probs_dropout_prob if training else 0.0
    mask = None if bool(batch.mask.all()) else batch.mask[:, None, None, :]  # [B, 1, 1, T]

    def dropout(x: Tensor) -> Tensor:
        return functional.dropout(x, config.hidden_dropout_prob, training)

    b, t = batch.ids.shape
    x: Tensor = encoder.words(batch.ids) + encoder.positions.weight[:t] + encoder.types(batch.types)
    x = dropout(encoder.norm(x))
    for each in encoder.layers:
        layer: Any = each
        qkv = layer.attention.qkv(x).view(b, t, 3, config.num_attention_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind()  # [B, H, T, d] each
        y = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=attention_dropout)
        y = layer.attention.out(y.transpose(1, 2).reshape(b, t, -1))  # [B, H, T, d] -> [B, T, D]
        x = layer.attention_norm(x + dropout(y))
        x = layer.norm(x + dropout(layer.down(activation(layer.up(x)))))
    return x


class PaddedModel(nn.Module):
    """An encoder that takes padded batches, and a head of ours; each sentence of a pair is a batch of its own."""

    def __init__(self, encoder: nn.Module, head: nn.Module, pooled: Callable[[nn.Module, Padded], Tensor]) -> None:
        super().__init__()
        self.encoder = encoder
        self.heads = nn.ModuleDict({"task": head})
        self._pooled = pooled

    def forward(self, batches: Sequence[Padded]) -> Tensor:
        vectors = torch.stack([self._pooled(self.encoder, batch) for batch in batches], dim=1)  # [B, V, D]
        outputs: Tensor = self.heads["task"](vectors)
        return outputs
