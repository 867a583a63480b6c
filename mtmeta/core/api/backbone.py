"""The side of a backbone that texts see: its tokenizer, and how long a sequence may be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

from collections.abc import Sequence
from typing import Protocol

__all__ = ["LoadedBackbone", "LoadedTokenizer", "Portable", "Tokenizer"]


class Tokenizer(Protocol):
    """Text to token ids, without special tokens; those stand in `prefix`, `middle` and `suffix`.

    One text becomes `prefix + a + suffix`, a pair in one sequence `prefix + a + middle + b + suffix`. If it has them,
    `size` (one more than the largest id) lets ids be stored in two bytes, and `encode_flat(texts)` gives the ids of
    all texts as one int64 array [S], and the lengths of the texts [N].
    """

    prefix: tuple[int, ...]
    middle: tuple[int, ...]
    suffix: tuple[int, ...]

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, untruncated."""


@dataclass(frozen=True)
class LoadedTokenizer:
    """What turns texts into token ids, without the encoder that takes them."""

    tokenizer: Tokenizer
    max_length: int
    """Longest sequence, special tokens included."""
    files: Mapping[str, bytes]
    """tokenizer.json, as `LoadedBackbone.files` has it."""


# -------------------------------------------------------------------------------------------------------- backbones


@dataclass(frozen=True)
class LoadedBackbone:
    """An encoder with its weights, its tokenizer, and the small files that rebuild both."""

    encoder: nn.Module
    """Maps a `Packed` batch of S tokens to hidden states [S, D]; has an attribute `hidden_size`."""
    tokenizer: Tokenizer
    max_length: int
    """Longest sequence, special tokens included."""
    files: Mapping[str, bytes]
    """config.json and tokenizer.json, copied into the run directory."""
    identity: str
    """What the weights were: a SHA-256, or a description with the seed."""
    kernels: str = "none"
    """Compiled code of the backbone's own that a CPU runs beside PyTorch's; another name means other last bits."""
    packages: tuple[str, ...] = ()
    """Distributions that compute, beside PyTorch; another version of one may mean other last bits."""


@dataclass(frozen=True)
class Portable:
    """An encoder that other libraries load. Shapes: `N` sequences of `T` tokens, padding included, `D` hidden."""

    encoder: nn.Module
    """Plain PyTorch: (input_ids, attention_mask, token_type_ids), each [N, T] int64, to hidden states [N, T, D]."""
    config: Mapping[str, Any]
    """config.json."""
    tensors: Mapping[str, Tensor]
    """model.safetensors, in fp32, under the names that transformers' AutoModel looks for."""
    files: Mapping[str, bytes]
    """tokenizer.json, tokenizer_config.json and what else AutoTokenizer reads."""
