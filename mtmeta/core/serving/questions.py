"""The body of a request to texts, and what is wrong with it in one line.

A body is {"text": ...} or {"texts": [...]}; a text is a string, or for tasks on pairs a list of two strings, for those
that choose the text and its choices.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mtmeta.core.run.predictor import Text
from mtmeta.core.wording import quote, safe

KEYS = ("text", "texts")


@dataclass(frozen=True)
class Limits:
    """What a server takes at the most."""

    body: int = 1_000_000
    """Bytes of a request's body."""
    texts: int = 256
    """Texts of a request."""
    waiting: int = 4096
    """Texts that wait to be predicted, of all requests together."""
    seconds: float = 30.0
    """Time that the body of a request may take to come."""


class Refused(Exception):
    """A request that is not answered: the status of HTTP, and a line that says why."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, safe(message, 400)


def texts_of(body: bytes, *, count: int, limits: Limits) -> list[Text]:
    """Return the texts that a body asks about, or lists of `count` of them where it is above 1. Raises Refused."""
    question = _mapping(body)
    if unknown := [key for key in question if key not in KEYS]:
        raise Refused(422, f"unknown key {quote(unknown[0])}; give text or texts")
    given = [key for key in KEYS if key in question]
    if len(given) != 1:
        raise Refused(422, "give text or texts, not both" if given else "no text; give text or texts")
    (key,) = given
    texts = question[key] if key == "texts" else [question[key]]
    if not isinstance(texts, list):
        raise Refused(422, f"texts is {_kind(texts)}, expected a list")
    if not texts:
        raise Refused(422, "texts is empty; give at least one")
    if len(texts) > limits.texts:
        raise Refused(413, f"{len(texts)} texts, at most {limits.texts} in one request; send several")
    places = ["text"] if key == "text" else [f"texts[{number}]" for number in range(len(texts))]
    return [_text(place, text, count) for place, text in zip(places, texts, strict=True)]


def _mapping(body: bytes) -> Mapping[str, Any]:
    try:
        question = json.loads(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise Refused(400, "the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "nested too deep"
        raise Refused(400, f"the body is no JSON ({reason})") from None
    if not isinstance(question, dict):
        raise Refused(422, f'the body is {_kind(question)}, expected an object such as {{"text": "..."}}')
    return question


def _text(place: str, given: Any, count: int) -> Text:
    parts = given if count > 1 and isinstance(given, list) else [given]
    expected = {1: "a text", 2: "a list of two texts"}.get(count, f"a list of {count} texts")
    if len(parts) != count or not all(isinstance(part, str) for part in parts):
        found = f"a list of {len(parts)}" if count > 1 and isinstance(given, list) else _kind(given)
        raise Refused(422, f"{place} is {found}, this task takes {expected}")
    for part in parts:
        if not part.strip():
            raise Refused(422, f"{place} is empty")
        if any("\ud800" <= character <= "\udfff" for character in part):
            raise Refused(422, f"{place} holds half of a surrogate pair, which is no character")
    return tuple(parts) if count > 1 else str(parts[0])


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")
