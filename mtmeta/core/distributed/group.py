"""The processes of a run and what they say to each other: small JSON, sums of tensors, and that one of them failed.

Nothing is pickled: what is exchanged are tensors, and text that is read as JSON. Every operation here is one that all
ranks make, in the same order.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mtmeta.core import errors
from mtmeta.core.distributed.ranks import TIMEOUT, Ranks, timeout_of
from mtmeta.core.errors import MachineError, MtmetaError
from mtmeta.core.wording import exception_line, safe

T = TypeVar("T")
LONGEST = 6 * 3600.0
"""Seconds that the ranks wait for one that reads data or writes a checkpoint."""
PAUSE = 0.02
SENT = {
    each.__name__: each
    for each in (
        *(errors.UsageError, errors.RecipeError, errors.DataError, errors.CheckpointError, errors.RunInUse),
        *(errors.WeightsError, errors.PluginError, errors.MachineError, errors.DivergedError),
    )
}
"""Errors that are the same on every rank, whichever met them."""


class Group:
    """The ranks of a run. One by itself, as `Group()` is, exchanges with nobody and waits for nobody."""

    def __init__(self, ranks: Ranks | None = None) -> None:
        ranks = ranks or Ranks()
        self.rank, self.world, self.local = ranks.rank, ranks.world, ranks.local
        self._beside = ranks.beside
        self.host = socket.gethostname()
        self._parent = os.getppid()
        self._meetings = 0
        self._store: Any = None
        self._owes = False
        """Whether an error of ours is to be told to the others."""
        self._patient = False
        """Whether they meet before they hear of it."""

    @property
    def leads(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    def sharing(self, device: torch.device) -> int:
        """Return how many ranks take their memory from where this one does: all of a host, or those of its GPU."""
        return math.ceil(self._beside / torch.cuda.device_count()) if device.type == "cuda" else self._beside

    @property
    def orphaned(self) -> bool:
        """Whether torchrun has gone, and left the ranks to themselves."""
        return self.world > 1 and os.getppid() != self._parent

    # -- beginning and end

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Within, the ranks are connected. Raises MachineError if they do not find each other."""
        if self.world == 1:
            yield
            return
        from torch.distributed.rendezvous import rendezvous

        seconds = datetime.timedelta(seconds=timeout_of())
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        with self._connection("cannot join the others"):
            if torch.cuda.is_available():
                torch.cuda.set_device(self.local % torch.cuda.device_count())
            store, rank, world = next(rendezvous("env://", timeout=seconds))
            store.set_timeout(seconds)
            store = dist.PrefixStore(_token(store, rank, world, seconds), store)  # type: ignore[attr-defined]
            self._store = dist.PrefixStore("mtmeta", store)  # type: ignore[attr-defined]
            dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=seconds)
        try:
            yield
        finally:
            dist.destroy_process_group()

    @contextmanager
    def _connection(self, what: str = "lost another rank") -> Iterator[None]:
        """Turn what PyTorch says of a connection into one line."""
        try:
            yield
        except (RuntimeError, ValueError) as error:  # those of torch.distributed are RuntimeErrors
            reason = safe(str(error).splitlines()[0] if str(error) else type(error).__name__, 200)
            remedy = f"torchrun --max-restarts starts it again; {TIMEOUT} says how long ranks wait"
            raise MachineError(self._place, f"{what} ({reason}); {remedy}") from error

    # -- exchanges

    def exchange(self, value: Any) -> list[Any]:
        """Give a value to all ranks, as JSON; return what each of them gave, in their order."""
        if self.world == 1:
            return [value]
        text = json.dumps(value).encode()
        with self._connection():
            lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(self.world)]
            dist.all_gather(lengths, torch.tensor([len(text)]))
            longest = max(int(length) for length in lengths)
            given = torch.zeros(longest, dtype=torch.uint8)
            given[: len(text)] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
            parts = [torch.empty(longest, dtype=torch.uint8) for _ in range(self.world)]
            dist.all_gather(parts, given)
        return [json.loads(bytes(part[: int(length)].numpy())) for part, length in zip(parts, lengths, strict=True)]

    def sum(self, tensor: Tensor) -> None:
        """Add up the tensors of all ranks, in place. Whole numbers alone have a sum that does not depend on order."""
        assert not tensor.is_floating_point()
        if self.world > 1:
            with self._connection():
                dist.all_reduce(tensor)

    def largest(self, tensor: Tensor) -> None:
        """Take the largest of each number over all ranks, in place. Of floats gloo would lose NaN, so of ints."""
        assert not tensor.is_floating_point()
        if self.world > 1:
            with self._connection():
                dist.all_reduce(tensor, op=dist.ReduceOp.MAX)

    def broadcast(self, tensor: Tensor, source: int) -> None:
        """Take over the tensor of one rank, in place."""
        if self.world > 1:
            with self._connection():
                dist.broadcast(tensor, source)

    def broadcast_all(self, tensors: Mapping[str, Tensor], source: int, device: torch.device) -> dict[str, Tensor]:
        """Return the tensors of one rank, by name; the others need not know which there are."""
        if self.world == 1:
            return dict(tensors)
        mine = [(name, str(t.dtype).removeprefix("torch."), list(t.shape)) for name, t in tensors.items()]
        found = {}
        for name, dtype, shape in self.exchange(mine if self.rank == source else [])[source]:
            own = self.rank == source
            tensor = tensors[name].to(device) if own else torch.empty(shape, dtype=getattr(torch, dtype), device=device)
            self.broadcast(tensor, source)
            found[name] = tensor
        return found

    def meet(self, patience: float = LONGEST, look: Callable[[], None] = lambda: None) -> None:
        """Wait until every rank is here, up to `patience` seconds, and `look` meanwhile.

        A rank that died has torchrun end the others.
        """
        if self.world == 1:
            return
        self._meetings += 1
        name, until = f"meeting/{self._meetings}", time.monotonic() + patience
        with self._connection():
            self._store.add(name, 1)
            while self._store.add(name, 0) < self.world:
                if self.orphaned:
                    raise MachineError(self._place, "torchrun has gone; start it again to go on")
                if time.monotonic() > until:
                    raise RuntimeError(f"waited {patience:.0f} s")
                look()
                time.sleep(PAUSE)

    def tell(self, name: str, text: str) -> None:
        """Leave a word for all ranks that ask for it, at any time."""
        if self.world > 1:
            with self._connection():
                self._store.set(f"word/{name}", text)

    def heard(self, name: str) -> str:
        """Return the word that was left, or an empty text."""
        if self.world == 1:
            return ""
        with self._connection():
            return self._store.get(f"word/{name}").decode() if self._store.check([f"word/{name}"]) else ""

    # -- failing together

    def together(self, work: Callable[[], T]) -> T:
        """Do some work on every rank, however long, and raise what any of them raised, on all of them."""
        with self.owing():
            self._patient = True
            result = work()
            self.meet()
            self._patient = False
            self.settle()
        return result

    @contextmanager
    def owing(self) -> Iterator[None]:
        """Within, the others come to wait for our next `settle`: an error of ours goes there."""
        if self.world == 1 or self._owes:
            yield
            return
        self._owes = True
        try:
            yield
        except Exception as error:
            if self._owes and not self._is_lost(error):
                if self._patient:
                    self.meet()
                self._raise_first(self.exchange({"error": _sent(error, self)}), error)
            raise
        finally:
            self._owes = self._patient = False

    def settle(self, value: Any = None) -> list[Any]:
        """Exchange values at the end of some work; raises, on all ranks, the error of the lowest that met one."""
        given = self.exchange({"value": value})
        self._raise_first(given, None)
        return [each["value"] for each in given]

    def _raise_first(self, given: Sequence[Mapping[str, Any]], own: Exception | None) -> None:
        """Raise the first error among what the ranks gave, if there is one; that of the lowest rank is printed."""
        first = next((each["error"] for each in given if "error" in each), None)
        if first is None:
            return
        self._owes = False  # it is known to all
        if own is not None and first["rank"] == self.rank:
            if isinstance(own, MtmetaError):
                own.echoed = not self.leads
            raise own
        error = SENT.get(first["kind"], MtmetaError)(first["place"], first["message"])
        error.echoed = not self.leads
        raise error

    def _is_lost(self, error: Exception) -> bool:
        """Return whether the connection is gone, which the others see for themselves."""
        return isinstance(error, MachineError) and error.place == self._place

    @property
    def _place(self) -> str:
        return f"rank {self.rank} on {self.host}"


def _token(store: Any, rank: int, world: int, seconds: datetime.timedelta) -> str:
    """Return a name that the ranks of this start have in common, and those of an earlier one had not.

    torchrun may give the ranks that it starts again the store of those before, with their addresses. So the first rank
    thinks of a name, and gives it to every rank that says hello, until all have answered; a stale hello gets one, too.
    """
    own = secrets.token_hex(8)
    if rank:
        store.set(f"hello/{rank}", own)
        store.wait([f"go/{own}"], seconds)
        token = str(store.get(f"go/{own}").decode())
        store.set(f"here/{token}/{rank}", "")
        return token
    others, until = range(1, world), time.monotonic() + seconds.total_seconds()
    while not store.check([f"here/{own}/{other}" for other in others]):
        if time.monotonic() > until:
            raise RuntimeError("timed out waiting for the others")
        for other in others:
            if store.check([f"hello/{other}"]):
                store.set(f"go/{store.get(f'hello/{other}').decode()}", own)
        time.sleep(PAUSE)
    return own


def _sent(error: Exception, group: Group) -> dict[str, Any]:
    """Return an error as the others get it, with the rank that met it where they might not meet it."""
    if isinstance(error, MtmetaError):
        kind = next((each.__name__ for each in type(error).__mro__ if each.__name__ in SENT), "")
        return {"kind": kind, "place": error.place, "message": error.message, "rank": group.rank}
    place = f"rank {group.rank} on {group.host}"
    return {"kind": "", "place": place, "message": exception_line(error), "rank": group.rank}
