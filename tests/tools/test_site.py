"""The documentation site: built with warnings as errors, complete, and whole without any other host."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from pathlib import Path
from typing import Any

import markdown
import pytest

import mtmeta
from mtmeta.core.api.contracts import Metric
from mtmeta.core.recipe.part_help import FIXED_PARTS
from mtmeta.core.recipe.reader import KEYS
from mtmeta.core.registry.discovery import load_plugins
from mtmeta.core.registry.guard import KINDS
from mtmeta.core.registry.option_fields import option_name
from mtmeta.core.registry.registry import Registry
from tools.mathml import BadMath, mathml
from tools.reference import ENVIRONMENT, pages
from tools.site import ROOT, BadSite, build, check, relinked, stage


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    out = tmp_path_factory.mktemp("docs")
    return out, stage(out)


@pytest.fixture(scope="module")
def site(staged: tuple[Path, list[str]]) -> Path:
    return build(staged[0])


# ---------------------------------------------------------------------------------------------------- the whole of it


def test_every_page_is_built_linked_and_asks_nothing_of_other_hosts(site: Path, staged: tuple[Path, list[str]]) -> None:
    built = sorted(path.relative_to(site).as_posix() for path in site.rglob("*.html") if path.name != "404.html")
    assert built == [page.replace(".md", ".html") for page in staged[1]]
    assert check(site) > 500


def test_every_page_is_in_the_menu_or_linked_from_another(staged: tuple[Path, list[str]]) -> None:
    out, staged_pages = staged
    config = tomllib.loads((out / "zensical.toml").read_text(encoding="utf-8"))
    named = set(re.findall(r"'([\w/-]+\.md)'", str(config["project"]["nav"])))
    assert named <= set(staged_pages)
    assert set(staged_pages) - named == {"mini.md"}


def test_the_numbers_of_equations_are_numbers_on_the_page(site: Path) -> None:
    page = (site / "algorithms.html").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r'<div class="equation" id="eq-(\d+)">', page)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert len(numbers) >= 15
    assert page.count("<math ") > 80
    assert "$" not in re.sub(r"<(code|script|style)\b.*?</\1>", "", page, flags=re.DOTALL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("[there](nowhere.md)", "page does not exist", marks=pytest.mark.slow),
        pytest.param("[there](faq.md#nothing)", "anchor", marks=pytest.mark.slow),
        ("It is $\\frac{1}$.", "BadMath"),
    ],
)
def test_what_is_wrong_with_a_page_ends_the_build(text: str, message: str, tmp_path: Path) -> None:
    stage(tmp_path)
    (tmp_path / "pages" / "tutorial.md").write_text(f"# Page\n\n{text}\n", encoding="utf-8")
    with pytest.raises(BadSite, match=message):
        build(tmp_path)


@pytest.mark.parametrize(
    ("html", "message"),
    [
        ('<script src="https://cdn.example/x.js"></script>', "fetches https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//fonts.example/css">', "fetches //fonts.example/css"),
        ('<img src="gone.png">', "gone.png, which is not there"),
        ('<a href="page.html#gone">', "no such anchor"),
        ('<a href="../outside.html">', "which is not there"),
    ],
)
def test_what_is_wrong_with_a_built_page_is_found(html: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text('<p id="here"><a href="#here">', encoding="utf-8")
    assert check(tmp_path) == 1
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    with pytest.raises(BadSite, match=re.escape(message)):
        check(tmp_path)


def test_a_style_that_fetches_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("@font-face { src: url('https://fonts.example/a.woff2') }", encoding="utf-8")
    with pytest.raises(BadSite, match=r"fetches https://fonts\.example/a\.woff2"):
        check(tmp_path)


def test_links_are_made_to_fit_the_site() -> None:
    targets = {"docs/a.md": "a.md", "docs/b/c.md": "b/c.md", "benchmarks/RESULTS.md": "speed.md"}

    def mended(text: str, source: str) -> str:
        problems: list[str] = []
        return relinked(text, source, targets, problems) + "".join(f" !{problem}" for problem in problems)

    assert mended("[x](../benchmarks/RESULTS.md#gpu)", "docs/a.md") == "[x](speed.md#gpu)"
    assert mended("[x](../docs/b/c.md)", "benchmarks/RESULTS.md") == "[x](b/c.md)"
    assert mended("[x](../../benchmarks/RESULTS.md)", "docs/b/c.md") == "[x](../speed.md)"
    assert mended("[the licence](../LICENSE)", "docs/a.md") == "the licence (`LICENSE`)"
    assert mended("[x](https://example.org) `[x](../gone)`", "docs/a.md") == "[x](https://example.org) `[x](../gone)`"
    assert mended("```text\n[x](../gone)\n```\n", "docs/a.md") == "```text\n[x](../gone)\n```\n"
    assert mended("[x](../gone)", "docs/a.md").endswith("!docs/a.md: links to ../gone, which is not there")


# ----------------------------------------------------------------------------------------------------- the reference


def test_the_reference_names_every_part_and_every_option() -> None:
    reference = pages()
    registry = Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"}))
    kinds: dict[str, dict[str, Any]] = {
        kind: {name: registry.get(kind, name, "") for name in registry.names(kind)} for kind in KINDS
    } | FIXED_PARTS
    places = {"metric": "metrics", "reporter": "metrics", "schedule": "optimizers", "section": "recipe"}
    seen = 0
    for kind, parts in kinds.items():
        page = reference[f"reference/{places.get(kind, f'{kind}s')}.md"]
        for name, part in parts.items():
            heading = re.search(rf"^(##+) `{name}` ", page, re.MULTILINE)
            assert heading, (kind, name)
            if isinstance(part, Metric):
                continue
            below = re.split(rf"^#{{2,{len(heading[1])}}} ", page[heading.end() :], maxsplit=1, flags=re.MULTILINE)[0]
            text = below + (page if kind == "task" else "")  # what all tasks share stands once
            for field in dataclasses.fields(part):
                if field.name != "name":
                    option = option_name(part, field.name)
                    assert re.search(rf"^`{option}` .*\n:   \S", text, re.MULTILINE), (kind, name, option)
                    seen += 1
    assert seen > 80
    assert "No help given" not in "".join(reference.values())


def test_every_key_of_a_recipe_and_every_setting_of_the_environment_is_explained() -> None:
    recipe = pages()["reference/recipe.md"]
    assert re.findall(r"^`(\w+)` ", recipe.partition("## `")[0], re.MULTILINE) == list(KEYS)
    sources = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "mtmeta").rglob("*.py"))
    ours = {"MTMETA_PARENT", "MTMETA_JOB", "MTMETA_CHECK"}  # from one process of mtmeta's to another
    assert set(re.findall(r"\bMTMETA_[A-Z]+\b", sources)) - ours == set(ENVIRONMENT)


def test_defaults_are_those_of_the_code() -> None:
    reference = pages()
    size = '`batch_size` <span class="takes">an integer from 1 to 10000000; default `32`</span>'
    assert size in reference["reference/tasks.md"]
    inner = "an [optimizer](optimizers.md#optimizers); default `{name: adamw, lr: 1e-05}`"
    assert f'`inner_optimizer` <span class="takes">{inner}</span>' in reference["reference/algorithms.md"]


def test_commands_are_those_of_the_command_line() -> None:
    page = pages()["reference/commands.md"]
    assert re.search(r"^mtmeta compare \[OPTIONS\] \{?RECIPE\}?\.\.\.$", page, re.MULTILINE)
    assert re.search(r'^`--seeds .*` <span class="takes">default: 5; .*</span>\n:   Seeded draws', page, re.MULTILINE)
    assert "### `mtmeta recipes copy` {#recipes-copy}" in page
    assert "| 3 | A data file" in page


def test_the_python_page_has_every_public_name_and_no_address_of_this_process() -> None:
    page = pages()["reference/python.md"]
    named = re.findall(r"^### `(\w+)`", page, re.MULTILINE)
    assert sorted(named) == sorted(name for name in mtmeta.__all__ if name != "__version__")
    assert "    overrides: Sequence[str] = (),\n" in page
    assert not re.search(r"0x[0-9a-f]{6}|<function|lambda \w*:", page)


def test_dir_shows_the_public_names_and_no_others() -> None:
    assert dir(mtmeta) == sorted(mtmeta.__all__)
    assert not [name for name in dir(mtmeta) if not hasattr(mtmeta, name)]


FUNCTIONS = [name for name in mtmeta.__all__ if inspect.isfunction(getattr(mtmeta, name))]
RAISE_NOTHING = {
    "cache_folder",
    "did_you_mean",
    "is_missing",
    "quote",
    "safe",
    "scalars",
    "staged_folder",
    "why_unsafe",
}
"""Functions that raise nothing of ours: words, paths, numbers."""


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_python_page_tells_types_defaults_and_errors_of_every_function(name: str) -> None:
    function = getattr(mtmeta, name)
    page = pages()["reference/python.md"]
    entry = page.partition(f"### `{name}` {{#{name}}}\n")[2].partition("\n### ")[0].partition("\n## ")[0]
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    for key, parameter in signature.parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty, f"{name}({key}) has no type"
        marks: dict[object, str] = {parameter.VAR_POSITIONAL: "*", parameter.VAR_KEYWORD: "**"}
        stars = marks.get(parameter.kind, "")
        line = re.search(rf"^    {re.escape(stars + key)}: (.+),$", entry, re.MULTILINE)
        assert line is not None, f"{name}({key}) is not on the page"
        assert (" = " in line[1]) == (parameter.default is not inspect.Parameter.empty)
    text = inspect.getdoc(function) or ""
    assert re.match(r"[A-Z][a-z]+ ", text), f"{name} has no docstring that begins with a verb"
    assert "Raises" in text or name in RAISE_NOTHING, f"{name} does not say what it raises"
    assert "Raises" in entry or name in RAISE_NOTHING


def test_the_python_page_tells_of_every_method() -> None:
    """Of all public classes, with those that they have from a base of ours; and each has words."""
    page = pages()["reference/python.md"]
    missing = []
    for name in mtmeta.__all__:
        public = getattr(mtmeta, name)
        if not isinstance(public, type):
            continue
        entry = page.partition(f"### `{name}` {{#{name}}}\n")[2].partition("\n### ")[0]
        for key, member in vars(public).items():
            is_method = isinstance(member, property | classmethod | staticmethod) or inspect.isfunction(member)
            if is_method and not key.startswith("_") and not re.search(rf"^`{key}[`(]", entry, re.MULTILINE):
                missing.append(f"{name}.{key}")
    assert missing == []


# ------------------------------------------------------------------------------------------------------- mathematics


def test_a_formula_becomes_mathml() -> None:
    assert mathml(r"\frac{1}{N}") == (
        '<math xmlns="http://www.w3.org/1998/Math/MathML" display="inline"><mrow><mfrac><mrow><mn>1</mn></mrow>'
        "<mrow><mi>N</mi></mrow></mfrac></mrow></math>"
    )


@pytest.mark.parametrize("latex", [r"\foo", r"\frac{1}", r"\left( x", "a}", "{a", r"a & b", r"\Big\{ x \Big\}"])
def test_what_is_no_formula_is_refused(latex: str) -> None:
    with pytest.raises(BadMath):
        mathml(latex)


def test_formulas_in_a_text() -> None:
    def html(text: str) -> str:
        return str(markdown.markdown(text, extensions=["tools.mathml"]))

    assert "<math" not in html("It costs $5 or $6, and `$x$`, or \\$x\\$.")
    assert html("Let $x$ be").startswith("<p>Let <math ")
    shown = html("Here:\n\n$$ x = 1 \\tag{7} $$\n\nand so on.")
    assert '<div class="equation" id="eq-7">' in shown
    assert '<span class="number">(7)</span>' in shown
    assert 'display="block"' in shown
    assert "id=" not in html("$$ x $$")
