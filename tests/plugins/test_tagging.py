"""Tagging: columns and JSON, words of several pieces, long texts, the metric of seqeval, and a run."""

from __future__ import annotations

import csv
import io
import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional

import mtmeta
from mtmeta.core.data.dataset import entries, select
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack, pack_chunk
from mtmeta.core.data.subsets import rows_by_class
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.statistics import on_resamples
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tag_metrics import entity_f1, register, spans_of, word_accuracy
from mtmeta.plugins.tasks.tagging import TaggingTask, Tags, words_of_spans
from tests.support.commands import call
from tests.support.quick import assert_adapts, assert_kills_change_nothing, quick_beside

TYPES = ("PER", "LOC")
TAGS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC")
METRICS = {metric.name: metric for metric in register()}


# ------------------------------------------------------------------------------------------------------------ metrics


def random_tags(generator: random.Random, texts: int) -> list[list[str]]:
    """Tags with every fault that BIO can have: I- after O, after another type, at the beginning."""
    return [[generator.choice(TAGS) for _ in range(generator.randint(1, 9))] for _ in range(texts)]


@pytest.mark.parametrize("seed", range(50))
def test_f1_is_that_of_seqeval(seed: int) -> None:
    from seqeval.metrics import f1_score  # type: ignore[import-untyped]
    from seqeval.metrics.sequence_labeling import get_entities  # type: ignore[import-untyped]

    generator = random.Random(seed)
    wanted = random_tags(generator, 1 + seed % 7)
    found = [[tag if generator.random() < 0.7 else generator.choice(TAGS) for tag in tags] for tags in wanted]
    for tags in (*wanted, *found):
        assert spans_of(tags) == [(kind, start, end + 1) for kind, start, end in get_entities(tags)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of no entity at all
        expected = float(f1_score(wanted, found))
    labels, values = (entries([tuple(map(TAGS.index, tags)) for tags in each]) for each in (wanted, found))
    assert entity_f1(labels, values, classes=TAGS) == pytest.approx(expected, rel=1e-12, abs=0)


@pytest.mark.parametrize("name", ["entity_f1", "word_accuracy"])
def test_resamples_at_once_are_the_metric_of_each(name: str) -> None:
    generator = random.Random(1)
    one, other = random_tags(generator, 30), random_tags(random.Random(1), 30)
    for tags in other:
        tags[0] = "B-PER"
    labels, values = (entries([tuple(map(TAGS.index, tags)) for tags in each]) for each in (one, other))
    metric = METRICS[name]
    plain = mtmeta.Metric(name, metric.function, needs="words", takes=metric.takes)
    found, wanted = (
        on_resamples(labels, [values[None]], each, 3, 20, seen=[[{"classes": TAGS}]])[0] for each in (metric, plain)
    )
    assert found == pytest.approx(wanted, rel=1e-12)
    assert len(set(found[0].tolist())) > 5


def test_accuracy_counts_words() -> None:
    labels, values = entries([(0, 1, 2), (0,)]), entries([(0, 1, 0), (0,)])
    assert word_accuracy(labels, values) == 3 / 4


# ------------------------------------------------------------------------------------------------------------- reading

CONLL = """-DOCSTART- -X- O O

EU NNP B-NP B-PER
rejects VBZ B-VP O

# NN I-NP O
Peter NNP B-NP I-PER
"""
CONLLU = """# sent_id = s-1
# text = vámonos al mar
1-2\tvámonos\t_\t_
1\tvamos\tVERB\tO
2\tnos\tPRON\tB-PER
2.1\telided\tX\tO

# newpar
1\t#\tSYM\tO
2\tmar\tNOUN\tB-LOC
"""


def read(path: Path, text: str, **options: Any) -> tuple[list[tuple[str, Any, str, int]], mtmeta.DataFile]:
    path.write_text(text)
    task = TaggingTask(train=str(path), **{"labels": TYPES, **options})
    file = mtmeta.DataFile(path)
    return [(example.text, example.label, example.id, example.line) for example in task.read(file)], file


@pytest.mark.parametrize("end", ["", "\n", "\n\n  \n"])
def test_columns_of_conll(end: str, tmp_path: Path) -> None:
    rows, _ = read(tmp_path / "a.txt", CONLL.rstrip("\n") + end)
    assert rows == [("EU rejects", ("B-PER", "O"), "3", 3), ("# Peter", ("O", "I-PER"), "6", 6)]
    rows, _ = read(tmp_path / "a.txt", CONLL, tag=1, scheme="none", labels=("NNP", "VBZ", "NN"))
    assert [row[1] for row in rows] == [("NNP", "VBZ"), ("NN", "NNP")]


def test_columns_of_conllu_and_machamp(tmp_path: Path) -> None:
    """Comments, ranges of words, and words that are not in the text are left out; the columns are by number."""
    rows, _ = read(tmp_path / "a.conllu", CONLLU, word=1, tag=3)
    assert rows == [("vamos nos", ("O", "B-PER"), "s-1", 3), ("# mar", ("O", "B-LOC"), "9", 9)]


@pytest.mark.parametrize(
    "text", ["#\tO\nParis\tB-LOC\n", "# O\nParis B-LOC\n", "# a = b\n# new text 1\n# O\nParis B-LOC"]
)
def test_a_hash_may_be_the_first_word(text: str, tmp_path: Path) -> None:
    """As in MaChAmp's reader, the last line of a text says how many columns a word has."""
    rows, _ = read(tmp_path / "a.conll", text)
    assert [row[:2] for row in rows] == [("# Paris", ("O", "B-LOC"))]


def test_columns_that_are_bad(tmp_path: Path) -> None:
    text = "a O\nb\n\nc O\nd B-XYZ\n\ne O\n"
    rows, file = read(tmp_path / "a.conll", text)
    assert [row[0] for row in rows] == ["c d", "e"]
    assert [(bad.line, bad.reason) for bad in file.bad] == [(1, "line 2 has no word and tag ('b')")]
    (tmp_path / "a.conll").write_text("a\tb c\tO\nd\te\tO\n")
    rows, file = read(tmp_path / "a.conll", "a\tb c\tO\n", word=1)
    assert rows[0][0] == "b_c" and file.notes == ["1 words have a space in them, and are read with _ in its place"]
    task = TaggingTask(labels=TYPES, train="t")
    backbone = Bert(weights="tiny", max_length=16).load(1)
    examples = [mtmeta.Example("c d", label=("O", "B-XYZ"), line=4), mtmeta.Example("c d", label=("O",), line=9)]
    with pytest.raises(mtmeta.DataError, match=r":4: label 'B-XYZ' is not one of O, B-PER"):
        from_examples("t", task, "train", examples, backbone)
    with pytest.raises(mtmeta.DataError, match=r":9: 1 label for 2 words"):
        from_examples("t", task, "train", examples[1:], backbone)


def test_json_with_tags_and_with_spans(tmp_path: Path) -> None:
    row = {"tokens": ["Anna", "slept"], "tags": ["B-PER", "O"], "id": "x"}
    rows, _ = read(tmp_path / "a.jsonl", json.dumps(row) + "\n")
    assert rows == [("Anna slept", ("B-PER", "O"), "x", 1)]
    span = {"text": "Near New York, Anna slept.", "entities": [
        {"start": 15, "end": 19, "label": "PER"}, {"start": 5, "end": 13, "label": "LOC"}]}  # fmt: skip
    rows, _ = read(tmp_path / "b.json", json.dumps([span]), spans="entities")
    assert rows[0][0] == "Near New York , Anna slept."
    assert rows[0][1] == ("O", "B-LOC", "I-LOC", "O", "B-PER", "O")
    for spans, reason in (
        ([{"start": 0, "end": 8, "label": "LOC"}, {"start": 5, "end": 13, "label": "LOC"}], "overlap"),
        ([{"start": 0, "end": 99, "label": "LOC"}], "not within the text of 26 characters"),
        ([{"start": 0}], "no object with start, end and label"),
    ):
        with pytest.raises(ValueError, match=reason):
            words_of_spans(span["text"], spans)
        rows, file = read(tmp_path / "c.json", json.dumps([{**span, "entities": spans}]), spans="entities")
        assert rows == [] and reason in file.bad[0].reason


def test_a_table_of_any_name_whose_column_of_words_is_named(tmp_path: Path) -> None:
    """ATIS, its three files side by side: words, tags and the intent, without a header."""
    path = tmp_path / "atis.tsv"
    path.write_text('from "Anna\tO B-PER\tfly\nto Rome\tO B-LOC\tgo\n')
    task = TaggingTask(train=str(path), labels=TYPES, word="0", tag="1")
    file = mtmeta.DataFile(path, mtmeta.Dialect(header=False, quoting="none"))
    found = [(example.text, example.label, example.id) for example in task.read(file)]
    assert found == [('from "Anna', ("O", "B-PER"), "1"), ("to Rome", ("O", "B-LOC"), "2")]
    path.write_text("words\ttags\nto Rome\tO B-LOC\n")
    task = TaggingTask(train=str(path), labels=TYPES, word="words")
    assert [example.label for example in task.read(mtmeta.DataFile(path))] == [("O", "B-LOC")]


def test_options_that_do_not_fit() -> None:
    def problems(**options: Any) -> list[str]:
        return [option for option, _ in TaggingTask(train="t", **{"labels": TYPES, **options}).check()]

    assert problems() == []
    assert problems(labels=("A", "A")) == ["labels"]
    assert problems(labels=("B-PER",)) == problems(labels=("O", "X")) == ["labels"]
    assert problems(scheme="none") == ["metrics"]
    assert problems(scheme="none", metrics=("word_accuracy",)) == []


# ----------------------------------------------------------------------------------------------- words, pieces, lengths


def test_no_word_loses_its_label_whatever_the_length() -> None:
    """Every text's logits by word are those of its first pieces, computed one sequence at a time by hand."""
    backbone = Bert(weights="tiny", max_length=10, dropout=0.0).load(1)
    task = TaggingTask(labels=TYPES, train="t")
    generator = random.Random(3)
    texts = [
        " ".join(generator.choice(["a", "unaccustomed", "running", "x" * 60, "\u200d"]) for _ in range(count))
        for count in (1, 2, 30, 5, 12, 1)
    ]
    examples = [mtmeta.Example(text, label=("O", "B-PER") * 20, line=i) for i, text in enumerate(texts)]
    examples = [mtmeta.Example(e.text, label=e.label[: len(e.text.split())]) for e in examples]  # type: ignore[index]
    data = from_examples("t", task, "train", examples, backbone)
    assert len(data.labels) == sum(len(text.split()) for text in texts)
    assert data.parts is not None and (np.diff(data.parts.offsets) > 1).any()  # some are in several sequences
    assert max(data.parts.lengths) <= 10
    assert any("the tokenizer makes nothing of" in note for note in data.notes)
    long = [any(len(ids) > 8 for ids in backbone.tokenizer.encode(text.split())) for text in texts]
    assert data.truncated == sum(long) > 0

    model = MultiTaskModel(backbone.encoder, {"t": task}, 3).eval()
    order = np.array([4, 0, 2, 5, 1, 3])
    chunk = pack_chunk(data, order)
    together = model("t", chunk.packed)  # [W, C]
    tokenizer, at = backbone.tokenizer, 0
    for number in order:
        words, pieces = texts[number].split(), []
        for place, word in enumerate(words):
            ids = tokenizer.encode([f" {word}" if place else word])[0] or tokenizer.encode(["?"])[0]
            pieces.append(ids[:8])
        room, sequences = 8, [list[list[int]]()]
        for each in pieces:
            if sum(map(len, sequences[-1])) + len(each) > room:
                sequences.append([])
            sequences[-1].append(each)
        for sequence in sequences:
            ids = [*tokenizer.prefix, *(piece for each in sequence for piece in each), *tokenizer.suffix]
            firsts = [1 + sum(map(len, sequence[:k])) for k in range(len(sequence))]
            from mtmeta.core.api.batch import Packed

            alone = Packed(
                torch.tensor(ids), torch.arange(len(ids)), None, torch.tensor([len(ids)]), ((1, len(ids)),),
                torch.tensor([0]), torch.tensor(firsts),
            )  # fmt: skip
            assert torch.allclose(model("t", alone), together[at : at + len(firsts)], atol=1e-5)
            at += len(firsts)
    assert at == len(together) == len(chunk.labels)
    wanted = functional.cross_entropy(together, chunk.labels.long())
    assert task.objective.loss(together, chunk.labels).equal(wanted)


def test_accumulated_the_gradient_is_that_of_the_batch() -> None:
    """The mean is over the words of the whole batch, however they fall into chunks."""
    task = TaggingTask(labels=TYPES, train="t")
    examples = [mtmeta.Example("word " * (1 + 3 * (i % 4)), label=("O", "B-LOC") * 5) for i in range(8)]
    examples = [mtmeta.Example(e.text.strip(), label=e.label[: len(e.text.split())]) for e in examples]  # type: ignore[index]
    grads = []
    for chunks in (1, 4):
        backbone = Bert(weights="tiny", max_length=16, dropout=0.0).load(1)
        learner = Learner(MultiTaskModel(backbone.encoder, {"t": task}, 3), seed=1, steps=1)
        data = from_examples("t", task, "train", examples, backbone)
        learner.gradient(pack(data, np.arange(8), chunks=chunks))
        grads.append(torch.cat([p.grad.flatten() for p in learner.parameters.values() if p.grad is not None]))
    assert torch.allclose(grads[0], grads[1], atol=1e-6)


def test_a_part_of_a_dataset_has_the_labels_of_its_words() -> None:
    task = TaggingTask(labels=TYPES, train="t")
    backbone = Bert(weights="tiny", max_length=6).load(1)
    examples = [
        mtmeta.Example("a b c d e f g h", label=("O",) * 7 + ("B-LOC",), id="one"),
        mtmeta.Example("a", label=("O",), id="two"),
        mtmeta.Example("a b", label=("B-PER", "I-PER"), id="three"),
    ]
    data = from_examples("t", task, "train", examples, backbone)
    some = select(data, np.array([2, 0]))
    assert list(some.ids) == ["three", "one"]
    assert some.by_example(some.labels).tolist() == [(1, 2), (0,) * 7 + (3,)]
    assert rows_by_class(data) == {0: 2, 1: 1, 2: 1, 3: 1}  # texts that have the tag
    one, other = (pack_chunk(each, at).packed for each, at in ((data, np.array([2, 0])), (some, np.array([0, 1]))))
    assert one.words is not None and other.words is not None
    assert one.words.equal(other.words) and one.ids.equal(other.ids)
    assert data.of_label.tolist() == [3.0, 0.0, 1.0]  # the rarest tag of each text


# ---------------------------------------------------------------------------------------------------------- whole runs


def recipe_of(folder: Path) -> Path:
    """A recipe of a tagging task, whose texts are too long for the encoder, and a task with two classes."""
    generator, files = random.Random(4), {}
    names = {"PER": ["Anna", "Bob Smith"], "LOC": ["Paris", "New York"]}
    for split, count in (("train", 30), ("dev", 12)):
        lines = []
        for _ in range(count):
            for _ in range(generator.randint(1, 3)):
                kind = generator.choice(TYPES)
                words = generator.choice(names[kind]).split()
                lines += ["went O", *(f"{word} {'I' if at else 'B'}-{kind}" for at, word in enumerate(words))]
            lines.append("")
        files[split] = "\n".join(lines)
    path = quick_beside(folder, "who", {"task": "tagging", "labels": list(TYPES)}, files, ".conll")
    recipe = json.loads(path.read_text())
    recipe["backbone"]["max_length"] = 10
    path.write_text(json.dumps(recipe))
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tagging")
    mtmeta.run(recipe_of(folder), out=folder / "run", device="cpu")
    return folder / "run"


def written(run: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO((run / "predictions" / "who-dev.csv").read_text())))


def test_what_is_written_is_what_was_scored(run: Path) -> None:
    from seqeval.metrics import f1_score

    rows = written(run)
    labels, found = ([row[key].split() for row in rows] for key in ("label", "prediction"))
    score = json.loads((run / "summary.json").read_text())["tasks"]["who"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert score["value"] == pytest.approx(float(f1_score(labels, found)), rel=1e-12)
    again = mtmeta.evaluate(run, split="dev", device="cpu")
    assert again.tasks["who"]["value"] == score["value"] and again.tasks["who"]["low"] == score["low"]


def test_eval_predict_and_report(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    done = call("eval", str(run), "--split", "dev", "--task", "who", "--verbose", cwd=run.parent, capsys=capsys)
    assert done.code == 0 and "entities of each type" in done.out and "PER" in done.out
    texts = []
    for text in (run.parent / "who-dev.conll").read_text().split("\n\n"):
        texts.append(" ".join(line.split()[0] for line in text.splitlines() if line.strip()))
    texts = [text for text in texts if text]
    (tmp_path / "t.txt").write_text("\n".join(texts))
    done = call("predict", str(run), "--task", "who", "--input", str(tmp_path / "t.txt"), cwd=run.parent, capsys=capsys)
    found = list(csv.DictReader(io.StringIO(done.out)))
    assert done.code == 0 and [row["label"] for row in found] == [row["prediction"] for row in written(run)]
    tagged = str(run.parent / "who-dev.conll")  # the file that it was scored on
    done = call("predict", str(run), "--task", "who", "--input", tagged, cwd=run.parent, capsys=capsys)
    assert [row["label"] for row in csv.DictReader(io.StringIO(done.out))] == [row["label"] for row in found]
    assert "who-dev.conll: is read as data files of the task, a word a line" in done.err
    arguments = ("predict", str(run), "--task", "who", "--input", str(tmp_path / "t.txt"), "--format", "jsonl")
    done = call(*arguments, cwd=run.parent, capsys=capsys)
    for line, text in zip(done.out.splitlines(), texts, strict=True):
        answer = json.loads(line)
        assert answer["words"] == text.split() and len(answer["labels"]) == len(answer["words"])
        spans = [(span["label"], span["start"], span["end"]) for span in answer["spans"]]
        assert spans == spans_of(answer["labels"])
        assert all(span["text"] == " ".join(answer["words"][span["start"] : span["end"]]) for span in answer["spans"])
    one = mtmeta.load(run, device="cpu").predict("who", "  Anna   went \t home ")
    assert one.words == ("Anna", "went", "home") and one.labels is not None and len(one.labels) == 3
    done = call("report", str(run), "--out", str(tmp_path / "r.html"), cwd=run.parent, capsys=capsys)
    assert done.code == 0 and not done.err and "entities of each type" in (tmp_path / "r.html").read_text()
    done = call("validate", "--data", str(run.parent / "quick.yaml"), cwd=run.parent, capsys=capsys)
    assert done.code == 0 and "B-PER" in done.out and "read in several sequences" in done.out


def test_killed_and_resumed_it_is_the_same_run(run: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(recipe_of(tmp_path), run, tmp_path / "run")


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml", "maml"])
def test_every_algorithm_of_whole_models_trains_it(algorithm: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe |= {"algorithm": {"name": algorithm, "tasks_per_step": 2}, "training": {"steps": 1}}
    finished = mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    assert 0 <= finished.tasks["who"]["value"] <= 1


def test_what_it_does_not_have_is_refused(run: Path, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    recipe["tasks"] = {"who": recipe["tasks"]["who"]}
    with pytest.raises(mtmeta.PluginError, match="task 'who' has a head that takes whole sequences"):
        mtmeta.export(run, "transformers", tasks=["who"], out=tmp_path / "export")
    (problem,) = mtmeta.validate({**recipe, "algorithm": "protonet"}).problems
    assert "protonet classifies, task 'who' is no choice of one class" in problem
    with pytest.raises(mtmeta.RecipeError, match=r"tasks\.who: has a head that takes whole sequences"):
        mtmeta.run({**recipe, "algorithm": "anil"}, out=tmp_path / "anil", device="cpu")
    recipe["tasks"]["who"]["metrics"] = ["accuracy"]
    (problem,) = mtmeta.validate(recipe).problems
    assert "which predicts a class for each word; use entity_f1, word_accuracy" in problem


def test_few_shots_of_it(run: Path, tmp_path: Path) -> None:
    assert_adapts(run, recipe_of(tmp_path), "who", "prototype needs a class for each text")


def test_plain_tags(tmp_path: Path) -> None:
    tags = Tags(("N", "V"), bio=False)
    assert tags.spans((0, 1)) is None
    table = tags.confusion(entries([(0, 1), (0,)]), entries([(0, 0), (0,)]))
    assert dict(table.rows) == {"N": (2, 3, 2, 2 / 3, 1.0, 0.8), "V": (1, 0, 0, 0.0, 0.0, 0.0)}
