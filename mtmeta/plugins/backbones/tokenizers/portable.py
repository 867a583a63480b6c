"""A run's tokenizer as the files that transformers' AutoTokenizer reads, with the very same ids."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from tokenizers import Tokenizer, decoders, models, processors

import mtmeta
from mtmeta.plugins.backbones.tokenizers.fast import native_errors

NAMED = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")
COMMON = {"pad": ("[PAD]", "<pad>"), "unk": ("[UNK]", "<unk>"), "mask": ("[MASK]", "<mask>")}
PAIR = ("one text", "and another")
TYPES = "token_type_ids"


def tokenizer_files(
    text: str, tokenizer: mtmeta.Tokenizer, max_length: int, *, typed: bool, config: Mapping[str, Any] | None = None
) -> tuple[dict[str, bytes], int]:
    """Return AutoTokenizer's files for the text of a tokenizer.json, and the id of padding.

    It puts the special tokens around texts that `tokenizer` says; `typed` gives the second text of a pair a token type
    of its own. `config` is the tokenizer_config.json that came with it, where there was one.
    """
    with native_errors("tokenizer.json", "cannot be loaded"):
        fast = Tokenizer.from_str(text)
    fast.no_padding()
    fast.no_truncation()
    _add_special_tokens(fast, tokenizer, typed=typed)
    if fast.decoder is None and isinstance(fast.model, models.WordPiece):
        fast.decoder = decoders.WordPiece()
    around = [*tokenizer.prefix[:1], *tokenizer.suffix[-1:]]
    special = _names(fast, around, config or {})
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # takes tokenizer.json as it is; another class builds its own
        "model_max_length": max_length,
        "model_input_names": ["input_ids", *[TYPES] * typed, "attention_mask"],
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        **special,
    }
    if special["pad_token"] not in _added(fast):
        # a token that is named becomes a special one, which texts are searched for: they are not to be
        settings["split_special_tokens"] = True
    files = {
        "tokenizer.json": fast.to_str().encode(),
        "tokenizer_config.json": _json(settings),
        "special_tokens_map.json": _json(special),
    }
    vocabulary = fast.get_vocab(with_added_tokens=True)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    plain = isinstance(fast.model, models.WordPiece)
    if plain and all(vocabulary[token] == number and "\n" not in token for number, token in enumerate(tokens)):
        files["vocab.txt"] = "".join(f"{token}\n" for token in tokens).encode()
    return files, vocabulary[special["pad_token"]]


def _add_special_tokens(fast: Tokenizer, tokenizer: mtmeta.Tokenizer, *, typed: bool) -> None:
    """Have the tokenizer put the special tokens around texts itself; its own post-processor stays if it does."""
    prefix, middle, suffix = (list(ids) for ids in (tokenizer.prefix, tokenizer.middle, tokenizer.suffix))
    with native_errors("tokenizer.json", "cannot encode the data"):
        a, b = (fast.encode(text, add_special_tokens=False).ids for text in PAIR)
        one, pair = fast.encode(PAIR[0]), fast.encode(*PAIR)
    first, second = [*prefix, *a, *middle], [*b, *suffix]
    types = [0] * len(first) + [1] * len(second)
    if one.ids == [*prefix, *a, *suffix] and pair.ids == first + second and (pair.type_ids == types or not typed):
        return
    tokens = {number: fast.id_to_token(number) for number in [*prefix, *middle, *suffix]}

    def template(ids: Sequence[int], kind: int) -> list[str]:
        return [f"{tokens[number]}:{kind}" for number in ids]

    kind = int(typed)
    single = [*template(prefix, 0), "$A:0", *template(suffix, 0)]
    both = [*template(prefix, 0), "$A:0", *template(middle, 0), f"$B:{kind}", *template(suffix, kind)]
    fast.post_processor = processors.TemplateProcessing(
        single=single, pair=both, special_tokens=[(token, number) for number, token in tokens.items()]
    )


def _added(fast: Tokenizer) -> dict[str, int]:
    """Return the special tokens that texts are searched for, and their numbers."""
    return {token.content: number for number, token in fast.get_added_tokens_decoder().items() if token.special}


def _names(fast: Tokenizer, around: Sequence[int], config: Mapping[str, Any]) -> dict[str, str]:
    """Return which token is the padding and so on, as transformers names them; `around` are those before and after.

    Only tokens that are special already have a name: to name another would make it so, and change the ids of texts.
    """
    added = _added(fast)
    given = {name: config.get(f"{name}_token") for name in NAMED}
    names = {name: token.get("content") if isinstance(token, dict) else token for name, token in given.items()}
    for name, tokens in COMMON.items():
        if names[name] not in added:
            names[name] = next((token for token in tokens if token in added), None)
    ends = [fast.id_to_token(number) for number in around]
    for name, token in zip(("cls", "sep"), (ends[0], ends[-1]), strict=True):
        if names[name] not in added:
            names[name] = token
    special = {f"{name}_token": str(token) for name, token in names.items() if token in added}
    # a vocabulary without padding can be filled up with any token, the mask hides it
    special.setdefault(
        "pad_token", next((str(token) for token in [*ends[::-1], *added] if token in added), str(ends[-1]))
    )
    return special


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
