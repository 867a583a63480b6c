"""Whatever lies in a cache or comes from a server: the right arrays and the right bytes, or one line; never a hang.

`pytest -m slow tests/robustness/test_fuzz_caches.py` tries 20,000 of each kind, in about an hour on one core.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st

from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.loading import load_split
from mtmeta.core.recipe.sections import DataOptions
from mtmeta.core.storage.cache import Cache
from mtmeta.plugins.backbones.bert import Bert
from mtmeta.plugins.tasks.para import Para
from tests.support import tiny  # noqa: F401  # one thread
from tests.support.fuzzing import attempts, call, desk, no_hang, snapshot, survives
from tests.support.liar import MODEL, TRUTH, Liar, Lie, Script, lying
from tests.support.loopback import COMMIT, sha256

FEW, MANY = 15, 20_000
Damage = tuple[Any, ...]

# ------------------------------------------------------------------------------------------------------ token caches

SPLITS = {"train": 60, "dev": 40}
OTHERS = 12345  # a user who does not exist
# manifests that nothing of ours writes, vouched for by a digest of their own
CRAFTED: tuple[Callable[[dict[str, Any]], object], ...] = (
    lambda m: m.update(key="0" * 40),
    lambda m: m.pop("key"),
    lambda m: m.update(arrays=[]),
    lambda m: m["arrays"].update({"../../decoy/secret": m["arrays"]["cut"]}),
    lambda m: m["arrays"].update({"/dev/zero": m["arrays"]["cut"]}),
    lambda m: m["arrays"]["cut"].update(dtype="|O8"),
    lambda m: m["arrays"]["cut"].update(dtype="O"),
    lambda m: m["arrays"]["cut"].update(shape=[-1, -len(m)]),
    lambda m: m["arrays"]["cut"].update(shape=[2**62, 2**62]),
    lambda m: m["arrays"]["cut"].update(shape=[1.5]),
    lambda m: m["arrays"]["labels"].update(sha256=m["arrays"]["cut"]["sha256"]),
    lambda m: m["arrays"].update(cut=None),
)
NAMES = ("MANIFEST.json", "cut", "ids-0", "ids-1", "labels", "name-offsets", "names", "offsets-0", "offsets-1", "texts")
KINDS = ["flip", "cut", "grow", "empty", "noise", "swap", "exchange", "remove", "link", "twin", "second", "pipe"]
KINDS += ["folder", "zero", "mode", "owner"]
file_damages = st.tuples(
    st.sampled_from(KINDS),
    st.sampled_from(["train", "dev"]),
    st.sampled_from(NAMES),
    st.sampled_from(NAMES),
    st.integers(0, 10_000),
)
entry_damages = st.tuples(
    st.sampled_from(["entries", "entry link", "entry file", "entry pipe", "entry mode", "entry owner", "entry empty"]),
    st.sampled_from(["train", "dev"]),
    st.sampled_from([0o777, 0o770, 0o755, 0o500]),
)
root_damages = st.tuples(st.sampled_from(["root mode", "root owner", "root link", "strangers"]), st.integers(0, 3))
crafted = st.tuples(st.just("crafted"), st.sampled_from(["train", "dev"]), st.integers(0, len(CRAFTED) - 1))
damages = st.lists(st.one_of(file_damages, file_damages, entry_damages, root_damages, crafted), min_size=1, max_size=4)


class TokenCache:
    """A good cache of two files, copied anew for every case, and damaged."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.decoy, self.root = folder, folder / "decoy", folder / "cache"
        self.backbone = Bert(weights="tiny", max_length=16).load(0)
        self.task = Para(train="train.tsv", dev="dev.tsv")
        for split, rows in SPLITS.items():
            lines = (f"the film {split} {i}\tnot {i % 7} good\t{i % 2}\n" for i in range(rows))
            (folder / f"{split}.tsv").write_text("sentence1\tsentence2\tis_duplicate\n" + "".join(lines))
        self.wanted = {split: held(self.load(split, Cache(None))) for split in SPLITS}
        self.entries: dict[str, str] = {}
        for split in SPLITS:
            before = set(self.names())
            self.load(split, Cache(self.root, pytest.fail))
            (self.entries[split],) = set(self.names()) - before
        self.root.rename(folder / "good")
        self.decoy.mkdir()
        (self.decoy / "secret").write_bytes(b"mine" * 100)
        (self.decoy / "folder").mkdir()
        self.before = snapshot(self.decoy)

    def names(self) -> list[str]:
        return os.listdir(self.root) if self.root.exists() else []

    def load(self, split: str, cache: Cache) -> Dataset:
        return load_split("t", self.task, split, DataOptions(), str(self.folder), self.backbone, cache=cache)

    def attempt(self, drawn: list[Damage]) -> None:
        if self.root.is_symlink():
            self.root.unlink()
        for name in ("cache", "aside", "third"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        shutil.copytree(self.folder / "good", self.root)  # files with their modes
        for damage in drawn:
            with contextlib.suppress(OSError):  # what was damaged before cannot be damaged so
                self.damage(*damage)
        for turn in range(2):
            warned: list[str] = []
            for split in SPLITS:
                with no_hang():
                    data = self.load(split, Cache(self.root, warned.append))
                assert held(data) == self.wanted[split]
            assert all("\n" not in line and str(self.root) in line for line in warned)
            if turn and not any(damage[0].startswith("root") or "owner" in damage[0] for damage in drawn):
                assert warned == []  # what was damaged was made again
        assert snapshot(self.decoy) == self.before

    def damage(self, kind: str, *more: Any) -> None:
        if kind.startswith(("root", "strangers")):
            self.damage_root(kind, *more)
        elif kind.startswith("entr"):
            self.damage_entry(kind, self.root / self.entries[more[0]], *more[1:])
        elif kind == "crafted":
            path = self.root / self.entries[more[0]] / "MANIFEST.json"
            if path.is_symlink() or not path.is_file():
                return
            try:
                manifest = json.loads(path.read_bytes().partition(b"\n")[2])
            except ValueError:
                return
            with contextlib.suppress(KeyError, TypeError, AttributeError):  # of one that was crafted before
                CRAFTED[more[1]](manifest)
            text = json.dumps(manifest)
            path.write_text(f"{hashlib.sha256(text.encode()).hexdigest()}\n{text}\n")
        else:
            split, name, other, number = more
            self.damage_file(kind, self.root / self.entries[split], name, other, number)

    def damage_root(self, kind: str, number: int) -> None:
        if kind == "root mode":
            self.root.chmod((0o777, 0o775, 0o1777, 0o755)[number])
        elif kind == "root owner" and os.getuid() == 0:
            os.chown(self.root, OTHERS, -1)
        elif kind == "root link":
            self.root.rename(self.folder / "aside")
            self.root.symlink_to(self.folder / "aside")
        elif kind == "strangers":
            (self.root / ".mtmeta-00.tmp").symlink_to(self.decoy)
            (self.root / "tokens-old").symlink_to(self.decoy / "folder")
            os.utime(self.root / "tokens-old", (0, 0), follow_symlinks=False)
            os.mkfifo(self.root / ".x.trash")
            os.utime(self.root / ".x.trash", (0, 0))

    def damage_entry(self, kind: str, entry: Path, mode: int) -> None:
        if kind == "entries":
            one, two = (self.root / self.entries[split] for split in SPLITS)
            one.rename(self.folder / "third")
            two.rename(one)
            (self.folder / "third").rename(two)
        elif kind == "entry mode":
            entry.chmod(mode)
        elif kind == "entry owner":
            if os.getuid() == 0:
                os.chown(entry, OTHERS, -1)
        else:
            if not entry.is_dir():
                return  # damaged before
            if kind == "entry link":
                entry.rename(self.folder / "third")
                entry.symlink_to(self.folder / "third")
                return
            shutil.rmtree(entry)
            if kind == "entry file":
                entry.write_bytes(b"x")
            elif kind == "entry pipe":
                os.mkfifo(entry)
            else:
                entry.mkdir()

    def damage_file(self, kind: str, entry: Path, name: str, other: str, number: int) -> None:
        path, twin = entry / name, entry.with_name(next(e for e in self.entries.values() if e != entry.name)) / name
        if any(place.is_symlink() or not place.is_file() for place in (path, twin, entry / other)):
            return  # damaged before
        data = bytearray(path.read_bytes())
        at = number % max(len(data), 1)
        if kind in ("mode", "owner"):
            if kind == "mode":
                path.chmod((0o666, 0o620, 0o602, 0o444)[number % 4])
            elif os.getuid() == 0:
                os.chown(path, OTHERS, -1)
            return
        if kind == "swap":  # two arrays of one entry
            write_anew(path, (entry / other).read_bytes())
            write_anew(entry / other, bytes(data))
            return
        if kind == "exchange":  # the same array of two entries
            write_anew(path, twin.read_bytes())
            write_anew(twin, bytes(data))
            return
        if kind == "flip" and data:
            data[at] ^= 1 << number % 8
        path.unlink()
        if kind == "link":
            path.symlink_to(self.decoy / "secret")
        elif kind == "twin":
            path.symlink_to(twin)
        elif kind == "second":
            os.link(self.decoy / "secret", path)
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "folder":
            path.mkdir()
        elif kind == "zero":
            path.symlink_to("/dev/zero")
        elif kind != "remove":
            changed = {"cut": data[:at], "grow": data + b"\0", "empty": b"", "noise": os.urandom(len(data))}
            path.write_bytes(bytes(changed.get(kind, data)))


def write_anew(path: Path, data: bytes) -> None:
    path.unlink()  # which may be another name of a file elsewhere
    path.write_bytes(data)


def held(data: Dataset) -> tuple[Any, ...]:
    """Everything a dataset holds."""
    found: list[Any] = [data.labels, data.texts, data.cut]
    for store in data.stores:
        found += [store.ids, store.offsets, *(each for each in (store.types, store.full) if each is not None)]
    arrays = [(array.dtype.str, array.shape, array.tobytes()) for array in found]
    return (*arrays, list(data.ids), data.skipped, data.truncated, data.bad, data.kinds, data.sha256, data.whole)


@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_cache_gives_the_arrays_of_the_file(cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda handle: None)  # takes time and is not the matter here
    cache = TokenCache(tmp_path)
    cache.attempt([])
    assert attempts(damages, cache.attempt, cases) >= cases


# ---------------------------------------------------------------------------------------------------- remote answers

ALLOWED = re.compile(
    r"hub/hub/(models|datasets)--owner--name/(refs/main|blobs/[0-9a-f]{40}([0-9a-f]{24})?(\.mtmeta\.incomplete)?"
    r"|(snapshots|\.no_exist)/[0-9a-f]{40}/(\w+/)?\w+(\.\w+)+)"
    r"|cache/files/[0-9a-f]{64}/t\.tsv(\.mtmeta\.incomplete)?"
)
VALUES = ["", "../../../x", "/etc/passwd", "a" * 40, "b" * 64, "A" * 40, "W/", '"', "0", "-1", "1e9", "9" * 30, "gzip"]
VALUES += ["identity", "br, gzip", "bytes 0-1/2", "bytes 5-9/*", "bytes */0", "bytes 9-5/10", "\xe9" * 5, "x" * 9000]
VALUES += ["chunked", "close", "EntryNotFound", "GatedRepo", "RepoNotFound", "RevisionNotFound", COMMIT, COMMIT[:-1]]
FIELDS = ["ETag", "X-Linked-Etag", "X-Repo-Commit", "X-Linked-Size", "Content-Length", "Content-Range", "Location"]
FIELDS += [
    "Content-Encoding",
    "Transfer-Encoding",
    "X-Error-Code",
    "Connection",
    "Retry-After",
    "Set-Cookie",
    "Trailer",
]
PLACES = [
    "/other",
    "//localhost:{port}/cdn/f",
    "http://127.0.0.1:{port}/again",
    "https://127.0.0.1:{port}/",
    "ftp://x/",
]
PLACES += ["file:///etc/passwd", "http://u:p@127.0.0.1:{port}/", "http://[::1", "http://127.0.0.1:99999/", "\xff", " "]
STATUSES = [
    200,
    200,
    204,
    206,
    206,
    301,
    302,
    307,
    308,
    304,
    400,
    401,
    403,
    404,
    404,
    416,
    418,
    429,
    500,
    503,
    100,
    999,
]


lies = st.builds(
    Lie,
    status=st.one_of(st.none(), st.none(), st.sampled_from(STATUSES)),
    headers=st.lists(
        st.one_of(
            st.tuples(st.sampled_from(FIELDS), st.sampled_from(VALUES)),
            st.tuples(st.just("Location"), st.sampled_from(PLACES)),
        ),
        max_size=3,
    ).map(tuple),
    dropped=st.lists(st.sampled_from(FIELDS), max_size=2).map(tuple),
    body=st.sampled_from(["true", "true", "true", "other", "longer", "shorter", "empty", "huge"]),
    framing=st.sampled_from(["length", "length", "chunked", "bad chunks", "close", "both"]),
    cut=st.one_of(st.none(), st.none(), st.integers(0, 400)),
    slow=st.one_of(*[st.just("")] * 15, st.sampled_from(["headers", "body", "chunks"])),
    raw=st.one_of(*[st.none()] * 9, st.binary(max_size=60), st.just(b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000)),
)
remote_cases = st.tuples(st.sampled_from(["address", "data", "model"]), st.lists(lies, min_size=1, max_size=6))


class Fetches:
    """`mtmeta fetch` from a server that lies."""

    def __init__(self, folder: Path, server: Liar) -> None:
        self.folder, self.server = folder, server
        self.before = self.outside()

    def outside(self) -> dict[str, Any]:
        """Everything but the caches."""
        found = snapshot(self.folder)
        return {name: each for name, each in found.items() if name.partition("/")[0] not in ("hub", "cache")}

    def attempt(self, drawn: tuple[str, list[Lie]]) -> None:
        kind, told = drawn
        for name in ("hub", "cache"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        self.server.script = script = Script(list(told))
        with no_hang():
            answer = watched("fetch", f"{kind}.yaml", "--json")
        if answer.code == 0:
            for source in json.loads(answer.out)["sources"]:
                for one in source["files"]:
                    brought = Path(one["path"]).read_bytes()
                    # of a file that is optional and not there the server may make one up: whole, by its own ETag
                    assert brought == {"t.tsv": TRUTH, **MODEL}.get(one["file"], brought)
                    assert one["sha256"] == sha256(brought)
        for root in ("hub", "cache"):
            for path in (self.folder / root).rglob("*"):
                if path.is_symlink() or not path.is_dir():
                    assert ALLOWED.fullmatch(str(path.relative_to(self.folder))), path
        assert self.outside() == self.before
        assert not [path for path in script.authorized if path.startswith(("/cdn/", "/files/"))]
        self.server.script = Script()


def watched(*arguments: str) -> Any:
    """As `survives`, but for the lines that tell how a download goes."""
    answer = call(*arguments)
    assert answer.code in (0, 3, 4, 6), answer
    assert "Traceback" not in answer.err and "bug in mtmeta" not in answer.err, answer.err
    lines = answer.err.splitlines()
    assert all(line.isprintable() for line in lines), answer.err
    assert sum(line.startswith("error: ") for line in lines) == (answer.code != 0), answer
    return answer


@pytest.fixture
def fetches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fetches]:
    with lying(tmp_path, monkeypatch, answer=0.3, window=0.15, least=60) as server, desk(tmp_path) as folder:
        # the desk is without a network
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        yield Fetches(folder, server)


@pytest.mark.parametrize("cases", [FEW, pytest.param(MANY, marks=pytest.mark.slow)])
def test_a_server_gives_the_true_file_or_an_error(cases: int, fetches: Fetches) -> None:
    for kind in ("address", "data", "model"):
        fetches.attempt((kind, []))
        assert survives("fetch", f"{kind}.yaml", "--dry-run").code == 0
    assert attempts(remote_cases, fetches.attempt, cases) >= cases
