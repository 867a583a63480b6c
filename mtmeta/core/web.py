"""One request over HTTP, and an answer that is held to limits before anything uses it.

A server has little say: bodies are taken as they are sent, never unpacked; it must answer in time and send a least
number of bytes a second; it may redirect a few times, never to a less safe place; a token goes to one host alone.
"""

from __future__ import annotations

import contextlib
import ipaddress
import queue
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urljoin, urlsplit

from mtmeta.core.wording import byte_text, safe

ANSWER_SECONDS = 60.0  # for the headers of an answer, name look-up and connection included
WINDOW_SECONDS = 20.0  # of waiting for a body, in each of which it must bring
LEAST_BYTES = 20_000  # so many: 1 kB a second
REDIRECTS = 10
QUEUED = 8  # pieces of a body, of 64 kB at most, that wait for the disk
DIGITS = re.compile("[0-9]{1,15}")  # of a size that any disk holds
PART = re.compile(rf"bytes (?P<start>{DIGITS.pattern})-(?P<end>{DIGITS.pattern})/(?P<total>{DIGITS.pattern})")
PORTS = {"http": 80, "https": 443}
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class Unreachable(Exception):
    """The server did not answer, broke off, or was too slow. The text says how."""


class Busy(Unreachable):
    """The server says that it may answer later."""


class Refused(Exception):
    """The server answered, with a status that is no success; `code` and `commit` are as the hub says, if it does."""

    def __init__(self, status: int, code: str, commit: str | None) -> None:
        self.status, self.code, self.commit = status, code, commit
        super().__init__(f"the server answers {status}")


class Misanswer(Exception):
    """The server answered with what no honest one says, or what we do not take. The text says what."""


@dataclass(frozen=True)
class Answer:
    """An answer whose headers are there; `body` yields the bytes as they come, and raises Unreachable."""

    status: int
    headers: Mapping[str, str]
    url: str
    body: Iterator[bytes] = field(repr=False)

    @property
    def is_elsewhere(self) -> bool:
        """Whether it only names another address."""
        return self.status in (301, 302, 303, 307, 308) and bool(self.headers.get("Location"))

    def size(self) -> int | None:
        """Return the bytes of the whole file, if the server tells. Raises Misanswer for what is no size."""
        given = self.headers.get("Content-Length") if self.status == 200 else None
        if "Content-Range" in self.headers and self.status in (206, 416):
            given = self.headers["Content-Range"].rpartition("/")[2]
        if given is None or given == "*":
            return None
        if not DIGITS.fullmatch(given):
            raise Misanswer(f"the server gives {safe(given, 40)!r} as a size")
        return int(given)

    def begins_at(self, start: int, size: int | None) -> bool:
        """Return whether the body is the file from byte `start` on to its end, by the headers."""
        if self.status != 206:
            return self.status == 200 and not start
        part = PART.fullmatch(self.headers.get("Content-Range", ""))
        if part is None:
            return False
        begin, end, total = int(part["start"]), int(part["end"]), int(part["total"])
        return begin == start and start <= end == total - 1 and size in (None, total)


@contextlib.contextmanager
def ask(method: str, url: str, headers: Mapping[str, str], *, timeout: float, leave: bool = True) -> Iterator[Answer]:
    """Send a request and follow redirects; without `leave` those to the same server alone, others are the answer.

    The header `Authorization` goes to the server of `url` only. Raises Unreachable, Refused, Misanswer.
    """
    sent = {**headers, "Accept-Encoding": "identity"}  # a range of a packed body would be a range of something else
    for _ in range(REDIRECTS + 1):
        with _exchange(method, url, sent, timeout) as answer:
            if not answer.is_elsewhere:
                _check(answer)
                yield answer
                return
            target = redirected(url, answer.headers["Location"])
            if origin(target) != origin(url):
                if not leave:
                    yield answer
                    return
                sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
        url = target
    raise Misanswer(f"the server redirects more than {REDIRECTS} times")


def _check(answer: Answer) -> None:
    if answer.status in TRANSIENT:
        raise Busy(f"the server answers {answer.status}")
    if answer.status not in (200, 206, 416):
        raise Refused(answer.status, answer.headers.get("X-Error-Code", ""), answer.headers.get("X-Repo-Commit"))
    packed = answer.headers.get("Content-Encoding", "identity").strip().lower()
    if packed not in ("", "identity"):
        raise Misanswer(f"the server sends it packed (Content-Encoding {safe(packed, 40)!r}), which was not asked for")


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port. Raises ValueError for what is no address."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or PORTS.get(parts.scheme, 0)


def redirected(url: str, location: str) -> str:
    """Return the address that a redirect from `url` names. Raises Misanswer if it may not go there."""
    shown = f"the server redirects to {safe(location)!r}"
    try:
        target = urljoin(url, location)
        parts, (scheme, host, _) = urlsplit(target), origin(target)
    except ValueError:
        raise Misanswer(f"{shown}, which is no address") from None
    if scheme not in PORTS or not host or not target.isprintable() or " " in target or len(target) > 8000:
        raise Misanswer(f"{shown}, which is no address")
    if parts.username is not None or parts.password is not None:
        raise Misanswer(f"{shown}, which holds a user name")
    if scheme == "http" and urlsplit(url).scheme == "https":
        raise Misanswer(f"{shown}, from https to http")
    if is_own_machine(host) and not is_own_machine(origin(url)[1]):
        raise Misanswer(f"{shown}, which is on this machine or its own network link")
    return target


def is_own_machine(host: str) -> bool:
    """Return whether a host means this machine or its link (169.254.0.0/16, of clouds' own services), as written.

    Names are not looked up: what one stands for may be another thing a moment later.
    """
    name = host.rstrip(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(name.partition("%")[0])
    except ValueError:
        try:
            address = ipaddress.ip_address(socket.inet_aton(name))  # also 127.1, 0x7f000001 and the like
        except (OSError, ValueError):
            return False
    address = getattr(address, "ipv4_mapped", None) or address
    return address.is_loopback or address.is_link_local or address.is_unspecified or address.is_multicast


@contextlib.contextmanager
def _exchange(method: str, url: str, headers: Mapping[str, str], timeout: float) -> Iterator[Answer]:
    """Send one request in a thread of its own; this one waits for it no longer than the limits say.

    An HTTP client bounds the wait for the next byte, not that for the next line, header or chunk: a server that sends
    a byte now and then would hold it for days. A thread that was given up ends with its connection, or the process.
    """
    came: queue.Queue[Any] = queue.Queue(QUEUED)
    over = threading.Event()
    arguments = (came, over, method, url, dict(headers), timeout)
    threading.Thread(target=_work, args=arguments, name="mtmeta-http", daemon=True).start()
    try:
        try:
            response = _take(came, ANSWER_SECONDS)
        except queue.Empty:
            raise Unreachable(f"it has not answered for {ANSWER_SECONDS:g} seconds") from None
        yield Answer(response.status_code, response.headers, url, _body(came))
    finally:
        over.set()


def _work(
    came: queue.Queue[Any], over: threading.Event, method: str, url: str, headers: dict[str, str], timeout: float
) -> None:
    def put(item: Any) -> bool:
        while not over.is_set():
            with contextlib.suppress(queue.Full):
                came.put(item, timeout=0.2)
                return True
        return False

    try:
        from huggingface_hub import get_session

        with get_session().stream(method, url, headers=headers, timeout=timeout, follow_redirects=False) as response:
            if put(response):
                for piece in response.iter_raw():
                    if not put(piece):
                        return
            put(None)
    except BaseException as error:  # whatever the client raises; its classes change between releases
        put(error)


def _body(came: queue.Queue[Any]) -> Iterator[bytes]:
    left, brought = WINDOW_SECONDS, 0
    while True:
        began = time.monotonic()
        try:
            piece = _take(came, max(left, 0.001))
        except queue.Empty:
            piece = b""
        left -= time.monotonic() - began
        if piece is None:
            return
        brought += len(piece)
        if left <= 0:
            if brought < LEAST_BYTES:
                raise Unreachable(f"it sends less than {byte_text(round(LEAST_BYTES / WINDOW_SECONDS))} a second")
            left, brought = WINDOW_SECONDS, 0
        if piece:
            yield piece


def _take(came: queue.Queue[Any], seconds: float) -> Any:
    """Return what came next. Raises queue.Empty where nothing does in time, and Unreachable."""
    item = came.get(timeout=seconds)
    if isinstance(item, BaseException):
        raise Unreachable(reason(item)) from item
    return item


def reason(error: BaseException) -> str:
    """Return the text of an HTTP client's exception, on one line."""
    text = str(error).strip().splitlines()
    return safe(text[0] if text else type(error).__name__, 200)
