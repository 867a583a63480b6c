"""Texts to token ids word by word: text repeats its words, so that nearly all of them are looked up, not computed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

MAX_WORDS = 2**18  # remembered at once
# characters and ids remembered at once: text without spaces has long "words"; with both, some 100 MB
MAX_STORED = 2**23
Ints = NDArray[np.int64]


class Words:
    """The token ids of every word met so far; those of new words come from `encode`, all of a block in one call.

    Words stand between spaces. `fits` says for which tokenizers the ids of a text are those of its words.
    """

    def __init__(self, encode: Callable[[Sequence[str]], list[list[int]]]) -> None:
        self._encode = encode
        self._forget()

    @staticmethod
    def fits(tokenizer: Tokenizer) -> bool:
        """Return whether nothing in the tokenizer looks across a space: BERT's own parts, no added token with one."""
        parts = (tokenizer.normalizer, tokenizer.pre_tokenizer, tokenizer.model)
        kinds = (normalizers.BertNormalizer, pre_tokenizers.BertPreTokenizer, models.WordPiece)
        added = tokenizer.get_added_tokens_decoder().values()
        if not all(type(part) is kind for part, kind in zip(parts, kinds, strict=True)):
            return False
        # an added token is looked for in the text as the normaliser leaves it, where a tab has become a space
        contents = [form for token in added for form in (token.content, parts[0].normalize_str(token.content).strip())]
        return not any(" " in content for content in contents)

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._ids = np.empty(0, dtype=np.int64)  # of all words, end to end
        self._offsets = np.zeros(1, dtype=np.int64)
        self._stored = 0

    def encode(self, texts: Sequence[str]) -> tuple[Ints, Ints]:
        """Return the token ids of N texts end to end [S], and how many each text has [N]."""
        split = [text.split(" ") for text in texts]
        words = list(chain.from_iterable(split))
        if len(self._numbers) > MAX_WORDS or self._stored > MAX_STORED:
            self._forget()
        self._learn(list(set(words).difference(self._numbers)))
        numbers = np.fromiter(map(self._numbers.__getitem__, words), dtype=np.int64, count=len(words))
        starts, sizes = self._offsets[numbers], self._offsets[numbers + 1] - self._offsets[numbers]
        ends = np.cumsum(sizes)
        ids = self._ids[np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1] if len(ends) else 0)]
        # every text has at least one word, be it an empty one, so that no two texts start at the same word
        firsts = np.cumsum([0, *map(len, split)])[:-1]
        return ids, np.add.reduceat(sizes, firsts) if len(texts) else sizes

    def _learn(self, words: Sequence[str]) -> None:
        if not words:
            return
        ids = self._encode(words)
        self._numbers.update(zip(words, range(len(self._numbers), len(self._numbers) + len(words)), strict=True))
        sizes = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
        self._offsets = np.concatenate([self._offsets, self._offsets[-1] + np.cumsum(sizes)])
        self._ids = np.concatenate([self._ids, np.fromiter(chain.from_iterable(ids), np.int64, sizes.sum())])
        self._stored += sum(map(len, words)) + int(sizes.sum())
