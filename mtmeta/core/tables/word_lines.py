"""Files that are no tables of texts: a word a line with its tag, and an empty line after each text, as CoNLL's."""

from __future__ import annotations

import re
from pathlib import Path

HEAD = 2**16  # bytes that tell
TAG = re.compile(r"O|[BI]-\S+")


def has_words_with_tags(path: Path) -> bool:
    """Return whether a file holds a word a line, BIO tags in the last column, and empty lines between texts."""
    words = _words(path)
    begins = any(TAG.fullmatch(fields[-1]) and fields[-1] != "O" for fields in words)
    return begins and all(len(fields) > 1 and TAG.fullmatch(fields[-1]) for fields in words)


def has_words_in_columns(path: Path) -> bool:
    """Return whether a file holds a word a line, with BIO tags or with tabs, and empty lines between texts."""
    return has_words_with_tags(path) or (bool(words := _words(path, "\t")) and all(len(one) > 1 for one in words))


def _words(path: Path, mark: str | None = None) -> list[list[str]]:
    """Return the fields of the first lines but comments; nothing where no line between them is empty."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD)
    except OSError:
        return []
    lines = head.decode("utf-8", "replace").splitlines()
    if len(head) == HEAD:
        lines.pop()
    lines = "\n".join(line for line in map(str.rstrip, lines) if not line.startswith("#")).strip("\n").split("\n")
    return [line.split(mark) for line in lines if line] if "" in lines else []
