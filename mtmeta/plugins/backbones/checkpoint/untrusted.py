"""plugins/backbones/checkpoint/untrusted.py"""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

import mtmeta

__all__ = ["MAX_CONFIG_BYTES", "check_regular", "json_file", "json_object"]

MAX_CONFIG_BYTES = 1_000_000


def json_object(path: Path) -> dict[str, Any]:
    """The object in config.json. Raises WeightsError if it is none, or asks for code."""
    check_regular(path)
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise mtmeta.WeightsError(str(path), "is larger than a config.json can be")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise mtmeta.WeightsError(str(path), f"is not JSON ({mtmeta.safe(str(error))}); fetch it again") from error
    if not isinstance(values, dict):
        raise mtmeta.WeightsError(str(path), "is not a JSON object")
    if "auto_map" in values:
        raise mtmeta.WeightsError(str(path), "'auto_map' asks for remote code, which is never run; remove it")
    return values


def check_regular(path: Path) -> None:
    """Raise WeightsError unless `path` is a file: what is none may never end, or wait for ever for its writer."""
    try:
        kind = path.stat().st_mode
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | NotADirectoryError)
        fix = "a folder in Hugging Face layout has one"
        message = f"no such file; {fix}" if missing else f"cannot be read ({error.strerror}); {fix}"
        raise mtmeta.WeightsError(str(path), message) from None
    if not stat.S_ISREG(kind):
        raise mtmeta.WeightsError(str(path), "is not a regular file; fetch it again")


MAX_CONFIG_BYTES = 1_000_000


def json_file(path: Path, most: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """The JSON object of a tokenizer's file; empty if it is not there. Raises WeightsError."""
    if not path.exists():
        return {}
    check_regular(path)
    if path.stat().st_size > most:
        raise mtmeta.WeightsError(str(path), f"is larger than a {path.name} can be")
    try:
        values: Any = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise mtmeta.WeightsError(str(path), f"is not JSON ({mtmeta.safe(str(error))})") from error
    if not isinstance(values, dict):
        raise mtmeta.WeightsError(str(path), "is not a JSON object")
    return values
