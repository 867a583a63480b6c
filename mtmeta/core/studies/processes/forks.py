"""Pieces of work shared out to copies of this process, which have all that is loaded without loading it again.

Each copy computes with one thread: many small computations side by side, where the threads of one would wait for each
other. So the bits are the same however many copies there are. A copy only computes: whatever goes wrong in one is done
again here, where it is raised as if there were none.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

import torch

from mtmeta.core.errors import MachineError
from mtmeta.core.machine import Heap, one_thread
from mtmeta.core.signals import end_with

T = TypeVar("T")
Work = Callable[[int], T]
PATIENCE = 10.0  # seconds that a copy has to remove its unfinished files


def can_fork(device: torch.device) -> bool:
    """Return whether copies can compute on a device: a CPU, on Linux, where PyTorch has no threads for GPUs."""
    return sys.platform == "linux" and device.type == "cpu" and not torch.cuda.is_available()


def in_order(count: int, work: Work[T], copies: int) -> Generator[T]:
    """Yield work(0), work(1), ... work(count - 1), done by this process, or by so many copies of it with one thread.

    Results must be picklable. Raises what `work` raises, and MachineError for a copy that was killed.
    """
    if not copies:
        yield from map(work, range(count))
        return
    with _Copies(min(copies, count), work).running() as pool, one_thread():
        for number in range(count):
            answer = pool.answer(number, count)
            yield work(number) if answer is None else answer[0]


class _Copies(Generic[T]):
    """Copies of this process that wait for numbers to work on."""

    def __init__(self, copies: int, work: Work[T]) -> None:
        self._count, self._work = copies, work
        self._busy: dict[Connection, tuple[BaseProcess, int]] = {}
        self._idle: list[tuple[Connection, BaseProcess]] = []
        self._answers: dict[int, tuple[T] | None] = {}
        self._next = 0

    @contextmanager
    def running(self) -> Iterator[_Copies[T]]:
        """Start them; at the end, come what may, they are gone."""
        try:
            for _ in range(self._count):
                self._idle.append(self._start())
            yield self
        finally:
            processes = [process for _, process in self._idle] + [process for process, _ in self._busy.values()]
            for process in processes:
                process.terminate()
            for process in processes:
                process.join(PATIENCE)
                process.kill()
                process.join()

    def _start(self) -> tuple[Connection, BaseProcess]:
        ours, theirs = get_context("fork").Pipe()
        process = get_context("fork").Process(target=_serve, args=(theirs, self._work, os.getpid()), daemon=True)
        with _no_interrupts(), warnings.catch_warnings():
            # Python 3.12 warns where there are other threads; ours have no lock that a copy would need
            warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork.*")
            process.start()
        theirs.close()
        return ours, process

    def answer(self, number: int, count: int) -> tuple[T] | None:
        """Return what came of a piece; None if it failed. Meanwhile all copies work on what comes next."""
        while True:
            while self._idle and self._next < count:
                pipe, process = self._idle.pop()
                self._busy[pipe] = process, self._next
                with suppress(OSError):  # it is dead, which shows when its answer is read
                    pipe.send(self._next)
                self._next += 1
            if number in self._answers:
                return self._answers.pop(number)
            ready = wait(list(self._busy))
            for pipe in [pipe for pipe in self._busy if pipe in ready]:
                self._receive(pipe)

    def _receive(self, pipe: Connection) -> None:
        process, number = self._busy[pipe]
        try:
            self._answers[number] = pipe.recv()
        except (EOFError, OSError):
            process.join(PATIENCE)
            how = f"signal {-(process.exitcode or 0)}" if (process.exitcode or 0) < 0 else f"exit {process.exitcode}"
            message = f"was ended by {how}, as happens where memory runs out; lower --jobs"
            raise MachineError("a process of this command", message) from None
        del self._busy[pipe]
        self._idle.append((pipe, process))


@contextmanager
def _no_interrupts() -> Iterator[None]:
    """Hold a Ctrl-C back; a copy that is made within never sees one: it is for the parent, which then ends it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Connection, work: Work[T], parent: int) -> None:
    """Work on numbers as they come, until the parent ends us."""
    try:
        signal.signal(signal.SIGTERM, _leave)
        if end_with(parent):
            torch.set_num_threads(1)
            Heap()
            _work_on(pipe, work)
    finally:
        os._exit(0)  # at once: threads and exit handlers are the parent's


def _work_on(pipe: Connection, work: Work[T]) -> None:
    with suppress(EOFError, OSError):
        while True:
            number = pipe.recv()
            answer: tuple[T] | None = None
            with suppress(Exception):  # the parent meets it too
                answer = (work(number),)
            pipe.send(answer)


def _leave(number: int, frame: object) -> None:
    """End at once, but for files that have to be removed."""
    signal.signal(number, signal.SIG_IGN)
    raise SystemExit(0)
