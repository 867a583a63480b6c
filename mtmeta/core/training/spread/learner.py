"""A learner whose steps are spread over ranks, with the bits of one process.

What a step adds up has parts: slots, which an algorithm names by `slots`, and shards, which the recipe cuts every batch
into. All ranks go through all of a step, in the same order; each computes the parts that are its own and rehearses the
others, so that streams, episodes and dropout's draws are everywhere what they are in one process. Then the parts are
added up:

    without `training.shards`   as floats, slot by slot, as one process does; every rank gets every slot
    with it                     in fixed point, where the order does not matter; the ranks get the sum alone
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mtmeta.core.api.batch import Batch, Chunk, Features
from mtmeta.core.api.option_types import InnerState
from mtmeta.core.data.feed import Feed
from mtmeta.core.distributed.fixed_point import fixed_sum
from mtmeta.core.distributed.group import Group
from mtmeta.core.training.learner import Grads, Learner
from mtmeta.core.training.model import MultiTaskModel
from mtmeta.core.training.spread.rehearsal import Rehearsal
from mtmeta.core.training.state import flatten, unflatten

ALONE = Group()


class SpreadLearner(Rehearsal):
    """The learner of one rank. By itself, with shards, it computes all parts, and has the same bits."""

    def __init__(
        self, model: MultiTaskModel, *, ranks: Group, shards: int | None, chunks: int, feed: Feed, **options: Any
    ) -> None:
        """`chunks` are those of `training.grad_accumulation`, which every shard is encoded in."""
        super().__init__(model, **options)
        self.chunks = chunks * (shards or 1)
        self._ranks, self._shards, self._feed = ranks, shards, feed
        self._per_shard = chunks
        self._like: list[Tensor] = list(self.parameters.values())
        self._mine = True
        self._within = False
        """Whether a slot is under way whose shards are all its own rank's."""
        self._parts: list[Grads] | None = None
        """Where slots are single gradients: the parts of this rank so far."""
        self._units: list[list[float]] = []
        """Of such slots, the loss of each shard; 0 for those of other ranks."""
        self._keeps_states = False
        """Whether inner states of tasks are each on the rank of its task alone."""

    def begin_step(self, step: int) -> None:
        super().begin_step(step)
        self._mine, self._feed.packs, self._within, self._parts = True, True, False, None  # an error may have left them

    # -- slots

    def slots(self, tasks: Sequence[str], *, state: InnerState = "reset", single: bool = False) -> Iterator[str]:
        if len(tasks) == 1 or state == "shared":  # one part, or parts that go on from each other
            yield from tasks
        elif single and self._shards:
            yield from self._cut_slots(tasks)
        else:
            yield from self._whole_slots(tasks, state)

    def _whole_slots(self, tasks: Sequence[str], state: InnerState) -> Iterator[str]:
        """Go through slots of which each is computed by one rank, the same one for all slots of a task with a state."""
        self._keeps_states |= state == "per_task"
        outer, own, notes = self.take_gradient(), dict[int, Grads](), dict[int, Any]()
        losses, drifts = len(self.losses), len(self.drifts)
        owners = [self._owner(slot, task, state) for slot, task in enumerate(tasks)]
        for slot, task in enumerate(tasks):
            first, moved = len(self.losses), len(self.drifts)
            with self._turn(owners[slot] == self._ranks.rank):
                yield task
            gradient = self.take_gradient()
            if owners[slot] == self._ranks.rank:
                own[slot] = gradient
                notes[slot] = {
                    "losses": [[name, inner, float(loss)] for name, inner, loss in self.losses[first:]],
                    "drifts": [[name, float(drift)] for name, drift in self.drifts[moved:]],
                    "touched": [i for i, grad in enumerate(gradient) if grad is not None],
                }
        told = {int(slot): note for each in self._ranks.settle(notes) for slot, note in each.items()}
        del self.losses[losses:], self.drifts[drifts:]
        for slot in range(len(tasks)):
            self.losses += [(name, inner, self._number(loss)) for name, inner, loss in told[slot]["losses"]]
            self.drifts += [(name, self._number(drift)) for name, drift in told[slot]["drifts"]]
        if self._shards:
            self.put_gradient(_plus(outer, fixed_sum(list(own.values()), self._like, len(tasks), self._ranks)))
        else:
            touched = [told[slot]["touched"] for slot in range(len(tasks))]
            self.put_gradient(self._in_order(outer, own, owners, touched))

    def _owner(self, slot: int, task: str, state: InnerState) -> int:
        number = self._feed.tasks.index(task) if state == "per_task" else slot
        return number % self._ranks.world

    @contextmanager
    def _turn(self, mine: bool) -> Iterator[None]:
        """Within, a slot is computed, or else rehearsed."""
        self._mine = self._feed.packs = mine
        self._within = True
        try:
            yield
        finally:
            self._mine = self._feed.packs = True
            self._within = False

    def _in_order(
        self, total: Grads, own: Mapping[int, Grads], owners: Sequence[int], touched: Sequence[Sequence[int]]
    ) -> Grads:
        """Add up slots as one process does: one after another."""
        for slot, owner in enumerate(owners):
            sizes = [self._like[i].numel() for i in touched[slot]]
            flat = torch.empty(sum(sizes), device=self.device)
            if slot in own:
                mine: list[Tensor] = [own[slot][i].reshape(-1) for i in touched[slot]]  # type: ignore[union-attr]
                torch.cat(mine, out=flat) if mine else None
            self._ranks.broadcast(flat, owner)
            for i, piece in zip(touched[slot], torch.split(flat, sizes), strict=True):
                kept, piece = total[i], piece.view(self._like[i].shape)
                total[i] = piece.clone() if kept is None else kept.add_(piece)
        return total

    def _cut_slots(self, tasks: Sequence[str]) -> Iterator[str]:
        """Go through slots of one gradient each: their shards are spread, and all of them added up at the end."""
        outer, losses = self.take_gradient(), len(self.losses)
        self._parts, self._units = [], []
        try:
            yield from tasks
            parts = self._parts
        finally:
            self._parts = None
        found = self._summed_losses(self._units)
        named = [(task, inner) for task, inner, _ in self.losses[losses:]]
        self.losses[losses:] = [(*name, self._number(loss)) for name, loss in zip(named, found, strict=True)]
        self.check_losses(self.losses[losses:])
        count = sum(map(len, self._units))
        self.put_gradient(_plus(outer, fixed_sum(parts, self._like, count, self._ranks)))

    # -- shards

    def gradient(self, batch: Batch, scale: float | Tensor = 1.0) -> Tensor:
        if not self._mine:
            return super().gradient(batch, scale)
        chunks, size = batch.chunks, self._per_shard
        shards = [chunks[start : start + size] for start in range(0, len(chunks), size)]
        if self._parts is not None:
            before = sum(map(len, self._units))
            parts, losses = self._own_shards(batch, shards, scale, self._ranks, before)
            self._parts += parts
            self._units.append(losses)
            return self.log(batch.task, self._number(0.0))
        if len(shards) == 1 or not self._shards:
            return Learner.gradient(self, batch, scale)
        ranks, outer = ALONE if self._within else self._ranks, self.take_gradient()
        parts, losses = self._own_shards(batch, shards, scale, ranks)
        (loss,) = self._summed_losses([losses], ranks)
        self.put_gradient(_plus(outer, fixed_sum(parts, self._like, len(shards), ranks)))
        return self.log(batch.task, self._number(loss))

    def _own_shards(
        self, batch: Batch, shards: Sequence[Sequence[Chunk]], scale: float | Tensor, ranks: Group, before: int = 0
    ) -> tuple[list[Grads], list[float]]:
        """Return the gradients of this rank's shards of a batch, and the losses of all, those of others as 0.

        `before` are the shards that were dealt out already.
        """
        own = [number for number in range(len(shards)) if (before + number) % ranks.world == ranks.rank]
        parts, losses, kept = list[Grads](), [0.0] * len(shards), self.take_gradient()
        if not own:
            self.read_elsewhere(batch)
            self.put_gradient(kept)
            return parts, losses
        with self.reading(batch):
            first = self.draws
            for number in own:
                self.draws = first + number * self._per_shard
                losses[number] = float(self.add_gradient(batch, shards[number], scale))
                parts.append(self.take_gradient())
            self.draws = first + len(batch.chunks)
        self.put_gradient(kept)
        return parts, losses

    def _summed_losses(self, losses: Sequence[Sequence[float]], ranks: Group | None = None) -> list[float]:
        """Return the loss of each batch, the sum of what its shards have on the ranks that computed them."""
        given = (self._ranks if ranks is None else ranks).settle(losses)
        return [_sum([loss for each in given for loss in each[number]]) for number in range(len(losses))]

    def _number(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=torch.float32, device=self.device)

    # -- what other ranks compute is rehearsed

    def measure(self, batch: Batch) -> Tensor:
        return Learner.measure(self, batch) if self._mine else super().measure(batch)

    def features(self, batch: Batch) -> Features:
        return Learner.features(self, batch) if self._mine else super().features(batch)

    def head(self, task: str) -> dict[str, Tensor]:
        return Learner.head(self, task) if self._mine else super().head(task)

    def loss(self, features: Features, head: Mapping[str, Tensor] | None = None) -> Tensor:
        return Learner.loss(self, features, head) if self._mine else super().loss(features, head)

    def descend(self, task: str, loss: Tensor, scale: float | Tensor = 1.0) -> Tensor:
        return Learner.descend(self, task, loss, scale) if self._mine else super().descend(task, loss, scale)

    def loss_at(self, batch: Batch, parameters: Mapping[str, Tensor]) -> Tensor:
        return Learner.loss_at(self, batch, parameters) if self._mine else super().loss_at(batch, parameters)

    @contextmanager
    def unrolled(self, task: str, *options: Any, **more: Any) -> Iterator[Any]:
        kind = Learner if self._mine else Rehearsal
        with kind.unrolled(self, task, *options, **more) as trip:
            yield trip

    @contextmanager
    def excursion(self, task: str, *options: Any, **more: Any) -> Iterator[Any]:
        kind = Learner if self._mine else Rehearsal
        with kind.excursion(self, task, *options, **more) as trip:
            yield trip

    # -- states

    def inner_states(self) -> dict[str, dict[str, dict[str, Tensor]]]:
        """Return the states of all inner optimizers, on the rank that writes; each task's is that of its own rank."""
        states = super().inner_states()
        if not self._keeps_states or self._ranks.world == 1:
            return states
        gathered = {}
        for task in self._feed.tasks:
            owner = self._owner(0, task, "per_task")
            own = flatten("inner", states.get(task, {})) if owner == self._ranks.rank else {}
            found = self._ranks.broadcast_all(own, owner, self.device)
            if found and self._ranks.leads:
                gathered[task] = unflatten(found)["inner"]
        return gathered


def _plus(outer: Grads, summed: Grads) -> Grads:
    """Return the sum of two gradients, in which an absent one is none at all."""
    pairs = zip(outer, summed, strict=True)
    return [new if kept is None else kept if new is None else kept.add_(new) for kept, new in pairs]


def _sum(losses: Sequence[float]) -> float:
    return math.fsum(losses) if all(map(math.isfinite, losses)) else sum(losses)
