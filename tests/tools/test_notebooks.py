"""The notebooks of docs/: each runs from its first cell to its last in a kernel of its own, and shows what it says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support.paths import ROOT

NOTEBOOKS = sorted((ROOT / "docs").rglob("*.ipynb"))


def outputs_of(cell: Any) -> str:
    texts = [one.get("text", "") + one.get("data", {}).get("text/plain", "") for one in cell.outputs]
    return "".join(texts)


def test_there_are_notebooks() -> None:
    assert [path.name for path in NOTEBOOKS] == ["from_memory.ipynb"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook: Any = nbformat.read(path, as_version=4)  # type: ignore[no-untyped-call]
    assert not [cell for cell in notebook.cells if cell.get("outputs")], "save it without outputs"
    given = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")}
    resources = {"metadata": {"path": str(tmp_path)}}
    client = NotebookClient(notebook, timeout=400, kernel_name="python3", resources=resources)
    client.execute(env=given | {"PYTHONPATH": str(ROOT), "MTMETA_CACHE": str(tmp_path / "cache")})
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    ours = [cell for cell in code if "mtmeta.train" in cell.source or "predict" in cell.source]
    assert not [one for cell in ours for one in cell.outputs if one.get("name") == "stderr"]
    said = {cell.source: outputs_of(cell) for cell in code}
    assert any("<progress" in str(one.get("data")) for cell in code for one in cell.outputs)
    assert next(text for source, text in said.items() if "steps += event" in source) == "5"
    assert "label='praise'" in next(text for source, text in said.items() if 'predict("tone"' in source)
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"notebook", "short", "compared"}
