"""Files that recipes need from elsewhere, what of them lies in the caches, and how that is told and remembered."""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from mtmeta.core.environment import cache_folder, why_unsafe
from mtmeta.core.errors import DataError, MachineError
from mtmeta.core.storage.addresses import HubFile, WebFile, is_pinned, parse_file
from mtmeta.core.storage.disk import fingerprint
from mtmeta.core.storage.hub import ABSENT, Repository, is_damaged
from mtmeta.core.wording import safe

FOLDER = "files"  # in our cache, beside tokens and kernels; those go when unused, these stay
Status = Literal["cached", "fetched", "missing", "damaged", "absent", "unknown"]
"""`absent`: the repository has no such file; `unknown`: perhaps it has, which only the hub can say."""


@dataclass(frozen=True)
class Want:
    """A file that a part of a recipe needs, or some files of a repository."""

    name: str
    """As the recipe has it, revision and hash included."""
    source: HubFile | WebFile
    files: tuple[str, ...]
    optional: tuple[str, ...] = ()
    """Those of `files` that the repository may not have."""
    weights: bool = False

    @property
    def revision(self) -> str:
        return self.source.revision if isinstance(self.source, HubFile) else ""


@dataclass(frozen=True)
class Stored:
    """One file: its status, and once it is there its path, size and SHA-256."""

    file: str
    status: Status
    path: Path | None = None
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Artifact:
    """The files of a want, and where they are."""

    want: Want
    commit: str = ""
    """Of the hub; empty for an address, and while it is unknown."""
    files: dict[str, Stored] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return [file for file, one in self.files.items() if one.status in ("missing", "damaged")]

    @property
    def folder(self) -> Path:
        """The folder in which the files of a repository lie."""
        return next(one.path.parents[one.file.count("/")] for one in self.files.values() if one.path)


def by_name(wants: Iterable[Want]) -> dict[str, Want]:
    """Return wants by their names; of one repository, with the files that any of them needs, optional ones first."""
    merged: dict[str, Want] = {}
    for want in wants:
        other = merged.get(want.name, want)
        needed = [file for one in (other, want) for file in one.files if file not in one.optional]
        optional = [file for file in dict.fromkeys((*other.optional, *want.optional)) if file not in needed]
        merged[want.name] = replace(want, files=tuple(dict.fromkeys((*optional, *needed))), optional=tuple(optional))
    return merged


def want_file(name: str) -> Want:
    """Return the want of a data file. Raises DataError where the name is none."""
    try:
        source = parse_file(name)
    except ValueError as error:
        raise DataError(safe(name, 300), str(error)) from None
    return Want(name, source, (source.path if isinstance(source, HubFile) else source.file,))


def pin_problem(artifact: Artifact) -> DataError | None:
    """Return the refusal of a file of the hub that is not the one that the recipe gives the hash of."""
    source = artifact.want.source
    if isinstance(source, HubFile) and source.sha256 and (one := artifact.files[source.path]).sha256 != source.sha256:
        message = f"refused, its sha256 is {one.sha256}, expected {source.sha256}; check the revision and the hash"
        return DataError(safe(source.at(artifact.commit).partition("#")[0], 300), message)
    return None


def stored(file: str, path: Path, expected: str = "") -> Stored:
    """Return a file in a cache, its SHA-256 compared with the one expected, or with what the hub's cache says of it."""
    actual = fingerprint(path, links=True)  # as the hub's cache has them
    damaged = actual["sha256"] != expected if expected else is_damaged(path, actual["sha256"])
    return Stored(file, "damaged" if damaged else "cached", path, **actual)


def cached(want: Want, revision: str) -> Artifact:
    """Return what the caches hold of the files of `want`, those of the hub at `revision`."""
    if isinstance(want.source, WebFile):
        return Artifact(want, files={want.source.file: cached_web_file(want.source)})
    repository = Repository(want.source.kind, want.source.repository)
    files: dict[str, Stored] = {}
    commit = revision if is_pinned(revision) else ""
    for file in want.files:
        path = repository.find(file, revision)
        if isinstance(path, Path):
            commit = repository.commit_of(path, file)
            files[file] = stored(file, path)
        else:
            known: Status = "absent" if path is ABSENT else "unknown"
            files[file] = Stored(file, known if file in want.optional else "missing")
    return Artifact(want, commit, files)


def cached_web_file(source: WebFile) -> Stored:
    """Return the file of an address, and whether it is there and has its hash. Raises MachineError."""
    path = web_path(source)
    if not os.path.lexists(path):
        return Stored(source.file, "missing")
    if path.is_symlink() or not path.is_file():
        return Stored(source.file, "damaged", path)
    return stored(source.file, path, source.sha256)


def web_path(source: WebFile) -> Path:
    """Return where the file of an address goes. Raises MachineError where there is no cache, or not ours alone."""
    if (root := cache_folder()) is None:
        message = "leaves no place for files fetched by address; set it to a folder, or unset it"
        raise MachineError("MTMETA_CACHE", message)
    path = root / FOLDER / source.sha256 / source.file
    for place in (root, path.parents[1], path.parent, path):
        with suppress(OSError):  # not there yet, or one line later
            status = place.lstat() if place == path else place.stat()
            mine = hasattr(os, "getuid") and status.st_uid == os.getuid() and not place.is_symlink()
            if place != root and mine and stat.S_IMODE(status.st_mode) & 0o022:
                place.chmod(stat.S_IMODE(status.st_mode) & ~0o022)  # made by us, with a generous umask
            elif why := why_unsafe(place.lstat()) or why_unsafe(status):
                message = f"{why}, so nothing is taken from there; chmod go-w it, or set MTMETA_CACHE"
                raise MachineError(str(place), message)
    return path


def make_web_folder(source: WebFile) -> Path:
    """Return the same, its folder made, which only its user may look into."""
    path = web_path(source)
    for place in (path.parents[2], path.parents[1], path.parent):
        try:
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            message = f"cannot be written ({safe(error.strerror or str(error))}); make room, or set MTMETA_CACHE"
            raise MachineError(str(place), message) from error
    return path


def missing_text(artifact: Artifact) -> str:
    """Return what is missing of an artifact, in words."""
    source = artifact.want.source
    if isinstance(source, WebFile) or source.path:
        damaged = any(file.status == "damaged" for file in artifact.files.values())
        return safe(artifact.want.name, 300) + (" (damaged)" if damaged else "")
    revision = artifact.commit or source.revision
    shown = revision[:12] if is_pinned(revision) else revision  # of a commit, the part that people compare
    return safe(f"{source.repository}@{shown} ({', '.join(artifact.missing)})", 300)


def server_of(want: Want) -> str:
    """Return whose files these are, for messages."""
    return "the hub" if isinstance(want.source, HubFile) else safe(urlsplit(want.source.url).netloc)


def remedy(*recipes: str | os.PathLike[str]) -> str:
    """Return the command that brings what is missing."""
    named = " ".join(shlex.quote(os.fspath(recipe)) for recipe in recipes)
    return f"run 'mtmeta fetch {safe(named, 300)}' where there is a network"


def pins_of(lock: Mapping[str, Any]) -> dict[str, str]:
    """Return commits by name, of what a lock says of its sources; whatever else stands there is left alone."""
    entries = lock.get("sources")
    pins: dict[str, str] = {}
    for entry in entries if isinstance(entries, list) else ():
        match entry:
            case {"name": str(name), "commit": str(commit)} if is_pinned(commit):
                pins[name] = commit
    return pins
