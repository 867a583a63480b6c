"""A run that is cut off anywhere, any number of times, ends exactly as one that is not: weights, links, events."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.api.events import Event
from mtmeta.core.errors import CheckpointError
from mtmeta.core.recipe.resolved import dump
from mtmeta.core.run import directory as rundir
from mtmeta.core.run import run as running
from mtmeta.core.run import session, summary
from mtmeta.core.run.event_stream import rewind_events
from mtmeta.core.training import evaluation as evaluate
from mtmeta.core.training.trainer import Trainer
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.quick import Killed, killed_before_step, outcome, quick

OPERATIONS = ("fsync", "rename", "replace", "mkdir", "symlink", "unlink", "rmdir", "ftruncate")


class Killer:
    """Counts what a run does to the disk, each event written among it, and raises Killed at the chosen moment."""

    def __init__(self) -> None:
        self.count = 0
        self.at = 0

    def tick(self) -> None:
        self.count += 1
        if self.count == self.at:
            raise Killed

    @contextmanager
    def kills(self, at: int) -> Iterator[None]:
        self.count, self.at = 0, at
        yield
        self.at = 0

    def counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **named: Any) -> Any:
            self.tick()
            return function(*arguments, **named)

        return counted


@pytest.fixture(autouse=True, scope="module")
def cheap() -> Iterator[None]:
    """Runs without what takes time and says nothing here: a real flush, for what a process wrote outlives it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(evaluate, "BOOTSTRAP_DRAWS", 5)
        yield


@pytest.fixture
def killer(monkeypatch: pytest.MonkeyPatch) -> Killer:
    made = Killer()
    for name in OPERATIONS:
        monkeypatch.setattr(os, name, made.counting(getattr(os, name)))
    monkeypatch.setattr(Event, "json", made.counting(Event.json))
    return made


def whole(recipe: Path, out: Path) -> dict[str, Any]:
    mtmeta.run(recipe, out=out)
    return outcome(out)


def kill_everywhere(algorithm: str, killer: Killer, tmp_path: Path, start: int, stride: int, **changes: Any) -> None:
    recipe, out = quick(tmp_path, algorithm, **changes), tmp_path / "out"
    mtmeta.run(recipe, out=tmp_path / "first")  # tokens are in the cache from here on
    killer.count = 0
    expected = whole(recipe, tmp_path / "whole")
    total = killer.count
    assert total > 60
    for at in range(start, total, stride):
        shutil.rmtree(out, ignore_errors=True)
        with killer.kills(at), pytest.raises(Killed):
            mtmeta.run(recipe, out=out)
        with killer.kills(at // 3 + 1):  # and once more, on its way back; it may be done before that
            try:
                mtmeta.run(recipe, out=out)
            except Killed:
                pass
        mtmeta.run(recipe, out=out)
        assert outcome(out) == expected, f"killed at {at} of {total}"


def test_a_checkpoint_that_time_asked_for_changes_nothing(tmp_path: Path) -> None:
    """It is there to go on from, stands in no event, and is gone in the end."""
    timed = quick(tmp_path, "fomaml", checkpoint={"minutes": 1e-9}, training={"steps": 5})
    plain = timed.with_name("plain.yaml")
    plain.write_text(timed.read_text().replace("1e-09", "null"))
    mtmeta.run(plain, out=tmp_path / "plain")
    with killed_before_step(3):
        mtmeta.run(timed, out=tmp_path / "timed")
    assert sorted(path.name for path in (tmp_path / "timed" / "checkpoints").glob("step-*")) == ["step-00000003"]
    mtmeta.run(timed, out=tmp_path / "timed")
    expected, found = outcome(tmp_path / "plain"), outcome(tmp_path / "timed")
    differing = {name for name in {*expected, *found} if expected.get(name) != found.get(name)}
    assert differing == {"recipe.yaml", "recipe.lock.yaml"}  # which hold the option


@pytest.mark.parametrize(("algorithm", "start"), [("individual", 1), ("joint", 13), ("reptile", 7), ("fomaml", 19)])
def test_killed_at_some_of_its_writes(algorithm: str, start: int, killer: Killer, tmp_path: Path) -> None:
    kill_everywhere(algorithm, killer, tmp_path, start, stride=53 if algorithm != "individual" else 101)


def test_killed_where_tasks_follow_an_encoder(killer: Killer, tmp_path: Path) -> None:
    adapters = {"rank": 2, "trained_by": ["grade"]}
    kill_everywhere("individual", killer, tmp_path, 31, stride=101, adapters=adapters)


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["individual", "reptile"])
def test_killed_at_every_write(algorithm: str, killer: Killer, tmp_path: Path) -> None:
    kill_everywhere(algorithm, killer, tmp_path, 1, stride=1)


def stop_before(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, number: int) -> None:
    """Have the `number`-th call of a method raise Killed."""
    original, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number:
            raise Killed
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, counted)


PLACES: list[tuple[str, Any, str, int]] = [
    ("individual", Trainer, "_one_step", 5),  # between groups
    ("individual", running.Training, "finish", 1),  # between the last checkpoint of a group and its score
    ("individual", session.Session, "score", 2),  # in the middle of the final scoring
    ("joint", running.Training, "summarise", 1),
    ("joint", summary, "write_file", 1),  # between the last event and summary.json
    ("joint", Trainer, "_save", 2),  # between the best weights and the checkpoint
    ("reptile", Trainer, "announce_checkpoint", 1),
]


@pytest.mark.parametrize(("algorithm", "owner", "name", "number"), PLACES)
def test_killed_between(
    algorithm: str, owner: Any, name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = quick(tmp_path, algorithm)
    expected = whole(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_before(patch, owner, name, number)
        with pytest.raises(Killed):
            mtmeta.run(recipe, out=tmp_path / "out")
    mtmeta.run(recipe, out=tmp_path / "out")
    assert outcome(tmp_path / "out") == expected


def test_best_links_go_back_with_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A best value found after the newest checkpoint is not yet found when the run goes on from there."""
    recipe, score = quick(tmp_path, "joint", checkpoint={"every": 2, "keep": 1}, training={"steps": 6}), evaluate.score

    def by_loss(predictions: Any, *arguments: Any, **named: Any) -> Any:
        made, said = score(predictions, *arguments, **named)
        return replace(made, value=-predictions.loss), said  # which on this data is better at each of these steps

    monkeypatch.setattr(evaluate, "score", by_loss)
    with monkeypatch.context() as patch:
        stop_before(patch, Trainer, "_one_step", 4)
        with pytest.raises(Killed):
            mtmeta.run(recipe, out=tmp_path / "out")
    folder = tmp_path / "out" / "checkpoints"
    assert (folder / "best").readlink().name == "best-00000003"
    assert (folder / "best-00000002").is_dir(), "the kept checkpoint names it"
    with monkeypatch.context() as patch:
        stop_before(patch, Trainer, "_one_step", 1)
        with pytest.raises(Killed):
            mtmeta.run(recipe, out=tmp_path / "out")
    assert (folder / "best").readlink().name == "best-00000002"
    assert not (folder / "best-00000003").exists(), "of steps that are yet to come"
    mtmeta.run(recipe, out=tmp_path / "out")
    assert outcome(tmp_path / "out") == whole(recipe, tmp_path / "whole")


def test_a_warning_of_an_evaluation_that_is_made_again_stands_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, score = quick(tmp_path, "joint"), evaluate.score

    def warning(predictions: Any, *arguments: Any, **named: Any) -> Any:
        made, said = score(predictions, *arguments, **named)
        return made, [*said, f"{predictions.dataset.task} is at {made.value}"]

    monkeypatch.setattr(evaluate, "score", warning)
    expected = whole(recipe, tmp_path / "whole")
    assert sum(event["type"] == "warning" for event in expected["events.jsonl"]) > 4
    with monkeypatch.context() as patch:
        stop_before(patch, Trainer, "_one_step", 4)
        with pytest.raises(Killed):
            mtmeta.run(recipe, out=tmp_path / "out")
    mtmeta.run(recipe, out=tmp_path / "out")
    assert outcome(tmp_path / "out") == expected


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("file", ["model.safetensors", "optimizer.safetensors", "state.json", "MANIFEST.json"])
def test_a_damaged_newest_checkpoint(file: str, tmp_path: Path) -> None:
    """Rows 39 to 41: one warning that names the file and what is used instead; then all is as if nothing had been."""
    recipe = quick(tmp_path, "reptile")
    expected = whole(recipe, tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    flip(tmp_path / "out" / "checkpoints" / "step-00000004" / file)
    said: list[str] = []
    mtmeta.run(recipe, out=tmp_path / "out", warn=said.append)
    (line,) = said
    assert line.startswith(f"{tmp_path}/out/checkpoints/step-00000004/{file}: damaged")
    assert line.endswith("; using step-00000002")
    assert outcome(tmp_path / "out") == expected


def test_damaged_best_weights_count_as_damage_of_the_checkpoints_that_name_them(tmp_path: Path) -> None:
    recipe = quick(tmp_path, "joint")
    expected = whole(recipe, tmp_path / "out")
    (tmp_path / "out" / "summary.json").unlink()
    folder = tmp_path / "out" / "checkpoints"
    flip(folder / "best" / "model.safetensors")
    named = (folder / "best").readlink().name
    said: list[str] = []
    mtmeta.run(recipe, out=tmp_path / "out", warn=said.append)
    assert len(said) == 1 and f"{named}/model.safetensors: damaged (sha256 mismatch)" in said[0]
    assert outcome(tmp_path / "out") == expected


def test_an_earlier_group_that_goes_back_leaves_no_event_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = quick(tmp_path, "individual")
    expected = whole(recipe, tmp_path / "whole")
    with monkeypatch.context() as patch:
        stop_before(patch, Trainer, "_one_step", 8)
        with pytest.raises(Killed):
            mtmeta.run(recipe, out=tmp_path / "out")
    flip(tmp_path / "out" / "checkpoints" / "kind" / "step-00000004" / "model.safetensors")
    mtmeta.run(recipe, out=tmp_path / "out")
    found = outcome(tmp_path / "out")

    def told(events: list[dict[str, Any]]) -> list[str]:
        return sorted(json.dumps(event) for event in events)

    assert told(found.pop("events.jsonl")) == told(expected.pop("events.jsonl"))
    assert found == expected


def test_rewind_cuts_torn_lines_and_later_events(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    kept = b'{"type": "run_started"}\n{"type": "step", "group": "a", "step": 2}\n'
    torn = b'{"type": "checkpoint", "group": "a", "step": 2}'
    for rest in (
        b"",
        torn[:20],
        torn,
        b'{"type": "step", "group": "a", "step": 3}\n',
        b"\x00\n",
        b"[]\n",
        b'{"a": 1}\n',
    ):
        path.write_bytes(kept + rest)
        found = rewind_events(path, {"a": 2})
        assert (path.read_bytes(), found.started, found.checkpoints) == (kept, True, set())
    path.write_bytes(kept + torn + b"\n")
    assert rewind_events(path, {"a": 2}).checkpoints == {("a", 2)}
    assert path.read_bytes() == kept + torn + b"\n"
    assert not rewind_events(path, {}).started
    assert path.read_bytes() == b""


# --------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture(scope="module")
def begun(cheap: None, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A recipe and its run, stopped after the first checkpoint."""
    folder = tmp_path_factory.mktemp("begun")
    recipe = quick(folder, "joint", training={"steps": 4, "precision": "fp32"})
    with pytest.MonkeyPatch.context() as patch:
        stop_before(patch, Trainer, "_one_step", 4)
        with pytest.raises(Killed):
            mtmeta.run(recipe, out=folder / "out")
    return recipe, folder / "out"


@pytest.fixture
def cut(begun: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The recipe and a copy of its run."""
    return begun[0], Path(shutil.copytree(begun[1], tmp_path / "out", symlinks=True))


CHANGES = [
    ("mtmeta", "0.0.1"),
    ("torch", "2.9.9"),
    ("numpy", "1.0"),
    ("tokenizers", "0.1"),
    ("threads", 64),
    ("device", "cuda"),
    ("processor", "abacus"),
    ("precision", "bf16"),
    ("plugins", {"mtmeta-elsewhere": "0.3"}),
]


@pytest.mark.parametrize(("key", "value"), CHANGES)
def test_another_machine_is_refused_by_name(key: str, value: Any, cut: tuple[Path, Path]) -> None:
    """Row 50."""
    recipe, out = cut
    folder = rundir.RunDir(out)
    folder.lock_file.write_text(dump({**folder.lock(), key: value}))
    before = outcome(out)
    named = "plugin mtmeta-elsewhere 0.3; now plugin mtmeta-elsewhere absent" if key == "plugins" else f"{key} {value};"
    with pytest.raises(CheckpointError) as refused:
        mtmeta.run(recipe, out=out)
    assert str(refused.value).startswith(f"{out}: run used {named}")
    assert str(refused.value).endswith("; results would differ: pass --allow-inexact to go on")
    assert outcome(out) == before
    assert mtmeta.run(recipe, out=out, allow_inexact=True)["steps"] == 4
    assert len(folder.lock()["inexact"]) == 1
    assert mtmeta.run(recipe, out=out)["steps"] == 4  # the run is this machine's now, and its lock says so


def test_a_version_with_the_same_bits_goes_on(cut: tuple[Path, Path]) -> None:
    """The lock keeps the version that the run began with, and says nothing of another one."""
    recipe, out = cut
    folder = rundir.RunDir(out)
    lock = {**folder.lock(), "mtmeta": rundir.SAME_BITS[-1]}
    folder.lock_file.write_text(dump(lock))
    assert mtmeta.run(recipe, out=out)["steps"] == 4
    assert folder.lock() == lock


def test_every_difference_stands_in_one_line(cut: tuple[Path, Path]) -> None:
    recipe, out = cut
    folder = rundir.RunDir(out)
    lock = folder.lock()
    folder.lock_file.write_text(dump({**lock, "torch": "2.9.9", "threads": 64}))
    with pytest.raises(CheckpointError, match=rf"run used torch 2\.9\.9, threads 64; now torch {lock['torch'][:4]}"):
        mtmeta.run(recipe, out=out)


def test_a_checkpoint_of_another_model(cut: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 43."""
    from mtmeta.core.training.checkpoint import Checkpoints

    recipe, out = cut
    load = Checkpoints.load

    def other(self: Checkpoints, path: Path, *, verified: bool = False) -> Any:
        model, optimizer, state = load(self, path, verified=verified)
        model["encoder.words.weight"] = model.pop(next(iter(model)))[:1]
        return model, optimizer, state

    monkeypatch.setattr(Checkpoints, "load", other)
    with pytest.raises(CheckpointError, match=r"tensor '[a-z_.]+' is .*, model needs .* \(\+1 more\); --fresh"):
        mtmeta.run(recipe, out=out)
