"""Names, labels, ids and whatever else of a run is text: in a terminal, on a page and in a card they are only text."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import Outcome, call, quietly
from tests.support.spoilt_runs import REPLACEMENTS

EVIL = "[red]\x1b]0;x\x07<script>alert(1)</script>|`*_\u202e\u2066\x9b31m\x85"
LINES = f"{EVIL}\n# heading\r\n---\nerror: x"
LABELS = [f"{EVIL}no", f"yes {LINES}"]
RECIPE: dict[str, Any] = {
    "name": "t",
    "data_root": "data",
    "backbone": {"name": "bert", "weights": "tiny", "max_length": 16},
    "tasks": {
        "kind": {
            "task": "classification", "labels": LABELS, "metrics": ["accuracy", "macro_f1"],
            "train": "train.jsonl", "dev": "dev.jsonl", "batch_size": 4,
        },
    },
    "algorithm": "joint",
    "optimizer": {"name": "sgd", "lr": 0.1},
    "training": {"steps": 2},
    "reporters": ["console", "jsonl"],
}  # fmt: skip
OUT = ("--out", "out")
TUNE = ("tune", "r.yaml", "--trials", "1", "--seeds", "1", "--out", "tuned")
BAD_SPACE = {EVIL: {"choices": [EVIL, EVIL], "when": {EVIL: [EVIL]}}, "seed": EVIL}
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", "r.yaml", *OUT),
    "run json": ("run", "r.yaml", *OUT, "--json"),
    "new run": ("run", "r.yaml", "--out", "new"),
    "dry run": ("run", "r.yaml", "--dry-run", "--probe", "0", "--out", "new"),
    "resume": ("run", "r.yaml", "--out", "half"),
    "runs": ("runs", "."),
    "runs json": ("runs", ".", "--json"),
    "eval": ("eval", "out", "--verbose"),
    "eval json": ("eval", "out", "--verbose", "--json"),
    "predict": ("predict", "out", "--input", "data/dev.jsonl", "--output", "answers.csv"),
    "report": ("report", "out", "half"),
    "report twins": ("report", "out", "twin"),
    "compare": ("compare", "r.yaml", "other.yaml", "--seeds", "1", "--out", "compared"),
    "compare markdown": ("compare", "r.yaml", "other.yaml", "--seeds", "1", "--out", "compared", "--markdown"),
    "compare csv": ("compare", "r.yaml", "other.yaml", "--seeds", "1", "--out", "compared", "--csv"),
    "tune": ("tune", "r.yaml", "--space", "space.yaml", "--trials", "1", "--seeds", "1", "--out", "tuned"),
    "tune json": (
        "tune",
        "r.yaml",
        "--space",
        "space.yaml",
        "--trials",
        "1",
        "--seeds",
        "1",
        "--out",
        "tuned",
        "--json",
    ),
    "bad space": ("tune", "r.yaml", "--space", "bad.yaml", "--out", "tuned"),
    "adapt": ("adapt", "out", "r.yaml", "--shots", "1", "--seeds", "1", "--out", "adapt.html"),
    "export": ("export", "out", "--format", "transformers", "--out", "exported"),
    "validate": ("validate", "r.yaml", "--data"),
    "validate run": ("validate", "out/recipe.yaml"),
    "fetch": ("fetch", "out/recipe.yaml"),
    "unknown task": ("eval", "out", "--task", EVIL),
    "unknown run": ("eval", EVIL),
    "unknown recipe": ("run", EVIL),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with data whose labels and ids are hostile, and a run of it; two more recipes with their runs."""
    from mtmeta.cli import main

    folder, here = tmp_path_factory.mktemp("trained"), Path.cwd()
    (folder / "data").mkdir()
    for name in ("train", "dev"):
        rows = [{"id": f"{i}{LINES}", "sentence": f"{name} word {i} {EVIL}", "label": LABELS[i % 2]} for i in range(8)]
        (folder / "data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "r.yaml").write_text(json.dumps(RECIPE))
    (folder / "space.yaml").write_text(json.dumps({"optimizer.lr": {"low": 0.1, "high": 0.2}}))
    (folder / "bad.yaml").write_text(json.dumps(BAD_SPACE))
    (folder / "other.yaml").write_text(json.dumps(RECIPE | {"name": "other", "optimizer": {"name": "sgd", "lr": 0.2}}))
    os.chdir(folder)
    with quietly():
        for command in (COMMANDS["run"], COMMANDS["compare"]):
            with pytest.raises(SystemExit) as ended:
                main(command)
            assert ended.value.code == 0
        os.chdir(here)
        yield folder


def planted(value: Any) -> Any:
    """Data with hostile text in place of every text, but for keys, which stay, and hashes, which are compared."""
    if isinstance(value, dict):
        return {key: planted(item) for key, item in value.items()}
    if isinstance(value, list):
        return [planted(item) for item in value]
    return LINES if isinstance(value, str) and not re.fullmatch("[0-9a-f]{64}", value) else value


def plant(run: Path, *, summary: bool = True) -> None:
    """Put hostile text into summary, lock and events of a run, wherever that is let by."""
    if summary:
        path = run / "summary.json"
        found = planted(json.loads(path.read_text()))
        found["tasks"]["kind"]["others"] = {LINES: 0.5}
        path.write_text(json.dumps(found))
    lock = run / "recipe.lock.yaml"
    facts = planted(yaml.safe_load(lock.read_text()))
    facts["plugins"] = {LINES: LINES}
    facts["adapted"] = {"run": LINES, "weights": LINES, "shots": LINES, "examples": LINES}
    lock.write_text(yaml.safe_dump(facts))
    with open(run / "events.jsonl", "ab") as file:
        for event in (
            {"type": "warning", "text": LINES},
            {"type": LINES, "group": LINES},
            {"type": "run_started", "name": LINES, "algorithm": LINES, "tasks": [LINES], "groups": [[LINES]],
             "device": LINES, "parameters": 1},
            {"type": "checkpoint", "group": LINES, "step": 1, "path": LINES},
            {"type": "step", "group": LINES, "losses": {LINES: [1.0]}},
        ):  # fmt: skip
            file.write(json.dumps(event).encode() + b"\n")


@pytest.fixture
def place(trained: Path, tmp_path: Path) -> Path:
    place = tmp_path / "place"
    shutil.copytree(trained, place, symlinks=True)
    shutil.copytree(place / "out", place / "half", symlinks=True)
    (place / "half" / "summary.json").unlink()
    shutil.copytree(place / "out", place / "twin", symlinks=True)
    shutil.copytree(place / "out", place / EVIL.replace("/", ""), symlinks=True)
    plant(place / "out")
    plant(place / EVIL.replace("/", ""))
    plant(place / "twin", summary=False)
    for run in (place / "compared").glob("[!.]*"):  # the record of what was planned is no run
        plant(run, summary=False)
    return place


def assert_text(text: str) -> None:
    """No character in it is a command to a terminal, or turns the direction of what follows."""
    for line in text.split("\n"):
        bad = [c for c in line if not c.isprintable()]
        assert not bad, (bad, line)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_in_the_terminal(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = call(*COMMANDS[name], cwd=place, capsys=capsys)
    assert "Traceback" not in told.err and "bug in mtmeta" not in told.err
    assert told.code in (0, 2, 4), told.err
    assert (told.code == 0) == (not told.errors), told.err
    assert_text(told.out)
    assert_text(told.err)
    if "json" in name and told.code == 0:
        json.loads(told.out)


@pytest.mark.slow
def test_every_command_comes_to_its_end(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The test above would show nothing if they were all refused."""
    ended = {name: call(*command, cwd=place, capsys=capsys).code for name, command in COMMANDS.items()}
    refused = {"bad space", "unknown task", "unknown run", "unknown recipe", "resume", "run", "run json"}
    assert {name for name, code in ended.items() if code} <= refused, ended


class Tags(HTMLParser):
    """The elements of a page, and the texts in it."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        assert not [name for name, _ in attributes if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("name", ["report", "report twins", "adapt"])
def test_on_a_page(name: str, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*COMMANDS[name], cwd=place, capsys=capsys).code == 0
    page = (place / ("adapt.html" if name == "adapt" else "report.html")).read_text()
    assert_text(page)
    tags = Tags(page)
    assert "script" not in tags.tags
    if name == "report":
        assert any("<script>alert(1)</script>" in text for text in tags.texts)  # it is there, as text


def test_a_page_of_a_run_whose_folder_has_a_hostile_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = EVIL.replace("/", "")
    for command in (("report", run), ("adapt", run, *COMMANDS["adapt"][2:]), ("eval", run), ("runs", ".")):
        told = call(*command, cwd=place, capsys=capsys)
        assert told.code == 0, told.err
        assert_text(told.out)
        assert_text(told.err)
    for page in ("report.html", "adapt.html"):
        assert_text((place / page).read_text())
        assert "script" not in Tags((place / page).read_text()).tags


def test_in_a_card(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*COMMANDS["export"], cwd=place, capsys=capsys).code == 0
    card = (place / "exported" / "README.md").read_text()
    assert_text(card)
    _, front, body = card.split("---\n", 2)
    assert yaml.safe_load(front)["tags"][:2] == ["mtmeta", "multi-task-learning"]
    prose = re.sub(r"(?<!\\)`[^`\n]*`", "", re.sub(r"(?ms)^(`{3,}).*?^\1$", "", body))
    assert re.findall(r"(?<!\\)<script", prose) == []
    assert "# heading" not in [line.strip() for line in prose.splitlines()]
    headings = [line for line in prose.splitlines() if line.startswith("#")]
    assert headings == ["# t", "## Figures", "## Use", "## How it was made"]
    rows = [line for line in prose.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {7}


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_predictions_keep_every_label_in_a_file_and_are_text_in_a_terminal(form: str, place: Path) -> None:
    command = [sys.executable, "-m", "mtmeta", "predict", "out", "--input", "data/dev.jsonl", "--format", form]
    piped = subprocess.run(command, cwd=place, capture_output=True, check=True, timeout=600).stdout.decode()
    if form == "csv":
        answers = list(csv.DictReader(io.StringIO(piped, newline="")))
    else:
        answers = [json.loads(line) for line in piped.split("\n")[:-1]]
    assert [answer["label"] in LABELS for answer in answers] == [True] * 8  # byte for byte
    program = "import io, sys; from mtmeta.cli import main; real = sys.stdout; fake = io.StringIO(newline='')\n"
    program += "fake.isatty = lambda: True; sys.stdout = fake\n"
    program += f"try: main({command[3:]!r})\nexcept SystemExit: pass\nreal.write(fake.getvalue())"
    shown = subprocess.run([sys.executable, "-c", program], cwd=place, capture_output=True, check=True, timeout=600)
    assert_text(shown.stdout.decode())
    assert "alert(1)" in shown.stdout.decode()


# ------------------------------------------------------------------------------------------ files of the current folder

CODE = "open(r'{made}', 'w').close()\n"
FILES = {
    "torch.py": CODE, "sitecustomize.py": CODE, "usercustomize.py": CODE, "numpy.py": CODE, "matplotlib.py": CODE,
    "mtmeta.py": CODE, "conftest.py": CODE, "backend.py": CODE, "html.py": CODE, "page.py": CODE,
    ".env": "MTMETA_DEBUG=1\nMTMETA_PLUGINS=evil\n",
    "pyproject.toml": "[tool.mtmeta]\n[",
    "setup.cfg": "[", "wandb": "", "mlruns": "", "typer.toml": "[", "matplotlibrc.d": "",
    "matplotlibrc": "text.usetex: True\nbackend: module://backend\naxes.facecolor: red\nfont.size: 40\n",
}  # fmt: skip


def outside(*arguments: str, cwd: Path, **env: str) -> Outcome:
    """The program as it is installed, which does not look for modules in the current folder."""
    variables = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")} | env
    command = [sys.executable, "-P", "-m", "mtmeta", *arguments]
    done = subprocess.run(command, cwd=cwd, env=variables, capture_output=True, timeout=600, check=False)
    return Outcome(done.returncode, done.stdout.decode(), done.stderr.decode())


@pytest.mark.slow
def test_files_of_the_current_folder_change_nothing(trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "clean", symlinks=True)
    shutil.copytree(trained, tmp_path / "poisoned", symlinks=True)
    made = tmp_path / "made"
    for name, text in FILES.items():
        (tmp_path / "poisoned" / name).write_text(text.format(made=made) if "{made}" in text else text)
    rc = str(tmp_path / "poisoned" / "matplotlibrc")
    env = {"MPLBACKEND": "module://backend", "MATPLOTLIBRC": rc}
    for command in (("report", "out"), ("run", "r.yaml", "--out", "out"), ("compare", *COMMANDS["compare"][1:])):
        clean = outside(*command, cwd=tmp_path / "clean")
        poisoned = outside(*command, cwd=tmp_path / "poisoned", **env)
        assert (clean.code, poisoned) == (0, clean)
    assert not made.exists()
    pages = [(tmp_path / name / "report.html").read_bytes() for name in ("clean", "poisoned")]
    assert pages[0] == pages[1] and b"<svg" in pages[0]


@pytest.mark.parametrize("kind", ["pipe", "folder", "link to /dev/zero"])
def test_an_rc_file_that_is_none(kind: str, trained: Path, tmp_path: Path) -> None:
    shutil.copytree(trained, tmp_path / "place", symlinks=True)
    path = tmp_path / "place" / "matplotlibrc"
    REPLACEMENTS[kind](path)
    assert outside("report", "out", cwd=tmp_path / "place").code == 0
