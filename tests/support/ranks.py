"""Ranks as torchrun starts them, forked from a process that has imported everything: `forks.call(RANKS, ...)`."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["RANKS", "ended", "environment", "start"]

RANKS = "tests.support.ranks:start"
GRACE = 75.0
"""Seconds that ranks have to notice that another one is gone, which is when they time out themselves, and some more."""


def environment(rank: int, world: int, port: int) -> dict[str, str]:
    """The variables that torchrun sets, without its own store: the first rank opens one at the port."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "tests",
        "MTMETA_RANK_TIMEOUT": "60",
    }


def _fork(work: Callable[[], Any], log: str) -> int:
    child = os.fork()
    if child:
        return child
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        work()
        code = 0
    except SystemExit as done:
        code = done.code if isinstance(done.code, int) else int(done.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start(
    world: int,
    arguments: Sequence[str],
    each: Sequence[Mapping[str, Any]] = (),
    kill: float | None = None,
    term: Sequence[float] = (),
) -> None:
    """Run `mtmeta ARGUMENTS` on so many ranks and print their exit codes as JSON, with what each of them wrote.

    `each` has variables of a rank, and its own `arguments`, `folder` to work in and version of `torch`. `kill` is the
    seconds after which a rank that is drawn gets SIGKILL, `term` the rank and seconds of a SIGTERM.
    """
    import torch

    from mtmeta.cli import main

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    children = []
    for rank in range(world):
        own = dict(each[rank]) if rank < len(each) else {}
        more = tuple(own.pop(key, None) for key in ("arguments", "folder", "torch"))

        def work(rank: int = rank, own: dict[str, str] = own, more: tuple[Any, ...] = more) -> None:
            given, folder, version = more
            os.environ.update(environment(rank, world, port) if world > 1 else {})
            os.environ.update(own)
            if folder:
                os.chdir(folder)
            if version:
                torch.__version__ = version
            main(list(given or arguments))

        children.append(_fork(work, f".rank-{rank}"))
    if kill is not None:
        time.sleep(kill)
        os.kill(random.Random(f"{kill}").choice(children), signal.SIGKILL)
    if term:
        time.sleep(term[1])
        os.kill(children[int(term[0])], signal.SIGTERM)
    codes = _codes(children)
    written = [Path(f".rank-{rank}").read_text(errors="replace") for rank in range(world)]
    print(json.dumps({"codes": codes, "written": written}))


def _codes(children: Sequence[int]) -> list[int]:
    """Wait for ranks. Where one has failed, those that still wait for it are killed after a while, as by torchrun."""
    codes: dict[int, int] = {}
    until = math.inf
    while len(codes) < len(children):
        for child in set(children) - codes.keys():
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                codes[child] = os.waitstatus_to_exitcode(status)
                until = min(until, time.monotonic() + GRACE) if codes[child] else until
            elif time.monotonic() > until:
                os.kill(child, signal.SIGKILL)
        time.sleep(0.02)
    return [codes[child] for child in children]


def ended(output: str) -> tuple[list[int], list[str]]:
    """The exit codes of the ranks, and what each of them wrote, of what `start` printed."""
    found = json.loads(output.splitlines()[-1])
    return found["codes"], found["written"]
