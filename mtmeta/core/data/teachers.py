"""What teachers say of a training set: a table by example id, written once, memory-mapped in training.

    FOLDER/teachers/TASK/table.safetensors      outputs, ids, hashes of the texts; facts in its metadata
    FOLDER/teachers/TASK/table.sha256           its hash, as sha256sum writes it

Shapes: `N` examples of the table, `B` of a batch, `C` classes, `T` texts an example.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mtmeta.core.api.objectives import Objective
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.data.tokens import Ids
from mtmeta.core.errors import DataError
from mtmeta.core.recipe.sections import TeacherOptions
from mtmeta.core.storage.atomic import make_folder, staged_folder
from mtmeta.core.storage.disk import disk_errors, write_synced, write_tensors
from mtmeta.core.storage.reading import LIMITS, map_array, open_regular, parse_json, read_bytes, why
from mtmeta.core.wording import quote, safe

TABLE, HASH = "table.safetensors", "table.sha256"
FORMAT = 1
KEY = "mtmeta.teacher"  # of the facts in the metadata
MAX_HEADER = 2**24  # bytes
ARRAYS = {"outputs": ("F32", "<f4"), "texts": ("I64", "<i8"), "offsets": ("I64", "<i8"), "ids": ("U8", "|u1")}
MOST = 2**53
"""Example-forwards; no models together took more, and sums of such numbers stay what a summary may hold."""
SLACK = 1e-3  # by which probabilities of an example may miss 1 in sum: they were computed in fp32


class TableFacts(BaseModel):
    """Where a table comes from."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    task: str
    classes: list[str]
    """Names in the order of the columns; none where outputs are values."""
    objective: str
    """The objective as it describes itself, where there are no classes: values have a range."""
    folds: Annotated[int, Field(ge=0, le=2**31)]
    """Fold models, each of which labelled what it had not seen; 0 for a run that labelled what it was given."""
    seed: Annotated[int, Field(ge=0, le=2**63)]
    """Of the folds; 0 without."""
    weights: list[str]
    """SHA-256 of the weights of every model."""
    train: str
    """SHA-256 of the file that was labelled."""
    training_examples: Annotated[int, Field(ge=0, le=MOST)]
    """Example-forwards that it took to train the models, for all their tasks."""
    format: int = FORMAT


@dataclass(frozen=True)
class Table:
    """A table whose every byte was checked; the arrays are read-only and lie on disk."""

    path: Path
    sha256: str
    facts: TableFacts
    outputs: NDArray[np.float32]
    """Class probabilities [N, C], or values [N]."""
    ids: Ids
    texts: NDArray[np.uint64]
    """A hash of all texts of each example [N]."""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class TeacherRows:
    """What the tables of a task say of a dataset's examples, their mean where there are several."""

    tables: tuple[Table, ...]
    places: tuple[NDArray[np.int64], ...] = field(repr=False)
    """Of each table, the row [N] of every example of the dataset."""

    def rows(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return those of the examples `indices` [B]: class probabilities [B, C], or values [B]."""
        parts = [table.outputs[at[indices]] for table, at in zip(self.tables, self.places, strict=True)]
        if len(parts) == 1:
            return parts[0]
        return np.asarray(np.mean(parts, axis=0, dtype=np.float64), dtype=np.float32)


def table_folder(folder: Path, task: str) -> Path:
    """Return where a folder holds the labels of a task."""
    return folder / "teachers" / task


def description(objective: Objective) -> str:
    """Return an objective as tables tell of it where it has no classes; empty for one that cannot say."""
    text = "" if objective.classes else repr(objective)
    return "" if " at 0x" in text else text


def write_table(folder: Path, facts: TableFacts, data: Dataset, outputs: NDArray[np.float32]) -> str:
    """Write what models say of a dataset, [N, C] or [N]; returns the SHA-256. It is there once it is whole."""
    import torch

    encoded = [_encode(name) for name in data.ids]
    offsets = np.cumsum([0, *map(len, encoded)], dtype=np.int64)
    arrays = {
        "outputs": outputs.astype(np.float32),
        "texts": data.examples.view(np.int64),
        "offsets": offsets,
        "ids": np.frombuffer(b"".join(encoded), dtype=np.uint8),
    }
    tensors = {name: torch.from_numpy(np.array(array)) for name, array in arrays.items()}  # copies: some are read-only
    place = table_folder(folder, facts.task)
    about = {KEY: json.dumps(facts.model_dump(), ensure_ascii=True)}
    with disk_errors(place):
        make_folder(place.parent, folder)
        with staged_folder(place, replace=lambda: True, root=folder) as scratch:
            sha256 = str(write_tensors(scratch / TABLE, tensors, about)["sha256"])
            write_synced(scratch / HASH, _hash_line(sha256))
    return sha256


def read_table(folder: Path, task: str) -> Table | None:
    """Return the labels of a task in a folder, every byte checked; None if there are none.

    Raises DataError for what was damaged since it was written, and for what is no table.
    """
    place = table_folder(folder, task)
    path = place / TABLE
    if not os.path.lexists(place):
        return None
    try:
        recorded = read_bytes(place / HASH, "config", within=folder)
        with open_regular(path, LIMITS["weights"], within=folder) as file:
            header, start = _header(file.read(8), file)
            arrays = {name: _mapped(file, start, header.get(name), *types) for name, types in ARRAYS.items()}
            # before all of it is read, however long it may be
            if start + sum(array.nbytes for array in arrays.values()) != os.fstat(file.fileno()).st_size:
                raise ValueError("arrays of other sizes")
            file.seek(0)
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if recorded != _hash_line(sha256):
                raise ValueError("sha256 mismatch")
        about = header["__metadata__"][KEY]
        facts = TableFacts.model_validate(parse_json(about.encode()))
        table = Table(path, sha256, facts, arrays["outputs"], _ids(arrays), arrays["texts"].view(np.uint64))
        _check(table, task)
    except OSError as error:
        raise DataError(str(error.filename or path), f"{why(error)}; mtmeta teach writes it again") from error
    except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
        reason = str(error) if type(error) is ValueError else "no table of mtmeta teach"
        raise DataError(str(path), f"damaged ({safe(reason, 200)}); mtmeta teach writes it again") from error
    return table


def teachers_of(data: Dataset, objective: Objective, options: TeacherOptions, seed: int) -> TeacherRows:
    """Return what the folders that a recipe of this seed names say of a training set.

    Raises DataError for a folder without labels of the task, and for labels that are not of these examples or classes.
    """
    tables, places = [], []
    for folder in options.folders(seed):
        table = read_table(folder, data.task)
        if table is None:
            message = f"no labels of task '{data.task}' by a teacher"
            raise DataError(
                str(folder), f"{message}; `mtmeta teach RECIPE` writes them (see teachers.{data.task}.runs)"
            )
        for message in _unfit(table, data, objective, options):
            raise DataError(str(table.path), message)
        tables.append(table)
        places.append(_places(table, data))
    return TeacherRows(tuple(tables), tuple(places))


def _unfit(table: Table, data: Dataset, objective: Objective, options: TeacherOptions) -> Sequence[str]:
    """Return what keeps a table from being learned by a task."""
    facts, classes = table.facts, list(objective.classes)
    if facts.classes != classes:
        shown = [", ".join(names[:8]) + ", ..." * (len(names) > 8) or "values" for names in (facts.classes, classes)]
        return [f"says {safe(shown[0])} of task '{data.task}', whose labels are {shown[1]}; name another teacher"]
    if facts.objective != description(objective):
        return [f"is of {safe(facts.objective)}, task '{data.task}' is {description(objective)}; name another teacher"]
    if options.folds is not None and facts.folds != options.folds:
        made = f"by {facts.folds} fold models" if facts.folds else "by a model that may have been trained on it"
        return [f"was labelled {made}, teachers.{data.task}.folds is {options.folds}; give both the same"]
    return []


def _places(table: Table, data: Dataset) -> NDArray[np.int64]:
    """Return the row of each example of a dataset [N], by id and text. Raises DataError for examples that have none."""
    texts = data.examples
    if len(table) == len(data) and np.array_equal(table.texts, texts) and list(table.ids) == list(data.ids):
        return np.arange(len(data))
    rows: dict[tuple[str, int], int] = {}
    for row, key in enumerate(zip(table.ids, table.texts.tolist(), strict=True)):
        rows.setdefault(key, row)
    found = [rows.get(key, -1) for key in zip(data.ids, texts.tolist(), strict=True)]
    missing = [row for row, place in enumerate(found) if place < 0]
    if missing:
        first = data.ids[missing[0]]
        known = any(name == first for name in table.ids)
        reason = f"with id {quote(first)} it has another text" if known else f"none has the id {quote(first)}"
        message = f"lacks {len(missing)} of {len(data)} training examples of task '{data.task}' ({reason})"
        raise DataError(str(table.path), f"{message}; teach with the same training file")
    return np.array(found, dtype=np.int64)


def teaching_cost(teachers: Mapping[str, TeacherRows]) -> int:
    """Return the example-forwards that teachers took, by task: their training, once for each folder, and labelling."""
    training: dict[str, int] = {}
    labelled = 0
    for rows in teachers.values():
        for table in rows.tables:
            # a folder's models were trained once, for all its tasks
            training[os.path.realpath(table.path.parents[2])] = table.facts.training_examples
            labelled += len(table)
    return sum(training.values()) + labelled


def hashes_of(teachers: Mapping[str, TeacherRows]) -> dict[str, list[dict[str, str]]]:
    """Return the `teachers` part of a lock: path and SHA-256 of the tables of each task."""
    tables = {task: rows.tables for task, rows in teachers.items()}
    return {task: [{"table": str(one.path), "sha256": one.sha256} for one in of] for task, of in tables.items()}


# ------------------------------------------------------------------------------------------------ the file


def _encode(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")  # a plugin's own reader may let lone surrogates through


def _hash_line(sha256: str) -> bytes:
    return f"{sha256}  {TABLE}\n".encode()


def _header(prefix: bytes, file: Any) -> tuple[dict[str, Any], int]:
    """Return the header of a safetensors file, and where its data begin. Raises ValueError."""
    length = int.from_bytes(prefix, "little")
    if len(prefix) < 8 or not 2 <= length <= MAX_HEADER:
        raise ValueError("no header")
    header = parse_json(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("no header")
    return header, 8 + length


def _mapped(file: Any, start: int, described: Any, dtype: str, kind: str) -> NDArray[Any]:
    """Return one array of the file, mapped read-only. Raises ValueError for one that does not lie within it."""
    shape, (begin, end) = described["shape"], described["data_offsets"]
    if described["dtype"] != dtype or not all(type(n) is int and n >= 0 for n in (*shape, begin, end)):
        raise ValueError("arrays of other types")
    size = math.prod(shape) * np.dtype(kind).itemsize
    if end - begin != size or start + end > os.fstat(file.fileno()).st_size:
        raise ValueError("arrays of other sizes")
    if not size:
        return np.empty(shape, dtype=kind)
    return map_array(file, np.dtype(kind), shape, offset=start + begin)


def _ids(arrays: Mapping[str, NDArray[Any]]) -> Ids:
    data, offsets = arrays["ids"], arrays["offsets"]
    whole = offsets.ndim == 1 and len(offsets) and not offsets[0] and offsets[-1] == len(data)
    if data.ndim != 1 or not whole or (offsets[1:] < offsets[:-1]).any():  # no difference, which may be beyond an int64
        raise ValueError("ids that do not fit together")
    ids = Ids(data, offsets)
    deque(ids, maxlen=0)  # each is text, or this is a UnicodeDecodeError
    return ids


def _check(table: Table, task: str) -> None:
    """Raise ValueError for a table whose parts do not fit together, or whose numbers mean nothing."""
    facts, outputs = table.facts, table.outputs
    if facts.format != FORMAT:
        raise ValueError(f"format {facts.format}, this mtmeta reads {FORMAT}")
    if facts.task != task:
        raise ValueError(f"of task {facts.task!r}, not '{task}'")
    shape = (len(table), len(facts.classes)) if facts.classes else (len(table),)
    if outputs.shape != shape or table.texts.shape != (len(table),) or not len(table):
        raise ValueError("arrays of other sizes")
    if not np.isfinite(outputs).all():
        raise ValueError("numbers that are not finite")
    if facts.classes and (outputs.min() < 0 or np.abs(outputs.sum(axis=1, dtype=np.float64) - 1).max() > SLACK):
        raise ValueError("numbers that are no probabilities")
