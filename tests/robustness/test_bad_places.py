"""Places that cannot be written, or not safely: one line, the exit code, and nothing changes there or elsewhere.

The numbers are the rows of our list of bad inputs.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

import mtmeta
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import assert_refused, call, command, contents, quietly
from tests.support.quick import quick

Capture = pytest.CaptureFixture[str]
GO_ON = ("run", "data/quick.yaml", "--out", "run")
EXPORT = ("export", "run", "--format", "transformers")
PREDICT = ("predict", "run", "--task", "kind", "--input", "texts.txt", "--output")
ADAPT = ("adapt", "run", "data/quick.yaml", "--shots", "1", "--seeds", "1", "--task", "kind")
COPY = ("recipes", "copy", "reptile_three_task")
# The highest number that a descriptor can have here: a small one may be open in a process that has run other tests.
CLOSED = f"/dev/fd/{resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 1}"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, texts, a recipe in data/quick.yaml and its run in `run`."""
    folder = tmp_path_factory.mktemp("finished")
    with quietly():
        mtmeta.run(quick(folder / "data", training={"steps": 1}), out=folder / "run", device="cpu")
    (folder / "texts.txt").write_text("a text\n")
    return folder


@dataclass(frozen=True)
class Case:
    """What is done to a copy of that folder, beside a `home`; the command, its exit code, and words of its line."""

    spoil: Callable[[Path], object]
    arguments: tuple[str, ...]
    code: int
    words: tuple[str, ...]


def link(place: str, target: str = "home/real") -> Callable[[Path], object]:
    """Put a link in the place of whatever is there."""

    def spoil(folder: Path) -> None:
        path = folder / place
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target if target.startswith("/") or "/" not in target else folder / target)

    return spoil


def unfinished(spoil: Callable[[Path], object]) -> Callable[[Path], object]:
    """The same in a run without its summary, which goes on."""

    def both(folder: Path) -> None:
        (folder / "run" / "summary.json").unlink()
        spoil(folder)

    return both


def hard(place: str) -> Callable[[Path], object]:
    """Give a file another name in the home."""

    def spoil(folder: Path) -> None:
        (folder / place).touch()
        os.link(folder / place, folder / "home" / "other")

    return spoil


def pipe(place: str) -> Callable[[Path], object]:
    def spoil(folder: Path) -> None:
        (folder / place).unlink(missing_ok=True)
        os.mkfifo(folder / place)

    return spoil


def bound(place: str) -> Callable[[Path], object]:
    """A socket; its path is too long to bind from elsewhere."""

    def spoil(folder: Path) -> None:
        before = Path.cwd()
        os.chdir((folder / place).parent)
        try:
            with socket.socket(socket.AF_UNIX) as one:
                one.bind(Path(place).name)
        finally:
            os.chdir(before)

    return spoil


def nothing(folder: Path) -> None:
    pass


def full(folder: Path) -> None:
    """A device that is full: never the machine's own, which root could replace."""
    if os.geteuid():  # nor can anybody else
        (folder / "full").symlink_to("/dev/full")
        return
    try:
        os.mknod(folder / "full", stat.S_IFCHR | 0o666, os.makedev(1, 7))
        open(folder / "full", "wb").close()
    except OSError as error:
        pytest.skip(f"no devices can be made here: {error.strerror}")


LINK, OTHER = "is a symbolic link; remove it", "has another name elsewhere (a hard link); put a copy of it in its place"
CASES: dict[str, Case] = {
    "100-eval, predictions lead out": Case(
        link("run/predictions"),
        ("eval", "run"),
        4,
        ("run/predictions: is a symbolic link; put what it leads to in its place",),
    ),
    "101-eval, best weights lead out": Case(
        link("run/checkpoints/best"), ("eval", "run"), 4, (f"run/checkpoints/best: {LINK}",)
    ),
    "102-eval, a file of the backbone leads out": Case(
        link("run/backbone/config.json", "home/file"), ("eval", "run"), 4, (f"run/backbone/config.json: {LINK}",)
    ),
    "103-eval, a pipe for a summary": Case(
        pipe("run/summary.json"), ("eval", "run"), 4, ("run/summary.json: is no regular file; remove it",)
    ),
    "104-run goes on, a checkpoint leads out": Case(
        unfinished(link("run/checkpoints/step-00000001")), GO_ON, 2, (f"run/checkpoints/step-00000001: {LINK}", "--out")
    ),
    "105-run goes on, events have another name": Case(
        unfinished(hard("run/events.jsonl")), GO_ON, 4, (f"run/events.jsonl: {OTHER}",)
    ),
    "106-run goes on, a reporter's file has another name": Case(
        unfinished(hard("run/log.csv")), GO_ON, 4, (f"run/log.csv: {OTHER}",)
    ),
    "107-run, the lock leads out": Case(link("run/.lock", "home/file"), GO_ON, 2, (f"run/.lock: {LINK}", "--out")),
    "108-run goes on, the lock has another name": Case(
        unfinished(hard("run/.lock")), GO_ON, 4, ("run/.lock: is no file of its own; remove it",)
    ),
    "109-run --fresh, checkpoints lead out": Case(
        link("run/checkpoints"), (*GO_ON, "--fresh"), 2, (f"run/checkpoints: {LINK}", "--out")
    ),
    "110-run, a socket in the directory": Case(
        bound("run/socket"), GO_ON, 2, ("run/socket: is no regular file; remove it", "--out")
    ),
    "111-export, RUN/export leads out": Case(link("run/export"), EXPORT, 4, (f"run/export: {LINK}",)),
    "112-export, RUN/export/FORMAT leads out": Case(
        link("run/export/transformers"), EXPORT, 4, (f"run/export/transformers: {LINK}",)
    ),
    "113-export --out through a link in a run": Case(
        link("run/export"), (*EXPORT, "--out", "run/export/mine"), 2, ("run/export: is a link; choose another",)
    ),
    "114-adapt --keep, a backbone that leads out": Case(
        link("run/backbone/config.json", "home/file"), (*ADAPT, "--keep", "kept"), 4, (f"backbone/config.json: {LINK}",)
    ),
    "115-adapt --keep through a link in a run": Case(
        link("run/kept"), (*ADAPT, "--keep", "run/kept/below"), 4, (f"run/kept: {LINK}",)
    ),
    "116-predict to a folder": Case(nothing, (*PREDICT, "data"), 2, ("--output: is a directory; name a file",)),
    "117-predict to a link in a run": Case(
        link("run/out.csv", "home/file"), (*PREDICT, "run/out.csv"), 2, ("out.csv: is a symbolic link; name another",)
    ),
    "118-predict to a pipe in a run": Case(
        pipe("run/out.csv"), (*PREDICT, "run/out.csv"), 2, ("out.csv: is no regular file, in a run directory",)
    ),
    "119-predict through a link in a run": Case(
        link("run/mine"), (*PREDICT, "run/mine/out.csv"), 6, ("out.csv: cannot be written (Not a directory)",)
    ),
    "120-predict to a link that leads to itself": Case(
        link("loop", "loop"), (*PREDICT, "loop"), 6, ("loop: cannot be written (Too many levels of symbolic links)",)
    ),
    "121-predict to a full device": Case(
        full, (*PREDICT, "full"), 6, ("full: cannot be written (No space left on device)",)
    ),
    "122-predict to a closed descriptor": Case(
        nothing, (*PREDICT, CLOSED), 6, (f"{CLOSED}: cannot be written (Bad file descriptor)",)
    ),
    "123-schema to a socket": Case(
        bound("socket"), ("schema", "--out", "socket"), 6, ("socket: cannot be written: No such device or address",)
    ),
    "124-schema to a link in a run": Case(
        link("run/s.json", "home/file"), ("schema", "--out", "run/s.json"), 2, ("run/s.json: is a symbolic link; name",)
    ),
    "125-report to its default, which is a link": Case(
        link("report.html", "home/file"), ("report", "run"), 2, ("report.html: is a symbolic link; name another file",)
    ),
    "126-report to a folder": Case(
        nothing, ("report", "run", "--out", "data"), 6, ("data: cannot be written: Is a directory",)
    ),
    "127-recipes copy, the schema's folder leads out": Case(link(".mtmeta"), COPY, 2, (f".mtmeta: {LINK}",)),
    "128-recipes copy, the schema leads out": Case(
        link(".mtmeta/recipe.schema.json", "home/file"), COPY, 2, (f".mtmeta/recipe.schema.json: {LINK}",)
    ),
    "129-recipes copy to a link that leads nowhere": Case(
        link("r.yaml", "home/none"), (*COPY, "r.yaml"), 2, ("r.yaml: is there already; name another file",)
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_refused(name: str, finished: Path, tmp_path: Path, capsys: Capture) -> None:
    case, folder = CASES[name], tmp_path / "copy"
    shutil.copytree(finished, folder, symlinks=True)
    shutil.copytree(finished / "run", folder / "home" / "real", symlinks=True)
    (folder / "home" / "file").write_text("precious")
    case.spoil(folder)
    before = contents(folder)
    outcome = call(*case.arguments, cwd=folder, capsys=capsys)
    assert_refused(outcome, case.code, *case.words)
    assert contents(folder) == before


@pytest.mark.parametrize("name", ["100-eval, predictions lead out", "109-run --fresh, checkpoints lead out"])
def test_refused_in_a_process_of_its_own(name: str, finished: Path, tmp_path: Path) -> None:
    case, folder = CASES[name], tmp_path / "copy"
    shutil.copytree(finished, folder, symlinks=True)
    shutil.copytree(finished / "run", folder / "home" / "real", symlinks=True)
    case.spoil(folder)
    before = contents(folder)
    assert_refused(command(*case.arguments, cwd=folder), case.code, *case.words)
    assert contents(folder) == before
