"""`mtmeta new task` and `mtmeta new algorithm`: packages whose tests pass, whose recipes run, and polite refusals."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from mtmeta.core.authoring import scaffold
from mtmeta.core.authoring.scaffold import KINDS_OF, LONGEST, make_package
from mtmeta.core.errors import MachineError, UsageError
from mtmeta.core.recipe.strict_yaml import read_file
from mtmeta.core.registry.discovery import load_plugins
from mtmeta.core.registry.registry import Registry
from tests.support.commands import QUIET, assert_refused, call
from tests.support.wheels import Installed, install

CASES = [(part_kind, kind) for part_kind, kinds in KINDS_OF.items() for kind in kinds]
LONG = "a" + "b2_" * ((LONGEST - 2) // 3) + "c"


@pytest.fixture(scope="module")
def registry() -> Registry:
    return Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"}))


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, registry: Registry) -> dict[str, Path]:
    """One package of each kind, by kind; and one with the longest name."""
    folder = tmp_path_factory.mktemp("new")
    folders = {
        kind: make_package(part_kind, f"my_{kind}", registry, kind=kind, out=folder / kind) for part_kind, kind in CASES
    }
    return folders | {"long": make_package("task", LONG, registry, out=folder / "long")}


def test_the_files_of_a_package(packages: dict[str, Path]) -> None:
    for part_kind, kind in CASES:
        files = {path.relative_to(packages[kind]).as_posix() for path in packages[kind].rglob("*") if path.is_file()}
        data = {"data/train.csv", "data/dev.csv"} if part_kind == "task" else set()
        own = {f"mtmeta_my_{kind}.py", f"tests/test_my_{kind}.py"}
        assert files == own | data | {".gitignore", "README.md", "pyproject.toml", "recipe.yaml"}
        text = "".join((packages[kind] / file).read_text() for file in files)
        assert "@" not in text.replace("@mtmeta.hookimpl", "").replace("@dataclasses.", "").replace("@pytest.", "")
        project = tomllib.loads((packages[kind] / "pyproject.toml").read_text())["project"]
        assert project["name"] == f"mtmeta-my-{kind.replace('_', '-')}"
        assert project["entry-points"]["mtmeta"] == {f"my_{kind}": f"mtmeta_my_{kind}"}
        lines = [line for line in (packages[kind] / f"mtmeta_my_{kind}.py").read_text().splitlines() if line.strip()]
        assert len(lines) <= 27, "a whole plugin is about 25 lines"
        first = next(iter(read_file(packages[kind] / "recipe.yaml").data["tasks"]))
        assert first == (f"my_{kind}" if part_kind == "task" else "sst")


def test_they_are_clean(packages: dict[str, Path]) -> None:
    pytest.importorskip("ruff", reason="needs ruff")
    for command in (["check", "--no-cache"], ["format", "--check", "--no-cache"]):
        folders = map(str, packages.values())
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *folders], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_they_are_typed(packages: dict[str, Path]) -> None:
    pytest.importorskip("mypy", reason="needs mypy")
    for folder in packages.values():
        command = [sys.executable, "-m", "mypy", "--cache-dir", str(folder.parent / "mypy")]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout


@pytest.mark.slow
def test_their_own_tests_pass(packages: dict[str, Path]) -> None:
    environ = os.environ | QUIET | {"PYTHONPATH": os.pathsep.join(map(str, packages.values()))}
    tests = [str(folder / "tests") for folder in packages.values()]
    options = ["-q", "-p", "no:cacheprovider", "-c", str(packages["pair"] / "pyproject.toml")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests], env=environ, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout
    assert "21 passed" in done.stdout


def test_importing_one_does_not_load_torch(packages: dict[str, Path]) -> None:
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, packages.values()))}
    names = ", ".join(f"mtmeta_my_{kind}" for _, kind in CASES)
    code = f"import sys, {names}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True)
    assert done.stdout == "False\n", done.stderr


@pytest.mark.skipif(importlib.util.find_spec("pip") is None, reason="needs pip to install them")
def test_installed_they_appear_and_their_recipes_run(packages: dict[str, Path], tmp_path: Path) -> None:
    pytest.importorskip("hatchling", reason="needs hatchling to build them")
    kinds = ("pair", "inner_loop")
    site: Installed = install(tmp_path, [packages[kind] for kind in kinds], "--no-build-isolation")
    short = ["--set", "training.steps=1", "--set", "backbone.weights=tiny", "--set", "reporters=[jsonl]", "--json"]
    runs = [["run", str(packages[kind] / "recipe.yaml"), *short, "--out", f"{kind}-run"] for kind in kinds]
    # the recipe's data_root starts from where the command does
    runs[0] += ["--data-root", str(packages["pair"] / "data")]
    listed, checked, *ran = site.each([["plugins", "--json"], ["plugins", "--check"], *runs])
    rows = {row["distribution"]: row["provides"] for row in json.loads(listed.out)["plugins"]}
    assert rows["mtmeta-my-pair"] == {"tasks": ["my_pair"]}
    assert rows["mtmeta-my-inner-loop"] == {"algorithms": ["my_inner_loop"]}
    assert checked.code == 0
    for done in ran:
        assert done.code == 0, done.err
    assert list(json.loads(ran[0].out)["tasks"]) == ["my_pair", "sst"]
    assert json.loads(ran[1].out)["algorithm"] == "my_inner_loop"
    again = site.command("new", "task", "my_pair")
    assert_refused(again, 2, "error: NAME: task 'my_pair' is supplied by 'mtmeta-my-pair' already; choose another name")


# ------------------------------------------------------------------------------------------------------------ refusals


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("sst", "task 'sst' is supplied by mtmeta itself already; choose another name"),
        ("MyTask", "'MyTask' cannot be the name of a task; use at most 40 characters a-z, 0-9, _ and -"),
        ("MyTask", "such as 'my_task'"),
        ("9lives", "such as 'lives'"),
        ("", "'' cannot be the name of a task"),
        ("a b", "such as 'a_b'"),
        ("../up", "such as 'up'"),
        ("naïve", "such as 'na_ve'"),
        ("\x1b[31m", r"'\x1b[31m' cannot be"),
        ("a" * 41, "use at most 40 characters"),
        ("a__b", "such as 'a_b'"),
        ("null", "'null' means something else in recipes"),
        ("mean", "'mean' means something else in recipes"),
        ("mtmeta-foo", "'mtmeta-foo': the package gets the prefix mtmeta- anyway; leave it out"),
    ],
)
def test_names_that_cannot_be(name: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call("new", "task", "--", name, cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "error: NAME: ", words)
    assert not list(tmp_path.iterdir())


def test_an_algorithm_s_name_may_be_a_task_s(tmp_path: Path, registry: Registry) -> None:
    make_package("algorithm", "sst", registry, out=tmp_path / "a")
    with pytest.raises(UsageError, match="algorithm 'joint' is supplied by mtmeta itself"):
        make_package("algorithm", "joint", registry, out=tmp_path / "b")


def test_python_keywords_are_names_too(tmp_path: Path, registry: Registry) -> None:
    folder = make_package("task", "class", registry, out=tmp_path / "a")
    compile((folder / "mtmeta_class.py").read_text(), "mtmeta_class.py", "exec")
    assert scaffold.class_name("true") == "True_"


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call("new", "task", "my-task", cwd=tmp_path, capsys=capsys)
    assert (outcome.code, outcome.out) == (0, "mtmeta-my-task\n")
    assert outcome.err.startswith("next: cd mtmeta-my-task && pip install -e ")
    assert_refused(call("new", "task", "my-task", cwd=tmp_path, capsys=capsys), 2, "mtmeta-my-task: is there already")
    (tmp_path / "nowhere").symlink_to("gone")
    for out in ("nowhere", ".", "mtmeta-my-task/README.md"):
        outcome = call("new", "algorithm", "mine", "--out", out, cwd=tmp_path, capsys=capsys)
        assert_refused(outcome, 2, f"{out}: is there already; choose another folder with --out")
    outcome = call("new", "task", "mine", "--kind", "pairs", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "--kind: no kind 'pairs' of task; did you mean 'pair'?")
    outcome = call("new", "task", "mine", "--out", "mtmeta-my-task/README.md/x", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 6, "mtmeta-my-task/README.md/x: cannot be written: ")
    outcome = call("new", "algorithm", "mine", "--out", "deep/er/mine", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 0 and (tmp_path / "deep/er/mine/mtmeta_mine.py").is_file()


def test_a_group_by_itself_is_its_help(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outcome = call("new", cwd=tmp_path, capsys=capsys)
    assert (outcome.code, outcome.err) == (0, "")
    assert "algorithm  Write a package with an algorithm" in outcome.out


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_cut_leaves_nothing(
    error: BaseException, tmp_path: Path, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []

    def write(path: Path, data: bytes) -> None:
        written.append(path)
        if len(written) == 3:
            raise error

    monkeypatch.setattr(scaffold, "write_synced", write)
    with pytest.raises((KeyboardInterrupt, MachineError)):
        make_package("task", "mine", registry, out=tmp_path / "mine")
    assert not list(tmp_path.iterdir())
