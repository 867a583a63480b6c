"""Files of strangers: that they are files, of sane size, and JSON where they should be."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import mtmeta

MAX_CONFIG_BYTES = 1_000_000


def check_regular(path: Path) -> None:
    """Raise WeightsError unless `path` is a regular file: others may never end, or block until somebody writes."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        fix = "a folder in Hugging Face layout has one"
        message = f"no such file; {fix}" if missing else f"cannot be read ({error.strerror}); {fix}"
        raise mtmeta.WeightsError(str(path), message) from None
    if not stat.S_ISREG(kind):
        raise mtmeta.WeightsError(str(path), "is not a regular file; fetch it again")


def json_object(path: Path) -> dict[str, Any]:
    """Read the object in config.json. Raises WeightsError if there is none, or if it asks for code."""
    values = _object(path, MAX_CONFIG_BYTES, "config.json", fix="; fetch it again")
    if "auto_map" in values:
        raise mtmeta.WeightsError(str(path), "'auto_map' asks for remote code, which is never run; remove it")
    return values


def json_file(path: Path, most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Read the object of a tokenizer's file of at most `most` bytes, empty without the file. Raises WeightsError."""
    return _object(path, most, path.name) if path.exists() else {}


def _object(path: Path, most: int, kind: str, *, fix: str = "") -> dict[str, Any]:
    check_regular(path)
    if path.stat().st_size > most:
        raise mtmeta.WeightsError(str(path), f"is larger than a {kind} can be")
    try:
        values: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise mtmeta.WeightsError(str(path), f"is not JSON ({mtmeta.safe(str(error))}){fix}") from error
    if not isinstance(values, dict):
        raise mtmeta.WeightsError(str(path), "is not a JSON object")
    return values
