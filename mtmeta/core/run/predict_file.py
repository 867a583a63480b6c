"""`mtmeta predict`: texts of a file or a pipe to predictions in their order, as they come, in constant memory."""

from __future__ import annotations

import csv
import json
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple

from mtmeta.core.api.contracts import Task
from mtmeta.core.data.examples import bad_rows
from mtmeta.core.errors import DataError, MachineError, UsageError
from mtmeta.core.machine import trim_memory
from mtmeta.core.run.predictor import BLOCK, Prediction, Predictor, Text
from mtmeta.core.storage.atomic import atomic_file
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.core.wording import quote

TRIM_EVERY = 16 * BLOCK  # texts, some seconds of work; trimming takes milliseconds
JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".parquet", *JSON_LINES)


class Item(NamedTuple):
    """One text or pair to predict."""

    id: str
    text: Text


def predict_file(
    predictor: Predictor,
    name: str,
    *,
    source: str,
    target: str = "-",
    columns: Sequence[str] = (),
    form: str | None = None,
    skip_bad: bool = False,
    warn: Callable[[str], None] = lambda text: None,
) -> int:
    """Write a prediction for each text of `source`, a path or `-`, to `target`, a path or `-`; returns how many.

    A file named .csv, .tsv, .jsonl, .ndjson or .parquet, and whatever `columns` are given for, is a table; all else is
    one text a line, pairs with a tab between. `form` is csv or jsonl; by default as `target` is named. Raises DataError
    at the first row that cannot be used, after the predictions of those before it, or leaves such rows out and warns.
    """
    task = predictor.task(name)
    form = form or ("jsonl" if target.lower().endswith(JSON_LINES) else "csv")
    if form not in ("csv", "jsonl"):
        raise UsageError("--format", f"must be csv or jsonl, found {quote(form)}")
    if "-" not in (source, target) and _same(source, target):
        raise UsageError("--output", "is the file that is read; give another")
    wanted = "two columns, one for each text" if len(task.columns) == 2 else "one column"
    if columns and len(columns) != len(task.columns):
        raise UsageError("--column", f"task takes {wanted}, found {len(columns)}")
    piped = source == "-"
    reader = _Reader(task, _file(source, predictor.dialect(name), table=bool(columns)), columns, skip_bad=skip_bad)
    blocks = _as_they_come(reader.items()) if piped else _blocks(reader.items())
    done = 0
    with _writer(target) as out:
        write = _Table(out, task.objective.classes) if form == "csv" else _Lines(out)
        first = next(blocks, [])  # an input that cannot be read at all leaves nothing behind, not even a header
        write.begin()
        for block in chain([first], blocks) if first else ():
            for item, prediction in zip(block, predictor.block(name, [i.text for i in block], done), strict=True):
                write(item.id, prediction)
            out.flush()
            if done // TRIM_EVERY < (done + len(block)) // TRIM_EVERY:
                trim_memory()
            done += len(block)
    if skipped := reader.file.bad.total:
        row = reader.file.bad[0]
        warn(f"{reader.file.path}: skipped {skipped} bad rows (the first is line {row.line}: {row.reason})")
    return done


# ----------------------------------------------------------------------------------------------------------- reading


def _file(source: str, dialect: Dialect, *, table: bool) -> DataFile:
    if source != "-":
        return DataFile(source, dialect)
    if sys.stdin is None:
        raise MachineError("stdin", "is closed; name a file with --input")
    # a descriptor of our own: at the end of the process nobody may wait for a lock that the reading thread holds
    stream = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    json_lines = table and stream.peek(1)[:1] == b"{"
    return DataFile("stdin.jsonl" if json_lines else "stdin", dialect, stream=stream)


class _Reader:
    """The texts of a file, and its rows that cannot be used."""

    def __init__(self, task: Task, file: DataFile, columns: Sequence[str], *, skip_bad: bool) -> None:
        self.file = file
        self._pair = task.inputs != "single"
        self._table = bool(columns) or file.path.suffix.lower() in TABLES
        self._columns = tuple(columns) or task.columns
        self._strict = not skip_bad

    def items(self) -> Iterator[Item]:
        """Yield the texts that can be used, in order; raises DataError at the first bad row if strict."""
        for number, name, texts in self._rows() if self._table else self._lines():
            self._check()
            if texts is None:
                self.file.bad.add(number, "one field, expected 2 with a tab between", "wrong number of fields")
            elif not all(text.strip() for text in texts):
                self.file.bad.add(number, "text is empty", "text is empty")
                texts = None
            self._check()
            if texts is None:
                continue
            yield Item(name, (texts[0], texts[1]) if self._pair else texts[0])
        self._check()

    def _check(self) -> None:
        if self._strict and (bad := self.file.bad):
            raise bad_rows(str(self.file.path), bad, bad.total, "give --skip-bad-rows")

    def _rows(self) -> Iterator[tuple[int, str, tuple[str, ...] | None]]:
        for row in self.file.rows(*self._columns):
            yield row.line, row.id, tuple(row[name] for name in self._columns)

    def _lines(self) -> Iterator[tuple[int, str, tuple[str, ...] | None]]:
        for number, line in self.file.texts():
            if not self._pair:
                yield number, str(number), (line,)
                continue
            parts = tuple(line.split("\t"))
            yield number, str(number), parts if len(parts) == 2 else None


def _blocks(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Yield blocks of items; those before an error come first."""
    while True:
        block: list[Item] = []
        try:
            for item in islice(items, BLOCK):
                block.append(item)  # one by one: those before an error are kept
        except DataError:
            if block:
                yield block
            raise
        if not block:
            return
        yield block


def _as_they_come(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Yield blocks of the items that have come in so far, at least one and at most BLOCK.

    Whoever writes to a pipe slowly, or waits for an answer before going on, is not kept waiting.
    """
    waiting: queue.Queue[Item | BaseException | None] = queue.Queue(2 * BLOCK)

    def read() -> None:
        try:
            for item in items:
                waiting.put(item)
            waiting.put(None)
        except BaseException as error:
            waiting.put(error)

    threading.Thread(target=read, name="mtmeta-predict-input", daemon=True).start()
    while True:
        block: list[Item] = []
        end: Item | BaseException | None = waiting.get()
        while isinstance(end, Item):
            block.append(end)
            if len(block) == BLOCK:
                break
            try:
                end = waiting.get_nowait()
            except queue.Empty:
                break
        if block:
            yield block
        if isinstance(end, Item):
            continue
        if end is not None:
            raise end
        return


# ----------------------------------------------------------------------------------------------------------- writing


class _Table:
    """CSV: id, label, score, and a column of probabilities for each class; id and score for a task with numbers."""

    def __init__(self, out: IO[str], classes: Sequence[str]) -> None:
        self._classes = classes
        self._writer = csv.writer(out, lineterminator="\n")

    def begin(self) -> None:
        names = [f"probability_{name}" for name in self._classes]
        self._writer.writerow(["id", "label", "score", *names] if names else ["id", "score"])

    def __call__(self, name: str, prediction: Prediction) -> None:
        score = "" if prediction.score is None else f"{prediction.score:.6g}"
        if not self._classes:
            self._writer.writerow([name, score])
            return
        chances = prediction.probabilities or {}
        shown = [f"{chances[c]:.6g}" if c in chances else "" for c in self._classes]
        self._writer.writerow([name, prediction.label, score, *shown])


class _Lines:
    """JSONL: an object a line, with those of id, label, score, probabilities that there are."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out

    def begin(self) -> None:
        pass

    def __call__(self, name: str, prediction: Prediction) -> None:
        self._out.write(json.dumps({"id": name, **prediction.json()}, ensure_ascii=False) + "\n")


@contextmanager
def _writer(target: str) -> Iterator[IO[str]]:
    """Open standard output, or a file that is there once it is whole."""
    if target == "-":
        if sys.stdout is None:
            raise MachineError("stdout", "is closed; name a file with --output")
        yield sys.stdout
        return
    path = Path(target)
    try:
        if path.is_dir():
            raise UsageError("--output", "is a directory; name a file")
        with atomic_file(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as out:
            yield out
    except OSError as error:
        raise MachineError(str(path), f"cannot be written ({error.strerror})") from error


def _same(one: str, other: str) -> bool:
    with suppress(OSError):
        return os.path.samefile(one, other)
    return False
