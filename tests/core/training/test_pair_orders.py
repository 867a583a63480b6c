"""`orders: both`: what a model says of a pair is the mean of what its head says of the two orders, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

import mtmeta
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.feed import Feed
from mtmeta.core.data.loading import from_examples, from_texts
from mtmeta.core.data.packing import pack, pack_sequences
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import digest
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.studies.fine_tune import prototypes
from mtmeta.core.training.evaluation import forward
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins.algorithms.protonet import Protonet
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.samplers import Uniform
from mtmeta.plugins.tasks.generic import PairClassificationTask, SimilarityTask
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sts import Sts
from tests.support.quick import killed_before_step, outcome, quick

pytestmark = pytest.mark.usefixtures("one_thread")

MODES: tuple[Any, ...] = ("separate", "cross")
KINDS: dict[str, Any] = {
    "para": lambda **options: Para(train="sample", **options),
    "sts": lambda **options: Sts(train="sample", activation="none", **options),
    "three": lambda **options: PairClassificationTask(train="x", labels=3, **options),
    "near": lambda **options: SimilarityTask(train="x", low=-5.0, activation="none", **options),
}
EXAMPLES = list(Para(train="sample").sample("train"))[:24]
PAIRS = [(example.text, str(example.pair)) for example in EXAMPLES]
# of all lengths, cut ones among them: max_length is 28
TEXTS = ["so " * (3 * i % 23) + first for i, (first, _) in enumerate(PAIRS)]
OTHERS = ["why " * (5 * i % 19) + second for i, (_, second) in enumerate(PAIRS)]


def model_of(task: mtmeta.Task, orders: Any = "both") -> tuple[MultiTaskModel, mtmeta.LoadedBackbone]:
    """A model of one task, `t`, whose weights are the same for both values of `orders`, and far from zero."""
    backbone = Bert(weights="tiny", max_length=28, dropout=0.0).load(3)
    model = MultiTaskModel(backbone.encoder, {"t": replace(task, orders=orders)}, seed=3)  # type: ignore[call-arg]
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval(), backbone


def outputs(model: MultiTaskModel, backbone: mtmeta.LoadedBackbone, one: list[str], other: list[str]) -> Tensor:
    found: Tensor = model("t", packed(model, backbone, one, other))
    return found


def packed(model: MultiTaskModel, backbone: mtmeta.LoadedBackbone, one: list[str], other: list[str]) -> Any:
    dataset = from_texts("t", model.tasks["t"], one, [other], backbone)
    return pack_sequences(dataset.stores, np.arange(len(one)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_outputs_are_the_mean_of_both_orders(kind: str, mode: Any) -> None:
    task = KINDS[kind](pair_mode=mode)
    (given, backbone), (both, _) = model_of(task, "given"), model_of(task)
    assert all(torch.equal(one, other) for one, other in zip(given.parameters(), both.parameters(), strict=True))
    straight, turned = outputs(given, backbone, TEXTS, OTHERS), outputs(given, backbone, OTHERS, TEXTS)
    found = outputs(both, backbone, TEXTS, OTHERS)
    torch.testing.assert_close(found, (straight + turned) / 2, rtol=1e-6, atol=1e-6)
    cosine = kind in ("sts", "near") and mode == "separate"
    assert (float((straight - turned).abs().max()) < 1e-5) == cosine  # or there was nothing to show
    torch.testing.assert_close(found, outputs(both, backbone, OTHERS, TEXTS), rtol=1e-6, atol=1e-6)
    if cosine:
        assert torch.equal(found, straight)


@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_vectors_swapped_give_the_same_bits(mode: Any) -> None:
    model, _ = model_of(Para(train="sample", pair_mode=mode))
    pooled = torch.randn(7, 2, model.hidden_size, generator=torch.Generator().manual_seed(2))
    assert model.outputs("t", pooled).equal(model.outputs("t", pooled.flip(1)))


@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_batches_by_length_have_the_outputs_of_one_pair_at_a_time(mode: Any) -> None:
    model, backbone = model_of(Para(train="sample", pair_mode=mode))
    dataset = from_texts("t", model.tasks["t"], TEXTS, [OTHERS], backbone)
    found = torch.zeros(len(TEXTS), 1)
    for indices, _, part in forward(model, dataset, batch_tokens=80):
        found[indices] = part
    alone = [outputs(model, backbone, [one], [other]) for one, other in zip(TEXTS, OTHERS, strict=True)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=1e-5, atol=1e-6)


class Said:
    """A teacher who says a number of every example."""

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        sure = (indices % 7 + 1).astype(np.float32) / 9
        return np.stack([1 - sure, sure], axis=1)


@pytest.mark.parametrize("taught", [False, True])
@pytest.mark.parametrize("mode", MODES)
def test_the_gradient_is_that_of_the_mean(mode: Any, taught: bool) -> None:
    """Of two forwards of a model that knows no orders; with a teacher, its loss is of the mean, too."""
    task = Para(train="sample", pair_mode=mode)
    (given, backbone), (both, _) = model_of(task, "given"), model_of(task)
    dataset = from_examples("t", both.tasks["t"], "train", EXAMPLES, backbone)
    dataset = replace(dataset, teacher=Said() if taught else None)
    learner = Learner(both, seed=1, steps=4)
    learner.begin_step(1)
    batch = pack(dataset, np.arange(24), chunks=2)
    learner.gradient(batch)
    assert learner.examples == 24
    first, second = map(list, zip(*PAIRS, strict=True))
    mean = (outputs(given, backbone, first, second) + outputs(given, backbone, second, first)) / 2
    labels = torch.tensor(dataset.labels, dtype=torch.float32)
    loss = task.objective.loss(mean, labels)
    if taught:
        loss = task.objective.soft_loss(mean, labels, torch.from_numpy(Said().rows(np.arange(24))), learner.trust)
    loss.backward()  # type: ignore[no-untyped-call]
    for name, parameter in given.named_parameters():
        torch.testing.assert_close(both.get_parameter(name).grad, parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("mode", MODES)
def test_the_head_alone_is_asked_for_both_orders_too(mode: Any) -> None:
    """`learner.loss` on features, as in an inner loop on the head, and `loss_at` are the loss of `gradient`."""
    model, backbone = model_of(Para(train="sample", pair_mode=mode))
    batch = pack(from_examples("t", model.tasks["t"], "train", EXAMPLES, backbone), np.arange(8))
    learner = Learner(model, seed=1, steps=1)
    learner.begin_step(0)
    found = [learner.gradient(batch), learner.loss(learner.features(batch)), learner.loss_at(batch, {})]
    assert learner.examples == 24
    assert [float(loss.detach()) for loss in found[1:]] == pytest.approx([float(found[0])] * 2, abs=1e-6)


def test_a_swapped_pair_has_the_two_sequences_swapped() -> None:
    task = Para(train="sample", pair_mode="cross", orders="both")
    backbone = Bert(weights="tiny", max_length=28).load(3)
    straight = from_texts("t", task, TEXTS, [OTHERS], backbone)
    turned = from_texts("t", task, OTHERS, [TEXTS], backbone)
    given = from_texts("t", replace(task, orders="given"), TEXTS, [OTHERS], backbone)
    assert 0 < straight.truncated == turned.truncated == given.truncated < len(TEXTS)
    assert (len(straight.stores), len(given.stores)) == (2, 1)
    for one, other in ((straight.stores, turned.stores[::-1]), (straight.stores[:1], given.stores)):
        for ours, theirs in zip(one, other, strict=True):
            for name in ("ids", "types", "offsets", "full"):
                np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


# ---------------------------------------------------------------------------------------------------------- prototypes


@pytest.mark.parametrize("mode", MODES)
@torch.inference_mode()
def test_prototypes_are_means_over_both_orders(mode: Any) -> None:
    task = Para(train="sample", pair_mode=mode)
    (given, backbone), (both, _) = model_of(task, "given"), model_of(task)
    few = from_examples("t", both.tasks["t"], "train", EXAMPLES, backbone)
    head: Any = prototypes(both, both.tasks["t"], few, batch_tokens=100)
    first, second = map(list, zip(*PAIRS, strict=True))
    vectors = torch.cat(
        [given.pooled("t", packed(given, backbone, *pair)).flatten(1) for pair in ((first, second), (second, first))]
    )
    labels = torch.tensor(few.labels).repeat(2)
    no, yes = (vectors[labels == label].mean(dim=0) for label in (0, 1))
    torch.testing.assert_close(head.out.weight[0], 2 * (yes - no), rtol=1e-4, atol=1e-5)
    both.replace_head("t", head)
    found = outputs(both, backbone, TEXTS, OTHERS)
    torch.testing.assert_close(found, outputs(both, backbone, OTHERS, TEXTS), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("mode", MODES)
def test_protonet_does_not_know_which_text_stands_first(mode: Any, distance: Any) -> None:
    """Loss and prototypes are those of the data with every other pair swapped."""
    algorithm = Protonet(distance=distance, tasks_per_step=1, prototype_examples=12)
    backbone = Bert(weights="tiny", max_length=16, dropout=0.0).load(3)
    task = Para(train="sample", pair_mode=mode, orders="both")
    model = MultiTaskModel(backbone.encoder, {"t": task}, 3, None, algorithm.build_head)
    turned = [replace(x, text=x.pair, pair=x.text) if i % 2 else x for i, x in enumerate(EXAMPLES)]  # type: ignore[arg-type]
    seen = []
    for examples in (EXAMPLES, turned):
        learner = Learner(model, seed=1, steps=1)
        data: dict[str, Dataset] = {"t": from_examples("t", task, "train", examples, backbone)}
        feed = Feed({"t": task}, data, Uniform(), seed=1)
        learner.begin_step(0)
        algorithm.backward(learner, feed)
        (loss,) = [float(loss) for _, _, loss in learner.losses]
        algorithm.before_evaluation(learner, feed)
        seen.append((loss, *(p.detach().clone() for p in model.heads["t"].parameters())))
    assert seen[0][0] == pytest.approx(seen[1][0], abs=1e-5)
    for one, other in zip(seen[0][1:], seen[1][1:], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------------------------- runs

PAIRED = {"train": "pairs.tsv", "dev": "pairs.tsv", "batch_size": 4, "inner_steps": 2, "orders": "both"}


def recipe_of(folder: Path, **changes: Any) -> Path:
    path = quick(folder, "reptile", **changes)
    rows = "".join(f"{i}\tword {i}\tother {'good ' * (i % 2)}\t{i % 2}\n" for i in range(12))
    (folder / "pairs.tsv").write_text("id\tsentence1\tsentence2\tis_duplicate\n" + rows)
    recipe = json.loads(path.read_text())
    recipe["tasks"] = {"apart": {"task": "para", **PAIRED}, "one": {"task": "para", "pair_mode": "cross", **PAIRED}}
    path.write_text(json.dumps(recipe))
    return path


def test_a_run_says_the_same_of_a_pair_and_of_the_pair_swapped_killed_or_not(tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path)
    mtmeta.run(recipe, out=tmp_path / "whole", device="cpu")
    with killed_before_step(3):
        mtmeta.run(recipe, out=tmp_path / "cut", device="cpu")
    mtmeta.run(recipe, out=tmp_path / "cut", device="cpu")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert summary["examples"] == 4 * 2 * 4 and summary["encodings"] == 2
    predictor = mtmeta.load(tmp_path / "whole", device="cpu")
    for task in ("apart", "one"):
        straight, turned = (
            [answer.probabilities["1"] for answer in predictor.predict(task, pairs)]  # type: ignore[index]
            for pairs in (PAIRS, [(b, a) for a, b in PAIRS])
        )
        assert straight == pytest.approx(turned, abs=1e-6) and len(set(straight)) > 20


def test_the_hash_of_a_recipe_without_it_is_what_it_was(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    text = """
backbone: {name: bert, weights: tiny, max_length: 16}
tasks:
  para: {train: sample, dev: sample, pair_mode: cross}
  sts: {train: sample, dev: sample}
algorithm: joint
optimizer: {name: adamw, lr: 1e-3}
training: {steps: 6}
"""
    digests = []
    for changed in (text, text.replace("cross", "cross, orders: given"), text.replace("cross", "cross, orders: both")):
        path.write_text(changed)
        digests.append(digest(load_recipe(path, build_registry())))
    assert digests[0] == digests[1] != digests[2]
    assert digests[0] == "eb1361ed325b227eb512e22554cbb92e2309fc1f82856b5e7ac7e96a7f2c6e89"


# ------------------------------------------------------------------------------------------------------------- refused


class OneText(mtmeta.PairTask):
    """Two texts, by its class; one, by its inputs."""

    name = "one_text"
    objective = mtmeta.Binary()
    metrics = ("accuracy",)
    inputs = "single"


class Whole(mtmeta.PairTask):
    """Two texts, by a head that takes sequences."""

    name = "whole"
    objective = mtmeta.Binary()
    metrics = ("accuracy",)
    head_takes = "sequence"


def test_what_has_no_two_orders_is_refused(tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"] = {"t": {"task": "one_text", "train": "train.tsv", "dev": "dev.tsv", "orders": "both"}}
    (problem,) = mtmeta.validate(recipe, plugins=[OneText]).problems
    assert "tasks.t.orders: both is for pairs with one answer each, which this task has not; leave it out" in problem
    recipe["tasks"]["t"]["task"] = "whole"
    (problem,) = mtmeta.validate(recipe, plugins=[Whole]).problems
    assert "tasks.t.orders: both is for heads that take pooled vectors, and this task's takes whole" in problem
