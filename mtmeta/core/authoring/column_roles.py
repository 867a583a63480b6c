"""The roles of a table's columns, text, pair and label: by name first, then by the values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from mtmeta.core.authoring.column_contents import FEWEST_WORDS, go_together, holds_no_text, is_derived, roughness
from mtmeta.core.authoring.label_values import separator_of, several_labels
from mtmeta.core.authoring.table_profile import Column, TableProfile
from mtmeta.core.errors import DataError, UsageError
from mtmeta.core.wording import did_you_mean, quote, safe

MAX_CLASSES = 1000
LABELS = (
    *("label", "labels", "class", "gold_label", "category", "intent", "stance", "sentiment", "is_duplicate"),
    *("similarity", "similarity_score", "relatedness_score", "relatedness", "score", "rating", "stars", "polarity"),
    *("topic", "emotion", "toxic", "spam", "grade", "target", "y", "tag", "type"),
)
LAST_WORDS = (
    *("label", "class", "category", "intent", "sentiment", "polarity", "topic", "emotion", "stance"),
    *("labels", "duplicate", "relation"),
)
"""Words that name a label also as the last part of a name: `airline_sentiment`, `goldLabel`."""
SCORES = re.compile(r"scor|simil|relat|rating|grade|valence|intensity|strength")
TEXTS = (
    *("text", "sentence", "review", "message", "comment", "content", "body", "tweet", "utterance", "document"),
    *("question", "query", "abstract", "description", "title"),
)
SIDE = {"title", "subject", "summary", "headline", "author", "user", "name", "url", "source", "date", "time", "lang"}
PAIRS = (
    *(("premise", "hypothesis"), ("question", "sentence"), ("question", "answer"), ("question", "passage")),
    *(("question", "context"), ("query", "passage"), ("query", "document"), ("claim", "evidence")),
    *(("context", "response"), ("anchor", "positive"), ("text", "hypothesis"), ("query", "title")),
    *(("post", "reply"), ("comment", "reply"), ("post", "response"), ("utterance", "response"), ("claim", "premise")),
    *(("prompt", "response"), ("original", "paraphrase"), ("reference", "candidate"), ("document", "summary")),
)
PARTS = (
    *(("1", "2"), ("a", "b"), ("one", "two"), ("first", "second"), ("q", "a"), ("left", "right"), ("", "2")),
    *(("source", "target"), ("src", "tgt")),
)
"""What tells the names of a pair apart, whatever else they have in common: `s1` and `s2`, `qtext` and `atext`."""
MADE = re.compile(r"process|clean|token|lemma|stem|norm|filter|lower|parse|stopword")  # out of a text, before training
IDS = re.compile(r"(unnamed: \d+|id|idx|index|guid|uuid|key|nr|no|row|.*[_ -](id|idx)|[a-z]*id\d?|id_.*)$")
ANCHORS = ("anchor", "query", "question")
NEGATIVE = re.compile(r"(hard_)?negative(_?\d+)?")
SURE = {"label", "labels", "class", "target", "gold_label", "is_duplicate", "y"}
NO_TASK = "which is written by hand, as task: multi_label"
ONE_LABEL = "give each row one label"
GAPS = 0.1  # share of rows without a value from which a column is rather not the label
FEW = 20  # different values that a label has where its name says nothing


@dataclass(frozen=True)
class ColumnRoles:
    """The columns of a task, and the reasons for them."""

    text: Column
    pair: Column | None
    label: Column
    why_text: str
    why_label: str
    ignored: tuple[str, ...] = ()
    separator: str | None = None
    """What stands between the labels of a row, where it has several."""


def find_roles(table: TableProfile, given: Sequence[str] = ()) -> ColumnRoles:
    """Find the roles of a file's columns; `given` names text and label, or both texts and the label.

    Raises DataError if the columns cannot be a task, UsageError if `given` names none of them.
    """
    place, columns = str(table.path), table.columns
    shown = safe(", ".join(columns), 300)
    for name in given:
        if name in table.nested:
            raise DataError(place, f"{_nested(name)}; name a column of plain values with --columns")
        if name not in columns:
            message = f"{place} has no column {quote(name)}; columns are: {shown}{did_you_mean(name, list(columns))}"
            raise UsageError("--columns", message)
    if given:
        text, label, pair = columns[given[0]], columns[given[-1]], columns[given[1]] if len(given) == 3 else None
        separator = _separator(label, table, pair)
        return ColumnRoles(text, pair, label, "as given", "as given", separator=separator)
    lists = [name for name in table.nested if _label_rank(name)]
    if len(columns) < 2:
        if lists:
            raise DataError(place, f"{_nested(lists[0])}; {ONE_LABEL}")
        message = f"one column, {shown}, but a task needs a text and a label"
        raise DataError(place, f"{message}; columns are separated by tab, comma or semicolon")
    text, pair, why_text = _texts(table, place)
    rest = [column for column in columns.values() if column not in (text, pair)]
    if lists and not any(map(_label_rank, (column.name for column in rest))):
        raise DataError(place, f"{_nested(lists[0])}; {ONE_LABEL}, or name another column with --columns")
    label, why_label = _label(rest, table, place, paired=pair is not None)
    separator = _separator(label, table, pair)
    _check_spread(label, rest, table)
    ignored = tuple(column.name for column in rest if column is not label)
    return ColumnRoles(text, pair, label, why_text, why_label, ignored, separator)


def texts_of(roles: ColumnRoles) -> list[Column]:
    """Return the columns of the texts."""
    return [roles.text, *([roles.pair] if roles.pair is not None else [])]


def ranking_columns(table: TableProfile) -> list[str]:
    """Return the columns of anchor, positive and hard negatives where they are called so, and nothing is a label."""
    names = {_plain(name): name for name in table.columns}
    anchor = next((names[name] for name in ANCHORS if name in names), None)
    if anchor is None or "positive" not in names or any(map(_label_rank, table.columns)):
        return []
    return [anchor, names["positive"], *(names[name] for name in names if NEGATIVE.fullmatch(name))]


def _nested(name: str) -> str:
    return f"column {quote(name)} holds lists or objects: several labels a row are multi-label, {NO_TASK}"


def _separator(label: Column, table: TableProfile, pair: Column | None) -> str | None:
    """Return what joins the labels of a row, None where it has one. Raises DataError where they are lists otherwise."""
    if several := _several(label, table):
        if pair is None and label.values is not None and (mark := separator_of(label.values)):
            return mark
        message = (
            f"column {quote(label.name)} holds several labels a row, such as {quote(several)}: multi-label, {NO_TASK}"
        )
        raise DataError(str(table.path), f"{message}; {ONE_LABEL}, or name another column with --columns")
    return None


def _check_spread(label: Column, rest: Sequence[Column], table: TableProfile) -> None:
    """Raise DataError where a label that was guessed is one of several columns of 0 and 1."""
    switches = [column for column in rest if _is_switch(column) and not _is_id(column)]
    if label not in switches or len(switches) < 3 or _plain(label.name) in SURE:
        return
    shown = safe(", ".join(column.name for column in switches), 120)
    on = [
        sum(row.get(column.name, "").strip().lower() in ("1", "1.0", "true") for column in switches)
        for row in table.sample
    ]
    if set(on) == {1}:
        message = f"columns {shown} hold 1 in one of them and else 0; write one column of the class names"
    else:
        message = f"columns {shown} hold 0 and 1 each: multi-label, {NO_TASK}; --columns takes one of them alone"
    raise DataError(str(table.path), message)


def _is_switch(column: Column) -> bool:
    values = {value.lower().removesuffix(".0") for value in column.values or ()}
    return values in ({"0", "1"}, {"true", "false"})


def _several(column: Column, table: TableProfile) -> str | None:
    counted = column.values if column.values is not None else (row.get(column.name, "") for row in table.sample)
    return None if column.number else several_labels(counted)


def _rank(name: str, known: Sequence[str]) -> int:
    return known.index(name) if name in known else len(known)


def _plain(name: str) -> str:
    """Return a column's name in one spelling: `Sentence 1`, `sentence-1`, `sentence_1`; `goldLabel`, `gold_label`."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name.strip())
    return re.sub(r"[ _.-]+", "_", parted).lower()


def _is_id(column: Column) -> bool:
    return bool(IDS.match(_plain(column.name)) or IDS.match(column.name.strip().lower()))


# ---------------------------------------------------------------------------------------------------------------- text


class _Texts:
    """The columns of a table that hold texts."""

    def __init__(self, table: TableProfile) -> None:
        self.table = table
        columns = [c for c in table.columns.values() if c.filled and not c.number and not _is_id(c)]
        wordy = [c for c in columns if self._is_named(c) or c.mean_words >= 1.5]
        self.readable = [c for c in wordy if not holds_no_text(self.values(c))]
        self.main = [c for c in self.readable if self._is_named(c) or self._differ(c)]
        """Those that hardly repeat themselves, or are named as texts."""

    def values(self, column: Column) -> list[str]:
        return [row.get(column.name, "") for row in self.table.sample]

    def pair(self) -> tuple[Column, Column, str] | None:
        """Return the two texts of a pair, if there is one, and why."""
        several = [c for c in self.readable if c in self.main or self._repeats(c)]
        for one, other in permutations(several, 2):
            if why := _names_together(one.name, other.name):
                return one, other, why
        free = [c for c in several if _plain(c.name) not in SIDE and not self._is_label(c)]
        if len(free) == 2 and self._is_named(free[0]) == self._is_named(free[1]):
            if go_together(*map(self.values, free)):
                return free[0], free[1], "two columns of text that share words; --columns takes one alone"
        return None

    def best(self) -> tuple[Column, str]:
        """Return the one text, and why."""

        def fitting(column: Column) -> tuple[Any, ...]:
            return _rank(_plain(column.name), TEXTS), self._rank_of(column), -column.mean_characters

        named = sorted(self.main, key=fitting)
        free = [c for c in named if _plain(c.name) not in SIDE and not self._is_label(c)] or named
        best = free[0]
        for one in free[1:]:
            if self._rank_of(one) == self._rank_of(best) and is_derived(self.values(best), self.values(one)):
                best = min(best, one, key=lambda c: (bool(MADE.search(_plain(c.name))), roughness(self.values(c))))
        why = f"{best.mean_words:.0f} words a row"
        return best, why if len(self.main) == 1 else f"{why}; --columns takes another or a pair"

    def _rank_of(self, column: Column) -> int:
        return _rank(_plain(column.name).rstrip("_ab12"), TEXTS)

    def _is_named(self, column: Column) -> bool:
        return _plain(column.name).rstrip("_ab12") in TEXTS

    def _is_label(self, column: Column) -> bool:
        return (_label_rank(column.name) or (5, 0))[0] < 3

    def _differ(self, column: Column) -> bool:
        return column.values is None or len(column.values) > min(100, self.table.rows // 4)

    def _repeats(self, column: Column) -> bool:
        """Return whether a column holds texts that stand in several rows each, as the question of many answers does."""
        return column.mean_words >= FEWEST_WORDS and len(column.values or ()) > FEW and not self._is_label(column)


def _names_together(one: str, other: str) -> str | None:
    """Return how the names of two columns go together, the first of them first; else None."""
    a, b = _plain(one), _plain(other)
    begin = _alike(a, b)
    end = _alike(a[begin:][::-1], b[begin:][::-1])
    if (a[begin : len(a) - end].strip("_"), b[begin : len(b) - end].strip("_")) in PARTS:
        return "two columns of one name"
    of_a, of_b = a.split("_"), b.split("_")
    if (
        len(of_a) == len(of_b)
        and len(differ := [pair for pair in zip(of_a, of_b, strict=True) if len(set(pair)) > 1]) == 1
    ):
        return "names that go together" if differ[0] in PAIRS or differ[0] in PARTS else None
    return "names that go together" if (of_a[-1], of_b[-1]) in PAIRS else None


def _alike(one: str, other: str) -> int:
    """Return with how many equal characters two names begin."""
    return next((i for i, (x, y) in enumerate(zip(one, other, strict=False)) if x != y), min(len(one), len(other)))


def _texts(table: TableProfile, place: str) -> tuple[Column, Column | None, str]:
    texts = _Texts(table)
    if pair := texts.pair():
        return pair
    if not texts.main:
        shown = ", ".join(f"{safe(c.name, 30)} ({c.mean_words:.1f} words a row)" for c in table.columns.values())
        raise DataError(place, f"no column looks like text: {safe(shown, 300)}; name them with --columns")
    best, why = texts.best()
    return best, None, why


# --------------------------------------------------------------------------------------------------------------- label


def _label_rank(given: str) -> tuple[int, int] | None:
    """Return how well a name fits a label, least for best; None if it does not."""
    name = _plain(given)
    if name in LABELS:
        return 1, LABELS.index(name)
    begin, _, last = name.rpartition("_")
    if last in LAST_WORDS:
        return 2, LAST_WORDS.index(last)
    if SCORES.search(name):
        return 3, 0
    spelled = last in ("id", "idx", "index", "name", "text", "code")
    return (4, 0) if spelled and begin.rpartition("_")[2] in LAST_WORDS else None


def _label(rest: Sequence[Column], table: TableProfile, place: str, *, paired: bool) -> tuple[Column, str]:
    fitting = [column for column in rest if _can_be_label(column, table.rows)]

    def by_name(column: Column) -> tuple[Any, ...]:
        tier, place_of_word = _label_rank(column.name) or (5, 0)
        half_empty = 2 * column.empty > column.rows
        return tier, bool(_several(column, table)), half_empty, place_of_word, _gaps(column), _kinds(column)

    if named := [column for column in fitting if _label_rank(column.name)]:
        best = min(named, key=by_name)
        others = [c for c in named if c is not best and (_label_rank(c.name) or (5, 0))[0] < 3]
        return best, f"by its name{_also(others)}"
    fitting = [column for column in fitting if not _is_id(column)]
    if not fitting:
        shown = ", ".join(safe(column.name, 30) for column in rest) or "none"
        message = f"no column looks like a label (beside the text: {shown})"
        fix = f"a label is one of at most {MAX_CLASSES} classes, or a number"
        if paired:
            fix += "; texts that belong together need none, which is written by hand, as task: ranking"
        raise DataError(place, f"{message}; {fix}")
    best = min(reversed(fitting), key=lambda column: (_gaps(column), _kinds(column)))
    also = _also([column for column in fitting if column is not best])
    return best, f"few different values{also}" if best.values is not None else f"numbers{also}"


def _also(others: Sequence[Column]) -> str:
    return f"; so might {safe(others[0].name, 30)} (--columns)" if others else ""


def _gaps(column: Column) -> bool:
    return column.empty > GAPS * column.rows


def _kinds(column: Column) -> int:
    """Return 0 for a column of few different values, 1 for one of many, 2 for one of numbers, 3 for a constant."""
    if column.values is None:
        return 2
    return 3 if len(column.values) < 2 else int(len(column.values) > FEW)


def _can_be_label(column: Column, rows: int) -> bool:
    if not column.filled:
        return False
    if column.number and (not column.whole or SCORES.search(_plain(column.name))):
        return True
    if column.values is None:
        return False
    few = len(column.values) <= MAX_CLASSES and (len(column.values) <= rows / 2 or _label_rank(column.name) is not None)
    return few and column.mean_characters <= 60
