"""Every way we know for weights and tokenizers to be wrong: one line, the file, what it holds, exit code 4.

The numbers are the rows of our list of bad inputs. Every case runs in this process; the first of each row also in
another one, all recipes together, since `validate --data` reports on all it is given.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from mtmeta.plugins.backbones.checkpoint.config import BertConfig
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.encoder.encoder import Encoder
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import SMALL, assert_refused, call, command, contents, data_folder

Capture = pytest.CaptureFixture[str]


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word", "other", "new", "more"]
QUERY = "encoder.layer.0.attention.self.query.weight"


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good folder of random weights in Hugging Face layout."""
    folder = tmp_path_factory.mktemp("bert")
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    encoder = Encoder(config)
    encoder.initialise(0)
    state = encoder.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    for our, theirs in hugging_face_names(config).items():
        tensors |= dict(zip(theirs, (part.clone() for part in state[our].chunk(len(theirs))), strict=True))
    save_file(tensors, folder / "model.safetensors")
    values = {field: getattr(config, field) for field in BertConfig.__dataclass_fields__}
    (folder / "config.json").write_text(json.dumps({"model_type": "bert", **values}))
    (folder / "tokenizer.json").write_text(WordPiece.from_vocabulary(VOCABULARY).json())
    return folder


def config(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def tensor(name: str, value: torch.Tensor) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({**load_file(path), name: value}, path)

    return damage


def write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def remove(*names: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return damage


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def tokenizer(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def truncated(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


MORE = json.loads(WordPiece.from_vocabulary([*VOCABULARY, "too", "many"]).json())["model"]
NO_UNKNOWN = json.loads(WordPiece.from_vocabulary(VOCABULARY).json())["model"] | {"unk_token": "absent"}
WEIGHTS: list[tuple[int, Callable[[Path], None], tuple[str, ...]]] = [
    (39, truncated, ("model.safetensors: is damaged",)),
    (39, write("model.safetensors", b"\0" * 1000), ("model.safetensors: is damaged",)),
    (43, tensor(QUERY, torch.zeros(8, 4)), (f"model.safetensors: tensor '{QUERY}' is 8x4, config.json needs 8x8",)),
    (43, config(num_hidden_layers=2), ("tensor 'encoder.layer.1.attention", "(+15 more)")),
    (43, tensor(QUERY, torch.zeros(8, 8, dtype=torch.int32)), (f"tensor '{QUERY}' is int32; save it as float32",)),
    (43, tensor(QUERY, torch.zeros(8, 8).to(torch.float8_e4m3fn)), (f"tensor '{QUERY}' is float8_e4m3fn",)),
    (44, tensor(QUERY, torch.full((8, 8), torch.nan)), (f"model.safetensors: '{QUERY}' holds non-finite values",)),
    (45, pickle, ("pytorch_model.bin: pickle files can run code and are not read; save it as safetensors first",)),
    (46, config(model_type="lightglue"), ("config.json: model_type 'lightglue' is not supported (bert",)),
    (46, config(model_type=None, auto_map={"AutoModel": "x.Y"}),
     ("config.json: 'auto_map' asks for remote code, which is never run",)),
    (46, config(hidden_size=10**8, num_attention_heads=1), ("asks for 4e+07 billion parameters",)),
    (46, config(num_hidden_layers=10**8), ("billion parameters (limit 2 billion)",)),
    (46, config(hidden_size="8"), ("config.json: 'hidden_size' must be a positive integer, found '8'",)),
    (46, config(layer_norm_eps=float("nan")), ("'layer_norm_eps' must be a number from 0 to 1, found nan",)),
    (46, write("config.json", "[" * 100_000), ("config.json: is not JSON",)),
    (47, tokenizer(model=MORE), ("tokenizer: has 11 entries, embeddings have 9",)),
    (
        48,
        tokenizer(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        ("tokenizer.json: cannot be loaded (Precompiled",),
    ),
    (48, write("tokenizer.json", "{}"), ("tokenizer.json: cannot be loaded (Model missing",)),
    (48, tokenizer(model=NO_UNKNOWN, added_tokens=[]), ("tokenizer.json: cannot encode the data",)),
    (0, remove("tokenizer.json"), ("has neither tokenizer.json nor vocab.txt",)),
    (0, remove("model.safetensors"), ("model.safetensors: no such file",)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "damage", "words"), WEIGHTS, ids=[f"{row}-{words[0][:70]}" for row, _, words in WEIGHTS]
)
def test_weights(
    row: int,
    damage: Callable[[Path], None],
    words: tuple[str, ...],
    bert: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder = data_folder(tmp_path)
    shutil.copytree(bert, folder / "w")
    damage(folder / "w")
    arguments = ("run", "r.yaml", "--set", "backbone.weights=./w", "--out", "out")
    assert_refused(call(*arguments, cwd=folder, capsys=capfd), 4, *words)
    assert not (folder / "out").exists()


def test_weights_in_a_process_of_its_own(bert: Path, tmp_path: Path) -> None:
    """The first case of each row, one recipe each; good weights are read."""
    firsts = {row: (damage, words) for row, damage, words in reversed(WEIGHTS)}
    rows = sorted(firsts)
    assert rows == [0, 39, *range(43, 49)]
    folder = data_folder(tmp_path)
    for row in rows:
        shutil.copytree(bert, folder / f"w{row}")
        firsts[row][0](folder / f"w{row}")
        (folder / f"{row}.yaml").write_text(SMALL.replace("weights: tiny", f"weights: ./w{row}"))
    shutil.copytree(bert, folder / "good")
    (folder / "good.yaml").write_text(SMALL.replace("weights: tiny", "weights: ./good"))
    outcome = command("validate", "--data", "--weights", *(f"{row}.yaml" for row in rows), "good.yaml", cwd=folder)
    assert outcome.code == 4
    assert outcome.out.endswith("good.yaml: ok\n")
    assert outcome.err.count("\n") == len(outcome.errors) == len(rows), outcome.err
    for row, line in zip(rows, outcome.errors, strict=True):
        assert all(word in line for word in firsts[row][1]), line


@pytest.mark.parametrize(
    ("weights", "code", "words"),
    [
        ("./nowhere", 4, ("./nowhere: no such folder",)),
        ("embeded", 4, ("embeded: no such folder; did you mean 'embedded'?",)),
        ("r.yaml", 4, ("r.yaml: is a file, expected a folder",)),
        ("a b", 4, ("a b: is neither a folder nor a hub id",)),
        ("no/such", 6, ("not in the cache and HF_HUB_OFFLINE is set: no/such@main (", "; run 'mtmeta fetch r.yaml'")),
    ],
)
def test_weights_that_are_nowhere(
    weights: str, code: int, words: tuple[str, ...], tmp_path: Path, capsys: Capture
) -> None:
    """Rows 45 and 67; the hub is off limits."""
    folder = data_folder(tmp_path)
    arguments = ("run", "r.yaml", "--set", f"backbone.weights={weights}", "--out", "out")
    if code == 6:
        outcome = command(*arguments, cwd=folder, env={"HF_HOME": str(tmp_path / "hub")})
    else:
        outcome = call(*arguments, cwd=folder, capsys=capsys)
    assert_refused(outcome, code, *words)
    assert not (folder / "out").exists()


def test_texts_longer_than_the_positions(tmp_path: Path) -> None:
    """Row 21."""
    folder = data_folder(tmp_path)
    outcome = command("run", "r.yaml", "--set", "backbone.max_length=1024", "--out", "out", cwd=folder)
    assert_refused(outcome, 2, "max_length 1024 exceeds tiny's 128 positions")
    assert not (folder / "out").exists()


def test_other_weights_than_the_run_began_with(bert: Path, tmp_path: Path, capsys: Capture) -> None:
    """Row 49: a run pins its weights by their SHA-256."""
    folder = data_folder(tmp_path)
    shutil.copytree(bert, folder / "w")
    arguments = ("run", "r.yaml", "--set", "backbone.weights=./w", "--set", "reporters=[]", "--out", "out")
    assert call(*arguments, cwd=folder, capsys=capsys).code == 0
    (folder / "out" / "summary.json").unlink()
    tensor(QUERY, torch.ones(8, 8))(folder / "w")
    before = contents(folder / "out")
    outcome = call(*arguments, cwd=folder, capsys=capsys)
    assert_refused(outcome, 4, "out: began with backbone weights sha256:", "now they are sha256:", "another --out")
    assert contents(folder / "out") == before
