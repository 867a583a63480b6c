"""The wheel: what is in it, and that the default recipe runs from it elsewhere."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from mtmeta.plugins.backbones import embedded
from tests.support.paths import ROOT

INSIDE = "mtmeta/plugins/backbones/mini/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what the build reads, so that a build leaves nothing in the tree."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / "mtmeta", source / "mtmeta", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "recipes", source / "recipes")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet", "--wheel-dir", str(out)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(source)], check=True, timeout=300)
    (found,) = out.glob("mtmeta-*.whl")
    return found


def test_the_encoder_is_in_the_wheel_byte_for_byte(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if name.startswith(INSIDE)}
        assert names == {INSIDE + path.name for path in embedded.FOLDER.iterdir()}
        for path in embedded.FOLDER.iterdir():
            assert file.read(INSIDE + path.name) == path.read_bytes()
        assert any(name.endswith(".c") for name in file.namelist()), "the kernels' source"


def test_the_recipes_are_in_the_wheel_byte_for_byte(wheel: Path) -> None:
    here = {path.relative_to(ROOT).as_posix(): path for path in (ROOT / "recipes").rglob("*.yaml")}
    with zipfile.ZipFile(wheel) as file:
        inside = {name.removeprefix("mtmeta/") for name in file.namelist() if name.startswith("mtmeta/recipes/")}
        assert inside == set(here)
        for name, path in here.items():
            assert file.read(f"mtmeta/{name}") == path.read_bytes()
        assert file.read("mtmeta/recipe.schema.json") == (ROOT / "mtmeta" / "recipe.schema.json").read_bytes()


def test_the_templates_are_in_the_wheel_byte_for_byte(wheel: Path) -> None:
    folders = ("mtmeta/templates/", "mtmeta/core/reports/html/templates/")
    here = {path.relative_to(ROOT).as_posix(): path for folder in folders for path in (ROOT / folder).rglob("*.*")}
    assert len({name.split("templates/")[0] for name in here}) == len(folders)
    single = ["core/export/model_card_template.md", "sample/lexicon.yaml", "sample/templates.yaml"]
    single += [f"cli/completion/completion.{shell}" for shell in ("bash", "zsh", "fish")]
    with zipfile.ZipFile(wheel) as file:
        assert {name for name in file.namelist() if name.startswith(folders)} == set(here)
        assert all(file.read(name) == path.read_bytes() for name, path in here.items())
        assert all(file.read(f"mtmeta/{name}") == (ROOT / "mtmeta" / name).read_bytes() for name in single)


@pytest.mark.slow
@pytest.mark.parametrize(("what", "kind"), [("task", "pair"), ("algorithm", "inner_loop"), ("algorithm", "stateful")])
def test_a_new_package_in_a_fresh_environment(wheel: Path, tmp_path: Path, what: str, kind: str) -> None:
    """What its README says, in an environment that has nothing from this one but other people's packages."""
    venv.create(tmp_path / "venv", with_pip=importlib.util.find_spec("pip") is None)
    python = tmp_path / "venv" / "bin" / "python"
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("MTMETA_", "PYTHON", "PIP_"))}
    environ["MTMETA_CACHE"] = str(tmp_path / "cache")

    def run(*command: str | Path, cwd: Path = tmp_path) -> str:
        done = subprocess.run([python, *command], cwd=cwd, env=environ, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    site = Path(run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
    parents = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    (site / "parent.pth").write_text("".join(f"import site; site.addsitedir({path!r})\n" for path in parents))
    install = ["-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    run(*install, "--ignore-installed", wheel)
    assert Path(run("-c", "import mtmeta; print(mtmeta.__file__)").strip()).is_relative_to(site)

    folder = tmp_path / run("-m", "mtmeta", "new", what, "my_own", "--kind", kind).strip()
    run(*install, "-e", ".", cwd=folder)
    assert re.search(r"[34] passed", run("-m", "pytest", "-q", cwd=folder))
    assert "mtmeta-my-own 0.1.0  my_own\n" in run("-m", "mtmeta", "plugins", cwd=folder)
    summary = json.loads(run("-m", "mtmeta", "run", "recipe.yaml", "--json", cwd=folder))
    assert "my_own" in (summary["tasks"] if what == "task" else summary["algorithm"])


@pytest.mark.slow
def test_the_default_recipe_runs_from_the_wheel_in_another_directory(wheel: Path, tmp_path: Path) -> None:
    """In an environment that has only mtmeta's dependencies from this one; the tree is out of sight."""
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    options = ["--no-deps", "--no-index", "--quiet", "--target", str(site)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True, timeout=300)
    elsewhere.mkdir()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")}
    environ |= {"PYTHONPATH": str(site), "MTMETA_CACHE": str(tmp_path / "cache")}
    run = [sys.executable, "-m", "mtmeta", "run", "reptile_three_task", "--json"]  # the recipe in the wheel
    done = subprocess.run(run, cwd=elsewhere, env=environ, capture_output=True, text=True, timeout=900, check=True)
    tasks = json.loads(done.stdout)["tasks"]
    assert {name: made["metric"] for name, made in tasks.items()} == {
        "sst": "accuracy",
        "para": "accuracy",
        "sts": "pearson",
    }
    code = "import mtmeta; print(mtmeta.__file__)"
    where = subprocess.run([sys.executable, "-c", code], cwd=elsewhere, env=environ, capture_output=True, text=True)
    assert Path(where.stdout.strip()).is_relative_to(site)
    lock = (elsewhere / "runs" / "reptile_three_task" / "recipe.lock.yaml").read_text()
    assert "sha256:" in lock
