"""The first screen of a report: pairing, intervals and the verdict, by hand on small studies."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import mtmeta
from mtmeta import sample
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.registry.registry import build_registry
from mtmeta.core.reports.html.report import report
from mtmeta.core.run.directory import RunDir
from mtmeta.core.studies.comparable import Planned
from mtmeta.core.studies.comparison import comparison
from mtmeta.core.studies.protocol import Protocol
from tests.core.reports.test_report import Reader
from tests.core.run.test_run import write_recipe
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import quietly
from tests.support.forged import forge, right_but

T2 = 4.302652729911275  # of Student's t with two degrees of freedom, 97.5%


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of para alone: 300 examples, two classes."""
    folder = tmp_path_factory.mktemp("answer")
    task = {"train": "sample", "dev": "sample", "batch_size": 16, "inner_steps": 1}
    with quietly():
        recipe = write_recipe(folder, "joint", tasks={"para": task}, training={"steps": 2})
        mtmeta.run(recipe, out=folder / "source")
    return folder / "source"


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Leave out what takes matplotlib most of its time: what is drawn is tested elsewhere."""
    from matplotlib.figure import Figure

    def save(figure: Any, file: io.StringIO, **options: Any) -> None:
        texts = [text.get_text() for axes in figure.axes for text in axes.texts]
        texts += [text.get_text() for axes in figure.axes for text in (axes.xaxis.label, *axes.get_yticklabels())]
        file.write(f'<svg width="1pt" height="1pt"><desc>{texts}</desc></svg>')

    monkeypatch.setattr(Figure, "savefig", save)
    yield


@pytest.fixture
def study(source: Path, tmp_path: Path) -> Path:
    """A copy of the run, to make a study of beside it."""
    shutil.copytree(source, tmp_path / "study" / "source", ignore=shutil.ignore_patterns("checkpoints", "backbone"))
    return tmp_path / "study" / "source"


def page(*runs: Path, **options: Any) -> str:
    out = runs[0].parent / "report.html"
    return report(runs, out=out, **options).read_text(encoding="utf-8")


def verdict(text: str) -> str:
    found = re.search(r'<p class="verdict">(.*?)</p>', text)
    assert found is not None
    return found[1]


def cells(text: str) -> dict[str, list[str]]:
    """Return the rows of the table of results, each cell as its lines."""
    table = text[text.index("<h2>Results</h2>") :]
    table = table[: table.index("</table>")]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in table.split("<tr>")[2:]]
    return {row[0]: row[1:] for row in rows}


def plain(cell: str) -> str:
    return re.sub(r"<[^>]*>", "", cell)


def test_every_order_of_the_same_runs_gives_the_same_page(study: Path) -> None:
    """Reported in the order A-1 A-2 B-2 B-1 the runs were not paired, under a note that said they were."""
    a = [forge(study, "a", seed, {"para": right_but(range(50 * seed))}) for seed in (1, 2, 3)]
    b = [forge(study, "b", seed, {"para": right_but(range(50 * seed - 10))}) for seed in (1, 2, 3)]
    pages = set()
    for order in ([*a, *b], [*a, *reversed(b)], [*b, *a], [b[2], a[1], b[0], a[2], a[0], b[1]]):
        pages.add(page(*order, baseline="a"))
    assert len(pages) == 1
    (text,) = pages
    # seeds lie 50 errors apart, the two recipes 10 in every seed: unpaired the interval would be [-.45, +.51]
    low, high = (float(end) for end in re.findall(r"[+-][.\d]+", plain(cells(text)["b"][0]).split("\n")[1])[1:])
    by_hand = _two_levels({seed: 50 * seed for seed in (1, 2, 3)}, {seed: 50 * seed - 10 for seed in (1, 2, 3)})
    assert (low, high) == pytest.approx(by_hand, abs=0.004)
    assert verdict(text) == "b is better than a on para (+0.033); 3 seeds."


def test_rows_are_paired_in_whatever_order_their_seeds_stand(study: Path) -> None:
    registry = build_registry()
    rows: dict[str, list[Planned]] = {}
    for name, seed in itertools.product("ab", (1, 2)):
        path = forge(study, name, seed, {"para": right_but(range(30 * seed + 7 * (name == "a")))})
        recipe = load_recipe(path / "recipe.yaml", registry, environ={})
        rows.setdefault(name, []).append(Planned(path, recipe, RunDir(path)))
    seen = set()
    for a, b in itertools.product(*map(itertools.permutations, rows.values())):
        for plan in ({"a": list(a), "b": list(b)}, {"b": list(b), "a": list(a)}):
            found = {row["name"]: row for row in comparison(plan, Protocol(("a",)), registry)["rows"]}
            delta = found["b"]["columns"]["para"]["delta"]
            assert (delta["paired"], delta["seeds"], delta["too_few"]) == (True, [1, 2], True)
            seen.add(json.dumps([delta, found["b"]["columns"]["mean"]["delta"]]))
    assert len(seen) == 1


def test_two_seeds_are_too_few(study: Path) -> None:
    """The values are .9 and .8, so Student's t would say [.215, 1.485]."""
    runs = [forge(study, "a", seed, {"para": right_but(range(30 * seed))}) for seed in (1, 2)]
    runs += [forge(study, "b", seed, {"para": right_but(range(30 * seed - 15))}) for seed in (2, 1)]
    text = page(*runs, baseline="a")
    assert [plain(cell) for cell in cells(text)["a"]] == ["0.8500 (2 seeds)"] * 2
    assert [plain(cell) for cell in cells(text)["b"]] == ["0.9000 (2 seeds)\n+0.0500 (2 seeds)"] * 2
    assert verdict(text) == (
        "b differs from a by +0.0500 in the mean, which says nothing yet: 2 seeds are too few for an interval."
    )
    shown = Reader(text).text
    assert "2 seeds: too few for an interval" in shown
    assert "<strong>" not in text
    assert not re.search(r'class="below (better|worse)"', text)
    assert "1.485" not in text


def test_of_a_study_with_a_failed_run_the_seeds_in_common_are_compared(study: Path) -> None:
    """Four seeds of a, of b the third failed: the difference is of seeds 1, 2 and 4, paired."""
    wrong = {"a": {1: 60, 2: 90, 3: 10, 4: 120}, "b": {1: 30, 2: 66, 4: 84}}
    runs = [
        forge(study, name, seed, {"para": right_but(range(count))})
        for name, of in wrong.items()
        for seed, count in of.items()
    ]
    failed = forge(study, "b", 3, {})
    (failed / "summary.json").unlink()
    text = page(*runs, failed, baseline="a")
    a, b = cells(text)["a"][0], cells(text)["b"][0]
    assert a.startswith(f"{1 - 280 / 1200:.4f} [")  # all four of a
    values = [1 - count / 300 for count in wrong["b"].values()]
    half = T2 * float(np.std(values, ddof=1)) / math.sqrt(3)
    mean = 1 - 180 / 900
    assert plain(b).startswith(f"{mean:.4f} [{mean - half:.3f}, {mean + half:.3f}]")
    # differences 30, 24 and 36 of 300
    assert "\n+0.1000 [" in plain(b)
    low, high = _two_levels(wrong["a"], wrong["b"])
    shown = [float(end) for end in re.findall(r"[+-][.\d]+", plain(b).split("\n")[1])[1:]]
    assert shown == pytest.approx([low, high], abs=0.006)
    assert verdict(text) == "b is better than a on para (+0.100); 3 seeds."
    told = Reader(text).text
    assert "b, seed 3 is not finished; what it has so far is shown." in told
    assert "b beside a: differences are of the seeds in common, 1, 2, 4." in told


def _two_levels(a: dict[int, int], b: dict[int, int]) -> tuple[float, float]:
    """Return the interval of the paired two-level bootstrap, written as its definition says, with draws of its own."""
    generator = np.random.default_rng(5)
    errors = {seed: np.array([(at < a[seed]) - float(at < b[seed]) for at in range(300)]) for seed in b}
    draws = []
    for _ in range(4000):
        examples = generator.integers(0, 300, 300)
        of_seeds = [float(errors[seed][examples].mean()) for seed in b]
        drawn = float(np.mean(generator.choice(of_seeds, len(of_seeds))))
        wider = math.sqrt(3 / 2) * T2 / 1.959963984540054
        draws.append(np.mean(of_seeds) + wider * (drawn - np.mean(of_seeds)))
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def test_where_nothing_differs_nothing_is_said_to(study: Path) -> None:
    runs = [forge(study, name, seed, {"para": right_but(range(40 * seed))}) for name in "ab" for seed in (1, 2, 3)]
    text = page(*runs, baseline="a", margin=0.01)
    assert verdict(text) == "b predicts the same as a on every task; 3 seeds."
    assert plain(cells(text)["b"][0]).split("\n")[1] == "+0.0000 [+0.000, +0.000] not inferior"
    assert "<strong>" not in text
    assert not re.search(r'class="below (better|worse)"', text)


def test_what_is_within_the_margin_is_said_task_by_task(study: Path) -> None:
    """`b` errs as often as `a` on other examples, `c` far more; ten seeds of one row, three of another."""
    runs = [forge(study, "a", seed, {"para": right_but(range(30))}) for seed in range(1, 11)]
    runs += [forge(study, "b", seed, {"para": right_but(range(200, 230 + seed % 3))}) for seed in range(1, 11)]
    runs += [forge(study, "c", seed, {"para": right_but(range(100 + seed))}) for seed in (1, 2, 3)]
    text = plain(page(*runs, baseline="a", margin=0.1))
    assert "As good as a, but for 0.1?" in text
    lines = text[text.index("As good as a") :].splitlines()
    assert any(line.strip().startswith("b: surely on para, mean") for line in lines)
    assert any(line.strip().startswith("c: worse on para, mean") for line in lines)
    assert "a 1 to 10 (10); b 1 to 10 (10); c 1, 2, 3" in text
    assert "b (10 seeds)" in text and "c (3 seeds)" in text
    assert "95% intervals; shaded: within 0.1" in text
    assert "not known, scored at the end alone" in text
    assert "As good as" not in page(*runs, baseline="a")


def test_where_rows_differ_by_chance_alone_the_sentence_bounds_what_may_be_lost(study: Path) -> None:
    """Errors on other examples, as many: within a margin that the interval keeps, it says so."""
    runs = [forge(study, "a", seed, {"para": right_but(range(30))}) for seed in (1, 2, 3)]
    runs += [forge(study, "b", seed, {"para": right_but(range(200, 230 + seed))}) for seed in (1, 2, 3)]
    text = page(*runs, baseline="a")
    low = re.findall(r"[+-][.\d]+", plain(cells(text)["b"][0]).split("\n")[1])[1]
    assert verdict(text) == (
        "b shows no clear difference from a on the one task "
        f"(its interval on para reaches {-float(low):.3f} below); 3 seeds."
    )
    within = page(*runs, baseline="a", margin=0.1)
    assert verdict(within) == "b is not worse than a by more than 0.100 on the one task; 3 seeds."
    assert "<strong>" not in text


def test_a_run_that_is_given_twice_counts_once(study: Path) -> None:
    runs = [forge(study, "a", seed, {"para": right_but(range(30 * seed))}) for seed in (1, 2)]
    again = Path(str(runs[0]) + "-copy")
    shutil.copytree(runs[0], again)
    warnings: list[str] = []
    text = page(*runs, again, runs[0], warn=warnings.append)
    assert [plain(cell) for cell in cells(text)["a"]] == ["0.8500 (2 seeds)"] * 2
    assert warnings == [f"{again} has the recipe and the seed of {runs[0]}, so it is left out"]


def test_bold_is_what_is_better_than_every_other_row(study: Path) -> None:
    """c is better than a and b; b is better than a alone."""
    wrong = {"a": 90, "b": 60, "c": 30}
    runs = [
        forge(study, name, seed, {"para": right_but(range(count + seed))})
        for name, count in wrong.items()
        for seed in (1, 2, 3)
    ]
    text = page(*runs, baseline="a")
    strong = {name: "<strong>" in row[0] for name, row in cells(text).items()}
    assert strong == {"a": False, "b": False, "c": True}
    assert 'class="below better"' in cells(text)["b"][0]
    assert verdict(text) == "Beside a, 3 seeds: b is better on para (+0.100); c is better on para (+0.200)."
    tied = [run for run in runs if not run.name.startswith("c")]
    tied += [forge(study, "d", seed, {"para": right_but(range(240 - seed, 300))}) for seed in (1, 2, 3)]
    text = page(*tied, baseline="a")  # d is as good as b, on other examples
    assert "<strong>" not in text


def test_the_worst_errors_stand_with_their_texts(study: Path) -> None:
    """Example 7 is missed by all three runs, 8 by two, 9 by one."""
    runs = [forge(study, "a", seed, {"para": right_but(range(7, 7 + seed))}) for seed in (1, 2, 3)]
    text = page(*runs)
    examples = list(sample.examples("para", "dev"))
    table = text[text.index("The worst errors") :]
    table = table[: table.index("</table>")]
    rows = [
        [plain(cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)] for row in table.split("<tr>")[2:]
    ]
    assert [row[3] for row in rows] == ["3 of 3 runs", "2 of 3 runs", "1 of 3 runs"]
    for at, row in zip((7, 8, 9), rows, strict=True):
        shown = row[0].replace("&#39;", "'").replace("&amp;", "&").replace("&#34;", '"')
        assert shown == f"{examples[at].text}\n{examples[at].pair}"
        assert row[1] == str(examples[at].label)
    bare = page(*runs, texts=False)
    assert examples[7].text not in bare
    assert "id para-dev-0007" in bare


def test_each_class_by_hand(study: Path) -> None:
    """Of one run: precision, recall and F1 of both classes, from the counts of its file."""
    run = forge(study, "a", 1, {"para": lambda at, label: "1" if at < 120 else label})
    lines = (run / "predictions" / "para-dev.csv").read_text().splitlines()[1:]
    pairs = [tuple(line.split(",")[1:]) for line in lines]
    text = page(run)
    table = text[text.index("<h3>Each class</h3>") :]
    table = plain(table[: table.index("</table>")])
    for label in "01":
        right = sum(pair == (label, label) for pair in pairs)
        labelled, predicted = (sum(pair[side] == label for pair in pairs) for side in (0, 1))
        precision, recall = right / predicted, right / labelled
        f1 = 2 * precision * recall / (precision + recall)
        assert f"{labelled} rowsF1 {f1:.3f}\nprecision {precision:.3f}, recall {recall:.3f}" in table
