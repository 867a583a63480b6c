"""Text to WordPiece ids through the `tokenizers` library."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import mtmeta
from mtmeta.plugins.backbones.tensors import check_regular
from mtmeta.plugins.backbones.words import Words

__all__ = ["WordPiece", "tokenizer_json"]

MAX_VOCABULARY_BYTES = 100_000_000
MAX_CONFIG_BYTES = 1_000_000
PROBES = ("", "A probe: 1 \u00e9\u4e2d\U0001f600 [MASK] unaccustomed-ness_xyzzy.")
SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPiece:
    """A `mtmeta.Tokenizer`: [CLS] a [SEP], or [CLS] a [SEP] b [SEP] for a pair in one sequence."""

    def __init__(self, tokenizer: Tokenizer, place: str) -> None:
        self._tokenizer = tokenizer
        self._place = place
        tokenizer.no_padding()  # files often carry both; batches are packed and cut by mtmeta itself
        tokenizer.no_truncation()
        self.size: int = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
        cls, sep = (self._special(token, place) for token in ("[CLS]", "[SEP]"))
        self.prefix: tuple[int, ...] = (cls,)
        self.middle: tuple[int, ...] = (sep,)
        self.suffix: tuple[int, ...] = (sep,)
        self._words = Words(self.encode) if Words.fits(tokenizer) else None
        self.encode(PROBES)  # some files load and fail at the first text; the whole data need not be read for that

    def _special(self, token: str, place: str) -> int:
        number: int | None = self._tokenizer.token_to_id(token)
        if number is None:
            raise mtmeta.WeightsError(place, f"has no token '{token}'; a BERT tokenizer has one")
        return number

    @classmethod
    def from_json(cls, text: str, place: str) -> WordPiece:
        """From the text of a tokenizer.json."""
        with _native(place, "cannot be loaded"):
            tokenizer = Tokenizer.from_str(text)
        return cls(tokenizer, place)

    @classmethod
    def from_vocabulary(cls, vocabulary: Sequence[str], **normalizer: Any) -> WordPiece:
        """From the lines of a vocab.txt, with BERT's normaliser (and its options) and pre-tokenizer."""
        numbers = {token: number for number, token in enumerate(vocabulary)}
        tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in numbers])
        return cls(tokenizer, "vocab.txt")

    def json(self) -> str:
        """The tokenizer.json."""
        text: str = self._tokenizer.to_str()
        return text

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens, untruncated."""
        with _native(self._place, "cannot encode the data"):
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def encode_flat(self, texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The same ids end to end [S], and the lengths of the texts [N]; the faster way for whole files."""
        if self._words is not None:
            return self._words.encode(texts)
        found = self.encode(texts)
        lengths = np.fromiter(map(len, found), dtype=np.int64, count=len(found))
        return np.fromiter(chain.from_iterable(found), dtype=np.int64, count=lengths.sum()), lengths


@contextmanager
def _native(place: str, what: str) -> Iterator[None]:
    """Errors of the Rust library as ours. A panic is not an Exception, and writes its own story to stderr."""
    try:
        with _muted():
            yield
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise mtmeta.WeightsError(place, f"{what} ({mtmeta.safe(str(error))}); fetch the file again") from error


@contextmanager
def _muted() -> Iterator[None]:
    """What native code writes to stderr is lost."""
    if sys.stderr is None:  # closed by the user
        yield
        return
    sys.stderr.flush()
    opened: list[int] = []
    with suppress(OSError):  # no file more may be opened, or /dev fails: then a panic's own story is seen too
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


def tokenizer_json(folder: Path) -> str:
    """The tokenizer of a folder as the text of a tokenizer.json; vocab.txt will do."""
    path, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    found = path if path.exists() else vocabulary
    if not found.exists():
        raise mtmeta.WeightsError(str(folder), "has neither tokenizer.json nor vocab.txt; one of them is needed")
    check_regular(found)
    if found.stat().st_size > MAX_VOCABULARY_BYTES:
        raise mtmeta.WeightsError(str(found), "is larger than a tokenizer can be")
    try:
        text = found.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise mtmeta.WeightsError(str(found), "is not UTF-8; fetch the file again") from error
    if found == path:
        return text
    lines = text.removesuffix("\n").split("\n")  # not splitlines(): vocabularies hold U+2028, U+0085 and the like
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in lines]
    if missing:
        raise mtmeta.WeightsError(str(found), f"has no token '{missing[0]}'; a BERT vocabulary has one")
    return WordPiece.from_vocabulary(lines, **_normalizer(folder / "tokenizer_config.json")).json()


def _normalizer(path: Path) -> dict[str, bool | None]:
    """The normaliser's options in tokenizer_config.json; what it does not say is as BERT's authors had it."""
    options: dict[str, bool | None] = {"lowercase": True, "strip_accents": None, "handle_chinese_chars": True}
    if not path.exists():
        return options
    check_regular(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise mtmeta.WeightsError(str(path), "is larger than a tokenizer_config.json can be")
    try:
        values: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise mtmeta.WeightsError(str(path), f"is not JSON ({mtmeta.safe(str(error))})") from error
    if not isinstance(values, dict):
        raise mtmeta.WeightsError(str(path), "is not a JSON object")
    names = zip(("do_lower_case", "strip_accents", "tokenize_chinese_chars"), options, strict=True)
    found = {ours: values[theirs] for theirs, ours in names if isinstance(values.get(theirs), bool)}
    return options | found
