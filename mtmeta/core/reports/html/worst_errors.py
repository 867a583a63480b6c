"""Texts of examples by their ids, from the file that a run was scored on, if it still is that file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from mtmeta.core.api.contracts import Example, Task
from mtmeta.core.api.option_types import SAMPLE, Carve
from mtmeta.core.errors import DataError, MtmetaError
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.guard import blame
from mtmeta.core.storage.addresses import is_remote
from mtmeta.core.studies.comparable import Planned
from mtmeta.core.tables.data_file import DataFile
from mtmeta.core.wording import safe

WORST = 8
"""Errors of a task on the page."""
LONGEST = 400
"""Characters of a text that are shown."""


def texts_of(run: Planned, name: str, ids: Sequence[str]) -> tuple[dict[str, str], str]:
    """Return the texts of the examples with these ids, and a line on why there are none."""
    try:
        return _found(run.recipe, name, run.folder.lock(), set(ids)), ""
    except MtmetaError as error:
        return {}, f"Texts are not shown: {safe(str(error), 300)}."


def _found(recipe: Recipe, name: str, lock: dict[str, object], ids: set[str]) -> dict[str, str]:
    name = recipe.owner(name)
    task = recipe.tasks[name]
    found: dict[str, str] = {}
    with blame(task, "task"):
        for index, example in enumerate(_examples(recipe, name, task, lock), 1):
            key = example.id or str(example.line or index)  # as predictions name it
            if key in ids:
                text = _shown(example)
                # two examples of one id: which of them was meant nobody knows
                found[key] = text if found.get(key, text) == text else f"id {key}, which several rows have"
    return found


def _examples(recipe: Recipe, name: str, task: Task, lock: dict[str, object]) -> Iterable[Example]:
    """Return the examples of the split that is reported on. Raises DataError where its file is another one now."""
    split = recipe.evaluation.report_on
    of_train = isinstance(task.dev, Carve) and split == "dev"
    given = task.train if of_train else getattr(task, split)
    if given == SAMPLE:
        return task.sample("train" if of_train else split)
    if is_remote(given):
        raise DataError(given, "is not on this machine, and a report fetches nothing")
    file = DataFile(Path(recipe.data_root) / given, task.dialect or recipe.data)
    recorded = lock.get("data")
    key = f"{name}-{'train' if of_train else split}"
    if not isinstance(recorded, dict) or recorded.get(key) != file.sha256():
        raise DataError(file.place, "is not the file that the run was scored on")
    return task.read(file)


def _shown(example: Example) -> str:
    return "\n".join(safe(text, LONGEST) for text in example.texts)
