"""The side of a backbone that texts see: its tokenizer, and how long a sequence may be."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

__all__ = ["LoadedTokenizer", "Tokenizer"]


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
