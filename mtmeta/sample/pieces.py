"""The WordPiece vocabulary of the sample data."""

from __future__ import annotations

from mtmeta.sample.dataset import TASKS, marked_words

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
CHARACTERS = "abcdefghijklmnopqrstuvwxyz0123456789!\"#$%&'()*+,-./:;?@_"


def vocabulary() -> list[str]:
    """The vocabulary: special tokens, single characters, then the words of the train sets and word pieces.

    A word made from a stem and affixes is not an entry, its parts are; so a reader of the train sets learns what the
    parts mean, and can read new words that are made of them. No entry is a word that only dev or test sets have.
    """
    entries = dict.fromkeys([*SPECIAL, *CHARACTERS, *("##" + character for character in CHARACTERS)])
    for split in ("train", "dev", "test"):
        for word in sorted(word for task in TASKS for word in marked_words(task, split)):
            first, *rest = word.split("+")
            if split == "train" or rest:
                entries.update(dict.fromkeys([first, *("##" + piece for piece in rest)]))
    return list(entries)
