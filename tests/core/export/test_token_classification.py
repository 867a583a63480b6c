"""`mtmeta export --format token-classification`: what AutoModelForTokenClassification and pipeline() load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtmeta
from mtmeta.core.data.loading import from_texts
from mtmeta.core.errors import MtmetaError
from mtmeta.core.export import token_classification
from mtmeta.core.export.export import export
from mtmeta.core.export.onnx_graphs import run_graph
from mtmeta.core.training.evaluation import forward
from tests.core.export.test_export import front_matter, run_card
from tests.support.commands import assert_refused, call
from tests.support.families import write_family
from tests.support.quick import quick_beside

Capture = pytest.CaptureFixture[str]
TEXTS = ["word went", "good", "word unheard-of goodgood good-word", "Went , word !", "word " * 9 + "good"]
WHO = {"task": "tagging", "labels": ["PER", "LOC"]}


def make_run(folder: Path, **changes: Any) -> Path:
    """A short run of a tagging task beside one of two classes; the tags have something to learn."""
    blocks = "\n".join(f"word O\ngood B-PER\nfilm {'IB'[i % 2]}-LOC\nword{i} O\n" for i in range(12))
    recipe = json.loads(quick_beside(folder, "who", WHO, dict.fromkeys(("train", "dev"), blocks), ".conll").read_text())
    recipe["training"]["steps"] = 3
    recipe["backbone"]["max_length"] = 48
    (folder / "r.yaml").write_text(json.dumps(recipe | changes))
    mtmeta.run(folder / "r.yaml", out=folder / "run", device="cpu")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("tags"))


@pytest.fixture(scope="module")
def exported(run: Path) -> dict[str, Any]:
    """With its graph."""
    return export(run, "token-classification")


def logits_of(run: Path, text: str) -> Any:
    """Logits [W, C] of the words of a text by the run's own model."""
    predictor = mtmeta.load(run, device="cpu")
    model, backbone = predictor._model("who")
    dataset = from_texts("who", predictor.task("who"), [text], [], backbone)
    with torch.inference_mode():
        ((_, _, outputs),) = forward(model, dataset, batch_tokens=8192)
    return outputs.numpy()


def first_pieces(tokenizer: Any, text: str) -> tuple[dict[str, Any], list[int]]:
    """What a tokenizer makes of a text, and where the first piece of each of its words is."""
    batch = tokenizer(text, return_tensors="pt", return_offsets_mapping=True)
    spans = batch.pop("offset_mapping")[0].tolist()
    starts = [at for at in range(len(text)) if not text[at].isspace() and (at == 0 or text[at - 1].isspace())]
    places = [next(at for at, (start, end) in enumerate(spans) if start == begin < end) for begin in starts]
    return dict(batch), places


def test_logits_labels_and_graph_are_those_of_the_run(run: Path, exported: dict[str, Any]) -> None:
    """Each word of each text, by AutoModel, by onnxruntime, and what is predicted of it."""
    transformers = pytest.importorskip("transformers")
    folder = Path(exported["folder"])
    assert exported["tasks"] == ["who"] and exported["differences"]["who"] < 1e-5
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForTokenClassification.from_pretrained(folder).eval()
    assert type(model).__name__ == "BertForTokenClassification"
    assert list(model.config.id2label.values()) == ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
    graph = (folder / "onnx" / "model.onnx").read_bytes()
    for text, said in zip(TEXTS, mtmeta.load(run, device="cpu").predict("who", TEXTS), strict=True):
        batch, places = first_pieces(tokenizer, text)
        wanted = logits_of(run, text)
        with torch.inference_mode():
            logits = model(**batch).logits[0, places].numpy()
        assert np.abs(logits - wanted).max() < 1e-5
        assert said.labels == tuple(model.config.id2label[at] for at in logits.argmax(-1).tolist())
        feed = [batch[name].numpy() for name in ("input_ids", "attention_mask", "token_type_ids")]
        assert np.abs(run_graph(graph, [feed])[0][0][0, places] - wanted).max() < 1e-5


def test_pipeline_tags_the_words(run: Path, exported: dict[str, Any]) -> None:
    transformers = pytest.importorskip("transformers")
    tag = transformers.pipeline("token-classification", model=exported["folder"], ignore_labels=[])
    for text, said in zip(TEXTS, mtmeta.load(run, device="cpu").predict("who", TEXTS), strict=True):
        found = {one["start"]: one["entity"] for one in tag(text)}
        starts = [at for at in range(len(text)) if not text[at].isspace() and (at == 0 or text[at - 1].isspace())]
        assert tuple(found[at] for at in starts) == said.labels


def test_its_card_and_the_code_in_it(
    run: Path, exported: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: Capture, tmp_path: Path
) -> None:
    card = (Path(exported["folder"]) / "README.md").read_text()
    front = front_matter(Path(exported["folder"]))
    assert (front["pipeline_tag"], front["library_name"]) == ("token-classification", "transformers")
    assert 'pipeline("token-classification", model="."' in card and "ORTModelForTokenClassification" in card
    assert (
        "`who`" in card
        and "entity_f1" in card
        and "`kind`" not in card.partition("## Figures")[2].partition("## Use")[0]
    )
    pytest.importorskip("transformers")
    printed = run_card(Path(exported["folder"]), monkeypatch, capsys, tmp_path)
    text = "A joy from start to end."
    (said,) = mtmeta.load(run, device="cpu").predict("who", [text])
    wanted = [f"{word} {label}" for word, label in zip(text.split(), said.labels or (), strict=True)]
    assert printed[-len(wanted) :] == wanted


@pytest.mark.parametrize("family", ["roberta", "distilbert", "electra", "xlm-roberta"])
def test_encoders_of_other_families(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In their own layouts, checked by AutoModelForTokenClassification as it is exported."""
    transformers = pytest.importorskip("transformers")
    monkeypatch.setattr(token_classification, "has_graph_packages", lambda: False)
    write_family(transformers, family, tmp_path / "weights")
    backbone = {"name": "bert", "weights": str(tmp_path / "weights"), "max_length": 16}
    told = export(make_run(tmp_path / "run", backbone=backbone), "token-classification")
    config = json.loads((Path(told["folder"]) / "config.json").read_text())
    assert config["architectures"][0].endswith("ForTokenClassification") and told["differences"]["who"] < 1e-5


def test_a_task_with_adapters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_classification, "has_graph_packages", lambda: False)
    told = export(make_run(tmp_path, adapters={"rank": 2}), "token-classification")
    assert told["differences"]["who"] < 1e-5


def test_what_has_no_such_model_is_refused_in_one_line(run: Path, tmp_path: Path, capsys: Capture) -> None:
    told = call("export", str(run), "--format", "token-classification", "--task", "kind", cwd=tmp_path, capsys=capsys)
    assert_refused(told, 2, "--task", "'kind' has one answer for a text, and none for each word; use another format")
    for form in ("transformers", "onnx"):
        told = call("export", str(run), "--format", form, "--out", "x", cwd=tmp_path, capsys=capsys)
        assert_refused(told, 5, "'who' has a head that takes whole sequences, WordHead, which cannot be exported")
        assert "use --format token-classification" in told.err
    assert not (tmp_path / "x").exists()


def test_an_objective_of_other_answers_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mtmeta.plugins.tasks.tagging import TaggingTask, Tags

    class Least(Tags):
        def decode(self, outputs: torch.Tensor) -> torch.Tensor:
            return outputs.argmin(dim=-1)

    class Contrary(TaggingTask):
        """Tags by the least output."""

        name = "contrary"

        @property
        def objective(self) -> Tags:
            return Least(("O", "B-PER", "I-PER", "B-LOC", "I-LOC"))

    monkeypatch.setattr(token_classification, "has_graph_packages", lambda: False)
    folder = tmp_path / "data"
    blocks = "word O\ngood B-PER\n\n" * 8
    recipe = json.loads(quick_beside(folder, "who", WHO, dict.fromkeys(("train", "dev"), blocks), ".conll").read_text())
    recipe["tasks"] = {"who": {**recipe["tasks"]["who"], "task": "contrary"}}
    recipe["training"]["steps"] = 1
    mtmeta.run(recipe, out=tmp_path / "run", device="cpu", plugins=[Contrary])
    with pytest.raises(MtmetaError, match="does not go by the greatest logit of each word"):
        export(tmp_path / "run", "token-classification", plugins=[Contrary])
    assert not (tmp_path / "run" / "export").exists() or not list((tmp_path / "run" / "export").iterdir())
