"""Files of strangers: that they are files, of sane size, and JSON where they should be."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any, BinaryIO

import mtmeta

MAX_CONFIG_BYTES = 1_000_000


def check_regular(path: Path) -> None:
    """Raise WeightsError unless `path` is a regular file: others may never end, or block until somebody writes."""
    open_regular(path).close()


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file to be read in binary. Raises WeightsError for anything else, without waiting for a pipe."""
    try:
        handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        fix = "a folder in Hugging Face layout has one"
        message = f"no such file; {fix}" if missing else f"cannot be read ({error.strerror}); {fix}"
        raise mtmeta.WeightsError(mtmeta.safe(str(path), 300), message) from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise mtmeta.WeightsError(mtmeta.safe(str(path), 300), "is not a regular file; fetch it again")
    return os.fdopen(handle, "rb")


def read_limited(path: Path, most: int, kind: str) -> bytes:
    """Return the bytes of a file that is a `kind` of at most `most` bytes. Raises WeightsError."""
    with open_regular(path) as file:
        data = file.read(most + 1)
    if len(data) > most:
        raise mtmeta.WeightsError(str(path), f"is larger than a {kind} can be")
    return data


def json_file(path: Path, most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read the object of a file of at most `most` bytes, empty without the file. Raises WeightsError."""
    return json_object(read_limited(path, most, path.name), path) if path.exists() else {}


def json_object(data: bytes, path: Path, *, fix: str = "") -> dict[str, Any]:
    """Return the object that `data`, read from `path`, is in JSON. Raises WeightsError."""
    values = json_value(data, path, fix=fix)
    if not isinstance(values, dict):
        raise mtmeta.WeightsError(str(path), "is not a JSON object")
    return values


def json_value(data: bytes, path: Path, *, fix: str = "") -> Any:
    """Return what `data`, read from `path`, is in JSON. Raises WeightsError."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise mtmeta.WeightsError(str(path), f"is not JSON ({mtmeta.safe(str(error))}){fix}") from error
