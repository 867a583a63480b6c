"""Dev splits taken out of training files: which rows they get, and that everything downstream knows of it."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import TypeAdapter

import mtmeta
from mtmeta.core.api.option_types import Carve
from mtmeta.core.data.carving import carved
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.examples import write_examples
from mtmeta.core.data.loading import load_split
from mtmeta.core.data.subsets import overlap, subset
from mtmeta.core.data.tokens import hashes
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.resolved import describe, digest, dump
from mtmeta.core.recipe.sections import DataOptions
from mtmeta.core.recipe.strict_yaml import read_file
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.run.request import RunRequest
from mtmeta.core.storage.cache import Cache
from mtmeta.core.studies.compare import plan_runs
from mtmeta.core.studies.planned_run import job_of
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.generic import ClassificationTask, PairClassificationTask, RegressionTask
from tests.core.data.test_loading import letters
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, call

Capture = pytest.CaptureFixture[str]
WORDS = ("red", "green", "blue", "old", "new", "fast", "slow", "big")


def table(path: Path, rows: Sequence[Sequence[object]], *names: str) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *rows])


def single(folder: Path, rows: int = 200) -> list[tuple[str, str, str]]:
    """Rows id, sentence, label: 3 classes of unequal size, every tenth text stands there twice."""
    made = []
    for i in range(rows):
        twin = i - 1 if i % 10 == 1 else i
        text = f"{WORDS[twin % 8]} thing {twin}"
        made.append((f"r{i}", text, "abc"[0 if i % 5 else 1 + i % 2]))
    table(folder / "t.csv", made, "id", "sentence", "label")
    return made


def splits(
    folder: Path, task: mtmeta.Task, cache: Cache | None = None, texts: mtmeta.LoadedTokenizer | None = None
) -> tuple[Dataset, Dataset]:
    train, dev = (
        load_split("t", task, split, DataOptions(), str(folder), texts or letters(), cache=cache or Cache(None))
        for split in ("train", "dev")
    )
    return train, dev


def test_every_class_gives_its_share_and_no_row_is_on_both_sides(tmp_path: Path) -> None:
    rows = single(tmp_path)
    carve = Carve(fraction=0.2, seed=5, together="none")
    train, dev = splits(tmp_path, ClassificationTask(train="t.csv", dev=carve, labels=("a", "b", "c")))
    total = Counter(label for _, _, label in rows)
    labels = {name: label for name, _, label in rows}
    assert Counter(labels[name] for name in dev.ids) == {label: round(0.2 * count) for label, count in total.items()}
    order = [name for name, _, _ in rows]
    assert sorted([*train.ids, *dev.ids], key=order.index) == order
    assert [*train.ids] == [name for name in order if name in set(train.ids)]  # file order
    assert (train.split, dev.split) == ("train", "dev")
    by_id = {name: text for name, text, _ in rows}
    spelt = ["".join(map(chr, ids[1:-1])) for ids in sequences(dev)]
    assert spelt == [by_id[name] for name in dev.ids]


def sequences(data: Dataset) -> list[list[int]]:
    (store,) = data.stores
    return [store.ids[a:b].tolist() for a, b in zip(store.offsets, store.offsets[1:], strict=False)]


def test_equal_texts_stay_together(tmp_path: Path) -> None:
    rows = single(tmp_path)
    texts = {name: text for name, text, _ in rows}
    task = ClassificationTask(train="t.csv", dev=Carve(fraction=0.2, seed=5), labels=("a", "b", "c"))
    train, dev = splits(tmp_path, task)
    assert not {texts[name] for name in train.ids} & {texts[name] for name in dev.ids}
    assert overlap(train, dev) == 0
    assert len(dev) == 40
    apart = ClassificationTask(train="t.csv", dev=Carve(fraction=0.5, seed=5, together="none"), labels=("a", "b", "c"))
    assert overlap(*splits(tmp_path, apart)) > 0  # or the test would say nothing


def test_a_text_in_other_letters_is_the_same_text(tmp_path: Path) -> None:
    rows = [(f"{i}{part}", text, "ab"[i % 2]) for i in range(40) for part, text in enumerate((f"Go {i}!", f"go  {i}"))]
    table(tmp_path / "t.csv", rows, "id", "sentence", "label")
    task = ClassificationTask(train="t.csv", dev=Carve(fraction=0.25, seed=1), labels=("a", "b"))
    train, dev = splits(tmp_path, task)
    assert {name[:-1] for name in dev.ids}.isdisjoint(name[:-1] for name in train.ids)
    assert len(dev) == 20


def brute_parts(pairs: Sequence[tuple[str, str]]) -> list[set[int]]:
    """Rows that hang together by sentences, by merging sets until nothing moves."""
    parts = [({i}, set(pair)) for i, pair in enumerate(pairs)]
    moved = True
    while moved:
        moved = False
        for one in range(len(parts)):
            for other in range(len(parts) - 1, one, -1):
                if parts[one][1] & parts[other][1]:
                    parts[one] = (parts[one][0] | parts[other][0], parts[one][1] | parts[other][1])
                    del parts[other]
                    moved = True
    return [rows for rows, _ in parts]


@given(
    pairs=st.lists(st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("klmnopqrst")), min_size=2, max_size=30),
    seed=st.integers(0, 9),
)
@settings(max_examples=60, deadline=None)
def test_what_shares_a_sentence_stays_together(pairs: list[tuple[str, str]], seed: int) -> None:
    texts = hashes([a for a, _ in pairs], [b for _, b in pairs])
    chosen = carved(texts, np.zeros(len(pairs), dtype=np.int64), Carve(fraction=0.4, seed=seed, together="sentence"))
    for rows in brute_parts(pairs):
        assert len({bool(chosen[row]) for row in rows}) == 1
    assert not chosen.all()


def some(count: int, labels: int = 2) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    return hashes([f"text number {i}" for i in range(count)]), np.arange(count) % labels


def test_the_same_rows_on_every_machine() -> None:
    """Whoever changes how rows are drawn changes everybody's dev splits: these may not move."""
    texts, strata = some(60)
    chosen = np.flatnonzero(carved(texts, strata, Carve(fraction=0.1, seed=11711)))
    assert chosen.tolist() == GOLDEN
    assert np.flatnonzero(carved(texts, strata, Carve(fraction=0.1, seed=11712))).tolist() != GOLDEN


GOLDEN = [5, 6, 29, 40, 51, 54]


@given(order=st.permutations(range(40)), seed=st.integers(0, 5), together=st.sampled_from(["example", "sentence"]))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_file_does_not_count(order: list[int], seed: int, together: str) -> None:
    texts, strata = some(40, 3)
    carve = Carve(fraction=0.2, seed=seed, together=together)  # type: ignore[arg-type]
    chosen = carved(texts, strata, carve)
    assert (carved(texts[order], strata[order], carve) == chosen[order]).all()


def test_a_row_more_moves_hardly_any_other() -> None:
    texts, strata = some(1000)
    more, longer = some(1001)
    carve = Carve(fraction=0.1, seed=3)
    before, after = carved(texts, strata, carve), carved(more, longer, carve)[:1000]
    assert (before != after).sum() <= 1


def test_numbers_are_shared_out_by_rank(tmp_path: Path) -> None:
    rows = [(i, f"text {i}", i / 100) for i in range(100)]
    table(tmp_path / "t.csv", rows, "id", "sentence", "label")
    _, dev = splits(tmp_path, RegressionTask(train="t.csv", dev=Carve(fraction=0.2, seed=1), low=0, high=1))
    assert Counter((dev.labels * 100).round().astype(int) // 20) == dict.fromkeys(range(5), 4)


def test_train_fraction_is_of_what_remains(tmp_path: Path) -> None:
    single(tmp_path)
    task = ClassificationTask(train="t.csv", dev=Carve(fraction=0.2, seed=5), labels=("a", "b", "c"))
    train, dev = splits(tmp_path, task)
    part = subset(train, 0.5, 1, "t")
    assert set(part.ids) < set(train.ids)
    assert not set(part.ids) & set(dev.ids)
    assert len(part) == pytest.approx(len(train) / 2, abs=2)


def test_the_cache_holds_the_whole_file_once(tmp_path: Path) -> None:
    single(tmp_path)
    cache, texts = Cache(tmp_path / "cache"), Bert(weights="tiny").load_tokenizer()
    labels = ("a", "b", "c")
    for fraction in (0.1, 0.3):
        task = ClassificationTask(train="t.csv", dev=Carve(fraction=fraction, seed=5), labels=labels)
        for kept, fresh in zip(splits(tmp_path, task, cache, texts), splits(tmp_path, task, None, texts), strict=True):
            assert [*kept.ids] == [*fresh.ids]
            assert sequences(kept) == sequences(fresh)
            assert kept.sha256 == fresh.sha256
    assert len([path for path in (tmp_path / "cache").iterdir() if path.name.startswith("tokens-")]) == 1


def test_a_file_that_is_not_kept_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train and the dev split taken out of it come from one reading, but not those of a later run."""
    single(tmp_path)
    reading: list[int] = []

    def counted(*arguments: Any, **options: Any) -> Any:
        reading.append(1)
        return write_examples(*arguments, **options)

    monkeypatch.setattr("mtmeta.core.data.loading.write_examples", counted)
    task = ClassificationTask(train="t.csv", dev=Carve(fraction=0.1, seed=5), labels=("a", "b", "c"))
    cache = Cache(None)
    first = splits(tmp_path, task, cache)
    assert len(reading) == 1
    again = splits(tmp_path, task, cache)
    assert len(reading) == 2
    assert [[*data.ids] for data in first] == [[*data.ids] for data in again]


def test_what_cannot_be_divided(tmp_path: Path) -> None:
    table(tmp_path / "t.csv", [(1, "one", "a"), (2, "two", "b")], "id", "sentence", "label")
    task = ClassificationTask(train="t.csv", dev=Carve(fraction=0.5, seed=1), labels=("a", "b"))
    with pytest.raises(mtmeta.DataError, match=r"t\.csv: no dev split of 0\.5 can be taken out of 2 examples; name a"):
        splits(tmp_path, task)


# ------------------------------------------------------------------------------------------------------------- recipes

RECIPE = """\
name: carve
seed: 7
data_root: .
backbone: {name: bert, weights: tiny, max_length: 32}
tasks:
  t: {task: classification, labels: [a, b, c], train: t.csv, dev: DEV, batch_size: 8}
algorithm: joint
optimizer: {name: adamw, lr: 1e-3}
training: {steps: 4}
evaluation: {every: 2}
reporters: [jsonl]
"""


def recipe(folder: Path, dev: str = "{fraction: 0.2}", file: str = "r.yaml", **changes: str) -> Path:
    text = RECIPE.replace("DEV", dev)
    for old, new in changes.items():
        text = text.replace(f"{old}: ", f"{old}: {new} #", 1)
    (folder / file).write_text(text)
    return folder / file


@pytest.mark.parametrize(
    ("dev", "words"),
    [
        ("10%", ("tasks.t.dev: '10%' is no file name; a share of the training file is {fraction: 0.1}",)),
        ("'0.1'", ("tasks.t.dev: '0.1' is no file name",)),
        ("0.1", ("tasks.t.dev must be text or a mapping or null, found 0.1",)),
        ("{fraction: 1}", ("tasks.t.dev.fraction must be a number > 0 and < 1, found 1",)),
        ("{fraction: 0}", ("tasks.t.dev.fraction must be a number > 0 and < 1, found 0",)),
        ("{fraction: .nan}", ("tasks.t.dev.fraction",)),
        ("{fraction: 0.1, sed: 1}", ("unknown key 'sed' in 'tasks.t.dev'; did you mean 'seed'?",)),
        ("{fraction: 0.1, together: text}", ("tasks.t.dev.together must be one of example, sentence, none",)),
        ("{}", ("tasks.t.dev needs 'fraction'; add it",)),
        ("{fraction: 0.1, seed: -1}", ("tasks.t.dev.seed must be an integer from 0 to",)),
        ("true", ("tasks.t.dev must be text or a mapping or null, found true",)),
    ],
)
def test_refusals(dev: str, words: tuple[str, ...], tmp_path: Path, capsys: Capture) -> None:
    recipe(tmp_path, dev)
    assert_refused(call("validate", "r.yaml", cwd=tmp_path, capsys=capsys), 2, "r.yaml:6:", *words)


def test_the_recipe_seeds_it_and_comes_back_the_same(tmp_path: Path) -> None:
    registry = build_registry()
    path = recipe(tmp_path)
    made = load_recipe(path, registry, environ={})
    assert made.tasks["t"].dev == Carve(fraction=0.2, seed=7)
    other = load_recipe(path, registry, overrides=["seed=8", "tasks.t.dev.fraction=0.3"], environ={})
    assert other.tasks["t"].dev == Carve(fraction=0.3, seed=8)
    (tmp_path / "again.yaml").write_text(dump(describe(made)))
    assert load_recipe(tmp_path / "again.yaml", registry, environ={}) == made
    pinned = load_recipe(recipe(tmp_path, "{fraction: 0.2, seed: 7}", "p.yaml"), registry, environ={})
    assert digest(pinned) == digest(made)
    assert load_recipe(path, registry, overrides=["seed=8", "tasks.t.dev.seed=7"], environ={}).tasks == made.tasks


def test_the_schema_of_a_task_has_it() -> None:
    """What an editor is told: a file name, a share with its limits, or null."""
    schema = TypeAdapter(ClassificationTask).json_schema()
    kinds = schema["properties"]["dev"]["anyOf"]
    assert [kind.get("type", kind.get("$ref")) for kind in kinds] == ["string", "#/$defs/Carve", "null"]
    fraction = schema["$defs"]["Carve"]["properties"]["fraction"]
    assert (fraction["exclusiveMinimum"], fraction["exclusiveMaximum"]) == (0, 1)
    assert schema["$defs"]["Carve"]["required"] == ["fraction"]


def weights_of(run: Path) -> str:
    """What the manifest of the best checkpoint says of its weights."""
    return str(json.loads((run / "checkpoints" / "best" / "MANIFEST.json").read_text())["files"]["model.safetensors"])


def test_a_run_is_that_on_two_files_made_by_hand(tmp_path: Path, capsys: Capture) -> None:
    """The same rows in two files give the same weights and predictions, bit for bit."""
    rows = single(tmp_path)
    recipe(tmp_path)
    assert call("run", "r.yaml", "--out", "a", cwd=tmp_path, capsys=capsys).code == 0
    lock = read_file(tmp_path / "a" / "recipe.lock.yaml").data
    with open(tmp_path / "a" / "predictions" / "t-dev.csv", newline="") as file:
        chosen = {row["id"] for row in csv.DictReader(file)}
    carving = {"from": "t.csv", "fraction": 0.2, "together": "example", "seed": 7, "rows": 40}
    assert lock["carved"] == {"t": carving}
    assert lock["data"]["t-dev"] != lock["data"]["t-train"]
    table(tmp_path / "dev.csv", [row for row in rows if row[0] in chosen], "id", "sentence", "label")
    table(tmp_path / "rest.csv", [row for row in rows if row[0] not in chosen], "id", "sentence", "label")
    by_hand = (tmp_path / "r.yaml").read_text().replace("{fraction: 0.2}", "dev.csv").replace("t.csv", "rest.csv")
    (tmp_path / "h.yaml").write_text(by_hand)
    assert call("run", "h.yaml", "--out", "b", cwd=tmp_path, capsys=capsys).code == 0
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")
    made = [(tmp_path / run / "predictions" / "t-dev.csv").read_bytes() for run in ("a", "b")]
    assert made[0] == made[1]

    before = json.loads((tmp_path / "a" / "summary.json").read_text())["tasks"]
    outcome = call("eval", "a", "--json", cwd=tmp_path, capsys=capsys)
    assert json.loads(outcome.out)["tasks"] == before
    outcome = call("eval", "a", "--split", "train", "--json", cwd=tmp_path, capsys=capsys)
    assert json.loads(outcome.out)["tasks"]["t"]["examples"] == 160

    # a row more in the file is another file, and may be another split
    with open(tmp_path / "t.csv", "a") as file:
        file.write("r200,one more,a\n")
    (tmp_path / "a" / "summary.json").unlink()
    for arguments in (("run", "r.yaml", "--out", "a"), ("eval", "a")):
        assert_refused(call(*arguments, cwd=tmp_path, capsys=capsys), 3, "t.csv: changed since this run started")


def test_a_run_that_was_cut_goes_on_to_the_same_weights(tmp_path: Path, capsys: Capture) -> None:
    single(tmp_path)
    recipe(tmp_path)
    whole = ("--set", "checkpoint.every=2")
    assert call("run", "r.yaml", "--out", "a", *whole, cwd=tmp_path, capsys=capsys).code == 0
    assert call("run", "r.yaml", "--out", "b", *whole, cwd=tmp_path, capsys=capsys).code == 0
    (tmp_path / "b" / "summary.json").unlink()
    newest = max((tmp_path / "b" / "checkpoints").glob("step-*"))
    if (tmp_path / "b" / "checkpoints" / "best").resolve() != newest.resolve():
        for path in sorted(newest.iterdir()):
            path.unlink()
        newest.rmdir()
    assert call("run", "r.yaml", "--out", "b", *whole, cwd=tmp_path, capsys=capsys).code == 0
    assert weights_of(tmp_path / "a") == weights_of(tmp_path / "b")


def test_seeds_are_compared_on_one_dev_set(tmp_path: Path) -> None:
    """What `compare` plans, and what it tells the processes that train."""
    registry, path = build_registry(), recipe(tmp_path)
    request = RunRequest(out=tmp_path / "out")
    plan = plan_runs([path], registry, 3, request)
    assert [run.recipe.seed for run in plan["carve"]] == [7, 8, 9]
    for run in plan["carve"]:
        assert run.recipe.tasks["t"].dev == Carve(fraction=0.2, seed=7)
        arguments = job_of(run, request).arguments
        overrides = [text.removeprefix("--set=") for text in arguments if text.startswith("--set=")]
        assert load_recipe(path, registry, overrides=overrides) == run.recipe
    for name, dev in (("seeded", "{fraction: 0.2, seed: 9}"), ("filed", "t.csv")):
        other = recipe(tmp_path, dev, f"{name}.yaml", name=name)
        with pytest.raises(mtmeta.RecipeError, match=f"carve: takes another dev split out of task 't' than '{name}'"):
            plan_runs([path, other], registry, 1, request)
    same = recipe(tmp_path, "{fraction: 0.2, seed: 7}", "same.yaml", name="same", seed="3")
    assert len(plan_runs([path, same], registry, 1, request)) == 2


def test_pairs_in_either_order_are_one_example(tmp_path: Path) -> None:
    rows = [
        (f"{i}{n}", *pair, "ab"[i % 2])
        for i in range(30)
        for n, pair in enumerate(((f"x {i}", f"y {i}"), (f"y {i}", f"x {i}")))
    ]
    table(tmp_path / "t.csv", rows, "id", "sentence1", "sentence2", "label")
    task = PairClassificationTask(train="t.csv", dev=Carve(fraction=0.2, seed=1), labels=("a", "b"))
    train, dev = splits(tmp_path, task)
    assert {name[:-1] for name in dev.ids}.isdisjoint(name[:-1] for name in train.ids)
