"""One encoder shared by all tasks, and one head per task.

Shapes: `S` packed tokens, `N` sequences, `B` examples, `V` sequences an example (2 for pairs that are encoded apart or
in both orders, one for each choice of a question, else 1), `D` hidden, `C` outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from mtmeta.core.api.backbone import SequenceHead
from mtmeta.core.api.batch import Batch, Chunk, Packed
from mtmeta.core.api.contracts import Task, count_sequences, scored_tasks
from mtmeta.core.api.heads import MultiHead, PrototypeHead, SequenceClassificationHead, mean_over
from mtmeta.core.api.multi_output import MultiOutput
from mtmeta.core.api.objectives import Objective
from mtmeta.core.errors import PluginError, RecipeError
from mtmeta.core.methods.adapters import Adapters
from mtmeta.core.recipe.sections import AdapterOptions
from mtmeta.core.registry.guard import blame, fault, supplier
from mtmeta.core.rng import derive
from mtmeta.core.wording import quote

TUNED = "tuned"  # how the names of tuned numbers begin that are kept with weights
NumbersOf = Callable[[Sequence[str]], Mapping[str, float]]
"""Returns an algorithm's own numbers, given the names of the parameters of encoder and heads."""
HeadOf = Callable[[Task, int], nn.Module | None]
"""Returns an algorithm's own head for a task and a hidden size, or None."""


def mean_pool(hidden: Tensor, packed: Packed, *, twice_differentiable: bool = False) -> Tensor:
    """Return the mean of each sequence's hidden states [S, D] -> [N, D], in the order the sequences were given."""
    if hidden.dtype in (torch.bfloat16, torch.float16):
        hidden = hidden.float()  # 16-bit sums would lose digits
    if hidden.is_cuda and not twice_differentiable:  # deterministic there, and quick; on a CPU it runs on one thread
        means = torch.segment_reduce(hidden, "mean", lengths=packed.lengths, unsafe=True)  # checks would synchronise
    else:
        sequence = torch.repeat_interleave(packed.lengths, output_size=len(hidden))  # [S]
        sums = hidden.new_zeros(len(packed.lengths), hidden.shape[1]).index_add_(0, sequence, hidden)
        means = sums / packed.lengths[:, None]
    return means[packed.order]


def first_pool(hidden: Tensor, packed: Packed) -> Tensor:
    """Return the first token's hidden state of each sequence [S, D] -> [N, D], in the order they were given."""
    begins = packed.lengths.cumsum(0) - packed.lengths  # [N]
    return hidden[begins[packed.order]].float()


def pool_windows(vectors: Tensor, windows: Tensor, pool: str) -> Tensor:
    """Return the mean or the greatest of each text's vectors, [N, D] -> [B, D]; text i has `windows[i]` of the N."""
    most = int(windows.max())
    text = torch.repeat_interleave(windows, output_size=len(vectors))  # [N], of which text
    places = torch.arange(len(vectors), device=vectors.device) - (windows.cumsum(0) - windows)[text] + text * most
    beside = 0.0 if pool == "mean" else -torch.inf
    # side by side, [B, most, D]: both ways are deterministic then, and can be differentiated twice
    table = vectors.new_full((len(windows) * most, vectors.shape[1]), beside).index_copy(0, places, vectors)
    table = table.view(len(windows), most, -1)
    return table.sum(1) / windows[:, None] if pool == "mean" else table.amax(1)


def build_head(
    name: str,
    task: Task,
    hidden_size: int,
    seed: int,
    *purpose: str | int,
    own: HeadOf | None = None,
    layout: SequenceHead | None = None,
) -> nn.Module:
    """Return the head of a task, initialised from (seed, task name) alone, so other tasks do not move it.

    That of a task with parts holds a head for each of them, initialised as if it were a task by itself. `own` may give
    one that an algorithm puts in its place; `layout` is that of the encoder's family in transformers. Raises
    RecipeError for `head: hf` on an encoder that has no such layout, PluginError for a head that takes anything but
    what its task says.
    """
    if task.head == "hf" and layout is None:
        message = "hf is for encoders of the families BERT, RoBERTa, XLM-RoBERTa, DistilBERT and ELECTRA; leave it out"
        raise RecipeError(f"tasks.{name}.head", message)
    if task.parts:
        each = {part: build_head(part, of, hidden_size, seed, *purpose) for part, of in task.parts.items()}
        return MultiHead(each)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, "head", name, *purpose))
        head: object = own(task, hidden_size) if own else None
        built_otherwise = head is not None or task.head == "hf"
        if head is None and task.head == "hf" and layout is not None:
            objective = task.objective
            outputs = None if not objective.classes and objective.outputs == 1 else objective.outputs  # a number
            head = SequenceClassificationHead(hidden_size, activation=layout.activation, outputs=outputs)
        if head is None:
            head = task.build_head(hidden_size)
    if not isinstance(head, nn.Module):
        message = f"build_head of task {quote(name)} returned {type(head).__name__}, expected a torch.nn.Module"
        raise fault(task, message)
    if not built_otherwise and (takes := getattr(head, "takes", "pooled")) != task.head_takes:
        says = (
            f"the head of task {quote(name)} takes {quote(str(takes))} and its head_takes is {quote(task.head_takes)}"
        )
        raise fault(task, f"{says}; both are to say the same")
    return head


def separated(model: MultiTaskModel) -> MultiTaskModel:
    """Return a model with the same parameters, in which each label of a task with several is a task by itself."""
    if not any(task.parts for task in model.tasks.values()):
        return model
    apart = MultiTaskModel(model.encoder, scored_tasks(model.tasks), model.seed)
    apart.adapters = model.adapters
    for name, task in model.tasks.items():
        heads = model.heads[name]
        for own in task.parts or {name: task}:
            apart.replace_head(own, heads.get_submodule(own) if task.parts else heads)
        objective = model.objectives[name]
        apart.objectives |= objective.objectives if isinstance(objective, MultiOutput) else {name: objective}
    return apart


def prototype_head(model: MultiTaskModel, name: str) -> PrototypeHead:
    """Return a prototype head of the shape that a task of a model needs, for weights that are to be filled in."""
    task = model.tasks[name]
    classes = len(task.objective.classes)
    vectors = 2 if task.inputs == "separate" else 1
    means = torch.zeros(classes, vectors * model.hidden_size)
    return PrototypeHead(means, binary=(task.objective.outputs or 0) < classes)


def task_loss(task: Task, name: str, outputs: Tensor, labels: Tensor) -> Tensor:
    """Return the loss of a task's outputs that tables show; `name` is what the recipe calls the task.

    Raises PluginError where the outputs do not suit the objective, which says so by ValueError.
    """
    with _unfit_outputs(task, name):
        return task.objective.loss(outputs, labels)


def training_loss(
    task: Task,
    name: str,
    outputs: Tensor,
    labels: Tensor,
    teacher: Tensor | None = None,
    trust: float = 0.0,
    *,
    objective: Objective | None = None,
) -> Tensor:
    """Return the loss of a task's outputs that training descends.

    With a `teacher` it is that of labels and teacher, which is trusted by so much. `objective` stands in for the
    task's. Raises PluginError as `task_loss`.
    """
    objective = objective or task.objective
    with _unfit_outputs(task, name):
        if teacher is None:
            return objective.training_loss(outputs, labels)
        return objective.soft_loss(outputs, labels, teacher, trust)


def within(task: Task, batch: Batch) -> Objective | None:
    """Return the objective whose losses of the chunks of a batch add up to that of the batch, if the task has one.

    None where the loss of a chunk counts by its share of the labels, or where there is only one.
    """
    return task.objective.within(torch.cat([chunk.labels for chunk in batch.chunks])) if len(batch.chunks) > 1 else None


def share_of(chunk: Chunk, batch: Batch, objective: Objective | None) -> float:
    """Return by how much the loss of a chunk counts in that of its batch; `objective` is what `within` found."""
    return len(chunk.labels) / batch.labels if objective is None else 1.0


@contextmanager
def _unfit_outputs(task: Task, name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise fault(task, f"loss for task '{name}': {error}") from error


def tuned_weights(task: str, numbers: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the numbers that the objective of a task was tuned by, as they are kept with the weights they are for."""
    return {f"{TUNED}.{task}.{name}": number.detach().float().cpu() for name, number in numbers.items()}


class Heads(nn.Module):
    """Heads by task name. Unlike nn.ModuleDict it takes any name, `type` and `train` included."""

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self._modules.update(heads)

    def __getitem__(self, name: str) -> nn.Module:
        head = self._modules[name]
        assert head is not None
        return head

    def __setitem__(self, name: str, head: nn.Module) -> None:
        self._modules[name] = head


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Within, no dropout; then every module is in the mode it was."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:  # one by one: a plugin may keep a part of its head in evaluation mode
            module.training = True


@contextmanager
def twice_differentiable(model: MultiTaskModel) -> Iterator[None]:
    """Within, a model computes by operators that can be differentiated any number of times.

    Modules that have others are told by their attribute `twice_differentiable`.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel  # a second of imports

    told: list[Any] = [module for module in model.modules() if getattr(module, "twice_differentiable", None) is False]
    try:
        for module in told:
            module.twice_differentiable = True
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        for module in told:
            module.twice_differentiable = False


class Numbers(nn.Module):
    """Scalar parameters by name."""

    def __init__(self, numbers: Mapping[str, float]) -> None:
        super().__init__()
        self._parameters.update({name: nn.Parameter(torch.tensor(float(n))) for name, n in numbers.items()})


class MultiTaskModel(nn.Module):
    """`encoder`, `heads` and `adapters`; parameters are named `encoder.*`, `heads.TASK.*` and `adapters.TASK.*`.

    `numbers` are what an algorithm trains beside them: scalars named `algorithm.NAME`, with what they begin as.
    `head_of` gives heads that an algorithm puts in the place of the tasks' own.
    """

    def __init__(
        self,
        encoder: nn.Module,
        tasks: Mapping[str, Task],
        seed: int,
        numbers: Mapping[str, float] | NumbersOf | None = None,
        head_of: HeadOf | None = None,
        adapters: AdapterOptions | None = None,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.hidden_size = int(encoder.hidden_size)  # type: ignore[arg-type]
        self.seed = seed
        self.tasks = dict(tasks)
        self.objectives: dict[str, Objective] = {name: task.objective for name, task in tasks.items()}
        """The tasks' objectives, with numbers that were tuned for these weights, where there are some."""
        self._head_of = head_of
        self.heads = Heads({name: self.make_head(name, seed) for name in tasks})
        self.adapters = Adapters(adapters, encoder, tasks, seed) if adapters is not None else None
        self.frozen = adapters is not None and not adapters.trained_of(tasks)
        """Whether the encoder stays as it is."""
        if self.frozen:
            encoder.requires_grad_(False)
        if callable(numbers):
            numbers = numbers(list(self.trained()))
        if numbers:
            self.algorithm = Numbers(numbers)
        self.encoding: str | None = None
        """The task whose sequences are in the encoder just now."""
        self.twice_differentiable = False
        """Whether to compute by operators that have second derivatives; see `twice_differentiable`."""

        unsaved = sorted(set(self.state_dict()) ^ {name for name, _ in self.named_parameters()})
        if unsaved:  # they would neither come back after an inner loop nor stand in a checkpoint
            message = f"'{unsaved[0]}' is a buffer or a shared parameter; encoder and heads may hold neither"
            raise PluginError("model", message)
        self._shapes = {name: parameter.shape for name, parameter in self.named_parameters()}

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the parameters that are trained, by name, in their order: all of them, or all beside the encoder."""
        named = self.named_parameters()
        return {name: parameter for name, parameter in named if not (self.frozen and name.startswith("encoder."))}

    def load_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take up weights, and the numbers of objectives that were tuned for them. Raises RuntimeError if unfit."""
        own = {name: tensor for name, tensor in weights.items() if not name.startswith(f"{TUNED}.")}
        self.load_state_dict(own)
        for name, task in self.tasks.items():
            prefix = f"{TUNED}.{name}."
            found = {key.removeprefix(prefix): weights[key].cpu() for key in weights if key.startswith(prefix)}
            self.objectives[name] = task.objective.tuned(found) if found else task.objective

    def make_head(self, task: str, seed: int, *purpose: str | int) -> nn.Module:
        """Build a task's head as it is in the beginning: the algorithm's own, or else the task's."""
        layout = getattr(self.encoder, "sequence_head", None)
        return build_head(task, self.tasks[task], self.hidden_size, seed, *purpose, own=self._head_of, layout=layout)

    def replace_head(self, task: str, head: nn.Module) -> None:
        """Put another head in the place of a task's own."""
        self.heads[task] = head
        self._shapes = {name: parameter.shape for name, parameter in self.named_parameters()}

    def check_shapes(self, who: str, task: str | None = None) -> None:
        """Raise PluginError, naming `who`, if a parameter is not of the shape it had: no optimizer could go on.

        Of all parameters, or of those of a task's head.
        """
        named = self.heads[task].named_parameters(f"heads.{task}") if task else self.named_parameters()
        for name, parameter in named:
            if parameter.shape != self._shapes.get(name):
                was = list(self._shapes.get(name, ()))
                raise PluginError(who, f"changed the shape of '{name}' from {was} to {list(parameter.shape)}")

    def pooled(self, task: str, packed: Packed) -> Tensor:
        """Pooled vectors of a task's sequences [B, V, D], by the mean or as its head has it."""
        hidden = self.encode(task, packed)
        if self.tasks[task].pooling == "first":
            pooled = first_pool(hidden, packed)  # [V * B, D]
        else:
            pooled = mean_pool(hidden, packed, twice_differentiable=self.twice_differentiable)
        if packed.windows is not None:
            long = self.tasks[task].long
            pooled = pool_windows(pooled, packed.windows, "mean" if long is None else long.pool)
        return pooled.view(packed.vectors or self.vectors(task), -1, self.hidden_size).transpose(0, 1)

    def encode(self, task: str, packed: Packed) -> Tensor:
        """Hidden states [S, D] of a task's sequences, by its own adapters where it has some."""
        self.encoding = task
        try:
            if self.adapters is None:
                hidden: Tensor = self.encoder(packed)
            else:
                hidden = functional_call(self.encoder, self.adapters.standing_in(task, self.encoder), (packed,))
            return hidden
        finally:
            self.encoding = None

    def vectors(self, task: str) -> int:
        """Return the sequences of an example of a task that is predicted, V."""
        return count_sequences(self.tasks[task])

    def takes(self, task: str) -> str:
        """Return what a task's head takes: `pooled` vectors, or the hidden states of a whole `sequence`."""
        takes = getattr(self.heads[task], "takes", "pooled")
        if takes not in ("pooled", "sequence"):
            message = f"the head of task {quote(task)} takes {quote(str(takes))}, expected 'pooled' or 'sequence'"
            raise fault(self.tasks[task], message)
        return str(takes)

    def forward(self, task: str, packed: Packed) -> Tensor:
        """Return raw outputs of the task's head: [B, C] or [B], as its objective says. On a CPU a head is fp32."""
        if self.takes(task) == "pooled":
            return self.outputs(task, self.pooled(task, packed))
        hidden = self.encode(task, packed)
        return self._run_head(task, hidden.float() if hidden.dtype.itemsize < 4 else hidden, packed)

    def outputs(self, task: str, pooled: Tensor, head: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return raw outputs of a task on pooled vectors [B, V, D], by its head; `head` stands in for its parameters.

        Of a task with both orders of pairs they are the mean of the head's outputs for the two.
        """
        views = self.tasks[task].views(pooled)
        return mean_over(self.heads[task], views, lambda view: self._run_head(task, view, head=head))

    def _run_head(self, task: str, *given: Any, head: Mapping[str, Tensor] | None = None) -> Tensor:
        fp32 = torch.autocast("cpu", enabled=False) if given[0].device.type == "cpu" else nullcontext()
        with blame(self.tasks[task], "task"), fp32:
            own = self.heads[task]
            outputs: Tensor = own(*given) if head is None else functional_call(own, dict(head), given)
            self.check_shapes(supplier(self.tasks[task]), task)
        return outputs
