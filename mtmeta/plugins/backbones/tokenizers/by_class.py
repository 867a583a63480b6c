"""Tokenizers that a class of transformers makes of other files than tokenizer.json, compared with these files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

from tokenizers import Tokenizer

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import json_file
from mtmeta.plugins.backbones.tokenizers.fast import MAX_VOCABULARY_BYTES, native_errors, read_vocabulary

MARKS = ("##", "\u2581", "\u0120", "</w>")  # of pieces that begin, go on with, or end a word
PROBES, MOST_UNKNOWN = 50, 0.2


def text_by_class(library: ModuleType, folder: Path) -> str:
    """Return the text of a tokenizer.json that tokenizes as the folder's AutoTokenizer does.

    Raises WeightsError for a class that is none of the tokenizers library, for files that are not there (without them
    transformers makes up a vocabulary), and where class and files disagree; all else that transformers raises.
    """
    loaded = library.AutoTokenizer.from_pretrained(
        folder, trust_remote_code=False, local_files_only=True, use_fast=True
    )
    kind, backend = type(loaded).__name__, getattr(loaded, "backend_tokenizer", None)
    text: object = backend.to_str() if backend is not None and hasattr(backend, "to_str") else None
    if not isinstance(text, str):
        message = f"its {kind} is none of the tokenizers library; a folder with tokenizer.json has one"
        raise mtmeta.WeightsError(str(folder), message)
    names: dict[str, str] = dict(loaded.vocab_files_names)
    names.pop("tokenizer_file", None)
    if not names or not all((folder / name).exists() for name in names.values()):
        parts = f" nor {' with '.join(names.values())}" if names else ""
        raise mtmeta.WeightsError(str(folder), f"has neither tokenizer.json{parts}; one of them is needed")
    _check(text, kind, folder)
    return text


def _check(text: str, kind: str, folder: Path) -> None:
    """Raise WeightsError where the tokenizer has other ids than the files, or does not know its own words."""
    with native_errors(str(folder), "cannot be used"):
        tokenizer = Tokenizer.from_str(text)
        numbers = tokenizer.get_vocab(with_added_tokens=True)
    for name, listed in _vocabularies(folder):
        other = [token for token, number in listed.items() if token.strip() and numbers.get(token) != number]
        if other:
            shown = f"{mtmeta.quote(other[0])} is {listed[other[0]]} there, and {numbers.get(other[0])} by {kind}"
            message = f"and tokenizer_class {mtmeta.quote(kind)} disagree ({shown}); save its tokenizer.json beside it"
            raise mtmeta.WeightsError(str(folder / name), message)
    words = [word for word in map(_bare, numbers) if word.isalpha()]
    words = sorted(words, key=lambda word: (-len(word), word))[:PROBES]
    with native_errors(str(folder), "cannot be used"):
        unknown = sum(_is_unknown(tokenizer, word) for word in words)
    if unknown > MOST_UNKNOWN * len(words):
        known = f"{unknown} of {len(words)} words of its own vocabulary, such as {mtmeta.quote(words[0])}"
        fix = "class and files disagree; save its tokenizer.json beside it"
        raise mtmeta.WeightsError(str(folder), f"tokenizer_class {mtmeta.quote(kind)} does not know {known}: {fix}")


def _vocabularies(folder: Path) -> Iterator[tuple[str, Mapping[str, int]]]:
    path = folder / "vocab.txt"
    if path.exists():
        lines = read_vocabulary(path).removesuffix("\n").split("\n")
        yield path.name, {token: number for number, token in enumerate(lines)}
    path = folder / "vocab.json"
    if path.exists():
        values = json_file(path, MAX_VOCABULARY_BYTES)
        yield path.name, {token: number for token, number in values.items() if isinstance(number, int)}


def _bare(piece: str) -> str:
    for mark in MARKS:
        piece = piece.removeprefix(mark).removesuffix(mark)
    return piece


def _is_unknown(tokenizer: Tokenizer, word: str) -> bool:
    tokens = tokenizer.encode(word, add_special_tokens=False).tokens
    return any("unk" in token.lower() and token[:1] in "[<" for token in tokens) or not tokens
