"""The key of a tokenized file: a hash of everything that decides which arrays it becomes."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from mtmeta.core.api.backbone import LoadedBackbone, LoadedTokenizer
from mtmeta.core.api.contracts import Task
from mtmeta.core.api.losses import ClassLoss
from mtmeta.core.registry.source import files_of
from mtmeta.core.tables.data_file import DataFile

FORMAT = 4  # of the arrays and their manifest; raise it when core makes others of the same file
CORE = Path(__file__).parents[1]
# the code that decides; the version says enough but to its developers
READERS = (CORE / "data/examples.py", CORE / "data/tokens.py", *sorted((CORE / "tables").glob("*.py")))


def cache_key(
    task: Task, file: DataFile, sha256: str, backbone: LoadedBackbone | LoadedTokenizer, *, open_labels: bool = False
) -> str | None:
    """Return the key, or None where something that decides the arrays cannot be named, so that nothing may be kept.

    The file counts by its bytes (`sha256`) and its name, which says how it is written; the task by its class, the
    source of that, and the options it adds to those every task has; the tokenizer by its files and source. Rows that
    are bad are stored, not refused, so `on_bad_rows` has no part in it, and nor have batch size and loss.
    """
    tokenizer, files = backbone.tokenizer, backbone.files
    if not files:
        return None
    vocabulary = {name: files[name] for name in files if "tokenizer.json" not in files or name == "tokenizer.json"}
    parts = [
        *(FORMAT, version("mtmeta"), version("tokenizers")),
        *(sha256, file.path.name, file.dialect, *([] if file.table is None else [f"#{file.table}"])),
        *([_installed("pyarrow")] if file.is_parquet else []),
        *(["open labels"] if open_labels else []),
        *([] if task.long is None else [task.long]),
        *(task.name, task.inputs, task.objective, _options(task)),
        *(backbone.max_length, tokenizer.prefix, tokenizer.middle, tokenizer.suffix),
        [(name, hashlib.sha256(data).hexdigest()) for name, data in vocabulary.items()],
    ]
    text = "\x1f".join(map(repr, parts))
    if " at 0x" in text:  # an object that does not say what it holds
        return None
    try:
        sources: list[object] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in READERS]
    except OSError:
        return None
    parts_of_task = [one for part in task.parts.values() for one in (part, part.objective)]
    for part in (task, task.objective, tokenizer, *parts_of_task):
        for kind in type(part).__mro__[:-1]:
            if "<locals>" in kind.__qualname__ or not (files_of_class := list(_sources(kind))):
                return None  # a function's class may depend on what the function was given
            sources.append((kind.__module__, kind.__qualname__, files_of_class))
    return hashlib.sha256(f"{text}\x1f{sources!r}".encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _options(task: Task) -> list[tuple[str, object]]:
    """Return the options of a task that decide what it reads; of a task with parts those of each in their place."""
    common = {option.name for option in fields(Task)}
    options = [(option.name, getattr(task, option.name)) for option in fields(task) if option.name not in common]
    options = [(name, value) for name, value in options if not isinstance(value, ClassLoss)]
    options = [(name, value) for name, value in options if not task.parts or value != task.parts]
    return options + [(name, (part.name, _options(part))) for name, part in task.parts.items()]


def _sources(kind: type) -> Iterator[str]:
    """Yield the SHA-256 of each file that the code of a class is in."""
    if kind.__module__ in sys.builtin_module_names:
        yield "built in"
        return
    with suppress(OSError):
        for each in files_of(kind.__module__):
            yield f"{each.name} {hashlib.sha256(each.read_bytes()).hexdigest()}"


def _installed(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # whoever reads the file says so
        return ""
