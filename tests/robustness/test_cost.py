"""The benchmark of checkpoints measures what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import checkpoints
from tests.support import tiny  # noqa: F401  # one thread


@pytest.mark.slow
def test_share_and_resume(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["--data", "sample", "--weights", "tiny", "--recipes", "joint", "--steps", "4", "--rounds", "1", "--json"]
    checkpoints.main(given)
    found = json.loads(capsys.readouterr().out)["joint"]
    assert (found["save_every_s"], found["evaluate_every_steps"]) == (
        600.0,
        25,
    )  # ten minutes; recipes/minilm/joint.yaml
    expected = found["save_s"] / 600 + found["save_best_s"] / (25 * found["step_s"])
    assert found["share"] == pytest.approx(expected, abs=1e-3)  # of rounded figures
    assert found["megabytes"] > 0.1
    assert found["added_s"] == pytest.approx(found["resumed_s"] - found["new_s"], abs=0.02)


def test_what_is_measured_of_a_recipe() -> None:
    values = checkpoints.overrides("DATA", "FOLDER", "reptile")
    assert "backbone.weights=FOLDER" in values
    assert "data_root=DATA" in values
    assert "sampler=round_robin" in values
    assert not any("train=sample" in value for value in values)
    assert "sampler=round_robin" not in checkpoints.overrides("sample", "tiny", "joint")
