"""A smaller WordPiece vocabulary out of a larger one: nothing becomes [UNK] that was not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.plugins.backbones.tokenizers.wordpiece import SPECIAL_TOKENS, WordPiece

__all__ = ["count_pieces", "prune"]


def prune(tokenizer: str, frequencies: NDArray[np.number[Any]], size: int) -> tuple[str, NDArray[np.int64]]:
    """Return the tokenizer.json with `size` pieces, and for each of them its number in the one given.

    Kept are the special tokens, every single character in both forms, for whoever has those can spell any word, the
    pieces with a character that has no such form, and of the others the most frequent by `frequencies`.
    Raises ValueError if `size` is too small for those that must stay.
    """
    settings: dict[str, Any] = json.loads(tokenizer)
    vocabulary: dict[str, int] = settings["model"]["vocab"]
    mark: str = settings["model"]["continuing_subword_prefix"]
    bare = {piece: piece.removeprefix(mark) if piece != mark else piece for piece in vocabulary}
    needed = [piece for piece in vocabulary if piece in SPECIAL_TOKENS]
    characters = [piece for piece in vocabulary if len(bare[piece]) == 1]
    spelt = {c for c in map(bare.get, characters) if c in vocabulary and mark + str(c) in vocabulary}
    ordinary = [p for p in vocabulary if p not in SPECIAL_TOKENS and not p.startswith("[unused")]
    odd = [piece for piece in ordinary if len(bare[piece]) > 1 and not spelt.issuperset(bare[piece])]
    kept = list(dict.fromkeys([*needed, *characters, *odd]))
    if size < len(kept):
        raise ValueError(f"{size} pieces are too few: {len(kept)} must stay")
    chosen = set(kept)
    rest = sorted((p for p in ordinary if p not in chosen), key=lambda p: (-frequencies[vocabulary[p]], vocabulary[p]))
    kept = sorted([*kept, *rest[: size - len(kept)]], key=vocabulary.__getitem__)
    numbers = {piece: number for number, piece in enumerate(kept)}
    settings["model"]["vocab"] = numbers
    settings["truncation"] = settings["padding"] = None
    for token in settings["added_tokens"]:
        token["id"] = numbers[token["content"]]
    for name, special in (settings["post_processor"] or {}).get("special_tokens", {}).items():
        special["ids"] = [numbers[name]]
    text = json.dumps(settings, ensure_ascii=False, separators=(",", ":"))
    WordPiece.from_json(text, "the pruned tokenizer.json")  # it must load
    return text, np.array([vocabulary[piece] for piece in kept], dtype=np.int64)


def count_pieces(tokenizer: WordPiece, texts: Sequence[str]) -> NDArray[np.int64]:
    """Count how often each piece stands in the texts."""
    ids, _ = tokenizer.encode_flat(texts)
    return np.bincount(ids, minlength=tokenizer.size)
