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
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, NamedTuple, cast

from mtmeta.core.api.contracts import Task, count_texts
from mtmeta.core.api.multi_output import MultiOutput
from mtmeta.core.api.objectives import Objective
from mtmeta.core.data.examples import bad_rows
from mtmeta.core.errors import DataError, MachineError, UsageError
from mtmeta.core.machine import Heap
from mtmeta.core.run.predictor import BLOCK, Prediction, Predictor, Text
from mtmeta.core.storage.outputs import output_file
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.core.tables.word_lines import has_words_in_columns
from mtmeta.core.wording import plural, quote, visible

JSON_LINES = (".jsonl", ".ndjson")
TABLES = (".csv", ".tsv", ".parquet", ".json", *JSON_LINES)
Write = Callable[[str, Prediction], None]


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
    abstain: float | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> int:
    """Write a prediction for each text of `source`, a path or `-`, to `target`, a path or `-`; returns how many.

    A file named .csv, .tsv, .json, .jsonl, .ndjson or .parquet, a table in a JSON file, whatever `columns` are given
    for, and a file of any other name whose header has the task's columns, as one that it was trained on, is a table;
    all else is one text a line, pairs with a tab between. `form` is csv or jsonl; by default as `target` is named.
    No label is given where the highest probability is below `abstain`; a csv has a column `abstained` then.
    Raises DataError at the first row that cannot be used, after the predictions of those before it, or leaves such rows
    out and warns.
    """
    task = predictor.task(name)
    predictor.check_threshold(name, abstain)
    form = form or ("jsonl" if target.lower().endswith(JSON_LINES) else "csv")
    if form not in ("csv", "jsonl"):
        raise UsageError("--format", f"must be csv or jsonl, found {quote(form)}")
    with suppress(OSError):  # of files that are not there
        if "-" not in (source, target) and os.path.samefile(DataFile(source), target):
            raise UsageError("--output", "is the file that is read; give another")
    if columns and len(columns) != len(task.columns):
        named = " and ".join(map(quote, task.columns))
        wanted = "one column" if len(task.columns) == 1 else f"{len(task.columns)} columns, in the place of {named}"
        raise UsageError("--column", f"task takes {wanted}, found {len(columns)}")
    file = _file(source, predictor.dialect(name), table=bool(columns))
    items = _read(task, file, columns, strict=not skip_bad, warn=warn)
    blocks = _as_they_come(items) if source == "-" else _blocks(items)
    done, heap = 0, Heap()
    with _writer(target) as out:
        first = next(blocks, [])  # an input that cannot be read at all leaves nothing behind, not even a header
        table = form == "csv"
        write = _table(out, task.objective, told=abstain is not None) if table else _json_lines(out)
        for block in chain([first], blocks) if first else ():
            predictions = predictor.block(name, [item.text for item in block], done, abstain)
            for item, prediction in zip(block, predictions, strict=True):
                write(item.id, prediction)
            out.flush()
            heap.after_step()
            done += len(block)
    for note in file.notes:
        warn(f"{file.place}: {note}")
    if skipped := file.bad.total:
        warn(f"{file.place}: skipped {skipped} bad rows (the first is line {file.bad[0].line}: {file.bad[0].reason})")
    return done


def _file(source: str, dialect: Dialect, *, table: bool) -> DataFile:
    if source != "-":
        return DataFile(source, dialect)
    if sys.stdin is None:
        raise MachineError("stdin", "is closed; name a file with --input")
    # a descriptor of our own: at the end of the process nobody may wait for a lock that the reading thread holds
    stream = os.fdopen(os.dup(sys.stdin.fileno()), "rb")
    json_lines = table and stream.peek(1).lstrip()[:1] == b"{"
    return DataFile("stdin.jsonl" if json_lines else "stdin", dialect, stream=stream)


def _read(
    task: Task, file: DataFile, columns: Sequence[str], *, strict: bool, warn: Callable[[str], None]
) -> Iterator[Item]:
    """Return the texts of a file: of a table, of data files of words, or a text a line. Warns of what it guessed."""
    is_table = bool(columns) or file.table is not None or file.path.suffix.lower() in TABLES
    if not is_table and _has_columns(file, task):
        is_table = True
        named = " and ".join(map(quote, task.columns))
        why = f"its header names {named}" if file.dialect.header else "it has tabs, as data files of the task"
        warn(f"{file.place}: is read as a table, for {why}; - with --input takes each line as a text")
    if not columns and task.objective.labelled == "words" and has_words_in_columns(file.path):
        warn(
            f"{file.place}: is read as data files of the task, a word a line; - with --input takes each line as a text"
        )
        return _tagged(task, file, strict=strict)
    return _items(task, file, columns or task.columns if is_table else (), strict=strict)


def _has_columns(file: DataFile, task: Task) -> bool:
    """Return whether a file that is not named as a table begins with a header that has the task's columns.

    Where data files have none, with tabs between as many fields.
    """
    if not file.path.is_file():  # a pipe is read once
        return False
    with suppress(DataError):  # of what is no table
        if not file.dialect.header and not any("\t" in line for _, line in islice(file.texts(), 1)):
            return False
        return set(task.columns) <= set(file.columns())
    return False


def _items(task: Task, file: DataFile, columns: Sequence[str], *, strict: bool) -> Iterator[Item]:
    """Yield the texts of a table's columns, or of lines where none are named, in order.

    Raises DataError at the first bad row if `strict`.
    """
    count, bad = count_texts(task), file.bad
    check = partial(_check, file, strict)
    for number, name, texts in _rows(task, file, columns) if columns else _lines(file, count > 1):
        check()
        if columns and len(texts) != count:
            reason = f"{plural(len(texts) - 1, 'choice')}, the task takes {count - 1} in every row"
            bad.add(number, reason, "other")
        elif len(texts) != count:
            found, tabs = "one field" if len(texts) == 1 else f"{len(texts)} fields", "a tab" if count == 2 else "tabs"
            bad.add(number, f"{found}, expected {count} with {tabs} between", "wrong number of fields")
        elif not all(text.strip() for text in texts):
            bad.add(number, "text is empty", "text is empty")
        else:
            yield Item(name, tuple(texts) if count > 1 else texts[0])
        check()
    check()


def _tagged(task: Task, file: DataFile, *, strict: bool) -> Iterator[Item]:
    """Yield the texts of a file of a word a line, as the task reads it. Raises DataError as `_items` does."""
    for example in task.read(file):
        _check(file, strict)
        yield Item(example.id or str(example.line), example.text)
    _check(file, strict)


def _check(file: DataFile, strict: bool) -> None:
    if strict and file.bad:
        raise bad_rows(file.place, file.bad, file.bad.total, "give --skip-bad-rows")


def _rows(task: Task, file: DataFile, columns: Sequence[str]) -> Iterator[tuple[int, str, Sequence[str]]]:
    for row in file.records(*columns):
        try:
            texts = task.texts_of({own: row[name] for own, name in zip(task.columns, columns, strict=True)})
        except ValueError as error:
            file.bad.add(row.line, str(error), "other")
            continue
        yield row.line, row.id, texts


def _lines(file: DataFile, pair: bool) -> Iterator[tuple[int, str, Sequence[str]]]:
    for number, line in file.texts():
        parts = line.split("\t") if pair else [line]
        yield number, str(number), parts


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
        with suppress(queue.Empty):
            while isinstance(end, Item):
                block.append(end)
                if len(block) == BLOCK:
                    break
                end = waiting.get_nowait()
        if block:
            yield block
        if isinstance(end, BaseException):
            raise end
        if end is None:
            return


def _table(out: IO[str], objective: Objective, *, told: bool) -> Write:
    """CSV: id, label, score, and a column of probabilities for each class; id and score for a task with numbers.

    Of label sets `label` holds all that data files would have there, and there is no score; of several numbers a text
    each has a column. Of several labels each has a column of its name, and one for the probability of a class. Whether
    an answer is an abstention is `told` in a column of its own, as yes or no; then its label is empty.
    """
    writer = csv.writer(out, lineterminator="\n")
    if isinstance(objective, MultiOutput):
        names = [column for name, each in objective.objectives.items() for column in _columns_of(name, each)]
        writer.writerow(["id", *names])
    else:
        own = (["label"] if objective.classes else []) + (["abstained"] if told else [])
        score = [] if objective.labelled in ("row", "words") else ["score"]
        chances = [] if objective.labelled == "words" else [f"probability_{name}" for name in objective.classes]
        writer.writerow(["id", *own, *score, *chances, *(f"score_{name}" for name in objective.targets)])

    def write(name: str, prediction: Prediction) -> None:
        if isinstance(objective, MultiOutput):
            answers = prediction.outputs or {}
            shown = [cell for key, each in objective.objectives.items() for cell in _cells_of(each, answers[key])]
        else:
            shown = _cells(objective, prediction, told=told)
        writer.writerow([name, *shown])

    return write


def _cells(objective: Objective, prediction: Prediction, *, told: bool) -> list[str]:
    """Return what stands behind the id of a prediction."""
    classes, chances = objective.classes, prediction.probabilities or {}
    given = ([_label(objective, prediction)] if classes else []) + (
        ["yes" if prediction.abstained else "no"] if told else []
    )
    score = "" if prediction.score is None else f"{prediction.score:.6g}"
    shown = [] if objective.labelled == "words" else [f"{chances[c]:.6g}" if c in chances else "" for c in classes]
    several = [f"{value:.6g}" for value in (prediction.scores or {}).values()]
    return [*given, *([] if objective.labelled in ("row", "words") else [score]), *shown, *several]


def _label(objective: Objective, prediction: Prediction) -> str:
    """Return a label as data files write it, empty for an abstention."""
    if prediction.words is not None:
        return " ".join(prediction.labels or ())
    if prediction.labels is not None:
        return objective.show([float(one in prediction.labels) for one in objective.classes])
    return prediction.label or ""


def _columns_of(name: str, objective: Objective) -> list[str]:
    """Return the columns of one of several labels."""
    if not objective.classes:
        return [f"{name}_{target}" for target in objective.targets] or [name]
    return [name, f"score_{name}"] if objective.labelled == "one" else [name]


def _cells_of(objective: Objective, prediction: Prediction) -> list[str]:
    """Return what stands in the columns of one of several labels."""
    score = [] if prediction.score is None else [f"{prediction.score:.6g}"]
    if not objective.classes:
        return [f"{value:.6g}" for value in (prediction.scores or {}).values()] or score
    return [_label(objective, prediction), *(score or [""] * (objective.labelled == "one"))]


def _json_lines(out: IO[str]) -> Write:
    """JSONL: an object a line, with those of id, label, score, probabilities that there are."""

    def write(name: str, prediction: Prediction) -> None:
        out.write(json.dumps({"id": name, **prediction.json()}, ensure_ascii=False) + "\n")

    return write


class _Terminal:
    """Standard output where somebody looks at it: ids and labels cannot command the terminal there."""

    flush = staticmethod(lambda: sys.stdout.flush())

    @staticmethod
    def write(text: str) -> int:
        return sys.stdout.write(visible(text))


@contextmanager
def _writer(target: str) -> Iterator[IO[str]]:
    """Open standard output, a file that is there once it is whole, or a pipe or device that is written into."""
    if target == "-":
        if sys.stdout is None:
            raise MachineError("stdout", "is closed; name a file with --output")
        yield cast("IO[str]", _Terminal()) if sys.stdout.isatty() else sys.stdout
        return
    path = Path(target)
    try:
        if path.is_dir():
            raise UsageError("--output", "is a directory; name a file")
        with output_file(path, "w", encoding="utf-8", errors="surrogatepass", newline="") as out:
            yield out
    except BrokenPipeError:
        raise  # whoever reads the pipe has enough
    except OSError as error:
        raise MachineError(str(path), f"cannot be written ({error.strerror})") from error
