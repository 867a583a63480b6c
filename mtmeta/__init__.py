"""Plugin-based multi-task meta-learning for BERT-family encoders.

Everything here is the public API; plugins, the built-in ones included, import nothing else. Names that need torch are
loaded when first used, so `import mtmeta` stays light.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from mtmeta.core.carve import Carve
from mtmeta.core.contracts import (
    Algorithm,
    Backbone,
    Draw,
    Example,
    Fraction,
    InnerState,
    Inputs,
    LoadedBackbone,
    LoadedTokenizer,
    Metric,
    NonNegativeFloat,
    PairTask,
    PositiveFloat,
    PositiveInt,
    Reporter,
    Sampler,
    Task,
    Tokenizer,
)
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
    did_you_mean,
    quote,
    safe,
)
from mtmeta.core.hookspecs import hookimpl
from mtmeta.core.objectives import Binary, Classification, Objective, Regression
from mtmeta.core.optim import AdamW, OptimizerOptions
from mtmeta.core.portable import Portable
from mtmeta.core.schedules import ScheduleOptions, Step
from mtmeta.core.surroundings import check_torch
from mtmeta.core.tables import DataFile, Dialect, Row

if TYPE_CHECKING:
    from mtmeta.core.compare import compare
    from mtmeta.core.events import Event
    from mtmeta.core.excursion import Excursion
    from mtmeta.core.feed import Feed
    from mtmeta.core.learner import Learner
    from mtmeta.core.model import CosineHead, LinearHead, MLPHead
    from mtmeta.core.packing import Batch, Packed
    from mtmeta.core.predictor import Prediction, Predictor, load
    from mtmeta.core.run import run
    from mtmeta.core.scalars import Scalar, scalars
    from mtmeta.core.score import evaluate
    from mtmeta.core.sources import Sources

__version__ = _version("mtmeta")

_LAZY = {
    "Batch": "mtmeta.core.packing",
    "CosineHead": "mtmeta.core.model",
    "Event": "mtmeta.core.events",
    "Excursion": "mtmeta.core.excursion",
    "Feed": "mtmeta.core.feed",
    "Learner": "mtmeta.core.learner",
    "LinearHead": "mtmeta.core.model",
    "MLPHead": "mtmeta.core.model",
    "Packed": "mtmeta.core.packing",
    "Prediction": "mtmeta.core.predictor",
    "Predictor": "mtmeta.core.predictor",
    "Scalar": "mtmeta.core.scalars",
    "Sources": "mtmeta.core.sources",
    "compare": "mtmeta.core.compare",
    "evaluate": "mtmeta.core.score",
    "load": "mtmeta.core.predictor",
    "run": "mtmeta.core.run",
    "scalars": "mtmeta.core.scalars",
}

__all__ = [
    "AdamW",
    "Algorithm",
    "Backbone",
    "Batch",
    "Binary",
    "Carve",
    "CheckpointError",
    "Classification",
    "CosineHead",
    "DataError",
    "DataFile",
    "Dialect",
    "DivergedError",
    "Draw",
    "Event",
    "Example",
    "Excursion",
    "Feed",
    "Fraction",
    "Incomplete",
    "InnerState",
    "Inputs",
    "Learner",
    "LinearHead",
    "LoadedBackbone",
    "LoadedTokenizer",
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
    "RecipeError",
    "Regression",
    "Reporter",
    "Row",
    "Sampler",
    "Scalar",
    "ScheduleOptions",
    "Sources",
    "Step",
    "Task",
    "Tokenizer",
    "UsageError",
    "WeightsError",
    "__version__",
    "compare",
    "did_you_mean",
    "evaluate",
    "hookimpl",
    "load",
    "quote",
    "run",
    "safe",
    "scalars",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mtmeta' has no attribute {name!r}")
    if name in ("compare", "evaluate", "load", "run"):
        check_torch()
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value
