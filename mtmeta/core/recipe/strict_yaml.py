"""Strict YAML: a recipe's text into plain Python data, with the place every value and key came from.

PyYAML's scanner and parser give the events; none of its constructors or resolvers is used, so `1e-5` is a number,
`no` is a string, a key given twice is an error, and no tag can build an object. Plain scalars follow the core schema
of YAML 1.2 (decimal numbers only). Whatever the text, the outcome is a value, a RecipeError or Problems.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from mtmeta.core.errors import RecipeError, raise_all
from mtmeta.core.storage.reading import UnfitFile, open_regular
from mtmeta.core.wording import did_you_mean, quote, safe

__all__ = ["NUMBER", "Document", "KeyPath", "parse", "parse_value", "read_file"]

KeyPath = tuple[str | int, ...]  # e.g. ("tasks", "sst", "batch_size")

MAX_BYTES = 1 << 20
MAX_DEPTH = 32
MAX_NUMBER = 640  # characters; as many as int() reads whatever limit the interpreter is given
MAX_NAME = 500  # characters of a file name in a message; more than of other tokens, so that paths stay whole

_CONSTANTS = {"": None, "~": None, "null": None, "true": True, "True": True, "false": False, "False": False}
NUMBER = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?(\.inf|\.Inf|\.INF)|\.nan|\.NaN|\.NAN")
_LINE_BREAK = re.compile("\r\n|[\r\n\x85\u2028\u2029]")  # PyYAML's line breaks
_UNUSABLE = re.compile("[\0\ud800-\udfff]")  # an escape can bring them, no path or JSON file can hold them
_NO_ANCHORS = "YAML anchors and aliases are not allowed in recipes"
_NO_DIRECTIVES = "YAML directives are not allowed in recipes"
_BAD_CHARACTER = "character U+{:04X} is not allowed; remove it"
_NOT_ONE_VALUE = "is not one value; put it in quotes, or write [a, b] or {key: value}"

_Node = yaml.ScalarEvent | yaml.CollectionStartEvent


@dataclass(frozen=True)
class Document:
    """One parsed recipe: its data, and the 1-based (line, column) of each value and of each mapping key.

    Both tables are indexed by the path of the entry. List items count from 0 and stand in `values` only; the
    top-level mapping itself stands in neither.
    """

    name: str
    data: dict[str, Any]
    values: dict[KeyPath, tuple[int, int]]
    keys: dict[KeyPath, tuple[int, int]]

    def place(self, path: KeyPath, *, key: bool = False) -> str:
        """Return `name:line:col` of the value at `path` or its key, else of the next one around it, else the name."""
        for end in range(len(path), 0, -1):
            for table in (self.keys, self.values) if key else (self.values, self.keys):
                if spot := table.get(path[:end]):
                    return f"{self.name}:{spot[0]}:{spot[1]}"
        return self.name


def read_file(path: str | os.PathLike[str], *, links: bool = True) -> Document:
    """Read the recipe in the file `path`. Only a regular file of at most 1 MiB of UTF-8 is read, by a symbolic link
    only where `links` says so."""
    shown = os.fspath(path)
    name = safe(shown, MAX_NAME) or "''"
    try:
        with open_regular(shown, links=links) as file:
            raw = file.read(MAX_BYTES + 1)
    except UnfitFile as error:
        if error.found == "folder":
            raise RecipeError(name.rstrip("/") + "/", "is a directory, expected a YAML file") from None
        raise RecipeError(name, "not a regular file; give the path of a recipe file") from None
    except (FileNotFoundError, NotADirectoryError):
        beside = sorted(entry.name for entry in Path(shown).parent.glob("*"))  # none where there is no such folder
        hint = did_you_mean(Path(shown).name, beside) or "; give the path of a recipe file"
        raise RecipeError(name, f"no such file{hint}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL or half of a surrogate pair in the path
        reason = (isinstance(error, OSError) and error.strerror) or "not a valid path"
        raise RecipeError(name, f"cannot be read ({safe(reason)}); give a readable recipe file") from None
    if len(raw) > MAX_BYTES:  # before decoding, which would meet a character cut in half
        raise RecipeError(name, "larger than 1 MiB")
    try:
        return parse(raw.decode("utf-8"), shown)
    except UnicodeDecodeError as error:
        line = len((raw[: error.start] + b".").splitlines())
        raise RecipeError(name, f"byte 0x{raw[error.start]:02x} at line {line} is not UTF-8") from None


def parse(text: str, name: str) -> Document:
    """Parse a recipe, called `name` in messages. Raises RecipeError, or Problems where keys are given twice."""
    reader = _YamlReader(text.removeprefix("\ufeff"), name, whole=True)
    return Document(reader.name, reader.read(), reader.values, reader.keys)


def parse_value(text: str, place: str) -> Any:
    """Parse one value as typed after `--set key=`; no text is null. Errors carry `place` as it stands."""
    return _YamlReader(text, place, whole=False).read()


class _YamlReader:
    """One pass over the events, with a stack of its own, so that hostile nesting cannot overflow Python's."""

    def __init__(self, text: str, name: str, *, whole: bool) -> None:
        self.text, self.name, self.whole = text, safe(name, MAX_NAME), whole  # whole: a recipe, not one value
        self.values: dict[KeyPath, tuple[int, int]] = {}
        self.keys: dict[KeyPath, tuple[int, int]] = {}
        self.stack: list[tuple[Any, KeyPath]] = []  # the lists and mappings still open, and their paths
        self.problems: list[RecipeError] = []
        self.root: Any = None
        self.key: str | None = None  # a key of the innermost mapping that waits for its value
        self.documents = 0
        self.spot = (1, 1)  # line and column where the event at hand starts
        self.span = (0, 0)  # the part of `text` that the outermost value covers

    def read(self) -> Any:
        """Return the recipe or the value. Raises RecipeError, or Problems."""
        try:
            for event in self.events():
                self.take(event)
            if self.whole and self.root is None:
                raise RecipeError(self.name, "empty recipe; start from one in recipes/")
            if not self.whole and (self.text[: self.span[0]] + self.text[self.span[1] :]).strip():
                raise self.error(f"{quote(self.text)} {_NOT_ONE_VALUE}")  # a comment or '---' would vanish in silence
        except RecipeError as error:
            self.problems.append(error)
        raise_all(self.problems)
        return self.root

    def error(self, message: str, spot: tuple[int, int] | None = None) -> RecipeError:
        """Return an error at `spot`, by default at the event at hand."""
        line, column = spot or self.spot
        return RecipeError(f"{self.name}:{line}:{column}" if self.whole else self.name, message)

    def events(self) -> Iterator[yaml.Event]:
        """Yield PyYAML's events; whatever it would refuse or stumble over becomes a RecipeError of one line."""
        if len(self.text.encode("utf-8", "surrogatepass")) > MAX_BYTES:
            raise RecipeError(self.name, "larger than 1 MiB")
        if bad := yaml.SafeLoader.NON_PRINTABLE.search(self.text):
            lines = _LINE_BREAK.split(self.text[: bad.start()])
            if bad[0] == "\0":
                raise RecipeError(self.name, f"NUL byte at line {len(lines)}")
            raise self.error(_BAD_CHARACTER.format(ord(bad[0])), (len(lines), len(lines[-1]) + 1))
        try:
            yield from yaml.parse(self.text, Loader=yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            raise self.syntax_error(error) from None
        except (ValueError, OverflowError):  # PyYAML's own chr() and int() fail on \UFFFFFFFF and %YAML 1.999...
            raise self.error("a \\U escape or %YAML number from here on is out of range; correct it") from None

    def syntax_error(self, error: yaml.MarkedYAMLError) -> RecipeError:
        """Turn PyYAML's error into one line that names the likely cause."""
        mark, start, message = error.problem_mark, error.context_mark, error.problem
        assert mark is not None and message is not None
        line = _LINE_BREAK.split(self.text[mark.index - mark.column :], maxsplit=1)[0]
        indent = line[: len(line) - len(line.lstrip(" \t"))]
        spot, rest = (mark.line + 1, mark.column + 1), line[mark.column :]
        if "\t" in indent and mark.column <= len(indent):
            return self.error("tab used for indentation; use spaces", (spot[0], indent.index("\t") + 1))
        if rest.startswith("\t"):
            return self.error("tab outside quotes; use spaces", spot)
        if line.startswith("%"):
            return self.error(_NO_DIRECTIVES, (spot[0], 1))
        if message.startswith("found undefined tag handle"):
            return self.error(f"YAML tag {quote(rest.split()[0])} is not allowed", spot)
        message += f" {error.context}" if error.context else ""
        message += f" that starts at line {start.line + 1}" if start and start.line != mark.line else ""
        return self.error(f"{safe(message, 200)}; check {'indentation and ' * self.whole}quotes", spot)

    def take(self, event: yaml.Event) -> None:
        """Take in one event: refuse it, or put it in its place."""
        start, end = event.start_mark, event.end_mark
        assert start is not None and end is not None
        self.spot = (start.line + 1, start.column + 1)
        if isinstance(event, yaml.NodeEvent) and event.anchor is not None:  # an alias carries its anchor's name
            raise self.error(_NO_ANCHORS)
        if isinstance(event, yaml.DocumentStartEvent):
            if self.text.startswith("%", start.index):
                raise self.error(_NO_DIRECTIVES)
            if self.documents:
                raise self.error("second '---' document; a recipe is one document")
            self.documents += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            self.stack.pop()
            self.span = (self.span[0], end.index)
        elif isinstance(event, _Node):
            self.span = self.span if self.stack else (start.index, end.index)
            if event.tag is not None:
                raise self.error(f"YAML tag {quote(event.tag.replace('tag:yaml.org,2002:', '!!'))} is not allowed")
            if isinstance(event, yaml.ScalarEvent) and (bad := _UNUSABLE.search(event.value)):
                raise self.error(_BAD_CHARACTER.format(ord(bad[0])))
            if self.key is None and self.stack and isinstance(self.stack[-1][0], dict):
                self.take_key(event, *self.stack[-1])
            else:
                self.take_value(self.value(event))

    def take_key(self, event: _Node, node: dict[str, Any], parent: KeyPath) -> None:
        """Remember a key of the mapping `node`, whose path is `parent`, until its value comes."""
        if not isinstance(event, yaml.ScalarEvent):
            raise self.error("a list or mapping cannot be a key; write a word")
        if event.value == "<<" and not event.style:
            raise self.error(_NO_ANCHORS)
        self.key = event.value  # the source text even of 1 or true, for every name is a string
        path = (*parent, self.key)
        if self.key in node:
            given = f" at line {self.keys[path][0]}" if self.whole else ""
            self.problems.append(self.error(f"key {quote(self.key)} already given{given}"))
        else:
            self.keys[path] = self.spot

    def value(self, event: _Node) -> Any:
        """Return the event's value; a list or mapping starts empty."""
        block = event.style in ("|", ">") if isinstance(event, yaml.ScalarEvent) else not event.flow_style
        if block and not self.whole:
            raise self.error(f"{quote(self.text)} {_NOT_ONE_VALUE}")
        if isinstance(event, yaml.ScalarEvent):
            return event.value if event.style else self.plain(event.value)
        if len(self.stack) == MAX_DEPTH:
            raise RecipeError(self.name, "nested deeper than {} levels at {}:{}".format(MAX_DEPTH, *self.spot))
        return {} if isinstance(event, yaml.MappingStartEvent) else []

    def plain(self, text: str) -> Any:
        """Return an unquoted scalar as constant, number or text."""
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _NOT_FINITE.fullmatch(text):
            return float(text.replace(".", ""))
        if not NUMBER.fullmatch(text):
            return text
        if len(text) > MAX_NUMBER or math.isinf(number := float(text)):  # else 1e999 would pass for infinity
            raise self.error(f"number {quote(text)} is too large; write a smaller one")
        return int(text) if text.lstrip("+-").isdigit() else number

    def take_value(self, value: Any) -> None:
        """Put the value in its place; a list or mapping stays open on the stack."""
        path: KeyPath = ()
        if self.stack:
            node, parent = self.stack[-1]
            path = (*parent, len(node) if self.key is None else self.key)
            if self.key is None:
                node.append(value)
            else:
                node[self.key], self.key = value, None
            self.values[path] = self.spot
        elif self.whole and not isinstance(value, dict | None):
            raise self.error(f"expected a mapping, found {'a list' if value == [] else quote(value)}")
        else:
            self.root = value
        if isinstance(value, dict | list):
            self.stack.append((value, path))
