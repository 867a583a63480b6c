"""RoBERTa, XLM-RoBERTa, DistilBERT and ELECTRA by backbone `bert` are transformers': states, gradients, tokens."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import mtmeta
from mtmeta.core.api.batch import Packed
from mtmeta.core.data.loading import from_examples
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.config import read_config
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names, shapes
from mtmeta.plugins.backbones.encoder import kernels
from mtmeta.plugins.backbones.encoder.encoder import Encoder, Layer
from mtmeta.plugins.backbones.tokenizers.bytelevel import ByteLevel
from mtmeta.plugins.backbones.tokenizers.folder import TokenizerFolder
from mtmeta.plugins.tasks.para import Para
from tests.support.families import NATIVE, byte_level, sentences, size_of, write_byte_level, write_family
from tests.support.parity import largest_difference, ours_of, packed_of, random_sequences, random_types, theirs_of
from tests.support.quick import killed_before_step, outcome, quick

pytestmark = pytest.mark.usefixtures("one_thread")
TOLERANCE = 1e-5
WAYS = ("kernels", "fused", "plain")


@pytest.fixture(scope="session")
def hf() -> Any:
    """transformers, loaded once."""
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    return library


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """By compiled kernels, by PyTorch's operators fused, by plain modules; the list says which way layers went."""
    taken: list[str] = []

    def spy(name: str) -> None:
        original: Callable[..., Tensor] = getattr(Layer, name)

        def spied(*arguments: Any) -> Tensor:
            taken.append({"compiled": "kernels"}.get(name, name))
            return original(*arguments)

        monkeypatch.setattr(Layer, name, spied)

    spy("fused")
    spy("compiled")
    if request.param == "fused":
        monkeypatch.setattr(kernels, "load", lambda: None)
    elif request.param == "plain":
        monkeypatch.setattr(Encoder, "_can_fuse", lambda self, x: False)
    elif kernels.load() is None:
        pytest.skip("no C compiler that can build the kernels")
    taken.append(request.param)
    return taken


def load(folder: Path, **options: Any) -> tuple[Encoder, mtmeta.LoadedBackbone]:
    loaded = Bert(weights=str(folder), **({"max_length": 64} | options)).load(seed=0)
    assert isinstance(loaded.encoder, Encoder)
    return loaded.encoder.eval(), loaded


def pad_of(family: str) -> int:
    return 1 if "roberta" in family else 0


@pytest.mark.parametrize("heads", [False, True])
@pytest.mark.parametrize("family", NATIVE)
def test_hidden_states(family: str, heads: bool, way: list[str], hf: Any, tmp_path: Path) -> None:
    reference = write_family(hf, family, tmp_path, heads=heads)
    encoder, loaded = load(tmp_path)
    sequences = random_sequences(loaded.tokenizer.size)  # type: ignore[attr-defined]
    typed = family.startswith(("bert", "electra"))
    types = random_types(sequences)
    with torch.inference_mode():
        theirs = theirs_of(reference, sequences, types if typed else None, pad=pad_of(family))
        # core gives the second text of a pair another type; who has none must not look
        assert largest_difference(ours_of(encoder, sequences, types), theirs) <= TOLERANCE
        alone = [hidden for s, t in zip(sequences, types, strict=True) for hidden in ours_of(encoder, [s], [t])]
        assert largest_difference(alone, theirs) <= TOLERANCE
    assert set(way[1:]) == ({way[0]} if way[0] != "plain" else set())


@pytest.mark.parametrize("family", NATIVE)
def test_gradients_of_every_tensor(family: str, way: list[str], hf: Any, tmp_path: Path) -> None:
    reference = write_family(hf, family, tmp_path)
    encoder, loaded = load(tmp_path)
    sequences = random_sequences(loaded.tokenizer.size)  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(1)
    coefficients = [torch.randn(len(s), encoder.hidden_size, generator=generator) / 10 for s in sequences]

    def scalar(hidden: list[Tensor]) -> Tensor:
        return torch.stack([(h * c).sum() for h, c in zip(hidden, coefficients, strict=True)]).sum()

    scalar(ours_of(encoder, sequences)).backward()  # type: ignore[no-untyped-call]
    scalar(theirs_of(reference, sequences, pad=pad_of(family))).backward()  # type: ignore[no-untyped-call]
    ours, theirs = dict(encoder.named_parameters()), dict(reference.named_parameters())
    names = hugging_face_names(encoder.config)
    assert set(names) == set(ours)
    assert {name for parts in names.values() for name in parts} == {n for n in theirs if not n.startswith("pooler.")}
    for our, parts in names.items():
        wanted = torch.cat([theirs[name].grad for name in parts])
        grad = ours[our].grad
        assert grad is not None and grad.shape == wanted.shape
        assert float((grad - wanted).abs().max()) <= TOLERANCE * max(1.0, float(wanted.abs().max())), our
    assert set(way[1:]) == ({way[0]} if way[0] != "plain" else set())


@pytest.mark.parametrize("family", NATIVE)
def test_sizes_and_files(family: str, hf: Any, tmp_path: Path) -> None:
    """Counted before anything is made; rebuilt from the run's own files; transformers reads the run's config.json."""
    reference = write_family(hf, family, tmp_path)
    encoder, loaded = load(tmp_path)
    state = encoder.state_dict()
    assert encoder.config.parameters == sum(p.numel() for p in encoder.parameters())
    for our, theirs in hugging_face_names(encoder.config).items():
        whole = (state[our].shape[0] // len(theirs), *state[our].shape[1:])
        assert [shapes(encoder.config)[name] for name in theirs] == [whole] * len(theirs), our
    kept = tmp_path / "kept"
    kept.mkdir()
    for name, content in loaded.files.items():
        (kept / name).write_bytes(content)
    again = Bert(weights="elsewhere", max_length=64).restore(kept)
    again.encoder.load_state_dict(state)
    packed = packed_of(random_sequences(encoder.config.vocab_size))
    with torch.inference_mode():
        assert torch.equal(again.encoder.eval()(packed), encoder(packed))
    assert again.files == loaded.files
    theirs_again = hf.AutoConfig.from_pretrained(kept)
    assert type(theirs_again) is type(reference.config)
    bare = hf.AutoModel.from_config(theirs_again)
    bare.load_state_dict(reference.state_dict())
    with torch.inference_mode():
        sequences = random_sequences(encoder.config.vocab_size)
        wanted = theirs_of(bare.eval(), sequences, pad=pad_of(family))
        assert largest_difference(ours_of(encoder, sequences), wanted) <= TOLERANCE


# ------------------------------------------------------------------------------------------------------------ dropout


@pytest.mark.parametrize("family", ["bert", "distilbert", "roberta"])
def test_dropout_is_where_transformers_has_it(
    family: str, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probability of every dropout of hidden states, in the order they come."""
    reference = write_family(hf, family, tmp_path)
    encoder, _ = load(tmp_path, dropout=0.25)
    theirs, ours = [], []
    for module in reference.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.25
            module.register_forward_hook(lambda *_: theirs.append(0.25))
    original = torch.nn.functional.dropout

    def spied(x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if p and x.ndim == 2:  # [S, D]: hidden states, not attention weights
            ours.append(p)
        return original(x, p, training, inplace)

    sequences = [[7, 8, 9]]
    reference.train()(torch.tensor(sequences))
    monkeypatch.setattr(torch.nn.functional, "dropout", spied)
    monkeypatch.setattr(Encoder, "_can_fuse", lambda self, x: False)
    encoder.train()(packed_of(sequences))
    assert ours == theirs
    assert len(ours) == (1 + 3 if family == "distilbert" else 1 + 2 * 3)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_every_way_has_the_same_dropout(family: str, way: list[str], hf: Any, tmp_path: Path) -> None:
    """All that dropout acts on is 0, but what attention gives: BERT drops of it, DistilBERT does not."""
    write_family(hf, family, tmp_path)
    encoder, _ = load(tmp_path)
    assert encoder.config.attention_probs_dropout_prob == encoder.config.hidden_dropout_prob == 0.1
    with torch.no_grad():
        encoder.norm.weight.zero_()
        encoder.norm.bias.zero_()
        for layer in encoder.layers:
            assert isinstance(layer, Layer)
            for part in (layer.attention.qkv, layer.down):
                part.weight.zero_()
                part.bias.zero_()
        packed = packed_of(random_sequences(encoder.config.vocab_size))
        kept = torch.allclose(encoder.train()(packed), encoder.eval()(packed), rtol=0, atol=1e-6)
    assert kept == (family == "distilbert")


# ------------------------------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("source", ["vocab.json", "tokenizer.json"])
@pytest.mark.parametrize("space", [False, True])
def test_tokens_of_a_byte_level_tokenizer(source: str, space: bool, hf: Any, tmp_path: Path) -> None:
    write_byte_level(tmp_path)
    numbers, merges = byte_level()
    reference = hf.RobertaTokenizer(vocab=dict(numbers), merges=list(merges), add_prefix_space=space)
    if source == "tokenizer.json":
        reference.save_pretrained(tmp_path)
        (tmp_path / "vocab.json").unlink(missing_ok=True)
        (tmp_path / "merges.txt").unlink(missing_ok=True)
    elif space:
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"add_prefix_space": True}))
    ours = ByteLevel.from_json(TokenizerFolder(tmp_path, "roberta").text(), "test")
    texts = sentences()
    assert len(texts) >= 300
    wanted = reference(texts)["input_ids"]
    assert [[*ours.prefix, *ids, *ours.suffix] for ids in ours.encode(texts)] == wanted
    flat, lengths = ours.encode_flat(texts)
    assert flat.tolist() == [i for ids in wanted for i in ids[1:-1]]
    assert lengths.tolist() == [len(ids) - 2 for ids in wanted]


def test_pairs_are_built_as_transformers_builds_them(hf: Any, tmp_path: Path) -> None:
    write_family(hf, "roberta", tmp_path, max_position_embeddings=514)
    _, loaded = load(tmp_path, max_length=512)  # 514 positions, two of which no token has
    numbers, merges = byte_level()
    reference = hf.RobertaTokenizer(vocab=dict(numbers), merges=list(merges))
    texts = [text for text in sentences() if text.strip()]
    rows = [mtmeta.Example(a, b, label=0, id=str(i)) for i, (a, b) in enumerate(pairwise(texts))]
    (store,) = from_examples("p", Para(train="sample", pair_mode="cross"), "dev", rows, loaded).stores
    for row, start, end in zip(rows, store.offsets, store.offsets[1:], strict=False):
        assert store.ids[start:end].tolist() == reference(row.text, row.pair)["input_ids"]


# --------------------------------------------------------------------------------------------------------------- runs


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra"])
def test_a_run_is_resumed_to_the_bit_and_holds_all_it_needs(family: str, hf: Any, tmp_path: Path) -> None:
    write_family(hf, family, tmp_path / "w")
    backbone = {"name": "bert", "weights": str(tmp_path / "w"), "max_length": 16}
    recipe = quick(tmp_path, "reptile", backbone=backbone)
    mtmeta.run(recipe, out=tmp_path / "whole")
    with killed_before_step(3):
        mtmeta.run(recipe, out=tmp_path / "cut")
    mtmeta.run(recipe, out=tmp_path / "cut")
    assert outcome(tmp_path / "cut") == outcome(tmp_path / "whole")
    shutil.rmtree(tmp_path / "w")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert mtmeta.evaluate(tmp_path / "whole")["tasks"] == summary["tasks"]


# ---------------------------------------------------------------------------------------------------------- refusals


def refusal(folder: Path, kind: type[mtmeta.MtmetaError] = mtmeta.WeightsError, **options: Any) -> str:
    with pytest.raises(kind) as caught:
        load(folder, **options)
    assert len(caught.value.lines()) == 1
    return str(caught.value)


def change(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_positions_that_no_token_has_are_not_counted(hf: Any, tmp_path: Path) -> None:
    write_family(hf, "roberta", tmp_path)
    what = refusal(tmp_path, mtmeta.RecipeError, max_length=65)
    assert what == f"backbone.max_length: max_length 65 exceeds {tmp_path}'s 64 positions; lower it"
    encoder, _ = load(tmp_path, max_length=64)
    packed = packed_of([list(range(5, 69))])
    assert isinstance(packed, Packed) and encoder(packed).shape == (64, 24)


def test_what_is_wrong_is_said_in_the_words_of_the_file(hf: Any, tmp_path: Path) -> None:
    write_family(hf, "distilbert", tmp_path, heads=True)
    place = tmp_path / "config.json"
    good = place.read_text()
    change(tmp_path, model_type="t5")
    known = "bert, distilbert, electra, roberta, xlm-roberta; for others use backbone hf"
    assert refusal(tmp_path) == f"{place}: model_type 't5' is not supported ({known})"
    place.write_text(good)
    change(tmp_path, dim="24")
    assert refusal(tmp_path) == f"{place}: 'dim' must be a positive integer, found '24'"
    place.write_text(good)
    change(tmp_path, n_heads=5)
    assert refusal(tmp_path) == f"{place}: dim 24 is not a multiple of 5 attention heads"
    place.write_text(good)
    change(tmp_path, activation="mish")
    assert refusal(tmp_path).startswith(f"{place}: activation 'mish' is not one of gelu,")
    place.write_text(good)
    change(tmp_path, n_layers=4)
    name = "transformer.layer.3.attention.q_lin.weight"
    place = tmp_path / "model.safetensors"
    assert refusal(tmp_path) == f"{place}: tensor '{name}' is missing, config.json asks for it (+15 more)"


def test_padding_that_leaves_no_position_is_refused(hf: Any, tmp_path: Path) -> None:
    write_family(hf, "roberta", tmp_path)
    place = tmp_path / "config.json"
    change(tmp_path, pad_token_id=65)
    what = "max_position_embeddings 66 leaves no position after pad_token_id 65"
    assert refusal(tmp_path) == f"{place}: {what}"
    change(tmp_path, pad_token_id=-1)
    assert refusal(tmp_path) == f"{place}: 'pad_token_id' must be an integer from 0, found -1"


SPOILT: dict[str, tuple[str, str, str]] = {
    "no JSON": ("vocab.json", "{", "vocab.json: is not JSON ("),
    "no numbers": ("vocab.json", '{"a": "b"}', "vocab.json: is no vocabulary of tokens and their numbers"),
    "one number twice": ("vocab.json", '{"a": 1, "b": 1}', "vocab.json: is no vocabulary of tokens and their numbers"),
    "no <s>": (
        "vocab.json",
        '{"a": 0, "b": 1, "ab": 2}',
        "merges.txt: has no token '<s>'; a RoBERTa tokenizer has one",
    ),
    "three tokens": ("merges.txt", "a b c\n", "merges.txt: 'a b c' is no pair of tokens; fetch it again"),
    "unknown tokens": ("merges.txt", "\u4e2d \u4e2d\n", "merges.txt: cannot be loaded ("),
    "none": ("merges.txt", "", "has neither tokenizer.json nor vocab.json with merges.txt; one of them is needed"),
}


@pytest.mark.parametrize("what", SPOILT)
def test_spoilt_vocabularies(what: str, hf: Any, tmp_path: Path) -> None:
    write_family(hf, "roberta", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    write_byte_level(tmp_path)
    if what == "no <s>":
        (tmp_path / "merges.txt").write_text("a b\n")
    name, text, words = SPOILT[what]
    if text:
        (tmp_path / name).write_text(text, encoding="utf-8")
    else:
        (tmp_path / name).unlink()
    assert words in refusal(tmp_path)


def test_a_vocabulary_larger_than_the_embeddings_is_refused(hf: Any, tmp_path: Path) -> None:
    write_family(hf, "roberta", tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    write_byte_level(tmp_path)
    numbers = byte_level()[0] | {"extra": size_of("bytes")}
    (tmp_path / "vocab.json").write_text(json.dumps(numbers))
    n = size_of("bytes")
    what = f"has {n + 1} entries, embeddings have {n}; they do not belong together"
    assert refusal(tmp_path) == f"{tmp_path}: tokenizer: {what}"


def test_random_values_in_the_shape_of_a_folder(hf: Any, tmp_path: Path) -> None:
    write_family(hf, "electra", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    one, loaded = load(tmp_path, pretrained=False)
    same, _ = load(tmp_path, pretrained=False)
    assert loaded.identity.startswith("random values, shape ")
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert float(one.projection.weight.detach().std()) == pytest.approx(0.02, rel=0.2)
    assert read_config(tmp_path / "config.json").embedded == 16
