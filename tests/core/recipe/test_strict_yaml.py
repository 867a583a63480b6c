"""Strict YAML: the values that are read, their places, and the one line each refusal gives."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtmeta.core.errors import Problems, RecipeError
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.strict_yaml import Document, parse, parse_value, read_file

RECIPE = """\
# Reptile on three tasks.
---
name: "three tasks"
backbone: bert-base-uncased

inner:
  algorithm: reptile
  steps: 5
  learning_rate: 2e-5   # Adam
  betas: [0.9, 0.999]

tasks:
  - name: sst
    data: {train: data/sst.tsv, dev: 'no'}
  - name: rte
    shuffle: no
    note: |
      two lines,
      kept
    empty:
"""
NO_ANCHORS = "YAML anchors and aliases are not allowed in recipes"
NO_DIRECTIVES = "YAML directives are not allowed in recipes"
BRACKETS = "is not one value; put it in quotes, or write [a, b] or {key: value}"


def refusal(text: str) -> str:
    with pytest.raises(RecipeError) as caught:
        parse(text, "r.yaml")
    return str(caught.value)


def file_refusal(path: str | os.PathLike[str]) -> str:
    with pytest.raises(RecipeError) as caught:
        read_file(path)
    assert len(caught.value.lines()) == 1
    return str(caught.value)


def short(value: object) -> str:
    """A test id; some texts are a mebibyte long."""
    return ascii(value)[:40]


def same(left: Any, right: Any) -> bool:
    """Equal in type too; nan equals nan, and 0.0 differs from -0.0."""
    return type(left) is type(right) and repr(left) == repr(right)


def test_public_names() -> None:
    assert strict_yaml.__all__ == ["NUMBER", "Document", "KeyPath", "parse", "parse_value", "read_file"]


# ---------------------------------------------------------------- values


def test_recipe_data() -> None:
    assert parse(RECIPE, "r.yaml").data == {
        "name": "three tasks",
        "backbone": "bert-base-uncased",
        "inner": {"algorithm": "reptile", "steps": 5, "learning_rate": 2e-5, "betas": [0.9, 0.999]},
        "tasks": [
            {"name": "sst", "data": {"train": "data/sst.tsv", "dev": "no"}},
            {"name": "rte", "shuffle": "no", "note": "two lines,\nkept\n", "empty": None},
        ],
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("Null", "Null"),
        ("true", True),
        ("True", True),
        ("TRUE", "TRUE"),
        ("false", False),
        ("False", False),
        ("no", "no"),
        ("yes", "yes"),
        ("on", "on"),
        ("off", "off"),
        ("y", "y"),
        ("0", 0),
        ("-7", -7),
        ("+7", 7),
        ("007", 7),
        ("10_000", "10_000"),
        ("0o17", "0o17"),
        ("0x1F", "0x1F"),
        ("12:30:45", "12:30:45"),
        ("2026-01-31", "2026-01-31"),
        ("\u0663", "\u0663"),  # an Arabic digit
        ("9" * 308, int("9" * 308)),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.0", -0.0),
        ("1e-5", 1e-5),
        ("2E+5", 2e5),
        ("-.5e3", -500.0),
        ("1e-5x", "1e-5x"),
        ("1e", "1e"),
        (".", "."),
        (".e3", ".e3"),
        ("1.2.3", "1.2.3"),
        (".inf", math.inf),
        ("+.Inf", math.inf),
        ("-.INF", -math.inf),
        (".nan", math.nan),
        (".NaN", math.nan),
        ("nan", "nan"),
        ("inf", "inf"),
        ("-.nan", "-.nan"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("''", ""),
        ('"a\\tb"', "a\tb"),
        ("two words", "two words"),
        ("a#b", "a#b"),
        ("\U0001f916", "\U0001f916"),
        ("[]", []),
        ("[1, no, [2.5, ~], 'x']", [1, "no", [2.5, None], "x"]),
        ("{a: 1, b: {c: [true]}}", {"a": 1, "b": {"c": [True]}}),
        ("[a: 1]", [{"a": 1}]),
        ("{a, b}", {"a": None, "b": None}),
    ],
    ids=short,
)
def test_values_are_the_same_in_a_recipe_and_on_the_command_line(text: str, value: Any) -> None:
    assert same(parse(f"key: {text}\n", "r.yaml").data["key"], value)
    assert same(parse_value(text, "--set key"), value)
    assert same(parse_value(f"  {text} ", "--set key"), value)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("1: x", "1"),
        ("1e3: x", "1e3"),
        ("true: x", "true"),
        ("~: x", "~"),
        ("?\n: x", ""),
        ("'no': x", "no"),
        ("? a\n: x", "a"),
    ],
)
def test_keys_keep_their_source_text(text: str, key: str) -> None:
    assert parse(text, "r.yaml").data == {key: "x"}


@pytest.mark.parametrize(
    ("text", "data"),
    [
        ("\ufeffa: 1\n", {"a": 1}),
        ("a: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("{}", {}),
        ("--- {a: 1}\n...\n# the end\n", {"a": 1}),
        ("a: |\n  \tkept\n", {"a": "\tkept\n"}),
        ("a: 'one\n\ttwo'\n", {"a": "one two"}),
        ("'<<': 1\n", {"<<": 1}),
        ("a: <<\n", {"a": "<<"}),
        ("a: >-\n  100%\n  &c\n", {"a": "100% &c"}),
    ],
)
def test_accepted(text: str, data: dict[str, Any]) -> None:
    assert parse(text, "r.yaml").data == data


@settings(deadline=None)
@given(st.integers(min_value=-(10**308), max_value=10**308))
def test_integers_round_trip(number: int) -> None:
    assert same(parse_value(str(number), "--set n"), number)


@settings(deadline=None)
@given(st.floats(allow_nan=False, allow_infinity=False))
def test_floats_round_trip(number: float) -> None:
    assert same(parse_value(repr(number), "--set x"), number)


# ---------------------------------------------------------------- places


@pytest.mark.parametrize(
    ("path", "value", "key"),
    [
        (("name",), "3:7", "3:1"),
        (("inner",), "7:3", "6:1"),
        (("inner", "learning_rate"), "9:18", "9:3"),
        (("inner", "betas"), "10:10", "10:3"),
        (("inner", "betas", 1), "10:16", None),
        (("tasks",), "13:3", "12:1"),
        (("tasks", 0), "13:5", None),
        (("tasks", 0, "name"), "13:11", "13:5"),
        (("tasks", 0, "data", "dev"), "14:38", "14:33"),
        (("tasks", 1, "note"), "17:11", "17:5"),
        (("tasks", 1, "empty"), "20:11", "20:5"),
    ],
)
def test_places(path: tuple[str | int, ...], value: str, key: str | None) -> None:
    document = parse(RECIPE, "r.yaml")
    assert document.place(path) == f"r.yaml:{value}"
    assert document.place(path, key=True) == f"r.yaml:{key or value}"  # an item of a list has no key
    assert "{}:{}".format(*document.values[path]) == value
    assert (path in document.keys) == (key is not None)


@pytest.mark.parametrize(
    ("path", "key", "place"),
    [
        (("inner", "lr"), False, "r.yaml:7:3"),
        (("inner", "lr", "x"), True, "r.yaml:6:1"),
        (("tasks", 7, "name"), False, "r.yaml:13:3"),
        (("outer",), False, "r.yaml"),
        ((), True, "r.yaml"),
    ],
)
def test_place_falls_back_to_what_encloses(path: tuple[str | int, ...], key: bool, place: str) -> None:
    assert parse(RECIPE, "r.yaml").place(path, key=key) == place


def test_every_value_and_key_has_a_place() -> None:
    document = parse(RECIPE, "r.yaml")
    todo: list[tuple[tuple[str | int, ...], Any]] = [((), document.data)]
    values, keys = set(), set()
    while todo:
        path, node = todo.pop()
        entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
        for step, child in entries:
            values.add((*path, step))
            if isinstance(node, dict):
                keys.add((*path, step))
            todo.append(((*path, step), child))
    assert (set(document.values), set(document.keys)) == (values, keys)


def test_a_byte_order_mark_moves_no_place() -> None:
    assert parse("\ufeffa: 1\n", "r.yaml").place(("a",)) == "r.yaml:1:4"


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # nothing, or not a mapping
        ("", "r.yaml: empty recipe; start from one in recipes/"),
        (" \n# only a comment\n", "r.yaml: empty recipe; start from one in recipes/"),
        ("---\n...\n", "r.yaml: empty recipe; start from one in recipes/"),
        ("null\n", "r.yaml: empty recipe; start from one in recipes/"),
        ("- a: 1\n", "r.yaml:1:1: expected a mapping, found a list"),
        ("\n  [a]\n", "r.yaml:2:3: expected a mapping, found a list"),
        ("just text\n", "r.yaml:1:1: expected a mapping, found 'just text'"),
        ("--- 1.5\n", "r.yaml:1:5: expected a mapping, found 1.5"),
        ("true\n", "r.yaml:1:1: expected a mapping, found true"),
        ("''\n", "r.yaml:1:1: expected a mapping, found ''"),
        # keys
        ("a: 1\n\n\nlr: 2\nb:\n  lr: 3\n  lr: 4\n", "r.yaml:7:3: key 'lr' already given at line 6"),
        ("1: a\n'1': b\n", "r.yaml:2:1: key '1' already given at line 1"),
        ("a: {x: 1,\n  y: 2, x: 3}\n", "r.yaml:2:9: key 'x' already given at line 1"),
        ("a: 1\n[b, c]: 2\n", "r.yaml:2:1: a list or mapping cannot be a key; write a word"),
        ("a: 1\n? {b: c}\n: 2\n", "r.yaml:2:3: a list or mapping cannot be a key; write a word"),
        # anchors, aliases, merge keys
        ("x:\n  y: 1\na: &x 1\n", f"r.yaml:3:4: {NO_ANCHORS}"),
        ("a: &x\n  b: 1\n", f"r.yaml:1:4: {NO_ANCHORS}"),
        ("&k a: 1\n", f"r.yaml:1:1: {NO_ANCHORS}"),
        ("a: *x\n", f"r.yaml:1:4: {NO_ANCHORS}"),
        ("a: &x !!int 1\n", f"r.yaml:1:4: {NO_ANCHORS}"),
        ("a:\n  <<: {b: 1}\n", f"r.yaml:2:3: {NO_ANCHORS}"),
        # tags
        (
            "x: 1\ny: 2\na: !!python/object/apply:os.system [id]\n",
            "r.yaml:3:4: YAML tag '!!python/object/apply:os.system' is not allowed",
        ),
        ("a: !!int 1\n", "r.yaml:1:4: YAML tag '!!int' is not allowed"),
        ("a: !<tag:yaml.org,2002:str> 1\n", "r.yaml:1:4: YAML tag '!!str' is not allowed"),
        ("a: !env HOME\n", "r.yaml:1:4: YAML tag '!env' is not allowed"),
        ("a: ! 1\n", "r.yaml:1:4: YAML tag '!' is not allowed"),
        ("a: !e!x 1\n", "r.yaml:1:4: YAML tag '!e!x' is not allowed"),
        ("!!map\na: 1\n", "r.yaml:1:1: YAML tag '!!map' is not allowed"),
        # documents and directives
        ("a: 1\n---\nb: 2\n", "r.yaml:2:1: second '---' document; a recipe is one document"),
        ("---\n---\na: 1\n", "r.yaml:2:1: second '---' document; a recipe is one document"),
        ("a: 1\n...\n---\n", "r.yaml:3:1: second '---' document; a recipe is one document"),
        ("%YAML 1.1\n---\na: 1\n", f"r.yaml:1:1: {NO_DIRECTIVES}"),
        ("# x\n%TAG ! tag:x,1:\n---\na: !y 1\n", f"r.yaml:2:1: {NO_DIRECTIVES}"),
        ("%FOO bar\n---\na: 1\n", f"r.yaml:1:1: {NO_DIRECTIVES}"),
        ("%YAML 1." + "9" * 5000, "r.yaml:1:1: a \\U escape or %YAML number from here on is out of range; correct it"),
        ("%YAML 2.0\n---\na: 1\n", f"r.yaml:1:1: {NO_DIRECTIVES}"),
        ("%YAML x\n---\na: 1\n", f"r.yaml:1:1: {NO_DIRECTIVES}"),
        # size and depth
        ("a: " + "[" * 31 + "]" * 31 + "\nb: " + "[" * 32, "r.yaml: nested deeper than 32 levels at 2:35"),
        ("[" * 100_000, "r.yaml:1:1: expected a mapping, found a list"),
        ("a: " + "[" * 100_000, "r.yaml: nested deeper than 32 levels at 1:35"),
        ("a: " + "{b: " * 100_000, "r.yaml: nested deeper than 32 levels at 1:128"),
        ("a:\n" + "- " * 100_000, "r.yaml: nested deeper than 32 levels at 2:63"),
        ("? " * 100_000, "r.yaml:1:3: a list or mapping cannot be a key; write a word"),
        ("# " + "x" * (1 << 20), "r.yaml: larger than 1 MiB"),
        ("# " + "\u20ac" * 350_000, "r.yaml: larger than 1 MiB"),
        # tabs
        ("a: 1\nb:\n\tc: 2\n", "r.yaml:3:1: tab used for indentation; use spaces"),
        ("a: 1\nb:\n  c: 2\n \t d: 2\n", "r.yaml:4:2: tab used for indentation; use spaces"),
        ("a: 1\nb\n\tc: 2\n", "r.yaml:3:1: tab used for indentation; use spaces"),
        ("a: 1\n\tb: 2\n", "r.yaml:2:1: tab used for indentation; use spaces"),
        ("a: [1,\n\t2]\n", "r.yaml:2:1: tab used for indentation; use spaces"),
        ("a:\t1\n", "r.yaml:1:3: tab outside quotes; use spaces"),
        ("a: 1\t# x\n", "r.yaml:1:5: tab outside quotes; use spaces"),
        # characters and numbers
        ("a: 1\nb: \0\n", "r.yaml: NUL byte at line 2"),
        ("a: 1\r\nb: x\x1b[31m\n", "r.yaml:2:5: character U+001B is not allowed; remove it"),
        ("a: \ud800\n", "r.yaml:1:4: character U+D800 is not allowed; remove it"),
        ('a: "\\0"\n', "r.yaml:1:4: character U+0000 is not allowed; remove it"),
        ('"\\ud83e": 1\n', "r.yaml:1:1: character U+D83E is not allowed; remove it"),
        (
            'a: 1\nb: "\\UFFFFFFFF"\n',
            "r.yaml:2:1: a \\U escape or %YAML number from here on is out of range; correct it",
        ),
        ("a: " + "9" * 5000, f"r.yaml:1:4: number '{'9' * 77}...' is too large; write a smaller one"),
        ("a: 1e999\n", "r.yaml:1:4: number '1e999' is too large; write a smaller one"),
        ("a: -" + "0" * 5000 + "1\n", f"r.yaml:1:4: number '-{'0' * 76}...' is too large; write a smaller one"),
        # other syntax
        ("a: b: c\n", "r.yaml:1:5: mapping values are not allowed here; check indentation and quotes"),
        ("a: 1\n b: 2\n", "r.yaml:2:3: mapping values are not allowed here; check indentation and quotes"),
        (
            "a: [1, 2\nb: 3\n",
            "r.yaml:2:2: expected ',' or ']', but got ':' while parsing a flow sequence that starts at line 1; "
            "check indentation and quotes",
        ),
        (
            "a: @b\n",
            "r.yaml:1:4: found character '@' that cannot start any token while scanning for the next token; "
            "check indentation and quotes",
        ),
        (
            "a: 'open\nb: 1\n",
            "r.yaml:3:1: found unexpected end of stream while scanning a quoted scalar that starts at line 1; "
            "check indentation and quotes",
        ),
        (
            "a: 1\nword\n",
            "r.yaml:3:1: could not find expected ':' while scanning a simple key that starts at line 2; "
            "check indentation and quotes",
        ),
    ],
    ids=short,
)
def test_refusals(text: str, message: str) -> None:
    assert refusal(text) == message


def test_depth_of_32_is_accepted() -> None:
    parse("a: " + "[" * 31 + "]" * 31, "r.yaml")
    assert "deeper" in refusal("a: " + "[" * 32 + "]" * 32)


def test_one_mebibyte_is_accepted() -> None:
    assert parse("a: 1 #" + "x" * ((1 << 20) - 6), "r.yaml").data == {"a": 1}


def test_duplicate_keys_are_reported_together() -> None:
    with pytest.raises(Problems) as caught:
        parse("lr: 1\nlr: 2\na:\n  b: 1\n  b: 2\nlr: 3\n", "r.yaml")
    assert caught.value.lines() == [
        "error: r.yaml:2:1: key 'lr' already given at line 1",
        "error: r.yaml:5:3: key 'b' already given at line 4",
        "error: r.yaml:6:1: key 'lr' already given at line 1",
    ]


def test_a_duplicate_key_and_the_error_that_ends_the_reading_are_reported_together() -> None:
    with pytest.raises(Problems) as caught:
        parse("lr: 1\nlr: 2\na: *b\n", "r.yaml")
    assert caught.value.lines() == [
        "error: r.yaml:2:1: key 'lr' already given at line 1",
        f"error: r.yaml:3:4: {NO_ANCHORS}",
    ]


def test_user_text_is_escaped_and_cut() -> None:
    key = "\u202e" + "k" * 100
    message = refusal(f'"{key}": 1\n"{key}": 2\n')
    assert message == f"r.yaml:2:1: key '\\u202e{'k' * 71}...' already given at line 1"
    with pytest.raises(RecipeError, match=r"^a\\x1bb\.yaml: empty recipe"):
        parse("", "a\x1bb.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{lr: 1, lr: 2}", "key 'lr' already given"),
        ("&a 1", NO_ANCHORS),
        ("*a", NO_ANCHORS),
        ("{<<: {}}", NO_ANCHORS),
        ("!!python/name:os.system", "YAML tag '!!python/name:os.system' is not allowed"),
        ("9" * 5000, f"number '{'9' * 77}...' is too large; write a smaller one"),
        ("[" * 33, "nested deeper than 32 levels at 1:33"),
        ("a\0b", "NUL byte at line 1"),
        ("a\x07b", "character U+0007 is not allowed; remove it"),
        ("%a", NO_DIRECTIVES),
        ("1\n---\n2", "second '---' document; a recipe is one document"),
        ("\t1", "tab used for indentation; use spaces"),
        ("[1, 2", "expected ',' or ']', but got '<stream end>' while parsing a flow sequence; check quotes"),
        ("@home", "found character '@' that cannot start any token while scanning for the next token; check quotes"),
        # values that YAML would read otherwise than the user typed them
        ("#3", f"'#3' {BRACKETS}"),
        ("a #b", f"'a #b' {BRACKETS}"),
        ("---", f"'---' {BRACKETS}"),
        ("|", f"'|' {BRACKETS}"),
        ("-", f"'-' {BRACKETS}"),
        ("- 1", f"'- 1' {BRACKETS}"),
        ("a: 1", f"'a: 1' {BRACKETS}"),
    ],
    ids=short,
)
def test_value_refusals_carry_the_place_alone(text: str, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        parse_value(text, "--set inner.lr")
    assert (caught.value.place, caught.value.message) == ("--set inner.lr", message)


# ---------------------------------------------------------------- files


def test_read_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(RECIPE, encoding="utf-8")
    document = read_file(path)
    assert document == parse(RECIPE, str(path))
    assert document == read_file(str(path))
    assert document.place(("name",)) == f"{path}:3:7"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"a: 1\nb: \xff\n", "byte 0xff at line 2 is not UTF-8"),
        (b"a: caf\xe9\n", "byte 0xe9 at line 1 is not UTF-8"),
        (b"a: 1\r\n\r\nb: \xc3", "byte 0xc3 at line 3 is not UTF-8"),
        ("a: 1\n".encode("utf-16"), "byte 0xff at line 1 is not UTF-8"),
        (b"\xfe\xff\0a\0:", "byte 0xfe at line 1 is not UTF-8"),
        ("a: 1\n".encode("utf-16-le"), "NUL byte at line 1"),
        (b"a: 1\nb: \0\n", "NUL byte at line 2"),
        (b"", "empty recipe; start from one in recipes/"),
        (b"#" * ((1 << 20) + 1), "larger than 1 MiB"),
    ],
    ids=short,
)
def test_bad_bytes(tmp_path: Path, raw: bytes, message: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_bytes(raw)
    assert file_refusal(path) == f"{path}: {message}"


def test_a_utf8_byte_order_mark_is_accepted(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbfa: 1\n")
    assert read_file(tmp_path / "r.yaml").data == {"a": 1}


def test_paths_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text("a: 1\n")
    Path("recipes").mkdir()
    Path("recipes/joint.yaml").write_text("a: 1\n")
    fix = "give the path of a recipe file"
    assert file_refusal("recipe.yml") == "recipe.yml: no such file; did you mean 'recipe.yaml'?"
    assert file_refusal("recipes/jiont.yaml") == "recipes/jiont.yaml: no such file; did you mean 'joint.yaml'?"
    assert file_refusal("zzz") == f"zzz: no such file; {fix}"
    assert file_refusal("nowhere/r.yaml") == f"nowhere/r.yaml: no such file; {fix}"
    assert file_refusal("recipe.yaml/r.yaml") == f"recipe.yaml/r.yaml: no such file; {fix}"
    assert file_refusal("") == f"'': no such file; {fix}"
    assert file_refusal("recipes/") == "recipes/: is a directory, expected a YAML file"
    assert file_refusal("recipes") == "recipes/: is a directory, expected a YAML file"
    assert file_refusal("a\0b") == "a\\x00b: cannot be read (not a valid path); give a readable recipe file"
    assert "cannot be read (File name too long)" in file_refusal("r" * 5000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs POSIX special files")
def test_special_files_do_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/zero")):
        assert file_refusal(path) == f"{path}: not a regular file; give the path of a recipe file"


def test_a_file_without_read_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "r.yaml"
    path.write_text("a: 1\n")
    monkeypatch.setattr("builtins.open", deny)  # chmod does not stop a superuser
    message = file_refusal(path)
    assert message == f"{path}: cannot be read (Permission denied); give a readable recipe file"


# ---------------------------------------------------------------- any text


def outcome(text: str) -> None:
    """The oracle: a value or the project's own errors, each of one printable line."""
    for call in (parse, parse_value):
        try:
            result = call(text, "r.yaml")
        except (RecipeError, Problems) as error:
            assert all(line.isprintable() and len(line) <= 1000 for line in error.lines())
        else:
            assert call is parse_value or isinstance(result, Document)


FRAGMENTS = st.sampled_from(
    [
        *"\t\n\r -:?[]{},#|>'\"\\%!&*@`~\0\ufeff\u2028\x85\ud800",
        *("- ", ": ", "? ", ">-", "---", "...", "!!", "!<", "&a ", "*a ", "<<: ", "a: b\n", "%YAML 1.1\n"),
        *("\\x", "\\UFFFFFFFF", ".inf", "1e999", "9" * 700),
    ]
)


@settings(deadline=None)
@given(st.text())
def test_arbitrary_text(text: str) -> None:
    outcome(text)


@settings(deadline=None)
@given(st.lists(FRAGMENTS, max_size=40).map("".join))
def test_arbitrary_syntax(text: str) -> None:
    outcome(text)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(RECIPE)), st.integers(0, 8), FRAGMENTS), min_size=1, max_size=5))
def test_mutated_recipes(edits: list[tuple[int, int, str]]) -> None:
    text = RECIPE
    for at, cut, fragment in edits:
        text = text[:at] + fragment + text[at + cut :]
    outcome(text)
