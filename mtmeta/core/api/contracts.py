"""What each kind of part must do. Read this and hookspecs.py and you can extend mtmeta.

A part is a frozen dataclass: its fields are its recipe options, the line under a field is that option's help, its
docstring is the part's help. `name` is what recipes call it.

Shapes: `B` batch, `V` vectors an example (2 for pairs that are encoded apart or in both orders, one for each choice of
a question, else 1), `D` hidden, `C` outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from mtmeta.core.api.backbone import LoadedBackbone, LoadedTokenizer
from mtmeta.core.api.option_types import Carve, Inputs, LongText, NonNegativeFloat, Pooling, PositiveFloat, PositiveInt
from mtmeta.core.errors import DataError, PluginError, RecipeError
from mtmeta.core.tables.data_file import DataFile, Dialect
from mtmeta.core.wording import quote

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from mtmeta.core.api.backbone import Portable
    from mtmeta.core.api.batch import Batch, Features
    from mtmeta.core.api.events import Event
    from mtmeta.core.api.objectives import Objective
    from mtmeta.core.api.optimizers import OptimizerOptions
    from mtmeta.core.api.option_types import InnerState
    from mtmeta.core.api.schedules import ScheduleOptions
    from mtmeta.core.storage.sources import Sources


HeadTakes = Literal["pooled", "sequence"]
NOT_POOLED = "has a head that takes whole sequences, and the algorithm goes by pooled vectors"
"""What is wrong with a task for an algorithm that has `by_vectors`."""


@dataclass(frozen=True)
class Component:
    """Anything a recipe can name."""

    name: ClassVar[str]

    @classmethod
    def about(cls) -> Sequence[str]:
        """Return lines for `mtmeta show` after the docstring: facts of the installed package, such as sizes."""
        return ()


# ------------------------------------------------------------------------------------------------------------ tasks


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled text, or pair of texts, or text with its choices.

    A label may be the raw text of the file; the objective parses it. `choices` are further texts after the pair, too,
    where the task has `extra_texts`.
    """

    text: str
    pair: str | None = None
    label: str | int | float | tuple[Any, ...] | None = None
    id: str = ""
    line: int = 0
    choices: tuple[str, ...] = field(default=(), repr=False)  # examples of old have their old digest

    @property
    def texts(self) -> tuple[str, ...]:
        """All texts, in the order of the task's `columns`."""
        return (self.text, *(() if self.pair is None else (self.pair,)), *self.choices)


@dataclass(frozen=True, kw_only=True)
class Task(Component):
    """How data is read, what the head predicts, and what scores it."""

    train: str
    """Training file: a path relative to data_root, `hf://datasets/ORG/NAME@REVISION/FILE`,
    `https://HOST/FILE#sha256=HEX`, or `sample` for the sample data set."""
    dev: str | Carve | None = None
    """Development file, for selection and reports, or {fraction: 0.1} to take it out of the training file
    (with `together: example`, `sentence` or `none`, and a `seed` of its own: what may not stand on both sides)."""
    test: str | None = None
    """Test file; only ever reported."""
    batch_size: PositiveInt = 32
    """Examples in one batch."""
    inner_steps: PositiveInt = 4
    """Inner-loop steps of one episode (reptile, fomaml)."""
    loss_weight: NonNegativeFloat = 1.0
    """Lambda of this task in joint, reptile and fomaml objectives."""
    head: Literal["hf"] | None = None
    """`hf`: the head that transformers' models for sequence classification have, on the first token, so that
    `mtmeta export --format text-classification` can write one; default: the task's own, on the mean over tokens."""
    long: LongText | None = None
    """How texts longer than max_length are read: in windows, {window: 128, stride: 64, pool: mean}; default: they are
    cut. For its options see `mtmeta show section tasks.TASK.long`."""
    dialect: Dialect | None = None
    """How this task's files are read; default: the recipe's `data` section."""

    @property
    def objective(self) -> Objective:
        """What the head predicts and the loss for it."""
        raise NotImplementedError(f"task {self.name!r} declares no objective")

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the metrics; the first is the primary one, used for selection."""
        raise NotImplementedError(f"task {self.name!r} declares no metrics")

    @property
    def inputs(self) -> Inputs:
        """How an example enters the encoder: one text, two texts apart, two texts in one sequence, or `choices`: one
        text with each of several others, `Example.choices`, as many as `columns` names after the first."""
        return "single"

    @property
    def both_orders(self) -> bool:
        """Whether the outputs of a pair are the mean of those for it and for the pair swapped."""
        return False

    @property
    def pooling(self) -> Pooling:
        """What heads take of a sequence's hidden states: their mean over the tokens, or that of the first token."""
        return "first" if self.head == "hf" else "mean"

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the text, of both texts, or of text and choices, in tables without labels for `mtmeta predict`."""
        return ("sentence",) if self.inputs == "single" else ("sentence1", "sentence2")

    @property
    def extra_texts(self) -> int:
        """Texts of a pair's examples, `Example.choices`, that `columns` does not name: only training and scores take
        them, each in a sequence of its own."""
        return 0

    @property
    def text_count(self) -> int:
        """Texts of an example whose inputs are `choices`, the one that they share included: one for each column."""
        return len(self.columns)

    def texts_of(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the texts of an example, as `Example.texts` has them, of a row with the values of `columns`.

        `mtmeta predict` asks for them of tables, which it does not `read`; a task that joins or cleans texts does so
        here, and calls it in `read`. Lists stand in the row as the file has them. Raises ValueError with the reason
        for a row that cannot be used.
        """
        for name in self.columns:
            if not isinstance(row[name], str):
                raise ValueError(f"field {quote(name)} is nested, expected text or a number")
        return tuple(row[name] for name in self.columns)

    def read(self, file: DataFile) -> Iterable[Example]:
        """Yield the examples of `file`; `file.rows("column", ...)` reads tables, `open(file)` anything else.

        What a file gives is kept under its content, the task's options and the source of its class, so it may not
        depend on other files.
        """
        raise NotImplementedError(f"task {self.name!r} cannot read files")

    def sample(self, split: str) -> Iterable[Example]:
        """Yield the sample data of `split` (train, dev, test), for recipes that say `train: sample`."""
        raise DataError(f"task '{self.name}'", "has no sample data; name a file")

    option_of_parts: ClassVar[str] = ""
    """The option under which recipes have the tasks of `parts`, each as options of a task; empty where it has none."""

    @property
    def parts(self) -> Mapping[str, Task]:
        """The tasks whose labels stand side by side in this one's; here none.

        They have the names of the objectives in `objective`, a `mtmeta.MultiOutput`. Each has its own metrics, and a
        head, in one pass with the others; tables, comparisons and reports know them by their names, in the place of
        this task's.
        """
        return {}

    def check(self) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for options that do not fit together."""
        yield from ()

    def for_training(self, counts: Sequence[int]) -> Task:
        """Return the task as it is to be trained on a set with so many examples of each class; here as it is.

        For objectives whose `training_loss` depends on them. `counts` is empty for a task without classes; of a task
        with parts it has those of all of them, one after another.
        """
        return self

    def views(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """Return what the head takes of an example's pooled vectors [B, V, D]; its outputs are the mean over them.

        Here the vectors as they are; of a pair in both orders those of one order after those of the other.
        """
        return (pooled,)

    @property
    def head_takes(self) -> HeadTakes:
        """What the head takes, as its attribute `takes` says, for checks before any head is built: `pooled`, and where
        words have labels `sequence`."""
        return "sequence" if self.objective.labelled == "words" else "pooled"

    def build_head(self, hidden_size: int) -> nn.Module:
        """Return a module from what it takes to the objective's outputs; here Linear, GELU, Linear.

        For choices `mtmeta.ChoiceHead`, where words have labels `mtmeta.WordHead`, and where texts stand together
        `mtmeta.VectorHead`.

        Its attribute `takes` says what that is, as `head_takes` does. `pooled`, which a module without it takes:
        mean-pooled vectors [B, V, D]. `sequence`: hidden states [S, D] of the batch, and the `mtmeta.Packed` batch with
        the boundaries of its sequences. Of a pair in both orders a head takes the vectors of one order at a time, as
        `views` gives them.
        """
        from mtmeta.core.api.heads import ChoiceHead, MLPHead, VectorHead, WordHead
        from mtmeta.core.api.objectives import Regression

        objective = self.objective
        if objective.labelled == "words":
            return WordHead(hidden_size, outputs=objective.outputs)
        if objective.labelled == "texts":
            return VectorHead(hidden_size, outputs=objective.outputs or None)
        if self.inputs == "choices":
            return ChoiceHead(hidden_size)
        outputs = None if isinstance(objective, Regression) else objective.outputs
        return MLPHead(hidden_size, vectors=2 if self.inputs == "separate" else 1, outputs=outputs)


def takes_sequences(task: Task) -> bool:
    """Return whether the head that a task is to have takes whole sequences, and no pooled vectors."""
    return task.head is None and task.head_takes != "pooled"


def scored_tasks(tasks: Mapping[str, Task]) -> dict[str, Task]:
    """Return the tasks that have scores of their own, by name: of a task with parts these, in its place."""
    return {own: part for name, task in tasks.items() for own, part in (task.parts or {name: task}).items()}


def count_texts(task: Task) -> int:
    """Return how many texts are predicted together; examples have `Task.extra_texts` beside them."""
    return task.text_count if task.inputs == "choices" else 1 if task.inputs == "single" else 2


def count_sequences(task: Task) -> int:
    """Return how many sequences of the encoder an example of a task takes, V."""
    if task.inputs == "choices":
        return count_texts(task) - 1
    return 2 if task.inputs == "separate" or task.both_orders else 1


@dataclass(frozen=True, kw_only=True)
class PairTask(Task):
    """A task on two texts."""

    pair_mode: Literal["separate", "cross"] = "separate"
    """`separate`: each text encoded alone (the paper); `cross`: both in one sequence, with token types."""
    orders: Literal["given", "both"] = "given"
    """`both`: the outputs for a pair are the mean of the head's for (a, b) and for (b, a), in training and afterwards,
    so that a pair swapped has the same; `cross` then encodes two sequences a pair, `separate` none more."""

    @property
    def inputs(self) -> Inputs:
        return self.pair_mode

    @property
    def both_orders(self) -> bool:
        return self.orders == "both"

    def views(self, pooled: Tensor) -> tuple[Tensor, ...]:
        if not self.both_orders:
            return (pooled,)
        return (pooled, pooled.flip(1)) if self.inputs == "separate" else (pooled[:, :1], pooled[:, 1:])


# ------------------------------------------------------------------------------------------------------- algorithms

# Notation of the paper: theta are the parameters of encoder and heads, theta' those after an inner loop, L_t the mean
# loss of task t on a batch, lambda_t its loss weight. A gradient has the shape of its parameter; a loss is a scalar.
# Joint learning is `learner.gradient(feed.batch(task), feed.loss_weight(task))` for each task; Reptile:
#
#     for task in feed.draw(3):
#         with learner.excursion(task, inner_optimizer, inner_schedule) as inner:
#             for _ in range(feed.inner_steps(task)):
#                 inner.step(feed.batch(task))
#             inner.keep_delta(feed.loss_weight(task) / 3)


class Excursion(Protocol):
    """An inner loop under way: the model's parameters are theta', on their way from theta."""

    def step(
        self, *batches: Batch, scale: Callable[[str], float] = ..., rates: Mapping[str, Tensor] | None = None
    ) -> None:
        """Take one step of the inner optimizer on the sum of `scale(t)` L_t over the batches; `scale` is 1 by default.

        `rates` are factors of the gradients, by parameter name, before the optimizer sees them: with SGD of rate 1 they
        are learning rates. Raises DivergedError for a non-finite loss.
        """

    def keep_delta(self, scale: float = 1.0) -> None:
        """Add `scale` (theta - theta') to the outer gradient, for every parameter that the inner loop touched.

        Raises DivergedError if the difference is not finite.
        """

    def keep_gradient(self, batch: Batch, scale: float = 1.0) -> dict[str, Tensor]:
        """Add `scale` times the gradient of L_t on the batch AT theta' to the outer gradient (first-order MAML).

        Returns what it added, by parameter name, to be read only. Raises DivergedError if the loss or the gradient is
        not finite.
        """

    def moves(self) -> dict[str, Tensor]:
        """Return theta' - theta of every parameter that the inner loop touched, by name."""

    def drift(self) -> Tensor:
        """Return |theta' - theta|, a scalar: the norm over all parameters that the inner loop touched."""


class Unrolled(Protocol):
    """An inner loop of SGD under way that keeps its graph: theta' is a function of theta, to be differentiated through.

    The model's own parameters stay theta.
    """

    parameters: dict[str, Tensor]
    """theta' by name, with its graph; `Learner.loss_at` takes it."""

    def step(self, *batches: Batch, scale: Callable[[str], float] = ...) -> None:
        """Take one step of SGD on the sum of `scale(t)` L_t over the batches; `scale` is 1 by default.

        Raises DivergedError for a non-finite loss, MachineError where the graph of the loop would not fit in memory.
        """

    def keep_gradient(self, batch: Batch, scale: float = 1.0) -> None:
        """Add `scale` times the gradient of L_t(theta'), on the batch, with respect to THETA to the outer gradient.

        That is MAML's with all second derivatives (Finn et al. 2017). The graph is gone then: it can be done once.
        """

    def drift(self) -> Tensor:
        """Return |theta' - theta|, a scalar: the norm over all parameters that the inner loop touched."""


class Learner(Protocol):
    """The model being trained, with the operations that algorithms need.

    `backward` leaves its result in the parameters' `.grad`; the training loop clips it and takes the outer step.
    """

    @property
    def parameters(self) -> Mapping[str, Tensor]:
        """All trainable parameters by name, in a fixed order: encoder, heads, the algorithm's own numbers."""

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""

    @property
    def seed(self) -> int:
        """The recipe's seed; every draw of a plugin should be a function of it."""

    @property
    def step(self) -> int:
        """Outer steps finished before this one, from 0."""

    @property
    def steps(self) -> int:
        """Outer steps of the whole run."""

    @property
    def tasks(self) -> Mapping[str, Task]:
        """The tasks that it has heads for, by name."""

    @property
    def examples(self) -> int:
        """Encoder example-forwards spent in training so far."""

    @property
    def episodes(self) -> Mapping[str, int]:
        """Inner loops that each task has finished; an inner schedule takes this as its step."""

    @property
    def losses(self) -> Sequence[tuple[str, int, Tensor]]:
        """(task, inner step, detached loss) of every gradient of this outer step."""

    @property
    def drifts(self) -> Sequence[tuple[str, Tensor]]:
        """(task, |theta' - theta|) of every inner loop of this outer step."""

    @property
    def memory(self) -> dict[str, Tensor]:
        """What the algorithm keeps from step to step, by name: its own dict, empty at first. Checkpoints hold it."""

    @property
    def scratch(self) -> dict[str, Any]:
        """What `backward` hands to `after_step` of the same step, by name: anything, say its batches.

        It is empty at the start of every `backward` and of no checkpoint.
        """

    def slots(self, tasks: Sequence[str], *, state: InnerState = "reset", single: bool = False) -> Iterator[str]:
        """Yield the tasks of a step whose directions are found apart from each other, and add up.

        On many ranks (`torchrun`) each of them is computed by one rank, the sum is in `.grad` when the loop is over,
        and the numbers that operations return for the slots of other ranks are zeros: what is done in the loop may not
        go by the losses or gradients of the slots before. `state` says whose inner optimizer state a slot goes on with:
        slots of one task come to the same rank, and with `shared` all are computed by every rank. `single` says that
        each slot is one call of `gradient`, whose loss is not looked at. In one process it yields the tasks, no more.
        """

    def gradient(self, batch: Batch, scale: float | Tensor = 1.0) -> Tensor:
        """Add `scale` times the gradient of L_t on the batch to `.grad`; return L_t, detached.

        Raises DivergedError for a non-finite loss.
        """

    def features(self, batch: Batch) -> Features:
        """Encode a batch and keep the graph, so that the gradient of whatever is made of the vectors can be taken.

        One backward pass through the encoder is possible, a second derivative through it is not: only what is made of
        the vectors may be differentiated twice. Takes the memory of the whole batch, whatever `grad_accumulation` says.
        """

    def loss_at(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return L_t on the batch with `parameters` in the place of the model's of these names, with its graph.

        The graph can be differentiated any number of times, with respect to `parameters` and to those of the model: the
        encoder computes by plain operators, which is slower than `gradient` and takes more memory. Gradients of other
        tasks' heads are None (`allow_unused=True`). What was made of it goes to `descend`.
        """

    def head(self, task: str) -> dict[str, Tensor]:
        """Return the parameters of a task's head by their names within it; fast weights take their place in `loss`."""

    def loss(self, features: Features, head: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return L_t of encoded examples, a scalar with its graph; `head` stands in for the head's parameters."""

    def descend(self, task: str, loss: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        """Add `scale` times the gradient of a scalar `loss` to `.grad`, as a loss of `task`; return it, detached.

        Raises DivergedError for a non-finite loss.
        """

    def measure(self, batch: Batch) -> Tensor:
        """Return L_t on the batch at the parameters as they are, a scalar, without a gradient; it costs a forward."""

    def clear_gradient(self) -> None:
        """Set every `.grad` to None."""

    def take_gradient(self) -> list[Tensor | None]:
        """Remove and return every `.grad`, in the order of `parameters`; None for a parameter that was not touched."""

    def put_gradient(self, gradient: list[Tensor | None]) -> None:
        """Set every `.grad`, in the order of `parameters`; None for a parameter that was not touched."""

    def excursion(
        self,
        task: str,
        optimizer: OptimizerOptions,
        schedule: ScheduleOptions,
        *,
        state: InnerState = "per_task",
        fresh_head: bool = False,
    ) -> AbstractContextManager[Excursion]:
        """Leave theta for an inner loop on `task`; on exit theta is back bit for bit, also if the loop raised.

        The directions that the excursion kept are added to the `.grad` of before. `state` says how long the inner
        optimizer's moments live: one set for each task, one shared by all, or none beyond this loop. `schedule` takes
        the task's episodes as its step and the run's outer steps as its length. `fresh_head` begins with a new head,
        whose outer gradient is None. Raises RuntimeError inside another excursion.
        """

    def unrolled(
        self, task: str, optimizer: OptimizerOptions, schedule: ScheduleOptions, *, fresh_head: bool = False
    ) -> AbstractContextManager[Unrolled]:
        """Begin an inner loop on `task` that is differentiated through; as `excursion`, but for second derivatives.

        The memory of all its steps is taken at once. Raises RecipeError unless the optimizer is SGD without momentum,
        RuntimeError inside another excursion.
        """


class Feed(Protocol):
    """The source of tasks and batches in one outer step.

    Every draw is a function of the recipe's seed and of how far each task's stream has been read.
    """

    tasks: tuple[str, ...]
    """Names of all tasks, in the order of the recipe."""

    def draw(self, count: int = 1, *, with_replacement: bool = False) -> list[str]:
        """Draw `count` tasks with the sampler's probabilities; return them in the recipe's order.

        Without replacement a task comes at most once. Raises RecipeError if too few tasks have a weight above 0.
        """

    def batch(self, task: str) -> Batch:
        """Return the task's next training batch; after the last of an epoch a new epoch begins, shuffled anew."""

    def episode(self, task: str, support: int) -> tuple[list[Batch], Batch]:
        """Return `support` support batches and one query batch, disjoint by example id.

        Raises DataError if the task has too few examples.
        """

    def episode_of_classes(self, task: str, ways: int, shots: int, queries: int) -> tuple[Batch, Batch]:
        """Return support and query of a few-shot episode: of `ways` classes `shots` and `queries` examples each.

        Classes and examples are drawn anew in each episode, as a function of seed, task and the number of its episodes
        so far; support and query are disjoint by example id. A task with fewer classes gives all of them. Raises
        DataError if it has none, or if too few of them have `shots` + `queries` examples.
        """

    def examples_of_classes(self, task: str, most: int) -> Iterator[Batch]:
        """Yield up to `most` training examples of every class in batches, always the same; nothing counts as read."""

    def inner_steps(self, task: str) -> int:
        """Return the inner steps of one episode of the task."""

    def loss_weight(self, task: str) -> float:
        """Return the task's loss weight, Lambda_t in the objective."""


@dataclass(frozen=True)
class Algorithm(Component):
    """How the update direction of one step is found. The loop owns optimizer, clipping, schedule and checkpoints."""

    by_vectors: ClassVar[bool] = False
    """Whether it takes `learner.features` of every task: recipes may not give it tasks whose heads take sequences."""
    hears_teachers: ClassVar[bool] = True
    """Whether losses come from the learner, which mixes in what `teachers` say; recipes may not give any to others."""

    def require(self) -> None:
        """Raise MachineError if a package it needs is missing; asked by `validate` and before training."""

    def extra_bytes(self, shared: int, tasks: Sequence[str]) -> int:
        """Return the bytes it holds at its peak beside what `joint` does, given those of the encoder's parameters.

        The plan of a run shows them, and a run for which so much memory is not free is refused.
        """
        return 0

    def backward(self, learner: Learner, feed: Feed) -> None:
        """Leave the update direction in `.grad`, as `loss.backward()` would; None for what was not touched."""
        raise NotImplementedError(f"algorithm {self.name!r} has no backward")

    def parts(self, tasks: Sequence[str]) -> int:
        """Return the slots of a step that `backward` goes through by `learner.slots`; 1 for one that does not.

        On many ranks a run without `training.shards` is refused where it is 1: there would be nothing to share out.
        """
        return 1

    @property
    def slots_are_gradients(self) -> bool:
        """Whether each slot is a single gradient, as `learner.slots(..., single=True)` says.

        All shards of all slots are then held until they are summed, which a run must have the memory for.
        """
        return False

    def after_step(self, learner: Learner, feed: Feed) -> None:
        """Look at the model after the outer step, say with `learner.measure` at a batch of `backward` once more.

        `learner.scratch` has what `backward` put there, `learner.losses` the losses of the step. It may change
        `learner.memory`, no parameter. It is not called after a step that was skipped.
        """

    def before_evaluation(self, learner: Learner, feed: Feed) -> None:
        """Make heads ready to be scored that no gradient trains, say of prototypes. Each evaluation comes after it.

        It may write to the parameters of heads. There is no dropout, and what it encodes counts as evaluation.
        """

    def state(self, learner: Learner) -> dict[str, Tensor]:
        """Return all that the next step depends on, beside parameters, seed, step and tasks; checkpoints hold it.

        Names have no `|`, numbers are finite. By default `learner.memory`, which most algorithms can keep it in.
        """
        return dict(learner.memory)

    def restore(self, learner: Learner, state: Mapping[str, Tensor]) -> None:
        """Take up what `state` returned, so that the next step is the very same. Raises ValueError if it is unfit."""
        learner.memory.clear()
        learner.memory.update(state)

    def parameters(self, tasks: Sequence[str]) -> dict[str, float]:
        """Return numbers of the algorithm's own, trained with the model, by name with their initial values.

        In `Learner.parameters` they are scalars named `algorithm.NAME`; `backward` leaves their `.grad` too.
        """
        return {}

    def parameters_of(self, tasks: Sequence[str], names: Sequence[str]) -> dict[str, float]:
        """Return the same for algorithms that have numbers for each tensor; `names` are those of encoder and heads."""
        return self.parameters(tasks)

    def build_head(self, task: Task, hidden_size: int) -> nn.Module | None:
        """Return a head in place of the task's own; None leaves the task its own."""
        return None

    def groups(self, tasks: Sequence[str]) -> list[list[str]]:
        """Return the tasks that share one learner; one group of all tasks unless the algorithm says otherwise."""
        return [list(tasks)]

    def steps_per_epoch(self, batches: Mapping[str, int]) -> int:
        """Return the steps in one epoch, given each task's batches; for recipes that count `epochs`."""
        raise RecipeError("training.epochs", f"algorithm '{self.name}' counts steps, not epochs; count steps")

    def episode_batches(self, task: Task) -> int:
        """Batches that one episode of the task takes at once, disjoint by id; 0 where batches may come again."""
        return 0

    def check(self, tasks: Mapping[str, Task]) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for options that do not fit the recipe's tasks."""
        yield from ()


@dataclass(frozen=True)
class Backbone(Component):
    """Where the encoder and its tokenizer come from."""

    def fetch(self, sources: Sources) -> Backbone:
        """Return the same backbone with all that `load` reads in local files; `sources.folder(...)` brings them.

        It is called before `load`, and once more before that on `sources` that only take note of what is asked for.
        """
        return self

    def load(self, seed: int) -> LoadedBackbone:
        """Return the encoder with its weights; `seed` initialises what has none."""
        raise NotImplementedError(f"backbone {self.name!r} cannot load")

    def load_tokenizer(self) -> LoadedTokenizer | None:
        """Return the tokenizer that `load` gives, without the encoder and without PyTorch; None: only `load` has it."""
        return None

    def restore(self, folder: Path) -> LoadedBackbone:
        """Return the same encoder from `LoadedBackbone.files` in `folder`; weights are filled in from a checkpoint."""
        raise NotImplementedError(f"backbone {self.name!r} cannot restore")

    def portable(self, loaded: LoadedBackbone) -> Portable:
        """Return the encoder, its weights filled in, for `mtmeta export`. MtmetaError says why not."""
        raise PluginError(f"backbone '{self.name}'", "has no method `portable` and cannot be exported")


# ------------------------------------------------------------------------------------ samplers, metrics, reporters


@dataclass(frozen=True, slots=True)
class Draw:
    """Where in the run a draw happens: the `index`-th of `total` draws."""

    index: int
    total: int


@dataclass(frozen=True)
class Sampler(Component):
    """With which probability each task is drawn."""

    def probabilities(self, sizes: Mapping[str, int], draw: Draw) -> dict[str, float]:
        """Return the weight of each task, keyed by task name, given training-set sizes; normalised by the caller."""
        raise NotImplementedError(f"sampler {self.name!r} has no probabilities")

    def check(self, tasks: Sequence[str]) -> Iterator[tuple[str, str]]:
        """Yield (option, what is wrong) for options that do not fit the recipe's tasks."""
        yield from ()


Needs = Literal["any", "classes", "label_sets", "targets", "words", "ranks"]


@dataclass(frozen=True, slots=True)
class Metric:
    """A named function of all labels and predictions (float64 arrays [N], or class indices) to one float.

    Of label sets, both are zeros and ones [N, L], a column for each class; of several numbers [N, L], with nan for a
    label that is missing; where words have labels, they are arrays [N] of tuples, the index of each word's class; where
    texts stand together, predictions are ranks and labels 1, float64 [N].
    """

    name: str
    function: Callable[..., float]
    greater_is_better: bool = True
    needs: Needs | tuple[Needs, ...] = "any"
    """The labels that it makes sense for, one kind or several; recipes may not name it for other tasks. `any`: a class
    or a number for each example; `classes`: a class; `label_sets`: any number of classes; `targets`: several numbers;
    `words`: a class a word; `ranks`: none but which texts stand together."""
    resampled: Callable[..., Any] | None = field(default=None, repr=False)
    """The same on D resamples at once, for the bootstrap: labels [N], predictions [N] and how often each example
    stands in each resample, float64 [D, N], to values [D]. Without it the function is called for each."""
    takes: tuple[Literal["scores", "ids", "classes"], ...] = field(default=(), repr=False)
    """What else both functions are given, by keyword: `scores`, the head's raw outputs, float64 [N, C]; `ids` of the
    examples, an array of texts [N]; `classes`, the names of the classes."""

    def __call__(self, labels: Any, predictions: Any, **seen: Any) -> float:
        return float(self.function(labels, predictions, **self.seen(seen)))

    def seen(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """Return what it takes of what is known beside labels and predictions."""
        return {name: known[name] for name in self.takes}

    def fits(self, objective: Objective) -> bool:
        """Return whether it makes sense for the labels of an objective."""
        needs = (self.needs,) if isinstance(self.needs, str) else self.needs
        if objective.labelled == "one":
            return "any" in needs or ("classes" in needs and bool(objective.classes))
        if objective.labelled == "texts":
            return "ranks" in needs
        if objective.labelled == "row" and not objective.classes:
            return "targets" in needs
        kind = "words" if objective.labelled == "words" else "label_sets"
        return kind in needs and bool(objective.classes)


@dataclass(frozen=True)
class Reporter(Component):
    """What becomes of the events of a run."""

    essential: ClassVar[bool] = False
    """Whether the run ends where the reporter fails; else it goes on without it, and says so."""

    def require(self) -> None:
        """Raise MachineError if a package it needs is missing; asked before anything is loaded or written."""

    def open(self, folder: Path) -> AbstractContextManager[Callable[[Event], None]]:
        """Return a context whose value takes each event of the run in `folder`, in order.

        The first one is `run_started`, after which nothing older counts, or `run_resumed`, whose `steps` say how much
        of what was reported before still stands. A kill may come at any time; what is written at once is kept.
        """
        raise NotImplementedError(f"reporter {self.name!r} cannot open")


# -------------------------------------------------------------------------------------------------------- launchers


@dataclass(frozen=True, slots=True)
class Job:
    """One run of a study, as a command that may be run anywhere and as often as need be.

    Wherever and whenever it is started it goes on from the run's newest checkpoint, waits for another copy of itself,
    and ends at once if the run is finished. On SIGTERM, SIGUSR1 or SIGUSR2 it saves and ends with exit code 75.
    """

    name: str
    """Name of the run directory, for the job's name: letters, digits, `.`, `_` and `-`."""
    command: tuple[str, ...]
    """The program and its arguments."""
    environment: Mapping[str, str]
    """Variables to set, beside those that the command line of the study had."""
    cwd: Path
    """The directory to start it in."""
    logs: Path
    """A folder for what it prints, and for whatever the launcher writes."""


@dataclass(frozen=True, slots=True)
class JobState:
    """What is known of a job that is not over."""

    running: bool
    """Whether it runs; else it waits."""
    where: str = ""
    """The machine it runs on."""
    why: str = ""
    """Why it waits, in the launcher's words."""


@dataclass(frozen=True, kw_only=True)
class Launcher(Component):
    """Where the runs of a study run. Fields are options of `--set launcher.NAME=VALUE`.

    Whether a run is finished, failed or lost is read from the study's folder, which must be on a disk that all machines
    see: a launcher starts commands, and says which of them are not over.
    """

    lost: PositiveInt = 3
    """How often a job may be lost, killed or with its machine, and be started again."""
    every: PositiveFloat = 10.0
    """Seconds between two looks at the jobs."""

    in_pool: ClassVar[bool] = False
    """Whether jobs are processes of the command that wants them, `--jobs` at a time, which mtmeta starts itself."""

    def require(self) -> None:
        """Raise MachineError, before anything else is done, if a program or package that it needs is missing."""

    def submit(self, job: Job) -> str:
        """Have a job started, and return a text by which it is known from then on. Raises MachineError."""
        raise NotImplementedError(f"launcher {self.name!r} submits no jobs")

    def poll(self, handles: Sequence[str]) -> Mapping[str, JobState]:
        """Return the state of each of these jobs that waits or runs; one that is over, or unknown, is left out.

        Raises MachineError where that cannot be said now; it is asked again.
        """
        raise NotImplementedError(f"launcher {self.name!r} knows no jobs")

    def cancel(self, handle: str) -> None:
        """End a job, with a SIGTERM first; one that is over already is left alone. Raises MachineError."""
        raise NotImplementedError(f"launcher {self.name!r} cancels no jobs")
