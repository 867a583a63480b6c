"""Training from memory: the same rows whatever holds them, and a run that is one from files ever after."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

import mtmeta
from mtmeta.cli import main
from mtmeta.core.python.rows import RowFiles
from mtmeta.core.python.task_data import Rows
from tests.support.quick import killed_before_step, outcome

TEXTS = [f"word {i} {'good' * (i % 2)}" for i in range(12)]
OTHERS = [f"other {i}" for i in range(12)]
LABELS = [("no", "yes")[i % 2] for i in range(12)]
SCORES = [i % 6 for i in range(12)]
TABLE: dict[str, list[Any]] = {"sentence": TEXTS, "label": LABELS, "unread": SCORES}
ROWS = [{key: TABLE[key][i] for key in TABLE} for i in range(12)]


class Table:
    """A table of a library that nobody has heard of, by Arrow's protocol alone."""

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return pa.table(TABLE).__arrow_c_stream__(requested_schema)


def rows_of(data: mtmeta.TaskData, split: str = "train") -> list[dict[str, Any]]:
    return list(Rows(data, split, f"tasks.x.{split}"))


CLASSES: dict[str, Callable[[], mtmeta.TaskData]] = {
    "lists": lambda: mtmeta.classification(TEXTS, LABELS),
    "tuples": lambda: mtmeta.classification(tuple(TEXTS), tuple(LABELS)),
    "iterators": lambda: mtmeta.classification(iter(TEXTS), iter(LABELS)),
    "numpy": lambda: mtmeta.classification(np.array(TEXTS), np.array(LABELS)),
    "series": lambda: mtmeta.classification(pd.Series(TEXTS), pd.Series(LABELS)),
    "both in one": lambda: mtmeta.classification((TEXTS, LABELS)),
    "pandas": lambda: mtmeta.classification(pd.DataFrame(TABLE)),
    "pandas of strange index": lambda: mtmeta.classification(pd.DataFrame(TABLE, index=[5] * 12)),
    "polars": lambda: mtmeta.classification(pl.DataFrame(TABLE)),
    "datasets": lambda: mtmeta.classification(datasets.Dataset.from_dict(TABLE)),
    "a stream of datasets": lambda: mtmeta.classification(
        datasets.IterableDataset.from_generator(lambda: iter(ROWS)), text="sentence"
    ),
    "arrow": lambda: mtmeta.classification(pa.table(TABLE)),
    "batches of arrow": lambda: mtmeta.classification(pa.table(TABLE).to_reader(5)),
    "arrow's protocol": lambda: mtmeta.classification(Table()),
    "a dict of lists": lambda: mtmeta.classification(TABLE),
    "a generator of tuples": lambda: mtmeta.classification(zip(TEXTS, LABELS, strict=True)),
    "a list of tuples": lambda: mtmeta.classification(list(zip(TEXTS, LABELS, strict=True))),
    "a generator of mappings": lambda: mtmeta.classification((row for row in ROWS), text="sentence"),
    "a function": lambda: mtmeta.classification(lambda: zip(TEXTS, LABELS, strict=True)),
    "examples": lambda: mtmeta.classification(
        mtmeta.Example(text, label=label) for text, label in zip(TEXTS, LABELS, strict=True)
    ),
}


@pytest.mark.parametrize("name", CLASSES)
def test_rows_are_the_same_whatever_holds_them(name: str) -> None:
    expected = [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]
    assert rows_of(CLASSES[name]()) == expected


PAIRS: dict[str, Callable[[], mtmeta.TaskData]] = {
    "two lists": lambda: mtmeta.similarity((TEXTS, OTHERS), SCORES),
    "a list of pairs": lambda: mtmeta.similarity(list(zip(TEXTS, OTHERS, strict=True)), SCORES),
    "numpy": lambda: mtmeta.similarity((np.array(TEXTS), np.array(OTHERS)), np.array(SCORES, dtype=np.int32)),
    "pandas": lambda: mtmeta.similarity(
        pd.DataFrame({"a": TEXTS, "b": OTHERS, "score": SCORES}), text=("a", "b"), label="score"
    ),
    "polars": lambda: mtmeta.similarity(pl.DataFrame({"text1": TEXTS, "text2": OTHERS, "score": SCORES})),
    "rows": lambda: mtmeta.similarity(zip(TEXTS, OTHERS, SCORES, strict=True)),
    "regression's": lambda: mtmeta.similarity((TEXTS, OTHERS), SCORES),
}


@pytest.mark.parametrize("name", PAIRS)
def test_pairs_are_the_same_whatever_holds_them(name: str) -> None:
    given = zip(TEXTS, OTHERS, SCORES, strict=True)
    assert rows_of(PAIRS[name]()) == [{"text": one, "pair": other, "label": score} for one, other, score in given]


@pytest.mark.parametrize(
    ("data", "classes", "labels"),
    [
        (mtmeta.classification(TEXTS[:3], [10, 9, 1]), None, ["10", "9", "1"]),
        (mtmeta.classification(TEXTS[:3], [True, False, True]), None, ["True", "False", "True"]),
        (mtmeta.classification(TEXTS[:3], pd.Series([1, None, 0])), None, ["1", None, "0"]),
        (mtmeta.classification(TEXTS[:3], pd.Series([1, pd.NA, 0], dtype="Int64")), None, ["1", None, "0"]),
        (
            mtmeta.classification(
                pd.DataFrame({"text": TEXTS[:2], "label": pd.Categorical(["b", "a"], ["b", "c", "a"])})
            ),
            ["b", "c", "a"],
            ["b", "a"],
        ),
        (
            mtmeta.classification(
                pl.DataFrame({"text": TEXTS[:2], "label": pl.Series(["b", "a"], dtype=pl.Enum(["b", "c", "a"]))})
            ),
            ["b", "c", "a"],
            ["b", "a"],
        ),
        (
            mtmeta.classification(
                datasets.Dataset.from_dict(
                    {"text": TEXTS[:3], "label": [1, 0, -1]},
                    features=datasets.Features(
                        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])}
                    ),
                )
            ),
            ["neg", "pos"],
            ["pos", "neg", None],
        ),
    ],
)
def test_labels_have_the_names_that_their_table_gives_them(
    data: mtmeta.TaskData, classes: list[str] | None, labels: list[str | None]
) -> None:
    rows = Rows(data, "train", "tasks.x.train")
    assert [row["label"] for row in rows] == labels
    assert rows.classes == classes


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (lambda: mtmeta.classification(TEXTS, LABELS[:-1]), "not of one length: one ends after 11"),
        (lambda: mtmeta.classification(TEXTS[:-1], LABELS), "not of one length: one ends after 11"),
        (lambda: mtmeta.classification("a text", "label"), "is 'a text', expected a list or a table"),
        (lambda: mtmeta.classification([1, 2], ["a", "b"]), "row 1: text is 1, expected a str"),
        (lambda: mtmeta.classification(TEXTS, [[1]] * 12), r"row 1: label is \[1\], expected one class"),
        (lambda: mtmeta.similarity((TEXTS, OTHERS), LABELS), "row 1: label is 'no', expected a number"),
        (lambda: mtmeta.similarity((TEXTS, OTHERS), [float("inf")] * 12), "row 1: label is inf; give a finite number"),
        (lambda: mtmeta.similarity(TEXTS, SCORES), "row 1 is 'word 0 ', expected two texts"),
        (lambda: mtmeta.similarity(pd.DataFrame(TABLE)), r"not clear of sentence, label, unread; give text=\(ONE"),
        (lambda: mtmeta.classification(pd.DataFrame(TABLE), text="sentense"), "did you mean 'sentence'"),
        (lambda: mtmeta.classification(pd.DataFrame(TABLE), LABELS), "is a table beside labels"),
        (lambda: mtmeta.classification(pl.DataFrame(TABLE).lazy()), "is a LazyFrame, which holds no rows yet"),
        (lambda: mtmeta.classification(iter(ROWS)), "row 1 has no 'text'"),
        (lambda: mtmeta.classification(iter([("a", "b", "c")])), "row 1 is .*, expected a mapping or a tuple of 2"),
        (lambda: mtmeta.classification(iter([])), "holds no examples; an iterator that was gone through"),
        (lambda: mtmeta.classification(5), "is 5, expected a list or a table"),
        (lambda: mtmeta.task("sst", TEXTS), "row 1 is 'word 0 ', expected a mapping of column names"),
        (lambda: mtmeta.task("sst", [{"sentence": object()}]), "row 1: sentence is .*, expected text or a number"),
    ],
)
def test_what_is_no_data_of_a_task_is_refused_in_one_line(data: Callable[[], mtmeta.TaskData], message: str) -> None:
    with pytest.raises(mtmeta.DataError, match=message) as refused:
        rows_of(data())
    assert refused.value.place == "tasks.x.train"
    assert len(refused.value.lines()) == 1


# ------------------------------------------------------------------------------------------------------------ training


def tasks(**changes: Any) -> dict[str, Any]:
    dev = (TEXTS[::-1], LABELS[::-1])
    return {
        "kind": mtmeta.classification(TEXTS, LABELS, dev=dev, batch_size=4, inner_steps=1, **changes),
        "same": mtmeta.similarity(
            pd.DataFrame({"a": TEXTS, "b": OTHERS, "score": SCORES}),
            text=("a", "b"),
            label="score",
            dev=((OTHERS, TEXTS), SCORES),
            batch_size=4,
            inner_steps=1,
        ),
    }


OPTIONS: dict[str, Any] = {
    "backbone": {"name": "bert", "weights": "tiny", "max_length": 16},
    "optimizer": {"name": "adamw", "lr": 1e-3},
    "evaluation": {"every": 1},
    "checkpoint": {"every": 2},
    "reporters": ["jsonl"],
    "device": "cpu",
    "steps": 5,
}


def weights(run: Path) -> str:
    return hashlib.sha256((run / "checkpoints" / "best" / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run from memory, to be read only."""
    out = tmp_path_factory.mktemp("finished") / "x"
    mtmeta.train(tasks(), out=out, **OPTIONS)
    return out


def test_a_run_from_memory_is_the_run_from_files_with_these_rows(finished: Path, tmp_path: Path) -> None:
    """Bit for bit, of files that somebody else wrote: CSV for the one, other columns for the other."""
    kind, same = pd.DataFrame({"t": TEXTS, "l": LABELS}), pd.DataFrame({"a": TEXTS, "b": OTHERS, "s": SCORES})
    kind.to_csv(tmp_path / "kind.csv", index=False)
    kind[::-1].to_csv(tmp_path / "kind-dev.csv", index=False)
    same.to_csv(tmp_path / "same.csv", index=False)
    same.rename(columns={"a": "b", "b": "a"}).to_csv(tmp_path / "same-dev.csv", index=False)
    common = {"batch_size": 4, "inner_steps": 1}
    recipe = {
        **{key: value for key, value in OPTIONS.items() if key not in ("device", "steps")},
        "tasks": {
            "kind": {"task": "classification", "text": "t", "label": "l", "labels": ["no", "yes"], **common},
            "same": {"task": "similarity", "text": "a", "pair": "b", "label": "s", **common},
        },
        "data_root": str(tmp_path),
        "algorithm": "joint",
        "schedule": "cosine",
        "training": {"steps": 5, "clip": 1.0},
    }
    for name in ("kind", "same"):
        recipe["tasks"][name] |= {"train": f"{name}.csv", "dev": f"{name}-dev.csv"}
    run = mtmeta.run(recipe, out=tmp_path / "files", device="cpu")
    assert weights(tmp_path / "files") == weights(finished)
    again = mtmeta.run(finished)
    assert again.mean == run.mean
    assert again.predict("kind", "word 1 good") == run.predict("kind", "word 1 good")


def test_the_files_hold_the_rows_and_are_named_by_their_hash(finished: Path) -> None:
    lock = (finished / "recipe.lock.yaml").read_text()
    files = sorted((finished / "rows").iterdir())
    assert [path.name.rsplit("-", 1)[0] for path in files] == ["kind-dev", "kind-train", "same-dev", "same-train"]
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stem.endswith(digest[:16])
        assert f"{path.stem.rsplit('-', 1)[0]}: {digest}" in lock
    rows = [json.loads(line) for line in files[1].read_text().splitlines()]
    assert rows == [{"text": text, "label": label} for text, label in zip(TEXTS, LABELS, strict=True)]


@pytest.mark.parametrize("step", [0, 1, 3, 4])
@pytest.mark.parametrize("by", ["the same call", "mtmeta run OUT"])
def test_a_cut_run_goes_on_to_the_same_bits(step: int, by: str, tmp_path: Path) -> None:
    out = tmp_path / "x"
    mtmeta.train(tasks(), out=out, **OPTIONS)
    whole = outcome(out)
    shutil.rmtree(out)
    with killed_before_step(step):
        mtmeta.train(tasks(), out=out, **OPTIONS)
    if by == "the same call":
        mtmeta.train(tasks(), out=out, **OPTIONS)
    else:
        with pytest.raises(SystemExit) as ended:
            main(["run", str(out), "--device", "cpu", "--json"])
        assert ended.value.code in (0, None)
    assert outcome(out) == whole


def test_the_data_goes_with_the_run(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Moved elsewhere, and where MTMETA_DATA names another folder, every command finds it."""
    monkeypatch.setenv("MTMETA_DATA", str(tmp_path))
    moved = Path(shutil.copytree(finished, tmp_path / "moved", symlinks=True))
    before = mtmeta.evaluate(finished, split="train", device="cpu")
    os.rename(finished, finished.with_name("away"))
    try:
        assert mtmeta.evaluate(moved, split="train", device="cpu")["tasks"] == before["tasks"]
        assert mtmeta.run(moved)["tasks"].keys() == before["tasks"].keys()
        recipe = moved / "recipe.yaml"
        other = mtmeta.run(recipe, out=tmp_path / "other", overrides=["seed=1"], device="cpu")
        assert other["seed"] == 1
    finally:
        os.rename(finished.with_name("away"), finished)


def test_a_changed_row_is_another_recipe(finished: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(finished, tmp_path / "x", symlinks=True))
    changed = {**tasks(), "kind": mtmeta.classification([*TEXTS[:-1], "new"], LABELS, dev=(TEXTS, LABELS))}
    before = outcome(run)
    with pytest.raises(mtmeta.CheckpointError, match=r"differs in: .*tasks\.kind\.train"):
        mtmeta.train(changed, out=run, **OPTIONS)
    assert outcome(run) == before  # with the rows of that run, and without those that were refused
    mtmeta.train(changed, out=run, fresh=True, **OPTIONS)
    assert len(list((run / "rows").iterdir())) == 4  # and not the old ones


@pytest.mark.parametrize("error", [mtmeta.DataError, mtmeta.RecipeError])
def test_what_is_refused_leaves_nothing(error: type[Exception], tmp_path: Path) -> None:
    bad: dict[str, Any] = tasks()
    options = dict(OPTIONS)
    if error is mtmeta.DataError:
        bad["kind"] = mtmeta.classification(TEXTS, LABELS, dev=(TEXTS, ["maybe"] * 12))
    else:
        options["evaluation"] = {"evry": 1}
    with pytest.raises(error):
        mtmeta.train(bad, out=tmp_path / "deep" / "x", **options)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(mtmeta.UsageError, match="not empty and not an mtmeta run"):
        mtmeta.train(tasks(), out=tmp_path, **OPTIONS)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_rows_of_a_run_that_was_killed_before_it_began_are_no_obstacle(tmp_path: Path) -> None:
    class Cut(BaseException):
        pass

    def cut() -> Iterator[tuple[str, str]]:
        yield "a", "no"
        raise Cut

    files = RowFiles(tmp_path / "x")
    files.write("kind", "train", rows_of(mtmeta.classification(TEXTS, LABELS)))
    with pytest.raises(Cut):
        files.write("kind", "dev", ({"text": text, "label": label} for text, label in cut()))
    assert len(list((tmp_path / "x" / "rows").iterdir())) == 1
    mtmeta.train(tasks(), out=tmp_path / "x", **OPTIONS)
    assert (tmp_path / "x" / "summary.json").exists()


def test_rows_go_to_no_other_place(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "x" / "rows").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(mtmeta.MachineError, match="rows: cannot be written"):
        mtmeta.train(tasks(), out=tmp_path / "x", **OPTIONS)
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_share_of_the_data_and_files_beside_it(tmp_path: Path) -> None:
    (tmp_path / "f.csv").write_text(
        "sentence,label\n" + "".join(f"{t},{n}\n" for t, n in zip(TEXTS, LABELS, strict=True))
    )
    file = os.path.relpath(tmp_path / "f.csv")
    given: dict[str, Any] = {
        "kind": mtmeta.classification(TEXTS, LABELS, dev=0.25, batch_size=4),
        "file": {"task": "classification", "labels": ["no", "yes"], "train": file, "dev": file, "batch_size": 4},
    }
    run = mtmeta.train(given, out=tmp_path / "x", **OPTIONS)
    assert run.tasks["kind"]["examples"] < 12 == run.tasks["file"]["examples"]
    given.pop("kind")
    with pytest.raises(mtmeta.RecipeError, match=r"give steps=\.\.\. or epochs=\.\.\."):
        mtmeta.train(given, out=tmp_path / "y", **{**OPTIONS, "steps": None})


@pytest.mark.parametrize("algorithm", ["joint", "reptile", None])
def test_how_long_it_trains_where_nobody_says(algorithm: str | None, tmp_path: Path) -> None:
    run = mtmeta.train(
        tasks(), algorithm=algorithm, out=tmp_path / "x", **{**OPTIONS, "steps": None, "evaluation": None}
    )
    assert 2 * 24 <= run["examples"] <= 3 * 24


def test_a_class_of_ones_own(tmp_path: Path) -> None:
    """A task of columns of its own, in no package, on rows from memory."""

    class Stars(mtmeta.Task):
        """Stars of a review."""

        name = "stars"
        objective = mtmeta.Classification(labels=("1", "2"))
        metrics = ("accuracy", "least")

        def read(self, file: mtmeta.DataFile) -> Iterator[mtmeta.Example]:
            for row in file.rows("title", "body", "stars"):
                yield mtmeta.Example(f"{row['title']}. {row['body']}", label=row["stars"], id=row.id, line=row.line)

    def least(labels: Any, predictions: Any) -> float:
        return float((labels >= predictions).mean())

    rows = [{"title": f"t {i}", "body": f"word {i}", "stars": 1 + i % 2} for i in range(8)]
    parts = [Stars, mtmeta.Metric("least", least, needs="classes")]
    out = tmp_path / "x"
    run = mtmeta.train({"shop": mtmeta.task(Stars, rows, dev=rows)}, out=out, plugins=parts, **OPTIONS)
    assert run.predict("shop", "t 1. word 1").label in ("1", "2")
    assert "least" in run.tasks["shop"]["others"]
    with pytest.raises(mtmeta.MtmetaError, match="unknown task 'stars'") as refused:
        mtmeta.evaluate(out)
    assert "Stars', 'metric " in refused.value.lines()[1]
    assert refused.value.lines()[1].endswith("open it in Python with plugins=[...], or package it")


@pytest.mark.slow
def test_memory_is_that_of_a_block(tmp_path: Path) -> None:
    """Of a hundred times the rows no more memory is taken, and an endless class of labels is refused."""

    def peak(count: int) -> int:
        rows = ((f"a text of some words, number {i}", "no" if i % 2 else "yes") for i in range(count))
        tracemalloc.start()
        RowFiles(tmp_path / "x").write("kind", "train", Rows(mtmeta.classification(rows), "train", "tasks.kind.train"))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    small, large = peak(2_000), peak(200_000)
    assert large < 1.2 * small + 2**18


def test_parts_may_be_objects_and_numbers_of_numpy(finished: Path, tmp_path: Path) -> None:
    """A recipe of objects is the same as one of plain data, to the bit and by its digest."""
    options = OPTIONS | {
        "backbone": {"name": "bert", "weights": "tiny", "max_length": np.int64(16)},
        "optimizer": mtmeta.AdamW(lr=1e-3),
        "steps": np.int32(5),
    }
    run = mtmeta.train(tasks(), algorithm={"name": "joint"}, out=tmp_path / "x", **options)
    assert weights(run.path) == weights(finished)
    digest = "recipe: [0-9a-f]{64}"
    locks = [(path / "recipe.lock.yaml").read_text() for path in (run.path, finished)]
    assert re.findall(digest, locks[0]) == re.findall(digest, locks[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"algorithm": mtmeta.AdamW}, r"recipe: algorithm is the class AdamW; write AdamW\(\.\.\.\)"),
        ({"evaluation": {"every": {1}}}, "recipe: evaluation.every is of type set; give plain data"),
        ({"evaluation": {1: 2}}, "recipe: key 1 in evaluation is no text"),
        ({"training": {"clip": float("nan")}}, "recipe: training.clip is nan; give a finite number"),
        ({"evalution": {}}, "recipe: unknown key 'evalution'; did you mean 'evaluation'"),
        ({"data_root": "x"}, "train.. makes 'tasks' and 'data_root' itself"),
    ],
)
def test_what_no_recipe_can_hold_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(mtmeta.RecipeError, match=message):
        mtmeta.train(tasks(), out=tmp_path / "x", **{**OPTIONS, **change})
    assert list(tmp_path.iterdir()) == []
