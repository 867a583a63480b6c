"""Encoders with random weights and packed batches for them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mtmeta.core.api.batch import Packed
from mtmeta.core.data.dataset import TokenStore
from mtmeta.core.data.packing import pack_sequences
from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.encoder.encoder import Encoder

VOCABULARY = 50


def random(*shape: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).mul_(scale)


def offsets_of(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *np.cumsum(lengths)])


def encoder_of(dropout: float, hidden: int = 32, heads: int = 4, intermediate: int = 40) -> Encoder:
    """Two layers in training mode."""
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "hidden_size": hidden, "num_hidden_layers": 2}
    encoder = Encoder(
        BertConfig(
            **sizes,
            num_attention_heads=heads,
            intermediate_size=intermediate,
            hidden_dropout_prob=dropout,
            attention_probs_dropout_prob=dropout,
        )
    )
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            mean, deviation = (1.0, 0.3) if name.endswith("norm.weight") else (0.0, 1.5 / math.sqrt(hidden))
            parameter.normal_(mean, deviation, generator=generator)
    return encoder.train()


def packed_of(lengths: list[int]) -> Packed:
    offsets = np.cumsum([0, *lengths])
    ids = np.random.default_rng(3).integers(0, VOCABULARY, offsets[-1]).astype(np.int32)
    return pack_sequences([TokenStore(ids, None, offsets)], np.arange(len(lengths)))
