"""Files of the Hugging Face hub in huggingface_hub's own cache: what lies there, and bringing there what does not.

The library says where its cache is, how addresses look, and what the user's token is. Asking, fetching and laying files
into the cache is ours, for nothing that a server says is used before it has the form that it must have: a commit 40
hexadecimal digits, an ETag those of a SHA-1 or SHA-256, a size a number. As of huggingface_hub 2.4.0 its own download
takes an ETag as the name of a file, whatever it is (`blobs/../../x`), waits for a slow server for ever, starts anew
after a kill, gives up when a connection is reset, and compares sizes in place of hashes.

    models--OWNER--NAME/refs/main                  a commit
                        blobs/HASH                 a file, by git's SHA-1 or, in large-file storage, its SHA-256
                        snapshots/COMMIT/FILE      a link to it
                        .no_exist/COMMIT/FILE      the hub said that there is none
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from mtmeta.core import web
from mtmeta.core.errors import MachineError
from mtmeta.core.storage.addresses import is_pinned
from mtmeta.core.storage.atomic import make_folder
from mtmeta.core.storage.download import WAITS, Download, Watcher, download, file_hash
from mtmeta.core.web import Busy, Misanswer, Refused, Unreachable
from mtmeta.core.wording import byte_text, quote, safe

Kind = Literal["model", "dataset"]
BLOB = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
TEXT_LIMIT, TENSORS_LIMIT = 10**8, 2**36  # bytes of a model's files: as much as any reader of them takes
MAX_REF = 100  # bytes of a file that holds a commit


class Absent(Exception):
    """The repository has no such file."""


ABSENT = Absent()


@dataclass(frozen=True)
class Metadata:
    """The metadata of a file on the hub."""

    commit: str
    etag: str
    size: int | None
    url: str


def is_offline() -> bool:
    """Return whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@dataclass(frozen=True)
class Repository:
    """A repository on the hub as the cache has it."""

    kind: Kind
    name: str

    @property
    def folder(self) -> Path:
        """Its place in the library's cache. Raises ValueError for a name that the hub does not allow."""
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type=self.kind)

    def find(self, file: str, revision: str) -> Path | Absent | None:
        """Return the file in the cache, ABSENT if the repository is known to have none, None if nothing is known.

        Raises MachineError where everybody may write to it.
        """
        commit = revision if is_pinned(revision) else self._commit_seen(revision)
        if commit is None:
            return None
        if os.path.isfile(self.folder / ".no_exist" / commit / file):  # false also for a name too long for a disk
            return ABSENT
        path = self.folder / "snapshots" / commit / file
        # a link leads to a file of the cache, and not to any other
        if not os.path.isfile(path) or not path.resolve().is_relative_to(self.folder.parent.resolve()):
            return None
        for place in (path.resolve(), path.resolve().parent, path.parent, self.folder):
            _check_closed(place)
        return path

    def _commit_seen(self, revision: str) -> str | None:
        """Return the commit that a branch or tag had when it was last asked for."""
        try:
            path = self.folder / "refs" / revision
            text = path.read_text("ascii") if os.path.isfile(path) and path.stat().st_size <= MAX_REF else ""
        except (OSError, ValueError):
            return None
        return text if is_pinned(text) else None

    def commit_of(self, path: Path, file: str) -> str:
        """Return the commit whose snapshot a cached file lies in."""
        return path.parents[file.count("/")].name

    def ask(self, file: str, revision: str) -> Metadata:
        """Ask the hub about a file. Raises Absent, Unreachable, Refused, Misanswer."""
        from huggingface_hub import constants, hf_hub_url

        url = hf_hub_url(self.name, file, repo_type=self.kind, revision=revision)
        for wait in (*WAITS[:2], None):
            try:
                with web.ask("HEAD", url, _headers(), timeout=constants.HF_HUB_ETAG_TIMEOUT, leave=False) as answer:
                    return _metadata(answer, url, revision)
            except Refused as error:
                if error.code != "EntryNotFound":
                    raise
                if error.commit is not None:
                    self._note_absent(file, revision, error.commit)
                raise ABSENT from None
            except Busy:
                if wait is None:
                    raise
                time.sleep(wait)
        raise AssertionError("the last attempt returns or raises")

    def _note_absent(self, file: str, revision: str, commit: str) -> None:
        if not is_pinned(commit) or (is_pinned(revision) and revision != commit):
            raise Misanswer(f"the server names {quote(commit)} as the commit, which it is not")
        with suppress(OSError):  # it is asked once more
            place = self.folder / ".no_exist" / commit / file
            make_folder(place.parent)
            place.touch()
            self.note_commit(revision, commit)

    def note_commit(self, revision: str, commit: str) -> None:
        """Remember the commit of a branch or tag for a time without a network. Raises OSError."""
        if revision != commit and self._commit_seen(revision) != commit:
            _replace(self.folder / "refs" / revision, lambda scratch: _write(scratch, commit))

    def bring(
        self, file: str, commit: str, revision: str, watcher: Watcher, *, damaged: bool = False, model: bool = False
    ) -> tuple[Path, bool]:
        """Bring a file of a commit into the cache; `revision` is what the recipe calls the commit.

        Returns where it lies, and whether this process fetched it.
        Raises Absent, Unreachable, WrongHash, Refused, Misanswer, MachineError.
        """
        metadata = self.ask(file, commit)
        limit = (TENSORS_LIMIT if file.endswith(".safetensors") else TEXT_LIMIT) if model else None
        if limit is not None and (metadata.size or 0) > limit:
            sizes = f"{byte_text(metadata.size or 0)}, more than the {byte_text(limit)} of the largest that is read"
            raise Misanswer(f"{file} has {sizes}")
        blob, path = self.folder / "blobs" / metadata.etag, self.folder / "snapshots" / commit / file
        job = Download(
            label=f"{self.name}: {file}",
            url=metadata.url,
            target=blob,
            digest=metadata.etag,
            size=metadata.size,
            limit=limit,
            headers=_headers(),
            replace=damaged,
        )
        for place in (self.folder, blob.parent, path.parent):
            _check_closed(place)
        there = blob.is_file() and blob.resolve().is_relative_to(self.folder.parent.resolve())
        try:
            if not there and os.path.lexists(blob):  # a link out of the cache, a pipe
                blob.unlink()
            fetched = download(job, watcher) if damaged or not there else False
            if not (path.is_symlink() and path.resolve() == blob.resolve()):
                _replace(path, lambda scratch: _link(blob, path.parent, scratch))
            self.note_commit(revision, commit)
        except OSError as error:
            message = f"cannot be written ({safe(error.strerror or str(error))}); make room, or set HF_HOME"
            raise MachineError(str(path), message) from error
        return path, fetched


def _metadata(answer: web.Answer, url: str, revision: str) -> Metadata:
    """Return what the headers of an answer say of a file. Raises Misanswer for what it cannot be."""
    headers = answer.headers
    commit, etag = headers.get("X-Repo-Commit"), headers.get("X-Linked-Etag") or headers.get("ETag")
    if not commit or not etag:
        raise Misanswer("no hub answers there; check HF_ENDPOINT and the proxy")
    if not is_pinned(commit) or (is_pinned(revision) and commit != revision):
        raise Misanswer(f"the server names {quote(commit)} as the commit, which it is not")
    etag = etag.removeprefix("W/").removeprefix('"').removesuffix('"')
    if not BLOB.fullmatch(etag):
        raise Misanswer(f"the server gives {quote(etag)} as the ETag, which is no SHA-1 or SHA-256")
    given = headers.get("X-Linked-Size") or (None if answer.is_elsewhere else headers.get("Content-Length"))
    if given is not None and not web.DIGITS.fullmatch(given):
        raise Misanswer(f"the server gives {quote(given)} as the size")
    return Metadata(commit=commit, etag=etag, size=None if given is None else int(given), url=url)


def _headers() -> dict[str, str]:
    """Return the headers of a request; the library's own first ask the server about other things, without a limit."""
    from huggingface_hub import constants, get_token

    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return {"User-Agent": f"mtmeta/{version('mtmeta')}"} | ({"Authorization": f"Bearer {token}"} if token else {})


def _check_closed(place: Path) -> None:
    """Raise MachineError for a file or folder of the cache that everybody may write to; it may be a group's."""
    with suppress(FileNotFoundError):
        mode = place.stat().st_mode
        if mode & stat.S_IWOTH and not (stat.S_ISDIR(mode) and mode & stat.S_ISVTX):
            raise MachineError(str(place), "may be written to by everybody; run chmod o-w on it, or set HF_HOME")


def _replace(path: Path, make: Callable[[Path], object]) -> None:
    """Make a file or link beside `path`, and rename it there."""
    make_folder(path.parent)
    scratch = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        make(scratch)
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)


def _write(scratch: Path, text: str) -> None:
    with open(scratch, "x", encoding="ascii") as file:
        file.write(text)


def _link(blob: Path, folder: Path, scratch: Path) -> None:
    try:
        scratch.symlink_to(os.path.relpath(blob, folder))
    except (OSError, NotImplementedError):  # a disk without links
        shutil.copyfile(blob, scratch)


def size_of(url: str) -> int | None:
    """Return the bytes of a file at an address, if the server says so without sending it."""
    from huggingface_hub import constants

    try:
        with web.ask("HEAD", url, {}, timeout=constants.HF_HUB_ETAG_TIMEOUT) as answer:
            return answer.size()
    except (Unreachable, Refused, Misanswer):  # some servers answer no HEAD
        return None


def is_damaged(path: Path, sha256: str) -> bool:
    """Return whether a cached file is not what its name in the cache says; unknown, and so false, without links."""
    name = Path(os.path.realpath(path)).name
    if not BLOB.fullmatch(name):
        return False
    if len(name) == 64:
        return name != sha256
    with open(path, "rb", buffering=0) as file:
        return name != file_hash(file, "sha1")


def explain(name: str, revision: str, kind: str, error: Exception) -> MachineError:
    """Return as one line why a repository cannot be had."""
    place, code = f"hub: {quote(name)}", error.code if isinstance(error, Refused) else ""
    if code == "GatedRepo":
        return MachineError(place, "needs a token; set HF_TOKEN")
    if code == "RevisionNotFound":
        return MachineError(place, f"has no revision {quote(revision)}")
    if code == "RepoNotFound" or (isinstance(error, Refused) and error.status == 401):
        other = "; a data set is named hf://datasets/ORG/NAME@REVISION/FILE" if kind == "model file" else ""
        return MachineError(place, f"not found, or private; check the name or set HF_TOKEN{other}")
    return MachineError(place, f"cannot be fetched ({web.reason(error)}); check HF_ENDPOINT and the proxy")
