"""The application that answers over HTTP: /, /predict/TASK, /health, /metrics, /openapi.json.

The event loop reads requests and writes answers; one thread predicts (batcher.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from mtmeta.core.errors import MtmetaError
from mtmeta.core.run.predictor import Predictor
from mtmeta.core.serving import openapi
from mtmeta.core.serving.batcher import Batcher, Busy, Closed
from mtmeta.core.serving.metrics import Metrics
from mtmeta.core.serving.questions import Limits, Refused, texts_of
from mtmeta.core.wording import did_you_mean, quote, safe

PAGE = Path(__file__).with_name("page.html")
LINGER_SECONDS, LINGER_BYTES = 2, 16 << 20  # how long, and how much, of a body too long is read and thrown away
AT_ONCE = 256  # texts predicted together at the most: more would only make everybody wait
HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY"}
POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"
KEPT = {"/": "GET", "/health": "GET", "/metrics": "GET", "/openapi.json": "GET"}


@dataclass(eq=False)
class Service:
    """A predictor behind HTTP."""

    predictor: Predictor
    title: str
    limits: Limits
    metrics: Metrics = field(default_factory=Metrics)
    stopping: bool = False

    def __post_init__(self) -> None:
        names = self.predictor.tasks
        self.tasks = {name: self.predictor.task(name) for name in names}
        self.described = openapi.describe(self.tasks)
        self.batcher = Batcher(self.predictor.block, most=AT_ONCE, room=self.limits.waiting, told=self.metrics.batch)

    async def predict(self, name: str, request: Request) -> Response:
        """Answer a request to predict, and count it."""
        started, counted = time.perf_counter(), name if name in self.tasks else ""
        self.metrics.accept()
        status = 500
        try:
            body: Any = {"task": name, "predictions": await self._predictions(name, request)}
            response = _json(body)
            status = 200
        except Refused as refusal:
            response, status = _refusal(refusal), refusal.status
        except MtmetaError as error:
            response = _json({"error": safe(str(error), 400)}, status)
        finally:
            self.metrics.answer(counted, status, time.perf_counter() - started)
        return response

    async def _predictions(self, name: str, request: Request) -> list[dict[str, Any]]:
        if name not in self.tasks:
            raise Refused(
                404, f"no task {quote(name)}{did_you_mean(name, self.tasks)} (tasks: {', '.join(self.tasks)})"
            )
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            raise Refused(415, f"content-type is {quote(kind)}, expected application/json")
        body = await self._body(request)
        texts = texts_of(body, count=self.described[name]["texts"], limits=self.limits)
        try:
            answers = await asyncio.wrap_future(self.batcher.submit(name, texts))
        except Busy:
            raise Refused(503, f"{self.batcher.waiting} texts wait already; try again") from None
        except Closed:
            raise Refused(503, "the server is stopping") from None
        return [answer.json() for answer in answers]

    async def _body(self, request: Request) -> bytes:
        """Read the body, and no more of it than is allowed. Raises Refused."""
        limit, body = self.limits.body, bytearray()
        too_long = f"the body has more than {limit:,} bytes; send fewer or shorter texts"
        length = request.headers.get("content-length", "")
        parts = request.stream()
        if length.isdecimal() and int(length) > limit:
            await _drain(parts)
            raise Refused(413, too_long)
        try:
            async with asyncio.timeout(self.limits.seconds):
                async for part in parts:
                    body += part
                    if len(body) > limit:
                        break
            if len(body) > limit:
                await _drain(parts)
                raise Refused(413, too_long)
        except TimeoutError:
            raise Refused(408, f"the body did not come within {self.limits.seconds:g} s") from None
        except ClientDisconnect:
            raise Refused(400, "the body broke off") from None
        return bytes(body)

    def health(self) -> Response:
        """Say that the server is ready."""
        state = "stopping" if self.stopping else "ok"
        return _json({"status": state, "run": self.title, "tasks": list(self.tasks)}, 503 if self.stopping else 200)


def make_app(service: Service, started: Callable[[], None] = lambda: None) -> FastAPI:
    """Return the application; `started` is called when it takes requests."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        started()
        yield
        await asyncio.to_thread(service.batcher.close)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    interface = openapi.document(f"mtmeta: {service.title}", version("mtmeta"), service.described, service.limits)
    page = openapi.page(PAGE.read_text(encoding="utf-8"), service.title, service.described)

    async def predict(name: str, request: Request) -> Response:
        return await service.predict(name, request)

    async def index() -> Response:
        headers = {**HEADERS, "Content-Security-Policy": POLICY}
        return Response(page, media_type="text/html", headers=headers)

    async def health() -> Response:
        return service.health()

    async def metrics() -> Response:
        text = service.metrics.text(service.batcher.waiting)
        return Response(text, media_type="text/plain; version=0.0.4", headers=HEADERS)

    async def described() -> Response:
        return _json(interface)

    app.add_api_route("/predict/{name}", predict, methods=["POST"], response_model=None)
    for path, endpoint in (("/", index), ("/health", health), ("/metrics", metrics), ("/openapi.json", described)):
        app.add_api_route(path, endpoint, methods=["GET"], response_model=None)
    app.add_exception_handler(HTTPException, _no_route)
    return app


async def _no_route(request: Request, error: Exception) -> Response:
    """Refuse a path that is not there, and a method that it does not have."""
    assert isinstance(error, HTTPException)
    path = request.url.path
    if error.status_code == 405:
        allowed = KEPT.get(path, "POST")
        response = _json({"error": f"{safe(path, 100)} takes {allowed}, not {safe(request.method, 20)}"}, 405)
        response.headers["Allow"] = allowed
        return response
    return _json({"error": f"nothing at {safe(path, 100)}; see /openapi.json"}, error.status_code)


async def _drain(parts: AsyncIterator[bytes]) -> None:
    """Read on for a while and keep nothing: a connection closed on unread bytes is reset, and its answer is lost."""
    read = 0
    with contextlib.suppress(TimeoutError, ClientDisconnect):
        async with asyncio.timeout(LINGER_SECONDS):
            async for part in parts:
                read += len(part)
                if read > LINGER_BYTES:
                    return


def _json(content: Any, status: int = 200) -> Response:
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return Response(data, status, headers=HEADERS, media_type="application/json")


def _refusal(refusal: Refused) -> Response:
    response = _json({"error": refusal.message}, refusal.status)
    if refusal.status == 503:
        response.headers["Retry-After"] = "1"
    if refusal.status in (408, 413):  # what is still to come is not read
        response.headers["Connection"] = "close"
    return response
