"""`training.stop`, and kills: wherever a run is cut off, it stops at the very same step, with the very same weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.errors import CheckpointError
from tests.robustness.conftest import Material
from tests.robustness.forks import Forks
from tests.robustness.small import ALGORITHMS, TIMES, differences, outcome, resign, train, write_recipe
from tests.robustness.test_kills import Runs, kill_at_file_operations, kill_at_random_times
from tests.support.ranks import RANKS, ended

STEPS = 40


def _recipe(path: Path, algorithm: str, material: Material, **changes: Any) -> Path:
    """A recipe that stops early: its dev files are small, so that metrics often do not rise."""
    training = {**ALGORITHMS[algorithm].get("training", {}), "stop": {"patience": 3, "min_delta": 0.01}}
    given: dict[str, Any] = {"training": training, "evaluate_every": 2, "checkpoint_every": 3, "steps": STEPS}
    given |= {"data": material.data, "weights": str(material.weights), **changes}
    return write_recipe(path, algorithm, **given)


def _stops(run: Path) -> dict[str, int]:
    """The step at which each group stopped early."""
    told = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return {event["group"]: event["step"] for event in told if event["type"] == "stopped_early"}


@pytest.mark.parametrize("algorithm", ["individual", "reptile"])
def test_cut_off_before_its_last_step(algorithm: str, tmp_path: Path, material: Material) -> None:
    recipe = _recipe(tmp_path / "recipe.yaml", algorithm, material)
    whole = train(recipe, tmp_path / "whole")
    stops = _stops(whole)
    assert stops and max(stops.values()) < STEPS
    steps = json.loads((whole / "summary.json").read_text())["steps"]
    train(recipe, tmp_path / "cut", stop_after=steps - 1)
    assert differences(outcome(whole), outcome(train(recipe, tmp_path / "cut"))) == []


def test_what_is_saved_of_it_is_needed(tmp_path: Path, material: Material) -> None:
    """The learning rate is so small that no value is another one: it waits from the first evaluation on."""
    given: dict[str, Any] = {"optimizer": {"name": "adamw", "lr": 1e-9}, "checkpoint_every": 4}
    recipe = _recipe(tmp_path / "recipe.yaml", "joint", material, schedule="constant", **given)
    assert _stops(train(recipe, tmp_path / "whole")) == {"sst+para": 8}
    state = train(recipe, tmp_path / "cut", stop_after=5) / "checkpoints" / "step-00000004" / "state.json"
    saved = json.loads(state.read_text())
    assert saved["stop"]["waited"] == 1
    for forgotten, expected in ({"waited": 0}, 10), ({"best": None}, 12), (None, None):
        changed = {**saved, "stop": forgotten and {**saved["stop"], **forgotten}}
        state.write_text(json.dumps(changed))
        resign(state.parent)
        shutil.copytree(tmp_path / "cut", tmp_path / str(forgotten), symlinks=True)
        if expected:
            assert _stops(train(recipe, tmp_path / str(forgotten))) == {"sst+para": expected}
        else:
            with pytest.raises(CheckpointError, match="holds no state of this run"):
                train(recipe, tmp_path / str(forgotten))


@pytest.mark.slow
def test_three_ranks_stop_as_one(tmp_path: Path, forks: Forks, material: Material) -> None:
    """Ranks that make every step together, and those that train groups of their own."""
    changes: dict[str, dict[str, Any]] = {"individual": {}, "reptile": {"schedule": "constant", "sampler": "uniform"}}
    for algorithm, own in changes.items():
        found = []
        for world in (1, 3):
            folder = tmp_path / f"{algorithm}-{world}"
            folder.mkdir()
            _recipe(folder / "recipe.yaml", algorithm, material, tasks=("sst", "para", "sts"), **own)
            call = forks.call(
                RANKS, world, ["run", "recipe.yaml", "--out", "out"], (), None, (), cwd=folder, env=material.env
            )
            codes, written = ended(call.output)
            assert codes == [0] * world, written
            assert _stops(folder / "out")
            found.append(outcome(folder / "out"))
            found[-1]["events.jsonl"].sort(key=lambda event: str(event.get("group", "")))
        assert differences(*found) == [], algorithm


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ten_kills(algorithm: str, forks: Forks, tmp_path: Path, material: Material) -> None:
    """Killed at ten moments and at ten file operations: the same SHA-256 of all weights, and the same last step."""
    _recipe(tmp_path / "recipe.yaml", algorithm, material)
    runs = Runs(forks, tmp_path, material.env)
    stops = _stops(tmp_path / "001" / "out")
    assert stops, "it was to stop early"
    for story in kill_at_random_times(runs, f"stop {algorithm}", 10, 0.9):
        print(f"{algorithm}, stops {stops}: {story}")
    assert len(kill_at_file_operations(runs, f"stop {algorithm}", 10)) == 10
    assert {"seconds", "time"} <= set(TIMES) and not {"step", "steps"} & set(TIMES), "steps are compared"
