"""The pretrained encoder inside the package: what lies there, that it is BERT, that it knows English, and its card."""

from __future__ import annotations

import csv
import hashlib
import importlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open

import mtmeta
from benchmarks.mini import zero_shot
from mtmeta import sample
from mtmeta.cli import main
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.recipe.part_help import describe_part
from mtmeta.core.registry.registry import build_registry
from mtmeta.plugins.backbones import embedded
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.config import read_config
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.tasks.sts import Sts

pytestmark = pytest.mark.usefixtures("one_thread")
CARD = (embedded.FOLDER / "README.md").read_text(encoding="utf-8")
WEIGHTS = embedded.FOLDER / "model.safetensors"


def encoder_of(**options: Any) -> tuple[Encoder, mtmeta.LoadedBackbone]:
    loaded = Bert(weights="embedded", max_length=128, **options).load(options.pop("seed", 0))
    assert isinstance(loaded.encoder, Encoder)
    return loaded.encoder.eval(), loaded


def sample_sentences(count: int = 60) -> list[str]:
    rows = [row for task in ("sst", "para", "sts") for row in sample.examples(task, "dev")[: count // 3]]
    return [text for row in rows for text in (row.text, row.pair) if text]


# ------------------------------------------------------------------------------------------------------- the files


def test_it_is_fp16_and_no_more_than_20_megabytes() -> None:
    assert sum(path.stat().st_size for path in embedded.FOLDER.iterdir()) <= 20_000_000
    config = read_config(embedded.FOLDER / "config.json")
    names = [name for theirs in hugging_face_names(config).values() for name in theirs]
    with safe_open(WEIGHTS, "pt") as file:
        assert sorted(file.keys()) == sorted(names)
        assert {file.get_slice(name).get_dtype() for name in names} == {"F16"}


def test_the_card_is_of_these_weights() -> None:
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert digest in CARD
    parameters = sum(p.numel() for p in encoder_of()[0].parameters())
    assert f"{parameters:,} parameters" in CARD
    for word in ("sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0", "CC BY-SA", "python -m tools.build_mini"):
        assert word in CARD


def test_any_text_can_be_spelt() -> None:
    """Every character that is a piece is one in both forms, so no word of such characters is unknown."""
    vocabulary = json.loads((embedded.FOLDER / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    singles = {piece for piece in vocabulary if len(piece) == 1 and piece.isascii()}
    assert set("abcdefghijklmnopqrstuvwxyz0123456789") <= {s for s in singles if f"##{s}" in vocabulary}
    tokenizer = encoder_of()[1].tokenizer
    for word in ("supercalifragilistic", "xqzjkwv", "caf\u00e9", "3rd", "stra\u00dfe", "na\u00efve"):
        assert vocabulary["[UNK]"] not in tokenizer.encode([word])[0], word


# ----------------------------------------------------------------------------------------------------- what it computes


def test_it_is_what_transformers_makes_of_the_folder() -> None:
    hf = importlib.import_module("transformers")
    model = hf.BertModel.from_pretrained(embedded.FOLDER, dtype=torch.float32, add_pooling_layer=False).eval()
    reference = hf.PreTrainedTokenizerFast(tokenizer_file=str(embedded.FOLDER / "tokenizer.json"))
    encoder, loaded = encoder_of()
    texts = [*sample_sentences(), "Caf\u00e9s in Z\u00fcrich: 12.5% cheaper?", "\u4e2d\u6587 unaccustomedness"]
    dataset = from_examples("sts", Sts(train="sample"), "dev", [mtmeta.Example(t, t, label=1.0) for t in texts], loaded)
    for number, text in enumerate(texts):
        packed = pack_sequences(dataset.stores[:1], np.array([number]))
        ids = reference(text)["input_ids"]
        assert packed.ids.tolist() == ids
        with torch.inference_mode():
            wanted = model(torch.tensor([ids])).last_hidden_state[0]
            found = encoder(packed)
        assert float((found - wanted).abs().max()) <= 1e-5


def test_the_seed_does_not_matter_and_the_file_is_its_identity() -> None:
    one, other = (Bert(weights="embedded").load(seed) for seed in (1, 2))
    state, same = one.encoder.state_dict(), other.encoder.state_dict()
    assert all(torch.equal(state[name], same[name]) for name in state)
    assert one.identity == other.identity == f"sha256:{hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()}"


def test_without_pretrained_values_shape_and_tokenizer_stay() -> None:
    one, same, other = (Bert(weights="embedded", pretrained=False).load(seed) for seed in (1, 1, 2))
    real = Bert(weights="embedded").load(1)
    a, b, c, d = (loaded.encoder.state_dict() for loaded in (one, same, other, real))
    assert {name: t.shape for name, t in a.items()} == {name: t.shape for name, t in d.items()}
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["words.weight"], c["words.weight"])
    assert not torch.equal(a["words.weight"], d["words.weight"])
    assert float(a["layers.0.attention.qkv.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert one.files == real.files
    assert one.identity == same.identity != other.identity
    assert one.identity != real.identity


def test_it_knows_which_sample_sentences_mean_the_same() -> None:
    """Dev words are new; the cosine of the pretrained vectors orders the pairs, that of random ones does not."""
    task, found = Sts(train="sample"), {}
    for pretrained in (True, False):
        encoder, loaded = encoder_of(pretrained=pretrained)
        dataset = from_examples("sts", task, "dev", list(task.sample("dev")), loaded)
        found[pretrained] = zero_shot(encoder, dataset)
    assert found[True] == pytest.approx(PRETRAINED, abs=2e-3)
    assert found[False] == pytest.approx(RANDOM, abs=2e-3)


PRETRAINED, RANDOM = 0.3798, 0.1630


def test_zero_shot_on_real_data_is_as_the_card_says(real_data: Path) -> None:
    encoder, loaded = encoder_of()
    with open(real_data / "sts-dev.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    pairs = [mtmeta.Example(row["sentence1"], row["sentence2"], label=row["similarity"]) for row in rows]
    dataset = from_examples("sts", Sts(train="sample"), "dev", pairs, loaded)
    (stated,) = re.findall(r"sts Pearson, zero-shot \| (0\.\d+) \|", CARD)
    assert zero_shot(encoder, dataset) == pytest.approx(float(stated), abs=5e-4)


# --------------------------------------------------------------------------------------------------------------- show


def shown(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["show", "backbone", "bert", *options])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_show_tells_size_and_card(capsys: pytest.CaptureFixture[str]) -> None:
    size = sum(path.stat().st_size for path in embedded.FOLDER.iterdir())
    text = shown(capsys)
    assert (
        "weights: embedded is mtmeta-mini: BERT, English, uncased, pretrained; 3 layers of 384, 11,500 pieces" in text
    )
    parameters = sum(p.numel() for p in encoder_of()[0].parameters())
    assert f"{parameters / 1e6:.1f} million parameters, {size / 1e6:.1f} MB in the package; Apache-2.0" in text
    assert f"model card: {embedded.FOLDER / 'README.md'}" in text
    assert "\n".join(json.loads(shown(capsys, "--json"))["about"]) in text


def test_a_package_without_the_folder_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(embedded, "FOLDER", tmp_path)
    with pytest.raises(mtmeta.WeightsError, match=r"config\.json: is not there; install mtmeta again"):
        Bert(weights="embedded").load(0)
    assert "weights: embedded: cannot be used: " in shown(capsys)


def test_what_a_part_says_of_itself_cannot_steer_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bert, "about", classmethod(lambda cls: ["\x1b[31mred", 5]))
    assert describe_part(build_registry(), "backbone", "bert")["about"] == [mtmeta.safe("\x1b[31mred"), "5"]
