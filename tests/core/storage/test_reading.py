"""What may be read of files that others made."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mtmeta.core.errors import CheckpointError
from mtmeta.core.storage.reading import LIMITS, MAX_DEPTH, UnfitFile, open_regular, parse_json, read_bytes, read_json
from tests.support.spoilt_runs import bind_socket, make_hole

LIMIT = 100


UNFIT: dict[str, tuple[Callable[[Path], object], str]] = {
    "pipe": (os.mkfifo, "is a pipe, not a regular file"),
    "socket": (bind_socket, "is a socket, not a regular file"),
    "folder": (Path.mkdir, "is a folder, not a regular file"),
    "link": (lambda path: path.symlink_to("target"), "is a link, not a regular file"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "is a link, not a regular file"),
    "loop": (lambda path: path.symlink_to(path.name), "is a link, not a regular file"),
    "endless device by link": (lambda path: path.symlink_to("/dev/zero"), "is a link, not a regular file"),
    "ten gigabytes": (lambda path: make_hole(path, 10**10), "has 10.0 GB, more than the 100 B that it may have"),
    "one byte too many": (lambda path: make_hole(path, LIMIT + 1), "has 101 B, more than the 100 B that it may have"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_no_file_of_its_own_is_not_opened(name: str, tmp_path: Path) -> None:
    make, reason = UNFIT[name]
    (tmp_path / "target").write_text("elsewhere")
    make(tmp_path / "file")
    with pytest.raises(UnfitFile) as refused:
        open_regular(tmp_path / "file", LIMIT)
    assert str(refused.value) == reason


@pytest.mark.parametrize("path", ["/dev/zero", "/dev/null", "/dev/tty"])
def test_devices_are_not_opened(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even for a moment: to open a tape rewinds it."""
    monkeypatch.setattr(os, "open", lambda *args: pytest.fail("opened"))
    for links in (False, True):
        with pytest.raises(UnfitFile, match="is a device"):
            open_regular(path, links=links)


def test_a_pipe_that_comes_between_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_text("regular")
    status = os.stat(path)
    path.unlink()
    os.mkfifo(path)
    monkeypatch.setattr(os, "stat", lambda *args, **options: status)
    with pytest.raises(UnfitFile, match="is a pipe"):
        open_regular(path)


def test_links_where_they_are_allowed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("elsewhere")
    (tmp_path / "file").symlink_to("target")
    with open_regular(tmp_path / "file", LIMIT, links=True) as file:
        assert file.read() == b"elsewhere"
        assert os.get_blocking(file.fileno())
        assert not os.get_inheritable(file.fileno())
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").unlink()
    (tmp_path / "file").symlink_to("pipe")
    with pytest.raises(UnfitFile, match="is a pipe"):
        open_regular(tmp_path / "file", LIMIT, links=True)


def test_folders_on_the_way_are_no_links(tmp_path: Path) -> None:
    run = tmp_path / "run"
    (tmp_path / "real" / "a").mkdir(parents=True)
    (tmp_path / "real" / "a" / "file").write_text("elsewhere")
    run.symlink_to("real")
    assert read_bytes(run / "a" / "file", "summary", within=run) == b"elsewhere"  # a run may lie behind a link itself
    (tmp_path / "real" / "b").symlink_to("a")
    with pytest.raises(UnfitFile, match="lies behind the link b"):
        read_bytes(run / "b" / "file", "summary", within=run)


def test_files_that_are_not_there_or_not_ours(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        open_regular("")
    with pytest.raises(OSError, match="too long"):
        open_regular(tmp_path / ("x" * 5000))


def test_a_file_that_grows_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = tmp_path / "small"
    small.write_text("")
    status = os.stat(small)
    make_hole(tmp_path / "file", LIMITS["recipe"] + 1)
    monkeypatch.setattr(os, "stat", lambda *args, **options: status)
    monkeypatch.setattr(os, "fstat", lambda handle: status)
    with pytest.raises(UnfitFile, match=r"more than the 1\.0 MB"):
        read_bytes(tmp_path / "file", "recipe")


GOOD = ['{"a": [1, -2, 3.5, null, true, "\\u00e9\\ud83d\\ude00"]}', "[]", "9" * 309, "[" * 32 + "]" * 32, r'"\\ud800"']
BAD = {
    "": "Expecting value",
    "{": "Expecting property name",
    "[1, 2": "Expecting ',' delimiter",
    "NaN": "NaN is no JSON",
    "[-Infinity]": "-Infinity is no JSON",
    '{"a": 1e999}': "the number 1e999 is out of range",
    "-1E+400": "the number -1E+400 is out of range",
    "9" * 310: "is out of range",
    "9" * 100_000: "is out of range",
    '{"a": 1, "b": 2, "a": 1}': "key 'a' is given twice",
    '{"\\u0061": {"b": 1, "b": 1}, "a": 2}': "key 'b' is given twice",
    '"\\ud800"': "half of a surrogate pair",
    '{"\\uDFFF": 1}': "half of a surrogate pair",
    "[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1): "nested deeper than 32 levels",
    '{"a":' * 40 + "1" + "}" * 40: "nested deeper than 32 levels",
    "[" * 10**6: "nested deeper than 32 levels",
    '{"a":' * 10**6: "nested deeper than 32 levels",
    '"\n"': "Invalid control character",
    "1 2": "Extra data",
    "\ufeff1": "Expecting value",
}


@pytest.mark.parametrize("text", GOOD)
def test_json(text: str) -> None:
    import json

    assert parse_json(text.encode()) == json.loads(text)


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:20])
def test_json_that_no_file_of_ours_holds(text: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(CheckpointError) as refused:
        read_json(path, "state")
    assert refused.value.place == str(path)
    assert BAD[text] in refused.value.message and len(refused.value.message) < 250


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "latin-1"])
def test_json_in_another_encoding(encoding: str) -> None:
    with pytest.raises(ValueError, match="utf-8"):
        parse_json('{"a": "é"}'.encode(encoding))


def test_a_key_given_twice_among_many_is_found_at_once() -> None:
    names = ", ".join(f'"{number}": 1' for number in range(200_000))
    with pytest.raises(ValueError, match="key '199999' is given twice"):
        parse_json(f'{{{names}, "199999": 2}}'.encode())
