"""Whatever bytes stand in a recipe, a data file, weights or a checkpoint: an exit code we know, never a traceback."""

from __future__ import annotations

import functools
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import tiny  # noqa: F401  # one thread
import torch
from commands import HEADER, RECIPE, ROWS, call
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mtmeta.core.checkpoint import Checkpoints
from mtmeta.core.contracts import LoadedBackbone
from mtmeta.core.data import load_split
from mtmeta.core.errors import MtmetaError
from mtmeta.core.options import DataOptions
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.wordpiece import WordPiece
from mtmeta.plugins.tasks.generic import PairClassificationTask

fuzz = settings(
    max_examples=100, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
# pieces of what the readers look for, so that mutations get past the first check
TOKENS = [
    b"{",
    b"}",
    b"[",
    b"]",
    b":",
    b",",
    b'"',
    b"'",
    b"\n",
    b"\t",
    b"\0",
    b"\xff",
    b"-",
    b"&a",
    b"*a",
    b"!!x",
    b"<<",
]
TOKENS += [b"1e-5", b"null", b"true", b"no", b".nan", b"name", b"lr", b"tasks", b"9" * 30, b"\xc3\xa9", b"# ", b"|"]


@st.composite
def mutated(draw: st.DrawFn, good: bytes) -> bytes:
    """`good` with up to four pieces cut out, replaced or put in."""
    data = good
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        piece = draw(st.one_of(st.sampled_from(TOKENS), st.binary(max_size=6)))
        data = data[:start] + piece + data[end:]
    return data


def either(good: bytes) -> st.SearchStrategy[bytes]:
    return st.one_of(mutated(good), st.binary(max_size=200))


def survives(function: Callable[[], object]) -> None:
    """It works, or raises an error of ours with an exit code we know and a first line fit to print."""
    try:
        function()
    except MtmetaError as error:
        assert error.exit_code in range(2, 8) or hasattr(error, "problems")
        assert error.lines()[0].startswith("error: ")
        assert all(line.isprintable() for line in error.lines())


# ---------------------------------------------------------------------------------------------------------- recipes


@fuzz
@given(raw=either(RECIPE.encode()))
@example(raw=RECIPE.encode())
def test_recipe(raw: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_bytes(raw)
    outcome = call("validate", "r.yaml", cwd=tmp_path, capsys=capsys)
    assert outcome.code in (0, 2), outcome.err
    assert bool(outcome.errors) == (outcome.code == 2)
    assert all(line.startswith(("error: ", "help: ", "and ")) for line in outcome.err.splitlines()), outcome.err


plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["name", "lr", "betas", "x"]), inner),
    max_leaves=5,
)
KEYS = [
    "name", "seed", "data_root", "backbone", "backbone.weights", "tasks", "tasks.sst", "tasks.sst.dialect", "data",
    "data.encoding", "sampler", "algorithm", "algorithm.inner_optimizer", "algorithm.inner_optimizer.betas",
    "algorithm.inner_schedule", "optimizer", "optimizer.lr", "schedule", "training", "training.steps", "evaluation",
    "evaluation.every", "checkpoint", "reporters", "format",
]  # fmt: skip


@fuzz
@given(key=st.sampled_from(KEYS), value=plain)
def test_any_value_for_any_option(key: str, value: object, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    text = json.dumps(value).replace("NaN", ".nan").replace("Infinity", ".inf")
    outcome = call("validate", "r.yaml", "--set", f"{key}={text}", cwd=tmp_path, capsys=capsys)
    assert outcome.code in (0, 2), outcome.err
    assert all(line.startswith(("error: ", "and ")) for line in outcome.err.splitlines()), outcome.err


@fuzz
@given(override=st.text(max_size=30))
def test_any_override(override: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "r.yaml").write_text(RECIPE)
    outcome = call("validate", "r.yaml", "--set", override, cwd=tmp_path, capsys=capsys)
    assert outcome.code == 2, outcome.err
    assert outcome.err.count("\n") == len(outcome.errors)


# ------------------------------------------------------------------------------------------------------------- data


@functools.cache
def tiny_backbone() -> LoadedBackbone:
    return Bert(weights="tiny", max_length=32).load(0)


@fuzz
@given(raw=either((HEADER + ROWS).encode()), name=st.sampled_from(["x.tsv", "x.csv", "x.jsonl"]))
@pytest.mark.parametrize("on_bad_rows", ["error", "skip"])
def test_data(raw: bytes, name: str, on_bad_rows: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(raw)
    task = PairClassificationTask(train=name, labels=("contradiction", "entailment", "neutral"))
    backbone = tiny_backbone()
    options = DataOptions(on_bad_rows="skip" if on_bad_rows == "skip" else "error")
    survives(lambda: load_split("pairs", task, "train", options, str(tmp_path), backbone))


# ---------------------------------------------------------------------------------------------------------- weights


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder of tiny random weights, small enough that mutations hit what matters."""
    from safetensors.torch import save_file

    from mtmeta.plugins.backbones.encoder import BertConfig, hugging_face_names

    folder = tmp_path_factory.mktemp("bert")
    vocabulary = ["[UNK]", "[CLS]", "[SEP]", "a"]
    config = BertConfig(
        vocab_size=4,
        hidden_size=2,
        num_hidden_layers=1,
        num_attention_heads=1,
        intermediate_size=2,
        max_position_embeddings=8,
    )
    matrices = {"word": (4, 2), "position": (8, 2), "token_type": (2, 2)}
    tensors = {}
    for names in hugging_face_names(config).values():
        for name in names:
            kind = next((shape for key, shape in matrices.items() if f"{key}_embeddings" in name), (2, 2))
            matrix = name.endswith("weight") and "LayerNorm" not in name
            tensors[name] = torch.ones(kind if matrix else (2,))
    save_file(tensors, folder / "model.safetensors")
    values = {"model_type": "bert", **asdict(config)}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "tokenizer.json").write_text(WordPiece.from_vocabulary(vocabulary).json())
    return folder


def load(folder: Path) -> None:
    loaded = Bert(weights=str(folder), max_length=8).load(0)
    loaded.tokenizer.encode(["a b", "", "\u00e9"])


def test_the_good_weights_load(bert: Path) -> None:
    load(bert)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
@fuzz
@given(data=st.data())
def test_weights(name: str, data: st.DataObject, bert: Path, tmp_path: Path) -> None:
    shutil.copytree(bert, tmp_path / "w", dirs_exist_ok=True)
    (tmp_path / "w" / name).write_bytes(data.draw(either((bert / name).read_bytes())))
    survives(lambda: load(tmp_path / "w"))


# ------------------------------------------------------------------------------------------------------ checkpoints


@pytest.mark.parametrize("name", ["MANIFEST.json", "model.safetensors", "optimizer.safetensors", "state.json"])
@fuzz
@given(data=st.data())
def test_checkpoint(name: str, data: st.DataObject, tmp_path: Path) -> None:
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    checkpoints = Checkpoints(tmp_path / "c")
    tensors = {"a": torch.ones(2)}
    path = checkpoints.save(1, tensors, tensors, {"step": 1})
    checkpoints.save_best(1, tensors, ["best"])
    good = (path / name).read_bytes()
    raw = data.draw(either(good))
    (path / name).write_bytes(raw)
    survives(lambda: checkpoints.load(path))
    if name in ("MANIFEST.json", "model.safetensors"):
        (tmp_path / "c" / "best" / name).write_bytes(raw)
        survives(checkpoints.best)
    newest, damaged = checkpoints.newest()
    assert (newest is None) == bool(damaged)
    if name != "MANIFEST.json" and raw != good:
        assert newest is None, "a changed byte went unnoticed"
