"""The fixed sections of a recipe, each a frozen dataclass with a line of help under every option."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from mtmeta.core.api.contracts import Algorithm, Backbone, Reporter, Sampler, Task, scored_tasks
from mtmeta.core.api.optimizers import OptimizerOptions
from mtmeta.core.api.option_types import Fraction, LeaveOut, NonNegativeFloat, PositiveFloat, PositiveInt
from mtmeta.core.api.schedules import ScheduleOptions
from mtmeta.core.tables.data_file import Dialect

RECIPE_FORMAT = 1
Split = Literal["dev", "test"]


@dataclass(frozen=True, kw_only=True)
class DataOptions(Dialect):
    """How data files are read."""

    on_bad_rows: Literal["error", "skip"] = "error"
    """`error` names file and line; `skip` leaves bad rows out, counts and shows them."""
    train_fraction: Fraction = 1.0
    """Share of each training set to use, a seeded subset stratified by label."""
    leave_out: LeaveOut | None = None
    """A part of each training set to leave out, {folds: 5, fold: 2}; default: none."""


@dataclass(frozen=True, kw_only=True)
class AdapterOptions:
    """Low-rank weights beside the encoder's, of each task or of all: W + (alpha / rank) B_t A_t (Hu et al. 2022).

    B_t begins as zeros, so that the first step is that of the plain encoder.
    """

    kind: Literal["lora"] = "lora"
    """The kind of adapter."""
    rank: Annotated[int, Field(ge=1, le=1024)] = 8
    """Rank of B_t A_t."""
    alpha: PositiveFloat = 16.0
    """Scale of B_t A_t, over `rank`."""
    per: Literal["task", "all"] = "task"
    """`task`: each task has adapters of its own; `all`: all tasks share one set, a start for tasks to come."""
    on: Annotated[tuple[Literal["qkv", "out", "up", "down"], ...], Field(min_length=1)] = ("qkv", "out", "up", "down")
    """Matrices of a layer that have adapters: of queries, keys and values, attention's output, and the two between."""
    layers: Literal["all"] | Annotated[str, Field(pattern="^last [1-9][0-9]{0,3}$")] = "all"
    """`all`, or `last N` for the N layers next to the heads."""
    norms: bool = True
    """Whether these layers also have LayerNorms of the task's own, which begin as the encoder's."""
    encoder: Literal["trained", "frozen"] = "trained"
    """`frozen`: the encoder stays as it is, and is kept once, not in every checkpoint."""
    trained_by: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None = None
    """Tasks that train the encoder itself and have no adapters; the gradients of all others stop at theirs. Default:
    each task trains both, its adapters and the encoder."""

    def adapts(self, task: str) -> bool:
        """Return whether a task has adapters, and is not one of those that train the encoder itself."""
        return task not in (self.trained_by or ())

    def trained_of(self, tasks: Iterable[str]) -> list[str]:
        """Return which of some tasks train the encoder."""
        return [name for name in tasks if self.encoder == "trained" and name in (self.trained_by or (name,))]


@dataclass(frozen=True, kw_only=True)
class AverageOptions:
    """Averaged weights, which evaluation, selection, checkpoints of the best and export use; training goes on without.

    The average begins as the weights at its first step (Izmailov et al. 2018; Morales-Brotons et al. 2024).
    """

    kind: Literal["ema", "swa"] = "ema"
    """`ema`: bar <- decay bar + (1 - decay) theta after every step; `swa`: the mean of all since it began."""
    decay: Annotated[float, Field(gt=0, lt=1)] = 0.99
    """What `ema` keeps of the average at each step; `swa` has none."""
    begin: Annotated[float, Field(ge=0, lt=1)] = 0.3
    """Share of the steps before the average begins; until then the weights themselves are evaluated."""

    written: ClassVar[Mapping[str, str]] = {"begin": "from"}  # which is no name in Python


@dataclass(frozen=True, kw_only=True)
class StopOptions:
    """Early stopping: training ends where the metric that selects has not become better for some evaluations.

    Each learner stops by itself: with `individual`, each task by its own metric. `steps`, `epochs` or the budget are
    the most it takes, and what schedules and averages go by.
    """

    patience: PositiveInt = 5
    """Evaluations in a row without a better value, after which training ends."""
    min_delta: NonNegativeFloat = 0.0
    """A value is better if it is so by more than this than the best one that was."""


@dataclass(frozen=True, kw_only=True)
class TeacherOptions:
    """The teachers of one task: `teachers: {sst: {runs: [runs/my-teachers], folds: 5}}`.

    Of several runs the mean of what they say counts.
    """

    runs: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    """Folders in which `mtmeta teach` left labels of the task: outputs of its own, or runs that it had label the
    training set. Paths are from the working directory, as runs/NAME is; `{seed}` in them stands for the recipe's seed,
    for a comparison in which every seed has teachers of its own."""
    folds: Annotated[int, Field(ge=2, le=100)] | None = None
    """Only labels by so many fold models, each of which labelled what it had not seen, and how many `mtmeta teach`
    trains; default: whatever labels the folders hold, also by models that were trained on what they label."""

    def folders(self, seed: int) -> tuple[Path, ...]:
        """Return the folders of `runs` for a recipe of this seed."""
        return tuple(Path(run.replace("{seed}", str(seed))) for run in self.runs)


@dataclass(frozen=True, kw_only=True)
class TeachersOptions:
    """Soft targets beside the labels (Hinton et al. 2015): `teachers: {TASK: {runs: [FOLDER]}, anneal: linear}`.

    Training descends the loss to (1 - trust) label + trust teacher; evaluation goes by labels alone. `mtmeta teach`
    writes what teachers say of the training examples; no teacher is loaded in training. For the options of a task see
    `mtmeta show section teachers.TASK`.
    """

    anneal: Literal["linear"] | Annotated[float, Field(ge=0, le=1)] = "linear"
    """Trust in teachers: `linear` falls from 1 towards 0, as 1 - step / steps (born-again networks), or a number."""


@dataclass(frozen=True, kw_only=True)
class Teachers(TeachersOptions):
    """The section `teachers` as a whole."""

    of: dict[str, TeacherOptions]
    """Options of each task that has teachers."""


@dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How long, and with which numerics."""

    steps: PositiveInt | None = None
    """Outer steps (meta-iterations for reptile and fomaml)."""
    epochs: PositiveInt | None = None
    """Epochs instead of steps, for individual and joint."""
    clip: PositiveFloat | None = None
    """Largest norm of the update direction; applied once, after accumulation."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto`: bf16 on GPUs that have it and on CPUs with AMX (amx_bf16), where the backbone is fast in it, else fp32.
    Weights and optimizer state stay fp32."""
    grad_accumulation: PositiveInt = 1
    """Parts a batch is split into, to save memory; the gradient is that of the whole batch."""
    shards: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Parts that every batch is cut into for many ranks (torchrun), each with a dropout of its own. They are summed in
    fixed point, so that the result is the same for any number of ranks, and another one than without shards. Default:
    none; then only the tasks of a step are spread over ranks."""
    on_nonfinite: Literal["stop", "skip"] = "stop"
    """A non-finite loss or gradient stops the run, or skips that step and counts it."""
    average: AverageOptions | None = None
    """Averaged weights beside those that are trained; default: none."""
    stop: StopOptions | None = None
    """Early stopping by the metric that selects, {patience: 5, min_delta: 0.001}; default: none."""


@dataclass(frozen=True, kw_only=True)
class BudgetOptions:
    """How much training may spend, so that regimes are compared at the same cost."""

    examples: Annotated[int, Field(ge=1, le=10**15)] | None = None
    """Encoder example-forwards, a pair counting as one: the run has as many steps as stay within them, whatever
    `training` says. Learners that train alone (individual) have equal shares, one for each of their tasks, unless
    `shares` says otherwise."""
    shares: dict[str, PositiveFloat] | None = None
    """Of the examples, the part of each task that trains alone (individual), by name: weights that need not sum to 1,
    as {sst: 0.2, para: 0.6, sts: 0.2}. They need `examples`, and name every task; a learner of several tasks has the
    sum of theirs. Refused where one learner trains all: there `sampler` divides if a step draws tasks, `batch_size` if
    it takes all."""


@dataclass(frozen=True, kw_only=True)
class EvaluationOptions:
    """When to evaluate, and what selects the best weights."""

    every: Annotated[int, Field(ge=1, le=10_000_000)] | Literal["epoch"] | None = 20
    """Steps between evaluations, `epoch`, or null for the end only."""
    select_on: Split = "dev"
    """Split that selects the best weights."""
    report_on: Split = "dev"
    """Split of the final table."""
    select: str = "mean"
    """`mean` of the primary metrics, or one task's name. A metric of which less is better, such as mae, counts with its
    sign turned."""
    batch_tokens: PositiveInt = 8192
    """Tokens in one evaluation batch."""
    calibrate: bool = False
    """Whether to fit a temperature for the probabilities of each task with classes, to its best weights on the split
    that selects; `predict` uses it."""
    gradients: bool = False
    """Whether to measure, at every evaluation, the norms of the tasks' gradients on the shared encoder and the cosines
    between them, on one training batch of each task; takes the memory of one gradient a task."""


@dataclass(frozen=True, kw_only=True)
class CheckpointOptions:
    """When to save the whole state."""

    every: PositiveInt | None = None
    """Steps between checkpoints; null for the end, and what `minutes` adds."""
    minutes: PositiveFloat | None = 10.0
    """Minutes after the last checkpoint until another one is due, at the end of a step; what a kill costs at most.
    It stands in no event and goes when the run has got further. Null for none."""
    keep: PositiveInt = 2
    """Newest checkpoints kept."""


SECTIONS: dict[str, type[Any]] = {
    "data": DataOptions,
    "adapters": AdapterOptions,
    "teachers": TeachersOptions,
    "training": TrainingOptions,
    "budget": BudgetOptions,
    "evaluation": EvaluationOptions,
    "checkpoint": CheckpointOptions,
}
OPTIONAL = ("adapters", "teachers")
"""Sections without which there is no such thing; the others have defaults."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A validated recipe: every part an object with its options."""

    name: str
    """What the run is called, and its directory in `runs`: letters, digits, `.`, `_`, `-`; default the file's name."""
    seed: int
    """An integer from 0 that every draw of the run is a function of; default 0."""
    data_root: str
    """Folder that data paths start from; default: the working directory."""
    backbone: Backbone
    """The encoder and its tokenizer."""
    tasks: dict[str, Task]
    """The tasks, each under a name of its own: a letter, then at most 63 of a-z 0-9 _ -."""
    data: DataOptions
    """How data files are read."""
    sampler: Sampler
    """How often each task is drawn; default `uniform`."""
    algorithm: Algorithm
    """How the direction of a step is found."""
    optimizer: OptimizerOptions
    """What takes the steps; with an inner loop, the outer (meta) optimizer."""
    schedule: ScheduleOptions
    """How the learning rate of `optimizer` changes; default `constant`."""
    adapters: AdapterOptions | None = None
    """Low-rank weights of each task's own beside the encoder's; default: none."""
    teachers: Teachers | None = None
    """What other models say of the training examples, to be learned beside the labels; default: none."""
    training: TrainingOptions
    """How long, and with which numerics."""
    budget: BudgetOptions
    """A number of example-forwards in place of a number of steps."""
    evaluation: EvaluationOptions
    """When to evaluate, and what selects the best weights."""
    checkpoint: CheckpointOptions
    """When to save the whole state."""
    reporters: tuple[Reporter, ...]
    """What becomes of the events of a run; default `[console, jsonl]`."""

    @property
    def scored(self) -> dict[str, Task]:
        """The tasks that tables name: of one with several labels for each text a task for each label, in its place."""
        return scored_tasks(self.tasks)

    def owner(self, name: str) -> str:
        """Return the task of the recipe that a name of `scored` belongs to: itself, or the one with that label."""
        return next((task for task, of in self.tasks.items() if name in of.parts), name)
