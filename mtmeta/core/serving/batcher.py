"""One thread that predicts, and the requests that wait for it: what has come meanwhile is predicted together.

There is no delay to wait for more: the first request after a pause is predicted at once, and while that lasts the next
batch gathers. An answer depends on its own text alone, so that nobody's answer depends on the load.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field

from mtmeta.core.run.predictor import Prediction, Text

Predict = Callable[[str, Sequence[Text]], list[Prediction]]


class Busy(Exception):
    """Too many texts wait already."""


class Closed(Exception):
    """No request is taken any more."""


@dataclass(eq=False)
class _Waiting:
    task: str
    texts: Sequence[Text]
    answer: Future[list[Prediction]] = field(default_factory=Future)


class Batcher:
    """Texts in, futures out. `most` texts are predicted at once at the most, and `room` texts may wait."""

    def __init__(self, predict: Predict, *, most: int, room: int, told: Callable[[str, int], None]) -> None:
        self._predict, self._most, self._room, self._told = predict, most, room, told
        self._queue: deque[_Waiting] = deque()
        self._texts = 0
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="predict", daemon=True)
        self._thread.start()

    @property
    def waiting(self) -> int:
        """Return how many texts wait."""
        return self._texts

    def submit(self, task: str, texts: Sequence[Text]) -> Future[list[Prediction]]:
        """Take texts of one request. Raises Busy where too many wait, Closed after `close`."""
        request = _Waiting(task, texts)
        with self._changed:
            if self._closed:
                raise Closed
            if self._texts and self._texts + len(texts) > self._room:
                raise Busy
            self._queue.append(request)
            self._texts += len(texts)
            self._changed.notify()
        return request.answer

    def close(self) -> None:
        """Take no more requests, predict those that wait, and end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            texts = [text for request in batch for text in request.texts]
            try:
                answers = self._predict(batch[0].task, texts)
                self._told(batch[0].task, len(texts))
            except BaseException as error:  # whatever it is, those who wait must be told
                for request in batch:
                    request.answer.set_exception(error)
                continue
            start = 0
            for request in batch:
                request.answer.set_result(answers[start : start + len(request.texts)])
                start += len(request.texts)

    def _next(self) -> list[_Waiting]:
        """Wait for requests, and take those of the oldest one's task that go together; none after `close`."""
        with self._changed:
            while not self._queue and not self._closed:
                self._changed.wait()
            batch: list[_Waiting] = []
            others: deque[_Waiting] = deque()
            size = 0
            while self._queue:
                request = self._queue.popleft()
                fits = not batch or (request.task == batch[0].task and size + len(request.texts) <= self._most)
                if fits:
                    batch.append(request)
                    size += len(request.texts)
                else:
                    others.append(request)
            self._queue = others
            self._texts -= size
            return batch
