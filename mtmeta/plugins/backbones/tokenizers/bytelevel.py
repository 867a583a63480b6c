"""RoBERTa's tokenizer: byte-level BPE, from tokenizer.json or vocab.json and merges.txt.

XLM-RoBERTa's has other pieces and the same special tokens: its tokenizer.json is read, too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import json_file
from mtmeta.plugins.backbones.tokenizers.added import AddedTokens, read_added_tokens, read_settings
from mtmeta.plugins.backbones.tokenizers.fast import MAX_VOCABULARY_BYTES, FastTokenizer, native_errors, read_vocabulary

SPECIAL_TOKENS = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "sep_token": "</s>"} | {
    "pad_token": "<pad>",
    "cls_token": "<s>",
    "mask_token": "<mask>",
}
NEEDED = ("cls_token", "sep_token")


class ByteLevel(FastTokenizer):
    """<s> a </s>, or <s> a </s></s> b </s> for a pair in one sequence."""

    family = "RoBERTa"
    around = (("<s>",), ("</s>", "</s>"), ("</s>",))
    numbers_pairs = False

    @classmethod
    def from_vocabulary(
        cls,
        vocabulary: Mapping[str, int],
        merges: Sequence[tuple[str, str]],
        place: str,
        *,
        added: AddedTokens | None = None,
        add_prefix_space: bool = False,
    ) -> ByteLevel:
        """Build it from vocab.json and merges.txt. A text begins without a space unless `add_prefix_space`.

        Raises WeightsError, also for added tokens that do not fit the vocabulary.
        """
        with native_errors(place, "cannot be loaded"):
            tokenizer = Tokenizer(models.BPE(dict(vocabulary), list(merges)))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
        tokenizer.decoder = decoders.ByteLevel()
        if added is None:
            names = dict.fromkeys(SPECIAL_TOKENS.values())
            tokenizer.add_special_tokens([token for token in names if token in vocabulary])
            return cls(tokenizer, place)
        added.add_to(tokenizer, place)
        begin, end = ((added.names[key], cls.number_of(tokenizer, added.names[key], place)) for key in NEEDED)
        if (begin[0], end[0]) != (SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]):  # they are known by name
            tokenizer.post_processor = processors.RobertaProcessing(end, begin, True, add_prefix_space)
        return cls(tokenizer, place)


def byte_level_json(folder: Path) -> str:
    """Build the tokenizer of a folder's vocab.json and merges.txt, as the text of a tokenizer.json."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    if not (vocabulary.exists() and merges.exists()):
        message = "has neither tokenizer.json nor vocab.json with merges.txt; one of them is needed"
        raise mtmeta.WeightsError(str(folder), message)
    numbers = json_file(vocabulary, MAX_VOCABULARY_BYTES)
    whole = [number for number in numbers.values() if type(number) is int and 0 <= number < 2**31]
    if len(set(whole)) < len(numbers):
        raise mtmeta.WeightsError(str(vocabulary), "is no vocabulary of tokens and their numbers; fetch it again")
    pairs = [tuple(line.split(" ")) for line in read_vocabulary(merges).split("\n") if line]
    if pairs and pairs[0][0].startswith("#version"):
        del pairs[0]
    odd = [pair for pair in pairs if len(pair) != 2]
    if odd:
        raise mtmeta.WeightsError(str(merges), f"{mtmeta.quote(' '.join(odd[0]))} is no pair of tokens; fetch it again")
    space = read_settings(folder).get("add_prefix_space") is True
    added = read_added_tokens(folder, SPECIAL_TOKENS)
    parts = numbers, [(a, b) for a, b in pairs], str(merges)
    return ByteLevel.from_vocabulary(*parts, added=added, add_prefix_space=space).json()
