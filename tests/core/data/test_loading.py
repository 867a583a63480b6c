"""Files to datasets: which rows are kept, which texts are cut, and what the refusals say."""

from __future__ import annotations

import difflib
import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mtmeta
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.loading import from_examples, load_split
from mtmeta.core.data.subsets import subset
from mtmeta.core.recipe.sections import DataOptions
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.generic import ClassificationTask, RegressionTask
from mtmeta.plugins.tasks.para import Para
from mtmeta.plugins.tasks.sst import Sst
from mtmeta.plugins.tasks.sts import Sts

SKIP = DataOptions(on_bad_rows="skip")
GOOD = """\
\tid\tsentence1\tsentence2\tis_duplicate
0\taa\tone?\ttwo?\t0.0
1\tbb\tthree?\tfour?\t1.0
"""
BAD = """\
\tid\tsentence1\tsentence2\tis_duplicate
0\taa\tone?\ttwo?\t0.0
1\tbb\tthree?\tfour?\t
2\tcc\t  \tfive?\t1.0
3\tdd\tsix?\tseven?\t1.0
4\tee\teight?\tnine?\t2
5\tff\tten?
"""


@dataclass
class Letters:
    """One token a letter."""

    prefix: tuple[int, ...] = (1,)
    middle: tuple[int, ...] = (2,)
    suffix: tuple[int, ...] = (3,)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        return [[ord(letter) for letter in text] for text in texts]


def write(folder: Path, text: str, name: str = "d.csv") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return name


def letters(max_length: int = 64) -> mtmeta.LoadedBackbone:
    return mtmeta.LoadedBackbone(torch.nn.Identity(), Letters(), max_length, {}, "")


def read(folder: Path, task: mtmeta.Task, options: DataOptions | None = None, split: str = "train") -> Dataset:
    return load_split("t", task, split, options or DataOptions(), str(folder), letters())


def texts(data: Dataset, store: int = 0) -> list[str]:
    """What the sequences spell, between the special tokens."""
    return ["".join(map(chr, ids[1:-1])) for ids in sequences(data, store)]


def refusal(folder: Path, task: mtmeta.Task, split: str = "train") -> str:
    with pytest.raises(mtmeta.DataError) as caught:
        read(folder, task, split=split)
    return str(caught.value)


# -------------------------------------------------------------------------------------------------------------- rows


def test_good_rows(tmp_path: Path) -> None:
    name = write(tmp_path, GOOD)
    data = read(tmp_path, Para(train=name))
    assert (texts(data, 0), texts(data, 1)) == (["one?", "three?"], ["two?", "four?"])
    assert (data.labels.tolist(), list(data.ids)) == ([0.0, 1.0], ["aa", "bb"])
    assert (data.file, data.bad, data.skipped) == (str(tmp_path / name), (), 0)
    assert data.sha256 == hashlib.sha256(GOOD.encode()).hexdigest()


def test_bad_rows_are_an_error_with_file_line_and_count(tmp_path: Path) -> None:
    name = write(tmp_path, BAD)
    assert refusal(tmp_path, Para(train=name)) == (
        f"{tmp_path / name}:3: label is empty (4 such lines: 3, 4, 6, 7); mend it or set data.on_bad_rows: skip"
    )


def test_one_bad_row(tmp_path: Path) -> None:
    name = write(tmp_path, GOOD + "2\tcc\tfive?\tsix?\tyes\n")
    fix = "; mend it or set data.on_bad_rows: skip"
    assert refusal(tmp_path, Para(train=name)) == f"{tmp_path / name}:4: label 'yes' is not one of 0, 1{fix}"


def test_a_reason_with_its_own_fix_keeps_it(tmp_path: Path) -> None:
    name = write(tmp_path, "sentence\tlabel\nfine\tyes\nbad\tyse\n")
    task = ClassificationTask(train=name, labels=("yes", "no"))
    assert refusal(tmp_path, task) == f"{tmp_path / name}:3: label 'yse' is not one of yes, no; did you mean 'yes'?"


def test_more_than_five_bad_rows(tmp_path: Path) -> None:
    name = write(tmp_path, "sentence\tsentiment\n" + "fine\t7\n" * 9)
    assert refusal(tmp_path, Sst(train=name)) == (
        f"{tmp_path / name}:2: label '7' is not one of 0, 1, 2, 3, 4 (9 such lines: 2, 3, 4, 5, 6, ...)"
        "; mend it or set data.on_bad_rows: skip"
    )


def test_bad_rows_are_skipped_and_counted(tmp_path: Path) -> None:
    name = write(tmp_path, BAD)
    data = read(tmp_path, Para(train=name), SKIP)
    assert list(data.ids) == ["aa", "dd"]
    assert [(row.line, row.reason) for row in data.bad] == [
        (3, "label is empty"),
        (4, "text is empty"),
        (6, "label '2' is not one of 0, 1"),
        (7, "3 fields, expected 5"),
    ]
    assert data.skipped == 4


def test_without_a_good_row_there_is_nothing_to_skip_to(tmp_path: Path) -> None:
    name = write(tmp_path, "sentence\tsentiment\nfine\t7\n")
    with pytest.raises(mtmeta.DataError) as caught:
        read(tmp_path, Sst(train=name), SKIP)
    assert str(caught.value) == f"{tmp_path / name}: no good rows, 1 bad ones"


@pytest.mark.parametrize("label", ["nan", "inf", "-1", "5.1", ""])
def test_regression_labels_must_be_finite_and_in_range(label: str, tmp_path: Path) -> None:
    name = write(tmp_path, f"sentence1\tsentence2\tsimilarity\na\tb\t2.5\nc\td\t{label}\n")
    reason = (
        f"label '{label}' is outside 0 to 5" if label in ("-1", "5.1") else f"label '{label}' is not a finite number"
    )
    assert refusal(tmp_path, Sts(train=name)) == (
        f"{tmp_path / name}:3: {reason}; mend it or set data.on_bad_rows: skip"
    )


def test_one_class_is_nothing_to_learn_but_may_be_scored(tmp_path: Path) -> None:
    name = write(tmp_path, "sentence\tsentiment\nfine\t3\ngood\t3\n")
    task = Sst(train=name, dev=name)
    assert refusal(tmp_path, task) == f"{tmp_path / name}: all 2 labels are '3'; there is nothing to learn"
    assert len(read(tmp_path, task, split="dev")) == 2


def test_a_split_without_a_file(tmp_path: Path) -> None:
    what = "has no test file; add 'test:' to the recipe or pass --file t=PATH"
    assert refusal(tmp_path, Sst(train="x"), "test") == f"task 't': {what}"


def test_rows_without_an_id_are_named_by_their_line(tmp_path: Path) -> None:
    name = write(tmp_path, "sentence,score\na,1\n\nb,2\n")
    data = read(tmp_path, RegressionTask(train=name, low=0, high=2, label="score"))
    assert list(zip(data.ids, data.labels.tolist(), strict=True)) == [("2", 1.0), ("4", 2.0)]


# ---------------------------------------------------------------------------------------------------- train_fraction


def labelled(labels: Sequence[float]) -> Dataset:
    """Examples whose ids are their places; numbers with a fraction make a regression task."""
    found = [mtmeta.Example(f"text {i}", label=label, id=str(i)) for i, label in enumerate(labels)]
    task: mtmeta.Task = ClassificationTask(train="x", labels=10)
    if any(isinstance(label, float) for label in labels):
        task = RegressionTask(train="x", low=0.0, high=1e6)
    return from_examples("t", task, "train", found, letters())


def test_subset_is_stratified_and_in_file_order() -> None:
    labels = [i % 10 for i in range(200)]
    labels = [0 if label < 6 else 1 if label < 9 else 2 for label in labels]  # 120, 60, 20
    data = labelled(labels)
    for fraction, counts in ((0.1, (12, 6, 2)), (0.5, (60, 30, 10)), (0.25, (30, 15, 5)), (0.01, (1, 1, 1))):
        kept = subset(data, fraction, 7, "sst")
        assert Counter(kept.labels.tolist()) == dict(enumerate(counts))
        numbers = [int(name) for name in kept.ids]
        assert numbers == sorted(set(numbers))
        assert kept.labels.tolist() == [labels[number] for number in numbers]
        assert texts(kept) == [f"text {number}" for number in numbers]
        assert kept.texts.tolist() == data.texts[numbers].tolist()
    assert subset(data, 1.0, 7, "sst") is data


def test_subset_is_seeded_by_seed_and_task() -> None:
    data = labelled([i % 2 for i in range(100)])

    def chosen(seed: int, name: str) -> list[str]:
        return list(subset(data, 0.2, seed, name).ids)

    one = chosen(7, "sst")
    assert one == chosen(7, "sst")
    assert one not in (chosen(8, "sst"), chosen(7, "para"), list(data.ids)[:20])


def test_subset_of_one_label_does_not_move_with_the_others() -> None:
    both = subset(labelled([i % 2 for i in range(100)]), 0.3, 7, "t")
    ones = subset(labelled([1] * 50), 0.3, 7, "t")
    with_both = [int(name) // 2 for name, label in zip(both.ids, both.labels, strict=True) if label == 1]
    assert [int(name) for name in ones.ids] == with_both


@pytest.mark.parametrize("scale", [0.001, 1.0, 1000.0])
def test_regression_strata_are_the_fifths_of_the_ranking(scale: float) -> None:
    order = [(37 * i) % 1000 for i in range(1000)]  # every rank once
    kept = subset(labelled([scale * rank for rank in order]), 0.1, 3, "sts")
    assert Counter(round(label / scale) // 200 for label in kept.labels.tolist()) == dict.fromkeys(range(5), 20)


def test_subset_stays_the_same_from_version_to_version() -> None:
    kept = subset(labelled([i % 3 for i in range(40)]), 0.2, 5, "sst")
    assert [int(name) for name in kept.ids] == [8, 15, 17, 18, 21, 22, 28, 29, 37]
    kept = subset(labelled([(7 * i) % 40 / 2 for i in range(40)]), 0.2, 5, "sts")
    assert [int(name) for name in kept.ids] == [3, 4, 6, 7, 16, 17, 25, 29, 31, 38]


# -------------------------------------------------------------------------------------------------------- truncation


def by_hand(a: list[int], b: list[int], room: int) -> tuple[list[int], list[int]]:
    """Longest first: one token at a time from the end of the longer text, of the second where they are equal."""
    a, b = list(a), list(b)
    while len(a) + len(b) > room:
        (a if len(a) > len(b) else b).pop()
    return a, b


def dataset(texts: Sequence[tuple[str, str | None]], inputs: Any, max_length: int, **options: Any) -> Dataset:
    rows = [mtmeta.Example(a, b, 0, str(i)) for i, (a, b) in enumerate(texts)]
    task: mtmeta.Task = ClassificationTask(train="x", labels=2)
    if inputs != "single":
        task = Para(train="x", pair_mode=inputs, **options)
    return from_examples("t", task, "dev", rows, letters(max_length))


def sequences(made: Dataset, store: int = 0) -> list[list[int]]:
    ids, offsets = made.stores[store].ids, made.stores[store].offsets
    return [ids[start:end].tolist() for start, end in pairwise(offsets)]


TEXT = st.text("abcdefgh", min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), st.integers(4, 20))
def test_truncation(texts: list[tuple[str, str]], max_length: int) -> None:
    cross = dataset(texts, "cross", max_length)
    both = dataset(texts, "cross", max_length, orders="both")
    swapped = dataset([(b, a) for a, b in texts], "cross", max_length)
    separate = dataset(texts, "separate", max_length)
    single = dataset([(a, None) for a, _ in texts], "single", max_length)
    cut = 0
    types: list[int] = []
    for i, (one, other) in enumerate(texts):
        first, second = Letters().encode([one, other])
        a, b = by_hand(first, second, max_length - 3)
        cut += len(a) + len(b) < len(first) + len(second)
        assert sequences(cross)[i] == [1, *a, 2, *b, 3]
        assert len(sequences(cross)[i]) <= max_length
        types += [0] * (len(a) + 2) + [1] * (len(b) + 1)
        assert sequences(separate, 0)[i] == sequences(single)[i] == [1, *first[: max_length - 2], 3]
        assert sequences(separate, 1)[i] == [1, *second[: max_length - 2], 3]
    assert cross.truncated == both.truncated == cut
    assert (sequences(both), sequences(both, 1)) == (sequences(cross), sequences(swapped))
    assert cross.stores[0].types is not None and cross.stores[0].types.tolist() == types
    assert single.truncated == sum(len(a) > max_length - 2 for a, _ in texts)
    assert separate.truncated == sum(len(text) > max_length - 2 for pair in texts for text in pair)
    assert separate.stores[0].types is None
    for made in (cross, both, separate, single):
        assert len(made) == len(texts)
        assert made.tokens == sum(len(store.ids) for store in made.stores)
        assert all(
            store.lengths.tolist() == [len(s) for s in sequences(made, i)] for i, store in enumerate(made.stores)
        )


def test_truncation_of_fixed_examples() -> None:
    texts = [("aaaaaaaa", "bbbb"), ("aa", "bbbbbbbb"), ("aaaaaaaa", "bbbbbbbb"), ("aaaa", "bbb")]
    shown = ["".join(map(chr, s)).translate({1: "^", 2: "|", 3: "$"}) for s in sequences(dataset(texts, "cross", 10))]
    assert shown == ["^aaaa|bbb$", "^aa|bbbbb$", "^aaaa|bbb$", "^aaaa|bbb$"]


# --------------------------------------------------------------------------------------------------------- real data


def test_real_files_hold_exactly_the_known_bad_rows(real_data: Path) -> None:
    counts = {}
    tasks: dict[str, mtmeta.Task] = {
        name: kind(train=f"{name}-train.csv", dev=f"{name}-dev.csv")
        for name, kind in (("sst", Sst), ("para", Para), ("sts", Sts))
    }
    for name, task in tasks.items():
        for split in ("train", "dev"):
            data = read(real_data, task, SKIP, split)
            counts[f"{name}-{split}"] = (len(data), [row.line for row in data.bad])
    assert counts == {
        "sst-train": (8544, []),
        "sst-dev": (1101, []),
        "para-train": (16000, [8372, 9965]),
        "para-dev": (2000, []),
        "sts-train": (6040, []),
        "sts-dev": (863, []),
    }


def test_the_error_on_real_data_names_both_lines(real_data: Path) -> None:
    assert refusal(real_data, Para(train="para-train.csv")) == (
        f"{real_data / 'para-train.csv'}:8372: label is empty (2 such lines: 8372, 9965)"
        "; mend it or set data.on_bad_rows: skip"
    )


def test_real_pairs_are_tokenized(real_data: Path, minilm: Path) -> None:
    backbone = Bert(weights=str(minilm)).load(0)
    task, tokenizer = Para(train="para-train.csv"), backbone.tokenizer
    made = load_split("para", task, "train", SKIP, str(real_data), backbone)
    rows = [row for row in task.read(mtmeta.DataFile(real_data / "para-train.csv")) if row.label]
    assert (len(made), made.skipped, made.truncated) == (16000, 2, 0)
    columns = [row.text for row in rows], [row.pair or "" for row in rows]
    for store, column in zip(made.stores, columns, strict=True):
        assert len(store.lengths) == 16000
        for i in (0, 7, 8191, 8192, 15999):
            wanted = [*tokenizer.prefix, *tokenizer.encode([column[i]])[0], *tokenizer.suffix]
            assert store.ids[store.offsets[i] : store.offsets[i + 1]].tolist() == wanted
    mean = made.tokens / 32000
    assert 15.0 < mean < 16.5


# ---------------------------------------------------------------------------------------------------- many bad labels


@pytest.mark.parametrize("labels", [tuple(f"class {i}" for i in range(300)), 300], ids=["names", "numbers"])
@pytest.mark.parametrize("options", [DataOptions(), SKIP], ids=["error", "skip"])
def test_what_was_meant_is_searched_for_once(
    labels: tuple[str, ...] | int, options: DataOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of 500 different bad labels: comparing each with every class is what takes minutes, and says nothing new."""
    asked: list[str] = []

    def nearest(name: str, known: Sequence[str], n: int) -> list[str]:
        asked.append(name)
        return [known[0]]

    monkeypatch.setattr(difflib, "get_close_matches", nearest)
    first = "0" if labels == 300 else "class 0"
    rows = "".join(f"some text\tclas {i}\n" for i in range(500))
    task = ClassificationTask(
        train=write(tmp_path, f"text\tlabel\n{rows}text\t{first}\n", "d.tsv"), text="text", labels=labels
    )
    hint = f"; did you mean '{first}'?"
    if options is SKIP:
        data = read(tmp_path, task, options)
        assert (len(data), data.skipped) == (1, 500)
        assert [hint in row.reason for row in data.bad[:5]] == [True, False, False, False, False]
    else:
        assert hint in refusal(tmp_path, task)
    assert asked == ["clas 0"]


def test_the_classes_are_made_once() -> None:
    objective = mtmeta.Classification(5000)
    assert objective.classes is objective.classes
    assert (objective.outputs, objective.parse("4999"), objective.parse("7.0")) == (5000, 4999, 7)
    twice = mtmeta.Classification(("b", "a", "b"))
    assert (twice.parse("b"), twice.parse("a")) == (0, 1)
    assert (twice, repr(twice)) == (mtmeta.Classification(("b", "a", "b")), "Classification(labels=('b', 'a', 'b'))")
