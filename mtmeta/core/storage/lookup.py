"""Files that are named elsewhere, as far as they lie in the caches of this machine; nobody is asked."""

from __future__ import annotations

from pathlib import Path

from mtmeta.core.environment import cache_folder
from mtmeta.core.errors import MachineError
from mtmeta.core.storage.addresses import WebFile, is_pinned
from mtmeta.core.storage.artifacts import Artifact, Status, Stored, Want, stored
from mtmeta.core.storage.disk import fingerprint
from mtmeta.core.storage.hub import ABSENT, Repository

__all__ = ["cached", "cached_web_file", "web_path"]

FOLDER = "files"  # in our cache, beside tokens and kernels; those go when unused, these stay


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
    if not path.is_file():
        return Stored(source.file, "missing")
    actual = fingerprint(path)
    status: Status = "cached" if actual["sha256"] == source.sha256 else "damaged"
    return Stored(source.file, status, path, actual["size"], actual["sha256"])


def web_path(source: WebFile) -> Path:
    """Return where the file of an address goes. Raises MachineError where there is no cache."""
    root = cache_folder()
    if root is None:
        message = "leaves no place for files fetched by address; set it to a folder, or unset it"
        raise MachineError("MTMETA_CACHE", message)
    return root / FOLDER / source.sha256 / source.file
