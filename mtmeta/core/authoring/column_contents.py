"""What the values of a column are: sentences, or what stands beside them; and whether two columns go together."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

LOOKED_AT = 500  # values of a column
MOSTLY = 0.8
FEWEST_WORDS = 3  # of a text that its contents alone make one of a pair
DATE_WORDS = re.compile(
    r"\b(jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec|mon|tue|wed|thu|fri|sat|sun)[a-z]*\b|\b[ap]\.?m\b\.?"
    r"|\b(utc|gmt|[pmce][sd]?t|ago|(year|month|week|day|hour|minute|second)s?)\b|(?<=\d)(t|z|st|nd|rd|th)(?![a-z])",
    re.IGNORECASE,
)
NUMBERS = re.compile(r"[\d\s.,;:/|+\-()\[\]%$]+")
TREE = re.compile(r"\(\S*\s.*\)", re.DOTALL)
IOB = re.compile(r"O|[BIESLU]-\S+")
PARTS_OF_SPEECH = frozenset(
    "CC CD DT EX FW IN JJ JJR JJS LS MD NN NNS NNP NNPS PDT POS PRP PRP$ RB RBR RBS RP SYM TO UH VB VBD VBG VBN VBP "
    "VBZ WDT WP WP$ WRB HYPH NFP -LRB- -RRB- ADJ ADP ADV AUX CCONJ DET INTJ NOUN NUM PART PRON PROPN PUNCT SCONJ VERB "
    "X . , : ; ( ) # $ `` '' \" ? !".split()
)
NAME = re.compile(
    r"(https?://|www\.)\S+|\S+@\S+\.\w+|[@#]\S+|\S*[/\\]\S*\.\w{1,5}|[\w-]+\.[a-z]{1,4}\d?|(?=\S*\d)[0-9a-f-]{8,}"
    r"|\S*\d\S*[_#.:-]\S*|\S*[_#:]\S*\d\S*",
    re.IGNORECASE,
)
"""Addresses, handles, files, hashes, identifiers."""
MARKUP = re.compile(r"<[^<>]*>|\[(CLS|SEP|PAD|MASK)\]")
SPACED = re.compile(r" [.,!?]( |$)")
WORD = re.compile(r"[^\W_]+")


def holds_no_text(values: Sequence[str]) -> bool:
    """Return whether most values are dates, numbers, parse trees, tags of tokens, addresses, files or identifiers."""
    return _mostly(values, _is_no_text)


def go_together(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether two columns, row by row, are texts that may be a pair: sentences that share words.

    A list of keywords is none, and nor is what was made of the other text: cleaned, tokenised, stemmed, cut out.
    """
    rows = [(a.strip(), b.strip()) for a, b in zip(one, other, strict=True) if a.strip() and b.strip()][:LOOKED_AT]
    words = [(_words(a), _words(b)) for a, b in rows]
    counts = [sum(len(row[side]) for row in words) for side in (0, 1)]
    if not rows or min(counts) < FEWEST_WORDS * len(rows) or any(_mostly(c, _is_list) for c in (one, other)):
        return False
    short, long = (0, 1) if counts[0] <= counts[1] else (1, 0)
    known = {word for row in words for word in row[long]}
    common = sum(word in known for row in words for word in row[short])
    return common >= 0.4 * counts[short] and not is_derived(one, other)


def is_derived(one: Sequence[str], other: Sequence[str]) -> bool:
    """Return whether one column holds what was made of the other, row by row: nearly all its words, not another row's.

    Words are compared by how they begin, for they may be stemmed.
    """
    rows = [(a, b) for a, b in zip(one, other, strict=True) if a.strip() and b.strip()][:LOOKED_AT]
    words = [({w[:4] for w in _words(a)}, {w[:4] for w in _words(b)}) for a, b in rows]
    if not words:
        return False
    own = _contained(words)
    return own >= MOSTLY and own - _contained([(a, words[i - 1][1]) for i, (a, _) in enumerate(words)]) >= 0.1


def roughness(values: Sequence[str]) -> tuple[bool, bool, bool]:
    """Return whether most texts have markup, have no capitals, and have blanks before their full stops."""
    tests: tuple[Callable[[str], object], ...] = (MARKUP.search, lambda value: value == value.lower(), SPACED.search)
    markup, small, spaced = (_mostly(values, lambda value, test=test: bool(test(value))) for test in tests)  # type: ignore[misc]
    return markup, small, spaced


def _contained(words: Sequence[tuple[set[str], set[str]]]) -> float:
    """Return the mean share of the words of the shorter text that stand in the longer one."""
    shares = [len(a & b) / min(len(a), len(b)) for a, b in words if a and b]
    return sum(shares) / max(1, len(shares))


def _mostly(values: Sequence[str], test: Callable[[str], bool]) -> bool:
    looked_at = [value for value in map(str.strip, values) if value][:LOOKED_AT]
    return bool(looked_at) and sum(map(test, looked_at)) >= MOSTLY * len(looked_at)


def _is_no_text(value: str) -> bool:
    value = value[:1000]
    if any(map(str.isdigit, value)) and NUMBERS.fullmatch(DATE_WORDS.sub(" ", value)):
        return True  # a date, or numbers
    if value.startswith("(") and TREE.fullmatch(value):
        return True
    tokens = value.split()
    return any(all(map(test, tokens)) for test in (IOB.fullmatch, PARTS_OF_SPEECH.__contains__, NAME.fullmatch))


def _is_list(value: str) -> bool:
    items = value.split(",")
    return len(items) > 2 and all(len(item.split()) <= 3 for item in items)


def _words(text: str) -> list[str]:
    return WORD.findall(MARKUP.sub(" ", text[:5000]).lower())
