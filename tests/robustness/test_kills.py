"""SIGKILL at any instant, any number of times, then the same command again: the same bytes as without a kill.

Equal are the final weights and optimizer state, the best checkpoints and where their links point, the summary, the
predictions and every event; see `small.outcome`. Times differ, of course.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.robustness.conftest import Material
from tests.robustness.forks import Forks, wait
from tests.robustness.small import ALGORITHMS, differences, outcome, write_recipe

RUN = ("run", "../recipe.yaml", "--out", "out")


class Runs:
    """Runs of one recipe, each in a folder of its own, to be compared with one that nothing disturbed."""

    def __init__(self, forks: Forks, folder: Path, env: dict[str, str]) -> None:
        self.forks, self.folder, self.env = forks, folder, env
        self._made = 0
        whole = self.new()
        done = forks.call("tests.robustness.faults:run_with_fault", RUN, 0, "", "count", cwd=whole, env=env)
        assert done.code == 0, done.output
        self.whole, self.seconds = outcome(whole / "out"), done.seconds
        self.operations = int((whole / "count").read_text())

    def new(self) -> Path:
        """An empty folder."""
        self._made += 1
        folder = self.folder / f"{self._made:03d}"
        folder.mkdir()
        return folder

    def finish(self, folder: Path) -> dict[str, Any]:
        """Run to the end, undisturbed."""
        done = self.forks.mtmeta(*RUN, cwd=folder, env=self.env)
        assert done.code == 0, done.output
        return outcome(folder / "out")

    def assert_equal(self, folder: Path, story: str) -> None:
        """The finished run in `folder` is the undisturbed one, byte for byte."""
        assert differences(self.whole, outcome(folder / "out")) == [], story


def _runs(forks: Forks, folder: Path, material: Material, algorithm: str, **options: Any) -> Runs:
    """Runs on a cache that is warm: its own writes are no part of a run, and have their own tests."""
    write_recipe(folder / "recipe.yaml", algorithm, data=material.data, **options)
    warm = folder / "warm"
    warm.mkdir()
    done = forks.mtmeta(*RUN, "--set", "training.steps=1", cwd=warm, env=material.env)
    assert done.code == 0, done.output
    return Runs(forks, folder, material.env)


def kill_at_random_times(runs: Runs, seed: str, kills: int, share: float) -> Iterator[str]:
    """Kill `kills` times within `share` of the time of a whole run, then finish; again if that was too few."""
    draw = random.Random(seed)
    done = 0
    while done < kills:
        folder = runs.new()
        story: list[str] = []
        while done < kills:
            after = draw.uniform(0, share * runs.seconds)
            ended = runs.forks.mtmeta(*RUN, cwd=folder, kill_after=after, env=runs.env)
            if not ended.killed:
                assert ended.code == 0, f"after {story}: {ended.output}"
                break
            done += 1
            story.append(f"{after:.3f}")
        else:
            runs.finish(folder)
        told = f"killed {len(story)} times, after {', '.join(story) or '-'} s of {runs.seconds:.2f} s"
        runs.assert_equal(folder, told)
        yield told


def kill_at_file_operations(runs: Runs, seed: str, count: int) -> list[int]:
    """Die before or after `count` of the run's own file operations, drawn evenly over the run; then finish."""
    draw = random.Random(seed)
    total = runs.operations
    chosen = sorted(draw.sample(range(1, total + 1), min(count, total)))
    for at in chosen:
        folder, how = runs.new(), draw.choice(["before", "after"])
        ended = runs.forks.call("tests.robustness.faults:run_with_fault", RUN, at, how, cwd=folder, env=runs.env)
        assert ended.killed, f"{how} operation {at} of {total}: {ended.output}"
        runs.finish(folder)
        runs.assert_equal(folder, f"killed {how} file operation {at} of {total}")
    return chosen


QUICK = ("joint", "reptile", "individual")


@pytest.mark.parametrize(
    "algorithm", [one if one in QUICK else pytest.param(one, marks=pytest.mark.slow) for one in ALGORITHMS]
)
def test_a_few_kills(algorithm: str, forks: Forks, tmp_path: Path, material: Material) -> None:
    runs = _runs(forks, tmp_path, material, algorithm, weights=str(material.weights), steps=8)
    assert list(kill_at_random_times(runs, f"few {algorithm}", 2, 0.9))
    assert len(kill_at_file_operations(runs, f"few {algorithm}", 1)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_twenty_five_kills(algorithm: str, forks: Forks, tmp_path: Path, material: Material) -> None:
    """25 kills at random times, in one run as long as that does not end before."""
    tasks = ("sst", "para", "sts") if algorithm == "reptile" else ("sst", "para")
    runs = _runs(forks, tmp_path, material, algorithm, tasks=tasks, steps=60)
    for story in kill_at_random_times(runs, algorithm, 25, 0.2):
        print(f"{algorithm}: {story}")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_ten_kills_in_bf16(algorithm: str, forks: Forks, tmp_path: Path, material: Material) -> None:
    """The same with an encoder that is wide enough for the kernels of bf16, by the matrix unit where there is one."""
    changes = {"training": {"precision": "bf16"}, "backbone": {"name": "bert", "weights": "embedded", "max_length": 16}}
    runs = _runs(forks, tmp_path, material, algorithm, steps=12, **changes)
    lock = yaml.safe_load((tmp_path / "001" / "out" / "recipe.lock.yaml").read_text())
    assert lock["precision"] == "bf16" and lock["kernels"].endswith((" amx", " vectors"))
    for story in kill_at_random_times(runs, f"bf16 {algorithm}", 10, 0.5):
        print(f"{algorithm}, kernels {lock['kernels']}: {story}")


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_kills_at_file_operations(algorithm: str, forks: Forks, tmp_path: Path, material: Material) -> None:
    runs = _runs(forks, tmp_path, material, algorithm, weights=str(material.weights), steps=8)
    chosen = kill_at_file_operations(runs, algorithm, 40)
    print(f"{algorithm}: died at file operations {chosen}")


@pytest.mark.slow
def test_kills_of_real_processes(tmp_path: Path, material: Material) -> None:
    """The command as a user gives it: `python -m mtmeta run`, imports and all."""
    write_recipe(tmp_path / "recipe.yaml", "reptile", data=material.data, tasks=("sst", "para", "sts"), steps=40)
    draw = random.Random("real processes")
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")}
    environ |= {"OMP_NUM_THREADS": "1", "MTMETA_CACHE": str(tmp_path / "cache"), "MTMETA_PLUGINS": "none"}

    def run(folder: Path, kill_after: float | None = None) -> int:
        folder.mkdir(exist_ok=True)
        command = [sys.executable, "-m", "mtmeta", *RUN]
        with open(folder / "output", "wb") as log:
            child = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log, start_new_session=True)
            child.returncode = wait(child.pid, kill_after)
        return child.returncode

    assert run(tmp_path / "whole") == 0, (tmp_path / "whole" / "output").read_text()
    cut, kills = tmp_path / "cut", 0
    while kills < 5:
        code = run(cut, draw.uniform(1, 12))
        if code == 0:
            break
        assert code == -signal.SIGKILL, (cut / "output").read_text()
        kills += 1
    assert kills
    assert run(cut) == 0, (cut / "output").read_text()
    assert differences(outcome(tmp_path / "whole" / "out"), outcome(cut / "out")) == [], f"{kills} kills"


def test_the_comparison_sees_a_single_bit(tmp_path: Path, forks: Forks, material: Material) -> None:
    """What proves the runs equal would notice if they were not."""
    runs = _runs(forks, tmp_path, material, "joint", weights=str(material.weights), steps=4)
    folder = runs.new()
    runs.finish(folder)
    for name in ("checkpoints/step-00000004/optimizer.safetensors", "predictions/sst-dev.csv", "summary.json"):
        path = folder / "out" / name
        before = path.read_bytes()
        path.write_bytes(before.replace(b"1", b"2", 1))
        assert path.read_bytes() != before
        with pytest.raises(AssertionError, match=name):
            runs.assert_equal(folder, "changed")
        path.write_bytes(before)
    link = folder / "out" / "checkpoints" / "best"
    link.unlink()
    with pytest.raises(AssertionError, match="checkpoints/best"):
        runs.assert_equal(folder, "link removed")
