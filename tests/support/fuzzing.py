"""What the fuzzers share: bytes near a good file, and the command line in this process with one oracle over it.

Two kinds of input: good bytes with pieces cut out, replaced or put in, and good trees (of a recipe, of JSON) in which
any entry may become anything else, so that what follows the first check is reached as well.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import json
import math
import os
import signal
import stat
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from mtmeta.cli import main
from mtmeta.core.registry.registry import build_registry

CODES = (0, 2, 3, 4, 5, 6, 7)
# pieces of what the readers look for, so that mutations get past the first check
TOKENS = [b"{", b"}", b"[", b"]", b":", b",", b'"', b"'", b"\n", b"\r", b"\t", b"\0", b"\xff", b"-", b"&a", b"*a"]
TOKENS += [b"!!x", b"<<", b"1e-5", b"null", b"true", b"no", b".nan", b"NaN", b"name", b"lr", b"tasks", b"9" * 30]
TOKENS += [b"\xc3\xa9", b"# ", b"|", b"---\n", b"\xef\xbb\xbf", b"\x1b[31m", b"\xe2\x80\xae", b"[" * 40, b"{a: " * 40]
TOKENS += [
    b"\\ud800",
    b"\\u0000",
    b"1e999",
    b"-1",
    b"0",
    b"65536",
    b"18446744073709551616",
    b";",
    b'""',
    b"%YAML 1.1\n",
]
WORDS = ["", "name", "lr", "sst", "para", "x", "é", "\x1b[31m", "\u202e", "[red]", "../../x", "\0", "\ud800", "a" * 200]
WORDS += ["auto", "sample", "1e-5", "no", "-1", "!!python/name:os.system", "*a", "train.tsv", "data", "/", "~", "\n"]
NUMBERS = [0, -1, 1, 2, 3, 65536, 2**31, 2**63, 2**64, 10**30, -(10**30), 0.5, -0.0, 1e308, 1e-320]


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` with up to four pieces cut out, replaced, put in or taken from elsewhere in it."""
    data = good
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        other = draw(st.integers(0, len(data)))
        piece = draw(
            st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6), st.just(data[other : other + 3 * (end - start)]))
        )
        data = data[:start] + piece + data[end:]
    return data[: draw(st.integers(0, len(data)))] if draw(st.integers(0, 9)) == 0 else data


leaves = st.one_of(
    st.none(), st.booleans(), st.sampled_from(NUMBERS), st.sampled_from(WORDS), st.floats(), st.text(max_size=8)
)
trees = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(WORDS[:8]), inner, max_size=3),
    max_leaves=5,
)


def spots(tree: Any) -> list[tuple[Any, Any]]:
    """(container, key or index) of every entry of a tree."""
    found: list[tuple[Any, Any]] = []
    entries = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in entries:
        found += [(tree, key), *spots(value)]
    return found


@st.composite
def grafted(draw: st.DrawFn, good: Any) -> Any:
    """A tree with one to three entries replaced, removed, renamed, wrapped or put elsewhere."""
    tree = copy.deepcopy(good)
    for _ in range(draw(st.integers(1, 3))):
        places = spots(tree)
        if not places:
            return tree
        owner, key = places[draw(st.integers(0, len(places) - 1))]
        match draw(st.integers(0, 5)):
            case 0:
                del owner[key]
            case 1 if isinstance(owner, dict):
                owner[draw(st.sampled_from(WORDS) | st.text(max_size=6))] = owner.pop(key)
            case 2:
                owner[key] = [owner[key]] * draw(st.integers(0, 3))
            case 3:
                other, name = places[draw(st.integers(0, len(places) - 1))]
                owner[key] = copy.deepcopy(other[name]) if name in other or isinstance(other, list) else None
            case _:
                owner[key] = draw(trees)
    return tree


@st.composite
def json_bytes(draw: st.DrawFn, good: Any) -> bytes:
    """A grafted tree as JSON, now and then with an entry given twice."""
    text = json.dumps(draw(grafted(good)), ensure_ascii=draw(st.booleans()))
    if draw(st.integers(0, 9)) == 0 and text.startswith("{") and len(text) > 2:
        text = f"{text[:-1]}, {text[1:]}"
    return text.encode("utf-8", "surrogatepass")


@dataclass(frozen=True)
class Answer:
    """What a command answered."""

    code: int
    out: str
    err: str


def call(*arguments: str) -> Answer:
    """The command line in this process; anything but SystemExit gets through, as it would in a process of its own."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(list(arguments))
        except SystemExit as stopped:
            return Answer(int(str(stopped.code)), out.getvalue(), err.getvalue())


def survives(*arguments: str) -> Answer:
    """The oracle: a code we know, no traceback, errors of one printable line each and none without its code."""
    answer = call(*arguments)
    assert answer.code in CODES, answer.err
    assert "Traceback" not in answer.err
    lines = answer.err.split("\n")
    assert lines.pop() == ""
    assert all(line.startswith(("error: ", "help: ", "warning: ", "and ")) for line in lines), answer.err
    assert all(line.isprintable() for line in [*lines, *answer.out.split("\n")]), answer
    assert any(line.startswith("error: ") for line in lines) == (answer.code != 0), answer
    return answer


def attempts(strategy: st.SearchStrategy[Any], attempt: Callable[[Any], None], cases: int) -> int:
    """Try that many cases, the same ones everywhere; returns how many were tried."""
    tried = 0

    @settings(
        max_examples=cases,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(drawn=strategy)
    def one(drawn: Any) -> None:
        nonlocal tried
        tried += 1
        attempt(drawn)

    one()
    return tried


def _waited() -> float:
    """Return the seconds that this thread has waited for a processor, which others had; 0 where Linux does not tell."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


@contextlib.contextmanager
def no_hang(seconds: int = 10, said: str = "it hangs for {} s") -> Iterator[None]:
    """Within, what takes longer is interrupted and fails. On a busy machine the wait for a processor does not count."""
    begun, waited = time.monotonic(), _waited()

    def late(number: int, frame: object) -> None:
        left = seconds - (time.monotonic() - begun) + (_waited() - waited)
        if left <= 0:
            raise AssertionError(said.format(seconds))
        signal.alarm(math.ceil(left))

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def snapshot(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Mode, time of change and content or target of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        link, regular = stat.S_ISLNK(status.st_mode), stat.S_ISREG(status.st_mode)
        held = os.fsencode(os.readlink(path)) if link else path.read_bytes() if regular else b""
        found[str(path.relative_to(folder))] = (status.st_mode, status.st_mtime_ns, held)
    return found


@contextlib.contextmanager
def desk(folder: Path) -> Iterator[Path]:
    """In `folder`, with what no fuzzer is about found once: the plugins installed, and the parser's own tables."""
    before = Path.cwd()
    registry = build_registry()
    with pytest.MonkeyPatch.context() as patch:
        for name in ("registry.registry", "run.session", "run.evaluate"):
            if f"mtmeta.core.{name}" in sys.modules:  # importing the others would load torch
                patch.setattr(f"mtmeta.core.{name}.build_registry", lambda **options: registry)
        patch.setattr(typer.main, "get_command", functools.cache(typer.main.get_command))
        patch.setenv("HF_HUB_OFFLINE", "1")
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)
