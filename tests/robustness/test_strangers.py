"""A stranger's run directory through every command that reads one: nothing outside it changes.

Of a finished run, one entry at a time becomes a link to somebody's file or folder, a hard link, a FIFO, or a folder
where a file is expected; or the names in one of its files lead out, hold control characters, or are far too long. What
lies outside is a home with a full copy of the run, so that whatever is followed finds what it looks for, and would
change it. Every command ends by itself, with 0 or one line and a code for what is wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import mtmeta
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.resolved import dump
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.commands import Outcome, call, command, quietly
from tests.support.quick import quick

Capture = pytest.CaptureFixture[str]

LIMIT = 20.0  # seconds in which a command must be over; on a FIFO it would wait for ever
CODES = (0, 2, 3, 4, 6)
KINDS = ("symlink", "hard link", "FIFO", "other type")
MORE = (  # what is not there, and would be written: names to be guessed, and places that commands make
    *(".lock", "export", "export/transformers", "predictions/file-dev.csv", "checkpoints/.step-00000004.tmp"),
    *(".summary.json.tmp", "checkpoints/.best.tmp", f".metrics.jsonl.{os.getpid()}.tmp", "checkpoints/step-00000099"),
)
COMMANDS: dict[str, tuple[str, ...]] = {
    "run": ("run", "{recipe}", "--out", "{run}"),
    "continue": ("run", "{recipe}", "--out", "{run}"),  # without its summary
    "fresh": ("run", "{recipe}", "--out", "{run}", "--fresh"),
    "dry run": ("run", "{recipe}", "--out", "{run}", "--dry-run"),
    "eval": ("eval", "{run}"),
    "eval file": ("eval", "{run}", "--file", "kind={data}/dev.tsv"),
    "predict": ("predict", "{run}", "--task", "kind", "--input", "texts.txt", "--output", "out.csv"),
    "transformers": ("export", "{run}", "--format", "transformers"),
    "sentence-transformers": ("export", "{run}", "--format", "sentence-transformers", "--fresh"),
    "report": ("report", "{run}"),
    "compare": ("compare", "{recipe}", "--seeds", "1", "--out", "{runs}"),
    "runs": ("runs", "{runs}"),
    "runs --json": ("runs", "{runs}", "--json"),
    "adapt": ("adapt", "{run}", "{recipe}", "--shots", "1", "--seeds", "1", "--task", "kind", "--keep", "kept"),
    "validate": ("validate", "{run}/recipe.yaml"),
    "fetch": ("fetch", "{run}/recipe.yaml", "--dry-run"),
}
SLOW = {"onnx": ("export", "{run}", "--format", "onnx")}  # some seconds each, where it is not refused
NAMES = {
    "outside": "../../../home/decoy",
    "absolute": "{home}/decoy",
    "control": "\x1b]0;x\x07\r\nname",
    "long": "x" * 5000,
}


@dataclass(frozen=True)
class Stranger:
    """A finished run with everything in it, and where it lies."""

    folder: Path
    """Holds the recipe and its data in `data`, and the run in `runs/NAME`."""
    name: str

    def entries(self) -> list[str]:
        run = self.folder / "runs" / self.name
        return sorted(str(path.relative_to(run)) for path in run.rglob("*"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Stranger:
    from mtmeta.core.recipe.reader import load_recipe
    from mtmeta.core.recipe.resolved import digest
    from mtmeta.core.registry.registry import build_registry

    folder = tmp_path_factory.mktemp("stranger")
    recipe = quick(folder / "data", reporters=["jsonl", "metrics", "tensorboard"])
    read = load_recipe(recipe, build_registry())
    name = f"quick-5-{digest(read)[:8]}"  # as compare names it
    with quietly():
        mtmeta.run(recipe, out=folder / "runs" / name, device="cpu")
        mtmeta.evaluate(folder / "runs" / name, split="train")
    from mtmeta.core.export.export import export

    export(folder / "runs" / name, "transformers")
    return Stranger(folder, name)


class Scene:
    """A copy of the run to spoil, beside a home that nothing may touch."""

    def __init__(self, stranger: Stranger, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.home, self.box, self.data = folder / "home", folder / "box", stranger.folder / "data"
        self.runs = self.box / "runs"
        self.run = self.runs / stranger.name
        self.box.mkdir()
        shutil.copytree(stranger.folder / "runs", self.runs, symlinks=True)
        self.home.mkdir()
        shutil.copytree(self.run, self.home / "real", symlinks=True)
        (self.home / "decoy").write_text("precious\n")
        (self.home / ".bashrc").write_text("export A=1\n")
        (self.home / "empty").mkdir()
        (self.box / "texts.txt").write_text("a text\nanother\n")
        monkeypatch.setenv("HOME", str(self.home))
        monkeypatch.setenv("MPLCONFIGDIR", str(folder / "matplotlib"))
        monkeypatch.setenv("XDG_CACHE_HOME", str(folder / "cache"))  # where onnxruntime keeps an id of the machine
        self.before = snapshot(self.home)

    def spoil(self, kind: str, entry: str) -> bool:
        """Replace an entry; False where there is nothing to be made of it."""
        place, twin = self.run / entry, self.home / "real" / entry
        if not twin.exists():
            twin = self.home / ("empty" if not Path(entry).suffix or "step-" in entry else "decoy")
        folder = twin.is_dir()
        if kind == "hard link" and folder:
            return False
        if place.is_symlink() or place.is_file():
            place.unlink()
        elif place.is_dir():
            shutil.rmtree(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        if kind == "symlink":
            place.symlink_to(twin)
        elif kind == "hard link":
            place.hardlink_to(twin)
        elif kind == "FIFO":
            os.mkfifo(place)
        elif folder:
            place.write_bytes(b"a file")
        else:
            place.mkdir()
            (place / "within").symlink_to(self.home / "decoy")
        return True

    def arguments(self, name: str) -> list[str]:
        if (
            name == "continue"
            and (self.run / "summary.json").is_file()
            and not (self.run / "summary.json").is_symlink()
        ):
            (self.run / "summary.json").unlink()
        words = {"recipe": self.data / "quick.yaml", "run": self.run, "runs": self.runs, "data": self.data}
        return [word.format(**words) for word in (COMMANDS | SLOW)[name]]

    def check(self, outcome: Outcome, story: str) -> None:
        """Nothing outside changed, and the command ended as one should."""
        after = snapshot(self.home)
        changed = {key for key in self.before | after if self.before.get(key) != after.get(key)}
        assert not changed, f"{story}: changed {sorted(changed)}"
        assert outcome.code in CODES, f"{story}: {outcome}"
        assert "Traceback" not in outcome.err and "bug in mtmeta" not in outcome.err, f"{story}: {outcome.err}"
        # a recipe's problems come together, ten at most
        assert (1 <= len(outcome.errors) <= 10) if outcome.code else not outcome.errors, f"{story}: {outcome.err}"
        for text in (outcome.out, outcome.err):
            assert not set(text) & {"\x1b", "\x07", "\r"}, f"{story}: control characters reach the terminal"


def snapshot(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Of everything below a folder: type, mode, size, time of the last change, and contents."""
    found: dict[str, tuple[Any, ...]] = {}
    for path in (folder, *folder.rglob("*")):
        status = path.lstat()
        data = path.read_bytes() if stat.S_ISREG(status.st_mode) else b""
        link = os.readlink(path) if path.is_symlink() else ""
        size = status.st_size if data else 0
        found[str(path)] = (status.st_mode, size, status.st_mtime_ns, hashlib.sha256(data).hexdigest(), link)
    return found


class TooLong(BaseException):
    """The command waits for something that will never come."""


@contextmanager
def limited(story: str) -> Iterator[None]:
    def end(*_: Any) -> None:
        raise TooLong(story)

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, LIMIT)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def fault(scene: Scene, name: str, story: str, capsys: Capture) -> list[str]:
    """What is wrong with how a command took it; nothing, as a rule. All of them are told, not the first alone."""
    try:
        with limited(story):
            outcome = call(*scene.arguments(name), cwd=scene.box, capsys=capsys)
        scene.check(outcome, story)
    except (AssertionError, TooLong) as error:
        return [f"{type(error).__name__}: {str(error)[:600]}"]
    return []


# ------------------------------------------------------------------------------------------------ links, FIFOs, folders


def spread(stranger: Stranger, kind: str) -> list[tuple[str, str]]:
    """Pairs of an entry and a command: every entry and every command at least once."""
    entries = [*stranger.entries(), *MORE]
    count = max(len(entries), len(COMMANDS))
    names = [name for name in COMMANDS]
    start = KINDS.index(kind) * 5
    return [(entries[i % len(entries)], names[(i * 7 + start) % len(names)]) for i in range(count)]


@pytest.mark.parametrize("kind", [KINDS[0], *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS[1:])])
def test_what_is_no_file_of_its_own(
    kind: str, stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Every entry once, every command at least once."""
    pairs = spread(stranger, kind)
    faults: list[str] = []
    for number, (entry, name) in enumerate(pairs):
        (folder := tmp_path / str(number)).mkdir()
        scene = Scene(stranger, folder, monkeypatch)
        if scene.spoil(kind, entry):
            faults += fault(scene, name, f"{entry} is a {kind}, mtmeta {name}", capsys)
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_no_file_of_its_own_everywhere(
    kind: str, name: str, stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Every entry through every command."""
    faults: list[str] = []
    for number, entry in enumerate([*stranger.entries(), *MORE]):
        (folder := tmp_path / str(number)).mkdir()
        scene = Scene(stranger, folder, monkeypatch)
        if scene.spoil(kind, entry):
            faults += fault(scene, name, f"{entry} is a {kind}, mtmeta {name}", capsys)
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)


WRITING = ("run", "continue", "fresh", "eval", "eval file", "transformers", "sentence-transformers", "adapt")


@pytest.mark.parametrize("name", [*WRITING, "compare", "onnx"])
def test_every_link_is_refused_by_name_before_anything_is_written(
    name: str, stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """At the top, in a folder, in a checkpoint, under a name that begins as those of the best links do."""
    for number, entry in enumerate(
        ("predictions", "checkpoints/best-kind", "checkpoints/best", "backbone/config.json")
    ):
        (folder := tmp_path / str(number)).mkdir()
        scene = Scene(stranger, folder, monkeypatch)
        scene.spoil("symlink", entry)
        inside = snapshot(scene.run)
        arguments = scene.arguments(name)
        inside.pop(str(scene.run / "summary.json")) if name == "continue" else None
        outcome = call(*arguments, cwd=scene.box, capsys=capsys)
        assert outcome.code in (2, 4), outcome.err
        assert f"{entry}: is a symbolic link; " in outcome.err
        scene.check(outcome, name)
        after = snapshot(scene.run)
        assert {k: v[:2] + v[3:] for k, v in after.items()} == {k: v[:2] + v[3:] for k, v in inside.items()}


@pytest.mark.parametrize("entry", ["events.jsonl", "metrics.jsonl", "tensorboard", "notes.txt"])
@pytest.mark.parametrize("name", ["continue", "fresh"])
def test_what_is_appended_to_has_no_other_name(
    entry: str, name: str, stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    scene = Scene(stranger, tmp_path, monkeypatch)
    if entry == "tensorboard":
        entry = next(one for one in stranger.entries() if "tfevents" in one)
    scene.spoil("hard link", entry)
    outcome = call(*scene.arguments(name), cwd=scene.box, capsys=capsys)
    scene.check(outcome, entry)
    if name == "continue":
        assert outcome.code == 4
        assert f"{entry}: has another name elsewhere (a hard link); put a copy of it in its place" in outcome.err
    else:
        assert outcome.code == 0, outcome.err  # it was removed, and made anew


def test_what_mtmeta_itself_makes_and_what_reporters_may_is_taken(
    stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Best links; files that are replaced as a whole may have other names; links down, in a reporter's own folder."""
    scene = Scene(stranger, tmp_path, monkeypatch)
    (scene.run / "wandb" / "run-1" / "logs").mkdir(parents=True)
    (scene.run / "wandb" / "latest-run").symlink_to("run-1")
    (scene.run / "wandb" / "debug.log").symlink_to("run-1/logs/debug.log")
    (scene.run / "checkpoints" / ".best.0123456789abcdef.tmp").symlink_to("best-00000004")  # under way, or a kill's
    (scene.run / "checkpoints" / ".best-kind.tmp").symlink_to("best-00000004")  # of an older mtmeta
    for entry in ("recipe.yaml", "predictions/kind-dev.csv", "checkpoints/best/model.safetensors"):
        os.link(scene.run / entry, tmp_path / entry.replace("/", "-"))
    for name in ("continue", "eval", "transformers"):
        outcome = call(*scene.arguments(name), cwd=scene.box, capsys=capsys)
        assert outcome.code == 0, outcome.err
    for target in ("../../../home", str(scene.home), "run-1/../../.."):
        (scene.run / "wandb" / "latest-run").unlink()
        (scene.run / "wandb" / "latest-run").symlink_to(target)
        outcome = call(*scene.arguments("eval"), cwd=scene.box, capsys=capsys)
        assert outcome.code == 4 and "wandb/latest-run: is a symbolic link; remove it" in outcome.err


# ---------------------------------------------------------------------------------------------------------------- names


def renamed(value: Any, name: str, keys: bool) -> Any:
    """The same document with every text, or every key, replaced."""
    if isinstance(value, dict):
        return {(f"{name}{key}" if keys else key): renamed(item, name, keys) for key, item in value.items()}
    if isinstance(value, list):
        return [renamed(item, name, keys) for item in value]
    return name if isinstance(value, str) and not keys else value


def one_by_one(value: Any, name: str) -> Iterator[Any]:
    """The document with one text replaced, for each of them."""
    parts = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    for key, item in parts:
        for other in [name] if isinstance(item, str) else one_by_one(item, name):
            changed = value.copy()
            changed[key] = other
            yield changed


def texts(path: Path) -> tuple[list[Any], Callable[[list[Any]], str]] | None:
    """The documents in a file, and how to write them; None for a file without names."""
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_text().splitlines()], lambda all_: "".join(
            json.dumps(one) + "\n" for one in all_
        )
    if path.suffix == ".json":
        return [json.loads(path.read_text())], lambda all_: json.dumps(all_[0])
    if path.suffix == ".yaml":
        return [dict(strict_yaml.read_file(path).data)], lambda all_: dump(all_[0])
    if path.suffix == ".csv":
        return [line.split(",") for line in path.read_text().splitlines()], lambda all_: "".join(
            ",".join(f'"{cell}"' for cell in row) + "\n" for row in all_
        )
    return None


def named_files(stranger: Stranger) -> list[str]:
    run = stranger.folder / "runs" / stranger.name
    files = [entry for entry in stranger.entries() if (run / entry).is_file() and not (run / entry).is_symlink()]
    return [entry for entry in files if texts(run / entry) is not None and "tokenizer.json" not in entry]


def hostile(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, str, str]]:
    """File, name and part of a document (its keys or its texts), for every file that holds names."""
    for entry in named_files(stranger):
        for what in NAMES:
            yield from ((entry, what, part) for part in ("texts", "keys"))


def spoil_names(scene: Scene, entry: str, what: str, part: str) -> None:
    path = scene.run / entry
    found = texts(path)
    assert found is not None
    documents, write = found
    name = NAMES[what].format(home=scene.home)
    path.write_text(write([renamed(one, name, part == "keys") for one in documents]))


def test_names_that_lead_elsewhere(
    stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Every file that holds names, its texts and its keys; the names and the commands in turn."""
    commands = list(COMMANDS)
    cases = list(hostile(stranger, tmp_path, monkeypatch))
    faults: list[str] = []
    for number, (entry, what, part) in enumerate(cases[:: 9 if len(cases) > 150 else 1]):
        (folder := tmp_path / str(number)).mkdir()
        scene = Scene(stranger, folder, monkeypatch)
        spoil_names(scene, entry, what, part)
        name = commands[number % len(commands)]
        faults += fault(scene, name, f"{part} of {entry} are {what}, mtmeta {name}", capsys)
        shutil.rmtree(folder)
    assert not faults, "\n".join(faults)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_names_that_lead_elsewhere_everywhere(
    name: str, stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """All of them through every command, and every single text of the small files."""
    number, faults = 0, list[str]()
    for entry, what, part in hostile(stranger, tmp_path, monkeypatch):
        (folder := tmp_path / str(number)).mkdir()
        scene = Scene(stranger, folder, monkeypatch)
        spoil_names(scene, entry, what, part)
        faults += fault(scene, name, f"{part} of {entry} are {what}, mtmeta {name}", capsys)
        shutil.rmtree(folder)
        number += 1
    for entry in ("summary.json", "recipe.lock.yaml", "recipe.yaml", "export/transformers/export.json"):
        found = texts(stranger.folder / "runs" / stranger.name / entry)
        assert found is not None
        (document,), write = found
        for changed in one_by_one(document, NAMES["outside"]):
            (folder := tmp_path / str(number)).mkdir()
            scene = Scene(stranger, folder, monkeypatch)
            (scene.run / entry).write_text(write([changed]))
            faults += fault(scene, name, f"{entry} is {changed}, mtmeta {name}", capsys)
            shutil.rmtree(folder)
            number += 1
    assert not faults, "\n".join(faults)


# ------------------------------------------------------------------------------------------- in processes of their own


@pytest.mark.slow
def test_in_processes_of_their_own(stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [("eval", "predictions"), ("continue", "checkpoints"), ("transformers", "export"), ("eval", "recipe.yaml")]
    for number, (name, entry) in enumerate(cases):
        (folder := tmp_path / str(number)).mkdir()
        scene = Scene(stranger, folder, monkeypatch)
        scene.spoil("FIFO" if entry == "recipe.yaml" else "symlink", entry)
        outcome = command(*scene.arguments(name), cwd=scene.box)
        scene.check(outcome, name)
        assert outcome.code in (2, 4) and f"{entry}: is " in outcome.err


@pytest.mark.parametrize("words", [("predict", "runs/"), ("eval", "{run}", "--task", ""), ("report", "runs/")])
def test_completion(
    words: tuple[str, ...], stranger: Stranger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, what in enumerate(("control", "outside")):
        (folder := tmp_path / str(number)).mkdir()
        scene = Scene(stranger, folder, monkeypatch)
        for entry in ("recipe.yaml", "summary.json"):
            spoil_names(scene, entry, what, "keys")
        (scene.runs / "a\x1b]0;x\x07").symlink_to(scene.home / "real")
        given = [word.format(run=scene.run) for word in words]
        scene.check(command(*given, cwd=scene.box, env={"_MTMETA_COMPLETE": "zsh"}), str(words))
