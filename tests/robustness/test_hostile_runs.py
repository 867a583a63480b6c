"""Run directories from strangers: nothing outside them is written to, whatever they hold."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

import mtmeta
from mtmeta.core.errors import CheckpointError, MachineError, UsageError
from mtmeta.core.run.event_stream import rewind_events
from mtmeta.core.training.state import read_state
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.quick import outcome, quick


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and a run of it that has not written its summary."""
    folder = tmp_path_factory.mktemp("half")
    recipe = quick(folder)
    mtmeta.run(recipe, out=folder / "run")
    (folder / "run" / "summary.json").unlink()
    return recipe, folder / "run"


@pytest.mark.parametrize("links", ["symbolic", "hard"])
def test_the_lock_is_written_to_no_other_file(links: str, tmp_path: Path) -> None:
    victim, out = tmp_path / "victim", tmp_path / "out"
    victim.write_text("precious")
    out.mkdir()
    (out / ".lock").symlink_to(victim) if links == "symbolic" else (out / ".lock").hardlink_to(victim)
    with pytest.raises((CheckpointError, MachineError), match=r"\.lock"):
        mtmeta.run(quick(tmp_path), out=out)
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["events.jsonl", "predictions", "checkpoints", "backbone", "recipe.yaml"])
@pytest.mark.parametrize("fresh", [False, True])
def test_links_in_a_run_directory_are_not_followed(
    name: str, fresh: bool, half: tuple[Path, Path], tmp_path: Path
) -> None:
    recipe, run = half
    out, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    shutil.copytree(run, out, symlinks=True)
    shutil.move(out / name, elsewhere)
    (out / name).symlink_to(elsewhere)
    before = elsewhere.read_bytes() if elsewhere.is_file() else outcome(elsewhere)
    with pytest.raises(UsageError, match="is a symbolic link"):
        mtmeta.run(recipe, out=out, fresh=fresh)
    assert before == (elsewhere.read_bytes() if elsewhere.is_file() else outcome(elsewhere))
    assert (out / "recipe.lock.yaml").exists()  # nothing was begun


def test_the_folder_of_a_group_is_no_link(tmp_path: Path) -> None:
    """Of an algorithm that trains tasks alone: old checkpoints in it are deleted."""
    recipe, out, elsewhere = quick(tmp_path, "individual"), tmp_path / "out", tmp_path / "elsewhere"
    mtmeta.run(recipe, out=out)
    (out / "summary.json").unlink()
    shutil.move(out / "checkpoints" / "kind", elsewhere)
    (elsewhere / "step-00000001").mkdir()  # an old one
    (out / "checkpoints" / "kind").symlink_to(elsewhere)
    before = outcome(elsewhere)
    for fresh in (False, True):
        with pytest.raises(UsageError, match="checkpoints/kind: is a symbolic link; remove it, or choose another"):
            mtmeta.run(recipe, out=out, fresh=fresh)
    assert outcome(elsewhere) == before and (elsewhere / "step-00000001").is_dir()


@pytest.mark.parametrize("link", ["../../victim", "best-../victim", "best-sst/../../victim", "", "Best"])
def test_saved_links_name_no_other_place(link: str) -> None:
    good = {
        "step": 1, "seconds": 1.5, "skipped": 0, "bests": {}, "links": {"best": "best-00000001"}, "plateau": None,
        "examples": 4, "episodes": {}, "feed": {}, "warned": [],
    }  # fmt: skip
    assert read_state(good).links == {"best": "best-00000001"}
    for changed in ({link: "best-00000001"}, {"best": link}):
        with pytest.raises(ValueError, match="links"):
            read_state({**good, "links": changed})
    for key, value in (("step", []), ("step", -1), ("seconds", float("nan")), ("episodes", {"a": 1.5}), ("more", 1)):
        with pytest.raises(ValueError, match=key):
            read_state({**good, key: value})


def test_a_copy_that_followed_the_links_goes_on(half: tuple[Path, Path], tmp_path: Path) -> None:
    recipe, run = half
    out = tmp_path / "out"
    shutil.copytree(run, out)  # best is a directory now
    assert (out / "checkpoints" / "best").is_dir() and not (out / "checkpoints" / "best").is_symlink()
    mtmeta.run(recipe, out=out)
    assert (out / "checkpoints" / "best").is_symlink()


def test_events_that_say_too_little_are_cut(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    good = json.dumps({"type": "run_started"}) + "\n"
    path.write_text(good + json.dumps({"type": "checkpoint"}) + "\n")
    rewind_events(path, {"a": 2})
    assert path.read_text() == good
