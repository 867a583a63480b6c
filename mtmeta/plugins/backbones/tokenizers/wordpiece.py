"""BERT's tokenizer: WordPiece, from tokenizer.json or vocab.txt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import mtmeta
from mtmeta.plugins.backbones.tokenizers.added import AddedTokens, read_added_tokens, read_settings
from mtmeta.plugins.backbones.tokenizers.fast import FastTokenizer, read_vocabulary

SPECIAL_TOKENS = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]"} | {
    "cls_token": "[CLS]",
    "mask_token": "[MASK]",
}
NEEDED = ("cls_token", "sep_token", "unk_token")


class WordPiece(FastTokenizer):
    """[CLS] a [SEP], or [CLS] a [SEP] b [SEP] for a pair in one sequence."""

    family = "BERT"
    around = (("[CLS]",), ("[SEP]",), ("[SEP]",))

    @classmethod
    def from_vocabulary(
        cls, vocabulary: Sequence[str], added: AddedTokens | None = None, place: str = "vocab.txt", **normalizer: Any
    ) -> WordPiece:
        """Build it from the lines of a vocab.txt, with BERT's normaliser (and its options) and pre-tokenizer.

        Raises WeightsError for added tokens that do not fit the vocabulary.
        """
        names = SPECIAL_TOKENS if added is None else added.names
        numbers = {token: number for number, token in enumerate(vocabulary)}
        tokenizer = Tokenizer(models.WordPiece(numbers, unk_token=names["unk_token"]))
        tokenizer.normalizer = normalizers.BertNormalizer(**normalizer)
        tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        if added is None:
            tokenizer.add_special_tokens([token for token in SPECIAL_TOKENS.values() if token in numbers])
        else:
            added.add_to(tokenizer, place)
            begin, end, _ = ((names[key], cls.number_of(tokenizer, names[key], place)) for key in NEEDED)
            if (begin[0], end[0]) != (
                SPECIAL_TOKENS["cls_token"],
                SPECIAL_TOKENS["sep_token"],
            ):  # they are known by name
                tokenizer.post_processor = processors.BertProcessing(end, begin)
        return cls(tokenizer, place)


def word_piece_json(folder: Path) -> str:
    """Build the tokenizer of a folder's vocab.txt, as the text of a tokenizer.json. Raises WeightsError."""
    path = folder / "vocab.txt"
    if not path.exists():
        raise mtmeta.WeightsError(str(folder), "has neither tokenizer.json nor vocab.txt; one of them is needed")
    lines = read_vocabulary(path).removesuffix("\n").split("\n")  # they hold U+2028, U+0085 and the like
    added = read_added_tokens(folder, SPECIAL_TOKENS)
    return WordPiece.from_vocabulary(lines, added, str(path), **_normalizer(read_settings(folder))).json()


def _normalizer(settings: Mapping[str, Any]) -> dict[str, bool | None]:
    """Read the normaliser's options; the others are as BERT's authors had them."""
    options: dict[str, bool | None] = {"lowercase": True, "strip_accents": None, "handle_chinese_chars": True}
    names = zip(("do_lower_case", "strip_accents", "tokenize_chinese_chars"), options, strict=True)
    return options | {ours: settings[theirs] for theirs, ours in names if isinstance(settings.get(theirs), bool)}
