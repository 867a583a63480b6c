"""A tokenizer of the `tokenizers` library as core wants it: ids without special tokens, and which ones stand around."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, processors

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import check_regular
from mtmeta.plugins.backbones.tokenizers.words import Words

MAX_VOCABULARY_BYTES = 100_000_000
ALONE = "puts no special token around a text; an encoder's does"
PROCESSORS = ("BertProcessing", "RobertaProcessing")  # a template has pieces
PAIR = ("one text", "and another")
PROBES = ("", "A probe: 1 \u00e9\u4e2d\U0001f600 [MASK] unaccustomed-ness_xyzzy.")


Around = tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]


class FastTokenizer:
    """A `mtmeta.Tokenizer` whose special tokens are those that its own post-processor puts around a text.

    Where it puts none, as vocabularies alone do, they are known by name.
    """

    family: ClassVar[str] = ""
    """Who has such a tokenizer."""
    around: ClassVar[Around | None] = None
    """Where the post-processor puts none: the special tokens before a text, between the two of a pair, and after."""
    numbers_pairs: ClassVar[bool] = True
    """Whether the second text of such a pair has a token type of its own."""

    def __init__(self, tokenizer: Tokenizer, place: str) -> None:
        self._tokenizer = tokenizer
        self._place = place
        self._odd_types = self._typed = False
        tokenizer.no_padding()  # files often carry both; batches are packed and cut by mtmeta itself
        tokenizer.no_truncation()
        self._check_repeatable()
        self.prefix, self.middle, self.suffix = self._specials()
        # a post-processor has its tokens' ids from its own file, not from the vocabulary
        special = (*self.prefix, *self.middle, *self.suffix)
        self.size: int = max((*tokenizer.get_vocab(with_added_tokens=True).values(), *special), default=-1) + 1
        self._words = Words(self.encode) if Words.fits(tokenizer) else None
        self.encode(PROBES)  # some files load and fail at the first text; the whole data need not be read for that

    def _check_repeatable(self) -> None:
        """Raise WeightsError for what gives one text other ids each time it is read, or each time this is loaded."""
        if getattr(self._tokenizer.model, "dropout", None):  # of BPE, from its own training
            message = "cuts words at random (model.dropout); set it to null, no run could be repeated"
            raise mtmeta.WeightsError(self._place, message)
        normaliser = self._tokenizer.normalizer
        seen: dict[str, str] = {}
        for token in self._tokenizer.get_added_tokens_decoder().values():
            if not token.normalized or normaliser is None:
                continue
            with native_errors(self._place, "cannot be used"):
                form = normaliser.normalize_str(token.content)
            # tokenizers looks for the normalised forms, in an order that it draws anew
            if (other := seen.setdefault(form, token.content)) != token.content:
                both = f"added tokens {mtmeta.quote(other)} and {mtmeta.quote(token.content)} are one when normalised"
                raise mtmeta.WeightsError(self._place, f"{both}, and either may be taken; remove one of them")

    def _specials(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Find the special tokens by a probe, or by name. Raises WeightsError."""
        with native_errors(self._place, "cannot encode the data"):
            a, b = (self._tokenizer.encode(text, add_special_tokens=False).ids for text in PAIR)
            one, pair = self._tokenizer.encode(PAIR[0]), self._tokenizer.encode(*PAIR)
        if pair.ids == [*a, *b] and (one.ids == a or self.around is not None):
            begin, _, end = named = self._by_name()
            if one.ids in (a, [*begin, *a, *end]):  # some files have a template for single texts alone
                return named
        starts = [i for i in range(len(one.ids) - len(a) + 1) if one.ids[i : i + len(a)] == a]
        if a and b and starts:
            prefix, suffix = one.ids[: starts[0]], one.ids[starts[0] + len(a) :]
            middle = pair.ids[len(prefix) + len(a) : len(pair.ids) - len(b) - len(suffix)]
            if not prefix and not suffix:  # a text may have no token of its own, and no sequence may be empty
                raise mtmeta.WeightsError(self._place, ALONE)
            if pair.ids == [*prefix, *a, *middle, *b, *suffix]:
                ours = [0] * (len(prefix) + len(a) + len(middle)) + [1] * (len(b) + len(suffix))
                self._typed = any(pair.type_ids)
                self._odd_types = any(one.type_ids) or (self._typed and pair.type_ids != ours)
                return tuple(prefix), tuple(middle), tuple(suffix)
        message = "its special tokens do not stand before a text, between two and after; it cannot be used"
        raise mtmeta.WeightsError(self._place, message)

    def _by_name(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Look up the ids of `around`. Raises WeightsError for one that is not there."""
        if self.around is None:
            raise mtmeta.WeightsError(self._place, ALONE)
        self._typed = self.numbers_pairs
        numbers = (tuple(self.number_of(self._tokenizer, token, self._place) for token in part) for part in self.around)
        prefix, middle, suffix = numbers
        return prefix, middle, suffix

    @classmethod
    def number_of(cls, tokenizer: Tokenizer, token: str, place: str) -> int:
        """Return the id of a special token. Raises WeightsError if it has none."""
        number: int | None = tokenizer.token_to_id(token)
        if number is None:
            raise mtmeta.WeightsError(place, f"has no token '{mtmeta.safe(token)}'; a {cls.family} tokenizer has one")
        return number

    @property
    def typed(self) -> bool:
        """Whether the second text of a pair has a token type of its own. Raises WeightsError for any other numbers.

        mtmeta counts 0 up to the end of `middle` and 1 after it; where all are 0, an encoder is to see no others.
        """
        if self._odd_types:
            message = "numbers the token types of pairs otherwise than 0 for the first text and 1 for the second"
            raise mtmeta.WeightsError(self._place, f"{message}; it cannot be used")
        return self._typed

    def same_as(self, text: str) -> bool:
        """Return whether the text of another tokenizer.json makes the same ids of all texts, part by part."""
        try:
            other = type(self).from_json(text, self._place)
        except mtmeta.WeightsError:
            return False
        return self.parts() == other.parts()

    def parts(self) -> list[object]:
        """Return all that decides ids, and nothing of decoders, padding, and how the post-processor is written."""
        values = json.loads(self.json())
        names = ("normalizer", "pre_tokenizer", "model", "added_tokens")
        return [*map(values.get, names), self.prefix, self.middle, self.suffix, self._typed]

    @classmethod
    def from_json(cls, text: str, place: str) -> Self:
        """Load the text of a tokenizer.json. Raises WeightsError."""
        with native_errors(place, "cannot be loaded"):
            tokenizer = Tokenizer.from_str(text)
        return cls(tokenizer, place)

    @classmethod
    def put_around(cls, text: str, place: str) -> str:
        """Return a tokenizer.json that puts `around` there, unless it puts something else. Raises WeightsError."""
        if cls.around is None or puts_around(text, place):
            return text
        begin, between, end = (" ".join(tokens) for tokens in cls.around)
        second = " ".join(f"{token}:1" for token in ("$B", *cls.around[2])) if cls.numbers_pairs else f"$B {end}"
        with native_errors(place, "cannot be loaded"):
            tokenizer = bare_tokenizer(text)
            specials = {token: cls.number_of(tokenizer, token, place) for tokens in cls.around for token in tokens}
            one, alone = (tokenizer.encode(PAIR[0], add_special_tokens=add).tokens for add in (True, False))
            if one not in (alone, [*cls.around[0], *alone, *cls.around[2]]):
                return text
            tokenizer.post_processor = processors.TemplateProcessing(
                single=f"{begin} $A {end}", pair=f"{begin} $A {between} {second}", special_tokens=list(specials.items())
            )
            made: str = tokenizer.to_str()
        return made

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
    """One of which no special token is known by name."""


def bare_tokenizer(text: str) -> Tokenizer:
    """Load a tokenizer.json without padding and truncation: batches are packed and cut by mtmeta itself."""
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def puts_around(text: str, place: str) -> bool:
    """Return whether a tokenizer.json has a post-processor that puts special tokens around both texts of a pair.

    Raises WeightsError for what is no tokenizer.json.
    """
    with native_errors(place, "cannot be loaded"):
        whole = json.loads(text).get("post_processor") or {}
        return any(
            part["type"] in PROCESSORS or any("SpecialToken" in piece for piece in part.get("pair", ()))
            for part in whole.get("processors", [whole])
            if part
        )


@contextmanager
def native_errors(place: str, message: str) -> Iterator[None]:
    """Raise errors of the Rust library as WeightsError. A panic is not an Exception, and writes to stderr itself."""
    try:
        with _muted():
            yield
    except (KeyboardInterrupt, MemoryError, mtmeta.WeightsError):
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
