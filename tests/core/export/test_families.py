"""Exports of every family, in its own layout, by both backbones; what cannot be exported is said before training."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

import mtmeta
from benchmarks import export as benchmark
from mtmeta.core.export import libraries, onnx_graphs
from mtmeta.core.export.export import export
from mtmeta.core.run.evaluate import open_run
from mtmeta.core.run.request import RunRequest
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.backbones.tokenizers.portable import tokenizer_files
from mtmeta.plugins.tasks.generic import ClassificationTask
from tests.core.storage.test_staging import OwnHead
from tests.support.commands import assert_refused, call
from tests.support.families import ODD, sentences, tokenizer_text, write_family
from tests.support.quick import quick

Capture = pytest.CaptureFixture[str]
PAIRED = {"task": "para", "train": "pairs.tsv", "dev": "pairs.tsv", "batch_size": 4}
TEXTS = [text for text in sentences(20) if text.strip()]
PAIRS = list(zip(TEXTS, TEXTS[3:] + TEXTS[:3], strict=True))
# of each: backbone, family, transformers' class, and whether the second text of a pair has a token type of its own
CASES = {
    "bert distilbert": ("DistilBertModel", False),
    "bert electra": ("ElectraModel", True),
    "bert electra of one width": ("ElectraModel", True),
    "bert roberta": ("RobertaModel", False),
    "bert roberta, two types": ("RobertaModel", False),
    "bert xlm-roberta": ("XLMRobertaModel", False),
    "hf bert": ("BertModel", True),
    "hf modernbert": ("ModernBertModel", False),
    "hf deberta-v2": ("DebertaV2Model", False),
    "hf mpnet": ("MPNetModel", False),
    "hf roberta": ("RobertaModel", False),
}
GRAPHS = ("bert distilbert", "bert electra", "bert xlm-roberta", "hf modernbert", "hf deberta-v2", "hf mpnet")


@pytest.fixture(scope="session")
def hf() -> Any:
    """transformers, loaded once."""
    library = importlib.import_module("transformers")
    library.logging.disable_progress_bar()
    return library


def make_run(folder: Path, backbone: str, weights: Path) -> Path:
    """A step of training on single texts, pairs in one sequence and pairs apart."""
    parts = {"name": backbone, "weights": str(weights), "max_length": 24}
    training = {"steps": 1, "precision": "fp32"}  # as other libraries compute
    recipe = json.loads(quick(folder, "joint", backbone=parts, training=training).read_text())
    rows = "".join(f"{i}\tword {i}\tword {i + i % 2}\t{1 - i % 2}\n" for i in range(12))
    (folder / "pairs.tsv").write_text("id\tsentence1\tsentence2\tis_duplicate\n" + rows)
    recipe["tasks"] |= {"cross": {**PAIRED, "pair_mode": "cross"}, "apart": PAIRED}
    (folder / "r.yaml").write_text(json.dumps(recipe))
    mtmeta.run(folder / "r.yaml", out=folder / "run", device="cpu")
    return folder / "run"


QUICK = ("bert distilbert", "bert roberta, two types", "hf modernbert")
"""Of each kind of encoder one; the others are slow."""


@pytest.fixture(
    scope="module", params=[case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def made(request: pytest.FixtureRequest, hf: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A case and its run."""
    folder = tmp_path_factory.mktemp("family")
    backbone, _, family = str(request.param).partition(" ")
    write_family(hf, family, folder / "weights")
    return request.param, make_run(folder, backbone, folder / "weights")


def test_other_libraries_predict_what_mtmeta_predicts(made: tuple[str, Path], hf: Any, tmp_path: Path) -> None:
    """Odd texts among them: of modeling.py every output, of SentenceTransformer every vector, to 1e-5."""
    case, run = made
    kind, typed = CASES[case]
    texts: dict[str, list[Any]] = {"kind": TEXTS, "grade": TEXTS, "cross": PAIRS, "apart": PAIRS}
    for form in ("transformers", "sentence-transformers"):
        document = export(run, form, out=tmp_path / form)
        given = texts if form == "transformers" else {"kind": texts["kind"]}
        differences = benchmark.differences(run, form, tmp_path / form, given)
        assert max(value for of_task in differences.values() for value in of_task.values()) < 1e-5
        assert 0 < max(document["differences"].values()) < 1e-5
        model, loading = hf.AutoModel.from_pretrained(tmp_path / form, output_loading_info=True)
        assert type(model).__name__ == kind
        assert not any(loading.values())
        tokenizer = hf.AutoTokenizer.from_pretrained(tmp_path / form)
        assert ("token_type_ids" in tokenizer(TEXTS[0])) == typed
        own = open_run(run, RunRequest(device="cpu")).recipe.backbone.restore(run / "backbone").tokenizer
        assert tokenizer(TEXTS, add_special_tokens=False)["input_ids"] == own.encode(TEXTS)
        whole = [[*own.prefix, *ids, *own.suffix] for ids in own.encode(TEXTS)]
        assert tokenizer(TEXTS, verbose=False)["input_ids"] == whole


@pytest.mark.slow
def test_graphs_predict_what_mtmeta_predicts(made: tuple[str, Path], tmp_path: Path) -> None:
    case, run = made
    if case not in GRAPHS:
        pytest.skip("like one of the others")
    export(run, "onnx", tasks=["kind", "cross"], out=tmp_path / "onnx")
    texts: dict[str, list[Any]] = {"kind": TEXTS, "cross": PAIRS}
    differences = benchmark.differences(run, "onnx", tmp_path / "onnx", texts)
    assert max(value for of_task in differences.values() for value in of_task.values()) < 1e-5


# --------------------------------------------------------------------------------------------------------- tokenizers


def mixed(special: bool) -> str:
    """Pieces of XLM-R, as multilingual sentence encoders have them under BERT; `special` are its added tokens."""
    tokenizer = Tokenizer(models.Unigram([("<s>", 0.0), ("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("\u2581", -2.0)]
                                         + [(chr(97 + i), -3.0 - i) for i in range(26)], unk_id=3))  # fmt: skip
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    if special:
        tokenizer.add_special_tokens(["<s>", "<pad>", "</s>", "<unk>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    text: str = tokenizer.to_str()
    return text


class Own:
    """A run's tokenizer, over a tokenizer.json."""

    prefix, middle, suffix = (0,), (2, 2), (2,)

    def __init__(self, text: str) -> None:
        self.fast = Tokenizer.from_str(text)

    def encode(self, texts: Any) -> list[list[int]]:
        return [encoding.ids for encoding in self.fast.encode_batch(list(texts), add_special_tokens=False)]


def write(folder: Path, files: dict[str, bytes], model_type: str) -> Any:
    folder.mkdir(exist_ok=True)
    for name, data in {**files, "config.json": json.dumps({"model_type": model_type}).encode()}.items():
        (folder / name).write_bytes(data)
    return folder


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("model_type", ["bert", "roberta", "mpnet"])
def test_pieces_of_another_family_stay_as_they_are(special: bool, model_type: str, hf: Any, tmp_path: Path) -> None:
    """Texts with the words of special tokens included, be these special or plain entries of the vocabulary."""
    own: Any = Own(mixed(special))
    files, padding = tokenizer_files(mixed(special), own, 32, typed=model_type == "bert")
    backbone: Any = type("Loaded", (), {"tokenizer": own})
    assert libraries.check_tokenizer(write(tmp_path, files, model_type), backbone)
    assert padding == (1 if special else 2)
    auto = hf.AutoTokenizer.from_pretrained(tmp_path)
    texts = [*ODD, "a <s> b <pad>c</s> <unk>"]
    assert auto(texts, add_special_tokens=False)["input_ids"] == own.encode(texts)
    assert auto("a", "b")["input_ids"] == [0, *own.encode(["a"])[0], 2, 2, *own.encode(["b"])[0], 2]
    batch = auto(["a", "a b"], padding=True)
    assert batch["attention_mask"][0][-1] == 0 and batch["input_ids"][0][-1] == padding


@pytest.mark.parametrize("name", ["BertTokenizer", "RobertaTokenizer", "XLMRobertaTokenizer"])
def test_a_tokenizer_that_gives_other_ids_is_refused(
    name: str, hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """A class that builds its own tokenizer from the pieces; nothing is left."""
    write_family(hf, "electra", tmp_path / "weights")
    run = make_run(tmp_path, "bert", tmp_path / "weights")
    original = Bert.portable

    def spoilt(self: Bert, loaded: Any) -> Any:
        made = original(self, loaded)
        files: Any = made.files
        cased = Tokenizer.from_str(files["tokenizer.json"].decode())
        cased.normalizer = normalizers.BertNormalizer(lowercase=False)
        loaded.tokenizer._tokenizer.normalizer = cased.normalizer
        loaded.tokenizer._words = None
        settings = json.loads(files["tokenizer_config.json"]) | {"tokenizer_class": name}
        files |= {"tokenizer.json": cased.to_str().encode(), "tokenizer_config.json": json.dumps(settings).encode()}
        return made

    monkeypatch.setattr(Bert, "portable", spoilt)
    for form in ("transformers", "sentence-transformers"):
        outcome = call("export", str(run), "--format", form, "--out", "out", cwd=tmp_path, capsys=capsys)
        assert_refused(outcome, 6, "AutoTokenizer", "nothing was kept")
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- said by --dry-run


def write_mixing(hf: Any, folder: Path, kind: str = "FNet") -> Path:
    """An encoder whose hidden states hold of the padding."""
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}
    sizes |= {"max_position_embeddings": 66, "vocab_size": 4000}
    torch.manual_seed(1)
    getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")(**sizes)).save_pretrained(folder)
    (folder / "tokenizer.json").write_text(tokenizer_text("words"), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "PreTrainedTokenizerFast"}')
    return folder


def planned(recipe: Path, capsys: Capture) -> tuple[dict[str, str], str]:
    """What the plan says cannot be exported: in JSON, and the line for people."""
    arguments = ("run", str(recipe), "--dry-run", "--probe", "0")
    done = call(*arguments, "--json", cwd=recipe.parent, capsys=capsys)
    assert done.code == 0, done.err
    shown = call(*arguments, cwd=recipe.parent, capsys=capsys).out.splitlines()
    found: dict[str, str] = json.loads(done.out)["not_exported"]
    return found, "".join(line for line in shown if line.startswith("not exported"))


@pytest.mark.parametrize("kind", ["FNet", "ConvBert"])
def test_an_encoder_that_mixes_padding_in(kind: str, hf: Any, tmp_path: Path, capsys: Capture) -> None:
    """Where it can be trained at all, the plan says that no format holds it, and so does export."""
    weights = write_mixing(hf, tmp_path / "weights", kind)
    recipe = quick(tmp_path, backbone={"name": "hf", "weights": str(weights), "max_length": 24}, training={"steps": 1})
    found, line = planned(recipe, capsys)
    assert set(found) == {"transformers", "onnx", "sentence-transformers"}
    assert f"{kind}Model mixes padding into the hidden states of texts" in line
    assert line.startswith("not exported ") and "transformers, onnx, sentence-transformers (" in line
    mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    for form in found:
        outcome = call("export", "run", "--format", form, "--out", "out", cwd=tmp_path, capsys=capsys)
        assert_refused(outcome, 4, f"{kind}Model mixes padding", "use `mtmeta predict`")
    assert not (tmp_path / "out").exists()


def test_a_head_of_a_plugins_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    recipe = quick(tmp_path, training={"steps": 1})
    assert planned(recipe, capsys) == ({}, "")
    monkeypatch.setattr(ClassificationTask, "build_head", lambda self, width: OwnHead())
    found, line = planned(recipe, capsys)
    assert set(found) == {"transformers", "onnx"}
    assert "task 'kind' has a head of its own, OwnHead, which cannot be exported" in line


def test_a_backbone_that_has_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.delattr(Bert, "portable")
    found, line = planned(quick(tmp_path), capsys)
    assert set(found) == {
        "transformers",
        "onnx",
        "sentence-transformers",
    }  # it has no adapters, and no heads for the others
    assert "has no method `portable` and cannot be exported" in line


@pytest.mark.slow
def test_an_encoder_of_which_there_is_no_graph(
    hf: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Tried on the encoder itself; the other formats are none the worse."""
    write_family(hf, "modernbert", tmp_path / "weights")
    backbone = {"name": "hf", "weights": str(tmp_path / "weights"), "max_length": 24}
    recipe = quick(tmp_path, backbone=backbone, training={"steps": 1})
    assert planned(recipe, capsys) == ({}, "")

    def failing(*arguments: Any, **options: Any) -> Any:
        raise ValueError("no such operator\nadvice to developers")

    monkeypatch.setattr(torch.onnx, "export", failing)
    found, line = planned(recipe, capsys)
    assert set(found) == {"onnx"}
    assert "PyTorch cannot make a graph of this model (no such operator); use --format transformers" in line
    mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    outcome = call("export", "run", "--format", "onnx", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 6, "PyTorch cannot make a graph of this model (no such operator)")
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert planned(recipe, capsys)[0] == {"onnx": found["onnx"].partition(":")[0] + ": needs onnx, which is not "
                                          "installed; pip install 'mtmeta[onnx]'"}  # fmt: skip


def test_an_encoder_too_large_for_a_graph(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    monkeypatch.setattr(onnx_graphs, "LIMIT", 100)
    found, line = planned(quick(tmp_path), capsys)
    assert set(found) == {"onnx"}
    assert "takes files of 2 GB" in line
