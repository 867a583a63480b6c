"""What events tell of the tasks' gradients and of how far inner loops go, held against a computation by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mtmeta
from mtmeta.core.data.packing import pack
from mtmeta.core.rng import permutation
from mtmeta.core.training.diagnostics import gradient_cosines
from mtmeta.core.training.learner import Excursion
from mtmeta.plugins.algorithms.fomaml import Fomaml
from mtmeta.plugins.algorithms.reptile import Reptile
from tests.core.run.test_run import ALGORITHMS, write_recipe
from tests.core.training.test_budget import sha256s
from tests.support import tiny


def events(run: Path, kind: str) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    return [event for event in found if event["type"] == kind]


# -------------------------------------------------------------------------------------------------------------- drift


@pytest.mark.parametrize(
    "algorithm", [Reptile(), Fomaml(), Fomaml(head_policy="reset"), Fomaml(inner_steps=0)], ids=repr
)
def test_drift_is_how_far_the_inner_loop_went(algorithm: mtmeta.Algorithm, monkeypatch: pytest.MonkeyPatch) -> None:
    learner, feed = tiny.tiny()
    theta, there = tiny.values(learner), {}

    def at_the_end(self: Any) -> torch.Tensor:
        there.update(tiny.values(learner))
        return drift(self)

    drift = Excursion.drift
    monkeypatch.setattr(Excursion, "drift", at_the_end)
    learner.begin_step(0)
    algorithm.backward(learner, feed)
    ((task, found),) = learner.drifts
    # under head_policy `reset` the way begins at theta with another head, and that belongs to it
    by_hand = torch.cat([(there[name] - theta[name]).double().flatten() for name in theta]).norm()
    assert task in feed.tasks
    assert float(found) == pytest.approx(float(by_hand), rel=1e-5)
    assert (float(found) > 0) == (getattr(algorithm, "inner_steps", 1) != 0)
    assert all(value.equal(theta[name]) for name, value in tiny.values(learner).items())


def test_reptiles_direction_is_as_long_as_its_drift() -> None:
    learner, feed = tiny.tiny("sst")
    learner.begin_step(0)
    Reptile().backward(learner, feed)
    length = torch.cat([g.double().flatten() for g in tiny.gradients(learner).values() if g is not None]).norm()
    assert float(learner.drifts[0][1]) == pytest.approx(float(length), rel=1e-5)


def test_a_step_forgets_the_drifts_of_the_last() -> None:
    learner, feed = tiny.tiny()
    for step in range(2):
        learner.begin_step(step)
        Reptile(tasks_per_step=2).backward(learner, feed)
        assert len(learner.drifts) == 2


# ----------------------------------------------------------------------------------------------- gradients of the tasks


def test_norms_and_cosines_are_those_of_the_gradients_by_hand() -> None:
    learner, feed = tiny.tiny(batch_size=8)
    norms, cosines = gradient_cosines(learner.model, feed.datasets, seed=4, chunks=3)
    learner.model.eval()
    encoder = [p for name, p in learner.parameters.items() if name.startswith("encoder.")]
    by_hand = {}
    for name, dataset in feed.datasets.items():
        batch = pack(dataset, permutation(len(dataset), 4, "probe", name)[:8])
        loss = tiny.by_hand_loss(learner, batch)
        found = torch.autograd.grad(loss, encoder, allow_unused=True)
        by_hand[name] = torch.cat(
            [(torch.zeros_like(p) if g is None else g).double().flatten() for p, g in zip(encoder, found, strict=True)]
        )
    for a, one in by_hand.items():
        assert norms[a] == pytest.approx(float(one.norm()), rel=1e-4)
        assert cosines[a][a] == pytest.approx(1.0)
        for b, other in by_hand.items():
            assert cosines[a][b] == pytest.approx(float(torch.cosine_similarity(one, other, dim=0)), abs=1e-4)
            assert cosines[a][b] == pytest.approx(cosines[b][a])
    assert 0 < abs(cosines["sst"]["para"] or 0) < 1


def test_measuring_leaves_no_trace() -> None:
    learner, feed = tiny.tiny()
    learner.model.train()
    learner.model.heads["para"].eval()  # as a plugin may want it
    modes = [module.training for module in learner.model.modules()]
    before = tiny.values(learner)
    first = gradient_cosines(learner.model, feed.datasets, seed=4)
    assert all(value.equal(before[name]) for name, value in tiny.values(learner).items())
    assert all(parameter.grad is None for parameter in learner.parameters.values())
    assert [module.training for module in learner.model.modules()] == modes
    assert learner.examples == 0
    assert gradient_cosines(learner.model, feed.datasets, seed=4) == first  # the same batches, no dropout
    assert gradient_cosines(learner.model, feed.datasets, seed=5) != first


def test_a_gradient_of_zero_has_no_cosine() -> None:
    learner, feed = tiny.tiny("sst", "sts")
    with torch.no_grad():
        for parameter in learner.model.heads["sst"].parameters():
            parameter.zero_()
    norms, cosines = gradient_cosines(learner.model, feed.datasets, seed=0)
    assert norms["sst"] == 0.0
    assert cosines["sst"] == {"sst": None, "sts": None}
    assert cosines["sts"]["sst"] is None
    assert cosines["sts"]["sts"] == pytest.approx(1.0)


# ---------------------------------------------------------------------------------------------------------- whole runs


@pytest.mark.parametrize("name", ALGORITHMS)
def test_a_run_tells_of_them_and_gives_the_same_weights(name: str, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, name)
    plain = mtmeta.run(path, out=tmp_path / "plain")
    told = mtmeta.run(path, overrides=["evaluation.gradients=true"], out=tmp_path / "told")
    assert sha256s(tmp_path / "told") == sha256s(tmp_path / "plain")
    assert told["examples"] == plain["examples"]
    assert events(tmp_path / "plain", "gradients") == []
    found = events(tmp_path / "told", "gradients")
    groups = [["sst"], ["para"], ["sts"]] if name == "individual" else [["sst", "para", "sts"]]
    assert [(event["group"], event["step"]) for event in found] == [
        ("+".join(group), step) for group in groups for step in (2, 4, 6)
    ]
    for event in found:
        assert list(event["norms"]) == list(event["cosines"]) == event["group"].split("+")
        assert all(norm > 0 for norm in event["norms"].values())
    for step in events(tmp_path / "told", "step"):
        if name in ("reptile", "fomaml"):
            assert step["drifts"].keys() == step["losses"].keys()
            assert all(drift > 0 for drifts in step["drifts"].values() for drift in drifts)
        else:
            assert step["drifts"] == {}


def test_every_evaluation_tells_of_sampling_so_far(tmp_path: Path) -> None:
    summary = mtmeta.run(write_recipe(tmp_path, "reptile"), out=tmp_path / "run")
    found = events(tmp_path / "run", "evaluated")
    assert found[-1]["sampling"] == summary["sampling"]
    drawn = [sum(used["draws"] for used in event["sampling"].values()) for event in found]
    assert drawn == [4, 8, 12]  # two a step
    assert [sum(used["planned_draws"] for used in event["sampling"].values()) for event in found] == pytest.approx(
        drawn
    )


def test_memory_that_runs_out_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def grow(*arguments: Any, **options: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("mtmeta.core.training.trainer.gradient_cosines", grow)
    with pytest.raises(mtmeta.MachineError, match=r"measuring gradients of 3 tasks.*; set evaluation.gradients: false"):
        mtmeta.run(write_recipe(tmp_path, "joint"), overrides=["evaluation.gradients=true"], out=tmp_path / "run")
