"""What recipes need from elsewhere, what became of it, and how that is told and remembered."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from mtmeta.core.errors import DataError
from mtmeta.core.storage.addresses import HubFile, WebFile, is_pinned, parse_file
from mtmeta.core.storage.disk import fingerprint
from mtmeta.core.storage.hub import is_damaged, shown_revision
from mtmeta.core.wording import safe

__all__ = [
    "Found",
    "Status",
    "Stored",
    "Want",
    "by_name",
    "pins_of",
    "remedy",
    "server_of",
    "stored",
    "tell",
    "want_file",
]

Status = Literal["cached", "fetched", "missing", "damaged", "absent", "unknown"]
"""`absent`: the repository has no such file; `unknown`: perhaps it has, which only the hub can say."""


@dataclass(frozen=True)
class Want:
    """What a part of a recipe needs: a file, or some files of a repository."""

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
    """One file: what became of it, and once it is there its path, size and SHA-256."""

    file: str
    status: Status
    path: Path | None = None
    size: int | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Found:
    """A want, and where its files are."""

    want: Want
    commit: str = ""
    """Of the hub; empty for an address, and while it is unknown."""
    files: dict[str, Stored] = field(default_factory=dict)

    @property
    def missing(self) -> list[str]:
        return [file for file, one in self.files.items() if one.status in ("missing", "damaged")]

    @property
    def folder(self) -> Path:
        """Where the files of a repository lie."""
        one = next(one for one in self.files.values() if one.path is not None)
        assert one.path is not None
        return one.path.parents[one.file.count("/")]


def by_name(wants: Iterable[Want]) -> dict[str, Want]:
    """Wants by their names; of one repository, with the files that any of them needs, optional ones first."""
    found: dict[str, Want] = {}
    for want in wants:
        other = found.get(want.name, want)
        needed = [file for one in (other, want) for file in one.files if file not in one.optional]
        optional = [file for file in dict.fromkeys((*other.optional, *want.optional)) if file not in needed]
        found[want.name] = replace(want, files=tuple(dict.fromkeys((*optional, *needed))), optional=tuple(optional))
    return found


def want_file(name: str) -> Want:
    """The want of a data file. Raises DataError where the name is none."""
    try:
        source = parse_file(name)
    except ValueError as error:
        raise DataError(safe(name, 300), str(error)) from None
    return Want(name, source, (source.path if isinstance(source, HubFile) else source.file,))


def check_pin(found: Found) -> None:
    """Raise DataError if a file of the hub is not the one that the recipe gives the hash of."""
    source = found.want.source
    if isinstance(source, HubFile) and source.sha256 and (one := found.files[source.path]).sha256 != source.sha256:
        message = f"refused, its sha256 is {one.sha256}, expected {source.sha256}; check the revision and the hash"
        raise DataError(safe(source.at(found.commit).partition("#")[0], 300), message)


def stored(file: str, path: Path) -> Stored:
    """A file in the cache of the hub, its hash taken and compared with what the cache says of it."""
    found = fingerprint(path)
    status: Status = "damaged" if is_damaged(path, found["sha256"]) else "cached"
    return Stored(file, status, path, found["size"], found["sha256"])


def tell(found: Found) -> str:
    """What is missing of a want, in words."""
    source = found.want.source
    if isinstance(source, WebFile) or source.path:
        return safe(found.want.name, 300) + " (damaged)" * any(one.status == "damaged" for one in found.files.values())
    shown = f"{source.repository}@{shown_revision(found.commit or source.revision)}"
    return safe(f"{shown} ({', '.join(found.missing)})", 300)


def server_of(want: Want) -> str:
    """Whose files these are, for messages."""
    return "the hub" if isinstance(want.source, HubFile) else safe(urlsplit(want.source.url).netloc)


def remedy(*recipes: str | os.PathLike[str]) -> str:
    """The command that brings what is missing."""
    named = " ".join(shlex.quote(os.fspath(recipe)) for recipe in recipes)
    return f"run 'mtmeta fetch {safe(named, 300)}' where there is a network"


def pins_of(lock: Mapping[str, Any]) -> dict[str, str]:
    """Commits by name, of what a lock says of its sources; whatever else stands there is left alone."""
    entries = lock.get("sources")
    found = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and isinstance(entry.get("name"), str) and isinstance(entry.get("commit"), str):
            if is_pinned(entry["commit"]):
                found[entry["name"]] = entry["commit"]
    return found
