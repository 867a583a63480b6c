"""THE training loop. Every algorithm shares it; none is named here.

for each step:  algorithm.backward leaves a direction in .grad  ->  clip  ->  check  ->  optimizer  ->  schedule
                -> evaluate, keep the best  ->  checkpoint  ->  stop if a signal asked for it
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mtmeta.core.api.events import (
    CheckpointSaved,
    Event,
    GradientsMeasured,
    StepDone,
    StepSkipped,
    StoppedEarly,
    Warned,
)
from mtmeta.core.api.optimizers import set_lr
from mtmeta.core.api.schedules import Plateau, PlateauState
from mtmeta.core.data.feed import Feed
from mtmeta.core.errors import CheckpointError, DivergedError
from mtmeta.core.machine import Heap, memory_errors
from mtmeta.core.methods.averaging import Average
from mtmeta.core.methods.stopping import Stopping
from mtmeta.core.recipe.sections import Recipe
from mtmeta.core.registry.guard import fault, supplier
from mtmeta.core.signals import StopRequest
from mtmeta.core.training.checkpoint import Checkpoints
from mtmeta.core.training.diagnostics import gradient_cosines, norm_of
from mtmeta.core.training.learner import Learner
from mtmeta.core.training.model import evaluation_mode
from mtmeta.core.training.selection import Selection
from mtmeta.core.training.spread.agreement import Agreement
from mtmeta.core.training.state import check_fit, flatten, optimizer_state, read_state, restore_optimizer, unflatten
from mtmeta.core.wording import quote, safe

COMPARED = 100
"""Steps after which ranks compare their weights, beside evaluations and checkpoints."""


@dataclass
class Trainer:
    """One learner on its way through the steps of a recipe."""

    recipe: Recipe
    group: str
    several: bool
    """Whether the run has other groups too."""
    learner: Learner
    feed: Feed
    steps: int
    evaluate_every: int
    selection: Selection
    """Which weights are the best so far."""
    checkpoints: Checkpoints
    emit: Callable[[Event], None]
    precision: Literal["fp32", "bf16"] = "fp32"
    budget: int | None = None
    """Example-forwards that it may spend at most; its steps were counted to stay within."""
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    plateau: PlateauState = field(default_factory=PlateauState)
    stop: StopRequest = field(default_factory=StopRequest)
    agreement: Agreement = field(default_factory=Agreement)
    """What it has to agree on with other ranks."""

    def __post_init__(self) -> None:
        self.optimizer = self.recipe.optimizer.build(self.learner.parameters.items())
        options = self.recipe.training.average
        self.average = Average(options, self.learner.parameters, self.steps) if options else None
        stop = self.recipe.training.stop
        self.stopping = Stopping(stop) if stop else None
        self._heap = Heap()

    def run(self) -> None:
        """Train from the current step to the last, or to where it stops early, and leave the best weights selected.

        Raises Stopped, with everything saved, at the end of the step in which a signal came.
        """
        self.start()
        if not self.is_over:
            average = self.average.to_come if self.average else {}
            self.checkpoints.check_space(self.weights(), self.optimizer_tensors(), average, self.weights())  # the best
        with self.stop.deferred():
            while not self.is_over:
                with self.agreement.failing_together():
                    self.make_step()
                    self.stop.check_ours()
                    if self.step == self.steps or self.step % self.evaluate_every == 0:
                        self._evaluate()
                    elif self.step % COMPARED == 0:
                        self.agreement.check_weights(self.step, self.weights())
                    is_due = self.agreement.after_step(self.stop, self._is_due())
                if self.is_scheduled(self.step):
                    self.announce_checkpoint(self._save())
                elif self.agreement.asks(self.stop) or is_due:
                    self._save()  # without an event: another run of the recipe has no such checkpoint
                else:
                    continue
                self._stop_if_asked()
        self._stop_if_asked()

    def start(self) -> None:
        """Put the model in training mode and start the clock."""
        self.learner.model.train()
        self._saved = time.perf_counter()
        self._started = self._saved - self.seconds

    def make_step(self) -> None:
        """Make the next step by itself, without what may follow it: evaluation, checkpoint, stop."""
        with memory_errors(f"meta-step {self.step + 1}", "lower batch_size or max_length"):
            self._one_step()
        self._heap.after_step()

    def _stop_if_asked(self) -> None:
        self.stop.where = f"at meta-step {self.step}" + f" of group '{self.group}'" * self.several
        if self.agreement.asks(self.stop):
            self.stop.check()

    @property
    def is_over(self) -> bool:
        """Whether there is no further step: the last one was made, or training stopped early."""
        return self.step == self.steps or (self.stopping is not None and self.stopping.is_over)

    def is_scheduled(self, step: int) -> bool:
        """Return whether the recipe asks for a checkpoint after this many steps."""
        every, last = self.recipe.checkpoint.every, self.step if self.is_over else self.steps
        return step == last or bool(every and step % every == 0)

    def _is_due(self) -> bool:
        """Return whether what a kill would cost has grown to the recipe's limit."""
        minutes = self.recipe.checkpoint.minutes
        return minutes is not None and time.perf_counter() - self._saved >= 60 * minutes

    def announce_checkpoint(self, path: Path) -> None:
        """Tell that the checkpoint of the current step was committed."""
        self.emit(CheckpointSaved(group=self.group, step=self.step, path=str(path)))

    # -- one step

    def _one_step(self) -> None:
        recipe, learner = self.recipe, self.learner
        self.feed.step = self.step
        learner.begin_step(self.step)
        lr = self._set_lr()
        before = self._algorithm_state() if recipe.training.on_nonfinite == "skip" else {}
        before = {name: tensor.clone() for name, tensor in before.items()}
        try:
            with learner.counting():
                recipe.algorithm.backward(learner, self.feed)
            learner.check_teachers(recipe.algorithm.name)
            learner.model.check_shapes(supplier(recipe.algorithm))
            self._check_budget()
            learner.check_losses()
            norm = self._clip()
        except DivergedError as error:
            if recipe.training.on_nonfinite == "stop":
                raise
            learner.clear_gradient()
            learner.forget_inner_states()
            recipe.algorithm.restore(learner, before)
            self.skipped += 1
            self.emit(StepSkipped(group=self.group, step=self.step + 1, reason=error.message))
        else:
            self.optimizer.step()
            with learner.counting():
                recipe.algorithm.after_step(learner, self.feed)
            learner.scratch.clear()  # batches may be large, and evaluation comes next
            self._check_budget()
            if self.average:
                self.average.after_step(self.step + 1)
            self._announce_step(lr, norm)
        self.step += 1

    def _algorithm_state(self) -> dict[str, Tensor]:
        """Return the algorithm's own state. Raises PluginError for one that no checkpoint can hold."""
        algorithm = self.recipe.algorithm
        state: object = algorithm.state(self.learner)
        if not isinstance(state, Mapping):
            message = f"is a {type(state).__name__}, expected a dict"
            raise fault(algorithm, f"state of algorithm '{algorithm.name}' {message}")
        for name, tensor in state.items():
            if not isinstance(name, str) or not name or "|" in name or not isinstance(tensor, Tensor):
                message = f"holds {type(tensor).__name__} under {quote(name)}, expected tensors by names without '|'"
                raise fault(algorithm, f"state of algorithm '{algorithm.name}' {message}")
        return {name: tensor.detach() for name, tensor in state.items()}

    def _announce_step(self, lr: float, norm: float) -> None:
        losses: dict[str, list[float]] = {}
        drifts: dict[str, list[float]] = {}
        for task, _, loss in self.learner.losses:
            losses.setdefault(task, []).append(float(loss))
        self.seconds = time.perf_counter() - self._started
        for task, drift in self.learner.drifts:
            drifts.setdefault(task, []).append(float(drift))
        self.emit(
            StepDone(
                group=self.group,
                step=self.step + 1,
                steps=self.steps,
                losses=losses,
                lr=lr,
                norm=norm,
                examples=self.learner.examples,
                seconds=round(self.seconds, 3),
                drifts=drifts,
            )
        )

    def _check_budget(self) -> None:
        """The steps were counted as if every loss were 0: an algorithm that goes by its losses may need more."""
        if self.budget is not None and self.learner.examples > self.budget:
            algorithm = self.recipe.algorithm
            message = f"algorithm '{algorithm.name}' reads more than could be counted before training"
            raise fault(algorithm, f"{message}; give training.steps instead of a budget")

    def _set_lr(self) -> float:
        factor = self.recipe.schedule.factor(self.step, self.steps)
        if isinstance(self.recipe.schedule, Plateau):
            factor = self.plateau.factor
        set_lr(self.optimizer, factor)
        return float(self.recipe.optimizer.lr * factor)

    def _clip(self) -> float:
        """Return the norm of the whole direction before clipping; checked before it can touch a weight."""
        grads = [p.grad for p in self.learner.parameters.values() if p.grad is not None]
        if not grads:
            message = f"algorithm '{self.recipe.algorithm.name}' left no gradient at meta-step {self.step + 1}"
            raise fault(self.recipe.algorithm, message)
        norm = float(norm_of(grads))
        if not math.isfinite(norm):
            tasks = ", ".join(f"'{task}'" for task in dict.fromkeys(task for task, *_ in self.learner.losses))
            message = f"gradient norm became {norm} at meta-step {self.step + 1}, task {tasks}; lower the learning rate"
            raise DivergedError("", message)
        limit = self.recipe.training.clip
        if limit is not None and norm > limit:
            torch._foreach_mul_(grads, limit / norm)
        return norm

    # -- evaluation and selection

    def _evaluate(self) -> None:
        self._check_finite("parameter", self.weights())
        self.agreement.check_weights(self.step, self.weights())  # they may be the best, and saved
        self._heap.release()  # evaluation needs other buffers than training
        with self.average.in_place() if self.average else nullcontext():
            self._prepare_heads()
            evaluated = self.selection.evaluate(self.learner.model, self.step, self.weights(), self._warn)
        if isinstance(self.recipe.schedule, Plateau):
            self.plateau.update(self.recipe.schedule, evaluated.selected)
        self.emit(replace(evaluated, sampling=self.feed.usage()))
        if self.recipe.evaluation.gradients:
            self._measure_gradients()
        if self.stopping:
            self._consider_stopping(self.stopping, evaluated.selected)

    def _consider_stopping(self, stopping: Stopping, selected: float) -> None:
        """Take note of an evaluation, and tell if training ends with it though steps are left."""
        stopping.after_evaluation(selected)
        if stopping.is_over and self.step < self.steps:
            assert stopping.best is not None
            told: dict[str, Any] = {"evaluations": stopping.waited, "best": stopping.best}
            self.emit(StoppedEarly(group=self.group, step=self.step, steps=self.steps, **told))

    def _prepare_heads(self) -> None:
        """Let the algorithm make its heads ready; what it encodes for that is no training."""
        learner = self.learner
        counted, read, losses = learner.examples, learner.read.copy(), list(learner.losses)
        with evaluation_mode(learner.model):
            self.recipe.algorithm.before_evaluation(learner, self.feed)
        learner.clear_gradient()
        learner.examples, learner.read, learner.losses = counted, read, losses

    def _warn(self, text: str) -> None:
        self.emit(Warned(text=text, group=self.group, step=self.step))

    def _measure_gradients(self) -> None:
        """Tell how the tasks pull at the encoder; training goes on as if nothing had been measured."""
        chunks = self.recipe.training.grad_accumulation
        options: dict[str, Any] = {"seed": self.recipe.seed, "chunks": chunks, "precision": self.precision}
        remedy = "set evaluation.gradients: false"
        with memory_errors(f"measuring gradients of {len(self.feed.tasks)} tasks", remedy):
            norms, cosines = gradient_cosines(self.learner.model, self.feed.datasets, **options)
        self.emit(GradientsMeasured(group=self.group, step=self.step, norms=norms, cosines=cosines))

    def _check_finite(self, kind: str, tensors: Mapping[str, Tensor]) -> None:
        by_device: dict[torch.device, list[str]] = {}
        for name, tensor in tensors.items():
            if tensor.numel() and tensor.is_floating_point():
                by_device.setdefault(tensor.device, []).append(name)
        for names in by_device.values():
            # the largest value of each, so that a GPU is asked once; NaN and inf survive it
            largest = torch.stack(torch._foreach_norm([tensors[name] for name in names], math.inf)).tolist()
            bad = [name for name, value in zip(names, largest, strict=True) if not math.isfinite(value)]
            if bad:
                message = f"{kind} '{bad[0]}' became non-finite by meta-step {self.step}; lower the learning rate"
                raise DivergedError("", message)

    # -- checkpoints

    def weights(self) -> dict[str, Tensor]:
        """Return the parameters by name, as checkpoints hold them."""
        return {name: parameter.detach() for name, parameter in self.learner.parameters.items()}

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Return the state of optimizers, outer and inner, algorithm and average by name, as checkpoints hold it."""
        tensors = flatten("outer", optimizer_state(self.optimizer, self.learner.parameters))
        for key, inner in self.learner.inner_states().items():
            tensors |= flatten(f"inner/{key}", inner)
        own = {name: {"state": tensor.contiguous()} for name, tensor in self._algorithm_state().items()}
        average = self.average.state() if self.average else {}
        return tensors | flatten("algorithm", own) | flatten("average", average)

    def state_bytes(self) -> int:
        """Return the bytes of `optimizer_tensors` with the average that may still have to begin."""
        to_come = self.average.to_come if self.average else {}
        return sum(tensor.nbytes for tensor in (*self.optimizer_tensors().values(), *to_come.values()))

    def _save(self) -> Path:
        self._check_finite("parameter", self.weights())
        tensors = self.optimizer_tensors()
        self._check_finite("optimizer state", tensors)  # a square can overflow where its gradient did not
        self.agreement.check_weights(self.step, self.weights())
        state: dict[str, Any] = {
            "step": self.step,
            "seconds": round(time.perf_counter() - self._started, 3),
            "skipped": self.skipped,
            "bests": self.selection.bests,
            "links": self.selection.links,
            "plateau": asdict(self.plateau) if math.isfinite(self.plateau.best) else None,
            "examples": self.learner.examples,
            "episodes": dict(self.learner.episodes),
            "feed": self.feed.state(),
            "warned": self.selection.warned,
        }
        if self.stopping:
            state["stop"] = {"best": self.stopping.best, "waited": self.stopping.waited}
        save = self.checkpoints.save
        path = self.agreement.together(lambda: save(self.step, self.weights(), tensors, state, self.is_scheduled))
        self._saved = time.perf_counter()
        return path

    def restore(self, model: Mapping[str, Tensor], tensors: Mapping[str, Tensor], state: Any) -> None:
        """Go on exactly where a checkpoint was taken. Raises CheckpointError if it is of another model."""
        check_fit(self.learner.parameters, model, str(self.checkpoints.folder))
        with torch.no_grad():
            for name, parameter in self.learner.parameters.items():
                parameter.copy_(model[name])
        try:
            saved = read_state(state)
            if saved.step > self.steps:
                raise ValueError(f"step {saved.step} of {self.steps}")
            nested = unflatten(tensors)
            restore_optimizer(self.optimizer, self.learner.parameters, nested.pop("outer", {}))
            own = {name: slots["state"].to(self.learner.device) for name, slots in nested.pop("algorithm", {}).items()}
            self.recipe.algorithm.restore(self.learner, own)
            if self.average:
                self.average.restore(nested.pop("average", {}))
            self.learner.load_inner_states({key.removeprefix("inner/"): slots for key, slots in nested.items()})
            self.step, self.seconds, self.skipped = saved.step, saved.seconds, saved.skipped
            self.selection.restore(saved.bests, saved.links, saved.warned)
            self.plateau = PlateauState(**saved.plateau.model_dump()) if saved.plateau else PlateauState()
            if self.stopping:
                if saved.stop is None:
                    raise ValueError("nothing of training.stop")
                self.stopping.best, self.stopping.waited = saved.stop.best, saved.stop.waited
            self.learner.examples = saved.examples
            self.learner.episodes.update(saved.episodes)
            self.feed.load_state({name: stream.model_dump() for name, stream in saved.feed.items()})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            message = f"holds no state of this run ({safe(f'{type(error).__name__}: {error}')}); --fresh starts over"
            raise CheckpointError(str(self.checkpoints.folder), message) from error
