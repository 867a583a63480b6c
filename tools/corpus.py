"""The text that a student encoder learns from: sentences of plain files and of tables, without what is held out."""

from __future__ import annotations

import gzip
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import mtmeta

__all__ = ["Corpus", "normal", "read_corpus"]

TEXT_COLUMNS = ("sentence", "sentence1", "sentence2", "text", "text1", "text2")
SUFFIXES = (".txt", ".gz")
WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Corpus:
    """Sentences, each once."""

    plain: list[str]
    """Of text files, one a line."""
    tables: list[str]
    """Of the text columns of tables, without their labels."""
    held_out: int
    """Distinct sentences that must not be learned from."""
    dropped: int
    """How often one of them stood in the text and was left out."""


def normal(text: str) -> str:
    """Return the words of a sentence, for comparisons: without case, punctuation, spaces and Unicode's variants."""
    return " ".join(WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def read_corpus(text: Sequence[Path], tables: Sequence[Path], held_out: Sequence[Path]) -> Corpus:
    """Read text files (.txt, .txt.gz), tables (CSV, TSV, JSONL), and the tables whose sentences are held out."""
    unwanted = {normal(sentence) for path in held_out for sentence in _column_texts(path)}
    seen: set[str] = set()
    dropped = 0

    def keep(sentences: Iterable[str]) -> Iterator[str]:
        nonlocal dropped
        for sentence in sentences:
            key = normal(sentence)
            if key in unwanted:
                dropped += 1
            elif key and key not in seen:
                seen.add(key)
                yield sentence

    kept = list(keep(s for path in text for s in _lines(path))), list(keep(s for p in tables for s in _column_texts(p)))
    if left := seen & unwanted:
        raise RuntimeError(f"{len(left)} held-out sentences are in the text")
    return Corpus(*kept, held_out=len(unwanted), dropped=dropped)


def _lines(path: Path) -> Iterator[str]:
    with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
        for line in file:
            yield line.strip()


def _column_texts(path: Path) -> Iterator[str]:
    file = mtmeta.DataFile(path)
    columns = [name for name in TEXT_COLUMNS if name in file.columns()]
    if not columns:
        raise mtmeta.DataError(str(path), f"has no text column; looked for {', '.join(TEXT_COLUMNS)}")
    for row in file.rows(*columns):
        for name in columns:
            yield row[name].strip()
