"""Multi-label tasks: loss, thresholds and metrics by hand and by scikit-learn, and a run from file to export."""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score, label_ranking_average_precision_score
from torch import Tensor, nn

import mtmeta
from mtmeta.core.api.batch import Packed
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack_chunk
from mtmeta.core.data.subsets import rows_by_class
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.studies.adapt import fewer_rows
from mtmeta.core.studies.comparison import read_with_scores
from mtmeta.core.training.model import MultiTaskModel, mean_pool
from mtmeta.core.training.statistics import on_resamples
from mtmeta.plugins import label_set_metrics as metrics
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.metrics import macro_f1, macro_f1s
from mtmeta.plugins.tasks.multi_label import MultiLabel, MultiLabelTask, best_threshold
from mtmeta.testing import check_task
from tests.core.export.test_export import answers_of_export
from tests.support.commands import call
from tests.support.quick import assert_adapts, killed_before_step, outcome, quick, quick_beside, read_table

NAMES = ("joy", "fear", "love")
WORDS = {"joy": "happy", "fear": "afraid", "love": "dear"}


# ------------------------------------------------------------------------------------------------- loss and thresholds


def test_the_loss_is_the_mean_over_labels_of_binary_cross_entropy() -> None:
    outputs = torch.tensor([[0.3, -2.0, 1.5], [4.0, 0.0, -0.5]])
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
    by_hand = 0.0
    for row, has in zip(outputs.tolist(), labels.tolist(), strict=True):
        for logit, one in zip(row, has, strict=True):
            p = 1 / (1 + math.exp(-logit))
            by_hand -= math.log(p if one else 1 - p) / 6
    assert float(MultiLabel(NAMES).loss(outputs, labels)) == pytest.approx(by_hand, rel=1e-6)
    for bad in (outputs[:, :2], outputs[:1], outputs[:, 0]):
        with pytest.raises(ValueError, match=r"the loss needs \[2, 3\] of both"):
            MultiLabel(NAMES).loss(bad, labels)


def all_thresholds(scores: Tensor) -> list[float]:
    """One threshold of every kind: below all, and half way between any two neighbours, and 0."""
    known = sorted(set(scores.tolist()))
    between = [(a + b) / 2 for a, b in itertools.pairwise(known)]
    return [known[0] - 1, *between, 0.0]


@pytest.mark.parametrize("seed", range(12))
def test_no_threshold_has_a_better_f1(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = 3 + 4 * seed
    scores = torch.randn(count, generator=generator)
    if seed % 3 == 0:
        scores = (scores * 2).round() / 2  # ties
    labels = (torch.rand(count, generator=generator) < 0.3).float()
    labels[0] = 1.0

    def f1(threshold: float) -> float:
        chosen = (scores > threshold).float()
        return float(2 * (labels * chosen).sum() / (labels.sum() + chosen.sum()))

    found = best_threshold(scores, labels)
    assert found.dtype == torch.float32
    best = max(map(f1, all_thresholds(scores)))
    assert f1(float(found)) == pytest.approx(best, rel=1e-6)
    others = [each for each in all_thresholds(scores) if f1(each) == pytest.approx(best, rel=1e-6)]
    assert abs(float(found)) <= min(map(abs, others)) + 1e-6


@pytest.mark.parametrize("seed", range(5))
def test_a_threshold_that_is_shared_has_the_best_micro_f1(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(20, 3, generator=generator)
    labels = (torch.rand(20, 3, generator=generator) < torch.tensor([0.6, 0.3, 0.1])).float()
    plain = MultiLabelTask(labels=NAMES, train="t", threshold="shared").objective
    assert plain.tunes and plain.decode(outputs).equal((outputs > 0).long())
    tuned = plain.tuned(plain.tune(outputs, labels))
    assert len(set(tuned.cuts)) == 1

    def micro(chosen: Tensor) -> float:
        return float(f1_score(labels.numpy(), chosen.numpy(), average="micro"))

    best = max(micro((outputs > cut).long()) for cut in all_thresholds(outputs.flatten()))
    assert micro(tuned.decode(outputs)) == pytest.approx(best, rel=1e-9)
    assert tuned.decode(outputs).equal((outputs > tuned.cuts[0]).long())
    assert plain.export() is not None and tuned.export() == {**plain.export(), "thresholds": list(tuned.cuts)}


def test_thresholds_without_a_choice() -> None:
    assert float(best_threshold(torch.tensor([3.0, -1.0]), torch.zeros(2))) == 0.0  # no example has the label
    assert float(best_threshold(torch.tensor([2.0, 1.0]), torch.ones(2))) == 0.0  # all have it, and 0 is below all
    assert float(best_threshold(torch.tensor([-2.0, -3.0]), torch.ones(2))) < -3.0
    near = torch.tensor([1.0, float(np.nextafter(np.float32(1.0), np.float32(0.0)))])  # neighbours in fp32
    threshold = best_threshold(near, torch.tensor([1.0, 0.0]))
    assert (near > threshold).tolist() == [True, False]


def test_numbers_that_were_tuned_decide() -> None:
    outputs = torch.tensor([[0.3, -2.0, 1.5], [4.0, 0.0, -0.5]])
    plain, fixed = MultiLabel(NAMES), MultiLabel(NAMES, threshold=0.8)
    assert plain.decode(outputs).tolist() == [[1, 0, 1], [1, 0, 0]]
    assert fixed.decode(outputs).tolist() == [[0, 0, 1], [1, 0, 0]]  # the logit of .8 is 1.386
    assert plain.tunes and not fixed.tunes
    labels = torch.tensor([[0.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    tuned = plain.tuned(plain.tune(outputs, labels))
    assert tuned.decode(outputs).tolist() == [[0, 1, 1], [1, 1, 1]]
    assert tuned.loss(outputs, labels).equal(plain.loss(outputs, labels))


# ------------------------------------------------------------------------------------------------------------ metrics


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_those_of_scikit_learn(seed: int) -> None:
    generator = np.random.default_rng(seed)
    labels = (generator.random((60, 7)) < 0.3).astype(float)
    scores = generator.normal(size=(60, 7)).round(1 if seed % 2 else 9)  # with ties
    values = (scores > 0.2).astype(float)
    assert metrics.micro_f1(labels, values) == pytest.approx(f1_score(labels, values, average="micro"), rel=1e-12)
    assert macro_f1(labels, values) == pytest.approx(f1_score(labels, values, average="macro"), rel=1e-12)
    ranked = metrics.label_ranking_ap(labels, values, scores=scores)
    assert ranked == pytest.approx(label_ranking_average_precision_score(labels, scores), rel=1e-12)


def test_a_label_that_no_example_has_is_left_out_and_told() -> None:
    labels, values = np.array([[1.0, 0.0], [1.0, 0.0]]), np.array([[1.0, 1.0], [0.0, 0.0]])
    with pytest.warns(UserWarning, match="1 of 2 labels have no example and do not count"):
        assert macro_f1(labels, values) == pytest.approx(2 / 3)
    assert metrics.micro_f1(0 * labels, 0 * values) == 0.0


@pytest.mark.parametrize("name", ["micro_f1", "macro_f1", "label_ranking_ap"])
def test_resamples_at_once_are_the_metric_of_each(name: str) -> None:
    generator = np.random.default_rng(3)
    labels = (generator.random((40, 4)) < 0.3).astype(float)
    scores = generator.normal(size=(40, 4))
    values = (scores > 0).astype(float)
    drawn = [generator.integers(0, 40, 40) for _ in range(20)]
    counts = np.stack([np.bincount(at, minlength=40) for at in drawn]).astype(float)
    known = [*metrics.register(), mtmeta.Metric("macro_f1", macro_f1, resampled=macro_f1s)]
    metric = next(each for each in known if each.name == name)
    assert metric.resampled is not None
    seen = metric.seen({"scores": scores})
    found = metric.resampled(labels, values, counts, **seen)
    wanted = [metric(labels[at], values[at], scores=scores[at]) for at in drawn]
    assert found == pytest.approx(wanted, rel=1e-12)


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("label", ["joy,love", " love , joy", ["love", "joy"], ("joy", "love")])
def test_labels_as_files_write_them(label: object) -> None:
    assert MultiLabel(NAMES).parse(label) == (1, 0, 1)
    assert MultiLabel(NAMES).show(MultiLabel(NAMES).parse(label)) == "joy,love"


def test_numbers_and_other_separators() -> None:
    assert MultiLabel(4).parse("3,0") == MultiLabel(4, " ").parse("0 3") == MultiLabel(4).parse([0, 3]) == (1, 0, 0, 1)
    assert MultiLabel(NAMES).parse("") == (0, 0, 0)
    with pytest.raises(ValueError, match="label 'joys' is not one of joy, fear, love; did you mean 'joy'"):
        MultiLabel(NAMES).parse("love,joys")


def rows_of(path: Path, **options: Any) -> list[tuple[str, Any]]:
    task = MultiLabelTask(labels=NAMES, train=str(path), **options)
    return [(example.text, example.label) for example in task.read(mtmeta.DataFile(path))]


def test_files_of_three_kinds(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"sentence": "x", "labels": ["joy", "love"]}\n{"sentence": "y", "labels": []}\n')
    assert rows_of(tmp_path / "a.jsonl") == [("x", ("joy", "love")), ("y", None)]
    assert rows_of(tmp_path / "a.jsonl", empty=True)[1] == ("y", ())
    (tmp_path / "b.csv").write_text("sentence,j,f,l\nx,1,0,1.0\ny,0,0,False\nz,2,0,0\n")
    flags = rows_of(tmp_path / "b.csv", label=("j", "f", "l"))
    assert flags == [("x", ("joy", "love")), ("y", ()), ("z", ("j=2",))]
    (tmp_path / "c.csv").write_text('sentence,labels\nx,"joy,love"\ny,\n')
    assert rows_of(tmp_path / "c.csv") == [("x", "joy,love"), ("y", None)]


def test_numbers_get_the_names_of_a_file(tmp_path: Path) -> None:
    """As GoEmotions is published: no header, numbers with commas, quotes that are text, a file of names."""
    (tmp_path / "t.tsv").write_text('so "glad\t0\tx1\noh\t2,0\tx2\nno\t1\tx3\n')
    (tmp_path / "names.txt").write_text("joy\nfear\nlove\n")
    dialect = {"header": False, "quoting": "none", "id": "2"}
    task = {
        "task": "multi_label",
        "text": "0",
        "label": "1",
        "labels": "names.txt",
        "train": "t.tsv",
        "dialect": dialect,
    }
    path = quick(tmp_path)
    recipe = json.loads(path.read_text()) | {"tasks": {"feel": {**task, "dev": "t.tsv", "batch_size": 2}}}
    path.write_text(json.dumps(recipe))
    found = load_recipe(path, build_registry()).tasks["feel"]
    assert found.objective.classes == NAMES
    file = mtmeta.DataFile(tmp_path / "t.tsv", found.dialect or mtmeta.Dialect())
    rows = [(example.id, example.text, found.objective.parse(example.label)) for example in found.read(file)]
    assert rows == [("x1", 'so "glad', (1, 0, 0)), ("x2", "oh", (1, 0, 1)), ("x3", "no", (0, 1, 0))]
    assert found.objective.show((1, 0, 1)) == "joy,love"
    assert found.objective.parse("love, 1") == (0, 1, 1)


def test_bad_rows_are_named(tmp_path: Path) -> None:
    task = MultiLabelTask(labels=NAMES, train="t")
    backbone = Bert(weights="tiny", max_length=16).load(1)
    examples = [mtmeta.Example("a", label=None, line=2), mtmeta.Example("b", label=("j=2",), line=3)]
    with pytest.raises(mtmeta.DataError, match=r":2: label is empty \(2 such lines: 2, 3\)"):
        from_examples("t", task, "train", examples, backbone)
    with pytest.raises(mtmeta.DataError, match=r":3: label 'j=2' is not one of joy, fear, love"):
        from_examples("t", task, "train", examples[1:], backbone)


def test_rare_labels_decide_where_an_example_counts() -> None:
    """What is carved, or drawn as a few shots, has its share of every label."""
    examples = [mtmeta.Example(f"text {i}", label=("joy", "fear") if i < 4 else ("joy",), id=str(i)) for i in range(20)]
    examples.append(mtmeta.Example("none", label=(), id="none"))
    backbone = Bert(weights="tiny", max_length=16).load(1)
    data = from_examples("t", MultiLabelTask(labels=NAMES, train="t"), "train", examples, backbone)
    assert data.of_label.tolist() == [1.0] * 4 + [0.0] * 16 + [3.0]
    # of a draw it is told which labels have fewer rows, and rarest in it may be others than in the file
    assert rows_by_class(data) == {0: 20, 1: 4, 2: 0}
    assert fewer_rows(data, 5, NAMES) == {"fear": 4, "love": 0}


def test_options_that_do_not_fit() -> None:
    def problems(**options: Any) -> list[tuple[str, str]]:
        return list(MultiLabelTask(train="t", **{"labels": NAMES, **options}).check())

    assert problems() == []
    assert problems(labels=("a", "a")) == [("labels", "name 'a' twice; each class has one name")]
    assert problems(label=("a", "b"))[0][0] == "label"
    assert problems(labels=("a,b", "c"))[0][0] == "separator"
    assert problems(labels={"0": "a", "1": "b"}) == []
    assert problems(labels={"0,1": "a", "1": "b"})[0] == ("separator", "',' stands within label '0,1'; choose another")
    assert problems(labels={"0": "a", "1": "a"})[0][0] == "labels"


def test_the_contract_of_a_task() -> None:
    rows = [
        {"sentence": "happy and dear", "labels": "joy,love"},
        {"sentence": "afraid", "labels": "fear"},
        {"sentence": "a man", "labels": "joy"},
    ]
    check_task(MultiLabelTask, rows, labels=NAMES)


# ---------------------------------------------------------------------------------------------------------- whole runs


def recipe_of(folder: Path) -> Path:
    """A recipe of a multi-label task and a task with two classes."""
    generator, files = random.Random(4), {}
    for split, count in (("train", 40), ("dev", 24), ("test", 12)):
        lines = []
        for i in range(count):
            chosen = [name for name in NAMES if generator.random() < 0.5] or ["joy"]
            lines.append(f"{i}\tsome {' '.join(WORDS[name] for name in chosen)} {i}\t{','.join(chosen)}\n")
        files[split] = "id\tsentence\tlabels\n" + "".join(lines)
    return quick_beside(folder, "feel", {"task": "multi_label", "labels": list(NAMES)}, files)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("multi")
    mtmeta.run(recipe_of(folder), out=folder / "run", device="cpu")
    return folder / "run"


def raw_outputs(run: Path, texts: list[str]) -> Tensor:
    """The logits, by the packed model."""
    predictor = mtmeta.load(run, device="cpu")
    predictor.predict("feel", texts[:1])
    model, backbone = predictor._models["feel"]
    task = predictor.task("feel")
    data = from_examples("feel", task, "dev", [mtmeta.Example(text, label=("joy",)) for text in texts], backbone)
    with torch.inference_mode():
        outputs: Tensor = model.eval()("feel", pack_chunk(data, np.arange(len(texts))).packed)
        return outputs


def test_thresholds_of_dev_are_kept_with_the_best_weights(run: Path) -> None:
    rows = read_table(run.parent / "feel-dev.tsv")
    objective = MultiLabel(NAMES)
    labels = torch.tensor([objective.parse(row["labels"]) for row in rows]).float()
    outputs = raw_outputs(run, [row["sentence"] for row in rows])
    wanted = torch.stack([best_threshold(outputs[:, at], labels[:, at]) for at in range(3)])

    from safetensors.torch import load_file

    kept = load_file(run / "checkpoints" / "best" / "model.safetensors")
    assert kept["tuned.feel.thresholds"].tolist() == pytest.approx(wanted.tolist(), abs=1e-5)
    assert [name for name in kept if name.startswith("tuned.")] == ["tuned.feel.thresholds"]

    written = read_table(run / "predictions" / "feel-dev.csv")
    predicted = (outputs > kept["tuned.feel.thresholds"]).long()
    assert [row["prediction"] for row in written] == [objective.show(row) for row in predicted.tolist()]
    scores = np.array([row["scores"].split() for row in written], dtype=float)
    assert scores == pytest.approx(outputs.numpy(), abs=1e-5)
    score = json.loads((run / "summary.json").read_text())["tasks"]["feel"]
    assert score["value"] == pytest.approx(f1_score(labels, predicted, average="micro"), rel=1e-12)
    ranked = label_ranking_average_precision_score(labels, outputs)
    assert score["others"]["label_ranking_ap"] == pytest.approx(ranked, rel=1e-6)


def test_eval_predict_and_report_go_by_them(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    summary = json.loads((run / "summary.json").read_text())
    again = mtmeta.evaluate(run, split="dev", device="cpu")
    assert again.tasks["feel"]["value"] == summary["tasks"]["feel"]["value"]
    done = call("eval", str(run), "--split", "dev", "--task", "feel", "--verbose", cwd=run.parent, capsys=capsys)
    assert done.code == 0 and "labelled" in done.out and "cut" in done.out
    rows = read_table(run / "predictions" / "feel-dev.csv")

    done = call(
        "predict",
        str(run),
        "--task",
        "feel",
        "--input",
        str(run.parent / "feel-dev.tsv"),
        cwd=run.parent,
        capsys=capsys,
    )
    found = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0 and [row["label"] for row in found] == [row["prediction"] for row in rows]
    assert list(found[0]) == ["id", "label", *(f"probability_{name}" for name in NAMES)]
    texts = [row["sentence"] for row in read_table(run.parent / "feel-dev.tsv")]
    in_python = mtmeta.load(run, device="cpu").predict("feel", texts)
    assert [",".join(each.labels or ()) for each in in_python] == [row["prediction"] for row in rows]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    arguments = ("predict", str(run), "--task", "feel", "--input", str(tmp_path / "t.txt"), "--format", "jsonl")
    done = call(*arguments, cwd=run.parent, capsys=capsys)
    assert done.code == 0 and [json.loads(line)["labels"] for line in done.out.splitlines()] == [
        list(each.labels or ()) for each in in_python
    ]
    done = call("report", str(run), "--out", str(tmp_path / "r.html"), cwd=run.parent, capsys=capsys)
    assert done.code == 0 and not done.err
    assert "labels, by how often each was given and predicted" in (tmp_path / "r.html").read_text()


def test_validate_tells_of_label_sets(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    done = call("validate", "--data", str(run.parent / "quick.yaml"), cwd=run.parent, capsys=capsys)
    rows = [row["labels"].split(",") for row in read_table(run.parent / "feel-train.tsv")]
    share = sum("love" in row for row in rows) / len(rows)
    assert done.code == 0
    assert f"{sum(map(len, rows)) / len(rows):.2f} a row; joy " in done.out and f"love {share:.1%}" in done.out


def test_killed_and_resumed_it_is_the_same_run(run: Path, tmp_path: Path) -> None:
    """Thresholds too, which stand with the weights."""
    recipe = recipe_of(tmp_path)
    for step in (2, 4):
        with killed_before_step(step):
            mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    whole, cut = outcome(run), outcome(tmp_path / "run")
    for name, value in whole.items():
        if name.endswith((".safetensors", ".csv")):
            assert cut[name] == value, name


def test_exports_answer_as_predict_does(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["some happy 1", "afraid and dear", "x", "happy dear afraid happy dear"]
    wanted = mtmeta.load(run, device="cpu").predict("feel", texts)
    for form in ("transformers", "onnx"):
        found = answers_of_export(run, form, "feel", texts, tmp_path / form, monkeypatch)
        assert [tuple(each["labels"]) for each in found] == [each.labels for each in wanted], form
        for one, other in zip(found, wanted, strict=True):
            assert other.probabilities is not None
            assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-4)


def test_scores_come_back_from_the_file_that_comparisons_read(run: Path) -> None:
    """Label-ranking AP as the primary metric: its intervals and differences need the logits of every run."""
    task = mtmeta.load(run, device="cpu").task("feel")
    labels, values, seen = read_with_scores(run / "predictions" / "feel-dev.csv", task, scores=True)
    score = json.loads((run / "summary.json").read_text())["tasks"]["feel"]
    assert metrics.micro_f1(labels, values) == score["value"]
    ranked = metrics.label_ranking_ap(labels, values, scores=seen["scores"])
    assert ranked == pytest.approx(score["others"]["label_ranking_ap"], rel=1e-9)
    metric = next(each for each in metrics.register() if each.name == "label_ranking_ap")
    at_once = on_resamples(labels, [values[None]], metric, 3, 20, seen=[[seen]])
    one_by_one = on_resamples(labels, [values[None]], replace(metric, resampled=None), 3, 20, seen=[[seen]])
    assert at_once[0] == pytest.approx(one_by_one[0], rel=1e-12)


def test_few_shots_of_it(run: Path, tmp_path: Path) -> None:
    """The thresholds of an adapted head are .5: there is no dev split to tune them on."""
    assert_adapts(
        run, recipe_of(tmp_path), "feel", "prototype needs a class for each text, task 'feel' has other labels"
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"metrics": ["accuracy"]}, "predicts sets of labels; use label_ranking_ap, macro_f1, micro_f1"),
        ({"threshold": 1.5}, "threshold must be"),
        ({"label": ["a"]}, "names 1 columns for 3 labels"),
    ],
)
def test_recipes_that_are_refused(change: dict[str, Any], words: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"]["feel"] |= change
    assert any(words in problem for problem in mtmeta.validate(recipe).problems), mtmeta.validate(recipe).problems


def test_what_goes_by_one_class_a_text_refuses_it(tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"] = {"feel": recipe["tasks"]["feel"]}
    (problem,) = mtmeta.validate({**recipe, "algorithm": "protonet"}).problems
    assert "protonet classifies, task 'feel' is no choice of one class" in problem
    problems = mtmeta.validate({**recipe, "teachers": {"feel": {"runs": ["t"]}}}).problems
    assert any("the objective of task 'feel' has no soft_loss" in problem for problem in problems), problems


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml", "maml", "anil", "metasgd"])
def test_every_algorithm_trains_it(algorithm: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe |= {"algorithm": {"name": algorithm, "tasks_per_step": 2}, "training": {"steps": 1}}
    finished = mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    assert 0 <= finished.tasks["feel"]["value"] <= 1


# -------------------------------------------------------------------------------------- what plugins may bring besides


class MeanOfSequence(nn.Module):
    """A head that takes hidden states and pools them itself."""

    takes = "sequence"

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor, packed: Packed) -> Tensor:
        outputs: Tensor = self.inner(mean_pool(hidden, packed)[:, None])
        return outputs


def test_a_head_of_sequences_that_pools_is_a_head_of_pooled_vectors() -> None:
    class Own(MultiLabelTask):
        head_takes = "sequence"

        def build_head(self, hidden_size: int) -> nn.Module:
            return MeanOfSequence(super().build_head(hidden_size))

    backbone = Bert(weights="tiny", max_length=16, dropout=0.0).load(1)
    plain, own = MultiLabelTask(labels=NAMES, train="t"), Own(labels=NAMES, train="t")
    examples = [mtmeta.Example("happy " * (1 + i % 4), label=("joy",)) for i in range(6)]
    packed = pack_chunk(from_examples("t", plain, "train", examples, backbone), np.arange(6)).packed
    one, other = (MultiTaskModel(backbone.encoder, {"t": task}, 3) for task in (plain, own))
    assert one("t", packed).equal(other("t", packed))
    assert (one.takes("t"), other.takes("t")) == ("pooled", "sequence")
    other.heads["t"].takes = "words"  # type: ignore[assignment]
    with pytest.raises(mtmeta.PluginError, match="takes 'words', expected 'pooled' or 'sequence'"):
        other("t", packed)


def test_an_algorithm_of_pooled_vectors_refuses_it(tmp_path: Path) -> None:
    class Whole(MultiLabelTask):
        """A head that takes sequences."""

        name = "whole"
        head_takes = "sequence"

        def build_head(self, hidden_size: int) -> nn.Module:
            return MeanOfSequence(super().build_head(hidden_size))

    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"]["feel"]["task"] = "whole"
    whole = mtmeta.run(recipe, out=tmp_path / "run", device="cpu", plugins=[Whole])
    plain = mtmeta.run(recipe_of(tmp_path / "plain"), out=tmp_path / "plain" / "run", device="cpu")
    assert whole.tasks["feel"]["loss"] == plain.tasks["feel"]["loss"]
    with pytest.raises(mtmeta.PluginError, match="a head that takes whole sequences, MeanOfSequence"):
        mtmeta.export(tmp_path / "run", "onnx", plugins=[Whole])
    anil = {**recipe, "algorithm": "anil", "name": "anil"}
    with pytest.raises(mtmeta.RecipeError, match=r"tasks\.feel: has a head that takes whole sequences"):
        mtmeta.run(anil, out=tmp_path / "anil", device="cpu", plugins=[Whole])
    (problem,) = mtmeta.validate(anil, plugins=[Whole]).problems
    assert problem.endswith("goes by pooled vectors; leave the task out, or take reptile, fomaml or joint")


def test_a_head_that_takes_what_its_task_does_not_say_is_refused(tmp_path: Path) -> None:
    class Quiet(MultiLabelTask):
        """A head that takes sequences, and nobody is told."""

        name = "quiet"

        def build_head(self, hidden_size: int) -> nn.Module:
            return MeanOfSequence(super().build_head(hidden_size))

    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"]["feel"]["task"] = "quiet"
    with pytest.raises(mtmeta.PluginError, match="'feel' takes 'sequence' and its head_takes is 'pooled'; both are to"):
        mtmeta.run(recipe, out=tmp_path / "run", device="cpu", plugins=[Quiet])


def test_metrics_may_see_scores_ids_and_classes(tmp_path: Path) -> None:
    seen: dict[str, Any] = {}

    def watcher(labels: Any, predictions: Any, *, scores: Any, ids: Any, classes: Any) -> float:
        if len(ids) == len(set(ids)):  # not a resample
            seen.update(labels=labels, scores=scores, ids=list(ids), classes=classes)
        return 0.5

    metric = mtmeta.Metric("watcher", watcher, needs=("classes", "label_sets"), takes=("scores", "ids", "classes"))
    recipe = json.loads(recipe_of(tmp_path).read_text())
    for task in recipe["tasks"].values():
        task["metrics"] = ["watcher"]
    recipe["tasks"] = {"kind": recipe["tasks"]["kind"], "feel": recipe["tasks"]["feel"]}
    recipe["evaluation"] = {}
    mtmeta.run(recipe, out=tmp_path / "run", device="cpu", plugins=[metric])
    assert seen["scores"].shape == seen["labels"].shape == (24, 3)
    assert seen["ids"] == [str(i) for i in range(24)] and seen["classes"] == NAMES


def test_an_export_that_is_not_what_the_objective_does_is_refused(tmp_path: Path) -> None:
    class Lying(MultiLabel):
        def export(self) -> Any:
            return {**super().export(), "thresholds": [9.0, 9.0, 9.0]}

    class Liar(MultiLabelTask):
        """Exports other thresholds than it has."""

        name = "liar"

        @property
        def objective(self) -> MultiLabel:
            return Lying(super().objective.labels, self.separator)

    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"]["feel"]["task"] = "liar"
    recipe["training"]["steps"] = 1
    mtmeta.run(recipe, out=tmp_path / "run", device="cpu", plugins=[Liar])
    with pytest.raises(mtmeta.PluginError, match="the export of task 'feel' gives other answers than its objective"):
        mtmeta.export(tmp_path / "run", "transformers", tasks=["feel"], plugins=[Liar])
