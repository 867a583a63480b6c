"""Weights by hub id against a hub of our own on the loopback device: it serves one BERT that transformers saved."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import Outcome, assert_refused, command, data_folder
from tests.support.loopback import COMMIT, Loopback, serving
from tests.support.shards import INDEX, split

VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word", "other", "new", "more"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """A repository's files, one of them a pickle that nobody may ask for."""
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("repository")
    config = transformers.BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    (folder / "pytorch_model.bin").write_bytes(b"a pickle")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes]) -> Iterator[Loopback]:
    with serving() as server:
        server.repositories["owner/name"] = {COMMIT: files}
        yield server


def online(folder: Path, hub: Loopback) -> dict[str, str]:
    cache = str(folder / "cache")
    return {"HF_ENDPOINT": hub.url, "HF_HOME": cache, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}


def validate(folder: Path, hub: Loopback, weights: str) -> Outcome:
    text = (folder / "r.yaml").read_text()
    (folder / "w.yaml").write_text(text.replace("weights: tiny", f"weights: {weights}"))
    return command("validate", "--data", "--weights", "w.yaml", cwd=folder, env=online(folder, hub))


def test_a_pinned_repository_is_fetched_once(hub: Loopback, files: dict[str, bytes], tmp_path: Path) -> None:
    folder = data_folder(tmp_path)
    weights = f"owner/name@{COMMIT}"
    arguments = ("run", "r.yaml", "--set", f"backbone.weights={weights}", "--out", "out", "--json")
    outcome = command(*arguments, "--set", "reporters=[jsonl]", cwd=folder, env=online(folder, hub))
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["tasks"]["pairs"]["examples"] == 9
    digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
    assert f"backbone: sha256:{digest}\n" in (folder / "out" / "recipe.lock.yaml").read_text()
    assert not [path for _, path, _ in hub.asked if path.endswith("pytorch_model.bin")]
    before = len(hub.asked)
    outcome = validate(folder, hub, weights)  # from the cache: a pinned revision cannot have changed
    assert (outcome.code, outcome.err) == (0, "")
    assert len(hub.asked) == before


def test_transformers_reads_what_was_fetched_and_asks_for_nothing_more(
    hub: Loopback, files: dict[str, bytes], tmp_path: Path
) -> None:
    """Backbone `hf`: neither code nor pickles are fetched, and a pinned revision needs no network the second time."""
    folder = data_folder(tmp_path)
    hub.repositories["owner/name"][COMMIT] = {**files, "modeling_evil.py": b"raise SystemExit('run')"}
    text = (folder / "r.yaml").read_text()
    text = text.replace("name: bert, weights: tiny", f"name: hf, weights: owner/name@{COMMIT}")
    (folder / "w.yaml").write_text(text)
    outcome = command("validate", "--data", "w.yaml", cwd=folder, env=online(folder, hub))
    assert (outcome.code, outcome.errors) == (0, [])
    fetched = {path.rpartition("/")[2] for method, path, _ in hub.asked if method == "GET" and "/resolve/" in path}
    assert fetched & {*files, "modeling_evil.py"} == {"config.json", "model.safetensors", "vocab.txt"}
    outcome = command("validate", "--data", "w.yaml", cwd=folder, env=online(folder, hub) | {"HF_HUB_OFFLINE": "1"})
    assert (outcome.code, outcome.errors) == (0, [])


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["bert", "hf"])
def test_shards_and_modules_of_a_repository(
    backbone: str, hub: Loopback, files: dict[str, bytes], tmp_path: Path
) -> None:
    """Both backbones bring every shard that the index names, and what says how texts are pooled; nothing else."""
    folder = data_folder(tmp_path / "here")
    (tmp_path / "w").mkdir()
    for name, data in files.items():
        (tmp_path / "w" / name).write_bytes(data)
    shards = split(tmp_path / "w", 2)
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [{"path": path, "type": f"sentence_transformers.models.{kind}"} for path, kind in kinds]
    found = {path.name: path.read_bytes() for path in (tmp_path / "w").iterdir()}
    found |= {"modules.json": json.dumps(modules).encode(), "1_Pooling/config.json": b'{"pooling_mode": "cls"}'}
    hub.repositories["owner/name"] = {COMMIT: found}
    text = (folder / "r.yaml").read_text()
    (folder / "w.yaml").write_text(text.replace("bert, weights: tiny", f"{backbone}, weights: owner/name@{COMMIT}"))
    outcome = command("validate", "--data", "--weights", "w.yaml", cwd=folder, env=online(folder, hub))
    assert (outcome.code, outcome.errors) == (0, [])
    assert outcome.err.count("model has pooling 'cls' (1_Pooling), left out") == 1
    fetched = {path.rpartition(f"{COMMIT}/")[2] for kind, path, _ in hub.asked if kind == "GET" and "/resolve/" in path}
    wanted = {"config.json", INDEX, "vocab.txt", "modules.json", "1_Pooling/config.json", *shards}
    assert fetched == wanted
    hub.repositories["owner/name"][COMMIT].pop(shards[1])
    outcome = command("validate", "--data", "--weights", "w.yaml", cwd=folder, env=online(folder, hub))
    assert outcome.code == 0, outcome.err  # all of a pinned revision is in the cache


@pytest.mark.parametrize(
    ("weights", "words"),
    [
        ("owner/nane", ("hub: 'owner/nane': not found, or private; check the name or set HF_TOKEN",)),
        ("owner/private", ("hub: 'owner/private': not found, or private; check the name or set HF_TOKEN",)),
        ("owner/gated", ("hub: 'owner/gated': needs a token; set HF_TOKEN",)),
        (f"owner/name@{'f' * 40}", (f"hub: 'owner/name': has no revision '{'f' * 40}'",)),
    ],
)
def test_a_hub_that_refuses(weights: str, words: tuple[str, ...], hub: Loopback, tmp_path: Path) -> None:
    """Row 68."""
    assert_refused(validate(data_folder(tmp_path), hub, weights), 6, *words)
    assert hub.asked
