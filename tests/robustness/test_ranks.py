"""Any number of ranks gives the bits of one, whatever dies; what cannot be done right is refused in one line."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.robustness.conftest import Material
from tests.robustness.forks import Forks
from tests.robustness.small import differences, outcome, timeless, write_recipe
from tests.support.paths import ROOT
from tests.support.ranks import RANKS, ended

TASKS = ("sst", "para", "sts")
INNER = {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999]}
REPTILE = {"name": "reptile", "inner_optimizer": INNER, "inner_state": "per_task", "tasks_per_step": 3}
FOMAML = {"name": "fomaml", "inner_optimizer": {"name": "nadam", "lr": 1e-2}, "tasks_per_step": 3, "support": "all"}
TWICE = {"tasks_per_step": 5, "with_replacement": True}  # a task's second slot goes on with the state of its first
# algorithm of `small.ALGORITHMS`, and what is changed of it
SPREAD: dict[str, tuple[str, dict[str, Any]]] = {
    "individual": ("individual", {}),
    "individual, shards": ("individual", {"training": {"shards": 2}}),
    "joint": ("joint", {"algorithm": "joint", "training": {}}),
    "joint, shards": ("joint", {"algorithm": "joint", "training": {"shards": 3, "grad_accumulation": 2}}),
    "joint, uncertainty": ("joint", {"algorithm": {"name": "joint", "weighting": "uncertainty"}, "training": {}}),
    "joint, alternate": ("joint", {"training": {"shards": 2, "clip": 0.5}}),
    "reptile": ("reptile", {"algorithm": REPTILE}),
    "reptile, twice": ("reptile", {"algorithm": {**REPTILE, **TWICE}}),
    "reptile, shards": ("reptile", {"algorithm": REPTILE, "training": {"shards": 2}}),
    "reptile, one task": ("reptile", {"algorithm": {**REPTILE, "tasks_per_step": 1}, "training": {"shards": 3}}),
    "reptile, shared": ("reptile", {"algorithm": {**REPTILE, "inner_state": "shared"}, "training": {"shards": 2}}),
    "fomaml": ("fomaml", {"algorithm": FOMAML, "training": {}}),
    "fomaml, shards": ("fomaml", {"algorithm": FOMAML, "training": {"shards": 1}}),
    "anil": ("anil", {"algorithm": {"name": "anil", "inner_lr": 0.1, "tasks_per_step": 3}}),
    "maml": ("maml", {"algorithm": {"name": "maml", "order": 2, "tasks_per_step": 2}}),
    "metasgd": ("metasgd", {"algorithm": {"name": "metasgd", "inner_lr": 1e-2, "tasks_per_step": 2}}),
    "protonet": ("protonet", {"algorithm": {"name": "protonet", "shots": 2, "queries": 2, "tasks_per_step": 2}}),
    "adapters": ("adapters", {"algorithm": {**REPTILE, "tasks_per_step": 2}}),
    "surgery, shards": ("surgery", {"training": {"shards": 2}}),
    "weighting, shards": ("weighting", {"training": {"shards": 2}}),
}
QUICK = ("individual", "joint, shards", "reptile, twice", "fomaml")


def _recipe(folder: Path, material: Material, name: str, **changes: Any) -> Path:
    algorithm, own = SPREAD[name]
    tasks = TASKS[:2] if algorithm in ("protonet", "maml") else TASKS
    given = {"steps": 6, "tasks": tasks, "data": material.data, "weights": str(material.weights)}
    return write_recipe(folder / "recipe.yaml", algorithm, **{**given, "sampler": "uniform", **own, **changes})


def _start(
    forks: Forks, folder: Path, material: Material, world: int, *arguments: str, **more: Any
) -> tuple[list[int], list[str]]:
    """Start ranks in a folder; returns their exit codes and what they wrote."""
    given = [world, ["run", "recipe.yaml", "--out", "out", *arguments]]
    given += [more.get("each", ()), more.get("kill"), more.get("term", ())]
    return ended(forks.call(RANKS, *given, cwd=folder, env=material.env).output)


def _outcome(folder: Path) -> dict[str, Any]:
    """All that must be equal; the events of groups in the order of the groups, which ranks train side by side."""
    found = outcome(folder / "out")
    found["events.jsonl"] = sorted(found["events.jsonl"], key=lambda event: str(event.get("group", "")))
    return found


def _trained(forks: Forks, folder: Path, material: Material, name: str, world: int, **changes: Any) -> dict[str, Any]:
    folder.mkdir()
    _recipe(folder, material, name, **changes)
    codes, written = _start(forks, folder, material, world)
    assert codes == [0] * world, written
    return _outcome(folder)


@pytest.mark.parametrize("name", QUICK)
def test_three_ranks_are_as_one(name: str, tmp_path: Path, forks: Forks, material: Material) -> None:
    one = _trained(forks, tmp_path / "one", material, name, 1)
    assert differences(one, _trained(forks, tmp_path / "three", material, name, 3)) == []


@pytest.mark.parametrize("training", [{}, {"shards": 1, "grad_accumulation": 2}])
def test_examples_that_are_told_from_their_whole_batch(
    training: dict[str, Any], tmp_path: Path, forks: Forks, material: Material
) -> None:
    columns = {"para": {"task": "ranking", "anchor": "sentence1", "positive": "sentence2"}, "sst": {}}
    tasks = {
        name: {**own, "train": f"{name}-train.tsv", "dev": f"{name}-dev.tsv", "batch_size": 4}
        for name, own in columns.items()
    }
    one = _trained(forks, tmp_path / "one", material, "joint", 1, tasks=tasks, training=training)
    three = _trained(forks, tmp_path / "three", material, "joint", 3, tasks=tasks, training=training)
    assert differences(one, three) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", SPREAD)
def test_any_number_of_ranks_is_as_one(name: str, tmp_path: Path, forks: Forks, material: Material) -> None:
    one = _trained(forks, tmp_path / "one", material, name, 1, steps=10)
    for world in (2, 3, 4):
        many = _trained(forks, tmp_path / str(world), material, name, world, steps=10)
        assert differences(one, many) == [], world


def test_a_part_that_is_left_out_shows(tmp_path: Path, forks: Forks, material: Material) -> None:
    """The comparison can fail: another order of sums or number of shards is another result."""
    found = [
        _trained(forks, tmp_path / str(shards), material, "joint", 1, training={"shards": shards})
        for shards in (None, 1, 2)
    ]
    hashes = {each["checkpoints/step-00000006/optimizer.safetensors"] for each in found}
    assert len(hashes) == 3


# -- deaths


def _until_done(
    forks: Forks, folder: Path, material: Material, worlds: Sequence[int], seed: int, longest: float
) -> int:
    """Start ranks again and again, each time killing one at a random moment, until they are done; returns the kills."""
    draw, kills = random.Random(seed), 0
    for world in worlds:
        codes, written = _start(forks, folder, material, world, kill=draw.uniform(0.2, longest))
        if codes.count(-signal.SIGKILL):
            kills += 1
            assert set(codes) <= {-signal.SIGKILL, 6, 0}, written
        else:
            assert codes == [0] * world, written
    codes, written = _start(forks, folder, material, worlds[0])
    assert codes == [0] * worlds[0], written
    return kills


@pytest.mark.parametrize("name", [pytest.param("reptile, twice", marks=pytest.mark.slow), "individual"])
def test_a_killed_rank(name: str, tmp_path: Path, forks: Forks, material: Material) -> None:
    """Started again, also with another number of ranks, the run ends as one that was not."""
    one = _trained(forks, tmp_path / "one", material, name, 1, steps=12)
    many = tmp_path / "many"
    many.mkdir()
    _recipe(many, material, name, steps=12)
    _until_done(forks, many, material, (2, 3), 5, 2.5)
    assert differences(one, _outcome(many)) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["reptile, twice", "individual", "joint, shards", "fomaml", "metasgd"])
def test_ten_killed_ranks(name: str, tmp_path: Path, forks: Forks, material: Material) -> None:
    one = _trained(forks, tmp_path / "one", material, name, 1, steps=40)
    many = tmp_path / "many"
    many.mkdir()
    _recipe(many, material, name, steps=40)
    kills = _until_done(forks, many, material, (2, 3, 4, 2, 3, 1 + 1, 3, 4, 2, 2), 7, 4.0)
    print(f"{name}: {kills} kills")
    assert kills
    assert differences(one, _outcome(many)) == []


@pytest.mark.slow
@pytest.mark.parametrize("after", [1.0, 1.7, 2.4, 3.1, 4.0, 5.0])
@pytest.mark.parametrize("name", ["joint", "individual"])
def test_a_signal_to_one_rank_stops_all(
    name: str, after: float, tmp_path: Path, forks: Forks, material: Material
) -> None:
    """All save and end with 0, which torchrun does not take for a failure; then the run goes on."""
    one = _trained(forks, tmp_path / "one", material, name, 1, steps=60)
    many = tmp_path / "many"
    many.mkdir()
    _recipe(many, material, name, steps=60)
    codes, written = _start(forks, many, material, 2, term=(1, after))
    assert codes == [0, 0], written
    assert not written[1]
    if not (many / "out" / "summary.json").exists():  # a slow machine may not have begun, a quick one may be done
        assert re.search(r"error: stopped by SIGTERM .*; rerun the same command to continue", written[0]), written
    codes, written = _start(forks, many, material, 3)
    assert codes == [0] * 3, written
    assert differences(one, _outcome(many)) == []


@pytest.mark.slow
def test_torchrun_itself(tmp_path: Path, forks: Forks, material: Material) -> None:
    """`torchrun --max-restarts` starts the ranks again after each `kill -9` of one of them."""
    one = _trained(forks, tmp_path / "one", material, "reptile", 1, steps=150)
    many = tmp_path / "many"
    many.mkdir()
    _recipe(many, material, "reptile", steps=150)
    with _torchrun(many, material) as torchrun:
        kills = _kill_some(torchrun, many / "out", 10)
        _, stderr = torchrun.communicate()
    assert torchrun.returncode == 0, stderr[-2000:]
    print(f"{kills} kills")
    assert kills >= 3
    assert differences(one, _outcome(many)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGKILL])
def test_ranks_without_their_torchrun(number: int, tmp_path: Path, forks: Forks, material: Material) -> None:
    """They go on for a step, save, and end; nobody is left behind."""
    one = _trained(forks, tmp_path / "one", material, "reptile", 1, steps=150)
    many = tmp_path / "many"
    many.mkdir()
    _recipe(many, material, "reptile", steps=150)
    torchrun = _torchrun(many, material)
    while not list((many / "out").rglob("step-*")):
        assert torchrun.poll() is None
        time.sleep(0.05)
    ranks = _children(torchrun.pid)
    torchrun.send_signal(number)
    torchrun.communicate()
    deadline = time.monotonic() + 60
    while any(Path(f"/proc/{rank}").exists() for rank in ranks):
        assert time.monotonic() < deadline, "ranks are left"
        time.sleep(0.1)
    assert not (many / "out" / "summary.json").exists()
    codes, written = _start(forks, many, material, 2)
    assert codes == [0, 0], written
    assert differences(one, _outcome(many)) == []


def _torchrun(folder: Path, material: Material) -> subprocess.Popen[str]:
    """Start torchrun itself, with two ranks, in a folder."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", "12", "-m", "mtmeta", "run", "recipe.yaml", "--out", "out"]
    path = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MTMETA_PLUGINS": "none", **material.env}
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | path
    return subprocess.Popen(command, cwd=folder, env=environ, stderr=subprocess.PIPE, text=True)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _kill_some(torchrun: subprocess.Popen[str], out: Path, most: int) -> int:
    """Kill a rank at a random moment after each new checkpoint; returns how many."""
    draw, kills, seen = random.Random(3), 0, ""
    while torchrun.poll() is None and kills < most:
        newest = max((path.name for path in out.rglob("step-*")), default="")
        ranks = _children(torchrun.pid)
        if newest > seen and len(ranks) == 2:
            time.sleep(draw.uniform(0, 0.8))
            os.kill(draw.choice(ranks), signal.SIGKILL)
            kills, seen = kills + 1, newest
            time.sleep(2)
        time.sleep(0.05)
    return kills


# -- refusals: one line, an exit code, nothing written


def _refused(forks: Forks, folder: Path, material: Material, line: str, code: int, **more: Any) -> None:
    codes, written = _start(forks, folder, material, 2, **more)
    assert codes == [code, code], written
    assert not written[1], written
    assert re.fullmatch(line + "\n", written[0]), written[0]
    assert not (folder / "out").exists()
    assert not list(folder.glob(".mtmeta*"))


@pytest.mark.parametrize(
    ("name", "training", "line"),
    [
        ("reptile, one task", {}, "shards: algorithm 'reptile' has one part a step here, nothing to share out .*"),
        ("surgery, shards", {}, "shards: algorithm 'surgery' has one part a step here, nothing to share out .*"),
        ("joint", {"grad_accumulation": 2}, "grad_accumulation: 2 is summed in another order on many ranks; .*"),
        ("joint", {"on_nonfinite": "skip"}, "on_nonfinite: skip is for one process where a step has several .*"),
    ],
)
def test_what_cannot_be_spread(
    name: str, training: dict[str, Any], line: str, tmp_path: Path, forks: Forks, material: Material
) -> None:
    _recipe(tmp_path, material, name, training=training)
    _refused(forks, tmp_path, material, f"error: training.{line}", 2)


def test_unequal_recipes(tmp_path: Path, forks: Forks, material: Material) -> None:
    _recipe(tmp_path, material, "joint")
    other = {"arguments": ["run", "recipe.yaml", "--out", "out", "--set", "seed=12"]}
    line = r"error: ranks 0 and 1 have different recipes \(differ in: seed\); start all alike"
    _refused(forks, tmp_path, material, line, 2, each=[{}, other])


def test_unequal_data(tmp_path: Path, forks: Forks, material: Material) -> None:
    _recipe(tmp_path, material, "joint")
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for file in material.data.iterdir():
        (theirs / file.name).write_bytes(file.read_bytes())
    text = (theirs / "sst-train.tsv").read_text()
    (theirs / "sst-train.tsv").write_text(text.replace("good", "fine"))
    line = r"error: rank 1 on \S+: data sst-train is [0-9a-f]+, on rank 0 it is [0-9a-f]+; ranks must be alike .*"
    _refused(forks, tmp_path, material, line, 6, each=[{}, {"MTMETA_DATA": str(theirs)}])


def test_another_torch(tmp_path: Path, forks: Forks, material: Material) -> None:
    _recipe(tmp_path, material, "joint")
    line = r"error: rank 1 on \S+: torch is 2\.11\.0, on rank 0 it is \S+; ranks must be alike to give the same result"
    _refused(forks, tmp_path, material, line, 6, each=[{}, {"torch": "2.11.0"}])


def test_a_folder_that_is_not_shared(tmp_path: Path, forks: Forks, material: Material) -> None:
    _recipe(tmp_path, material, "joint")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    own = {"folder": str(elsewhere), "arguments": ["run", "../recipe.yaml", "--out", "out"]}
    line = r"error: rank 1 on \S+: does not see what rank 0 writes to '\S+'; put the run directory on a drive .*"
    _refused(forks, tmp_path, material, line, 6, each=[{}, own])


def test_events_are_those_of_one_process(tmp_path: Path, forks: Forks, material: Material) -> None:
    """Groups that ranks train side by side lie in events.jsonl one after another, and nothing is left beside them."""
    _trained(forks, tmp_path / "many", material, "individual", 3)
    events = [json.loads(line) for line in (tmp_path / "many" / "out" / "events.jsonl").read_text().splitlines()]
    steps = [(event["group"], event["step"]) for event in events if event["type"] == "step"]
    assert steps == [(task, step) for task in TASKS for step in range(1, 7)]
    assert not list((tmp_path / "many" / "out" / "checkpoints").rglob("events.jsonl"))
    assert timeless(events[-1])["type"] == "run_finished"
