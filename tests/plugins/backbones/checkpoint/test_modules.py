"""Folders of sentence-transformers: the encoder is found, and what is left out is said."""

from __future__ import annotations

import importlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import mtmeta
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.hf import HuggingFace
from tests.support.commands import call
from tests.support.families import write_family
from tests.support.quick import quick
from tests.support.shards import split

pytestmark = pytest.mark.usefixtures("one_thread")
Capture = pytest.CaptureFixture[str]
KINDS = [Bert, HuggingFace]
LEFT_OUT = "left out: a text's vector is the mean of its hidden states here"


@pytest.fixture(scope="session")
def hf() -> Any:
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    return library


def write_modules(folder: Path, *names: str, under: str = "", pooling: Any = None) -> None:
    """modules.json with a Transformer in `under`, and one module for each of `names`."""
    listed = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{kind}" if i else under,
            "type": f"sentence_transformers.models.{kind}",
        }
        for i, kind in enumerate(["Transformer", *names])
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    for i, kind in enumerate(names, start=1):
        (folder / f"{i}_{kind}").mkdir()
        if kind == "Pooling":
            (folder / f"{i}_{kind}" / "config.json").write_text(json.dumps(pooling))


def flags(*on: str) -> dict[str, Any]:
    """Pooling as sentence-transformers wrote it before version 6."""
    kinds = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "lasttoken")
    return {"word_embedding_dimension": 24} | {f"pooling_mode_{kind}": kind in on for kind in kinds}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("under", ["", "0_Transformer"])
def test_the_encoder_is_found(under: str, kind: Any, hf: Any, tmp_path: Path) -> None:
    """In the root, or in a folder of its own; also in shards. Mean and normalised vectors need no word."""
    write_family(hf, "bert", tmp_path / "plain")
    plain = kind(weights=str(tmp_path / "plain"), max_length=16).load(0)
    shutil.copytree(tmp_path / "plain", tmp_path / "w" / under, dirs_exist_ok=True)
    write_modules(tmp_path / "w", "Pooling", "Normalize", under=under, pooling=flags("mean_tokens"))
    for sharded in (False, True):
        if sharded:
            split(tmp_path / "w" / under)
        loaded = kind(weights=str(tmp_path / "w"), max_length=16).load(0)
        state = loaded.encoder.state_dict()
        assert all(torch.equal(state[name], values) for name, values in plain.encoder.state_dict().items())
        assert loaded.files["tokenizer.json"] == plain.files["tokenizer.json"] and loaded.notes == ()
        tokenizer = kind(weights=str(tmp_path / "w"), max_length=16).load_tokenizer()
        assert tokenizer is None or tokenizer.files["tokenizer.json"] == plain.files["tokenizer.json"]


@pytest.mark.parametrize(
    ("names", "pooling", "words"),
    [
        (("Pooling",), flags("mean_tokens"), ""),
        (("Pooling",), {"embedding_dimension": 24, "pooling_mode": "mean", "include_prompt": True}, ""),
        (("Pooling",), flags("cls_token"), "pooling 'cls_token' (1_Pooling)"),
        (("Pooling",), {"pooling_mode": "cls"}, "pooling 'cls' (1_Pooling)"),
        (("Pooling",), {"pooling_mode": ["max", "mean"]}, "pooling 'max and mean' (1_Pooling)"),
        (("Pooling",), flags("mean_tokens", "max_tokens"), "pooling 'mean_tokens and max_tokens' (1_Pooling)"),
        (("Pooling",), {}, "pooling 'unknown' (1_Pooling)"),
        (("Pooling", "Normalize"), flags("lasttoken"),
         "pooling 'lasttoken' (1_Pooling), normalised vectors (2_Normalize)"),
        (("Pooling", "Dense"), flags("mean_tokens"), "a Dense layer (2_Dense)"),
        (("Pooling", "LayerNorm"), flags("mean_tokens"), "a LayerNorm layer (2_LayerNorm)"),
    ],
)  # fmt: skip
def test_what_is_left_out_is_said(names: tuple[str, ...], pooling: Any, words: str, hf: Any, tmp_path: Path) -> None:
    write_family(hf, "bert", tmp_path)
    write_modules(tmp_path, *names, pooling=pooling)
    for kind in KINDS:
        notes = kind(weights=str(tmp_path), max_length=16).load(0).notes
        model = f"{tmp_path}: its sentence-transformers model has {words}, {LEFT_OUT}"
        assert notes == ((model,) if words else ())


def test_prompts_and_settings_of_the_texts_are_said(hf: Any, tmp_path: Path) -> None:
    write_family(hf, "bert", tmp_path)
    write_modules(tmp_path, "Pooling", pooling=flags("mean_tokens"))
    prompts = {"prompts": {"query": "query: ", "passage": ""}, "default_prompt_name": "passage"}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    limits = {"max_seq_length": 16, "do_lower_case": True}  # the tokenizer does that already
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(limits))
    for kind in KINDS:
        assert kind(weights=str(tmp_path), max_length=16).load(0).notes == ()
        (note,) = kind(weights=str(tmp_path), max_length=17).load(0).notes
        assert note.endswith("sentence_bert_config.json: max_seq_length is 16, the recipe's max_length 17 holds")
    prompts["default_prompt_name"] = "query"
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(prompts))
    for kind in KINDS:
        (note,) = kind(weights=str(tmp_path), max_length=16).load(0).notes
        assert f"model has the prompt 'query: ' before every text, {LEFT_OUT}" in note
    (tmp_path / "config_sentence_transformers.json").unlink()
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (note,) = Bert(weights=str(tmp_path), max_length=16).load(0).notes
    assert note.endswith("sentence_bert_config.json: do_lower_case is true, its tokenizer keeps capitals, and holds")


def test_what_sentence_transformers_writes_today(hf: Any, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    modules = importlib.import_module("sentence_transformers.sentence_transformer.modules")
    write_family(hf, "bert", tmp_path / "plain")
    first = modules.Transformer(str(tmp_path / "plain"))
    parts = [first, modules.Pooling(24, pooling_mode="cls"), modules.Dense(24, 8), modules.Normalize()]
    library.SentenceTransformer(modules=parts, device="cpu").save(str(tmp_path / "w"))
    for kind in KINDS:
        plain = kind(weights=str(tmp_path / "plain"), max_length=16).load(0).encoder.state_dict()
        loaded = kind(weights=str(tmp_path / "w"), max_length=16).load(0)
        state = loaded.encoder.state_dict()
        assert all(torch.equal(state[name], values) for name, values in plain.items())
        beside = "pooling 'cls' (1_Pooling), a Dense layer (2_Dense), normalised vectors (3_Normalize)"
        assert loaded.notes == (f"{tmp_path / 'w'}: its sentence-transformers model has {beside}, {LEFT_OUT}",)


@pytest.mark.parametrize("name", ["bert", "hf"])
def test_a_run_says_it_once_and_so_does_a_dry_one(name: str, hf: Any, tmp_path: Path, capsys: Capture) -> None:
    write_family(hf, "bert", tmp_path / "w" / "0_Transformer")
    write_modules(tmp_path / "w", "Pooling", under="0_Transformer", pooling=flags("cls_token"))
    quick(tmp_path, backbone={"name": name, "weights": "./w", "max_length": 16}, reporters=["console", "jsonl"])
    checked = (
        ("validate", "--weights", "quick.yaml"),
        ("run", "quick.yaml", "--dry-run"),
        ("run", "quick.yaml", "--out", "out"),
    )
    for arguments in checked:
        found = call(*arguments, cwd=tmp_path, capsys=capsys)
        assert found.code == 0, found.err
        assert found.err.count("model has pooling 'cls_token' (1_Pooling), left out") == 1, (arguments, found.err)
    shutil.rmtree(tmp_path / "w")
    assert mtmeta.evaluate(tmp_path / "out")["tasks"]
