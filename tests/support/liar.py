"""A hub and file server on the loopback device that lies: each answer may differ from the honest one in any part.

It speaks HTTP by hand, so that no library keeps it from saying what none would. `lying` is a folder with recipes that
name files there, caches of its own, and the limits of time and size of a test.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socketserver
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mtmeta.core import web
from mtmeta.core.storage import download as downloads
from tests.support.commands import HEADER, ROWS, SMALL, data_folder
from tests.support.loopback import COMMIT, git_blob, sha256

TRUTH = (HEADER + ROWS).encode()
CONFIG = json.dumps({"model_type": "bert", "words": "x" * 300}).encode()
WEIGHTS = bytes(range(256)) * 3
MODEL = {"config.json": CONFIG, "model.safetensors": WEIGHTS, "tokenizer.json": b"{}" * 100}


@dataclass(frozen=True)
class Lie:
    """What is not as it should be in one answer."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    dropped: tuple[str, ...] = ()
    body: str = "true"
    framing: str = "length"
    cut: int | None = None
    slow: str = ""
    raw: bytes | None = None


@dataclass
class Script:
    """What the server does next."""

    lies: list[Lie] = field(default_factory=list)
    slow: int = 0
    authorized: list[str] = field(default_factory=list)


class Liar(socketserver.ThreadingTCPServer):
    """A hub that answers honestly once it has told all its lies."""

    daemon_threads = True
    request_queue_size = 50

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Talk)
        self.port = self.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.script = Script()

    def handle_error(self, request: Any, client_address: Any) -> None:
        pass  # a client that hangs up


class Talk(socketserver.StreamRequestHandler):
    server: Liar
    timeout = 5

    def handle(self) -> None:
        while (line := self.rfile.readline(9999).decode("latin-1").split()) and len(line) == 3:
            headers = {}
            while (head := self.rfile.readline(9999).decode("latin-1").strip()) != "":
                name, _, value = head.partition(":")
                headers[name.lower()] = value.strip()
            if not self.answer(line[0], line[1], headers):
                return

    def answer(self, method: str, path: str, asked: dict[str, str]) -> bool:
        script = self.server.script
        if "authorization" in asked:
            script.authorized.append(path)
        lie = script.lies.pop(0) if script.lies else Lie()
        if lie.raw is not None:
            self.wfile.write(lie.raw)
            return False
        status, headers, body = honest(method, path, asked, self.server.port)
        body = {"true": body, "other": body[::-1], "longer": body + b"more", "shorter": body[:-1], "empty": b""}.get(
            lie.body, body * 2000
        )
        headers = {name: value for name, value in headers.items() if name not in lie.dropped}
        framing, tail = lie.framing, body
        if framing in ("chunked", "bad chunks", "both"):
            headers["Transfer-Encoding"] = "chunked"
            size = b"%x" % len(body) if framing != "bad chunks" else b"zz"
            tail = size + b"\r\n" + body + b"\r\n0\r\n\r\n" if body else b"0\r\n\r\n"
        if framing in ("length", "both"):
            headers["Content-Length"] = str(len(body))
        headers |= dict(lie.headers)
        place = {"port": str(self.server.port)}
        shown = "".join(f"{name}: {value.replace('{port}', place['port'])}\r\n" for name, value in headers.items())
        head = f"HTTP/1.1 {lie.status or status} X\r\n{shown}\r\n".encode("latin-1")
        tail = b"" if method == "HEAD" else tail[: lie.cut]
        self.send(head, tail, lie.slow)
        return framing != "close" and lie.cut is None and not lie.slow

    def send(self, head: bytes, tail: bytes, slow: str) -> None:
        mine = self.server.script
        parts = {"headers": (head, tail), "body": (tail, b""), "chunks": (b"1;" + b"x" * 99, b"")}.get(slow)
        if parts is None:
            self.wfile.write(head + tail)
            return
        if slow != "headers":
            self.wfile.write(head)
        for byte in parts[0]:
            if self.server.script is not mine:  # that case is over
                return
            self.wfile.write(bytes([byte]))
            time.sleep(0.03)
        self.wfile.write(parts[1])


def honest(method: str, path: str, asked: dict[str, str], port: int) -> tuple[int, dict[str, str], bytes]:
    """Status, headers and body as the hub has them."""
    name = path.partition("?")[0].rpartition("/")[2]
    data = {"t.tsv": TRUTH, **MODEL}.get(name)
    headers = {"X-Repo-Commit": COMMIT}
    if data is None:
        return 404, headers | {"X-Error-Code": "EntryNotFound"}, b""
    if "/resolve/" in path and name == "model.safetensors":
        headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data))}
        return 302, headers | {"Location": f"http://localhost:{port}/cdn/{name}"}, b""
    headers["ETag"] = f'"{git_blob(data)}"'
    if span := re.fullmatch(r"bytes=(\d+)-", asked.get("range", "")):
        start = int(span[1])
        if start >= len(data):
            return 416, {"Content-Range": f"bytes */{len(data)}"}, b""
        return 206, headers | {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}, data[start:]
    return 200, headers, data


def write_recipes(folder: Path, origin: str) -> None:
    """`address.yaml`, `data.yaml` and `model.yaml`, which name files of the server in three ways."""
    names = {
        "address": ("tiny", f"{origin}/files/t.tsv#sha256={sha256(TRUTH)}"),
        "data": ("tiny", "hf://datasets/owner/name/t.tsv"),
        "model": ("owner/name", "train.tsv"),
    }
    for kind, (weights, train) in names.items():
        text = SMALL.replace("weights: tiny", f"weights: {weights}").replace("train: train.tsv", f"train: {train}")
        (folder / f"{kind}.yaml").write_text(text)


@contextlib.contextmanager
def serving_lies() -> Iterator[Liar]:
    """The server, while the context lasts."""
    with Liar() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.script = Script()
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def lying(
    folder: Path, patch: pytest.MonkeyPatch, *, answer: float = 2.0, window: float = 1.0, least: int = 200
) -> Iterator[Liar]:
    """The server, and `folder` with the recipes; the limits are low, and the hub and the caches are the test's own."""
    patch.setattr(os, "fsync", lambda handle: None)
    patch.setattr(downloads, "WAITS", (0.0, 0.0, 0.0, 0.0))
    patch.setattr(downloads, "UNANNOUNCED", 10_000)
    for name, value in (("ANSWER_SECONDS", answer), ("WINDOW_SECONDS", window), ("LEAST_BYTES", least)):
        patch.setattr(web, name, value)
    patch.setenv("MTMETA_CACHE", str(folder / "cache"))
    patch.setenv("HF_TOKEN", "hf_secret")
    with serving_lies() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        patch.setattr("huggingface_hub.constants.ENDPOINT", server.url)
        patch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
        patch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder / "hub" / "hub"))
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        write_recipes(data_folder(folder), server.url)
        yield server
