"""Words met before are looked up; what is remembered is bounded, whatever the texts are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from mtmeta.plugins.backbones.tokenizers import words
from mtmeta.plugins.backbones.tokenizers.words import Words


def encoder(calls: list[list[str]]) -> Words:
    """A word's ids are the codes of its letters; `calls` takes down what had to be computed."""

    def encode(texts: Sequence[str]) -> list[list[int]]:
        calls.append(list(texts))
        return [[ord(letter) for letter in text] for text in texts]

    return Words(encode)


def expected(texts: Sequence[str]) -> tuple[list[int], list[int]]:
    letters = [[ord(letter) for letter in text if letter != " "] for text in texts]
    return [i for ids in letters for i in ids], [len(ids) for ids in letters]


def test_a_word_is_computed_once() -> None:
    calls: list[list[str]] = []
    made = encoder(calls)
    for texts in (["a bc", "", "bc  a"], ["a d"]):
        ids, lengths = made.encode(texts)
        assert (ids.tolist(), lengths.tolist()) == expected(texts)
    assert [sorted(call) for call in calls] == [["", "a", "bc"], ["d"]]


def test_long_words_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Text without spaces: every text is one long word, and few of them are many characters."""
    monkeypatch.setattr(words, "MAX_STORED", 1000)
    made = encoder([])
    random = np.random.default_rng(1)
    for _ in range(20):
        texts = ["".join(map(chr, random.integers(97, 123, 100))) for _ in range(3)]  # 600 characters and ids
        ids, lengths = made.encode(texts)
        assert (ids.tolist(), lengths.tolist()) == expected(texts)
        assert made._stored <= 1000 + 600 and len(made._numbers) <= 6
