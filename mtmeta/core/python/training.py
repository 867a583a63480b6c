"""`mtmeta.run` and `mtmeta.train`: runs of recipes that are files, objects, or made of data in memory."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.api.contracts import Algorithm, Backbone
from mtmeta.core.api.events import Event
from mtmeta.core.api.option_types import SAMPLE
from mtmeta.core.distributed.ranks import ranks_of
from mtmeta.core.errors import DataError, RecipeError
from mtmeta.core.python.results import Run
from mtmeta.core.python.rows import RowFiles
from mtmeta.core.python.tables import shown
from mtmeta.core.python.task_data import Rows, TaskData, in_order
from mtmeta.core.recipe.from_python import PLACE, RecipeSource, as_plain
from mtmeta.core.recipe.reader import TASK_NAME
from mtmeta.core.run.request import RunRequest
from mtmeta.core.run.run import train as train_request
from mtmeta.core.signals import StopRequest
from mtmeta.core.storage.addresses import is_remote
from mtmeta.core.storage.download import Watcher
from mtmeta.core.wording import quote

PASSES = 3
"""Times that training goes over the data where nobody says how long it is."""
EVALUATIONS = 5
"""Evaluations in that time."""
META = {"reptile": {"name": "sgd", "lr": 1.0}}
"""The optimizer of an outer step where it is not the usual one."""
OUTER = {"name": "adamw", "lr": 1e-4, "head_lr": 3e-3}
BUILT_IN = ("embedded", "tiny")


def run(
    recipe: RecipeSource,
    *,
    overrides: Sequence[str] = (),
    out: str | Path | None = None,
    data_root: str | None = None,
    device: str = "auto",
    fresh: bool = False,
    allow_changed_data: bool = False,
    allow_inexact: bool = False,
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    on_event: Callable[[Event], None] | None = None,
    warn: Callable[[str], None] = lambda text: None,
    watcher: Watcher | None = None,
    stop: StopRequest | None = None,
) -> Run:
    """Train a recipe, evaluate its best weights and return the summary that summary.json holds.

    `recipe` is a path, the name of one that comes with mtmeta, a mapping as YAML would give it (parts may stand in it
    as objects, such as `mtmeta.Reptile()`), a Recipe, or a run directory, whose run goes on. In a directory that holds
    an unfinished run of the same recipe, goes on from its newest checkpoint. `plugins` are classes of parts, and
    metrics, that stand in no package. `on_event` hears of every event; what it raises ends the run. What the recipe
    names elsewhere and is not in the cache is fetched, of which `watcher` hears. `stop` is how the command line has
    signals end the run between two steps. Raises MtmetaError; nothing in the run directory changes unless recipe, data
    and weights are all in order.
    """
    request = RunRequest(
        recipe=recipe,
        overrides=overrides,
        out=out,
        data_root=data_root,
        device=device,
        fresh=fresh,
        allow_changed_data=allow_changed_data,
        allow_inexact=allow_inexact,
        block=block,
        plugins=plugins,
        on_event=on_event,
        warn=warn,
        watcher=watcher,
        stop=stop,
        ranks=ranks_of(),
    )
    return Run(train_request(request).plain(), request)


def train(
    tasks: Mapping[str, TaskData | Mapping[str, Any]],
    *,
    out: str | Path,
    backbone: str | Mapping[str, Any] | Backbone = "embedded",
    algorithm: str | Mapping[str, Any] | Algorithm | None = None,
    steps: int | None = None,
    epochs: int | None = None,
    seed: int = 0,
    plugins: Sequence[Any] = (),
    on_event: Callable[[Event], None] | None = None,
    device: str = "auto",
    fresh: bool = False,
    allow_inexact: bool = False,
    block: Sequence[str] = (),
    warn: Callable[[str], None] = lambda text: None,
    watcher: Watcher | None = None,
    stop: StopRequest | None = None,
    **sections: Any,
) -> Run:
    """Train on data in memory, evaluate the best weights and return the summary, with `predict` and more.

    `tasks` are `mtmeta.classification(texts, labels, dev=...)` and the like, or mappings as recipes have them, by names
    of their own. `backbone` is `embedded`, a folder, a model of the hub, or as recipes have it. `algorithm` is a name,
    a mapping or an object such as `mtmeta.Reptile()`; by default joint, of one task individual. `steps` or `epochs` say
    how long; by default the data is gone over 3 times. `sections` are the others of a recipe: optimizer, schedule,
    sampler, training, budget, evaluation, checkpoint, data, adapters, teachers, reporters, name; those that are left
    out are as `mtmeta new recipe` writes them.

    The rows are written once into `out`/rows, under names that hold their hash, and the run's recipe names them: the
    same call goes on where the run was cut, `mtmeta run OUT` does so from the shell, and all other commands take `out`
    as any run. Of rows that come one by one no more than a block is in memory. Raises MtmetaError; then no rows stay.
    """
    files = RowFiles(Path(out))
    with files.kept_if_used():
        written = _written(tasks, files)
        data = _recipe(written, backbone, algorithm, steps=steps, epochs=epochs, sections=sections)
        return run(
            {"name": _name_of(Path(out)), "seed": seed, **data, "data_root": str(files.folder.absolute())},
            out=out,
            data_root=str(files.folder.absolute()),
            device=device,
            fresh=fresh,
            allow_inexact=allow_inexact,
            block=block,
            plugins=plugins,
            on_event=on_event,
            warn=warn,
            watcher=watcher,
            stop=stop,
        )


# ---------------------------------------------------------------------------------------------------------- the tasks


class _Written:
    """Tasks as recipes have them, and how many training examples each has, as far as that is known."""

    def __init__(self) -> None:
        self.tasks: dict[str, dict[str, Any]] = {}
        self.rows: dict[str, int] = {}


def _written(tasks: Any, files: RowFiles) -> _Written:
    """Write the rows of every task. Raises MtmetaError."""
    if not isinstance(tasks, Mapping) or not tasks:
        raise RecipeError("tasks", 'must be a mapping; write {"sst": mtmeta.classification(texts, labels, dev=...)}')
    written = _Written()
    for name, task in tasks.items():
        if not isinstance(name, str) or not TASK_NAME.fullmatch(name):
            message = f"task name {quote(name)} is not allowed; use a letter, then at most 63 of a-z 0-9 _ -"
            raise RecipeError("tasks", message)
        if isinstance(task, TaskData):
            written.tasks[name], written.rows[name] = _write_task(name, task, files)
        elif isinstance(task, Mapping):
            written.tasks[name] = _from_here(task)
        else:
            message = f"is {shown(task)}; give mtmeta.classification(...) or the like, or a mapping"
            raise RecipeError(f"tasks.{name}", message)
    return written


def _write_task(name: str, task: TaskData, files: RowFiles) -> tuple[dict[str, Any], int]:
    """Write the splits of a task; return it as recipes have it, and the number of its training examples."""
    options = {key: as_plain(value, ("tasks", name, key)) for key, value in task.options.items()}
    data: dict[str, Any] = {"task": task.task, **task.splits}
    count = 0
    for split in task.in_memory:
        rows = Rows(task, split, f"tasks.{name}.{split}")
        data[split] = files.write(name, split, rows)
        if split == "train":
            count = rows.count
            if task.kind == "class" and "labels" not in options:
                options["labels"] = rows.classes or in_order(rows.seen)
                if len(options["labels"]) < 2:
                    shown = ", ".join(map(quote, options["labels"])) or "none"
                    raise DataError(f"tasks.{name}.train", f"has one class ({shown}); there is nothing to learn")
    if task.kind != "rows":
        data |= {"text": "text", "label": "label", **({"pair": "pair"} if task.pair else {})}
    return {**data, **options}, count


def _from_here(task: Mapping[str, Any]) -> dict[str, Any]:
    """Return a task with paths that hold wherever data is looked for."""
    paths = {
        split: os.path.abspath(os.path.expanduser(given))
        for split in ("train", "dev", "test")
        if isinstance(given := task.get(split), str | os.PathLike) and given != SAMPLE and not is_remote(str(given))
    }
    return {**task, **paths}


# ---------------------------------------------------------------------------------------------------------- the recipe


def _recipe(
    written: _Written,
    backbone: str | Mapping[str, Any] | Backbone,
    algorithm: str | Mapping[str, Any] | Algorithm | None,
    *,
    steps: int | None,
    epochs: int | None,
    sections: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the whole recipe: what was asked for, and for the rest what `mtmeta new recipe` would write."""
    if "tasks" in sections or "data_root" in sections:
        raise RecipeError(PLACE, "train() makes 'tasks' and 'data_root' itself; leave them out of the sections")
    if algorithm is None:
        algorithm = "individual" if len(written.tasks) == 1 else "joint"
    method: Any = as_plain(algorithm, ("algorithm",))
    name = method.get("name") if isinstance(method, dict) else method
    encoder = _backbone(backbone)
    lr = 2e-4 if encoder.get("weights", "embedded") in BUILT_IN else 3e-5
    learning = {"name": "adamw", "lr": lr, "head_lr": 1e-3}
    inner = isinstance(method, dict) and "inner_optimizer" in method
    optimizer = META.get(str(name)) or (OUTER if inner or name in ("fomaml", "maml", "anil", "metasgd") else learning)
    given = dict(sections)
    training = {"clip": 1.0, **_mapping(given.pop("training", None), "training")}
    training |= {key: value for key, value in (("steps", steps), ("epochs", epochs)) if value is not None}
    recipe: dict[str, Any] = {
        "backbone": encoder,
        "tasks": written.tasks,
        "algorithm": method,
        "optimizer": optimizer,
        "schedule": "cosine",
        "training": training,
    }
    if not {"steps", "epochs"} & set(training) and given.get("budget") is None:
        recipe |= _default_length(written, name, method)
    return {**recipe, **{key: as_plain(value, (key,)) for key, value in given.items() if value is not None}}


def _mapping(value: Any, key: str) -> dict[str, Any]:
    plain = {} if value is None else as_plain(value, (key,))
    if not isinstance(plain, dict):
        raise RecipeError(PLACE, f"{key} must be a mapping, found {quote(plain)}")
    return plain


def _default_length(written: _Written, name: Any, method: Any) -> dict[str, Any]:
    """Return budget and evaluation for a few passes over the data, whatever a step of the algorithm is."""
    if set(written.rows) != set(written.tasks):
        raise RecipeError(PLACE, "how long to train is not clear of tasks from files; give steps=... or epochs=...")
    examples = PASSES * sum(written.rows.values())
    sizes = [task.get("batch_size", 32) for task in written.tasks.values()]
    inner = [task.get("inner_steps", 4) for task in written.tasks.values()]
    if name in ("joint", "individual"):
        a_step = sum(sizes) if name == "joint" else max(sizes)
    else:
        several = method.get("tasks_per_step", 1) if isinstance(method, dict) else 1
        a_step = several * sum(size * count for size, count in zip(sizes, inner, strict=True)) / len(sizes)
    every = max(1, math.ceil(examples / max(1, a_step) / EVALUATIONS))
    return {"budget": {"examples": max(examples, math.ceil(a_step))}, "evaluation": {"every": every}}


def _backbone(given: str | Mapping[str, Any] | Backbone) -> dict[str, Any]:
    """Return the encoder as recipes have it: weights of `bert`, or NAME:WEIGHTS of another backbone."""
    if not isinstance(given, str):
        return dict(_mapping(given, "backbone"))
    name, colon, weights = given.partition(":")
    if not colon or weights.startswith("//") or os.sep in name or Path(given).exists():
        name, weights = "bert", given
    return {"name": name, "weights": weights}


def _name_of(out: Path) -> str:
    """Return the name of a run: that of its folder, without characters that names may not have."""
    kept = "".join(letter if letter.isascii() and (letter.isalnum() or letter in "._-") else "_" for letter in out.name)
    return kept.lstrip("._-")[:100] or "run"
