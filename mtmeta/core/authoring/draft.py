"""`mtmeta new recipe`: data files -> guesses about them -> a commented recipe that runs at once."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mtmeta.core.api.backbone import LoadedTokenizer
from mtmeta.core.authoring.column_roles import find_roles, ranking_columns
from mtmeta.core.authoring.recipe_text import recipe_text, scalar
from mtmeta.core.authoring.settings_guess import LENGTHS, guess_settings, inner_steps
from mtmeta.core.authoring.table_profile import TableProfile, looks_like_header, profile_table
from mtmeta.core.authoring.tagged_files import guess_tagging
from mtmeta.core.authoring.task_guess import Choice, TaskFiles, TaskGuess, guess_ranking, guess_task
from mtmeta.core.errors import DataError, MtmetaError, RecipeError, UsageError, raise_all
from mtmeta.core.recipe.label_names import read_label_names
from mtmeta.core.recipe.reader import TASK_NAME, check_recipe_text
from mtmeta.core.recipe.schema import schema_text
from mtmeta.core.recipe.shipped import write_recipe
from mtmeta.core.recipe.validation import convert
from mtmeta.core.registry.registry import Registry
from mtmeta.core.tables.data_file import parted
from mtmeta.core.tables.word_lines import has_words_with_tags
from mtmeta.core.wording import did_you_mean, quote, safe

Profiles = tuple[TableProfile, TableProfile | None, TableProfile | None]
"""Of the training file, the dev file and the test file."""
LABEL_FORMS = "NAME=0:sadness,1:joy or NAME=FILE with the names of labels"
FORMS = "NAME=TRAIN, NAME=TRAIN,DEV or NAME=TRAIN,DEV,TEST"


@dataclass(frozen=True)
class Draft:
    """A recipe as text, and the guesses that it is written by."""

    text: str
    tasks: tuple[TaskGuess, ...]
    settings: tuple[Choice, ...]

    def lines(self, path: Path) -> Iterator[str]:
        """Yield a line for each guess, with its reason, and one that says where the recipe is."""
        for task in self.tasks:
            yield f"{task.name}:"
            for choice in task.choices:
                yield f"  {choice.key}: {safe(scalar(choice.value), 100)}  ({safe(choice.why, 200)})"
            yield from (f"  {safe(note, 300)}" for note in task.notes)
        for choice in self.settings:
            yield f"{choice.key}: {scalar(choice.value)}  ({safe(choice.why, 200)})"
        shown = safe(shlex.quote(str(path)), 200)
        yield f"wrote {shown}; look at it, then: mtmeta validate --data {shown}, mtmeta run {shown}"

    def document(self, path: Path) -> dict[str, Any]:
        """Return the same as plain data, for `--json`."""

        def plain(choices: Sequence[Choice]) -> dict[str, Any]:
            return {choice.key: {"value": choice.value, "why": choice.why} for choice in choices}

        tasks = {task.name: {"options": plain(task.choices), "notes": list(task.notes)} for task in self.tasks}
        return {"recipe": str(path), "tasks": tasks, "settings": plain(self.settings)}


def parse_tasks(given: Sequence[str]) -> dict[str, TaskFiles]:
    """Parse `NAME=TRAIN[,DEV[,TEST]]` into the files of each task; NAME=TRAIN,,TEST has no dev file.

    A name that has a comma itself is one where such a file lies there. Raises UsageError.
    """
    tasks: dict[str, TaskFiles] = {}
    for text in given:
        name, _, files = text.partition("=")
        if not name or not files:
            raise UsageError(f"--task {quote(text)}", f"expected {FORMS}")
        if not TASK_NAME.fullmatch(name):
            message = f"task name {quote(name)} is not allowed; use a letter, then at most 63 of a-z 0-9 _ -"
            raise UsageError("--task", message)
        if name in tasks:
            raise UsageError("--task", f"names {quote(name)} twice; give each task a name of its own")
        parts = [files] if os.path.exists(files) else files.split(",")
        if len(parts) > 3 or not parts[0] or (len(parts) > 1 and not parts[-1]):
            raise UsageError(f"--task {quote(text)}", f"expected {FORMS}")
        train, dev, test = [*parts, "", ""][:3]
        tasks[name] = (train, dev or None, test or None)
    if not tasks:
        raise UsageError("--task", f"is needed at least once: {FORMS}")
    return tasks


def parse_ids(given: Sequence[str]) -> dict[str, str]:
    """Parse `NAME=COLUMN` into the column that names examples of each task. Raises UsageError."""
    ids = {}
    for text in given:
        name, _, column = text.partition("=")
        if not name or not column.strip():
            raise UsageError(f"--id {quote(text)}", "expected NAME=COLUMN")
        ids[name] = column.strip()
    return ids


def parse_columns(given: Sequence[str]) -> dict[str, list[str]]:
    """Parse `NAME=TEXT[,PAIR],LABEL` into the columns of each task. Raises UsageError."""
    columns = {}
    for text in given:
        name, _, names = text.partition("=")
        parts = [part.strip() for part in names.split(",")]
        if not name or len(parts) not in (2, 3) or not all(parts) or len(set(parts)) < len(parts):
            raise UsageError(f"--columns {quote(text)}", "expected NAME=TEXT,LABEL or NAME=TEXT,PAIR,LABEL")
        columns[name] = parts
    return columns


def parse_labels(given: Sequence[str]) -> dict[str, dict[str, str]]:
    """Parse `NAME=LABEL:NAME,...` or `NAME=FILE` into the names of each task's labels. Raises UsageError."""
    labels: dict[str, dict[str, str]] = {}
    for text in given:
        place = f"--labels {quote(text)}"
        task, _, names = text.partition("=")
        parts = [part.partition(":") for part in names.split(",")]
        if not task or not names.strip():
            raise UsageError(place, f"expected {LABEL_FORMS}")
        if ":" not in names or os.path.exists(names):
            try:
                labels[task] = read_label_names(Path(names))
            except ValueError as error:
                raise UsageError(place, f"{names}: {error}; expected {LABEL_FORMS}") from None
            continue
        pairs = [(label.strip(), name.strip()) for label, _, name in parts]
        if not all(label and name for label, name in pairs) or len(dict(pairs)) < max(2, len(pairs)):
            raise UsageError(place, f"expected {LABEL_FORMS}, every label once")
        labels[task] = dict(pairs)
    return labels


def draft_recipe(
    path: Path,
    tasks: Mapping[str, TaskFiles],
    registry: Registry,
    *,
    columns: Mapping[str, Sequence[str]] = {},
    ids: Mapping[str, str] = {},
    labels: Mapping[str, Mapping[str, str]] = {},
    algorithm: str | None = None,
    weights: str = "embedded",
    data_root: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Draft:
    """Read every file and write the recipe to `path`. Raises MtmetaError, and then writes nothing.

    Beside it goes the JSON Schema that its first line names. `weights` are those of backbone `bert`, or of another one
    whose name stands before them, as in `hf:FOLDER`. `columns`, `ids` and `labels`, names by label, are by task.

    A file is looked for in `data_root`, as a run would, and else from here.
    """
    if path.is_dir():
        raise UsageError(str(path), "is a directory; name a file, such as my.yaml")
    if os.path.lexists(path) and not force:
        raise UsageError(str(path), "is there already; --force replaces it, or name another file")
    for option, named in (("--columns", columns), ("--id", ids), ("--labels", labels)):
        for name in named:
            if name not in tasks:
                raise UsageError(option, f"names no task: {quote(name)}{did_you_mean(name, tasks)}")
    kind = registry.get("algorithm", algorithm or ("individual" if len(tasks) == 1 else "joint"), "--algorithm")
    backbone, weights = _backbone(registry, weights)
    tokens = _tokenizer(registry, backbone, weights)
    for note in tokens.notes:
        say(note)
    root, files = _data_root(tasks, data_root)
    tagged = {
        name for name, (train, *_) in files.items() if name not in columns and has_words_with_tags(_below(root, train))
    }
    profiles, problems = _profiles({name: files[name] for name in files if name not in tagged}, root, columns, say)
    guesses = []
    for name in [name for name in files if name in tagged or name in profiles]:
        try:
            given = columns.get(name, ()), ids.get(name), labels.get(name)
            if name in tagged:
                _check_plain(name, *given[1:])
                tagging = registry.get("task", "tagging", "--task")
                guesses.append(guess_tagging(name, tagging, files[name], Path(root).expanduser(), tokens))
            else:
                guesses.append(_guess(name, profiles[name], files[name], *given, tokens))
        except MtmetaError as error:
            problems.append(error)
    raise_all(problems)
    inner = inner_steps(kind, guesses)
    settings = guess_settings(guesses, kind, algorithm is None, tokens.max_length, inner)
    # the run is called like the file, without characters that names may not have
    run_name = re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).lstrip("._-")[:100] or "recipe"
    text = recipe_text(path, run_name, root, (backbone, weights), guesses, settings, inner)
    check_recipe_text(text, path, registry)
    if reason := write_recipe(path, text, schema_text(registry)):
        say(f"no schema for editors beside it: {reason}")
    return Draft(text, tuple(guesses), tuple(settings))


def _check_plain(name: str, id_column: str | None, names: Mapping[str, str] | None) -> None:
    """Raise UsageError for options that are for tables, where the files of a task hold a word a line."""
    for option, given in (("--id", id_column), ("--labels", names)):
        if given is not None:
            raise UsageError(option, f"is for tables, and the files of {name} hold a word a line")


def _guess(
    name: str,
    tables: Profiles,
    files: TaskFiles,
    columns: Sequence[str],
    id_column: str | None,
    names: Mapping[str, str] | None,
    tokens: LoadedTokenizer,
) -> TaskGuess:
    """Guess a task by the profiles of its files. Raises DataError for columns that are missing, or no task."""
    train, dev, test = tables
    if not columns and (texts := ranking_columns(train)):
        if names is not None:
            raise UsageError("--labels", f"names labels, and the texts of {name} that belong together have none")
        return _guess_ranking(name, tables, files, texts, id_column, tokens)
    roles = find_roles(train, columns)
    needed = [roles.text.name, *([roles.pair.name] if roles.pair is not None else []), roles.label.name]
    _check_columns((dev, test), needed, "the training file has")
    _check_id(name, tables, id_column, needed)
    guess = guess_task(name, train, dev, files, roles, tokens, test=test, id_column=id_column, label_names=names)
    return _with_notes(guess, tables)


def _guess_ranking(
    name: str,
    tables: Profiles,
    files: TaskFiles,
    columns: Sequence[str],
    id_column: str | None,
    tokens: LoadedTokenizer,
) -> TaskGuess:
    """Guess a task of texts that belong together. Raises DataError for columns that are missing."""
    _check_columns(tables[1:], columns, "the training file has")
    _check_id(name, tables, id_column, columns)
    return _with_notes(guess_ranking(name, tables, files, columns, tokens, id_column), tables)


def _check_id(name: str, tables: Profiles, column: str | None, needed: Sequence[str]) -> None:
    """Raise DataError for a column of ids that is missing, UsageError for one that is needed otherwise."""
    if column is not None:
        _check_columns(tables, [column], "--id names")
        if column in needed:
            raise UsageError("--id", f"names column {quote(column)} of {name}, which is its text or label")


def _with_notes(guess: TaskGuess, tables: Profiles) -> TaskGuess:
    """Return a guess with what was told of its files."""
    told = [(table.path, note) for table in tables if table for note in table.notes]
    train = tables[0].path
    notes = [note if path == train else f"{path}: {note}" for path, note in dict.fromkeys(told)]
    return replace(guess, notes=(*guess.notes, *notes))


def _data_root(tasks: Mapping[str, TaskFiles], given: str | None) -> tuple[str, dict[str, TaskFiles]]:
    """Return the data_root to write, and the files' names in it: as they were given, wherever they lie together.

    A folder at or below this one is written as the way to it, so that recipe and data may move together.
    """
    files = [file for of_task in tasks.values() for file in of_task if file is not None]
    if given is not None:
        root, base = given, Path(given).expanduser()
        names = {file: file if _exists(base / file) or not _exists(file) else os.path.abspath(file) for file in files}
    else:
        alike = len(set(map(os.path.isabs, files))) == 1  # all absolute, or none
        root = (os.path.commonpath(map(os.path.dirname, files)) if alike else os.getcwd()) or "."
        names = {file: os.path.relpath(file, root) for file in files}
    found = {
        name: (names[train], dev and names[dev], test and names[test]) for name, (train, dev, test) in tasks.items()
    }
    return _from_here(root), found


def _from_here(root: str) -> str:
    """Return a folder as the way to it from here, where it is this folder or below it; else as it is."""
    here = os.getcwd()
    inside = os.path.isabs(root) and os.path.commonpath([here, os.path.normpath(root)]) == here
    return os.path.relpath(root, here) if inside else root


def _below(root: str, file: str) -> Path:
    return Path(root).expanduser() / file


def _exists(file: str | Path) -> bool:
    return parted(file)[0].exists()


def _profiles(
    files: Mapping[str, TaskFiles], root: str, columns: Mapping[str, Sequence[str]], say: Callable[[str], None]
) -> tuple[dict[str, Profiles], list[MtmetaError]]:
    """Read each file once; return the profiles of each task's files, and the files' problems."""
    by_path: dict[tuple[Path, bool], TableProfile] = {}

    def profile(file: str, header: bool = True) -> TableProfile:
        path = _below(root, file)
        if (path, header) not in by_path:
            say(f"looking at {path}")
            by_path[path, header] = profile_table(path, header=header)
        return by_path[path, header]

    def of_task(task: str, train: str, others: Sequence[str | None]) -> Profiles:
        """Return the profiles of files that all have a header, or none of which has one."""
        table = profile(train)
        named = task in columns and set(columns[task]) <= set(table.columns)
        reason = "" if named else looks_like_header(table)
        if reason:
            say(f"{table.path}:1: {reason}: it is read without a header, and columns are called 0, 1 and so on")
            table = profile(train, header=False)
        dev, test = (None if file is None else profile(file, header=not reason) for file in others)
        for other in (dev, test):
            if other and not reason and not named and (why := looks_like_header(other)):
                raise DataError(f"{other.path}:1", f"{why}; the training file has a header, write both alike")
        return table, dev, test

    profiles: dict[str, Profiles] = {}
    problems: list[MtmetaError] = []
    for task, (train, *others) in files.items():
        try:
            profiles[task] = of_task(task, train, others)
        except MtmetaError as error:
            problems.append(error)
    return profiles, problems


def _check_columns(tables: Sequence[TableProfile | None], needed: Sequence[str], why: str) -> None:
    """Raise DataError where a file lacks one of these columns."""
    for table, name in ((table, name) for table in tables if table is not None for name in needed):
        if name not in table.columns:
            message = f"no column {quote(name)}, which {why}; columns are: "
            raise DataError(str(table.path), message + safe(", ".join(table.columns), 300))


def _backbone(registry: Registry, given: str) -> tuple[str, str]:
    """Split BACKBONE:WEIGHTS, or weights of `bert` alone, into the two. Raises UsageError for an unknown backbone."""
    name, colon, weights = given.partition(":")
    if not colon or weights.startswith("//") or os.sep in name or Path(given).exists():  # hf:// begins a hub id
        return "bert", given
    registry.get("backbone", name, "--backbone")
    return name, weights


def _tokenizer(registry: Registry, name: str, weights: str) -> LoadedTokenizer:
    """Return the backbone's tokenizer, with the longest sequence that it may be asked for as its `max_length`."""
    kind = registry.get("backbone", name, "--backbone")
    for length in reversed(LENGTHS):
        backbone, faults = convert(kind, {"weights": weights, "max_length": length})
        if faults:
            raise UsageError("--backbone", faults[0][1])
        try:
            tokenizer: LoadedTokenizer | None = backbone.load_tokenizer()
        except RecipeError as error:  # it has fewer positions
            refusal = error
            continue
        if tokenizer is None:
            raise UsageError("--backbone", "has no tokenizer that can be loaded alone; copy a recipe and edit it")
        return tokenizer
    raise UsageError("--backbone", refusal.message) from refusal
