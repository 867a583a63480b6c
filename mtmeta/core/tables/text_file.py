"""The lines of a text file: refused where they cannot be cut at line ends, and decoded."""

from __future__ import annotations

import codecs
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from mtmeta.core.errors import DataError
from mtmeta.core.tables.bad_rows import BadRowError
from mtmeta.core.wording import did_you_mean, quote

MAX_LINE = 64 * 2**20  # bytes of one line; more is hardly text, and reading it whole could fill the memory
MAX_COMPARED = 1000  # file names compared with a mistyped one
FORMATS = "CSV, TSV, JSONL or Parquet"
PARQUET = b"PAR1"
ARCHIVES = {b"\x1f\x8b": "a gzip file", b"PK\x03\x04": "a zip archive", b"BZh9": "a bzip2 file"}
WIDE = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF32_BE)  # UTF-32-LE starts like UTF-16-LE
# Cutting a file at b"\n" needs ASCII bytes that stand for themselves; hz, utf-7, unicode_escape change ~, + and \.
ASCII_PROBE = 'azAZ09 \t\r\n",;{}[]:~{+AGE-\\n\\u0041'


@contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading bytes. Raises DataError, naming a file beside it that is called nearly so."""
    try:
        # before opening, which would wait for the writer of a pipe
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise DataError(str(path), f"is {'a directory' if path.is_dir() else 'not a file'}, expected {FORMATS}")
        file = open(path, "rb")
    except FileNotFoundError:
        siblings = next(os.walk(path.parent), ("", [], []))[2]  # none, where the directory cannot be read
        near = did_you_mean(path.name, sorted(siblings)[:MAX_COMPARED]) or "; check the path"
        raise DataError(str(path), f"no such file{near}") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(str(path), f"cannot be read ({getattr(error, 'strerror', 'not a valid path')})") from None
    with file:
        try:
            yield file
        except OSError as error:
            raise DataError(str(path), f"cannot be read ({error.strerror})") from None


def check_text(file: BufferedReader, place: str, encoding: str) -> None:
    """Take the byte order mark off the front of a file.

    Raises DataError for an encoding in which ASCII does not stand for itself, and for a file that is no text.
    """
    try:
        splits = ASCII_PROBE.encode("ascii").decode(encoding, "replace") == ASCII_PROBE
    except (LookupError, ValueError):  # ValueError: a NUL or a surrogate in the name
        raise DataError(place, f"unknown encoding {quote(encoding)}; use a codec name such as utf-8") from None
    if not splits:
        raise DataError(place, f"encoding {quote(encoding)} cannot be read line by line; save the file as UTF-8")
    head = file.peek(8)[:8]  # a stream cannot go back
    if kind := next((kind for magic, kind in ARCHIVES.items() if head.startswith(magic)), ""):
        raise DataError(place, f"{kind}, expected {FORMATS}; unpack it first")
    if head.startswith(PARQUET):
        raise DataError(place, "a Parquet file; give it a name that ends in .parquet")
    if head.startswith(WIDE):
        raise DataError(place, "UTF-16 or UTF-32 text; save the file as UTF-8")
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))


def read_lines(file: BufferedReader, place: str, encoding: str) -> Iterator[tuple[int, bytes]]:
    """Yield line numbers and lines without their ends; of an overlong line, just enough for `decode` to refuse it.

    Raises DataError as `check_text` does.
    """
    check_text(file, place, encoding)
    for number, raw in enumerate(iter(lambda: file.readline(MAX_LINE + 2), b""), 1):
        yield number, raw.removesuffix(b"\n").removesuffix(b"\r")
        while len(raw) == MAX_LINE + 2 and not raw.endswith(b"\n"):
            raw = file.readline(MAX_LINE + 2)


def decode(raw: bytes, encoding: str) -> str:
    """Return the text of a line. Raises BadRowError."""
    if len(raw) > MAX_LINE:
        raise BadRowError("line too long", f"line of more than {MAX_LINE} bytes; put one row on a line")
    try:
        text = raw.decode(encoding)
    except UnicodeDecodeError as error:
        raise wrong_byte(raw[error.start], encoding) from None
    if "\0" in text:
        raise BadRowError("NUL byte", "NUL byte; save the file as UTF-8 text")
    return text


def wrong_byte(byte: int, encoding: str) -> BadRowError:
    """Return the refusal of a byte that the encoding does not have."""
    name = codecs.lookup(encoding).name
    fix = "if the file is Latin-1 set encoding: latin-1" if name == "utf-8" else "set the encoding it has"
    return BadRowError("wrong encoding", f"byte 0x{byte:02x} is not {name.upper()}; {fix}")
