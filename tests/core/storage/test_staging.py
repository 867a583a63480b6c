"""The folder of an export: whole or not there, never over anything else; and what is refused, in one line."""

from __future__ import annotations

import fcntl
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mtmeta
from mtmeta.core.export import check as export_check
from mtmeta.core.export import export as exporting
from mtmeta.core.export import onnx_graphs as export_onnx
from mtmeta.core.export.export import export
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.generic import ClassificationTask
from tests.support.commands import assert_refused, call, contents, quietly
from tests.support.quick import quick


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two finished runs, `one` and `two`."""
    folder = tmp_path_factory.mktemp("runs")
    with quietly():
        for name, seed in (("one", 5), ("two", 6)):
            mtmeta.run(quick(folder / name, seed=seed, training={"steps": 1}), out=folder / name / "run", device="cpu")
    return folder


@pytest.fixture
def out(runs: Path, tmp_path: Path) -> Path:
    """An export of `one`."""
    return Path(export(runs / "one/run", "transformers", out=tmp_path / "out")["folder"])


def hidden(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


# ------------------------------------------------------------------------------------------------------------ the place


def test_the_same_run_again_replaces_it_with_the_same_bytes(runs: Path, out: Path) -> None:
    before = contents(out)
    (out / "__pycache__").mkdir()  # what running modeling.py leaves
    (out / "__pycache__" / "modeling.cpython-311.pyc").write_bytes(b"x")
    export(runs / "one/run", "transformers", out=out)
    assert contents(out) == before
    assert hidden(out.parent) == []


def test_what_is_no_export_of_this_run_stays(
    runs: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And --fresh replaces exports alone, never a file that no export wrote."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    (tmp_path / "link").symlink_to(mine, target_is_directory=True)
    (tmp_path / "file").write_text("x")
    before = contents(tmp_path)

    def refused(run: str, target: str, form: str, *words: str, fresh: bool = False) -> None:
        arguments = ["export", str(runs / run / "run"), "--format", form, "--out", target, *["--fresh"] * fresh]
        assert_refused(call(*arguments, cwd=tmp_path, capsys=capsys), 2, *words)
        assert contents(tmp_path) == before

    for fresh in (False, True):
        refused("one", "mine", "transformers", "mine/: not empty and no export of mtmeta; choose", fresh=fresh)
        refused("one", "link", "transformers", "link: is a link; choose", fresh=fresh)
        refused("one", "file", "transformers", "file: is a file; choose", fresh=fresh)
        refused("one", "file/below", "transformers", "file: is a file; choose", fresh=fresh)
    for where in (".", "..", str(tmp_path), "mine/..", ""):
        refused("one", where, "transformers", "--out: ", "is the current folder or above it; give a folder in it")
    refused("two", "out", "transformers", "out/: holds an export of another run; choose another", "--fresh")
    refused("one", "out", "sentence-transformers", "out/: holds an export in format 'transformers'; choose", "--fresh")
    (out / "README.md").write_text("edited")
    before = contents(tmp_path)
    refused("one", "out", "transformers", "out/: 'README.md' was changed since; choose another", "--fresh")
    (out / "notes.txt").write_text("mine")
    before = contents(tmp_path)
    refused("one", "out", "transformers", "out/: holds 'notes.txt', which no export wrote; move it away", fresh=True)
    (out / "notes.txt").unlink()
    made = call(
        "export",
        str(runs / "two/run"),
        "--format",
        "transformers",
        "--out",
        "out",
        "--fresh",
        cwd=tmp_path,
        capsys=capsys,
    )
    assert (made.code, made.out) == (0, "out\n")
    assert json.loads((out / "export.json").read_text())["run"] != json.loads(before["out/export.json"])["run"]


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"files": [], "run": {}, "format": ""}', '{"files": {"a": 1}}'])
def test_a_damaged_manifest_is_no_export(text: str, runs: Path, tmp_path: Path) -> None:
    (tmp_path / "export.json").write_text(text)
    with pytest.raises(mtmeta.UsageError, match=r"export\.json: is damaged; remove the folder"):
        export(runs / "one/run", "transformers", out=tmp_path, fresh=True)
    assert [path.name for path in tmp_path.iterdir()] == ["export.json"]


def test_an_empty_folder_and_folders_that_are_not_there_will_do(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "a/b \u00e9/c"):
        assert Path(export(runs / "one/run", "transformers", out=tmp_path / name)["folder"], "config.json").is_file()


@pytest.mark.parametrize("error", [KeyboardInterrupt, mtmeta.MachineError("x", "y")])
def test_a_cut_leaves_the_old_export_and_nothing_else(
    error: Any, runs: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(out)

    def cut(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(exporting, "card", cut)
    with pytest.raises(BaseException) as raised:
        export(runs / "one/run", "transformers", out=out)
    assert isinstance(raised.value, KeyboardInterrupt | mtmeta.MachineError)
    with pytest.raises(BaseException):  # noqa: B017
        export(runs / "one/run", "transformers", out=out.parent / "new" / "below")
    assert contents(out) == before
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_drafts_of_a_killed_process_go_and_those_of_others_stay(runs: Path, tmp_path: Path) -> None:
    random = "0123456789abcdef"
    names = [f".out.{random}.tmp", f".out.{random[::-1]}.tmp", f".other.{random}.tmp", ".out.x.tmp", ".out.4194999.tmp"]
    for name in names:
        (tmp_path / name).mkdir()
    handle = os.open(tmp_path / names[1], os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)  # as the process does that works on it
    export(runs / "one/run", "transformers", out=tmp_path / "out")
    os.close(handle)
    assert sorted(hidden(tmp_path)) == sorted(names[1:])


def test_a_difference_that_is_too_large_leaves_nothing(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights that do not belong: the comparison is of outputs, so any slip on the way shows."""
    original = exporting.load_part

    def spoilt(*arguments: Any, **options: Any) -> Any:
        part = original(*arguments, **options)
        first = next(part.portable.encoder.parameters())
        first.data = first.data * 1.01  # in place it would change the run's own
        return part

    monkeypatch.setattr(exporting, "load_part", spoilt)
    for form in ("transformers", "sentence-transformers"):
        arguments = ("export", str(runs / "one/run"), "--format", form, "--out", "out")
        words = ("differs from `mtmeta predict` by", "nothing was kept")
        assert_refused(call(*arguments, cwd=tmp_path, capsys=capsys), 6, *words)
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_finite_is_different() -> None:
    whole = np.zeros((10, 2))
    made = [[whole[part].copy()] for part in export_check.BATCHES]
    assert export_check.difference([whole], made) == 0
    made[1][0][0, 1] = np.nan
    with pytest.raises(mtmeta.DivergedError, match="outputs are not finite"):
        export_check.check("x", export_check.difference([whole], made), 1e-5)


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("one/run", "--format", "onxx"), ("--format: 'onxx' is no format; did you mean 'onnx'?",)),
        (("one/run", "--format", "tflite"), ("'tflite' is no format; one of transformers, text-classification, tok",)),
        (("one/run",), ("--format",)),
        (
            ("one/run", "--format", "onnx", "--task", "kimd"),
            ("--task: this run has no task 'kimd'; did you mean 'kind'?",),
        ),
        (("none", "--format", "transformers"), ("none: is no mtmeta run",)),
        (("one", "--format", "transformers"), ("one: is no mtmeta run",)),
    ],
)
def test_a_wrong_command_line_is_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...], runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(runs)
    assert_refused(call("export", *arguments, cwd=runs, capsys=capsys), 2, *words)
    assert contents(runs) == before


@pytest.mark.parametrize("package", ["onnx", "onnxscript", "onnxruntime"])
def test_a_package_that_is_not_there(
    package: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    arguments = ("export", str(runs / "one/run"), "--format", "onnx", "--out", "out")
    expected = f"--format onnx: needs {package}, which is not installed; pip install 'mtmeta[onnx]'"
    assert_refused(call(*arguments, cwd=tmp_path, capsys=capsys), 6, expected)
    assert list(tmp_path.iterdir()) == []


def test_transformers_and_sentence_transformers_need_not_be_there(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folders are written by mtmeta alone; and --json prints one document."""
    for name in ("transformers", "sentence_transformers", "onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    for form in ("transformers", "sentence-transformers"):
        arguments = ("export", str(runs / "one/run"), "--format", form, "--out", form, "--json")
        done = call(*arguments, cwd=tmp_path, capsys=capsys)
        assert done.code == 0, done.err
        made = json.loads(done.out)
        assert made["folder"] == form and made["steps"] == {"kind": 1, "grade": 1}
        found = contents(tmp_path / form)
        assert {name: len(found[name]) for name in made["files"]} == made["files"]
        assert found.keys() - made["files"].keys() <= {"export.json"}


def test_an_encoder_too_large_for_the_format(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export_onnx, "LIMIT", 100)
    with pytest.raises(mtmeta.UsageError, match="takes files of 2 GB"):
        next(export_onnx.task_graphs(nn.Linear(100, 100), {}, {}))


class OwnHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(32, 2))

    def forward(self, pooled: Any) -> Any:
        return pooled[:, 0] @ self.weight


def test_a_head_of_a_plugins_own_is_refused_by_name_and_the_encoder_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ClassificationTask, "build_head", lambda self, width: OwnHead())
    mtmeta.run(quick(tmp_path, training={"steps": 1}), out=tmp_path / "run", device="cpu")
    for form in ("transformers", "onnx"):
        outcome = call("export", "run", "--format", form, cwd=tmp_path, capsys=capsys)
        assert_refused(outcome, 5, "task 'kind' has a head of its own, OwnHead, which cannot be exported", "--task")
    assert not (tmp_path / "run" / "export").exists()
    for arguments in (("transformers", "--task", "grade"), ("sentence-transformers",)):
        assert call("export", "run", "--format", *arguments, cwd=tmp_path, capsys=capsys).code == 0


def test_a_backbone_that_cannot_be_exported_says_so(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delattr(Bert, "portable")  # as a plugin's that knows nothing of it
    arguments = ("export", str(runs / "one/run"), "--format", "onnx", "--out", "a/b")
    expected = "backbone 'bert': has no method `portable` and cannot be exported"
    assert_refused(call(*arguments, cwd=tmp_path, capsys=capsys), 5, expected)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_finished_says_so_in_its_card(runs: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(runs / "one/run", tmp_path / "run", symlinks=True)
    (tmp_path / "run" / "summary.json").unlink()
    folder = Path(export(tmp_path / "run", "transformers")["folder"])
    text = (folder / "README.md").read_text()
    assert "The run is not finished" in text and "model-index" not in text
