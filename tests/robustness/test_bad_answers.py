"""What no honest hub or server answers, and caches that others may write to: one line each, by `mtmeta fetch`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtmeta.core.storage import download as downloads
from tests.support.commands import assert_refused, call, command, contents
from tests.support.groups import set_group
from tests.support.liar import TRUTH, Liar, Lie, Script, lying, serving_lies, write_recipes
from tests.support.loopback import COMMIT, sha256

EVER = 30  # answers, more than anybody asks for


@pytest.fixture
def liar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Liar]:
    with lying(tmp_path, monkeypatch) as server:
        yield server


def says(*headers: tuple[str, str]) -> list[Lie]:
    """The answer about a file, which comes first, with other headers."""
    return [Lie(headers=headers)]


def sends(**lie: object) -> list[Lie]:
    """Honest about the file; what is sent then is not."""
    return [Lie(), *[Lie(**lie)] * EVER]  # type: ignore[arg-type]


NO_COMMIT, NO_ETAG = "as the commit, which it is not", "as the ETag, which is no SHA-1 or SHA-256"
ANSWERS = [
    (160, "data", says(("X-Repo-Commit", "../../x")), 6, ("hub: 'owner/name'", f"names '../../x' {NO_COMMIT}")),
    (161, "data", says(("X-Repo-Commit", COMMIT[:-1])), 6, (f"names '{COMMIT[:-1]}' {NO_COMMIT}",)),
    (161, "data", says(("X-Repo-Commit", COMMIT.upper())), 6, (f"names '{COMMIT.upper()}' {NO_COMMIT}",)),
    (162, "data", [Lie(), *says(("X-Repo-Commit", "f" * 40))], 6, (f"names '{'f' * 40}' {NO_COMMIT}",)),
    (163, "data", says(("ETag", '"../../../x"')), 6, (f"gives '../../../x' {NO_ETAG}",)),
    (163, "data", says(("X-Linked-Etag", "/etc/passwd")), 6, (f"gives '/etc/passwd' {NO_ETAG}",)),
    (164, "data", [Lie(headers=(("ETag", 'W/"abc"'),))] * 2, 6, (f"gives 'abc' {NO_ETAG}",)),
    (164, "data", [Lie(headers=(("ETag", "\xe9" * 90),))] * 2, 6, ("gives '\xe9\xe9", NO_ETAG)),
    (165, "data", [Lie(headers=(("X-Linked-Size", "-1"),))] * 2, 6, ("gives '-1' as the size",)),
    (165, "data", [Lie(headers=(("X-Linked-Size", "9" * 30),))] * 2, 6, ("gives '9999999", "as the size")),
    (
        166,
        "model",
        [Lie(), Lie(status=404, headers=(("X-Error-Code", "EntryNotFound"), ("X-Repo-Commit", "../x")))],
        6,
        (f"names '../x' {NO_COMMIT}",),
    ),
    (167, "address", [Lie(headers=(("Content-Encoding", "gzip"),))], 3, ("packed (Content-Encoding 'gzip')",)),
    (167, "address", [Lie(headers=(("Content-Encoding", "br, x"),))], 3, ("packed (Content-Encoding 'br, x')",)),
    (168, "data", [Lie(), *sends(headers=(("Content-Encoding", "gzip"),))], 6, ("Content-Encoding 'gzip'",)),
    (169, "address", [Lie(status=302, headers=(("Location", "file:///etc/passwd"),))], 3, ("'file:///etc/passwd'",)),
    (170, "address", [Lie(status=301, headers=(("Location", "ftp://host/x"),))], 3, ("ftp://host/x", "no address")),
    (170, "data", [Lie(), Lie(), Lie(status=307, headers=(("Location", "gopher://h"),))], 6, ("'gopher://h'",)),
    (171, "address", [Lie(status=302, headers=(("Location", "http://u:p@127.0.0.1/"),))], 3, ("holds a user name",)),
    (172, "address", [Lie(status=302, headers=(("Location", "/again"),))] * EVER, 3, ("more than 10 times",)),
    (172, "data", [Lie(status=307, headers=(("Location", "/again"),))] * EVER, 6, ("more than 10 times",)),
    (173, "address", [Lie(status=302, headers=(("Location", "http://[::1"),))], 3, ("'http://[::1', which is no",)),
    (174, "address", [Lie(status=204)], 3, ("(the server answers 204); check the address",)),
    (174, "address", [Lie(status=451)], 3, ("(the server answers 451); check the address",)),
    (175, "data", [Lie(headers=(("X-Linked-Size", "10"),))] * 2, 3, ("size is more than the 10 B that it should",)),
    (176, "address", [Lie(body="huge", framing="chunked")], 3, ("size is more than the 10.0 kB that it should",)),
    (176, "address", [Lie(body="huge", framing="close")], 3, ("size is more than the 10.0 kB that it should",)),
    (
        177,
        "model",
        [Lie(headers=(("X-Linked-Size", "10000000000"),))] * 9,
        6,
        ("tokenizer.json has 10.0 GB, more than the 100.0 MB of the largest",),
    ),
    (178, "address", [Lie(slow="body")] * EVER, 6, ("cannot be reached (it sends less than 200 B a second)",)),
    (178, "address", [Lie(slow="chunks", framing="chunked")] * EVER, 6, ("it sends less than 200 B a second",)),
    (179, "address", [Lie(slow="headers")] * EVER, 6, ("cannot be reached (it has not answered for 2 seconds)",)),
    (179, "data", [Lie(slow="headers")] * EVER, 6, ("the hub cannot be reached (it has not answered for 2 s",)),
    (180, "address", [Lie(status=206, headers=(("Content-Range", "bytes 9-99/100"),))] * EVER, 6, ("another part",)),
    (180, "address", [Lie(status=206)] * EVER, 6, ("another part of the file than was asked for",)),
    (181, "address", [Lie(raw=b"SSH-2.0-x\r\n")] * EVER, 6, ("cannot be reached (",)),
    (181, "address", [Lie(raw=b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000)] * EVER, 6, ("cannot be reached (",)),
    (181, "address", [Lie(headers=(("Content-Length", "1e9"),))] * EVER, 6, ("cannot be reached (",)),
    (182, "address", [Lie(body="other")] * EVER, 3, ("refused, its sha256 is ", f"expected {sha256(TRUTH)}")),
    (182, "data", [Lie(), Lie(), Lie(body="shorter")], 3, ("refused, its sha1 is ", "check the name and the hash")),
]


@pytest.mark.parametrize(("row", "kind", "lies", "code", "words"), ANSWERS, ids=[f"{a[0]}-{a[1]}" for a in ANSWERS])
def test_answer(
    row: int,
    kind: str,
    lies: list[Lie],
    code: int,
    words: tuple[str, ...],
    liar: Liar,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    liar.script = Script(list(lies))
    outcome = call("fetch", f"{kind}.yaml", cwd=tmp_path, capsys=capsys)
    assert outcome.code == code, outcome.err
    (line,) = outcome.errors
    assert all(word in line for word in words), line
    assert "Traceback" not in outcome.err and "bug in mtmeta" not in outcome.err
    assert outcome.out.endswith(" missing\n")
    names = {path.name for root in ("hub", "cache") for path in (tmp_path / root).rglob("*") if path.is_file()}
    assert "passwd" not in names and "x" not in names


def proxied(server: Liar, tmp_path: Path) -> dict[str, str]:
    """The server as the proxy through which `hub.test` is reached, which is no address of this machine."""
    write_recipes(tmp_path, "http://hub.test")
    caches = {"HF_HOME": str(tmp_path / "hub"), "MTMETA_CACHE": str(tmp_path / "cache")}
    proxy = {"HTTP_PROXY": server.url, "http_proxy": server.url, "NO_PROXY": "", "no_proxy": ""}
    return {"HF_ENDPOINT": "http://hub.test", "HF_HUB_OFFLINE": "0", **caches, **proxy}


@pytest.mark.parametrize(
    ("row", "place"),
    [
        (183, "http://127.0.0.1:{port}/cdn/t.tsv"),
        (183, "http://localhost:{port}/cdn/t.tsv"),
        (183, "http://2130706433/t.tsv"),
        (184, "http://169.254.169.254/latest/meta-data"),
        (184, "http://[::ffff:169.254.169.254]/latest"),
    ],
)
def test_a_hub_elsewhere_that_redirects_to_this_machine(row: int, place: str, tmp_path: Path) -> None:
    with serving_lies() as server:
        server.script = Script([Lie(), Lie(), Lie(status=302, headers=(("Location", place),))])
        (tmp_path / "data").mkdir()
        outcome = command("fetch", "data.yaml", cwd=tmp_path, env=proxied(server, tmp_path))
        assert outcome.code == 6, outcome.err
        (line,) = outcome.errors
        assert "which is on this machine or its own network link" in line
        assert place.replace("{port}", str(server.port)) in line
        assert server.script.lies == []


def test_a_full_disk_leaves_no_part_and_no_lock(
    liar: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row 185."""
    real = downloads._write

    def full(file: object, piece: bytes) -> None:
        real(file, piece[:100])  # type: ignore[arg-type]
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_write", full)
    for kind, folder in (("address", "cache/files"), ("data", "hub/hub/datasets--owner--name/blobs")):
        outcome = call("fetch", f"{kind}.yaml", cwd=tmp_path, capsys=capsys)
        assert outcome.code == 6, outcome.err
        (line,) = outcome.errors
        assert f"{folder}" in line and "cannot be written (No space left on device); make room" in line
        assert [path for path in (tmp_path / folder).rglob("*") if path.is_file()] == []
    monkeypatch.setattr(downloads, "_write", real)
    for kind in ("address", "data"):
        assert call("fetch", f"{kind}.yaml", cwd=tmp_path, capsys=capsys).code == 0


# --------------------------------------------------------------------------------------------- what lies in the caches


def give_away(path: Path, patch: pytest.MonkeyPatch) -> None:
    """Let a path belong to another user; where only root may do that, be another user."""
    if os.getuid() == 0:
        os.chown(path, 12345, -1)
    else:
        other = os.getuid() + 1
        patch.setattr(os, "getuid", lambda: other)


@pytest.mark.parametrize(
    ("row", "what", "kind", "words"),
    [
        (186, "root mode", "address", ("/cache: may be written to by others", "chmod go-w it, or set MTMETA_CACHE")),
        (186, "root group", "address", ("/cache: may be written to by others", "chmod go-w it, or set MTMETA_CACHE")),
        (187, "root owner", "address", ("/cache: belongs to another user (", "chmod go-w it, or set MTMETA_CACHE")),
        (187, "file owner", "address", (": belongs to another user (", "or set MTMETA_CACHE")),
        (188, "blob mode", "data", (": may be written to by everybody; run chmod o-w on it",)),
        (188, "blobs mode", "data", ("/blobs: may be written to by everybody; run chmod o-w on it",)),
        (188, "snapshot mode", "data", (f"/{COMMIT}: may be written to by everybody; run chmod o-w on it",)),
    ],
)
def test_caches_that_others_may_write_to(
    row: int,
    what: str,
    kind: str,
    words: tuple[str, ...],
    liar: Liar,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert call("fetch", f"{kind}.yaml", cwd=tmp_path, capsys=capsys).code == 0
    root, hub = tmp_path / "cache", tmp_path / "hub" / "hub" / "datasets--owner--name"
    if what == "root mode":
        root.chmod(0o777)
    elif what == "root group":
        set_group(monkeypatch, "eve")
        root.chmod(0o775)
    elif what == "root owner":
        give_away(root, monkeypatch)
    elif what == "file owner":
        give_away(next(root.rglob("t.tsv")), monkeypatch)
    elif what == "blob mode":
        next(path for path in (hub / "blobs").iterdir()).chmod(0o666)
    else:
        (hub / "blobs" if what == "blobs mode" else hub / "snapshots" / COMMIT).chmod(0o777)
    before = contents(tmp_path)
    assert_refused(call("fetch", f"{kind}.yaml", cwd=tmp_path, capsys=capsys), 6, *words)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["owner--x/name", "owner/a..b", "owner/name.git", "hf://owner/a--b"])
def test_names_that_the_hub_does_not_allow(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Row 189."""
    write_recipes(tmp_path, "http://127.0.0.1:1")
    path = tmp_path / "model.yaml"
    path.write_text(path.read_text().replace("owner/name", name))
    outcome = call("fetch", "model.yaml", cwd=tmp_path, capsys=capsys)
    assert outcome.code in (2, 4), outcome.err
    (line,) = outcome.errors
    assert "is neither a folder nor a hub id" in line and name.rpartition("//")[2] in line


@pytest.mark.parametrize("kind", ["address", "data"])
@pytest.mark.parametrize("lies_there", ["link", "dangling link", "second name", "pipe", "device"])
def test_nothing_is_written_through_what_lies_in_the_place_of_a_part(
    lies_there: str, kind: str, liar: Liar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The part of a download is a file of its own, whatever somebody has put in its place; the target too."""
    assert call("fetch", f"{kind}.yaml", cwd=tmp_path, capsys=capsys).code == 0
    name = "cache/files/*/t.tsv" if kind == "address" else "hub/hub/*/blobs/*"
    (target,) = tmp_path.glob(name)
    victim = tmp_path / "victim"
    for place in (target.with_name(f"{target.name}.mtmeta.incomplete"), target):
        for path in target.parent.iterdir():
            path.unlink()
        victim.unlink(missing_ok=True)
        if lies_there != "dangling link":
            victim.write_bytes(b"mine")
        if lies_there in ("link", "dangling link"):
            place.symlink_to(victim)
        elif lies_there == "second name":
            os.link(victim, place)
        elif lies_there == "pipe":
            os.mkfifo(place)
        else:
            place.symlink_to("/dev/zero")
        outcome = call("fetch", f"{kind}.yaml", cwd=tmp_path, capsys=capsys)
        assert (outcome.code, outcome.errors) == (0, [])
        assert target.read_bytes() == TRUTH and target.is_file() and not target.is_symlink()
        assert {path.name for path in target.parent.iterdir()} == {target.name}
        assert not victim.exists() if lies_there == "dangling link" else victim.read_bytes() == b"mine"


def test_a_link_out_of_the_hubs_cache_is_fetched_anew(
    liar: Liar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("fetch", "data.yaml", cwd=tmp_path, capsys=capsys).code == 0
    (path,) = tmp_path.glob("hub/hub/*/snapshots/*/t.tsv")
    (tmp_path / "secret").write_bytes(b"mine")
    path.unlink()
    path.symlink_to(tmp_path / "secret")
    assert call("fetch", "data.yaml", cwd=tmp_path, capsys=capsys).code == 0
    assert path.resolve().parent.name == "blobs" and path.read_bytes() == TRUTH
    assert (tmp_path / "secret").read_bytes() == b"mine"


@pytest.mark.parametrize("text", ["../../../etc", "", "f" * 39, "\xff\xfe", "x" * 5000, f"{COMMIT}\n"])
def test_a_commit_in_the_hubs_cache_that_is_none_counts_as_unknown(
    text: str, liar: Liar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("fetch", "data.yaml", cwd=tmp_path, capsys=capsys).code == 0
    (ref,) = tmp_path.glob("hub/hub/*/refs/main")
    ref.write_bytes(text.encode("latin-1"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert_refused(call("fetch", "data.yaml", cwd=tmp_path, capsys=capsys), 6, "1 file is not in the cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    assert call("fetch", "data.yaml", cwd=tmp_path, capsys=capsys).code == 0
    assert ref.read_text() == COMMIT


def test_folders_of_the_cache_are_the_users_alone(
    liar: Liar, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = os.umask(0)
    try:
        assert call("fetch", "address.yaml", cwd=tmp_path, capsys=capsys).code == 0
    finally:
        os.umask(before)
    root = tmp_path / "cache"
    folders = [root, *(path for path in root.rglob("*") if path.is_dir())]
    assert [oct(path.stat().st_mode & 0o777) for path in folders] == ["0o700"] * 3
    (file,) = root.rglob("t.tsv")
    assert call("fetch", "address.yaml", cwd=tmp_path, capsys=capsys).code == 0
    assert file.stat().st_mode & 0o022 == 0
    shutil.rmtree(root)
