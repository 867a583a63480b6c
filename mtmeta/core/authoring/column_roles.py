"""The roles of a table's columns, text, pair and label: by name first, then by the values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from mtmeta.core.authoring.table_profile import Column, TableProfile
from mtmeta.core.errors import DataError, UsageError
from mtmeta.core.wording import did_you_mean, quote, safe

MAX_CLASSES = 1000
LABELS = (
    *("label", "labels", "class", "target", "gold_label", "category", "intent", "sentiment", "is_duplicate"),
    *("similarity", "similarity_score", "relatedness_score", "relatedness", "score", "rating", "stars", "polarity"),
    *("topic", "emotion", "toxic", "spam", "grade", "y", "tag", "type"),
)
SCORES = re.compile(r"scor|simil|relat|rating|grade|valence|intensity|strength")
TEXTS = (
    *("text", "sentence", "review", "message", "comment", "content", "body", "tweet", "utterance", "document"),
    *("question", "query", "abstract", "description", "title"),
)
SIDE = {"title", "subject", "summary", "headline", "author", "user", "name", "url", "source", "date", "time", "lang"}
PAIRS = (
    *(("premise", "hypothesis"), ("question", "sentence"), ("question", "answer"), ("question", "passage")),
    *(("question", "context"), ("query", "passage"), ("query", "document"), ("claim", "evidence")),
    *(("context", "response"), ("anchor", "positive"), ("text", "hypothesis")),
)
ENDINGS = (("1", "2"), ("a", "b"), ("_a", "_b"), ("_1", "_2"), ("_one", "_two"))
IDS = re.compile(r"(unnamed: \d+|id|idx|index|guid|uuid|key|nr|no|row|.*[_ -](id|idx)|[a-z]*id\d?|id_.*)$")


@dataclass(frozen=True)
class ColumnRoles:
    """The columns of a task, and the reasons for them."""

    text: Column
    pair: Column | None
    label: Column
    why_text: str
    why_label: str
    ignored: tuple[str, ...] = ()


def find_roles(table: TableProfile, given: Sequence[str] = ()) -> ColumnRoles:
    """Find the roles of a file's columns; `given` names text and label, or both texts and the label.

    Raises DataError if the columns cannot be a task, UsageError if `given` names none of them.
    """
    place, columns = str(table.path), table.columns
    shown = safe(", ".join(columns), 300)
    for name in given:
        if name not in columns:
            message = f"{place} has no column {quote(name)}; columns are: {shown}{did_you_mean(name, list(columns))}"
            raise UsageError("--columns", message)
    if given:
        text, label = columns[given[0]], columns[given[-1]]
        return ColumnRoles(text, columns[given[1]] if len(given) == 3 else None, label, "as given", "as given")
    if len(columns) < 2:
        message = f"one column, {shown}, but a task needs a text and a label"
        raise DataError(place, f"{message}; columns are separated by tab, comma or semicolon")
    text, pair, why_text = _texts(table, place)
    rest = [column for column in columns.values() if column not in (text, pair)]
    label, why_label = _label(rest, table, place)
    ignored = tuple(column.name for column in rest if column is not label)
    return ColumnRoles(text, pair, label, why_text, why_label, ignored)


def _rank(name: str, known: Sequence[str]) -> int:
    return known.index(name) if name in known else len(known)


def _plain(name: str) -> str:
    """Return a column's name in one spelling: `Sentence 1`, `sentence-1` and `sentence_1` are one name."""
    return re.sub(r"[ _-]+", "_", name.strip().lower())


def _can_be_text(column: Column, rows: int) -> bool:
    """Return whether a column holds words, and more than a few different values."""
    if column.number or IDS.match(_plain(column.name)):
        return False
    named = _plain(column.name).rstrip("_ab12") in TEXTS
    many = column.values is None or len(column.values) > min(100, rows // 4)
    return column.filled > 0 and (named or (many and column.mean_words >= 1.5))


def _texts(table: TableProfile, place: str) -> tuple[Column, Column | None, str]:
    by_name = {_plain(name): column for name, column in table.columns.items()}
    likely = [column for column in table.columns.values() if _can_be_text(column, table.rows)]
    for one in by_name:
        for ending, other in ENDINGS:
            partner = by_name.get(one.removesuffix(ending) + other) if one.endswith(ending) else None
            if partner is not None and by_name[one] in likely and partner in likely:
                return by_name[one], partner, "two columns of one name"
    for one, other in PAIRS:
        if by_name.get(one) in likely and by_name.get(other) in likely:
            return by_name[one], by_name[other], "names that go together"
    if not likely:
        shown = ", ".join(f"{safe(c.name, 30)} ({c.mean_words:.1f} words a row)" for c in table.columns.values())
        raise DataError(place, f"no column looks like text: {safe(shown, 300)}; name them with --columns")
    named = sorted(likely, key=lambda c: (_rank(_plain(c.name), TEXTS), -c.mean_characters))
    main = [column for column in likely if _plain(column.name) not in SIDE and not _label_name(column)]
    if len(main) == 2:
        return main[0], main[1], "two columns of text"
    best = next((column for column in named if column in main), named[0])
    why = f"{best.mean_words:.0f} words a row"
    return best, None, why if len(likely) == 1 else f"{why}; --columns takes another or a pair"


def _label_name(column: Column) -> bool:
    name = _plain(column.name)
    return name in LABELS or name.endswith(("_label", "_class"))


def _label(rest: Sequence[Column], table: TableProfile, place: str) -> tuple[Column, str]:
    fitting = [column for column in rest if _can_be_label(column, table.rows)]
    named = [column for column in fitting if _label_name(column) or SCORES.search(_plain(column.name))]
    if named:
        best = min(named, key=lambda column: _rank(_plain(column.name), LABELS))
        return best, "by its name"
    fitting = [column for column in fitting if not IDS.match(_plain(column.name))]
    if not fitting:
        shown = ", ".join(safe(column.name, 30) for column in rest) or "none"
        message = f"no column looks like a label (beside the text: {shown})"
        raise DataError(place, f"{message}; a label is one of at most {MAX_CLASSES} classes, or a number")
    best = min(reversed(fitting), key=lambda column: column.values is None)
    also = f"; so might {safe(fitting[0].name, 30)} (--columns)" if len(fitting) > 1 and fitting[0] is not best else ""
    return best, f"few different values{also}" if best.values is not None else f"numbers{also}"


def _can_be_label(column: Column, rows: int) -> bool:
    if not column.filled:
        return False
    if column.number and (not column.whole or SCORES.search(_plain(column.name))):
        return True
    if column.values is None:
        return False
    few = len(column.values) <= MAX_CLASSES and (len(column.values) <= rows / 2 or _label_name(column))
    return few and column.mean_characters <= 60
