"""Hashes of the source of parts, and runs that go on with an edited one."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import linecache
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import mtmeta
from mtmeta.core.errors import CheckpointError
from mtmeta.core.registry import source
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.registry.source import files_of, hash_of_code
from mtmeta.core.run.directory import RunDir
from tests.support.quick import killed_before_step, quick

TASK = """
import mtmeta
from {helper} import clean


class Mood(mtmeta.Task):
    name = "mood"
    objective = mtmeta.Classification(labels=("no", "yes"))
    metrics = ("accuracy",)

    def read(self, file):
        for row in file.rows("sentence", "label"):
            yield mtmeta.Example(clean(row["sentence"]), label=row["label"], id=row.id, line=row.line)


@mtmeta.hookimpl
def register_tasks():
    return [Mood]
"""
HELPER = "def clean(text):\n    return text.lower()\n"
Load = Callable[[], Any]


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Load]:
    """A package with a helper in a folder below; what it gives imports it as a new process would."""
    inner = tmp_path / "moods" / "texts"
    inner.mkdir(parents=True)
    (tmp_path / "moods" / "__init__.py").write_text(TASK.format(helper="moods.texts.cleaning"))
    (inner / "__init__.py").write_text("")
    (inner / "cleaning.py").write_text(HELPER)
    monkeypatch.syspath_prepend(str(tmp_path))

    def load() -> Any:
        for name in [name for name in sys.modules if name.partition(".")[0] == "moods"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return importlib.import_module("moods")

    yield load
    for name in [name for name in sys.modules if name.partition(".")[0] == "moods"]:
        del sys.modules[name]


def recipe_of(folder: Path) -> Path:
    """A recipe of the task, to be killed."""
    path = quick(folder)
    recipe = json.loads(path.read_text())
    files = {key: recipe["tasks"]["kind"][key] for key in ("train", "dev", "batch_size")}
    path.write_text(json.dumps({**recipe, "tasks": {"mood": files}}))
    return path


def test_the_files_of_a_package(package: Load, tmp_path: Path) -> None:
    package()
    names = ["moods/__init__.py", "moods/texts/__init__.py", "moods/texts/cleaning.py"]
    assert files_of("moods.texts.cleaning") == files_of("moods") == [tmp_path / name for name in names]
    assert Path(str(source.__file__)) in files_of("mtmeta.core.registry.guard")
    assert not any("plugins" in path.parts for path in files_of("mtmeta.core.registry.guard"))
    assert files_of("sys") == []


def test_whatever_is_edited_in_the_package_changes_the_hash(package: Load, tmp_path: Path) -> None:
    first = hash_of_code([package().Mood])
    assert hash_of_code([package().Mood]) == first == hash_of_code([package().Mood.read])
    helper = tmp_path / "moods" / "texts" / "cleaning.py"
    helper.write_text(HELPER.replace("lower", "upper"))
    second = hash_of_code([package().Mood])
    (tmp_path / "moods" / "heads.py").write_text("")
    assert len({first, second, hash_of_code([package().Mood])}) == 3
    helper.write_text(HELPER)
    (tmp_path / "moods" / "heads.py").unlink()
    assert hash_of_code([package().Mood]) == first


def test_classes_of_mtmeta_and_of_libraries_say_nothing() -> None:
    """Their versions do, which locks have beside it."""

    class Plain(json.JSONDecoder):
        pass

    class Loud(Plain):
        pass

    assert hash_of_code([Plain]) == hash_of_code([Loud])  # of one file
    assert hash_of_code([mtmeta.Task]) == hash_of_code([json.JSONDecoder]) == hash_of_code([])


@pytest.mark.parametrize("given", [True, False], ids=["class", "installed"])
def test_a_run_is_not_continued_with_an_edited_plugin(
    given: bool, package: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version is the same, and so is the file of the class."""
    recipe, out = recipe_of(tmp_path / "data"), tmp_path / "run"
    if not given:
        distributions = importlib.metadata.distributions
        info = tmp_path / "moods-0.3.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: mtmeta-moods\nVersion: 0.3\n")
        (info / "entry_points.txt").write_text("[mtmeta]\nmoods = moods\n")
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: distributions(path=[str(tmp_path)]))
        monkeypatch.delenv("MTMETA_PLUGINS", raising=False)

    def run(**options: Any) -> mtmeta.Run:
        module = package()
        return mtmeta.run(recipe, out=out, device="cpu", plugins=[module.Mood] if given else [], **options)

    with killed_before_step(2):
        run()
    with killed_before_step(3):
        run()
    (tmp_path / "moods" / "texts" / "cleaning.py").write_text(HELPER.replace("lower", "upper"))
    named = "plugin class moods.Mood" if given else "code of plugin mtmeta-moods"
    with pytest.raises(CheckpointError, match=rf"run used {named} [0-9a-f]{{12}}; now {named} [0-9a-f]{{12}}; results"):
        run()
    assert run(allow_inexact=True)["steps"] == 4
    (note,) = RunDir(out).lock()["inexact"]
    assert note.startswith(named)


def test_a_lock_of_before_that_has_no_hashes_goes_on(package: Load, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with killed_before_step(2):
        mtmeta.run(recipe_of(tmp_path / "data"), out=out, device="cpu", plugins=[package().Mood])
    lock = RunDir(out).lock()
    assert lock["plugin_code"] == {}  # of a class it is the version
    (out / "recipe.lock.yaml").write_text(json.dumps({key: lock[key] for key in lock if key != "plugin_code"}))
    assert mtmeta.run(recipe_of(tmp_path / "data"), out=out, device="cpu", plugins=[package().Mood])["steps"] == 4


SCRIPT = """
import mtmeta

SCALE = 2.0
OTHER = 3.0

def louder(number):
    return number * SCALE

def unused(number):
    return number

class Loss(mtmeta.Regression):
    def decode(self, outputs):
        return louder(outputs)

class Mood(mtmeta.Task):
    name = "mood"
    objective = Loss()
    metrics = ("pearson",)

    def read(self, file):
        return iter(lambda: [0], 1)

print("the end")
"""
EDITS = {
    "nothing": ("", ""),
    "another function": ("return number\n", "return -number\n"),
    "another constant": ("OTHER = 3.0", "OTHER = 4.0"),
    "the script": ('print("the end")', 'print("it is over")'),
    "a helper": ("number * SCALE", "number / SCALE"),
    "a constant": ("SCALE = 2.0", "SCALE = 2.5"),
    "the objective": ("louder(outputs)", "-louder(outputs)"),
    "an option": ('"pearson"', '"spearman"'),
    "within a method": ("[0]", "[2]"),
}
NO_PART = ("nothing", "another function", "another constant", "the script")


@pytest.mark.parametrize("how", ["script", "typed", "cells"])
def test_parts_of_a_script_a_prompt_and_a_notebook(
    how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the part names in `__main__` belongs to it, and the rest of a script does not."""
    file = tmp_path / "script.py"

    def hashes(edit: str) -> str:
        text = SCRIPT.replace(*EDITS[edit])
        assert edit == "nothing" or text != SCRIPT
        main = ModuleType("__main__")
        pieces = {"<string>": text}
        if how == "script":
            main.__file__ = str(file)
            file.write_text(text)
            linecache.checkcache()
            pieces = {str(file): text}
        elif how == "cells":
            cells = text.replace("\nclass", "\f\nclass").split("\f")
            pieces = {f"<cell {number}>": cell for number, cell in enumerate(cells)}
            linecache.cache |= {name: (len(cell), None, cell.splitlines(True), name) for name, cell in pieces.items()}
        monkeypatch.setitem(sys.modules, "__main__", main)
        for name, piece in pieces.items():
            exec(compile(piece, name, "exec"), vars(main))
        first = hash_of_code([main.Mood])
        build_registry(plugins=[main.Mood])  # which puts it under guard
        assert hash_of_code([main.Mood]) == first
        return first

    wanted = hashes("nothing")
    for edit in EDITS:
        assert (hashes(edit) == wanted) == (edit in NO_PART), edit
