"""The way from a recipe's text to validated objects; all problems of a recipe are reported together.

YAML (strict) -> mapping -> `--set` overrides -> each section and each `{name: ..., options}` validated -> `Recipe`.
"""

from __future__ import annotations

import dataclasses
import inspect
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtmeta.core.api.contracts import NOT_POOLED, Algorithm, Task, scored_tasks, takes_sequences
from mtmeta.core.api.objectives import has_soft_loss, has_temperature
from mtmeta.core.api.optimizers import OptimizerOptions
from mtmeta.core.api.option_types import SAMPLE, Carve
from mtmeta.core.api.schedules import Plateau, ScheduleOptions
from mtmeta.core.errors import MtmetaError, RecipeError, raise_all
from mtmeta.core.recipe import strict_yaml
from mtmeta.core.recipe.document import RecipeDocument
from mtmeta.core.recipe.from_python import PLACE, RecipeSource, document_of
from mtmeta.core.recipe.label_names import read_label_names
from mtmeta.core.recipe.parts import read_parts, with_parts
from mtmeta.core.recipe.sections import (
    OPTIONAL,
    RECIPE_FORMAT,
    SECTIONS,
    EvaluationOptions,
    Recipe,
    TeacherOptions,
    Teachers,
    TeachersOptions,
)
from mtmeta.core.recipe.shipped import find_recipe
from mtmeta.core.recipe.strict_yaml import KeyPath
from mtmeta.core.recipe.validation import convert, describe_value
from mtmeta.core.registry.guard import unguarded
from mtmeta.core.registry.registry import Registry
from mtmeta.core.storage.addresses import is_remote, parse_file, part_address
from mtmeta.core.storage.outputs import RUN_MARK
from mtmeta.core.wording import choose, did_you_mean, quote

TASK_NAME = re.compile(r"(?!mean$)[a-z][a-z0-9_-]{0,63}")  # `mean` in evaluation.select means all tasks
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
SHARE = re.compile(r"\s*[0-9.]+\s*%?\s*")  # such as 10%, written for a share of the training file
KEYS = ("format", *(field.name for field in dataclasses.fields(Recipe)))
RUN_RECIPE, ROWS = "recipe.yaml", "rows"
"""In a run directory: its recipe, and the folder of its data where that came from memory."""
REQUIRED = ("backbone", "tasks", "algorithm", "optimizer", "training")


@dataclasses.dataclass(frozen=True, kw_only=True)
class _UpdateRule:
    """The two sections that are a choice of class by name, not a registry lookup."""

    optimizer: OptimizerOptions
    schedule: ScheduleOptions


def load_recipe(
    source: RecipeSource,
    registry: Registry,
    *,
    overrides: Sequence[str] = (),
    data_root: str | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Recipe:
    """Read the recipe in a file, the shipped one of that name, or one that is a mapping or a Recipe.

    `overrides` are `a.b=c` strings (`--set`); `data_root` wins over the rows that a run keeps beside its recipe, these
    over MTMETA_DATA, which wins over the recipe. Raises RecipeError or PluginError, or Problems when there are several.
    """
    if isinstance(source, Mapping | Recipe):
        file, path = document_of(source), Path(PLACE)
    else:
        path = find_recipe(source)
        file = strict_yaml.read_file(path)
        data_root = data_root or rows_beside(path)
    return _RecipeReader(RecipeDocument(file, overrides), registry).read(
        data_root or environ.get("MTMETA_DATA") or None, path
    )


def rows_beside(path: Path) -> str | None:
    """Return the folder with the rows of a run that was trained from memory, of the path of its own recipe.

    It lies beside, so that it goes with the run wherever that goes.
    """
    folder = path.parent / ROWS
    return str(folder) if path.name == RUN_RECIPE and folder.is_dir() and (path.parent / RUN_MARK).exists() else None


def check_recipe_text(text: str, path: Path, registry: Registry) -> None:
    """Raise the problems of a recipe's text that is to be written to `path`."""
    _RecipeReader(RecipeDocument(strict_yaml.parse(text, str(path)), ()), registry).read(None, path)


class _RecipeReader:
    """One pass over one recipe, collecting problems."""

    def __init__(self, document: RecipeDocument, registry: Registry) -> None:
        self.document = document
        self.fail = document.fail
        self.registry = registry

    def read(self, data_root: str | None, path: Path) -> Recipe:
        """Return the recipe; its default name is that of the file `path`. Raises all problems together."""
        data = self.document.data
        self._check_format(data)
        for key in data:
            if key not in KEYS:
                self.fail((key,), f"unknown key {quote(key)}{choose(key, KEYS)}", key=True)
        for key in REQUIRED:
            if data.get(key) is None and not (key == "training" and data.get("budget")):
                self.fail((), f"the recipe needs '{key}'; add it")

        parts: dict[str, Any] = {
            "name": self._name(data.get("name", path.stem)),
            "seed": self._seed(data.get("seed", 0)),
            "data_root": os.path.abspath(os.path.expanduser(data_root or self._text(data, "data_root", "."))),
            "backbone": self.component("backbone", data.get("backbone"), ("backbone",)),
            "tasks": self._tasks(data.get("tasks")),
            "data": self.section(data, "data"),
            "sampler": self.component("sampler", _default(data, "sampler", "uniform"), ("sampler",)),
            "algorithm": self.component("algorithm", data.get("algorithm"), ("algorithm",)),
            **self._update_rule(data),
            **{key: self.section(data, key) for key in SECTIONS if key not in ("data", "teachers")},
            "teachers": self._teachers(data),
            "reporters": self._reporters(data.get("reporters", ["console", "jsonl"])),
        }
        parts["tasks"] = {name: _with_dev_seed(task, parts["seed"]) for name, task in parts["tasks"].items()}
        self._read_label_names(parts)
        self._check_tasks(parts)
        self._check_data(parts)
        self._check_adapters(parts)
        self._check_shares(parts)
        self._check_training(parts)
        raise_all(self.document.problems)
        return Recipe(**parts)

    # -- sections

    def _check_format(self, data: dict[str, Any]) -> None:
        version = data.get("format", RECIPE_FORMAT)
        if isinstance(version, bool) or not isinstance(version, int) or version < 1:
            self.fail(("format",), f"format must be {RECIPE_FORMAT}, found {describe_value(version)}")
        elif version > RECIPE_FORMAT:
            message = f"recipe format {version}, this mtmeta reads up to {RECIPE_FORMAT}; upgrade mtmeta"
            raise RecipeError(self.document.place(("format",)), message)

    def _name(self, name: Any) -> str:
        if not isinstance(name, str) or not NAME.fullmatch(name):
            self.fail(("name",), f"name {describe_value(name)} is not allowed; use letters, digits, '.', '_' and '-'")
        return str(name)

    def _seed(self, seed: Any) -> int:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
            self.fail(("seed",), f"seed must be an integer from 0 to {2**63 - 1}, found {describe_value(seed)}")
            return 0
        return seed

    def _text(self, data: dict[str, Any], key: str, default: str) -> str:
        value = data.get(key, default)
        if not isinstance(value, str) or not value or "\0" in value:
            self.fail((key,), f"{key} must be text, found {describe_value(value)}")
            return default
        return value

    def section(self, data: dict[str, Any], key: str) -> Any:
        """Return the section under `key` as its dataclass, or None where it is wrong."""
        value = _default(data, key, None if key in OPTIONAL else {})
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail((key,), f"{key} must be a mapping, found {describe_value(value)}")
            return None
        return self.convert(SECTIONS[key], value, (key,))

    def _teachers(self, data: dict[str, Any]) -> Teachers | None:
        """Return the section `teachers`, which has names of tasks beside an option common to them."""
        value = data.get("teachers")
        if value is None:
            return None
        if not isinstance(value, dict):
            message = f"teachers must be a mapping, found {describe_value(value)}; write {{TASK: {{runs: [FOLDER]}}}}"
            self.fail(("teachers",), message)
            return None
        known = data["tasks"] if isinstance(data.get("tasks"), dict) else {}
        common = {key: value[key] for key in ("anneal",) if key in value}
        options, of = self.convert(TeachersOptions, common, ("teachers",)), {}
        for name in (name for name in value if name not in common):
            path, given = ("teachers", name), value[name]
            if name not in known:
                message = f"teachers names no task of this recipe: {quote(name)}{choose(name, [*known, 'anneal'])}"
                self.fail(path, message, key=True)
            elif not isinstance(given, dict):
                message = f"teachers.{name} must be a mapping, found {describe_value(given)}; write {{runs: [FOLDER]}}"
                self.fail(path, message)
            else:
                of[name] = self.convert(TeacherOptions, given, path)
        if len(value) == len(common):
            self.fail(("teachers",), "teachers names no task; add TASK: {runs: [FOLDER]}, or leave the section out")
        return Teachers(anneal=options.anneal, of=of) if options is not None and all(of.values()) else None

    def _update_rule(self, data: dict[str, Any]) -> dict[str, Any]:
        optimizer = _default(data, "optimizer", {"name": "sgd", "lr": 1.0})  # a missing one is reported already
        chosen = {"optimizer": optimizer, "schedule": _default(data, "schedule", "constant")}
        rule = self.convert(_UpdateRule, chosen, ())
        return {"optimizer": rule.optimizer, "schedule": rule.schedule} if rule else dict.fromkeys(chosen)

    def component(self, kind: str, value: Any, path: KeyPath, default: str | None = None) -> Any:
        """Return a part of the registry from `NAME` or `{name: NAME, options}`, or None where that is wrong."""
        if value is None:
            return None
        options = dict(value) if isinstance(value, dict) else {}
        key = "task" if kind == "task" else "name"
        name = value if isinstance(value, str) else options.pop(key, default)
        if not isinstance(name, str):
            shown = ".".join(map(str, path))
            asked = f"{shown} needs '{key}'" if isinstance(value, dict) and name is None else f"{shown} must be a name"
            given = "" if name is None else f", found {describe_value(name)}"
            self.fail(path, f"{asked}{given}; one of {', '.join(self.registry.names(kind))}")
            return None
        try:
            spelled_out = isinstance(value, dict) and key in value
            part = self.registry.get(kind, name, self.document.place((*path, key) if spelled_out else path))
        except MtmetaError as error:
            self.document.problems.append(error)
            return None
        return self.convert(part, options, path)

    def convert(self, kind: type[Any], data: dict[str, Any], path: KeyPath) -> Any:
        """Return a dataclass of this kind from plain data at `path`, or None after its problems were added."""
        part, faults = convert(kind, data, path)
        for full, message, key in faults:
            self.fail(full, message, key=key)
        return part

    def _tasks(self, tasks: Any) -> dict[str, Task]:
        if tasks is None:
            return {}
        if not isinstance(tasks, dict) or not tasks:
            self.fail(("tasks",), f"tasks must be a mapping, found {describe_value(tasks)}; name at least one task")
            return {}
        parts: dict[str, Any] = {}
        for name, options in tasks.items():
            path = ("tasks", name)
            if not TASK_NAME.fullmatch(name):
                message = f"task name {quote(name)} is not allowed; use a letter, then at most 63 of a-z 0-9 _ -"
                self.fail(path, message, key=True)
            elif not isinstance(options, dict):
                message = f"tasks.{name} must be a mapping, found {describe_value(options)}; write {{train: FILE}}"
                self.fail(path, message)
            else:
                task = self.component("task", options, path, default=name)
                several = task is not None and task.option_of_parts
                parts[name] = read_parts(task, path, self.component, self.fail) if several else task
        return parts

    def _reporters(self, reporters: Any) -> tuple[Any, ...]:
        if not isinstance(reporters, list):
            self.fail(("reporters",), f"reporters must be a list, found {describe_value(reporters)}")
            return ()
        parts = [self.component("reporter", value, ("reporters", i)) for i, value in enumerate(reporters)]
        return tuple(part for part in parts if part is not None)

    def _read_label_names(self, parts: dict[str, Any]) -> None:
        """Put the names of labels into the tasks that name a file of them, so that a run has them in its recipe."""
        for name, task in _valid_tasks(parts).items():
            root, path = parts["data_root"], ("tasks", name)
            if not task.parts:
                parts["tasks"][name] = self._named(task, root, path)
                continue
            own = {one: self._named(of, root, (*path, task.option_of_parts, one)) for one, of in task.parts.items()}
            parts["tasks"][name] = with_parts(task, own)

    def _named(self, task: Task, data_root: str, path: KeyPath) -> Task | None:
        if not isinstance(given := getattr(task, "labels", None), str):
            return task
        try:
            changed: Any = {"labels": read_label_names(Path(data_root, given))}
        except ValueError as error:
            self.fail((*path, "labels"), f"{'.'.join(map(str, path))}.labels: {quote(given)} {error}")
            return None
        named: Task = replace(task, **changed)
        return named

    # -- checks across sections

    def _check_tasks(self, parts: dict[str, Any]) -> None:
        """Check every task, and that the algorithm and the sampler fit all of them."""
        tasks = _valid_tasks(parts)
        algorithm, sampler = parts["algorithm"], parts["sampler"]
        longest = getattr(parts["backbone"], "max_length", None)
        for name, task in tasks.items():
            with self.document.collect():
                self._check_task(name, task, longest)
            for part in task.parts:
                others = [other for other in tasks if part in (other, *(tasks[other].parts if other != name else ()))]
                if others:
                    message = f"is the name of another task or label, in {quote(others[0])}; each has one of its own"
                    self.fail(("tasks", name, task.option_of_parts, part), f"{quote(part)} {message}", key=True)
        if tasks and len(tasks) == len(parts["tasks"]):
            with self.document.collect():
                self._fail_options(("algorithm",), algorithm.check(tasks) if algorithm is not None else ())
            with self.document.collect():
                self._check_heads(algorithm, tasks)
            with self.document.collect():
                self._fail_options(("sampler",), sampler.check(list(tasks)) if sampler is not None else ())

    def _check_heads(self, algorithm: Algorithm | None, tasks: Mapping[str, Task]) -> None:
        for name, task in tasks.items():
            if algorithm is not None and algorithm.by_vectors and takes_sequences(task):
                message = f"{NOT_POOLED}; leave the task out, or take reptile, fomaml or joint"
                self.fail(("tasks", name), f"tasks.{name}: {message}", key=True)

    def _check_data(self, parts: dict[str, Any]) -> None:
        """Check folds, and that what teachers say of a task can be learned."""
        left_out = getattr(parts["data"], "leave_out", None)
        if left_out is not None and left_out.fold > left_out.folds:
            message = f"must be from 1 to {left_out.folds}, the number of folds, found {left_out.fold}"
            self.fail(("data", "leave_out", "fold"), f"data.leave_out.fold {message}")
        tasks, algorithm = _valid_tasks(parts), parts["algorithm"]
        for name in parts["teachers"].of if parts["teachers"] is not None else ():
            if algorithm is not None and not algorithm.hears_teachers:
                message = f"algorithm '{algorithm.name}' makes the loss of task '{name}' by itself, without teachers"
                self.fail(("teachers", name), f"teachers.{name}: {message}; leave it out", key=True)
                continue
            with self.document.collect():
                if name in tasks and not has_soft_loss(unguarded(type(tasks[name].objective))):
                    message = f"the objective of task '{name}' has no soft_loss for its loss, so it cannot be distilled"
                    self.fail(("teachers", name), f"teachers.{name}: {message}; leave it out", key=True)
                elif name in tasks and (obstacle := tasks[name].objective.teacher_obstacle):
                    self.fail(("teachers", name), f"teachers.{name}: {obstacle}; leave it out", key=True)
        for name, task in tasks.items():
            with self.document.collect():
                if algorithm is not None and not algorithm.hears_teachers and task.objective.trains_otherwise:
                    message = f"algorithm '{algorithm.name}' makes the loss of its tasks by itself; leave it out"
                    self.fail(("tasks", name, "loss"), f"tasks.{name}.loss: {message}", key=True)

    def _check_adapters(self, parts: dict[str, Any]) -> None:
        """Check that the tasks that are to train the encoder are some of the recipe's, and that it is trained."""
        adapters = parts["adapters"]
        if adapters is None or adapters.trained_by is None:
            return
        path, known = ("adapters", "trained_by"), list(parts["tasks"])
        if adapters.encoder == "frozen":
            self.fail(
                path, "adapters.trained_by: the encoder is frozen; leave it out, or set encoder: trained", key=True
            )
        if known and set(adapters.trained_by) >= set(known):
            self.fail(path, "adapters.trained_by: leaves no task that has adapters; leave `adapters` out", key=True)
        algorithm = parts["algorithm"]
        groups = algorithm.groups(known) if algorithm is not None else ()
        if len(apart := [group for group in groups if not set(adapters.trained_by).isdisjoint(group)]) > 1:
            message = f"adapters.trained_by: algorithm '{algorithm.name}' trains {len(apart)} encoders for these tasks"
            self.fail(path, f"{message}; name those of one", key=True)
        for name in dict.fromkeys(adapters.trained_by):
            if name not in known:
                message = f"adapters.trained_by names no task of this recipe: {quote(name)}{choose(name, known)}"
                self.fail(path, message, key=True)

    def _check_shares(self, parts: dict[str, Any]) -> None:
        """Check that the shares of a budget are those of tasks that train alone, of all of them."""
        budget, algorithm, tasks = parts["budget"], parts["algorithm"], self.document.data.get("tasks")
        if budget is None or budget.shares is None or not isinstance(tasks, dict) or not tasks:
            return
        path, known = ("budget", "shares"), list(tasks)
        if budget.examples is None:
            self.fail(path, "budget.shares divides budget.examples, and there is none; give it examples", key=True)
        if len(known) == 1:
            self.fail(path, "budget.shares: there is one task, so nothing to divide; leave it out", key=True)
        elif algorithm is not None and len(algorithm.groups(known)) == 1:
            message = f"budget.shares: algorithm '{algorithm.name}' trains all tasks together; leave it out"
            instead = "`sampler` divides where a step draws tasks, `batch_size` where it takes all"
            self.fail(path, f"{message}, {instead}", key=True)
        self._check_task_names(budget.shares, known, path)
        unknown = sum(name not in known for name in budget.shares)
        missing = [name for name in known if name not in budget.shares]
        for name in missing[unknown:]:  # as many may be those, misspelt
            self.fail(path, f"budget.shares gives no share for task {quote(name)}; add it", key=True)

    def _check_training(self, parts: dict[str, Any]) -> None:
        """Check steps, evaluation, learning rates and schedules against the tasks and the algorithm."""
        tasks, algorithm = _valid_tasks(parts), parts["algorithm"]
        training, evaluation = parts["training"], parts["evaluation"]
        if training is not None:
            budgeted = getattr(parts["budget"], "examples", None) is not None  # then it needs neither
            given = [training.steps, training.epochs].count(None)
            if given == 0 or (given == 2 and not budgeted):
                self.fail(("training",), "training needs either steps or epochs; give one of them")
            if training.epochs and algorithm is not None and not budgeted:
                self._check_epochs(algorithm, ("training", "epochs"))
            together = [name for name, task in tasks.items() if task.objective.labelled == "texts"]
            if together and (training.shards or 1) > 1:
                message = f"training.shards cuts batches, and task '{together[0]}' tells each example from all others"
                self.fail(("training", "shards"), f"{message} of its batch; leave it out, or set it to 1", key=True)
        if evaluation is not None:
            self._check_evaluation(evaluation, tasks)
            with self.document.collect():
                self._check_calibration(evaluation, tasks)
            if evaluation.every == "epoch" and algorithm is not None:
                self._check_epochs(algorithm, ("evaluation", "every"))
            if evaluation.every is None and training is not None and training.stop is not None:
                message = "training.stop goes by evaluations on the way, and evaluation.every is null; give it steps"
                self.fail(("training", "stop"), message, key=True)
        for path in (("optimizer",), ("algorithm", "inner_optimizer")):
            options = parts["optimizer"] if len(path) == 1 else getattr(algorithm, "inner_optimizer", None)
            self._check_head_lr(getattr(options, "head_lr", None), tasks, (*path, "head_lr"))
        if isinstance(getattr(algorithm, "inner_schedule", None), Plateau):
            message = "algorithm.inner_schedule cannot be plateau, an inner loop has no metric; use step or cosine"
            self.fail(("algorithm", "inner_schedule"), message)

    def _check_head_lr(self, rates: Any, tasks: Mapping[str, Task], path: KeyPath) -> None:
        if isinstance(rates, dict) and tasks:
            self._check_task_names(rates, tasks, path)

    def _check_task_names(self, given: Iterable[str], tasks: Collection[str], path: KeyPath) -> None:
        """Check that the keys of the mapping at `path` are tasks of the recipe."""
        for name in given:
            if name not in tasks:
                message = f"{'.'.join(map(str, path))} names no task of this recipe: {quote(name)}{choose(name, tasks)}"
                self.fail((*path, name), message, key=True)

    def _fail_options(self, path: KeyPath, faults: Iterable[tuple[str, str]]) -> None:
        """Add the (option, message) pairs that the `check` of the part at `path` yields."""
        for option, message in faults:
            full = (*path, *option.split("."))
            self.fail(full, f"{'.'.join(map(str, full))} {message}")

    def _check_task(self, name: str, task: Task, longest: Any) -> None:
        path = ("tasks", name)
        if isinstance(task.dev, str) and SHARE.fullmatch(task.dev):
            message = f"{quote(task.dev)} is no file name; a share of the training file is {{fraction: 0.1}}"
            self.fail((*path, "dev"), f"tasks.{name}.dev: {message}")
        self._fail_options(path, task.check())
        if task.head == "hf" and (task.inputs == "separate" or task.objective.labelled == "words"):
            message = "hf takes one sequence, and this task has two; set pair_mode: cross"
            if task.inputs != "separate":
                message = "hf has one answer for a text, and this task one for each word; leave it out"
            elif task.objective.labelled == "texts":
                message = "hf takes one sequence, and this task compares vectors of several; leave it out"
            self.fail((*path, "head"), f"tasks.{name}.head: {message}")
        if task.both_orders and (task.inputs == "single" or task.objective.labelled == "words"):
            message = "both is for pairs with one answer each, which this task has not; leave it out"
            self.fail((*path, "orders"), f"tasks.{name}.orders: {message}")
        elif task.both_orders and takes_sequences(task):
            message = "both is for heads that take pooled vectors, and this task's takes whole sequences; leave it out"
            self.fail((*path, "orders"), f"tasks.{name}.orders: {message}")
        if task.long is not None:
            self._fail_options(path, _long_faults(task, longest))
        for split in ("train", "dev", "test"):
            if getattr(task, split) == SAMPLE and inspect.unwrap(type(task).sample) is Task.sample:
                self.fail((*path, split), f"task '{task.name}' has no sample data; name a file")
            self._check_address(getattr(task, split), (*path, split))
        self._check_metrics(path, task)
        for part, of in task.parts.items():
            own = (*path, task.option_of_parts, part)
            if not TASK_NAME.fullmatch(part):
                message = f"label name {quote(part)} is not allowed; use a letter, then at most 63 of a-z 0-9 _ -"
                self.fail(own, message, key=True)
            self._fail_options(own, of.check())
            self._check_metrics(own, of)

    def _check_metrics(self, path: KeyPath, task: Task) -> None:
        for metric in task.metrics:
            try:
                part = self.registry.get("metric", metric, self.document.place((*path, "metrics")))
            except MtmetaError as error:
                self.document.problems.append(error)
            else:
                if not part.fits(task.objective):
                    self._fail_metric(path, task, metric)

    def _fail_metric(self, path: KeyPath, task: Task, metric: str) -> None:
        """Say that a metric makes no sense for a task's labels, and which of the metrics do."""
        known = self.registry.names("metric")
        fitting = [one for one in known if self.registry.get("metric", one, "metrics").fits(task.objective)]
        what = {
            "one": "a class",
            "row": "sets of labels",
            "words": "a class for each word",
            "texts": "which text is the right one",
        }[task.objective.labelled]
        name = path[-1]
        message = f"metric {quote(metric)} makes no sense for task '{name}', which predicts {what}"
        if not task.objective.classes and task.objective.labelled != "texts":
            numbers = "several numbers" if task.objective.labelled == "row" else "a number"
            message = f"metric {quote(metric)} needs classes, task '{name}' predicts {numbers}"
        self.fail((*path, "metrics"), f"{message}; use {', '.join(fitting)}")

    def _check_address(self, file: Any, path: KeyPath) -> None:
        if isinstance(file, str) and is_remote(file):
            try:
                parse_file(part_address(file)[0])
            except ValueError as error:
                self.fail(path, f"{'.'.join(map(str, path))}: {quote(file)} {error}")

    def _check_epochs(self, algorithm: Algorithm, path: KeyPath) -> None:
        try:
            algorithm.steps_per_epoch({"": 1})
        except MtmetaError as error:
            self.fail(path, f"{'.'.join(map(str, path))}: {error.message}")

    def _check_evaluation(self, evaluation: EvaluationOptions, tasks: dict[str, Task]) -> None:
        if evaluation.select != "mean" and evaluation.select not in scored_tasks(tasks) and tasks:
            known = ["mean", *scored_tasks(tasks)]
            message = f"evaluation.select must be one of {', '.join(known)}, found {quote(evaluation.select)}"
            self.fail(("evaluation", "select"), message + did_you_mean(evaluation.select, known))
        for split in dict.fromkeys((evaluation.select_on, evaluation.report_on)):
            for name, task in tasks.items():
                if getattr(task, split) is None:
                    message = f"task '{name}' has no {split} file, which evaluation uses; add '{split}:'"
                    self.fail(("tasks", name), message)

    def _check_calibration(self, evaluation: EvaluationOptions, tasks: Mapping[str, Task]) -> None:
        if evaluation.calibrate and tasks and not any(has_temperature(task.objective) for task in tasks.values()):
            message = "no task of this recipe has probabilities that a temperature can be fitted to; leave it out"
            self.fail(("evaluation", "calibrate"), f"evaluation.calibrate: {message}")


def _default(data: Mapping[str, Any], key: str, default: Any) -> Any:
    """Return the value under `key`, or the default where there is none or null."""
    value = data.get(key)
    return default if value is None else value


def _valid_tasks(parts: Mapping[str, Any]) -> dict[str, Task]:
    return {name: task for name, task in parts["tasks"].items() if task is not None}


def _long_faults(task: Task, longest: Any) -> Iterator[tuple[str, str]]:
    """Yield (option, what is wrong) where texts cannot be read in windows of what the encoder takes, `longest`."""
    if task.inputs != "single":
        yield "long", "is for tasks of one text, and this one has several; leave it out"
    elif task.objective.labelled == "words":
        yield "long", "is not needed, texts whose words have labels are never cut; leave it out"
    elif takes_sequences(task):
        yield "long", "is for heads that take pooled vectors, and this task's takes whole sequences; leave it out"
    elif task.head == "hf":
        yield "long", "does not go with head: hf, which takes one sequence; leave one of them out"
    elif task.long is not None and task.long.stride >= task.long.window:
        yield "long.stride", f"must be below the window, which is {task.long.window}, found {task.long.stride}"
    elif task.long is not None and isinstance(longest, int) and (message := task.long.too_wide(longest)):
        yield "long.window", message


def _with_dev_seed(task: Any, seed: int) -> Any:
    """Return the task, with the recipe's seed for a dev split that names none of its own."""
    if task is None or not isinstance(task.dev, Carve) or task.dev.seed is not None:
        return task
    return replace(task, dev=replace(task.dev, seed=seed))
