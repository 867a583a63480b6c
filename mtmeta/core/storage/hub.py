"""Files of the Hugging Face hub in huggingface_hub's own cache: what lies there, and bringing there what does not.

The library resolves names, tokens and redirects, lays out the cache and links files into snapshots. The bytes we bring
ourselves, to `blobs/HASH`, since its own download begins a file again in every process: ours goes on where an earlier
one was cut, and checks the hash that the hub gives.
"""

from __future__ import annotations

import logging
import os
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtmeta.core.errors import MachineError, MtmetaError
from mtmeta.core.storage.addresses import is_pinned
from mtmeta.core.storage.download import (
    WAITS,
    Download,
    Unreachable,
    Watcher,
    download,
    git_sha1,
    reason,
    transient,
)
from mtmeta.core.wording import quote, safe

__all__ = ["ABSENT", "Absent", "Repository", "explain", "is_damaged", "is_offline", "shown_revision", "size_of"]

Kind = Literal["model", "dataset"]
BLOB = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


class Absent(Exception):
    """The repository has no such file."""


ABSENT = Absent()


@dataclass(frozen=True)
class Metadata:
    """What the hub says of a file."""

    commit: str
    etag: str
    size: int | None
    url: str


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE is set."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


@dataclass(frozen=True)
class Repository:
    """A repository on the hub as the cache has it."""

    kind: Kind
    name: str

    def find(self, file: str, revision: str) -> Path | Absent | None:
        """The file in the cache, ABSENT where the repository is known to have none, None where nothing is known."""
        from huggingface_hub import try_to_load_from_cache

        found = try_to_load_from_cache(self.name, file, revision=revision, repo_type=self.kind)
        return Path(found) if isinstance(found, str) else None if found is None else ABSENT

    def commit_of(self, path: Path, file: str) -> str:
        """The commit whose snapshot a cached file lies in."""
        return path.parents[file.count("/")].name

    def ask(self, file: str, revision: str) -> Metadata:
        """What the hub says of a file. Raises Absent, Unreachable, and the library's errors for what it refuses."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

        _hush()
        url = hf_hub_url(self.name, file, repo_type=self.kind, revision=revision)
        for wait in (*WAITS[:2], None):
            try:
                found = get_hf_file_metadata(url)
                break
            except EntryNotFoundError:
                try:  # the library notes in its cache that there is none
                    hf_hub_download(self.name, file, repo_type=self.kind, revision=revision)
                except EntryNotFoundError:
                    pass
                raise ABSENT from None
            except OfflineModeIsEnabled as error:
                raise Unreachable("HF_HUB_OFFLINE is set") from error
            except Exception as error:
                if not transient(error):
                    raise
                # nobody there is nobody there a second later; a busy server may answer
                if wait is None or getattr(error, "response", None) is None:
                    raise Unreachable(reason(error)) from error
                time.sleep(wait)
        if not found.commit_hash or not found.etag:
            raise MachineError(f"hub: {quote(self.name)}", "was answered by no hub; check HF_ENDPOINT and the proxy")
        return Metadata(found.commit_hash, found.etag, found.size, url)

    def bring(
        self, file: str, commit: str, revision: str, watcher: Watcher, *, damaged: bool = False
    ) -> tuple[Path, bool]:
        """Bring a file of a commit into the cache; `revision` is what the recipe calls the commit.

        Returns where it lies, and whether this process fetched it.
        Raises Absent, Unreachable, WrongHash, and the library's errors for what it refuses.
        """
        from huggingface_hub import constants, hf_hub_download
        from huggingface_hub.file_download import repo_folder_name
        from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # re-exported

        told, fetched = self.ask(file, commit), True
        if BLOB.fullmatch(told.etag):  # a mirror may have etags of another kind; then the library has it all
            folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type=self.kind)
            blob = folder / "blobs" / told.etag
            fetched = damaged or not blob.exists()
            if fetched:
                algorithm = "sha256" if len(told.etag) == 64 else "sha1"
                message = Download(
                    label=f"{self.name}: {file}",
                    url=told.url,
                    target=blob,
                    algorithm=algorithm,
                    digest=told.etag,
                    size=told.size,
                    headers=build_hf_headers(library_name="mtmeta"),
                    replace=damaged,
                )
                fetched = download(message, watcher)
        path = Path(hf_hub_download(self.name, file, repo_type=self.kind, revision=revision))
        if self.commit_of(path, file) != commit:  # the branch has just moved
            path = Path(hf_hub_download(self.name, file, repo_type=self.kind, revision=commit))
        return path, fetched


def size_of(url: str) -> int | None:
    """Bytes of a file at an address, if the server says so without sending it."""
    from huggingface_hub import get_hf_file_metadata

    _hush()
    try:
        return get_hf_file_metadata(url, token=False).size
    except Exception:  # some servers answer no HEAD
        return None


def is_damaged(path: Path, sha256: str) -> bool:
    """Whether a cached file is not what its name in the cache says; unknown, and so false, without links."""
    name = Path(os.path.realpath(path)).name
    if not BLOB.fullmatch(name):
        return False
    return name != (sha256 if len(name) == 64 else git_sha1(path))


def explain(name: str, revision: str, kind: str, error: Exception) -> MtmetaError:
    """What the library raised about a repository, as one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    place = f"hub: {quote(name)}"
    if isinstance(error, MtmetaError):
        return error
    if isinstance(error, GatedRepoError):
        return MachineError(place, "needs a token; set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return MachineError(place, f"has no revision {quote(revision)}")
    if isinstance(error, RepositoryNotFoundError):
        other = "; a data set is named hf://datasets/ORG/NAME@REVISION/FILE" if kind == "model file" else ""
        return MachineError(place, f"not found, or private; check the name or set HF_TOKEN{other}")
    return MachineError(place, f"cannot be fetched ({safe(reason(error), 200)})")


def shown_revision(revision: str) -> str:
    """A commit shortened to what people compare."""
    return revision[:12] if is_pinned(revision) else revision


def _hush() -> None:
    """Its retries and bars are not the user's business: ours tell what goes on."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # re-exported

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        disable_progress_bars()
