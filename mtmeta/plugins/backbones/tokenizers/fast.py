"""A tokenizer of the `tokenizers` library as core wants it: ids without special tokens, and which ones stand around."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import check_regular
from mtmeta.plugins.backbones.tokenizers.words import Words

MAX_VOCABULARY_BYTES = 100_000_000
PAIR = ("one text", "and another")
PROBES = ("", "A probe: 1 \u00e9\u4e2d\U0001f600 [MASK] unaccustomed-ness_xyzzy.")


class FastTokenizer:
    """A `mtmeta.Tokenizer` whose special tokens are known by name."""

    family: ClassVar[str]
    """Who has such a tokenizer."""
    around: ClassVar[tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]]
    """The special tokens before a text, between the two of a pair, and after."""

    def __init__(self, tokenizer: Tokenizer, place: str) -> None:
        self._tokenizer = tokenizer
        self._place = place
        tokenizer.no_padding()  # files often carry both; batches are packed and cut by mtmeta itself
        tokenizer.no_truncation()
        self.size: int = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        self.prefix, self.middle, self.suffix = self._specials()
        self._words = Words(self.encode) if Words.fits(tokenizer) else None
        self.encode(PROBES)  # some files load and fail at the first text; the whole data need not be read for that

    def _specials(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Look up the ids of `around`. Raises WeightsError for one that is not there."""
        prefix, middle, suffix = (tuple(self._special(token) for token in tokens) for tokens in self.around)
        return prefix, middle, suffix

    def _special(self, token: str) -> int:
        number: int | None = self._tokenizer.token_to_id(token)
        if number is None:
            raise mtmeta.WeightsError(self._place, f"has no token '{token}'; a {self.family} tokenizer has one")
        return number

    @classmethod
    def from_json(cls, text: str, place: str) -> Self:
        """Load the text of a tokenizer.json. Raises WeightsError."""
        with native_errors(place, "cannot be loaded"):
            tokenizer = Tokenizer.from_str(text)
        return cls(tokenizer, place)

    def json(self) -> str:
        """Return the tokenizer.json."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of each text, without special tokens, untruncated."""
        with native_errors(self._place, "cannot encode the data"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return the same ids end to end [S], and the lengths of the texts [N]; the faster way for whole files."""
        if self._words is not None:
            return self._words.encode(texts)
        ids = self.encode(texts)
        lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        return np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=lengths.sum()), lengths


class AnyTokenizer(FastTokenizer):
    """One whose special tokens are where its own post-processor puts them."""

    pair_types: list[int]
    """Token types that the tokenizer gives a probe pair,"""
    core_types: list[int]
    """and those that mtmeta would: 0 up to the end of `middle`, 1 after it."""

    def _specials(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        with native_errors(self._place, "cannot encode the data"):
            a, b = (self._tokenizer.encode(text, add_special_tokens=False).ids for text in PAIR)
            one, pair = self._tokenizer.encode(PAIR[0]), self._tokenizer.encode(*PAIR)
        starts = [i for i in range(len(one.ids) - len(a) + 1) if one.ids[i : i + len(a)] == a]
        if a and b and starts:
            prefix, suffix = one.ids[: starts[0]], one.ids[starts[0] + len(a) :]
            middle = pair.ids[len(prefix) + len(a) : len(pair.ids) - len(b) - len(suffix)]
            if not prefix and not suffix:  # a text may have no token of its own, and no sequence may be empty
                raise mtmeta.WeightsError(self._place, "puts no special token around a text; an encoder's does")
            if pair.ids == [*prefix, *a, *middle, *b, *suffix]:
                self.pair_types = pair.type_ids
                self.core_types = [0] * (len(prefix) + len(a) + len(middle)) + [1] * (len(b) + len(suffix))
                return tuple(prefix), tuple(middle), tuple(suffix)
        message = "its special tokens do not stand before a text, between two and after; it cannot be used"
        raise mtmeta.WeightsError(self._place, message)


@contextmanager
def native_errors(place: str, message: str) -> Iterator[None]:
    """Raise errors of the Rust library as WeightsError. A panic is not an Exception, and writes to stderr itself."""
    try:
        with _muted():
            yield
    except (KeyboardInterrupt, MemoryError):
        raise
    except BaseException as error:
        raise mtmeta.WeightsError(place, f"{message} ({mtmeta.safe(str(error))}); fetch the file again") from error


@contextmanager
def _muted() -> Iterator[None]:
    """Discard the output of native code to stderr."""
    if sys.stderr is None:  # closed by the user
        yield
        return
    sys.stderr.flush()
    opened: list[int] = []
    with suppress(OSError):  # no file more may be opened, or /dev fails: then a panic's own words are seen too
        opened.append(os.open(os.devnull, os.O_WRONLY))
        opened.append(os.dup(2))
    if len(opened) == 2:
        os.dup2(opened[0], 2)
    try:
        yield
    finally:
        if len(opened) == 2:
            os.dup2(opened[1], 2)
        for number in opened:
            os.close(number)


def read_vocabulary(path: Path) -> str:
    """Read the text of a tokenizer's file. Raises WeightsError."""
    check_regular(path)
    if path.stat().st_size > MAX_VOCABULARY_BYTES:
        raise mtmeta.WeightsError(str(path), "is larger than a tokenizer can be")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise mtmeta.WeightsError(str(path), "is not UTF-8; fetch the file again") from error
