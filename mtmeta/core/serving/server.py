"""`mtmeta serve`: one process that answers for all tasks of a run until it is asked to stop."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtmeta.core.api.contracts import count_texts
from mtmeta.core.errors import MachineError
from mtmeta.core.run.predictor import Predictor
from mtmeta.core.serving.questions import Limits

if TYPE_CHECKING:
    import uvicorn

PACKAGES = ("fastapi", "uvicorn")
BACKLOG = 2048  # connections that wait to be taken up
GRACE = 30  # seconds that a request under way has when the server is to stop
TRIED = "A text."


def check_packages() -> None:
    """Raise MachineError unless the packages that serve are installed."""
    for name in PACKAGES:
        if importlib.util.find_spec(name) is None:
            raise MachineError("serve", f"needs {name}, which is not installed; pip install 'mtmeta[serve]'")


def serve(
    predictor: Predictor,
    title: str,
    *,
    host: str,
    port: int,
    limits: Limits,
    say: Callable[[str], None],
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Answer until SIGTERM or SIGINT; requests under way are answered before it returns.

    Every model is loaded first. `ready` is told the address once requests are taken; `port` 0 is any that is free.
    Raises MachineError where the port cannot be had or a package is missing.
    """
    check_packages()
    import uvicorn

    from mtmeta.core.serving.application import Service, make_app

    with contextlib.closing(_listen(host, port)) as listening:
        for name in predictor.tasks:
            count = count_texts(predictor.task(name))
            predictor.block(name, [(TRIED,) * count if count > 1 else TRIED])
        service = Service(predictor, title, limits)
        address = f"http://{f'[{host}]' if ':' in host else host}:{listening.getsockname()[1]}"

        def started() -> None:
            say(f"{title}: {', '.join(predictor.tasks)} at {address} (/openapi.json, /metrics); Ctrl-C stops it")
            ready(address)

        def stopping() -> None:
            service.stopping = True
            say(f"stopping: {service.metrics.accepted - service.metrics.answered} requests under way")

        options: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "lifespan": "on"}
        config = uvicorn.Config(make_app(service, started), timeout_graceful_shutdown=GRACE, **options)
        _server(config, stopping).run(sockets=[listening])
    metrics = service.metrics
    say(f"stopped: {metrics.accepted} requests accepted, {metrics.answered} answered")


def _listen(host: str, port: int) -> socket.socket:
    """Take the port. Raises MachineError."""
    listening: socket.socket | None = None
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(BACKLOG)
    except OSError as error:
        if listening is not None:
            listening.close()
        message = f"{error.strerror or error}; choose another by --host and --port"
        raise MachineError(f"{host}:{port}", message) from None
    return listening


def _server(config: uvicorn.Config, stopping: Callable[[], None]) -> uvicorn.Server:
    import uvicorn

    class Server(uvicorn.Server):
        """uvicorn's, which after it has stopped lets the process end by itself, not by the signal."""

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            if threading.current_thread() is not threading.main_thread():
                yield
                return
            before = {each: signal.signal(each, self.handle_exit) for each in (signal.SIGINT, signal.SIGTERM)}
            try:
                yield
            finally:
                for each, handler in before.items():
                    signal.signal(each, handler)

        async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
            stopping()
            await super().shutdown(sockets)

    return Server(config)


def title_of(run: str | Path) -> str:
    """Return what a server calls a run: the last part of its path."""
    return Path(run).name or str(run)
