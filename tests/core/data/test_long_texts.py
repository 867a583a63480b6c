"""Long texts in windows: which tokens a window has, what heads get, runs, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtmeta
from mtmeta.core.data.dataset import Dataset, select
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack, pack_chunk
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel, pool_windows
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.generic import ClassificationTask
from tests.support.commands import assert_refused, call
from tests.support.quick import killed_before_step, outcome, quick

TEXTS = [" ".join(f"word{i % 7} {i}" for i in range(count)) for count in (1, 40, 3, 12, 8, 25)]
OPTIONS = {"train": "t", "labels": ("no", "yes")}
LONG = {"window": 12, "stride": 5}


def loaded(texts: list[str], long: dict[str, Any] | None, max_length: int = 16) -> tuple[Any, Any, Dataset]:
    task = ClassificationTask(**OPTIONS, long=None if long is None else mtmeta.LongText(**long))  # type: ignore[arg-type]
    backbone = Bert(weights="tiny", max_length=max_length, dropout=0.0).load(1)
    examples = [mtmeta.Example(text, label=OPTIONS["labels"][i % 2]) for i, text in enumerate(texts)]
    return task, backbone, from_examples("t", task, "train", examples, backbone)


def windows_by_hand(ids: list[int], room: int, stride: int) -> list[list[int]]:
    windows = [ids[:room]]
    while len(windows[-1]) == room and (len(windows) - 1) * stride + room < len(ids):
        begin = len(windows) * stride
        windows.append(ids[begin : begin + room])
    return windows


@pytest.mark.parametrize("stride", [1, 5, 10])
def test_windows_hold_every_token(stride: int) -> None:
    _, backbone, data = loaded(TEXTS, {"window": 12, "stride": stride, "most": 500})
    tokenizer, store, parts = backbone.tokenizer, data.stores[0], data.parts
    assert parts is not None and parts.words is None and data.truncated == 0
    at = 0
    for number, ids in enumerate(tokenizer.encode(TEXTS)):
        wanted = [[*tokenizer.prefix, *window, *tokenizer.suffix] for window in windows_by_hand(list(ids), 10, stride)]
        assert parts.offsets[number + 1] - parts.offsets[number] == len(wanted)
        for window in wanted:
            assert store.ids[at : at + len(window)].tolist() == window
            at += len(window)
        assert store.offsets[number + 1] == at
        assert store.full is not None and store.full[number] == len(ids) + 2
    assert at == len(store.ids)


def test_after_the_most_windows_a_text_is_cut_and_counted() -> None:
    _, _, data = loaded(TEXTS, {**LONG, "most": 2})
    assert data.parts is not None and np.diff(data.parts.offsets).max() == 2
    counts = [len(windows_by_hand([0] * len(text.split()) * 4, 10, 5)) for text in TEXTS]
    assert 0 < data.truncated < len(TEXTS) and data.truncated == int(data.cut.sum()) <= sum(n > 2 for n in counts)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_head_gets_the_pool_of_the_vectors_of_the_windows(pool: str) -> None:
    task, backbone, data = loaded(TEXTS, {**LONG, "pool": pool})
    model = MultiTaskModel(backbone.encoder, {"t": task}, 3).eval()
    order = np.array([4, 0, 2, 5, 1, 3])
    together = model.pooled("t", pack_chunk(data, order).packed)  # [B, 1, D]
    alone = ClassificationTask(**OPTIONS)  # type: ignore[arg-type]
    single = MultiTaskModel(backbone.encoder, {"t": alone}, 3).eval()
    for place, number in enumerate(order):
        ids = list(backbone.tokenizer.encode([TEXTS[number]])[0])
        vectors = []
        for window in windows_by_hand(ids, 10, 5):
            sequence = [*backbone.tokenizer.prefix, *window, *backbone.tokenizer.suffix]
            packed = mtmeta.Packed(
                torch.tensor(sequence), torch.arange(len(sequence)), None, torch.tensor([len(sequence)]),
                ((1, len(sequence)),), torch.tensor([0]),
            )  # fmt: skip
            vectors.append(single.pooled("t", packed)[0, 0])
        stacked = torch.stack(vectors)
        wanted = stacked.mean(0) if pool == "mean" else stacked.amax(0)
        assert torch.allclose(together[place, 0], wanted, atol=1e-5)


def test_texts_of_one_window_have_the_bits_that_they_have_without() -> None:
    short = ["a word", "so it goes"]
    answers = []
    for long in (None, {"window": 16, "stride": 8}):
        task, backbone, data = loaded(short, long)
        model = MultiTaskModel(backbone.encoder, {"t": task}, 3).eval()
        answers.append(model("t", pack_chunk(data, np.arange(2)).packed))
    assert answers[0].equal(answers[1])


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_pools_can_be_differentiated_twice(pool: str) -> None:
    vectors = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)
    windows = torch.tensor([2, 1, 4])
    assert torch.autograd.gradcheck(lambda v: pool_windows(v, windows, pool), vectors)
    assert torch.autograd.gradgradcheck(lambda v: pool_windows(v, windows, pool).pow(2), vectors)
    wanted = [part.mean(0) if pool == "mean" else part.amax(0) for part in torch.split(vectors, windows.tolist())]
    assert torch.allclose(pool_windows(vectors, windows, pool), torch.stack(wanted))


def test_accumulated_the_gradient_is_that_of_the_batch() -> None:
    grads = []
    for chunks in (1, 3):
        task, backbone, data = loaded(TEXTS, LONG)
        learner = Learner(MultiTaskModel(backbone.encoder, {"t": task}, 3), seed=1, steps=1)
        learner.gradient(pack(data, np.arange(6), chunks=chunks))
        grads.append(torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None]))
    assert torch.allclose(grads[0], grads[1], atol=1e-6)


def test_a_part_of_a_dataset_has_its_own_windows() -> None:
    _, _, data = loaded(TEXTS, LONG)
    some = select(data, np.array([3, 1]))
    one, other = pack_chunk(some, np.array([0, 1])), pack_chunk(data, np.array([3, 1]))
    assert one.labels.equal(other.labels) and one.packed.ids.equal(other.packed.ids)
    assert one.packed.windows is not None and other.packed.windows is not None
    assert one.packed.windows.equal(other.packed.windows) and one.packed.windows.max() > 2


# ---------------------------------------------------------------------------------------------------------------- runs


def long_recipe(folder: Path, algorithm: str = "joint", **long: Any) -> Path:
    recipe = json.loads(quick(folder, algorithm, training={"steps": 4, "precision": "fp32"}).read_text())
    for split in ("train", "dev"):
        header, *rows = (folder / f"{split}.tsv").read_text().splitlines()
        rows = [row.replace("\t", "\t" + "so it goes " * (7 * (number % 3)), 1) for number, row in enumerate(rows)]
        (folder / f"{split}.tsv").write_text("\n".join([header, *rows]) + "\n")
    for task in recipe["tasks"].values():
        task["long"] = {**LONG, **long}
    path = folder / "long.yaml"
    path.write_text(json.dumps(recipe))
    return path


@pytest.mark.parametrize("algorithm", ["joint", "reptile"])
def test_a_killed_run_ends_in_the_same_bits(algorithm: str, tmp_path: Path) -> None:
    recipe = long_recipe(tmp_path, algorithm)
    mtmeta.run(recipe, out=tmp_path / "whole", device="cpu")
    with killed_before_step(2):
        mtmeta.run(recipe, out=tmp_path / "cut", device="cpu")
    mtmeta.run(recipe, out=tmp_path / "cut", device="cpu")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")


def test_a_run_predicts_the_whole_of_a_text(tmp_path: Path, capsys: Any) -> None:
    recipe = long_recipe(tmp_path)
    mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    predictor = mtmeta.load(tmp_path / "run", device="cpu")
    long = "so it goes " * 30
    one, other = predictor.predict("kind", [long + "good", long + "bad"])
    assert one.probabilities != other.probabilities  # the last word counts
    assert predictor.predict("kind", long + "good").probabilities == pytest.approx(one.probabilities, abs=1e-6)
    refused = call(
        "export", str(tmp_path / "run"), "--out", "x", "--format", "onnx", "--task", "kind", cwd=tmp_path, capsys=capsys
    )
    assert_refused(refused, 5, "windows", "cannot be exported")


def test_validate_says_what_is_cut_and_how_to_read_it(tmp_path: Path, capsys: Any) -> None:
    recipe = json.loads(long_recipe(tmp_path).read_text())
    said = call("validate", "long.yaml", "--data", cwd=tmp_path, capsys=capsys)
    assert said.code == 0 and "longer than 12 and read in several windows" in said.out
    for task in recipe["tasks"].values():
        del task["long"]
    recipe["backbone"]["max_length"] = 16
    (tmp_path / "cut.yaml").write_text(json.dumps(recipe))
    said = call("validate", "cut.yaml", "--data", cwd=tmp_path, capsys=capsys)
    assert said.code == 0 and "set tasks.kind.long: {window: 16, stride: 8}" in said.out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"long": {"window": 64, "stride": 64}}, ("tasks.kind.long.stride", "below the window")),
        ({"long": {"window": 512}}, ("tasks.kind.long.window", "max_length")),
        ({"long": {"window": 12, "stride": 11}}, ("tasks.kind.long.stride", "10 tokens")),
        ({"long": {"window": 4}}, ("tasks.kind.long.window",)),
        ({"long": {"pool": "sum"}}, ("tasks.kind.long.pool",)),
        ({"long": {"widow": 12}}, ("widow", "window")),
        ({"long": LONG, "head": "hf"}, ("tasks.kind.long", "head: hf")),
        (
            {"long": LONG, "task": "pair_classification", "text": "sentence", "pair": "id"},
            ("tasks.kind.long", "has several"),
        ),
        ({"long": LONG, "task": "tagging", "metrics": ["entity_f1"]}, ("tasks.kind.long", "never cut")),
    ],
)
def test_what_windows_cannot_be(options: dict[str, Any], words: tuple[str, ...], tmp_path: Path, capsys: Any) -> None:
    recipe = json.loads(long_recipe(tmp_path).read_text())
    recipe["tasks"]["kind"] = {**recipe["tasks"]["kind"], **options}
    (tmp_path / "long.yaml").write_text(json.dumps(recipe))
    assert_refused(call("validate", "long.yaml", "--data", cwd=tmp_path, capsys=capsys), 2, *words)
