"""`mtmeta new recipe`: data files -> what they seem to be -> a commented recipe that runs at once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtmeta.core.api.backbone import LoadedTokenizer
from mtmeta.core.api.contracts import Backbone
from mtmeta.core.authoring.columns import Look, check_header, look
from mtmeta.core.authoring.guess import Choice, TaskGuess, guess_task
from mtmeta.core.authoring.recipe_text import recipe_text
from mtmeta.core.authoring.roles import Roles, find_roles
from mtmeta.core.errors import DataError, MtmetaError, RecipeError, UsageError, raise_all
from mtmeta.core.recipe.reader import TASK_NAME, check_text
from mtmeta.core.recipe.schema import schema_text
from mtmeta.core.recipe.shipped import put_recipe
from mtmeta.core.recipe.validation import convert
from mtmeta.core.registry.registry import Registry
from mtmeta.core.wording import did_you_mean, quote, safe

__all__ = ["Draft", "draft_recipe", "parse_columns", "parse_tasks"]

LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
BUDGET = 1_000_000  # tokens through the encoder: some minutes on two cores for the encoder inside the package
EPOCHS, LEAST_STEPS, MOST_STEPS = 3, 40, 1000
INNER_STEPS = 8


@dataclass(frozen=True)
class Draft:
    """A recipe as text, and the guesses that made it."""

    text: str
    tasks: tuple[TaskGuess, ...]
    settings: tuple[Choice, ...]


def parse_tasks(given: Sequence[str]) -> dict[str, tuple[str, str | None]]:
    """The files of each `NAME=TRAIN[,DEV]`. Raises UsageError."""
    found: dict[str, tuple[str, str | None]] = {}
    for text in given:
        name, equals, files = text.partition("=")
        if not equals or not name or not files:
            raise UsageError(f"--task {quote(text)}", "expected NAME=TRAIN or NAME=TRAIN,DEV")
        if not TASK_NAME.fullmatch(name):
            message = f"task name {quote(name)} is not allowed; use a letter, then at most 63 of a-z 0-9 _ -"
            raise UsageError("--task", message)
        if name in found:
            raise UsageError("--task", f"names {quote(name)} twice; give each task a name of its own")
        train, comma, dev = files.rpartition(",")
        found[name] = (train, dev) if comma and train and dev else (files, None)
    if not found:
        raise UsageError("--task", "is needed at least once: NAME=TRAIN or NAME=TRAIN,DEV")
    return found


def draft_recipe(
    path: Path,
    tasks: Mapping[str, tuple[str, str | None]],
    registry: Registry,
    *,
    columns: Mapping[str, Sequence[str]] = {},
    algorithm: str | None = None,
    weights: str = "embedded",
    data_root: str | None = None,
    force: bool = False,
    say: Callable[[str], None] = lambda text: None,
) -> Draft:
    """Look at every file and write the recipe to `path`. Raises MtmetaError, and then writes nothing.

    Beside it goes the JSON Schema that its first line names.

    A file is looked for in `data_root`, as a run would, and else from here.
    """
    if path.is_dir():
        raise UsageError(str(path), "is a directory; name a file, such as my.yaml")
    if os.path.lexists(path) and not force:
        raise UsageError(str(path), "is there already; --force replaces it, or name another file")
    for name in columns:
        if name not in tasks:
            raise UsageError("--columns", f"names no task: {quote(name)}{did_you_mean(name, tasks)}")
    made = registry.get("algorithm", algorithm or _default_algorithm(tasks), "--algorithm")
    tokens = _tokenizer(registry, weights)
    root, names = _root(tasks, data_root)
    looks, problems = _looks(tasks, names, root, columns, say)
    guesses = []
    for name in looks:
        try:
            guesses.append(_guess(name, *looks[name], names[name], columns.get(name, ()), tokens))
        except MtmetaError as error:
            problems.append(error)
    raise_all(problems)
    inner = _inner(made, guesses)
    settings = _settings(guesses, made, algorithm is None, tokens.max_length, inner)
    text = recipe_text(path, _name(path), root, weights, guesses, settings, inner)
    check_text(text, path, registry)
    if why := put_recipe(path, text, schema_text(registry)):
        say(f"no schema for editors beside it: {why}")
    return Draft(text, tuple(guesses), tuple(settings))


# -------------------------------------------------------------------------------------------------------------- files


def _root(
    tasks: Mapping[str, tuple[str, str | None]], given: str | None
) -> tuple[str, dict[str, tuple[str, str | None]]]:
    """The data_root to write, and the files' names in it: as they were given, wherever they lie together."""
    files = [file for pair in tasks.values() for file in pair if file is not None]
    if given is not None:
        base = Path(given).expanduser()
        inside = {file: (base / file).exists() or not Path(file).exists() for file in files}
        return given, {
            name: tuple(file if file is None or inside[file] else os.path.abspath(file) for file in pair)  # type: ignore[misc]
            for name, pair in tasks.items()
        }
    folders = [os.path.dirname(file) for file in files]
    relative = not any(map(os.path.isabs, files))
    root = os.path.commonpath(folders) if relative or all(map(os.path.isabs, files)) else os.getcwd()
    names = {
        name: tuple(None if file is None else os.path.relpath(file, root or ".") for file in pair)
        for name, pair in tasks.items()
    }
    return root or ".", names  # type: ignore[return-value]


def _looks(
    tasks: Mapping[str, tuple[str, str | None]],
    names: Mapping[str, tuple[str, str | None]],
    root: str,
    columns: Mapping[str, Sequence[str]],
    say: Callable[[str], None],
) -> tuple[dict[str, tuple[Look, Look | None]], list[MtmetaError]]:
    found: dict[str, tuple[Look, Look | None]] = {}
    problems: list[MtmetaError] = []
    seen: dict[Path, Look] = {}
    base = Path(root).expanduser()
    for name in tasks:
        pair: list[Look | None] = []
        try:
            for file in names[name]:
                path = None if file is None else base / file
                if path is not None and path not in seen:
                    say(f"looking at {path}")
                    seen[path] = look(path)
                    if name not in columns:
                        check_header(path, seen[path])
                pair.append(None if path is None else seen[path])
            assert pair[0] is not None
            found[name] = pair[0], pair[1]
        except MtmetaError as error:
            problems.append(error)
    return found, problems


def _guess(
    name: str,
    train: Look,
    dev: Look | None,
    files: tuple[str, str | None],
    given: Sequence[str],
    tokens: LoadedTokenizer,
) -> TaskGuess:
    roles = find_roles(train, given)
    _check_dev(dev, roles)
    return guess_task(name, train, dev, files, roles, tokens)


def _check_dev(dev: Look | None, roles: Roles) -> None:
    for column in (roles.text, roles.pair, roles.label):
        if dev is not None and column is not None and column.name not in dev.columns:
            message = f"no column {quote(column.name)}, which the training file has; columns are: "
            raise DataError(str(dev.path), message + safe(", ".join(dev.columns), 300))


# ----------------------------------------------------------------------------------------------------------- settings


def _default_algorithm(tasks: Mapping[str, Any]) -> str:
    return "individual" if len(tasks) == 1 else "joint"


def _tokenizer(registry: Registry, weights: str) -> LoadedTokenizer:
    """The backbone's tokenizer, and in `max_length` the longest sequence it may be asked for."""
    kind = registry.get("backbone", "bert", "--backbone")
    longest = None
    for length in reversed(LENGTHS):
        backbone, faults = convert(kind, {"weights": weights, "max_length": length})
        if faults:
            raise UsageError("--backbone", faults[0][1])
        try:
            longest = _load_tokenizer(backbone)
            break
        except RecipeError as error:  # it has fewer positions
            if length == LENGTHS[0]:
                raise UsageError("--backbone", error.message) from error
    assert longest is not None
    return longest


def _load_tokenizer(backbone: Backbone) -> LoadedTokenizer:
    made = backbone.load_tokenizer()
    if made is None:
        raise UsageError("--backbone", "has no tokenizer that can be loaded alone; copy a recipe and edit it")
    return made


def _settings(
    guesses: Sequence[TaskGuess], algorithm: type[Any], chosen: bool, longest: int, inner: Mapping[str, int]
) -> list[Choice]:
    """What the recipe says beside its tasks."""
    lengths = np.concatenate([guess.lengths for guess in guesses])
    wanted = max(int(np.percentile(guess.lengths, 99)) for guess in guesses)
    length = next((length for length in LENGTHS if length >= wanted and length <= longest), longest)
    cut = float((lengths > length).mean())
    limit = "as many as the encoder reads; " if wanted > length else ""
    batch = {guess.name: guess.options["batch_size"] for guess in guesses}
    mean_tokens = float(np.mean([np.minimum(guess.lengths, length).mean() * guess.inputs for guess in guesses]))
    affordable = BUDGET * (3 + len(guesses)) / 4 / mean_tokens
    alone = algorithm.name == "individual"
    if inner:
        a_step = sum(inner[name] * size for name, size in batch.items()) / len(batch)
        epochs = EPOCHS * sum(guess.rows for guess in guesses) / a_step
    elif alone:
        a_step = float(sum(batch.values()))  # one step of every learner
        epochs = EPOCHS * max(guess.rows / batch[guess.name] for guess in guesses)
    else:
        a_step = float(sum(batch.values()))
        epochs = EPOCHS * float(np.mean([guess.rows / batch[guess.name] for guess in guesses]))
    least = LEAST_STEPS // 4 if inner else LEAST_STEPS
    steps = int(min(MOST_STEPS, max(least, min(epochs, affordable / a_step))))
    capped = epochs >= steps + 1
    why = (
        f"{EPOCHS} epochs would be {round(epochs):,}; this many take some minutes on two cores"
        if capped
        else f"{EPOCHS} epochs"
    )
    if steps == least:
        why = "few rows: several epochs" if not capped else why
    evaluations = max(1, min(5, int(affordable / 2 / max(1, sum(guess.dev_rows for guess in guesses)))))
    every = -(-steps // evaluations)
    made = [
        Choice("max_length", length, f"{limit}99% of the sequences have at most {wanted} tokens; {cut:.1%} are cut"),
        Choice("algorithm", algorithm.name, _why(algorithm.name, chosen, len(guesses))),
        Choice("steps", steps, why),
        Choice("every", every, f"evaluated {-(-steps // every)} times on the dev splits"),
    ]
    if bad := sum(guess.bad for guess in guesses):
        lost = ", ".join(f"{guess.name} {guess.bad:,}" for guess in guesses if guess.bad)
        made.append(
            Choice(
                "on_bad_rows", "skip", f"up to {bad:,} rows cannot be used ({lost}): mtmeta validate --data says why"
            )
        )
    return made


def _why(name: str, chosen: bool, tasks: int) -> str:
    if not chosen:
        return "as asked for"
    if tasks == 1:
        return "there is one task; with others, joint and reptile share the encoder"
    return "the usual first choice: every task in every step; `mtmeta compare` tells it from individual and reptile"


def _inner(algorithm: type[Any], guesses: Sequence[TaskGuess]) -> dict[str, int]:
    """The inner steps of each task, as many as its rows allow; empty where the algorithm has no inner loop."""
    if "inner_optimizer" not in getattr(algorithm, "__dataclass_fields__", {}):
        return {}
    return {g.name: max(1, min(INNER_STEPS, g.rows // g.options["batch_size"] - 1)) for g in guesses}


def _name(path: Path) -> str:
    """The run's name: what the file is called, as far as names may be."""
    return re.sub(r"[^A-Za-z0-9._-]+", "_", path.stem).lstrip("._-")[:100] or "recipe"


def parse_columns(given: Sequence[str]) -> dict[str, list[str]]:
    """The columns of each `NAME=TEXT[,PAIR],LABEL`. Raises UsageError."""
    found = {}
    for text in given:
        name, _, columns = text.partition("=")
        parts = [part.strip() for part in columns.split(",")]
        if not name or len(parts) not in (2, 3) or not all(parts) or len(set(parts)) < len(parts):
            raise UsageError(f"--columns {quote(text)}", "expected NAME=TEXT,LABEL or NAME=TEXT,PAIR,LABEL")
        found[name] = parts
    return found
