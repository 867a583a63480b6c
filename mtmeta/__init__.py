"""Plugin-based multi-task meta-learning for BERT-family encoders.

Everything here is the public API; plugins, the built-in ones included, import nothing else. Names that need torch are
loaded when first used, so `import mtmeta` stays light.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from mtmeta.core.api.backbone import AdapterPlaces, LoadedBackbone, LoadedTokenizer, LowRankSum, Portable, Tokenizer
from mtmeta.core.api.contracts import (
    Algorithm,
    Backbone,
    Draw,
    Example,
    Excursion,
    Feed,
    Learner,
    Metric,
    PairTask,
    Reporter,
    Sampler,
    Task,
    Unrolled,
)
from mtmeta.core.api.hookspecs import hookimpl
from mtmeta.core.api.objectives import Binary, Classification, Objective, Regression
from mtmeta.core.api.optimizers import SGD, AdamW, OptimizerOptions
from mtmeta.core.api.option_types import (
    Carve,
    Fraction,
    InnerState,
    Inputs,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
)
from mtmeta.core.api.schedules import Constant, ScheduleOptions, Step
from mtmeta.core.environment import cache_folder, check_torch, why_unsafe
from mtmeta.core.errors import (
    CheckpointError,
    DataError,
    DivergedError,
    Incomplete,
    MachineError,
    MtmetaError,
    PluginError,
    Problems,
    RecipeError,
    UsageError,
    WeightsError,
)
from mtmeta.core.storage.atomic import staged_folder
from mtmeta.core.storage.disk import RunFiles
from mtmeta.core.tables.data_file import DataFile, Dialect, Row
from mtmeta.core.wording import did_you_mean, quote, safe

if TYPE_CHECKING:
    from mtmeta.core.api.batch import Batch, Features, Packed
    from mtmeta.core.api.events import Event
    from mtmeta.core.api.heads import CosineHead, CosinePrototypeHead, LinearHead, MLPHead, PrototypeHead
    from mtmeta.core.api.scalars import Scalar, scalars
    from mtmeta.core.python.results import Run, Scores
    from mtmeta.core.python.task_data import TaskData, classification, pair_classification, regression, similarity, task
    from mtmeta.core.python.training import run, train
    from mtmeta.core.run.evaluate import evaluate
    from mtmeta.core.run.predictor import Prediction, Predictor, load
    from mtmeta.core.storage.sources import Sources
    from mtmeta.core.studies.compare import compare

__version__ = _version("mtmeta")

_LAZY = {
    name: f"mtmeta.core.{module}"
    for module, names in (
        ("api.batch", "Batch Features Packed"),
        ("api.events", "Event"),
        ("api.heads", "CosineHead CosinePrototypeHead LinearHead MLPHead PrototypeHead"),
        ("api.scalars", "Scalar scalars"),
        ("run.evaluate", "evaluate"),
        ("run.predictor", "Prediction Predictor load"),
        ("python.results", "Run Scores"),
        ("python.task_data", "TaskData classification pair_classification regression similarity task"),
        ("python.training", "run train"),
        ("storage.sources", "Sources"),
        ("studies.compare", "compare"),
    )
    for name in names.split()
}

__all__ = [
    "SGD",
    "AdamW",
    "AdapterPlaces",
    "Algorithm",
    "Backbone",
    "Batch",
    "Binary",
    "Carve",
    "CheckpointError",
    "Classification",
    "Constant",
    "CosineHead",
    "CosinePrototypeHead",
    "DataError",
    "DataFile",
    "Dialect",
    "DivergedError",
    "Draw",
    "Event",
    "Example",
    "Excursion",
    "Features",
    "Feed",
    "Fraction",
    "Incomplete",
    "InnerState",
    "Inputs",
    "Learner",
    "LinearHead",
    "LoadedBackbone",
    "LoadedTokenizer",
    "LowRankSum",
    "MLPHead",
    "MachineError",
    "Metric",
    "MtmetaError",
    "NonNegativeFloat",
    "Objective",
    "OptimizerOptions",
    "Packed",
    "PairTask",
    "PluginError",
    "Portable",
    "PositiveFloat",
    "PositiveInt",
    "Prediction",
    "Predictor",
    "Problems",
    "PrototypeHead",
    "RecipeError",
    "Regression",
    "Reporter",
    "Row",
    "Run",
    "RunFiles",
    "Sampler",
    "Scalar",
    "ScheduleOptions",
    "Scores",
    "Sources",
    "Step",
    "Task",
    "TaskData",
    "Tokenizer",
    "Unrolled",
    "UsageError",
    "WeightsError",
    "__version__",
    "cache_folder",
    "classification",
    "compare",
    "did_you_mean",
    "evaluate",
    "hookimpl",
    "load",
    "pair_classification",
    "quote",
    "regression",
    "run",
    "safe",
    "scalars",
    "similarity",
    "staged_folder",
    "task",
    "train",
    "why_unsafe",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mtmeta' has no attribute {name!r}")
    if name in ("compare", "evaluate", "load", "run", "train"):
        check_torch()
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
