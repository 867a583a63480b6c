"""What a process may not have: names of any length, memory, threads, other arithmetic than the run began with."""

from __future__ import annotations

import errno
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.cli.errors import explained
from mtmeta.core.environment import check_memory, check_torch
from mtmeta.core.errors import CheckpointError, DataError, MachineError, OutOfMemory, WeightsError
from mtmeta.core.recipe.resolved import dump
from mtmeta.core.run import directory
from tests.support.commands import HEADER, QUIET, ROWS, SMALL, Outcome, assert_refused, call, contents, data_folder
from tests.support.quick import killed_before_step, outcome, quick

Capture = pytest.CaptureFixture[str]
LONG = "n" * 5000
TOO_LONG = "characters is too long for this system; give a shorter one"
UNREADABLE = "cannot be read (File name too long)"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a recipe and its finished run."""
    folder = data_folder(tmp_path_factory.mktemp("finished"))
    mtmeta.run(folder / "r.yaml", out=folder / "run", data_root=str(folder / "data"), device="cpu")
    return folder


# ------------------------------------------------------------------------------------------- names of 5,000 characters

NAMES: list[tuple[int, tuple[str, ...], int, str]] = [
    (220, ("run", "r.yaml", "--out", LONG), 2, TOO_LONG),
    (220, ("run", "r.yaml", "--out", f"x/{LONG}/y"), 2, TOO_LONG),
    (220, ("run", "r.yaml", "--out", "/".join(["ab"] * 2500)), 2, TOO_LONG),
    (220, ("compare", "r.yaml", "--out", LONG), 2, TOO_LONG),
    (220, ("run", "r.yaml", "--dry-run", "--out", LONG), 2, TOO_LONG),
    (221, ("run", LONG), 2, UNREADABLE),
    (221, ("validate", f"{LONG}.yaml"), 2, UNREADABLE),
    (221, ("fetch", LONG), 2, UNREADABLE),
    (222, ("run", "r.yaml", "--set", f"{LONG}=1"), 2, "unknown key 'nnn"),
    (222, ("run", "r.yaml", "--set", ".".join(["a"] * 2500) + "=1"), 2, "unknown key 'a'"),
    (222, ("run", "r.yaml", "--set", LONG), 2, "expected KEY=VALUE"),
    (223, ("run", "r.yaml", "--set", f"name={LONG}"), 2, "is not allowed"),
    (223, ("run", "r.yaml", "--set", f"algorithm={LONG}"), 2, "unknown algorithm 'nnn"),
    (223, ("run", "r.yaml", "--set", f"tasks.pairs.metrics=[{LONG}]"), 2, "unknown metric 'nnn"),
    (224, ("run", "r.yaml", "--set", f"backbone.weights={LONG}"), 2, TOO_LONG),
    (224, ("run", "r.yaml", "--set", f"backbone.weights=/{LONG}"), 2, TOO_LONG),
    (224, ("run", "r.yaml", "--set", f"backbone.weights=a/{LONG}"), 2, TOO_LONG),
    (224, ("run", "r.yaml", "--set", f"backbone={{name: hf, weights: {LONG}}}"), 2, TOO_LONG),
    (225, ("run", "r.yaml", "--set", f"tasks.pairs.train={LONG}"), 3, UNREADABLE),
    (225, ("eval", "run", "--file", f"pairs={LONG}"), 3, UNREADABLE),
    (225, ("predict", "run", "--task", "pairs", "--input", f"{LONG}.tsv"), 3, UNREADABLE),
    (225, ("run", "r.yaml", "--data-root", LONG), 2, TOO_LONG),
    (226, ("predict", "run", "--task", "pairs", "--input", "data/dev.tsv", "--output", LONG), 2, TOO_LONG),
    (226, ("predict", "run", "--task", "pairs", "--input", "data/dev.tsv", "--output", f"{LONG}/x.csv"), 2, TOO_LONG),
    (226, ("export", "run", "--format", "transformers", "--out", LONG), 2, TOO_LONG),
    (227, ("report", "run", "--out", LONG), 2, TOO_LONG),
    (227, ("schema", "--out", LONG), 2, TOO_LONG),
    (227, ("recipes", "copy", "reptile_three_task", LONG), 2, TOO_LONG),
    (228, ("run", "r.yaml", "--device", "cuda:" + "9" * 5000), 6, "CUDA devices; use --device cpu"),
    (228, ("run", "r.yaml", "--device", LONG), 2, "is no device"),
    (229, ("eval", LONG), 2, TOO_LONG),
    (229, ("predict", LONG, "--task", "pairs", "--input", "data/dev.tsv"), 2, TOO_LONG),
    (229, ("export", LONG, "--format", "onnx"), 2, TOO_LONG),
    (229, ("report", LONG), 2, TOO_LONG),
    (229, ("runs", LONG), 2, TOO_LONG),
    (230, ("run", "r.yaml", "--no-plugin", LONG), 5, "no plugin 'nnn"),
    (230, ("show", "task", LONG), 2, "unknown task 'nnn"),
    (230, ("eval", "run", "--task", LONG), 2, "this run has no task 'nnn"),
    (230, ("export", "run", "--format", LONG), 2, "is no format"),
]


@pytest.mark.parametrize(
    ("row", "arguments", "code", "words"),
    NAMES,
    ids=[f"{row}-{' '.join(a)[:30]}-{n}" for n, (row, a, *_) in enumerate(NAMES)],
)
def test_name(row: int, arguments: tuple[str, ...], code: int, words: str, finished: Path, capsys: Capture) -> None:
    """One line, which has room for what is wrong however long the name is; nothing is written."""
    before = contents(finished)
    assert_refused(call(*arguments, cwd=finished, capsys=capsys), code, words)
    assert contents(finished) == before


@pytest.mark.parametrize("kind", ["label", "id", "column"])
def test_cell(kind: str, tmp_path: Path, capsys: Capture) -> None:
    """231: a label of 5,000 characters is a bad row, a heading a column that is not there; an id is an id."""
    folder = data_folder(tmp_path)
    data = {
        "label": HEADER + ROWS + f"9\ta\tb\t{LONG}\n",
        "id": HEADER + ROWS + f"{LONG}\ta\tb\tneutral\n",
        "column": HEADER.replace("sentence1", LONG) + ROWS,
    }
    (folder / "data" / "train.tsv").write_text(data[kind])
    done = call("run", "r.yaml", "--out", "run", cwd=folder, capsys=capsys)
    if kind == "id":
        assert done.code == 0, done.err
        return
    words = (
        ("train.tsv:11: label 'nnn", "is not one of") if kind == "label" else ("no column 'sentence1'; columns are",)
    )
    assert_refused(done, 3, *words)


def test_a_path_as_long_as_there_are_leaves_room_for_what_is_wrong() -> None:
    (line,) = DataError("x/" * 3000, "is empty; give a file with rows").lines()
    assert line.endswith("...: is empty; give a file with rows") and len(line) < 600


# ------------------------------------------------------------------------------------------------ memory and threads

LIMITED = """
import os, resource, sys
size = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (size, size))
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
os.execv(sys.executable, [sys.executable, "-m", "mtmeta", *sys.argv[2:]])
"""
EMBEDDED = SMALL.replace("weights: tiny", "weights: embedded")


def limited(gigabytes: float, arguments: Sequence[str], folder: Path) -> Outcome:
    """The command in a process that may have so much memory."""
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(int(gigabytes * 2**30)), *arguments],
        cwd=folder,
        env=dict(os.environ) | QUIET,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        timeout=600,
        check=False,
    )
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.parametrize(
    ("gigabytes", "arguments", "words"),
    [
        (0.15, ("validate", "r.yaml"), "may have 161.1 MB of memory (ulimit -v), numpy alone takes more"),
        (0.15, ("new", "recipe", "data/train.tsv", "--task", "pair_classification"), "numpy alone takes more"),
        (0.25, ("run", "r.yaml", "--out", "run"), "numpy alone takes more; raise the limit to 335.5 MB at least"),
        (0.5, ("run", "r.yaml", "--out", "run"), "PyTorch alone takes more; raise the limit to 671.1 MB at least"),
        (0.5, ("eval", "run"), "PyTorch alone takes more"),
        (0.75, ("run", "r.yaml", "--out", "run"), "out of memory"),  # less may end in PyTorch's own libraries
        pytest.param(0.8, ("run", "r.yaml", "--out", "run"), "out of memory", marks=pytest.mark.slow),
    ],
)
def test_memory(gigabytes: float, arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    """232: one line and the machine's code, where numpy's and PyTorch's own libraries would end the process."""
    folder = data_folder(tmp_path)
    (folder / "r.yaml").write_text(EMBEDDED)
    done = limited(gigabytes, arguments, folder)
    assert done.code == 6, done.err
    assert len(done.errors) == 1 and words in done.errors[0], done.err
    assert "Traceback" not in done.err and "bug in mtmeta" not in done.err and "OpenBLAS" not in done.err


def test_no_limit_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in (resource.RLIM_INFINITY, 2**40):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, limit=limit: (limit, limit))
        check_memory("PyTorch")


@pytest.mark.parametrize("first", [0, 1])
def test_threads(first: int, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    """233: asked before PyTorch is loaded, which would not come back."""
    if (os.cpu_count() or 1) <= first:
        pytest.skip("one core needs no second thread")
    original, started = threading.Thread.start, list[int]()

    def start(self: threading.Thread) -> None:
        if len(started) == first:
            raise RuntimeError("can't start new thread")
        started.append(1)
        original(self)

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(MachineError, match=rf"can start {first} threads beside its own, \d+ are needed \(ulimit -u"):
        check_torch()


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


SEGMENT = "libscipy_openblas.so: failed to map segment from shared object"
LACKS: dict[str, tuple[Callable[[], Exception], str]] = {
    "a library": (lambda: ImportError(SEGMENT, name="torch"), "out of memory in loading torch; close other programs"),
    "a file": (lambda: OSError(errno.ENOMEM, "Cannot allocate memory", "x.npy"), "out of memory; lower batch_size"),
    "python": (MemoryError, "out of memory; lower batch_size"),
    "weights": (
        lambda: _caused(
            WeightsError("w", "cannot be loaded"), RuntimeError("DefaultCPUAllocator: can't allocate memory")
        ),
        "out of memory; lower batch_size",
    ),
    "a library of weights": (
        lambda: _caused(WeightsError("w", "cannot be read"), _caused(RuntimeError("x"), ImportError(SEGMENT))),
        "out of memory in loading a library; close other programs",
    ),
    "a thread": (lambda: RuntimeError("can't start new thread"), "this process: can start no more threads"),
    "a process": (
        lambda: BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        "this process: can start no more threads",
    ),
}


@pytest.mark.parametrize("what", LACKS)
def test_lack(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """234: whatever says so, it is the machine's code, and no advice to fetch the weights again."""
    make, words = LACKS[what]
    found = explained(make())
    assert isinstance(found, MachineError) and found.exit_code == 6
    assert isinstance(found, OutOfMemory) == words.startswith("out of memory")
    assert str(found).startswith(words)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (2**31, 2**31))
    assert ("or raise the limit of this process (ulimit -v)" in str(explained(make()))) == ("out of memory" in words)


def test_a_built_in_plugin_is_not_broken_for_want_of_memory(
    finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """234: it was `unknown sampler 'uniform'`, and 30 lines of the kind."""
    from mtmeta.core.registry import discovery

    def lacking(*arguments: Any) -> Any:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(discovery, "_slow_import_warning", lacking)
    assert_refused(call("validate", "r.yaml", cwd=finished, capsys=capsys), 6, "can start no more threads")


# ---------------------------------------------------------------------------------------- variables that change bits


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and its run in fp32, which no variable changes to bf16, stopped after the first checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    recipe = quick(folder, "joint", training={"steps": 4, "precision": "fp32"})
    with killed_before_step(3):
        mtmeta.run(recipe, out=folder / "out", device="cpu")
    return recipe, folder / "out"


@pytest.fixture
def cut(begun: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The recipe and a copy of its run."""
    return begun[0], Path(shutil.copytree(begun[1], tmp_path / "out", symlinks=True))


VARIABLES = [
    (235, "MKL_CBWR", "COMPATIBLE"),
    (236, "ONEDNN_MAX_CPU_ISA", "AVX2"),
    (236, "DNNL_MAX_CPU_ISA", "SSE41"),
    (237, "OMP_DYNAMIC", "true"),
    (237, "OMP_THREAD_LIMIT", "1"),
    (238, "ONEDNN_DEFAULT_FPMATH_MODE", "BF16"),
    (238, "MKL_ENABLE_INSTRUCTIONS", "SSE4_2"),
]


@pytest.mark.parametrize(("row", "name", "value"), VARIABLES)
def test_variable(
    row: int, name: str, value: str, cut: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A run that began without it goes on without it alone, or by --allow-inexact, and then only with it."""
    recipe, out = cut
    before = outcome(out)
    monkeypatch.setenv(name, value)
    arguments = ("run", str(recipe), "--out", str(out), "--device", "cpu")
    refused = call(*arguments, cwd=out.parent, capsys=capsys)
    line = f"run used {name} unset; now {name} {value}; results would differ: pass --allow-inexact to go on"
    assert_refused(refused, 4, line)
    assert outcome(out) == before
    assert call(*arguments, "--allow-inexact", cwd=out.parent, capsys=capsys).code == 0
    lock = directory.RunDir(out).lock()
    assert lock["environment"] == {name: value}
    assert lock["inexact"] == [f"{name} unset, then {name} {value}"]


def test_a_variable_that_the_run_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """239: it stands in the lock; without it, and with another value, the run does not go on."""
    recipe, out = quick(tmp_path), tmp_path / "out"
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    with killed_before_step(3):
        mtmeta.run(recipe, out=out, device="cpu")
    assert directory.RunDir(out).lock()["environment"] == {"MKL_CBWR": "AVX2"}
    for value, shown in ((None, "unset"), ("COMPATIBLE", "COMPATIBLE"), ("x" * 5000, "xxx")):
        monkeypatch.delenv("MKL_CBWR")
        if value:
            monkeypatch.setenv("MKL_CBWR", value)
        with pytest.raises(
            CheckpointError, match=re.escape(f"run used MKL_CBWR AVX2; now MKL_CBWR {shown}")
        ) as refused:
            mtmeta.run(recipe, out=out, device="cpu")
        assert len(refused.value.lines()[0]) < 1000
        monkeypatch.setenv("MKL_CBWR", "AVX2")
    assert mtmeta.run(recipe, out=out, device="cpu")["steps"] == 4


@pytest.mark.parametrize("version", [*directory.SAME_BITS, "0.2.0"])
def test_a_lock_that_says_nothing_of_variables(
    version: str, cut: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """239: runs of earlier versions go on where nothing is set, and not where something is."""
    recipe, out = cut
    folder = directory.RunDir(out)
    lock = {**folder.lock(), "mtmeta": version}
    del lock["environment"]
    folder.lock_file.write_text(dump(lock))
    monkeypatch.setenv("MKL_CBWR", "AVX2")
    with pytest.raises(CheckpointError, match="run used MKL_CBWR unset; now MKL_CBWR AVX2"):
        mtmeta.run(recipe, out=out, device="cpu")
    monkeypatch.delenv("MKL_CBWR")
    assert mtmeta.run(recipe, out=out, device="cpu")["steps"] == 4
    assert "inexact" not in folder.lock()


def test_variables_that_change_nothing(cut: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """239: numbers of threads are known by `threads`, ATEN_CPU_CAPABILITY by `processor`; others are not looked at."""
    recipe, out = cut
    for name in ("MKL_NUM_THREADS", "MKL_DYNAMIC", "MKL_DEBUG_CPU_TYPE", "OMP_SCHEDULE", "MKL_VERBOSE", "LANG"):
        monkeypatch.setenv(name, "0")
    assert mtmeta.run(recipe, out=out, device="cpu")["steps"] == 4
    assert json.loads((out / "summary.json").read_text())["steps"] == 4
