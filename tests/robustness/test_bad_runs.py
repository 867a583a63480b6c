"""Every way we know for run directories and the machine to be wrong: one line, the exit code, and nothing is touched.

The numbers are the rows of our list of bad inputs. Each row has a case in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import mtmeta
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.resolved import dump
from mtmeta.plugins.backbones.encoder import kernels
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import QUIET, RECIPE, Outcome, assert_refused, call, command, contents, data_folder

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a recipe and its finished run in `out`."""
    folder = data_folder(tmp_path_factory.mktemp("finished"))
    mtmeta.run(folder / "r.yaml", out=folder / "out", data_root=str(folder / "data"), overrides=["reporters=[jsonl]"])
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of it to spoil."""
    return Path(shutil.copytree(finished, tmp_path / "copy", symlinks=True))


RUN = ("run", "r.yaml", "--out", "out")
HOW_OFTEN = ("eval", "out", "--data-root", "data")


def test_changed_data(run: Path, capsys: Capture) -> None:
    """Row 37: neither eval nor a run that goes on takes other data."""
    with (run / "data" / "dev.tsv").open("a") as file:
        file.write("9\tx\ty\tneutral\n")
    before = contents(run)
    words = ("data/dev.tsv: changed since this run started (sha256 ", "--allow-changed-data")
    assert_refused(command(*HOW_OFTEN, cwd=run), 3, *words)
    assert contents(run) == before
    (run / "out" / "summary.json").unlink()
    del before["out/summary.json"]
    assert_refused(call(*RUN, cwd=run, capsys=capsys), 3, *words)
    assert contents(run) == before


def test_another_recipe_in_the_run_directory(run: Path) -> None:
    """Row 42."""
    before = contents(run)
    outcome = command(*RUN, "--set", "training.steps=2", cwd=run)
    assert_refused(outcome, 4, "out: was trained with recipe ", "(differs in: training.steps)", "--fresh to start over")
    assert contents(run) == before


def test_output_that_is_no_run(run: Path, capsys: Capture) -> None:
    """Row 52."""
    before = contents(run)
    outcome = command("run", "r.yaml", "--out", "data", cwd=run)
    assert_refused(outcome, 2, "data/: not empty and not an mtmeta run; choose another directory")
    for out in ("r.yaml", "r.yaml/x"):
        outcome = call("run", "r.yaml", "--out", out, cwd=run, capsys=capsys)
        assert_refused(outcome, 2, "r.yaml: is a file; choose another directory with --out")
    assert contents(run) == before


def test_a_beginning_cut_short_is_begun_again(run: Path, capsys: Capture) -> None:
    for path in (run / "out").iterdir():
        if path.name not in ("recipe.lock.yaml", "backbone"):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (run / "out" / ".recipe.yaml.tmp").write_text("na")
    outcome = call(*RUN, "--set", "reporters=[]", cwd=run, capsys=capsys)
    assert outcome.code == 0, outcome.err
    assert json.loads((run / "out" / "summary.json").read_text())["steps"] == 1


EVAL_WORDS: list[tuple[tuple[str, ...], int, str]] = [
    (("--task", "pair"), 2, "--task: this run has no task 'pair'; did you mean 'pairs'? (tasks: pairs)"),
    (("--file", "x=y"), 2, "--file: this run has no task 'x'"),
    (("--file", "pairs=nope.tsv"), 3, "nope.tsv: no such file"),
    (("--file", "pairs=data"), 3, "data: is a directory"),
    (("--split", "test"), 3, "task 'pairs': has no test file; add 'test:' to the recipe or pass --file pairs=PATH"),
    (("--data-root", "nowhere"), 3, "nowhere: no such folder"),
    (("--device", "gpu"), 2, "--device: 'gpu' is no device; use auto, cpu, cuda or cuda:N"),
]


@pytest.mark.parametrize(("arguments", "code", "words"), EVAL_WORDS, ids=[words for *_, words in EVAL_WORDS])
def test_eval(arguments: tuple[str, ...], code: int, words: str, finished: Path, capsys: Capture) -> None:
    before = contents(finished)
    assert_refused(call("eval", "out", *arguments, cwd=finished, capsys=capsys), code, words)
    assert contents(finished) == before


DAMAGES: list[tuple[str, str, bytes | None, tuple[str, ...], int, str]] = [
    ("38", "checkpoints/best", None, HOW_OFTEN, 4, "out/checkpoints/best: no such checkpoint"),
    ("41", "checkpoints/best-00000001/MANIFEST.json", b"{", HOW_OFTEN, 4, "best/MANIFEST.json: damaged"),
    ("41", "checkpoints/best-00000001/MANIFEST.json", None, HOW_OFTEN, 4, "not a committed checkpoint"),
    ("39", "checkpoints/best-00000001/model.safetensors", b"x", HOW_OFTEN, 4, "model.safetensors: damaged (size 1 of"),
    ("lock", "recipe.lock.yaml", b"recipe: 3\n", HOW_OFTEN, 4, "out/recipe.lock.yaml: damaged"),
    ("lock", "recipe.lock.yaml", b"\xff", RUN, 4, "out/recipe.lock.yaml: damaged (byte 0xff"),
    ("lock", "recipe.lock.yaml", None, RUN, 4, "out/recipe.lock.yaml: damaged (no such file"),
    ("recipe", "recipe.yaml", b"{", HOW_OFTEN, 2, "out/recipe.yaml:1:2: "),
    ("summary", "summary.json", b"{", RUN, 4, "out/summary.json: cannot be read"),
    ("summary", "summary.json", b"[1]", RUN, 4, "out/summary.json: damaged"),
    ("backbone", "backbone/config.json", None, HOW_OFTEN, 4, "out/backbone/config.json: no such file"),
    ("48", "backbone/tokenizer.json", b"{}", HOW_OFTEN, 4, "out/backbone/tokenizer.json: cannot be loaded"),
]


@pytest.mark.parametrize(
    ("path", "content", "arguments", "code", "words"),
    [pytest.param(*rest, words, id=f"{row}-{words}") for row, *rest, words in DAMAGES],
)
def test_damaged_run(
    path: str, content: bytes | None, arguments: tuple[str, ...], code: int, words: str, run: Path, capsys: Capture
) -> None:
    (run / "out" / path).unlink() if content is None else (run / "out" / path).write_bytes(content)
    before = contents(run)
    assert_refused(call(*arguments, cwd=run, capsys=capsys), code, words)
    assert contents(run) == before


def test_damaged_run_in_a_process_of_its_own(run: Path) -> None:
    """Row 41."""
    (run / "out" / "checkpoints" / "best-00000001" / "MANIFEST.json").write_bytes(b"\xff{")
    before = contents(run)
    assert_refused(command(*HOW_OFTEN, cwd=run), 4, "MANIFEST.json: damaged")
    assert contents(run) == before


def unfinish(run: Path, **lock: object) -> None:
    """Make it a run that was stopped before its summary, begun by a machine as `lock` says."""
    (run / "out" / "summary.json").unlink()
    path = run / "out" / "recipe.lock.yaml"
    found = strict_yaml.read_file(path).data
    path.write_text(dump({**found, **lock}))


def test_another_machine(run: Path) -> None:
    """Row 50."""
    unfinish(run, torch="2.9.1", threads=64)
    before = contents(run)
    outcome = command(*RUN, cwd=run)
    assert_refused(outcome, 4, "error: out: run used torch 2.9.1, threads 64; now torch ", "threads 1; results")
    assert outcome.err.endswith("pass --allow-inexact to go on\n")
    assert contents(run) == before


def test_a_damaged_newest_checkpoint(run: Path) -> None:
    """Rows 39 and 40: a warning, and the run goes on from what is left, here from nothing."""
    unfinish(run)
    (run / "out" / "checkpoints" / "step-00000001" / "model.safetensors").write_bytes(bytes(1048))
    outcome = command(*RUN, "--set", "reporters=[jsonl]", cwd=run)
    assert outcome.code == 0, outcome.err
    line = "warning: out/checkpoints/step-00000001/model.safetensors: damaged (size 1048 of "
    assert outcome.err.startswith(line) and outcome.err.endswith("); starting over\n"), outcome.err


@pytest.mark.slow
def test_a_file_that_may_not_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 66, by the limit a shell can set; and the same command goes on when it is gone."""
    folder = data_folder(tmp_path)
    words = [sys.executable, "-m", "mtmeta", *RUN, "--set", "reporters=[jsonl]"]
    limited = subprocess.run(
        ["bash", "-c", 'ulimit -f 60 && exec "$@"', "bash", *words],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key != "MTMETA_DATA"}
        | QUIET
        | {"MTMETA_CACHE": "off", "MTMETA_KERNELS": "off"},  # a compiler may not write, either
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    words_of = "out/checkpoints/best-00000001: cannot write checkpoint: File too large; nothing older was touched"
    assert_refused(Outcome(limited.returncode, limited.stdout, limited.stderr), 6, words_of)
    assert not (folder / "out" / "checkpoints").exists()  # nothing half-written is left
    monkeypatch.setattr(kernels, "load", lambda: None)
    assert mtmeta.run(folder / "r.yaml", out=folder / "out", data_root=str(folder / "data"))["steps"] == 1
    assert not list((folder / "out").rglob(".*"))


def test_a_learning_rate_that_is_too_high(tmp_path: Path) -> None:
    """Row 72."""
    folder = data_folder(tmp_path)
    arguments = ("--set", "optimizer.lr=1e30", "--set", "training.steps=9", "--set", "evaluation.every=5")
    outcome = command(*RUN, "--set", "reporters=[]", *arguments, cwd=folder)
    assert_refused(outcome, 7, "became nan at meta-step ", "task 'pairs'", "; lower the learning rate")
    assert not (folder / "out" / "checkpoints").exists()


# ---------------------------------------------------------------------------------------------------------- machine


def test_more_examples_than_there_are(tmp_path: Path) -> None:
    """Row 20: support and query of one episode must be different examples."""
    folder = data_folder(tmp_path)
    arguments = ("--set", "algorithm=fomaml", "--set", "tasks.pairs.batch_size=8", "--set", "tasks.pairs.inner_steps=2")
    outcome = command("run", "r.yaml", "--out", "out", *arguments, cwd=folder)
    assert_refused(outcome, 3, "task 'pairs'", "needs 24 examples", "has 9")
    assert not (folder / "out").exists()


def test_no_such_device(tmp_path: Path) -> None:
    """Row 63."""
    (tmp_path / "r.yaml").write_text(RECIPE)
    outcome = command("run", "r.yaml", "--device", "cuda:99", cwd=tmp_path)
    assert_refused(outcome, 6, "device cuda:99: this machine has ", "CUDA devices; use --device cpu")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "env",
    [{"LC_ALL": "C", "TERM": "dumb", "NO_COLOR": "1"}, {"PYTHONIOENCODING": "ascii", "TERM": "xterm-256color"}],
    ids=["C locale", "ascii"],
)
def test_plain_surroundings(env: dict[str, str], finished: Path) -> None:
    """Row 75: no terminal, no colour, no letters beyond ASCII."""
    outcome = command(*RUN, cwd=finished, env=env)
    assert outcome.code == 0, outcome.err
    assert outcome.err == "warning: out is finished; --fresh trains it again\n"
    assert outcome.out.isascii()
    assert re.search(r"\| pairs +\| accuracy +\|", outcome.out), outcome.out
    assert "\x1b" not in outcome.out
