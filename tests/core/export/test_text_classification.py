"""`mtmeta export --format text-classification`: what AutoModelForSequenceClassification and pipeline() load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtmeta
from benchmarks import export as benchmark
from mtmeta.core.export import text_classification
from mtmeta.core.export.export import export
from mtmeta.core.export.int8 import SCHEMES
from mtmeta.core.export.onnx_graphs import run_graph
from tests.core.export.test_export import TEXTS, front_matter, run_card
from tests.support.commands import assert_refused, call
from tests.support.families import write_family
from tests.support.quick import quick

Capture = pytest.CaptureFixture[str]
PAIRS = [("good plot", "a film"), ("why", "nobody knows why"), ("bad , never good", "good"), ("a", "a")]  # not cut
SAME = {"task": "para", "train": "pairs.tsv", "dev": "pairs.tsv", "batch_size": 4, "pair_mode": "cross"}
NEAR = {**SAME, "task": "similarity", "label": "is_duplicate", "high": 3}


def make_run(
    folder: Path, heads: tuple[str, ...], tasks: dict[str, Any], algorithm: str = "joint", **more: Any
) -> Path:
    """A short run of the two quick tasks and `tasks`, of which those named have the head of transformers."""
    training = {"steps": 2, "precision": "fp32"}
    recipe = json.loads(quick(folder, algorithm, training=training, **more).read_text())
    rows = "".join(f"{i}\tword {i}\tword {i + i % 2}\t{1 - i % 2}\n" for i in range(12))
    (folder / "pairs.tsv").write_text("id\tsentence1\tsentence2\tis_duplicate\n" + rows)
    recipe["tasks"] |= tasks
    for name in heads:
        recipe["tasks"][name] = recipe["tasks"][name] | {"head": "hf"}
    (folder / "r.yaml").write_text(json.dumps(recipe))
    mtmeta.run(folder / "r.yaml", out=folder / "run", device="cpu")
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with every kind of head of transformers, and one of our own."""
    return make_run(tmp_path_factory.mktemp("heads"), ("kind", "same", "near"), {"same": SAME, "near": NEAR})


@pytest.fixture(scope="module")
def exported(run: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All tasks, without graphs, which take seconds each."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_classification, "has_graph_packages", lambda: False)
        return export(run, "text-classification", out=tmp_path_factory.mktemp("out") / "plain")


@pytest.fixture(scope="module")
def graphs(run: Path) -> dict[str, Any]:
    """One task with its graphs, in fp32 and int8; it lies in no folder of its own."""
    said: list[str] = []
    return {**export(run, "text-classification", tasks=["kind"], int8="row", say=said.append), "said": said}


def texts_of(run: Path, names: list[str]) -> dict[str, list[Any]]:
    predictor = mtmeta.load(run, device="cpu")
    return {name: TEXTS if predictor.task(name).inputs == "single" else PAIRS for name in names}


def test_logits_and_pipeline_are_those_of_predict(run: Path, exported: dict[str, Any]) -> None:
    """Of classes, two classes, and numbers; by AutoModel and pipeline(), with texts that are cut."""
    assert exported["tasks"] == ["kind", "same", "near"]
    texts = texts_of(run, exported["tasks"])
    found = benchmark.differences(run, "text-classification", Path(exported["folder"]), texts)
    assert all(figures["cut"] == 0 for figures in found.values())
    assert max(max(figures["outputs"], figures["answers"]) for figures in found.values()) < 1e-5


def test_graphs_predict_what_mtmeta_predicts(run: Path, graphs: dict[str, Any]) -> None:
    found = benchmark.differences(run, "text-classification", Path(graphs["folder"]), texts_of(run, ["kind"]))
    assert found["kind"]["onnx"] < 1e-5 < found["kind"]["int8"] < 0.1


def test_a_pair_without_segments_has_those_of_its_ids(run: Path, tmp_path: Path) -> None:
    """As transformers.js asks: zeros for segments. Of single texts zeros are what they have."""
    export(run, "text-classification", tasks=["same"], out=tmp_path / "out")
    graph = (tmp_path / "out/onnx/model.onnx").read_bytes()
    ids = np.array([[2, 9, 3, 30, 8, 3], [2, 9, 7, 3, 8, 3], [2, 40, 3, 41, 3, 0]])
    mask, types = (ids > 0).astype(np.int64), np.array([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 1, 1], [0, 0, 0, 1, 1, 0]])
    given, found, other = (run_graph(graph, [[ids, mask, kind]])[0][0] for kind in (types, types * 0, mask))
    assert np.array_equal(given, found) and np.abs(given - other).max() > 1e-4


def test_config_names_the_labels(exported: dict[str, Any]) -> None:
    configs = {
        name: json.loads((Path(exported["folder"]) / name / "config.json").read_text()) for name in exported["tasks"]
    }
    kind, near = configs["kind"], configs["near"]
    assert kind["architectures"] == ["BertForSequenceClassification"]
    assert kind["id2label"] == {"0": "no", "1": "yes"} and kind["label2id"] == {"no": 0, "yes": 1}
    assert kind["problem_type"] == "single_label_classification"
    assert near["id2label"] == {"0": "near"} and near["problem_type"] == "regression"
    assert configs["same"]["id2label"] == {"0": "0", "1": "1"}  # one logit in the run, two here


def test_int8_by_row_does_not_depend_on_batch_mates(graphs: dict[str, Any]) -> None:
    """Each text alone and beside a much larger one: the same logits, where one scale a batch gives others."""
    folder = Path(graphs["folder"])
    whole = (folder / "onnx/model.onnx").read_bytes()
    ids = np.array([[2, 9, 3], [2, 40, 3]])
    rest = [np.ones_like(ids), np.zeros_like(ids)]
    moved = {}
    for scheme, quantise in SCHEMES.items():
        data = quantise(whole)
        both, one, two = (
            part[0] for part in run_graph(data, [[a[at] for a in (ids, *rest)] for at in (slice(2), [0], [1])])
        )
        moved[scheme] = float(np.abs(both - np.concatenate([one, two])).max())
        assert len(data) < 0.6 * len(whole)
    assert moved["row"] == 0 < moved["batch"]


def test_what_int8_costs_is_measured(graphs: dict[str, Any]) -> None:
    loss = graphs["int8"]["kind"]
    assert (loss["scheme"], loss["split"], loss["metric"], loss["examples"]) == ("row", "dev", "accuracy", 12)
    assert loss["changed_by_mates"] == 0 and loss["moved_by_mates"] < 1e-6 < loss["moved"]
    folder = Path(graphs["folder"])
    card = (folder / "README.md").read_text()
    assert f"| int8, batches of 32 | {loss['batches']:.4f} |" in card and "a scale for each token" in card
    assert json.loads((folder / "export.json").read_text())["int8"]["kind"] == loss
    said = f"kind: int8 has accuracy {loss['batches']:.4f} on dev, the run {loss['run']:.4f}; {loss['changed']} of 12"
    assert said in " ".join(graphs["said"])


def test_the_cards_code_runs(
    exported: dict[str, Any], graphs: dict[str, Any], tmp_path: Path, monkeypatch: Any, capsys: Capture
) -> None:
    for folder in (Path(graphs["folder"]), Path(exported["folder"]) / "same"):
        (first, *_) = run_card(folder, monkeypatch, capsys, tmp_path)
        assert "'label': " in first and "'score': " in first
        assert front_matter(folder)["pipeline_tag"] == "text-classification"


@pytest.mark.parametrize("form", ["transformers", pytest.param("onnx", marks=pytest.mark.slow)])
def test_heads_of_transformers_in_the_other_formats(form: str, run: Path, tmp_path: Path) -> None:
    """modeling.py and the graph of format onnx take the first token, too."""
    texts = texts_of(run, ["near", "grade"])
    export(run, form, tasks=list(texts), out=tmp_path / form)
    found = benchmark.differences(run, form, tmp_path / form, texts)
    assert max(value for of_task in found.values() for value in of_task.values()) < 1e-5


@pytest.mark.parametrize(
    ("family", "backbone", "kind"),
    [
        pytest.param("distilbert", "bert", "DistilBert", marks=pytest.mark.slow),  # with a graph
        ("electra", "bert", "Electra"),
        ("roberta", "bert", "Roberta"),
        ("xlm-roberta", "bert", "XLMRoberta"),
        ("roberta", "hf", "Roberta"),
    ],
)
def test_families(family: str, backbone: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class of each family, with its own activation; its graph takes segments only where the tokenizer has them."""
    import transformers

    write_family(transformers, family, tmp_path / "weights")
    parts = {"name": backbone, "weights": str(tmp_path / "weights"), "max_length": 24}
    run = make_run(tmp_path, ("same",), {"same": SAME}, backbone=parts)
    if family != "distilbert":
        monkeypatch.setattr(text_classification, "has_graph_packages", lambda: False)
    document = export(run, "text-classification", tasks=["same"], out=tmp_path / "out")
    model = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert type(model).__name__ == f"{kind}ForSequenceClassification"
    found = benchmark.differences(run, "text-classification", tmp_path / "out", texts_of(run, document["tasks"]))
    assert max(value for figures in found.values() for value in figures.values()) < 1e-5


def test_a_head_is_trained_and_drawn_as_any_other(tmp_path: Path) -> None:
    """Reptile, killed nowhere: the head moves, and its pooling is the first token's hidden state by hand."""
    run = make_run(tmp_path, ("kind",), {}, algorithm="reptile")
    predictor = mtmeta.load(run, device="cpu")
    model, _ = predictor._model("kind")
    head: Any = model.heads["kind"]
    vector = torch.randn(3, 1, model.hidden_size)
    by_hand = torch.tanh(vector[:, 0] @ head.dense.weight.T + head.dense.bias) @ head.out.weight.T + head.out.bias
    torch.testing.assert_close(head(vector), by_hand)


# ------------------------------------------------------------------------------------------------------------ refusals


def test_what_has_no_such_head_is_refused(run: Path, tmp_path: Path, monkeypatch: Any, capsys: Capture) -> None:
    outcome = call(
        "export", str(run), "--format", "text-classification", "--task", "grade", cwd=tmp_path, capsys=capsys
    )
    assert_refused(outcome, 2, "--task", "AutoModelForSequenceClassification has not", "head: hf")
    outcome = call("export", str(run), "--format", "onnx", "--int8", "row", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "--int8", "text-classification")
    outcome = call("export", str(run), "--format", "text-classification", "--int8", "rows", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "--int8", "did you mean 'row'")


def test_pairs_in_both_orders_are_refused(tmp_path: Path) -> None:
    """AutoModelForSequenceClassification reads one sequence; the other formats have the mean of both."""
    run = make_run(tmp_path, ("same",), {"same": {**SAME, "orders": "both"}}, "individual")
    with pytest.raises(mtmeta.UsageError, match=r"task 'same': answers by the mean over both orders of a pair"):
        export(run, "text-classification", tasks=["same"])
    predictor = mtmeta.load(run, device="cpu")
    straight, turned = (predictor.predict("same", pairs) for pairs in (PAIRS, [(b, a) for a, b in PAIRS]))
    for one, other in zip(straight, turned, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)


def test_recipes_that_cannot_have_the_head(tmp_path: Path, capsys: Capture) -> None:
    recipe = json.loads(quick(tmp_path, "joint").read_text())
    recipe["tasks"]["same"] = {**SAME, "pair_mode": "separate", "head": "hf"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert_refused(call("validate", "r.yaml", cwd=tmp_path, capsys=capsys), 2, "tasks.same.head", "pair_mode: cross")


def test_labels_of_words_have_no_such_head(tmp_path: Path, capsys: Capture) -> None:
    recipe = json.loads(quick(tmp_path, "joint").read_text())
    recipe["tasks"]["tags"] = {"task": "tagging", "labels": ["X"], "train": "x", "dev": "x", "head": "hf"}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    assert_refused(call("validate", "r.yaml", cwd=tmp_path, capsys=capsys), 2, "tasks.tags.head", "each word")


def test_an_encoder_of_another_family(tmp_path: Path, capsys: Capture) -> None:
    import transformers

    write_family(transformers, "mpnet", tmp_path / "weights")
    parts = {"name": "hf", "weights": str(tmp_path / "weights"), "max_length": 24}
    recipe = json.loads(quick(tmp_path, "joint", backbone=parts, training={"steps": 1}).read_text())
    recipe["tasks"]["kind"]["head"] = "hf"
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    outcome = call("run", "r.yaml", "--out", "run", cwd=tmp_path, capsys=capsys)
    assert_refused(outcome, 2, "tasks.kind.head", "DistilBERT and ELECTRA")


def test_a_head_that_an_algorithm_puts_in_its_place(tmp_path: Path, capsys: Capture) -> None:
    """Said by --dry-run, and by export."""
    algorithm = {"name": "protonet", "ways": 2, "shots": 1, "queries": 1}
    recipe = json.loads(quick(tmp_path, "joint", training={"steps": 1}).read_text())
    recipe |= {"algorithm": algorithm}
    recipe["tasks"] = {"kind": recipe["tasks"]["kind"] | {"head": "hf"}}
    (tmp_path / "r.yaml").write_text(json.dumps(recipe))
    done = call("run", "r.yaml", "--dry-run", "--probe", "0", "--json", cwd=tmp_path, capsys=capsys)
    assert list(json.loads(done.out)["not_exported"]) == ["text-classification"]
