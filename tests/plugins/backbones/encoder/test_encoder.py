"""The packed encoder is BERT: hidden states, gradients and tokens against transformers, and what the loader refuses."""

from __future__ import annotations

import csv
import importlib
import json
import subprocess
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import mtmeta
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack_sequences
from mtmeta.core.training.model import MultiTaskModel, mean_pool
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.config import read_config
from mtmeta.plugins.backbones.encoder import kernels
from mtmeta.plugins.backbones.encoder.encoder import ACTIVATIONS, Encoder
from mtmeta.plugins.backbones.tokenizers.folder import TokenizerFolder
from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts
from tests.support.parity import (
    LENGTHS,
    largest_difference,
    ours_of,
    packed_of,
    random_sequences,
    random_types,
    randomise,
    theirs_of,
    unpacked,
)

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-5
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
    *(mark + letter for letter in "abcdefghijklmnopqrstuvwxyz0123456789" for mark in ("", "##")),
    *("the", "film", "##s", "is", "good", "bad", "never", "un", "##like", "##ly", ".", ",", "!", "?", "'", "-"),
    *("\u2028", "\x85", "caf\xe9", "cafe", "\u4e2d", "Film", "[", "]"),
]
TEXTS = (
    "The films is good .",
    "Unlikely , never bad !!",
    "  a\tb\x00c\ufffd  caf\xe9 CAFE\u0301 ",
    "\u4e2d\u6587 film's - un-like?",
    "sentence [SEP] with [MASK] and [CLS] inside",
    "x" * 101,
    "",
    "[sep] \u2028 \x85 1,000.50",
)


@pytest.fixture(scope="session")
def hf() -> Any:
    """transformers, loaded once and only by the tests that need it."""
    return importlib.import_module("transformers")


# --------------------------------------------------------------------------------------------------- random folders


def config_of(hf: Any, **options: Any) -> Any:
    sizes = {"hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 40}
    return hf.BertConfig(vocab_size=len(VOCABULARY), max_position_embeddings=64, **{**sizes, **options})


def save(hf: Any, folder: Path, model: Any) -> Any:
    """Write a folder in Hugging Face layout with the test's vocabulary; returns the bare BertModel."""
    model.save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    return model if isinstance(model, hf.BertModel) else model.bert


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    path = folder / "model.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in change(load_file(path)).items()}, path)


def old_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """LayerNorm parameters under the names of the original TensorFlow checkpoints."""
    swap = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    made = {}
    for name, tensor in state.items():
        for new, old in swap.items():
            name = name.removesuffix(new) + old if name.endswith(new) else name
        made[name] = tensor
    assert sum(name.endswith(("gamma", "beta")) for name in made) >= 14
    return made


def load(folder: Path, **options: Any) -> tuple[Encoder, mtmeta.LoadedBackbone]:
    loaded = Bert(weights=str(folder), max_length=64, **options).load(seed=0)
    assert isinstance(loaded.encoder, Encoder)
    return loaded.encoder.eval(), loaded


VARIANTS: dict[str, Callable[[Any, Path], Any]] = {
    "bare, with pooler": lambda hf, to: save(hf, to, randomise(hf.BertModel(config_of(hf)))),
    "without pooler": lambda hf, to: save(hf, to, randomise(hf.BertModel(config_of(hf), add_pooling_layer=False))),
    "prefix and heads": lambda hf, to: save(hf, to, randomise(hf.BertForPreTraining(config_of(hf)))),
    "other eps": lambda hf, to: save(hf, to, randomise(hf.BertModel(config_of(hf, layer_norm_eps=0.01)))),
    "one type": lambda hf, to: save(hf, to, randomise(hf.BertModel(config_of(hf, type_vocab_size=1)))),
} | {
    f"hidden_act {name}": lambda hf, to, act=name: save(hf, to, randomise(hf.BertModel(config_of(hf, hidden_act=act))))
    for name in ACTIVATIONS
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_hidden_states_are_those_of_transformers(variant: str, hf: Any, tmp_path: Path) -> None:
    reference = VARIANTS[variant](hf, tmp_path)
    encoder, _ = load(tmp_path)
    sequences = random_sequences(len(VOCABULARY))
    with torch.inference_mode():
        theirs = theirs_of(reference, sequences)
        assert largest_difference(ours_of(encoder, sequences), theirs) <= TOLERANCE
        alone = [hidden for sequence in sequences for hidden in ours_of(encoder, [sequence])]
        assert largest_difference(alone, theirs) <= TOLERANCE
        alone = [hidden for sequence in sequences for hidden in theirs_of(reference, [sequence])]
        assert largest_difference(ours_of(encoder, sequences), alone) <= TOLERANCE


@pytest.mark.parametrize("prefixed", [False, True])
def test_old_layer_norm_names(prefixed: bool, hf: Any, tmp_path: Path) -> None:
    kind = hf.BertForPreTraining if prefixed else hf.BertModel
    reference = save(hf, tmp_path, randomise(kind(config_of(hf))))
    rewrite(tmp_path, old_names)
    encoder, _ = load(tmp_path)
    with torch.inference_mode():
        theirs = theirs_of(reference, random_sequences(len(VOCABULARY)))
        assert largest_difference(ours_of(encoder, random_sequences(len(VOCABULARY))), theirs) <= TOLERANCE


def test_cross_pairs_with_token_types(hf: Any, tmp_path: Path) -> None:
    reference = VARIANTS["bare, with pooler"](hf, tmp_path)
    encoder, _ = load(tmp_path)
    sequences = random_sequences(len(VOCABULARY))
    types = random_types(sequences)
    with torch.inference_mode():
        theirs = theirs_of(reference, sequences, types)
        assert largest_difference(ours_of(encoder, sequences, types), theirs) <= TOLERANCE
        # and the types matter
        assert largest_difference(ours_of(encoder, sequences), theirs) > 0.1


@pytest.mark.parametrize("typed", [False, True])
def test_gradients_are_those_of_transformers(typed: bool, hf: Any, tmp_path: Path) -> None:
    reference = VARIANTS["prefix and heads"](hf, tmp_path)
    encoder, _ = load(tmp_path)
    sequences = random_sequences(len(VOCABULARY))
    types = random_types(sequences) if typed else None
    generator = torch.Generator().manual_seed(1)
    coefficients = [torch.randn(len(s), encoder.hidden_size, generator=generator) / 10 for s in sequences]

    def scalar(hidden: list[Tensor]) -> Tensor:
        return torch.stack([(h * c).sum() for h, c in zip(hidden, coefficients, strict=True)]).sum()

    ours, theirs = scalar(ours_of(encoder, sequences, types)), scalar(theirs_of(reference, sequences, types))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    embeddings = reference.embeddings
    pairs = [
        (encoder.words.weight, embeddings.word_embeddings.weight),
        (encoder.positions.weight, embeddings.position_embeddings.weight),
        (encoder.types.weight, embeddings.token_type_embeddings.weight),
        (encoder.norm.weight, embeddings.LayerNorm.weight),
    ]
    for our, their in pairs:
        (our_grad,) = torch.autograd.grad(ours, our, retain_graph=True)
        (their_grad,) = torch.autograd.grad(theirs, their, retain_graph=True)
        # of the order of 1; the types' gradient is a sum over all tokens
        assert float((our_grad - their_grad).abs().max()) <= TOLERANCE * max(1.0, float(their_grad.abs().max()))
    layer: Any = encoder.layers[1]
    (fused,) = torch.autograd.grad(ours, layer.attention.qkv.weight)
    attention = reference.encoder.layer[1].attention.self
    parts = [getattr(attention, part).weight for part in ("query", "key", "value")]
    theirs_fused = torch.cat(torch.autograd.grad(theirs, parts))
    assert float((fused - theirs_fused).abs().max()) <= TOLERANCE * max(1.0, float(theirs_fused.abs().max()))


@pytest.mark.parametrize("by", ["kernels", "torch"])
def test_no_position_is_wasted(hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str) -> None:
    if by == "torch":
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif kernels.load() is None:
        pytest.skip("no C compiler that can build the kernels")
    VARIANTS["bare, with pooler"](hf, tmp_path)
    encoder, _ = load(tmp_path)
    seen: list[int] = []
    aten = torch.ops.aten
    rows_in = {aten.addmm.default: 1, aten.mm.default: 0, aten.native_layer_norm.default: 0}

    class Rows(TorchDispatchMode):  # type: ignore[no-untyped-call]
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if function in rows_in:
                seen.append(args[rows_in[function]].shape[0])
            return function(*args, **(kwargs or {}))

    packed = packed_of(random_sequences(len(VOCABULARY)))
    with Rows():  # type: ignore[no-untyped-call]
        encoder(packed)
    # the norm of the embeddings; in each of 3 layers 4 products and, outside of kernels, 2 norms
    assert seen == [sum(LENGTHS)] * (1 + 3 * (4 if by == "kernels" else 6))
    assert sum(count * length for count, length in packed.groups) == sum(LENGTHS)
    assert packed.groups == ((1, 2), (2, 3), (1, 5), (3, 9), (1, 17), (1, 30), (1, 40))


def test_mean_pooling_is_over_each_sequence_alone(hf: Any, tmp_path: Path) -> None:
    VARIANTS["bare, with pooler"](hf, tmp_path)
    encoder, _ = load(tmp_path)
    packed = packed_of(random_sequences(len(VOCABULARY)))
    with torch.inference_mode():
        hidden = encoder(packed)
        pooled = mean_pool(hidden, packed)
        by_hand = torch.stack([h.mean(dim=0) for h in unpacked(hidden, packed)])
    torch.testing.assert_close(pooled, by_hand, rtol=0, atol=1e-6)


def test_dropout_is_on_in_training_only_and_can_be_overridden(hf: Any, tmp_path: Path) -> None:
    VARIANTS["bare, with pooler"](hf, tmp_path)
    encoder, _ = load(tmp_path)
    packed = packed_of(random_sequences(len(VOCABULARY)))
    assert torch.equal(encoder(packed), encoder(packed))
    encoder.train()
    assert not torch.equal(encoder(packed), encoder(packed))
    without, loaded = load(tmp_path, dropout=0.0)
    assert torch.equal(without.train()(packed), encoder.eval()(packed))
    assert json.loads(loaded.files["config.json"])["hidden_dropout_prob"] == 0.1


def test_parameter_count_is_known_before_anything_is_allocated(hf: Any, tmp_path: Path) -> None:
    VARIANTS["bare, with pooler"](hf, tmp_path)
    config = read_config(tmp_path / "config.json")
    assert config.parameters == sum(p.numel() for p in Encoder(config).parameters())


def test_restore_rebuilds_encoder_and_tokenizer_from_the_small_files(hf: Any, tmp_path: Path) -> None:
    VARIANTS["prefix and heads"](hf, tmp_path)
    encoder, loaded = load(tmp_path)
    kept = tmp_path / "kept"
    kept.mkdir()
    for name, content in loaded.files.items():
        (kept / name).write_bytes(content)
    assert sorted(path.name for path in kept.iterdir()) == ["config.json", "tokenizer.json"]
    again = Bert(weights="elsewhere", max_length=64).restore(kept)
    again.encoder.load_state_dict(encoder.state_dict())
    with torch.inference_mode():
        packed = packed_of(random_sequences(len(VOCABULARY)))
        assert torch.equal(again.encoder.eval()(packed), encoder(packed))
    assert again.tokenizer.encode(TEXTS) == loaded.tokenizer.encode(TEXTS)
    assert again.files == loaded.files


def test_weights_of_the_tiny_encoder_are_a_function_of_the_seed() -> None:
    one, same, other = (Bert(weights="tiny").load(seed).encoder.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["words.weight"], other["words.weight"])
    assert float(one["layers.0.attention.qkv.weight"].std()) == pytest.approx(0.02, rel=0.05)
    assert all(not one[key].any() for key in one if key.endswith(("qkv.bias", "up.bias", "down.bias", "norm.bias")))


# ------------------------------------------------------------------------------------------------------------ tokens


def our_ids(tokenizer: Any, text: str) -> list[int]:
    return [*tokenizer.prefix, *tokenizer.encode([text])[0], *tokenizer.suffix]


@pytest.mark.parametrize("options", [{}, {"do_lower_case": False}, {"strip_accents": False}])
def test_tokens_from_vocab_txt_alone(options: dict[str, bool], hf: Any, tmp_path: Path) -> None:
    VARIANTS["bare, with pooler"](hf, tmp_path)
    if options:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps(options))
    _, loaded = load(tmp_path)
    numbers = {token: number for number, token in enumerate(VOCABULARY)}
    reference = hf.BertTokenizer(vocab=numbers, **options)
    for text in TEXTS:
        assert our_ids(loaded.tokenizer, text) == reference(text)["input_ids"], text
    assert loaded.tokenizer.encode(["cafe", "caf\xe9"])[1] == [numbers["caf\xe9" if options else "cafe"]]
    assert loaded.tokenizer.encode(["]"]) == [[len(VOCABULARY) - 1]]


def test_tokens_from_tokenizer_json(hf: Any, tmp_path: Path) -> None:
    VARIANTS["bare, with pooler"](hf, tmp_path)
    reference = hf.BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)})
    # files often carry padding and truncation; neither may survive
    backend = reference.backend_tokenizer
    backend.enable_padding(length=16)
    backend.enable_truncation(max_length=4)
    backend.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "vocab.txt").unlink()
    backend.no_padding()
    backend.no_truncation()
    _, loaded = load(tmp_path)
    for text in TEXTS:
        assert our_ids(loaded.tokenizer, text) == reference(text)["input_ids"], text


def test_pairs_are_built_as_transformers_builds_them(hf: Any, tmp_path: Path) -> None:
    VARIANTS["bare, with pooler"](hf, tmp_path)
    reference = hf.BertTokenizer(vocab={token: number for number, token in enumerate(VOCABULARY)})
    _, loaded = load(tmp_path)
    rows = [mtmeta.Example(a, b, label=0, id=a) for a, b in pairwise(TEXTS[:5])]
    dataset = from_examples("p", Para(train="sample", pair_mode="cross"), "dev", rows, loaded)
    (store,) = dataset.stores
    assert store.types is not None
    for row, start, end in zip(rows, store.offsets, store.offsets[1:], strict=False):
        wanted = reference(row.text, row.pair)
        assert store.ids[start:end].tolist() == wanted["input_ids"]
        assert store.types[start:end].tolist() == wanted["token_type_ids"]


def test_tokens_without_a_stderr() -> None:
    code = (
        "from mtmeta.plugins.backbones.tokenizers.wordpiece import WordPiece;"
        "print(WordPiece.from_vocabulary(['[UNK]', '[CLS]', '[SEP]', 'a']).encode(['a b']))"
    )
    command = ["sh", "-c", 'exec "$0" -c "$1" 2>&-', sys.executable, code]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "[[3, 0]]\n"


def test_a_vocabulary_line_may_hold_unicode_line_separators(tmp_path: Path) -> None:
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")
    tokenizer = WordPiece.from_json(TokenizerFolder(tmp_path, "bert").text(), "vocab.txt")
    assert tokenizer.size == len(VOCABULARY)
    assert tokenizer.encode(["film cafe \u4e2d"]) == [[VOCABULARY.index(token) for token in ("film", "cafe", "\u4e2d")]]


# ------------------------------------------------------------------------------------------------ the loader refuses


@pytest.fixture
def good(hf: Any, tmp_path: Path) -> Path:
    """A folder that loads."""
    VARIANTS["bare, with pooler"](hf, tmp_path)
    load(tmp_path)
    return tmp_path


def refusal(folder: Path) -> str:
    with pytest.raises(mtmeta.WeightsError) as caught:
        load(folder)
    assert len(caught.value.lines()) == 1
    return str(caught.value)


QUERY = "encoder.layer.1.attention.self.query.weight"


def test_a_missing_tensor_is_refused(good: Path) -> None:
    rewrite(good, lambda state: {name: tensor for name, tensor in state.items() if name != QUERY})
    path = good / "model.safetensors"
    assert refusal(good) == f"{path}: tensor '{QUERY}' is missing, config.json asks for it"


def test_a_misshaped_tensor_is_refused(good: Path) -> None:
    rewrite(good, lambda state: state | {"encoder.layer.0.intermediate.dense.weight": torch.zeros(41, 24)})
    path, name = good / "model.safetensors", "encoder.layer.0.intermediate.dense.weight"
    assert refusal(good) == f"{path}: tensor '{name}' is 41x24, config.json needs 40x24"


def test_a_misshaped_query_is_refused_under_its_own_name(good: Path) -> None:
    # query and key together would have the rows that the fused matrix needs
    key = QUERY.replace("query", "key")
    rewrite(good, lambda state: state | {QUERY: torch.zeros(25, 24), key: torch.zeros(23, 24)})
    path = good / "model.safetensors"
    assert refusal(good) == f"{path}: tensor '{QUERY}' is 25x24, config.json needs 24x24 (+1 more)"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_tensor_is_refused(value: float, good: Path) -> None:
    def poison(state: dict[str, Tensor]) -> dict[str, Tensor]:
        state["embeddings.word_embeddings.weight"][7, 3] = value
        return state

    rewrite(good, poison)
    path = good / "model.safetensors"
    name = "embeddings.word_embeddings.weight"
    assert refusal(good) == f"{path}: '{name}' holds non-finite values; fetch the file again"


def test_a_config_with_more_layers_than_weights_is_refused(good: Path) -> None:
    values = json.loads((good / "config.json").read_text())
    (good / "config.json").write_text(json.dumps(values | {"num_hidden_layers": 4}))
    name = "encoder.layer.3.attention.self.query.weight"
    what = f"tensor '{name}' is missing, config.json asks for it (+15 more)"
    assert refusal(good) == f"{good / 'model.safetensors'}: {what}"


def test_a_damaged_file_is_refused(good: Path) -> None:
    path = good / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    assert refusal(good).startswith(f"{path}: is damaged (")


def test_a_missing_file_and_a_pickle_are_refused(good: Path) -> None:
    (good / "model.safetensors").unlink()
    path = good / "model.safetensors"
    assert refusal(good) == f"{path}: no such file; a folder in Hugging Face layout has one"
    pickle = good / "pytorch_model.bin"
    pickle.write_bytes(b"\x80\x04.")
    fix = "pickle files can run code and are not read; save it as safetensors first"
    assert refusal(good) == f"{pickle}: {fix}"


def test_a_tokenizer_larger_than_the_embeddings_is_refused(good: Path) -> None:
    (good / "vocab.txt").write_text("\n".join([*VOCABULARY, "extra"]) + "\n", encoding="utf-8")
    n = len(VOCABULARY)
    what = f"has {n + 1} entries, embeddings have {n}; they do not belong together"
    assert refusal(good) == f"{good}: tokenizer: {what}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_other_precision_load_to_fp32(dtype: torch.dtype, good: Path) -> None:
    whole = load_file(good / "model.safetensors")
    rewrite(good, lambda state: {name: tensor.to(dtype) for name, tensor in state.items()})
    encoder, loaded = load(good)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    words = whole["embeddings.word_embeddings.weight"]
    assert torch.equal(encoder.words.weight, words.to(dtype).float())
    assert loaded.identity.startswith("sha256:")


# -------------------------------------------------------------------------------------- predictions and batch mates


def datasets_of(loaded: mtmeta.LoadedBackbone, tasks: dict[str, mtmeta.Task], count: int) -> dict[str, Dataset]:
    made = {}
    for name, task in tasks.items():
        made[name] = from_examples(name, task, "dev", list(task.sample("dev"))[:count], loaded)
    return made


def mates_do_not_matter(loaded: mtmeta.LoadedBackbone, count: int) -> None:
    tasks: dict[str, mtmeta.Task] = {
        "sst": Sst(train="sample"),
        "para": Para(train="sample"),
        "sts": Sts(train="sample", activation="none"),
        "para-cross": Para(train="sample", pair_mode="cross"),
        "sts-cross": Sts(train="sample", pair_mode="cross"),
        "para-both": Para(train="sample", pair_mode="cross", orders="both"),
    }
    model = MultiTaskModel(loaded.encoder, tasks, seed=1).eval()
    for name, dataset in datasets_of(loaded, tasks, count).items():
        at = np.arange(len(dataset))
        with torch.inference_mode():
            batched = model(name, pack_sequences(dataset.stores, at))
            alone = torch.cat([model(name, pack_sequences(dataset.stores, at[i : i + 1])) for i in at])
            shuffled = np.random.default_rng(1).permutation(at)
            mixed = model(name, pack_sequences(dataset.stores, shuffled))
        assert batched.shape == ((count,) if name.startswith("sts") else (count, 5 if name == "sst" else 1))
        assert float(batched.std()) > 1e-3
        assert float((batched - alone).abs().max()) <= TOLERANCE
        assert float((batched[shuffled] - mixed).abs().max()) <= TOLERANCE


def test_a_prediction_does_not_depend_on_batch_mates() -> None:
    mates_do_not_matter(Bert(weights="embedded", max_length=64).load(3), 40)


# ------------------------------------------------------------------------------------------------------ real weights


def real_sentences(folder: Path) -> list[str]:
    """256 sentences of mixed length from the three dev files."""

    def column(file: str, *names: str) -> list[str]:
        with open(folder / file, encoding="utf-8", newline="") as lines:
            return [row[name] for row in csv.DictReader(lines, delimiter="\t") for name in names]

    files = (
        column("sst-dev.csv", "sentence")[:128],
        column("para-dev.csv", "sentence1", "sentence2")[:64],
        column("sts-dev.csv", "sentence1", "sentence2")[:64],
    )
    sentences = [sentence for file in files for sentence in file]
    assert len(sentences) == 256
    return sentences


@pytest.fixture(scope="module")
def real(hf: Any, minilm: Path, real_data: Path) -> tuple[Any, mtmeta.LoadedBackbone, list[str]]:
    """transformers' model, ours, and real sentences."""
    reference = hf.BertModel.from_pretrained(minilm, dtype=torch.float32).eval()
    loaded = Bert(weights=str(minilm), max_length=128).load(0)
    loaded.encoder.eval()
    return reference, loaded, real_sentences(real_data)


def test_real_tokens(real: Any, hf: Any, minilm: Path, tmp_path: Path) -> None:
    _, loaded, sentences = real
    wanted = hf.BertTokenizer.from_pretrained(minilm)(sentences)["input_ids"]
    assert [our_ids(loaded.tokenizer, sentence) for sentence in sentences] == wanted
    (tmp_path / "vocab.txt").write_bytes((minilm / "vocab.txt").read_bytes())
    from_vocabulary = WordPiece.from_json(TokenizerFolder(tmp_path, "bert").text(), "vocab.txt")
    assert [our_ids(from_vocabulary, sentence) for sentence in sentences] == wanted


def test_real_hidden_states_and_means(real: Any) -> None:
    reference, loaded, sentences = real
    ids = [our_ids(loaded.tokenizer, sentence) for sentence in sentences]
    assert len({len(row) for row in ids}) >= 30
    with torch.inference_mode():
        theirs = [hidden for row in ids for hidden in theirs_of(reference, [row])]
        packed = packed_of(ids)
        hidden = loaded.encoder(packed)
        assert hidden.shape == (sum(map(len, ids)), 384)
        assert largest_difference(unpacked(hidden, packed), theirs) <= TOLERANCE
        means = torch.stack([row.mean(dim=0) for row in theirs])
        assert float((mean_pool(hidden, packed) - means).abs().max()) <= TOLERANCE
        alone = [h for row in ids for h in ours_of(loaded.encoder, [row])]
        assert largest_difference(alone, theirs) <= TOLERANCE
        for start in range(0, len(ids), 32):
            padded = theirs_of(reference, ids[start : start + 32])
            assert largest_difference(theirs[start : start + 32], padded) <= TOLERANCE


def test_real_pairs_with_token_types(real: Any) -> None:
    reference, loaded, sentences = real
    tokenizer = loaded.tokenizer
    ids, types = [], []
    for a, b in pairwise(tokenizer.encode(sentences[:33])):
        ids.append([*tokenizer.prefix, *a, *tokenizer.middle, *b, *tokenizer.suffix])
        types.append([0] * (len(a) + 2) + [1] * (len(b) + 1))
    with torch.inference_mode():
        theirs = theirs_of(reference, ids, types)
        assert largest_difference(ours_of(loaded.encoder, ids, types), theirs) <= TOLERANCE


def test_real_gradients(real: Any) -> None:
    reference, loaded, sentences = real
    ids = [our_ids(loaded.tokenizer, sentence) for sentence in sentences[::8]]
    generator = torch.Generator().manual_seed(1)
    vector = torch.randn(384, generator=generator) / 384

    def scalar(hidden: list[Tensor]) -> Tensor:
        return torch.stack([(h.mean(dim=0) * vector).sum().square() for h in hidden]).sum()

    (ours,) = torch.autograd.grad(scalar(ours_of(loaded.encoder, ids)), loaded.encoder.words.weight)
    words = reference.embeddings.word_embeddings.weight
    (theirs,) = torch.autograd.grad(scalar(theirs_of(reference, ids)), words)
    assert float(theirs.abs().max()) > 1e-4
    assert float((ours - theirs).abs().max()) <= TOLERANCE


def test_real_predictions_do_not_depend_on_batch_mates(real: Any) -> None:
    mates_do_not_matter(real[1], 24)
