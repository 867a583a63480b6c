"""Plugin-based multi-task meta-learning for BERT-family encoders.

Everything here is the public API; plugins, the built-in ones included, import nothing else. Names that need torch are
loaded when first used, so `import mtmeta` stays light.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

from mtmeta.core.api.backbone import (
    AdapterPlaces,
    LoadedBackbone,
    LoadedTokenizer,
    LowRankSum,
    Portable,
    SequenceHead,
    Tokenizer,
)
from mtmeta.core.api.contracts import (
    Algorithm,
    Backbone,
    Draw,
    Example,
    Excursion,
    Feed,
    Job,
    JobState,
    Launcher,
    Learner,
    Metric,
    PairTask,
    Reporter,
    Sampler,
    Task,
    Unrolled,
)
from mtmeta.core.api.hookspecs import hookimpl
from mtmeta.core.api.losses import ClassLoss
from mtmeta.core.api.multi_output import MultiOutput
from mtmeta.core.api.objectives import Binary, Classification, Confusion, Objective, Regression
from mtmeta.core.api.optimizers import SGD, AdamW, OptimizerOptions
from mtmeta.core.api.option_types import (
    Carve,
    Fraction,
    InnerState,
    Inputs,
    LongText,
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
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.storage.atomic import staged_folder
from mtmeta.core.storage.disk import RunFiles
from mtmeta.core.tables.bad_rows import is_missing
from mtmeta.core.tables.data_file import DataFile, Dialect, Record, Row
from mtmeta.core.wording import did_you_mean, quote, safe

if TYPE_CHECKING:
    from mtmeta.core.api.batch import Batch, Features, Packed
    from mtmeta.core.api.events import Event, Scalar, scalars
    from mtmeta.core.api.heads import (
        ChoiceHead,
        CoralHead,
        CosineHead,
        CosinePrototypeHead,
        LinearHead,
        MLPHead,
        PrototypeHead,
        VectorHead,
        WordHead,
    )
    from mtmeta.core.python.functions import (
        adapt,
        compare,
        curve,
        evaluate,
        export,
        plan,
        read_recipe,
        report,
        tune,
        validate,
    )
    from mtmeta.core.python.published import load, push_to_hub
    from mtmeta.core.python.results import (
        Adaptation,
        Checked,
        Comparison,
        Exported,
        LearningCurve,
        Plan,
        Run,
        Scores,
        Search,
    )
    from mtmeta.core.python.serving import serve
    from mtmeta.core.python.streaming import events
    from mtmeta.core.python.task_data import TaskData, classification, pair_classification, regression, similarity, task
    from mtmeta.core.python.training import run, train
    from mtmeta.core.run.predictor import Prediction, Predictor
    from mtmeta.core.storage.sources import Sources

__version__ = _version("mtmeta")

_LAZY = {
    name: f"mtmeta.core.{module}"
    for module, names in (
        ("api.batch", "Batch Features Packed"),
        ("api.events", "Event Scalar scalars"),
        ("api.heads", "ChoiceHead CoralHead CosineHead CosinePrototypeHead LinearHead MLPHead PrototypeHead"),
        ("api.heads", "VectorHead WordHead"),
        ("run.predictor", "Prediction Predictor"),
        ("python.functions", "adapt compare curve evaluate export plan read_recipe report tune validate"),
        ("python.published", "load push_to_hub"),
        ("python.results", "Adaptation Checked Comparison Exported LearningCurve Plan Run Scores Search"),
        ("python.serving", "serve"),
        ("python.streaming", "events"),
        ("python.task_data", "TaskData classification pair_classification regression similarity task"),
        ("python.training", "run train"),
        ("storage.sources", "Sources"),
    )
    for name in names.split()
} | {
    # by name only: plugins stand above what they import
    name: f"mtmeta.plugins.algorithms.{module}"
    for module, name in (
        ("anil", "Anil"),
        ("fomaml", "Fomaml"),
        ("individual", "Individual"),
        ("joint", "Joint"),
        ("maml", "Maml"),
        ("metasgd", "MetaSgd"),
        ("protonet", "Protonet"),
        ("reptile", "Reptile"),
        ("surgery.surgery", "Surgery"),
        ("surgery.weighting", "Weighting"),
    )
}
_NEED_TORCH = (
    *("adapt", "compare", "curve", "evaluate", "events", "export", "load", "plan", "push_to_hub", "report", "run"),
    *("serve", "train", "tune", "validate"),
)
"""Functions that look first whether PyTorch is new enough."""

__all__ = [
    "SGD",
    "AdamW",
    "Adaptation",
    "AdapterPlaces",
    "Algorithm",
    "Anil",
    "Backbone",
    "Batch",
    "Binary",
    "Carve",
    "Checked",
    "CheckpointError",
    "ChoiceHead",
    "ClassLoss",
    "Classification",
    "Comparison",
    "Confusion",
    "Constant",
    "CoralHead",
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
    "Exported",
    "Features",
    "Feed",
    "Fomaml",
    "Fraction",
    "Incomplete",
    "Individual",
    "InnerState",
    "Inputs",
    "Job",
    "JobState",
    "Joint",
    "Launcher",
    "Learner",
    "LearningCurve",
    "LinearHead",
    "LoadedBackbone",
    "LoadedTokenizer",
    "LongText",
    "LowRankSum",
    "MLPHead",
    "MachineError",
    "Maml",
    "MetaSgd",
    "Metric",
    "MtmetaError",
    "MultiOutput",
    "NonNegativeFloat",
    "Objective",
    "OptimizerOptions",
    "Packed",
    "PairTask",
    "Plan",
    "PluginError",
    "Portable",
    "PositiveFloat",
    "PositiveInt",
    "Prediction",
    "Predictor",
    "Problems",
    "Protonet",
    "PrototypeHead",
    "Recipe",
    "RecipeError",
    "Record",
    "Regression",
    "Reporter",
    "Reptile",
    "Row",
    "Run",
    "RunFiles",
    "Sampler",
    "Scalar",
    "ScheduleOptions",
    "Scores",
    "Search",
    "SequenceHead",
    "Sources",
    "Step",
    "Surgery",
    "Task",
    "TaskData",
    "Tokenizer",
    "Unrolled",
    "UsageError",
    "VectorHead",
    "Weighting",
    "WeightsError",
    "WordHead",
    "__version__",
    "adapt",
    "cache_folder",
    "classification",
    "compare",
    "curve",
    "did_you_mean",
    "evaluate",
    "events",
    "export",
    "hookimpl",
    "is_missing",
    "load",
    "pair_classification",
    "plan",
    "push_to_hub",
    "quote",
    "read_recipe",
    "regression",
    "report",
    "run",
    "safe",
    "scalars",
    "serve",
    "similarity",
    "staged_folder",
    "task",
    "train",
    "tune",
    "validate",
    "why_unsafe",
]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'mtmeta' has no attribute {name!r}")
    if name in _NEED_TORCH:
        check_torch()
    value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
