"""`mtmeta.events`: a training whose events are gone through one by one."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

from mtmeta.core.api.events import Event
from mtmeta.core.errors import Stopped
from mtmeta.core.signals import StopRequest


def events(function: Callable[..., Any], /, *arguments: Any, **options: Any) -> Iterator[Event]:
    """Yield the events of a training, as `events(mtmeta.run, "my.yaml")` or `events(mtmeta.train, tasks, out=...)`.

    The training goes on in a thread of its own while an event is looked at, and waits with the one after the next. The
    last event, RunFinished, holds the summary. Who leaves the loop stops the run at its next step, with a checkpoint:
    the same call goes on from there. Raises what the function raises.
    """
    channel: queue.Queue[Event | None] = queue.Queue(maxsize=1)
    stop, raised = StopRequest(), list[BaseException]()
    listen = options.pop("on_event", None)

    def hear(event: Event) -> None:
        if listen is not None:
            listen(event)
        if not stop.signal:
            channel.put(event)

    def work() -> None:
        try:
            function(*arguments, **options, on_event=hear, stop=stop)
        except BaseException as error:
            raised.append(error)
        finally:
            while True:  # the last word, which a consumer who has left does not take
                with contextlib.suppress(queue.Full):
                    channel.put(None, timeout=0.1)
                    break
                if stop.signal:
                    break

    thread = threading.Thread(target=work, name="mtmeta-training", daemon=True)
    thread.start()
    try:
        while (event := channel.get()) is not None:
            yield event
    finally:
        if thread.is_alive() and not raised:
            stop.signal = "SIGINT"
            with contextlib.suppress(queue.Empty):
                channel.get_nowait()  # what it waits with
        thread.join()
    if raised:
        error = raised[0]
        raise error from (None if isinstance(error, Stopped) else error.__cause__)
