"""Tokens that a folder's files set beside its vocabulary: special ones by name, and added ones, with their flags.

They are read, and added in the order, as AutoTokenizer of transformers does, so that all get the same ids and meaning.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer

import mtmeta
from mtmeta.plugins.backbones.checkpoint.untrusted import json_file

NAMES = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")
SETTINGS, SPECIALS, ADDED = "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"
MAX_BYTES = 20_000_000  # some tokenizer_config.json describe thousands of tokens


@dataclass(frozen=True)
class AddedTokens:
    """The tokens in the order in which they are added, and what the files say of them."""

    tokens: tuple[AddedToken, ...]
    names: Mapping[str, str]
    """Contents of the special tokens by name, such as `cls_token`."""
    numbers: tuple[tuple[str, int], ...] = ()
    """Contents and the ids that the files give them."""
    implied: frozenset[str] = frozenset()
    """Contents of special tokens that no file names: a vocabulary need not have them."""

    def add_to(self, tokenizer: Tokenizer, place: str) -> None:
        """Add all to a tokenizer. Raises WeightsError where one does not come to the id that the files give it."""
        tokens = list(self.tokens)
        while tokens and tokens[-1].content in self.implied and tokenizer.token_to_id(tokens[-1].content) is None:
            del tokens[-1]
        tokenizer.add_tokens(tokens)
        for content, number in self.numbers:
            found = tokenizer.token_to_id(content)
            if found != number:
                message = f"gives token {mtmeta.quote(content)} the id {number}, but it comes to {found}"
                raise mtmeta.WeightsError(place, f"{message}; ids must be the vocabulary's, or follow it without gaps")


def read_settings(folder: Path) -> dict[str, Any]:
    """Read tokenizer_config.json, empty where there is none. Raises WeightsError."""
    return json_file(folder / SETTINGS, MAX_BYTES)


def read_added_tokens(folder: Path, defaults: Mapping[str, str]) -> AddedTokens:
    """Read them from tokenizer_config.json, special_tokens_map.json and added_tokens.json. Raises WeightsError.

    `defaults` are the special tokens by name that the kind of tokenizer has where no file says otherwise.
    """
    values, place = read_settings(folder), str(folder / SETTINGS)
    extra = values.get("extra_special_tokens") or values.get("additional_special_tokens") or []
    special: dict[str, Any] = {}  # of special_tokens_map.json, which later versions of transformers do not write
    numbered: dict[int, AddedToken] = {}
    if "added_tokens_decoder" in values:
        for number, token in sorted(_mapping(values["added_tokens_decoder"], place).items(), key=_number_of(place)):
            numbered[int(number)] = added_token(token, place, special=False)
    else:
        special = json_file(folder / SPECIALS, MAX_BYTES)
        extra = [*extra, *_listed(special.get("extra_special_tokens"))] if isinstance(extra, list) else extra
        known = _contents([*(special.get(name) or values.get(name) for name in NAMES), *_listed(extra)])
        for content, number in sorted(json_file(folder / ADDED, MAX_BYTES).items(), key=lambda pair: str(pair[1])):
            if type(number) is not int:
                raise mtmeta.WeightsError(str(folder / ADDED), f"{mtmeta.quote(content)} has no id; fetch it again")
            if number in numbered:
                raise mtmeta.WeightsError(str(folder / ADDED), f"gives the id {number} to two tokens; fetch it again")
            numbered[number] = AddedToken(content, normalized=content not in known, special=content in known)
        extra = extra or special.get("additional_special_tokens") or []
    given = {**values, **special}
    named = {name: given[name] for name in given if name.endswith("_token") and isinstance(given[name], str | dict)}
    if isinstance(extra, dict):
        named |= extra
    specials = {name: added_token(named.get(name, defaults.get(name)), place, special=True)
                for name in dict.fromkeys([*NAMES, *named]) if name in named or name in defaults}  # fmt: skip
    contents = {token.content for token in specials.values()}
    tokens = [_special(token) if token.content in contents else token for _, token in sorted(numbered.items())]
    seen = {token.content for token in tokens}
    for token in [*specials.values(), *(added_token(one, place, special=True) for one in _listed(extra))]:
        if token.content not in seen:
            seen.add(token.content)
            tokens.append(token)
    return AddedTokens(
        tokens=tuple(tokens),
        names={name: token.content for name, token in specials.items()},
        numbers=tuple((token.content, number) for number, token in sorted(numbered.items())),
        implied=frozenset(defaults[name] for name in defaults if name not in named) - set(_contents(named.values())),
    )


def added_token(value: Any, place: str, *, special: bool) -> AddedToken:
    """Read a token: its text alone, or an object of text and flags. Raises WeightsError."""
    if isinstance(value, str):
        return AddedToken(value, special=special)
    if isinstance(value, dict) and isinstance(value.get("content"), str):
        flags = {name: value[name] for name in FLAGS if name in value}
        if all(isinstance(flag, bool) for flag in flags.values()):
            return AddedToken(value["content"], **(flags | {"special": True} if special else flags))
    raise mtmeta.WeightsError(place, f"{mtmeta.quote(str(value))} is no token; fetch it again")


def _special(token: AddedToken) -> AddedToken:
    return AddedToken(token.content, **{name: getattr(token, name) for name in FLAGS} | {"special": True})


def _contents(values: Iterable[Any]) -> set[str]:
    contents = (value.get("content") if isinstance(value, dict) else value for value in values)
    return {content for content in contents if isinstance(content, str)}


def _listed(extra: Any) -> list[Any]:
    return extra if isinstance(extra, list) else []


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise mtmeta.WeightsError(place, "'added_tokens_decoder' is no mapping of ids to tokens; fetch it again")
    return value


def _number_of(place: str) -> Any:
    def number(pair: tuple[str, Any]) -> int:
        if not pair[0].isdecimal() or len(pair[0]) > 9:
            raise mtmeta.WeightsError(place, f"{mtmeta.quote(pair[0])} is no id of a token; fetch it again")
        return int(pair[0])

    return number
