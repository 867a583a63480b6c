"""A tag for each word: entities in BIO, or classes such as parts of speech. Reads CoNLL's columns and JSON.

Shapes: `W` words of a batch, `C` tags.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

import mtmeta
from mtmeta import sample
from mtmeta.plugins.tag_metrics import entity_counts, spans_of

if TYPE_CHECKING:
    from torch import Tensor

Names = Annotated[tuple[str, ...], Field(min_length=1)]
TABLES = (".json", ".jsonl", ".ndjson", ".csv", ".parquet")  # all else is columns
NO_WORD = re.compile(r"\d+[-.]\d+")  # of CoNLL-U: a range of words, and a word that is not in the text
SENTENCE = re.compile(r"#\s*sent_id\s*=\s*(\S+)")


@dataclass(frozen=True)
class Tags(mtmeta.Objective):
    """One of C tags for each word: outputs [W, C], cross entropy, the mean over words."""

    tags: tuple[str, ...]
    bio: bool = True

    labelled = "words"

    @cached_property
    def _one(self) -> mtmeta.Classification:
        """The tag of one word."""
        return mtmeta.Classification(self.tags)

    @property
    def outputs(self) -> int:
        return len(self.tags)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.tags

    def parse(self, label: object) -> tuple[int, ...]:
        """Return the index of each tag: of a list of them, or of a text with spaces between them."""
        names = label.split() if isinstance(label, str) else label
        if not isinstance(names, list | tuple) or not names:
            return (self._one.parse(""),)  # it raises
        return tuple(self._one.parse(str(name)) for name in names)

    def show(self, prediction: Any) -> str:
        return " ".join(self.tags[int(at)] for at in prediction)

    def loss(self, outputs: Tensor, labels: Tensor) -> Tensor:
        return self._one.loss(outputs, labels)

    def decode(self, outputs: Tensor) -> Tensor:
        return outputs.argmax(dim=-1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        return outputs.float().softmax(dim=-1)

    def spans(self, prediction: Any) -> tuple[tuple[str, int, int], ...] | None:
        return tuple(spans_of([self.tags[int(at)] for at in prediction])) if self.bio else None

    def confusion(self, labels: Any, predictions: Any) -> mtmeta.Confusion:
        """Return counts, precision, recall and F1 of each type of entity; of plain tags those of each tag."""
        rows = []
        if self.bio:
            for kind in dict.fromkeys(tag[2:] for tag in self.tags if tag != "O"):
                keep = tuple(tag if tag[2:] == kind else "O" for tag in self.tags)
                rows.append((kind, _figures(*entity_counts(labels, predictions, keep).sum(axis=0))))
            return mtmeta.Confusion("entities of each type", FIGURES, tuple(rows))
        pairs = [pair for own, found in zip(labels, predictions, strict=True) for pair in zip(own, found, strict=True)]
        labelled, predicted = Counter(own for own, _ in pairs), Counter(found for _, found in pairs)
        right = Counter(own for own, found in pairs if own == found)
        for at, tag in enumerate(self.tags):
            rows.append((tag, _figures(right[at], labelled[at], predicted[at])))
        return mtmeta.Confusion("words of each tag", FIGURES, tuple(rows))


FIGURES = ("labelled", "predicted", "right", "precision", "recall", "F1")


def _figures(right: float, labelled: float, predicted: float) -> tuple[float, ...]:
    shares = ((right, predicted), (right, labelled), (2 * right, labelled + predicted))
    return int(labelled), int(predicted), int(right), *(float(part / of) if of else 0.0 for part, of in shares)


@dataclass(frozen=True, kw_only=True)
class TaggingTask(mtmeta.Task):
    """A tag for each word of a text.

    Files named .json, .jsonl, .csv or .parquet are tables, and so are all whose column of words is given by name: a
    column of words and one of tags, each a list, or a text with spaces; or a text with `spans`. All others hold a word
    a line with its columns, and an empty line after each text, as those of CoNLL, of CoNLL-U and of MaChAmp.
    """

    name = "tagging"

    labels: Names
    """Types of entities, such as [PER, LOC]; with `scheme: none` the tags themselves."""
    scheme: Literal["bio", "none"] = "bio"
    """`bio`: tags O, B-TYPE and I-TYPE mark entities; `none`: every word has a tag for itself."""
    word: int | str = 0
    """Where the words are: number of their column, from 0 (-1 the last), in tables its name (`tokens` for a number)."""
    tag: int | str = -1
    """Where the tags are, in the same way (`tags` for a number)."""
    spans: str | None = None
    """Column of a table with a list of objects with `start`, `end` (characters) and `label`, in the place of tags;
    `word` then names the column of the text."""
    metrics: Names = ("entity_f1", "word_accuracy")
    """Metrics; the first selects. With `scheme: none`: [word_accuracy]."""

    @property
    def objective(self) -> Tags:
        if self.scheme == "none":
            return Tags(self.labels, bio=False)
        return Tags(("O", *(f"{prefix}-{kind}" for kind in self.labels for prefix in "BI")))

    def check(self) -> Iterator[tuple[str, str]]:
        if twice := [name for name, count in Counter(self.labels).items() if count > 1]:
            yield "labels", f"name {mtmeta.quote(twice[0])} twice; each has one name"
        if odd := [name for name in self.labels if not name or len(name.split()) != 1]:
            yield "labels", f"hold {mtmeta.quote(odd[0])}; a name is one word"
        whole = [name for name in self.labels if name[:2] in ("B-", "I-") or name == "O"]
        if self.scheme == "bio" and whole:
            yield "labels", f"name the tag {mtmeta.quote(whole[0])}; name types alone, O, B- and I- are added"
        if self.scheme == "none" and "entity_f1" in self.metrics:
            yield "metrics", "name entity_f1, which is for scheme bio; give [word_accuracy]"
        if self.scheme == "none" and len(self.labels) < 2:
            yield "labels", "are one tag; name two or more"
        if self.scheme == "none" and self.spans is not None:
            yield "spans", "mark entities, and the scheme is none; give scheme: bio"

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.word if isinstance(self.word, str) else "tokens",)

    def read(self, file: mtmeta.DataFile) -> Iterable[mtmeta.Example]:
        if file.path.suffix.lower() in TABLES or isinstance(self.word, str):
            return self._spans(file, self.spans) if self.spans is not None else self._table(file)
        return self._columns(file)

    def sample(self, split: str) -> Iterable[mtmeta.Example]:
        """Yield reviews in which the words for what they are about are a THING."""
        if self.labels != ("THING",) or self.scheme != "bio":
            raise mtmeta.DataError("sample", "its type is THING; write labels: [THING], or name a file of your own")
        things = sample.things()
        for row in sample.examples("sst", split):
            words = re.findall(r"[\w'-]+|[^\w\s]", row.text)
            tags = ["O"] * len(words)
            for thing in things:
                for at in range(len(words) - len(thing) + 1):
                    if tuple(word.lower() for word in words[at : at + len(thing)]) == thing:
                        tags[at : at + len(thing)] = ["B-THING", *["I-THING"] * (len(thing) - 1)]
            yield mtmeta.Example(" ".join(words), label=tuple(tags), id=row.id)

    def _table(self, file: mtmeta.DataFile) -> Iterator[mtmeta.Example]:
        word, tag = self.columns[0], self.tag if isinstance(self.tag, str) else "tags"
        for row in file.records(word, tag):
            words, tags = (value.split() if isinstance(value, str) else value for value in (row[word], row[tag]))
            parted = [each for each in words if len(str(each).split()) != 1]
            if parted:
                file.bad.add(row.line, f"word {mtmeta.quote(str(parted[0]))} is empty or has a space in it", "other")
                continue
            yield mtmeta.Example(" ".join(words), label=tuple(tags), id=row.id, line=row.line)

    def _spans(self, file: mtmeta.DataFile, column: str) -> Iterator[mtmeta.Example]:
        word = self.word if isinstance(self.word, str) else "text"
        for row in file.records(word, column):
            try:
                words, tags = words_of_spans(row[word], row[column])
            except ValueError as error:
                file.bad.add(row.line, str(error), "other")
                continue
            yield mtmeta.Example(" ".join(words), label=tuple(tags), id=row.id, line=row.line)

    def _columns(self, file: mtmeta.DataFile) -> Iterator[mtmeta.Example]:
        spaced, tag_at = 0, self.tag if isinstance(self.tag, int) else -1
        for lines in _blocks(file):
            name, rows = _without_comments(lines)
            words, tags, odd = [], [], ""
            for number, fields in rows:
                if self.word != 0 and NO_WORD.fullmatch(fields[0]):
                    continue
                try:
                    word, tag = fields[int(self.word)].strip(), fields[tag_at].strip()
                except IndexError:
                    word = tag = ""
                if len(fields) < 2 or not word:
                    odd = odd or f"line {number} has no word and tag ({mtmeta.quote(' '.join(fields))})"
                spaced += len(word.split()) > 1
                words.append("_".join(word.split()))
                tags.append(tag)
            if odd:
                file.bad.add(rows[0][0], odd, "wrong number of fields")
            elif words and words != ["-DOCSTART-"]:
                start = rows[0][0]
                yield mtmeta.Example(" ".join(words), label=tuple(tags), id=name or str(start), line=start)
        if spaced:
            file.notes.append(f"{spaced} words have a space in them, and are read with _ in its place")


def _blocks(file: mtmeta.DataFile) -> Iterator[list[tuple[int, str]]]:
    """Yield the lines of each text with their numbers: what stands between empty lines."""
    block: list[tuple[int, str]] = []
    for number, line in file.texts():
        if line.strip():
            block.append((number, line))
        elif block:
            yield block
            block = []
    if block:
        yield block


def _without_comments(lines: list[tuple[int, str]]) -> tuple[str, list[tuple[int, list[str]]]]:
    """Return the name that a comment gives a text, and number and fields of each of its lines with a word.

    Lines at the beginning that start with # are comments, as # text = ..., unless they have the tabs and the columns of
    the last line: a word may be # as well.
    """
    rows = [(number, line.split("\t") if "\t" in line else line.split()) for number, line in lines]
    shape, name, first = ("\t" in lines[-1][1], len(rows[-1][1])), "", 0
    for (_, line), (_, fields) in zip(lines, rows, strict=True):
        if not line.startswith("#") or ("=" not in fields[1:3] and ("\t" in line, len(fields)) == shape):
            break
        name = found[1] if (found := SENTENCE.match(line)) else name
        first += 1
    return name, rows[first:]


def words_of_spans(text: Any, spans: Any) -> tuple[list[str], list[str]]:
    """Return words and BIO tags of a text and the spans in it, objects with `start`, `end` and `label`.

    Words are what stands between spaces, cut where a span begins or ends. Raises ValueError for spans that overlap, or
    lie outside.
    """
    if not isinstance(text, str) or not isinstance(spans, list):
        raise ValueError("has no text, or no list of spans")
    found = []
    for span in spans:
        try:
            start, end, label = int(span["start"]), int(span["end"]), str(span["label"])
        except (KeyError, TypeError, ValueError):
            raise ValueError("a span is no object with start, end and label") from None
        if not 0 <= start < end <= len(text) or not text[start:end].strip():
            raise ValueError(f"the span {start} to {end} is not within the text of {len(text)} characters")
        found.append((start, end, label))
    found.sort()
    for (_, end, _), (start, *_) in itertools.pairwise(found):
        if start < end:
            raise ValueError(f"the spans that end at {end} and start at {start} overlap")
    words: list[str] = []
    tags: list[str] = []
    at = 0
    for start, end, label in [*found, (len(text), len(text), "")]:
        outside = text[at:start].split()
        inside = text[start:end].split()
        words += [*outside, *inside]
        tags += ["O"] * len(outside) + [f"{'I' if number else 'B'}-{label}" for number in range(len(inside))]
        at = end
    return words, tags
