"""Words that stand under the options of a part, as help and the schema show them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest

from mtmeta.core.registry.option_fields import _docs_in, clean, field_docs, option_name


@dataclass(frozen=True)
class Base:
    """A part."""

    rate: float = 1.0
    """How fast."""
    silent: int = 0
    loud: int = 1
    """Loud.

    And over two lines.
    """


@dataclass(frozen=True)
class Heir(Base):
    """One with a word of its own, and an option that recipes call otherwise."""

    written: ClassVar[dict[str, str]] = {"start": "from"}
    rate: float = 2.0
    """How fast the heir is."""
    start: float = 0.5
    """Where it begins."""

    @dataclass(frozen=True)
    class Inner:
        """Within another one."""

        depth: int = 2
        """How deep."""


def made_here(loudly: bool) -> type[Any]:
    if loudly:

        @dataclass(frozen=True)
        class Local:
            """Of a function."""

            note: str = "a"
            """Local note."""

    return Local


def made_there() -> type[Any]:
    @dataclass(frozen=True)
    class Local:
        """Of another function, with the same name."""

        note: str = "b"
        """Another note."""

    return Local


def by_inspect(part: type[Any]) -> dict[str, str]:
    """The same, a class at a time, from what `inspect` says is its source."""
    docs: dict[str, str] = {}
    for kind in reversed(part.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        (node,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
        assert isinstance(node, ast.ClassDef)
        for field, after in pairwise(node.body):
            if isinstance(field, ast.AnnAssign) and isinstance(after, ast.Expr):
                assert isinstance(field.target, ast.Name)
                assert isinstance(after.value, ast.Constant)
                docs[option_name(kind, field.target.id)] = clean(str(after.value.value))
    return docs


@pytest.mark.parametrize("make", [lambda: Base, lambda: Heir, lambda: Heir.Inner, lambda: made_here(True), made_there])
def test_they_are_those_of_the_class_itself(make: Callable[[], type[Any]]) -> None:
    assert field_docs(make()) == by_inspect(make()) != {}


def test_an_heir_has_what_its_base_says() -> None:
    assert field_docs(Heir) == {
        "rate": "How fast the heir is.",
        "loud": "Loud.\n\nAnd over two lines.",
        "from": "Where it begins.",
    }


def test_a_file_is_parsed_once_for_all_its_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    _docs_in.cache_clear()
    parsed, parse = [], ast.parse

    def counted(source: str) -> ast.Module:
        parsed.append(source)
        return parse(source)

    monkeypatch.setattr(ast, "parse", counted)
    for _ in range(2):
        for kind in (Base, Heir, Heir.Inner, made_there()):
            assert field_docs(kind)
    assert len(parsed) == 1


def test_a_class_without_source_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    typed = ModuleType("typed")  # as at a prompt: a module of no file
    monkeypatch.setitem(sys.modules, "typed", typed)
    exec("from dataclasses import dataclass\n@dataclass\nclass Part:\n    a: int = 1\n    'A number.'\n", vars(typed))
    assert field_docs(typed.Part) == {}


def made_by_choice(first: bool) -> type[Any]:
    if first:

        @dataclass
        class Chosen:
            size: int = 1
            """Of the first."""
    else:

        @dataclass
        class Chosen:  # type: ignore[no-redef]  # one name for two classes is what is tried
            size: int = 2
            """Of the second."""

    return Chosen


def test_of_two_classes_of_one_name_the_line_tells_which() -> None:
    """From Python 3.13 on a class knows its first line, that of its decorators."""
    kind = made_by_choice(False)
    lines = Path(__file__).read_text().splitlines()
    line = next(number for number, text in enumerate(lines) if "class Chosen:  #" in text)  # the line before, from 1
    kind.__firstlineno__ = line
    assert field_docs(kind) == {"size": "Of the second."}
