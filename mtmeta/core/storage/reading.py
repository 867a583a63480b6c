"""Reading what others may have made, run directories and caches: regular files only, no links, and no file larger than
its kind can be. A pipe without a writer, an endless device or a file of ten gigabytes of zeros is one line at once.

    with open_regular(path, LIMITS["weights"]) as file: ...     OSError, of which UnfitFile says what is there instead
    data = read_bytes(path, "manifest")                         the same
    value = read_json(path, "summary")                          CheckpointError
"""

from __future__ import annotations

import errno
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from io import BufferedReader
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from mtmeta.core.errors import CheckpointError
from mtmeta.core.wording import byte_text, safe

if TYPE_CHECKING:  # whoever only reads a run's texts needs none of it
    import numpy as np
    from numpy.typing import NDArray

Kind = Literal[
    "recipe", "lock", "summary", "state", "manifest", "config", "labels", "tokenizer", "events", "predictions",
    "weights",
]  # fmt: skip
LIMITS: Mapping[Kind, int] = {
    "recipe": 2**20,
    "lock": 2**20,
    "summary": 2**24,
    "state": 2**24,
    "manifest": 2**24,  # of a checkpoint, an export, an entry of a cache
    "config": 2**20,
    "labels": 2**24,
    "tokenizer": 2**28,
    "events": 2**34,
    "predictions": 2**28,
    "weights": 2**36,  # the largest encoder that config.json may ask for, with all that an optimizer keeps of it
}
"""Bytes."""
MAX_LINE = 2**24
"""Bytes in a line of a file that is read by lines."""
MAX_DEPTH = 32
"""Lists and mappings within each other in JSON."""
_KINDS = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket", stat.S_IFDIR: "folder", stat.S_IFLNK: "link"}


class UnfitFile(OSError):
    """There is something, but nothing that may be read; `found` is "pipe", "socket", "folder", "link", "device" or, of
    a file that is too large, "size". Its text is a clause without the path: `is a pipe, not a regular file`."""

    def __init__(self, path: str | os.PathLike[str], found: str, reason: str) -> None:
        super().__init__(errno.EINVAL, reason, os.fspath(path))
        self.found = found

    def __str__(self) -> str:
        return str(self.strerror)


def open_regular(
    path: str | os.PathLike[str], limit: int | None = None, *, links: bool = False, within: Path | None = None
) -> BufferedReader:
    """Open a regular file of at most `limit` bytes for reading; never waits, whatever lies there.

    The file itself may be a symbolic link only where `links` says so, and no folder on the way from `within`, a folder
    above it, may be one. Raises UnfitFile, and OSError where there is no such file or it may not be read.
    """
    for folder in _folders_between(within, Path(path)) if within is not None else ():
        if folder.is_symlink():
            raise UnfitFile(path, "link", f"lies behind the link {safe(folder.name)}")
    _check(path, os.stat(path, follow_symlinks=links), limit)  # first, for to open a device may do something
    flags = os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    flags |= getattr(os, "O_NONBLOCK", 0) | (0 if links else getattr(os, "O_NOFOLLOW", 0))
    handle = os.open(path, flags)
    try:
        _check(path, os.fstat(handle), limit)  # of what was really opened
        if hasattr(os, "O_NONBLOCK"):
            os.set_blocking(handle, True)
        return open(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def _folders_between(within: Path, path: Path) -> Iterator[Path]:
    for folder in path.parents:
        if folder == within:
            return
        yield folder


def _check(path: str | os.PathLike[str], status: os.stat_result, limit: int | None) -> None:
    if not stat.S_ISREG(status.st_mode):
        found = _KINDS.get(stat.S_IFMT(status.st_mode), "device")
        raise UnfitFile(path, found, f"is a {found}, not a regular file")
    if limit is not None and status.st_size > limit:
        sizes = f"{byte_text(status.st_size)}, more than the {byte_text(limit)} that it may have"
        raise UnfitFile(path, "size", f"has {sizes}")


def read_bytes(path: Path, kind: Kind, *, links: bool = False, within: Path | None = None) -> bytes:
    """Return the contents of a regular file, as `open_regular` opens it, by the limit of its kind. Raises OSError."""
    limit = LIMITS[kind]
    with open_regular(path, limit, links=links, within=within) as file:
        data = file.read(limit + 1)
    if len(data) > limit:  # it has grown since
        raise UnfitFile(path, "size", f"has more than the {byte_text(limit)} that it may have")
    return data


def map_array(file: IO[bytes], dtype: np.dtype[Any], shape: Sequence[int], offset: int = 0) -> NDArray[Any]:
    """Return an array that lies in a file, from the byte `offset` on, mapped for reading alone; none may be empty."""
    import numpy as np

    return np.memmap(file, dtype=dtype, mode="r", offset=offset, shape=tuple(shape)).view(np.ndarray)


def read_lines(file: BufferedReader) -> Iterator[bytes]:
    """Yield the lines of a file; of one that is too long for any the beginning, which has no line break at its end."""
    while line := file.readline(MAX_LINE):
        yield line
        while len(line) == MAX_LINE and not line.endswith(b"\n"):
            line = file.readline(MAX_LINE)


def read_json(path: Path, kind: Kind, *, within: Path | None = None) -> Any:
    """Return the JSON in a regular file, as `parse_json` does. Raises CheckpointError for what cannot be read."""
    try:
        return parse_json(read_bytes(path, kind, within=within))
    except (OSError, ValueError) as error:
        raise CheckpointError(str(path), why(error)) from error


def why(error: Exception) -> str:
    """Return why a file cannot be read, as a clause fit for a message."""
    if isinstance(error, UnfitFile):
        return str(error)
    reason = (isinstance(error, OSError) and error.strerror) or str(error)
    return f"cannot be read ({safe(reason, 200)})"


def parse_json(data: bytes) -> Any:
    """Return the value of a JSON text in UTF-8.

    Raises ValueError, of one line, for what is none, and for what no file of ours holds: NaN, Infinity and numbers
    beyond every float, keys given twice, half a surrogate pair, more than 32 levels.
    """
    text = data.decode("utf-8")
    try:
        value = _DECODER.decode(text)
    except RecursionError:
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels") from None
    if text.count("[") + text.count("{") > MAX_DEPTH:
        _check_depth(value)
    if "\\u" in text:  # which an escape alone can bring: no UTF-8 holds one
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half of a surrogate pair") from None
    return value


def _no_constant(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"the number {safe(digits)} is out of range")
    return value


def _whole(digits: str) -> int:
    if len(digits) > 309:  # the longest that a float can stand for
        raise ValueError(f"the number {safe(digits)} is out of range")
    return int(digits)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        twice, _ = Counter(name for name, _ in pairs).most_common(1)[0]
        raise ValueError(f"key '{safe(twice)}' is given twice")
    return value


_DECODER = json.JSONDecoder(parse_constant=_no_constant, parse_float=_finite, parse_int=_whole, object_pairs_hook=_once)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        containers = [each for each in level if isinstance(each, dict | list)]
        level = [below for each in containers for below in (each.values() if isinstance(each, dict) else each)]
    if any(isinstance(each, dict | list) for each in level):
        raise ValueError(f"nested deeper than {MAX_DEPTH} levels")
