"""Rows from memory as files of a run directory, named by their content: `rows/TASK-SPLIT-HASH.jsonl`.

They are written once, as they come. So a run from memory is one from files ever after: its recipe names them, its lock
has their hashes, it goes on where it was cut, and every command finds its data, wherever the directory goes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mtmeta.core.errors import DataError, RunInUse, UsageError
from mtmeta.core.recipe.reader import ROWS, RUN_RECIPE
from mtmeta.core.run.directory import ROW_FILE
from mtmeta.core.storage.atomic import clear_leftovers, make_folder, remove_entry, unnamed_file
from mtmeta.core.storage.disk import disk_errors, fingerprint
from mtmeta.core.wording import safe

ENCODE = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode
BLOCK = 2**16  # bytes gathered before they are written


class RowFiles:
    """The files of rows of a run directory. Those that are written stay only if a run comes of them."""

    def __init__(self, run: Path) -> None:
        self.run, self.folder = run, run / ROWS
        self._made: list[Path] = []
        self._folders = [path for path in (self.folder, *self.folder.parents) if not path.exists()]

    def write(self, task: str, split: str, rows: Iterable[Mapping[str, Any]]) -> str:
        """Write the rows of a split, as they come, and return the name of the file. Raises MtmetaError."""
        if self.run.exists() and not self.run.is_dir():
            raise UsageError(str(self.run), "is a file; choose another directory for the run")
        with disk_errors(self.folder):
            make_folder(self.run)
            make_folder(self.folder, self.run)
            clear_leftovers(self.folder, self.run)
            with unnamed_file(self.folder / f"{task}-{split}", self.run) as (file, settle):
                digest = _write(file, rows, f"tasks.{task}.{split}")
                path = self.folder / f"{task}-{split}-{digest[:16]}.jsonl"
                # the same rows as before are left as they are: what is damaged is replaced
                if not path.is_file() or fingerprint(path)["sha256"] != digest:
                    self._made.append(path)
                    settle(path.name)
        return path.name

    @contextmanager
    def kept_if_used(self) -> Iterator[None]:
        """Within, a run may begin; what it does not name of the rows, and all if none begins, goes at the end."""
        try:
            yield
        except RunInUse:
            raise  # by a process that may have the same rows
        except BaseException:
            self._tidy()
            raise
        self._tidy()

    def _tidy(self) -> None:
        recipe, unused = self.run / RUN_RECIPE, self._made
        with suppress(OSError, ValueError):  # what cannot be removed does no harm
            if recipe.exists():
                named = recipe.read_text(encoding="utf-8")
                there = [path for path in self.folder.iterdir() if ROW_FILE.fullmatch(path.name)]
                unused = [path for path in there if path.name not in named]
            for path in unused:
                remove_entry(path, self.run)
            for folder in self._folders:  # from the inside out, as far as they are empty
                if not any(folder.iterdir()):
                    remove_entry(folder)


def _write(file: Any, rows: Iterable[Mapping[str, Any]], place: str) -> str:
    digest, lines, size = hashlib.sha256(), list[bytes](), 0

    def put() -> None:
        data = b"".join(lines)
        digest.update(data)
        file.write(data)
        lines.clear()

    for number, row in enumerate(rows, 1):
        try:
            lines.append(ENCODE(row).encode() + b"\n")
        except UnicodeEncodeError:
            raise DataError(place, f"row {number} holds a lone surrogate, which no file can; remove it") from None
        except (TypeError, ValueError) as error:
            raise DataError(place, f"row {number} cannot be written ({safe(str(error), 200)})") from None
        size += len(lines[-1])
        if size >= BLOCK:
            put()
            size = 0
    put()
    return digest.hexdigest()
