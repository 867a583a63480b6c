"""`mtmeta.serve`: a run behind HTTP, from Python."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mtmeta.core.python.published import load
from mtmeta.core.python.results import Run
from mtmeta.core.serving.questions import Limits
from mtmeta.core.serving.server import serve as answer
from mtmeta.core.serving.server import title_of


def serve(
    run: str | Path | Run,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    max_body: int = 1_000_000,
    max_texts: int = 256,
    max_waiting: int = 4096,
    device: str = "auto",
    block: Sequence[str] = (),
    plugins: Sequence[Any] = (),
    warn: Callable[[str], None] = lambda text: None,
    say: Callable[[str], None] = lambda text: None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Answer over HTTP for all tasks of a run, as `load` finds it, until SIGTERM or Ctrl-C; then return.

    `ready` is told the address, such as http://127.0.0.1:8000, once requests are taken; port 0 is any that is free. A
    request may have `max_body` bytes and `max_texts` texts, and `max_waiting` texts may wait. `say` is told the lines
    that the command prints. Raises MachineError where the port cannot be had or the extra [serve] is not installed,
    and what `load` raises.
    """
    predictor = load(run, device=device, block=block, plugins=plugins, warn=warn)
    limits = Limits(body=max_body, texts=max_texts, waiting=max_waiting)
    title = title_of(run.path if isinstance(run, Run) else run)
    answer(predictor, title, host=host, port=port, limits=limits, say=say, ready=ready)
