"""Recipes that come with the package: listed, run by name, copied to be edited."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mtmeta.cli import main
from mtmeta.core.recipe import shipped
from mtmeta.core.recipe.reader import load_recipe
from mtmeta.core.recipe.schema import recipe_schema
from mtmeta.core.registry.registry import build_registry
from tests.support.parameters import some_quick
from tests.support.paths import ROOT

FOLDER = ROOT / "recipes"
NAMES = sorted(path.relative_to(FOLDER).with_suffix("").as_posix() for path in FOLDER.rglob("*.yaml"))


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def command(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(str(ended.value.code))


def test_all_are_listed_with_the_first_line_of_their_headers(capsys: pytest.CaptureFixture[str]) -> None:
    assert command("recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == NAMES
    for line, name in zip(lines, NAMES, strict=True):
        schema, first = (FOLDER / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[:2]
        assert schema.startswith(shipped.SCHEMA_LINE)
        assert line.split(maxsplit=1)[1] == first.removeprefix("# ")


@pytest.mark.parametrize("given", ["minilm/reptile", "minilm/reptile.yaml", "recipes/minilm/reptile.yaml"])
def test_a_name_stands_for_the_recipe(given: str, tmp_path: Path) -> None:
    assert load_recipe(given, build_registry()).name == "minilm_reptile"
    mine = tmp_path / given
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text((FOLDER / "paper" / "joint.yaml").read_text())
    assert load_recipe(given, build_registry()).name == "paper_joint"  # a file comes first


def test_a_link_that_leads_nowhere_is_no_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "minilm").mkdir()
    (tmp_path / "minilm" / "reptile.yaml").symlink_to("gone")
    assert command("validate", "minilm/reptile.yaml") == 2
    assert capsys.readouterr().err.startswith("error: minilm/reptile.yaml: no such file")


@pytest.mark.parametrize("to", some_quick([None, "mine.yaml", "folder", "new/folder/mine.yaml"], 2))
def test_a_copy_is_the_same_recipe(to: str | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "folder").mkdir()
    assert command("recipes", "copy", "minilm/reptile", *([to] if to else [])) == 0
    there = Path(capsys.readouterr().out.rstrip("\n"))
    expected = {None: "reptile.yaml", "folder": "folder/reptile.yaml"}.get(to, to)
    assert str(there) == expected
    first, *lines = there.read_text(encoding="utf-8").splitlines()
    assert lines == (FOLDER / "minilm" / "reptile.yaml").read_text(encoding="utf-8").splitlines()[1:]
    schema = there.parent / first.removeprefix(shipped.SCHEMA_LINE)
    assert schema == there.parent / ".mtmeta" / "recipe.schema.json"
    assert json.loads(schema.read_text(encoding="utf-8")) == recipe_schema(build_registry())
    assert command("recipes", "copy", "minilm/reptile", *([to] if to else [])) == 2
    assert capsys.readouterr().err == f"error: {expected}: is there already; name another file\n"


@pytest.mark.parametrize(
    ("name", "hint"), [("minilm/reptil", "did you mean 'minilm/reptile'?"), ("qqq", "one of five/")]
)
def test_a_name_that_is_none(name: str, hint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command("recipes", "copy", name) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: NAME: no recipe '{name}' comes with mtmeta; {hint}")
    assert command("validate", name) == 2
    assert capsys.readouterr().err.startswith(f"error: {name}: no such file")


def test_in_a_wheel_they_lie_inside_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "mtmeta"
    (inside / "recipes" / "a").mkdir(parents=True)
    (inside / "recipes" / "a" / "b.yaml").write_text("# Mine.\n")
    monkeypatch.setattr(shipped, "PACKAGE", inside)
    assert list(shipped.shipped_recipes()) == ["a/b"]
    assert shipped.headline(shipped.find_recipe("a/b")) == "Mine."
    monkeypatch.setattr(shipped, "PACKAGE", tmp_path / "gone" / "mtmeta")
    assert shipped.shipped_recipes() == {}
