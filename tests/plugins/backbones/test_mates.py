"""Backbone `hf`: a text's vector does not depend on its batch mates, whatever the encoder does with padding."""

from __future__ import annotations

import csv
import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import mtmeta
from mtmeta.core.training import evaluation as evaluate
from mtmeta.plugins.backbones.encoder.repacked import Mates, Repacked
from mtmeta.plugins.backbones.hf import HuggingFace
from tests.support.commands import call
from tests.support.families import FAMILIES, OTHERS, write_family, write_other
from tests.support.parity import largest_difference, ours_of, random_sequences
from tests.support.quick import killed_before_step, outcome, quick

pytestmark = pytest.mark.usefixtures("one_thread")
Capture = pytest.CaptureFixture[str]
TOLERANCE = 1e-5
ONE_LENGTH = ("fnet", "funnel", "yoso", "convbert", "nystromformer", "mobilebert")
REFUSED = {
    "mra": "model_type 'mra' computes by kernels of the hub, which are never fetched",
    "reformer": "last_hidden_state: found shape",
}
SINGLE = "A joy from start to end."
LONG = [f"Two hours with the lights on and the sound off would have been a better way, said the man in row {i}." for i in (1, 2, 3)]  # noqa: E501  # fmt: skip


@pytest.fixture(scope="session")
def hf() -> Any:
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    return library


def load(folder: Path, **options: Any) -> tuple[Repacked, mtmeta.LoadedBackbone]:
    loaded = HuggingFace(weights=str(folder), **({"max_length": 48} | options)).load(seed=0)
    assert isinstance(loaded.encoder, Repacked)
    return loaded.encoder.eval(), loaded


@pytest.mark.parametrize("family", [*OTHERS, "mpnet", "modernbert", "deberta-v2"])
def test_a_vector_does_not_depend_on_its_batch_mates(family: str, hf: Any, tmp_path: Path) -> None:
    """And is what transformers makes of the text alone; only encoders that need it pay for that."""
    write = write_family if family in FAMILIES else write_other
    reference = write(hf, family, tmp_path)
    if family in REFUSED:
        with pytest.raises(mtmeta.WeightsError, match=REFUSED[family]):
            load(tmp_path)
        return
    encoder, loaded = load(tmp_path)
    sequences = random_sequences(loaded.tokenizer.size)  # type: ignore[attr-defined]
    zeros = [[0] * len(sequence) for sequence in sequences]
    if family == "bigbird":
        reference.set_attention_type("original_full")
    with torch.inference_mode():
        together = ours_of(encoder, sequences, zeros)
        alone = [ours_of(encoder, [s], [z])[0] for s, z in zip(sequences, zeros, strict=True)]
        theirs = []
        for sequence in sequences:
            spare = max(0, encoder.shortest - len(sequence))
            at, mask = torch.tensor([sequence + [0] * spare]), torch.tensor([[1] * len(sequence) + [0] * spare])
            hidden = reference.eval()(input_ids=at, attention_mask=mask).last_hidden_state
            theirs.append(hidden[0, : len(sequence)])
    scale = max(1.0, *(float(hidden.abs().max()) for hidden in alone))
    assert largest_difference(together, alone) <= TOLERANCE * scale
    assert largest_difference(alone, theirs) <= TOLERANCE * scale
    assert encoder.one_length is (family in ONE_LENGTH)
    assert encoder.shortest == {"funnel": 3}.get(family, 1)
    noted = [note for note in loaded.notes if "batches are computed one length at a time" in note]
    assert len(noted) == (family in ONE_LENGTH)


def test_gradients_do_not_depend_on_batch_mates(hf: Any, tmp_path: Path) -> None:
    """In training, dropout apart: the gradient of a batch is the sum of its texts' gradients."""
    write_other(hf, "fnet", tmp_path)
    encoder, loaded = load(tmp_path, dropout=0.0)
    encoder.train()
    sequences = random_sequences(loaded.tokenizer.size)[:5]  # type: ignore[attr-defined]

    def gradient(*chosen: list[int]) -> torch.Tensor:
        encoder.zero_grad()
        sum((hidden.mean(0) ** 3).sum() for hidden in ours_of(encoder, list(chosen))).backward()  # type: ignore[union-attr]
        values = encoder.model.embeddings.word_embeddings.weight.grad
        assert values is not None
        return values.clone()  # type: ignore[no-any-return]

    together, apart = gradient(*sequences), sum(gradient(one) for one in sequences)
    assert float((together - apart).abs().max()) <= TOLERANCE * max(1.0, float(together.abs().max()))


class Fake(nn.Module):
    """Stands in for transformers' model: hidden states of token ids [n, T] by a function of the test's."""

    def __init__(self, hidden: Any) -> None:
        super().__init__()
        self.hidden, self.words = hidden, nn.Embedding(50, 4)
        self.config = type("Config", (), {"hidden_size": 4, "pad_token_id": 0, "model_type": "fake"})

    def get_input_embeddings(self) -> nn.Embedding:
        return self.words

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Any:
        return type("Output", (), {"last_hidden_state": self.hidden(self.words(input_ids), attention_mask)})


@pytest.mark.parametrize(
    ("expected", "hidden"),
    [
        (Mates.APART, lambda words, mask: words.cumsum(1)),
        (Mates.PADDED, lambda words, mask: words + words.sum(1, keepdim=True)),
        (Mates.PADDED, lambda words, mask: words * mask.shape[1]),  # seen by lengths alone
        (Mates.MIXED, lambda words, mask: words - words.mean(0, keepdim=True)),  # as batch normalisation in training
        (Mates.MIXED, lambda words, mask: words * words.shape[0]),
        (Mates.RANDOM, lambda words, mask: words + torch.randn_like(words)),  # as hashing by random planes
        (Mates.RANDOM, lambda words, mask: words / 0.0),  # no numbers at all
    ],
)
def test_what_batch_mates_change_is_told_apart(expected: Mates, hidden: Any) -> None:
    tokenizer: Any = type("T", (), {"prefix": (1,), "middle": (2,), "suffix": (2,)})
    torch.manual_seed(4)
    before = torch.random.get_rng_state()
    encoder = Repacked(Fake(hidden), typed=False)
    torch.random.set_rng_state(before)
    for longest in (5, 48):
        with torch.inference_mode():
            assert encoder.mates(tokenizer, longest, 50) is expected
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's draws change


def test_an_encoder_that_cannot_be_repeated_is_refused(
    hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(hf, "bert", tmp_path)
    for mates, words in ((Mates.RANDOM, "gives one text another vector"), (Mates.MIXED, "mixes the texts of a batch")):
        monkeypatch.setattr(Repacked, "mates", lambda *arguments, mates=mates: mates)
        with pytest.raises(mtmeta.WeightsError, match=f"BertModel {words}.*use another encoder"):
            load(tmp_path)


def test_predictions_of_a_text_alone_and_beside_longer_ones(
    hf: Any, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run, cut and gone on with; it says once what it does, and needs nothing but its own folder."""
    monkeypatch.setattr(evaluate, "BOOTSTRAP_DRAWS", 5)
    write_other(hf, "fnet", tmp_path / "w")
    backbone = {"name": "hf", "weights": str(tmp_path / "w"), "max_length": 48}
    recipe = quick(tmp_path, backbone=backbone, training={"steps": 4}, reporters=["console", "jsonl"])
    found = call("run", recipe.name, "--out", "whole", cwd=tmp_path, capsys=capsys)
    assert found.code == 0 and found.err.count("FNetModel mixes padding into the vectors") == 1, found.err
    with killed_before_step(3):
        mtmeta.run(recipe, out=tmp_path / "cut")
    mtmeta.run(recipe, out=tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    shutil.rmtree(tmp_path / "w")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert mtmeta.evaluate(tmp_path / "whole")["tasks"] == summary["tasks"]
    made = {}
    for name, texts in {"one": [SINGLE], "four": [SINGLE, *LONG]}.items():
        (tmp_path / f"{name}.txt").write_text("".join(f"{text}\n" for text in texts))
        arguments = ("predict", "whole", "--task", "grade", "--input", f"{name}.txt", "--output", f"{name}.csv")
        assert call(*arguments, cwd=tmp_path, capsys=capsys).code == 0
        rows = list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        made[name] = [float(row["score"]) for row in rows]
    np.testing.assert_allclose(made["one"][0], made["four"][0], rtol=0, atol=TOLERANCE)
    assert len(made["four"]) == 4


def test_a_run_keeps_to_one_length_where_random_weights_would_not_show_why(hf: Any, tmp_path: Path) -> None:
    """The run's own folder says so: MobileBERT's row of padding is zero until weights fill it."""
    write_other(hf, "mobilebert", tmp_path / "w")
    encoder, loaded = load(tmp_path / "w")
    assert encoder.one_length
    (tmp_path / "run").mkdir()
    for name, data in loaded.files.items():
        (tmp_path / "run" / name).write_bytes(data)
    backbone = HuggingFace(weights=str(tmp_path / "w"), max_length=48)
    restored = backbone.restore(tmp_path / "run")
    assert isinstance(restored.encoder, Repacked) and restored.encoder.one_length
    (tmp_path / "run" / "batches.json").unlink()
    again = backbone.restore(tmp_path / "run").encoder
    assert isinstance(again, Repacked) and not again.one_length  # so it is the file that says it


def test_block_sparse_attention_does_not_depend_on_what_came_before(hf: Any, tmp_path: Path) -> None:
    """transformers leaves it for good at the first short text."""
    write_other(hf, "bigbird", tmp_path)
    encoder, loaded = load(tmp_path, max_length=200)
    assert [note for note in loaded.notes if "attention_type is 'block_sparse', full attention is used" in note]
    long = [2, *(5 + i % 60 for i in range(150)), 3]
    with torch.inference_mode():
        before = ours_of(encoder, [long])[0]
        ours_of(encoder, [[2, 7, 3]])
        assert torch.equal(ours_of(encoder, [long])[0], before)
