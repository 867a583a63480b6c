"""Run functions in forks of one warm process: torch is imported once, so a start costs milliseconds, not seconds.

The server (`python -m reliability.forks`) has imported everything and started no thread. Each request forks a child
with a process group of its own, which calls one function and exits; the server can SIGKILL the whole group after a
given time. A child shares nothing with its siblings but what was imported.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.support.no_pickle import poisoned, touched
from tests.support.paths import ROOT

__all__ = ["Ended", "Forks", "wait"]

# torch imports _dynamo when the first optimizer is made, which takes longer than a small run
WARM = (
    *(
        "mtmeta.core.run.run",
        "mtmeta.core.run.evaluate",
        "mtmeta.cli",
        "torch._dynamo",
        "sklearn.metrics",
        "scipy.stats",
    ),
    "tests.robustness.faults",
)
POLL = 0.001  # seconds between two looks at a child


@dataclass(frozen=True)
class Ended:
    """How a child ended."""

    code: int
    """Exit code, or minus the signal that killed it."""
    output: str
    seconds: float

    @property
    def killed(self) -> bool:
        return self.code == -signal.SIGKILL


class Forks:
    """The server's other end."""

    def __init__(self) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("MTMETA_")}
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        environ |= {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MTMETA_PLUGINS": "none"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.robustness.forks"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environ,
            text=True,
            start_new_session=True,  # Ctrl-C is for the tests; the server ends with its stdin
        )

    def __enter__(self) -> Forks:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._server.communicate()

    def call(
        self,
        function: str,
        *arguments: Any,
        cwd: Path,
        env: Mapping[str, str] | None = None,
        kill_after: float | None = None,
    ) -> Ended:
        """Call `module:function` in a fork, in folder `cwd`; what it prints comes back as `output`."""
        log = cwd / ".output"
        request = {"function": function, "arguments": arguments, "cwd": str(cwd), "env": dict(env or {})}
        assert self._server.stdin and self._server.stdout
        print(json.dumps({**request, "log": str(log), "kill_after": kill_after}), file=self._server.stdin, flush=True)
        answer = self._server.stdout.readline()
        assert answer, "the server of forks has died"
        code, seconds = json.loads(answer)
        return Ended(code, log.read_text(errors="replace"), seconds)

    def mtmeta(
        self, *arguments: str, cwd: Path, env: Mapping[str, str] | None = None, kill_after: float | None = None
    ) -> Ended:
        """`mtmeta ARGUMENTS` in a fork."""
        return self.call("mtmeta.cli:main", list(arguments), cwd=cwd, env=env, kill_after=kill_after)


def wait(child: int, kill_after: float | None = None) -> int:
    """Exit code of a child, or minus its signal; with `kill_after` its process group is killed then."""
    if kill_after is None:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    deadline = time.monotonic() + kill_after
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(POLL)
    os.killpg(child, signal.SIGKILL)  # not reaped yet, so the number is still the child's
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _child(request: Mapping[str, Any]) -> int:
    """What the fork does; returns its exit code."""
    out = os.open(request["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(out, 1)
    os.dup2(out, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    os.chdir(request["cwd"])
    os.environ.update(request["env"])
    module, _, function = request["function"].partition(":")
    try:
        with poisoned():
            getattr(importlib.import_module(module), function)(*request["arguments"])
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        assert not touched, touched
    return 0


def serve() -> None:
    """Answer requests, a line of JSON each, until stdin ends."""
    for name in WARM:
        importlib.import_module(name)
    from mtmeta.core.registry.registry import build_registry

    build_registry()  # imports the built-in parts
    for line in sys.stdin:
        request = json.loads(line)
        started = time.monotonic()
        child = os.fork()
        if not child:
            code = 1
            try:
                os.setpgid(0, 0)
                code = _child(request)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        with suppress(OSError):  # the child does it too; whoever is first, the group is there before it is killed
            os.setpgid(child, child)
        code = wait(child, request["kill_after"])
        print(json.dumps([code, round(time.monotonic() - started, 4)]), flush=True)


if __name__ == "__main__":
    serve()
