"""Which columns are taken for texts, a pair and the label: by names and contents, not by where they stand."""

from __future__ import annotations

import csv
import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core.authoring.column_contents import go_together, holds_no_text, is_derived
from mtmeta.core.authoring.column_roles import find_roles
from mtmeta.core.authoring.table_profile import profile_table
from tests.core.authoring.test_draft import NEW, drafted_task
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import call

Capture = pytest.CaptureFixture[str]
WORDS = (
    "the flight was late and my bag got lost again on a long way to board so we asked for help but nobody came".split()
)
NOUNS = "pilot crew gate seat meal ticket queue desk phone screen door window lamp chair".split()
Make = Callable[[int], Any]


def sentence(i: int, length: int = 9) -> str:
    draw = random.Random(i)
    return " ".join(draw.choice(WORDS if draw.random() < 0.7 else NOUNS) for _ in range(length)).capitalize() + f" {i}."


def other(i: int) -> str:
    return sentence(1000 + i, 7)


def label(i: int) -> str:
    return ("yes", "no", "maybe")[i * 7 % 3]


def write(folder: Path, columns: dict[str, Make], rows: int) -> Path:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([make(i) for make in columns.values()] for i in range(rows))
    (folder / "t.csv").write_text(text.getvalue(), encoding="utf-8")
    return folder / "t.csv"


def roles(folder: Path, columns: dict[str, Make], rows: int = 120) -> tuple[str, str | None, str]:
    """Text, pair and label of a table of these columns."""
    found = find_roles(profile_table(write(folder, columns, rows)))
    return found.text.name, found.pair.name if found.pair else None, found.label.name


BESIDE: dict[str, Make] = {
    "IOB tags": lambda i: " ".join(random.Random(i).choice(["O", "B-artist", "I-artist"]) for _ in range(9)),
    "parts of speech": lambda i: " ".join(random.Random(i).choice(["DT", "NN", "VBZ", "PRP$", "."]) for _ in range(9)),
    "universal parts of speech": lambda i: " ".join(random.Random(i).choice(["DET", "NOUN", "VERB"]) for _ in range(9)),
    "relations of words": lambda i: " ".join(random.Random(i).choice(["det", "nsubj", "root"]) for _ in range(9)),
    "a parse": lambda i: f"(ROOT (S (NP {sentence(i)}) (VP (. .))))",
    "a binary parse": lambda i: f"( {sentence(i)} )",
    "ISO times": lambda i: f"2015-02-{i % 28 + 1:02} 11:{i % 60:02}:31 +0000",
    "US dates": lambda i: f"{i % 12 + 1}/{i % 28 + 1}/2015 {i % 12}:05 PM",
    "dates with names": lambda i: f"Mon Apr {i % 28 + 1:02} 22:{i % 60:02}:45 PDT 2009",
    "days": lambda i: f"March {i % 28 + 1}th, {1900 + i}",
    "uuids": lambda i: f"{i:08x}-1b9d-4b9d-8b9d-{i:012x}",
    "addresses": lambda i: f"https://example.org/{i} http://t.co/{i}x",
    "files": lambda i: f"img/{i}.jpg thumbs/{i}.png",
    "mail": lambda i: f"a{i}@example.org b{i}@example.org",
    "coordinates": lambda i: f"[{i / 7:.4f}, {-i / 9:.4f}]",
    "numbers": lambda i: f"{i} {i * 7} {i * 13}",
    "hashes": lambda i: f"{i * 2654435761 % 2**32:08x}{i:08x} {i:08x}",
    "handles": lambda i: f"@user{i} @air{i}",
    "keywords": lambda i: f"{WORDS[i % 20]}, {NOUNS[i % 14]}, bag {i}",
    "the same in small letters": lambda i: sentence(i).lower(),
    "tokenised": lambda i: "[CLS] " + sentence(i).replace(".", " . [SEP]"),
    "in HTML": lambda i: f"<p class='x'>{sentence(i)}</p>",
    "stemmed, stop words removed": lambda i: " ".join(w[:5] for w in sentence(i).lower().split() if len(w) > 3),
    "a constant": lambda i: "as it was written by hand",
    "where": lambda i: f"{['New York', 'Rio Grande', 'Sao Paulo'][i % 3]} district {i}, {['US', 'BR'][i % 2]}",
    "another language": lambda i: f"der Flug kam zu spaet {i}",
    "empty but for a few": lambda i: other(i) if i % 40 == 0 else "",
}


@pytest.mark.parametrize("name", ["extra", "slot"])
@pytest.mark.parametrize("case", BESIDE)
def test_what_stands_beside_a_text_makes_no_pair(case: str, name: str, tmp_path: Path) -> None:
    for order in ((0, 1, 2), (1, 2, 0)):
        columns = [("words", sentence), (name, BESIDE[case]), ("label", label)]
        assert roles(tmp_path, dict(columns[i] for i in order)) == ("words", None, "label")


def test_of_one_name_but_no_texts(tmp_path: Path) -> None:
    """Two parses are no pair, and nor are two dates."""
    for make in (BESIDE["a parse"], BESIDE["US dates"]):
        columns: dict[str, Make] = {"x1": make, "x2": make, "text": sentence, "label": label}
        assert roles(tmp_path, columns) == ("text", None, "label")


def test_slots_and_tweets_through_the_command(tmp_path: Path, capsys: Capture) -> None:
    write(tmp_path, {"text": sentence, "slot": BESIDE["IOB tags"], "intent": label}, 120)
    task = drafted_task(tmp_path, capsys, "--task", "t=t.csv")
    assert (task["task"], task["text"], task["label"]) == ("classification", "text", "intent")
    columns: dict[str, Make] = {"tweet_id": int, "airline_sentiment": label, "name": lambda i: f"user{i}"}
    columns |= {"text": sentence, "tweet_created": BESIDE["US dates"], "zone": gappy}
    write(tmp_path, columns, 120)
    task = drafted_task(tmp_path, capsys, "--task", "t=t.csv", "--force")
    assert (task["task"], task["text"], task["label"]) == ("classification", "text", "airline_sentiment")
    assert task["data"] is None
    write(tmp_path, {"qtext": lambda i: sentence(i // 5), "label": label, "atext": other}, 300)
    task = drafted_task(tmp_path, capsys, "--task", "t=t.csv", "--force")
    assert (task["task"], task["text"], task["pair"]) == ("pair_classification", "qtext", "atext")


def test_a_column_without_text_is_none_alone(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "t.csv").write_text("a,label\n" + "".join(f"{BESIDE['US dates'](i)},{label(i)}\n" for i in range(60)))
    outcome = call(*NEW, "--task", "t=t.csv", cwd=tmp_path, capsys=capsys)
    assert outcome.code == 3
    assert outcome.errors == [
        "error: t.csv: no column looks like text: a (3.0 words a row), label (1.0 words a row); "
        "name them with --columns"
    ]


PAIRED: list[tuple[str, str]] = [
    ("sentence1", "sentence2"),
    ("text_a", "text_b"),
    ("s1", "s2"),
    ("qtext", "atext"),
    ("First Sentence", "Second Sentence"),
    ("sentenceA", "sentenceB"),
    ("text", "text2"),
    ("source_text", "target_text"),
    ("premise", "hypothesis"),
    ("question", "answer"),
    ("query_text", "passage_text"),
    ("claim", "evidence"),
    ("userQuestion", "botAnswer"),
    ("words", "more"),
]


@pytest.mark.parametrize(("one", "two"), PAIRED)
def test_pairs_by_name_or_by_contents(one: str, two: str, tmp_path: Path) -> None:
    columns: dict[str, Make] = {"label": label, one: sentence, two: other, "date": BESIDE["US dates"]}
    assert roles(tmp_path, columns) == (one, two, "label")


@pytest.mark.parametrize(("one", "two"), [("qtext", "atext"), ("question", "answer"), ("sentence1", "sentence2")])
@pytest.mark.parametrize("turned", [False, True])
def test_repeated_questions_make_a_pair(one: str, two: str, turned: bool, tmp_path: Path) -> None:
    columns: dict[str, Make] = {one: lambda i: sentence(i // 5), "label": label, two: other}
    if turned and one != "sentence1":
        columns = dict(reversed(columns.items()))
    assert roles(tmp_path, columns, 300) == (one, two, "label")


def test_a_copy_is_not_preferred(tmp_path: Path) -> None:
    for copy in ("processed_sent", "clean"):
        for name in ("sentence1", "words"):
            columns: dict[str, Make] = {copy: BESIDE["tokenised"], name: sentence, "label": label}
            assert roles(tmp_path, columns) == (name, None, "label")


def test_contents() -> None:
    texts, others = [sentence(i) for i in range(200)], [other(i) for i in range(200)]
    assert go_together(texts, others) and not is_derived(texts, others)
    assert go_together(others, texts)
    assert not holds_no_text(texts) and not holds_no_text(others)
    assert not holds_no_text(["LATE AGAIN, AND NOBODY CAME!"] * 5)
    assert not holds_no_text(["in 2015 it was 5 days late"] * 5)
    assert not holds_no_text(["(laughs) no"] * 5)
    assert not holds_no_text(["飛行機は遅れました。"] * 5)
    assert not holds_no_text([])
    assert not go_together([""] * 3, ["a b c d"] * 3)


# --------------------------------------------------------------------------------------------------------------- label


def few(i: int) -> str:
    return ("London", "Quito", "Lima", "Oslo")[i % 4]


def gappy(i: int) -> str:
    return few(i) if i % 4 else ""


NAMED: dict[str, tuple[dict[str, Make], str]] = {
    "last part": ({"airline_sentiment": label, "text": sentence, "user_timezone": few}, "airline_sentiment"),
    "confidence beside it": (
        {"airline_sentiment": label, "airline_sentiment_confidence": lambda i: i % 10 / 10, "text": sentence},
        "airline_sentiment",
    ),
    "in camel case": ({"sentimentLabel": label, "text": sentence, "zone": few}, "sentimentLabel"),
    "intent": ({"user intent": label, "text": sentence, "zone": few}, "user intent"),
    "dotted": ({"data.label": label, "text": sentence, "zone": few}, "data.label"),
    "gold": ({"annotator_labels": few, "gold_label": label, "text": sentence, "zone": few}, "gold_label"),
    "lists of annotators": (
        {"annotator_labels": lambda i: str([label(i), label(i + 1)]), "news_category": label, "text": sentence},
        "news_category",
    ),
    "its text beside it": ({"label_text": few, "label": lambda i: i % 3, "text": sentence}, "label"),
    "its number beside it": ({"label_id": lambda i: i % 3, "label": label, "text": sentence}, "label"),
    "a number alone": ({"intent_id": lambda i: i % 3, "text": sentence, "zone": gappy}, "intent_id"),
    "a name that is mostly empty": (
        {"topic_label": lambda i: label(i) if i % 3 == 0 else "", "news_topic": label, "text": sentence},
        "news_topic",
    ),
    "nothing but no gaps": ({"mood": label, "text": sentence, "zone": gappy}, "mood"),
    "nothing but few values": ({"mood": label, "text": sentence, "zone": lambda i: f"zone {i * 7 % 50}"}, "mood"),
    "stance, not whose": ({"Stance": label, "Target": few, "text": sentence}, "Stance"),
    "target": ({"keyword": gappy, "target": lambda i: i % 2, "text": sentence, "zone": few}, "target"),
    "no constant": ({"mood": label, "text": sentence, "source": lambda i: "web"}, "mood"),
}


@pytest.mark.parametrize("case", NAMED)
def test_the_label_wherever_it_stands(case: str, tmp_path: Path) -> None:
    columns, wanted = NAMED[case]
    for turned in (columns, dict(reversed(columns.items()))):
        assert roles(tmp_path, turned) == ("text", None, wanted)


def test_another_label_is_told_of(tmp_path: Path) -> None:
    path = write(tmp_path, {"topic": few, "text": sentence, "sentiment": label}, 60)
    assert find_roles(profile_table(path)).why_label == "by its name; so might topic (--columns)"
    path = write(tmp_path, {"zone": few, "text": sentence, "mood": label}, 60)
    assert find_roles(profile_table(path)).why_label == "few different values; so might zone (--columns)"
