"""The words and sentence templates of the sample data, and the rule that says which task and split may use which word.

Every word list has five columns, separated by a bar::

    both | home | away | dev | test

`home` is the task that the list mainly serves; the other tasks that borrow it are `away`. `both` words are in the
train sets of home and away. A `home` word is in the train set of the home task only, so the other tasks meet it first
in their dev or test set; an `away` word is the mirror case. `dev` and `test` words are in no train set at all. Some are
built from stems and affixes that other words teach; most are synonyms, antonyms or hypernyms of known words, which only
one who knows the language can place.

A plus sign marks where a word is made of pieces ("joy+less"), an underscore stands for a space, and a slash separates
names for the same thing: synonyms, or a kind and its genus ("violin/instrument").
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class Group(NamedTuple):
    """One word list, in its five columns; those left out at the end are empty."""

    both: tuple[str, ...]
    home: tuple[str, ...] = ()
    away: tuple[str, ...] = ()
    dev: tuple[str, ...] = ()
    test: tuple[str, ...] = ()

    @classmethod
    def parse(cls, row: str) -> Group:
        """Read one row of columns."""
        return cls(*(tuple(column.split()) for column in row.split("|")))

    def lent(self, home: bool, split: str) -> tuple[str, ...]:
        """Return the words that a dev or test set takes from the train sets of other tasks: every second word each."""
        lent = self.away if home else self.home
        return lent[0::2] if split == "dev" else lent[1::2]


@cache
def _read(name: str) -> dict[str, Any]:
    tables: dict[str, Any] = yaml.safe_load(Path(__file__).with_name(name).read_text(encoding="utf-8"))
    return tables


@cache
def words(name: str) -> Group:
    """Return the word list of a name."""
    return Group.parse(_read("lexicon.yaml")["groups"][name])


@cache
def actions() -> list[list[Group]]:
    """Return the verbs of each action and of its contrary, in pairs."""
    return [[Group.parse(row) for row in pair] for pair in _read("lexicon.yaml")["actions"]]


def templates() -> dict[str, dict[str, list[str]]]:
    """Return the sentence templates by kind and split."""
    return _read("templates.yaml")
