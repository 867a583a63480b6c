"""BERT's tokenizer: WordPiece, from tokenizer.json or vocab.txt."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import json_file
from mtmeta.plugins.backbones.tokenizers.fast import FastTokenizer, read_vocabulary

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


class WordPiece(FastTokenizer):
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP] for a pair in one sequence."""

    family = "BERT"
    around = (("[CLS]",), ("[SEP]",), ("[SEP]",))

    @classmethod
    def from_vocabulary(cls, vocabulary: Sequence[str], **normalizer: Any) -> WordPiece:
        """Build it from the lines of a vocab.txt, with BERT's normaliser (and its options) and pre-tokenizer."""
        numbers = {token: number for number, token in enumerate(vocabulary)}
        tokenizer = Tokenizer(models.WordPiece(numbers, unk_token="[UNK]"))
        tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS if token in numbers])
        return cls(tokenizer, "vocab.txt")


def tokenizer_json(folder: Path) -> str:
    """Return the tokenizer of a folder as the text of a tokenizer.json; vocab.txt will do."""
    path, vocabulary = folder / "tokenizer.json", folder / "vocab.txt"
    if path.exists():
        return read_vocabulary(path)
    if not vocabulary.exists():
        raise mtmeta.WeightsError(str(folder), "has neither tokenizer.json nor vocab.txt; one of them is needed")
    lines = read_vocabulary(vocabulary).removesuffix("\n").split("\n")  # they hold U+2028, U+0085 and the like
    missing = [token for token in ("[UNK]", "[CLS]", "[SEP]") if token not in lines]
    if missing:
        raise mtmeta.WeightsError(str(vocabulary), f"has no token '{missing[0]}'; a BERT vocabulary has one")
    return WordPiece.from_vocabulary(lines, **_normalizer(folder / "tokenizer_config.json")).json()


def _normalizer(path: Path) -> dict[str, bool | None]:
    """Read the normaliser's options from tokenizer_config.json; the others are as BERT's authors had them."""
    options: dict[str, bool | None] = {"lowercase": True, "strip_accents": None, "handle_chinese_chars": True}
    values = json_file(path)
    names = zip(("do_lower_case", "strip_accents", "tokenize_chinese_chars"), options, strict=True)
    return options | {ours: values[theirs] for theirs, ours in names if isinstance(values.get(theirs), bool)}
