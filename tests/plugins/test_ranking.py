"""Texts that belong together: loss, gradient and ranks by hand, and a run from file to export."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import mtmeta
from mtmeta.core.data.feed import Feed
from mtmeta.core.data.loading import from_examples
from mtmeta.core.data.packing import pack, pack_chunk
from mtmeta.core.studies.comparison import read_predictions
from mtmeta.core.training import evaluation
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.plugins import rank_metrics
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks import ranking
from mtmeta.plugins.tasks.generic import ClassificationTask
from mtmeta.plugins.tasks.ranking import Ranking, RankingTask
from mtmeta.testing import check_task
from tests.core.export.test_export import answers_of_export
from tests.support.commands import call
from tests.support.quick import assert_adapts, assert_kills_change_nothing, quick_beside, read_table

Rows = Sequence[Sequence[str]]
BATCHES: dict[str, Rows] = {
    "pairs": [("a", "A"), ("b", "B"), ("c", "C"), ("d", "D")],
    "hard negatives": [("a", "A", "x", "y"), ("b", "B", "z", "u"), ("c", "C", "v", "w")],
    "a positive twice": [("a", "A"), ("b", "A"), ("c", "C"), ("d", "D")],
    "an anchor twice": [("a", "A"), ("a", "B"), ("c", "C"), ("d", "B")],
    "a positive that is an anchor": [("a", "b"), ("b", "a"), ("c", "c"), ("d", "a")],
    "negatives that are right": [("a", "A", "B"), ("b", "B", "A"), ("a", "C", "A"), ("d", "D", "d")],
    "all at once": [
        ("a", "A", "B", "x"),
        ("a", "B", "x", "A"),
        ("A", "a", "c", "C"),
        ("c", "A", "x", "x"),
        ("e", "E", "e", "b"),
    ],
}


def task_of(**options: Any) -> RankingTask:
    return RankingTask(**{"train": "t", **options})


def texts_of_rows(rows: Rows) -> Tensor:
    """Which text each is, as a loss gets it [B, T]."""
    known: dict[str, int] = {}
    return torch.tensor([[known.setdefault(text, len(known) - 2) for text in row] for row in rows])


def vectors_for(rows: Rows, seed: int = 1) -> Tensor:
    """Vectors of length 1 [B, T, 5], float64."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(len(rows), len(rows[0]), 5, dtype=torch.double, generator=generator)
    return torch.nn.functional.normalize(drawn, dim=-1)


def rights_of(rows: Rows, anchor: str) -> set[str]:
    """The texts that are no negatives of an anchor."""
    return {row[1] for row in rows if row[0] == anchor} | {anchor}


def by_hand(vectors: Tensor, rows: Rows, scale: float, symmetric: bool) -> Tensor:
    """The loss in loops: of each anchor over its own positive and its negatives, and the other way round."""
    total = vectors.new_zeros(())
    for i, (anchor, positive, *_) in enumerate(rows):
        forward = [vectors[i, 0] @ vectors[i, 1]]
        for j, row in enumerate(rows):
            for t in range(1, len(row)):
                if (j, t) != (i, 1) and row[t] not in rights_of(rows, anchor):
                    forward.append(vectors[i, 0] @ vectors[j, t])
        backward = [vectors[i, 0] @ vectors[i, 1]]
        for j, (other, *_) in enumerate(rows):
            if j != i and positive not in rights_of(rows, other):
                backward.append(vectors[j, 0] @ vectors[i, 1])
        losses = [torch.logsumexp(scale * torch.stack(each), 0) - scale * each[0] for each in (forward, backward)]
        total = total + (sum(losses) / 2 if symmetric else losses[0])
    return total / len(rows)


# ------------------------------------------------------------------------------------------------- loss and gradient


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", BATCHES)
def test_loss_and_gradient_are_those_by_hand(kind: str, symmetric: bool) -> None:
    rows = BATCHES[kind]
    vectors, wanted = (vectors_for(rows).requires_grad_() for _ in range(2))
    expected = by_hand(wanted, rows, 7.0, symmetric)
    objective = Ranking(scale=7.0, symmetric=symmetric)
    loss = objective.loss(vectors, texts_of_rows(rows))
    torch.autograd.backward([loss, expected])
    assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert vectors.grad is not None and wanted.grad is not None and wanted.grad.abs().max() > 1e-3
    assert torch.allclose(vectors.grad, wanted.grad, rtol=1e-10, atol=1e-13)
    narrow = objective.loss(vectors.detach().float(), texts_of_rows(rows))
    assert narrow.item() == pytest.approx(loss.item(), rel=1e-5)


def test_head_and_loss_have_the_gradients_of_finite_differences() -> None:
    rows, generator = BATCHES["all at once"], torch.Generator().manual_seed(0)
    head, objective = mtmeta.VectorHead(3, outputs=4).double(), Ranking(scale=3.0, symmetric=True)
    pooled = torch.randn(5, 4, 3, dtype=torch.double, generator=generator, requires_grad=True)

    def loss(pooled: Tensor, weight: Tensor) -> Tensor:
        outputs: Tensor = torch.func.functional_call(head, {"dense.weight": weight}, (pooled,))
        return objective.loss(outputs, texts_of_rows(rows))

    assert torch.autograd.gradcheck(loss, (pooled, *head.parameters()))
    assert torch.autograd.gradgradcheck(loss, (pooled, *head.parameters()))  # MAML differentiates twice
    bare = mtmeta.VectorHead(3)
    assert not list(bare.parameters())
    assert torch.allclose(bare(pooled), pooled / pooled.norm(dim=-1, keepdim=True))


def test_what_no_loss_can_be_made_of() -> None:
    for outputs, labels in ((torch.zeros(3, 2), torch.zeros(3, 2)), (torch.zeros(3, 2, 4), torch.zeros(3))):
        with pytest.raises(ValueError, match=r"the loss needs \[B, T, C\] and \[B, T\]"):
            Ranking().loss(outputs, labels)
    with pytest.raises(ValueError, match="the loss needs"):
        Ranking().loss(torch.zeros(3, 1, 4), torch.zeros(3, 1))  # no positive


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["pairs", "hard negatives"])
def test_the_loss_is_that_of_sentence_transformers(kind: str) -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    rows, generator = BATCHES[kind], torch.Generator().manual_seed(2)
    drawn = torch.randn(len(rows), len(rows[0]), 5, dtype=torch.double, generator=generator)
    both = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
    options: dict[str, Any]
    for symmetric, options in ((False, {}), (True, both)):
        pooled, wanted = (drawn.clone().requires_grad_() for _ in range(2))
        theirs = losses.MultipleNegativesRankingLoss(None, **options)
        expected = theirs.compute_loss_from_embeddings(list(wanted.unbind(1)), None)
        loss = Ranking(symmetric=symmetric).loss(mtmeta.VectorHead(5)(pooled), texts_of_rows(rows))
        torch.autograd.backward([loss, expected])
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        assert pooled.grad is not None and wanted.grad is not None
        assert torch.allclose(pooled.grad, wanted.grad, rtol=1e-9, atol=1e-12)


# ------------------------------------------------------------------------------------------------- ranks and metrics


def ranks_by_hand(vectors: Tensor, rows: Rows) -> list[int]:
    """The rank of each positive among the different texts of all positives and hard negatives, by the first of each."""
    corpus: dict[str, Tensor] = {}
    for i, row in enumerate(rows):
        for t, text in enumerate(row[1:], 1):
            corpus.setdefault(text, vectors[i, t])
    ranks = []
    for i, (anchor, *_) in enumerate(rows):
        own = float(vectors[i, 0] @ vectors[i, 1])
        others = [
            float(vectors[i, 0] @ vector) for text, vector in corpus.items() if text not in rights_of(rows, anchor)
        ]
        ranks.append(1 + sum(other >= own - 1e-6 for other in others))
    return ranks


@pytest.mark.parametrize("at_once", [1, 9, 2**24])
def test_ranks_are_those_by_hand_in_blocks_of_any_size(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranking, "AT_ONCE", at_once)
    for rows in BATCHES.values():
        for seed in range(5):
            vectors = vectors_for(rows, seed)
            assert Ranking().ranks(vectors, texts_of_rows(rows)).tolist() == ranks_by_hand(vectors, rows)
    generator = random.Random(7)
    names = [f"text {number}" for number in range(30)]
    many = [tuple(generator.choices(names, k=3)) for _ in range(200)]
    vectors = vectors_for(many, 8)
    ranks = Ranking().ranks(vectors, texts_of_rows(many)).tolist()
    assert ranks == ranks_by_hand(vectors, many) and max(ranks) > 5


def test_equal_cosines_count_against_the_model() -> None:
    rows = [("a", "A"), ("b", "B"), ("c", "C")]
    same = torch.ones(3, 2, 4) / 2
    assert Ranking().ranks(same, texts_of_rows(rows)).tolist() == [3, 3, 3]
    nearly = same.clone()
    nearly[1, 1] *= 1 - 1e-7  # as rounding leaves them
    assert Ranking().ranks(nearly, texts_of_rows(rows)).tolist() == [3, 3, 3]
    nearly[1, 1] *= 1 - 1e-4
    assert Ranking().ranks(nearly, texts_of_rows(rows)).tolist() == [2, 3, 2]


def test_metrics_of_ranks() -> None:
    ranks, labels = np.array([1.0, 2.0, 11.0, 4.0, 1.0]), np.ones(5)
    metrics = {metric.name: metric for metric in rank_metrics.register()}
    wanted = {
        "accuracy_at_1": 2 / 5,
        "accuracy_at_3": 3 / 5,
        "accuracy_at_5": 4 / 5,
        "accuracy_at_10": 4 / 5,
        "mrr_at_10": (1 + 1 / 2 + 0 + 1 / 4 + 1) / 5,
        "ndcg_at_10": (1 + 1 / np.log2(3) + 0 + 1 / np.log2(5) + 1) / 5,
    }
    assert {name: metric(labels, ranks) for name, metric in metrics.items()} == pytest.approx(wanted)
    counts = np.array([[1.0, 1, 1, 1, 1], [0, 3, 1, 1, 0]])
    drawn = np.repeat(ranks, [0, 3, 1, 1, 0])
    for name, metric in metrics.items():
        assert metric.resampled is not None and metric.function.__doc__
        found = metric.resampled(labels, ranks, counts)
        assert found == pytest.approx([wanted[name], metric(labels, drawn)])
        assert (
            metric.fits(Ranking())
            and not metric.fits(mtmeta.Classification(2))
            and not metric.fits(mtmeta.Regression())
        )


def test_own_texts_found_among_the_first_ones() -> None:
    table = Ranking().confusion(np.ones(4), np.array([1.0, 3.0, 40.0, 400.0]))
    assert dict(table.rows) == {
        "first 1": (1, 0.25),
        "first 3": (2, 0.5),
        "first 5": (2, 0.5),
        "first 10": (2, 0.5),
        "first 30": (2, 0.5),
        "first 100": (3, 0.75),
    }
    assert [Ranking().parse(label) for label in (None, "", "3", 2.0)] == [1, 1, 3, 2]
    assert Ranking().show(12.0) == "12"


# ------------------------------------------------------------------------------------------------- examples, batches

WORDS = ("red", "blue", "green", "old", "new", "big", "small", "fast", "slow", "cold")


def examples_of(rows: Rows) -> list[mtmeta.Example]:
    return [mtmeta.Example(row[0], row[1], id=str(number), choices=tuple(row[2:])) for number, row in enumerate(rows)]


def drawn_rows(count: int, texts: int, seed: int = 3) -> Rows:
    generator = random.Random(seed)
    return [[" ".join(generator.choices(WORDS, k=1 + (n + t) % 4)) for t in range(texts)] for n in range(count)]


def test_each_text_is_read_by_itself_and_known_by_its_words() -> None:
    backbone = Bert(weights="tiny", max_length=12, dropout=0.0).load(1)
    rows = [("who is it", "A man.", "a dog"), ("where", "a  MAN", "it is here"), ("when", "never", "Where?")]
    task, single = task_of(negatives="n"), ClassificationTask(labels=2, train="t")
    data = from_examples("t", task, "train", examples_of(rows), backbone)
    assert len(data.stores) == 3 and data.by_text and data.labels.tolist() == [1.0] * 3
    model = MultiTaskModel(backbone.encoder, {"t": task, "single": single}, 3).eval()
    indices = np.array([2, 0, 1])
    chunk = pack_chunk(data, indices)
    assert chunk.labels.dtype == torch.int64 and chunk.labels.shape == (3, 3)
    same = (
        chunk.labels.flatten()[:, None] == chunk.labels.flatten()
    )  # of: when never Where? | who man dog | where MAN here
    wanted = torch.eye(9, dtype=torch.bool)
    wanted[2, 6] = wanted[6, 2] = wanted[4, 7] = wanted[7, 4] = True
    assert torch.equal(same, wanted)
    with torch.no_grad():
        outputs = model("t", chunk.packed)
        assert outputs.shape == (3, 3, model.hidden_size)
        for number in range(3):
            alone = [mtmeta.Example(rows[i][number], label=str(i % 2)) for i in indices]
            of_single = from_examples("single", single, "train", alone, backbone)
            pooled = model.pooled("single", pack_chunk(of_single, np.arange(3)).packed)[:, 0]
            assert torch.allclose(outputs[:, number], torch.nn.functional.normalize(pooled, dim=-1), atol=1e-5)


def learner_of(rows: Rows, *, dropout: float = 0.0, chunks: int = 1, **options: Any) -> tuple[Learner, Feed]:
    backbone = Bert(weights="tiny", max_length=12, dropout=dropout).load(1)
    task = task_of(batch_size=len(rows), **options)
    data = from_examples("t", task, "train", examples_of(rows), backbone)
    model = MultiTaskModel(backbone.encoder, {"t": task}, 3)
    sampler: Any = None  # of a single task nothing is drawn
    return Learner(model, seed=5, steps=3), Feed({"t": task}, {"t": data}, sampler, seed=5, grad_accumulation=chunks)


@pytest.mark.parametrize("options", [{}, {"negatives": "n", "symmetric": True, "dim": 6}])
def test_a_batch_in_parts_has_the_gradient_of_the_whole(options: dict[str, Any]) -> None:
    rows = drawn_rows(7, 3 if options else 2)
    found = []
    for chunks in (1, 3):
        learner, feed = learner_of(rows, chunks=chunks, **options)
        learner.begin_step(0)
        batch = feed.batch("t")
        assert len(batch.chunks) == chunks
        loss = learner.gradient(batch, scale=0.5)
        gradient = {name: grad.clone() for name, p in learner.parameters.items() if (grad := p.grad) is not None}
        assert learner.measure(batch).item() == pytest.approx(loss.item(), rel=1e-5)
        at = {name: p.detach().clone().requires_grad_() for name, p in learner.parameters.items()}
        assert learner.loss_at(batch, at).item() == pytest.approx(loss.item(), rel=1e-5)
        assert learner.examples == 3 * len(rows)
        found.append((loss, gradient))
    (whole, of_whole), (parted, of_parts) = found
    assert parted.item() == pytest.approx(whole.item(), rel=1e-5)
    assert list(of_whole) == list(of_parts) and max(float(grad.abs().max()) for grad in of_whole.values()) > 1e-3
    for name, grad in of_whole.items():
        assert torch.allclose(grad, of_parts[name], atol=1e-5), name


def test_parts_are_encoded_twice_with_the_same_dropout() -> None:
    learner, feed = learner_of(drawn_rows(6, 2), dropout=0.3, chunks=3)
    learner.begin_step(0)
    batch = feed.batch("t")
    learner.model.train()
    loss = learner.gradient(batch)
    gradient, draws = learner.take_gradient(), learner.draws
    learner.begin_step(0)
    features = learner.features(batch)  # of all parts, each with its own draw, and the graph of all of them
    again = learner.loss(features)
    again.backward()  # type: ignore[no-untyped-call]
    assert draws == learner.draws == 3 and loss.item() == pytest.approx(again.item(), rel=1e-6)
    for one, other in zip(gradient, learner.take_gradient(), strict=True):
        assert (one is None) == (other is None)
        assert one is None or other is None or torch.allclose(one, other, atol=1e-5)


def test_the_loss_of_a_split_is_that_of_batches_in_its_order() -> None:
    rows = drawn_rows(11, 3)
    backbone = Bert(weights="tiny", max_length=12, dropout=0.0).load(1)
    task = task_of(negatives=("n",), batch_size=4)
    data = from_examples("t", task, "dev", examples_of(rows), backbone)
    model = MultiTaskModel(backbone.encoder, {"t": task}, 3).eval()
    with torch.no_grad():
        chunks = [pack(data, np.arange(11)[at]).chunks[0] for at in (slice(0, 4), slice(4, 8), slice(8, 11))]
        losses = [Ranking().loss(model("t", chunk.packed), chunk.labels).item() for chunk in chunks]
        whole = pack_chunk(data, np.arange(11))
        ranks = Ranking().ranks(model("t", whole.packed), whole.labels)
    for tokens in (8, 64, 8192):
        found = evaluation.predict(model, data, batch_tokens=tokens)
        assert found.loss == pytest.approx((4 * losses[0] + 4 * losses[1] + 3 * losses[2]) / 11, rel=1e-5)
        assert found.values.tolist() == ranks.tolist() and found.labels.tolist() == [1.0] * 11


# ------------------------------------------------------------------------------------------------- reading, options


def test_bad_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("anchor,positive,n\nwhere,here,there\nwho,,me\nwhen,now,\nwhat,that,that\n")
    task = task_of(train=str(path), negatives="n")
    backbone = Bert(weights="tiny", max_length=16).load(1)
    file = mtmeta.DataFile(path)
    examples = list(task.read(file))
    assert examples[0].texts == ("where", "here", "there") and examples[0].line == 2
    assert [(row.line, row.reason) for row in file.bad] == [(5, "a negative is the positive")]
    with pytest.raises(
        mtmeta.DataError, match=r":3: 1 other text, the task takes 2 in every row \(2 such lines: 3, 4\)"
    ):
        from_examples("t", task, "train", examples, backbone)
    path.write_text("anchor,positive\nwhere,here\nwho,\n")
    with pytest.raises(mtmeta.DataError, match=":3: text is empty"):
        from_examples("t", task_of(), "train", list(task_of().read(mtmeta.DataFile(path))), backbone)


@pytest.mark.parametrize(("row", "side"), [("what,it is {}", "first"), ("what is {},That!", "second")])
def test_a_side_with_one_text_alone_is_nothing_to_learn_from(row: str, side: str, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("anchor,positive\n" + "".join(f"{row.format(number)}\n" for number in range(5)))
    task = {"task": "ranking", "train": str(path), "dev": str(path), "batch_size": 5}
    recipe = {
        "name": "r",
        "backbone": {"name": "bert", "weights": "tiny"},
        "tasks": {"t": task},
        "algorithm": "joint",
        "optimizer": {"name": "sgd", "lr": 0.1},
        "training": {"steps": 1},
    }
    with pytest.raises(mtmeta.DataError, match=f"the {side} text of all 5 examples is the same; there is nothing to"):
        mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    path.write_text(path.read_text().replace("\n", ",never\n").replace("positive,never", "positive,n"))
    with_negatives = {**recipe, "tasks": {"t": {**task, "negatives": "n"}}}
    mtmeta.run(with_negatives, out=tmp_path / "run", device="cpu")


def test_options_that_do_not_fit() -> None:
    def problems(**options: Any) -> list[tuple[str, str]]:
        return list(task_of(**options).check())

    assert problems() == problems(negatives=("n", "m")) == problems(negatives="n", batch_size=1) == []
    assert problems(positive="anchor") == [("positive", "names column 'anchor' twice")]
    assert problems(negatives=("n", "n")) == [("negatives", "names column 'n' twice")]
    ((option, message),) = problems(batch_size=1)
    assert option == "batch_size" and "no other text in a batch" in message


@pytest.mark.parametrize("options", [{}, {"negatives": ["n"], "dim": 4, "symmetric": True}])
def test_the_contract_of_a_task(options: dict[str, Any]) -> None:
    names = ("anchor", "positive", "n")[: 3 if options else 2]
    rows = [dict(zip(names, row, strict=True)) for row in drawn_rows(5, len(names))]
    check_task(RankingTask, rows, **options)


def test_the_sample_has_other_ways_to_say_a_thing() -> None:
    rows = list(task_of(train="sample").sample("dev"))
    assert len(rows) > 100 and all(len(each.texts) == 2 for each in rows)
    with_negatives = list(task_of(train="sample", negatives=("n", "m")).sample("dev"))
    assert all(len(set(each.texts)) == 4 for each in with_negatives)


# ------------------------------------------------------------------------------------------------- whole runs

OPTIONS: dict[str, dict[str, Any]] = {"bare": {}, "dim": {"negatives": "other", "dim": 6, "symmetric": True}}


def recipe_of(folder: Path, **options: Any) -> Path:
    """A recipe of questions with answers and hard negatives, and of a task with two classes."""
    files = {}
    for seed, (split, count) in enumerate((("train", 40), ("dev", 24), ("test", 12))):
        lines = [
            "\t".join((str(number), f"which {' '.join(row)}", *row))
            for number, row in enumerate(drawn_rows(count, 2, seed))
        ]
        files[split] = "\n".join(("id\tquestion\tanswer\tother", *lines)) + "\n"
    return quick_beside(
        folder, "ask", {"task": "ranking", "anchor": "question", "positive": "answer", **options}, files
    )


@pytest.fixture(scope="module", params=OPTIONS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    mtmeta.run(recipe_of(folder, **OPTIONS[request.param]), out=folder / "run", device="cpu")
    return folder / "run"


def pairs_of(run: Path) -> list[tuple[str, str]]:
    return [(row["question"], row["answer"]) for row in read_table(run.parent / "ask-dev.tsv")]


def test_metrics_are_of_ranks_among_the_texts_of_the_split(run: Path) -> None:
    predictor = mtmeta.load(run, device="cpu")
    labels, ranks = read_predictions(run / "predictions" / "ask-dev.csv", predictor.task("ask"))
    score = json.loads((run / "summary.json").read_text())["tasks"]["ask"]
    assert score["metric"] == "accuracy_at_1" and score["value"] == (ranks == 1).mean() and score["examples"] == 24
    assert score["others"]["mrr_at_10"] == pytest.approx(np.where(ranks <= 10, 1 / ranks, 0).mean())
    assert set(labels.tolist()) == {1.0} and ranks.max() > 1
    rows = [(row["question"], row["answer"], row["other"]) for row in read_table(run.parent / "ask-dev.tsv")]
    wide = bool(predictor.task("ask").extra_texts)
    texts = list(dict.fromkeys(text for row in rows for text in row[1 : 2 + wide]))
    for (question, answer, *_), rank in zip(rows, ranks.tolist(), strict=True):
        scores = [
            each.score or 0.0 for each in predictor.predict("ask", [(question, text) for text in (answer, *texts)])
        ]
        right = rights_of(rows, question)
        others = [score for text, score in zip(texts, scores[1:], strict=True) if text not in right]
        least, most = (1 + sum(score >= scores[0] + by for score in others) for by in (1e-5, -1e-5))
        assert least <= rank <= most


def test_predict_takes_pairs_and_gives_their_cosine(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    predictor = mtmeta.load(run, device="cpu")
    pairs = pairs_of(run)
    wanted = [each.score for each in predictor.predict("ask", pairs)]
    alone: Any = predictor.predict("ask", pairs[3])
    assert alone.score == pytest.approx(wanted[3], abs=1e-5) and alone.label is alone.probabilities is None
    task = predictor.task("ask")
    if task.extra_texts == 0:  # without a linear map the vectors of `encode` have that cosine
        one, other = (predictor.encode([pair[side] for pair in pairs], task="ask") for side in (0, 1))
        cosines = (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
        assert wanted == pytest.approx(cosines.tolist(), abs=1e-5)
    source = str(run.parent / "ask-dev.tsv")
    done = call("predict", str(run), "--task", "ask", "--input", source, cwd=run.parent, capsys=capsys)
    lines = done.out.splitlines()
    assert done.code == 0 and lines[0] == "id,score"
    assert [float(line.split(",")[1]) for line in lines[1:]] == pytest.approx(wanted, rel=1e-4)
    for given, kind in (("one text", "'one text'"), (("a", "b", "c"), ".*"), ([("a",)], ".*")):
        with pytest.raises(mtmeta.UsageError, match=f"is {kind}, task 'ask' takes a pair of texts"):
            predictor.predict("ask", given)
    with pytest.raises(mtmeta.UsageError, match="abstain: needs one of several classes"):
        predictor.predict("ask", pairs, abstain=0.5)
    page = str(tmp_path / "r.html")
    for command in (("eval", str(run), "--task", "ask", "--verbose"), ("report", str(run), "--out", page)):
        done = call(*command, cwd=run.parent, capsys=capsys)
        assert done.code == 0, done.err
    assert "first 10" in Path(page).read_text()
    done = call("validate", "--data", str(run.parent / "quick.yaml"), cwd=run.parent, capsys=capsys)
    assert done.code == 0 and "labels: none; different texts: anchors 40, positives " in done.out
    assert ("hard negatives" in done.out) == bool(task.extra_texts)


def test_killed_and_resumed_it_is_the_same_run(run: Path, tmp_path: Path) -> None:
    assert_kills_change_nothing(recipe_of(tmp_path, **OPTIONS[run.parent.name[:-1]]), run, tmp_path / "run")


@pytest.mark.parametrize("form", ["transformers", pytest.param("onnx", marks=pytest.mark.slow)])
def test_exports_answer_as_predict_does(form: Any, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = pairs_of(run)[:5]
    wanted = [each.score for each in mtmeta.load(run, device="cpu").predict("ask", pairs)]
    found = answers_of_export(run, form, "ask", pairs, tmp_path / form, monkeypatch)
    assert [each["score"] for each in found] == pytest.approx(wanted, abs=1e-5)


def test_a_model_for_pipeline_refuses_it(run: Path, tmp_path: Path) -> None:
    with pytest.raises(mtmeta.UsageError, match="has a head that AutoModelForSequenceClassification has not"):
        mtmeta.export(run, "text-classification", tasks=["ask"], out=tmp_path / "none")


def test_few_shots_and_comparisons_of_it(run: Path, tmp_path: Path) -> None:
    assert_adapts(
        run,
        recipe_of(tmp_path, **OPTIONS[run.parent.name[:-1]]),
        "ask",
        "prototype needs a class for each text, task 'ask' has other labels",
        shots=8,
    )


@pytest.mark.parametrize("algorithm", ["reptile", "fomaml", "maml", "metasgd", "surgery"])
def test_every_algorithm_trains_it(algorithm: str, tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    drawing = {} if algorithm == "surgery" else {"tasks_per_step": 2}
    recipe |= {"algorithm": {"name": algorithm, **drawing}, "training": {"steps": 1}}
    finished = mtmeta.run(recipe, out=tmp_path / "run", device="cpu")
    assert 0 <= finished.tasks["ask"]["value"] <= 1


def test_what_is_refused_in_one_line(tmp_path: Path) -> None:
    recipe = json.loads(recipe_of(tmp_path).read_text())
    ask = recipe["tasks"]["ask"]
    recipe["tasks"] = {"ask": ask}
    changes: list[tuple[dict[str, Any], str]] = [
        ({"algorithm": {"name": "anil", "tasks_per_step": 1}}, "anil adapts heads alone, task 'ask' has one without"),
        ({"algorithm": "protonet"}, "protonet classifies, task 'ask' is no choice of one class"),
        ({"training": {"steps": 1, "shards": 2}}, "training.shards cuts batches, and task 'ask' tells each example"),
        ({"teachers": {"ask": {"runs": ["run"]}}}, "the objective of task 'ask' has no soft_loss"),
        ({"tasks": {"ask": {**ask, "head": "hf"}}}, "hf takes one sequence, and this task compares vectors of several"),
        (
            {"tasks": {"ask": {**ask, "metrics": ["accuracy"]}}},
            "which predicts which text is the right one; use accuracy_at_1",
        ),
        ({"tasks": {"ask": {**ask, "long": {"window": 8, "stride": 4}}}}, "is for tasks of one text"),
    ]
    for change, message in changes:
        problems = mtmeta.validate({**recipe, **change}).problems
        assert len(problems) == 1 and message in problems[0], problems
    anil = {"algorithm": {"name": "anil", "tasks_per_step": 1}, "training": {"steps": 1}}
    recipe["tasks"]["ask"]["dim"] = 4
    mtmeta.run({**recipe, **anil}, out=tmp_path / "run", device="cpu")


def test_data_in_memory(tmp_path: Path) -> None:
    table = [{"anchor": f"which {row[0]}", "positive": row[0], "other": row[1]} for row in drawn_rows(30, 2)]
    task = mtmeta.task("ranking", table, dev=0.2, negatives=["other"], batch_size=8)
    finished = mtmeta.train(
        {"ask": task},
        backbone={"name": "bert", "weights": "tiny", "max_length": 16},
        training={"steps": 2},
        out=tmp_path / "run",
        device="cpu",
    )
    assert 0 <= finished.tasks["ask"]["value"] <= 1
    (said,) = mtmeta.load(finished.path, device="cpu").predict("ask", [("a man", "a dog")])
    assert said.score is not None and -1 <= said.score <= 1
