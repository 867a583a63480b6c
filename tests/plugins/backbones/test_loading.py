"""Backbone `hf`: the values are those of transformers' own from_pretrained, made of the bytes that were hashed."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from safetensors.torch import load_file, save_file

import mtmeta
from mtmeta.plugins.backbones import automodel
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint import shards
from mtmeta.plugins.backbones.encoder.repacked import Repacked
from mtmeta.plugins.backbones.hf import HuggingFace
from tests.support.families import FAMILIES, OTHERS, write_family, write_other
from tests.support.shards import INDEX, change_index, split

pytestmark = pytest.mark.usefixtures("one_thread")
WEIGHTS = "model.safetensors"
OPENED: list[str] = []
"""Paths opened by this process while `watching` is set."""
watching = False


def _hear(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event == "open" and isinstance(arguments[0], str | os.PathLike):
        OPENED.append(os.fspath(arguments[0]))


sys.addaudithook(_hear)  # there is no taking it back; it hears nothing unless a test asks


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The files that were opened since."""
    global watching
    OPENED.clear()
    watching = True
    yield OPENED
    watching = False


@pytest.fixture(scope="session")
def hf() -> Any:
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    return library


def load(folder: Path, **options: Any) -> tuple[Any, mtmeta.LoadedBackbone]:
    loaded = HuggingFace(weights=str(folder), **({"max_length": 16} | options)).load(seed=0)
    assert isinstance(loaded.encoder, Repacked)
    return loaded.encoder.model, loaded


def assert_theirs(hf: Any, folder: Path) -> None:
    """Every value is bit for bit what transformers loads from the folder by its path."""
    model, loaded = load(folder)
    reference = hf.AutoModel.from_pretrained(folder, dtype=torch.float32)
    theirs = {name: values for name, values in reference.state_dict().items() if "pooler." not in name}
    ours = {name: values for name, values in model.state_dict().items() if "pooler." not in name}
    assert list(ours) == list(theirs) and type(model) is type(reference)
    assert all(torch.equal(ours[name], theirs[name]) and ours[name].dtype == torch.float32 for name in ours)
    assert all(values.data_ptr() % 64 == 0 for values in model.parameters())  # of products on a CPU, the last bits
    if (folder / WEIGHTS).exists():
        assert loaded.identity == f"sha256:{hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}"


@pytest.mark.parametrize("family", [*FAMILIES, *(name for name in OTHERS if name not in ("mra", "reformer"))])
def test_values_are_those_of_transformers(family: str, hf: Any, tmp_path: Path) -> None:
    (write_family if family in FAMILIES else write_other)(hf, family, tmp_path)
    assert_theirs(hf, tmp_path)


@pytest.mark.parametrize("family", ["bert", "distilbert", "electra", "roberta", "deberta-v2", "mpnet", "modernbert"])
def test_values_out_of_a_model_with_heads(family: str, hf: Any, tmp_path: Path) -> None:
    """Names have the model's prefix, and LayerNorm's gamma and beta of old."""
    write_family(hf, family, tmp_path, heads=True)
    state = load_file(tmp_path / WEIGHTS)
    old = {name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): values
           for name, values in state.items()}  # fmt: skip
    save_file(old, tmp_path / WEIGHTS, {"format": "pt"})
    assert_theirs(hf, tmp_path)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_floats_become_fp32(dtype: torch.dtype, hf: Any, tmp_path: Path) -> None:
    """In both backbones, also where shards differ."""
    write_family(hf, "bert", tmp_path)
    state = load_file(tmp_path / WEIGHTS)
    save_file({n: values.to(dtype) if "layer.1" in n else values for n, values in state.items()}, tmp_path / WEIGHTS)
    assert_theirs(hf, tmp_path)
    whole = Bert(weights=str(tmp_path), max_length=16).load(0).encoder.state_dict()
    split(tmp_path)
    assert_theirs(hf, tmp_path)
    again = Bert(weights=str(tmp_path), max_length=16).load(0).encoder.state_dict()
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_ids_and_masks_that_no_encoder_uses_are_left_alone(hf: Any, tmp_path: Path) -> None:
    """Integers and booleans beside the weights, as older checkpoints have them."""
    write_family(hf, "bert", tmp_path)
    model, _ = load(tmp_path)
    extra = {"embeddings.position_ids": torch.arange(66)[None], "h.0.attn.bias": torch.ones(1, 4, dtype=torch.bool)}
    save_file(
        {**load_file(tmp_path / WEIGHTS), **extra, "cls.codes": torch.zeros(3, dtype=torch.int8)}, tmp_path / WEIGHTS
    )
    again, _ = load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))
    Bert(weights=str(tmp_path), max_length=16).load(0)


@pytest.mark.parametrize("sharded", [False, True])
def test_every_file_is_opened_once(sharded: bool, hf: Any, tmp_path: Path, opened: list[str]) -> None:
    """And nothing else but configuration and tokenizer, whatever lies beside."""
    write_family(hf, "bert", tmp_path)
    names = [*split(tmp_path), INDEX] if sharded else [WEIGHTS]
    for name in ("pytorch_model.bin", "tf_model.h5", "adapter_model.safetensors", "model.fp16.safetensors", "evil.py"):
        (tmp_path / name).write_bytes(b"\x80\x04.")
    for backbone in (Bert, HuggingFace):
        opened.clear()
        backbone(weights=str(tmp_path), max_length=16).load(0)
        ours = [os.path.basename(path) for path in opened if os.path.dirname(path) == str(tmp_path)]
        assert sorted(name for name in ours if "safetensors" in name) == sorted(names)
        assert {name for name in ours if "token" not in name} == {*names, "config.json"}


def test_weights_that_change_after_they_were_hashed(hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is loaded is what was hashed, also where another file takes the place at that very moment."""
    write_family(hf, "bert", tmp_path)
    before, first = load(tmp_path)
    real = shards.read_weights

    def exchanged(folder: Path, *arguments: Any, **options: Any) -> shards.Weights:
        weights = real(folder, *arguments, **options)
        state = {name: values + 1 for name, values in load_file(folder / WEIGHTS).items()}
        save_file(state, folder / WEIGHTS, {"format": "pt"})
        (folder / "config.json").write_text("{}")
        return weights

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("opened again")

    monkeypatch.setattr(automodel, "read_weights", exchanged)
    monkeypatch.setattr(safetensors, "safe_open", refuse)
    after, second = load(tmp_path)
    assert first.identity == second.identity and first.files == second.files  # the run's copy of config.json
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_shards_in_both_backbones(hf: Any, tmp_path: Path) -> None:
    reference = write_family(hf, "bert", tmp_path)
    whole = {kind: kind(weights=str(tmp_path), max_length=16).load(0) for kind in (Bert, HuggingFace)}
    names = split(tmp_path)
    hashes = "".join(f"{n} {hashlib.sha256((tmp_path / n).read_bytes()).hexdigest()}\n" for n in sorted(names))
    identities = []
    for kind, loaded in whole.items():
        again = kind(weights=str(tmp_path), max_length=16).load(0)
        state, expected = again.encoder.state_dict(), loaded.encoder.state_dict()
        assert all(torch.equal(state[name], expected[name]) for name in expected)
        identities.append(again.identity)
        assert again.notes == ()
    assert identities == [f"sha256:{hashlib.sha256(hashes.encode()).hexdigest()}"] * 2
    change_index(tmp_path, lambda values: values["metadata"].update(total_size=12))
    for kind in whole:
        (note,) = kind(weights=str(tmp_path), max_length=16).load(0).notes
        size = sum(values.numel() * 4 for values in reference.state_dict().values())
        assert note == f"{tmp_path / INDEX}: total_size is 12, its shards hold {size} bytes"


def test_links_of_the_hub_are_followed(hf: Any, tmp_path: Path) -> None:
    """Its cache is a folder of links to files named by their hashes."""
    write_family(hf, "bert", tmp_path / "blobs")
    split(tmp_path / "blobs")
    (tmp_path / "w").mkdir()
    for path in (tmp_path / "blobs").iterdir():
        (tmp_path / "w" / path.name).symlink_to(path)
    for kind in (Bert, HuggingFace):
        assert kind(weights=str(tmp_path / "w"), max_length=16).load(0).identity.startswith("sha256:")


# ---------------------------------------------------------------------------------------------------- config.json


def changed(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", [Bert, HuggingFace])
def test_auto_map_beside_an_architecture_that_is_known(kind: Any, hf: Any, tmp_path: Path) -> None:
    write_family(hf, "bert", tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('run')\n")
    plain = kind(weights=str(tmp_path), max_length=16).load(0)
    parts = {"text_config": {"auto_map": {"AutoModel": "evil.M"}}, "custom_pipelines": {"x": {"impl": "evil.P"}}}
    changed(tmp_path, auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"}, **parts)
    again = kind(weights=str(tmp_path), max_length=16).load(0)
    state = again.encoder.state_dict()
    assert all(torch.equal(state[name], values) for name, values in plain.encoder.state_dict().items())
    (note,) = again.notes
    words = "'auto_map' names code of the folder's own, which is never run; taken as plain 'bert'"
    assert note == f"{tmp_path / 'config.json'}: {words}"
    assert not [name for name in sys.modules if "evil" in name]


def test_keys_that_are_unset_or_harmless(hf: Any, tmp_path: Path) -> None:
    """As transformers itself writes them, and as people leave them."""
    write_family(hf, "bert", tmp_path)
    plain, _ = load(tmp_path)
    unset: dict[str, object] = {
        "quantization_config": None,
        "attn_implementation": None,
        "_attn_implementation": "sdpa",
    }
    unset |= {"use_timm_backbone": False, "backbone": None, "transformers_weights": "", "kernel_config": {}}
    changed(tmp_path, **unset, _name_or_path="/home/someone/evil", output_hidden_states=True, return_dict=False)
    model, loaded = load(tmp_path)
    assert loaded.notes == ()
    packed: Any = {"input_ids": torch.tensor([[2, 7, 8, 3]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    with torch.inference_mode():
        output = model.eval()(**packed)
        assert torch.equal(output.last_hidden_state, plain.eval()(**packed).last_hidden_state)
    assert output.hidden_states is None
    assert model.config._attn_implementation == "sdpa"
    changed(tmp_path, _attn_implementation="eager")
    assert load(tmp_path)[0].config._attn_implementation == "eager"


def test_kernels_of_the_hub_are_never_fetched(hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As YOSO would on a GPU, when it is made."""
    module = importlib.import_module("transformers.models.yoso.modeling_yoso")
    hub = importlib.import_module("transformers.integrations.hub_kernels")
    asked: list[object] = []
    for name in ("is_torch_cuda_available", "is_ninja_available", "is_kernels_available"):
        monkeypatch.setattr(module, name, lambda: True)
    monkeypatch.setattr(hub, "get_kernel", lambda *arguments, **options: asked.append(arguments))
    write_other(hf, "yoso", tmp_path)
    assert asked  # transformers by itself asks
    asked.clear()
    monkeypatch.setattr(module, "lsh_cumulation", None)
    load(tmp_path)
    assert not asked
    hub.get_kernel("x")
    assert asked  # and may again, for others
    changed(tmp_path, use_expectation=False)
    with pytest.raises(mtmeta.WeightsError, match="'yoso' computes by kernels of the hub, which are never fetched"):
        load(tmp_path)
