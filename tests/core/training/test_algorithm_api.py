"""API 2: what an algorithm may keep, see and count on beside `backward`, and that plugins of API 1 go on."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import mtmeta
from mtmeta.core.api.heads import PrototypeHead
from mtmeta.core.errors import CheckpointError, PluginError
from mtmeta.core.training.budget import rehearse
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.trainer import Trainer
from mtmeta.plugins.algorithms.joint import Joint
from mtmeta.plugins.samplers import Uniform
from mtmeta.testing import check_algorithm
from tests.core.run.test_run import weights, write_recipe
from tests.support.tiny import gradients, tiny

# ------------------------------------------------------------------------------------------ gradients with their graph


@pytest.mark.parametrize("grad_accumulation", [1, 3])
@pytest.mark.parametrize("task", ["sst", "para", "sts"])
def test_features_loss_and_descend_are_the_gradient(task: str, grad_accumulation: int) -> None:
    learner, feed = tiny(task, grad_accumulation=grad_accumulation)
    batch = feed.batch(task)
    expected_loss = learner.gradient(batch, 0.5)
    expected = gradients(learner)
    learner.begin_step(0)
    features = learner.features(batch)
    assert features.vectors.shape == (len(batch), 2 if task != "sst" else 1, 32) and len(features) == len(batch)
    loss = learner.descend(task, learner.loss(features), 0.5)
    assert not loss.requires_grad
    torch.testing.assert_close(loss, expected_loss)
    for name, grad in gradients(learner).items():
        assert (grad is None) == (expected[name] is None), name
        if grad is not None and (same := expected[name]) is not None:
            torch.testing.assert_close(grad, same, rtol=1e-4, atol=1e-7)
            assert grad_accumulation > 1 or grad.equal(same), name
    assert learner.examples == 2 * len(batch) and learner.read == {task: 2 * len(batch)}
    assert [name for name, *_ in learner.losses] == [task]


def test_fast_weights_stand_in_for_a_head() -> None:
    learner, feed = tiny("sst")
    features = learner.features(feed.batch("sst"))
    head = learner.head("sst")
    assert list(head) == ["dense.weight", "dense.bias", "out.weight", "out.bias"]
    fast = {name: (1.5 * parameter).detach().requires_grad_() for name, parameter in head.items()}
    loss = learner.loss(features, fast)
    with torch.no_grad():
        for parameter in head.values():
            parameter *= 1.5
    assert loss.equal(learner.loss(features))
    first = torch.autograd.grad(loss, list(fast.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.square().sum() for g in first), fast["out.weight"])  # type: ignore[arg-type]
    assert float(second[0].abs().sum()) > 0


def test_measuring_leaves_no_gradient() -> None:
    learner, feed = tiny("sst", grad_accumulation=2)
    batch = feed.batch("sst")
    measured = learner.measure(batch)
    assert all(grad is None for grad in gradients(learner).values()) and not learner.losses
    assert not measured.requires_grad
    torch.testing.assert_close(measured, learner.gradient(batch))
    assert learner.examples == 2 * len(batch)


def test_each_look_draws_a_dropout_mask_of_its_own() -> None:
    """A function of seed, step and the number of the look; where there is no dropout all looks are equal."""
    for dropout in (0.0, 0.5):
        learner, feed = tiny("sst", dropout=dropout)
        learner.model.train()
        batch = feed.batch("sst")

        def looks(learner: Learner = learner, batch: mtmeta.Batch = batch) -> list[float]:
            learner.begin_step(1)
            features = learner.features(batch)
            alike = [float(learner.loss(features).detach()) for _ in range(2)]
            assert alike[0] == alike[1]
            return [alike[0], float(learner.gradient(batch)), float(learner.measure(batch))]

        first = looks()
        assert len(set(first)) == (3 if dropout else 1)
        assert looks() == first


# ------------------------------------------------------------------------------------------------- forwards are counted


@dataclass(frozen=True)
class ByHand(mtmeta.Algorithm):
    """Takes a gradient by the learner, and looks at the same batch by hand in every way that there is."""

    name = "by_hand"

    def backward(self, learner: Any, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            batch = feed.batch(task)
            learner.gradient(batch)
            (chunk,) = batch.chunks
            with torch.no_grad():
                learner.model(task, chunk.packed)
                learner.model.pooled(task, chunk.packed)
                learner.model.encoder(chunk.packed)


def test_forward_passes_by_hand_are_counted() -> None:
    learner, feed = tiny("sst", "para", batch_size=8)
    with learner.counting():
        ByHand().backward(learner, feed)
    of_encoder_alone = 8 + 16  # which cannot tell two texts of a pair from two examples
    assert learner.examples == 2 * 3 * 8 + of_encoder_alone
    assert learner.read == {"sst": 24, "para": 24}
    learner.measure(feed.batch("sst"))
    assert learner.read["sst"] == 32
    learner.model.pooled("sst", feed.batch("sst").chunks[0].packed)
    assert learner.read["sst"] == 32  # outside a step, as in an evaluation


def test_a_budget_counts_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def backward(self: Joint, learner: Any, feed: mtmeta.Feed) -> None:
        ByHand.backward(self, learner, feed)  # type: ignore[arg-type]

    monkeypatch.setattr(Joint, "backward", backward)
    done = mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run", overrides=["training.steps=2"])
    assert done["examples"] == 2 * (3 * (3 * 16) + 16 + 32 + 32)


# ---------------------------------------------------------------------------------------------------------- own state


@dataclass(frozen=True)
class Remembering(mtmeta.Algorithm):
    """Weighs each task by its loss over the one before, looks again after the step, and notes how often it did."""

    name = "remembering"

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            loss = learner.loss(learner.features(feed.batch(task)))
            learner.descend(task, loss, loss.detach() / learner.memory.get(f"loss/{task}", loss.detach()))

    def after_step(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            learner.memory[f"loss/{task}"] = learner.measure(feed.batch(task))
        learner.memory["looks"] = learner.memory.get("looks", torch.tensor(0)) + 1


def as_joint(monkeypatch: pytest.MonkeyPatch, algorithm: type[mtmeta.Algorithm], *names: str) -> None:
    """Have `joint` do what another algorithm does."""
    for name in names:
        monkeypatch.setattr(Joint, name, getattr(algorithm, name))


def cut_after_two_steps(folder: Path) -> Path:
    """Train a run `whole` of six steps, and make `cut` as it was after two of them; returns their recipe."""
    recipe = write_recipe(folder, "joint", checkpoint={"every": 2, "keep": 9})
    mtmeta.run(recipe, out=folder / "whole")
    shutil.copytree(folder / "whole", folder / "cut", symlinks=True)
    (folder / "cut" / "summary.json").unlink()
    for step in (4, 6):
        shutil.rmtree(folder / "cut" / "checkpoints" / f"step-{step:08d}")
    return recipe


def test_the_check_for_plugin_authors_knows_it() -> None:
    check_algorithm(Remembering())


def test_a_run_taken_up_in_the_middle_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_joint(monkeypatch, Remembering, "backward", "after_step")
    recipe = cut_after_two_steps(tmp_path)
    mtmeta.run(recipe, out=tmp_path / "cut")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")


def test_it_is_lost_without_its_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What proves the two runs equal would notice."""
    as_joint(monkeypatch, Remembering, "backward", "after_step")
    recipe = cut_after_two_steps(tmp_path)
    monkeypatch.setattr(Joint, "restore", lambda self, learner, state: None)
    mtmeta.run(recipe, out=tmp_path / "cut")
    assert weights(tmp_path / "cut") != weights(tmp_path / "whole")


def test_a_skipped_step_leaves_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, Tensor]] = []

    def backward(self: Joint, learner: Any, feed: mtmeta.Feed) -> None:
        seen.append({name: tensor.clone() for name, tensor in learner.memory.items()})
        learner.gradient(feed.batch("sst"))
        learner.memory["count"] = learner.memory.get("count", torch.tensor(0.0))
        learner.memory["count"] += 1  # in place: what was saved of it must not move along
        if learner.step == 1:
            raise mtmeta.DivergedError("", "on purpose")

    looks: list[int] = []
    monkeypatch.setattr(Joint, "backward", backward)
    monkeypatch.setattr(Joint, "after_step", lambda self, learner, feed: looks.append(learner.step))
    skip = ("training.on_nonfinite=skip", "training.steps=4")
    mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run", overrides=skip)
    assert [float(memory.get("count", -1)) for memory in seen] == [-1, 1, 1, 2]
    assert looks == [0, 2, 3]


@dataclass(frozen=True)
class SecondLook(mtmeta.Algorithm):
    """Hands its batches on, to see by how much the step lowered their losses, and weighs the next step by that."""

    name = "second_look"

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        assert not learner.scratch
        batches = [feed.batch(task) for task in feed.tasks]
        for batch in batches:
            learner.gradient(batch, learner.memory.get(f"fall/{batch.task}", torch.tensor(1.0)).abs() + 0.5)
        learner.scratch["batches"] = batches

    def after_step(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for batch, (task, _, before) in zip(learner.scratch["batches"], learner.losses, strict=True):
            assert task == batch.task
            learner.memory[f"fall/{task}"] = before - learner.measure(batch)


def test_batches_are_handed_on_to_the_look_after_the_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_algorithm(SecondLook())
    as_joint(monkeypatch, SecondLook, "backward", "after_step")
    left: list[dict[str, Any]] = []
    monkeypatch.setattr(Joint, "before_evaluation", lambda self, learner, feed: left.append(dict(learner.scratch)))
    recipe = cut_after_two_steps(tmp_path)
    mtmeta.run(recipe, out=tmp_path / "cut")
    assert weights(tmp_path / "cut") == weights(tmp_path / "whole")
    assert left and not any(left)  # evaluation has the memory of the batches


def test_nothing_is_handed_on_from_a_skipped_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []

    def backward(self: Joint, learner: Any, feed: mtmeta.Feed) -> None:
        found.append(len(learner.scratch))
        SecondLook.backward(self, learner, feed)  # type: ignore[arg-type]
        if learner.step == 1:
            raise mtmeta.DivergedError("", "on purpose")

    monkeypatch.setattr(Joint, "backward", backward)
    as_joint(monkeypatch, SecondLook, "after_step")
    skip = ("training.on_nonfinite=skip", "training.steps=3")
    mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run", overrides=skip)
    assert found == [0, 0, 0]


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ([1], "state of algorithm 'joint' is a list, expected a dict"),
        ({"a|b": torch.zeros(1)}, "state of algorithm 'joint' holds Tensor under 'a|b', expected tensors by names"),
        ({"a": 1.0}, "state of algorithm 'joint' holds float under 'a', expected tensors by names without '|'"),
    ],
)
def test_a_state_that_no_checkpoint_can_hold(
    state: Any, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Joint, "state", lambda self, learner: state)
    with pytest.raises(PluginError, match=message.replace("|", r"\|")):
        mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run")


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Joint, "state", lambda self, learner: {"best": torch.tensor(float("inf"))})
    with pytest.raises(mtmeta.DivergedError, match=r"optimizer state 'algorithm\|state\|best' became non-finite"):
        mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run")


def test_a_checkpoint_of_another_state_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = write_recipe(tmp_path, "joint")
    mtmeta.run(recipe, out=tmp_path / "run", overrides=["training.steps=2"])
    (tmp_path / "run" / "summary.json").unlink()

    def restore(self: Joint, learner: Any, state: Mapping[str, Tensor]) -> None:
        raise ValueError("has no 'phi'")

    monkeypatch.setattr(Joint, "restore", restore)
    with pytest.raises(CheckpointError, match=r"holds no state of this run .*has no 'phi'"):
        mtmeta.run(recipe, out=tmp_path / "run", overrides=["training.steps=2"])


# ------------------------------------------------------------------------------------------------------- own heads


@dataclass(frozen=True)
class Means(mtmeta.Algorithm):
    """Trains nothing but what its features say, and fills in a head of class means before every evaluation."""

    name = "means"
    prepared: list[int] = field(default_factory=list)

    def build_head(self, task: mtmeta.Task, hidden_size: int) -> nn.Module | None:
        return PrototypeHead(torch.zeros(5, hidden_size)) if task.name == "sst" else None

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        features = learner.features(feed.batch("sst"))
        learner.descend("sst", features.vectors.square().mean())

    def before_evaluation(self, learner: Any, feed: mtmeta.Feed) -> None:
        with torch.no_grad():
            features = learner.features(feed.batch("sst"))
            for parameter in learner.head("sst").values():
                parameter.fill_(float(learner.step + 1))
        self.prepared.append(len(features))


def test_heads_of_an_algorithm_are_made_ready_before_each_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    means = Means()
    monkeypatch.setattr(Joint, "build_head", lambda self, task, hidden_size: means.build_head(task, hidden_size))
    monkeypatch.setattr(Joint, "backward", lambda self, learner, feed: means.backward(learner, feed))
    prepare = means.before_evaluation
    monkeypatch.setattr(Joint, "before_evaluation", lambda self, learner, feed: prepare(learner, feed))
    done = mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run")
    assert means.prepared == [16] * 3 and done["examples"] == 6 * 16  # of evaluation is no training
    scored = mtmeta.evaluate(tmp_path / "run")
    assert scored["tasks"]["sst"]["value"] == done["tasks"]["sst"]["value"]


# ------------------------------------------------------------------------------------------- numbers for each tensor


@dataclass(frozen=True)
class Scales(mtmeta.Algorithm):
    """A number for each tensor of the encoder."""

    name = "scales"

    def parameters_of(self, tasks: Sequence[str], names: Sequence[str]) -> dict[str, float]:
        return {name.replace(".", "/"): 0.5 for name in names if name.startswith("encoder.")}

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        learner.gradient(feed.batch(feed.tasks[0]))
        for name, parameter in learner.parameters.items():
            if name.startswith("encoder.") and parameter.grad is not None:
                scale = learner.parameters[f"algorithm.{name.replace('.', '/')}"]
                scale.grad = parameter.grad.square().sum()


def test_numbers_for_each_tensor_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_algorithm(Scales())
    as_joint(monkeypatch, Scales, "parameters_of", "backward")
    mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run")
    mtmeta.evaluate(tmp_path / "run")


# ------------------------------------------------------------------------------------------------------- rehearsals


def test_a_rehearsal_counts_what_training_counts() -> None:
    learner, feed = tiny("sst", "para", batch_size=8, examples=50)
    datasets = {name: feed.streams[name].dataset for name in feed.tasks}
    parts = (Remembering(), Uniform(), learner.model.encoder, learner.tasks, datasets, 3)
    rehearsed = [sum(read.values()) for read in rehearse(5, *parts)]
    trained = []
    for step in range(5):
        before = learner.examples
        feed.step = step
        learner.begin_step(step)
        Remembering().backward(learner, feed)
        Remembering().after_step(learner, feed)
        trained.append(learner.examples - before)
    assert rehearsed == trained and len(set(trained)) > 1


@dataclass(frozen=True)
class Curious(mtmeta.Algorithm):
    """Notes what there is to be seen."""

    name = "curious"
    seen: dict[str, Any] = field(default_factory=dict)
    """By name."""

    def __deepcopy__(self, memo: Any) -> Curious:
        return self

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        batch = feed.batch("sst")
        assert not learner.scratch and all(parameter.grad is None for parameter in learner.parameters.values())
        loss, features = learner.gradient(batch), learner.features(batch)
        with learner.excursion("sst", mtmeta.SGD(lr=0.1), mtmeta.Constant()) as inner:
            inner.step(batch)
            moves = inner.moves()
        learner.scratch["batch"] = batch
        self.seen.update(
            batch=(batch.task, len(batch), len(list(batch.ids)), batch.chunks),
            losses=[float(loss), float(learner.measure(batch))],
            zeros=[float(t.abs().max()) for t in (features.vectors.detach(), features.labels)],
            head={name: float(parameter.detach().abs().max()) for name, parameter in learner.head("sst").items()},
            gradient=learner.take_gradient(),
            moves=moves,
            parameters={(name.split(".")[0], p.device.type) for name, p in learner.parameters.items()},
            device=learner.device.type,
            drawn=feed.draw(2),
        )

    def after_step(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        self.seen["handed on"] = learner.scratch["batch"].task


def test_what_an_algorithm_finds_where_only_examples_are_counted() -> None:
    """The table of docs/plugins.md."""
    learner, feed = tiny("sst", "para", batch_size=8, examples=50)
    datasets = {name: feed.streams[name].dataset for name in feed.tasks}
    curious = Curious()
    list(rehearse(1, curious, Uniform(), learner.model.encoder, learner.tasks, datasets, 3))
    seen = curious.seen
    assert seen["batch"] == ("sst", 8, 8, ())
    assert seen["losses"] == seen["zeros"] == [0.0, 0.0]
    assert set(seen["head"].values()) == {0.0}
    assert set(seen["gradient"]) == {None} and seen["moves"] == {}
    assert (seen["parameters"], seen["device"]) == ({("encoder", "meta"), ("heads", "cpu")}, "cpu")
    assert seen["drawn"] == ["sst", "para"] and seen["handed on"] == "sst"


# ------------------------------------------------------------------------------------------------------------- API 1


@dataclass(frozen=True)
class Old(mtmeta.Algorithm):
    """An algorithm as version 1 had it."""

    name = "old"

    def parameters(self, tasks: Sequence[str]) -> dict[str, float]:
        return {task: 1.0 for task in tasks}

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            number = learner.parameters[f"algorithm.{task}"]
            number.grad = learner.gradient(feed.batch(task), number.detach())


def test_an_algorithm_of_version_1_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_algorithm(Old())
    as_joint(monkeypatch, Old, "parameters", "backward")
    mtmeta.run(write_recipe(tmp_path, "joint"), out=tmp_path / "run")


# --------------------------------------------------------------------------------- the check for authors finds faults


@dataclass(frozen=True)
class Elsewhere(Remembering):
    """Keeps its state where no checkpoint looks."""

    name = "elsewhere"
    kept: dict[str, Tensor] = field(default_factory=dict)
    """What nobody saves."""

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            loss = learner.loss(learner.features(feed.batch(task)))
            learner.descend(task, loss, loss.detach() / self.kept.get(task, loss.detach()))
            self.kept[task] = loss.detach()

    def after_step(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        pass


@dataclass(frozen=True)
class Meddling(Remembering):
    """Changes a weight after the step."""

    name = "meddling"

    def after_step(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        with torch.no_grad():
            next(iter(learner.parameters.values())).add_(1.0)


@dataclass(frozen=True)
class Infinite(Remembering):
    """Keeps what no checkpoint may hold."""

    name = "infinite"

    def state(self, learner: mtmeta.Learner) -> dict[str, Tensor]:
        return {"best": torch.tensor(float("inf"))}


@dataclass(frozen=True)
class Tokens(Remembering):
    """Looks at what a batch holds, of which there is nothing where only examples are counted."""

    name = "tokens"

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            batch = feed.batch(task)
            learner.gradient(batch, 1 / len(batch.chunks[0].packed.ids))


@dataclass(frozen=True)
class Thirsty(Remembering):
    """Reads once more where a loss is above 0, as no loss is where only examples are counted."""

    name = "thirsty"

    def backward(self, learner: mtmeta.Learner, feed: mtmeta.Feed) -> None:
        for task in feed.tasks:
            if learner.gradient(feed.batch(task)) > 0:
                learner.gradient(feed.batch(task))


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (Elsewhere(), "differs between two runs of the same object|is another after a checkpoint"),
        (Meddling(), "after_step changed encoder"),
        (Infinite(), "best of the state is not finite"),
        (Tokens(), "cannot be gone through without a model, as budget.examples does: IndexError"),
        (Thirsty(), "takes 36 example-forwards by step 0, 24 when gone through without a model"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_the_check_finds(algorithm: mtmeta.Algorithm, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        check_algorithm(algorithm)


def test_a_learner_and_a_trainer_have_what_the_protocol_says() -> None:
    names = [name for name in vars(mtmeta.Learner) if not name.startswith("_")]
    learner, _ = tiny("sst")
    assert [name for name in names if not hasattr(learner, name)] == []
    assert isinstance(learner, Learner) and hasattr(Trainer, "state_bytes")
