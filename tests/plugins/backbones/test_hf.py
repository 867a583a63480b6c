"""Backbone `hf`: transformers' encoders on packed batches, trained, evaluated and resumed like our own."""

from __future__ import annotations

import importlib
import importlib.metadata
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import mtmeta
from mtmeta.core.api.optimizers import AdamW
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack
from mtmeta.core.training import evaluation as evaluate
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.checkpoint.names import hugging_face_names
from mtmeta.plugins.backbones.encoder.repacked import CALL, Repacked, blocks
from mtmeta.plugins.backbones.hf import HuggingFace
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from tests.support.commands import Outcome, assert_refused, call
from tests.support.families import write_family
from tests.support.parity import (
    LENGTHS,
    largest_difference,
    ours_of,
    packed_of,
    random_sequences,
    random_types,
    theirs_of,
)
from tests.support.quick import killed_before_step, outcome, quick

pytestmark = pytest.mark.usefixtures("one_thread")
Capture = pytest.CaptureFixture[str]
TOLERANCE = 1e-5
FAMILIES = ("bert", "roberta", "distilbert", "modernbert", "deberta-v2", "electra", "mpnet")


@pytest.fixture(autouse=True, scope="module")
def cheap() -> Iterator[None]:
    """Runs without what takes time and says nothing here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda handle: None)
        patch.setattr(evaluate, "BOOTSTRAP_DRAWS", 5)
        yield


@pytest.fixture(scope="session")
def hf() -> Any:
    """transformers, loaded once."""
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    return library


def load(folder: Path, **options: Any) -> tuple[Repacked, mtmeta.LoadedBackbone]:
    loaded = HuggingFace(weights=str(folder), **({"max_length": 48} | options)).load(seed=0)
    assert isinstance(loaded.encoder, Repacked)
    return loaded.encoder.eval(), loaded


# ----------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("family", FAMILIES)
def test_a_sequence_does_not_depend_on_its_batch_mates(family: str, hf: Any, tmp_path: Path) -> None:
    """And is what transformers makes of one padded batch."""
    reference = write_family(hf, family, tmp_path)
    encoder, loaded = load(tmp_path)
    sequences = random_sequences(loaded.tokenizer.size)  # type: ignore[attr-defined]
    typed = family in ("bert", "electra")
    types = random_types(sequences)
    with torch.inference_mode():
        theirs = theirs_of(reference, sequences, types if typed else None, pad=int(family in ("roberta", "mpnet")))
        ours = ours_of(encoder, sequences, types)
        assert largest_difference(ours, theirs) <= TOLERANCE
        alone = [hidden for s, t in zip(sequences, types, strict=True) for hidden in ours_of(encoder, [s], [t])]
        assert largest_difference(ours, alone) <= TOLERANCE


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra"])
def test_loss_and_gradient_are_those_of_our_own_encoder(family: str, hf: Any, tmp_path: Path) -> None:
    write_family(hf, family, tmp_path, heads=True)
    backbones = {"bert": Bert, "hf": HuggingFace}
    tasks: dict[str, mtmeta.Task] = {"sst": Sst(train="sample"), "para": Para(train="sample", pair_mode="cross")}
    losses: dict[str, list[float]] = {}
    gradients: dict[str, dict[str, Tensor]] = {}
    for name, kind in backbones.items():
        loaded = kind(weights=str(tmp_path), max_length=40, dropout=0.0).load(0)
        model = MultiTaskModel(loaded.encoder, tasks, seed=1).train()
        for task in tasks:
            data = from_examples(task, tasks[task], "train", list(tasks[task].sample("train"))[:24], loaded)
            (chunk,) = pack(data, torch.arange(24).numpy()).chunks
            loss = tasks[task].objective.loss(model(task, chunk.packed), chunk.labels)
            losses.setdefault(name, []).append(float(loss.detach()))
            loss.backward()  # type: ignore[no-untyped-call]
        gradients[name] = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert losses["hf"] == pytest.approx(losses["bert"], rel=0, abs=TOLERANCE)
    encoder: Any = Bert(weights=str(tmp_path), max_length=40).load(0).encoder
    names = {f"encoder.{our}": [f"encoder.model.{n}" for n in theirs]
             for our, theirs in hugging_face_names(encoder.config).items()}  # fmt: skip
    names |= {name: [name] for name in gradients["bert"] if name.startswith("heads.")}
    assert set(names) == set(gradients["bert"])
    assert {n for theirs in names.values() for n in theirs} == set(gradients["hf"])
    for our, theirs in names.items():
        wanted = torch.cat([gradients["hf"][name] for name in theirs])
        difference = float((gradients["bert"][our] - wanted).abs().max())
        assert difference <= TOLERANCE * max(1.0, float(wanted.abs().max())), our


def test_blocks_cost_the_least() -> None:
    groups = [(3, 2), (1, 3), (4, 9), (1, 17), (2, 30), (1, 40)]
    for one in (0, 5, 32, 100, 10_000):
        found = blocks(groups, one)
        assert [group for block in found for group in block] == groups

        def cost(parts: list[list[tuple[int, int]]], one: int = one) -> int:
            return sum(one + block[-1][1] * sum(count for count, _ in block) for block in parts)

        every = []
        for cuts in itertools.product([False, True], repeat=len(groups) - 1):
            parts = [[groups[0]]]
            for cut, group in zip(cuts, groups[1:], strict=True):
                parts.append([group]) if cut else parts[-1].append(group)
            every.append(cost(parts))
        assert cost(found) == min(every)
    assert len(blocks(groups, 0)) == len(groups) and len(blocks(groups, 10**6)) == 1


@pytest.mark.parametrize("call", [0, 32, 10**6])
def test_how_a_batch_is_cut_into_blocks_changes_nothing(
    call: int, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(hf, "bert", tmp_path)
    encoder, loaded = load(tmp_path)
    sequences = random_sequences(loaded.tokenizer.size)  # type: ignore[attr-defined]
    monkeypatch.setitem(CALL, "cpu", call)
    shapes: list[tuple[int, ...]] = []
    encoder.model.register_forward_pre_hook(
        lambda module, given, named: shapes.append(tuple(named["input_ids"].shape)), with_kwargs=True
    )
    with torch.inference_mode():
        made = ours_of(encoder, sequences, random_types(sequences))
        alone = [h for s, t in zip(sequences, random_types(sequences), strict=True) for h in ours_of(encoder, [s], [t])]
    assert largest_difference(made, alone) <= TOLERANCE
    shapes = shapes[: -len(sequences)]
    assert len(shapes) == {0: len(set(LENGTHS)), 10**6: 1}.get(call, len(shapes))
    assert sum(n for n, _ in shapes) == len(LENGTHS)


def test_dropout_is_a_function_of_the_seed_and_can_be_set(hf: Any, tmp_path: Path) -> None:
    write_family(hf, "modernbert", tmp_path, attention_dropout=0.2, mlp_dropout=0.2, embedding_dropout=0.2)
    encoder, loaded = load(tmp_path)
    packed = packed_of(random_sequences(loaded.tokenizer.size))  # type: ignore[attr-defined]
    encoder.train()
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(encoder(packed))
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
    without, _ = load(tmp_path, dropout=0.0)
    assert torch.equal(without.train()(packed), encoder.eval()(packed))
    config = encoder.model.config
    assert config.classifier_dropout == 0.0 and config.mlp_dropout == 0.2
    everywhere, _ = load(tmp_path, dropout=0.3)
    config = everywhere.model.config
    assert config.classifier_dropout == 0.0
    assert [config.attention_dropout, config.mlp_dropout, config.embedding_dropout] == [0.3] * 3


@pytest.mark.parametrize("family", FAMILIES)
def test_layer_decay_finds_the_layers(family: str, hf: Any, tmp_path: Path) -> None:
    write_family(hf, family, tmp_path)
    _, loaded = load(tmp_path)
    model = MultiTaskModel(loaded.encoder, {"sst": Sst(train="sample")}, seed=1)
    names = list(dict(model.named_parameters()))
    rates = dict(zip(names, AdamW(lr=1.0, layer_decay=0.5)._rates(names), strict=True))
    layers = [[rate for name, rate in rates.items() if f".{i}." in name and "heads" not in name] for i in range(3)]
    assert [set(found) for found in layers] == [{0.25}, {0.5}, {1.0}]
    assert {rate for name, rate in rates.items() if "embeddings" in name and "rel_" not in name} == {0.125}


# -------------------------------------------------------------------------------------------------------------- runs


QUICK = ("roberta", "modernbert", "deberta-v2")


@pytest.mark.parametrize("family", [f if f in QUICK else pytest.param(f, marks=pytest.mark.slow) for f in FAMILIES])
def test_a_run_that_was_cut_ends_in_the_same_bits(family: str, hf: Any, tmp_path: Path) -> None:
    """With dropout on. And it needs nothing but its own folder to be evaluated."""
    write_family(hf, family, tmp_path / "w")
    backbone = {"name": "hf", "weights": str(tmp_path / "w"), "max_length": 16, "dropout": 0.1}
    recipe = quick(tmp_path, "reptile", backbone=backbone, training={"steps": 4})
    mtmeta.run(recipe, out=tmp_path / "whole")
    with killed_before_step(3):
        mtmeta.run(recipe, out=tmp_path / "cut")
    torch.manual_seed(99)  # what the process drew before is of no matter
    mtmeta.run(recipe, out=tmp_path / "cut")
    expected = outcome(tmp_path / "whole")
    assert sum(name.endswith("model.safetensors") for name in expected) >= 2
    assert outcome(tmp_path / "cut") == expected
    shutil.rmtree(tmp_path / "w")
    summary = json.loads((tmp_path / "whole" / "summary.json").read_text())
    assert mtmeta.evaluate(tmp_path / "whole")["tasks"] == summary["tasks"]
    texts = ["word 3 good", "a much longer text than the other, so that there is padding"]
    run = mtmeta.load(tmp_path / "whole")
    together = [made.probabilities for made in run.predict("kind", texts)]
    apart = [made.probabilities for text in texts for made in run.predict("kind", [text])]
    for one, other in zip(together, apart, strict=True):
        assert one == pytest.approx(other, rel=0, abs=TOLERANCE)


@pytest.mark.slow
def test_the_commands(hf: Any, tmp_path: Path, capsys: Capture) -> None:
    """Individual runs (a copy of the encoder for each task), compare, adapt, predict; lock and refusals of a resume."""
    write_family(hf, "roberta", tmp_path / "w")
    backbone = {"name": "hf", "weights": "./w", "max_length": 16}
    quick(tmp_path, "joint", backbone=backbone, data_root=".")
    recipe = json.loads((tmp_path / "quick.yaml").read_text())
    (tmp_path / "alone.yaml").write_text(json.dumps({**recipe, "name": "alone", "algorithm": "individual"}))

    def done(*arguments: str) -> str:
        found = call(*arguments, cwd=tmp_path, capsys=capsys)
        assert found.code == 0, found.err
        return found.out

    table = json.loads(done("compare", "quick.yaml", "--seeds", "1", "--json"))  # in a process of its own
    assert len(table["rows"]) == 1
    done("run", "alone.yaml", "--out", "alone")
    done("run", "quick.yaml", "--out", "out")
    adapted = json.loads(done("adapt", "out", "quick.yaml", "--shots", "2", "--seeds", "2", "--json", "--task", "kind"))
    assert len(adapted["adapted"]) == 4
    (tmp_path / "texts.txt").write_text("word 3 good\nother\n")
    assert done("predict", "out", "--task", "kind", "--input", "texts.txt").count("\n") == 3
    lock = (tmp_path / "out" / "recipe.lock.yaml").read_text()
    assert f"packages:\n  transformers: {importlib.metadata.version('transformers')}\n" in lock
    (tmp_path / "out" / "summary.json").unlink()
    (tmp_path / "out" / "recipe.lock.yaml").write_text(lock.replace("transformers: ", "transformers: 1."))
    refused = call("run", "quick.yaml", "--out", "out", cwd=tmp_path, capsys=capsys)
    assert_refused(refused, 4, "out: run used transformers 1.", "results would differ: pass --allow-inexact")
    done("run", "quick.yaml", "--out", "out", "--allow-inexact")
    path = tmp_path / "w" / "model.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(path).items()}, path, {"format": "pt"})
    (tmp_path / "out" / "summary.json").unlink()
    refused = call("run", "quick.yaml", "--out", "out", cwd=tmp_path, capsys=capsys)
    assert_refused(refused, 4, "out: began with backbone weights sha256:", "now they are sha256:")


def test_random_values_in_the_shape_of_a_folder(hf: Any, tmp_path: Path) -> None:
    write_family(hf, "modernbert", tmp_path)
    (tmp_path / "model.safetensors").unlink()
    loads = [HuggingFace(weights=str(tmp_path), max_length=16, pretrained=False).load(seed) for seed in (1, 1, 2)]
    one, same, other = (loaded.encoder.state_dict() for loaded in loads)
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert loads[0].identity == loads[1].identity != loads[2].identity


def test_shards_are_read(hf: Any, tmp_path: Path) -> None:
    reference = write_family(hf, "distilbert", tmp_path)
    whole, loaded = load(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    reference.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    sharded, again = load(tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), sharded.parameters(), strict=True))
    assert again.identity.startswith("sha256:") and again.identity != loaded.identity


# ---------------------------------------------------------------------------------------------------------- refusals


def config(**changes: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return damage


def other(kind: str) -> Callable[[Path], None]:
    """The configuration of a model of another kind, as it is made by default."""

    def damage(folder: Path) -> None:
        path = folder / "config.json"
        made = getattr(importlib.import_module("transformers"), kind)
        path.write_text(json.dumps({"model_type": made.model_type, **SMALL_OTHERS.get(kind, {})}))

    return damage


def write(name: str, text: str | bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())

    return damage


def weights(change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file(change(load_file(path)), path, {"format": "pt"})

    return damage


def pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_specials(folder: Path) -> None:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"post_processor": None}))
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')


def index(weight_map: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "model-1.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))

    return damage


SMALL_OTHERS = {"ViTConfig": {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}}
WORDS = "embeddings.word_embeddings.weight"
QUERY = "encoder.layer.1.attention.self.query.weight"
SPOILT: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "unknown model": (config(model_type="nonesuch"), ("w: transformers cannot read config.json (", "nonesuch")),
    "encoder-decoder": (other("T5Config"), ("config.json: describes a decoder; an encoder is needed",)),
    "decoder": (config(is_decoder=True), ("config.json: describes a decoder; an encoder is needed",)),
    "no text": (other("ViTConfig"), ("w/model.safetensors: tensor ",)),
    "not for AutoModel": (other("EncoderDecoderConfig"), ("w/config.json: transformers has no AutoModel for Enc",)),
    "remote code": (
        config(model_type="x", auto_map={"AutoModel": "x.Y"}),
        ("config.json: 'auto_map' asks for remote code, which is never run",),
    ),
    "too large": (
        config(hidden_size=2**20, intermediate_size=2**20, num_attention_heads=1),
        ("config.json: asks for", "billion parameters (limit 2 billion)"),
    ),
    "too deep": (config(num_hidden_layers=10**8), ("config.json: asks for 100000000 layers (limit 1000)",)),
    "no number": (config(hidden_size="many"), ("w: transformers cannot",)),
    "pickle": (pickle, ("pytorch_model.bin: pickle files can run code and are not read",)),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), ("model.safetensors: no such file",)),
    "damaged": (write("model.safetensors", b"\0" * 1000), ("model.safetensors: is damaged",)),
    "missing": (
        weights(lambda state: {name: tensor for name, tensor in state.items() if name != QUERY}),
        (f"model.safetensors: tensor '{QUERY}' is missing, config.json asks for it",),
    ),
    "misshaped": (
        weights(lambda state: state | {QUERY: torch.zeros(24, 8)}),
        ("model.safetensors: tensor 'encoder.layer.1.attention.self.query.weight' is 24x8, config.json needs 24x24",),
    ),
    "non-finite": (
        weights(lambda state: state | {QUERY: torch.full((24, 24), torch.nan)}),
        (f"model.safetensors: '{QUERY}' holds non-finite values",),
    ),
    "shards elsewhere": (
        index({WORDS: "../w/model-1.safetensors"}),
        ("index.json: names '../w/model-1.safetensors', which is none of its folder",),
    ),
    "a shard that is not there": (index({WORDS: "model-2.safetensors"}), ("model-2.safetensors: no such file",)),
    "no tokenizer": (
        lambda folder: (folder / "tokenizer.json").unlink(),
        ("w: has neither tokenizer.json nor vocab.txt; one of them is needed",),
    ),
    "spoilt tokenizer": (write("tokenizer.json", "{"), ("w/tokenizer.json: cannot be loaded (",)),
    "no special tokens": (no_specials, ("tokenizer.json: puts no special token around a text",)),
    "small embeddings": (
        weights(lambda state: state),
        ("w: tokenizer: has", "entries, embeddings have 20; they do not belong together"),
    ),
}


@pytest.mark.parametrize("what", SPOILT)
def test_what_is_refused(what: str, hf: Any, tmp_path: Path, capfd: Capture) -> None:
    options: dict[str, Any] = {"vocab_size": 20} if what == "small embeddings" else {}
    write_family(hf, "bert", tmp_path / "w", **options)
    damage, words = SPOILT[what]
    damage(tmp_path / "w")
    assert_refused(attempt(tmp_path, capfd), 4, *words)
    assert not (tmp_path / "out").exists()


def test_code_in_a_folder_stays_unread(hf: Any, tmp_path: Path) -> None:
    """A tokenizer that names its own code gets transformers' own class, and the file is never imported."""
    write_family(hf, "bert", tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('run')\n")
    named = {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["evil.X", "evil.X"]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(named))
    _, loaded = load(tmp_path)
    assert loaded.tokenizer.prefix == (2,)
    assert not [name for name in sys.modules if "evil" in name]


def attempt(folder: Path, capsys: Capture, **backbone: Any) -> Outcome:
    quick(folder, backbone={"name": "hf", "weights": "./w", "max_length": 16} | backbone)
    return call("run", "quick.yaml", "--out", "out", cwd=folder, capsys=capsys)


def test_max_length_and_dropout_must_fit_the_model(hf: Any, tmp_path: Path, capfd: Capture) -> None:
    write_family(hf, "roberta", tmp_path / "w")
    assert_refused(attempt(tmp_path, capfd, max_length=65), 2, "max_length 65 exceeds w's 64 positions; lower it")
    assert_refused(attempt(tmp_path, capfd, weights="tiny"), 4, "tiny: is of backbone bert alone; give a folder")


@pytest.mark.parametrize("found", [None, "4.57.1"])
def test_without_transformers(
    found: str | None, hf: Any, tmp_path: Path, capfd: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_family(hf, "bert", tmp_path / "w")
    version = importlib.metadata.version

    def without(name: str) -> str:
        if name != "transformers":
            return version(name)
        if found is None:
            raise importlib.metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr(importlib.metadata, "version", without)
    words = "needs transformers, which is not installed" if found is None else "needs transformers >= 5, found 4.57.1"
    assert_refused(attempt(tmp_path, capfd), 6, f"backbone hf: {words}; pip install 'mtmeta[hf]'")
    shown = call("show", "backbone", "hf", cwd=tmp_path, capsys=capfd)
    assert shown.code == 0
    assert (found or "transformers is not installed; pip install 'mtmeta[hf]'") in shown.out
