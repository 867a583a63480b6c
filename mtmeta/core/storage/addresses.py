"""Names of files that lie elsewhere, as a recipe writes them; nothing is fetched here.

    hf://datasets/org/name@revision/path/file.csv     a file of a dataset on the Hugging Face hub
    hf://org/name@revision/path/file.csv              a file of a model repository (hf://models/... is the same)
    https://host/path/file.csv#sha256=HEX             a file of any server, by its SHA-256; http on loopback only

The first two are Hugging Face's own (HfFileSystem's), so pandas and datasets read the same names. Without `@revision`
a name means the branch `main`; `%2F` stands for a slash in a revision, but in `refs/pr/N` and `refs/convert/NAME`.
A `#sha256=HEX` may follow those too, and after all of it `#TABLE` names a table in a JSON file.
"""

from __future__ import annotations

import ipaddress
import re
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal
from urllib.parse import unquote, urlsplit

MAIN = "main"
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,95}")
REPOSITORY = re.compile(rf"{NAME.pattern}/{NAME.pattern}")
UNNAMED = re.compile(r"--|\.\.|\.git$")  # what no name on the hub may hold
REFS = re.compile(r"refs/(?:convert/[\w.-]+|pr/\d+)(?=/|$)")
SHA256 = re.compile("[0-9a-f]{64}")
PINNED = re.compile("[0-9a-f]{40}")
TABLE = re.compile(r"(.*\.(?:json|jsonl|ndjson)(?:#sha256=[0-9a-f]{64})?)#((?!sha256=).*)", re.DOTALL | re.IGNORECASE)
KINDS: dict[str, Literal["model", "dataset"]] = {"models": "model", "datasets": "dataset"}
OTHERS = ("spaces", "kernels", "buckets")
HUB_FORM = "hf://datasets/ORG/NAME@REVISION/FILE"
WEB_FORM = "https://HOST/FILE#sha256=HEX"
FORMS = f"{HUB_FORM}, {WEB_FORM} or a path"


@dataclass(frozen=True)
class HubFile:
    """A file of a repository on the hub; `path` is empty for the repository itself."""

    kind: Literal["model", "dataset"]
    repository: str
    revision: str
    path: str
    sha256: str = ""

    def at(self, revision: str) -> str:
        """Return the name with another revision."""
        prefix = "datasets/" if self.kind == "dataset" else ""
        shown = revision if REFS.fullmatch(revision) else revision.replace("/", "%2F")
        tail = (f"/{self.path}" if self.path else "") + (f"#sha256={self.sha256}" if self.sha256 else "")
        return f"hf://{prefix}{self.repository}@{shown}{tail}"

    def __str__(self) -> str:
        return self.at(self.revision)


@dataclass(frozen=True)
class WebFile:
    """A file of a server, whose SHA-256 is known."""

    url: str
    sha256: str

    @property
    def file(self) -> str:
        """Its name in our cache: the end of the address, of which plain letters stay."""
        end = unquote(urlsplit(self.url).path.rpartition("/")[2])
        return re.sub(r"[^A-Za-z0-9._-]", "_", end).lstrip(".")[-100:]

    def __str__(self) -> str:
        return f"{self.url}#sha256={self.sha256}"


RemoteFile = HubFile | WebFile


def is_remote(text: str) -> bool:
    """Return whether a name is no path: it begins with a scheme."""
    return SCHEME.match(text) is not None


def part_address(text: str) -> tuple[str, str | None]:
    """Return a name without the `#TABLE` at its end, and the table, None if it names none."""
    found = TABLE.fullmatch(text)
    return (found[1], found[2]) if found else (text, None)


def is_pinned(revision: str) -> bool:
    """Return whether a revision is a whole commit hash, which always means the same files."""
    return PINNED.fullmatch(revision) is not None


def parse_file(text: str) -> RemoteFile:
    """Return the file that a name with a scheme means. Raises ValueError saying what is wrong and the fix."""
    scheme = text.partition("://")[0]
    bare, sign, digest = text.partition("#sha256=")
    digest = digest.lower()
    if sign and not SHA256.fullmatch(digest):
        raise ValueError("the SHA-256 after '#sha256=' is not 64 hexadecimal digits; copy it whole")
    if scheme == "hf":
        return replace(_parse_hub(bare), sha256=digest)
    if scheme not in ("https", "http"):
        raise ValueError(f"{scheme}:// is not known; use {FORMS}")
    return _web(bare, digest)


def _web(url: str, digest: str) -> WebFile:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError:
        host = ""
    if not host or not url.isprintable() or " " in url:
        raise ValueError(f"is no address; write {WEB_FORM}")
    if parts.username is not None or parts.password is not None:
        raise ValueError("holds a user name or password, which would go into the lock; leave it out")
    if parts.scheme == "http" and not _is_loopback(host):
        raise ValueError("http is allowed on loopback only; use https")
    if not digest:
        raise ValueError("has no SHA-256; add #sha256=HEX, as `sha256sum FILE` prints it")
    if "#" in url:
        raise ValueError("has a fragment; only #sha256=HEX may follow the address")
    web_file = WebFile(url, digest)
    if not web_file.file:
        raise ValueError(f"names no file; write {WEB_FORM}")
    return web_file


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def parse_model(text: str) -> HubFile:
    """Return the model repository of `ORG/NAME@REVISION`, `hf://` before it or not. Raises ValueError.

    The hub's oldest models have no ORG; it knows where they are now.
    """
    rest = text.removeprefix("hf://").removeprefix("models/")
    name, at, revision = rest.partition("@")
    if rest.startswith("datasets/"):
        raise ValueError("is a data set; name a model repository")
    if not (REPOSITORY.fullmatch(name) or NAME.fullmatch(name)) or UNNAMED.search(name):
        raise ValueError(
            "is neither a folder nor a hub id; give a folder in Hugging Face layout, a hub id or `embedded`"
        )
    return HubFile("model", name, _revision(revision) if at else MAIN, "")


def _parse_hub(text: str) -> HubFile:
    rest = text.removeprefix("hf://")
    first, _, others = rest.partition("/")
    if first in OTHERS:
        raise ValueError(f"is of a kind that holds no data; use {FORMS}")
    kind = KINDS.get(first, "model")
    rest = others if first in KINDS else rest
    head, at, tail = rest.partition("@")
    if at and head.count("/") == 1:
        special = REFS.match(tail)
        raw = special[0] if special else tail.partition("/")[0]
        name, revision, path = head, _revision(raw), tail[len(raw) + 1 :]
    else:  # no revision: what looks like one belongs to the path
        parts = rest.split("/", 2)
        name, revision, path = "/".join(parts[:2]), MAIN, "".join(parts[2:])
    if not REPOSITORY.fullmatch(name) or UNNAMED.search(name):
        raise ValueError(f"names no repository; write {HUB_FORM}")
    if not path:
        raise ValueError(f"names no file in the repository; write {HUB_FORM}")
    if any(part in ("", ".", "..") for part in path.split("/")) or "\\" in path or not path.isprintable():
        raise ValueError("has a path that no file in a repository can have; write it as the hub shows it")
    return HubFile(kind, name, revision, path)


def _revision(text: str) -> str:
    revision = unquote(text)
    if not revision or not revision.isprintable() or ".." in revision or revision.startswith(("/", "-")):
        raise ValueError("has no usable revision after '@'; give a commit hash, a tag or a branch")
    return revision
