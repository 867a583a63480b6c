"""Every code block of README.md and docs/ is run and its output compared, or checked where the page says why not."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

import mtmeta
from tests.support.docs_blocks import PAGES, RUN, Reader, blocks_of, matches
from tests.support.docs_checks import commands
from tests.support.paths import ROOT

CASES = [(page, index) for page in PAGES for index, block in enumerate(blocks_of(page))]


@pytest.fixture(scope="module")
def readers() -> dict[Path, Reader]:
    return {}


@pytest.mark.parametrize(
    ("page", "index"), CASES, ids=[f"{page.relative_to(ROOT)}:{blocks_of(page)[index].line}" for page, index in CASES]
)
def test_block(page: Path, index: int, readers: dict[Path, Reader], tmp_path_factory: pytest.TempPathFactory) -> None:
    """It runs after those before it and prints what the page says; or it is checked, and says why it is not run."""
    if page not in readers:
        folder = tmp_path_factory.mktemp("page") / page.stem
        folder.mkdir()
        readers[page] = Reader(page, folder)
    readers[page].go_to(index)


# --------------------------------------------------------------------------------------- what holds the pages to it


def page(tmp_path: Path, text: str) -> Reader:
    (tmp_path / "page.md").write_text(dedent(text), encoding="utf-8")
    folder = tmp_path / "page"
    folder.mkdir(exist_ok=True)
    return Reader(tmp_path / "page.md", folder)


def goes_through(reader: Reader) -> Reader:
    reader.go_to(len(reader.blocks) - 1)
    return reader


def test_every_page_is_looked_at() -> None:
    named = {str(path.relative_to(ROOT)) for path in PAGES}
    assert {"README.md", "docs/tutorial.md", "docs/plugins.md", "docs/algorithms.md", "docs/faq.md"} <= named
    fences = sum(len(re.findall(r"^ *```\w", path.read_text(encoding="utf-8"), re.MULTILINE)) for path in PAGES)
    assert len(CASES) == fences
    run = [case for case in CASES if not blocks_of(case[0])[case[1]].why_not_run]
    assert sum(blocks_of(path)[index].language in RUN for path, index in run) >= 30


def test_blocks_are_run_in_order_in_one_folder(tmp_path: Path) -> None:
    text = """
        ```python title="a/b.py"
        print(6 * 7)
        ```

        ```bash
        python a/b.py > made.txt
        ```

        ```python
        print(open("made.txt").read().strip())
        ```

        Which gives

        ```text
        42
        ```
        """
    assert goes_through(page(tmp_path, text)).real == {16: "42\n"}
    with pytest.raises(AssertionError, match=r"page\.md:16: the page says\s+43\s+and it was\s+42"):
        goes_through(page(tmp_path, text.replace("42", "43")))


def test_a_block_ends_as_the_page_says(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match=r"page\.md:2: ended with 3"):
        goes_through(page(tmp_path, "\n```bash\nexit 3\n```\n"))
    with pytest.raises(AssertionError, match="ended with 1"):  # bash -e, and pipefail
        goes_through(page(tmp_path, "\n```bash\nfalse | true\ntrue\n```\n"))
    goes_through(page(tmp_path, "\n<!-- exit 3 -->\n```bash\necho why >&2; exit 3\n```\n\n```text\nwhy\n```\n"))


def test_mtmeta_is_the_console_script_without_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTMETA_DATA", "/elsewhere")
    text = "\n```bash\nmtmeta --version\necho ${MTMETA_DATA:-none}\n```\n\n```text\nmtmeta VERSION\nnone\n```\n"
    goes_through(page(tmp_path, text.replace("VERSION", mtmeta.__version__)))


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("bash\nmtmeta run r.yaml --sett a=1", "No such option"),
        ("bash\nmtmeta rum r.yaml", "No such command"),
        ("bash\nmtmeta run", "(?i)missing"),
        ("bash\nX=1 cat a | mtmeta predict runs/a --taks sst > out.csv", "No such option"),
        ("bash\nmtmeta runs && \\\n  mtmeta recipes cpy a", "No such command"),
        ("bash\nmtmeta run recipes/none.yaml", "recipes/none.yaml is not there"),
        ("bash\npython -m benchmarks.none", "no module"),
        ("bash\npython3 -m benchmarks.train --nothing", "has no option"),
        ("bash\npytest tests/test_none.py", "test_none"),
        ("bash\nfrobnicate", "no program that is known"),
        ("console\n$ mtmeta run --sett", "No such option"),
        ("yaml\nlearning_rate: 1", "neither a recipe nor a part of one"),
        ("yaml\ntraining: {stepss: 4}", "did you mean 'steps'"),
        ("yaml\nalgorithm: {name: reptil}", "did you mean 'reptile'"),
        ("toml\na = = 1", "Invalid value"),
        ("python\nprint(", "never closed"),
    ],
)
def test_what_is_not_run_is_checked(block: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((AssertionError, SyntaxError, ValueError), match=message):
        goes_through(page(tmp_path, f"\n<!-- not run: it would be slow -->\n```{block}\n```\n"))


def test_what_passes_unrun(tmp_path: Path) -> None:
    good = [
        "bash\nmtmeta --version; mtmeta recipes; mtmeta recipes copy minilm/joint here",
        "bash\ncat <<END > a.yaml\nwhatever --it is\nEND\nmtmeta run a.yaml  # and a comment",
        "bash\npython -m benchmarks.train --data DATA && mtmeta validate recipes/minilm/*.yaml",
        "yaml\noptimizer: {name: sgd, lr: 1e-3}",
    ]
    for block in good:
        goes_through(page(tmp_path, f"\n<!-- page not run: it would be slow -->\n\n```{block}\n```\n"))


@pytest.mark.parametrize("text", ["<!-- not run: x -->", "<!-- not urn: it would be slow -->", "```perl\n```"])
def test_comments_and_languages_are_known_ones(text: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"known|none of"):
        page(tmp_path, f"{text}\n")


def test_output_is_compared() -> None:
    assert matches("a\nb\n", "a  \nb\n\n")
    assert not matches("a\nb\n", "a\n")
    assert matches("a\n...\nz\n", "a\nb\nc\nz\n")
    assert matches("a\n...\n", "a\n")
    assert not matches("a\n...\nz\n", "a\nb\n")
    assert not matches("| 0.5000 |\n", "| 0.4000 |\n")
    assert matches("+--+\n| 0.5000 [0.1, 0.9] |  2 s |\n", "+----+\n| +0.47 [-1.0, 12] | 1:02 |\n", numbers=False)
    assert not matches("| accuracy | 0.5 |\n", "| pearson | 0.5 |\n", numbers=False)


def test_simple_commands_of_a_script() -> None:
    script = "A=1 one -a 'b c' x=y,z < in | two > out 2>&1; three && four # five\n"
    assert list(commands(script)) == [["one", "-a", "b c", "x=y,z"], ["two"], ["three"], ["four"]]


# ------------------------------------------------------------------------------------------------- what pages name

FOLDERS = ("mtmeta", "tests", "docs", "tools", "benchmarks", "examples", "recipes")
HOUSE = [ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs" / "decisions").glob("*.md"))]


@pytest.mark.parametrize("page", HOUSE, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_and_folders_that_are_named_exist(page: Path) -> None:
    """`training/trainer.py` is some file whose path ends so; `tests/support/` some folder."""
    known = {f"/{path.relative_to(ROOT).as_posix()}" for folder in FOLDERS for path in (ROOT / folder).rglob("*")}
    known |= {f"/{path.name}" for path in ROOT.iterdir()} | {f"/{folder}" for folder in FOLDERS}
    words = [word for code in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")) for word in code.split()]
    named = [word for word in words if re.fullmatch(r"[\w./-]*\w(\.py|\.c|\.md|/)", word) and "COMMAND" not in word]
    assert page.name == "README.md" or named
    assert [word for word in named if not any(path.endswith(f"/{word.rstrip('/')}") for path in known)] == []


def test_the_folders_of_the_house_are_drawn() -> None:
    """Every package below mtmeta/ stands in CONTRIBUTING's drawing, and what is drawn is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = re.search(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert drawing is not None
    drawn = set(re.findall(r"(?<![\w./])([a-z]+)/(?=\s)", drawing[1]))
    packages = {path.parent.name for path in (ROOT / "mtmeta").rglob("__init__.py")}
    assert packages - drawn == set()
    known = {path.name for path in (*ROOT.iterdir(), *(ROOT / "docs").iterdir(), *(ROOT / "mtmeta").rglob("*"))}
    assert drawn - known == set()


def test_the_ways_through_the_house_name_what_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    stops = re.findall(r"^([\w/]+\.py) +(\w+) ", text, re.MULTILINE)
    assert len(stops) > 30
    for file, name in stops:
        source = (ROOT / "mtmeta" / file).read_text(encoding="utf-8")
        assert re.search(rf"^ *(def|class) {name}\b", source, re.MULTILINE), (file, name)


def test_long_suites_are_named() -> None:
    text = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    ways = re.compile(r"mark\.slow|some_quick\(")
    marked = [path for path in (ROOT / "tests").rglob("test_*.py") if ways.search(path.read_text(encoding="utf-8"))]
    names = {path.relative_to(ROOT).as_posix() for path in marked} - {"tests/tools/test_docs.py"}
    assert set(re.findall(r"`(tests/[\w/]+\.py)`", text.partition("## The long suites")[2])) == names
