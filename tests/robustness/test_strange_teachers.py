"""A stranger's frozen encoder and teachers, through every command that reads or writes them: nothing outside changes.

As test_strangers.py, whose scene this is: of a finished run with adapters, entries of `encoder/` and `teachers/`, and
of a folder of `mtmeta teach`, its fold models and labels, become one at a time a link, a hard link, a FIFO or something
of another type.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import pytest

import mtmeta
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run.request import RunRequest
from mtmeta.core.studies.teach import teach
from tests.robustness.test_strangers import COMMANDS, KINDS, Capture, Scene, Stranger, fault, snapshot
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import call, quietly
from tests.support.quick import quick
from tests.support.taught import make_labels

TEACHERS = "teachers={{kind: {{runs: [{run}]}}}}"
LEARN = {"learn": ("run", "{recipe}", "--out", "student", "--set", TEACHERS)}
OF_A_RUN = {
    **{name: words for name, words in COMMANDS.items() if name not in ("validate", "fetch")},  # which read no run
    **LEARN,
    "learn, dry run": (*LEARN["learn"], "--dry-run"),
    "teach": ("teach", "{recipe}", "--set", TEACHERS),
}
OF_LABELS = {**LEARN, "teach": ("teach", "{recipe}", "--folds", "2", "--out", "{run}")}
TABLE, HASH = "teachers/kind/table.safetensors", "teachers/kind/table.sha256"
IN_A_RUN = ("encoder", "encoder/model.safetensors", "encoder/MANIFEST.json", "teachers", "teachers/kind", TABLE, HASH)
IN_LABELS = ("fold-1", "fold-2", "teachers", "teachers/kind", TABLE, HASH, "fold-1/encoder", "fold-2/checkpoints")


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Stranger]:
    """`run`, a finished one with a frozen encoder, which labelled one of its tasks; `labels`, of two fold models."""
    folder = tmp_path_factory.mktemp("taught")
    recipe = quick(folder / "data", adapters={"rank": 1, "encoder": "frozen"}, training={"steps": 2})
    name = f"quick-5-{digest(load_recipe(recipe, build_registry()))[:8]}"  # as compare names it
    with quietly():
        mtmeta.run(recipe, out=folder / "runs" / name, device="cpu")
        teach(RunRequest(recipe, overrides=[TEACHERS.format(run=folder / "runs" / name)], device="cpu"))
        make_labels(recipe, folder / "more" / "runs" / "labels", device="cpu")
    (folder / "more" / "data").symlink_to(folder / "data")
    return {"run": Stranger(folder, name), "labels": Stranger(folder / "more", "labels")}


class Lesson(Scene):
    """The scene, and what is asked of it."""

    commands: Mapping[str, tuple[str, ...]]

    def arguments(self, name: str) -> list[str]:
        if name == "continue":
            (self.run / "summary.json").unlink()
        words = {"recipe": self.data / "quick.yaml", "run": self.run, "runs": self.runs, "data": self.data}
        return [word.format(**words) for word in self.commands[name]]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("what", "commands", "entries"), [("run", OF_A_RUN, IN_A_RUN), ("labels", OF_LABELS, IN_LABELS)]
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("every", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_what_is_no_file_of_its_own(
    every: bool,
    kind: str,
    what: str,
    commands: Mapping[str, tuple[str, ...]],
    entries: tuple[str, ...],
    taught: Mapping[str, Stranger],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    """Every entry through every command; without `every` each of both once at least, all that write labels included."""
    pairs = [(entry, name) for entry in entries for name in commands]
    if not every:
        start = KINDS.index(kind)
        some = [(entries[(i + start) % len(entries)], name) for i, name in enumerate(commands)]
        pairs = list(dict.fromkeys([*some, *(pair for pair in pairs if pair[1] == "teach" and what == "run")]))
    faults: list[str] = []
    for number, (entry, name) in enumerate(pairs):
        (folder := tmp_path / str(number)).mkdir()
        scene = Lesson(taught[what], folder, monkeypatch)
        scene.commands = commands
        if scene.spoil(kind, entry):
            faults += fault(scene, name, f"{entry} is a {kind}, mtmeta {name}", capsys)
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("entry", ["fold-1", "teachers"])
def test_a_fold_model_that_lies_elsewhere_is_not_gone_on_with(
    entry: str, taught: Mapping[str, Stranger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """What is not finished there would be trained there."""
    scene = Lesson(taught["labels"], tmp_path, monkeypatch)
    scene.commands = OF_LABELS
    (scene.home / "real" / "fold-1" / "summary.json").unlink()
    scene.before = snapshot(scene.home)
    scene.spoil("symlink", entry)
    outcome = call(*scene.arguments("teach"), cwd=scene.box, capsys=capsys)
    scene.check(outcome, entry)
    assert outcome.code == 2
    assert f"{entry}: is a symbolic link; remove it, or choose another folder with --out" in outcome.err


@pytest.mark.parametrize("entry", ["encoder/model.safetensors", "encoder/MANIFEST.json", TABLE, HASH])
def test_a_pipe_is_named(
    entry: str, taught: Mapping[str, Stranger], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    scene = Lesson(taught["run"], tmp_path, monkeypatch)
    scene.commands = OF_A_RUN
    scene.spoil("FIFO", entry)
    outcome = call(*scene.arguments("learn" if "teachers" in entry else "predict"), cwd=scene.box, capsys=capsys)
    scene.check(outcome, entry)
    assert outcome.code in (3, 4) and entry in outcome.err
