"""Recipe text to validated objects; all problems of a recipe are reported together.

YAML (strict) -> mapping -> `--set` overrides -> each section and each `{name: ..., options}` validated -> `Recipe`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core import strict_yaml
from mtmeta.core.contracts import Task
from mtmeta.core.errors import MtmetaError, Problems, RecipeError, did_you_mean, quote
from mtmeta.core.optim import OptimizerOptions, Plateau, ScheduleOptions
from mtmeta.core.options import (
    RECIPE_FORMAT,
    CheckpointOptions,
    DataOptions,
    EvaluationOptions,
    Recipe,
    TrainingOptions,
)
from mtmeta.core.registry import Registry
from mtmeta.core.validation import convert

__all__ = ["load_recipe"]

TASK_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
KEYS = ("format", *(field.name for field in dataclasses.fields(Recipe)))
REQUIRED = ("backbone", "tasks", "algorithm", "optimizer", "training")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Stepping:
    """The two sections that are a choice of class by name, not a registry lookup."""

    optimizer: OptimizerOptions
    schedule: ScheduleOptions


def load_recipe(
    path: str | os.PathLike[str],
    registry: Registry,
    *,
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Recipe:
    """The recipe in file `path`. Raises RecipeError or PluginError, or Problems when there are several.

    `overrides` are `a.b=c` strings (`--set`); `data_root` wins over MTMETA_DATA, which wins over the recipe.
    """
    document = strict_yaml.read_file(path)
    return _Reader(document, registry).read(overrides, data_root or environ.get("MTMETA_DATA") or None, Path(path))


class _Reader:
    """One pass over one recipe, collecting problems."""

    def __init__(self, document: strict_yaml.Document, registry: Registry) -> None:
        self.document = document
        self.registry = registry
        self.problems: list[MtmetaError] = []
        self.overridden: dict[tuple[str | int, ...], str] = {}

    def read(self, overrides: Sequence[str], data_root: str | None, path: Path) -> Recipe:
        data = self.document.data
        self._check_format(data)
        for override in overrides:
            self._override(data, override)
        for key in data:
            if key not in KEYS:
                self.fail((key,), f"unknown key {quote(key)}{did_you_mean(key, KEYS)}", key=True)
        for key in REQUIRED:
            if data.get(key) is None:
                self.fail((), f"the recipe needs '{key}'; add it")

        parts: dict[str, Any] = {
            "name": self._name(data.get("name", path.stem)),
            "seed": self._seed(data.get("seed", 0)),
            "data_root": os.path.abspath(data_root or self._text(data, "data_root", ".")),
            "backbone": self.component("backbone", data.get("backbone"), ("backbone",)),
            "tasks": self._tasks(data.get("tasks")),
            "data": self.section(DataOptions, data, "data"),
            "sampler": self.component("sampler", data.get("sampler", "uniform"), ("sampler",)),
            "algorithm": self.component("algorithm", data.get("algorithm"), ("algorithm",)),
            **self._stepping(data),
            "training": self.section(TrainingOptions, data, "training"),
            "evaluation": self.section(EvaluationOptions, data, "evaluation"),
            "checkpoint": self.section(CheckpointOptions, data, "checkpoint"),
            "reporters": self._reporters(data.get("reporters", ["console", "jsonl"])),
        }
        self._check_together(parts)
        if self.problems:
            raise self.problems[0] if len(self.problems) == 1 else Problems(self.problems)
        return Recipe(**parts)

    # -- places

    def fail(self, path: tuple[str | int, ...], what: str, *, key: bool = False) -> None:
        self.problems.append(RecipeError(self.place(path, key=key), what))

    def place(self, path: tuple[str | int, ...], *, key: bool = False) -> str:
        for length in range(len(path), 0, -1):
            if path[:length] in self.overridden:
                return self.overridden[path[:length]]
        return self.document.place(path, key=key)

    def _override(self, data: dict[str, Any], text: str) -> None:
        key, equals, value = text.partition("=")
        path = tuple(key.strip().split("."))
        place = f"--set {key.strip()}"
        if not equals or not all(path):
            self.problems.append(RecipeError(f"--set {quote(text)}", "expected KEY=VALUE, such as training.steps=100"))
            return
        node = data
        for depth, part in enumerate(path[:-1]):
            child = node.setdefault(part, {})
            if isinstance(child, str):  # `schedule: cosine` is short for `schedule: {name: cosine}`
                child = node[part] = {"name": child}
            if child is None:
                child = node[part] = {}
            if not isinstance(child, dict):
                self.problems.append(RecipeError(place, f"{'.'.join(path[: depth + 1])} is not a mapping"))
                return
            node = child
        try:
            node[path[-1]] = strict_yaml.parse_value(value, place)
        except RecipeError as error:
            self.problems.append(error)
        self.overridden[path] = place

    # -- sections

    def _check_format(self, data: dict[str, Any]) -> None:
        found = data.get("format", RECIPE_FORMAT)
        if isinstance(found, bool) or not isinstance(found, int) or found < 1:
            self.fail(("format",), f"format must be an integer from 1 to {RECIPE_FORMAT}, found {quote(found)}")
        elif found > RECIPE_FORMAT:
            what = f"recipe format {found}, this mtmeta reads up to {RECIPE_FORMAT}; upgrade mtmeta"
            raise RecipeError(self.place(("format",)), what)

    def _name(self, name: Any) -> str:
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name):
            self.fail(("name",), f"name {quote(name)} is not allowed; use letters, digits, '.', '_' and '-'")
        return str(name)

    def _seed(self, seed: Any) -> int:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            self.fail(("seed",), f"seed must be an integer from 0 to {2**63 - 1}, found {quote(seed)}")
            return 0
        return seed

    def _text(self, data: dict[str, Any], key: str, default: str) -> str:
        value = data.get(key, default)
        if not isinstance(value, str) or not value or "\0" in value:
            self.fail((key,), f"{key} must be text, found {quote(value)}")
            return default
        return value

    def section(self, kind: type[Any], data: dict[str, Any], key: str) -> Any:
        value = data.get(key)
        if value is None:
            value = {}
        if not isinstance(value, dict):
            self.fail((key,), f"{key} must be a mapping, found {_noun(value)}")
            return None
        return self.convert(kind, value, (key,))

    def _stepping(self, data: dict[str, Any]) -> dict[str, Any]:
        chosen = {"optimizer": data.get("optimizer"), "schedule": data.get("schedule") or "constant"}
        if chosen["optimizer"] is None:  # reported as missing already
            chosen["optimizer"] = {"name": "sgd", "lr": 1.0}
        made = self.convert(_Stepping, chosen, ())
        return {"optimizer": made.optimizer, "schedule": made.schedule} if made else dict.fromkeys(chosen)

    def component(self, kind: str, value: Any, path: tuple[str | int, ...], default: str | None = None) -> Any:
        """A part of the registry from `name` or `{name: ..., options}`."""
        if value is None:
            return None
        options = dict(value) if isinstance(value, dict) else {}
        key = "task" if kind == "task" else "name"
        name = value if isinstance(value, str) else options.pop(key, default)
        if not isinstance(name, str):
            shown = ".".join(map(str, path))
            found = f"found {quote(name)}" if name is not None else f"found {_noun(value)}"
            known = ", ".join(self.registry.names(kind))
            self.fail(path, f"{shown} needs the name of a {kind}, {found}; one of {known}")
            return None
        try:
            given = isinstance(value, dict) and key in value
            part = self.registry.get(kind, name, self.place((*path, key) if given else path))
        except MtmetaError as error:
            self.problems.append(error)
            return None
        return self.convert(part, options, path)

    def convert(self, kind: type[Any], data: dict[str, Any], path: tuple[str | int, ...]) -> Any:
        made, faults = convert(kind, data)
        section = ".".join(map(str, path))
        for below, text, key in faults:
            full = (*path, *below)
            owner = ".".join(map(str, full[:-1]))
            text = text.replace("{section_name}", owner or "the recipe").replace("{under}", "")
            text = text.replace("{section}", f" in {quote(owner)}" if owner else "")
            if section and below and text.startswith(".".join(map(str, below))):
                text = f"{section}.{text}"
            self.fail(full, text, key=key)
        return made

    def _tasks(self, tasks: Any) -> dict[str, Task]:
        if tasks is None:
            return {}
        if not isinstance(tasks, dict) or not tasks:
            self.fail(
                ("tasks",), f"tasks must be a mapping of task names, found {_noun(tasks)}; name at least one task"
            )
            return {}
        made = {}
        for name, options in tasks.items():
            path = ("tasks", name)
            if not TASK_NAME.fullmatch(name):
                self.fail(path, f"task name {quote(name)} is not allowed; use a-z 0-9 _ -", key=True)
            elif not isinstance(options, dict):
                self.fail(path, f"tasks.{name} must be a mapping, found {_noun(options)}")
            else:
                made[name] = self.component("task", options, path, default=name)
        return made

    def _reporters(self, reporters: Any) -> tuple[Any, ...]:
        if not isinstance(reporters, list):
            self.fail(("reporters",), f"reporters must be a list, found {_noun(reporters)}")
            return ()
        made = [self.component("reporter", value, ("reporters", i)) for i, value in enumerate(reporters)]
        return tuple(part for part in made if part is not None)

    # -- what only shows when the sections stand side by side

    def _check_together(self, parts: dict[str, Any]) -> None:
        tasks = {name: task for name, task in parts["tasks"].items() if task is not None}
        for section in ("algorithm", "sampler"):
            if parts[section] is not None and len(tasks) == len(parts["tasks"]) and tasks:
                given = tasks if section == "algorithm" else list(tasks)
                for option, what in parts[section].check(given):
                    self.fail((section, *option.split(".")), f"{section}.{option} {what}")
        training, evaluation = parts["training"], parts["evaluation"]
        if training is not None:
            if (training.steps is None) == (training.epochs is None):
                self.fail(("training",), "training needs either steps or epochs; give one of them")
            if training.precision == "fp16":
                what = "training.precision 'fp16' would lose small updates; use bf16 or fp32"
                self.fail(("training", "precision"), what)
        if evaluation is not None:
            self._check_evaluation(evaluation, tasks)
        for name, task in tasks.items():
            for metric in task.metrics:
                try:
                    self.registry.get("metric", metric, self.place(("tasks", name, "metrics")))
                except MtmetaError as error:
                    self.problems.append(error)
        inner = getattr(parts["algorithm"], "inner_schedule", None)
        if isinstance(inner, Plateau):
            what = "algorithm.inner_schedule cannot be plateau, an inner loop has no metric; use step or cosine"
            self.fail(("algorithm", "inner_schedule"), what)

    def _check_evaluation(self, evaluation: EvaluationOptions, tasks: dict[str, Task]) -> None:
        if evaluation.select != "mean" and evaluation.select not in tasks and tasks:
            known = ["mean", *tasks]
            what = f"evaluation.select must be one of {', '.join(known)}, found {quote(evaluation.select)}"
            self.fail(("evaluation", "select"), what + did_you_mean(evaluation.select, known))
        for split in dict.fromkeys((evaluation.select_on, evaluation.report_on)):
            for name, task in tasks.items():
                if getattr(task, split) is None:
                    self.fail(
                        ("tasks", name), f"task '{name}' has no {split} file, which evaluation uses; add '{split}:'"
                    )


def _noun(value: Any) -> str:
    kinds = {dict: "a mapping", list: "a list", type(None): "nothing"}
    return kinds.get(type(value)) or quote(value)
