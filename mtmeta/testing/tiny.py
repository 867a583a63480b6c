"""A learner small enough for a test to compute everything again by hand, and the helpers that the checks share."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

from mtmeta.core.api.contracts import Algorithm, Component, Task
from mtmeta.core.registry.discovery import load_plugins
from mtmeta.core.registry.option_fields import field_docs
from mtmeta.core.registry.registry import PART_NAME, Registry

if TYPE_CHECKING:
    from mtmeta.core.data.feed import Feed
    from mtmeta.core.training.learner import Learner


def builtins() -> Registry:
    """Return the parts that come with mtmeta; other installed plugins have no say in a test."""
    return Registry(load_plugins(environ={"MTMETA_PLUGINS": "none"}))


def tiny_learner(
    tasks: Mapping[str, Task] | None = None,
    *,
    data_root: str = ".",
    seed: int = 0,
    examples: int = 48,
    algorithm: Algorithm | None = None,
    adapters: Mapping[str, Any] | None = None,
) -> tuple[Learner, Feed]:
    """Make a learner on backbone `tiny` without dropout, and a feed of each task's first `examples` training examples.

    `tasks` are instances by name; their `train` is a file under `data_root` or `sample`. Without them there are
    sst, para and sts on sample data, with batches of 4 and 2 inner steps. The same seed gives the same of everything.
    The learner has the numbers that `algorithm` trains beside the model. `adapters` are options of that section.
    """
    import numpy as np

    from mtmeta.core.data.dataset import select
    from mtmeta.core.data.feed import Feed
    from mtmeta.core.data.loading import load_split
    from mtmeta.core.recipe.sections import AdapterOptions, DataOptions
    from mtmeta.core.training.learner import Learner
    from mtmeta.core.training.model import MultiTaskModel

    registry = builtins()
    if tasks is None:
        kinds = {name: registry.get("task", name, "tasks") for name in ("sst", "para", "sts")}
        tasks = {name: kind(train="sample", batch_size=4, inner_steps=2) for name, kind in kinds.items()}
    bert = registry.get("backbone", "bert", "backbone")
    backbone = bert(weights="tiny", max_length=64, dropout=0.0).load(seed)
    datasets = {}
    for name, task in tasks.items():
        dataset = load_split(name, task, "train", DataOptions(), data_root, backbone)
        datasets[name] = select(dataset, np.arange(min(examples, len(dataset))))
    feed = Feed(tasks, datasets, registry.get("sampler", "uniform", "sampler")(), seed=seed)
    numbers = partial(algorithm.parameters_of, list(tasks)) if algorithm is not None else None
    head_of = algorithm.build_head if algorithm is not None else None
    options = AdapterOptions(**adapters) if adapters is not None else None
    model = MultiTaskModel(backbone.encoder, tasks, seed, numbers, head_of, options)
    learner = Learner(model, seed=seed, steps=feed.steps)
    return learner, feed


def check(holds: bool, text: str) -> None:
    """Raise AssertionError with `text` unless `holds`; unlike `assert` also under `python -O`."""
    if not holds:
        raise AssertionError(text)


def check_documented(part: type[Component], base: type[Component]) -> None:
    """Check that a part of the kind `base` has a name for recipes, a docstring, and help under each of its options."""
    name = getattr(part, "name", None)
    check(isinstance(name, str) and bool(PART_NAME.fullmatch(name)), f"name is {name!r}, expected letters, digits, ._-")
    text = inspect.getdoc(part) or ""
    # a dataclass without a docstring has its signature for one
    missing = not text or text == inspect.getdoc(base) or text.startswith(f"{part.__name__}(")
    check(not missing, f"{part.__name__} has no docstring; `mtmeta show` prints it")
    docs = field_docs(part)
    for field in dataclasses.fields(part):
        check(field.name in docs, f"option {field.name} has no help; put a string on the line under it")
