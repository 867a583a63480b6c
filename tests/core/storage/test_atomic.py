"""Atomic writes: the old or the new, whole, and nothing beside it; a lock lets errors through."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from mtmeta.core.errors import CheckpointError
from mtmeta.core.storage.atomic import atomic_file, staged_folder
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


def test_a_device_is_not_replaced() -> None:
    with (
        pytest.raises(CheckpointError, match="/dev/null: is no regular file; remove it"),
        atomic_file(Path("/dev/null")),
    ):
        pass
    assert stat.S_ISCHR(Path("/dev/null").stat().st_mode)


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
