"""Our packed encoders beside transformers' padded models: the same sequences through both."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mtmeta.core.api.batch import Packed
from mtmeta.core.data.dataset import TokenStore
from mtmeta.core.data.packing import pack_sequences

LENGTHS = (9, 3, 17, 9, 2, 30, 3, 9, 40, 5)
Sequences = list[list[int]]


def packed_of(sequences: Sequences, types: Sequences | None = None) -> Packed:
    """Sequences as one packed batch; exactly as many positions as there are tokens."""
    offsets = np.cumsum([0, *map(len, sequences)])
    ids = np.array([i for sequence in sequences for i in sequence], dtype=np.int32)
    flat = None if types is None else np.array([t for sequence in types for t in sequence], dtype=np.uint8)
    packed = pack_sequences([TokenStore(ids, flat, offsets)], np.arange(len(sequences)))
    assert packed.ids.shape == packed.positions.shape == (sum(map(len, sequences)),)
    return packed


def unpacked(hidden: Tensor, packed: Packed) -> list[Tensor]:
    """Hidden states [T, D] of each sequence, in the order the sequences were given."""
    blocks = torch.split(hidden, [length for count, length in packed.groups for _ in range(count)])
    return [blocks[i] for i in packed.order]


def ours_of(encoder: nn.Module, sequences: Sequences, types: Sequences | None = None) -> list[Tensor]:
    packed = packed_of(sequences, types)
    return unpacked(encoder(packed), packed)


def theirs_of(model: Any, sequences: Sequences, types: Sequences | None = None, pad: int = 0) -> list[Tensor]:
    """Hidden states of transformers' padded model under its attention mask, padding cut off."""
    longest = max(map(len, sequences))

    def padded(rows: Sequences, filler: int = 0) -> Tensor:
        return torch.tensor([row + [filler] * (longest - len(row)) for row in rows])

    given = {"input_ids": padded(sequences, pad), "attention_mask": padded([[1] * len(s) for s in sequences])}
    if types is not None:
        given["token_type_ids"] = padded(types)
    hidden = model(**given).last_hidden_state
    return [row[: len(sequence)] for row, sequence in zip(hidden, sequences, strict=True)]


def largest_difference(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    assert [one.shape for one in ours] == [other.shape for other in theirs]
    return max(float((one - other).abs().max()) for one, other in zip(ours, theirs, strict=True))


def random_sequences(most: int, lengths: Sequence[int] = LENGTHS) -> Sequences:
    """Token ids below `most`."""
    generator = np.random.default_rng(3)
    return [generator.integers(5, most, length).tolist() for length in lengths]


def random_types(sequences: Sequences) -> Sequences:
    """A first and a second segment in each sequence, cut at different places."""
    return [[int(i > (7 * n) % len(s)) for i in range(len(s))] for n, s in enumerate(sequences)]


def randomise(model: torch.nn.Module) -> torch.nn.Module:
    """Every parameter random, biases and LayerNorm included, so that none can be dropped or swapped unnoticed."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            gain = "norm" in name.lower() and name.endswith("weight")
            parameter.normal_(1.0 if gain else 0.0, 0.3, generator=generator)
    return model.eval()
