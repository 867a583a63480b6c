"""Folders made to lead a reader astray: to other files, other code, other kernels, other number formats.

Both backbones refuse each of them by name, in one line. The numbers are the rows of our list of bad inputs.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mtmeta.plugins.backbones.checkpoint.shards import SPARE
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, call
from tests.support.families import write_family
from tests.support.quick import quick
from tests.support.shards import INDEX, change_index, change_tensors, split

Change = Callable[[Path], object]
QUERY = "encoder.layer.1.attention.self.query.weight"
NORM = "embeddings.LayerNorm.weight"
SHARDS = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
EVIL = "raise SystemExit('run')\n"
BOTH, HF = ("bert", "hf"), ("hf",)


def config(**changes: object) -> Change:
    def spoil(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return spoil


def index(change: Callable[[dict[str, Any]], object]) -> Change:
    def spoil(folder: Path) -> None:
        split(folder)
        change_index(folder, change)

    return spoil


def elsewhere(name: str) -> Change:
    """All tensors of the first shard in a file of another name."""
    return index(lambda v: v.update(weight_map={t: name if n == SHARDS[0] else n for t, n in v["weight_map"].items()}))


def sharded(change: Change) -> Change:
    def spoil(folder: Path) -> None:
        split(folder)
        change(folder)

    return spoil


def swapped(folder: Path) -> None:
    first, second = folder / SHARDS[0], folder / SHARDS[1]
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)


def pipe(name: str) -> Change:
    def spoil(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return spoil


def of_type(dtype: torch.dtype, name: str = QUERY) -> Change:
    def spoil(folder: Path) -> None:
        (path,) = [p for p in folder.glob("*.safetensors") if name in p.read_bytes()[:9000].decode("latin-1")]
        change_tensors(path, lambda state: state.update({name: torch.ones(24, 24).to(dtype)}))

    return spoil


def foreign(folder: Path) -> None:
    """auto_map, and a norm in a layer that plain BERT does not have."""
    name = "encoder.layer.0.attention.self.layer_norm_q.weight"
    change_tensors(folder / "model.safetensors", lambda state: state.update({name: torch.ones(24)}))
    config(auto_map={"AutoModel": "modeling_evil.Model"})(folder)


def modules(*listed: tuple[str, str]) -> Change:
    def spoil(folder: Path) -> None:
        values = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(listed)]
        (folder / "modules.json").write_text(json.dumps(values))

    return spoil


def twice(folder: Path) -> None:
    change_tensors(folder / "model.safetensors", lambda state: state.update({f"bert.{NORM}": torch.zeros(24)}))


def write(name: str, text: str) -> Change:
    return lambda folder: (folder / name).write_text(text)


ST = "sentence_transformers.models.Transformer"
ROWS: list[tuple[int, str, tuple[str, ...], Change, tuple[str, ...]]] = [
    (190, "a shard by a path", BOTH, elsewhere("../w/x.safetensors"), (f"w/{INDEX}: names '../w/x.safetensors'",)),
    (191, "a shard by an absolute path", BOTH, elsewhere("/etc/x.safetensors"), ("names '/etc/x.safetensors', which",)),
    (192, "a pickle as a shard", BOTH, elsewhere("pytorch_model.bin"), ("names 'pytorch_model.bin'", "pickle files")),
    (193, "a shard that is missing", BOTH, elsewhere("x.safetensors"), ("w/x.safetensors: no such file",)),
    (194, "shards swapped", BOTH, sharded(swapped),
     (f"{SHARDS[0]}: lacks tensor 'embeddings.LayerNorm.bias', which {INDEX} says",)),
    (195, "a tensor in two shards", BOTH,
     sharded(lambda f: change_tensors(f / SHARDS[1], lambda state: state.update({NORM: torch.zeros(24)}))),
     (f"{SHARDS[1]}: tensor '{NORM}' is in {SHARDS[0]} too",)),
    (196, "a tensor that the index does not name", BOTH, index(lambda v: v["weight_map"].pop(NORM)),
     (f"{SHARDS[0]}: has tensor '{NORM}', which {INDEX} names elsewhere or not at all",)),
    (196, "a tensor that its shard lacks", BOTH, index(lambda v: v["weight_map"].update({"encoder.x": SHARDS[2]})),
     (f"{SHARDS[2]}: lacks tensor 'encoder.x', which {INDEX} says is in it",)),
    (197, "a shard cut short", BOTH, sharded(lambda f: os.truncate(f / SHARDS[2], 4000)),
     (f"{SHARDS[2]}: is damaged (size 4000, its header says",)),
    (198, "a pipe as a shard", BOTH, sharded(pipe(SHARDS[1])), (f"{SHARDS[1]}: is not a regular file",)),
    (198, "a pipe as the index", BOTH, sharded(pipe(INDEX)), (f"w/{INDEX}: is not a regular file",)),
    (199, "float8 in one shard", BOTH, sharded(of_type(torch.float8_e4m3fn)),
     (f"tensor '{QUERY}' is float8_e4m3fn; save it as float32",)),
    (199, "float8 of another kind", BOTH, of_type(torch.float8_e5m2), (f"tensor '{QUERY}' is float8_e5m2",)),
    (200, "int8", BOTH, of_type(torch.int8), (f"model.safetensors: tensor '{QUERY}' is int8",)),
    (200, "uint8", BOTH, of_type(torch.uint8), (f"model.safetensors: tensor '{QUERY}' is uint8",)),
    (200, "int64", BOTH, of_type(torch.int64), (f"model.safetensors: tensor '{QUERY}' is int64",)),
    (201, "complex", BOTH, of_type(torch.complex64), (f"model.safetensors: tensor '{QUERY}' is complex64",)),
    (202, "bool", BOTH, of_type(torch.bool), (f"model.safetensors: tensor '{QUERY}' is bool",)),
    (203, "quantised", BOTH, config(quantization_config={"quant_method": "gptq", "bits": 4}),
     ("w/config.json: 'quantization_config' asks for quantised weights",)),
    (203, "quantised, in a part", HF, config(text_config={"compression_config": {"format": "x"}}),
     ("w/config.json: 'compression_config' asks for quantised weights",)),
    (204, "another attention", BOTH, config(attn_implementation="kernels-community/flash-attn"),
     ("w/config.json: 'attn_implementation' asks for other kernels", "kernels-community/flash-attn")),
    (205, "another attention, deep", BOTH, config(a=[{"b": {"_attn_implementation_internal": "evil/attn"}}]),
     ("w/config.json: '_attn_implementation_internal' asks for other kernels", "evil/attn")),
    (205, "another attention for parts", BOTH, config(_attn_implementation={"": "evil/attn"}),
     ("w/config.json: '_attn_implementation' asks for other kernels",)),
    (206, "other weights", BOTH, config(transformers_weights="adapter_model.bin"),
     ("w/config.json: 'transformers_weights' names other files", "adapter_model.bin")),
    (207, "another configuration", BOTH, config(configuration_files=["config.4.0.0.json"]),
     ("w/config.json: 'configuration_files' names other files", "config.4.0.0.json")),
    (208, "an adapter beside", BOTH, write("adapter_config.json", '{"base_model_name_or_path": "../evil"}'),
     ("w/adapter_config.json: an adapter is not applied; merge it",)),
    (208, "the base of an adapter", BOTH, config(base_model_name_or_path="../evil"),
     ("w/config.json: 'base_model_name_or_path' names other files",)),
    (209, "an architecture that is code alone", HF,
     config(model_type="evil", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"}),
     ("w/config.json: 'auto_map' asks for remote code, which is never run",)),
    (209, "an architecture that is code alone", ("bert",), config(model_type="evil", auto_map={"AutoModel": "evil.M"}),
     ("w/config.json: model_type 'evil' is not supported (bert,",)),
    (210, "weights of the folder's own code", BOTH, foreign,
     ("tensor 'encoder.layer.0.attention.self.layer_norm_q.weight' is of the architecture that 'auto_map' names",)),
    (211, "a module of its own code", BOTH, modules(("custom_st.Transformer", "")),
     ("w/modules.json: type 'custom_st.Transformer' is code of the folder's own, which is never run",)),
    (211, "a module that makes other vectors", BOTH, modules((ST, ""), ("sentence_transformers.models.LSTM", "1")),
     ("w/modules.json: type 'sentence_transformers.models.LSTM' is none of Transformer,",)),
    (212, "a module elsewhere", BOTH, modules((ST, "../w2")), ("w/modules.json: path '../w2' is no folder beside it",)),
    (213, "no encoder first", BOTH, modules(("sentence_transformers.models.Pooling", "")),
     ("w/modules.json: begins with 'Pooling', expected 'Transformer'",)),
    (214, "an index that is none", BOTH, index(lambda v: v.update(weight_map=[SHARDS[0]])),
     (f"w/{INDEX}: names no files of this folder",)),
    (215, "an index of many files", BOTH,
     index(lambda v: v.update(weight_map={str(i): f"m{i}.safetensors" for i in range(1001)})),
     (f"w/{INDEX}: names 1001 files (limit 1000)",)),
    (216, "a tensor under two names", BOTH, twice,
     (f"tensor 'bert.{NORM}' is there under another name too ('{NORM}')",)),
    (217, "a backbone of another library", BOTH, config(backbone="resnet50", use_timm_backbone=True),
     ("w/config.json: 'backbone' names other files", "resnet50")),
    (218, "other kernels", BOTH, config(kernel_config={"RMSNorm": "evil/norm"}),
     ("w/config.json: 'kernel_config' asks for other kernels",)),
    (219, "enormous", BOTH, lambda f: os.truncate(f / "model.safetensors", SPARE + 10**9),
     ("w/model.safetensors: is 1.27 GB, the encoder of config.json needs",)),
]  # fmt: skip


@pytest.fixture(scope="session")
def hf() -> Any:
    pytest.importorskip("transformers")
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    return library


@pytest.mark.parametrize(
    ("backbone", "damage", "words"),
    [
        pytest.param(name, damage, words, id=f"{row}-{what}-{name}")
        for row, what, names, damage, words in ROWS
        for name in names
    ],
)
def test_weights(
    backbone: str, damage: Change, words: tuple[str, ...], hf: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_family(hf, "bert", tmp_path / "w")
    for name in ("evil", "modeling_evil", "custom_st"):
        (tmp_path / "w" / f"{name}.py").write_text(EVIL)
    damage(tmp_path / "w")
    quick(tmp_path, backbone={"name": backbone, "weights": "./w", "max_length": 16})
    outcome = call("run", "quick.yaml", "--out", "out", cwd=tmp_path, capsys=capfd)
    assert_refused(outcome, 4, *words)
    assert not (tmp_path / "out").exists()
    assert not [name for name in sys.modules if "evil" in name or "custom_st" in name]
