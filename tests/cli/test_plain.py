"""Output on a terminal, in a pipe and for a new user: plain ASCII where it must be, help with an example everywhere."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from mtmeta.cli import app
from mtmeta.core.recipe.shipped import shipped_recipes
from tests.support.commands import QUIET, call
from tests.support.quick import quick

POOR = QUIET | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def commands(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield names
    for name, each in getattr(group, "commands", {}).items():
        yield from commands(each, (*names, name))


EVERY = list(commands(typer.main.get_command(app)))


@pytest.mark.parametrize("names", EVERY, ids=lambda names: " ".join(names) or "mtmeta")
def test_help(names: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call(*names, "--help", cwd=tmp_path, capsys=capsys)
    assert (done.code, done.err) == (0, "")
    assert done.out.isascii() and "\x1b" not in done.out
    assert re.search(
        rf"^ +mtmeta {' '.join(names)}" if names != ("completion",) else "mtmeta completion", done.out, re.M
    )
    assert "..." not in done.out.partition("Commands:")[2], "a command's first sentence does not fit into its line"
    assert call(*names, "-h", cwd=tmp_path, capsys=capsys).out == done.out
    assert max(map(len, done.out.splitlines())) <= 100


def test_examples_are_commands_that_exist(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every `mtmeta ...` in a help text names a command, options it has, and recipes that are shipped."""
    seen = 0
    for names in EVERY:
        text = call(*names, "--help", cwd=tmp_path, capsys=capsys).out
        for example in re.findall(r"^ {4}(?:.* \| |eval \"\$\()?mtmeta ([^\n>)]*)", text, re.M):
            words = re.split(r" {2,}", example)[0].split()
            there: Any = typer.main.get_command(app)
            while words and words[0] in getattr(there, "commands", {}):
                there = there.commands[words.pop(0)]
            options = {option for each in there.params for option in each.opts}
            assert {word for word in words if word.startswith("--")} <= options, example
            if words and there.name in ("run", "compare", "copy") and ".yaml" not in words[0]:
                assert words[0] in shipped_recipes(), example
            seen += 1
    assert seen > len(EVERY)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, trained where nothing but ASCII can be printed."""
    place = tmp_path_factory.mktemp("plain")
    quick(place, evaluation={"every": 2}, reporters=["console", "jsonl"])
    assert b"| kind" in plainly(place, "run", "quick.yaml", "--out", "runs/quick")
    return place


def plainly(place: Path, *arguments: str, code: int = 0) -> bytes:
    """Return the output of a command, which must be plain, in a locale that has only ASCII."""
    given = [sys.executable, "-m", "mtmeta", *arguments]
    done = subprocess.run(
        given, cwd=place, env=os.environ | POOR, capture_output=True, stdin=subprocess.DEVNULL, check=False, timeout=600
    )
    assert done.returncode == code, done.stderr
    for stream in (done.stdout, done.stderr):
        assert stream.isascii() and b"\x1b" not in stream
    return done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ("eval", "runs/quick", "--verbose"),
        ("run", "quick.yaml", "--out", "runs/quick"),
        ("run", "quick.yaml", "--dry-run", "--probe", "1", "--out", "runs/new"),
        ("validate", "quick.yaml", "--data"),
        ("plugins",),
        ("show", "backbone", "bert"),
        ("show", "algorithm", "reptile"),
        ("runs",),
        ("recipes",),
        ("recipes", "copy", "minilm/joint", "copied.yaml"),
        ("schema",),
        ("completion", "zsh"),
        ("compare", "quick.yaml", "--seeds", "1", "--baseline", "quick"),
    ],
    ids=" ".join,
)
def test_a_pipe_gets_plain_ascii(
    arguments: tuple[str, ...], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in QUIET.items():
        monkeypatch.setenv(key, value)
    done = call(*arguments, cwd=folder, capsys=capsys)
    if arguments[:2] == ("recipes", "copy"):
        (folder / "copied.yaml").unlink()
    assert done.code == 0, done.err
    for text in (done.out, done.err):
        assert text.isascii() and "\x1b" not in text


def test_letters_that_a_locale_lacks_are_escaped(folder: Path) -> None:
    (folder / "f\u00fcnf").mkdir(exist_ok=True)
    assert b"no runs in f" in plainly(folder, "runs", "f\u00fcnf")
    plainly(folder, "validate", "f\u00fcnf.yaml", code=2)


def on_terminal(place: Path, *arguments: str, **env: str) -> bytes:
    """Return the output of a command on a terminal."""
    child, handle = pty.fork()
    if child == 0:
        os.chdir(place)
        given = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "LC_ALL", "COLUMNS")}
        os.execve(sys.executable, [sys.executable, "-m", "mtmeta", *arguments], given | env)
    shown = b""
    while True:
        try:
            part = os.read(handle, 65536)
        except OSError:
            break
        if not part:
            break
        shown += part
    os.waitpid(child, 0)
    os.close(handle)
    return shown


def test_a_terminal_gets_lines_and_bold_letters_unless_it_says_no(folder: Path) -> None:
    fine = {"TERM": "xterm-256color", "LC_ALL": "C.UTF-8", "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    plain = on_terminal(folder, "runs", **fine)
    assert "\u2501".encode() in plain and b"\x1b[" in plain
    assert b"\x1b" not in on_terminal(folder, "runs", **fine, NO_COLOR="1")
    dumb = on_terminal(folder, "runs", **fine | {"TERM": "dumb"})  # rich takes it for 80 columns wide
    assert dumb.isascii() and b"\x1b" not in dumb and b"finished" in dumb


def test_a_narrow_terminal_loses_nothing(folder: Path) -> None:
    """Words are broken, not cut."""
    narrow = on_terminal(folder, "runs", TERM="xterm", COLUMNS="40", LC_ALL="C", PYTHONIOENCODING="ascii", NO_COLOR="1")
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in narrow.decode().splitlines() if "|" in line]
    assert max(map(len, narrow.decode().splitlines())) <= 40
    assert "".join(row[0] for row in cells).startswith("run" + "runs/")
    assert "finished" in "".join(row[1] for row in cells)
