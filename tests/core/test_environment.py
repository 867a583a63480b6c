"""What the process was started with: half of a launcher's variables, an old torch, a package that is gone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

import mtmeta
from mtmeta.core.environment import HUGE_PAGES, LEAST_TORCH, check_launcher, check_torch
from tests.support.commands import assert_refused, command, data_folder
from tests.support.paths import ROOT

RUN = ("run", "r.yaml", "--out", "out")


def path_with(folder: Path) -> dict[str, str]:
    """`folder` before everything else."""
    return {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


def test_half_of_a_launcher(tmp_path: Path) -> None:
    """Row 69."""
    folder = data_folder(tmp_path / "here")
    outcome = command(*RUN, cwd=folder, env={"RANK": "0"})
    assert_refused(
        outcome, 6, "error: RANK: is set but WORLD_SIZE is not; unset it, or start several ranks with torchrun"
    )
    assert not (folder / "out").exists()


@pytest.mark.parametrize("world", ["4", "0", "", "x", "-1", "1" * 5000, "\x1b[31m"])
def test_a_launcher_of_several(world: str) -> None:
    with pytest.raises(mtmeta.MachineError) as caught:
        check_launcher({"RANK": "0", "WORLD_SIZE": world})
    (line,) = caught.value.lines()
    assert line.startswith("error: WORLD_SIZE: is '")
    assert line.endswith("', but a run is one process; start it without torchrun")
    assert line.isprintable()


@pytest.mark.parametrize("environ", [{}, {"WORLD_SIZE": "1"}, {"WORLD_SIZE": "1", "RANK": "0"}])
def test_one_process_is_fine(environ: Mapping[str, str]) -> None:
    check_launcher(environ)


def test_an_old_torch(tmp_path: Path) -> None:
    """Row 71: told before torch is imported, which may fail in any way."""
    folder = data_folder(tmp_path / "here")
    (tmp_path / "site" / "torch-2.5.1.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "torch-2.5.1.dist-info" / "METADATA").write_text("Name: torch\nVersion: 2.5.1+cpu\n")
    (tmp_path / "site" / "torch.py").write_text("raise AssertionError('imported')\n")
    expected = "error: this command needs torch >= 2.10, found 2.5.1+cpu; pip install 'torch>=2.10'"
    for arguments in (RUN, ("eval", "out")):
        assert_refused(command(*arguments, cwd=folder, env=path_with(tmp_path / "site")), 6, expected)
    assert not (folder / "out").exists()
    assert command("validate", "r.yaml", cwd=folder, env=path_with(tmp_path / "site")).code == 0


def test_a_package_that_is_gone(tmp_path: Path) -> None:
    """Row 71."""
    folder = data_folder(tmp_path / "here")
    (tmp_path / "site").mkdir()
    missing = "raise ModuleNotFoundError(\"No module named 'safetensors'\", name='safetensors')\n"
    (tmp_path / "site" / "safetensors.py").write_text(missing)
    outcome = command(*RUN, cwd=folder, env=path_with(tmp_path / "site"))
    assert_refused(outcome, 6, "error: this command needs the package 'safetensors'; pip install mtmeta again")


@pytest.mark.parametrize(
    ("version", "fine"),
    [("2.10.0", True), ("2.13.0+cpu", True), ("3.0", True), ("2.9.1", False), ("1.13", False), ("unknown", True)],
)
def test_versions(version: str, fine: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda name: version)
    if fine:
        check_torch()
    else:
        with pytest.raises(mtmeta.MachineError, match=f"found {version}"):
            check_torch()


def test_the_least_torch_is_what_the_package_asks_for() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    assert f'"torch>={LEAST_TORCH[0]}.{LEAST_TORCH[1]}"' in text


@pytest.mark.parametrize("chosen", [None, "0"])
def test_huge_pages_are_asked_for_unless_the_user_decided(chosen: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(HUGE_PAGES, chosen or "")  # which puts back what was there, whatever is set below
    if chosen is None:
        monkeypatch.delenv(HUGE_PAGES)
    check_torch()
    linux = os.path.exists("/sys/kernel/mm/transparent_hugepage/enabled")
    assert os.environ.get(HUGE_PAGES) == (chosen or ("1" if linux else None))
