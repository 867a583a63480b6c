"""Flat arrays on disk under a key: written once as a stream, then memory-mapped by every later run.

An entry is a folder of raw arrays and a manifest with its key, and their shapes and SHA-256. It is made in a scratch
folder and committed by one rename, so it is whole or absent; whatever was damaged since is noticed on loading and made
again. Every byte is hashed at every load, by the descriptor that is mapped then: sizes and times would not show a
flipped bit, nor arrays or whole entries that changed places, and a model would train on other tokens without a word.
What somebody else could have written is not used. The cache only saves time: where it cannot be used, the same arrays
lie in temporary files, and if need be in memory.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import secrets
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from mtmeta.core.environment import why_unsafe
from mtmeta.core.storage.atomic import staged_folder
from mtmeta.core.storage.reading import map_array

MANIFEST = "MANIFEST.json"
ENTRY, SCRATCH = "tokens-", ".mtmeta-"  # how the names of our folders begin; a root may hold other things too
MAPPED_BYTES = 2**20  # a smaller array is read: every mapping holds a file open
KEPT_SECONDS = 30 * 86400  # entries not used for so long are removed when another one is made
MAX_MANIFEST = 2**24  # bytes
ARRAY = re.compile("[a-z0-9-]{1,40}")  # the names of arrays, which are those of their files
DTYPE = re.compile("[<>|][biuf][0-9]{1,2}")
SCRATCH_SECONDS = 86400  # a scratch folder this old belongs to a process that was killed
Arrays = dict[str, NDArray[Any]]
Place = Callable[[str], IO[bytes]]  # opens the file of an array


@dataclass(frozen=True)
class Entry:
    """The arrays under a key, read-only, and the JSON object stored with them."""

    arrays: Arrays
    meta: dict[str, Any]


class _Unwritable(OSError):
    """The place of an entry has no room, or may not be written."""


class _FillFailed(Exception):
    """A system error in what fills an entry, which is no fault of the place it goes to."""

    def __init__(self, error: OSError) -> None:
        self.error = error


class _Damaged(Exception):
    """An entry on disk that is not as it was written; the text says where."""


class _Foreign(_Damaged):
    """An entry of another user."""


@contextmanager
def _place_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _Unwritable(error.errno, error.strerror or str(error)) from error


class Writer:
    """Arrays that grow block by block; in memory there is never more than a block, unless `place` is memory."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._columns: dict[str, _Column] = {}

    def append(self, name: str, values: NDArray[Any]) -> None:
        """Append rows to the array `name`; every block has the dtype and the row shape of the first one."""
        values = np.ascontiguousarray(values)
        if name not in self._columns:
            with _place_errors():
                place = self._place(name)
            self._columns[name] = _Column(place, values.dtype, values.shape[1:])
        with _place_errors():
            self._columns[name].append(values)

    def append_lengths(self, name: str, lengths: NDArray[np.int64]) -> None:
        """Append to offsets, of which there is one more than there are lengths: 0, l0, l0 + l1 and so on."""
        if name not in self._columns:
            self.append(name, np.zeros(1, dtype=np.int64))
        column = self._columns[name]
        with _place_errors():
            column.append(column.total + np.cumsum(lengths, dtype=np.int64))
        column.total += int(lengths.sum())

    def finish(self) -> tuple[Arrays, dict[str, Any]]:
        """Return the arrays, mapped, and for each what a manifest says about it."""
        arrays = {name: column.array() for name, column in self._columns.items()}
        return arrays, {name: column.describe() for name, column in self._columns.items()}

    def close(self) -> None:
        """Close the files; arrays that were mapped stay."""
        for column in self._columns.values():
            if not isinstance(column.file, io.BytesIO):  # a buffer in use cannot be closed
                with suppress(OSError):
                    column.file.close()


Fill = Callable[[Writer], dict[str, Any]]  # writes the arrays of an entry, and returns what is stored beside them


class _Column:
    """One growing array."""

    def __init__(self, file: IO[bytes], dtype: np.dtype[Any], row: tuple[int, ...]) -> None:
        self.file, self.dtype, self.row = file, dtype, row
        self.rows = self.total = 0
        self.sha256 = hashlib.sha256()

    def append(self, values: NDArray[Any]) -> None:
        assert values.dtype == self.dtype and values.shape[1:] == self.row, "blocks of one array differ"
        data = values.tobytes() if not values.size else values.data.cast("B")
        self.file.write(data)
        self.sha256.update(data)
        self.rows += len(values)

    def describe(self) -> dict[str, Any]:
        return {"dtype": self.dtype.str, "shape": [self.rows, *self.row], "sha256": self.sha256.hexdigest()}

    def array(self) -> NDArray[Any]:
        self.file.flush()
        if isinstance(self.file, io.BytesIO):
            array = np.frombuffer(self.file.getbuffer(), dtype=self.dtype).reshape(self.rows, *self.row)
            array.flags.writeable = False
            return array
        return _mapped(self.file, self.dtype, (self.rows, *self.row))


class Cache:
    """A folder `root` of entries, or none at all; `warn` hears of damage, and once of a root that cannot be written."""

    def __init__(self, root: Path | None, warn: Callable[[str], None] = lambda text: None) -> None:
        self.root = root
        self.held: tuple[Any, Any] | None = None
        """The last question, which will be asked once more, and its answer."""
        self._warn = warn

    def get(self, key: str | None) -> Entry | None:
        """Return the entry, if there is a good one. A damaged one is warned about and left to be replaced."""
        if key is None or not self._is_usable() or not os.path.lexists(folder := self._folder(key)):
            return None
        try:
            return _read(folder, key)
        except _Foreign as error:
            self._warn(f"{folder}: {error}; it is passed over, set MTMETA_CACHE to a folder of your own")
        except _Damaged as error:
            self._warn(f"{folder}: damaged ({error}); it is made again")
        return None

    def _folder(self, key: str) -> Path:
        assert self.root is not None
        return self.root / f"{ENTRY}{key}"

    def _is_usable(self) -> bool:
        """Return whether there is a root, and nobody else may write to it; else warn, and have no root from now on."""
        if self.root is None:
            return False
        with suppress(OSError):  # not there yet, or one line later
            if why := why_unsafe(self.root.stat()):  # a link is whoever's it is that names it
                self._warn(f"{self.root}: {why}, so nothing is kept there; chmod go-w it, or set MTMETA_CACHE")
                self.root = None
        return self.root is not None

    def put(self, key: str | None, fill: Fill) -> Entry:
        """Return the entry that `fill` writes; where a place cannot take it, `fill` is called again for the next one.

        `fill` returns what is stored beside the arrays, as JSON. Whatever it raises leaves nothing behind.
        """

        def apart(writer: Writer) -> dict[str, Any]:  # its own system errors are no fault of a place
            try:
                return fill(writer)
            except _Unwritable:
                raise
            except OSError as error:
                raise _FillFailed(error) from error

        try:
            if key is not None and self._is_usable() and (entry := self._put(key, apart)):
                return entry
            with suppress(OSError):  # the files are unlinked from the beginning
                return _entry(apart, lambda name: tempfile.TemporaryFile(prefix="mtmeta-"))
        except _FillFailed as failure:
            raise failure.error from None
        return in_memory(fill)

    def _put(self, key: str, fill: Fill) -> Entry | None:
        """Return the entry that `fill` writes below the root; None, and no root from now on, where it cannot."""
        root, folder = self.root, self._folder(key)
        assert root is not None
        scratch = root / f"{SCRATCH}{secrets.token_hex(8)}.tmp"
        entry = None
        try:
            root.mkdir(parents=True, exist_ok=True, mode=0o700)  # what is in the data is the user's own
            # where another process was faster, its entry stays: it holds the same
            with staged_folder(folder, scratch, replace=lambda: _is_bad(folder, key), mode=0o700, durable=False):
                entry = _entry(fill, lambda name: _create(scratch / name), scratch, key)
            _sweep(root)
        except OSError as error:  # once the arrays are written, they are mapped all the same
            reason = error.strerror or str(error)
            self._warn(f"{root}: cannot be written ({reason}); tokens are not kept for the next run")
            self.root = None
        return entry


def in_memory(fill: Fill) -> Entry:
    """Return the entry that `fill` writes, in memory."""
    return _entry(fill, lambda name: io.BytesIO())


def _create(path: Path) -> IO[bytes]:
    """Open a new file that only its user may read and write, whatever the umask."""
    return open(path, "x+b", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NOFOLLOW", 0), 0o600))


def _entry(fill: Fill, place: Place, folder: Path | None = None, key: str = "") -> Entry:
    """Return the entry that `fill` writes to the files of `place`, with a manifest in `folder` if there is one."""
    writer = Writer(place)
    try:
        meta = fill(writer)
        arrays, described = writer.finish()
        if folder is not None:
            text = json.dumps({"key": key, "arrays": described, "meta": meta})
            digest = hashlib.sha256(text.encode()).hexdigest()  # of the manifest itself, on a line before it
            with _create(folder / MANIFEST) as file:
                file.write(f"{digest}\n{text}\n".encode())
        return Entry(arrays, meta)
    finally:
        writer.close()


def _read(folder: Path, key: str) -> Entry:
    """Return the entry in a folder, every byte of it checked."""
    try:
        _check(folder.lstat(), folder.name, stat.S_ISDIR)
        with _open(folder / MANIFEST) as file:
            digest, _, text = file.read(MAX_MANIFEST).partition(b"\n")
            if hashlib.sha256(text.removesuffix(b"\n")).hexdigest().encode() != digest:
                raise _Damaged(f"sha256 mismatch in {MANIFEST}")
            with suppress(OSError, TypeError):  # when it was used; somebody else's cache may be read-only
                os.utime(file.fileno())
        manifest = json.loads(text)
        if manifest["key"] != key:
            raise _Damaged("it is the entry of another key")
        described = dict(manifest["arrays"].items())
        with ThreadPoolExecutor(max_workers=2) as pool:  # hashing frees the interpreter
            arrays = list(pool.map(lambda name: _load(folder, name, described[name]), described))
    except OSError as error:
        raise _Damaged(f"{Path(str(error.filename)).name}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise _Damaged(f"unknown format of {MANIFEST}") from error
    return Entry(dict(zip(described, arrays, strict=True)), manifest["meta"])


def _open(path: Path) -> IO[bytes]:
    """Open a regular file of an entry, which nobody else may write to; neither follows a link nor waits for a pipe."""
    flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    file = open(path, "rb", opener=lambda name, given: os.open(name, given | flags))
    try:
        _check(os.fstat(file.fileno()), path.name, stat.S_ISREG)
    except BaseException:
        file.close()
        raise
    return file


def _check(status: os.stat_result, name: str, is_kind: Callable[[int], bool]) -> None:
    if not is_kind(status.st_mode):
        raise _Damaged(f"{name} is no {'folder' if is_kind is stat.S_ISDIR else 'file'} of its own")
    if why := why_unsafe(status):
        raise (_Foreign if "another user" in why else _Damaged)(f"{name} {why}")


def _is_bad(folder: Path, key: str) -> bool:
    """Return whether what is in the place of an entry is to be replaced; what is no folder is removed at once."""
    try:
        _read(folder, key)
    except _Foreign:
        return False
    except _Damaged:
        if folder.is_symlink() or not folder.is_dir():
            folder.unlink(missing_ok=True)
        return True
    return False


def _load(folder: Path, name: str, described: Mapping[str, Any]) -> NDArray[Any]:
    if not ARRAY.fullmatch(name) or not DTYPE.fullmatch(described["dtype"]):
        raise ValueError
    dtype, shape = np.dtype(described["dtype"]), tuple(described["shape"])
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError
    with _open(folder / name) as file:
        size, wanted = os.fstat(file.fileno()).st_size, math.prod(shape) * dtype.itemsize
        if size != wanted:
            raise _Damaged(f"{name} has {size} bytes of {wanted}")
        # read rather than mapped: what is read does not count as this process's memory
        if hashlib.file_digest(file, "sha256").hexdigest() != described["sha256"]:  # type: ignore[arg-type]
            raise _Damaged(f"sha256 mismatch in {name}")
        return _mapped(file, dtype, shape)


def _mapped(file: IO[bytes], dtype: np.dtype[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    if math.prod(shape) * dtype.itemsize >= MAPPED_BYTES:
        return map_array(file, dtype, shape)
    file.seek(0)
    return np.frombuffer(file.read(), dtype=dtype).reshape(shape)


def _sweep(root: Path) -> None:
    """Remove entries that were not used for long, and scratch folders of processes that were killed."""
    for path in root.iterdir():
        scratch = path.name.endswith(".trash") or (path.name.startswith(SCRATCH) and path.name.endswith(".tmp"))
        if scratch or path.name.startswith(ENTRY):
            with suppress(OSError):
                alone = scratch or path.is_symlink()  # behind a link is nothing of ours
                used = (path if alone else path / MANIFEST).lstat().st_mtime
                if time.time() - used > (SCRATCH_SECONDS if scratch else KEPT_SECONDS):
                    if path.is_symlink() or not path.is_dir():
                        path.unlink()
                    else:  # of a pipe it would wait for a writer, in Python 3.11
                        shutil.rmtree(path, ignore_errors=True)
