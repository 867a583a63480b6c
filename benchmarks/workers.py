"""Contenders in processes of their own, which wait for their turn.

In one process they would share the C library's memory and how it is kept, which `mtmeta run` changes for itself; so
each has what a user's own process would have. They are still interleaved: one works, the others wait.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

from benchmarks import contenders
from benchmarks.contenders import Contender, Indices, Mtmeta
from benchmarks.parts import Parts, by_length, first_rows, load_parts
from mtmeta.core.data.dataset import Dataset
from mtmeta.core.environment import want_huge_pages
from mtmeta.core.machine import Heap

__all__ = ["MAKERS", "Remote", "Worker"]

MAKERS: dict[str, Callable[[Parts, str], Contender]] = {
    "mtmeta": Mtmeta,
    "mtmeta_bf16": partial(Mtmeta, precision="bf16"),
    "mtmeta_padded": contenders.mtmeta_padded,
    "transformers": contenders.transformers,
    "transformers_bf16_eager": partial(contenders.transformers, attention="eager", precision="bf16"),
    "transformers_bf16_sdpa": partial(contenders.transformers, precision="bf16"),
    "sentence_transformers": contenders.sentence_transformers,
}


class Remote:
    """A process that waits to be asked, and answers with the seconds that it took. A call waits for the answer."""

    def __init__(self, serve: Callable[..., None], *arguments: object) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would copy threads that are not there
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, *arguments), daemon=True)
        self._process.start()
        theirs.close()

    def ready(self) -> None:
        """Wait until weights and data are loaded."""
        self._answer()

    def ask(self, command: str, argument: object) -> float:
        """Seconds of what is asked for, taken in its own process."""
        self._pipe.send((command, argument))
        return self._answer()

    def stop(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._pipe.send(("stop", None))
        self._process.join(30)

    def _answer(self) -> float:
        try:
            return float(self._pipe.recv())
        except EOFError:
            raise SystemExit("a contender's process ended; what went wrong stands above") from None


class Worker(Remote):
    """One contender of training and evaluation."""

    def __init__(self, kind: str, weights: str, data: str, tasks: Sequence[str]) -> None:
        super().__init__(_serve, kind, weights, data, list(tasks))

    def start(self, task: str) -> None:
        """Go on to a task, from the pretrained weights."""
        self.ask("start", task)

    def step(self, indices: Indices) -> float:
        """Seconds of one training step on these examples."""
        return self.ask("step", indices)

    def evaluate(self, rows: int, *, grouped: bool = False) -> float:
        """Seconds of predicting the first `rows` of the dev set, in file order or in the order of their lengths."""
        return self.ask("evaluate", (rows, grouped))


def _serve(pipe: Any, kind: str, weights: str, data: str, tasks: list[str]) -> None:
    if kind.startswith("mtmeta"):
        want_huge_pages()  # as in every command
    parts = load_parts(weights, data, tasks, splits=("train", "dev"))
    heap = Heap() if kind.startswith("mtmeta") else None  # as in every run
    pipe.send(0.0)
    contender: Contender | None = None
    task = ""
    dev: dict[tuple[int, bool], Dataset] = {}  # sorted before anything is timed
    while True:
        command, argument = pipe.recv()
        if command == "evaluate" and argument not in dev:
            rows, grouped = argument
            first = first_rows(parts.datasets[task, "dev"], rows)
            dev[argument] = by_length(first) if grouped else first
        started = time.perf_counter()
        if command == "stop":
            return
        if command == "start":
            contender, task, dev = None, argument, {}  # the old one's memory first
            contender = MAKERS[kind](parts, task)
        elif command == "step":
            assert contender is not None
            contender.step(argument)
            if heap is not None:
                heap.after_step()
        else:
            assert contender is not None
            contender.evaluate(dev[argument])
        pipe.send(time.perf_counter() - started)
