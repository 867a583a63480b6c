"""Words of messages: quoting what a user typed, near names, foreign exceptions on one line."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import Any, Literal

MAX_TOKEN = 80  # characters of user text quoted in a message
MAX_NAMES = 20  # names listed where none is near
# what a terminal obeys, no encoding holds, or turns the direction of the text around it: all but line breaks
_UNSEEN = re.compile("[\0-\x09\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
MAX_NEAR, MAX_COMPARED = 5000, 100  # names that are compared with one, and their characters: more would take minutes


def safe(text: str, limit: int = MAX_TOKEN) -> str:
    """Return `text` fit for a terminal: control characters and line breaks escaped, cut at `limit` characters."""
    if text.isprintable():  # nearly every text, told at once
        clean = text
    else:
        clean = "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)
    return clean if len(clean) <= limit else clean[: limit - 3] + "..."


def visible(text: str) -> str:
    """Return the whole of `text` fit for a page or a file to be read: as it is, but for characters that nobody sees.

    Line breaks stay. For a line in a terminal take `safe`.
    """
    return _UNSEEN.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def markdown(value: object) -> str:
    """Return a user's words in one line, so that Markdown shows them as they are."""
    return re.sub(r"([\\`*_{}\[\]<>#|!~&])", r"\\\1", visible(" ".join(str(value).split())))


def quote(token: object) -> str:
    """Return the user's token in single quotes, made safe and cut; numbers and other literals stand bare."""
    if isinstance(token, bool):
        return "true" if token else "false"
    if token is None:
        return "nothing"
    return f"'{safe(token)}'" if isinstance(token, str) else safe(str(token))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name closest to `name`, or None; of very many or long names not all are compared."""
    if len(name) > MAX_COMPARED:
        return None
    names, folded = [other for other in islice(known, MAX_NEAR) if len(other) <= MAX_COMPARED], name.casefold()
    for other in names:
        if other.casefold() == folded:  # a distance takes upper and lower case for different letters
            return other
    return next(iter(difflib.get_close_matches(name, names, n=1)), None)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name, or an empty string."""
    return f"; did you mean {quote(match)}?" if (match := nearest(name, known)) else ""


def choose(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` for the nearest known name; where none is near, `; one of a, b, c`."""
    names = list(known)
    shown = [safe(other) for other in names[:MAX_NAMES]] + ["..."] * (len(names) > MAX_NAMES)
    return did_you_mean(name, names) or (f"; one of {', '.join(shown)}" if names else "")


def byte_text(size: int, least: Literal["B", "kB"] = "B") -> str:
    """Return a number of bytes for people, such as `1.5 MB`; `least` is the smallest unit."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale or unit == least:
            return f"{size / scale:.1f} {unit}"
    return f"{size} B"


def plural(count: int, noun: str) -> str:
    """Return `1 row`, `2 rows`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def span(counts: Iterable[int]) -> str:
    """Return `8`, or `5 to 8` of counts that differ."""
    listed = list(counts)
    least, most = min(listed), max(listed)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def exception_line(error: BaseException) -> str:
    """Return type and text of an exception, fit for one line; its own `__str__` may fail."""
    try:
        text = str(error)
    except BaseException:
        text = ""
    return safe(f"{type(error).__name__}: {text}" if text else type(error).__name__, 300)


def first_fault(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return where, and why, a document is none that its model takes: the first of what pydantic has against it."""
    place = ".".join(map(str, errors[0]["loc"])) or "it"
    return safe(f"{place}: {errors[0]['msg'].lower()}", 200)
