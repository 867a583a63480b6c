"""The model being trained, in the operations that algorithms are written in: gradients, and excursions from theta.

`core/api/contracts.py` says what algorithms may count on; the docstrings here add to it. Notation of the paper: theta
are the parameters of encoder and heads, theta' those after an inner loop.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.func import functional_call
from torch.optim import Optimizer

from mtmeta.core.api.batch import Batch, Chunk, Features
from mtmeta.core.api.contracts import NOT_POOLED, Task
from mtmeta.core.api.objectives import Objective
from mtmeta.core.api.optimizers import OptimizerOptions, set_lr
from mtmeta.core.api.option_types import InnerState
from mtmeta.core.api.schedules import ScheduleOptions
from mtmeta.core.errors import DivergedError, RecipeError
from mtmeta.core.machine import Precision, autocast, memory_errors, order_errors, without_autocast
from mtmeta.core.registry.guard import accused, fault, supplier
from mtmeta.core.rng import derive
from mtmeta.core.training.diagnostics import norm_of
from mtmeta.core.training.model import MultiTaskModel, share_of, training_loss, twice_differentiable, within
from mtmeta.core.training.state import optimizer_state, restore_optimizer, spare_slot
from mtmeta.core.training.unrolling.loop import Unrolled, rates_of
from mtmeta.core.training.unrolling.memory import Estimates

Grads = list[Tensor | None]
T = TypeVar("T", Tensor, Tensor | None)


class Learner:
    """The model being trained. After `Algorithm.backward` the loop takes the update direction from its `.grad`."""

    def __init__(
        self,
        model: MultiTaskModel,
        *,
        seed: int,
        steps: int,
        group: str = "",
        precision: Precision = "fp32",
        check_each_loss: bool = True,
        anneal: Literal["linear"] | float = "linear",
    ) -> None:
        self.model = model
        self.parameters = model.trained()
        self.tasks: Mapping[str, Task] = model.tasks
        self.device = next(iter(self.parameters.values())).device
        self.seed = seed
        self.steps = steps
        self.step = 0
        self.examples = 0
        self.read: Counter[str] = Counter()
        """Of `examples`, in this process, those of each task."""
        self.episodes: Counter[str] = Counter()
        self.losses: list[tuple[str, int, Tensor]] = []
        self.drifts: list[tuple[str, Tensor]] = []
        self.memory: dict[str, Tensor] = {}
        self.scratch: dict[str, Any] = {}
        self.inner_step = 0
        self._group = group
        self._precision = precision
        self._check_each_loss = check_each_loss
        self._anneal = anneal
        self.draws = 0
        """Draws of dropout in this step so far."""
        self._taught: dict[str, bool] = {}
        """Of the tasks with teachers, or with a training loss of their own, that were encoded in this step, whether it
        was made of them."""
        self._counts_forwards = False
        self._inner: dict[str, Optimizer] = {}
        self._last_gradients: dict[Tensor, Tensor] = {}
        self._pending: dict[str, dict[str, dict[str, Tensor]]] = {}
        self._snapshot: list[Tensor] = []
        self._away = False
        self._estimates = Estimates(model)

    @property
    def trust(self) -> float:
        """How much teachers count in this step, where a batch has any, beside the labels."""
        return 1 - self.step / self.steps if self._anneal == "linear" else self._anneal

    def begin_step(self, step: int) -> None:
        """Forget the last step's gradients and losses; the loop calls it."""
        self.step, self.draws, self.inner_step, self.losses, self.drifts = step, 0, 0, [], []
        self._taught = {}
        self.scratch.clear()
        self.clear_gradient()

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Within, count the forward passes that are made by hand, through `model` and not by an operation of ours."""
        hook = self.model.encoder.register_forward_pre_hook(self._count_forward)
        self._counts_forwards = True
        try:
            yield
        finally:
            self._counts_forwards = False
            hook.remove()

    def _count_forward(self, encoder: torch.nn.Module, given: tuple[Any, ...]) -> None:
        if not self._counts_forwards or given[0].ids.is_meta:  # where only the memory of a graph is found out
            return
        task = self.model.encoding
        if task is None:  # the encoder itself, by hand: each sequence may be an example
            self.examples += len(given[0].lengths)
        else:
            self.count(task, len(given[0].lengths) // (given[0].vectors or self.model.vectors(task)))

    def count(self, task: str, examples: int) -> None:
        """Count example-forwards of a task."""
        self.examples += examples
        self.read[task] += examples

    @contextmanager
    def reading(self, batch: Batch) -> Iterator[None]:
        """Within, the batch is encoded, and counted as a whole; what goes wrong is told as that batch's."""
        longest = max(chunk.packed.groups[-1][1] for chunk in batch.chunks)
        if batch.chunks[0].teacher is not None or self.tasks[batch.task].objective.trains_otherwise:
            self._taught.setdefault(batch.task, False)
        remedy = f"halve batch_size or set training.grad_accumulation: {2 * len(batch.chunks)}"
        where = f"task '{batch.task}'"
        place = f"{where} (batch {len(batch)}, length {longest})"
        counts, self._counts_forwards = self._counts_forwards, False
        try:
            # an algorithm may be in an autocast of its own
            with (
                without_autocast(),
                memory_errors(place, remedy),
                order_errors(supplier(self.tasks[batch.task]), where),
            ):
                yield
        finally:
            self._counts_forwards = counts
        self.count(batch.task, len(batch))

    def _seed_dropout(self) -> None:
        # dropout's randomness is a function of where in the run it happens, so there is no RNG state to save
        torch.manual_seed(derive(self.seed, "dropout", self._group, self.step, self.draws))
        self.draws += 1

    def gradient(self, batch: Batch, scale: float | Tensor = 1.0) -> Tensor:
        """Add the gradients of the chunks, each weighted by its share of the examples: the sum is that of the batch."""
        with self.reading(batch):
            total = self.add_gradient(batch, batch.chunks, scale)
        return self.log(batch.task, total)

    def add_gradient(self, batch: Batch, chunks: Sequence[Chunk], scale: float | Tensor) -> Tensor:
        """Add the gradient of some chunks of a batch to `.grad`; return their share of its loss, detached."""
        if len(chunks) > 1 and self._by_text(batch.task):
            return self._add_gradient_of_all(batch.task, chunks, scale)
        total = torch.zeros((), device=self.device)
        whole = within(self.tasks[batch.task], batch)
        for chunk in chunks:
            share = share_of(chunk, batch, whole)
            loss = self._chunk_loss(batch.task, chunk, whole)
            (loss * (scale * share)).backward()  # type: ignore[no-untyped-call]
            total = total + loss.detach() * share
        return total

    def _add_gradient_of_all(self, task: str, chunks: Sequence[Chunk], scale: float | Tensor) -> Tensor:
        """Add the gradient of a loss that is no mean over chunks, at the memory of one of them; return it, detached.

        All are encoded without a graph for the gradient by their outputs, and once more for that by the parameters
        (Gao et al. 2021), with the same dropout.
        """
        first = self.draws
        with torch.no_grad():
            outputs = torch.cat([self._outputs(task, chunk) for chunk in chunks])
        outputs.requires_grad_()
        loss = self._loss_of_all(task, outputs, chunks)
        (by_outputs,) = torch.autograd.grad(loss * scale, outputs)
        self.draws = first
        sizes = [len(chunk.labels) for chunk in chunks]
        for chunk, part in zip(chunks, torch.split(by_outputs, sizes), strict=True):
            self._outputs(task, chunk).backward(part)  # type: ignore[no-untyped-call]
        return loss.detach()

    def _by_text(self, task: str) -> bool:
        """Return whether the loss of a task's batch is no mean over its parts."""
        return self.tasks[task].objective.labelled == "texts"

    def slots(self, tasks: Sequence[str], *, state: InnerState = "reset", single: bool = False) -> Iterator[str]:
        yield from tasks

    @torch.no_grad()
    def measure(self, batch: Batch) -> Tensor:
        total = torch.zeros((), device=self.device)
        whole = within(self.tasks[batch.task], batch)
        with self.reading(batch):
            if self._by_text(batch.task):
                outputs = torch.cat([self._outputs(batch.task, chunk) for chunk in batch.chunks])
                return self._loss_of_all(batch.task, outputs, batch.chunks)
            for chunk in batch.chunks:
                total += self._chunk_loss(batch.task, chunk, whole) * share_of(chunk, batch, whole)
        return total

    def _chunk_loss(self, task: str, chunk: Chunk, whole: Objective | None) -> Tensor:
        outputs = self._outputs(task, chunk)
        return self._loss(task, outputs, self._here(chunk.labels), self._here(chunk.teacher), whole)

    def _outputs(self, task: str, chunk: Chunk) -> Tensor:
        self._seed_dropout()
        with autocast(self.device, self._precision):
            outputs: Tensor = self.model(task, chunk.packed.to(self.device))
        return outputs

    def _loss_of_all(self, task: str, outputs: Tensor, chunks: Sequence[Chunk]) -> Tensor:
        """Return the loss of the outputs of several chunks together."""
        return self._loss(task, outputs, self._here(torch.cat([chunk.labels for chunk in chunks])), None)

    def _here(self, tensor: T) -> T:
        return tensor if tensor is None else tensor.to(self.device, non_blocking=True)

    def features(self, batch: Batch) -> Features:
        vectors, labels, teachers = [], [], []
        self.check_pooled(batch.task)
        with self.reading(batch):
            for chunk in batch.chunks:
                self._seed_dropout()
                with autocast(self.device, self._precision):
                    vectors.append(self.model.pooled(batch.task, chunk.packed.to(self.device)))
                labels.append(self._here(chunk.labels))
                teachers.append(self._here(chunk.teacher))
        known = [rows for rows in teachers if rows is not None]
        return Features(batch.task, torch.cat(vectors), torch.cat(labels), torch.cat(known) if known else None)

    def check_pooled(self, task: str) -> None:
        """Raise RecipeError unless the head of a task takes pooled vectors, which are its features."""
        if self.model.takes(task) != "pooled":
            raise RecipeError(f"tasks.{task}", f"{NOT_POOLED}; leave the task out, or take reptile, fomaml or joint")

    def loss_at(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        losses, every, whole = [], list[Tensor](), within(self.tasks[batch.task], batch)
        with self.reading(batch):
            for chunk in batch.chunks:
                self._seed_dropout()
                given = batch.task, chunk.packed.to(self.device)
                with twice_differentiable(self.model), autocast(self.device, self._precision):
                    outputs = functional_call(self.model, dict(parameters), given)
                if self._by_text(batch.task):
                    every.append(outputs)
                    continue
                loss = self._loss(batch.task, outputs, self._here(chunk.labels), self._here(chunk.teacher), whole)
                losses.append(loss if len(batch.chunks) == 1 else loss * share_of(chunk, batch, whole))
            if every:
                return self._loss_of_all(batch.task, torch.cat(every), batch.chunks)
        return losses[0] if len(losses) == 1 else torch.stack(losses).sum()

    def head(self, task: str) -> dict[str, Tensor]:
        return dict(self.model.heads[task].named_parameters())

    def loss(self, features: Features, head: Mapping[str, Tensor] | None = None) -> Tensor:
        with without_autocast(), autocast(self.device, self._precision):
            outputs = self.model.outputs(features.task, features.vectors, head)
        with without_autocast():
            return self._loss(features.task, outputs, features.labels, features.teacher)

    def descend(self, task: str, loss: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        where, who = f"task '{task}'", supplier(self.tasks[task])
        with without_autocast(), memory_errors(where, "halve batch_size"), order_errors(who, where):
            (loss * scale).backward()  # type: ignore[no-untyped-call]
        return self.log(task, loss.detach())

    def log(self, task: str, loss: Tensor) -> Tensor:
        """Take note of a task's loss, detached, and return it. Raises DivergedError for a non-finite one."""
        self.losses.append((task, self.inner_step, loss))
        if self._check_each_loss:
            self.check_losses(self.losses[-1:])
        return loss

    def _loss(
        self, name: str, outputs: Tensor, labels: Tensor, teacher: Tensor | None, whole: Objective | None = None
    ) -> Tensor:
        task = self.tasks[name]
        if name in self._taught:
            self._taught[name] = True
        loss: object = training_loss(task, name, outputs, labels, teacher, self.trust, objective=whole)
        if not isinstance(loss, Tensor) or loss.ndim != 0:
            shape = f"has shape {list(loss.shape)}" if isinstance(loss, Tensor) else f"is a {type(loss).__name__}"
            raise fault(task, f"loss for task '{name}' {shape}, expected a scalar tensor")
        if torch.is_grad_enabled() and not loss.requires_grad:
            raise fault(task, f"loss for task '{name}' has no gradient; was it detached?")
        return loss

    def check_teachers(self, algorithm: str) -> None:
        """Raise RecipeError if the algorithm made losses of its own of a task that has teachers, or a loss in the
        recipe: it would learn nothing of them."""
        for task, heard in self._taught.items():
            if not heard:
                message = f"algorithm '{algorithm}' makes the loss of task '{task}' by itself"
                if self.tasks[task].objective.trains_otherwise:
                    raise RecipeError(f"tasks.{task}.loss", f"{message}; leave it out, or choose another algorithm")
                message = f"{message}, without its teachers; leave the task out, or choose another algorithm"
                raise RecipeError(f"teachers.{task}", message)

    def check_losses(self, losses: list[tuple[str, int, Tensor]] | None = None) -> None:
        """Raise DivergedError naming step, task and inner step of the first non-finite loss. One synchronisation."""
        losses = self.losses if losses is None else losses
        if not losses:
            return
        for (task, inner, _), value in zip(losses, torch.stack([loss for *_, loss in losses]).tolist(), strict=True):
            if not math.isfinite(value):
                where = f"meta-step {self.step + 1}, task '{task}', inner step {inner + 1}"
                who = accused(self.tasks[task])  # a plugin's loss may as well be the plugin's fault
                raise DivergedError(who, f"loss became {value} at {where}; lower the learning rate")

    def check_direction(self, norm: Tensor, kind: str, task: str) -> None:
        """Raise DivergedError if what an inner loop hands on is not finite. On a GPU the norm of the whole must do."""
        if self._check_each_loss and not math.isfinite(norm):
            where = f"meta-step {self.step + 1}, task '{task}', inner step {self.inner_step}"
            raise DivergedError("", f"{kind} became {float(norm)} at {where}; lower the inner learning rate")

    def clear_gradient(self) -> None:
        # absent, not zero, so that no optimizer moves what nothing touched
        for parameter in self.parameters.values():
            parameter.grad = None

    def take_gradient(self) -> Grads:
        taken = [parameter.grad for parameter in self.parameters.values()]
        self.clear_gradient()
        return taken

    def put_gradient(self, gradient: Grads) -> None:
        for parameter, grad in zip(self.parameters.values(), gradient, strict=True):
            parameter.grad = grad

    @contextmanager
    def excursion(
        self,
        task: str,
        optimizer: OptimizerOptions,
        schedule: ScheduleOptions,
        *,
        state: InnerState = "per_task",
        fresh_head: bool = False,
    ) -> Iterator[Excursion]:
        if self._away:
            raise RuntimeError("an excursion is under way already; they cannot be nested")
        parameters: list[Tensor] = list(self.parameters.values())
        if not self._snapshot:
            self._snapshot = [torch.empty_like(parameter) for parameter in parameters]
        outer = self.take_gradient()
        with torch.no_grad():
            torch._foreach_copy_(self._snapshot, parameters)
        self.inner_step, self._away = 0, True
        try:
            inner = self._inner_optimizer("shared" if state == "shared" else task, optimizer)
            if state == "reset":
                inner.state.clear()
            set_lr(inner, schedule.factor(self.episodes[task], self.steps))
            if fresh_head:
                self._reset_head(task)
            trip = Excursion(self, task, inner, self._snapshot, outer, fresh_head)
            yield trip
            self.drifts.append((task, trip.drift()))
            self.episodes[task] += 1
            if state == "reset":
                inner.state.clear()  # nothing of it is to be kept or checkpointed
        finally:
            self._away = False
            with torch.no_grad():
                torch._foreach_copy_(parameters, self._snapshot)
            self.put_gradient(outer)

    @contextmanager
    def unrolled(
        self, task: str, optimizer: OptimizerOptions, schedule: ScheduleOptions, *, fresh_head: bool = False
    ) -> Iterator[Unrolled]:
        if self._away:
            raise RuntimeError("an excursion is under way already; they cannot be nested")
        rates = rates_of(optimizer, self.parameters, schedule.factor(self.episodes[task], self.steps))
        theta: dict[str, Tensor] = {**self.parameters}
        if fresh_head:  # its outer gradient stays with it, and goes when the loop does
            head = self.model.make_head(task, self.seed, "episode", self.episodes[task]).to(self.device)
            theta |= head.named_parameters(f"heads.{task}")
        self.inner_step, self._away = 0, True
        self._estimates.begin(self.device)
        try:
            trip = Unrolled(self, theta, rates, self._estimates)
            yield trip
            self.drifts.append((task, trip.drift()))
            self.episodes[task] += 1
        finally:
            self._away = False

    def _reset_head(self, task: str) -> None:
        fresh = self.model.make_head(task, self.seed, "episode", self.episodes[task])
        self.model.heads[task].load_state_dict(fresh.state_dict())

    def _inner_optimizer(self, key: str, options: OptimizerOptions) -> Optimizer:
        if key not in self._inner:
            self._inner[key] = options.build(self.parameters.items(), inner=True)
            if key in self._pending:
                restore_optimizer(self._inner[key], self.parameters, self._pending.pop(key))
        return self._inner[key]

    def share_last_gradients(self, optimizer: Optimizer) -> None:
        """Have all inner optimizers keep their first moment in the same buffers, if its beta is 0.

        It is the last gradient then, written anew before it is read: half of what a task's own state would take.
        """
        if spare_slot(optimizer):
            for parameter, state in optimizer.state.items():
                state["exp_avg"] = self._last_gradients.setdefault(parameter, state["exp_avg"])

    def inner_states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return the state of every inner optimizer: key -> parameter name -> slot -> tensor."""
        current = {key: optimizer_state(inner, self.parameters) for key, inner in self._inner.items()}
        return {**self._pending, **current}

    def forget_inner_states(self) -> None:
        """Drop the inner optimizer states that this step used: a non-finite gradient may have entered them."""
        for key in ("shared", *(task for task, *_ in self.losses)):
            self._inner.pop(key, None)
            self._pending.pop(key, None)
        for gradient in self._last_gradients.values():
            gradient.zero_()  # 0 times NaN is not 0

    def load_inner_states(self, states: dict[str, dict[str, dict[str, Tensor]]]) -> None:
        """Take up saved states; each is applied when its optimizer is next needed."""
        self._inner.clear()
        self._pending = dict(states)


@dataclass(eq=False)
class Excursion:
    """An inner loop under way: the model's parameters are theta', on their way from theta."""

    learner: Learner
    task: str
    optimizer: Optimizer
    theta: list[Tensor]
    outer: Grads
    fresh_head: bool
    """Whether the outer gradient of the task's head stays None."""

    def __post_init__(self) -> None:
        self._touched = [False] * len(self.theta)
        self._drift: Tensor | None = None

    def step(
        self,
        *batches: Batch,
        scale: Callable[[str], float] = lambda task: 1.0,
        rates: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.learner.clear_gradient()
        for batch in batches:
            self.learner.gradient(batch, scale(batch.task))
        for name, rate in (rates or {}).items():
            if (grad := self.learner.parameters[name].grad) is not None:
                grad.mul_(rate)
        for i, parameter in enumerate(self.learner.parameters.values()):
            self._touched[i] |= parameter.grad is not None
        self.optimizer.step()
        self._drift = None
        self.learner.share_last_gradients(self.optimizer)
        self.learner.inner_step += 1

    @torch.no_grad()
    def keep_delta(self, scale: float = 1.0) -> None:
        names = enumerate(self.learner.parameters.items())
        touched = [(i, p) for i, (name, p) in names if self._touched[i] and not self._is_dropped(name)]
        if not touched:
            return
        deltas = torch._foreach_sub([self.theta[i] for i, _ in touched], [p for _, p in touched])
        norm = norm_of(deltas)
        if not self.fresh_head:
            self._drift = norm
        self.learner.check_direction(norm, "delta", self.task)
        if scale != 1.0:
            torch._foreach_mul_(deltas, scale)
        for (i, _), delta in zip(touched, deltas, strict=True):
            self._add(i, delta)

    def keep_gradient(self, batch: Batch, scale: float = 1.0) -> dict[str, Tensor]:
        self.learner.clear_gradient()
        self.learner.gradient(batch, scale)
        self.learner.inner_step += 1
        with torch.no_grad():
            named = enumerate(self.learner.parameters.items())
            grads = [(i, name, p.grad) for i, (name, p) in named if p.grad is not None and not self._is_dropped(name)]
            self.learner.check_direction(norm_of([grad for *_, grad in grads]), "query gradient", self.task)
            for i, _, grad in grads:
                self._add(i, grad)
        self.learner.clear_gradient()
        return {name: grad for _, name, grad in grads}

    @torch.no_grad()
    def moves(self) -> dict[str, Tensor]:
        named = zip(self.learner.parameters.items(), self.theta, self._touched, strict=True)
        touched = [(name, there, home) for (name, there), home, moved in named if moved]
        if not touched:
            return {}
        names, there, home = zip(*touched, strict=True)
        return dict(zip(names, torch._foreach_sub(there, home), strict=True))

    @torch.no_grad()
    def drift(self) -> Tensor:
        if self._drift is None:
            named = zip(self.learner.parameters.values(), self.theta, self._touched, strict=True)
            touched = [(there, home) for there, home, moved in named if moved]
            self._drift = norm_of(torch._foreach_sub(*map(list, zip(*touched, strict=True))) if touched else [])
        return self._drift

    def _is_dropped(self, name: str) -> bool:
        return self.fresh_head and name.startswith(f"heads.{self.task}.")

    def _add(self, i: int, direction: Tensor) -> None:
        kept = self.outer[i]
        self.outer[i] = direction if kept is None else kept.add_(direction)
