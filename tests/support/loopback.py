"""A server on the loopback device that speaks the hub's protocol, and serves plain files; it can be made to misbehave.

Of the hub: HEAD with X-Repo-Commit, git's hash as ETag or X-Linked-Etag and X-Linked-Size of a file in large-file
storage, which lies on another path and is redirected to; branches; ranges; and the errors by X-Error-Code. And POST to
make a repository and to commit files to a branch, as huggingface_hub does.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"
RESOLVE = re.compile(r"/(?P<name>(?:datasets/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
PUSH = re.compile(r"/api/models/(?P<name>[^/]+/[^/]+)/(?P<action>preupload|commit)/(?P<revision>.+)")
REFUSED = {"owner/gated": (403, "GatedRepo"), "owner/private": (401, "RepoNotFound")}
LARGE = (".safetensors", ".csv")


def git_blob(data: bytes) -> str:
    """How git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class Loopback(ThreadingHTTPServer):
    """`repositories` maps `owner/name` or `datasets/owner/name` to commits, those to files; `files` are plain ones."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.elsewhere = f"http://localhost:{self.server_port}"
        """The same under another name, as the hub's storage is another host."""
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, str] = {"main": COMMIT}
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, str, str]] = []
        """Method, path and range of every request."""
        self.authorized: list[str] = []
        """Paths of the requests that came with a token."""
        self.cuts: dict[str, list[int]] = {}
        """By file name: after how many bytes of their bodies the next answers break off."""
        self.swapped: dict[str, bytes] = {}
        """By file name: what is sent in place of its content, while the hub's hashes stay."""
        self.busy: dict[str, list[int]] = {}
        """By file name: statuses that the next answers have."""
        self.pace = 0.0
        """Seconds that the server waits after every 64 kB."""
        self.ranges = True

    def got(self, file: str, method: str = "GET") -> list[str]:
        """The ranges of the requests for a file that were answered with a body, '' for all of it."""
        found = [(path, span) for kind, path, span in self.asked if kind == method and path.endswith(f"/{file}")]
        return [span for path, span in found if path.startswith(("/cdn/", "/files/")) or not file.endswith(LARGE)]


class Handler(BaseHTTPRequestHandler):
    server: Loopback
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        body = self.body()
        hub.asked.append((self.command, path, ""))
        if self.headers.get("Authorization"):
            hub.authorized.append(path)
        found = PUSH.fullmatch(path)
        if path == "/api/repos/create":
            name = "/".join(filter(None, (json.loads(body).get("organization"), json.loads(body)["name"])))
            if name.startswith("forbidden/"):
                self.answer(403)
                return
            hub.repositories.setdefault(name, {})
            self.send_json({"url": f"{hub.url}/{name}", "name": name, "id": name})
        elif path == "/api/validate-yaml":  # of a README
            self.send_json({"errors": [], "warnings": []})
        elif found and found["action"] == "preupload":
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self.send_json({"files": files})
        elif found:
            self.commit(found["name"], found["revision"], [json.loads(line) for line in body.splitlines()])
        else:
            self.answer(404)

    def body(self) -> bytes:
        """The body of a request, which comes in chunks where its length was not known before."""
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", "0")))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def commit(self, name: str, branch: str, lines: list[dict[str, Any]]) -> None:
        hub = self.server
        added = {
            line["value"]["path"]: base64.b64decode(line["value"]["content"]) for line in lines if line["key"] == "file"
        }
        before = hub.repositories[name].get(hub.branches.get(branch, ""), {})
        files = {**before, **added}
        commit = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        hub.repositories[name][commit] = files
        hub.branches[branch] = commit
        about = {"commitUrl": f"{hub.url}/{name}/commit/{commit}", "commitOid": commit, "success": True}
        self.send_json(about)

    def send_json(self, data: Any) -> None:
        self.send_file("", json.dumps(data).encode(), {"Content-Type": "application/json"})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, unquote(urlsplit(self.path).path)
        hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if self.headers.get("Authorization"):
            hub.authorized.append(path)
        name = path.rpartition("/")[2]
        if hub.busy.get(name):
            self.answer(hub.busy[name].pop(0))
        elif path.startswith("/cdn/"):
            self.send_file(name, self.large(path.removeprefix("/cdn/")))
        elif path.startswith("/files/") and path.removeprefix("/files/") in hub.files:
            self.send_file(name, hub.files[path.removeprefix("/files/")])
        elif found := RESOLVE.fullmatch(path):
            self.resolve(found["name"], found["revision"], found["file"])
        else:
            self.answer(404)

    def resolve(self, repository: str, revision: str, file: str) -> None:
        hub = self.server
        if repository in REFUSED:
            self.answer(REFUSED[repository][0], {"X-Error-Code": REFUSED[repository][1]})
            return
        if repository not in hub.repositories:
            self.answer(404, {"X-Error-Code": "RepoNotFound"})
            return
        commit = hub.branches.get(revision, revision)
        if commit not in hub.repositories[repository]:
            self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            return
        files, headers = hub.repositories[repository][commit], {"X-Repo-Commit": commit}
        if file not in files:
            self.answer(404, headers | {"X-Error-Code": "EntryNotFound"})
        elif file.endswith(LARGE):
            headers |= {"X-Linked-Etag": f'"{sha256(files[file])}"', "X-Linked-Size": str(len(files[file]))}
            self.answer(302, headers | {"Location": f"{hub.elsewhere}/cdn/{repository}/{commit}/{file}"})
        else:
            self.send_file(file.rpartition("/")[2], files[file], headers | {"ETag": f'"{git_blob(files[file])}"'})

    def large(self, path: str) -> bytes:
        repository = next(name for name in self.server.repositories if path.startswith(f"{name}/"))
        commit, _, file = path.removeprefix(f"{repository}/").partition("/")
        return self.server.repositories[repository][commit][file]

    def send_file(self, name: str, data: bytes, headers: dict[str, str] | None = None) -> None:
        hub, headers = self.server, dict(headers or {})
        data = hub.swapped.get(name, data)
        start, status = 0, 200
        if hub.ranges and (span := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))):
            start = int(span[1])
            if start >= len(data):
                self.answer(416, {"Content-Range": f"bytes */{len(data)}"})
                return
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(data) - 1}/{len(data)}"
        body = data[start:]
        self.send_response(status)
        for key, value in (headers | {"Content-Length": str(len(body)), "Accept-Ranges": "bytes"}).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        cut = hub.cuts[name].pop(0) if hub.cuts.get(name) else len(body)
        try:
            for at in range(0, min(cut, len(body)), 2**16):
                self.wfile.write(body[at : min(at + 2**16, cut)])
                time.sleep(hub.pace)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        if cut < len(body):
            self.close_connection = True

    def answer(self, status: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in ({"Content-Length": "0"} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()


@contextmanager
def serving() -> Iterator[Loopback]:
    """A server that answers while the context lasts."""
    with Loopback() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
