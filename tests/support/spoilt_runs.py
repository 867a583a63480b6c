"""Run directories that somebody has spoilt: any file changed, or replaced by what is no file, and a command on them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import shutil
import socket
import stat
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from hypothesis import strategies as st

from tests.support.fuzzing import WORDS, grafted, json_bytes, mutated, no_hang, survives

Snapshot = dict[str, tuple[int, int, bytes]]
Harm = tuple[str, bytes | str, bool]
HUGE = 10**10  # bytes of a file that is all hole


def bind_socket(path: Path) -> None:
    """Make a socket."""
    here = os.getcwd()
    os.chdir(path.parent)  # the name of a socket may not be long
    try:
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(path.name)
    finally:
        os.chdir(here)


def make_hole(path: Path, size: int = HUGE) -> None:
    """Make a file of `size` bytes that takes no room."""
    with open(path, "wb") as file:
        file.truncate(size)


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _full_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside").write_text("x")


# what may lie where a file or a folder was; `decoy` stands for the user's own files
REPLACEMENTS: dict[str, Callable[[Path], object]] = {
    "nothing": lambda path: None,
    "empty": lambda path: path.write_bytes(b""),
    "zeros": lambda path: path.write_bytes(b"\0" * 300),
    "pipe": os.mkfifo,
    "socket": bind_socket,
    "folder": Path.mkdir,
    "full folder": _full_folder,
    "ten gigabytes": make_hole,
    "unreadable": lambda path: path.touch(0),
    **{
        f"link to {target}": _link(target)
        for target in ("/dev/zero", "/dev/null", "/dev/stdin", "nowhere", ".", "..", "/", "x" * 200)
    },
}


def pieces(run: Path) -> list[str]:
    """Every file, folder and link of a run, by name; and some that are not there."""
    names = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    return [
        *names,
        ".lock",
        "metrics.jsonl",
        "tensorboard",
        "export",
        "checkpoints/best-x",
        "checkpoints/step-00000009",
    ]


@st.composite
def spoilt(draw: st.DrawFn, run: Path, decoy: Path, names: Sequence[str]) -> list[Harm]:
    """One to three harms: the piece, its new bytes or the name of what replaces it, and whether the manifest agrees."""
    harms: list[Harm] = []
    kinds = [*REPLACEMENTS, f"link to {decoy}/file", f"link to {decoy}/folder"]
    for _ in range(draw(st.integers(1, 3))):
        name = draw(st.sampled_from(names))
        path = run / name
        if not path.is_file() or path.is_symlink() or draw(st.integers(0, 3)) == 0:
            harms.append((name, draw(st.sampled_from(kinds)), False))
        else:
            harms.append((name, draw(contents(path)), draw(st.booleans())))
    return harms


def contents(path: Path) -> st.SearchStrategy[bytes]:
    """Bytes near those of a file, near the values that they stand for, or any."""
    good = path.read_bytes()
    near = [mutated(good), st.binary(max_size=200)]
    if path.suffix == ".json":
        near.append(json_bytes(json.loads(good)))
    elif path.suffix == ".jsonl":
        near.append(lines(good))
    elif path.suffix == ".yaml":
        near.append(
            grafted(yaml.safe_load(good)).map(lambda tree: yaml.safe_dump(tree).encode("utf-8", "surrogatepass"))
        )
    elif path.suffix == ".csv":
        near.append(table(good))
    elif path.suffix == ".safetensors":
        near.append(tensors(good))
    return st.one_of(near)


@st.composite
def lines(draw: st.DrawFn, good: bytes) -> bytes:
    """Events, one of which is another."""
    every = good.splitlines()
    at = draw(st.integers(0, len(every) - 1))
    every[at] = draw(json_bytes(json.loads(every[at])))
    return b"\n".join(every) + draw(st.sampled_from([b"", b"\n"]))


@st.composite
def table(draw: st.DrawFn, good: bytes) -> bytes:
    """Predictions, one field of which is another."""
    rows = list(csv.reader(io.StringIO(good.decode())))
    row = rows[draw(st.integers(0, len(rows) - 1))]
    row[draw(st.integers(0, len(row) - 1))] = draw(
        st.sampled_from([*WORDS, "nan", "1e999", "9" * 400]) | st.floats().map(str)
    )
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode("utf-8", "surrogatepass")


@st.composite
def tensors(draw: st.DrawFn, good: bytes) -> bytes:
    """Weights whose header is another."""
    size = int.from_bytes(good[:8], "little")
    header = draw(json_bytes(json.loads(good[8 : 8 + size])))
    header += b" " * (-len(header) % 8)
    return len(header).to_bytes(8, "little") + header + good[8 + size :]


def spoil(run: Path, harms: Sequence[Harm]) -> None:
    """Do harm to a run, piece by piece; what an earlier harm has taken away stays away."""
    for name, harm, vouched in harms:
        path = run / name
        if not path.parent.is_dir() or run.resolve() not in [path.parent.resolve(), *path.parent.resolve().parents]:
            continue
        if isinstance(harm, bytes):
            if path.is_file() and not path.is_symlink() and path.stat().st_size < HUGE:
                before = path.read_bytes()
                path.write_bytes(harm)
                if vouched:
                    _vouch(path, before, harm)
            continue
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
        REPLACEMENTS.get(harm, _link(harm.removeprefix("link to ")))(path)


def _vouch(path: Path, before: bytes, after: bytes) -> None:
    """Put the new size and hash of a file into the manifest beside it."""
    manifest = path.parent / "MANIFEST.json"
    if manifest.is_file() and not manifest.is_symlink() and manifest.stat().st_size < HUGE and path != manifest:
        text = manifest.read_bytes().replace(_sha256(before), _sha256(after))
        manifest.write_bytes(text.replace(b'"size": %d' % len(before), b'"size": %d' % len(after)))


def _sha256(data: bytes) -> bytes:
    return hashlib.sha256(data).hexdigest().encode()


def snapshot(folder: Path) -> Snapshot:
    """Mode, time and contents of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        held = os.fsencode(os.readlink(path)) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (stat.S_IMODE(status.st_mode), status.st_mtime_ns, held)
    return found


def run_directory(good: Path, decoy: Path, commands: Sequence[tuple[str, ...]]) -> Callable[[Any], None]:
    """A fuzzer's attempt: a command on a spoilt copy of the run `good`, which lies at `out`; nothing else changes."""
    before = snapshot(decoy)

    def attempt(drawn: tuple[list[Harm], int]) -> None:
        harms, number = drawn
        command = commands[number % len(commands)]
        shutil.rmtree("out", ignore_errors=True)
        shutil.copytree(good, "out", symlinks=True)
        spoil(Path("out"), harms)
        with no_hang(10):
            answer = survives(*command)
        assert answer.code in (0, 2, 3, 4, 5, 6), answer
        assert "bug in mtmeta" not in answer.err
        assert snapshot(decoy) == before

    return attempt
