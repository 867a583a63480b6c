"""Checks of a page's code block without running it: commands and options exist, recipes validate."""

from __future__ import annotations

import re
import shlex
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
import yaml

from mtmeta.cli import app
from mtmeta.core.errors import MtmetaError
from mtmeta.core.recipe.reader import KEYS, load_recipe
from mtmeta.core.registry.discovery import load_plugins
from mtmeta.core.registry.registry import Registry, build_registry
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies.tuning.settings import Recipes
from mtmeta.core.studies.tuning.space import read_space
from tests.support.paths import ROOT

if TYPE_CHECKING:
    from tests.support.docs_blocks import Block

__all__ = ["check", "commands"]

# programs that a command line may begin with besides mtmeta, python and pytest
TOOLS = set(
    "apt-get cat cd curl cut echo export grep head ls make mkdir pip pipx ruff sbatch source tensorboard uv wc".split()
)
BASE = {
    "backbone": {"name": "bert", "weights": "tiny"},
    "tasks": {name: {"train": "sample", "dev": "sample"} for name in ("sst", "para", "sts")},
    "algorithm": "joint",
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "training": {"steps": 1},
}


def check(block: Block) -> None:
    """Check a block without running it. Raises AssertionError."""
    if block.language == "python":
        compile(block.text, block.name, "exec")
    elif block.language == "toml":
        tomllib.loads(block.text)
    elif block.language == "yaml" and "wrong on purpose" not in block.notes:
        _check_yaml(block)
    elif block.language in ("bash", "console"):
        for words in commands(block.text if block.language == "bash" else _typed(block.text)):
            _check_command(block, words)


def _typed(console: str) -> str:
    return "\n".join(line.removeprefix("$ ") for line in console.splitlines() if line.startswith("$ "))


def commands(script: str) -> Iterator[list[str]]:
    """Yield the words of every simple command of a script without loops and functions."""
    script = re.sub(r"<<-?\s*'?(\w+)'?.*?^\1$", "", script.replace("\\\n", " "), flags=re.MULTILINE | re.DOTALL)
    for line in script.splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        lexer.commenters = "#"
        lexer.whitespace_split = True
        words: list[str] = []
        skip = False
        for word in [*lexer, ";"]:
            if set(word) <= set("<>&") and set(word) & set("<>"):
                skip = True
                if words and words[-1].isdecimal():
                    words.pop()  # 2> and the like
            elif set(word) <= set("|&;"):
                while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                    words = words[1:]
                if words:
                    yield words
                words = []
            elif skip:
                skip = False
            else:
                words.append(word)


def _check_command(block: Block, words: Sequence[str]) -> None:
    program, arguments = Path(words[0]).name, list(words[1:])
    if program in ("python", "python3") and arguments[:1] == ["-m"] and len(arguments) > 1:
        program, arguments = arguments[1], arguments[2:]
    if program == "mtmeta":
        _parse(block, arguments)
    elif program.startswith(("benchmarks.", "tools.", "tests.")):
        assert find_spec(program), f"{block.name}: no module {program}"
        source = (ROOT / f"{program.replace('.', '/')}.py").read_text(encoding="utf-8")
        for option in (word.partition("=")[0] for word in arguments if word.startswith("--")):
            assert f'"{option}"' in source or f"{option} " in source, f"{block.name}: {program} has no option {option}"
    elif program == "pytest":
        named = [word for word in arguments if word.startswith("tests/")]
        assert all((ROOT / word).exists() for word in named), f"{block.name}: {named}"
    elif program in ("python", "python3"):
        assert arguments and not arguments[0].startswith("-"), f"{block.name}: {' '.join(words)}"
    else:
        assert program in TOOLS | {"venv"}, f"{block.name}: {program} is no program that is known"
    for word in arguments:
        if re.match(r"(recipes|docs|benchmarks|examples)/", word):
            assert list(ROOT.glob(word)), f"{block.name}: {word} is not there"


def _parse(block: Block, arguments: list[str]) -> None:
    """Check that the command with its options exists."""
    command: Any = typer.main.get_command(app)
    context, rest = None, arguments
    try:
        while hasattr(command, "commands"):
            context = command.make_context("mtmeta", list(rest), parent=context)
            rest = [*getattr(context, "_protected_args", []), *context.args]
            if not rest:
                return
            _, command, rest = command.resolve_command(context, rest)
        command.make_context(command.name, list(rest), parent=context)
    except typer.Exit:  # --help, --version
        pass
    except Exception as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        raise AssertionError(f"{block.name}: mtmeta {' '.join(arguments)}: {message}") from error


def _check_yaml(block: Block) -> None:
    """Check that a recipe validates; a piece of one validates in its place in a small recipe."""
    if block.title == "space.yaml":
        _check_space(block)
        return
    data = yaml.safe_load(block.text)
    assert isinstance(data, dict) and set(data) <= set(KEYS), f"{block.name}: neither a recipe nor a part of one"
    registry = Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"}))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recipe.yaml"
        whole = {"backbone", "tasks", "algorithm"} <= set(data)
        given = block.text if whole else yaml.safe_dump({**BASE, **_numbers(data)})
        path.write_text(given, encoding="utf-8")
        try:
            load_recipe(path, registry)
        except MtmetaError as error:
            raise AssertionError(f"{block.name}: " + "\n".join(error.lines())) from error


def _numbers(data: Any) -> Any:
    """Return the same with 1e-3 as the number that mtmeta reads there; PyYAML sees text."""
    if isinstance(data, dict):
        return {key: _numbers(value) for key, value in data.items()}
    if isinstance(data, str) and re.fullmatch(r"\d+(\.\d+)?e[+-]?\d+", data):
        return float(data)
    return data


def _check_space(block: Block) -> None:
    """Check that a space of `mtmeta tune` gives recipes, beside the recipe that the pages search."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, block.title)
        path.write_text(block.text, encoding="utf-8")
        Recipes.of(RunRequest("reptile_three_task"), read_space(path), build_registry()).check()
