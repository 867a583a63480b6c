"""Requests that wait for the one thread that predicts: what goes together, what is refused, and the end."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from mtmeta.core.run.predictor import Prediction, Text
from mtmeta.core.serving.batcher import Batcher, Busy, Closed


class Gate:
    """A predictor whose answers are the texts; it waits at each batch until it is let through."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[Text]]] = []
        self.entered, self.through = threading.Semaphore(0), threading.Semaphore(0)

    def __call__(self, task: str, texts: Sequence[Text]) -> list[Prediction]:
        self.batches.append((task, list(texts)))
        self.entered.release()
        assert self.through.acquire(timeout=10)
        if "bad" in texts:
            raise RuntimeError("no")
        return [Prediction(f"{task} {text}", None, None) for text in texts]


def made(gate: Gate, *, most: int = 4, room: int = 100) -> tuple[Batcher, list[tuple[str, int]]]:
    told: list[tuple[str, int]] = []
    return Batcher(gate, most=most, room=room, told=lambda task, texts: told.append((task, texts))), told


def test_what_has_come_meanwhile_goes_together() -> None:
    """By task, the oldest first, whole requests, and everybody has his own answers."""
    gate = Gate()
    batcher, told = made(gate)
    futures = [batcher.submit("a", ["1"])]
    assert gate.entered.acquire(timeout=10)  # the first is predicted at once
    futures += [batcher.submit(task, texts) for task, texts in (("b", ["2", "3"]), ("a", ["4"]), ("b", ["5"]))]
    futures += [batcher.submit("b", ["6", "7"]), batcher.submit("b", ["8"])]  # the first of them would be one too many
    for _ in range(5):
        gate.through.release()
    found = [[answer.label for answer in future.result(timeout=10)] for future in futures]
    assert found == [["a 1"], ["b 2", "b 3"], ["a 4"], ["b 5"], ["b 6", "b 7"], ["b 8"]]
    batcher.close()
    assert gate.batches == [("a", ["1"]), ("b", ["2", "3", "5", "8"]), ("a", ["4"]), ("b", ["6", "7"])]
    assert told == [("a", 1), ("b", 4), ("a", 1), ("b", 2)]


def test_an_error_reaches_those_of_its_batch_alone() -> None:
    gate = Gate()
    batcher, told = made(gate)
    first = batcher.submit("a", ["bad"])
    assert gate.entered.acquire(timeout=10)
    second = batcher.submit("a", ["good"])
    for _ in range(2):
        gate.through.release()
    with pytest.raises(RuntimeError, match="no"):
        first.result(timeout=10)
    assert second.result(timeout=10)[0].label == "a good"
    batcher.close()
    assert told == [("a", 1)]


def test_too_many_that_wait_are_refused_and_the_end_leaves_nobody_waiting() -> None:
    gate = Gate()
    batcher, _ = made(gate, room=3)
    futures = [batcher.submit("a", ["1"])]
    assert gate.entered.acquire(timeout=10)
    futures.append(batcher.submit("a", ["2"] * 5))  # more than the room, but nobody waits: it could never come in else
    with pytest.raises(Busy):
        batcher.submit("a", ["3"])
    closing = threading.Thread(target=batcher.close)
    closing.start()
    while True:
        try:
            batcher.submit("a", ["4"])
        except Busy:
            continue
        except Closed:
            break
    for _ in range(2):
        gate.through.release()
    closing.join(timeout=10)
    assert [len(future.result(timeout=0)) for future in futures] == [1, 5]
