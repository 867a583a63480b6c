"""Every piece of saved state is needed: forget any one of them, and a continued run is no longer the same.

This is what shows that the other tests can fail: if a piece were not saved, or not put back, they would see it. The
pieces are listed here; a checkpoint with a piece that is not listed fails too. `python -m pytest -v` prints the list.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.robustness.conftest import Material
from tests.robustness.small import WORDS, differences, outcome, resign, train, write_recipe
from tests.robustness.test_exact_resume import OPTIMIZERS

STOP, STEPS = 6, 10
CHECKPOINT = Path("checkpoints") / f"step-{STOP:08d}"
TASKS = ("sst", "same")
# a piece, and what a run that forgot it would start from
STATE: dict[str, Any] = {
    "step": 0,
    "skipped": 0,
    "bests.best": None,
    "bests.best-sst": None,
    "bests.best-same": None,
    "links.best": None,
    "links.best-sst": None,
    "links.best-same": None,
    "plateau.best": -1.0,
    "plateau.waited": 0,
    "plateau.factor": 1.0,
    "examples": 0,
    "episodes.sst": 0,
    "episodes.same": 0,
    **{
        f"feed.{task}.{key}": 0
        for task in TASKS
        for key in ("epoch", "offset", "batches", "examples", "draws", "planned")
    },
    "warned": [],
}
BY_DEFAULT = ("sgd",)
TIMES = {"seconds"}  # no promise covers it


@dataclass(frozen=True)
class Cut:
    """A run that was cut off, and how it ends if nothing is forgotten."""

    recipe: Path
    folder: Path
    whole: Mapping[str, Any]

    def resumed(self, folder: Path, forget: Any) -> list[str]:
        """Continue a copy in which `forget(checkpoint)` changed something: what then differs, or the refusal."""
        shutil.copytree(self.folder, folder, symlinks=True)
        forget(folder / "out" / CHECKPOINT)
        resign(folder / "out" / CHECKPOINT)
        try:
            found = differences(self.whole, outcome(train(self.recipe, folder)))
        except Exception as error:
            return [f"refused: {error!r}"]
        return [name for name in found if not name.startswith(f"{CHECKPOINT}/")]  # that one was changed by hand


def cut(folder: Path, recipe: Path) -> Cut:
    """Train `recipe` to the end, and again until `STOP`."""
    whole = outcome(train(recipe, folder / "whole"))
    train(recipe, folder / "cut", stop_after=STOP)
    return Cut(recipe, folder / "cut", whole)


@pytest.fixture(scope="module")
def rich(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[Cut]:
    """A run in whose checkpoint no piece of state.json has the value that a new run starts with.

    One step is skipped for a non-finite gradient; a metric warns, for the two dev texts of task `same` are one; rates
    so small that metrics stay where they are, so that `plateau` waits and lowers, and no later weights are better.
    """
    from mtmeta.core.training.learner import Learner

    folder = tmp_path_factory.mktemp("rich")
    shutil.copytree(material.data, folder / "data")
    rows = [f"{WORDS[i % 10]} {WORDS[i % 7]}\t{i % 2}" for i in range(8)]
    (folder / "data" / "same-train.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    (folder / "data" / "same-dev.tsv").write_text("sentence\tlabel\ngood plot\t0\ngood plot\t1\n")
    sst = {"train": "sst-train.tsv", "dev": "sst-dev.tsv", "batch_size": 10, "inner_steps": 1}
    same = {"task": "classification", "labels": 2, "metrics": ["accuracy", "matthews"], "batch_size": 4}
    recipe = write_recipe(
        folder / "recipe.yaml",
        "reptile",
        data=folder / "data",
        weights=str(material.weights),
        steps=STEPS,
        evaluate_every=1,
        checkpoint_every=STOP,
        tasks={"sst": sst, "same": {**same, "train": "same-train.tsv", "dev": "same-dev.tsv", "inner_steps": 1}},
        algorithm={
            "name": "reptile",
            "inner_optimizer": {"name": "sgd", "lr": 1e-3, "momentum": 0.5},
            "inner_schedule": {"name": "step", "every": 1, "gamma": 0.9},
            "tasks_per_step": 2,
        },
        sampler="uniform",
        schedule={"name": "plateau", "patience": 3, "threshold": 1e6},
        optimizer={"name": "sgd", "lr": 1e-3},
        training={"on_nonfinite": "skip"},
    )
    gradient = Learner.gradient

    def poisoned(self: Learner, batch: Any, scale: float = 1.0) -> Any:
        return gradient(self, batch, math.nan if self.step == 2 and "same" in self.tasks else scale)

    with mock.patch.object(Learner, "gradient", poisoned):
        yield cut(folder, recipe)


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every piece of state.json under a dotted name."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{prefix}.{key}" if prefix else key)
    else:
        yield prefix, value


def _set(state: dict[str, Any], piece: str, value: Any) -> None:
    """Give a piece another value; None removes it."""
    *path, last = piece.split(".")
    for key in path:
        state = state[key]
    if value is None:
        del state[last]
    else:
        state[last] = value


def test_nothing_forgotten_is_equal(rich: Cut, tmp_path: Path) -> None:
    assert rich.resumed(tmp_path / "run", lambda checkpoint: None) == []


def test_every_piece_of_state_is_listed(rich: Cut) -> None:
    found = dict(_leaves(json.loads((rich.folder / "out" / CHECKPOINT / "state.json").read_bytes())))
    assert set(found) == set(STATE) | TIMES
    untouched = [piece for piece, forgotten in STATE.items() if found[piece] == forgotten]
    assert untouched == [], "the run must give each piece a value that a new run does not start with"


@pytest.mark.parametrize(
    "piece", [pytest.param(piece, marks=[pytest.mark.slow] if "feed.same" in piece else []) for piece in STATE]
)
def test_state_that_is_forgotten_shows(piece: str, rich: Cut, tmp_path: Path) -> None:
    def forget(checkpoint: Path) -> None:
        state = json.loads((checkpoint / "state.json").read_bytes())
        _set(state, piece, STATE[piece])
        (checkpoint / "state.json").write_text(json.dumps(state))

    found = rich.resumed(tmp_path / "run", forget)
    assert found, f"{piece} is saved, but makes no difference"
    assert "KeyError" not in found[0], found  # that would be a piece with no such value, not one forgotten


@pytest.mark.parametrize("task", ["sst", "para"])
def test_episodes_that_are_forgotten_show(task: str, tmp_path: Path, material: Material) -> None:
    """How many episodes of classes were drawn, which only such a run has in its state."""
    options: dict[str, Any] = {"weights": str(material.weights), "steps": STEPS, "checkpoint_every": STOP}
    run = cut(tmp_path, write_recipe(tmp_path / "recipe.yaml", "protonet", data=material.data, **options))
    assert run.resumed(tmp_path / "again", lambda checkpoint: None) == []

    def forget(checkpoint: Path) -> None:
        state = json.loads((checkpoint / "state.json").read_bytes())
        assert state["feed"][task]["episodes"] > 0
        del state["feed"][task]["episodes"]
        (checkpoint / "state.json").write_text(json.dumps(state))

    found = run.resumed(tmp_path / "run", forget)
    assert f"checkpoints/step-{STEPS:08d}/model.safetensors" in found, found


def test_state_that_is_not_there_is_refused(rich: Cut, tmp_path: Path) -> None:
    for piece in {piece.partition(".")[0] for piece in STATE}:

        def forget(checkpoint: Path, piece: str = piece) -> None:
            state = json.loads((checkpoint / "state.json").read_bytes())
            _set(state, piece, None)
            (checkpoint / "state.json").write_text(json.dumps(state))

        (found,) = rich.resumed(tmp_path / piece, forget)
        assert found.startswith("refused"), found


def test_one_bit_of_the_weights_shows(rich: Cut, tmp_path: Path) -> None:
    """The last bit of the largest number of a tensor; that of a tiny number is lost in the next update."""
    tensors = load_file(rich.folder / "out" / CHECKPOINT / "model.safetensors")
    names = [name for name, tensor in tensors.items() if tensor.abs().max() > 0.01]
    for name in (names[0], names[len(names) // 2], names[-1]):

        def forget(checkpoint: Path, name: str = name) -> None:
            tensors = load_file(checkpoint / "model.safetensors")
            values = tensors[name].view(-1)
            at = int(values.abs().argmax())
            values[at] = torch.nextafter(values[at], values[at] + 1)
            save_file(tensors, checkpoint / "model.safetensors")

        found = rich.resumed(tmp_path / name, forget)
        assert f"checkpoints/step-{STEPS:08d}/model.safetensors" in found, (name, found)


@pytest.mark.parametrize(
    "optimizer", [pytest.param(name, marks=[] if name in BY_DEFAULT else [pytest.mark.slow]) for name in OPTIMIZERS]
)
def test_optimizer_state_that_is_forgotten_shows(optimizer: str, tmp_path: Path, material: Material) -> None:
    """Every slot of the outer and of each task's inner optimizer, set to zero; then each whole state, left out."""
    inner = {"momentum": 0.5} if optimizer == "sgd" else {"betas": [0.9, 0.99]}
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        "reptile",
        data=material.data,
        weights=str(material.weights),
        steps=STEPS,
        evaluate_every=STEPS,
        checkpoint_every=STOP,
        algorithm={"name": "reptile", "inner_optimizer": {"name": optimizer, "lr": 1e-2, **inner}, "tasks_per_step": 2},
        schedule="constant",
        optimizer={"name": optimizer, "lr": 0.1, **inner},
    )
    run = cut(tmp_path, recipe)
    saved = load_file(run.folder / "out" / CHECKPOINT / "optimizer.safetensors")
    slots = sorted({name.rpartition("|")[0] for name in saved})  # "outer|exp_avg", "inner/sst|exp_avg"
    states = sorted({slot.partition("|")[0] for slot in slots})
    assert states == ["inner/para", "inner/sst", "outer"]
    assert len(slots) == len(states) * {"sgd": 1, "nadam": 4}.get(optimizer, 3)
    for number, forgotten in enumerate([*slots, *states]):

        def forget(checkpoint: Path, forgotten: str = forgotten) -> None:
            tensors = copy.deepcopy(saved)
            for name in [name for name in tensors if name.startswith(f"{forgotten}|")]:
                if forgotten in states:
                    del tensors[name]
                else:
                    tensors[name].zero_()
            assert any(name not in tensors or not tensors[name].equal(saved[name]) for name in saved)
            save_file(tensors, checkpoint / "optimizer.safetensors")

        found = run.resumed(tmp_path / f"{number:03d}", forget)
        assert f"checkpoints/step-{STEPS:08d}/model.safetensors" in found, (forgotten, found)
    print(f"{optimizer}: {', '.join([*slots, *states])}")
