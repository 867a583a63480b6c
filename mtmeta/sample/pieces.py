"""The WordPiece vocabulary of the sample data."""

from __future__ import annotations

from mtmeta.sample.dataset import TASKS, marked_words

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;?@_"


def vocabulary() -> list[str]:
    """Return the vocabulary: special tokens, single characters, then the words of the train sets and word pieces.

    A word made from a stem and affixes is not an entry, its parts are; so a reader of the train sets learns the
    meaning of the parts, and can read new words built from them. No entry is a word that only dev or test sets have.
    """
    entries = dict.fromkeys([*SPECIAL, *CHARACTERS, *("##" + character for character in CHARACTERS)])
    known = _words("train")
    held_out = {word.replace("+", "") for split in ("dev", "test") for word in _words(split)}
    unknown = held_out - {word.replace("+", "") for word in known}
    for word in known + _words("dev") + _words("test"):
        first, *rest = word.split("+")
        if rest or word in known:
            pieces = [first, *(f"##{piece}" for piece in rest)]
            entries.update(dict.fromkeys(piece for piece in pieces if piece not in unknown))
    return list(entries)


def _words(split: str) -> list[str]:
    return sorted({word for task in TASKS for word in marked_words(task, split)})
