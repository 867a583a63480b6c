"""What a rank holds until the parts of a step are summed: as counted in a run, and what is too much for the memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.distributed.fixed_point import fixed_sum
from mtmeta.core.run import session
from mtmeta.core.training.spread import learner
from mtmeta.core.training.spread.holding import SUM, held
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.algorithms.reptile import Reptile
from tests.support.commands import assert_refused, call
from tests.support.quick import quick

TASKS = ["a", "b", "c"]


@pytest.mark.parametrize(
    ("algorithm", "options", "shards", "most"),
    [
        ("joint", {}, 4, 2 * 4),  # all shards of both tasks
        ("joint", {"step": "alternate"}, 4, 4),
        ("joint", {"weighting": "uncertainty"}, 4, 2 + 4),  # one slot after the other
        ("reptile", {"tasks_per_step": 2}, 3, 2 + 3),
        ("reptile", {"tasks_per_step": 2}, 1, 2),
        ("individual", {}, 3, 3),
    ],
)
def test_as_many_gradients_as_a_run_holds(
    algorithm: str, options: dict[str, Any], shards: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is given to the sums of slots and of the shards within one, which are there at the same time."""
    summed = set[int]()

    def counted(parts: Any, *more: Any) -> Any:
        summed.add(len(parts))
        return fixed_sum(parts, *more)

    monkeypatch.setattr(learner, "fixed_sum", counted)
    recipe = quick(tmp_path, algorithm, training={"steps": 2, "shards": shards, "precision": "fp32"})
    document = json.loads(recipe.read_text())
    given = document["algorithm"] if isinstance(document["algorithm"], dict) else {"name": algorithm}
    recipe.write_text(json.dumps({**document, "algorithm": {**given, **options}}))
    mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    assert sum(summed) == most
    gradients = most + SUM * len(summed)
    plan = mtmeta.plan(recipe, out=tmp_path / "other", device="cpu")
    assert plan["parts_bytes"] == gradients * plan["encoder_parameters"] * 4


def test_what_ranks_hold_by_hand() -> None:
    joint, reptile = Joint(), Reptile(tasks_per_step=3)
    assert held(joint, TASKS, None, 1).bytes(100) == 0 == held(Joint(step="alternate"), TASKS, 1, 1).bytes(100)
    assert held(joint, TASKS, 8, 1).parts == 24 and held(joint, TASKS, 8, 4).parts == 6
    assert held(joint, TASKS, 8, 5).bytes(100) == (5 + SUM) * 100  # 24 shards, five at the most
    assert held(joint, TASKS, None, 2).bytes(100) == (2 + 1) * 100  # two of three slots, and one that is sent
    assert held(reptile, TASKS, 8, 2).bytes(100) == (2 + 8 + SUM + SUM) * 100


def test_too_many_for_the_memory_are_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = quick(tmp_path, "joint", training={"steps": 2, "shards": 4})
    needed: int = mtmeta.plan(recipe, out=tmp_path / "run", device="cpu")["parts_bytes"]
    monkeypatch.setattr(session, "free_memory_of", lambda device: needed - 1)
    outcome = call("run", str(recipe), "--out", str(tmp_path / "run"), cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 6, "training.shards", "a step holds 8 gradients until they are summed", "use fewer shards")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(session, "free_memory_of", lambda device: needed)
    assert call("run", str(recipe), "--out", str(tmp_path / "run"), cwd=tmp_path, capsys=capsys).code == 0
