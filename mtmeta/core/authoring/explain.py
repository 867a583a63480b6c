"""The guesses of `mtmeta new recipe` with their reasons, for the terminal and as JSON."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.authoring.draft import Draft
from mtmeta.core.authoring.recipe_text import scalar
from mtmeta.core.authoring.task_guess import Choice
from mtmeta.core.wording import safe


def explanation_lines(path: Path, draft: Draft) -> Iterator[str]:
    """Yield a line for each guess, with its reason."""
    for task in draft.tasks:
        yield f"{task.name}:"
        for choice in task.choices:
            yield f"  {choice.key}: {safe(scalar(choice.value), 100)}  ({safe(choice.why, 200)})"
        yield from (f"  {safe(note, 300)}" for note in task.notes)
    for choice in draft.settings:
        yield f"{choice.key}: {scalar(choice.value)}  ({safe(choice.why, 200)})"
    shown = safe(shlex.quote(str(path)), 200)
    yield f"wrote {shown}; look at it, then: mtmeta validate --data {shown}, mtmeta run {shown}"


def explanation_document(path: Path, draft: Draft) -> dict[str, Any]:
    """Return the same as plain data, for `--json`."""

    def plain(choices: Sequence[Choice]) -> dict[str, Any]:
        return {choice.key: {"value": choice.value, "why": choice.why} for choice in choices}

    tasks = {task.name: {"options": plain(task.choices), "notes": list(task.notes)} for task in draft.tasks}
    return {"recipe": str(path), "tasks": tasks, "settings": plain(draft.settings)}
