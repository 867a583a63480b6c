"""The sample data: deterministic, honestly split, and of no use to a model that only remembers its train set."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import mtmeta.sample
from mtmeta.sample.dataset import SIZES, TASKS, SampleRow, examples, marked_words, templates_used, vocabulary

HELD_OUT = ("dev", "test")
FUNCTION_WORDS = frozenset(
    "a about all an and any anything but call can do far find found from have here how i in is it know little me my"
    " need not of say said show so tell that the there they this thought to true very was we what when where while"
    " will you your".split()
)


def words(row: SampleRow) -> list[str]:
    return re.findall(r"[a-z]+", f"{row.text} {row.pair or ''}".lower())


def content_types(task: str, split: str) -> set[str]:
    return {word for row in examples(task, split) for word in words(row)} - FUNCTION_WORDS


def pearson(one: list[float], two: list[float]) -> float:
    mean1, mean2 = sum(one) / len(one), sum(two) / len(two)
    cov = sum((a - mean1) * (b - mean2) for a, b in zip(one, two, strict=True))
    norm = sum((a - mean1) ** 2 for a in one) * sum((b - mean2) ** 2 for b in two)
    return cov / norm**0.5 if norm else 0.0


def nearest_labels(task: str, split: str) -> list[float]:
    """For each example the label of the train example that shares most words with it."""
    train = [(frozenset(words(row)), row.label) for row in examples(task, "train")]
    found = []
    for row in examples(task, split):
        own = frozenset(words(row))
        found.append(max(train, key=lambda known: len(own & known[0]) / len(own | known[0]))[1])
    return found


def overlap(row: SampleRow) -> float:
    assert row.pair is not None
    one, two = (set(re.findall(r"[a-z]+", text.lower())) for text in (row.text, row.pair))
    return len(one & two) / len(one | two)


def split_greedily(word: str, entries: frozenset[str]) -> list[str]:
    """WordPiece: the longest entry first."""
    pieces: list[str] = []
    rest = word
    while rest:
        start = "##" if pieces else ""
        end = next(n for n in range(len(rest), 0, -1) if start + rest[:n] in entries)
        pieces.append(start + rest[:end])
        rest = rest[end:]
    return pieces


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", SIZES)
def test_rows_have_the_right_shape(task: str, split: str) -> None:
    rows = examples(task, split)
    assert len(rows) == SIZES[split]
    assert len({row.id for row in rows}) == len(rows)
    assert len({(row.text, row.pair) for row in rows}) == len(rows)
    for row in rows:
        assert (row.pair is None) == (task == "sst")
        for text in (row.text, row.pair):
            if text is not None:
                assert text[0].isupper() and text[-1] in ".?"
                assert not set("+_/{}|") & set(text)
        if task == "sts":
            assert isinstance(row.label, float) and 0.0 <= row.label <= 5.0
        else:
            assert row.label in (range(5) if task == "sst" else range(2))
            assert isinstance(row.label, int)


def test_unknown_task_or_split_is_refused() -> None:
    with pytest.raises(ValueError, match="nli"):
        examples("nli", "train")
    with pytest.raises(ValueError, match="valid"):
        examples("sst", "valid")


def test_same_data_in_a_process_with_another_hash_seed() -> None:
    code = (
        "import hashlib; from mtmeta.sample import examples, vocabulary;"
        "rows = [examples(t, s) for t in ('sst', 'para', 'sts') for s in ('train', 'dev', 'test')];"
        "print(hashlib.sha256(repr((rows, vocabulary())).encode()).hexdigest())"
    )
    root = Path(mtmeta.sample.__file__).parents[2]
    hashes = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed},
            cwd=root,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(hashes) == 1


def test_callers_cannot_change_the_data() -> None:
    examples("sst", "train").clear()
    assert len(examples("sst", "train")) == SIZES["train"]


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("split", HELD_OUT)
def test_templates_of_the_splits_are_disjoint(task: str, split: str) -> None:
    used = templates_used(task, split)
    assert len(used) >= 5
    others = [name for name in SIZES if name != split]
    assert not set(used) & {template for name in others for template in templates_used(task, name)}


def test_no_held_out_sentence_is_in_any_train_set() -> None:
    train = {text for task in TASKS for row in examples(task, "train") for text in (row.text, row.pair)}
    for task in TASKS:
        for split in HELD_OUT:
            for row in examples(task, split):
                assert row.text not in train
                assert row.pair is None or row.pair not in train


@pytest.mark.parametrize("task", TASKS)
def test_many_held_out_words_are_new_to_the_task(task: str) -> None:
    known = content_types(task, "train")
    for split in HELD_OUT:
        found = content_types(task, split)
        assert len(found - known) / len(found) >= 0.35


@pytest.mark.parametrize("split", HELD_OUT)
def test_majority_class_is_near_chance(split: str) -> None:
    for task, chance in (("sst", 0.2), ("para", 0.5)):
        counts = Counter(row.label for row in examples(task, split))
        assert max(counts.values()) / SIZES[split] == pytest.approx(chance, abs=0.01)
    labels = Counter(row.label for row in examples("sts", split))
    assert len(labels) >= 7
    assert max(labels.values()) / SIZES[split] <= 0.35


@pytest.mark.parametrize("split", HELD_OUT)
def test_a_memoriser_scores_low(split: str) -> None:
    for task, most in (("sst", 0.35), ("para", 0.55)):
        gold = [row.label for row in examples(task, split)]
        hits = sum(a == b for a, b in zip(nearest_labels(task, split), gold, strict=True))
        assert hits / len(gold) <= most
    assert abs(pearson(nearest_labels("sts", split), [row.label for row in examples("sts", split)])) <= 0.15


@pytest.mark.parametrize("split", HELD_OUT)
def test_shared_words_do_not_give_a_pair_away(split: str) -> None:
    rows = examples("para", split)
    shares = [overlap(row) for row in rows]
    for cut in sorted(set(shares)):
        hits = sum((share > cut) == bool(row.label) for share, row in zip(shares, rows, strict=True))
        assert 0.38 <= hits / len(rows) <= 0.62
    rows = examples("sts", split)
    assert abs(pearson([overlap(row) for row in rows], [row.label for row in rows])) <= 0.3


def test_vocabulary_is_a_word_piece_vocabulary() -> None:
    entries = vocabulary()
    assert entries[:5] == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert len(set(entries)) == len(entries)
    assert 400 <= len(entries) <= 1500
    for character in "abcdefghijklmnopqrstuvwxyz0123456789":
        assert character in entries and f"##{character}" in entries
    assert {"##ful", "##less", "##ly", "##ing", "##est", "un"} <= set(entries)
    assert split_greedily("joyfully", frozenset(entries)) == ["joy", "##ful", "##ly"]
    assert split_greedily("unappealing", frozenset(entries)) == ["un", "##appeal", "##ing"]


def test_every_word_is_read_in_the_pieces_of_the_lexicon() -> None:
    entries = frozenset(vocabulary())
    for task in TASKS:
        for split in SIZES:
            for marked in marked_words(task, split):
                first, *rest = marked.split("+")
                if split == "train" or (rest and first in entries):
                    assert split_greedily(marked.replace("+", ""), entries) == [first, *(f"##{p}" for p in rest)]


def test_held_out_words_are_no_entries() -> None:
    train = {word for task in TASKS for row in examples(task, "train") for word in words(row)}
    held = {word for task in TASKS for split in HELD_OUT for row in examples(task, split) for word in words(row)}
    assert len(held - train) >= 40
    assert not (held - train) & set(vocabulary())


def test_all_sample_text_can_be_spelt() -> None:
    entries = set(vocabulary())
    characters = {
        c for t in TASKS for s in SIZES for row in examples(t, s) for c in f"{row.text}{row.pair or ''}".lower()
    }
    assert characters - {" "} <= entries
