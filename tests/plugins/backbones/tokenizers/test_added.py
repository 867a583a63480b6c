"""Tokens beside a vocabulary, with their flags: the ids of transformers' AutoTokenizer on 200 texts, or a refusal."""

from __future__ import annotations

import importlib
import json
import random
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.plugins.backbones.tokenizers.bytelevel import ByteLevel
from mtmeta.plugins.backbones.tokenizers.fast import FastTokenizer
from mtmeta.plugins.backbones.tokenizers.folder import TokenizerFolder
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece
from tests.support.folder_shapes import (
    NAMED_WORDS,
    NAMED_XLMR,
    PROBES,
    WORDS,
    byte_pairs,
    listed,
    roberta_files,
    vocab_txt,
)
from tests.support.folder_shapes import words as word_pieces

CONTENTS = ("@USER", "HTTPURL", "covid-19", "two words", "\u4e2d\u6587", "Caf\xe9")
BESIDE = ("", " ", "  ", ".", "x", "the ", "X", "\t", "-", "\u4e2d", "\u0301", "_", "[MASK]", "\n")


def probes(contents: tuple[str, ...] = CONTENTS, count: int = 200) -> list[str]:
    """Texts with the contents in all surroundings, in capitals, cut, twice."""
    draw, made = random.Random(7), list(PROBES)
    while len(made) < count:
        parts = []
        for _ in range(draw.randint(1, 3)):
            content = draw.choice(contents)
            content = draw.choice([content, content, content.upper(), content.lower(), content[:-1]])
            parts += [draw.choice(BESIDE), content, draw.choice(BESIDE), draw.choice(["", "film", "good"])]
        made.append("".join(parts))
    return made


def write(folder: Path, files: dict[str, Any], kind: str = "bert") -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    texts = {"vocab.txt": vocab_txt(word_pieces())} if kind == "bert" else roberta_files(byte_pairs())
    for name, value in {**texts, **files}.items():
        (folder / name).write_text(value if isinstance(value, str) else json.dumps(value), encoding="utf-8")


def ours(folder: Path, kind: str = "bert") -> FastTokenizer:
    family: type[FastTokenizer] = WordPiece if kind == "bert" else ByteLevel
    return family.from_json(TokenizerFolder(folder, kind, family=family).text(), "here")


def assert_same(folder: Path, kind: str = "bert") -> None:
    """The same ids as AutoTokenizer, alone, with special tokens around, and word by word."""
    reference = importlib.import_module("transformers").AutoTokenizer.from_pretrained(folder)
    tokenizer, texts = ours(folder, kind), probes()
    assert len(texts) == 200
    wanted = [reference.backend_tokenizer.encode(text, add_special_tokens=False).ids for text in texts]
    found = tokenizer.encode(texts)
    for text, one, other in zip(texts, found, wanted, strict=True):
        assert one == other, text
    flat, lengths = tokenizer.encode_flat(texts)
    assert flat.tolist() == [number for ids in wanted for number in ids]
    assert lengths.tolist() == list(map(len, wanted))
    assert [*tokenizer.prefix, *found[5], *tokenizer.suffix] == reference(texts[5])["input_ids"]
    assert tokenizer.size == len(reference)


FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
SETS = [(), *((flag,) for flag in FLAGS), ("lstrip", "rstrip", "special"), ("single_word", "normalized"), FLAGS]


@pytest.mark.parametrize("on", SETS, ids=lambda on: "+".join(on) or "none")
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_every_flag(kind: str, on: tuple[str, ...], tmp_path: Path) -> None:
    """All tokens with these flags; and with the others, which `added_tokens_decoder` leaves out."""
    count = len(listed(word_pieces() if kind == "bert" else byte_pairs()))
    for number, flags in enumerate(({flag: flag in on for flag in FLAGS}, {flag: True for flag in on})):
        folder = tmp_path / str(number)
        folder.mkdir()
        contents = [CONTENTS, [content for content in CONTENTS if " " not in content]][number]  # then word by word
        decoder = {str(count + n): {"content": content, **flags} for n, content in enumerate(contents)}
        named = NAMED_WORDS if kind == "bert" else NAMED_XLMR
        write(folder, {"tokenizer_config.json": {**named, "added_tokens_decoder": decoder}}, kind)
        assert_same(folder, kind)


COUNT = len(listed(word_pieces()))
ADDED = {content: COUNT + number for number, content in enumerate(CONTENTS)}
OLD: dict[str, dict[str, Any]] = {
    "added_tokens.json alone": {"added_tokens.json": ADDED},
    "special by tokenizer_config.json": {
        "added_tokens.json": ADDED,
        "tokenizer_config.json": {**NAMED_WORDS, "additional_special_tokens": ["@USER", "two words"]},
    },
    "special by special_tokens_map.json": {
        "added_tokens.json": ADDED,
        "special_tokens_map.json": {**NAMED_WORDS, "additional_special_tokens": ["@USER", "two words"]},
    },
    "special tokens with flags": {
        "added_tokens.json": ADDED,
        "special_tokens_map.json": {
            **NAMED_WORDS,
            "mask_token": {"content": "[MASK]", "lstrip": True, "rstrip": False, "normalized": True},
        },
    },
    "extra_special_tokens in both": {
        "added_tokens.json": ADDED,
        "tokenizer_config.json": {"extra_special_tokens": ["HTTPURL"]},
        "special_tokens_map.json": {"extra_special_tokens": ["@USER", {"content": "two words", "rstrip": True}]},
    },
    "special tokens without ids": {
        "tokenizer_config.json": {**NAMED_WORDS, "additional_special_tokens": ["@USER", "HTTPURL"]}
    },
    "named by the model": {
        "tokenizer_config.json": {"user_token": "@USER", "extra_special_tokens": {"link_token": "HTTPURL"}}
    },
    "in the other order": {"added_tokens.json": dict(reversed(ADDED.items()))},
    "known to the vocabulary": {"added_tokens.json": {"the": listed(word_pieces()).index("the")}},
    "decoder beside added_tokens.json": {
        "added_tokens.json": {"left over": COUNT},
        "special_tokens_map.json": {"mask_token": "HTTPURL"},
        "tokenizer_config.json": {"added_tokens_decoder": {str(COUNT): {"content": "@USER"}}},
    },
    "cased": {"added_tokens.json": ADDED, "tokenizer_config.json": {"do_lower_case": False, "strip_accents": True}},
}  # fmt: skip


@pytest.mark.parametrize("what", OLD)
def test_every_file_that_tells_of_them(what: str, tmp_path: Path) -> None:
    write(tmp_path, OLD[what])
    assert_same(tmp_path)


def test_a_vocabulary_without_a_mask_needs_none(tmp_path: Path) -> None:
    """Its tokenizer stays as long as it is; a token that is added takes the place that AutoTokenizer gives it."""
    lines = [token for token in listed(word_pieces()) if token != "[MASK]"]
    write(tmp_path, {"vocab.txt": "".join(f"{token}\n" for token in lines)})
    assert ours(tmp_path).size == len(lines)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"additional_special_tokens": ["@USER"]}))
    assert ours(tmp_path).size == len(lines) + 2
    assert_same(tmp_path)


def test_an_ordinary_vocabulary_makes_the_text_it_made_before(tmp_path: Path) -> None:
    decoder = {str(n): {"content": token, "special": True, "normalized": False} for n, token in enumerate(WORDS)}
    for number, settings in enumerate(({}, NAMED_WORDS, {**NAMED_WORDS, "added_tokens_decoder": decoder})):
        folder = tmp_path / str(number)
        folder.mkdir()
        write(folder, {"tokenizer_config.json": settings})
        assert ours(folder).json() == WordPiece.from_vocabulary(listed(word_pieces())).json()


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a gap": ({"added_tokens.json": {"a b": COUNT + 1}}, f"token 'a b' the id {COUNT + 1}, but it comes to {COUNT}"),
    "a taken id": ({"added_tokens.json": {"@USER": 7}}, f"gives token '@USER' the id 7, but it comes to {COUNT}"),
    "another id": ({"added_tokens.json": {"[MASK]": COUNT}}, f"gives token '[MASK]' the id {COUNT}, but it comes to 4"),
    "one id twice": ({"added_tokens.json": {"a b": COUNT, "c d": COUNT}}, f"gives the id {COUNT} to two tokens"),
    "one token twice": (
        {"tokenizer_config.json": {"added_tokens_decoder": {str(COUNT + n): {"content": "a b"} for n in (0, 1)}}},
        f"gives token 'a b' the id {COUNT + 1}, but it comes to {COUNT}",
    ),
    "a gap in the decoder": (
        {"tokenizer_config.json": {"added_tokens_decoder": {str(COUNT + 5): {"content": "@USER"}}}},
        f"gives token '@USER' the id {COUNT + 5}",
    ),
    "no id": ({"added_tokens.json": {"@USER": "x"}}, "added_tokens.json: '@USER' has no id"),
    "no number": ({"tokenizer_config.json": {"added_tokens_decoder": {"x": {}}}}, "'x' is no id of a token"),
    "no token": ({"tokenizer_config.json": {"added_tokens_decoder": {"9": 5}}}, "'5' is no token"),
    "no flag": (
        {"tokenizer_config.json": {"added_tokens_decoder": {"9": {"content": "a", "lstrip": "yes"}}}},
        "is no token",
    ),
    "no mapping": ({"tokenizer_config.json": {"added_tokens_decoder": [1]}}, "'added_tokens_decoder' is no mapping"),
    "no object": ({"added_tokens.json": [1]}, "added_tokens.json: is not a JSON object"),
}  # fmt: skip


@pytest.mark.parametrize("what", WRONG)
def test_ids_that_cannot_be_kept_are_refused(what: str, tmp_path: Path) -> None:
    files, words = WRONG[what]
    write(tmp_path, files)
    with pytest.raises(mtmeta.WeightsError) as caught:
        ours(tmp_path)
    assert words in str(caught.value)
    assert len(caught.value.lines()) == 1
