"""Tasks of several labels in recipes: each label has the options of a task, but for those that the whole task has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from mtmeta.core.api.contracts import Task
from mtmeta.core.recipe.strict_yaml import KeyPath
from mtmeta.core.recipe.validation import describe_value
from mtmeta.core.wording import quote

OWN = "loss_weight"
"""The option that both the whole and each label have."""
DEFAULT = "classification"
"""What a label is that does not say it."""


def read_parts(task: Task, path: KeyPath, component: Callable[..., Any], fail: Callable[..., None]) -> Task | None:
    """Return a task as it stands at `path`, with a task for each of its labels; None after its faults were told.

    `component` makes a task of options, `fail` tells a fault.
    """
    made: dict[str, Task | None] = {}
    for name, given in getattr(task, task.option_of_parts).items():
        own = (*path, task.option_of_parts, name)
        dotted = ".".join(map(str, own))
        made[name] = None
        if not isinstance(given, dict):
            message = f"{dotted} must be a mapping, found {describe_value(given)}; write {{labels: [no, yes]}}"
            fail(own, message)
        elif unfit := [key for key in given if key in _of_the_whole(task)]:
            message = f"{dotted}: {quote(unfit[0])} is an option of the whole task; write it there, once"
            fail((*own, unfit[0]), message, key=True)
        else:
            made[name] = _part(task, name, given, component("task", {"train": task.train, **given}, own, DEFAULT))
    return with_parts(task, made)


def with_parts(task: Task, parts: Mapping[str, Task | None]) -> Task | None:
    """Return a task with other tasks in the place of its labels'; None if one of them is."""
    changed: Any = {task.option_of_parts: dict(parts)}
    whole: Task = dataclasses.replace(task, **changed)
    return whole if all(parts.values()) else None


def described_parts(task: Task, plain: Callable[..., Any]) -> dict[str, Any]:
    """Return a task's options as plain data; `plain` describes one part. Reading them back gives the same task."""
    described: dict[str, Any] = plain(task, named=False)
    for name, part in task.parts.items():
        own = {key: value for key, value in plain(part, named=False).items() if key not in _of_the_whole(task)}
        described[task.option_of_parts][name] = {"task": part.name, **own}
    return described


def _of_the_whole(task: Task) -> set[str]:
    """Return the options that a task's labels have from it."""
    return {field.name for field in dataclasses.fields(task)} - {task.option_of_parts, OWN}


def _part(task: Task, name: str, given: Mapping[str, Any], part: Task | None) -> Task | None:
    """Return the task of one label with the options of the whole `task`, and as its column the one of its name."""
    if part is None:
        return None
    known = {field.name for field in dataclasses.fields(part)}
    changed: Any = {key: getattr(task, key) for key in _of_the_whole(task) & known}
    if "label" in known and "label" not in given:
        changed["label"] = name
    whole: Task = dataclasses.replace(part, **changed)
    return whole
