"""Atomic writes: the old or the new, whole, and nothing beside it; a lock lets errors through."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from mtmeta.core.errors import CheckpointError, MachineError
from mtmeta.core.storage import atomic
from mtmeta.core.storage.atomic import (
    atomic_file,
    clear_leftovers,
    make_folder,
    new_file,
    own_file,
    remove,
    remove_entry,
    replace_link,
    scratch_name,
    staged_folder,
)
from mtmeta.core.storage.disk import RunFiles, check_own, write_file, write_synced
from mtmeta.core.storage.lock import file_lock
from mtmeta.core.wording import byte_text
from tests.support.commands import contents


def fill(path: Path, text: str, **options: object) -> None:
    with staged_folder(path, **options) as folder:  # type: ignore[arg-type]
        (folder / "file").write_text(text)


def test_a_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with atomic_file(path, "w", encoding="utf-8") as file:
        file.write("new")
        assert path.read_text() == "old"
    assert contents(tmp_path) == {"file": b"new"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError, ValueError])
def test_an_error_leaves_the_old_and_nothing_else(error: type[BaseException], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(error), atomic_file(path) as file:
        file.write(b"new")
        raise error
    with pytest.raises(error), staged_folder(tmp_path / "a" / "b") as folder:
        (folder / "file").write_text("new")
        raise error
    assert contents(tmp_path) == {"file": b"old"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_pipe_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CheckpointError, match="pipe: is no regular file; remove it"), atomic_file(tmp_path / "pipe"):
        pass
    assert stat.S_ISFIFO((tmp_path / "pipe").lstat().st_mode)


def test_a_folder_that_is_there_is_refused_replaced_or_kept(tmp_path: Path) -> None:
    path = tmp_path / "a" / "folder"
    fill(path, "one")
    with pytest.raises(OSError):
        fill(path, "two")
    assert contents(path) == {"file": b"one"}
    fill(path, "two", replace=lambda: False)
    assert contents(path) == {"file": b"one"}
    fill(path, "two", replace=lambda: True, durable=False, mode=0o700, scratch=tmp_path / "a" / "scratch")
    assert contents(path) == {"file": b"two"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert [entry.name for entry in path.parent.iterdir()] == ["folder"]


def test_an_error_under_a_lock_comes_through(tmp_path: Path) -> None:
    for error in (FileNotFoundError, BlockingIOError, KeyError):
        with pytest.raises(error), file_lock(tmp_path / "lock", lambda handle: pytest.fail("it is free")):
            raise error


@pytest.mark.parametrize(
    ("size", "text", "in_kb"),
    [
        (0, "0 B", "0.0 kB"),
        (999, "999 B", "1.0 kB"),
        (1500, "1.5 kB", "1.5 kB"),
        (2_000_000, "2.0 MB", "2.0 MB"),
        (3_250_000_000, "3.2 GB", "3.2 GB"),
    ],
)
def test_bytes_for_people(size: int, text: str, in_kb: str) -> None:
    assert (byte_text(size), byte_text(size, "kB")) == (text, in_kb)


def test_a_link_that_lies_where_the_scratch_file_goes_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mtmeta.core.storage.atomic.secrets.token_hex", lambda size: "ab")
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".out.ab.tmp").symlink_to(tmp_path / "victim")
    with pytest.raises(FileExistsError), atomic_file(tmp_path / "out") as file:
        file.write(b"theirs")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------- what lies elsewhere


class Swap:
    """A folder `run/inner`, and what happens when a link to `home` takes its place in the middle of something."""

    def __init__(self, tmp_path: Path) -> None:
        self.run, self.home = tmp_path / "run", tmp_path / "home"
        self.inner = self.run / "inner"
        for folder in (self.inner / "gone", self.home / "gone", self.inner / "there", self.home / "there"):
            folder.mkdir(parents=True)
            (folder / "file").write_text(folder.parent.name)
            (folder.parent / "file").write_text(folder.parent.name)
        self.before = contents(self.home)

    def swap(self) -> None:
        self.inner.rename(self.run / "aside")
        self.inner.symlink_to(self.home)

    def assert_nothing_happened_there(self) -> None:
        assert contents(self.home) == self.before


def test_a_file_goes_to_the_folder_that_was_opened(tmp_path: Path) -> None:
    swap = Swap(tmp_path)
    with atomic_file(swap.inner / "file", root=swap.run) as file:
        swap.swap()
        file.write(b"new")
    swap.assert_nothing_happened_there()
    assert (swap.run / "aside" / "file").read_text() == "new"


@pytest.mark.parametrize("name", ["there", "new"])
def test_a_folder_goes_to_the_folder_that_was_opened(name: str, tmp_path: Path) -> None:
    swap = Swap(tmp_path)
    with staged_folder(swap.inner / name, replace=lambda: True, durable=False, root=swap.run):
        swap.swap()
    swap.assert_nothing_happened_there()
    assert (swap.run / "aside" / name).is_dir() and not (swap.run / "aside" / name / "file").exists()


WRITERS: dict[str, Callable[[Path, Path], object]] = {
    "remove": lambda path, root: remove(path / "gone", root),
    "remove a folder": lambda path, root: remove_entry(path / "gone", root),
    "remove a file": lambda path, root: remove_entry(path / "file", root),
    "link": lambda path, root: replace_link(path / "best", "file", root),
    "write": lambda path, root: write_file(path / "file", "x", root),
    "write below": lambda path, root: write_file(path / "new" / "file", "x", root),
    "make": lambda path, root: make_folder(path / "new" / "er", root),
    "append": lambda path, root: own_file(path / "file", "ab", root=root),
    "cut": lambda path, root: own_file(path / "file", "r+b", root=root),
    "create": lambda path, root: new_file(path / "new", root=root),
    "stage": lambda path, root: staged_folder(path / "new", root=root).__enter__(),
    "sweep": lambda path, root: clear_leftovers(path, root),
    "reporter": lambda path, root: RunFiles(root).create("inner/a/b"),
}


@pytest.mark.parametrize("name", WRITERS)
def test_nothing_is_done_behind_a_link(name: str, tmp_path: Path) -> None:
    swap = Swap(tmp_path)
    (swap.home / scratch_name("x")).write_text("x")
    swap.before = contents(swap.home)
    swap.swap()
    if name == "sweep":  # it does what it can
        WRITERS[name](swap.inner, swap.run)
    else:
        with pytest.raises((OSError, MachineError)):
            WRITERS[name](swap.inner, swap.run)
    swap.assert_nothing_happened_there()


def test_a_link_in_the_middle_of_a_removal_is_removed_itself(tmp_path: Path) -> None:
    swap = Swap(tmp_path)
    (swap.inner / "gone" / "link").symlink_to(swap.home)
    (swap.inner / "linked").symlink_to(swap.home)
    remove(swap.inner / "gone", swap.run)
    remove(swap.inner / "linked", swap.run)
    remove_entry(swap.inner / "none", swap.run)
    swap.assert_nothing_happened_there()
    assert sorted(path.name for path in swap.inner.iterdir()) == ["file", "there"]


def test_a_file_that_has_another_name_or_is_none_is_not_opened(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    os.link(tmp_path / "file", tmp_path / "hard")
    (tmp_path / "link").symlink_to("none")
    os.mkfifo(tmp_path / "pipe")
    for name in ("hard", "link", "pipe", "file"):
        for mode in ("ab", "r+b"):
            with pytest.raises(CheckpointError, match=f"{name}: is no file of its own; remove it"):
                own_file(tmp_path / name, mode)
    with pytest.raises(FileExistsError):
        new_file(tmp_path / "link")
    with pytest.raises(FileExistsError):
        write_synced(tmp_path / "link", b"x")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["../out", "/out", "a/../../out"])
def test_a_reporter_s_names_stay_in_its_run(name: str, tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "run")
    for method in (files.append, files.create, files.replace, files.remove):
        with pytest.raises(ValueError, match="leads out of the run directory"):
            method(name)
    assert list(tmp_path.iterdir()) == []


def test_a_reporter_s_files(tmp_path: Path) -> None:
    files = RunFiles(tmp_path)
    for text in (b"one\n", b"two\n"):
        with files.append("log") as file:
            file.write(text)
            assert (tmp_path / "log").read_bytes().endswith(text)  # without a buffer
    with files.create("a/b/new") as file:
        file.write(b"x")
    with files.replace("log") as file:
        file.write(b"three\n")
    files.remove("a")
    files.remove("none")
    assert contents(tmp_path) == {"log": b"three\n"}


# --------------------------------------------------------------------------------------------------------- leftovers


def test_scratch_names_cannot_be_foreseen_and_fit() -> None:
    names = {scratch_name(name) for name in ("out", "out", "\u00e9" * 127, "x" * 255)}
    assert len(names) == 4
    assert all(len(os.fsencode(name)) <= 255 and re.fullmatch(r"\..+\.[0-9a-f]{16}\.tmp", name) for name in names)


def test_what_a_process_works_on_is_no_leftover(tmp_path: Path) -> None:
    dead = [scratch_name(name, kind) for name in ("a", "b") for kind in ("tmp", "trash")]
    for name in dead[:2]:
        (tmp_path / name).write_text("x")
    for name in dead[2:]:
        (tmp_path / name / "below").mkdir(parents=True)
    (tmp_path / scratch_name("link")).symlink_to("none")
    others = {".a.tmp", ".a.123.tmp", ".b.trash", "notes.tmp", ".vimrc"}
    for name in others:
        (tmp_path / name).write_text("mine")
    with atomic_file(tmp_path / "file") as file, staged_folder(tmp_path / "folder") as folder:
        clear_leftovers(tmp_path)
        assert folder.is_dir() and len(list(tmp_path.iterdir())) == len(others) + 2
        file.write(b"x")
        (folder / "y").write_text("y")
    assert {path.name for path in tmp_path.iterdir()} == {*others, "file", "folder"}
    os.mkfifo(tmp_path / scratch_name("pipe"))
    clear_leftovers(tmp_path)
    clear_leftovers(tmp_path / "none")
    assert len(list(tmp_path.iterdir())) == len(others) + 3


@pytest.mark.parametrize("age", [10, 2 * 86400])
def test_without_locks_age_tells(age: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    path = tmp_path / scratch_name("out")
    path.write_text("x")
    os.utime(path, (path.stat().st_mtime - age,) * 2)
    with atomic_file(tmp_path / "out") as file:
        file.write(b"x")
    clear_leftovers(tmp_path)
    assert path.exists() == (age == 10)


def test_a_scratch_that_is_swept_before_it_is_locked_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, swept = fcntl.flock, list[Path]()

    def slow(handle: int, how: int) -> None:
        if not swept:
            swept.extend(tmp_path.iterdir())
            swept[0].unlink()
        lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", slow)
    with atomic_file(tmp_path / "out") as file:
        file.write(b"x")
    assert len(swept) == 1 and contents(tmp_path) == {"out": b"x"}


# ------------------------------------------------------------------------------------------------- folders of strangers


def test_a_folder_is_checked_at_every_depth(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["d"] * 40)
    deep.mkdir(parents=True)
    check_own(tmp_path, lambda path, target: False, ())
    (deep / "link").symlink_to("/")
    with pytest.raises(CheckpointError, match="d/link: is a symbolic link; remove it"):
        check_own(tmp_path, lambda path, target: False)
    check_own(tmp_path, lambda path, target: (path.name, target) == ("link", "/"))
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe" / "pipe")
    with pytest.raises(CheckpointError, match="pipe/pipe: is no regular file; remove it"):
        check_own(tmp_path, lambda path, target: True)
    (tmp_path / "pipe" / "pipe").unlink()
    (tmp_path / "pipe" / "file").write_text("x")
    os.link(tmp_path / "pipe" / "file", tmp_path / "file")
    check_own(tmp_path, lambda path, target: True)
    with pytest.raises(CheckpointError, match=r"pipe/file: has another name elsewhere \(a hard link\); put a copy"):
        check_own(tmp_path, lambda path, target: True, ("file",))
    check_own(tmp_path, lambda path, target: True, ("file", "pipe"))


def test_what_goes_meanwhile_is_passed_over(tmp_path: Path) -> None:
    """As in the directory of a run that is under way."""
    for name in ("b", "c", "d"):
        (tmp_path / name).mkdir()
    (tmp_path / "c" / "file").write_text("x")
    (tmp_path / "a").symlink_to("x")

    def seen(path: object, target: str) -> bool:
        remove_entry(tmp_path / "b")
        remove_entry(tmp_path / "c")
        return True

    check_own(tmp_path, seen, ())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "d"]


def test_without_open_folders_it_still_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Windows."""
    monkeypatch.setattr(atomic, "HANDLES", False)
    monkeypatch.setattr(atomic, "fcntl", None)
    write_file(tmp_path / "a" / "file", "x", tmp_path)
    fill(tmp_path / "folder", "one")
    fill(tmp_path / "folder", "two", replace=lambda: True)
    replace_link(tmp_path / "link", "a")
    with own_file(tmp_path / "a" / "file", "ab") as file:
        file.write(b"y")
    (tmp_path / scratch_name("old")).write_text("x")
    remove(tmp_path / "folder")
    assert contents(tmp_path / "a") == {"file": b"xy"}
    assert len(list(tmp_path.iterdir())) == 3  # nobody knows whether the scratch is a leftover
