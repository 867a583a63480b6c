"""What the ranks of a run agree on at the end of a step: whether to stop, to save, and that their weights are equal."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

from torch import Tensor

from mtmeta.core.distributed.group import Group
from mtmeta.core.errors import MachineError
from mtmeta.core.signals import StopRequest

T = TypeVar("T")
ORPHANED = "SIGHUP"
"""What a rank takes the end of torchrun for: nobody is there any more to be told."""


class Agreement:
    """That of a process by itself: nobody need be asked."""

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        """Within, an error of one rank is raised by all."""
        yield

    def after_step(self, stop: StopRequest, is_due: bool) -> bool:
        """Have all ranks stop if one was asked to, and return whether the first one says that a checkpoint is due."""
        return is_due

    def asks(self, stop: StopRequest) -> bool:
        """Return whether to stop now: of several ranks, what they agreed on after the step, whatever came since."""
        return bool(stop.signal)

    def check_weights(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Raise MachineError if ranks hold different weights."""

    def together(self, work: Callable[[], T]) -> T:
        """Do what may take long on one rank, and have the others wait for it."""
        return work()


class InStep(Agreement):
    """That of ranks which make every step together."""

    def __init__(self, ranks: Group) -> None:
        self._ranks = ranks
        self._stopping = False

    @contextmanager
    def failing_together(self) -> Iterator[None]:
        with self._ranks.owing():
            yield

    def after_step(self, stop: StopRequest, is_due: bool) -> bool:
        if self._ranks.orphaned and not stop.signal:
            stop.signal = ORPHANED
        told = self._ranks.settle({"signal": stop.signal, "due": is_due})
        agreed = next((each["signal"] for each in told if each["signal"]), "")
        stop.signal = agreed or stop.signal  # one that came meanwhile is for the next step
        self._stopping = bool(agreed)
        return bool(told[0]["due"])

    def asks(self, stop: StopRequest) -> bool:
        return self._stopping

    def check_weights(self, step: int, weights: Mapping[str, Tensor]) -> None:
        hashes = self._ranks.settle(_sha256(weights))
        other = next((rank for rank, found in enumerate(hashes) if found != hashes[0]), None)
        if other is not None:
            message = f"ranks 0 and {other} hold different weights at meta-step {step}"
            remedy = "start again from the newest checkpoint; if it comes again, a part draws at random by itself"
            raise MachineError("", f"{message} (sha256 {hashes[0][:8]}.. and {hashes[other][:8]}..); {remedy}")

    def together(self, work: Callable[[], T]) -> T:
        if not self._stopping:
            return self._ranks.together(work)
        with self._ranks.owing():  # the store by which ranks wait for long may have gone with torchrun
            result = work()
            self._ranks.settle()
        return result


class Apart(Agreement):
    """That of ranks which train learners of their own: a word is left for the others, who look for it."""

    def __init__(self, ranks: Group) -> None:
        self._ranks = ranks
        self._stopping = False

    def after_step(self, stop: StopRequest, is_due: bool) -> bool:
        if self._ranks.orphaned:
            stop.signal = stop.signal or ORPHANED  # and there is no store left to ask
            self._stopping = True
            return is_due
        heard = self._ranks.heard("stop")
        if stop.signal and not heard:
            self._ranks.tell("stop", stop.signal)
        stop.signal = stop.signal or heard
        self._stopping = bool(stop.signal)
        return is_due

    def asks(self, stop: StopRequest) -> bool:
        return self._stopping


def _sha256(weights: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of all weights, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(weights[name].detach().cpu().contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()
