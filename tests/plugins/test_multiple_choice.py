"""Questions with choices: loss and sequences by hand, and a run from file to export."""

from __future__ import annotations

import csv
import io
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import mtmeta
from mtmeta.core.api.heads import ChoiceHead
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack_chunk
from mtmeta.core.studies.comparison import read_predictions
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.generic import PairClassificationTask
from mtmeta.plugins.tasks.multiple_choice import Choice, MultipleChoiceTask
from mtmeta.testing import check_task
from tests.core.export.test_export import answers_of_export
from tests.support.commands import call
from tests.support.quick import assert_adapts, assert_kills_change_nothing, quick_beside, read_table

NAMES = ("a", "b", "c")
KINDS = {"fruit": ("apple", "pear", "plum"), "animal": ("dog", "cat", "cow"), "tool": ("saw", "axe", "drill")}


def task_of(**options: Any) -> MultipleChoiceTask:
    return MultipleChoiceTask(**{"train": "t", "choices": NAMES, **options})


# ------------------------------------------------------------------------------------------------- loss, head, answers


def test_the_loss_is_cross_entropy_over_the_choices_of_a_question() -> None:
    generator = np.random.default_rng(1)
    outputs, labels = generator.normal(0, 3, (6, 3)), generator.integers(0, 3, 6)
    by_hand = 0.0
    for row, label in zip(outputs.astype(np.longdouble), labels, strict=True):
        by_hand -= np.log(np.exp(row[label]) / np.exp(row).sum()) / 6
    tensors = torch.tensor(outputs), torch.tensor(labels).float()
    assert float(Choice(NAMES).loss(*tensors)) == pytest.approx(float(by_hand), rel=1e-12)
    assert float(Choice(NAMES).loss(tensors[0].float(), tensors[1])) == pytest.approx(float(by_hand), rel=1e-6)
    assert Choice(NAMES).decode(tensors[0]).tolist() == outputs.argmax(axis=1).tolist()
    with pytest.raises(ValueError, match=r"outputs have shape \[6, 2\], the loss needs \[6, 3\]"):
        Choice(NAMES).loss(torch.zeros(6, 2), tensors[1])


def test_gradients_of_head_and_loss_are_those_of_finite_differences() -> None:
    head = ChoiceHead(4).double()
    pooled = torch.randn(3, 3, 4, dtype=torch.double, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels, parameters = torch.tensor([0.0, 2.0, 1.0]), dict(head.named_parameters())

    def loss(pooled: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        named = dict(zip(parameters, values, strict=True))
        return Choice(NAMES).loss(torch.func.functional_call(head, named, (pooled,)), labels)

    assert torch.autograd.gradcheck(loss, (pooled, *parameters.values()))


def examples_of(count: int, generator: random.Random) -> list[mtmeta.Example]:
    found = []
    for number in range(count):
        kinds = generator.sample(list(KINDS), 3)
        right = generator.randrange(3)
        words = tuple(generator.choice(KINDS[kind]) for kind in kinds)
        text = f"which is {'quite surely ' * (number % 3)}a {kinds[right]} {number}"
        found.append(mtmeta.Example(text, label=NAMES[right], id=str(number), choices=words))
    return found


def test_each_choice_is_read_with_the_question_as_a_pair_in_one_sequence() -> None:
    backbone = Bert(weights="tiny", max_length=12, dropout=0.0).load(1)
    examples = examples_of(7, random.Random(3))
    task, pair = task_of(), PairClassificationTask(labels=2, train="t", pair_mode="cross")
    data = from_examples("t", task, "train", examples, backbone)
    assert len(data.stores) == 3 and data.texts.shape == (7, 4)
    model = MultiTaskModel(backbone.encoder, {"t": task, "pair": pair}, 3).eval()
    indices = np.array([4, 0, 6, 1])
    with torch.no_grad():
        pooled = model.pooled("t", pack_chunk(data, indices).packed)
        outputs = model("t", pack_chunk(data, indices).packed)
    assert pooled.shape[:2] == (4, 3) and outputs.shape == (4, 3)
    for number in range(3):
        pairs = [mtmeta.Example(each.text, each.choices[number], label="0") for each in examples]
        pairs[0] = mtmeta.Example(pairs[0].text, pairs[0].pair, label="1")
        of_pairs = from_examples("pair", pair, "train", pairs, backbone)
        store, wanted = data.stores[number], of_pairs.stores[0]
        assert store.types is not None and wanted.types is not None
        for one, other in ((store.ids, wanted.ids), (store.types, wanted.types), (store.offsets, wanted.offsets)):
            assert np.array_equal(one, other)
        with torch.no_grad():
            alone = model.pooled("pair", pack_chunk(of_pairs, indices).packed)[:, 0]
            assert torch.allclose(pooled[:, number], alone, atol=1e-5)
            head: Any = model.heads["t"]
            assert torch.allclose(outputs[:, number], head(alone[:, None])[:, 0], atol=1e-5)
    assert data.truncated == sum(int((store.full > 12).sum()) for store in data.stores if store.full is not None) > 0


def test_choices_in_another_order_have_the_same_scores_in_that_order() -> None:
    backbone = Bert(weights="tiny", max_length=16, dropout=0.0).load(1)
    examples = examples_of(5, random.Random(3))
    turned = [
        mtmeta.Example(each.text, label=each.label, choices=(each.choices[2], *each.choices[:2])) for each in examples
    ]
    model = MultiTaskModel(backbone.encoder, {"t": task_of()}, 3).eval()
    with torch.no_grad():
        one, other = (
            model("t", pack_chunk(from_examples("t", task_of(), "train", each, backbone), np.arange(5)).packed)
            for each in (examples, turned)
        )
    assert torch.allclose(one[:, [2, 0, 1]], other, atol=1e-5)


# ------------------------------------------------------------------------------------------------------------- reading


def test_labels_as_files_write_them() -> None:
    for label, wanted in (("b", 1), (" c ", 2), (0, 0), ("2", 2), ("1.0", 1)):
        assert Choice(NAMES).parse(label) == wanted
    assert [Choice(("1", "2")).parse(label) for label in ("1", 2)] == [0, 1]  # a name goes before a number
    assert Choice(NAMES).show(1) == "b"
    for bad in ("3", "d", "-1"):
        with pytest.raises(ValueError, match=f"label '{bad}' is not one of a, b, c"):
            Choice(NAMES).parse(bad)
    with pytest.raises(ValueError, match="label is empty"):
        Choice(NAMES).parse("")


def test_a_row_with_fewer_choices_is_a_bad_one(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("question,a,b,c,label\nwhich,x,y,z,0\nwho,x,y,,1\n,x,y,z,1\n")
    task = task_of(train=str(path))
    backbone = Bert(weights="tiny", max_length=16).load(1)
    examples = list(task.read(mtmeta.DataFile(path)))
    assert examples[0].texts == ("which", "x", "y", "z")
    with pytest.raises(mtmeta.DataError, match=r":3: 2 choices, the task takes 3 in every row \(2 such lines: 3, 4\)"):
        from_examples("t", task, "train", examples, backbone)


def test_the_right_choice_may_stand_in_the_same_place_always() -> None:
    backbone = Bert(weights="tiny", max_length=16).load(1)
    examples = [mtmeta.Example(f"which {n}", label="a", choices=("x", "y", "z")) for n in range(4)]
    assert from_examples("t", task_of(), "train", examples, backbone).labels.tolist() == [0.0] * 4


def test_options_that_do_not_fit() -> None:
    def problems(**options: Any) -> list[tuple[str, str]]:
        return list(task_of(**options).check())

    assert problems() == problems(labels=("1", "2", "3")) == []
    assert problems(choices=("a", "a")) == [("choices", "name 'a' twice; each choice has one name")]
    assert problems(labels=("x", "y"))[0] == ("labels", "name 2 of 3 choices; give one for each, in their order")
    assert problems(head="hf") == [("head", "cannot be hf, which answers for one sequence; leave it out")]


def test_the_contract_of_a_task() -> None:
    rows = [
        {"question": each.text, **dict(zip(NAMES, each.choices, strict=True)), "label": each.label}
        for each in examples_of(4, random.Random(1))
    ]
    check_task(MultipleChoiceTask, rows, choices=NAMES)


def test_the_sample_has_one_right_choice() -> None:
    task = task_of(choices=("one", "other"), train="sample")
    rows = list(task.sample("dev"))
    assert len(rows) > 50 and {each.label for each in rows} == {"one", "other"}
    assert len({each.texts for each in rows}) == len(rows)
    with pytest.raises(mtmeta.DataError, match="its questions have two choices"):
        list(task_of(train="sample").sample("dev"))


# ---------------------------------------------------------------------------------------------------------- whole runs


def recipe_of(folder: Path) -> Path:
    """A recipe of a task with three choices, and a task with two classes."""
    generator, files = random.Random(4), {}
    for split, count in (("train", 40), ("dev", 24), ("test", 12)):
        lines = ["\t".join((each.id, *each.texts, str(each.label))) for each in examples_of(count, generator)]
        files[split] = "\n".join(("id\tquestion\ta\tb\tc\tlabel", *lines)) + "\n"
    return quick_beside(folder, "ask", {"task": "multiple_choice", "choices": list(NAMES)}, files)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("choice")
    mtmeta.run(recipe_of(folder), out=folder / "run", device="cpu")
    return folder / "run"


def texts_of(run: Path) -> list[tuple[str, ...]]:
    return [(row["question"], *(row[name] for name in NAMES)) for row in read_table(run.parent / "ask-dev.tsv")]


def test_accuracy_is_by_question(run: Path) -> None:
    task = mtmeta.load(run, device="cpu").task("ask")
    labels, values = read_predictions(run / "predictions" / "ask-dev.csv", task)
    score = json.loads((run / "summary.json").read_text())["tasks"]["ask"]
    assert score["value"] == (labels == values).mean() and score["examples"] == 24
    rows = read_table(run.parent / "ask-dev.tsv")
    assert labels.tolist() == [NAMES.index(row["label"]) for row in rows]


def test_predict_eval_and_report_take_the_columns(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    wanted = [row["prediction"] for row in read_table(run / "predictions" / "ask-dev.csv")]
    source = str(run.parent / "ask-dev.tsv")
    done = call("predict", str(run), "--task", "ask", "--input", source, cwd=run.parent, capsys=capsys)
    found = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0 and [row["label"] for row in found] == wanted
    assert list(found[0]) == ["id", "label", "score", *(f"probability_{name}" for name in NAMES)]
    predictor = mtmeta.load(run, device="cpu")
    assert [each.label for each in predictor.predict("ask", texts_of(run))] == wanted
    alone: Any = predictor.predict("ask", texts_of(run)[3])
    assert alone.label == wanted[3]
    with pytest.raises(mtmeta.UsageError, match=r"texts\[0\]: is .*, task 'ask' takes a text and 3 choices"):
        predictor.predict("ask", [("one", "two")])
    (tmp_path / "t.txt").write_text("\n".join("\t".join(texts) for texts in texts_of(run)))
    arguments = ("predict", str(run), "--task", "ask", "--input", str(tmp_path / "t.txt"), "--format", "jsonl")
    done = call(*arguments, cwd=run.parent, capsys=capsys)
    assert done.code == 0 and [json.loads(line)["label"] for line in done.out.splitlines()] == wanted
    (tmp_path / "t.txt").write_text("one\ttwo\n")
    done = call(*arguments, cwd=run.parent, capsys=capsys)
    assert done.code == 3 and "2 fields, expected 4 with tabs between" in done.err
    done = call("report", str(run), "--out", str(tmp_path / "r.html"), cwd=run.parent, capsys=capsys)
    assert done.code == 0 and not done.err
    done = call("validate", "--data", str(run.parent / "quick.yaml"), cwd=run.parent, capsys=capsys)
    assert done.code == 0 and "cut at 16" in done.out


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
def test_choices_in_one_column_are_those_in_several(
    suffix: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same examples, to the bit of the same run, and predictions of a table without labels."""
    recipe = json.loads(recipe_of(tmp_path).read_text())
    for split in ("train", "dev", "test"):
        rows = [
            {
                "id": row["id"],
                "question": row["question"],
                "given": [row[name] for name in NAMES],
                "label": row["label"],
            }
            for row in read_table(tmp_path / f"ask-{split}.tsv")
        ]
        path = tmp_path / f"ask-{split}{suffix}"
        if suffix == ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
            parquet.write_table(arrow.Table.from_pylist(rows), path)
        recipe["tasks"]["ask"][split] = path.name
    recipe["tasks"]["ask"] |= {"choices": "given", "labels": list(NAMES)}
    if suffix == ".jsonl":
        mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
        for name in ("ask-dev.csv", "kind-dev.csv"):
            ours, other = ((folder / "predictions" / name).read_bytes() for folder in (tmp_path / "run", run))
            assert ours == other
        bare = tmp_path / "bare.jsonl"
        bare.write_text("".join(json.dumps({**row, "label": None}) + "\n" for row in rows))
        done = call(
            "predict", str(tmp_path / "run"), "--task", "ask", "--input", str(bare), cwd=tmp_path, capsys=capsys
        )
        found = [row["label"] for row in csv.DictReader(io.StringIO(done.out))]
        asked: list[Any] = [(row["question"], *row["given"]) for row in rows]
        assert found == [each.label for each in mtmeta.load(run, device="cpu").predict("ask", asked)]
        bare.write_text(json.dumps({"question": "who", "given": ["x"]}) + "\n")
        done = call(
            "predict", str(tmp_path / "run"), "--task", "ask", "--input", str(bare), cwd=tmp_path, capsys=capsys
        )
        assert done.code == 3 and "1 choice, the task takes 3 in every row" in done.err
        return
    task = task_of(choices="given", labels=NAMES)
    examples = list(task.read(mtmeta.DataFile(tmp_path / "ask-dev.parquet")))
    plain = list(task_of().read(mtmeta.DataFile(tmp_path / "ask-dev.tsv")))
    assert [(each.texts, each.label) for each in examples] == [(each.texts, each.label) for each in plain]


def test_a_list_of_choices_that_is_none(tmp_path: Path) -> None:
    task = task_of(choices="given", labels=3)
    assert task.objective.classes == ("0", "1", "2") and task.text_count == 4 and not list(task.check())
    ((option, message),) = task_of(choices="given").check()
    assert (option, message.partition(":")[0]) == ("labels", "are needed for choices in one column")
    rows = [{"question": "q", "given": given, "label": 1} for given in (["a", "b", "c"], "a", ["a", ["b"], "c"])]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = mtmeta.DataFile(tmp_path / "t.jsonl")
    assert [each.texts for each in task.read(file)] == [("q", "a", "b", "c")]
    assert [row.reason for row in file.bad] == ["field 'given' is no list of texts, as JSON and Parquet have them"] * 2


def test_killed_and_resumed_it_is_the_same_run(run: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(recipe_of(tmp_path), run, tmp_path / "run")


@pytest.mark.parametrize("form", ["transformers", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exports_answer_as_predict_does(form: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = texts_of(run)[:5]
    wanted = mtmeta.load(run, device="cpu").predict("ask", texts)
    found = answers_of_export(run, form, "ask", texts, tmp_path / form, monkeypatch)
    assert [each["label"] for each in found] == [each.label for each in wanted]
    for one, other in zip(found, wanted, strict=True):
        assert one["probabilities"] == pytest.approx(other.probabilities, abs=1e-4)


def test_a_model_for_pipeline_refuses_it(run: Path, tmp_path: Path) -> None:
    with pytest.raises(mtmeta.UsageError, match="has a head that AutoModelForSequenceClassification has not"):
        mtmeta.export(run, "text-classification", tasks=["ask"], out=tmp_path / "none")


def test_few_shots_of_it(run: Path, tmp_path: Path) -> None:
    assert_adapts(run, recipe_of(tmp_path), "ask", "prototype scores each class by itself, task 'ask' does not")


def test_protonet_refuses_it(tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"] = {"ask": recipe["tasks"]["ask"]}
    (problem,) = mtmeta.validate({**recipe, "algorithm": "protonet"}).problems
    assert "protonet classifies, task 'ask' is no choice of one class" in problem


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml", "maml", "anil", "metasgd"])
def test_every_algorithm_trains_it(algorithm: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe |= {"algorithm": {"name": algorithm, "tasks_per_step": 2}, "training": {"steps": 1}}
    finished = mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    assert 0 <= finished.tasks["ask"]["value"] <= 1
