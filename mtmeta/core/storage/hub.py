"""Files of the Hugging Face hub in huggingface_hub's own cache: what lies there, and bringing there what does not.

The library resolves names, tokens and redirects, lays out the cache and links files into snapshots. The bytes we bring
ourselves, to `blobs/HASH`. As of huggingface_hub 2.4.0 its own download lacks three things that we promise:

* to go on after a kill: `_download_to_tmp_and_move` writes to `HASH.RANDOM.incomplete`, a name of one process, and
  unlinks it on any failure; `http_get` resumes within one call alone;
* to try again when a server answers 5xx or a connection is reset: `http_get` does so on ConnectError, TimeoutException,
  RemoteProtocolError, 408 and 429;
* to check the hash: it compares sizes. A part of another file, or a flipped bit, would pass.
"""

from __future__ import annotations

import logging
import os
import re
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from mtmeta.core.errors import MachineError
from mtmeta.core.storage.download import WAITS, Download, Unreachable, Watcher, download, git_sha1, reason, transient
from mtmeta.core.wording import quote, safe

Kind = Literal["model", "dataset"]
BLOB = re.compile("[0-9a-f]{40}|[0-9a-f]{64}")


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

    def find(self, file: str, revision: str) -> Path | Absent | None:
        """Return the file in the cache, ABSENT if the repository is known to have none, None if nothing is known."""
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(self.name, file, revision=revision, repo_type=self.kind)
        return Path(cached) if isinstance(cached, str) else None if cached is None else ABSENT

    def commit_of(self, path: Path, file: str) -> str:
        """Return the commit whose snapshot a cached file lies in."""
        return path.parents[file.count("/")].name

    def ask(self, file: str, revision: str) -> Metadata:
        """Ask the hub about a file. Raises Absent, Unreachable, and the library's errors for what it refuses."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError, OfflineModeIsEnabled

        _hush()
        url = hf_hub_url(self.name, file, repo_type=self.kind, revision=revision)
        for wait in (*WAITS[:2], None):
            try:
                metadata = get_hf_file_metadata(url)
                break
            except EntryNotFoundError:
                with suppress(EntryNotFoundError):  # the library notes in its cache that there is none
                    hf_hub_download(self.name, file, repo_type=self.kind, revision=revision)
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
        if not metadata.commit_hash or not metadata.etag:
            raise MachineError(f"hub: {quote(self.name)}", "was answered by no hub; check HF_ENDPOINT and the proxy")
        return Metadata(commit=metadata.commit_hash, etag=metadata.etag, size=metadata.size, url=url)

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

        metadata, fetched = self.ask(file, commit), True
        if BLOB.fullmatch(metadata.etag):  # a mirror may have etags of another kind; then the library has it all
            folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=self.name, repo_type=self.kind)
            blob = folder / "blobs" / metadata.etag
            if fetched := damaged or not blob.exists():
                job = Download(
                    label=f"{self.name}: {file}",
                    url=metadata.url,
                    target=blob,
                    digest=metadata.etag,
                    size=metadata.size,
                    headers=build_hf_headers(library_name="mtmeta"),
                    replace=damaged,
                )
                fetched = download(job, watcher)
        path = Path(hf_hub_download(self.name, file, repo_type=self.kind, revision=revision))
        if self.commit_of(path, file) != commit:  # the branch has just moved
            path = Path(hf_hub_download(self.name, file, repo_type=self.kind, revision=commit))
        return path, fetched


def size_of(url: str) -> int | None:
    """Return the bytes of a file at an address, if the server says so without sending it."""
    from huggingface_hub import get_hf_file_metadata

    _hush()
    try:
        return get_hf_file_metadata(url, token=False).size
    except Exception:  # some servers answer no HEAD
        return None


def is_damaged(path: Path, sha256: str) -> bool:
    """Return whether a cached file is not what its name in the cache says; unknown, and so false, without links."""
    name = Path(os.path.realpath(path)).name
    if not BLOB.fullmatch(name):
        return False
    return name != (sha256 if len(name) == 64 else git_sha1(path))


def explain(name: str, revision: str, kind: str, error: Exception) -> MachineError:
    """Return the error that the library raised about a repository, as one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    place = f"hub: {quote(name)}"
    if isinstance(error, GatedRepoError):
        return MachineError(place, "needs a token; set HF_TOKEN")
    if isinstance(error, RevisionNotFoundError):
        return MachineError(place, f"has no revision {quote(revision)}")
    if isinstance(error, RepositoryNotFoundError):
        other = "; a data set is named hf://datasets/ORG/NAME@REVISION/FILE" if kind == "model file" else ""
        return MachineError(place, f"not found, or private; check the name or set HF_TOKEN{other}")
    return MachineError(place, f"cannot be fetched ({safe(reason(error), 200)})")


def _hush() -> None:
    """Silence the retries and bars of the library: ours tell what goes on."""
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # re-exported

    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    if os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is None:
        disable_progress_bars()
