"""Events of a training by a callback and by an iterator, and its bar in a notebook."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import mtmeta
from mtmeta.core.api.events import CheckpointSaved, Evaluated, RunFinished, RunStarted, StepDone
from tests.support.paths import ROOT
from tests.support.quick import outcome, quick


def weights(run: Path) -> str:
    return hashlib.sha256((run / "checkpoints" / "step-00000004" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe, and a run of it that nobody listened to."""
    folder = tmp_path_factory.mktemp("plain")
    mtmeta.run(quick(folder), out=folder / "run", device="cpu")
    return folder / "quick.yaml", folder / "run"


def test_a_callback_hears_what_events_jsonl_holds(plain: tuple[Path, Path], tmp_path: Path) -> None:
    heard: list[mtmeta.Event] = []
    run = mtmeta.run(plain[0], out=tmp_path / "run", device="cpu", on_event=heard.append)
    assert [event.json() for event in heard] == (tmp_path / "run" / "events.jsonl").read_text().splitlines()
    assert [event.step for event in heard if isinstance(event, StepDone)] == [1, 2, 3, 4]
    assert isinstance(heard[-1], RunFinished) and heard[-1].summary == run
    assert weights(run.path) == weights(plain[1])


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyboardInterrupt])
def test_what_a_callback_raises_ends_the_run_which_goes_on_later(
    error: type[BaseException], plain: tuple[Path, Path], tmp_path: Path
) -> None:
    def hear(event: mtmeta.Event) -> None:
        if isinstance(event, CheckpointSaved):
            raise error("enough")

    with pytest.raises(error, match="enough"):
        mtmeta.run(plain[0], out=tmp_path / "run", device="cpu", on_event=hear)
    assert not (tmp_path / "run" / "summary.json").exists()
    mtmeta.run(plain[0], out=tmp_path / "run", device="cpu")
    assert outcome(tmp_path / "run") == outcome(plain[1])


def test_events_can_be_gone_through(plain: tuple[Path, Path], tmp_path: Path) -> None:
    """The same events as without, and the same bits, from a thread of its own."""
    kinds = [type(event) for event in mtmeta.events(mtmeta.run, plain[0], out=tmp_path / "run", device="cpu")]
    assert kinds[0] is RunStarted and kinds[-1] is RunFinished
    assert kinds.count(StepDone) == 4 and kinds.count(Evaluated) == 4
    assert outcome(tmp_path / "run") == outcome(plain[1])


def test_who_leaves_the_loop_stops_the_run_at_a_checkpoint(plain: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "run"
    for event in mtmeta.events(mtmeta.run, plain[0], out=out, device="cpu"):
        if isinstance(event, StepDone):
            break
    assert not (out / "summary.json").exists()
    steps = [path.name for path in (out / "checkpoints").glob("step-*")]
    assert steps and steps[0] < "step-00000004"
    rest = list(mtmeta.events(mtmeta.run, plain[0], out=out, device="cpu"))
    assert isinstance(rest[-1], RunFinished)
    assert outcome(out) == outcome(plain[1])


def test_what_the_run_raises_comes_out_of_the_loop(tmp_path: Path) -> None:
    with pytest.raises(mtmeta.RecipeError, match="no such file"):
        list(mtmeta.events(mtmeta.run, tmp_path / "none.yaml"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_a_notebook_has_a_bar(plain: tuple[Path, Path], tmp_path: Path) -> None:
    """In a real kernel: a bar that ends full, lines as text, and nothing on stderr, which notebooks show in red."""
    code = (
        f"import mtmeta\nmtmeta.run({str(plain[0])!r}, out='run', device='cpu', overrides=['reporters=[console]']).mean"
    )
    cell = nbformat.v4.new_code_cell(code)  # type: ignore[no-untyped-call]
    notebook: Any = nbformat.v4.new_notebook(cells=[cell])  # type: ignore[no-untyped-call]
    environment = {key: value for key, value in os.environ.items() if key != "MTMETA_DATA"} | {"PYTHONPATH": str(ROOT)}
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute(env=environment)
    outputs = notebook.cells[0].outputs
    bars = [one["data"]["text/html"] for one in outputs if one["output_type"] == "display_data"]
    assert len(bars) == 1 and 'value="4" max="4"' in bars[0]
    said = "".join(one["text"] for one in outputs if one.get("name") == "stdout")
    assert said.startswith("quick: joint on kind, grade") and "best so far" in said
    assert not [one for one in outputs if one.get("name") == "stderr"]
    assert any(one["output_type"] == "execute_result" for one in outputs)
