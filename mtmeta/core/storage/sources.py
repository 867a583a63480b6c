"""Where the files lie that a recipe names on the hub or by an address: looked up, fetched, checked, and remembered.

A recipe is gone through twice. A `planning` Sources is asked by every part for what it needs, and fetches nothing;
`fetch` brings what is missing, and tells at once all that stands in its way; then the parts ask again and are given
local paths.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from mtmeta.core.errors import DataError, MachineError, MtmetaError, WeightsError, raise_all
from mtmeta.core.storage import artifacts
from mtmeta.core.storage.addresses import HubFile, WebFile, is_pinned, parse_model
from mtmeta.core.storage.artifacts import Artifact, Stored, Want, by_name, cached_web_file, stored, want_file
from mtmeta.core.storage.download import Download, Watcher, WrongHash, download
from mtmeta.core.storage.hub import ABSENT, Absent, Repository, explain, is_offline, size_of
from mtmeta.core.web import Unreachable, reason
from mtmeta.core.wording import quote, safe

MAX_LISTED = 20


class Fetcher:
    """Asks the hub and other servers. `pins` are commits by name, which win over a branch."""

    def __init__(self, pins: Mapping[str, str], watcher: Watcher) -> None:
        self.pins, self.watcher = dict(pins), watcher

    def cached(self, want: Want) -> Artifact:
        """Return the files of `want` as the caches have them."""
        return artifacts.cached(want, self._revision(want))

    def bring(self, want: Want) -> Artifact:
        """Return `want` with its files in the cache, fetched where they were not. Raises Unreachable, MtmetaError."""
        kind: Callable[[str, str], MtmetaError] = WeightsError if want.weights else DataError
        try:
            if isinstance(want.source, WebFile):
                return self._bring_web(want, want.source)
            return self._bring_hub(want, want.source)
        except WrongHash as error:
            raise kind(safe(want.name, 300), f"refused, its {error}; check the name and the hash") from error
        except (MtmetaError, Unreachable):
            raise
        except Exception as error:
            raise self._refused(want, error) from error

    def sizes(self, artifact: Artifact) -> tuple[str, list[Stored]]:
        """Return the commit and the files, with the sizes that the hub or the server gives for what is missing."""
        want, commit, files = artifact.want, artifact.commit, dict(artifact.files)
        for file in reversed(want.files):  # those first that must be there
            if files[file].path is not None or files[file].status == "absent":
                continue
            try:
                if isinstance(want.source, WebFile):
                    size = size_of(want.source.url)
                else:
                    repository = Repository(want.source.kind, want.source.repository)
                    metadata = repository.ask(file, commit or self._revision(want))
                    commit, size = commit or metadata.commit, metadata.size
                files[file] = replace(files[file], status="missing", size=size)
            except Absent:
                files[file] = self._absent(want, file)
            except Unreachable:
                break
            except Exception as error:
                raise self._refused(want, error) from error
        return commit, [files[file] for file in want.files]

    def _revision(self, want: Want) -> str:
        return self.pins.get(want.name, want.revision)

    def _refused(self, want: Want, error: Exception) -> MtmetaError:
        """Return as one line why a server's answer is not taken, or what the hub's library raised."""
        if isinstance(error, MtmetaError):
            return error
        if isinstance(want.source, HubFile):
            kind = "weights" if want.weights else f"{want.source.kind} file"
            return explain(want.source.repository, self._revision(want), kind, error)
        return DataError(safe(want.source.url, 300), f"cannot be fetched ({reason(error)}); check the address")

    def _bring_web(self, want: Want, source: WebFile) -> Artifact:
        before = cached_web_file(source)
        if before.status == "cached":
            return Artifact(want, files={source.file: before})
        if damaged := before.status == "damaged":
            self.watcher.note(f"{before.path}: damaged; fetching it again")
        place = artifacts.make_web_folder(source)
        job = Download(label=source.file, url=source.url, target=place, digest=source.sha256, replace=damaged)
        fetched = download(job, self.watcher)
        after = cached_web_file(source)
        return Artifact(want, files={source.file: replace(after, status="fetched") if fetched else after})

    def _bring_hub(self, want: Want, source: HubFile) -> Artifact:
        repository = Repository(source.kind, source.repository)
        revision = self._revision(want)
        commit = revision if is_pinned(revision) else self._resolve(repository, want, revision)
        files: dict[str, Stored] = {}
        for file in want.files:
            path = repository.find(file, commit)
            if isinstance(path, Path):
                files[file] = stored(file, path)
                if files[file].status == "cached":
                    continue
                self.watcher.note(f"{path}: damaged; fetching it again")
            elif path is ABSENT and file in want.optional:
                files[file] = Stored(file, "absent")
                continue
            try:
                files[file] = self._bring_file(repository, want, file, commit, damaged=file in files)
            except Absent:
                files[file] = self._absent(want, file)
        with suppress(OSError):  # a cache that is read-only
            repository.note_commit(revision, commit)
        return Artifact(want, commit, files)

    def _bring_file(self, repository: Repository, want: Want, file: str, commit: str, *, damaged: bool) -> Stored:
        def bring(damaged: bool) -> tuple[Path, bool]:
            revision = self._revision(want)
            return repository.bring(file, commit, revision, self.watcher, damaged=damaged, model=want.weights)

        path, fetched = bring(damaged)
        result = stored(file, path)
        if result.status == "damaged":  # it was there already, in another snapshot
            self.watcher.note(f"{path}: damaged; fetching it again")
            path, fetched = bring(True)
            result = stored(file, path)
        return replace(result, status="fetched") if fetched else result

    def _resolve(self, repository: Repository, want: Want, revision: str) -> str:
        """Return the commit of a branch or tag; without a network the one that it had when it was last seen."""
        try:
            return repository.ask(want.files[-1], revision).commit
        except Absent:
            raise self._no_file(want, want.files[-1]) from None
        except Unreachable:
            artifact = self.cached(want)
            if artifact.missing:
                raise
            return artifact.commit

    def _absent(self, want: Want, file: str) -> Stored:
        """Return the entry of a file that the repository does not have. Raises MtmetaError if it must be there."""
        if file not in want.optional:
            raise self._no_file(want, file) from None
        return Stored(file, "absent")

    @staticmethod
    def _no_file(want: Want, file: str) -> MtmetaError:
        source = want.source
        assert isinstance(source, HubFile)
        place = f"hub: {quote(source.repository)}"
        if want.weights:
            return WeightsError(place, f"has no {file} at revision {quote(source.revision)}; name another repository")
        return DataError(place, f"has no file {quote(file)} at revision {quote(source.revision)}; check the name")


class Sources:
    """The files that recipes name elsewhere; in `planning` what is asked for is only noted in `wants`."""

    def __init__(
        self,
        pins: Mapping[str, str] | None = None,
        watcher: Watcher | None = None,
        *,
        planning: bool = False,
        remedy: str = "fetch it where there is a network",
    ) -> None:
        self.fetcher = Fetcher(pins or {}, watcher or Watcher())
        self.planning = planning
        self.remedy = remedy
        self.wants: dict[str, Want] = {}
        self.artifacts: dict[str, Artifact] = {}
        """Those that are in the cache, by name."""

    def file(self, name: str) -> Path:
        """Return the local path of a file `hf://...` or `https://...#sha256=...`. Raises DataError, MachineError."""
        want = want_file(name)
        if self.planning:
            self.wants[name] = want
            return Path(want.files[0])
        return self._get(want).folder / want.files[0]

    def folder(self, name: str, needed: Sequence[str], optional: Sequence[str] = ()) -> Path:
        """Return a folder with files of the model repository `ORG/NAME@REVISION` (`hf://` may stand before it).

        `optional` files are left out where the repository has none. Raises WeightsError, MachineError.
        """
        try:
            source = parse_model(name)
        except ValueError as error:
            raise WeightsError(safe(name), str(error)) from None
        want = Want(name, source, (*optional, *needed), tuple(optional), weights=True)
        if self.planning:
            self.wants[name] = want
            return Path(source.repository)
        return self._get(want).folder

    def _get(self, want: Want) -> Artifact:
        before = self.artifacts.get(want.name)
        if before is None or not set(want.files) <= set(before.files):
            self.artifacts.pop(want.name, None)
            self.fetch(by_name([before.want, want] if before else [want]).values())
        return self.artifacts[want.name]

    def fetch(self, wants: Iterable[Want]) -> None:
        """Bring everything that is missing. Raises what stands in the way, all of it at once."""
        problems: list[MtmetaError] = []
        missing: list[Artifact] = []
        offline = is_offline()
        down: dict[str, str] = {}  # servers that did not answer, and how: what else lies there is not asked for
        for want in wants:
            if want.name in self.artifacts:
                continue
            server = artifacts.server_of(want)
            try:
                artifact = self.fetcher.cached(want) if offline or server in down else self.fetcher.bring(want)
            except Unreachable as error:
                down[server] = f"{server} cannot be reached ({error})"
                artifact = self.fetcher.cached(want)
            except MtmetaError as error:
                problems.append(error)
                continue
            if artifact.missing:
                missing.append(artifact)
            elif problem := artifacts.pin_problem(artifact):
                problems.append(problem)
            else:
                self.artifacts[want.name] = artifact
        if missing:
            why = "HF_HUB_OFFLINE is set" if offline else " and ".join(down.values())
            count = sum(len(artifact.missing) for artifact in missing)
            are = f"{count} file{'s are' if count > 1 else ' is'} not in the cache"
            listed = [artifacts.missing_text(one) for one in missing[:MAX_LISTED]] + ["..."] * (
                len(missing) > MAX_LISTED
            )
            problems.append(MachineError("", f"{are} and {why}: {'; '.join(listed)}; {self.remedy}"))
        raise_all(problems)

    def lock(self) -> list[dict[str, Any]]:
        """Return name, commit and hashes of everything that was asked for, for recipe.lock.yaml."""
        return [
            {
                "name": name,
                "for": "backbone" if artifact.want.weights else "data",
                **({"commit": artifact.commit} if artifact.commit else {}),
                "files": {one.file: one.sha256 for one in artifact.files.values() if one.sha256},
            }
            for name, artifact in sorted(self.artifacts.items())
        ]
