"""What `mtmeta new recipe` says of its guesses."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.authoring.draft import Draft
from mtmeta.core.authoring.guess import Choice
from mtmeta.core.authoring.recipe_text import scalar
from mtmeta.core.wording import safe

__all__ = ["describe", "report"]


def report(path: Path, draft: Draft) -> Iterator[str]:
    """Lines on what was guessed, and why."""
    for task in draft.tasks:
        yield f"{task.name}:"
        for choice in task.choices:
            yield f"  {choice.key}: {safe(scalar(choice.value), 100)}  ({safe(choice.why, 200)})"
        yield from (f"  {safe(note, 300)}" for note in task.notes)
    for choice in draft.settings:
        yield f"{choice.key}: {scalar(choice.value)}  ({safe(choice.why, 200)})"
    shown = safe(shlex.quote(str(path)), 200)
    yield f"wrote {shown}; look at it, then: mtmeta validate --data {shown}, mtmeta run {shown}"


def describe(path: Path, draft: Draft) -> dict[str, Any]:
    """The same for `--json`."""

    def plain(choices: Sequence[Choice]) -> dict[str, Any]:
        return {choice.key: {"value": choice.value, "why": choice.why} for choice in choices}

    tasks = {task.name: {"options": plain(task.choices), "notes": list(task.notes)} for task in draft.tasks}
    return {"recipe": str(path), "tasks": tasks, "settings": plain(draft.settings)}
