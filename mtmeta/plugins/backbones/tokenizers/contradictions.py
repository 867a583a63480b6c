"""What other files of a folder say against its tokenizer.json, which holds."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import json_file
from mtmeta.plugins.backbones.tokenizers.added import ADDED, FLAGS, MAX_BYTES, NAMES, SETTINGS, SPECIALS
from mtmeta.plugins.backbones.tokenizers.fast import PAIR, bare_tokenizer, native_errors, read_vocabulary

VOCABULARY = "vocab.txt"
OTHERS = (SPECIALS, ADDED, VOCABULARY)
# the kind of pieces that classes of transformers have
PIECES = dict.fromkeys(("Bert", "DistilBert", "Electra", "MPNet", "MobileBert", "ConvBert", "Funnel"), "WordPiece")
PIECES |= dict.fromkeys(("Roberta", "Longformer", "GPT2", "Bart", "Deberta", "Herbert"), "BPE")
PIECES |= dict.fromkeys(("XLMRoberta", "Albert", "BigBird", "T5", "RemBert"), "Unigram")
SHOWN = 4


def contradictions(folder: Path, text: str, settings: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line that names all of them, or nothing. Raises WeightsError for files that cannot be read."""
    place = str(folder / "tokenizer.json")
    if not settings and not any((folder / name).exists() for name in OTHERS):
        return
    with native_errors(place, "cannot be loaded"):
        tokenizer = bare_tokenizer(text)
    found: dict[str, list[str]] = {}
    with native_errors(place, "cannot be used"):
        whole, decoder = json.loads(text), settings.get("added_tokens_decoder")
        found[SETTINGS] = [*_settings(tokenizer, whole, settings), *_decoder(tokenizer, decoder)]
        found[SPECIALS] = list(_specials(tokenizer, json_file(folder / SPECIALS, MAX_BYTES)))
        found[ADDED] = list(_added(tokenizer, json_file(folder / ADDED, MAX_BYTES)))
        found[VOCABULARY] = list(_vocabulary(tokenizer, folder / VOCABULARY, whole))
    if any(found.values()):
        texts = (f"{name} says {_joined(what)}" for name, what in found.items() if what)
        yield f"{place} holds, though {', and '.join(texts)}"


def _joined(texts: list[str]) -> str:
    return ", ".join(texts[:SHOWN]) + (f", and {len(texts) - SHOWN} more" if len(texts) > SHOWN else "")


def _settings(tokenizer: Tokenizer, whole: dict[str, Any], settings: Mapping[str, Any]) -> Iterator[str]:
    normalised = _normaliser(tokenizer)
    facts: dict[str, tuple[bool, str, str]] = {
        "do_lower_case": ("abc" in normalised("ABC"), "lowercases", "keeps capitals"),
        "strip_accents": (not {"\u00e9", "\u0301"} & set(normalised("\u00e9")), "drops accents", "keeps accents"),
        "tokenize_chinese_chars": (
            " \u4e2d " in normalised("a\u4e2db"),
            "sets Chinese characters apart",
            "does not set Chinese characters apart",
        ),
    }
    before = json.dumps(whole.get("pre_tokenizer"))
    if tokenizer.pre_tokenizer is not None and ('"ByteLevel"' in before or '"Metaspace"' in before):
        pieces = tokenizer.pre_tokenizer.pre_tokenize_str("a")
        begins = bool(pieces) and pieces[0][0][:1] in ("\u0120", "\u2581")
        facts["add_prefix_space"] = (begins, "begins a text with a space", "begins a text without a space")
    for name, (does, yes, no) in facts.items():
        if isinstance(settings.get(name), bool) and settings[name] is not does:
            yield f"{name} {str(settings[name]).lower()} (it {yes if does else no})"
    kind, pieces = str(settings.get("tokenizer_class", "")), str(whole.get("model", {}).get("type"))
    if PIECES.get(kind.removesuffix("Fast").removesuffix("Tokenizer"), pieces) != pieces:
        yield f"tokenizer_class {mtmeta.quote(kind)} (it is {pieces})"
    yield from _specials(tokenizer, settings)


def _normaliser(tokenizer: Tokenizer) -> Callable[[str], str]:
    return tokenizer.normalizer.normalize_str if tokenizer.normalizer is not None else str


def _specials(tokenizer: Tokenizer, values: Mapping[str, Any]) -> Iterator[str]:
    """Yield special tokens, by name, that it lacks, or does not put around a text."""
    alone = tokenizer.encode(PAIR[0], add_special_tokens=False).ids
    around = [number for number in tokenizer.encode(PAIR[0]).ids if number not in alone]
    for name in NAMES:
        token = _content(values.get(name))
        number = tokenizer.token_to_id(token) if token is not None else None
        if token is None:
            continue
        if number is None:
            yield f"{name} {mtmeta.quote(token)} (it has no such token)"
        elif name in ("cls_token", "sep_token") and around and number not in around:
            shown = mtmeta.quote(str(tokenizer.id_to_token(around[0 if name == "cls_token" else -1])))
            yield f"{name} {mtmeta.quote(token)} (it puts {shown} there)"
    for name in ("additional_special_tokens", "extra_special_tokens"):
        listed = values.get(name)
        for token in map(_content, listed if isinstance(listed, list) else ()):
            if token is not None and tokenizer.token_to_id(token) is None:
                yield f"{name} {mtmeta.quote(token)} (it has no such token)"


def _content(value: Any) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _decoder(tokenizer: Tokenizer, decoder: Any) -> Iterator[str]:
    known = tokenizer.get_added_tokens_decoder()
    for number, token in decoder.items() if isinstance(decoder, dict) else ():
        content = _content(token)
        if content is None or not isinstance(token, dict) or not str(number).isdecimal():
            continue
        if tokenizer.token_to_id(content) != int(number):
            yield _other(tokenizer, content, int(number))
            continue
        has = known.get(int(number))
        flags = [name for name in FLAGS if isinstance(token.get(name), bool)]
        if has is None:
            yield f"added token {mtmeta.quote(content)} (it does not keep it whole)"
        elif different := [name for name in flags if getattr(has, name) is not token[name]]:
            yield f"{different[0]} {str(token[different[0]]).lower()} of {mtmeta.quote(content)} (it says otherwise)"


def _added(tokenizer: Tokenizer, numbers: Mapping[str, Any]) -> Iterator[str]:
    for content, number in numbers.items():
        if tokenizer.token_to_id(content) != number:
            yield _other(tokenizer, content, number)


def _other(tokenizer: Tokenizer, content: str, number: object) -> str:
    found = tokenizer.token_to_id(content)
    has = "it has no such token" if found is None else f"it has id {found}"
    return f"{mtmeta.quote(content)} is {mtmeta.safe(str(number))} ({has})"


def _vocabulary(tokenizer: Tokenizer, path: Path, whole: dict[str, Any]) -> Iterator[str]:
    """Yield the first token of a vocab.txt that has another id: one of the files is left over from another model."""
    if whole.get("model", {}).get("type") != "WordPiece" or not path.exists():
        return
    lines = read_vocabulary(path).removesuffix("\n").split("\n")
    listed = {token: number for number, token in enumerate(lines)}  # of two alike the later counts
    if listed == whole["model"].get("vocab"):
        return  # nearly always; the rest takes as long as loading it
    numbers = tokenizer.get_vocab(with_added_tokens=True)
    for token, number in listed.items():
        if numbers.get(token, number) != number or (token.strip() and token not in numbers):
            yield _other(tokenizer, token, number)
            return
