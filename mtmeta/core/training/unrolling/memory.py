"""The memory that a graph of second derivatives takes, found by building it on the meta device, where nothing has size.

Saved by a first derivative is about what an ordinary training step saves; its own graph saves as much again several
times over, and an inner loop keeps all of it until the outer gradient is there.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from mtmeta.core.api.batch import Batch
from mtmeta.core.errors import OutOfMemory
from mtmeta.core.machine import free_memory_of
from mtmeta.core.training.model import MultiTaskModel

GIB = 2**30
BESIDE = 3  # copies of the parameters: the gradient, and two on their way while it is summed
MARGIN = 1.1  # seen on a CPU: peaks of 0.99 to 1.07 of what is counted here


@dataclass
class Estimates:
    """Refuses inner loops whose graph would not fit, by what was free when the first of them came."""

    model: MultiTaskModel
    steps: int = 0
    """Batches of the present loop so far."""
    taken: int = 0
    """Bytes that they take."""
    _free: int | None = None
    _of: dict[tuple[str, int, bool], int] = field(default_factory=dict)
    """Bytes of a batch by its task, its tokens, and whether its gradient has a graph too."""

    def begin(self, device: torch.device) -> None:
        """Begin a loop."""
        self.steps = self.taken = 0
        if self._free is None:
            self._free = free_memory_of(device)

    def add(self, batch: Batch, *, second: bool) -> None:
        """Count one batch more; `second` if its gradient has a graph too.

        Raises MachineError if the loop then takes more memory than there is.
        """
        tokens = sum(len(chunk.packed.ids) for chunk in batch.chunks)
        key = batch.task, tokens, second
        if key not in self._of:
            self._of[key] = graph_bytes(self.model, batch, second=second)
        self.steps += 1
        own = sum(parameter.nbytes for parameter in self.model.parameters())
        self.taken += self._of[key] + own  # theta' is another one after each step
        needed = MARGIN * (self.taken + BESIDE * own)
        if self._free is not None and needed > self._free:
            counted = f"{self.steps} batches of {len(batch)} examples" if self.steps > 1 else "its first batch"
            message = f"second derivatives of {counted} of task '{batch.task}' take about {needed / GIB:.1f} GiB"
            fix = "lower inner_steps, batch_size or max_length, or take order: 1"
            raise OutOfMemory("", f"{message}, {self._free / GIB:.1f} GiB are free; {fix}")


def graph_bytes(model: MultiTaskModel, batch: Batch, *, second: bool = True) -> int:
    """Return the bytes that the graph of a batch's loss keeps, beside the parameters; if `second`, of its gradient too.

    0 where an encoder cannot be gone through without numbers, as some of other libraries cannot.
    """
    meta = torch.device("meta")
    parameters = {name: _shape_of(parameter) for name, parameter in model.named_parameters()}
    try:
        with _counting(parameters) as saved:
            for chunk in batch.chunks:
                outputs = functional_call(model, parameters, (batch.task, chunk.packed.to(meta)))
                if second:
                    torch.autograd.grad(outputs.sum(), [*parameters.values()], create_graph=True, allow_unused=True)
    except (NotImplementedError, RuntimeError):
        return 0
    return saved.bytes


@dataclass
class _Saved:
    """Storages that a graph keeps, each once."""

    bytes: int = 0
    known: dict[int, torch.UntypedStorage] = field(default_factory=dict)

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if id(storage) not in self.known:
            self.known[id(storage)] = storage
            self.bytes += storage.nbytes()
        return tensor


@contextmanager
def _counting(parameters: Mapping[str, Tensor]) -> Iterator[_Saved]:
    """Within, what graphs keep is counted, but for the parameters."""
    saved = _Saved()
    for parameter in parameters.values():
        saved.pack(parameter)
    saved.bytes = 0
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        yield saved


def _shape_of(tensor: Tensor) -> Tensor:
    return nn.Parameter(torch.empty_like(tensor, device="meta"), tensor.requires_grad)
