"""Being asked to stop: SIGTERM, SIGINT, SIGUSR1, SIGUSR2 and SIGHUP as a flag that is looked at between two steps.

Only the command line installs handlers. Nothing depends on them: a run that is killed instead loses the steps since
its newest checkpoint, and not a bit of its result.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from mtmeta.core.errors import RunInUse, Stopped

PARENT = "MTMETA_PARENT"
"""Variable with the process that a run belongs to, and is not to outlive."""
PR_SET_PDEATHSIG = 1  # of Linux's prctl.h

SIGNALS = [
    getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2", "SIGHUP") if hasattr(signal, name)
]


class StopRequest:
    """Whether a run has been asked to stop, and how far it is."""

    def __init__(self) -> None:
        self.signal = ""
        """Name of the signal that came first; empty if none did."""
        self.where = "before training"
        """How far the run is, for the line that tells of the stop."""
        self._deferred = False
        self._taken: RunInUse | None = None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal is only noted: the loop itself comes to a stop where it can go on from."""
        before, self._deferred = self._deferred, True
        try:
            yield
        finally:
            self._deferred = before

    def take_away(self, place: str, message: str) -> None:
        """Note, from any thread, that another process goes on with the run: nothing more of it is to be written."""
        self._taken = RunInUse(place, message)

    def check_ours(self) -> None:
        """Raise RunInUse if another process has taken the run over."""
        if self._taken is not None:
            raise self._taken

    def check(self) -> None:
        """Raise Stopped if a signal has come."""
        if self.signal:
            raise Stopped(self.signal, self.where)

    def handle(self, number: int, frame: FrameType | None) -> None:
        """Take a signal. A Ctrl-C after another signal ends the run at once, one more ends the process."""
        name = signal.Signals(number).name
        if not self.signal:
            self.signal = name
            if not self._deferred:
                self.check()
        elif name == "SIGINT":
            signal.signal(number, lambda number, frame: os._exit(Stopped.interrupted))
            raise KeyboardInterrupt


@contextlib.contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Yield a stop request that signals fill in, but not outside the main thread. At the end handlers are put back.

    A signal that is ignored, as nohup and a shell's `&` have it, stays ignored.
    """
    stop = StopRequest()
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, stop.handle)
    try:
        _follow_parent(stop)
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _follow_parent(stop: StopRequest) -> None:
    """Have the system send a SIGTERM when the process of PARENT dies, however it does; only Linux can."""
    parent = os.environ.pop(PARENT, "")  # ours alone, not of what we start
    if parent.isdecimal() and not end_with(int(parent)):
        stop.handle(int(signal.SIGTERM), None)


def end_with(parent: int) -> bool:
    """Have the system send us a SIGTERM when our parent dies, however it does; only Linux can. False if it has died."""
    if sys.platform != "linux":
        return True
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    return os.getppid() == parent  # it may have died before we asked
