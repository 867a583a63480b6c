"""Training the rows of an embedding that occur is training all of them: the same weights, losses and norms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mtmeta.core.api.batch import Packed
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.packing import pack_chunk
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.studies import fine_tune as module
from mtmeta.core.studies.fine_tune import fine_tune
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.occurring import Occurring, OtherRows, occurring_rows, token_embedding
from tests.core.studies.test_adapt import NEW
from tests.support import tiny

STEPS = 6


def recipe_of(folder: Path, optimizer: str, *more: str) -> Recipe:
    (folder / "new.yaml").write_text(json.dumps(NEW))
    options = [f"optimizer={optimizer}", f"training.steps={STEPS}", *more]
    return load_recipe(folder / "new.yaml", build_registry(), overrides=options)


def few_and_packed(learner: Learner, feed: Any, task: str = "sst") -> tuple[Dataset, Packed]:
    few = feed.datasets[task]
    return few, pack_chunk(few, np.arange(4)).packed


def tuned(recipe: Recipe, embedding: str, task: str = "sst") -> tuple[dict[str, Tensor], list[Any], dict[str, Tensor]]:
    """Weights, losses and norms of a fine-tuning, and the weights it began with."""
    learner, feed = tiny.tiny(task, examples=6, batch_size=4)
    before = tiny.values(learner)
    done = fine_tune(learner.model, feed.datasets[task], recipe, embedding=embedding)
    assert [name for name, _ in learner.model.named_parameters()] == list(before)
    return tiny.values(learner), [(step.losses, step.norm) for step in done.steps], before


@pytest.mark.parametrize(
    ("optimizer", "factor"),
    [
        ("{name: adamw, lr: 1e-2, weight_decay: 0.3}", True),
        ("{name: adamw, lr: 1e-2, weight_decay: 0.3, layer_decay: 0.5, head_lr: 0.1}", True),
        ("{name: sgd, lr: 0.1, momentum: 0.9, weight_decay: 0.1}", True),
        ("{name: sgd, lr: 0.1}", False),
        ("{name: adam, lr: 1e-2}", False),
        ("{name: nadam, lr: 1e-2}", False),
    ],
)
@pytest.mark.parametrize("more", [(), ("training.clip=0.1", "training.grad_accumulation=2", "schedule=cosine")])
def test_the_rows_that_occur_are_as_good_as_all(optimizer: str, factor: bool, more: Any, tmp_path: Path) -> None:
    recipe = recipe_of(tmp_path, optimizer, *more)
    assert recipe.optimizer.scales_alike
    (plain, facts, before), (fast, others, _) = tuned(recipe, ""), tuned(recipe, "words")
    for name, value in plain.items():
        torch.testing.assert_close(fast[name], value, rtol=1e-5, atol=1e-6)
    for (losses, norm), (their, their_norm) in zip(facts, others, strict=True):
        assert their["sst"] == pytest.approx(losses["sst"], rel=1e-5)
        assert their_norm == pytest.approx(norm, rel=1e-5)
    words, was = fast["encoder.words.weight"], before["encoder.words.weight"]
    _, feed = tiny.tiny("sst", examples=6, batch_size=4)
    rows = np.unique(feed.datasets["sst"].stores[0].ids)
    waited = np.setdiff1d(np.arange(len(words)), rows)
    assert len(waited) > len(rows)
    assert not words[waited].equal(was[waited]) if factor else words[waited].equal(was[waited])
    assert not words[rows].equal(was[rows])


@pytest.mark.parametrize("optimizer", ["adam", "nadam"])
def test_where_decay_is_no_factor_all_rows_are_trained(
    optimizer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(tmp_path, f"{{name: {optimizer}, lr: 1e-2, weight_decay: 0.1}}")
    assert not recipe.optimizer.scales_alike
    names: list[str] = []

    def look(encoder: nn.Module, name: str, ids: Any) -> Any:
        names.append(name)
        return occurring_rows(encoder, name, ids)

    monkeypatch.setattr(module, "occurring_rows", look)
    plain, fast = tuned(recipe, "")[0], tuned(recipe, "words")[0]
    assert names == ["", ""]
    assert all(value.equal(fast[name]) for name, value in plain.items())


def test_only_the_rows_are_there_and_then_all_again() -> None:
    learner, feed = tiny.tiny("sst", examples=6)
    encoder: Any = learner.model.encoder
    whole = encoder.words.weight
    ids = torch.from_numpy(feed.datasets["sst"].stores[0].ids.astype(np.int64))
    with pytest.raises(ZeroDivisionError), occurring_rows(encoder, "words", [ids]) as rows:
        assert isinstance(rows, Occurring)
        assert len(encoder.words.weight) == len(torch.unique(ids)) < len(whole) / 2
        raise ZeroDivisionError
    assert encoder.words.weight is whole and not encoder.words._forward_pre_hooks


# ------------------------------------------------------------ encoders of which rows cannot be left out


def test_it_is_the_embedding_of_the_tokens() -> None:
    learner, feed = tiny.tiny("sst")
    _, packed = few_and_packed(learner, feed)
    before = tiny.values(learner)
    assert token_embedding(learner.model.encoder, packed) == "words"
    assert all(value.equal(before[name]) for name, value in tiny.values(learner).items())
    assert learner.model.encoder.training


class Strange(nn.Module):
    """An encoder that uses its embedding in another way than most."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.hidden_size, self.kind = 8, kind
        padding, norm = (0 if kind == "padding" else None), (1.0 if kind == "norm" else None)
        self.table = nn.Embedding(300, 8, padding_idx=padding, max_norm=norm)
        if kind == "frozen":
            self.table.weight.requires_grad_(False)

    def forward(self, packed: Packed) -> Tensor:
        ids = packed.ids + 1 if self.kind == "shifted" else packed.ids
        x: Tensor = self.table(ids)
        if self.kind == "mean":
            x = x + self.table.weight.mean(0)
        if self.kind == "row":
            x = x + self.table.weight[250]
        if self.kind == "out":
            x = x + (x @ self.table.weight.t()) @ self.table.weight
        return x


def packed_of(ids: list[int]) -> Packed:
    values, lengths = torch.tensor(ids), torch.tensor([len(ids)])
    return Packed(values, torch.arange(len(ids)), None, lengths, ((1, len(ids)),), torch.tensor([0]))


@pytest.mark.parametrize("kind", ["padding", "norm", "frozen", "shifted", "mean", "row", "out"])
def test_what_uses_it_otherwise_keeps_all_rows(kind: str) -> None:
    assert token_embedding(Strange("plain"), packed_of([3, 7, 3, 9])) == "table"
    assert token_embedding(Strange(kind), packed_of([3, 7, 3, 9])) == ""


def test_where_most_rows_occur_it_is_not_tried() -> None:
    assert token_embedding(Strange("plain"), packed_of(list(range(200)))) == ""


def test_a_row_that_was_not_to_occur_is_told() -> None:
    encoder = Strange("plain")
    with pytest.raises(OtherRows), occurring_rows(encoder, "table", [torch.tensor([3, 7])]):
        encoder(packed_of([3, 7, 8]))
