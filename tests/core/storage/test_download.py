"""Downloads that are cut, slow, wrong, damaged or shared, against a server on the loopback device."""

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtmeta.core.errors import DataError, MachineError
from mtmeta.core.storage import download as downloads
from mtmeta.core.storage.sources import Sources
from tests.support.loopback import Loopback, serving, sha256

DATA = random.Random(1).randbytes(700_000)
FIRST = 262_144  # a multiple of what is written at once
Asked = list[tuple[str, str]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    monkeypatch.setenv("MTMETA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(downloads, "WAITS", (0.0, 0.0, 0.0, 0.0))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with serving() as found:
        found.files["train.csv"] = DATA
        yield found


class Notes(downloads.Watcher):
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.begun: list[int] = []

    def begin(self, label: str, done: int, total: int | None) -> None:
        self.begun.append(done)

    def note(self, text: str) -> None:
        self.notes.append(text)


def name(server: Loopback, digest: str = sha256(DATA)) -> str:
    return f"{server.url}/files/train.csv#sha256={digest}"


def place(tmp_path: Path, digest: str = sha256(DATA)) -> Path:
    return tmp_path / "cache" / "files" / digest / "train.csv"


def partial(tmp_path: Path) -> Path:
    return place(tmp_path).with_name("train.csv.mtmeta.incomplete")


def everything(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_a_connection_that_breaks_off_goes_on_with_the_rest(server: Loopback, tmp_path: Path) -> None:
    server.cuts["train.csv"] = [FIRST, 100_000]
    path = Sources().file(name(server))
    assert path == place(tmp_path)
    assert path.read_bytes() == DATA
    assert server.got("train.csv") == ["", f"bytes={FIRST}-", f"bytes={FIRST + 100_000}-"]
    assert everything(tmp_path) == ["train.csv"]
    assert Sources().file(name(server)) == path  # from the cache
    assert len(server.got("train.csv")) == 3


def test_a_server_that_gives_up_leaves_the_part_for_the_next_attempt(server: Loopback, tmp_path: Path) -> None:
    server.cuts["train.csv"] = [FIRST, 0, 0, 0, 0]
    with pytest.raises(MachineError, match=r"1 file is not in the cache and 127\.0\.0\.1:\d+ cannot be reached"):
        Sources().file(name(server))
    assert partial(tmp_path).read_bytes() == DATA[:FIRST]
    assert not place(tmp_path).exists()
    notes = Notes()
    assert Sources(watcher=notes).file(name(server)).read_bytes() == DATA
    assert notes.begun == [FIRST]
    assert server.got("train.csv")[-1] == f"bytes={FIRST}-"


def test_a_server_without_ranges_sends_all_of_it_again(server: Loopback, tmp_path: Path) -> None:
    server.ranges = False
    server.cuts["train.csv"] = [FIRST]
    assert Sources().file(name(server)).read_bytes() == DATA


def test_a_busy_server_is_asked_again(server: Loopback) -> None:
    server.busy["train.csv"] = [503, 429]
    assert Sources().file(name(server)).read_bytes() == DATA


@pytest.mark.parametrize("part", [b"other", DATA[:FIRST] + b"x" * 1000, DATA + b"more", DATA], ids=len)
def test_a_part_that_does_not_fit_is_no_harm(part: bytes, server: Loopback, tmp_path: Path) -> None:
    partial(tmp_path).parent.mkdir(parents=True)
    partial(tmp_path).write_bytes(part)
    assert Sources().file(name(server)).read_bytes() == DATA
    assert everything(tmp_path) == ["train.csv"]


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server: Loopback, tmp_path: Path) -> None:
    wrong = "ab" * 32
    with pytest.raises(DataError) as caught:
        Sources().file(name(server, wrong))
    assert caught.value.exit_code == 3
    assert f"refused, its sha256 is {sha256(DATA)}, expected {wrong}" in str(caught.value)
    assert everything(tmp_path) == []


def test_what_was_damaged_in_the_cache_is_fetched_again(server: Loopback, tmp_path: Path) -> None:
    path = Sources().file(name(server))
    path.write_bytes(DATA[:-1] + b"?")
    notes = Notes()
    assert Sources(watcher=notes).file(name(server)).read_bytes() == DATA
    assert notes.notes == [f"{path}: damaged; fetching it again"]


def test_what_is_damaged_is_missing_where_there_is_no_network(
    server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = Sources().file(name(server))
    path.write_bytes(b"")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(MachineError, match="1 file is not in the cache and HF_HUB_OFFLINE is set: http"):
        Sources().file(name(server))


def test_two_at_once_fetch_it_once(server: Loopback, tmp_path: Path) -> None:
    server.pace = 0.02
    notes, paths = Notes(), []
    threads = [
        threading.Thread(target=lambda: paths.append(Sources(watcher=notes).file(name(server)))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert paths == [place(tmp_path)] * 3
    assert place(tmp_path).read_bytes() == DATA
    assert server.got("train.csv") == [""]
    assert everything(tmp_path) == ["train.csv"]
    assert notes.notes == ["train.csv: waits for another process, which is fetching it"] * 2


def test_an_address_that_is_not_there(server: Loopback, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be fetched \\(the server answers 404\\); check the address"):
        Sources().file(name(server).replace("train", "tarin"))


def test_without_room_nothing_is_begun(server: Loopback, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(MachineError, match=r"train.csv needs 700\.0 kB more, 1\.0 kB are free; make room"):
        Sources().file(name(server))


def test_no_cache_is_no_place_for_files(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTMETA_CACHE", "off")
    with pytest.raises(MachineError, match="MTMETA_CACHE: leaves no place"):
        Sources().file(name(server))


def test_a_full_disk_is_one_line(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object, chunk: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_write", full)
    with pytest.raises(MachineError, match=r"cannot be written \(No space left on device\); make room"):
        Sources().file(name(server))
